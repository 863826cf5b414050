//! The tactic of each operation on each engine: the table of locks, rewrites and ways back.
//!
//! PostgreSQL's locks: AE = ACCESS EXCLUSIVE, SRE = SHARE ROW EXCLUSIVE, SUE = SHARE UPDATE EXCLUSIVE (no client waits),
//! S = SHARE (writers wait). SQLite has one: W, the write lock of the database.

use crate::{
    catalog::{Catalog, Constraint, ConstraintKind, Table},
    change::{ColumnChange, ColumnFate, Fate, NewConstraint, TableChange, Tactic},
    engine::Policy,
    error::Refusal,
    ir::{Dialect, Expr, Op},
    plan::{PlannedStep, compose::widens},
};

/// Rows per second that a shadow copy is expected to make, before `rehearse` has measured.
const COPY_ROWS_PER_S: [u64; 2] = [150_000, 300_000];
/// Rows per second that an index build is expected to make.
const INDEX_ROWS_PER_S: [u64; 2] = [1_000_000, 1_600_000];
/// Rows per second that SQLite's DROP COLUMN is expected to rewrite.
const DROP_ROWS_PER_S: u64 = 1_500_000;
/// Rows per second of which SQLite is expected to look up what they point to.
const CHECK_ROWS_PER_S: u64 = 1_000_000;

fn per_second(of: [u64; 2], dialect: Dialect) -> u64 {
    match dialect {
        Dialect::Postgres => of[0],
        Dialect::Sqlite => of[1],
    }
}

/// What one step needs by itself.
pub(super) struct Judged {
    pub(super) tactic: Tactic,
    lock: &'static str,
    hold: String,
}

fn judged(tactic: Tactic, lock: &'static str, hold: impl Into<String>) -> Judged {
    Judged { tactic, lock, hold: hold.into() }
}

/// The cheapest safe tactic of one step.
pub(super) fn judge(op: &Op, change: &TableChange, catalog: &Catalog, policy: &Policy) -> Judged {
    match catalog.dialect {
        Dialect::Postgres => postgres(op, change, catalog),
        Dialect::Sqlite => sqlite(op, change, catalog, policy),
    }
}

fn postgres(op: &Op, change: &TableChange, catalog: &Catalog) -> Judged {
    use Tactic::{Concurrent, ExpandContract, Instant, Shadow};
    let instant = || judged(Instant, "AE", "<20 ms");
    match op {
        Op::CreateTable { .. } => judged(Instant, "-", "-"),
        Op::AddColumn { column, up, .. } => {
            let stable = column.default.as_ref().is_none_or(|default| is_stable(default, catalog.dialect));
            if up.is_none() && stable { instant() } else { judged(ExpandContract, "AE", "<20 ms") }
        }
        // Rows that are written while the column is hidden have a value of it in a shadow alone.
        Op::DropColumn { down: Some(_), .. } => judged(Shadow, "AE", "<25 ms"),
        Op::RenameColumn { .. } | Op::RenameTable { .. } | Op::DropColumn { .. } | Op::DropTable { .. } => {
            judged(ExpandContract, "AE", "<20 ms")
        }
        Op::AlterColumn { column, .. } => {
            let found = change.columns.iter().find(|entry| entry.then.as_ref() == Some(column));
            let Some(entry) = found else { return judged(Shadow, "AE", "<25 ms") };
            let (now, then) =
                (entry.type_now.as_deref().unwrap_or(""), entry.type_then.as_deref().unwrap_or(""));
            let retyped = !now.eq_ignore_ascii_case(then);
            // Wider varchar and varchar -> text keep the stored form; every other change rewrites.
            let textual = |text: &str| {
                text.starts_with("varchar") || text.starts_with("character varying") || text == "text"
            };
            let in_place = retyped && textual(now) && textual(then) && widens(now, then);
            if (retyped && !in_place) || op_has_up(op) {
                judged(Shadow, "AE", "<25 ms")
            } else if entry.nullable_now && !entry.nullable_then {
                judged(Concurrent, "AE", "<20 ms")
            } else {
                instant()
            }
        }
        Op::AddIndex { online, .. } => {
            let ms = index_ms(change, catalog);
            if *online { judged(Concurrent, "SUE", spoken(ms)) } else { judged(Instant, "S", spoken(ms)) }
        }
        Op::DropIndex { .. } => judged(Concurrent, "SUE", "<20 ms"),
        Op::AddUnique { .. } => judged(Concurrent, "AE", "<20 ms"),
        Op::AddCheck { .. } => judged(Concurrent, "AE", "<20 ms"),
        Op::AddForeignKey { .. } => judged(Concurrent, "SRE", "<20 ms"),
        Op::DropConstraint { .. } => instant(),
        // In place the old version would see the new values, and its own rows would miss them.
        Op::Sql { .. } => judged(Shadow, "AE", "<25 ms"),
        // No trigger runs them: rows that clients write get them later.
        Op::Transform { .. } | Op::Plugin { .. } => judged(ExpandContract, "-", "chunks"),
    }
}

