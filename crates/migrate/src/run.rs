//! The driver: takes a migration through its phases, from wherever it is, on whichever engine.
//!
//! Recovery and normal running are one path: `apply` reads the record, asks the catalog what is done, and goes on. Read
//! [`Migrator`] first.

mod approval;
mod pace;
mod rehearse;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cutover_core::model::{Digest, Version};
use serde::Serialize;
use serde_json::json;

use crate::{
    change::{Fate, RowStep, TableChange, Tactic},
    engine::{Engine, Loss, Policy, RowFunction, RowFunctions, Task, Versions, Watch, Work},
    error::{Error, Refusal},
    grace::{self, FleetFloor, Ticks},
    ir::{self, Dialect, Migration, Op, Undo},
    plan::{self, Plan},
    state::{
        self, Phase,
        history::{self, Event},
        lease,
        record::{self, Column, LedgerLine, Passed, Record},
        reject::{self, SetAside},
        sql::{Sql, Value, in_transaction},
    },
};
use pace::Pacer;
pub use rehearse::{Rehearsal, Staging};

/// Makes the row function of a step: a transform of this process, or a plugin.
pub type MakeFunction<'a> = dyn Fn(&Op) -> Result<Box<dyn RowFunction>, Error> + 'a;

/// Who runs it and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who asks for it: goes into the history.
    pub author: String,
    /// The limits.
    pub policy: Policy,
    /// How long the lease holds without a sign of life, in milliseconds.
    pub lease_ms: u64,
    /// Whether client latency is measured by a probe that writes.
    pub probe: bool,
    /// The end of the history as somebody kept it elsewhere: a history that does not hold it was cut off.
    pub head: Option<history::Head>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            author: "unknown".to_owned(),
            policy: Policy::default(),
            lease_ms: 15_000,
            probe: true,
            head: None,
        }
    }
}

/// How an `apply` ended well.
#[derive(Clone, Debug)]
pub enum Applied {
    /// It had been applied before; nothing was done.
    Already,
    /// It is applied.
    Done(Box<Report>),
}

/// What an `apply` did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The migration.
    pub id: String,
    /// The schema version now.
    pub version: u64,
    /// How long this run took, in milliseconds.
    pub took_ms: u64,
    /// Whether it went on from where another run had stopped.
    pub resumed: bool,
    /// The ledger: rows copied and verified, per table.
    pub ledger: Vec<LedgerLine>,
    /// Keys that were synced again because clients wrote them meanwhile.
    pub resynced: u64,
    /// The longest time a lock that clients wait for was held, in microseconds.
    pub longest_hold_us: u64,
    /// How long the swap held its lock, in microseconds.
    pub swap_hold_us: u64,
    /// Latency of the probe before the copy began, in microseconds (99th percentile); `None` without one.
    pub probe_before_p99_us: Option<u64>,
    /// Latency of the probe while rows were copied, in microseconds (99th percentile).
    pub probe_during_p99_us: Option<u64>,
    /// The plan it followed.
    pub plan: Digest,
}

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "{} is applied{}: schema version {}, {} ms",
            self.id,
            if self.resumed { " (gone on with)" } else { "" },
            self.version,
            self.took_ms
        )];
        for line in self.ledger.iter().filter(|line| line.kind != "cookie") {
            let word = if line.kind == "verify" { "verified" } else { "copied" };
            let aside = match line.rejected {
                0 => String::new(),
                rows => format!(", {rows} of them set aside"),
            };
            lines.push(format!(
                "  {}: {} rows {word}{aside} in {} chunks",
                line.table, line.seen, line.chunks
            ));
        }
        if self.resynced > 0 {
            lines.push(format!("  {} keys synced again that clients wrote meanwhile", self.resynced));
        }
        lines.push(format!(
            "  longest lock {:.1} ms, swap {:.1} ms",
            self.longest_hold_us as f64 / 1000.0,
            self.swap_hold_us as f64 / 1000.0
        ));
        if let (Some(before), Some(during)) = (self.probe_before_p99_us, self.probe_during_p99_us) {
            lines.push(format!(
                "  a client's write: {:.1} ms before, p99 {:.1} ms during",
                before as f64 / 1000.0,
                during as f64 / 1000.0
            ));
        }
        lines.join("\n")
    }
}

