//! Row functions (transforms and plugins) on a table that stays: they run on rows that are read and written back, chunk by chunk in the
//! walk, then on what clients have written meanwhile, and their values are put back on the way back (decision 0055).
//!
//! Read [`run_functions`] first, then [`touch`] and [`drain_touched`].

use std::collections::BTreeSet;

use super::{TOUCHER, checks, here, name_until_swap};
use crate::{
    change::RowStep,
    engine::{RowChunk, Task},
    error::Error,
    ir::Ident,
    postgres::{
        PostgresEngine,
        copy::key_of,
        polite::{fence, unfence},
        relation::find,
        retry_busy,
        session::{PRINTED, Session, ident, literal},
        shape::Shape,
        sync::{Sync as Dual, Way},
    },
    state::sql::Value,
};

/// A setting of our own that says, inside a transaction, that the migration writes and no client.
const FILLING: &str = "cutover.filling";
/// Rows that clients have written get their functions in portions of this many.
const TOUCHED_AT_ONCE: u64 = 200;
/// Rows get back what functions replaced in portions of this many.
const RESTORED_AT_ONCE: u64 = 500;

/// How a transaction begins that writes rows for the migration: what it writes is not remembered as a client's ([`touch`]).
pub(super) fn begin(task: &Task<'_>) -> String {
    format!(
        "BEGIN; SET LOCAL lock_timeout = '{}ms'; SET LOCAL {FILLING} = 'on'; {}",
        task.policy.lock_timeout_ms,
        fence(task.epoch)
    )
}

/// The row functions, in order, on the rows that satisfy `chunk` (over `s`), which are locked; how many rows changed.
pub(super) fn run_functions(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    table: &str,
    chunk: &str,
) -> Result<u64, Error> {
    let mut changed = 0;
    for step in &shape.change.rows {
        let RowStep::Function { step, name, read, write, .. } = step else { continue };
        changed =
            changed.max(run_function(session, task, shape, dual, table, chunk, *step, name, read, write)?);
    }
    Ok(changed)
}

/// The trigger that remembers the rows which clients write while row functions run: no function runs inside the server, so
/// they get theirs later, the last ones before the swap commits.
pub(super) fn touch(shape: &Shape<'_>) -> Vec<String> {
    if shape.change.functions().is_empty() {
        return Vec::new();
    }
    let (table, touched) = (here(shape), shape.artefacts.own("touched"));
    let (function, trigger) = (shape.artefacts.own("touch"), ident(TOUCHER));
    let key = Dual::new(shape, Way::Forward).key_text("NEW");
    let body =
        format!("BEGIN INSERT INTO {touched} VALUES (json_build_array({key})::text); RETURN NULL; END");
    vec![
        format!("CREATE TABLE IF NOT EXISTS {touched} (row_key text NOT NULL)"),
        // It has no key; a publication of all tables would forbid to delete from it.
        format!("ALTER TABLE {touched} REPLICA IDENTITY FULL"),
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog {PRINTED} AS {}",
            literal(&body)
        ),
        format!(
            "CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE ON {table} FOR EACH ROW \
             WHEN (pg_catalog.current_setting('{FILLING}', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION {function}()"
        ),
        format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"),
    ]
}

/// Under the lock of the swap: every row that was touched got its functions ([`drain_last`]). Fails as a lock that is not granted
/// does when there were too many, so that they get them without it and the swap is tried again.
pub(super) fn untouched(shape: &Shape<'_>) -> Vec<String> {
    if shape.change.functions().is_empty() {
        return Vec::new();
    }
    let body = format!(
        "BEGIN IF EXISTS (SELECT 1 FROM {}) THEN RAISE EXCEPTION 'rows wait for their functions' USING ERRCODE = 'lock_not_available'; END IF; END",
        shape.artefacts.own("touched")
    );
    vec![
        format!("DO {}", literal(&body)),
        format!("DROP TRIGGER IF EXISTS {} ON {}", ident(TOUCHER), here(shape)),
    ]
}

