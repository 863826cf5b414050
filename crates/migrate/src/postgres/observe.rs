//! What is there: the catalog for the planner, expressions that are valid, rows that do not fit, uses and losses.

use std::collections::BTreeMap;

use super::{
    PostgresEngine, in_place, is_shadow,
    relation::{Relation, dependents, find, obstacles, triggers},
    session::{Row, Session, ident, literal},
    shape::Shape,
    swap::definition,
    sync::{Sync as Dual, Way},
    views,
};
use crate::{
    catalog::{
        Catalog, Column, Constraint, ConstraintKind, Dependent, Facts, Index, OldTransaction, Reference,
        Size, Table, TableKind,
    },
    change::{ColumnChange, ColumnFate, Fate, NewConstraint, TableChange, Tactic},
    engine::{ExprCheck, Task},
    error::{Error, Refusal, SqlErrorKind},
    ir::{Dialect, Ident},
    state::sql::{Sql, Value},
};

fn part(row: &Row, at: usize) -> String {
    row.get(at).cloned().flatten().unwrap_or_default()
}

fn number(row: &Row, at: usize) -> u64 {
    part(row, at).parse().unwrap_or(0)
}

fn idents(names: &[String]) -> Vec<Ident> {
    names.iter().filter_map(|name| Ident::ours(name.clone()).ok()).collect()
}

/// Whether a session that is not ours has done anything within the last second. A role that may not see what others do
/// takes every session for one that does (`pg_read_all_stats` lets it see).
pub(crate) fn has_company(sql: &mut dyn Sql) -> Result<bool, Error> {
    let rows = sql.query(
        "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = current_database() \
           AND coalesce(backend_type, 'client backend') = 'client backend' \
           AND coalesce(application_name, '') <> current_setting('application_name') \
           AND (state IS NULL OR state <> 'idle' OR state_change > clock_timestamp() - interval '1 second')",
        &[],
    )?;
    Ok(!matches!(rows.first().and_then(|row| row.first()), Some(Value::Integer(0))))
}

pub(super) fn observe(engine: &mut PostgresEngine, tables: &[Ident]) -> Result<Catalog, Error> {
    let version = engine.session.value("SHOW server_version")?.unwrap_or_default();
    let server_version = version.split_whitespace().next().unwrap_or_default().to_owned();
    let mut found = BTreeMap::new();
    for name in tables {
        let schema = engine.schema_of(name.as_str())?;
        if let Some(oid) = find(&mut engine.session, &schema, name.as_str())? {
            found.insert(name.clone(), table(engine, name, &oid)?);
        }
    }
    let facts = facts(engine)?;
    Ok(Catalog { dialect: Dialect::Postgres, server_version, tables: found, facts })
}

fn facts(engine: &mut PostgresEngine) -> Result<Facts, Error> {
    let oldest = engine.session.row(
        "SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::bigint, 'pid ' || (array_agg(pid ORDER BY xact_start))[1] FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'",
    )?;
    let oldest = oldest.filter(|row| row.first().is_some_and(Option::is_some));
    Ok(Facts {
        disk_free_bytes: disk_free(engine)?,
        oldest_transaction: oldest
            .map(|row| OldTransaction { seconds: number(&row, 0), owner: part(&row, 1) }),
        obstacles: Vec::new(),
    })
}

/// Free bytes where the database lies, when that is this machine and we may know.
fn disk_free(engine: &mut PostgresEngine) -> Result<Option<u64>, Error> {
    let local =
        engine.dial.config.get_hosts().iter().all(|host| matches!(host, postgres::config::Host::Unix(_)));
    if !local || !engine.session.is_true("SELECT pg_has_role('pg_read_all_settings', 'MEMBER')")? {
        return Ok(None);
    }
    let directory = engine.session.value("SHOW data_directory")?.unwrap_or_default();
    Ok(rustix::fs::statvfs(directory.as_str())
        .ok()
        .map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize)))
}

