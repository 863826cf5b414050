//! Orders to a migration that is under way: wait, go on, so fast, stop.

use super::Migrator;
use crate::{
    engine::Loss,
    error::Error,
    state::{
        lease,
        record::{self, Column},
        sql::{Value, in_transaction},
    },
};

impl Migrator<'_> {
    /// Asks the running (or next) run of a migration to stop between chunks, or to go on.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Phase`] when it is not under way.
    pub fn pause(&mut self, id: &str, paused: bool) -> Result<(), Error> {
        self.wish(id, Column::Paused, paused.into())
    }

    /// Sets how many rows per second are copied at most; `None` for as many as clients allow. Live.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Phase`] when it is not under way.
    pub fn set_rate(&mut self, id: &str, rate: Option<u64>) -> Result<(), Error> {
        self.wish(id, Column::Rate, rate.into())
    }

    fn wish(&mut self, id: &str, column: Column, value: Value) -> Result<(), Error> {
        let record = self.record(id)?;
        if !record.is_unfinished() {
            return Err(Error::Phase {
                id: id.to_owned(),
                phase: record.phase,
                says: "it is not under way".to_owned(),
            });
        }
        in_transaction(&mut *self.engine, |sql| record::set(sql, id, column, value))
    }

    /// Cancels: one under way stops between chunks and is undone, one that waits for contract is rolled back.
    ///
    /// # Errors
    /// As [`rollback`](Self::rollback).
    pub fn cancel(&mut self, id: &str) -> Result<(), Error> {
        let record = self.record(id)?;
        if record.is_unfinished() && lease::holder(&mut *self.engine)?.is_some() {
            return in_transaction(&mut *self.engine, |sql| {
                record::set(sql, id, Column::Cancelled, true.into())
            });
        }
        self.rollback(id, Loss::Refuse)
    }
}
