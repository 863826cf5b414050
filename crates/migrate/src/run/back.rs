//! The way back of a migration, before its swap and after it.

use serde_json::json;

use super::{Migrator, Settings, heart::beating, line::versions};
use crate::{
    change::Tactic,
    engine::{Engine, Loss, RowFunctions, Task},
    error::Error,
    state::{
        self, Phase,
        history::{self, Event},
        lease,
        record::{self, Record},
        sql::{Sql, in_transaction},
    },
};

impl Migrator<'_> {
    /// Takes a migration back: before the swap by removing what was built, after it by swapping back; what clients wrote
    /// meanwhile stays.
    ///
    /// # Errors
    /// [`Error::Phase`] when there is no way back; [`Error::Locked`] with what would be lost.
    pub fn rollback(&mut self, id: &str, loss: Loss) -> Result<(), Error> {
        self.record(id)?;
        let (lease_ms, heart) = (self.settings.lease_ms, self.engine.another()?);
        let epoch = in_transaction(&mut *self.engine, |sql| lease::acquire(sql, &lease::owner(), lease_ms))?;
        let result = beating(heart, epoch, lease_ms, || self.go_back(id, epoch, loss));
        let released = lease::release(&mut *self.engine, epoch);
        result.and(released)
    }

    /// Under the lease, so that nothing that is decided here changes meanwhile.
    fn go_back(&mut self, id: &str, epoch: u64, loss: Loss) -> Result<(), Error> {
        let records = record::all(&mut *self.engine)?;
        let record = self.record(id)?;
        let phase = record.phase;
        let refuse = |says: &str| Err(Error::Phase { id: id.to_owned(), phase, says: says.to_owned() });
        if record.contracted {
            return refuse("the old shape was removed by contract; write a migration that leads back");
        }
        if phase == Phase::Cleanup
            && let Some(later) = records
                .iter()
                .find(|other| other.position > record.position && other.phase != Phase::RolledBack)
        {
            return refuse(&format!("`{}` came after it; roll that one back first", later.id()));
        }
        self.undo(&record, epoch, loss, &records)
    }

    /// Ends rollbacks that were cut off when the old shape served again: what they left would be taken for the state of
    /// another run of theirs, and names of it may be wanted now.
    pub(super) fn finish_ways_back(&mut self, records: &[Record]) -> Result<(), Error> {
        for record in records.iter().filter(|record| record.phase == Phase::RolledBack) {
            let is_over = self.as_task(record, records, 0, |engine, task, _| {
                let mut changes = record.plan.changes.iter();
                changes.try_fold(true, |over, change| {
                    Ok(over && engine.is_done(task, Phase::RolledBack, change)?)
                })
            })?;
            if !is_over {
                self.rollback(record.id(), Loss::Refuse)?;
            }
        }
        Ok(())
    }

    /// Does again what follows a swap, for a run that was cut off there. Whoever holds the lease just now does it later.
    pub(super) fn settle_again(&mut self, record: &Record, records: &[Record]) -> Result<(), Error> {
        if record.contracted || record.plan.changes.iter().all(|change| change.tactic != Tactic::Shadow) {
            return Ok(());
        }
        let (lease_ms, heart) = (self.settings.lease_ms, self.engine.another()?);
        let acquired =
            in_transaction(&mut *self.engine, |sql| lease::acquire(sql, &lease::owner(), lease_ms));
        let epoch = match acquired {
            Err(Error::Held { .. }) => return Ok(()),
            other => other?,
        };
        let settled = beating(heart, epoch, lease_ms, || {
            self.as_task(record, records, epoch, |engine, task, _| {
                record.plan.changes.iter().try_for_each(|change| engine.settle(task, change))
            })
        });
        let released = lease::release(&mut *self.engine, epoch);
        settled.and(released)
    }

    /// Runs `work` with the task of a record.
    fn as_task<T>(
        &mut self,
        record: &Record,
        records: &[Record],
        epoch: u64,
        work: impl FnOnce(&mut dyn Engine, &Task<'_>, &Settings) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let versions = versions(&record.migration, record.position, records);
        let policy = self.policy(&record.migration);
        let functions = RowFunctions::new();
        let task = Task {
            migration: record.id(),
            position: record.position,
            epoch,
            versions: &versions,
            policy: &policy,
            functions: &functions,
            watch: self.watch,
        };
        work(&mut *self.engine, &task, &self.settings)
    }

    /// Removes what commands took out of use and left for later: [`rollback`](Self::rollback) is over when the old shape
    /// serves, and a large table is removed after it, in transactions so short that nobody waits for them. The next
    /// [`apply`](Self::apply) does it too, if nobody else did.
    ///
    /// # Errors
    /// What the database says.
    pub fn tidy(&mut self) -> Result<(), Error> {
        self.engine.tidy()
    }

    fn undo(&mut self, record: &Record, epoch: u64, loss: Loss, records: &[Record]) -> Result<(), Error> {
        self.as_task(record, records, epoch, |engine, task, settings| {
            undo(engine, task, settings, record, loss)
        })
    }
}

fn undo(
    engine: &mut dyn Engine,
    task: &Task<'_>,
    settings: &Settings,
    record: &Record,
    loss: Loss,
) -> Result<(), Error> {
    let mut note = |sql: &mut dyn Sql| {
        record::pass(sql, record.id(), &[Phase::RolledBack])?;
        let detail = json!({ "after_swap": record.phase == Phase::Cleanup });
        history::append(sql, record.id(), Event::RolledBack, &settings.author, &detail)
    };
    let changes = &record.plan.changes;
    if record.phase == Phase::Cleanup {
        if loss == Loss::Refuse {
            let losses = engine.losses(task, changes)?;
            if !losses.is_empty() {
                return Err(Error::Locked(losses));
            }
        }
        return engine.undo_after_swap(task, changes, loss, &mut note);
    }
    for change in changes.iter().rev() {
        if record.phase != Phase::RolledBack || !engine.is_done(task, Phase::RolledBack, change)? {
            engine.undo_before_swap(task, change)?;
        }
    }
    if record.phase == Phase::RolledBack {
        return Ok(());
    }
    in_transaction(engine, |sql| {
        state::fence(sql, task.epoch)?;
        note(sql)
    })
}
