//! SHADOW_CREATE and the indexes of BACKFILL: T, as S is, but for the change.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{
    PostgresEngine,
    copy::{drain, range_table},
    polite::{fence, unfence},
    relation::{IndexDef, Relation},
    session::{Session, ident, literal, qualified},
    shape::{Shape, note, read_note},
    sync::{Copying, Sync as Dual, Way},
};
use crate::{
    change::NewConstraint,
    engine::{Pace, Task},
    error::{Error, Refusal, SqlErrorKind},
    ir::Ident,
};

/// How often orders are looked for while an index is built.
const ORDERS_EVERY: Duration = Duration::from_millis(50);
/// How often a unique index is tried while writers above READ COMMITTED leave rows behind for a moment.
const UNIQUE_ATTEMPTS: u32 = 20;

/// Creates T with its key and everything that has to hold from its first row; one transaction.
pub(crate) fn create(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
) -> Result<(), Error> {
    let art = &shape.artefacts;
    let table = shape.shadow();
    let mut sql = vec![fence(task.epoch)];
    for schema in [&art.base, &art.new, &art.old] {
        sql.push(format!("CREATE SCHEMA IF NOT EXISTS {}", ident(schema)));
    }
    sql.push(format!("CREATE TABLE {} (key text PRIMARY KEY, value text NOT NULL)", art.own("note")));
    sql.push(format!("CREATE TABLE {} (row_key text, reason text)", art.own("lost")));
    sql.push(format!("CREATE SEQUENCE {}", art.own("old_use")));
    sql.push(range_table(shape));
    let dual = Dual::new(shape, Way::Forward);
    sql.extend([dual.functions(Copying::Now), dual.published()]);
    let mut columns = Vec::new();
    for target in &shape.targets {
        let like = target.like.as_deref().and_then(|name| source.column(name));
        let mut text = format!("{} {}", ident(&target.build), target.kind);
        if let Some(collation) = like.and_then(|like| like.collation.as_ref()) {
            text.push_str(&format!(" COLLATE {collation}"));
        }
        if target.not_null {
            text.push_str(" NOT NULL");
        }
        let identity = source
            .column(&target.build)
            .filter(|_| !target.hidden)
            .and_then(|like| like.identity.as_ref().zip(like.sequence.as_ref()));
        if let Some((kind, sequence)) = identity {
            text.push_str(&format!(
                " GENERATED {kind} AS IDENTITY ({})",
                sequence_options(session, art, sequence)?
            ));
        } else if target.generated {
            if let Some(expression) = like.and_then(|like| like.default.as_ref()) {
                text.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
            }
        } else if let Some(default) = &target.default {
            text.push_str(&format!(" DEFAULT {default}"));
        }
        columns.push(text);
    }
    sql.push(format!(
        "CREATE {}TABLE {table} ({}){}",
        source.persistence,
        columns.join(", "),
        source.storage
    ));
    for target in &shape.targets {
        for setting in
            target.like.as_deref().and_then(|name| source.column(name)).iter().flat_map(|like| &like.settings)
        {
            sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} {setting}", ident(&target.build)));
        }
    }
    for index in &source.indexes {
        if is_early(shape, source, index) {
            sql.extend(early_index(shape, source, index));
        }
    }
    // Without a primary key a publication of all tables would forbid to delete from it.
    sql.push(format!("ALTER TABLE {table} REPLICA IDENTITY FULL"));
    for check in source.checks.iter().filter(|check| check.valid && keeps(shape, &check.name, &check.columns))
    {
        sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {} {}", ident(&check.name), check.definition));
    }
    sql.push(format!("ALTER TABLE {table} OWNER TO {}", source.owner));
    sql.push(note(art, "source", &source.oid));
    sql.push(note(art, "schema", &shape.schema));
    sql.push(note(art, "primary", "source"));
    sql.push(note(art, "structure", &source.structure()));
    sql.push(format!(
        "INSERT INTO {} SELECT 'target', {}::regclass::oid::text",
        art.own("note"),
        literal(&table)
    ));
    session.transaction(&sql.join("; ")).map(drop).map_err(unfence(task.epoch))
}

/// The options of an identity column's sequence, in the schema where T is built, under the name it has.
fn sequence_options(
    session: &mut Session,
    art: &super::shape::Artefacts,
    sequence: &str,
) -> Result<String, Error> {
    let row = session
        .row(&format!(
            "SELECT c.relname, format('START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s', s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END) \
             FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid WHERE s.seqrelid = {}::regclass",
            literal(sequence)
        ))?
        .unwrap_or_default();
    let part = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
    Ok(format!("SEQUENCE NAME {} {}", qualified(&art.new, &part(0)), part(1)))
}

