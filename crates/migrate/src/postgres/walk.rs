//! Many chunks in one round trip: a procedure of the database runs a statement again and again and commits after each.
//!
//! In a loop that is driven from here, two processes sleep and wake for every chunk, and each waking may take a processor from
//! a client of the database at a bad moment. Inside the server the next chunk begins at once, so chunks can be so short that
//! nobody waits for them (decision 0044). What is out of the ordinary ends the walk, and is done one chunk at a time.

use std::time::{Duration, Instant};

use super::{
    PostgresEngine,
    copy::{Range, Walk, key_json, key_of, place_of},
    polite::unfence,
    session::{FENCED, literal},
    shape::Shape,
};
use crate::{
    engine::{ChunkDone, Task},
    error::Error,
};

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its time was over.
    InTime,
    /// The range is done.
    AtEnd,
    /// The next chunk is out of the ordinary; nothing was done about it.
    AtOddity,
}

/// The procedure; part of a change's functions. `_chunk` is a statement with the place where the chunk begins as `$1` (a key
/// as JSON, NULL for the start of the table). It moves the cursor and returns the next place, rows seen, rows done, and
/// `more`, `end` or `odd`.
pub(crate) fn procedure(name: &str) -> String {
    let body = format!(
        "DECLARE _begun timestamptz := clock_timestamp(); _since timestamptz := _begun; _next text; _n bigint; _d bigint; BEGIN LOOP \
           PERFORM 1 FROM cutover.lease WHERE one = 1 AND epoch = _epoch FOR SHARE; \
           IF NOT FOUND THEN RAISE EXCEPTION 'the lease is no longer ours' USING ERRCODE = '{FENCED}'; END IF; \
           EXECUTE _chunk INTO _next, _n, _d, _state USING _place; \
           IF _state = 'odd' THEN RETURN; END IF; \
           COMMIT; \
           _place := _next; _seen := _seen + _n; _done := _done + _d; \
           _longest := greatest(_longest, extract(epoch FROM clock_timestamp() - _since)); _since := clock_timestamp(); \
           EXIT WHEN _state <> 'more' OR extract(epoch FROM _since - _begun) >= _budget; \
         END LOOP; END"
    );
    format!(
        "CREATE OR REPLACE PROCEDURE {name}(_chunk text, _epoch bigint, _budget double precision, INOUT _place text, INOUT _seen bigint, \
           INOUT _done bigint, INOUT _longest double precision, INOUT _state text) LANGUAGE plpgsql AS {}",
        literal(&body)
    )
}

/// The parts of a key that is given as `$1`, as SQL text.
pub(crate) fn place_parts(parts: usize) -> Vec<String> {
    (0..parts).map(|at| format!("($1::json->>{at})")).collect()
}

/// Walks `way` from the range's place for about `budget`; at least one chunk. `range` knows its new place afterwards, also after an
/// error.
#[allow(clippy::too_many_arguments, reason = "two callers; each is a different thing")]
pub(crate) fn walk(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    way: Walk,
    range: &mut Range,
    chunk: &str,
    budget: Duration,
) -> Result<(Ended, ChunkDone), Error> {
    let place = range.at.as_ref().or(range.low.as_ref());
    // Without a place the statement has no lower bound: it is good for one chunk.
    let budget = if place.is_none() { Duration::ZERO } else { budget };
    let call = format!(
        "CALL {}({}, {}, {}, {}, 0, 0, 0, NULL)",
        shape.artefacts.own(PROCEDURE),
        literal(chunk),
        task.epoch,
        budget.as_secs_f64(),
        place.map_or_else(|| "NULL".to_owned(), |key| literal(&key_json(key))),
    );
    let since = Instant::now();
    let row = match engine.session.row(&call) {
        Ok(row) => row.unwrap_or_default(),
        Err(error) => {
            // The chunks before the one that failed are done. Without a connection this fails, too, and the run ends.
            if let Ok(place) = place_of(&mut engine.session, shape, way, range.number) {
                range.at = place;
            }
            return Err(unfence(task.epoch)(error));
        }
    };
    let took = since.elapsed();
    let number = |at: usize| {
        row.get(at).and_then(Option::as_deref).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0)
    };
    if let Some(key) = key_of(row.first().and_then(Option::as_ref)) {
        range.at = Some(key);
    }
    let (seen, copied) = (number(1) as u64, number(2) as u64);
    let done = ChunkDone {
        seen,
        copied,
        present: seen - copied.min(seen),
        held_us: (number(3) * 1e6) as u64,
        took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        ..ChunkDone::default()
    };
    let ended = match row.get(4).and_then(Option::as_deref) {
        Some("more") => Ended::InTime,
        Some("end") => Ended::AtEnd,
        _ => Ended::AtOddity,
    };
    Ok((ended, done))
}

/// The name of the procedure among the artefacts of a change.
pub(crate) const PROCEDURE: &str = "walk";
