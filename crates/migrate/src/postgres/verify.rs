//! CONSISTENCY_CHECK: every row of both tables, in chunks, each chunk in one snapshot.
//!
//! The fingerprint of a chunk is its count and the sum of the hashes of its rows. What is equal but not alike (1.0 and 1.00,
//! text under a loose collation) is hashed in text form. Keys in `dirty` are not settled yet and do not count; any other
//! difference within one snapshot is real.

use std::time::Instant;

use super::{
    PostgresEngine,
    copy::{Range, Stepped, Walk, advance, each_chunk, key_json, key_of, ledger, low_text, moved},
    polite::{fence, unfence},
    rejects::not_rejected,
    relation::Relation,
    session::{ident, literal},
    shape::Shape,
    sync::{Sync as Dual, Way},
    walk::{Ended, place_parts, walk},
};
use crate::{
    engine::{ChunkDone, Pace, Task, Work},
    error::Error,
};

/// Types whose hash functions tell everything apart that their output tells apart.
const HASHED_AS_THEY_ARE: &[&str] = &[
    "int2",
    "int4",
    "int8",
    "bool",
    "uuid",
    "bytea",
    "timestamp",
    "timestamptz",
    "date",
    "time",
    "char",
    "name",
    "oid",
    "enum",
];

/// How much larger a chunk that is only read may be.
const VERIFY_FACTOR: u64 = 3;

/// The two row expressions of a fingerprint, over `n` (a new row as it should be) and over `t` (a row of T).
fn fingerprints(shape: &Shape<'_>, target: &Relation) -> (String, String) {
    let computed_default = |name: &str| {
        // A new column without a rule has its default, which need not be the same twice.
        shape.change.columns.iter().any(|column| {
            column.then.as_ref().is_some_and(|then| then.as_str() == name)
                && column.now.is_none()
                && column.up.is_none()
                && !column.default_constant
        })
    };
    let mut should = Vec::new();
    let mut is = Vec::new();
    for column in shape.written() {
        if computed_default(&column.name) {
            continue;
        }
        let Some(real) = target.column(&column.build) else { continue };
        let text = matches!(real.type_name.as_str(), "text" | "varchar") && real.deterministic;
        let plain = text || HASHED_AS_THEY_ARE.contains(&real.type_name.as_str());
        let suffix = if plain { "" } else { "::text" };
        // The cast is the one that the assignment made; where both sides have the type already it costs nothing.
        should.push(format!("(n.{}::{}){suffix}", ident(&column.name), real.kind));
        is.push(format!("t.{}{suffix}", ident(&column.build)));
    }
    (format!("ROW({})", should.join(", ")), format!("ROW({})", is.join(", ")))
}

/// Compares what is not compared yet.
pub(crate) fn verify(
    engine: &PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    target: &Relation,
    pace: &dyn Pace,
    ranges: Vec<Range>,
) -> Result<Work, Error> {
    let (should, is) = fingerprints(shape, target);
    let resynced = std::sync::atomic::AtomicU64::new(0);
    let mut work = each_chunk(engine, task, shape, pace, ranges, &|engine, range, go| {
        let rows = go.rows * VERIFY_FACTOR;
        let chunk = statement(task, shape, &should, &is, range, rows);
        task.point("verify.before");
        let (ended, done) = walk(engine, task, shape, Walk::Verify, range, &chunk, go.budget)?;
        task.point("verify.after");
        if ended != Ended::AtOddity || done.seen > 0 {
            return Ok((done, false));
        }
        let stepped = verify_chunk(engine, task, shape, &should, &is, range, rows, &resynced);
        moved(range, stepped)
    })?;
    work.resynced = resynced.into_inner();
    Ok(work)
}

