//! Plans: what will be done to which table, by which tactic, under which locks, and what a rollback would lose.
//!
//! Pure: a plan is a function of the migration, the catalog and the policy. `apply` runs exactly the plan whose hash was
//! approved. Read [`Plan`] first.

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    change::{TableChange, Tactic},
    ir::{Dialect, canonical_json},
};

/// One line of the printed plan: one step of the migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The number of the step, from 1.
    pub number: usize,
    /// The operation's word.
    pub op: String,
    /// What it is about: `users.phone`.
    pub target: String,
    /// How.
    pub tactic: Tactic,
    /// The lock that clients may wait for: `AE`, `SUE`, `W`, or `-`.
    pub lock: String,
    /// How long it is held, for people: `<20 ms`.
    pub hold: String,
    /// Whether the table is rewritten.
    pub rewrite: bool,
    /// Estimated time, in milliseconds.
    pub estimate_ms: u64,
    /// Estimated disk, in bytes.
    pub disk_bytes: u64,
    /// Whether it can be undone before the swap.
    pub undo_before: bool,
    /// Whether it can be undone after the swap, and how: `yes`, `until contract`, `no`.
    pub undo_after: String,
    /// What a rollback after the swap loses.
    pub lost: Option<String>,
}

/// What is there before and after, exactly (case X15).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// What comes: `column users.phone`.
    pub added: Vec<String>,
    /// What goes.
    pub removed: Vec<String>,
    /// What changes: `column users.email -> email_address`.
    pub modified: Vec<String>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The migration's id.
    pub id: String,
    /// The migration's hash.
    pub hash: Digest,
    /// The position it leads to: the schema version.
    pub position: u64,
    /// The digest of the catalog it was made on.
    pub on_schema: Digest,
    /// The engine.
    pub dialect: Dialect,
    /// The engine's version.
    pub server_version: String,
    /// What is done, per table.
    pub changes: Vec<TableChange>,
    /// What is done, per step.
    pub steps: Vec<PlannedStep>,
    /// Whether every step only adds: then code of both versions runs on it without views.
    pub additive: bool,
    /// Indexes that are built without blocking writers.
    pub online_indexes: Vec<String>,
    /// What comes, goes and changes.
    pub preview: Preview,
    /// Disk needed at most, in bytes.
    pub disk_bytes: u64,
    /// Things to know before approving.
    pub warnings: Vec<String>,
}

impl Plan {
    /// What is approved: SHA-256 of everything that decides what is done; estimates, warnings and versions do not count.
    pub fn approval(&self) -> Digest {
        let value = serde_json::json!({
            "id": self.id,
            "hash": self.hash,
            "position": self.position,
            "on_schema": self.on_schema,
            "dialect": self.dialect,
            "changes": self.changes,
        });
        Digest::of(canonical_json(&value).as_bytes())
    }
}
