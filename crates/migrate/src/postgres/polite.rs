//! Taking strong locks without making clients queue (SCHEMA.md, section 5.7).
//!
//! A client that meets a waiting ACCESS EXCLUSIVE request queues behind it, so no request may wait long. First SHARE UPDATE
//! EXCLUSIVE, which no client waits for, with a generous timeout: it evicts autovacuum, which yields only after
//! `deadlock_timeout`, and keeps other DDL away while we prepare. Then short attempts at the strong locks, in the order in
//! which clients take theirs (views before tables), giving way in between for 0.2 to 0.6 s.

use std::time::{Duration, Instant};

use super::session::{MOVED, Session, code};
use crate::{engine::Task, error::Error};

/// The locks of one change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    /// Tables of which other DDL is kept away first: qualified.
    pub(crate) gentle: Vec<String>,
    /// What is locked, with the mode, in this order.
    pub(crate) strong: Vec<(String, &'static str)>,
}

impl Locks {
    /// ACCESS EXCLUSIVE on one table.
    pub(crate) fn exclusive(table: &str) -> Self {
        Self { gentle: vec![table.to_owned()], strong: vec![(table.to_owned(), "ACCESS EXCLUSIVE")] }
    }
}

/// What a locked transaction did.
#[derive(Debug)]
pub(crate) struct Held {
    /// From the grant of the first strong lock to the end of COMMIT.
    pub(crate) hold: Duration,
}

/// SQL that raises our error when the lease is no longer ours, and locks it while it is.
pub(crate) fn fence(epoch: u64) -> String {
    format!(
        "DO $cutover$ BEGIN PERFORM 1 FROM cutover.lease WHERE one = 1 AND epoch = {epoch} FOR SHARE; \
         IF NOT FOUND THEN RAISE EXCEPTION 'the lease is no longer ours' USING ERRCODE = '{}'; END IF; END $cutover$",
        super::session::FENCED
    )
}

/// Turns our own SQLSTATE back into what it stands for.
pub(crate) fn unfence(epoch: u64) -> impl Fn(Error) -> Error {
    move |error| if code(&error) == Some(super::session::FENCED) { Error::Fenced { epoch } } else { error }
}

/// Runs DDL politely in one transaction of its own: fence, locks, the statements of `prepare`, COMMIT.
///
/// `prepare` runs under the gentle locks and returns what is run under the strong ones, in one round trip. When that fails
/// because a lock was not granted, or with our `MOVED` state, everything is released and tried again until the policy's
/// patience ends.
///
/// # Errors
/// The last `Busy` error when patience ended; whatever else the server says.
pub(crate) fn ddl(
    session: &mut Session,
    task: &Task<'_>,
    locks: &Locks,
    prepare: &mut dyn FnMut(&mut Session) -> Result<String, Error>,
) -> Result<Held, Error> {
    let mut body = |session: &mut Session, statements: &str| session.run(statements).map(drop);
    locked(session, task, locks, prepare, &mut || Ok(()), &mut body)
}

/// As [`ddl`], with a body that may take more than one round trip under the locks: it is handed what `prepare` returned.
/// `ready` is called before each attempt at the strong locks.
pub(crate) fn locked(
    session: &mut Session,
    task: &Task<'_>,
    locks: &Locks,
    prepare: &mut dyn FnMut(&mut Session) -> Result<String, Error>,
    ready: &mut dyn FnMut() -> Result<(), Error>,
    body: &mut dyn FnMut(&mut Session, &str) -> Result<(), Error>,
) -> Result<Held, Error> {
    let result = attempts(session, task, locks, prepare, ready, body);
    if result.is_err() {
        session.roll_back();
    }
    result.map_err(unfence(task.epoch))
}

fn attempts(
    session: &mut Session,
    task: &Task<'_>,
    locks: &Locks,
    prepare: &mut dyn FnMut(&mut Session) -> Result<String, Error>,
    ready: &mut dyn FnMut() -> Result<(), Error>,
    body: &mut dyn FnMut(&mut Session, &str) -> Result<(), Error>,
) -> Result<Held, Error> {
    let deadline = Instant::now() + Duration::from_millis(task.policy.lock_patience_ms);
    let strong: String =
        locks.strong.iter().map(|(table, mode)| format!("LOCK TABLE {table} IN {mode} MODE; ")).collect();
    loop {
        let statements = match gentle(session, locks).and_then(|()| prepare(session)) {
            Ok(statements) => statements,
            Err(error) if error.is_busy() && Instant::now() < deadline => {
                session.roll_back();
                give_way();
                continue;
            }
            Err(error) => return Err(error),
        };
        loop {
            let take = format!(
                "SAVEPOINT polite; SET LOCAL lock_timeout = '{}ms'; {}; {strong}SELECT 1",
                task.policy.lock_timeout_ms,
                fence(task.epoch)
            );
            ready()?;
            let granted = session.run(&take);
            let since = Instant::now();
            let outcome = granted.and_then(|_| body(session, &statements)).and_then(|()| {
                session.run("COMMIT")?;
                Ok(Held { hold: since.elapsed() })
            });
            match outcome {
                Ok(held) => return Ok(held),
                Err(error) if Instant::now() < deadline && code(&error) == Some(MOVED) => {
                    session.roll_back();
                    give_way();
                    break;
                }
                Err(error) if Instant::now() < deadline && error.is_busy() => {
                    session.run("ROLLBACK TO SAVEPOINT polite; RELEASE SAVEPOINT polite")?;
                    give_way();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The lease is not locked yet: whoever renews it must not wait for us while we wait.
fn gentle(session: &mut Session, locks: &Locks) -> Result<(), Error> {
    let tables: String = locks
        .gentle
        .iter()
        .map(|table| format!("LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE; "))
        .collect();
    session.run(&format!("BEGIN; SET LOCAL lock_timeout = '5s'; {tables}SELECT 1")).map(drop)
}

/// Lets clients through before the next attempt.
pub(crate) fn give_way() {
    std::thread::sleep(Duration::from_millis(rand::random_range(200..=600)));
}
