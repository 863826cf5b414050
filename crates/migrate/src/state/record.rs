//! The record of one migration: what it is, what was planned, and where it is.

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

use super::{
    Phase, clock_ms,
    sql::{Sql, Value},
    table,
};
use crate::{
    error::Error,
    grace::Ticks,
    ir::{Dialect, Migration},
    plan::Plan,
};

/// When a phase began, by the database's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The phase.
    pub phase: Phase,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// A migration in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The migration as it was applied.
    pub migration: Migration,
    /// Its position: the schema version it leads to.
    pub position: u64,
    /// Its hash; with a rebaseline the newest one.
    pub hash: Digest,
    /// The plan that was approved.
    pub plan: Plan,
    /// Where it is.
    pub phase: Phase,
    /// The phases it went through.
    pub trail: Vec<Passed>,
    /// Whether somebody paused it.
    pub paused: bool,
    /// Whether somebody cancelled it.
    pub cancelled: bool,
    /// Why it failed, if it did and was not undone.
    pub failed: Option<String>,
    /// Rows per second at most, if somebody said so.
    pub rate: Option<u64>,
    /// Who asked for it.
    pub author: String,
    /// Whether the old shape is gone.
    pub contracted: bool,
    /// How much of its grace period has passed.
    pub ticks: Ticks,
    /// When it began, by the database's clock, in milliseconds since 1970.
    pub began_ms: i64,
    /// When it changed last.
    pub changed_ms: i64,
}

impl Record {
    /// The migration's id.
    pub fn id(&self) -> &str {
        &self.migration.id
    }

    /// Whether it is neither finished nor undone.
    pub fn is_unfinished(&self) -> bool {
        !matches!(self.phase, Phase::Cleanup | Phase::RolledBack)
    }
}

const COLUMNS: &str = "position, hash, source, plan, phase, trail, paused, cancelled, failed, rate, author, contracted, ticks_ms, \
                       clocks, began_ms, changed_ms";

/// Every migration that this database knows, by position.
///
/// # Errors
/// [`Error::Damaged`] when a record cannot be read.
pub fn all(sql: &mut dyn Sql) -> Result<Vec<Record>, Error> {
    let query =
        format!("SELECT {COLUMNS} FROM {} ORDER BY position, began_ms", table(sql.dialect(), "migration"));
    sql.query(&query, &[])?.iter().map(|row| parse(row)).collect()
}

/// One migration.
///
/// # Errors
/// [`Error::Damaged`] when its record cannot be read.
pub fn find(sql: &mut dyn Sql, id: &str) -> Result<Option<Record>, Error> {
    select(sql, id, "")
}

/// The record as it is and stays until the end of the transaction: orders that come meanwhile wait for that.
///
/// # Errors
/// [`Error::Unknown`]; [`Error::Damaged`] when it cannot be read.
pub fn hold(sql: &mut dyn Sql, id: &str) -> Result<Record, Error> {
    let lock = match sql.dialect() {
        Dialect::Postgres => " FOR UPDATE",
        // The transaction that writes has the whole database.
        Dialect::Sqlite => "",
    };
    select(sql, id, lock)?.ok_or_else(|| Error::Unknown(format!("`{id}`")))
}

fn select(sql: &mut dyn Sql, id: &str, lock: &str) -> Result<Option<Record>, Error> {
    let query = format!("SELECT {COLUMNS} FROM {} WHERE id = $1{lock}", table(sql.dialect(), "migration"));
    sql.query(&query, &[id.into()])?.first().map(|row| parse(row)).transpose()
}

