//! Orders to a migration that is under way: wait, go on, so fast, stop. One that comes before the swap commits is obeyed,
//! one that comes later is refused: both hold the record.

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
        self.record(id)?;
        in_transaction(&mut *self.engine, |sql| {
            let record = record::hold(sql, id)?;
            if !record.is_unfinished() {
                return Err(Error::Phase {
                    id: id.to_owned(),
                    phase: record.phase,
                    says: "it is not under way".to_owned(),
                });
            }
            record::set(sql, id, column, value)
        })
    }

    /// Cancels: one under way is asked to stop and is undone by its run, one that waits for contract is rolled back here.
    ///
    /// # Errors
    /// As [`rollback`](Self::rollback).
    pub fn cancel(&mut self, id: &str) -> Result<Cancelled, Error> {
        self.record(id)?;
        let is_asked = in_transaction(&mut *self.engine, |sql| {
            let is_at_work = record::hold(sql, id)?.is_unfinished()
                && lease::holder(sql)?.is_some_and(|owner| lease::runs(&owner, id));
            if is_at_work {
                record::set(sql, id, Column::Cancelled, true.into())?;
            }
            Ok(is_at_work)
        })?;
        if is_asked {
            return Ok(Cancelled::Asked);
        }
        self.rollback(id, Loss::Refuse)?;
        Ok(Cancelled::Undone)
    }
}

/// What [`Migrator::cancel`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// A run is at work: it stops, and undoes what it did, before it would swap.
    Asked,
    /// Nobody was at work, and the old shape serves again.
    Undone,
}