/// Whether something of S that names these columns is on T as well.
pub(crate) fn keeps(shape: &Shape<'_>, name: &str, columns: &[String]) -> bool {
    let dropped = |other: &Ident| other.as_str() == name;
    !shape.change.drop_constraints.iter().any(dropped)
        && !shape.change.drop_indexes.iter().any(dropped)
        && columns.iter().all(|column| shape.built_as(column).is_some())
}

/// Whether the migration gives the table another primary key.
fn changes_primary_key(shape: &Shape<'_>, source: &Relation) -> bool {
    let wanted: Vec<&str> = shape.change.primary_key.iter().map(Ident::as_str).collect();
    primary_columns(shape, source).is_some_and(|now| !wanted.is_empty() && now != wanted)
}

fn primary_columns<'s>(shape: &'s Shape<'_>, source: &Relation) -> Option<Vec<&'s str>> {
    let index = source
        .indexes
        .iter()
        .find(|index| index.constraint.as_ref().is_some_and(|(kind, _)| *kind == 'p'))?;
    let columns = index.plain_columns.as_ref()?;
    Some(columns.iter().filter_map(|name| shape.built_as(name).map(|target| target.name.as_str())).collect())
}

/// The key, and what can only be built on an empty table: exclusion constraints.
fn is_early(shape: &Shape<'_>, source: &Relation, index: &IndexDef) -> bool {
    let exclusion = index.constraint.as_ref().is_some_and(|(kind, _)| *kind == 'x');
    let is_key = source.key().is_some_and(|key| key.name == index.name);
    is_key || (exclusion && keeps(shape, &index.name, &index.columns))
}

fn early_index(shape: &Shape<'_>, source: &Relation, index: &IndexDef) -> Vec<String> {
    let table = shape.shadow();
    let name = ident(&index.name);
    match &index.constraint {
        Some(('x', definition)) => vec![format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")],
        constraint => {
            let mut sql = vec![format!("CREATE UNIQUE INDEX {name} ON {table} {}", index.tail)];
            match constraint {
                Some(('p', rest)) if !changes_primary_key(shape, source) => {
                    sql.push(format!(
                        "ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}{rest}"
                    ));
                }
                Some(('u', rest)) => {
                    sql.push(format!(
                        "ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{rest}"
                    ));
                }
                _ => {}
            }
            sql
        }
    }
}

/// An index that T has to have before the swap: name and what follows `ON table`.
struct Wanted {
    name: String,
    unique: bool,
    tail: String,
}

fn wanted_indexes(shape: &Shape<'_>, source: &Relation) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for index in source.indexes.iter().filter(|index| index.valid && !is_early(shape, source, index)) {
        if keeps(shape, &index.name, &index.columns) {
            wanted.push(Wanted { name: index.name.clone(), unique: index.unique, tail: index.tail.clone() });
        }
    }
    let build = |names: &[Ident]| {
        let columns = names.iter().map(|name| {
            let target = shape.targets.iter().find(|target| target.name == name.as_str());
            ident(target.map_or(name.as_str(), |target| &target.build))
        });
        columns.collect::<Vec<_>>().join(", ")
    };
    for index in &shape.change.add_indexes {
        let filter = index.filter.as_ref().map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
        wanted.push(Wanted {
            name: index.name.as_str().to_owned(),
            unique: index.unique,
            tail: format!("USING btree ({}){filter}", build(&index.columns)),
        });
    }
    for constraint in &shape.change.add_constraints {
        if let NewConstraint::Unique { name, columns } = constraint {
            wanted.push(Wanted {
                name: name.as_str().to_owned(),
                unique: true,
                tail: format!("USING btree ({})", build(columns)),
            });
        }
    }
    if changes_primary_key(shape, source) {
        wanted.push(Wanted {
            name: new_primary_key(shape),
            unique: true,
            tail: format!("USING btree ({})", build(&shape.change.primary_key)),
        });
    }
    wanted
}

/// The name of the index of a primary key that comes.
pub(crate) fn new_primary_key(shape: &Shape<'_>) -> String {
    let name = format!("{}_pkey", shape.change.name_then());
    if name.len() > 63 { crate::state::artefact("pkey", &[shape.change.table.as_str()]) } else { name }
}