fn sqlite(op: &Op, change: &TableChange, catalog: &Catalog, policy: &Policy) -> Judged {
    use Tactic::{ExpandContract, Instant, Shadow};
    let shadow = || judged(Shadow, "W", format!("<={} ms", policy.hold_ms));
    match op {
        Op::CreateTable { .. } => judged(Instant, "W", "<5 ms"),
        Op::AddColumn { column, up, .. } => {
            let constant = column.default.as_ref().is_none_or(Expr::is_value);
            if up.is_none() && constant { judged(Instant, "W", "<5 ms") } else { shadow() }
        }
        Op::RenameColumn { .. } | Op::RenameTable { .. } | Op::DropTable { .. } => {
            judged(ExpandContract, "W", "<5 ms")
        }
        Op::AddIndex { online, .. } => {
            let ms = index_ms(change, catalog);
            if !online || ms <= policy.hold_ms { judged(Instant, "W", spoken(ms)) } else { shadow() }
        }
        Op::AddUnique { .. } => {
            let ms = index_ms(change, catalog);
            if ms <= policy.hold_ms { judged(Instant, "W", spoken(ms)) } else { shadow() }
        }
        Op::DropIndex { .. } => judged(Instant, "W", spoken(index_ms(change, catalog) / 4)),
        Op::DropConstraint { name, .. } if change.drop_indexes.contains(name) => {
            judged(Instant, "W", spoken(index_ms(change, catalog) / 4))
        }
        Op::AlterColumn { .. }
        | Op::DropColumn { .. }
        | Op::AddCheck { .. }
        | Op::AddForeignKey { .. }
        | Op::DropConstraint { .. }
        | Op::Sql { .. }
        | Op::Transform { .. }
        | Op::Plugin { .. } => shadow(),
    }
}

fn op_has_up(op: &Op) -> bool {
    matches!(op, Op::AlterColumn { up: Some(_), .. })
}

/// Whether PostgreSQL evaluates a default once for all rows that exist: constants, and the functions of the transaction's
/// time. Everything else is taken for volatile.
fn is_stable(default: &Expr, dialect: Dialect) -> bool {
    let text = default.print(dialect).unwrap_or_default().trim().to_ascii_lowercase();
    default.is_value()
        || matches!(
            text.as_str(),
            "null"
                | "true"
                | "false"
                | "now()"
                | "current_timestamp"
                | "current_date"
                | "localtimestamp"
                | "transaction_timestamp()"
        )
        || text.parse::<f64>().is_ok()
        || (text.len() >= 2
            && text.starts_with('\'')
            && text.ends_with('\'')
            && !text[1..text.len() - 1].contains('\''))
}

fn rows(change: &TableChange, catalog: &Catalog) -> u64 {
    catalog.tables.get(&change.table).map_or(0, |table| table.size.rows)
}

fn index_ms(change: &TableChange, catalog: &Catalog) -> u64 {
    rows(change, catalog).saturating_mul(1000) / per_second(INDEX_ROWS_PER_S, catalog.dialect)
}

fn spoken(ms: u64) -> String {
    match ms {
        0..20 => "<20 ms".to_owned(),
        20..10_000 => format!("{ms} ms"),
        _ => format!("{} s", ms / 1000),
    }
}

