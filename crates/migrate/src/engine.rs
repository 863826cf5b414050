//! What an engine does for the driver: one method per phase, for one table change.
//!
//! Rules for every method: it is idempotent (a crash, or a COMMIT of unknown outcome, is settled by calling it again); every
//! transaction it commits first passes [`crate::state::fence`]; it never holds a lock that clients wait for longer than
//! [`Policy::hold_ms`]; it calls [`Pace::between`] between chunks and [`Task::point`] before and after every commit, so that
//! tests can kill it there. Phases are run for all changes of a migration before the next phase begins.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cutover_core::model::Digest;

use crate::{
    catalog::Catalog,
    change::TableChange,
    error::{Error, Refusal},
    ir::Ident,
    state::{Phase, sql::Sql, sql::Value},
};

/// Limits and habits of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a lock that clients wait for may be held by one of our transactions, in milliseconds.
    pub hold_ms: u64,
    /// How long our DDL waits for a lock at most before it steps back, in milliseconds.
    pub lock_timeout_ms: u64,
    /// How long all attempts at one lock may take, in milliseconds.
    pub lock_patience_ms: u64,
    /// Rows of the first chunk.
    pub chunk_rows: u64,
    /// Threads that copy (PostgreSQL).
    pub workers: usize,
    /// How many keys may be left to re-sync under the lock of the swap.
    pub drain_under_lock: u64,
    /// Keys and reasons that an error names at most.
    pub sample: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hold_ms: 50,
            lock_timeout_ms: 80,
            lock_patience_ms: 600_000,
            chunk_rows: 1000,
            workers: 2,
            drain_under_lock: 1000,
            sample: 10,
        }
    }
}

/// The application versions that run side by side, as they appear in names of views and schemas: `1_4_0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Those before this migration, the newest first: of the migration before (`0` for the first), and of all before that.
    pub before: Vec<Before>,
    /// N+1: of this migration; `p<position>` when it names none.
    pub new: String,
}

/// A version of the code that does not know a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Its name.
    pub label: String,
    /// Whether it may still run: no contract since has waited for everything newer.
    pub runs: bool,
    /// The tables that came after it.
    pub unknown: BTreeSet<Ident>,
}

impl Versions {
    /// The versions that have to see a table in its old shape.
    pub fn shown<'s>(&'s self, table: &'s Ident) -> impl Iterator<Item = &'s str> {
        self.known(table).filter(|before| before.runs).map(|before| before.label.as_str())
    }

    /// The versions that may have a view of a table, also one that no code needs any more.
    pub fn seen<'s>(&'s self, table: &'s Ident) -> impl Iterator<Item = &'s str> {
        self.known(table).map(|before| before.label.as_str())
    }

    fn known<'s>(&'s self, table: &'s Ident) -> impl Iterator<Item = &'s Before> {
        // A version that several migrations share is the one that knows the last of them.
        self.before.iter().filter(move |before| before.label != self.new && !before.unknown.contains(table))
    }
}

/// What the engine works on, and with which right.
pub struct Task<'a> {
    /// The migration's id.
    pub migration: &'a str,
    /// Its position: the schema version it leads to.
    pub position: u64,
    /// The epoch of our lease: goes into [`crate::state::fence`].
    pub epoch: u64,
    /// The versions side by side.
    pub versions: &'a Versions,
    /// The limits.
    pub policy: &'a Policy,
    /// The row functions, by the number of their step.
    pub functions: &'a RowFunctions,
    /// Told what happens; in tests it may not return.
    pub watch: &'a dyn Watch,
}

impl Task<'_> {
    /// A place where a crash may happen: `backfill.commit` and the like.
    pub fn point(&self, name: &str) {
        self.watch.point(name);
    }
}

/// Whoever watches a run: progress output, tests that crash it. Methods may be called from several threads.
pub trait Watch: Sync {
    /// The run passes a place: `before`/`after` of something durable.
    fn point(&self, name: &str) {
        let _ = name;
    }

    /// A phase begins.
    fn phase(&self, phase: Phase) {
        let _ = phase;
    }

    /// Something to tell the operator, as a sentence without a period.
    fn says(&self, message: &str) {
        let _ = message;
    }

