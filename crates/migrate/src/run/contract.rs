//! Contract: when the old shape may go, and its removal.

use std::time::Instant;

use cutover_core::model::Version;
use serde_json::json;

use super::{
    Applied, Migrator, Report,
    heart::beating,
    line::{grace_ms, versions},
    phases::Run,
};
use crate::{
    engine::{RowFunctions, Task},
    error::{Error, Refusal},
    grace::{self, FleetFloor, Ticks},
    ir::Dialect,
    state::{
        self, Phase,
        history::{self, Event},
        lease,
        record::{self, Column, Record},
        sql::in_transaction,
    },
};

impl Migrator<'_> {
    /// Counts the time of grace periods. Called by everything that looks at them.
    ///
    /// # Errors
    /// What the database says.
    pub fn tick(&mut self, wall_ms: i64) -> Result<(), Error> {
        for record in self.records_if_any()? {
            if record.phase == Phase::Cleanup && !record.contracted {
                let two_machines = self.engine.dialect() == Dialect::Postgres;
                in_transaction(&mut *self.engine, |sql| {
                    let clocks = grace::read_clocks(wall_ms, state::clock_ms(sql)?);
                    record::set_ticks(sql, record.id(), &record.ticks.observed(clocks, two_machines))
                })?;
            }
        }
        Ok(())
    }

    /// Sets how much of a grace period has passed: for those who have better evidence than the clocks of this machine.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_ticks(&mut self, id: &str, ticks: &Ticks) -> Result<(), Error> {
        self.record(id)?;
        in_transaction(&mut *self.engine, |sql| record::set_ticks(sql, id, ticks))
    }

    /// Contract: removes the old shape, when its grace period is over, every node runs the new version, and no use is seen.
    ///
    /// # Errors
    /// [`Error::Locked`] with every reason why not yet.
    pub fn complete(&mut self, id: &str, fleet: &dyn FleetFloor, wall_ms: i64) -> Result<Applied, Error> {
        let started = Instant::now();
        let record = self.record(id)?;
        if record.phase != Phase::Cleanup {
            let says = "only a migration that was applied can be completed".to_owned();
            return Err(Error::Phase { id: id.to_owned(), phase: record.phase, says });
        }
        if record.contracted {
            return Ok(Applied::Already);
        }
        history::read(&mut *self.engine, self.settings.head.as_ref())?;
        self.tick(wall_ms)?;
        let record = self.record(id)?;
        let mut locks = Vec::new();
        let grace = grace_ms(&record.plan);
        if record.ticks.passed_ms < grace {
            locks.push(Refusal::new(
                format!("{} of {} h of grace have passed", record.ticks.passed_ms / 3_600_000, grace / 3_600_000),
                "Wait; the time counts while any command looks at this database, and while this machine is up.",
            ));
        }
        if let (Some(needed), false) = (&record.migration.app_version, record.plan.additive) {
            let needed: Version =
                needed.parse().map_err(|_| Error::Damaged("app_version is no version".to_owned()))?;
            match fleet.floor() {
                Err(unknown) => locks.push(Refusal::new(
                    format!("nobody says which application versions run ({unknown})"),
                    "Ask the fleet's server, or vouch for it with `--floor VERSION`.",
                )),
                Ok(floor) if floor.lowest < needed => locks.push(Refusal::new(
                    format!("version {} is still running; {needed} is needed everywhere", floor.lowest),
                    "Roll the new version out first.",
                )),
                Ok(floor) if floor.rollback_open => locks.push(Refusal::new(
                    "a node may still go back to the old version",
                    "Wait until the releases are confirmed.",
                )),
                Ok(_) => {}
            }
        }
        let records = record::all(&mut *self.engine)?;
        let earlier: Vec<Record> =
            records.iter().filter(|other| other.position < record.position).cloned().collect();
        let versions = versions(&record.migration, record.position, &earlier);
        let policy = self.policy(&record.migration);
        let functions = RowFunctions::new();
        let lease_ms = self.settings.lease_ms;
        let heart = self.engine.another()?;
        let epoch = in_transaction(&mut *self.engine, |sql| lease::acquire(sql, &lease::owner(), lease_ms))?;
        let now = self.record(id)?;
        if now.phase != Phase::Cleanup || now.contracted {
            lease::release(&mut *self.engine, epoch)?;
            let says = "somebody took it further meanwhile; look at `cutover schema status`".to_owned();
            return Err(Error::Phase { id: id.to_owned(), phase: now.phase, says });
        }
        let watch = self.watch;
        let mut run = Run {
            engine: &mut *self.engine,
            settings: &self.settings,
            watch,
            task: Task {
                migration: id,
                position: record.position,
                epoch,
                versions: &versions,
                policy: &policy,
                functions: &functions,
                watch,
            },
            migration: &record.migration,
            plan: &record.plan,
            started,
        };
        let result = beating(heart, epoch, lease_ms, || run.contract(locks));
        let released = lease::release(&mut *self.engine, epoch);
        let report = result?;
        released?;
        Ok(Applied::Done(Box::new(report)))
    }
}

impl Run<'_> {
    fn contract(&mut self, mut locks: Vec<Refusal>) -> Result<Report, Error> {
        for change in &self.plan.changes {
            for line in self.engine.uses(&self.task, change)? {
                locks.push(Refusal::new(line, "Remove that use first."));
            }
        }
        if !locks.is_empty() {
            return Err(Error::Locked(locks));
        }
        // What a run that was cut off after its swap could not promise any more.
        for change in &self.plan.changes {
            self.engine.settle(&self.task, change)?;
        }
        for change in &self.plan.changes {
            self.engine.contract(&self.task, change)?;
        }
        let (id, epoch, author) = (self.task.migration, self.task.epoch, self.settings.author.clone());
        in_transaction(self.engine, |sql| {
            state::fence(sql, epoch)?;
            record::set(sql, id, Column::Contracted, true.into())?;
            history::append(sql, id, Event::Contracted, &author, &json!({}))
        })?;
        Ok(Report {
            id: id.to_owned(),
            version: self.task.position,
            took_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            resumed: false,
            ledger: record::ledger(self.engine, id)?,
            resynced: 0,
            longest_hold_us: 0,
            swap_hold_us: 0,
            probe_before_p99_us: None,
            probe_during_p99_us: None,
            plan: self.plan.approval(),
        })
    }
}
