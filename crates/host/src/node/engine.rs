//! The loop that runs a plan: what to do next is the fold over the journal, here it is done and recorded.
//!
//! The one rule: a line that announces something is durable before that something begins (I2). Records are collected and
//! written with the next announcement, so a step's outcome and the next one's intent cost one flush. When the journal
//! cannot be written, everything stops at once (I13); the next process takes up from what is on disk.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Instant as Monotonic,
};

use cutover_core::{
    causes::chain,
    event::{Event, Observer},
    execute::{Direction, Execution, Next, Outcome, Record, StepState},
    lifecycle::State,
    model::{Digest, ReleaseRef, RestorePoint, RestorePointId, SafePath, SeenKind, SeenTree},
    plan::{
        Change, CheckTree, Expand, Layout, MigrationFile, OnProbeFailure, Plan, PlanKind, Source, Step,
        Switch,
    },
};

use super::{
    current,
    error::{NodeError, PointError},
    events::Events,
    files::{Files, FsError},
    garbage, history,
    journal::{self, Journal},
    place,
    report::{Driven, Held, Report, StepReport, StepResult, Way},
    restore,
    root::{Node, NodeLock},
    stage::{self, Staging},
    state_log, switch,
    tree::{self, Expected, ExpectedTree, Reading},
};
use crate::{
    catalog::{Catalog, HistoryRow},
    payload::Payload,
    probe::{Latency, ProbeContext, ProbeReport, Prober},
    schema::{Migration, SchemaManager},
    service::{Activation, ServiceManager},
};

/// Share of the whole that staging takes in the progress; the other steps share the rest.
const STAGE_PERCENT: u8 = 70;

/// Share of the whole that changing the schema takes.
const EXPAND_PERCENT: u8 = 20;

/// One run of the loop in this process.
pub(crate) struct Run<'a> {
    node: &'a Node,
    lock: &'a NodeLock,
    plan: Arc<Plan>,
    payload: Option<&'a dyn Payload>,
    ports: &'a Ports<'a>,
    events: Events,
    journal: Journal<'a>,
    execution: Execution,
    /// Records that are not written yet.
    pending: Vec<Record>,
    /// Events about them, told once they are durable: nobody hears of a success that could be lost.
    untold: Vec<Event>,
    /// The release that is installed, as it was found when the execution began.
    seen: Option<SeenTree>,
    point: Option<Arc<RestorePoint>>,
    steps: Vec<StepReport>,
    warnings: Vec<String>,
    probes: Option<ProbeReport>,
    undo_error: Option<String>,
}

/// What to do now, without a borrow of the execution.
enum Turn {
    Perform(usize),
    Undo(usize),
    Hold,
    Finish(Outcome),
}

/// What a step that succeeded has to say.
#[derive(Default)]
struct Effect {
    note: String,
    evidence: Option<Digest>,
}

impl From<String> for Effect {
    fn from(note: String) -> Self {
        Self { note, evidence: None }
    }
}

/// A failed step, with all that is worth recording.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Service(#[from] crate::service::ServiceError),
    #[error("no database is configured")]
    NoDatabase,
    #[error("the schema of the database could not be changed")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("migration `{0}` is not as the release says")]
    Migration(SafePath),
    #[error("{0} panicked")]
    Panic(&'static str),
    #[error("installed file `{path}` {problem}")]
    Installed { path: SafePath, problem: &'static str },
    #[error("post-update probe failed: {0}")]
    Probe(String),
}

impl From<FsError> for StepError {
    fn from(error: FsError) -> Self {
        Self::Node(error.into())
    }
}

impl From<PointError> for StepError {
    fn from(error: PointError) -> Self {
        Self::Node(error.into())
    }
}

impl From<crate::catalog::CatalogError> for StepError {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self::Node(error.into())
    }
}