    /// Rows of a table done so far in this phase.
    fn progress(&self, table: &Ident, done: u64, of: u64) {
        let _ = (table, done, of);
    }
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {}

/// What a chunk did: the line of the ledger; or several that were done in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkDone {
    /// Rows of the old table that were read. `seen = copied + present + rejected`.
    pub seen: u64,
    /// Rows that were written.
    pub copied: u64,
    /// Rows that were there already, through dual write.
    pub present: u64,
    /// Rows that do not fit.
    pub rejected: u64,
    /// How long a transaction held its locks at most, in microseconds.
    pub held_us: u64,
    /// How long it took in all, in microseconds, where that was more than one transaction.
    pub took_us: u64,
    /// How long it waited for locks, in microseconds.
    pub waited_us: u64,
}

/// How the next chunk is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Go {
    /// Rows at most.
    pub rows: u64,
    /// How many workers may be at work: one while clients are, so that they do not wait for a processor behind us.
    pub workers: usize,
    /// For how long chunks may follow each other before [`Pace::between`] is called again; zero for one chunk.
    pub budget: Duration,
}

/// Decides between chunks: renews the lease, obeys pause, rate and cancel, measures, and waits. Shared by workers.
pub trait Pace: Sync {
    /// Called after every chunk, outside any transaction, with the connection of the caller. Returns when the next chunk may
    /// begin.
    ///
    /// # Errors
    /// Cancelled, fenced, past the deadline, or what the database says.
    fn between(&self, sql: &mut dyn Sql, table: &Ident, done: &ChunkDone) -> Result<Go, Error>;

    /// Called beside work that cannot be cut into chunks, with a connection of its own; waits while paused.
    ///
    /// # Errors
    /// Cancelled, past the deadline, or what the database says.
    fn obey(&self, sql: &mut dyn Sql) -> Result<(), Error> {
        let _ = sql;
        Ok(())
    }
}

/// Rows for a row function: the columns in the order of its `read`, then on return those of its `write`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChunk {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows; each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
}

/// New values for rows, computed outside the database: a transform in this process or a plugin. Has no access to the
/// database. May be called again for the same rows: it must not keep count.
pub trait RowFunction: Send {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// The SHA-256 of the program that computes them, where there is one: it goes into the plan, so that what was approved is
    /// what runs.
    fn digest(&self) -> Option<Digest> {
        None
    }

    /// Returns the `write` columns of every row, in the same order.
    ///
    /// # Errors
    /// [`Error::Custom`]; the chunk is rolled back.
    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error>;
}

/// The row functions of a migration, by the number of their step.
pub type RowFunctions = BTreeMap<usize, std::sync::Mutex<Box<dyn RowFunction>>>;

/// What a copy or a verification did in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows read.
    pub seen: u64,
    /// Rows written, or compared.
    pub done: u64,
    /// Keys that were synced again because clients wrote them meanwhile.
    pub resynced: u64,
    /// The longest time a lock that clients wait for was held, in microseconds.
    pub longest_hold_us: u64,
}

impl Work {
    /// Adds what another part did.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.done += other.done;
        self.resynced += other.resynced;
        self.longest_hold_us = self.longest_hold_us.max(other.longest_hold_us);
    }
}

/// What happens to rows that cannot go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The rollback is refused and names them.
    Refuse,
    /// They are lost; the operator said so.
    Accept,
}

/// An expression that has to be valid over the rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprCheck {
    /// A query that can be prepared only if the expression is valid.
    pub query: String,
    /// What to say about it: `up of column amount`.
    pub what: String,
}

/// A database of one kind, on one connection; may open more.
pub trait Engine: Sql {
    /// Makes the place for state (schema `cutover`; tables by [`crate::state::install`]) and checks what the engine needs
    /// on a connection: versions, settings.
    ///
    /// # Errors
    /// What the database says; a refusal when it is too old.
    fn prepare(&mut self) -> Result<(), Error>;

    /// Another connection to the same database with the same rights, for state, probes and heartbeats.
    ///
    /// # Errors
    /// What the database says.
    fn another(&self) -> Result<Box<dyn Sql + Send>, Error>;