/// Where the migrations of a database are.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The schema version: the position of the last migration that was applied; 0 without any.
    pub version: u64,
    /// Who is migrating now.
    pub holder: Option<String>,
    /// Every migration, by position.
    pub migrations: Vec<Progress>,
}

/// Where one migration is.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    /// Its id.
    pub id: String,
    /// Its position.
    pub position: u64,
    /// Its hash.
    pub hash: Digest,
    /// Where it is.
    pub phase: Phase,
    /// The phases it went through.
    pub trail: Vec<Passed>,
    /// Whether it is paused.
    pub paused: bool,
    /// Why it failed, if it did and was not undone.
    pub failed: Option<String>,
    /// Whether contract is done.
    pub contracted: bool,
    /// Milliseconds of grace that have certainly passed since the swap.
    pub grace_passed_ms: u64,
    /// Milliseconds of grace that are asked for.
    pub grace_ms: u64,
    /// Who asked for it.
    pub author: String,
    /// Rows per second at most.
    pub rate: Option<u64>,
    /// Rows copied and verified.
    pub ledger: Vec<LedgerLine>,
    /// Rows that do not fit and were set aside; none of a migration that was rolled back.
    pub set_aside: SetAside,
    /// Rows that there are to copy, by the estimate of the plan's time.
    pub rows_expected: u64,
    /// Rows per second of the copy so far.
    pub rows_per_s: Option<u64>,
    /// Milliseconds until the copy ends, at that speed.
    pub eta_ms: Option<u64>,
}

/// Runs migrations on one database.
pub struct Migrator<'a> {
    engine: Box<dyn Engine>,
    settings: Settings,
    watch: &'a dyn Watch,
    make: &'a MakeFunction<'a>,
}

/// Row functions for migrations that have none.
///
/// # Errors
/// Always [`Error::Custom`]: nothing of that name is registered.
pub fn no_functions(op: &Op) -> Result<Box<dyn RowFunction>, Error> {
    let name = match op {
        Op::Transform { transform, .. } => transform.clone(),
        Op::Plugin { plugin, .. } => plugin.clone(),
        other => other.name().to_owned(),
    };
    Err(Error::Custom { name, says: "nothing of this name is registered".to_owned() })
}

impl<'a> Migrator<'a> {
    /// A migrator over an engine.
    pub fn new(
        engine: Box<dyn Engine>,
        settings: Settings,
        watch: &'a dyn Watch,
        make: &'a MakeFunction<'a>,
    ) -> Self {
        Self { engine, settings, watch, make }
    }

    /// Makes the plan of a migration. Reads only: it installs nothing and cannot disturb a running migration.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Edited`], [`Error::OutOfOrder`], or what the database says.
    pub fn plan(&mut self, migration: &Migration) -> Result<Plan, Error> {
        let records = self.records_if_any()?;
        let position = place(migration, &records)?;
        self.plan_at(migration, position, &records)
    }

    fn plan_at(&mut self, migration: &Migration, position: u64, records: &[Record]) -> Result<Plan, Error> {
        let policy = self.policy(migration);
        let catalog = self.engine.observe(&plan::tables(migration))?;
        let plan = plan::plan(migration, position, &catalog, &policy)?;
        for change in &plan.changes {
            let held = records.iter().find(|record| {
                record.phase == Phase::Cleanup
                    && !record.contracted
                    && leaves_something(&record.plan)
                    && record.plan.changes.iter().any(|other| *other.name_then() == change.table)
            });
            if let Some(held) = held {
                return Err(Error::refused(
                    format!("`{}` still has its old shape from migration `{}`", change.table, held.id()),
                    format!("Run `cutover schema complete {}` first, or roll it back.", held.id()),
                ));
            }
        }
        self.engine.validate(&plan::expression_checks(&plan))?;
        let mut plan = plan;
        plan.plugins = plugins(migration, &self.functions(migration)?);
        self.with_figures(migration, &mut plan)?;
        Ok(plan)
    }