/// What the swap adds on top of indexes that exist by then: constraints of S, new ones and a new primary key.
pub(crate) fn constraints_using_indexes(shape: &Shape<'_>, source: &Relation, table: &str) -> Vec<String> {
    let mut sql = Vec::new();
    let replaces_key = changes_primary_key(shape, source);
    for index in source.indexes.iter().filter(|index| index.valid && !is_early(shape, source, index)) {
        if let (Some((kind, rest)), true) = (&index.constraint, keeps(shape, &index.name, &index.columns)) {
            let name = ident(&index.name);
            match kind {
                'u' => sql.push(format!(
                    "ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{rest}"
                )),
                'p' if !replaces_key => {
                    sql.push(format!(
                        "ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}{rest}"
                    ));
                }
                _ => {}
            }
        }
    }
    if replaces_key {
        let name = ident(&new_primary_key(shape));
        sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}"));
    }
    sql
}

/// Builds the indexes and statistics objects of T that are missing, without blocking anybody; then VACUUM ANALYZE.
pub(crate) fn indexes(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
    target_oid: &str,
    pace: &dyn Pace,
) -> Result<(), Error> {
    let table = shape.shadow();
    for wanted in wanted_indexes(shape, source) {
        task.point("index.before");
        build_wanted(engine, task, shape, target_oid, &wanted, pace)
            .map_err(|error| duplicates(error, shape.change.table.clone()))?;
        task.point("index.after");
    }
    let statistics = engine.session.run(&format!(
        "SELECT e.stxname, pg_get_statisticsobjdef(e.oid), format('CREATE STATISTICS %I.%I', n.nspname, e.stxname), format(' FROM %I.%I', tn.nspname, t.relname) \
         FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace JOIN pg_class t ON t.oid = e.stxrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace \
         WHERE e.stxrelid = {} AND NOT EXISTS (SELECT 1 FROM pg_statistic_ext o WHERE o.stxrelid = {target_oid} AND o.stxname = e.stxname)",
        source.oid
    ))?;
    for row in statistics {
        let part = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let definition = part(1);
        let body = definition.strip_prefix(&part(2)).and_then(|rest| rest.strip_suffix(&part(3)));
        let body = body.ok_or_else(|| {
            Error::Damaged(format!("the server prints statistics unlike expected: {definition}"))
        })?;
        let sql = format!(
            "SET LOCAL lock_timeout = '5s'; {}; CREATE STATISTICS {}{body} FROM {table}",
            fence(task.epoch),
            qualified(&shape.artefacts.new, &part(0))
        );
        engine.session.transaction(&sql).map_err(unfence(task.epoch))?;
    }
    engine.session.run("SET lock_timeout = 0")?;
    let done = engine.session.run(&format!("VACUUM ANALYZE {table}"));
    engine.session.run("SET lock_timeout = '5s'")?;
    done.map(drop)
}