/// The printed line of a step, once the tactic of its table is known.
pub(super) fn line(
    number: usize,
    op: &Op,
    judged: Judged,
    change: &TableChange,
    catalog: &Catalog,
) -> PlannedStep {
    let shadow = change.tactic == Tactic::Shadow;
    let tactic = if shadow { Tactic::Shadow } else { judged.tactic };
    let size = catalog.tables.get(&change.table).map_or_else(Default::default, |table| table.size);
    let copies = matches!(tactic, Tactic::Shadow)
        || (tactic == Tactic::ExpandContract
            && matches!(op, Op::Sql { .. } | Op::Transform { .. } | Op::Plugin { .. }));
    let estimate_ms = match op {
        _ if copies => size.rows * 1000 / per_second(COPY_ROWS_PER_S, catalog.dialect),
        Op::AddIndex { .. } | Op::AddUnique { .. } | Op::AddCheck { .. } | Op::AddForeignKey { .. } => {
            index_ms(change, catalog)
        }
        _ => 1,
    };
    let disk_bytes = match op {
        _ if shadow => 0,
        Op::AddIndex { .. } | Op::AddUnique { .. } => size.rows * 24,
        _ => 0,
    };
    let (undo_after, lost) = way_back(op, change);
    let (lock, hold) = match (shadow, catalog.dialect) {
        (true, Dialect::Postgres) => ("AE", "<25 ms".to_owned()),
        (true, Dialect::Sqlite) => ("W", "chunks".to_owned()),
        (false, _) => (judged.lock, judged.hold),
    };
    PlannedStep {
        number,
        op: op.name().to_owned(),
        target: target(op),
        tactic,
        lock: lock.to_owned(),
        hold,
        rewrite: shadow,
        estimate_ms,
        disk_bytes,
        undo_before: true,
        undo_after: undo_after.to_owned(),
        lost,
    }
}

fn way_back(op: &Op, change: &TableChange) -> (&'static str, Option<String>) {
    if change.tactic == Tactic::Shadow && !change.is_reversible() {
        let columns: Vec<String> = change
            .columns
            .iter()
            .filter(|column| !column.reversible)
            .filter_map(|column| column.now.as_ref().map(ToString::to_string))
            .collect();
        return ("no", Some(format!("all writes after the swap: no `down` for {}", columns.join(", "))));
    }
    match op {
        Op::CreateTable { table, .. } => ("yes", Some(format!("rows of `{table}`"))),
        Op::AddColumn { column, .. } => ("until contract", Some(format!("values of `{}`", column.name))),
        Op::DropColumn { .. } | Op::DropTable { .. } => ("until contract", None),
        Op::AlterColumn { down, .. } if change.tactic == Tactic::Shadow => {
            let lost = down.is_none().then(|| "rows that do not fit the old type are listed".to_owned());
            ("until contract", lost)
        }
        Op::AlterColumn { .. } => ("yes", None),
        Op::RenameColumn { .. } | Op::RenameTable { .. } => ("until contract", None),
        Op::AddIndex { .. } | Op::DropIndex { .. } | Op::AddUnique { .. } => ("yes", None),
        Op::AddCheck { .. } | Op::AddForeignKey { .. } | Op::DropConstraint { .. } => {
            ("until contract", None)
        }
        Op::Sql { .. } | Op::Transform { .. } | Op::Plugin { .. } => ("until contract", None),
    }
}

fn target(op: &Op) -> String {
    let table = op.table();
    match op {
        Op::AddColumn { column, .. } => format!("{table}.{}", column.name),
        Op::RenameColumn { from, to, .. } => format!("{table}.{from} -> {to}"),
        Op::RenameTable { to, .. } => format!("{table} -> {to}"),
        Op::AlterColumn { column, .. } | Op::DropColumn { column, .. } => format!("{table}.{column}"),
        Op::AddIndex { name, .. }
        | Op::DropIndex { name, .. }
        | Op::AddUnique { name, .. }
        | Op::AddCheck { name, .. }
        | Op::AddForeignKey { name, .. }
        | Op::DropConstraint { name, .. } => format!("{table}: {name}"),
        Op::Transform { transform: name, .. } | Op::Plugin { plugin: name, .. } => format!("{table}: {name}"),
        Op::CreateTable { .. } | Op::DropTable { .. } | Op::Sql { .. } => table.to_string(),
    }
}

/// Disk needed at most: copies with their indexes, the sort, and the log they leave.
pub(super) fn disk(changes: &[TableChange], catalog: &Catalog) -> u64 {
    let one = |change: &TableChange| {
        let Some(table) = catalog.tables.get(&change.table) else { return 0 };
        let new_indexes =
            (change.add_indexes.len() + change.add_constraints.len()) as u64 * table.size.rows * 24;
        match change.tactic {
            Tactic::Shadow => 2 * (table.size.bytes + table.size.index_bytes) + new_indexes,
            Tactic::ExpandContract if !change.rows.is_empty() => table.size.bytes + new_indexes,
            _ => new_indexes,
        }
    };
    changes.iter().map(one).sum()
}

