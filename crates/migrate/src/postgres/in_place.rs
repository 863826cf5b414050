//! Changes that need no second table: instant DDL, concurrent indexes and constraints, columns filled in place, names
//! changed and columns hidden by views, tables that come or go.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    PostgresEngine,
    build::{concurrently, drop_artefacts, duplicates},
    copy::{
        Range, Stepped, Walk, advance, each_chunk, key_json, key_of, ledger, low_text, make_ranges, moved,
        open_ranges, range_table,
    },
    polite::{Locks, ddl, fence, unfence},
    relation::{Relation, find},
    session::{Session, ident, literal, qualified},
    shape::{Shape, note, read_note},
    swap::definition,
    sync::{Sync as Dual, Way},
    views::{self, Shown},
};
use crate::{
    change::{ColumnChange, ColumnFate, Fate, NewConstraint, RowStep, Tactic},
    engine::{ChunkDone, Pace, RowChunk, Task, Work},
    error::Error,
    ir::Ident,
    state::sql::Value,
};

/// The BEFORE trigger that fills a new column while the old version writes rows without it.
const FILLER: &str = "~cutover_fill";

/// What the way back has to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Before {
    /// Constraints that the swap drops: name, definition, whether it was valid.
    constraints: Vec<(String, String, bool)>,
}

/// Whether a new column cannot be added with its values at once.
fn is_filled(column: &ColumnChange) -> bool {
    column.fate == ColumnFate::Add
        && !column.generated
        && (column.up.is_some() || (column.default_then.is_some() && !column.default_constant))
}

fn filled<'c>(shape: &'c Shape<'_>) -> Vec<&'c ColumnChange> {
    shape.change.columns.iter().filter(|column| is_filled(column)).collect()
}

/// Whether a chunked walk over the rows is needed.
pub(crate) fn has_walk(shape: &Shape<'_>) -> bool {
    !filled(shape).is_empty() || !shape.change.rows.is_empty()
}

/// Columns that become NOT NULL by way of a validated check.
fn becoming_not_null<'s>(shape: &'s Shape<'_>) -> Vec<&'s Ident> {
    let columns = shape.change.columns.iter().filter(|column| !column.nullable_then);
    let columns = columns.filter(|column| match column.fate {
        ColumnFate::Add => is_filled(column) || (column.default_then.is_none() && !column.generated),
        ColumnFate::Alter | ColumnFate::Keep => column.nullable_now,
        ColumnFate::Drop => false,
    });
    columns.filter_map(|column| column.now.as_ref().or(column.then.as_ref())).collect()
}

fn not_null_check(column: &Ident) -> String {
    crate::state::artefact("nn", &[column.as_str()])
}

/// The table as it is until the swap.
fn here(shape: &Shape<'_>) -> String {
    shape.name_now()
}

/// Whether everything happens in the swap's transaction, and nothing has to be kept for later.
fn is_instant(shape: &Shape<'_>) -> bool {
    shape.change.tactic == Tactic::Instant
}

/// SHADOW_CREATE: new tables and columns.
pub(crate) fn expand(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: Option<&Relation>,
) -> Result<(), Error> {
    let art = &shape.artefacts;
    let session = &mut engine.session;
    if is_instant(shape) || read_note(session, art, "expanded")?.is_some() {
        return Ok(());
    }
    let table = here(shape);
    let mut sql = note_table(shape);
    sql.extend([
        format!("CREATE SCHEMA IF NOT EXISTS {}", ident(&art.old)),
        format!(
            "CREATE TABLE IF NOT EXISTS {} (row_key text PRIMARY KEY, before text NOT NULL, after text NOT NULL)",
            art.own("image")
        ),
        range_table(shape),
        note(art, "expanded", "yes"),
        note(art, "schema", &shape.schema),
    ]);
    sql.extend(source.map(|source| note(art, "source", &source.oid)));
    let mut locks = Locks::default();
    match shape.change.fate {
        Fate::Create => sql.push(create_table(shape)),
        Fate::Alter => {
            if let Some(statement) = add_columns(shape) {
                sql.push(statement);
                locks = Locks::exclusive(&table);
            }
            for column in filled(shape) {
                if let (Some(default), Some(then), None) = (&column.default_then, &column.then, &column.up) {
                    sql.push(format!(
                        "ALTER TABLE {table} ALTER COLUMN {} SET DEFAULT {default}",
                        then.quoted()
                    ));
                }
            }
            sql.push(before_note(shape, source)?);
        }
        Fate::Drop => {}
    }
    let statements = sql.join("; ");
    task.point("expand.before");
    ddl(session, task, &locks, &mut |_| Ok(statements.clone()))?;
    task.point("expand.after");
    Ok(())
}

fn create_table(shape: &Shape<'_>) -> String {
    let mut parts: Vec<String> =
        shape.change.columns.iter().filter_map(|column| column_text(column, true)).collect();
    if !shape.change.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", crate::change::quoted(&shape.change.primary_key)));
    }
    format!("CREATE TABLE {} ({})", here(shape), parts.join(", "))
}

/// New columns: whole when their values come at once, bare when they are filled in later.
fn add_columns(shape: &Shape<'_>) -> Option<String> {
    let later = becoming_not_null(shape);
    let columns: Vec<String> = shape
        .change
        .columns
        .iter()
        .filter(|column| column.fate == ColumnFate::Add)
        .filter_map(|column| {
            let whole = is_instant(shape) || (!is_filled(column) && !later.contains(&column.then.as_ref()?));
            column_text(column, whole)
        })
        .map(|text| format!("ADD COLUMN {text}"))
        .collect();
    if columns.is_empty() {
        None
    } else {
        Some(format!("ALTER TABLE {} {}", here(shape), columns.join(", ")))
    }
}

