//! The state of migrations, which lives in the target database, and the code on it: once, for both engines.
//!
//! Owns the lease, the record of each migration with its phase, the ledger of chunks, and the history with its hash chain.
//! Engines write the ledger in the transaction of the work. Read [`Phase`] first, then [`sql::Sql`].

pub mod history;
pub mod lease;
pub mod record;
pub mod reject;
pub mod sql;

use std::{fmt, str::FromStr};

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

use crate::{error::Error, ir::Dialect, state::sql::Sql};

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Recorded; nothing was done.
    Idle,
    /// The new shape comes into being beside the old one: shadow tables, new columns.
    ShadowCreate,
    /// What clients write reaches both shapes; older writers are waited for.
    DualWrite,
    /// Existing rows are copied or filled in; indexes are built.
    Backfill,
    /// Every row of both shapes is compared; constraints are validated.
    ConsistencyCheck,
    /// The new shape becomes the one that is used.
    AtomicSwap,
    /// Swapped: the old shape is kept equal until contract removes it. The phase a successful `apply` ends in.
    Cleanup,
    /// Undone.
    RolledBack,
}

/// The name of a table of state as SQL text: `cutover.lease` in PostgreSQL, `_cutover_lease` in SQLite.
pub fn table(dialect: Dialect, name: &str) -> String {
    match dialect {
        Dialect::Postgres => format!("cutover.{name}"),
        Dialect::Sqlite => format!("_cutover_{name}"),
    }
}

/// A name for an artefact of ours: `_cutover_<what>_<hash>`, at most 63 bytes, the same for the same parts.
pub fn artefact(what: &str, parts: &[&str]) -> String {
    let digest = Digest::of(parts.join("\0").as_bytes()).to_string();
    format!("_cutover_{what}_{}", &digest[..16])
}

/// Creates the tables of state where they are absent. PostgreSQL's schema `cutover` must exist ([`crate::engine::Engine::prepare`]).
///
/// # Errors
/// What the database says.
pub fn install(sql: &mut dyn Sql) -> Result<(), Error> {
    let dialect = sql.dialect();
    let probe = table(dialect, "probe");
    let tables = TABLES
        .iter()
        .map(|(name, columns)| format!("CREATE TABLE IF NOT EXISTS {} ({columns})", table(dialect, name)));
    let row = format!("INSERT INTO {probe} (one, beat) VALUES (1, 0) ON CONFLICT DO NOTHING");
    sql.execute(&tables.chain([row]).collect::<Vec<_>>().join("; "), &[])?;
    Ok(())
}

/// Whether the tables of state exist. Reads only.
///
/// # Errors
/// What the database says.
pub fn is_installed(sql: &mut dyn Sql) -> Result<bool, Error> {
    let query = match sql.dialect() {
        Dialect::Postgres => {
            "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('cutover.history')"
        }
        Dialect::Sqlite => {
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_cutover_history'"
        }
    };
    let rows = sql.query(query, &[])?;
    Ok(rows.first().and_then(|row| row.first()).map(sql::Value::integer).transpose()?.unwrap_or(0) > 0)
}