fn table(engine: &mut PostgresEngine, name: &Ident, oid: &str) -> Result<Table, Error> {
    let session = &mut engine.session;
    let relation = Relation::read(session, oid)?;
    let head = session
        .row(&format!(
            "SELECT CASE WHEN c.relispartition THEN 'partition' ELSE c.relkind::text END, pg_table_size(c.oid), pg_indexes_size(c.oid), \
               coalesce(c.relacl::text, ''), c.relrowsecurity::text || c.relforcerowsecurity::text, c.relreplident::text, coalesce(array_to_string(c.reloptions, ','), ''), \
               (SELECT string_agg(quote_ident(a.attname) || a.attacl::text, ' ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) FROM pg_class c WHERE c.oid = {oid}"
        ))?
        .unwrap_or_default();
    let kind = match part(&head, 0).as_str() {
        "r" => TableKind::Ordinary,
        "p" => TableKind::Partitioned,
        "partition" => TableKind::Partition,
        "v" | "m" => TableKind::View,
        _ => TableKind::Virtual,
    };
    let (found, mut refusals) = match kind {
        TableKind::Ordinary => dependents(session, &relation)?,
        _ => (Vec::new(), obstacles(session, &relation)?),
    };
    if relation.columns.iter().any(|column| column.name.starts_with("_cutover_")) {
        refusals.push(Refusal::new(
            format!("an earlier migration of `{name}` is not completed"),
            "Run `cutover schema complete` first.",
        ));
    }
    for column in relation.columns.iter().filter(|column| Ident::ours(column.name.clone()).is_err()) {
        refusals.push(Refusal::new(
            format!("column {:?} of `{name}` has a name that cannot be printed", column.name),
            "Rename it with your own statements first.",
        ));
    }
    let constraint_kind = |kind: char| match kind {
        'p' => ConstraintKind::PrimaryKey,
        'x' => ConstraintKind::Exclusion,
        _ => ConstraintKind::Unique,
    };
    let mut constraints: Vec<Constraint> = relation
        .indexes
        .iter()
        .filter_map(|index| {
            let (kind, rest) = index.constraint.as_ref()?;
            Some(Constraint {
                name: Ident::ours(index.name.clone()).ok(),
                kind: constraint_kind(*kind),
                columns: idents(&index.columns),
                definition: format!("{}{rest}", index.tail),
            })
        })
        .collect();
    let plain = |kind: ConstraintKind| {
        move |one: &super::relation::ConstraintDef| Constraint {
            name: Ident::ours(one.name.clone()).ok(),
            kind,
            columns: idents(&one.columns),
            definition: format!("{}{}", one.definition, if one.valid { "" } else { " NOT VALID" }),
        }
    };
    constraints.extend(relation.checks.iter().map(plain(ConstraintKind::Check)));
    constraints.extend(relation.foreign_keys.iter().map(plain(ConstraintKind::ForeignKey)));
    let key = |index: &super::relation::IndexDef| index.plain_columns.clone().unwrap_or_default();
    let primary =
        relation.indexes.iter().find(|index| index.constraint.as_ref().is_some_and(|(kind, _)| *kind == 'p'));
    let mut referenced_by = Vec::new();
    for one in &relation.referenced_by {
        let columns = session.run(&format!(
            "SELECT a.attname, (SELECT o.relname FROM pg_class o WHERE o.oid = c.conrelid) FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = ANY (c.confkey) WHERE c.conrelid = {}::regclass AND c.conname = {}",
            literal(&one.table),
            literal(&one.name)
        ))?;
        let table = columns.first().map(|row| part(row, 1)).unwrap_or_default();
        referenced_by.extend(Ident::ours(table).ok().map(|table| Reference {
            table,
            name: Ident::ours(one.name.clone()).ok(),
            columns: columns.iter().filter_map(|row| Ident::ours(part(row, 0)).ok()).collect(),
        }));
    }
    let triggers = triggers(session, oid)?
        .into_iter()
        .map(|one| Dependent {
            kind: "trigger".to_owned(),
            name: one.name,
            definition: one.definition,
            columns: None,
        })
        .collect();
    Ok(Table {
        name: name.clone(),
        kind,
        columns: relation
            .columns
            .iter()
            .filter_map(|column| {
                Some(Column {
                    name: Ident::ours(column.name.clone()).ok()?,
                    kind: column.kind.clone(),
                    nullable: !column.not_null,
                    default: column.default.clone().filter(|_| !column.generated),
                    generated: column.default.clone().filter(|_| column.generated),
                    numbered: column.identity.is_some() || column.sequence.is_some(),
                    collation: column.collation.clone(),
                })
            })
            .collect(),
        primary_key: primary.map(|index| idents(&key(index))).unwrap_or_default(),
        row_key: relation.key().map(|index| idents(&key(index))).unwrap_or_default(),
        has_row_number: false,
        indexes: relation
            .indexes
            .iter()
            .filter_map(|index| {
                Some(Index {
                    name: Ident::ours(index.name.clone()).ok()?,
                    physical: None,
                    columns: idents(&index.columns).into_iter().map(Some).collect(),
                    unique: index.unique,
                    partial: index.tail.contains(" WHERE "),
                    of_constraint: index
                        .constraint
                        .as_ref()
                        .and_then(|_| Ident::ours(index.name.clone()).ok()),
                    definition: format!("{}{}", if index.unique { "UNIQUE " } else { "" }, index.tail),
                })
            })
            .collect(),
        constraints,
        triggers,
        dependents: found
            .into_iter()
            .map(|one| Dependent {
                kind: one.kind,
                name: one.name,
                definition: one.rebind,
                columns: Some(idents(&one.columns)),
            })
            .collect(),
        referenced_by,
        obstacles: refusals,
        other: [
            ("grants", 3),
            ("row security", 4),
            ("replica identity", 5),
            ("options", 6),
            ("grants on columns", 7),
        ]
        .into_iter()
        .filter(|(_, at)| head.get(*at).is_some_and(Option::is_some))
        .map(|(what, at)| (what.to_owned(), part(&head, at)))
        .chain([("owner".to_owned(), relation.owner.clone())])
        .collect(),
        size: Size { rows: relation.rows_estimate, bytes: number(&head, 1), index_bytes: number(&head, 2) },
    })
}