    /// A copy of the whole database for a rehearsal; `name` goes into what it is called.
    ///
    /// # Errors
    /// What the database says; a refusal where one cannot be made.
    fn staging(&mut self, name: &str) -> Result<Box<dyn crate::run::Staging>, Error>;

    /// The statements with which a connection sees the schema of a version, as it is in the names of views.
    ///
    /// # Errors
    /// What the database says.
    fn prelude(&mut self, version: &str) -> Result<Vec<String>, Error> {
        let schema = Ident::ours(format!("app_v{version}")).map_err(|error| {
            Error::refused(error.to_string(), "Give a version as it is in the names of views.")
        })?;
        Ok(vec![format!("SET search_path = {}, public", schema.quoted())])
    }

    /// Reads the catalog of these tables (those that exist), and the facts. Read-only; takes no lock that anybody waits for.
    ///
    /// # Errors
    /// What the database says.
    fn observe(&mut self, tables: &[Ident]) -> Result<Catalog, Error>;

    /// Prepares each query without running it.
    ///
    /// # Errors
    /// [`Error::Refused`] with the engine's words for each that is not valid.
    fn validate(&mut self, checks: &[ExprCheck]) -> Result<(), Error>;

    /// Looks for rows that the new shape cannot hold, before anything is changed: NULLs, duplicates, casts, checks.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    fn pre_scan(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// SHADOW_CREATE: the new shape, unseen by clients of the old one.
    ///
    /// # Errors
    /// See [`Error`].
    fn expand(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// DUAL_WRITE: from now on what clients write reaches the new shape or is remembered; returns after every writer that
    /// does not know it yet has ended (the barrier).
    ///
    /// # Errors
    /// See [`Error`].
    fn dual_write(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// BACKFILL: copies or fills in what exists, from where the ledger says; builds indexes.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Rejected`] for rows that do not fit.
    fn backfill(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error>;

    /// CONSISTENCY_CHECK: compares every row, repairs what clients wrote meanwhile, validates constraints.
    ///
    /// # Errors
    /// [`Error::Differs`] for differences that stay after a repair.
    fn verify(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error>;

    /// ATOMIC_SWAP: makes all changes of the migration the ones that are used, in one transaction, together with `record`,
    /// which writes the new phase into state.
    ///
    /// # Errors
    /// [`Error::Locked`] while rows that were set aside wait for approval; see [`Error`].
    fn swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<Work, Error>;

    /// After the swap, outside its transaction: validates what the swap could only promise, analyses. Idempotent.
    ///
    /// # Errors
    /// See [`Error`].
    fn settle(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// Why what goes is still in use, one line of evidence each; empty when no use was seen.
    ///
    /// # Errors
    /// What the database says.
    fn uses(&mut self, task: &Task<'_>, change: &TableChange) -> Result<Vec<String>, Error>;

    /// Contract: removes the old shape, triggers and views of the old version. No way back.
    ///
    /// # Errors
    /// See [`Error`].
    fn contract(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// Takes back everything before the swap; the old shape was never touched. Tolerates steps that never happened.
    ///
    /// # Errors
    /// See [`Error`].
    fn undo_before_swap(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error>;

    /// What a rollback after the swap would lose, one line each; empty when nothing.
    ///
    /// # Errors
    /// What the database says.
    fn losses(&mut self, task: &Task<'_>, changes: &[TableChange]) -> Result<Vec<Refusal>, Error>;

    /// The swap reversed, for all changes in one transaction, together with `record`. Writes made since are in the old shape.
    /// What it takes out of use may be left for [`tidy`](Self::tidy).
    ///
    /// # Errors
    /// [`Error::Locked`] with what would be lost, unless that is accepted.
    fn undo_after_swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        loss: Loss,
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<(), Error>;

    /// Removes what was taken out of use and could not be removed at once: takes its time, so that nobody waits for a lock.
    /// Safe whenever, and again after a crash.
    ///
    /// # Errors
    /// What the database says.
    fn tidy(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether the catalog says that a phase is done for a change: settles crashes and COMMITs of unknown outcome.
    ///
    /// # Errors
    /// What the database says.
    fn is_done(&mut self, task: &Task<'_>, phase: Phase, change: &TableChange) -> Result<bool, Error>;
}