/// Whom an execution talks to.
pub struct Ports<'a> {
    /// Whoever runs the service.
    pub service: &'a dyn ServiceManager,
    /// Examines the release after the switch, exactly once.
    pub prober: &'a dyn Prober,
    /// Changes the schema of the service's database; `None` when none is configured, and then a release that carries
    /// migrations is not installed.
    pub schema: Option<&'a dyn SchemaManager>,
    /// Is told what happens. It runs on a thread of its own: a slow one delays nothing, a panicking one harms nothing.
    pub observer: Arc<dyn Observer>,
    /// Is called with a step's name in the execution's own thread, once the step's intent is durable and before it
    /// begins: the place where a test stops the process.
    pub before_step: Option<&'a dyn Fn(&'static str)>,
}

/// What a run starts from.
pub(crate) struct Start<'a> {
    pub(crate) payload: Option<&'a dyn Payload>,
    pub(crate) journal: Journal<'a>,
    pub(crate) execution: Execution,
    /// Records to be written with the first announcement; the execution has taken them in.
    pub(crate) first: Vec<Record>,
    pub(crate) seen: Option<SeenTree>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(node: &'a Node, lock: &'a NodeLock, ports: &'a Ports<'a>, start: Start<'a>) -> Self {
        let Start { payload, journal, execution, first, seen } = start;
        Self {
            node,
            lock,
            plan: Arc::clone(execution.plan()),
            payload,
            ports,
            events: Events::new(Arc::clone(&ports.observer)),
            journal,
            execution,
            pending: first,
            untold: Vec::new(),
            seen,
            point: None,
            steps: Vec::new(),
            warnings: Vec::new(),
            probes: None,
            undo_error: None,
        }
    }

    /// Runs to the end, or until it waits for its set.
    pub(crate) fn drive(mut self) -> Result<Driven, NodeError> {
        let (from, to) = (self.plan.from.clone(), self.plan.to.clone());
        self.events.send(Event::Started { number: self.plan.number, from, to });
        loop {
            let turn = match self.execution.next() {
                Next::Perform(index, _) => Turn::Perform(index),
                Next::Undo(index, _) => Turn::Undo(index),
                Next::Hold => Turn::Hold,
                Next::Finish(outcome) => Turn::Finish(outcome),
                Next::Ended(outcome) => Turn::Finish(outcome.clone()),
            };
            match turn {
                Turn::Perform(index) => self.perform_and_record(index)?,
                Turn::Undo(index) => self.undo_and_record(index)?,
                Turn::Hold => {
                    self.flush()?;
                    let number = self.plan.number;
                    return Ok(Driven::Held(Held { number, steps: self.steps, warnings: self.warnings }));
                }
                Turn::Finish(outcome) => {
                    return self.finish(outcome).map(|report| Driven::Ended(Box::new(report)));
                }
            }
        }
    }

    /// Takes a record in; it is written with the next announcement.
    fn record(&mut self, record: Record) {
        self.execution
            .apply(&record)
            .expect("the loop does what the execution says, so every record follows");
        self.pending.push(record);
    }

    /// Makes all records durable.
    fn flush(&mut self) -> Result<(), NodeError> {
        if !self.pending.is_empty() {
            let now = self.node.clock().now();
            self.journal
                .append(|out| Record::write_line(&self.pending, now, out))
                .map_err(NodeError::Stopped)?;
            self.pending.clear();
        }
        for event in self.untold.drain(..) {
            self.events.send(event);
        }
        Ok(())
    }

    fn perform_and_record(&mut self, index: usize) -> Result<(), NodeError> {
        let plan = Arc::clone(&self.plan);
        let step = &plan.steps[index];
        if self.execution.steps()[index] == StepState::Waiting {
            self.record(Record::Intent { step: index });
        }
        self.flush()?;
        let name = step.name();
        self.events.send(Event::StepStarted { step: name });
        if let Some(before_step) = self.ports.before_step {
            before_step(name);
        }
        let began = Monotonic::now();
        let result = self.perform(step);
        let elapsed_ms = millis(began);
        let (note, ended) = match result {
            Ok(Effect { note, evidence }) => {
                tracing::info!(step = name, elapsed_ms, %note, "done");
                self.record(Record::Done { step: index, evidence });
                self.untold.push(Event::StepDone { step: name, elapsed_ms, note: note.clone() });
                self.events.progress(percent_after(&plan, index));
                (note, StepResult::Done)
            }
            // Its set is committed: there is no way back, and the step is tried again by the next process.
            Err(error) if self.execution.is_released() => {
                let error = chain(&error);
                tracing::error!(step = name, %error, "failed; there is only forward");
                return Err(NodeError::NotConfirmed { number: plan.number, error });
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(step = name, %error, "failed");
                self.record(Record::Failed { step: index, error: error.clone() });
                self.untold.push(Event::StepFailed { step: name, error: error.clone() });
                if matches!(self.execution.direction(), Direction::Back { .. }) {
                    self.log_state(State::RollingBack);
                }
                (error, StepResult::Failed)
            }
        };
        self.steps.push(StepReport { step: name, way: Way::Forward, elapsed_ms, note, result: ended });
        Ok(())
    }

    fn undo_and_record(&mut self, index: usize) -> Result<(), NodeError> {
        let plan = Arc::clone(&self.plan);
        let step = &plan.steps[index];
        self.record(Record::UndoIntent { step: index });
        self.flush()?;
        let name = step.name();
        self.events.send(Event::UndoStarted { step: name });
        let began = Monotonic::now();
        let mut result = self.undo(step);
        if result.as_ref().is_err_and(|error| is_full(error)) {
            // The way back needs little room, and for that moment some was kept.
            let released = journal::release_reserve(&self.node.files);
            tracing::warn!(?released, step = name, "tried again");
            result = self.undo(step);
        }
        let elapsed_ms = millis(began);
        let (note, ended) = match result {
            Ok(()) => {
                tracing::info!(step = name, elapsed_ms, "undone");
                self.record(Record::Undone { step: index });
                self.untold.push(Event::UndoDone { step: name });
                (String::new(), StepResult::Done)
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(step = name, %error, "could not be undone");
                self.record(Record::UndoFailed { step: index, error: error.clone() });
                self.untold.push(Event::UndoFailed { step: name, error: error.clone() });
                self.undo_error = Some(format!("undo of {name} failed: {error}"));
                (error, StepResult::Failed)
            }
        };
        self.steps.push(StepReport { step: name, way: Way::Back, elapsed_ms, note, result: ended });
        Ok(())
    }

    /// Performs one step. Each arm can be run again after it was cut off.
    fn perform(&mut self, step: &Step) -> Result<Effect, StepError> {
        match step {
            Step::Stage(stage) => {
                let total = stage.files.iter().map(|file| file.size).sum::<u64>().max(1);
                let events = &self.events;
                let progress = |laid: u64| {
                    let share = u128::from(laid) * u128::from(STAGE_PERCENT) / u128::from(total);
                    events.progress(u8::try_from(share).unwrap_or(STAGE_PERCENT).min(STAGE_PERCENT));
                };
                let node = self.node;
                let staging =
                    Staging::new(&node.files, &node.hashes, &self.plan, stage, self.payload, &progress);
                Ok(staging.perform()?.into())
            }
            Step::CheckTree(check) => self.check_tree(check),
            Step::RestorePoint { id } => self.make_point(id),
            Step::Expand(expand) => self.expand(expand),
            Step::Quiesce => {
                shielded("the service manager", || self.ports.service.quiesce())??;
                Ok(Effect::default())
            }
            Step::Switch(switch) => {
                let point = self.own_point()?;
                switch::perform(&self.node.files, &self.plan, switch, &point, &self.node.hashes)?;
                Ok(Effect::default())
            }
            Step::Activate => {
                let note = self.activate(self.plan.to.clone())?;
                Ok(note.into())
            }
            Step::Probe => self.probe(),
            Step::Confirm => {
                self.confirm()?;
                Ok(Effect::default())
            }
        }
    }

    /// Undoes one step, whether it happened or not.
    fn undo(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Stage(_) => {
                stage::undo(&self.node.files, &self.plan, self.is_release_needed()?)?;
                // Objects that nothing names do no harm; the next prune finds them too.
                if let Err(error) = garbage::sweep(&self.node.files) {
                    self.warnings.push(format!("unneeded objects remain in the store: {}", chain(&error)));
                }
                Ok(())
            }
            Step::RestorePoint { id } => Ok(self.node.files.discard(&place::point(id))?),
            Step::Quiesce => {
                let layout = self.plan.layout;
                let release = current::release(&self.node.files, layout)?;
                self.activate(release).map(drop)
            }
            Step::Switch(_) => {
                let point = self.own_point()?;
                Ok(switch::undo(&self.node.files, &self.plan, &point)?)
            }
            // The present release works on an expanded schema too, and a copy that was interrupted is gone on with later.
            Step::CheckTree(_) | Step::Expand(_) | Step::Activate | Step::Probe | Step::Confirm => Ok(()),
        }
    }

    /// Whether anything but this execution needs the release it leads to.
    fn is_release_needed(&self) -> Result<bool, NodeError> {
        if self.plan.kind == PlanKind::Rollback {
            return Ok(true);
        }
        for (_, id) in restore::ids(&self.node.files)? {
            if let Ok(point) = restore::read(&self.node.files, &id)
                && point.from == self.plan.to
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn check_tree(&mut self, check: &CheckTree) -> Result<Effect, StepError> {
        let Some(to) = &self.plan.to else { return Ok(Effect::default()) };
        let point = restore::read(&self.node.files, &check.point)?;
        let scratch = place::staging(self.plan.number).join("mend");
        let base = place::release(&to.name());
        let reading = Reading::Once(&self.node.hashes);
        switch::check_tree(&self.node.files, &base, &check.files, &scratch, &point, reading)?;
        Ok(format!("{} files as they were", check.files.len()).into())
    }

    fn make_point(&mut self, id: &RestorePointId) -> Result<Effect, StepError> {
        let files = &self.node.files;
        let mut point = RestorePoint {
            format: 1,
            id: id.clone(),
            created_at: self.node.clock().now(),
            from: self.plan.from.clone(),
            to: self.plan.to.clone(),
            files: SeenTree::new(),
            added: Vec::new(),
            directories: Vec::new(),
        };
        match self.plan.layout {
            Layout::Versioned | Layout::Exchange => {
                point.files = self.seen.take().unwrap_or_default();
            }
            Layout::InPlace => {
                let switch = switch_of(&self.plan);
                let before = switch::before(files, switch, &self.node.hashes)?;
                (point.files, point.added, point.directories) =
                    (before.files, before.added, before.directories);
            }
        }
        let keep = match self.plan.layout {
            Layout::Versioned | Layout::Exchange => None,
            Layout::InPlace => Some(Path::new("")),
        };
        files.ensure_dir(&place::staging(self.plan.number), 0o700)?;
        let scratch = place::staging(self.plan.number).join("point");
        let evidence = restore::write(files, &point, keep, &scratch)?;
        let note = format!("{} files", point.files.len());
        self.point = Some(Arc::new(point));
        Ok(Effect { note, evidence: Some(evidence) })
    }

    /// Hands the migrations of the staged release to whoever changes the schema.
    fn expand(&mut self, expand: &Expand) -> Result<Effect, StepError> {
        let manager = self.ports.schema.ok_or(StepError::NoDatabase)?;
        let migrations =
            expand.migrations.iter().map(|file| self.migration(file)).collect::<Result<Vec<_>, _>>()?;
        let events = &self.events;
        let share = |percent: u8| STAGE_PERCENT + percent.min(100) / (100 / EXPAND_PERCENT);
        let progress = |percent: u8| events.progress(share(percent));
        let note = shielded("the schema engine", || manager.expand(expand.version, &migrations, &progress))?
            .map_err(StepError::Schema)?;
        Ok(note.into())
    }

    /// A migration as it was staged, or as it lies in the root when it did not change there.
    fn migration(&self, file: &MigrationFile) -> Result<Migration, StepError> {
        let name = Path::new(file.path.as_str());
        let places = match (&self.plan.to, self.plan.layout) {
            (Some(to), Layout::Versioned | Layout::Exchange) => vec![place::release(&to.name()).join(name)],
            _ => vec![place::staged_tree(self.plan.number).join(name), name.to_owned()],
        };
        for path in places {
            if let Some(text) = self.node.files.read(&path)?
                && Digest::of(&text) == file.sha256
            {
                return Ok(Migration { path: file.path.clone(), text });
            }
        }
        Err(StepError::Migration(file.path.clone()))
    }

    /// This execution's restore point: from memory, or as the journal vouches for it.
    fn own_point(&self) -> Result<Arc<RestorePoint>, NodeError> {
        match &self.point {
            Some(point) => Ok(Arc::clone(point)),
            None => Ok(restore::read(&self.node.files, &RestorePointId::of_execution(self.plan.number))?),
        }
    }

    /// Makes the service run `release`; returns what is worth telling.
    fn activate(&self, release: Option<ReleaseRef>) -> Result<String, StepError> {
        let files = &self.node.files;
        let (tree, hints) = match &release {
            Some(release) => {
                let tree = current::tree(self.plan.layout, release);
                (tree, current::manifest_of(files, release)?.service.clone())
            }
            None => (Default::default(), None),
        };
        let tree = files.disk.root().join(tree);
        let target = Activation { release, tree, hints };
        let activated = shielded("the service manager", || self.ports.service.activate(&target))??;
        Ok(activated.note)
    }

    /// Compares what is installed with what the plan leads to, then asks the prober, once.
    fn probe(&mut self) -> Result<Effect, StepError> {
        let Some(to) = self.plan.to.clone() else { return Ok(Effect::default()) };
        let base = current::tree(self.plan.layout, &to);
        let expected = self.expected()?;
        if let Some((path, difference)) =
            tree::probe(&self.node.files, &base, &expected, &self.node.hashes)?.into_iter().next()
        {
            return Err(StepError::Installed { path, problem: difference.text() });
        }
        let catalog = self.node.catalog()?;
        let context = ProbeContext {
            release: to.clone(),
            root: self.node.files.disk.root(),
            tree: self.node.files.disk.root().join(base),
            baseline: self.plan.from.as_ref().and_then(|from| baseline(&catalog, from)),
        };
        let report = shielded("a probe", || self.ports.prober.probe(&context))?;
        if let Some(latency) = report.latency()
            && let Ok(json) = serde_json::to_string(&latency)
            && let Err(error) = catalog.set_measurement(to.manifest, &json)
        {
            self.warnings.push(format!("the measured latency could not be kept: {}", chain(&error)));
        }
        let (passed, summary) = (report.passed(), report.summary());
        self.probes = Some(report);
        if passed { Ok(summary.into()) } else { Err(StepError::Probe(summary)) }
    }

    /// What must lie in the tree after the switch.
    fn expected(&self) -> Result<ExpectedTree, NodeError> {
        let plan = &self.plan;
        let to = plan.to.as_ref().expect("only a plan with a target probes");
        match (plan.kind, plan.layout) {
            (PlanKind::Update, layout) => {
                let manifest = current::manifest_of(&self.node.files, to)?;
                Ok(tree::expected_of_manifest(&manifest, layout))
            }
            (PlanKind::Rollback, Layout::InPlace) => expected_in_place(&self.node.files, plan),
            (PlanKind::Rollback, Layout::Versioned | Layout::Exchange) => {
                let checked = plan.steps.iter().find_map(|step| match step {
                    Step::CheckTree(check) => Some(tree::expected_of_seen(&check.files)),
                    Step::Stage(_) => Some(expected_of_stage(plan)),
                    _ => None,
                });
                Ok(checked.unwrap_or_default())
            }
        }
    }

    /// One transaction: the release is indexed and its version remembered, and the history tells of it.
    fn confirm(&self) -> Result<(), NodeError> {
        let row = self.history_row(&Outcome::Confirmed, None);
        match &self.plan.to {
            Some(to) => {
                let manifest = current::manifest_of(&self.node.files, to)?;
                let fingerprints = self.node.hashes.take_probed();
                self.node.catalog()?.confirm(Some((to.manifest, &manifest)), &row, &fingerprints)?;
            }
            None => self.node.catalog()?.confirm(None, &row, &[])?,
        }
        Ok(())
    }

    fn history_row(&self, outcome: &Outcome, error: Option<String>) -> HistoryRow {
        history::row(&self.plan, self.node.clock().now(), outcome, error, self.kept_point(outcome))
    }

    /// The restore point that stays after this end.
    fn kept_point(&self, outcome: &Outcome) -> Option<RestorePointId> {
        let own = || Some(RestorePointId::of_execution(self.plan.number));
        match (outcome, self.plan.kind) {
            (Outcome::Confirmed, PlanKind::Update)
            | (Outcome::KeptUnconfirmed | Outcome::Stuck { .. }, _) => own(),
            (Outcome::Confirmed, PlanKind::Rollback)
            | (Outcome::Undone { .. } | Outcome::ProbeFailed { .. }, _) => None,
        }
    }

    /// Writes the end, tidies up, and reports.
    fn finish(mut self, outcome: Outcome) -> Result<Report, NodeError> {
        let error = self.error_of(&outcome);
        match &outcome {
            Outcome::Confirmed => {}
            Outcome::Undone { .. } | Outcome::ProbeFailed { .. } | Outcome::KeptUnconfirmed => {
                let row = self.history_row(&outcome, error.clone());
                self.tell_history(&row);
            }
            Outcome::Stuck { reason } => {
                let failed = self.history_row(&outcome, Some(reason.clone()));
                self.tell_history(&HistoryRow { outcome: "failed".to_owned(), ..failed.clone() });
                self.tell_history(&HistoryRow {
                    number: None,
                    action: "restore".to_owned(),
                    from: failed.to,
                    to: failed.from,
                    error: self.undo_error.clone(),
                    ..failed
                });
            }
        }
        let ended = match &outcome {
            // It can be taken up again, so its end is not recorded.
            Outcome::Stuck { .. } => false,
            Outcome::Confirmed if self.plan.kind == PlanKind::Rollback => {
                // From here on only forward; what the rollback used up may go.
                self.flush()?;
                match self.drop_used_points() {
                    Ok(()) => true,
                    Err(error) => {
                        let error = chain(&error);
                        self.warnings.push(format!("used restore points remain until the next run: {error}"));
                        false
                    }
                }
            }
            Outcome::Confirmed
            | Outcome::Undone { .. }
            | Outcome::ProbeFailed { .. }
            | Outcome::KeptUnconfirmed => true,
        };
        if ended {
            self.record(Record::Finished { outcome: outcome.clone() });
        }
        self.flush()?;
        if ended && let Err(error) = self.node.files.remove_tree(&place::staging(self.plan.number)) {
            self.warnings.push(format!("staging remains until the next run: {}", chain(&error)));
        }
        self.log_state(match &outcome {
            Outcome::Stuck { .. } => State::Failed,
            Outcome::Confirmed
            | Outcome::Undone { .. }
            | Outcome::ProbeFailed { .. }
            | Outcome::KeptUnconfirmed => State::Idle,
        });
        if outcome == Outcome::Confirmed {
            self.events.progress(100);
        }
        for message in &self.warnings {
            self.events.send(Event::Warning { message: message.clone() });
        }
        self.events.send(Event::Finished { outcome: outcome.clone() });
        Ok(self.report(outcome, error))
    }

    fn tell_history(&mut self, row: &HistoryRow) {
        let told = self.node.catalog().and_then(|catalog| Ok(catalog.record(row)?));
        if let Err(error) = told {
            self.warnings.push(format!("the history could not be written: {}", chain(&error)));
        }
    }

    /// Why it did not succeed.
    fn error_of(&self, outcome: &Outcome) -> Option<String> {
        match outcome {
            Outcome::Confirmed => None,
            Outcome::Undone { reason } | Outcome::ProbeFailed { reason } => Some(reason.clone()),
            Outcome::KeptUnconfirmed => {
                let failed = |step: &&StepReport| step.step == "probe" && step.result == StepResult::Failed;
                let note = self.steps.iter().rev().find(failed).map(|step| step.note.clone());
                Some(note.unwrap_or_else(|| "post-update probe failed".to_owned()))
            }
            Outcome::Stuck { reason } => match &self.undo_error {
                Some(undo) => Some(format!("{reason}; {undo}")),
                None => Some(reason.clone()),
            },
        }
    }

    /// Removes the restore points from the target on, this execution's own included: they lead away from what is current.
    fn drop_used_points(&self) -> Result<(), NodeError> {
        let files = &self.node.files;
        let mut target = None;
        for (number, id) in restore::ids(files)? {
            if number < self.plan.number
                && let Ok(point) = restore::read(files, &id)
                && point.from == self.plan.to
            {
                target = Some(number);
            }
        }
        for (number, id) in restore::ids(files)?.into_iter().rev() {
            if number <= self.plan.number && target.is_some_and(|target| number >= target) {
                files.discard(&place::point(&id))?;
            }
        }
        Ok(files.discard(&place::point(&RestorePointId::of_execution(self.plan.number)))?)
    }

    /// The state log follows; it decides nothing, so a failure to write it is only a warning.
    pub(crate) fn log_state(&mut self, to: State) {
        let version = self.plan.to.as_ref().map(|to| to.version.clone());
        let written = (|| {
            let mut log = self.node.state_log(self.lock)?;
            let path = state_log::path_to(log.lifecycle().state(), to);
            log.go_through(&path, version.as_ref()).map_err(NodeError::from)
        })();
        if let Err(error) = written {
            self.warnings.push(format!("the state log could not be written: {}", chain(&error)));
        }
    }

    fn report(self, outcome: Outcome, error: Option<String>) -> Report {
        let plan = Arc::clone(&self.plan);
        let failed = !matches!(outcome, Outcome::Confirmed);
        let log = plan.to.as_ref().map(place::log).filter(|_| failed);
        let failed_log = log
            .filter(|log| matches!(self.node.files.exists(log), Ok(true)))
            .map(|log| self.node.files.disk.root().join(log));
        let updated = match outcome {
            Outcome::Confirmed | Outcome::KeptUnconfirmed => staged_paths(&plan),
            Outcome::Undone { .. } | Outcome::ProbeFailed { .. } | Outcome::Stuck { .. } => Vec::new(),
        };
        Report {
            number: plan.number,
            kind: plan.kind,
            restore_point: self.kept_point(&outcome),
            probe_failed: self.has_failed_probe(&outcome),
            message: message(&plan, &outcome, error.as_deref()),
            from: plan.from.clone(),
            to: plan.to.clone(),
            outcome,
            probes: self.probes,
            steps: self.steps,
            updated,
            failed_log,
            warnings: self.warnings,
        }
    }

    fn has_failed_probe(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::ProbeFailed { .. } | Outcome::KeptUnconfirmed => true,
            Outcome::Stuck { .. } => {
                self.plan.steps.iter().zip(self.execution.steps()).any(|(step, state)| {
                    matches!(step, Step::Probe) && !matches!(state, StepState::Waiting | StepState::Done)
                }) && self.plan.on_probe_failure == OnProbeFailure::Restore
                    && self.steps.iter().any(|step| step.step == "probe" && step.result == StepResult::Failed)
            }
            Outcome::Confirmed | Outcome::Undone { .. } => false,
        }
    }
}