/// Rows that are copied or filled in.
pub(super) fn rows_to_copy(changes: &[TableChange], catalog: &Catalog) -> u64 {
    let copied = changes.iter().filter(|change| change.tactic >= Tactic::ExpandContract);
    copied.map(|change| rows(change, catalog)).sum()
}

/// Why a table cannot be changed this way.
pub(super) fn obstacles(change: &TableChange, table: &Table, catalog: &Catalog) -> Vec<Refusal> {
    let dialect = catalog.dialect;
    let copies = change.tactic == Tactic::Shadow
        || (change.tactic == Tactic::ExpandContract && !change.rows.is_empty());
    let mut refusals = Vec::new();
    if dialect == Dialect::Postgres {
        refusals.extend(on_postgres(change, table));
        refusals.extend(irreplaceable(change, table));
        refusals.extend(unprotected(change, table, &catalog.server_version));
    }
    if dialect == Dialect::Sqlite && change.fate == Fate::Drop {
        // They would fail whatever statement they are part of, from the swap on.
        refusals.extend(table.dependents.iter().map(|user| {
            Refusal::new(
                format!("{} `{}` names `{}`, which is dropped", user.kind, user.name, table.name),
                "Drop it before.",
            )
        }));
    }
    if !copies {
        return refusals;
    }
    if dialect == Dialect::Sqlite {
        refusals.extend(on_sqlite(change, table));
    }
    refusals.extend(table.obstacles.iter().cloned());
    if table.row_key.is_empty() && !table.has_row_number {
        refusals.push(Refusal::new(
            format!("`{}` has no key by which rows can be found", table.name),
            "Add a primary key, or a unique index over NOT NULL columns, with your own statements first.",
        ));
    }
    for column in &change.columns {
        let Some(now) = &column.now else { continue };
        let retyped = column.fate == ColumnFate::Alter && column.type_now != column.type_then;
        let keyed = table.row_key.contains(now) || table.primary_key.contains(now);
        let widened =
            widens(column.type_now.as_deref().unwrap_or(""), column.type_then.as_deref().unwrap_or(""));
        if retyped && keyed && (dialect == Dialect::Sqlite || !widened) {
            refusals.push(Refusal::new(
                format!("`{}.{now}` is part of the key by which rows are found", table.name),
                "Only a wider integer or text type is possible for it (PostgreSQL); else add a new column and change the key in a later migration.",
            ));
        }
        if dialect == Dialect::Sqlite && column.fate == ColumnFate::Drop && !column.reversible {
            refusals.push(Refusal::new(
                format!("`{}.{now}` is NOT NULL without a default: rows written while it is hidden have no value for it", table.name),
                "Give `down` with a value for them.",
            ));
        }
    }
    let touched = change.columns.iter().filter(|column| column.now != column.then);
    for column in touched.filter_map(|column| column.now.as_ref()) {
        for hanging in table.triggers.iter().chain(&table.dependents) {
            let names = hanging.columns.as_ref().is_some_and(|columns| columns.contains(column));
            if names {
                refusals.push(Refusal::new(
                    format!(
                        "{} `{}` names `{}.{column}`, which is renamed or dropped",
                        hanging.kind, hanging.name, table.name
                    ),
                    "Drop it before and create it again after the migration.",
                ));
            }
        }
    }
    refusals
}

/// What a copy cannot do about foreign keys on SQLite.
fn on_sqlite(change: &TableChange, table: &Table) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for column in change.columns.iter().filter(|column| column.then.is_some() && column.now != column.then) {
        let Some(now) = &column.now else { continue };
        let others = table.referenced_by.iter().filter(|other| other.columns.contains(now));
        refusals.extend(others.map(|other| {
            Refusal::new(
                format!(
                    "`{}.{now}` is renamed while the table is copied, and a foreign key of `{}` points to it",
                    table.name, other.table
                ),
                "Rename it in a migration of its own.",
            )
        }));
    }
    refusals
}

/// A view reads as its owner before PostgreSQL 15, and row level security does not hold for the owner.
fn unprotected(change: &TableChange, table: &Table, server_version: &str) -> Option<Refusal> {
    let major = server_version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let is_secured = table.other.get("row security").is_some_and(|text| text.starts_with('t'));
    (is_secured && change.needs_views() && major.is_none_or(|major| major < 15)).then(|| {
        Refusal::new(
            format!("`{}` has row level security, which views of its versions would pass by", table.name),
            "PostgreSQL 15 or later is needed for this change.",
        )
    })
}

