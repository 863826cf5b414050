//! One run of a migration through its phases, up to the swap; and what becomes of it when it fails.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use cutover_core::causes::chain;
use serde_json::json;

use super::{
    Report, Settings,
    heart::{beating, beside},
    pace::{self, Orders, Pacer},
};
use crate::{
    change::Tactic,
    engine::{Engine, Task, Watch, Work},
    error::Error,
    grace::{self, Ticks},
    ir::{Migration, Undo},
    plan::Plan,
    state::{
        self, Phase,
        history::{self, Event},
        lease,
        record::{self, Column},
        sql::{Sql, in_transaction},
    },
};

/// One run of one migration under a lease.
pub(super) struct Run<'r> {
    pub(super) engine: &'r mut dyn Engine,
    pub(super) settings: &'r Settings,
    pub(super) watch: &'r dyn Watch,
    pub(super) task: Task<'r>,
    pub(super) migration: &'r Migration,
    pub(super) plan: &'r Plan,
    pub(super) started: Instant,
}

impl Run<'_> {
    /// All phases; when one fails, what is to be done about that, too. The lease is renewed meanwhile.
    pub(super) fn carry_out(&mut self) -> Result<Report, Error> {
        if self.is_instant() {
            return self.all_phases().map_err(|error| self.failed(error));
        }
        let (lease_ms, epoch) = (self.settings.lease_ms, self.task.epoch);
        match self.engine.another() {
            Ok(heart) => {
                beating(heart, epoch, lease_ms, || self.all_phases().map_err(|error| self.failed(error)))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn all_phases(&mut self) -> Result<Report, Error> {
        if self.is_instant() {
            for change in &self.plan.changes {
                self.engine.pre_scan(&self.task, change)?;
            }
            return self.swap(Work::default(), None);
        }
        let probed = pace::Probed::default();
        if !self.settings.probe {
            return self.phases(&probed);
        }
        let mut probe = self.engine.another()?;
        beside(|stop| pace::probe(&mut *probe, stop, &probed), || self.phases(&probed))
    }

    /// An additive change has no phase but the swap: one transaction, no threads, nothing after it.
    fn is_instant(&self) -> bool {
        self.plan.changes.iter().all(|change| change.tactic == Tactic::Instant)
    }

    fn phases(&mut self, probed: &pace::Probed) -> Result<Report, Error> {
        let mut work = Work::default();
        let before = if self.settings.probe { probed.baseline(self.settings.policy.hold_ms) } else { None };
        let pacer = Pacer::new(&self.task, self.migration, self.plan, probed, before, self.started);
        let at = record::find(self.engine, self.task.migration)?.map_or(Phase::Idle, |record| record.phase);
        if at == Phase::Idle {
            for change in &self.plan.changes {
                self.engine.pre_scan(&self.task, change)?;
            }
        }
        for phase in [Phase::ShadowCreate, Phase::DualWrite, Phase::Backfill, Phase::ConsistencyCheck] {
            if at <= phase {
                self.enter(phase)?;
            }
            pacer.enter(phase)?;
            for change in &self.plan.changes {
                pacer.check(self.engine)?;
                // A run that was cut off while it undid things may have taken back what an earlier phase had made.
                if at > phase && self.engine.is_done(&self.task, phase, change)? {
                    continue;
                }
                match phase {
                    Phase::ShadowCreate => self.engine.expand(&self.task, change)?,
                    Phase::DualWrite => self.engine.dual_write(&self.task, change)?,
                    Phase::Backfill => work.add(&self.engine.backfill(&self.task, change, &pacer)?),
                    _ => work.add(&self.engine.verify(&self.task, change, &pacer)?),
                }
            }
        }
        pacer.check(self.engine)?;
        self.enter(Phase::AtomicSwap)?;
        self.swap(work, before.map(|before| (before, probed)))
    }

    fn enter(&mut self, phase: Phase) -> Result<(), Error> {
        self.watch.phase(phase);
        let at = record::find(self.engine, self.task.migration)?.map_or(Phase::Idle, |record| record.phase);
        if at == phase {
            return Ok(());
        }
        let (id, epoch) = (self.task.migration, self.task.epoch);
        self.task.point("phase.before");
        in_transaction(self.engine, |sql| {
            state::fence(sql, epoch)?;
            record::pass(sql, id, &[phase])
        })?;
        self.task.point("phase.after");
        Ok(())
    }

    fn swap(&mut self, mut work: Work, probed: Option<(Duration, &pace::Probed)>) -> Result<Report, Error> {
        let (id, author, epoch) = (self.task.migration, self.settings.author.clone(), self.task.epoch);
        let detail =
            json!({ "position": self.task.position, "hash": self.plan.hash, "plan": self.plan.approval() });
        let is_last = self.is_instant();
        let is_ordered = Cell::new(false);
        let mut record = |sql: &mut dyn Sql| {
            let record = record::hold(sql, id)?;
            if record.cancelled || record.paused {
                is_ordered.set(true);
                return Err(Error::Cancelled);
            }
            let passed = |phase: Phase| record.trail.iter().any(|passed| passed.phase == phase);
            // What a change in one transaction did not need to enter one by one is passed here.
            let phases: Vec<Phase> =
                Phase::ALL.into_iter().filter(|phase| *phase <= Phase::Cleanup && !passed(*phase)).collect();
            record::pass(sql, id, &phases)?;
            let clocks = grace::read_clocks(0, state::clock_ms(sql)?);
            let clocks = grace::Clocks { wall_ms: clocks.database_ms, ..clocks };
            record::set_ticks(sql, id, &Ticks { passed_ms: 0, seen: Some(clocks) })?;
            history::append(sql, id, Event::Applied, &author, &detail)?;
            if is_last { lease::release(sql, epoch) } else { Ok(()) }
        };
        self.watch.phase(Phase::AtomicSwap);
        let orders = Orders::new(&self.task, self.migration, self.started);
        let swapped = loop {
            let swapped = self.engine.swap(&self.task, &self.plan.changes, &mut record);
            if !is_ordered.take() {
                break swapped?;
            }
            orders.obey(self.engine, Phase::AtomicSwap)?;
        };
        self.watch.phase(Phase::Cleanup);
        for change in &self.plan.changes {
            self.engine.settle(&self.task, change)?;
        }
        work.add(&swapped);
        let ledger = record::ledger(self.engine, id)?;
        if !is_last {
            lease::release(self.engine, epoch)?;
        }
        Ok(Report {
            id: id.to_owned(),
            version: self.task.position,
            took_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            resumed: false,
            ledger,
            resynced: work.resynced,
            longest_hold_us: work.longest_hold_us,
            swap_hold_us: swapped.longest_hold_us,
            probe_before_p99_us: probed.map(|(before, _)| micros(before)),
            probe_during_p99_us: probed.and_then(|(_, probed)| probed.p99()).map(micros),
            plan: self.plan.approval(),
        })
    }

    /// What to do about an error: undo, or leave it for the next run.
    pub(super) fn failed(&mut self, error: Error) -> Error {
        let id = self.task.migration.to_owned();
        let Ok(Some(now)) = record::find(self.engine, &id) else { return error };
        let phase = now.phase;
        // Swapped: what failed afterwards is done again by the next `apply` and by `complete`; there is nothing to undo.
        if phase == Phase::Cleanup {
            let _ = lease::release(self.engine, self.task.epoch);
            return error;
        }
        let stays = match &error {
            Error::Fenced { .. } | Error::Held { .. } => return error,
            Error::Sql(sql) if sql.kind == crate::error::SqlErrorKind::Connection => return error,
            // Somebody has to decide first, about rows that were set aside.
            Error::Deadline { .. } | Error::Locked(_) => true,
            Error::Sql(_) if error.is_busy() => true,
            Error::Cancelled => false,
            _ => self.migration.rollback == Undo::Manual,
        };
        let (author, epoch) = (self.settings.author.clone(), self.task.epoch);
        let says = chain(&error);
        if stays {
            let noted = in_transaction(self.engine, |sql| {
                state::fence(sql, epoch)?;
                record::set(sql, &id, Column::Failed, says.clone().into())?;
                history::append(sql, &id, Event::Failed, &author, &json!({ "phase": phase, "why": says }))?;
                lease::release(sql, epoch)
            });
            return match noted {
                Ok(()) => Error::Stopped { id, phase, cause: Box::new(error) },
                Err(_) => error,
            };
        }
        for change in self.plan.changes.iter().rev() {
            if let Err(undo) = self.engine.undo_before_swap(&self.task, change) {
                self.watch.says(&format!("undoing `{}` failed: {}", change.table, chain(&undo)));
                let _ = lease::release(self.engine, epoch);
                return Error::Stopped { id, phase, cause: Box::new(error) };
            }
        }
        let noted = in_transaction(self.engine, |sql| {
            state::fence(sql, epoch)?;
            record::pass(sql, &id, &[Phase::RolledBack])?;
            record::set(sql, &id, Column::Failed, says.clone().into())?;
            history::append(sql, &id, Event::RolledBack, &author, &json!({ "phase": phase, "why": says }))?;
            lease::release(sql, epoch)
        });
        match noted {
            Ok(()) => {
                self.watch.phase(Phase::RolledBack);
                Error::RolledBack { id, phase, cause: Box::new(error) }
            }
            Err(_) => Error::Stopped { id, phase, cause: Box::new(error) },
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