/// What the way back has to know of constraints that go.
fn before_note(shape: &Shape<'_>, source: Option<&Relation>) -> Result<String, Error> {
    let before = Before {
        constraints: source
            .iter()
            .flat_map(|source| source.checks.iter().chain(&source.foreign_keys))
            .filter(|one| shape.change.drop_constraints.iter().any(|name| name.as_str() == one.name))
            .map(|one| (one.name.clone(), one.definition.clone(), one.valid))
            .collect(),
    };
    let text = serde_json::to_string(&before).map_err(|error| Error::Damaged(error.to_string()))?;
    Ok(note(&shape.artefacts, "before", &text))
}

/// Where notes are kept.
fn note_table(shape: &Shape<'_>) -> Vec<String> {
    let art = &shape.artefacts;
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", ident(&art.base)),
        format!("CREATE TABLE IF NOT EXISTS {} (key text PRIMARY KEY, value text NOT NULL)", art.own("note")),
    ]
}

/// A column definition; `whole`: with NOT NULL and the default.
fn column_text(column: &ColumnChange, whole: bool) -> Option<String> {
    let then = column.then.as_ref()?;
    let mut text = format!("{} {}", then.quoted(), column.type_then.as_deref().unwrap_or("text"));
    if whole {
        if !column.nullable_then {
            text.push_str(" NOT NULL");
        }
        if let Some(default) = &column.default_then {
            text.push_str(&format!(" DEFAULT {default}"));
        }
    }
    Some(text)
}

/// DUAL_WRITE: rows that the old version writes get the new column's value.
pub(crate) fn dual_write(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let ups: Vec<(&ColumnChange, &String)> = shape
        .change
        .columns
        .iter()
        .filter(|column| is_filled(column))
        .filter_map(|column| Some((column, column.up.as_ref()?)))
        .collect();
    if ups.is_empty() || is_instant(shape) || shape.change.fate != Fate::Alter {
        return Ok(());
    }
    let table = here(shape);
    let row: Vec<String> =
        shape.old_columns.iter().map(|column| format!("NEW.{0} AS {0}", ident(&column.name))).collect();
    let fills: String = ups
        .iter()
        .filter_map(|(column, up)| {
            let name = column.then.as_ref()?.quoted();
            Some(format!("IF NEW.{name} IS NULL THEN NEW.{name} := (SELECT ({up}) FROM (SELECT {}) AS _cutover_old); END IF; ", row.join(", ")))
        })
        .collect();
    // A value that cannot be computed must not fail the application: the column stays NULL, and the check finds the row.
    let body = format!(
        "#variable_conflict use_column\nBEGIN BEGIN {fills} EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NEW; END"
    );
    let function = shape.artefacts.own("fill");
    let trigger = ident(FILLER);
    let sql = format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS {}; \
         CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}(); \
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}",
        literal(&body)
    );
    let locks = Locks { gentle: vec![table.clone()], strong: vec![(table, "SHARE ROW EXCLUSIVE")] };
    ddl(&mut engine.session, task, &locks, &mut |_| Ok(sql.clone())).map(drop)
}

/// BACKFILL: rows are filled in chunks; indexes are built.
pub(crate) fn backfill(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
    pace: &dyn Pace,
) -> Result<Work, Error> {
    let mut work = Work::default();
    if is_instant(shape) || shape.change.fate != Fate::Alter {
        return Ok(work);
    }
    if has_walk(shape) {
        let dual = Dual::new(shape, Way::Forward);
        make_ranges(&mut engine.session, task, shape, &dual, source.rows_estimate)?;
        let ranges = open_ranges(&mut engine.session, shape, Walk::Copy)?;
        work = each_chunk(engine, task, shape, pace, ranges, &|engine, range, go| {
            let stepped = fill_chunk(engine, task, shape, &dual, range, go.rows, None);
            moved(range, stepped)
        })?;
    }
    let table = here(shape);
    for index in &shape.change.add_indexes {
        let columns: Vec<String> =
            index.columns.iter().map(|name| ident(&name_until_swap(shape, name))).collect();
        let filter = index.filter.as_ref().map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
        let unique = if index.unique { "UNIQUE " } else { "" };
        let tail = format!("ON {table} ({}){filter}", columns.join(", "));
        build_index(engine, task, shape, source, index.name.as_str(), unique, &tail, index.online)?;
    }
    for constraint in &shape.change.add_constraints {
        if let NewConstraint::Unique { name, columns } = constraint {
            let columns: Vec<String> =
                columns.iter().map(|name| ident(&name_until_swap(shape, name))).collect();
            build_index(
                engine,
                task,
                shape,
                source,
                name.as_str(),
                "UNIQUE ",
                &format!("ON {table} ({})", columns.join(", ")),
                true,
            )?;
        }
    }
    Ok(work)
}

#[allow(clippy::too_many_arguments, reason = "one caller; each is a different thing")]
fn build_index(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
    name: &str,
    unique: &str,
    tail: &str,
    online: bool,
) -> Result<(), Error> {
    let built = if online {
        concurrently(engine, task, &shape.schema, &source.oid, name, &|| {
            format!("CREATE {unique}INDEX CONCURRENTLY {} {tail}", ident(name))
        })
    } else if find_index(&mut engine.session, &shape.schema, name)? {
        Ok(())
    } else {
        let table = here(shape);
        let locks = Locks { gentle: vec![table.clone()], strong: vec![(table, "SHARE")] };
        let sql = format!("CREATE {unique}INDEX {} {tail}", ident(name));
        ddl(&mut engine.session, task, &locks, &mut |_| Ok(sql.clone())).map(drop)
    };
    built.map_err(|error| duplicates(error, shape.change.table.clone()))
}