/// A constraint that is taken off a table which stays, and that nobody could put on again while clients write.
fn irreplaceable(change: &TableChange, table: &Table) -> Option<Refusal> {
    let goes = |one: &&Constraint| {
        one.kind == ConstraintKind::Exclusion
            && one.name.as_ref().is_some_and(|name| change.drop_constraints.contains(name))
    };
    if change.tactic == Tactic::Shadow {
        return None;
    }
    let name = table.constraints.iter().find(goes)?.name.as_ref()?;
    Some(Refusal::new(
        format!("exclusion constraint `{name}` of `{}` could not come back with a rollback", table.name),
        "Drop it with your own statement, when you will not need it any more.",
    ))
}

/// What PostgreSQL's ways of changing a table cannot do together.
fn on_postgres(change: &TableChange, table: &Table) -> Option<Refusal> {
    let has_functions = !change.functions().is_empty();
    if change.tactic == Tactic::Shadow {
        return has_functions.then(|| {
            Refusal::new(
                format!("`{}` is copied and has a transform or plugin in the same migration", table.name),
                "Put the transform or plugin into a migration of its own, after this one.",
            )
        });
    }
    // Columns get their new names at the swap, and these are worked out before it.
    let is_renamed =
        |column: &ColumnChange| column.now.is_some() && column.then.is_some() && column.now != column.then;
    let by_new_names = has_functions
        || change.add_constraints.iter().any(|one| matches!(one, NewConstraint::Check { .. }))
        || change.add_indexes.iter().any(|index| index.filter.is_some());
    (by_new_names && change.columns.iter().any(is_renamed)).then(|| {
        Refusal::new(
            format!(
                "columns of `{}` are renamed, and a check, partial index, transform or plugin uses the new names",
                table.name
            ),
            "Rename them in a migration before this one.",
        )
    })
}

/// What to know before approving.
pub(super) fn warnings(change: &TableChange, table: &Table, dialect: Dialect) -> Vec<String> {
    let mut warnings = Vec::new();
    let visible = change.fate != Fate::Create
        && (change.rename_to.is_some()
            || change.columns.iter().any(|column| {
                column.now.is_some() && column.now != column.then || column.fate == ColumnFate::Alter
            }));
    if dialect == Dialect::Sqlite && visible {
        warnings.push(format!(
            "`{}`: code of the old version needs `cutover schema prelude` on its connections; through it there is no upsert, no RETURNING, and `changes()` and `last_insert_rowid()` say nothing",
            table.name
        ));
        if table.primary_key.is_empty() {
            warnings.push(format!(
                "`{}` has no primary key: old code can read but not write through its view",
                table.name
            ));
        }
    }
    if dialect == Dialect::Sqlite && change.tactic == Tactic::Shadow && !table.indexes.is_empty() {
        warnings.push(format!(
            "indexes of `{}` get new names in the catalog: look for `INDEXED BY` in your statements",
            table.name
        ));
    }
    if dialect == Dialect::Sqlite && change.fate == Fate::Alter && change.tactic != Tactic::Shadow {
        let added = change.columns.iter().filter(|column| column.fate == ColumnFate::Add);
        warnings.extend(added.filter_map(|column| column.then.as_ref()).map(|name| {
            let ms = table.size.rows.saturating_mul(1000) / DROP_ROWS_PER_S;
            let hold = spoken(ms);
            format!("`{}.{name}`: a rollback rewrites the table under the write lock ({hold})", table.name)
        }));
    }
    if dialect == Dialect::Sqlite && change.adds_references() && change.fate == Fate::Alter {
        let hold = spoken(table.size.rows.saturating_mul(1000) / CHECK_ROWS_PER_S);
        warnings.push(format!(
            "`{}`: where clients do not stop writing, new foreign keys are checked under the write lock ({hold})",
            table.name
        ));
    }
    let is_secured = table.other.get("row security").is_some_and(|text| text.starts_with('t'));
    if is_secured && change.needs_views() && table.other.contains_key("grants on columns") {
        warnings.push(format!(
            "`{}` has row level security and grants on columns: who has only the latter cannot read the views of its versions",
            table.name
        ));
    }
    if dialect == Dialect::Postgres && visible {
        warnings
            .push(format!("`{}`: code of the old version needs `search_path` set to its schema", table.name));
    }
    warnings
}