    fn policy(&self, migration: &Migration) -> Policy {
        let mut policy = self.settings.policy.clone();
        if let Some(hold) = migration.run.max_hold_ms {
            policy.hold_ms = hold;
        }
        policy
    }

    /// Every record, without installing anything where there is no state yet.
    fn records_if_any(&mut self) -> Result<Vec<Record>, Error> {
        if state::is_installed(&mut *self.engine)? { record::all(&mut *self.engine) } else { Ok(Vec::new()) }
    }

    /// Applies a migration, or goes on with it. `approved` is the hash of the plan that somebody approved; without it the
    /// plan of this moment is taken as approved.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::RolledBack`] when it failed and was undone, [`Error::Stopped`] when it failed and stays.
    pub fn apply(&mut self, migration: &Migration, approved: Option<&str>) -> Result<Applied, Error> {
        let started = Instant::now();
        crate::file::check(migration)?;
        self.engine.prepare()?;
        history::read(&mut *self.engine, self.settings.head.as_ref())?;
        let records = record::all(&mut *self.engine)?;
        let found = records.iter().find(|record| record.id() == migration.id).cloned();
        if let Some(record) = &found
            && record.phase != Phase::RolledBack
        {
            if record.hash != migration.hash() {
                let differences = ir::differences(&record.migration, migration);
                return Err(Error::Edited { id: migration.id.clone(), differences });
            }
            if record.phase == Phase::Cleanup {
                return Ok(Applied::Already);
            }
        }
        let resumed = found.as_ref().is_some_and(Record::is_unfinished);
        let plan = match found.filter(Record::is_unfinished) {
            Some(record) => record.plan,
            None => {
                let position = place(migration, &records)?;
                self.plan_at(migration, position, &records)?
            }
        };
        let hash = plan.approval();
        if let Some(approved) = approved
            && (approved.len() < 8 || !hash.to_string().starts_with(approved))
        {
            return Err(Error::Drift { approved: approved.to_owned(), needed: hash.to_string() });
        }
        let functions = self.functions(migration)?;
        if let Some((name, now)) =
            plugins(migration, &functions).into_iter().find(|(name, now)| plan.plugins.get(name) != Some(now))
        {
            let approved = plan.plugins.get(&name).map_or_else(|| "none".to_owned(), ToString::to_string);
            return Err(Error::Plugin { name, approved, found: now.to_string() });
        }
        let policy = self.policy(migration);
        let versions = versions(migration, plan.position, &records);
        let epoch = self.begin(migration, &plan, resumed)?;
        let watch = self.watch;
        let mut run = Run {
            engine: &mut *self.engine,
            settings: &self.settings,
            watch,
            task: Task {
                migration: &migration.id,
                position: plan.position,
                epoch,
                versions: &versions,
                policy: &policy,
                functions: &functions,
                watch,
            },
            migration,
            plan: &plan,
            started,
        };
        let done = run.all_phases();
        let report = match done {
            Ok(mut report) => {
                report.resumed = resumed;
                report
            }
            Err(error) => return Err(run.failed(error)),
        };
        Ok(Applied::Done(Box::new(report)))
    }