/// Whether an error comes from a full disk.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let full = error.downcast_ref::<std::io::Error>().is_some_and(journal::is_full);
    full || error.source().is_some_and(is_full)
}

/// Runs foreign code so that a panic of it is an error of the step.
fn shielded<T>(who: &'static str, work: impl FnOnce() -> T) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| StepError::Panic(who))
}

fn baseline(catalog: &Catalog, from: &ReleaseRef) -> Option<Latency> {
    let json = catalog.measurement(from.manifest).ok().flatten()?;
    serde_json::from_str(&json).ok()
}

fn millis(began: Monotonic) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn percent_after(plan: &Plan, index: usize) -> u8 {
    let steps = plan.steps.len().max(1);
    let rest = usize::from(99 - STAGE_PERCENT);
    let done = match plan.steps.first() {
        Some(Step::Stage(_)) => usize::from(STAGE_PERCENT) + rest * index / steps,
        _ => 99 * (index + 1) / steps,
    };
    u8::try_from(done).unwrap_or(99)
}

fn switch_of(plan: &Plan) -> &Switch {
    static NONE: Switch = Switch { changes: Vec::new() };
    let switch = plan.steps.iter().find_map(|step| match step {
        Step::Switch(switch) => Some(switch),
        _ => None,
    });
    switch.unwrap_or(&NONE)
}

