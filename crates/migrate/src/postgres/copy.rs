//! BACKFILL: rows of S into T, in chunks by key, by several workers on ranges of their own. Chunks follow each other inside the
//! server ([`super::walk`]); one that is out of the ordinary is done from here, by itself.
//!
//! One chunk is one statement in one transaction: it writes the rows of its snapshot that T does not have yet, and moves the
//! range's cursor in the ledger. When a client just writes one of them, it is done again in a way that passes it over. It
//! locks no row of S: what clients write while it runs wins in T, for dual write replaces or waits for the chunk's row, and
//! remembers what it cannot (a key that is deleted, or that the chunk just takes) to be synced after the copy. Where the
//! chunk itself would wait for a client, it waits shorter than `deadlock_timeout`: the copier gives way, never the
//! application.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    PostgresEngine,
    polite::{fence, unfence},
    rejects::{KEEP_APPROVAL, sets_aside},
    session::{Row, Session, kind, literal},
    shape::Shape,
    sync::Sync as Dual,
    walk::{Ended, place_parts, walk},
};
use crate::{
    engine::{ChunkDone, Go, Pace, Task, Work},
    error::{Error, SqlErrorKind},
};

/// Fixed for workers: keyset scans, whatever the statistics say. A chunk and its line in the ledger may be lost together by
/// a crash of the server, for then the chunk is done again; so nobody waits for the disk (the commit that ends the phase
/// does, and with it all before it: the log is written in order). Whole pages in the log are compressed by lz4 where that may
/// be, for clients wait for the log.
const WORKER: &str = "SET synchronous_commit = off; \
     DO $$ BEGIN PERFORM set_config('wal_compression', 'lz4', false); EXCEPTION WHEN OTHERS THEN NULL; END $$; SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_tidscan = off; SET jit = off";

/// How long a worker rests before it asks again whether it may work.
const REST: Duration = Duration::from_millis(50);

/// A range of keys and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) number: u64,
    pub(crate) low: Option<Vec<String>>,
    pub(crate) high: Option<Vec<String>>,
    pub(crate) at: Option<Vec<String>>,
}

/// The two walks over the ranges of a change; each has a cursor of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// Rows are copied.
    Copy,
    /// Rows are compared.
    Verify,
}

impl Walk {
    pub(crate) fn columns(self) -> (&'static str, &'static str) {
        match self {
            Self::Copy => ("copied_at", "copied"),
            Self::Verify => ("verified_at", "verified"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Verify => "verify",
        }
    }
}

/// A key as it is kept: a JSON array of texts, spelt as the server's `json_build_array` spells it.
pub(crate) fn key_json(key: &[String]) -> String {
    let items: Vec<String> = key.iter().map(|part| serde_json::to_string(part).unwrap_or_default()).collect();
    format!("[{}]", items.join(", "))
}

pub(crate) fn key_of(text: Option<&String>) -> Option<Vec<String>> {
    serde_json::from_str(text?).ok()
}

/// Creates the table of ranges.
pub(crate) fn range_table(shape: &Shape<'_>) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (number bigint PRIMARY KEY, low text, high text, copied_at text, copied boolean NOT NULL DEFAULT false, \
         verified_at text, verified boolean NOT NULL DEFAULT false)",
        shape.artefacts.own("range")
    )
}