    /// The lease, and the record if there is none yet, in one transaction.
    fn begin(&mut self, migration: &Migration, plan: &Plan, resumed: bool) -> Result<u64, Error> {
        let (author, lease_ms) = (self.settings.author.clone(), self.settings.lease_ms);
        let epoch = in_transaction(&mut *self.engine, |sql| {
            state::unflushed(sql)?;
            let epoch = lease::acquire(sql, &lease::owner(), lease_ms)?;
            // Another migrator may have begun, or finished, between our reading and the lease.
            let now = record::find(sql, &migration.id)?;
            let unfinished = now.as_ref().is_some_and(Record::is_unfinished);
            if resumed != unfinished || now.is_some_and(|record| record.phase == Phase::Cleanup) {
                return Err(Error::Drift {
                    approved: plan.approval().to_string(),
                    needed: "another".to_owned(),
                });
            }
            if !resumed {
                record::begin(sql, migration, plan, &author, migration.run.rate)?;
                let detail = json!({ "hash": plan.hash, "plan": plan.approval(), "position": plan.position });
                history::append(sql, &migration.id, Event::Began, &author, &detail)?;
            } else {
                record::set(sql, &migration.id, Column::Cancelled, false.into())?;
            }
            Ok(epoch)
        })?;
        self.watch.point("begun");
        Ok(epoch)
    }

    fn functions(&self, migration: &Migration) -> Result<RowFunctions, Error> {
        let mut functions: RowFunctions = BTreeMap::new();
        for (number, step) in migration.steps.iter().enumerate() {
            if matches!(step, Op::Transform { .. } | Op::Plugin { .. }) {
                functions.insert(number, Mutex::new((self.make)(step)?));
            }
        }
        Ok(functions)
    }

    /// Where everything is.
    ///
    /// # Errors
    /// What the database says; [`Error::Damaged`].
    pub fn status(&mut self) -> Result<Status, Error> {
        let records = self.records_if_any()?;
        if records.is_empty() {
            return Ok(Status { version: 0, holder: None, migrations: Vec::new() });
        }
        let holder = lease::holder(&mut *self.engine)?;
        let mut migrations = Vec::new();
        for record in records.iter() {
            let ledger = record::ledger(&mut *self.engine, record.id())?;
            let rows_expected = record.plan.rows;
            let copied = ledger
                .iter()
                .filter(|line| line.kind == "copy")
                .fold((0, 0), |sum, line| (sum.0 + line.seen, sum.1 + line.took_ms));
            let set_aside = match record.phase {
                Phase::RolledBack => SetAside::default(),
                _ => reject::count(&mut *self.engine, record.id(), None)?,
            };
            let rows_per_s = (copied.1 > 0).then(|| copied.0 * 1000 / copied.1);
            let left = rows_expected.saturating_sub(copied.0);
            migrations.push(Progress {
                id: record.id().to_owned(),
                position: record.position,
                hash: record.hash,
                phase: record.phase,
                trail: record.trail.clone(),
                paused: record.paused,
                failed: record.failed.clone(),
                contracted: record.contracted,
                grace_passed_ms: record.ticks.passed_ms,
                grace_ms: grace_ms(&record.plan),
                author: record.author.clone(),
                rate: record.rate,
                rows_expected,
                rows_per_s,
                eta_ms: (record.phase == Phase::Backfill)
                    .then(|| rows_per_s.filter(|rate| *rate > 0).map(|rate| left * 1000 / rate))
                    .flatten(),
                ledger,
                set_aside,
            });
        }
        Ok(Status { version: version(&records), holder, migrations })
    }

    /// The lowest schema version whose code the database still serves: the last one whose contract took something away.
    ///
    /// # Errors
    /// What the database says.
    pub fn floor(&mut self) -> Result<u64, Error> {
        let records = self.records_if_any()?;
        let contracted = records.iter().filter(|record| record.contracted && !record.plan.additive);
        Ok(contracted.map(|record| record.position).max().unwrap_or(0))
    }