fn parse(row: &[Value]) -> Result<Record, Error> {
    let json = |value: &Value, what: &str| -> Result<serde_json::Value, Error> {
        serde_json::from_str(value.text()?).map_err(|error| Error::Damaged(format!("{what}: {error}")))
    };
    let damaged = |what: &str, error: serde_json::Error| Error::Damaged(format!("{what}: {error}"));
    let migration: Migration =
        serde_json::from_value(json(&row[2], "migration")?).map_err(|error| damaged("migration", error))?;
    let unsigned = |value: &Value| value.integer().map(|value| u64::try_from(value).unwrap_or(0));
    Ok(Record {
        position: unsigned(&row[0])?,
        hash: row[1].text()?.parse().map_err(|_| Error::Damaged("a hash is none".to_owned()))?,
        plan: serde_json::from_value(json(&row[3], "plan")?).map_err(|error| damaged("plan", error))?,
        phase: row[4].text()?.parse()?,
        trail: serde_json::from_value(json(&row[5], "trail")?).map_err(|error| damaged("trail", error))?,
        paused: row[6].integer()? != 0,
        cancelled: row[7].integer()? != 0,
        failed: row[8].optional_text()?.map(ToOwned::to_owned),
        rate: row[9].optional_integer()?.and_then(|rate| u64::try_from(rate).ok()),
        author: row[10].text()?.to_owned(),
        contracted: row[11].integer()? != 0,
        ticks: Ticks {
            passed_ms: unsigned(&row[12])?,
            seen: match row[13].optional_text()? {
                None => None,
                Some(text) => Some(serde_json::from_str(text).map_err(|error| damaged("clocks", error))?),
            },
        },
        began_ms: row[14].integer()?,
        changed_ms: row[15].integer()?,
        migration,
    })
}

/// Writes a new record in phase IDLE, in place of one that was rolled back; clears its ledger.
///
/// # Errors
/// What the database says.
pub fn begin(
    sql: &mut dyn Sql,
    migration: &Migration,
    plan: &Plan,
    author: &str,
    rate: Option<u64>,
) -> Result<(), Error> {
    let dialect = sql.dialect();
    for name in ["chunk", "reject", "undo"] {
        sql.execute(
            &format!("DELETE FROM {} WHERE migration = $1", table(dialect, name)),
            &[migration.id.as_str().into()],
        )?;
    }
    sql.execute(
        &format!("DELETE FROM {} WHERE id = $1", table(dialect, "migration")),
        &[migration.id.as_str().into()],
    )?;
    let now = clock_ms(sql)?;
    let json = |value: serde_json::Result<String>| value.map_err(|error| Error::Damaged(error.to_string()));
    let trail = json(serde_json::to_string(&[Passed { phase: Phase::Idle, at_ms: now }]))?;
    let insert = format!(
        "INSERT INTO {} (id, position, hash, source, plan, phase, trail, paused, cancelled, rate, author, app_version, \
         contracted, ticks_ms, began_ms, changed_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, $8, $9, $10, 0, 0, $11, $11)",
        table(dialect, "migration")
    );
    let values = [
        migration.id.as_str().into(),
        plan.position.into(),
        plan.hash.to_string().into(),
        json(serde_json::to_string(migration))?.into(),
        json(serde_json::to_string(plan))?.into(),
        Phase::Idle.word().into(),
        trail.into(),
        rate.into(),
        author.into(),
        migration.app_version.clone().into(),
        now.into(),
    ];
    sql.execute(&insert, &values)?;
    Ok(())
}

/// Moves a migration on through `phases`, of which the last is where it is then.
///
/// # Errors
/// What the database says.
pub fn pass(sql: &mut dyn Sql, id: &str, phases: &[Phase]) -> Result<(), Error> {
    let record = find(sql, id)?.ok_or_else(|| Error::Unknown(format!("`{id}`")))?;
    let now = clock_ms(sql)?;
    let mut trail = record.trail;
    trail.extend(phases.iter().map(|phase| Passed { phase: *phase, at_ms: now }));
    let trail = serde_json::to_string(&trail).map_err(|error| Error::Damaged(error.to_string()))?;
    let last = phases.last().copied().unwrap_or(record.phase);
    let update = format!(
        "UPDATE {} SET phase = $1, trail = $2, failed = NULL, changed_ms = $3 WHERE id = $4",
        table(sql.dialect(), "migration")
    );
    sql.execute(&update, &[last.word().into(), trail.into(), now.into(), id.into()])?;
    Ok(())
}

/// Sets one column of a record. `column` is one of the flags below.
///
/// # Errors
/// [`Error::Unknown`] when there is no such migration.
pub fn set(sql: &mut dyn Sql, id: &str, column: Column, value: Value) -> Result<(), Error> {
    let name = match column {
        Column::Paused => "paused",
        Column::Cancelled => "cancelled",
        Column::Failed => "failed",
        Column::Rate => "rate",
        Column::Contracted => "contracted",
    };
    let now = clock_ms(sql)?;
    let update = format!(
        "UPDATE {} SET {name} = $1, changed_ms = $2 WHERE id = $3",
        table(sql.dialect(), "migration")
    );
    match sql.execute(&update, &[value, now.into(), id.into()])? {
        0 => Err(Error::Unknown(format!("`{id}`"))),
        _ => Ok(()),
    }
}