pub(super) fn validate(engine: &mut PostgresEngine, checks: &[ExprCheck]) -> Result<(), Error> {
    let mut refusals = Vec::new();
    // Tables as the connection finds them; functions as our own functions will: pg_catalog first.
    let path: Vec<String> = engine.dial.schemas.iter().map(|schema| ident(schema)).collect();
    for check in checks {
        let sql = format!(
            "BEGIN READ ONLY; SET LOCAL search_path = {}; PREPARE _cutover_check AS {}; DEALLOCATE _cutover_check; ROLLBACK",
            ["pg_catalog".to_owned()].into_iter().chain(path.iter().cloned()).collect::<Vec<_>>().join(", "),
            check.query
        );
        match engine.session.run(&sql) {
            Ok(_) => {}
            Err(Error::Sql(error)) if error.kind != SqlErrorKind::Connection => {
                engine.session.roll_back();
                // PREPARE outlives a rollback only if it succeeded.
                let _ = engine.session.run("DEALLOCATE ALL");
                refusals.push(Refusal::new(
                    format!("{}: {}", check.what, error.message),
                    "Mend the expression; functions outside pg_catalog need their schema in front.",
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
}

/// Rows that the new shape cannot hold, before anything is changed.
pub(super) fn pre_scan(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    change: &TableChange,
) -> Result<(), Error> {
    let conditions = conditions(change);
    let indexes = change.add_indexes.iter().any(|index| index.unique);
    if change.fate != Fate::Alter || (conditions.is_empty() && change.add_constraints.is_empty() && !indexes)
    {
        return Ok(());
    }
    let (shape, source) = engine.shape(task, change)?;
    if source.is_none() {
        return Ok(());
    }
    let table = shape.name_now();
    // New rows by their new names: as the copy will make them, or as they are.
    let rows = if is_shadow(change) {
        shape.forward(&format!("{table} AS s"))
    } else {
        let items: Vec<String> = change
            .columns
            .iter()
            .filter_map(|column| match (&column.now, &column.then) {
                (Some(now), Some(then)) => Some(format!("s.{} AS {}", now.quoted(), then.quoted())),
                (None, Some(then)) => {
                    let value =
                        column.up.as_ref().or(column.default_then.as_ref()).map_or("NULL", String::as_str);
                    Some(format!(
                        "({value})::{} AS {}",
                        column.type_then.as_deref().unwrap_or("text"),
                        then.quoted()
                    ))
                }
                _ => None,
            })
            .collect();
        format!("SELECT {} FROM {table} AS s", items.join(", "))
    };
    let rejected =
        |count: u64, sample: Vec<String>| Error::Rejected { table: change.table.clone(), count, sample };
    if !conditions.is_empty() {
        let counts: Vec<String> =
            conditions.iter().map(|(condition, _)| format!("count(*) FILTER (WHERE {condition})")).collect();
        let found = engine.session.row(&format!("SELECT {} FROM ({rows}) AS n", counts.join(", ")));
        let found = match found {
            Err(Error::Sql(error))
                if error.kind == SqlErrorKind::Data
                    && change.on_reject == crate::ir::OnReject::Quarantine =>
            {
                task.watch.says(&format!("some rows will be set aside: {}", error.message));
                return Ok(());
            }
            Err(Error::Sql(error)) if error.kind == SqlErrorKind::Data => {
                return Err(rejected(1, vec![error.message]));
            }
            other => other?.unwrap_or_default(),
        };
        let bad: Vec<String> = conditions
            .iter()
            .enumerate()
            .filter(|(at, _)| number(&found, *at) > 0)
            .map(|(at, (_, says))| format!("{} row(s): {says}", number(&found, at)))
            .collect();
        if !bad.is_empty() && change.on_reject == crate::ir::OnReject::Abort {
            let total = (0..conditions.len()).map(|at| number(&found, at)).sum();
            return Err(rejected(total, bad));
        }
    }
    let uniques = change.add_constraints.iter().filter_map(|one| match one {
        NewConstraint::Unique { name, columns } => Some((name, columns, None)),
        _ => None,
    });
    let indexes = change
        .add_indexes
        .iter()
        .filter(|index| index.unique)
        .map(|index| (&index.name, &index.columns, index.filter.as_ref()));
    for (name, columns, filter) in uniques.chain(indexes) {
        let list: Vec<String> = columns.iter().map(|column| format!("n.{}", column.quoted())).collect();
        let not_null: Vec<String> = list.iter().map(|column| format!("{column} IS NOT NULL")).collect();
        let filter = filter.map(|filter| format!(" AND ({filter})")).unwrap_or_default();
        let found = engine.session.run(&format!(
            "SELECT json_build_array({0})::text, count(*) FROM ({rows}) AS n WHERE {1}{filter} GROUP BY {0} HAVING count(*) > 1 LIMIT {2}",
            list.join(", "),
            not_null.join(" AND "),
            task.policy.sample
        ))?;
        if !found.is_empty() {
            let sample = found
                .iter()
                .map(|row| format!("`{name}`: {} occurs {} times", part(row, 0), part(row, 1)))
                .collect();
            return Err(rejected(found.len() as u64, sample));
        }
    }
    for constraint in &change.add_constraints {
        let NewConstraint::ForeignKey { name, columns, references, .. } = constraint else { continue };
        let orphans = engine.session.value(&format!(
            "SELECT count(*) FROM ({rows}) AS n WHERE {}",
            shape.orphaned(columns, references)
        ))?;
        let count = orphans.and_then(|text| text.parse().ok()).unwrap_or(0);
        if count > 0 {
            return Err(rejected(
                count,
                vec![
                    format!("{} finds no row", definition(&shape, constraint)),
                    format!("foreign key `{name}`"),
                ],
            ));
        }
    }
    Ok(())
}

/// What is true of rows that the new shape cannot hold, each with what to say of them; over `n`, the new rows.
fn conditions(change: &TableChange) -> Vec<(String, String)> {
    let mut conditions = Vec::new();
    for column in &change.columns {
        let Some(then) = &column.then else { continue };
        let may_be_null = column.nullable_now || column.up.is_some() || column.fate == ColumnFate::Add;
        if !column.nullable_then && !column.generated && may_be_null && change.rows.is_empty() {
            let has_default =
                column.fate == ColumnFate::Add && column.up.is_none() && column.default_then.is_some();
            if !has_default {
                conditions.push((format!("n.{} IS NULL", then.quoted()), format!("`{then}` would be NULL")));
            }
        }
        // A cast that fails makes the whole scan fail; one that shortens is found here.
        if let (Some(kind), true) =
            (&column.type_then, is_shadow(change) && column.type_now != column.type_then)
        {
            let text =
                kind.starts_with("varchar") || kind.starts_with("character") || kind.starts_with("bpchar");
            if text {
                conditions.push((
                    format!("n.{0}::text IS DISTINCT FROM n.{0}::{kind}::text", then.quoted()),
                    format!("`{then}` does not fit {kind}"),
                ));
            } else {
                conditions.push((
                    format!("n.{0} IS NOT NULL AND n.{0}::{kind} IS NULL", then.quoted()),
                    format!("`{then}` does not fit {kind}"),
                ));
            }
        }
    }
    for constraint in &change.add_constraints {
        if let (NewConstraint::Check { name, expr }, true) = (constraint, change.rows.is_empty()) {
            conditions.push((format!("({expr}) IS FALSE"), format!("check `{name}`")));
        }
    }
    conditions
}

/// Who still uses what goes.
pub(super) fn uses(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    change: &TableChange,
) -> Result<Vec<String>, Error> {
    let (shape, _) = engine.shape(task, change)?;
    let session = &mut engine.session;
    let mut found = Vec::new();
    let view_schemas: Vec<String> = task.versions.seen(&change.table).map(views::schema_of).collect();
    for view_schema in &view_schemas {
        let Some(view) = find(session, view_schema, change.table.as_str())? else { continue };
        let rows = session.run(&format!(
            "SELECT DISTINCT format('view %I.%I reads %I.%I', n.nspname, c.relname, {schema}, {name}) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = {view} AND c.oid <> {view} \
             UNION ALL SELECT DISTINCT format('pid %s (%s) has %I.%I open', l.pid, a.application_name, {schema}, {name}) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
               WHERE l.locktype = 'relation' AND l.relation = {view} AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.pid <> pg_backend_pid()",
            schema = literal(view_schema),
            name = literal(change.table.as_str()),
        ))?;
        found.extend(rows.iter().map(|row| part(row, 0)));
    }
    if sequence_exists(session, &shape.artefacts.base)? {
        let sequence = shape.artefacts.own("old_use");
        let used = session
            .value(&format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"))?
            .unwrap_or_default();
        let seen =
            super::read_note(session, &shape.artefacts, "old_use_seen")?.unwrap_or_else(|| "0".to_owned());
        if used != seen {
            session.run(&super::note(&shape.artefacts, "old_use_seen", &used))?;
            let new = used.parse::<u64>().unwrap_or(0).saturating_sub(seen.parse().unwrap_or(0));
            found.push(format!(
                "{new} row(s) of `{}` were written in the old shape since this was last asked",
                change.table
            ));
        }
    }
    // New objects that hang on what goes.
    if let (true, Some(oid)) =
        (change.fate == Fate::Drop, find(session, &shape.artefacts.old, change.table.as_str())?)
    {
        let relation = Relation::read(session, &oid)?;
        let (others, _) = dependents(session, &relation)?;
        found.extend(
            others
                .iter()
                .filter(|one| {
                    view_schemas
                        .iter()
                        .all(|schema| !one.name.starts_with(schema) && !one.name.starts_with(&ident(schema)))
                })
                .map(|one| format!("{} {} reads `{}`", one.kind, one.name, change.table)),
        );
        found.extend(
            relation.referenced_by.iter().map(|key| {
                format!("foreign key `{}` of {} points to `{}`", key.name, key.table, change.table)
            }),
        );
    }
    Ok(found)
}

fn sequence_exists(session: &mut super::Session, schema: &str) -> Result<bool, Error> {
    session.is_true(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = 'old_use')",
        literal(schema)
    ))
}

/// What to do about what a rollback would lose.
const ACCEPT: &str = "Roll forward, or accept the loss with `--accept-loss`.";

/// New columns that hold more than the migration itself gave them. One whose values come from old columns is not asked: they are
/// there again.
fn values_of_new_columns(session: &mut Session, shape: &Shape<'_>) -> Result<Vec<Refusal>, Error> {
    let mut lost = Vec::new();
    let then = shape.change.name_then();
    let is_new =
        |column: &&ColumnChange| column.fate == ColumnFate::Add && !column.generated && column.up.is_none();
    for column in shape.change.columns.iter().filter(is_new) {
        let Some(name) = &column.then else { continue };
        let query = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE {}::text IS DISTINCT FROM ({})::{}::text)",
            shape.name_then(),
            name.quoted(),
            column.default_then.as_deref().unwrap_or("NULL"),
            column.type_then.as_deref().unwrap_or("text")
        );
        if session.is_true(&query)? {
            lost.push(Refusal::new(format!("values of the new column `{then}.{name}`"), ACCEPT));
        }
    }
    Ok(lost)
}

/// What is in the new table or the new columns of a change without a copy, and what the old shape does not allow.
fn lost_in_place(session: &mut Session, shape: &Shape<'_>) -> Result<Vec<Refusal>, Error> {
    let change = shape.change;
    let (table, then) = (shape.name_then(), change.name_then());
    let mut lost = Vec::new();
    if change.fate == Fate::Create && session.is_true(&format!("SELECT EXISTS (SELECT 1 FROM {table})"))? {
        lost.push(Refusal::new(format!("rows of the new table `{then}`"), ACCEPT));
    }
    if change.fate == Fate::Drop {
        lost.extend(in_place::orphans(session, shape)?);
    }
    if change.fate != Fate::Alter {
        return Ok(lost);
    }
    lost.extend(values_of_new_columns(session, shape)?);
    for column in change.columns.iter().filter(|column| column.type_now != column.type_then) {
        let (Some(_), Some(name), Some(kind)) = (&column.now, &column.then, &column.type_now) else {
            continue;
        };
        let name_quoted = name.quoted();
        let found = session.value(&format!(
            "SELECT count(*) FROM {table} WHERE {name_quoted}::text IS DISTINCT FROM {name_quoted}::{kind}::text"
        ));
        let wide = match found {
            Err(Error::Sql(error)) if error.kind == SqlErrorKind::Data => Some(error.message),
            found => found?.filter(|count| count != "0").map(|count| format!("{count} row(s)")),
        };
        lost.extend(wide.map(|wide| {
            Refusal::new(
                format!("{wide} of `{then}` have a `{name}` that is no {kind}"),
                "Shorten them, and roll back then; or accept with `--accept-loss` that the column keeps its new type.",
            )
        }));
    }
    for column in
        change.columns.iter().filter(|column| column.fate == ColumnFate::Drop && !column.nullable_now)
    {
        let Some(now) = &column.now else { continue };
        let count = session
            .value(&format!("SELECT count(*) FROM {table} WHERE {} IS NULL", now.quoted()))?
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0);
        if count > 0 {
            lost.push(Refusal::new(
                format!("{count} row(s) of `{then}` have no `{now}`, which was NOT NULL"),
                "Give them a value, and roll back then.",
            ));
        }
    }
    Ok(lost)
}

/// What a rollback after the swap would lose.
pub(super) fn losses(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    changes: &[TableChange],
) -> Result<Vec<Refusal>, Error> {
    let mut lost = Vec::new();
    for change in changes {
        let (shape, _) = engine.shape(task, change)?;
        if change.tactic != Tactic::Instant && !engine.is_swapped(&shape)? {
            continue;
        }
        if !is_shadow(change) {
            lost.extend(lost_in_place(&mut engine.session, &shape)?);
            continue;
        }
        lost.extend(values_of_new_columns(&mut engine.session, &shape)?);
        let back = Dual::new(&shape, Way::Back);
        super::drain(engine, task, &back, true)?;
        let columns: Vec<String> = (1..=back.types.len()).map(|at| format!("k{at}::text")).collect();
        let rows = engine.session.run(&format!(
            "SELECT json_build_array({})::text, min(reason) FROM {} WHERE reason IS NOT NULL GROUP BY 1 LIMIT {}",
            columns.join(", "),
            back.dirty(),
            task.policy.sample
        ))?;
        lost.extend(rows.iter().map(|row| {
            Refusal::new(
                format!(
                    "row {} of `{}` does not fit the old shape: {}",
                    part(row, 0),
                    change.table,
                    part(row, 1)
                ),
                ACCEPT,
            )
        }));
        let table = shape.name_then();
        let key: Vec<String> = back.source_key.iter().map(|name| format!("t.{name}::text")).collect();
        let rows = engine.session.transaction(&format!(
            "SET LOCAL TimeZone = 'UTC'; SELECT l.row_key, max(l.reason) FROM {} AS l WHERE EXISTS (SELECT 1 FROM {table} AS t WHERE json_build_array({})::text = l.row_key) GROUP BY 1 LIMIT {}",
            shape.artefacts.own("lost"),
            key.join(", "),
            task.policy.sample
        ))?;
        lost.extend(rows.iter().map(|row| {
            Refusal::new(
                format!("row {} of `{}` cannot go back: {}", part(row, 0), change.table, part(row, 1)),
                ACCEPT,
            )
        }));
        if !change.is_reversible() && lost.is_empty() {
            task.watch.says(&format!(
                "`{}`: what was written since the swap goes back only as far as the old shape can say it",
                change.table
            ));
        }
    }
    Ok(lost)
}
