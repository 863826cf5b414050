//! The driver: takes a migration through its phases, from wherever it is, on whichever engine.
//!
//! Recovery and normal running are one path: `apply` reads the record, asks the catalog what is done, and goes on. Read
//! [`Migrator`] first: here it plans and applies; `phases` is a run, `orders` steers it, `back` undoes it, `contract` ends it.

mod approval;
mod back;
mod contract;
mod heart;
mod line;
mod orders;
mod pace;
mod phases;
mod rehearse;
mod report;
mod status;

use std::{collections::BTreeMap, sync::Mutex, time::Instant};

use cutover_core::model::Digest;
use serde_json::json;

use crate::{
    engine::{Engine, Policy, RowFunction, RowFunctions, Task, Watch},
    error::Error,
    ir::{self, Migration, Op},
    plan::{self, Plan},
    state::{
        self, Phase,
        history::{self, Event},
        lease,
        record::{self, Column, Record},
        sql::in_transaction,
    },
};
use line::{leaves_something, place, versions};
pub use orders::Cancelled;
use phases::Run;
pub use rehearse::{Rehearsal, Staging};
pub use report::{Applied, Report};
pub use status::{Progress, Status};

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
                self.settle_again(record, &records)?;
                return Ok(Applied::Already);
            }
        }
        self.finish_ways_back(&records)?;
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
        let report = Report { resumed, ..run.carry_out()? };
        Ok(Applied::Done(Box::new(report)))
    }

    /// The lease, and the record if there is none yet, in one transaction.
    fn begin(&mut self, migration: &Migration, plan: &Plan, resumed: bool) -> Result<u64, Error> {
        let (author, lease_ms) = (self.settings.author.clone(), self.settings.lease_ms);
        let epoch = in_transaction(&mut *self.engine, |sql| {
            state::unflushed(sql)?;
            let epoch = lease::acquire(sql, &lease::owner_for(&migration.id), lease_ms)?;
            // Another migrator may have begun, or finished, between our reading and the lease: this migration or another.
            let now = record::all(sql)?;
            let own = now.iter().find(|record| record.id() == migration.id);
            let is_as_planned = match own {
                Some(record) if record.is_unfinished() => resumed,
                Some(record) if record.phase == Phase::Cleanup => false,
                _ => !resumed && place(migration, &now)? == plan.position,
            };
            if !is_as_planned {
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

    fn record(&mut self, id: &str) -> Result<Record, Error> {
        let records = self.records_if_any()?;
        records.into_iter().find(|record| record.id() == id).ok_or_else(|| Error::Unknown(format!("`{id}`")))
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
