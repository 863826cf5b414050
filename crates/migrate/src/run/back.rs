//! The way back of a migration, before its swap and after it.

use serde_json::json;

use super::{Migrator, line::versions};
use crate::{
    engine::{Loss, RowFunctions, Task},
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
        let record = self.record(id)?;
        let phase = record.phase;
        let refuse = |says: &str| Err(Error::Phase { id: id.to_owned(), phase, says: says.to_owned() });
        if phase == Phase::RolledBack {
            return Ok(());
        }
        if record.contracted {
            return refuse("the old shape was removed by contract; write a migration that leads back");
        }
        let records = record::all(&mut *self.engine)?;
        if phase == Phase::Cleanup
            && let Some(later) = records
                .iter()
                .find(|other| other.position > record.position && other.phase != Phase::RolledBack)
        {
            return refuse(&format!("`{}` came after it; roll that one back first", later.id()));
        }
        let lease_ms = self.settings.lease_ms;
        let epoch = in_transaction(&mut *self.engine, |sql| lease::acquire(sql, &lease::owner(), lease_ms))?;
        let result = self.undo(&record, epoch, loss, &records);
        let released = lease::release(&mut *self.engine, epoch);
        result.and(released)
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
        let migration = &record.migration;
        let earlier: Vec<Record> =
            records.iter().filter(|other| other.position < record.position).cloned().collect();
        let versions = versions(migration, record.position, &earlier);
        let policy = self.policy(migration);
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
        let author = self.settings.author.clone();
        let id = record.id().to_owned();
        let mut note = |sql: &mut dyn Sql| {
            record::pass(sql, &id, &[Phase::RolledBack])?;
            history::append(
                sql,
                &id,
                Event::RolledBack,
                &author,
                &json!({ "after_swap": record.phase == Phase::Cleanup }),
            )
        };
        if record.phase == Phase::Cleanup {
            if loss == Loss::Refuse {
                let losses = self.engine.losses(&task, &record.plan.changes)?;
                if !losses.is_empty() {
                    return Err(Error::Locked(losses));
                }
            }
            return self.engine.undo_after_swap(&task, &record.plan.changes, loss, &mut note);
        }
        for change in record.plan.changes.iter().rev() {
            self.engine.undo_before_swap(&task, change)?;
        }
        in_transaction(&mut *self.engine, |sql| {
            state::fence(sql, epoch)?;
            note(sql)
        })
    }
}
