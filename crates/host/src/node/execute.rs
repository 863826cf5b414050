//! Beginning an execution: what was observed is checked against the plan, then the engine runs it.

use std::sync::Arc;

use cutover_core::{
    execute::{Execution, Record},
    lifecycle::State,
    model::{Manifest, SafePath, SeenTree},
    plan::{Observation, Plan, PlanKind, check_plan},
    set::SetId,
};

use super::{
    error::NodeError,
    files::Attempt as _,
    journal::{self, Journal},
    place,
    report::{Driven, Observed, Report},
    root::{Node, NodeLock},
    run::{Ports, Run, Start},
    state_log,
};
use crate::payload::Payload;

impl Node {
    /// Runs `plan`, whoever made it, to its end: confirmed, or everything undone. `payload` is the bundle an update comes from.
    ///
    /// # Errors
    /// Refusals before anything is done, or [`NodeError::Stopped`]; how the execution itself ended is in the report.
    pub fn execute(
        &self,
        lock: &NodeLock,
        plan: &Plan,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
    ) -> Result<Report, NodeError> {
        let wanted = match plan.kind {
            PlanKind::Update => payload.map(|payload| &**payload.manifest()),
            PlanKind::Rollback => None,
        };
        self.execute_on(self.observe(wanted)?, lock, &Arc::new(plan.clone()), payload, ports)
    }

    /// As [`Node::execute`], on what was `observed` since the lock was taken: with the manifest of `payload` for an update,
    /// with none for a rollback.
    ///
    /// # Errors
    /// As [`Node::execute`].
    pub fn execute_on(
        &self,
        observed: Observed,
        lock: &NodeLock,
        plan: &Arc<Plan>,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
    ) -> Result<Report, NodeError> {
        self.must_be_idle()?;
        self.begin(observed, lock, plan, payload, ports, None)?.ended()
    }

    /// Runs `plan` to its end, or until it waits for the set it is part of. Nothing else may be under way.
    pub(super) fn begin(
        &self,
        observed: Observed,
        lock: &NodeLock,
        plan: &Arc<Plan>,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
        set: Option<SetId>,
    ) -> Result<Driven, NodeError> {
        let wanted = match plan.kind {
            PlanKind::Update => payload.map(|payload| (payload.release(), payload.manifest())),
            PlanKind::Rollback => None,
        };
        if plan.kind == PlanKind::Update && wanted.as_ref().map(|(release, _)| release) != plan.to.as_ref() {
            return Err(NodeError::Payload);
        }
        let Observed { observation, points, damaged: _ } = observed;
        if observation.digest() != plan.based_on {
            return Err(NodeError::Changed);
        }
        let wanted = wanted.as_ref().map(|(release, manifest)| (release, &***manifest));
        check_plan(plan, &observation, wanted, &points)?;
        // From here on only this is needed of what was observed; the rest takes megabytes.
        let seen = present(observation);
        drop(points);
        self.files.manifests.let_go();
        self.files.points.let_go();
        let space = self.files.disk.space().attempt("ask for free space", "")?;
        if space.free_bytes < plan.bytes.need {
            return Err(NodeError::NoSpace { needed: plan.bytes.need, free: space.free_bytes });
        }
        journal::keep_reserve(&self.files)?;
        let version = plan.to.as_ref().map(|to| &to.version);
        let mut log = self.state_log(lock)?;
        let path = state_log::path_to(log.lifecycle().state(), State::Applying);
        log.go_through(&path, version)?;
        drop(log);
        let journal = Journal::create(&self.files, place::journal(plan.number))?;
        let plan = Arc::clone(plan);
        let start = Start {
            payload,
            journal,
            execution: Execution::new(Arc::clone(&plan)).in_set(set.clone()),
            first: vec![Record::Planned { plan, set }],
            seen: Some(seen),
        };
        Run::new(self, lock, ports, start).drive()
    }
}

/// What was found of the release that is installed.
fn present(observation: Observation) -> SeenTree {
    let Observation { installed, seen, .. } = observation;
    let Some(installed) = installed else { return SeenTree::new() };
    let Manifest { files, symlinks, shared, .. } = installed.manifest.as_ref();
    let links = symlinks.iter().map(|link| &link.path);
    let mut ours: Vec<&SafePath> = files.iter().map(|file| &file.path).chain(links).chain(shared).collect();
    ours.sort_unstable();
    let is_ours = |path: &SafePath| ours.binary_search(&path).is_ok();
    if seen.keys().all(is_ours) {
        return seen;
    }
    let kept = seen.iter().filter(|(path, _)| is_ours(path));
    kept.map(|(path, file)| (path.clone(), file.clone())).collect()
}