    /// The history, after its chain was checked, also against the head that was kept elsewhere.
    ///
    /// # Errors
    /// [`Error::History`].
    pub fn history(&mut self) -> Result<Vec<history::Entry>, Error> {
        match (state::is_installed(&mut *self.engine)?, &self.settings.head) {
            (true, kept) => history::read(&mut *self.engine, kept.as_ref()),
            (false, Some(kept)) if kept.number > 0 => Err(history::cut_off(kept, 0)),
            (false, _) => Ok(Vec::new()),
        }
    }

    /// Where the history ends: what to keep elsewhere.
    ///
    /// # Errors
    /// What the database says.
    pub fn head(&mut self) -> Result<history::Head, Error> {
        match state::is_installed(&mut *self.engine)? {
            true => history::head(&mut *self.engine),
            false => Ok(history::Head::genesis()),
        }
    }

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

    fn record(&mut self, id: &str) -> Result<Record, Error> {
        let records = self.records_if_any()?;
        records.into_iter().find(|record| record.id() == id).ok_or_else(|| Error::Unknown(format!("`{id}`")))
    }

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
        let epoch = in_transaction(&mut *self.engine, |sql| lease::acquire(sql, &lease::owner(), lease_ms))?;
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
        let result = run.contract(locks);
        let released = lease::release(&mut *self.engine, epoch);
        let report = result?;
        released?;
        Ok(Applied::Done(Box::new(report)))
    }

    /// Accepts another file for a migration that was applied, without running anything.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Phase`] while it is under way.
    pub fn rebaseline(&mut self, migration: &Migration, reason: &str) -> Result<(), Error> {
        let record = self.record(&migration.id)?;
        if record.phase != Phase::Cleanup {
            let says = "only a migration that was applied can be rebaselined".to_owned();
            return Err(Error::Phase { id: migration.id.clone(), phase: record.phase, says });
        }
        let author = self.settings.author.clone();
        in_transaction(&mut *self.engine, |sql| {
            record::rebaseline(sql, migration)?;
            let detail = json!({ "was": record.hash, "is": migration.hash(), "reason": reason });
            history::append(sql, &migration.id, Event::Rebaselined, &author, &detail)
        })
    }

    /// The engine, for what is not a migration: rehearsals, preludes.
    pub fn engine(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }
}

/// The programs of the plugin steps.
fn plugins(migration: &Migration, functions: &RowFunctions) -> BTreeMap<String, Digest> {
    let digest = |number: usize| {
        let function = functions.get(&number)?;
        function.lock().unwrap_or_else(std::sync::PoisonError::into_inner).digest()
    };
    let steps = migration.steps.iter().enumerate();
    steps
        .filter_map(|(number, step)| match step {
            Op::Plugin { plugin, .. } => Some((plugin.clone(), digest(number)?)),
            _ => None,
        })
        .collect()
}

/// The schema version of a database.
pub fn version(records: &[Record]) -> u64 {
    records
        .iter()
        .filter(|record| record.phase == Phase::Cleanup)
        .map(|record| record.position)
        .max()
        .unwrap_or(0)
}

/// Where a migration stands in the line.
fn place(migration: &Migration, records: &[Record]) -> Result<u64, Error> {
    if let Some(record) = records.iter().find(|record| record.id() == migration.id)
        && record.phase != Phase::RolledBack
    {
        if record.hash != migration.hash() {
            let differences = ir::differences(&record.migration, migration);
            return Err(Error::Edited { id: migration.id.clone(), differences });
        }
        return Ok(record.position);
    }
    if let Some(unfinished) = records.iter().find(|record| record.is_unfinished()) {
        return Err(Error::Unfinished(unfinished.id().to_owned()));
    }
    let applied = records.iter().filter(|record| record.phase == Phase::Cleanup);
    let last = applied.max_by_key(|record| record.position);
    if last.map(Record::id) != migration.after.as_deref() {
        return Err(Error::OutOfOrder {
            id: migration.id.clone(),
            after: migration.after.clone(),
            last: last.map(|last| last.id().to_owned()),
        });
    }
    Ok(last.map_or(0, |last| last.position) + 1)
}