/// The files of a staged tree: what a rollback to a cold restore point leads to.
fn expected_of_stage(plan: &Plan) -> ExpectedTree {
    let mut tree = ExpectedTree::new();
    for step in &plan.steps {
        let Step::Stage(stage) = step else { continue };
        for file in stage.files.iter().filter(|file| !stage.shared.contains(&file.path)) {
            let kind = SeenKind::File { sha256: file.sha256, size: file.size };
            tree.insert(file.path.clone(), Expected { kind, mode: file.mode.bits() });
        }
        for link in &stage.symlinks {
            let kind = SeenKind::Symlink { target: link.target.clone() };
            tree.insert(link.path.clone(), Expected { kind, mode: 0o777 });
        }
    }
    tree
}

/// The paths an in-place rollback puts back, with all the permission bits their restore points know.
fn expected_in_place(files: &Files, plan: &Plan) -> Result<ExpectedTree, NodeError> {
    let mut tree = ExpectedTree::new();
    let staged = plan.steps.iter().find_map(|step| match step {
        Step::Stage(stage) => Some(stage),
        _ => None,
    });
    for file in staged.iter().flat_map(|stage| &stage.files) {
        let kind = SeenKind::File { sha256: file.sha256, size: file.size };
        tree.insert(file.path.clone(), Expected { kind, mode: file.mode.bits() });
        if let Source::RestorePoint { id } = &file.source
            && let Some(expected) = tree.get_mut(&file.path)
            && let Some(seen) = restore::read(files, id)?.files.get(&file.path)
        {
            expected.mode = seen.mode;
        }
    }
    for change in &switch_of(plan).changes {
        if let Change::Link { path, target } = change {
            let kind = SeenKind::Symlink { target: target.clone() };
            tree.insert(path.clone(), Expected { kind, mode: 0o777 });
        }
    }
    Ok(tree)
}

