//! Rows that do not fit and were set aside: looking at them, and approving that they stay out of the new shape.

use serde_json::json;

use super::Migrator;
use crate::{
    error::Error,
    state::{
        history::{self, Event},
        lease,
        reject::{self, Reject},
        sql::in_transaction,
    },
};

impl Migrator<'_> {
    /// The rows of a migration that were set aside, by table and key; at most `limit`.
    ///
    /// # Errors
    /// [`Error::Unknown`], or what the database says.
    pub fn rejects(&mut self, id: &str, limit: u64) -> Result<Vec<Reject>, Error> {
        self.record(id)?;
        reject::list(&mut *self.engine, id, limit)
    }

    /// Approves that the rows which were set aside so far stay out of the new shape; the next [`apply`](Self::apply) goes on.
    /// They stay in the old table until contract, and in the list after it. Returns how many waited for that.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Phase`] when it is not under way; [`Error::Held`] while it runs: the list may still grow.
    pub fn approve(&mut self, id: &str) -> Result<u64, Error> {
        let record = self.record(id)?;
        if !record.is_unfinished() {
            let says = "it is not under way".to_owned();
            return Err(Error::Phase { id: id.to_owned(), phase: record.phase, says });
        }
        let (author, lease_ms) = (self.settings.author.clone(), self.settings.lease_ms);
        in_transaction(&mut *self.engine, |sql| {
            let epoch = lease::acquire(sql, &lease::owner(), lease_ms)?;
            let approved = reject::approve(sql, id)?;
            if approved > 0 {
                history::append(sql, id, Event::Approved, &author, &json!({ "rows": approved }))?;
            }
            lease::release(sql, epoch)?;
            Ok(approved)
        })
    }
}