fn versions(migration: &Migration, position: u64, records: &[Record]) -> Versions {
    let label = |version: &str| version.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let before = records
        .iter()
        .filter(|record| record.phase == Phase::Cleanup && record.position < position)
        .max_by_key(|record| record.position);
    let old = before.map(|record| match &record.migration.app_version {
        Some(version) => label(version),
        None => format!("p{}", record.position),
    });
    Versions {
        old: old.unwrap_or_else(|| "0".to_owned()),
        new: migration.app_version.as_deref().map_or_else(|| format!("p{position}"), label),
    }
}

fn grace_ms(plan: &Plan) -> u64 {
    plan.changes.iter().map(|change| change.grace_s * 1000).max().unwrap_or(0)
}

/// Whether contract has anything to remove.
fn leaves_something(plan: &Plan) -> bool {
    plan.changes.iter().any(|change| change.tactic != Tactic::Instant || change.fate == Fate::Drop)
}

/// One run of one migration under a lease.
struct Run<'r> {
    engine: &'r mut dyn Engine,
    settings: &'r Settings,
    watch: &'r dyn Watch,
    task: Task<'r>,
    migration: &'r Migration,
    plan: &'r Plan,
    started: Instant,
}

impl Run<'_> {
    fn all_phases(&mut self) -> Result<Report, Error> {
        if self.is_instant() {
            for change in &self.plan.changes {
                self.engine.pre_scan(&self.task, change)?;
            }
            return self.swap(Work::default(), None);
        }
        let (lease_ms, epoch) = (self.settings.lease_ms, self.task.epoch);
        let mut heart = self.engine.another()?;
        let probe = if self.settings.probe { Some(self.engine.another()?) } else { None };
        let stop = AtomicBool::new(false);
        let probed = pace::Probed::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(20));
                    if last.elapsed() >= Duration::from_millis(lease_ms / 3) {
                        // What this cannot renew, the next transaction's fence will tell.
                        let _ = in_transaction(&mut *heart, |sql| lease::renew(sql, epoch, lease_ms));
                        last = Instant::now();
                    }
                }
            });
            if let Some(mut probe) = probe {
                let (stop, probed) = (&stop, &probed);
                scope.spawn(move || pace::probe(&mut *probe, stop, probed));
            }
            let result = self.phases(&probed);
            stop.store(true, Ordering::Relaxed);
            result
        })
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
        let mut record = |sql: &mut dyn Sql| {
            let record = record::find(sql, id)?.ok_or_else(|| Error::Unknown(format!("`{id}`")))?;
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
        let swapped = self.engine.swap(&self.task, &self.plan.changes, &mut record)?;
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
    fn failed(&mut self, error: Error) -> Error {
        let id = self.task.migration.to_owned();
        let Ok(Some(now)) = record::find(self.engine, &id) else { return error };
        let phase = now.phase;
        // Swapped: whatever failed afterwards is done again by `complete` or tells of itself; there is nothing to undo.
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

    fn contract(&mut self, mut locks: Vec<Refusal>) -> Result<Report, Error> {
        for change in &self.plan.changes {
            for line in self.engine.uses(&self.task, change)? {
                locks.push(Refusal::new(line, "Remove that use first."));
            }
        }
        if !locks.is_empty() {
            return Err(Error::Locked(locks));
        }
        let probed = pace::Probed::default();
        let pacer = Pacer::new(&self.task, self.migration, self.plan, &probed, None, self.started);
        pacer.enter(Phase::Cleanup)?;
        for change in &self.plan.changes {
            self.engine.contract(&self.task, change, &pacer)?;
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

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// The names of row functions that a change needs, for messages.
pub fn function_names(change: &TableChange) -> Vec<&str> {
    let names = change.rows.iter().filter_map(|step| match step {
        RowStep::Function { name, .. } => Some(name.as_str()),
        RowStep::Sql { .. } => None,
    });
    names.collect()
}