/// The tables of state. Types are those that mean the same in both dialects.
const TABLES: &[(&str, &str)] = &[
    (
        "lease",
        "one bigint NOT NULL PRIMARY KEY CHECK (one = 1), owner text NOT NULL, epoch bigint NOT NULL, expires_ms bigint NOT NULL",
    ),
    (
        "migration",
        "id text NOT NULL PRIMARY KEY, position bigint NOT NULL, hash text NOT NULL, source text NOT NULL, plan text NOT NULL, \
         phase text NOT NULL, trail text NOT NULL, paused bigint NOT NULL, cancelled bigint NOT NULL, failed text, rate bigint, \
         author text NOT NULL, app_version text, contracted bigint NOT NULL, ticks_ms bigint NOT NULL, clocks text, \
         began_ms bigint NOT NULL, changed_ms bigint NOT NULL",
    ),
    (
        "chunk",
        "migration text NOT NULL, table_name text NOT NULL, kind text NOT NULL, part bigint NOT NULL, number bigint NOT NULL, \
         low text, high text, seen bigint NOT NULL, copied bigint NOT NULL, present bigint NOT NULL, rejected bigint NOT NULL, \
         at_ms bigint NOT NULL, PRIMARY KEY (migration, table_name, kind, part, number)",
    ),
    (
        "reject",
        "migration text NOT NULL, table_name text NOT NULL, row_key text NOT NULL, reason text NOT NULL, row_text text, \
         approved bigint NOT NULL, PRIMARY KEY (migration, table_name, row_key)",
    ),
    (
        "undo",
        "migration text NOT NULL, table_name text NOT NULL, row_key text NOT NULL, columns text NOT NULL, \
         PRIMARY KEY (migration, table_name, row_key)",
    ),
    ("rehearsal", "hash text NOT NULL PRIMARY KEY, figures text NOT NULL"),
    // What the probe writes, to feel what clients feel.
    ("probe", "one bigint NOT NULL PRIMARY KEY CHECK (one = 1), beat bigint NOT NULL"),
    (
        "history",
        "number bigint NOT NULL PRIMARY KEY, migration text NOT NULL, event text NOT NULL, entry text NOT NULL, \
         previous text NOT NULL, hash text NOT NULL",
    ),
];

/// Passes only while our lease is the current one. The first statement of every transaction we commit: in PostgreSQL it locks
/// the lease, so that a takeover waits for us or we fail.
///
/// # Errors
/// [`Error::Fenced`].
pub fn fence(sql: &mut dyn Sql, epoch: u64) -> Result<(), Error> {
    let suffix = match sql.dialect() {
        Dialect::Postgres => " FOR SHARE",
        Dialect::Sqlite => "",
    };
    let query =
        format!("SELECT epoch FROM {} WHERE one = 1 AND epoch = $1{suffix}", table(sql.dialect(), "lease"));
    match sql.query(&query, &[epoch.into()])?.is_empty() {
        true => Err(Error::Fenced { epoch }),
        false => Ok(()),
    }
}

/// The commit of this transaction need not wait for the disk: for what is worth nothing without a later commit, which is
/// behind it in the log. A server that crashes before that forgets both.
///
/// # Errors
/// What the database says.
pub fn unflushed(sql: &mut dyn Sql) -> Result<(), Error> {
    if sql.dialect() == Dialect::Postgres {
        sql.execute("SET LOCAL synchronous_commit = off", &[])?;
    }
    Ok(())
}

/// The database's clock, in milliseconds since 1970.
///
/// # Errors
/// What the database says.
pub fn clock_ms(sql: &mut dyn Sql) -> Result<i64, Error> {
    let query = match sql.dialect() {
        Dialect::Postgres => "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        Dialect::Sqlite => "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    };
    let rows = sql.query(query, &[])?;
    rows.first().and_then(|row| row.first()).ok_or_else(|| Error::Damaged("no clock".to_owned()))?.integer()
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::ShadowCreate,
        Self::DualWrite,
        Self::Backfill,
        Self::ConsistencyCheck,
        Self::AtomicSwap,
        Self::Cleanup,
        Self::RolledBack,
    ];

    /// The word in state and output.
    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "IDLE",
            Self::ShadowCreate => "SHADOW_CREATE",
            Self::DualWrite => "DUAL_WRITE",
            Self::Backfill => "BACKFILL",
            Self::ConsistencyCheck => "CONSISTENCY_CHECK",
            Self::AtomicSwap => "ATOMIC_SWAP",
            Self::Cleanup => "CLEANUP",
            Self::RolledBack => "ROLLED_BACK",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Phase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|phase| phase.word() == text);
        found.ok_or_else(|| Error::Damaged(format!("`{text}` is no phase")))
    }
}