fn find_index(session: &mut Session, schema: &str, name: &str) -> Result<bool, Error> {
    session.is_true(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {} AND c.relkind = 'i')",
        literal(schema),
        literal(name)
    ))
}

/// A column's name until the swap, by its name afterwards.
fn name_until_swap(shape: &Shape<'_>, then: &Ident) -> String {
    let column = shape.change.columns.iter().find(|column| column.then.as_ref() == Some(then));
    column.and_then(|column| column.now.as_ref()).unwrap_or(then).as_str().to_owned()
}

/// One chunk of rows gets its new values; `only` says which rows, for a later pass.
fn fill_chunk(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    range: &Range,
    rows: u64,
    only: Option<&str>,
) -> Stepped {
    let low = range.at.as_deref().or(range.low.as_deref());
    let filter = dual.between("s", false, low, range.high.as_deref());
    let order = dual.order("s");
    let table = here(shape);
    let since = Instant::now();
    let result = (|| -> Stepped {
        let session = &mut engine.session;
        session.run(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{}ms'; {}",
            task.policy.lock_timeout_ms,
            fence(task.epoch)
        ))?;
        let keys = session.run(&format!(
            "SELECT json_build_array({})::text FROM {table} AS s WHERE {filter} ORDER BY {order} LIMIT {rows} FOR NO KEY UPDATE OF s",
            dual.key_text("s")
        ))?;
        let seen = keys.len() as u64;
        let last = keys.last().and_then(|row| key_of(row.first().and_then(Option::as_ref)));
        let mut changed = 0;
        if let Some(last) = &last {
            let chunk = dual.between("s", false, low, Some(last));
            let chunk = only.map_or_else(|| chunk.clone(), |only| format!("{chunk} AND ({only})"));
            changed = fill_rows(session, task, shape, dual, &table, &chunk)?;
        }
        if only.is_none() {
            let high = last.as_ref().map_or("NULL".to_owned(), |key| literal(&key_json(key)));
            let line = ledger(
                task,
                shape,
                Walk::Copy,
                range.number,
                &format!("{seen}, {changed}, {}, 0", seen.saturating_sub(changed)),
                &low_text(range),
                &high,
            );
            session.run(&format!(
                "{line}; {}",
                advance(shape, Walk::Copy, range, last.as_deref(), seen < rows)
            ))?;
        }
        task.point("backfill.before");
        session.run("COMMIT")?;
        task.point("backfill.after");
        let chunk = ChunkDone {
            seen,
            copied: changed.min(seen),
            present: seen.saturating_sub(changed),
            held_us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..ChunkDone::default()
        };
        Ok((chunk, if seen < rows { None } else { last }))
    })();
    if result.is_err() {
        engine.session.roll_back();
    }
    result.map_err(unfence(task.epoch))
}

/// New values for the rows that satisfy `chunk` (over `s`), which are locked; how many rows changed.
fn fill_rows(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    table: &str,
    chunk: &str,
) -> Result<u64, Error> {
    let mut changed = 0;
    for column in filled(shape) {
        let Some(then) = &column.then else { continue };
        let value = column.up.as_ref().or(column.default_then.as_ref()).map_or("NULL", String::as_str);
        changed = changed.max(session.count(&format!(
            "UPDATE {table} AS s SET {} = ({value}) WHERE {chunk} AND s.{} IS NULL",
            then.quoted(),
            then.quoted()
        ))?);
    }
    let image = shape.artefacts.own("image");
    let key = format!("json_build_array({})::text", dual.key_text("s"));
    for step in &shape.change.rows {
        let count = match step {
            RowStep::Sql { set, filter, down, .. } => {
                let set: Vec<(String, String)> = set
                    .iter()
                    .map(|(name, value)| (ident(&name_until_swap(shape, name)), value.clone()))
                    .collect();
                let filter = filter.as_ref().map(|filter| format!(" AND ({filter})")).unwrap_or_default();
                if down.is_empty() {
                    let before: Vec<String> = set.iter().map(|(name, _)| format!("{name}::text")).collect();
                    let after: Vec<String> = set
                        .iter()
                        .map(|(name, value)| {
                            let kind = column_kind(shape, name);
                            format!("({value})::{kind}::text")
                        })
                        .collect();
                    session.run(&format!(
                        "INSERT INTO {image} SELECT {key}, json_build_array({})::text, json_build_array({})::text FROM {table} AS s WHERE {chunk}{filter} \
                         ON CONFLICT (row_key) DO UPDATE SET after = excluded.after",
                        before.join(", "),
                        after.join(", ")
                    ))?;
                }
                let assignments: Vec<String> =
                    set.iter().map(|(name, value)| format!("{name} = ({value})")).collect();
                session.count(&format!(
                    "UPDATE {table} AS s SET {} WHERE {chunk}{filter}",
                    assignments.join(", ")
                ))?
            }
            RowStep::Function { step, name, read, write, .. } => {
                run_function(session, task, shape, dual, table, chunk, *step, name, read, write)?
            }
        };
        changed = changed.max(count);
    }
    Ok(changed)
}