/// The files that are laid down anew, in the plan's order.
fn staged_paths(plan: &Plan) -> Vec<SafePath> {
    let stage = plan.steps.iter().find_map(|step| match step {
        Step::Stage(stage) => Some(stage),
        _ => None,
    });
    stage
        .iter()
        .flat_map(|stage| &stage.files)
        .filter(|file| !matches!(file.source, Source::Present { .. }))
        .map(|file| file.path.clone())
        .collect()
}

/// One sentence about an end. Nothing but a confirmed end reads like a success (I15).
fn message(plan: &Plan, outcome: &Outcome, error: Option<&str>) -> String {
    let name = |release: &Option<ReleaseRef>| {
        release.as_ref().map_or("an empty root".to_owned(), ToString::to_string)
    };
    let (from, to) = (name(&plan.from), name(&plan.to));
    let reason = error.unwrap_or("no reason was recorded");
    match (outcome, plan.kind) {
        (Outcome::Confirmed, PlanKind::Update) => format!("updated from {from} to {to}"),
        (Outcome::Confirmed, PlanKind::Rollback) => format!("rolled back from {from} to {to}"),
        (Outcome::Undone { .. }, _) => format!("not done, {from} is as it was: {reason}"),
        (Outcome::ProbeFailed { .. }, _) => format!("{reason}; {from} was restored"),
        (Outcome::KeptUnconfirmed, _) => format!("{reason}; {to} stays, unconfirmed"),
        (Outcome::Stuck { .. }, _) => {
            format!("restoring {from} failed, act now: {reason}; then run `cutover recover`")
        }
    }
}
