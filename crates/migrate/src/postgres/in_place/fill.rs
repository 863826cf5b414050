//! The walk over the rows of a table that stays: columns that are filled, row steps, and the way back of both; and indexes, which
//! are built beside it.

use std::time::Instant;

use super::{filled, has_walk, here, is_instant, name_until_swap};
use crate::{
    change::{Fate, NewConstraint, RowStep},
    engine::{ChunkDone, Pace, RowChunk, Task, Work},
    error::Error,
    ir::Ident,
    postgres::{
        PostgresEngine,
        build::{concurrently, duplicates},
        copy::{
            Range, Stepped, Walk, advance, each_chunk, key_json, key_of, ledger, low_text, make_ranges,
            moved, open_ranges,
        },
        polite::{Locks, ddl, fence, unfence},
        relation::{Relation, find},
        session::{Session, ident, literal},
        shape::Shape,
        sync::{Sync as Dual, Way},
    },
    state::sql::Value,
};

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

/// One chunk of rows gets its new values; `only` says which rows, for a later pass.
pub(super) fn fill_chunk(
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
            RowStep::Sql { down, .. } => {
                // Of all rows: the step's filter speaks of rows before it, and says nothing of them now.
                let assignments: Vec<String> = down
                    .iter()
                    .map(|(name, value)| format!("{} = ({value})", ident(&name_until_swap(shape, name))))
                    .collect();
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