fn column_kind(shape: &Shape<'_>, quoted: &str) -> String {
    let found = shape
        .old_columns
        .iter()
        .find(|column| ident(&column.name) == quoted)
        .map(|column| column.kind.clone());
    let new = || {
        shape
            .change
            .columns
            .iter()
            .find(|column| column.then.as_ref().is_some_and(|then| then.quoted() == quoted))
            .and_then(|column| column.type_then.clone())
    };
    found.or_else(new).unwrap_or_else(|| "text".to_owned())
}

/// Rows out, new values in: a transform or a plugin on one chunk.
#[allow(clippy::too_many_arguments, reason = "one caller; each is a different thing")]
fn run_function(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    table: &str,
    chunk: &str,
    step: usize,
    name: &str,
    read: &[Ident],
    write: &[Ident],
) -> Result<u64, Error> {
    let custom = |says: String| Error::Custom { name: name.to_owned(), says };
    let function = task.functions.get(&step).ok_or_else(|| custom("it is not registered".to_owned()))?;
    let here = |name: &Ident| ident(&name_until_swap(shape, name));
    let wanted: Vec<String> =
        read.iter().chain(write).map(|name| format!("s.{}::text", here(name))).collect();
    let order = dual.order("s");
    let rows = session.run(&format!(
        "SELECT json_build_array({})::text, {} FROM {table} AS s WHERE {chunk} ORDER BY {order}",
        dual.key_text("s"),
        wanted.join(", ")
    ))?;
    if rows.is_empty() {
        return Ok(0);
    }
    let value = |cell: &Option<String>, column: &Ident| match cell {
        None => Value::Null,
        Some(text) => match column_kind(shape, &here(column)).as_str() {
            "smallint" | "integer" | "bigint" => {
                text.parse().map_or_else(|_| Value::Text(text.clone()), Value::Integer)
            }
            "boolean" => Value::Integer(i64::from(text == "t" || text == "true")),
            "real" | "double precision" => {
                text.parse().map_or_else(|_| Value::Text(text.clone()), Value::Real)
            }
            _ => Value::Text(text.clone()),
        },
    };
    let input = RowChunk {
        columns: read.iter().map(|name| name.as_str().to_owned()).collect(),
        rows: rows
            .iter()
            .map(|row| read.iter().enumerate().map(|(at, column)| value(&row[at + 1], column)).collect())
            .collect(),
    };
    let output = function.lock().unwrap_or_else(std::sync::PoisonError::into_inner).apply(&input)?;
    let columns: Vec<&str> = write.iter().map(Ident::as_str).collect();
    if output.columns != columns
        || output.rows.len() != rows.len()
        || output.rows.iter().any(|row| row.len() != columns.len())
    {
        return Err(custom(format!(
            "it returned {} row(s) of columns {:?} for {}",
            output.rows.len(),
            output.columns,
            rows.len()
        )));
    }
    let print = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(value) => literal(&value.to_string()),
        Value::Real(value) => literal(&value.to_string()),
        Value::Text(text) => literal(text),
        Value::Bytes(bytes) => {
            literal(&format!("\\x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
        }
    };
    let lines: Vec<String> = rows
        .iter()
        .zip(&output.rows)
        .map(|(row, new)| {
            let key = literal(row[0].as_deref().unwrap_or_default());
            let old: Vec<String> = (0..columns.len())
                .map(|at| row[1 + read.len() + at].as_ref().map_or("NULL".to_owned(), |text| literal(text)))
                .collect();
            let new: Vec<String> = new.iter().map(print).collect();
            format!(
                "({key}::text, {}, {})",
                old.iter().map(|text| format!("{text}::text")).collect::<Vec<_>>().join(", "),
                new.iter().map(|text| format!("{text}::text")).collect::<Vec<_>>().join(", ")
            )
        })
        .collect();
    let names: Vec<String> = (0..columns.len())
        .map(|at| format!("b{at}"))
        .chain((0..columns.len()).map(|at| format!("a{at}")))
        .collect();
    let befores: Vec<String> = (0..columns.len()).map(|at| format!("v.b{at}")).collect();
    let typed: Vec<String> = write
        .iter()
        .enumerate()
        .map(|(at, name)| format!("v.a{at}::{}", column_kind(shape, &here(name))))
        .collect();
    let afters: Vec<String> = typed.iter().map(|text| format!("{text}::text")).collect();
    let assignments: Vec<String> =
        write.iter().zip(&typed).map(|(name, text)| format!("{} = {text}", here(name))).collect();
    let values = format!("(VALUES {}) AS v(k, {})", lines.join(", "), names.join(", "));
    session.run(&format!(
        "INSERT INTO {} SELECT v.k, json_build_array({})::text, json_build_array({})::text FROM {values} ON CONFLICT (row_key) DO UPDATE SET after = excluded.after",
        shape.artefacts.own("image"),
        befores.join(", "),
        afters.join(", ")
    ))?;
    let updated = session.count(&format!(
        "UPDATE {table} AS s SET {} FROM {values} WHERE json_build_array({})::text = v.k AND {chunk}",
        assignments.join(", "),
        dual.key_text("s")
    ))?;
    if updated != rows.len() as u64 {
        return Err(custom(format!("{updated} of {} row(s) were written", rows.len())));
    }
    Ok(updated)
}

/// CONSISTENCY_CHECK: the migration's own checks hold for every row; constraints are added and validated.
pub(crate) fn verify(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
    pace: &dyn Pace,
) -> Result<Work, Error> {
    let table = here(shape);
    let mut work = Work::default();
    if is_instant(shape) || shape.change.fate != Fate::Alter {
        return Ok(work);
    }
    let mut conditions: Vec<String> =
        shape.change.checks().iter().map(|check| format!("({check}) IS NOT TRUE")).collect();
    conditions.extend(becoming_not_null(shape).iter().map(|name| format!("{} IS NULL", name.quoted())));
    let all = conditions.join(" OR ");
    if !conditions.is_empty() {
        // Rows that clients wrote behind the walk get another pass, twice; what is left then does not fit.
        for pass in 0..3 {
            let bad = engine.session.value(&format!(
                "SELECT count(*) FROM (SELECT 1 FROM {table} AS s WHERE {all} LIMIT 100000) AS x"
            ))?;
            let bad: u64 = bad.and_then(|text| text.parse().ok()).unwrap_or(0);
            if bad == 0 {
                break;
            }
            if pass == 2 || !has_walk(shape) {
                return Err(misfits(engine, task, shape, &all, bad)?);
            }
            let dual = Dual::new(shape, Way::Forward);
            let whole = vec![Range { number: u64::MAX >> 1, low: None, high: None, at: None }];
            let again = each_chunk(engine, task, shape, pace, whole, &|engine, range, go| {
                let stepped = fill_chunk(engine, task, shape, &dual, range, go.rows, Some(&all));
                moved(range, stepped)
            })?;
            work.resynced += again.done;
        }
        work.done = source.rows_estimate;
    }
    let mut constraints = Vec::new();
    for name in becoming_not_null(shape) {
        let constraint = not_null_check(name);
        add_constraint(
            engine,
            task,
            &table,
            &[],
            &constraint,
            &format!("CONSTRAINT {} CHECK ({} IS NOT NULL)", ident(&constraint), name.quoted()),
        )?;
        constraints.push((table.clone(), constraint));
    }
    {
        for constraint in &shape.change.add_constraints {
            let others = match constraint {
                NewConstraint::Unique { .. } => continue,
                NewConstraint::ForeignKey { references, .. } => {
                    vec![qualified(&shape.schema, references.table.as_str())]
                }
                NewConstraint::Check { .. } => Vec::new(),
            };
            let text = before_swap(shape, constraint);
            add_constraint(
                engine,
                task,
                &table,
                &others,
                constraint.name().as_str(),
                &definition(shape, &text),
            )?;
            constraints.push((table.clone(), constraint.name().as_str().to_owned()));
        }
    }
    super::swap::validate(&mut engine.session, task, &constraints).map_err(|error| match error {
        Error::Sql(error) if error.kind == crate::error::SqlErrorKind::Data => {
            Error::Rejected { table: shape.change.table.clone(), count: 1, sample: vec![error.message] }
        }
        other => other,
    })?;
    Ok(work)
}

/// A new constraint by the names that columns have until the swap. The text of a check is the migration's own.
fn before_swap(shape: &Shape<'_>, constraint: &NewConstraint) -> NewConstraint {
    match constraint {
        NewConstraint::ForeignKey { name, columns, references, on_delete, on_update } => {
            NewConstraint::ForeignKey {
                name: name.clone(),
                columns: columns
                    .iter()
                    .filter_map(|name| Ident::ours(name_until_swap(shape, name)).ok())
                    .collect(),
                references: references.clone(),
                on_delete: on_delete.clone(),
                on_update: on_update.clone(),
            }
        }
        other => other.clone(),
    }
}

/// The rows that fail, as an error.
fn misfits(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    condition: &str,
    count: u64,
) -> Result<Error, Error> {
    let key = Dual::new(shape, Way::Forward).key_text("s");
    let key = if key.is_empty() { "s.ctid::text".to_owned() } else { key };
    let rows = engine.session.run(&format!(
        "SELECT json_build_array({key})::text FROM {} AS s WHERE {condition} LIMIT {}",
        here(shape),
        task.policy.sample
    ))?;
    Ok(Error::Rejected {
        table: shape.change.table.clone(),
        count,
        sample: rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .map(|key| format!("{} = {key}", shape.key.join(", ")))
            .collect(),
    })
}

fn add_constraint(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    table: &str,
    others: &[String],
    name: &str,
    text: &str,
) -> Result<(), Error> {
    let exists = engine.session.is_true(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = {}::regclass AND conname = {})",
        literal(table),
        literal(name)
    ))?;
    if exists {
        return Ok(());
    }
    let mode = if others.is_empty() { "ACCESS EXCLUSIVE" } else { "SHARE ROW EXCLUSIVE" };
    let mut locks = Locks { gentle: vec![table.to_owned()], strong: vec![(table.to_owned(), mode)] };
    locks.strong.extend(others.iter().map(|other| (other.clone(), mode)));
    let sql = format!("ALTER TABLE {table} ADD {text} NOT VALID");
    ddl(&mut engine.session, task, &locks, &mut |_| Ok(sql.clone())).map(drop)
}

