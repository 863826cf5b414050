//! What was done to this database, in a chain of hashes: `hash = SHA-256(previous || entry)`.
//!
//! An edited, removed or reordered entry breaks the chain. A cut-off end does not: whoever needs that keeps the head
//! ([`Head`]) somewhere else and compares.

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{clock_ms, sql::Sql, table};
use crate::{error::Error, ir::canonical_json};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A migration began.
    Began,
    /// It was swapped in: the schema has its version.
    Applied,
    /// It failed, and what was done was undone; or somebody rolled it back.
    RolledBack,
    /// It failed and stays as it is.
    Failed,
    /// What was left of the old shape was removed.
    Contracted,
    /// Its file was accepted in another form.
    Rebaselined,
    /// Rows that do not fit were approved to stay out of the new shape.
    Approved,
}

impl Event {
    /// The word in state and output.
    pub fn word(self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Applied => "applied",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::Contracted => "contracted",
            Self::Rebaselined => "rebaselined",
            Self::Approved => "approved",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u64,
    /// The migration.
    pub migration: String,
    /// What happened: a word of [`Event`].
    pub event: String,
    /// When, by the database's clock, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who asked for it.
    pub author: String,
    /// More about it.
    pub detail: serde_json::Value,
    /// The hash of this entry.
    pub hash: String,
}

/// The end of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of the last entry; 0 without any.
    pub number: u64,
    /// Its hash; 64 zeros without any.
    pub hash: String,
}

impl Head {
    /// The end of a chain without entries.
    pub fn genesis() -> Self {
        Self { number: 0, hash: genesis() }
    }
}

fn genesis() -> String {
    "0".repeat(64)
}

/// What to say of a history with `there` entries when more were seen before.
pub fn cut_off(kept: &Head, there: u64) -> Error {
    let says = format!("the end is cut off: entry {} was seen before", kept.number);
    Error::History { entry: there + 1, says }
}

/// The end of the chain.
///
/// # Errors
/// What the database says.
pub fn head(sql: &mut dyn Sql) -> Result<Head, Error> {
    let query =
        format!("SELECT number, hash FROM {} ORDER BY number DESC LIMIT 1", table(sql.dialect(), "history"));
    match sql.query(&query, &[])?.first() {
        None => Ok(Head::genesis()),
        Some(row) => Ok(Head {
            number: u64::try_from(row[0].integer()?).unwrap_or(0),
            hash: row[1].text()?.to_owned(),
        }),
    }
}

/// Adds an entry, in the transaction of what it tells.
///
/// # Errors
/// What the database says.
pub fn append(
    sql: &mut dyn Sql,
    migration: &str,
    event: Event,
    author: &str,
    detail: &serde_json::Value,
) -> Result<(), Error> {
    let head = head(sql)?;
    let at_ms = clock_ms(sql)?;
    let number = head.number + 1;
    let entry = canonical_json(&json!({
        "number": number, "migration": migration, "event": event.word(), "at_ms": at_ms, "author": author, "detail": detail,
    }));
    let hash = Digest::of(format!("{}{entry}", head.hash).as_bytes()).to_string();
    let insert = format!(
        "INSERT INTO {} (number, migration, event, entry, previous, hash) VALUES ($1, $2, $3, $4, $5, $6)",
        table(sql.dialect(), "history")
    );
    let values =
        [number.into(), migration.into(), event.word().into(), entry.into(), head.hash.into(), hash.into()];
    sql.execute(&insert, &values)?;
    Ok(())
}

/// All entries, after checking the chain, and that it still holds the head that somebody kept.
///
/// # Errors
/// [`Error::History`] at the first entry that does not fit.
pub fn read(sql: &mut dyn Sql, kept: Option<&Head>) -> Result<Vec<Entry>, Error> {
    let query = format!(
        "SELECT number, migration, event, entry, previous, hash FROM {} ORDER BY number",
        table(sql.dialect(), "history")
    );
    let mut previous = genesis();
    let mut entries = Vec::new();
    for (at, row) in sql.query(&query, &[])?.into_iter().enumerate() {
        let number = at as u64 + 1;
        let broken = |says: &str| Error::History { entry: number, says: says.to_owned() };
        let (text, hash) = (row[3].text()?, row[5].text()?);
        if row[0].integer()? != i64::try_from(number).unwrap_or(i64::MAX) {
            return Err(broken("an entry is missing"));
        }
        if row[4].text()? != previous
            || Digest::of(format!("{previous}{text}").as_bytes()).to_string() != hash
        {
            return Err(broken("it was changed, or does not follow the one before"));
        }
        let value: serde_json::Value = serde_json::from_str(text).map_err(|_| broken("it is no JSON"))?;
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        if word("migration") != row[1].text()? || word("event") != row[2].text()? {
            return Err(broken("its columns differ from what was hashed"));
        }
        if let Some(kept) = kept
            && kept.number == number
            && kept.hash != hash
        {
            return Err(broken("it is not the entry whose hash was kept elsewhere"));
        }
        entries.push(Entry {
            number,
            migration: word("migration"),
            event: word("event"),
            at_ms: value["at_ms"].as_i64().unwrap_or(0),
            author: word("author"),
            detail: value["detail"].clone(),
            hash: hash.to_owned(),
        });
        hash.clone_into(&mut previous);
    }
    match kept {
        Some(kept) if kept.number > entries.len() as u64 => Err(cut_off(kept, entries.len() as u64)),
        _ => Ok(entries),
    }
}