/// Builds one index of T. Rows that a writer above READ COMMITTED left stale may collide with newer ones until they are
/// drained; so for a unique index a second connection drains while it is built, and a collision is a reason to try again.
fn build_wanted(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    target_oid: &str,
    wanted: &Wanted,
    pace: &dyn Pace,
) -> Result<(), Error> {
    let table = shape.shadow();
    let statement = || {
        let unique = if wanted.unique { "UNIQUE " } else { "" };
        format!("CREATE {unique}INDEX CONCURRENTLY {} ON {table} {}", ident(&wanted.name), wanted.tail)
    };
    if !wanted.unique {
        let pace = Some(pace);
        return concurrently(engine, task, &shape.artefacts.new, target_oid, &wanted.name, &statement, pace);
    }
    let stop = AtomicBool::new(false);
    let mut second = engine.dial.engine()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let dual = Dual::new(shape, Way::Forward);
            while !stop.load(Ordering::Relaxed) {
                // What this cannot drain, the next drain does, and says why not.
                if !matches!(drain(&mut second, task, &dual, false), Ok(1..)) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        let dual = Dual::new(shape, Way::Forward);
        let mut result = Ok(());
        for _ in 0..UNIQUE_ATTEMPTS {
            result = drain(engine, task, &dual, false).and_then(|_| {
                let pace = Some(pace);
                concurrently(engine, task, &shape.artefacts.new, target_oid, &wanted.name, &statement, pace)
            });
            if !matches!(&result, Err(Error::Sql(error)) if error.kind == SqlErrorKind::Unique) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Builds one index with CREATE INDEX CONCURRENTLY, unless a valid one of the name is on the table; what an attempt left
/// INVALID is dropped first. Outside a transaction, so the lease is checked before and after. It waits for everybody's old
/// snapshots, so orders are obeyed meanwhile.
#[allow(clippy::too_many_arguments, reason = "each is a different thing")]
pub(crate) fn concurrently(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    schema: &str,
    table_oid: &str,
    name: &str,
    statement: &dyn Fn() -> String,
    pace: Option<&dyn Pace>,
) -> Result<(), Error> {
    for attempt in 0.. {
        let session = &mut engine.session;
        session.run(&fence(task.epoch)).map_err(unfence(task.epoch))?;
        let found = session.row(&format!(
            "SELECT i.indisvalid AND i.indisready, i.indrelid = {table_oid} FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {}",
            literal(schema),
            literal(name)
        ))?;
        let is = |row: &super::session::Row, at: usize| row.get(at).and_then(Option::as_deref) == Some("t");
        match found {
            Some(row) if !is(&row, 1) => {
                return Err(Error::refused(
                    format!("there is an index `{name}` on another table"),
                    "Give the new index another name.",
                ));
            }
            Some(row) if is(&row, 0) => return Ok(()),
            Some(_) => {
                session.run("SET lock_timeout = 0")?;
                session.run(&format!("DROP INDEX CONCURRENTLY {}", qualified(schema, name)))?;
            }
            None => {}
        }
        // It blocks nobody, so it may wait; a lock timeout would only leave an INVALID index behind.
        session.run("SET lock_timeout = 0")?;
        let built = match pace {
            None => session.run(&statement()).map(drop),
            Some(pace) => under_orders(engine, pace, &statement()),
        };
        let session = &mut engine.session;
        session.run("SET lock_timeout = '5s'")?;
        match built {
            Ok(_) => {}
            Err(Error::Sql(error)) if error.kind == SqlErrorKind::Conflict && attempt < 3 => {}
            Err(error) => {
                // Leave no INVALID index behind; the first error is the one to tell. After an order not for long: what is in
                // the way of the index may be in this one's way too, and whoever goes on or undoes drops it as well.
                if !matches!(error, Error::Cancelled | Error::Deadline { .. }) {
                    let _ = session.run("SET lock_timeout = 0");
                }
                let _ =
                    session.run(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", qualified(schema, name)));
                let _ = session.run("SET lock_timeout = '5s'");
                return Err(error);
            }
        }
        if attempt > 3 {
            break;
        }
    }
    Err(Error::Damaged(format!("index `{name}` stays invalid")))
}

/// Runs one statement that may wait long, and ends it when an order says so: its error then.
fn under_orders(engine: &mut PostgresEngine, pace: &dyn Pace, statement: &str) -> Result<(), Error> {
    let (config, tls) = (engine.dial.config.clone(), engine.dial.tls.clone());
    let mut second = engine.dial.engine()?;
    let token = engine.session.cancel_token();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let orders = scope.spawn(|| {
            let mut order = None;
            while !stop.load(Ordering::Relaxed) {
                match (&order, pace.obey(&mut second)) {
                    (None, Err(error @ (Error::Cancelled | Error::Deadline { .. }))) => order = Some(error),
                    (None, _) => {}
                    // Again and again: one that comes between two statements ends nothing.
                    (Some(_), _) => drop(tls.cancel(&config, &token)),
                }
                std::thread::sleep(ORDERS_EVERY);
            }
            order
        });
        let built = engine.session.run(statement);
        stop.store(true, Ordering::Relaxed);
        let order = orders.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match order {
            None => built.map(drop),
            Some(order) => {
                // A last request to end it may come late, and end this.
                let _ = engine.session.run("SELECT 1");
                Err(order)
            }
        }
    })
}

/// A unique index that cannot be built: rows that are alike.
pub(crate) fn duplicates(error: Error, table: Ident) -> Error {
    match error {
        Error::Sql(error) if error.kind == SqlErrorKind::Unique => {
            Error::Rejected { table, count: 1, sample: vec![error.message] }
        }
        other => other,
    }
}

/// Whether S is still what T was made after.
pub(crate) fn check_structure(
    session: &mut Session,
    shape: &Shape<'_>,
    source: &Relation,
) -> Result<(), Error> {
    let then = read_note(session, &shape.artefacts, "structure")?;
    if then.as_deref() == Some(source.structure().as_str()) {
        return Ok(());
    }
    Err(Error::Refused(vec![Refusal::new(
        format!("`{}` was altered while it was copied", shape.change.table),
        "Roll the migration back, plan it again on the table as it is now, and apply that.",
    )]))
}

/// Drops everything that belongs to the change and is not the table itself; idempotent. `which` tables go with it.
pub(crate) fn drop_artefacts(shape: &Shape<'_>, tables: &[String]) -> String {
    let art = &shape.artefacts;
    let mut sql: Vec<String> = tables.iter().map(|table| format!("DROP TABLE IF EXISTS {table}")).collect();
    for schema in [&art.new, &art.old, &art.base] {
        sql.push(format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(schema)));
    }
    sql.join("; ")
}