/// Runs the row functions on what clients have written meanwhile. How many rows.
///
/// # Errors
/// [`Error::Rejected`] when a row does not hold what the steps check then.
pub(crate) fn drain_touched(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<u64, Error> {
    if shape.change.functions().is_empty()
        || find(&mut engine.session, &shape.artefacts.base, "touched")?.is_none()
    {
        return Ok(0);
    }
    let mut total = 0;
    loop {
        let drained = retry_busy(task, || {
            let drained = drain_some(&mut engine.session, task, shape);
            if drained.is_err() {
                engine.session.roll_back();
            }
            drained.map_err(unfence(task.epoch))
        })?;
        total += drained;
        if drained < TOUCHED_AT_ONCE {
            return Ok(total);
        }
    }
}

fn drain_some(session: &mut Session, task: &Task<'_>, shape: &Shape<'_>) -> Result<u64, Error> {
    session.run(&begin(task))?;
    let drained = take_touched(session, task, shape)?;
    session.run("COMMIT")?;
    Ok(drained)
}

/// Under the lock of the swap: the functions of the few rows that were touched since the last [`drain_touched`]. Whether they were
/// few is for [`untouched`] to say.
pub(crate) fn drain_last(session: &mut Session, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    if !shape.change.functions().is_empty() {
        session.run(&format!("SET LOCAL {FILLING} = 'on'"))?;
        take_touched(session, task, shape)?;
    }
    Ok(())
}

/// Takes some rows off the list; their functions run in the transaction of the session.
fn take_touched(session: &mut Session, task: &Task<'_>, shape: &Shape<'_>) -> Result<u64, Error> {
    let (table, touched) = (here(shape), shape.artefacts.own("touched"));
    let dual = Dual::new(shape, Way::Forward);
    let keys = session.run(&format!(
        "DELETE FROM {touched} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {touched} LIMIT {TOUCHED_AT_ONCE})) RETURNING row_key"
    ))?;
    let seen = keys.len() as u64;
    let keys: BTreeSet<Vec<String>> =
        keys.iter().filter_map(|row| key_of(row.first().and_then(Option::as_ref))).collect();
    if !keys.is_empty() {
        let columns: Vec<String> = dual.source_key.iter().map(|name| format!("s.{name}")).collect();
        let typed = |key: &Vec<String>| {
            let parts = key.iter().zip(&dual.types);
            let parts: Vec<String> = parts.map(|(part, kind)| format!("{}::{kind}", literal(part))).collect();
            format!("({})", parts.join(", "))
        };
        let rows: Vec<String> = keys.iter().map(typed).collect();
        let chunk = format!("({}) IN ({})", columns.join(", "), rows.join(", "));
        session.run(&format!("SELECT 1 FROM {table} AS s WHERE {chunk} FOR NO KEY UPDATE OF s"))?;
        run_functions(session, task, shape, &dual, &table, &chunk)?;
        checks::hold(session, task, shape, &chunk)?;
    }
    Ok(seen)
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
    let image = shape.artefacts.own("image");
    let key = format!("json_build_array({})::text", dual.key_text("s"));
    // What a step writes and reads again is not given to it twice.
    let own: Vec<String> = write.iter().map(|name| format!("s.{}::text", here(name))).collect();
    let again = if read.iter().any(|name| write.contains(name)) {
        format!(
            " AND NOT EXISTS (SELECT 1 FROM {image} AS i WHERE i.step = {step} AND i.row_key = {key} AND i.after = json_build_array({})::text)",
            own.join(", ")
        )
    } else {
        String::new()
    };
    let rows = session.run(&format!(
        "SELECT {key}, {} FROM {table} AS s WHERE {chunk}{again} ORDER BY {order}",
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
    // The value from before the step: of a row that has what the step wrote, the one that is kept already.
    session.run(&format!(
        "INSERT INTO {image} AS i (step, row_key, before, after) SELECT {step}, v.k, json_build_array({})::text, json_build_array({})::text FROM {values} \
         ON CONFLICT (step, row_key) DO UPDATE SET before = CASE WHEN i.after = excluded.before THEN i.before ELSE excluded.before END, after = excluded.after",
        befores.join(", "),
        afters.join(", ")
    ))?;
    let updated = session.count(&format!(
        "UPDATE {table} AS s SET {} FROM {values} WHERE {key} = v.k AND {chunk}",
        assignments.join(", ")
    ))?;
    if updated != rows.len() as u64 {
        return Err(custom(format!("{updated} of {} row(s) were written", rows.len())));
    }
    Ok(updated)
}

/// Puts back the values that row functions replaced, in rows that still have what they wrote.
pub(crate) fn restore_rows(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let session = &mut engine.session;
    let image = shape.artefacts.own("image");
    if shape.change.functions().is_empty() || find(session, &shape.artefacts.base, "image")?.is_none() {
        return Ok(());
    }
    let table = here(shape);
    let dual = Dual::new(shape, Way::Forward);
    let same: Vec<String> = dual
        .source_key
        .iter()
        .zip(&dual.types)
        .enumerate()
        .map(|(at, (name, kind))| format!("s.{name} = (i.row_key::json ->> {at})::{kind}"))
        .collect();
    for step in shape.change.rows.iter().rev() {
        let RowStep::Function { step, write, .. } = step else { continue };
        let columns: Vec<String> = write.iter().map(|name| ident(&name_until_swap(shape, name))).collect();
        let assignments: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(at, name)| format!("{name} = (i.before::json ->> {at})::{}", column_kind(shape, name)))
            .collect();
        let unchanged: Vec<String> = columns.iter().map(|name| format!("s.{name}::text")).collect();
        // An image goes with the row that it was put back into, so that nothing is put back twice. Portions are small enough
        // for clients to wait for their rows; the rows are found by their key, whatever the statistics say.
        let sql = format!(
            "SET LOCAL lock_timeout = '{}ms'; SET LOCAL {FILLING} = 'on'; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
             SET LOCAL enable_mergejoin = off; {}; \
             WITH i AS (DELETE FROM {image} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {image} WHERE step = {step} LIMIT {RESTORED_AT_ONCE})) \
                 RETURNING row_key, before, after), \
               u AS (UPDATE {table} AS s SET {} FROM i WHERE {} AND i.after = json_build_array({})::text RETURNING 1) \
             SELECT (SELECT count(*) FROM i), (SELECT count(*) FROM u)",
            task.policy.lock_timeout_ms,
            fence(task.epoch),
            assignments.join(", "),
            same.join(" AND "),
            unchanged.join(", ")
        );
        loop {
            let rows = retry_busy(task, || session.transaction(&sql)).map_err(unfence(task.epoch))?;
            let count = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
            if count.is_none_or(|count| count == "0") {
                break;
            }
        }
    }
    Ok(())
}