/// Every column with its name until the swap and after it.
fn names<'s>(shape: &'s Shape<'_>) -> impl Iterator<Item = (&'s ColumnChange, &'s Ident, &'s Ident)> {
    shape
        .change
        .columns
        .iter()
        .filter_map(|column| Some((column, column.now.as_ref()?, column.then.as_ref()?)))
}

/// The statements of the swap.
pub(crate) fn swap_statements(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: Option<&Relation>,
) -> Result<Vec<String>, Error> {
    let art = &shape.artefacts;
    let table = here(shape);
    let then = shape.name_then();
    let mut sql = Vec::new();
    if !is_instant(shape) {
        sql.push(note(art, "primary", "target"));
    }
    if shape.change.fate == Fate::Create {
        if is_instant(shape) {
            sql.push(create_table(shape));
        }
        for index in &shape.change.add_indexes {
            sql.push(index_now(index, &table));
        }
        sql.extend(
            shape
                .change
                .add_constraints
                .iter()
                .map(|constraint| format!("ALTER TABLE {table} ADD {}", definition(shape, constraint))),
        );
        return Ok(sql);
    }
    let source = source.ok_or_else(|| Error::Damaged(format!("table `{}` is gone", shape.change.table)))?;
    if shape.change.fate == Fate::Drop {
        sql.push(format!("ALTER TABLE {table} SET SCHEMA {}", ident(&art.old)));
        let shown: Vec<Shown> = source
            .columns
            .iter()
            .map(|column| Shown { column: column.name.clone(), name: column.name.clone(), default: None })
            .collect();
        sql.extend(views::create(
            session,
            &task.versions.old,
            shape.change.table.as_str(),
            &shape.retired(),
            source,
            &shown,
        )?);
        sql.push(views::drop(&task.versions.new, shape.change.table.as_str()));
        return Ok(sql);
    }
    if is_instant(shape) {
        if !shape.change.drop_constraints.is_empty() {
            sql.extend(note_table(shape));
            sql.push(before_note(shape, Some(source))?);
        }
        sql.extend(add_columns(shape));
        sql.extend(shape.change.add_indexes.iter().map(|index| index_now(index, &table)));
    }
    for name in &shape.change.drop_constraints {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", name.quoted()));
    }
    for name in becoming_not_null(shape).into_iter().filter(|_| !is_instant(shape)) {
        sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL", name.quoted()));
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT {}", ident(&not_null_check(name))));
    }
    for column in &shape.change.columns {
        match (&column.now, &column.then) {
            (Some(now), Some(_)) => {
                let now_quoted = now.quoted();
                if !column.nullable_now && column.nullable_then {
                    sql.push(format!("ALTER TABLE {table} ALTER COLUMN {now_quoted} DROP NOT NULL"));
                }
                if column.type_now != column.type_then {
                    sql.push(format!(
                        "ALTER TABLE {table} ALTER COLUMN {now_quoted} TYPE {}",
                        column.type_then.as_deref().unwrap_or("text")
                    ));
                }
                if column.default_now != column.default_then {
                    sql.push(default_statement(&table, &now_quoted, column.default_then.as_deref()));
                }
            }
            (Some(now), None) => {
                if !column.nullable_now && column.default_now.is_none() {
                    sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", now.quoted()));
                }
            }
            (None, Some(added)) => {
                if let (true, Some(default), Some(_)) = (is_filled(column), &column.default_then, &column.up)
                {
                    sql.push(default_statement(&table, &added.quoted(), Some(default)));
                }
            }
            (None, None) => {}
        }
    }
    for constraint in &shape.change.add_constraints {
        if let NewConstraint::Unique { name, .. } = constraint {
            sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {0} UNIQUE USING INDEX {0}", name.quoted()));
        }
    }
    sql.extend(rename_columns(&table, names(shape).map(|(_, now, then)| (now.clone(), then.clone()))));
    if then != table {
        sql.push(format!("ALTER TABLE {table} RENAME TO {}", shape.change.name_then().quoted()));
    }
    if views::are_needed(shape.change) {
        let old: Vec<Shown> = source
            .columns
            .iter()
            .map(|column| {
                let then = names(shape)
                    .find(|(_, now, _)| now.as_str() == column.name)
                    .map(|(_, _, then)| then.as_str().to_owned());
                Shown {
                    column: then.unwrap_or_else(|| column.name.clone()),
                    name: column.name.clone(),
                    default: None,
                }
            })
            .filter(|shown| {
                !shape.change.columns.iter().any(|column| {
                    column.fate == ColumnFate::Add
                        && column.then.as_ref().is_some_and(|then| then.as_str() == shown.name)
                })
            })
            .collect();
        let new: Vec<Shown> = shape
            .change
            .columns
            .iter()
            .filter_map(|column| column.then.as_ref())
            .map(|then| Shown {
                column: then.as_str().to_owned(),
                name: then.as_str().to_owned(),
                default: None,
            })
            .collect();
        sql.extend(views::create(
            session,
            &task.versions.old,
            shape.change.table.as_str(),
            &then,
            source,
            &old,
        )?);
        sql.extend(views::create(
            session,
            &task.versions.new,
            shape.change.name_then().as_str(),
            &then,
            source,
            &new,
        )?);
    }
    Ok(sql)
}

