//! The walk over the rows of a table that stays, where columns are filled and row functions run; and indexes, which are built beside
//! it.

use std::time::Instant;

use super::{
    filled,
    functions::{begin, run_functions},
    has_walk, here, is_instant, name_until_swap,
};
use crate::{
    change::{Fate, NewConstraint},
    engine::{ChunkDone, Pace, Task, Work},
    error::Error,
    postgres::{
        PostgresEngine,
        build::{concurrently, duplicates},
        copy::{
            Range, Stepped, Walk, advance, each_chunk, key_json, key_of, ledger, low_text, make_ranges,
            moved, open_ranges,
        },
        polite::{Locks, ddl, unfence},
        relation::Relation,
        session::{Session, ident, literal},
        shape::Shape,
        sync::{Sync as Dual, Way},
    },
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
        build_index(engine, task, shape, source, index.name.as_str(), unique, &tail, index.online, pace)?;
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
                pace,
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
    pace: &dyn Pace,
) -> Result<(), Error> {
    let built = if online {
        concurrently(
            engine,
            task,
            &shape.schema,
            &source.oid,
            name,
            &|| format!("CREATE {unique}INDEX CONCURRENTLY {} {tail}", ident(name)),
            Some(pace),
        )
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
        session.run(&begin(task))?;
        let keys = session.run(&format!(
            "SELECT json_build_array({})::text FROM {table} AS s WHERE {filter} ORDER BY {order} LIMIT {rows} FOR NO KEY UPDATE OF s",
            dual.key_text("s")
        ))?;
        let seen = keys.len() as u64;
        let last = keys.last().and_then(|row| key_of(row.first().and_then(Option::as_ref)));
        let mut changed = 0;
        if let Some(last) = &last {
            let chunk = dual.between("s", false, low, Some(last));
            changed = match only {
                // Columns alone: the functions of a step have been there.
                Some(only) => fill_columns(session, shape, &table, &format!("{chunk} AND ({only})"))?,
                None => {
                    let filled = fill_columns(session, shape, &table, &chunk)?;
                    filled.max(run_functions(session, task, shape, dual, &table, &chunk)?)
                }
            };
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

/// New columns get their values in the rows that satisfy `chunk` (over `s`) and have none; how many rows changed.
fn fill_columns(session: &mut Session, shape: &Shape<'_>, table: &str, chunk: &str) -> Result<u64, Error> {
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
    Ok(changed)
}
