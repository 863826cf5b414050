//! The intermediate representation of a migration: what files and the builder yield, what the planner reads.
//!
//! Values only. The identity of a migration is the SHA-256 of its canonical JSON, so comments, key order and blank lines
//! of a file do not count. Read [`Migration`] first, then [`Op`].

mod canonical;
mod difference;
mod expr;
mod ident;
mod op;
mod types;

use std::fmt;

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

pub use canonical::canonical_json;
pub use difference::{Difference, differences};
pub use expr::{Expr, Literal};
pub use ident::{Ident, IdentError};
pub use op::{Column, DefaultChange, ForeignKeyAction, OnReject, Op, References};
pub use types::{Type, TypeError};

/// The two engines, as far as SQL text differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// PostgreSQL 14 or later.
    Postgres,
    /// SQLite 3.37 or later (bundled).
    Sqlite,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        })
    }
}

/// What happens by itself when a step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Undo {
    /// What was done is undone at once.
    #[default]
    Automatic,
    /// What was done stays until somebody says `rollback` or `apply` again.
    Manual,
}

/// How a migration is run. Absent fields take the policy's values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOptions {
    /// The longest a lock that clients wait for may be held by an estimate, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hold_ms: Option<u64>,
    /// After this many seconds the migration stops and reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
    /// Rows per second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// One migration: steps that lead from one schema version to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Version of this representation; 1.
    pub format: u32,
    /// Its name: 1 to 100 characters of `A-Z a-z 0-9 _ - .`.
    pub id: String,
    /// The migration it follows; `None` for the first. There are no forks: the position in the line is the schema version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The application version that needs the new shape (N+1); contract waits until the fleet has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_version: Option<String>,
    /// What happens when a step fails.
    #[serde(default)]
    pub rollback: Undo,
    /// How it is run. Not part of the identity.
    #[serde(default)]
    pub run: RunOptions,
    /// The steps, in order.
    pub steps: Vec<Op>,
}

impl Migration {
    /// A migration without steps: the start of the builder.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            format: 1,
            id: id.into(),
            after: None,
            app_version: None,
            rollback: Undo::default(),
            run: RunOptions::default(),
            steps: Vec::new(),
        }
    }

    /// Says which migration it follows.
    #[must_use]
    pub fn after(mut self, id: impl Into<String>) -> Self {
        self.after = Some(id.into());
        self
    }

    /// Says which application version needs it.
    #[must_use]
    pub fn app_version(mut self, version: impl Into<String>) -> Self {
        self.app_version = Some(version.into());
        self
    }

    /// Says what happens when a step fails.
    #[must_use]
    pub fn rollback(mut self, undo: Undo) -> Self {
        self.rollback = undo;
        self
    }

    /// Adds a step.
    #[must_use]
    pub fn step(mut self, op: Op) -> Self {
        self.steps.push(op);
        self
    }

    /// The canonical JSON (RFC 8785) of everything that is part of the identity: all but `run`.
    pub fn canonical(&self) -> String {
        let mut value = serde_json::to_value(self).expect("an IR of strings and integers is JSON");
        if let Some(object) = value.as_object_mut() {
            object.remove("run");
        }
        canonical_json(&value)
    }

    /// SHA-256 of [`canonical`](Self::canonical): the identity beside the id.
    pub fn hash(&self) -> Digest {
        Digest::of(self.canonical().as_bytes())
    }
}