/// An index that is built while writers wait, as the migration says, or on a table that nobody knows yet.
fn index_now(index: &crate::change::NewIndex, table: &str) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let filter = index.filter.as_ref().map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
    format!(
        "CREATE {unique}INDEX {} ON {table} ({}){filter}",
        index.name.quoted(),
        crate::change::quoted(&index.columns)
    )
}

fn default_statement(table: &str, column: &str, default: Option<&str>) -> String {
    match default {
        Some(default) => format!("ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}"),
        None => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"),
    }
}

/// Renames in two rounds, so that names may change places.
fn rename_columns(table: &str, pairs: impl Iterator<Item = (Ident, Ident)>) -> Vec<String> {
    let pairs: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
    let crossing = |name: &Ident| pairs.iter().any(|(from, _)| from == name);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, (from, to)) in pairs.iter().enumerate() {
        if crossing(to) {
            let between = ident(&format!("_cutover_rename_{at}"));
            first.push(format!("ALTER TABLE {table} RENAME COLUMN {} TO {between}", from.quoted()));
            second.push(format!("ALTER TABLE {table} RENAME COLUMN {between} TO {}", to.quoted()));
        } else {
            first.push(format!("ALTER TABLE {table} RENAME COLUMN {} TO {}", from.quoted(), to.quoted()));
        }
    }
    first.extend(second);
    first
}

