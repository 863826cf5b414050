//! Rows that do not fit the new shape and were set aside: kept as text, listed, and approved before the swap goes on.
//!
//! Engines write them, in the transaction of the work, for migrations with `on_reject = "quarantine"`; a row that fits later, or
//! is deleted, leaves the list. The list outlives the old table. Read [`demand_approval`] first.

use serde::Serialize;

use super::{sql::Sql, table};
use crate::{
    error::{Error, Refusal},
    ir::Ident,
};

/// A row that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// Its table.
    pub table: String,
    /// Its key, as the ledger prints keys.
    pub key: String,
    /// Why it does not fit.
    pub reason: String,
    /// The whole row as the engine prints it; on SQLite it can follow `VALUES`.
    pub row: Option<String>,
    /// Whether somebody approved that it stays out of the new shape.
    pub approved: bool,
}

/// How many rows of a migration were set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// All of them.
    pub rows: u64,
    /// Those that nobody has approved yet.
    pub waiting: u64,
}

/// The rows of a migration that were set aside, by table and key; at most `limit`.
///
/// # Errors
/// What the database says.
pub fn list(sql: &mut dyn Sql, id: &str, limit: u64) -> Result<Vec<Reject>, Error> {
    rows(sql, "", &[id.into()], limit)
}

fn rows(
    sql: &mut dyn Sql,
    and: &str,
    values: &[super::sql::Value],
    limit: u64,
) -> Result<Vec<Reject>, Error> {
    let query = format!(
        "SELECT table_name, row_key, reason, row_text, approved FROM {} WHERE migration = $1{and} \
         ORDER BY table_name, row_key LIMIT {limit}",
        table(sql.dialect(), "reject")
    );
    sql.query(&query, values)?
        .iter()
        .map(|row| {
            Ok(Reject {
                table: row[0].text()?.to_owned(),
                key: row[1].text()?.to_owned(),
                reason: row[2].text()?.to_owned(),
                row: row[3].optional_text()?.map(ToOwned::to_owned),
                approved: row[4].integer()? != 0,
            })
        })
        .collect()
}

/// How many rows of a migration were set aside; of all its tables, or of one.
///
/// # Errors
/// What the database says.
pub fn count(sql: &mut dyn Sql, id: &str, of: Option<&Ident>) -> Result<SetAside, Error> {
    let only = if of.is_some() { " AND table_name = $2" } else { "" };
    let query = format!(
        "SELECT count(*), coalesce(sum(CASE WHEN approved = 0 THEN 1 ELSE 0 END), 0) FROM {} WHERE migration = $1{only}",
        table(sql.dialect(), "reject")
    );
    let values: Vec<_> = std::iter::once(id.into()).chain(of.map(|table| table.as_str().into())).collect();
    let rows = sql.query(&query, &values)?;
    let number = |at: usize| -> Result<u64, Error> {
        let value = rows.first().map_or(Ok(0), |row| row[at].integer())?;
        Ok(u64::try_from(value).unwrap_or(0))
    };
    Ok(SetAside { rows: number(0)?, waiting: number(1)? })
}

/// Approves that the rows in the list stay out of the new shape; how many waited for that.
///
/// # Errors
/// What the database says.
pub fn approve(sql: &mut dyn Sql, id: &str) -> Result<u64, Error> {
    let update = format!(
        "UPDATE {} SET approved = 1 WHERE migration = $1 AND approved = 0",
        table(sql.dialect(), "reject")
    );
    Ok(sql.execute(&update, &[id.into()])?)
}

/// Lets a swap go on only when nobody has to approve rows of this table any more.
///
/// # Errors
/// [`Error::Locked`] with how many wait, and the first of them.
pub fn demand_approval(sql: &mut dyn Sql, id: &str, of: &Ident, sample: usize) -> Result<(), Error> {
    let waiting = count(sql, id, Some(of))?.waiting;
    if waiting == 0 {
        return Ok(());
    }
    let values = [id.into(), of.as_str().into()];
    let first = rows(sql, " AND table_name = $2 AND approved = 0", &values, sample as u64)?;
    let first: Vec<String> = first.iter().map(|row| format!("{}: {}", row.key, row.reason)).collect();
    Err(Error::Locked(vec![Refusal::new(
        format!("{waiting} row(s) of `{of}` do not fit and were set aside ({})", first.join("; ")),
        format!(
            "Look at them with `cutover schema rejects {id}`. Mend them, or approve with `cutover schema approve {id}` that they \
             stay out; then run `cutover schema apply` again."
        ),
    )]))
}
