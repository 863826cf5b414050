//! What each step does, and what undoes it. Every arm can be run again after it was cut off.

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::{
    causes::chain,
    execute::Outcome,
    model::{Digest, ReleaseRef, RestorePoint, RestorePointId, SafePath, SeenKind, SeenTree},
    plan::{Change, CheckTree, Expand, Layout, MigrationFile, Plan, PlanKind, Source, Step, Switch},
    supervise::Earlier,
};

use super::{
    current,
    error::{NodeError, PointError},
    files::{Files, FsError},
    garbage, place, restore,
    run::Run,
    stage::{self, Staging},
    switch,
    tree::{self, Expected, ExpectedTree, Reading},
};
use crate::{
    catalog::{Catalog, CatalogError},
    probe::{Latency, ProbeContext},
    schema::Migration,
    service::{Activation, ServiceError},
};

/// Share of the whole that staging takes in the progress; the other steps share the rest.
pub(super) const STAGE_PERCENT: u8 = 70;

/// Share of the whole that changing the schema takes.
const EXPAND_PERCENT: u8 = 20;

/// What a step that succeeded has to say.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) note: String,
    pub(super) evidence: Option<Digest>,
}

impl From<String> for Effect {
    fn from(note: String) -> Self {
        Self { note, evidence: None }
    }
}

/// A failed step, with all that is worth recording.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("no database is configured")]
    NoDatabase,
    #[error("the schema of the database could not be changed")]
    Schema(#[source] Box<dyn Error + Send + Sync>),
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

impl From<CatalogError> for StepError {
    fn from(error: CatalogError) -> Self {
        Self::Node(error.into())
    }
}

impl Run<'_> {
    /// Performs one step. Each arm can be run again after it was cut off.
    pub(super) fn perform(&mut self, step: &Step) -> Result<Effect, StepError> {
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
                let note = self.activate(self.plan.to.clone(), Earlier::Good)?;
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
    pub(super) fn undo(&mut self, step: &Step) -> Result<(), StepError> {
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
                // What crashed while files of the other release lay in its tree was started again from those
                // (docs/decisions/0062-a-process-of-doubtful-files-is-replaced.md).
                let earlier = match layout {
                    Layout::Versioned => Earlier::Good,
                    Layout::Exchange | Layout::InPlace => Earlier::Doubtful,
                };
                self.activate(release, earlier).map(drop)
            }
            Step::Switch(_) => {
                let point = self.own_point()?;
                Ok(switch::undo(&self.node.files, &self.plan, &point, &mut self.warnings)?)
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
            match restore::read(&self.node.files, &id) {
                Ok(point) if point.from == self.plan.to => return Ok(true),
                // It might lead there. What stays without need is found by the next prune.
                Err(PointError::Fs(_)) => return Ok(true),
                Ok(_)
                | Err(PointError::Manifest { .. } | PointError::File { .. } | PointError::Unsealed(_)) => {}
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
    fn activate(&self, release: Option<ReleaseRef>, earlier: Earlier) -> Result<String, StepError> {
        let files = &self.node.files;
        let (tree, hints) = match &release {
            Some(release) => {
                let tree = current::tree(self.plan.layout, release);
                (tree, current::manifest_of(files, release)?.service.clone())
            }
            None => (PathBuf::new(), None),
        };
        let tree = files.disk.root().join(tree);
        let target = Activation { release, tree, hints, anew: earlier == Earlier::Doubtful };
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
        let baseline = self.baseline(&catalog)?;
        let context = ProbeContext {
            release: to.clone(),
            root: self.node.files.disk.root(),
            tree: self.node.files.disk.root().join(base),
            baseline,
        };
        let report = shielded("a probe", || self.ports.prober.probe(&context))?;
        if let (Some(before), Some(now)) = (&context.baseline, report.latency())
            && !before.is_comparable(now)
        {
            let warning = format!(
                "there was nothing to compare the latency of {} with: of the release before, that of {} was measured",
                now.url, before.url
            );
            self.warnings.push(warning);
        }
        if let Some(latency) = report.latency()
            && let Ok(json) = serde_json::to_string(latency)
            && let Err(error) = catalog.set_measurement(to.manifest, &json)
        {
            self.warnings.push(format!("the measured latency could not be kept: {}", chain(&error)));
        }
        let (passed, summary) = (report.passed(), report.summary());
        self.probes = Some(report);
        if passed { Ok(summary.into()) } else { Err(StepError::Probe(summary)) }
    }

    /// What was measured of the release before. A catalog that cannot be read is an error: without a baseline every release
    /// is fast enough. Figures that do not say what was measured are of no use.
    fn baseline(&mut self, catalog: &Catalog) -> Result<Option<Latency>, CatalogError> {
        let Some(from) = &self.plan.from else { return Ok(None) };
        let Some(json) = catalog.measurement(from.manifest)? else { return Ok(None) };
        let baseline = serde_json::from_str(&json);
        if let Err(error) = &baseline {
            // It would be there for the next release, too, and keep every one of them out.
            let warning = format!("the latency measured of {from} is of no use: {}", chain(error));
            self.warnings.push(warning);
        }
        Ok(baseline.ok())
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
}

/// Runs foreign code so that a panic of it is an error of the step.
fn shielded<T>(who: &'static str, work: impl FnOnce() -> T) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| StepError::Panic(who))
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