/// The statements of the way back after the swap. New columns go; what goes comes back.
pub(crate) fn swap_back_statements(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<Vec<String>, Error> {
    let art = &shape.artefacts;
    let table = here(shape);
    let then = shape.name_then();
    let mut sql = Vec::new();
    if !is_instant(shape) {
        sql = vec![note(art, "primary", "source"), note(art, "rolled_back", "yes")];
    }
    match shape.change.fate {
        Fate::Create => {
            sql.push(format!("DROP TABLE {table}"));
            return Ok(sql);
        }
        Fate::Drop => {
            sql.push(views::drop(&task.versions.old, shape.change.table.as_str()));
            sql.push(format!("ALTER TABLE {} SET SCHEMA {}", shape.retired(), ident(&shape.schema)));
            return Ok(sql);
        }
        Fate::Alter => {}
    }
    if views::are_needed(shape.change) {
        sql.push(views::drop(&task.versions.old, shape.change.table.as_str()));
        sql.push(views::drop(&task.versions.new, shape.change.name_then().as_str()));
    }
    if then != table {
        sql.push(format!("ALTER TABLE {then} RENAME TO {}", shape.change.table.quoted()));
    }
    sql.extend(rename_columns(&table, names(shape).map(|(_, now, then)| (then.clone(), now.clone()))));
    for column in &shape.change.columns {
        if let (Some(now), Some(_)) = (&column.now, &column.then) {
            if column.nullable_now && !column.nullable_then {
                sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", now.quoted()));
            }
            if column.default_now != column.default_then {
                sql.push(default_statement(&table, &now.quoted(), column.default_now.as_deref()));
            }
        }
    }
    sql.push(remove_added(shape, &table));
    let before = before(session, shape)?;
    for (name, definition, _) in &before.constraints {
        sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {} {definition} NOT VALID", ident(name)));
    }
    Ok(sql)
}

fn before(session: &mut Session, shape: &Shape<'_>) -> Result<Before, Error> {
    let text =
        read_note(session, &shape.artefacts, "before")?.unwrap_or_else(|| "{\"constraints\":[]}".to_owned());
    serde_json::from_str(&text).map_err(|error| Error::Damaged(error.to_string()))
}

/// What was added to the table, taken away again; tolerates what never happened.
fn remove_added(shape: &Shape<'_>, table: &str) -> String {
    let mut sql = vec![format!("DROP TRIGGER IF EXISTS {} ON {table}", ident(FILLER))];
    for constraint in &shape.change.add_constraints {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", constraint.name().quoted()));
    }
    for name in becoming_not_null(shape) {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", ident(&not_null_check(name))));
    }
    for column in shape.change.columns.iter().filter(|column| column.fate == ColumnFate::Add) {
        if let Some(then) = &column.then {
            sql.push(format!("ALTER TABLE {table} DROP COLUMN IF EXISTS {}", then.quoted()));
        }
    }
    sql.join("; ")
}

/// After the way back: NOT NULL and constraints that were taken off are put on again without blocking anybody.
pub(crate) fn restore_constraints(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    if shape.change.fate != Fate::Alter {
        return Ok(());
    }
    let table = here(shape);
    let before = before(&mut engine.session, shape)?;
    let mut pending: Vec<(String, String)> = before
        .constraints
        .iter()
        .filter(|(_, _, valid)| *valid)
        .map(|(name, ..)| (table.clone(), name.clone()))
        .collect();
    let mut not_null: Vec<&Ident> = Vec::new();
    for column in &shape.change.columns {
        let lost = match (&column.now, &column.then) {
            (Some(_), Some(_)) => !column.nullable_now && column.nullable_then,
            (Some(_), None) => !column.nullable_now && column.default_now.is_none(),
            _ => false,
        };
        if let (true, Some(now)) = (lost, &column.now) {
            let constraint = not_null_check(now);
            add_constraint(
                engine,
                task,
                &table,
                &[],
                &constraint,
                &format!("CONSTRAINT {} CHECK ({} IS NOT NULL)", ident(&constraint), now.quoted()),
            )?;
            pending.push((table.clone(), constraint));
            not_null.push(now);
        }
    }
    super::swap::validate(&mut engine.session, task, &pending)?;
    if !not_null.is_empty() {
        let sql: Vec<String> = not_null
            .iter()
            .map(|name| format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL; ALTER TABLE {table} DROP CONSTRAINT {}", name.quoted(), ident(&not_null_check(name))))
            .collect();
        ddl(&mut engine.session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.join("; ")))?;
    }
    Ok(())
}

/// Puts back the values that row steps replaced, in rows that still have what the steps wrote.
pub(crate) fn restore_rows(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let table = here(shape);
    let dual = Dual::new(shape, Way::Forward);
    let session = &mut engine.session;
    for step in shape.change.rows.iter().rev() {
        let columns: Vec<String> = match step {
            RowStep::Sql { set, down, .. } if down.is_empty() => {
                set.iter().map(|(name, _)| ident(&name_until_swap(shape, name))).collect()
            }
            RowStep::Sql { down, filter, .. } => {
                // The way back is only for rows that the step changed; its filter speaks of rows before it.
                let assignments: Vec<String> = down
                    .iter()
                    .map(|(name, value)| format!("{} = ({value})", ident(&name_until_swap(shape, name))))
                    .collect();
                let _ = filter;
                session
                    .transaction(&format!(
                        "{}; UPDATE {table} AS s SET {}",
                        fence(task.epoch),
                        assignments.join(", ")
                    ))
                    .map_err(unfence(task.epoch))?;
                continue;
            }
            RowStep::Function { write, .. } => {
                write.iter().map(|name| ident(&name_until_swap(shape, name))).collect()
            }
        };
        if find(session, &shape.artefacts.base, "image")?.is_none() {
            return Ok(());
        }
        let assignments: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(at, name)| format!("{name} = (i.before::json ->> {at})::{}", column_kind(shape, name)))
            .collect();
        let unchanged: Vec<String> = columns.iter().map(|name| format!("s.{name}::text")).collect();
        let sql = format!(
            "{}; UPDATE {table} AS s SET {} FROM {} AS i WHERE i.row_key = json_build_array({})::text AND i.after = json_build_array({})::text",
            fence(task.epoch),
            assignments.join(", "),
            shape.artefacts.own("image"),
            dual.key_text("s"),
            unchanged.join(", ")
        );
        session.transaction(&sql).map_err(unfence(task.epoch))?;
    }
    Ok(())
}