/// The statement of a chunk of `rows` rows that are alike: its line in the ledger and the range's new place. What is not alike,
/// or fewer rows, is an oddity.
///
/// S is read once: its rows come in the order of the key, and the last one's key is where T's rows end. An order that was lost
/// on the way would be a difference of counts.
fn statement(task: &Task<'_>, shape: &Shape<'_>, should: &str, is: &str, range: &Range, rows: u64) -> String {
    let dual = Dual::new(shape, Way::Forward);
    let parts = shape.key.len();
    let low = range.at.as_ref().or(range.low.as_ref()).map(|_| place_parts(parts));
    let high = range.high.as_ref().map(|key| key.iter().map(|part| literal(part)).collect::<Vec<_>>());
    let source = format!(
        "(SELECT s.* FROM {} AS s WHERE {}{} ORDER BY {} LIMIT {rows}) AS s",
        dual.source,
        dual.between_parts("s", false, low.as_deref(), high.as_deref()),
        not_rejected(task, shape, &dual),
        dual.order("s"),
    );
    let keys: Vec<(String, String)> = dual
        .source_key
        .iter()
        .enumerate()
        .map(|(at, name)| (format!("s.{name}"), format!("_cutover_k{at}")))
        .collect();
    let last: String =
        keys.iter().map(|(_, key)| format!(", (array_agg(n.{key}))[{rows}] AS {key}")).collect();
    let texts: Vec<String> = keys.iter().map(|(_, key)| format!("{key}::text")).collect();
    let bound: Vec<String> = (0..parts).map(|at| format!("(SELECT k::json->>{at} FROM bound)")).collect();
    let (cursor, _) = Walk::Verify.columns();
    format!(
        "WITH a AS MATERIALIZED ({expected}), \
         bound AS MATERIALIZED (SELECT json_build_array({texts})::text AS k FROM a WHERE n = {rows}), \
         compared AS MATERIALIZED (SELECT a.n, EXISTS (SELECT 1 FROM bound) AND a.n = b.n AND a.h = b.h AS alike FROM a, ({found}) AS b), \
         line AS ({ledger} WHERE (SELECT alike FROM compared)), \
         moved AS (UPDATE {range_table} SET {cursor} = (SELECT k FROM bound) WHERE number = {number} AND (SELECT alike FROM compared)) \
         SELECT (SELECT k FROM bound), n, n, CASE WHEN alike THEN 'more' ELSE 'odd' END FROM compared",
        expected = expected(shape, should, &source, &keys, &last),
        texts = texts.join(", "),
        found = found(&dual, is, &dual.between_parts("t", true, low.as_deref(), Some(&bound))),
        ledger = ledger(
            task,
            shape,
            Walk::Verify,
            range.number,
            "(SELECT n FROM compared), 0, (SELECT n FROM compared), 0",
            "$1",
            "(SELECT k FROM bound)",
        ),
        range_table = shape.artefacts.own("range"),
        number = range.number,
    )
}

/// Count and fingerprint of the rows of `source` as T should have them, and `also`, over them and `keys`.
fn expected(shape: &Shape<'_>, should: &str, source: &str, keys: &[(String, String)], also: &str) -> String {
    let rows = shape.forward_with(source, keys);
    format!(
        "SELECT count(*) AS n, coalesce(sum(hash_record_extended({should}, 0)), 0) AS h{also} FROM ({rows}) AS n"
    )
}

/// Count and fingerprint of rows of T.
fn found(dual: &Dual<'_>, is: &str, in_target: &str) -> String {
    format!(
        "SELECT count(*) AS n, coalesce(sum(hash_record_extended({is}, 0)), 0) AS h FROM {} AS t WHERE {in_target}",
        dual.target
    )
}

/// One chunk by itself: what differs is found and synced, or is fatal.
#[allow(clippy::too_many_arguments, reason = "one caller; each is a different thing")]
fn verify_chunk(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    should: &str,
    is: &str,
    range: &Range,
    rows: u64,
    resynced: &std::sync::atomic::AtomicU64,
) -> Stepped {
    let dual = Dual::new(shape, Way::Forward);
    let low = range.at.as_deref().or(range.low.as_deref());
    let rest = dual.between("s", false, low, range.high.as_deref());
    let bound = engine.session.value(&format!(
        "SELECT json_build_array({})::text FROM {} AS s WHERE {rest} ORDER BY {} OFFSET {} LIMIT 1",
        dual.key_text("s"),
        dual.source,
        dual.order("s"),
        rows.saturating_sub(1),
    ))?;
    let bound = key_of(bound.as_ref());
    let high = bound.as_deref().or(range.high.as_deref());
    let source = format!(
        "(SELECT s.* FROM {} AS s WHERE {}{}) AS s",
        dual.source,
        dual.between("s", false, low, high),
        not_rejected(task, shape, &dual)
    );
    let since = Instant::now();
    let counted = engine
        .session
        .row(&format!(
            "SELECT a.n, b.n, a.n = b.n AND a.h = b.h FROM ({}) AS a, ({}) AS b",
            expected(shape, should, &source, &[], ""),
            found(&dual, is, &dual.between("t", true, low, high))
        ))?
        .unwrap_or_default();
    let held_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    let seen: u64 =
        counted.first().and_then(Option::as_deref).and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut repaired = 0;
    if counted.get(2).and_then(Option::as_deref) != Some("t") {
        repaired = repair(engine, task, shape, &dual, should, is, (low, high))?;
        resynced.fetch_add(repaired, std::sync::atomic::Ordering::Relaxed);
    }
    let is_done = bound.is_none();
    let high_text = high.map_or("NULL".to_owned(), |key| literal(&key_json(key)));
    engine
        .session
        .transaction(&format!(
            "{}; {}; {}",
            fence(task.epoch),
            ledger(
                task,
                shape,
                Walk::Verify,
                range.number,
                &format!("{seen}, {repaired}, {}, 0", seen - repaired.min(seen)),
                &low_text(range),
                &high_text
            ),
            advance(shape, Walk::Verify, range, bound.as_deref(), is_done),
        ))
        .map_err(unfence(task.epoch))?;
    let chunk = ChunkDone { seen, copied: seen, held_us, ..ChunkDone::default() };
    Ok((chunk, bound))
}