/// Cuts the keys that exist now into disjoint ranges, once. Rows with later keys come through dual write alone.
pub(crate) fn make_ranges(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    rows: u64,
) -> Result<(), Error> {
    let table = shape.artefacts.own("range");
    if session.is_true(&format!("SELECT EXISTS (SELECT 1 FROM {table})"))? {
        return Ok(());
    }
    let wanted = if rows < 4 * task.policy.chunk_rows { 1 } else { task.policy.workers.max(1) as u64 * 8 };
    let mut bounds: Vec<Vec<String>> = Vec::new();
    if wanted > 1 {
        let percent = (40_000.0 * 100.0 / rows as f64).min(100.0);
        let order = dual.order("s");
        let sampled = session.run(&format!(
            "SELECT {} FROM (SELECT s.*, row_number() OVER (ORDER BY {order}) AS _cutover_at, count(*) OVER () AS _cutover_of FROM {} AS s TABLESAMPLE SYSTEM ({percent})) AS s \
             WHERE _cutover_at % greatest(_cutover_of / {wanted}, 1) = 0 ORDER BY {order}",
            dual.key_text("s"),
            dual.source
        ))?;
        bounds = sampled.into_iter().filter_map(|row| row.into_iter().collect()).collect();
        bounds.truncate(wanted as usize - 1);
        bounds.dedup();
    }
    let mut low: Option<Vec<String>> = None;
    let mut values = Vec::new();
    let text =
        |key: &Option<Vec<String>>| key.as_ref().map_or("NULL".to_owned(), |key| literal(&key_json(key)));
    for (number, high) in bounds.into_iter().map(Some).chain([None]).enumerate() {
        values.push(format!("({number}, {}, {})", text(&low), text(&high)));
        low = high;
    }
    session
        .transaction(&format!(
            "{}; LOCK TABLE {table}; INSERT INTO {table} (number, low, high) SELECT v.* FROM (VALUES {}) AS v(number, low, high) WHERE NOT EXISTS (SELECT 1 FROM {table})",
            fence(task.epoch),
            values.join(", ").replacen("NULL, NULL", "NULL::text, NULL::text", 1)
        ))
        .map(drop)
        .map_err(unfence(task.epoch))
}

/// The ranges that are not done.
pub(crate) fn open_ranges(session: &mut Session, shape: &Shape<'_>, walk: Walk) -> Result<Vec<Range>, Error> {
    let (at, done) = walk.columns();
    let rows = session.run(&format!(
        "SELECT number, low, high, {at} FROM {} WHERE NOT {done} ORDER BY number DESC",
        shape.artefacts.own("range")
    ))?;
    Ok(rows
        .iter()
        .map(|row| Range {
            number: row[0].as_deref().and_then(|text| text.parse().ok()).unwrap_or(0),
            low: key_of(row[1].as_ref()),
            high: key_of(row[2].as_ref()),
            at: key_of(row[3].as_ref()),
        })
        .collect())
}

/// Whether ranges were made and all are done.
pub(crate) fn is_walked(session: &mut Session, shape: &Shape<'_>, walk: Walk) -> Result<bool, Error> {
    if super::relation::find(session, &shape.artefacts.base, "range")?.is_none() {
        return Ok(false);
    }
    let (_, done) = walk.columns();
    session
        .is_true(&format!("SELECT coalesce(bool_and({done}), false) FROM {}", shape.artefacts.own("range")))
}

/// Moves a range's cursor; part of the chunk's transaction.
pub(crate) fn advance(
    shape: &Shape<'_>,
    walk: Walk,
    range: &Range,
    at: Option<&[String]>,
    is_done: bool,
) -> String {
    let (cursor, done) = walk.columns();
    let at = at.map_or(cursor.to_owned(), |key| literal(&key_json(key)));
    format!(
        "UPDATE {} SET {cursor} = {at}, {done} = {is_done} WHERE number = {}",
        shape.artefacts.own("range"),
        range.number
    )
}