/// Takes back everything before the swap.
pub(crate) fn undo(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let table = here(shape);
    let session = &mut engine.session;
    if find(session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    restore_rows(engine, task, shape)?;
    let session = &mut engine.session;
    match shape.change.fate {
        Fate::Create => {
            session
                .transaction(&format!("{}; DROP TABLE IF EXISTS {table}", fence(task.epoch)))
                .map_err(unfence(task.epoch))?;
        }
        Fate::Alter => {
            drop_indexes(
                session,
                task,
                shape,
                shape.change.add_indexes.iter().map(|index| index.name.as_str()),
            )?;
            let unique =
                shape.change.add_constraints.iter().filter(|one| matches!(one, NewConstraint::Unique { .. }));
            drop_indexes(session, task, shape, unique.map(|one| one.name().as_str()))?;
            let sql = remove_added(shape, &table);
            ddl(session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.clone()))?;
        }
        Fate::Drop => {}
    }
    remove_artefacts(engine, task, shape)
}

/// After the swap was taken back: indexes that were built go, artefacts go.
pub(crate) fn after_swap_back(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    if !is_instant(shape) && find(&mut engine.session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    if shape.change.fate == Fate::Alter {
        restore_rows(engine, task, shape)?;
        restore_constraints(engine, task, shape)?;
        drop_indexes(
            &mut engine.session,
            task,
            shape,
            shape.change.add_indexes.iter().map(|index| index.name.as_str()),
        )?;
    }
    remove_artefacts(engine, task, shape)
}

fn remove_artefacts(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let sql = format!("{}; {}", fence(task.epoch), drop_artefacts(shape, &[]));
    engine.session.transaction(&sql).map(drop).map_err(unfence(task.epoch))
}

fn drop_indexes<'n>(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    names: impl Iterator<Item = &'n str>,
) -> Result<(), Error> {
    for name in names {
        session.run(&fence(task.epoch)).map_err(unfence(task.epoch))?;
        let of_constraint = session.is_true(&format!(
            "SELECT EXISTS (SELECT 1 FROM pg_constraint con JOIN pg_class c ON c.oid = con.conindid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {} AND con.contype <> 'f')",
            literal(&shape.schema),
            literal(name)
        ))?;
        if !of_constraint {
            session.run("SET lock_timeout = 0")?;
            let dropped =
                session.run(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", qualified(&shape.schema, name)));
            session.run("SET lock_timeout = '5s'")?;
            dropped?;
        }
    }
    Ok(())
}

/// Contract: what goes, goes.
pub(crate) fn contract(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let session = &mut engine.session;
    if find(session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    let then = shape.name_then();
    match shape.change.fate {
        Fate::Create => {}
        Fate::Drop => {
            let old = shape.retired();
            let sql = format!(
                "{}; DROP TABLE IF EXISTS {old}",
                views::drop(&task.versions.old, shape.change.table.as_str())
            );
            let exists = find(session, &shape.artefacts.old, shape.change.table.as_str())?.is_some();
            let locks = if exists { Locks::exclusive(&old) } else { Locks::default() };
            ddl(session, task, &locks, &mut |_| Ok(sql.clone()))?;
        }
        Fate::Alter => {
            drop_indexes(session, task, shape, shape.change.drop_indexes.iter().map(Ident::as_str))?;
            let mut sql = vec![format!("DROP TRIGGER IF EXISTS {} ON {then}", ident(FILLER))];
            if views::are_needed(shape.change) {
                sql.insert(0, views::drop(&task.versions.old, shape.change.table.as_str()));
            }
            for column in shape.change.columns.iter().filter(|column| column.fate == ColumnFate::Drop) {
                if let Some(now) = &column.now {
                    sql.push(format!("ALTER TABLE {then} DROP COLUMN IF EXISTS {}", now.quoted()));
                }
            }
            let mut locks = Locks::exclusive(&then);
            let views = views::existing(session, task.versions, shape.change)?;
            for view in views {
                locks.strong.insert(0, (view, "ACCESS EXCLUSIVE"));
            }
            let sql = sql.join("; ");
            ddl(session, task, &locks, &mut |_| Ok(sql.clone()))?;
        }
    }
    remove_artefacts(engine, task, shape)
}
