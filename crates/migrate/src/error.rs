//! Why a migration is refused, or did not succeed.

use std::{fmt, path::PathBuf};

use crate::ir::{Difference, Ident};

/// Something that will not be done, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// What is refused and why, as a fragment.
    pub what: String,
    /// The way out: a whole sentence.
    pub way_out: String,
}

impl Refusal {
    /// A refusal with its way out.
    pub fn new(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { what: what.into(), way_out: way_out.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)
    }
}

/// What kind of thing the database said, as far as the protocol treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlErrorKind {
    /// A lock was not granted in time (`55P03`, `SQLITE_BUSY`): try again.
    Busy,
    /// Deadlock or serialization failure (`40P01`, `40001`): try again.
    Conflict,
    /// A unique index does not allow the row (`23505`).
    Unique,
    /// Another constraint does not allow the row (`23xxx`), or a value does not fit its type (`22xxx`).
    Data,
    /// The server is gone, or ends the connection (`08xxx`, `57P0x`): connect again and read the state.
    Connection,
    /// Everything else.
    Other,
}

/// What the database said to one statement.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} (in `{statement}`)")]
pub struct SqlError {
    /// What the protocol makes of it.
    pub kind: SqlErrorKind,
    /// The engine's own code: SQLSTATE, or SQLite's extended result code.
    pub code: String,
    /// The engine's words.
    pub message: String,
    /// The statement, shortened.
    pub statement: String,
}

impl SqlError {
    /// An error about `statement`, of which the first 200 characters are kept on one line.
    pub fn new(
        kind: SqlErrorKind,
        code: impl Into<String>,
        message: impl Into<String>,
        statement: &str,
    ) -> Self {
        let statement =
            statement.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
        Self { kind, code: code.into(), message: message.into(), statement }
    }
}

/// Why a migration file is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {says}")]
pub struct FileError {
    /// Where: `step 2 (add_column)`, or the file as a whole.
    pub at: String,
    /// What is wrong, with a suggestion where there is one.
    pub says: String,
}

/// Why planning or running a migration ended without success. Refusals changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The migration file is not valid.
    #[error("migration is not valid: {0}")]
    File(#[from] FileError),
    /// A file could not be read or written.
    #[error("failed to {what} `{}`", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The URL names no database this crate can speak to.
    #[error("`{0}` is no database URL")]
    Url(String),
    /// There is no such database file.
    #[error("there is no database file `{}`", .0.display())]
    NoFile(std::path::PathBuf),
    /// The planner refuses, for these reasons.
    #[error("refused: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// A finished or running migration of this id has another hash.
    #[error("migration `{id}` was edited after it was applied: {}", list(.differences))]
    Edited {
        /// The migration.
        id: String,
        /// Field by field.
        differences: Vec<Difference>,
    },
    /// The migration does not follow the one that was applied last.
    #[error("migration `{id}` comes after {}, but the last one applied is {}", name(.after), name(.last))]
    OutOfOrder {
        /// The migration.
        id: String,
        /// What it says it follows.
        after: Option<String>,
        /// What was applied last.
        last: Option<String>,
    },
    /// Another migration has begun and is neither finished nor rolled back.
    #[error("migration `{0}` is not finished")]
    Unfinished(String),
    /// No migration of this id, or none at all, is known here.
    #[error("no migration {0} is known to this database")]
    Unknown(String),
    /// What was asked for does not fit the phase the migration is in.
    #[error("migration `{id}` is in phase {phase}: {says}")]
    Phase {
        /// The migration.
        id: String,
        /// Its phase.
        phase: crate::state::Phase,
        /// What cannot be done now.
        says: String,
    },
    /// Another migrator holds the lease.
    #[error("`{owner}` is migrating this database (its lease ends in {seconds} s unless it is renewed)")]
    Held {
        /// Who.
        owner: String,
        /// For how long, at least.
        seconds: u64,
    },
    /// Our lease was taken over: another migrator has gone on.
    #[error("another migrator took over: epoch {epoch} is over")]
    Fenced {
        /// Our epoch.
        epoch: u64,
    },
    /// The plan that was approved is not the one this database needs now.
    #[error("the plan has changed: approved {approved}, needed now {needed}")]
    Drift {
        /// The hash that was given.
        approved: String,
        /// The hash that planning yields now.
        needed: String,
    },
    /// The history in the database was altered.
    #[error("the history is broken at entry {entry}: {says}")]
    History {
        /// The first entry that does not fit, from 1.
        entry: u64,
        /// What does not fit.
        says: String,
    },
    /// Rows that the new shape cannot hold.
    #[error("{count} row(s) of `{table}` do not fit: {}", .sample.join("; "))]
    Rejected {
        /// The table.
        table: Ident,
        /// How many were found.
        count: u64,
        /// Keys and reasons of the first ones.
        sample: Vec<String>,
    },
    /// The verification found rows that differ.
    #[error("verification of `{table}` found {count} difference(s): {}", .sample.join("; "))]
    Differs {
        /// The table.
        table: Ident,
        /// How many were found.
        count: u64,
        /// The first ones.
        sample: Vec<String>,
    },
    /// A plugin or a custom step failed.
    #[error("{name} failed: {says}")]
    Custom {
        /// The plugin or the transform.
        name: String,
        /// What happened.
        says: String,
    },
    /// The program of a plugin is not the one that the plan names.
    #[error("the plugin `{name}` has changed: approved {approved}, found {found}")]
    Plugin {
        /// `NAME@VERSION`.
        name: String,
        /// The SHA-256 in the plan, or `none`.
        approved: String,
        /// The SHA-256 of what is there now.
        found: String,
    },
    /// Contract, a rollback, or a swap with rows that were set aside, waits for somebody to decide, for these reasons.
    #[error("not yet: {}", list(.0))]
    Locked(Vec<Refusal>),
    /// The deadline of the migration passed; it is paused where it was.
    #[error("deadline of {seconds} s passed in phase {phase}")]
    Deadline {
        /// The deadline.
        seconds: u64,
        /// Where it was.
        phase: crate::state::Phase,
    },
    /// Somebody asked the running migration to stop.
    #[error("cancelled")]
    Cancelled,
    /// The database refused a statement.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// What the database holds of our own state cannot be read.
    #[error("state in the database is damaged: {0}")]
    Damaged(String),
    /// The migration failed and was undone; the cause follows.
    #[error("migration `{id}` failed in phase {phase} and was rolled back")]
    RolledBack {
        /// The migration.
        id: String,
        /// Where it failed.
        phase: crate::state::Phase,
        /// Why.
        #[source]
        cause: Box<Error>,
    },
    /// The migration failed and stays as it is: `rollback` undoes it, `apply` tries again.
    #[error("migration `{id}` failed in phase {phase}; what was done so far stays")]
    Stopped {
        /// The migration.
        id: String,
        /// Where it failed.
        phase: crate::state::Phase,
        /// Why.
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    /// One refusal.
    pub fn refused(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self::Refused(vec![Refusal::new(what, way_out)])
    }

    /// Whether trying the same again may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sql(SqlError { kind: SqlErrorKind::Busy | SqlErrorKind::Conflict, .. }))
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn name(id: &Option<String>) -> String {
    id.as_ref().map_or_else(|| "none".to_owned(), |id| format!("`{id}`"))
}