/// Finds the keys that differ, syncs them, and looks once more: what differs then stays different, and is fatal.
fn repair(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    should: &str,
    is: &str,
    (low, high): (Option<&[String]>, Option<&[String]>),
) -> Result<u64, Error> {
    let mut repaired = 0;
    for attempt in 0..3 {
        let differing = differing_keys(engine, task, shape, dual, should, is, low, high)?;
        if differing.is_empty() {
            return Ok(repaired);
        }
        if attempt == 2 {
            let sample = differing.iter().take(task.policy.sample);
            return Err(Error::Differs {
                table: shape.change.table.clone(),
                count: differing.len() as u64,
                sample: sample.map(|key| format!("{} = {}", shape.key.join(", "), key.join(", "))).collect(),
            });
        }
        for key in &differing {
            let lock = format!("SELECT 1 FROM {} AS s WHERE {} FOR SHARE", dual.source, key_is(dual, key));
            let sql = format!("{}; {lock}; {}", fence(task.epoch), dual.one(key));
            match engine.session.transaction(&sql) {
                Ok(_) => repaired += 1,
                Err(error) if error.is_busy() => {}
                Err(error) => return Err(unfence(task.epoch)(error)),
            }
        }
    }
    Ok(repaired)
}

fn key_is(dual: &Dual<'_>, key: &[String]) -> String {
    let parts = dual.source_key.iter().zip(key).zip(&dual.types);
    parts
        .map(|((name, value), kind)| format!("s.{name} = {}::{kind}", literal(value)))
        .collect::<Vec<_>>()
        .join(" AND ")
}

#[allow(clippy::too_many_arguments, reason = "one caller; each is a different thing")]
fn differing_keys(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    dual: &Dual<'_>,
    should: &str,
    is: &str,
    low: Option<&[String]>,
    high: Option<&[String]>,
) -> Result<Vec<Vec<String>>, Error> {
    let in_source = format!("{}{}", dual.between("s", false, low, high), not_rejected(task, shape, dual));
    let in_target = dual.between("t", true, low, high);
    // The key by its new names, as the shadow's rows have it.
    let new_key: Vec<String> = shape
        .key
        .iter()
        .map(|name| ident(shape.key_target(name).map_or(name, |target| &target.name)))
        .collect();
    let source_rows =
        shape.forward(&format!("(SELECT s.* FROM {} AS s WHERE {in_source}) AS s", dual.source));
    let of_new: Vec<String> = new_key
        .iter()
        .zip(shape.key_types())
        .map(|(name, (_, kind))| format!("n.{name}::{kind}::text"))
        .collect();
    let of_target: Vec<String> = dual.target_key.iter().map(|name| format!("t.{name}::text")).collect();
    let dirty =
        (1..=dual.types.len()).zip(shape.key_types()).map(|(at, (_, kind))| format!("d.k{at}::{kind}::text"));
    let dirty: Vec<String> = dirty.collect();
    let rows = engine.session.run(&format!(
        "SELECT coalesce(a.k, b.k) FROM \
           (SELECT json_build_array({})::text AS k, hash_record_extended({should}, 0) AS h FROM ({source_rows}) AS n) AS a \
           FULL JOIN (SELECT json_build_array({})::text AS k, hash_record_extended({is}, 0) AS h FROM {} AS t WHERE {in_target}) AS b ON a.k = b.k \
         WHERE a.h IS DISTINCT FROM b.h AND NOT EXISTS (SELECT 1 FROM {} AS d WHERE json_build_array({})::text = coalesce(a.k, b.k)) \
           AND NOT EXISTS (SELECT 1 FROM cutover.reject r WHERE r.migration = {} AND r.table_name = {} AND r.row_key = coalesce(a.k, b.k)) \
         LIMIT 1000",
        of_new.join(", "),
        of_target.join(", "),
        dual.target,
        dual.dirty(),
        dirty.join(", "),
        literal(task.migration),
        literal(shape.change.table.as_str()),
    ))?;
    Ok(rows.iter().filter_map(|row| key_of(row.first().and_then(Option::as_ref))).collect())
}