/// The columns that are set one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// 0 or 1.
    Paused,
    /// 0 or 1.
    Cancelled,
    /// Text or NULL.
    Failed,
    /// A number or NULL.
    Rate,
    /// 0 or 1.
    Contracted,
}

/// Remembers how much of the grace period has passed.
///
/// # Errors
/// What the database says.
pub fn set_ticks(sql: &mut dyn Sql, id: &str, ticks: &Ticks) -> Result<(), Error> {
    let clocks = ticks.seen.as_ref().map(serde_json::to_string).transpose();
    let clocks = clocks.map_err(|error| Error::Damaged(error.to_string()))?;
    let update =
        format!("UPDATE {} SET ticks_ms = $1, clocks = $2 WHERE id = $3", table(sql.dialect(), "migration"));
    sql.execute(&update, &[ticks.passed_ms.into(), clocks.into(), id.into()])?;
    Ok(())
}

/// Accepts another file for a migration that was applied.
///
/// # Errors
/// What the database says.
pub fn rebaseline(sql: &mut dyn Sql, migration: &Migration) -> Result<(), Error> {
    let source = serde_json::to_string(migration).map_err(|error| Error::Damaged(error.to_string()))?;
    let update =
        format!("UPDATE {} SET hash = $1, source = $2 WHERE id = $3", table(sql.dialect(), "migration"));
    sql.execute(
        &update,
        &[migration.hash().to_string().into(), source.into(), migration.id.as_str().into()],
    )?;
    Ok(())
}

/// What somebody asked a running migration for, read between chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Stop until this is false again.
    pub paused: bool,
    /// Stop and undo.
    pub cancelled: bool,
    /// Rows per second at most.
    pub rate: Option<u64>,
}

/// Reads the wishes.
///
/// # Errors
/// What the database says.
pub fn wishes_of<S: Sql + ?Sized>(sql: &mut S, id: &str) -> Result<Wishes, Error> {
    let query =
        format!("SELECT paused, cancelled, rate FROM {} WHERE id = $1", table(sql.dialect(), "migration"));
    let rows = sql.query(&query, &[id.into()])?;
    let row = rows.first().ok_or_else(|| Error::Unknown(format!("`{id}`")))?;
    Ok(Wishes {
        paused: row[0].integer()? != 0,
        cancelled: row[1].integer()? != 0,
        rate: row[2].optional_integer()?.and_then(|rate| u64::try_from(rate).ok()),
    })
}

/// The sums of the ledger for one table: chunks and rows by kind (`copy`, `verify`).
///
/// # Errors
/// What the database says.
pub fn ledger(sql: &mut dyn Sql, id: &str) -> Result<Vec<LedgerLine>, Error> {
    let query = format!(
        "SELECT table_name, kind, count(*), CAST(sum(seen) AS bigint), CAST(sum(copied) AS bigint), CAST(sum(present) AS bigint), \
         CAST(sum(rejected) AS bigint), max(at_ms) - min(at_ms) FROM {} WHERE migration = $1 GROUP BY table_name, kind \
         ORDER BY table_name, kind",
        table(sql.dialect(), "chunk")
    );
    let rows = sql.query(&query, &[id.into()])?;
    let number = |value: &Value| value.integer().map(|value| u64::try_from(value).unwrap_or(0));
    rows.iter()
        .map(|row| {
            Ok(LedgerLine {
                table: row[0].text()?.to_owned(),
                kind: row[1].text()?.to_owned(),
                chunks: number(&row[2])?,
                seen: number(&row[3])?,
                copied: number(&row[4])?,
                present: number(&row[5])?,
                rejected: number(&row[6])?,
                took_ms: number(&row[7])?,
            })
        })
        .collect()
}

/// One line of [`ledger`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerLine {
    /// The table.
    pub table: String,
    /// `copy` or `verify`.
    pub kind: String,
    /// Chunks.
    pub chunks: u64,
    /// Rows read.
    pub seen: u64,
    /// Rows written (or compared).
    pub copied: u64,
    /// Rows that were there already.
    pub present: u64,
    /// Rows that do not fit.
    pub rejected: u64,
    /// From the first chunk to the last, in milliseconds.
    pub took_ms: u64,
}