/// The ledger's line of a chunk; part of its transaction.
pub(crate) fn ledger(
    task: &Task<'_>,
    shape: &Shape<'_>,
    walk: Walk,
    part: u64,
    numbers: &str,
    low: &str,
    high: &str,
) -> String {
    let migration = literal(task.migration);
    let table = literal(shape.change.table.as_str());
    let kind = literal(walk.word());
    format!(
        "INSERT INTO cutover.chunk (migration, table_name, kind, part, number, low, high, seen, copied, present, rejected, at_ms) \
         SELECT {migration}, {table}, {kind}, {part}, \
           coalesce((SELECT max(number) FROM cutover.chunk WHERE migration = {migration} AND table_name = {table} AND kind = {kind} AND part = {part}), 0) + 1, \
           {low}, {high}, {numbers}, (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    )
}

/// The place where a range's next chunk begins, as SQL text.
pub(crate) fn low_text(range: &Range) -> String {
    let low = range.at.as_deref().or(range.low.as_deref());
    low.map_or("NULL".to_owned(), |key| literal(&key_json(key)))
}

/// The place of a range now.
pub(crate) fn place_of(
    session: &mut Session,
    shape: &Shape<'_>,
    walk: Walk,
    number: u64,
) -> Result<Option<Vec<String>>, Error> {
    let (at, _) = walk.columns();
    let table = shape.artefacts.own("range");
    Ok(key_of(session.value(&format!("SELECT {at} FROM {table} WHERE number = {number}"))?.as_ref()))
}

/// What one chunk did and the range's new place; `None` when the range is done.
pub(crate) type Stepped = Result<(ChunkDone, Option<Vec<String>>), Error>;

/// Moves a range by what a chunk did; whether the range is done.
pub(crate) fn moved(range: &mut Range, stepped: Stepped) -> Result<(ChunkDone, bool), Error> {
    let (chunk, place) = stepped?;
    let ended = place.is_none();
    range.at = place.or(range.at.take());
    Ok((chunk, ended))
}

/// Does the next chunk of a range, or some; moves it, and says whether it is done.
pub(crate) type Step<'s> =
    dyn Fn(&mut PostgresEngine, &mut Range, &Go) -> Result<(ChunkDone, bool), Error> + Sync + 's;

/// Runs `step` over the open ranges with the policy's workers. The first error ends all workers.
pub(crate) fn each_chunk(
    engine: &PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    pace: &dyn Pace,
    ranges: Vec<Range>,
    step: &Step<'_>,
) -> Result<Work, Error> {
    let dial = &engine.dial;
    let total = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let longest = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let first_error: Mutex<Option<Error>> = Mutex::new(None);
    let workers = task.policy.workers.clamp(1, ranges.len().max(1));
    let queue = Mutex::new(ranges);
    let queued = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let working = AtomicUsize::new(workers);
    let rests = |go: &Go| {
        let fewer = |now: usize| (now > go.workers.max(1)).then(|| now - 1);
        working.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    };
    let resumes = |go: &Go| {
        let more = |now: usize| (now < go.workers.max(1)).then(|| now + 1);
        working.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    };
    let work = || -> Result<(), Error> {
        let mut engine = dial.engine()?;
        engine.session.run(&format!("{WORKER}; SET lock_timeout = '{}ms'", task.policy.lock_timeout_ms))?;
        let mut go = pace.between(&mut engine, &shape.change.table, &ChunkDone::default())?;
        let mut shrink: u32 = 0;
        loop {
            let next = queued().pop();
            let Some(mut range) = next else {
                working.fetch_sub(1, Ordering::AcqRel);
                return Ok(());
            };
            loop {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if rests(&go) {
                    // Before anything else: whoever still works finds the range, or we do when nobody does.
                    queued().push(range);
                    loop {
                        std::thread::sleep(REST);
                        go = pace.between(&mut engine, &shape.change.table, &ChunkDone::default())?;
                        if failed.load(Ordering::Relaxed) || resumes(&go) {
                            break;
                        }
                    }
                    break;
                }
                let this = Go { rows: (go.rows >> shrink.min(16)).max(1), ..go };
                match step(&mut engine, &mut range, &this) {
                    Ok((chunk, ended)) => {
                        shrink = shrink.saturating_sub(1);
                        total.fetch_add(chunk.seen, Ordering::Relaxed);
                        done.fetch_add(chunk.copied, Ordering::Relaxed);
                        longest.fetch_max(chunk.held_us, Ordering::Relaxed);
                        go = pace.between(&mut engine, &shape.change.table, &chunk)?;
                        if ended {
                            break;
                        }
                    }
                    // Somebody holds a row of the chunk: smaller chunks pass by more of the table meanwhile.
                    Err(error) if error.is_busy() => {
                        shrink = (shrink + 2).min(12);
                        std::thread::sleep(Duration::from_millis(rand::random_range(20..=80)));
                        let waited = ChunkDone {
                            waited_us: task.policy.lock_timeout_ms * 1000,
                            ..ChunkDone::default()
                        };
                        go = pace.between(&mut engine, &shape.change.table, &waited)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                if let Err(error) = work() {
                    failed.store(true, Ordering::Relaxed);
                    first_error
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .get_or_insert(error);
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Work {
            seen: total.into_inner(),
            done: done.into_inner(),
            resynced: 0,
            longest_hold_us: longest.into_inner(),
        }),
    }
}

/// Copies what is not copied yet.
pub(crate) fn copy(
    engine: &PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    pace: &dyn Pace,
    ranges: Vec<Range>,
) -> Result<Work, Error> {
    each_chunk(engine, task, shape, pace, ranges, &|engine, range, go| {
        let dual = Dual::new(shape, super::sync::Way::Forward);
        let place = range.at.as_ref().or(range.low.as_ref());
        let low = place.map(|_| place_parts(shape.key.len()));
        let high = range.high.as_ref().map(|key| key.iter().map(|part| literal(part)).collect::<Vec<_>>());
        let filter = dual.between_parts("s", false, low.as_deref(), high.as_deref());
        let chunk = statement(task, shape, &dual, range.number, &filter, "$1", go.rows, Around::Nothing);
        task.point("backfill.before");
        match walk(engine, task, shape, Walk::Copy, range, &chunk, go.budget) {
            Ok((ended, done)) => {
                task.point("backfill.after");
                Ok((done, ended == Ended::AtEnd))
            }
            Err(error) if kind(&error) == Some(SqlErrorKind::Data) && sets_aside(shape) => {
                moved(range, copy_each(engine, task, shape, range, go.rows))
            }
            Err(error) if matches!(kind(&error), Some(SqlErrorKind::Unique | SqlErrorKind::Data)) => {
                let around = match kind(&error) {
                    Some(SqlErrorKind::Unique) => Around::Anything,
                    _ => Around::Nothing,
                };
                let stepped = copy_chunk(engine, task, shape, range, go.rows, around);
                moved(range, stepped)
            }
            Err(error) => Err(error),
        }
    })
}

/// What a chunk passes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    /// Keys that T has; what comes into its way meanwhile makes it fail.
    Nothing,
    /// Whatever is in its way.
    Anything,
}

fn number(row: &Row, at: usize) -> u64 {
    row.get(at).and_then(Option::as_deref).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The statement of a chunk: writes the first `rows` rows that satisfy `filter` (over `s`), its line in the ledger and the
/// range's new place; yields that place, rows seen, rows written, and `end` when the range is done, else `more`.
#[allow(clippy::too_many_arguments, reason = "two callers; each is a different thing")]
fn statement(
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    number: u64,
    filter: &str,
    low: &str,
    rows: u64,
    around: Around,
) -> String {
    let columns = super::shape::columns_of(shape);
    let order = dual.order("s");
    let descending =
        dual.source_key.iter().map(|name| format!("s.{name} DESC")).collect::<Vec<_>>().join(", ");
    let ledger = ledger(
        task,
        shape,
        Walk::Copy,
        number,
        "(SELECT count(*) FROM src), (SELECT count(*) FROM written), (SELECT count(*) FROM src) - (SELECT count(*) FROM written), 0",
        low,
        "(SELECT json_build_array(%KEY%)::text FROM src AS s ORDER BY %DESC% LIMIT 1)",
    )
    .replace("%KEY%", &dual.key_text("s"))
    .replace("%DESC%", &descending);
    let (cursor, done) = Walk::Copy.columns();
    format!(
        "WITH src AS MATERIALIZED (SELECT {columns} FROM {source} AS s WHERE {filter} ORDER BY {order} LIMIT {rows}), \
         written AS ({write} RETURNING 1), \
         line AS ({ledger} RETURNING high, seen, copied), \
         moved AS (UPDATE {range_table} SET {cursor} = coalesce((SELECT high FROM line), {cursor}), {done} = (SELECT seen < {rows} FROM line) WHERE number = {number} RETURNING 1) \
         SELECT high, seen, copied, CASE WHEN seen < {rows} THEN 'end' ELSE 'more' END FROM line",
        source = dual.source,
        write = match around {
            Around::Nothing => dual.write_missing("src"),
            Around::Anything => dual.write_from("src AS s"),
        },
        range_table = shape.artefacts.own("range"),
    )
}

/// One chunk by itself.
fn copy_chunk(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    range: &Range,
    rows: u64,
    around: Around,
) -> Stepped {
    let dual = Dual::new(shape, super::sync::Way::Forward);
    let low = range.at.as_deref().or(range.low.as_deref());
    let filter = dual.between("s", false, low, range.high.as_deref());
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{}ms'; {}; {}; COMMIT",
        task.policy.lock_timeout_ms,
        fence(task.epoch),
        statement(task, shape, &dual, range.number, &filter, &low_text(range), rows, around),
    );
    task.point("backfill.before");
    let since = Instant::now();
    let outcome = engine.session.run(&sql);
    let held = since.elapsed();
    match outcome {
        Ok(found) => {
            task.point("backfill.after");
            let row = found.into_iter().next().unwrap_or_default();
            let (seen, copied) = (number(&row, 1), number(&row, 2));
            let chunk = ChunkDone {
                seen,
                copied,
                present: seen - copied.min(seen),
                held_us: u64::try_from(held.as_micros()).unwrap_or(u64::MAX),
                ..ChunkDone::default()
            };
            let place = if seen < rows { None } else { key_of(row.first().and_then(Option::as_ref)) };
            Ok((chunk, place))
        }
        Err(error) => {
            engine.session.roll_back();
            let error = unfence(task.epoch)(error);
            match kind(&error) {
                Some(SqlErrorKind::Unique) if around == Around::Nothing => {
                    copy_chunk(engine, task, shape, range, rows, Around::Anything)
                }
                Some(SqlErrorKind::Data | SqlErrorKind::Unique) if sets_aside(shape) => {
                    copy_each(engine, task, shape, range, rows)
                }
                // A row does not fit: find it by halves.
                Some(SqlErrorKind::Data | SqlErrorKind::Unique) if rows > 1 => {
                    copy_chunk(engine, task, shape, range, rows.div_ceil(2).min(rows - 1), around)
                }
                Some(SqlErrorKind::Data | SqlErrorKind::Unique) => reject_one(engine, shape, range, &error),
                _ => Err(error),
            }
        }
    }
}

/// The next row of the range does not fit, and may not be set aside.
fn reject_one(engine: &mut PostgresEngine, shape: &Shape<'_>, range: &Range, cause: &Error) -> Stepped {
    let dual = Dual::new(shape, super::sync::Way::Forward);
    let low = range.at.as_deref().or(range.low.as_deref());
    let filter = dual.between("s", false, low, range.high.as_deref());
    let order = dual.order("s");
    let found = engine.session.value(&format!(
        "SELECT json_build_array({})::text FROM {} AS s WHERE {filter} ORDER BY {order} LIMIT 1",
        dual.key_text("s"),
        dual.source
    ))?;
    let Some(key) = key_of(found.as_ref()) else { return Ok((ChunkDone::default(), None)) };
    let reason = match cause {
        Error::Sql(error) => error.message.clone(),
        other => other.to_string(),
    };
    Err(Error::Rejected {
        table: shape.change.table.clone(),
        count: 1,
        sample: vec![format!("{} = {}: {reason}", shape.key.join(", "), key.join(", "))],
    })
}

/// Rows that are synced one by one in one transaction, their rows of S locked.
const EACH_AT_ONCE: u64 = 200;

/// A chunk in which a row does not fit: each row by itself, as dual write does it; those that do not fit are set aside.
fn copy_each(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    range: &Range,
    rows: u64,
) -> Stepped {
    let rows = rows.min(EACH_AT_ONCE);
    let dual = Dual::new(shape, super::sync::Way::Forward);
    let low = range.at.as_deref().or(range.low.as_deref());
    let columns: Vec<String> =
        dual.source_key.iter().enumerate().map(|(at, name)| format!("s.{name} AS k{}", at + 1)).collect();
    let parts = |suffix: &str| -> Vec<String> {
        (1..=dual.source_key.len()).map(|at| format!("d.k{at}{suffix}")).collect()
    };
    let same: Vec<String> =
        dual.source_key.iter().enumerate().map(|(at, name)| format!("s.{name} = d.k{}", at + 1)).collect();
    let count = |condition: &str| format!("(SELECT count(*) FROM done AS d WHERE {condition})");
    let line = ledger(
        task,
        shape,
        Walk::Copy,
        range.number,
        &[
            count("d.there"),
            count("d.there AND d.reason IS NULL"),
            "0".to_owned(),
            count("d.reason IS NOT NULL"),
        ]
        .join(", "),
        &low_text(range),
        &format!(
            "(SELECT json_build_array({})::text FROM done AS d ORDER BY {} LIMIT 1)",
            parts("::text").join(", "),
            parts(" DESC").join(", ")
        ),
    );
    let (cursor, ended) = Walk::Copy.columns();
    // The keys are those of one snapshot: a row whose key a client changes just now must not take the chunk's end along. Each row
    // is locked before it is synced, so that whoever writes it has ended or comes after us.
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{timeout}ms'; {fence}; \
         WITH src AS MATERIALIZED (SELECT {columns} FROM {source} AS s WHERE {filter} ORDER BY {order} LIMIT {rows}), \
         locked AS MATERIALIZED (SELECT d.*, (SELECT true FROM {source} AS s WHERE {same} FOR SHARE) AS there FROM src AS d), \
         done AS MATERIALIZED (SELECT d.*, CASE WHEN d.there THEN {one} END AS reason FROM locked AS d), \
         aside AS (INSERT INTO cutover.reject (migration, table_name, row_key, reason, row_text, approved) \
           SELECT {migration}, {table}, json_build_array({key})::text, d.reason, (SELECT s::text FROM {source} AS s WHERE {same}), 0 \
           FROM done AS d WHERE d.reason IS NOT NULL {KEEP_APPROVAL}), \
         line AS ({line} RETURNING high, seen, rejected), \
         moved AS (UPDATE {range_table} SET {cursor} = coalesce((SELECT high FROM line), {cursor}), {ended} = (SELECT count(*) < {rows} FROM src) WHERE number = {number}) \
         SELECT high, seen, rejected, (SELECT count(*) FROM src) FROM line; COMMIT",
        timeout = task.policy.lock_timeout_ms,
        fence = fence(task.epoch),
        columns = columns.join(", "),
        source = dual.source,
        filter = dual.between("s", false, low, range.high.as_deref()),
        order = dual.order("s"),
        one = dual.one_of("d"),
        migration = literal(task.migration),
        table = literal(shape.change.table.as_str()),
        key = parts("::text").join(", "),
        same = same.join(" AND "),
        range_table = shape.artefacts.own("range"),
        number = range.number,
    );
    task.point("backfill.before");
    let since = Instant::now();
    let outcome = engine.session.run(&sql);
    let held_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    match outcome {
        Ok(found) => {
            task.point("backfill.after");
            let row = found.into_iter().next().unwrap_or_default();
            let (seen, rejected) = (number(&row, 1), number(&row, 2));
            let place =
                if number(&row, 3) < rows { None } else { key_of(row.first().and_then(Option::as_ref)) };
            Ok((
                ChunkDone {
                    seen,
                    copied: seen - rejected.min(seen),
                    rejected,
                    held_us,
                    ..ChunkDone::default()
                },
                place,
            ))
        }
        Err(error) => {
            engine.session.roll_back();
            Err(unfence(task.epoch)(error))
        }
    }
}

/// Keys synced in one transaction.
const KEYS_AT_ONCE: u64 = 500;
/// Keys that did not fit, synced in one transaction.
const MISFITS_AT_ONCE: u64 = 100_000;

/// Drains the keys that are remembered now; how many.
pub(crate) fn drain(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    dual: &Dual<'_>,
    again: bool,
) -> Result<u64, Error> {
    let deadline = Instant::now() + Duration::from_millis(task.policy.lock_patience_ms);
    let mut total = 0;
    let mut at_once = false;
    loop {
        let limit = if at_once { MISFITS_AT_ONCE } else { KEYS_AT_ONCE };
        let sql = format!(
            "SET LOCAL lock_timeout = '{}ms'; {}; {}",
            task.policy.lock_timeout_ms,
            fence(task.epoch),
            dual.drain(limit, at_once)
        );
        match engine.session.transaction(&sql) {
            Ok(rows) => {
                let done = rows.first().map_or(0, |row| number(row, 0));
                total += done;
                // What did not fit is tried once per call, when all else is done, and all of it at once: one may be in
                // another's way. It stays in the list. There is no end to wait for: clients go on.
                match (done < limit, again && !at_once) {
                    (true, false) => return Ok(total),
                    (true, true) => at_once = true,
                    (false, _) => {}
                }
            }
            Err(error) if error.is_busy() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(rand::random_range(20..=80)));
            }
            Err(error) => return Err(unfence(task.epoch)(error)),
        }
    }
}
