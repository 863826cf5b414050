//! What the engine tells its caller: values for rendering, with nothing left to look up.

use std::{path::PathBuf, sync::Arc};

use cutover_core::{
    execute::Outcome,
    model::{Manifest, ReleaseRef, RestorePointId, SafePath, Version},
    plan::{Layout, Observation, Plan, PlanKind, PointSeen, RollbackTarget},
    set::SetId,
};
use serde::Serialize;

use super::{
    error::{NodeError, PointError},
    restore,
};
use crate::probe::ProbeReport;

/// What one execution did. Made by `execute` and `recover`, rendered by the program.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The number of the execution.
    pub number: u64,
    /// On or back.
    pub kind: PlanKind,
    /// The release before.
    pub from: Option<ReleaseRef>,
    /// The release it was to lead to.
    pub to: Option<ReleaseRef>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether a probe failed.
    pub probe_failed: bool,
    /// What the probes found, if they ran in this process.
    pub probes: Option<ProbeReport>,
    /// The steps that ran in this process, in order, undos included.
    pub steps: Vec<StepReport>,
    /// The files that were laid down anew, in manifest order.
    pub updated: Vec<SafePath>,
    /// The restore point that leads back to `from`, when there is one.
    pub restore_point: Option<RestorePointId>,
    /// Where the output of the failed release is kept.
    pub failed_log: Option<PathBuf>,
    /// Unusual things that are still safe.
    pub warnings: Vec<String>,
    /// One sentence for people; never empty.
    pub message: String,
}

/// How far an execution got in this process.
#[derive(Clone, Debug)]
pub enum Driven {
    /// It is switched and probed, and waits for the set it is part of.
    Held(Held),
    /// It has ended.
    Ended(Box<Report>),
}

impl Driven {
    /// The report of an execution that is part of no set.
    pub(crate) fn ended(self) -> Result<Report, NodeError> {
        match self {
            Self::Ended(report) => Ok(*report),
            Self::Held(held) => Err(NodeError::Unfinished(held.number)),
        }
    }
}

/// An execution that waits for the set it is part of.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its number.
    pub number: u64,
    /// The steps that ran in this process, in order.
    pub steps: Vec<StepReport>,
    /// Unusual things that are still safe.
    pub warnings: Vec<String>,
}

/// One step as it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// Its name.
    pub step: &'static str,
    /// Whether it was performed or undone.
    pub way: Way,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// What is worth telling; the error when it failed.
    pub note: String,
    /// Whether it succeeded.
    pub result: StepResult,
}

/// Which way a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Performed.
    Forward,
    /// Undone.
    Back,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepResult {
    /// As it should.
    Done,
    /// With the error in the note.
    Failed,
}

/// What `observe` found: the basis of plans.
#[derive(Debug)]
pub struct Observed {
    /// What a plan is derived from.
    pub observation: Observation,
    /// The usable restore points that a rollback may depend on, in the order they were made; none for an update.
    pub points: Vec<PointSeen>,
    /// Those of them that were altered or cannot be read.
    pub damaged: Vec<(RestorePointId, PointError)>,
}

impl Observed {
    /// The restore points to plan a rollback with, provided that none which `target` depends on is damaged: going back
    /// by way of a damaged one is refused, and so is silently choosing an older one.
    ///
    /// # Errors
    /// The damage.
    pub fn points_for(&self, target: &RollbackTarget) -> Result<&[PointSeen], &PointError> {
        let number = restore::number_of;
        let matters = |id: &RestorePointId| match target {
            RollbackTarget::Newest => {
                self.points.last().is_none_or(|newest| number(&newest.point.id) < number(id))
            }
            RollbackTarget::Point(wanted) => number(id) >= number(wanted),
        };
        match self.damaged.iter().find(|(id, _)| matters(id)) {
            Some((_, damage)) => Err(damage),
            None => Ok(&self.points),
        }
    }
}

/// What a root holds.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its layout; `None` before its first use.
    pub layout: Option<Layout>,
    /// The current release.
    pub installed: Option<ReleaseRef>,
    /// Its manifest.
    #[serde(skip)]
    pub manifest: Option<Arc<Manifest>>,
    /// The highest version ever confirmed here.
    pub highest: Option<Version>,
    /// An execution that has not ended: `recover` takes it up.
    pub in_flight: Option<InFlight>,
    /// How many restore points there are.
    pub restore_points: usize,
    /// The set that this root is part of and that has not ended.
    pub set: Option<SetId>,
}

/// An execution that has not ended.
#[derive(Clone, Debug, Serialize)]
pub struct InFlight {
    /// Its plan.
    #[serde(skip)]
    pub plan: Arc<Plan>,
    /// Its number.
    pub number: u64,
    /// The last step that was begun.
    pub step: Option<&'static str>,
    /// Why it goes back, if it does.
    pub back: Option<String>,
    /// Whether the switch or its undo may be half done: in place, files of two releases then lie side by side.
    #[serde(skip)]
    pub tree_in_between: bool,
}

/// How the present tree differs from the installed release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The release it was compared with; `None` when nothing is installed.
    pub release: Option<ReleaseRef>,
    /// How many files were hashed.
    pub checked: usize,
    /// Files with other content and links with another target.
    pub damaged: Vec<SafePath>,
    /// Config files with other content: changed on purpose, perhaps.
    pub edited: Vec<SafePath>,
    /// Paths that are gone, or are something else now.
    pub missing: Vec<SafePath>,
    /// Files with other permission bits.
    pub mode_changed: Vec<SafePath>,
    /// Paths in the release's tree that it does not have (whole-tree layouts only).
    pub extra: Vec<String>,
}

impl Drift {
    /// Whether everything is as it was installed; edited config files and extra files do not count.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.missing.is_empty() && self.mode_changed.is_empty()
    }
}

/// What `repair` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Paths that are as installed again.
    pub repaired: Vec<SafePath>,
    /// Paths whose content is nowhere to be had, and why.
    pub unrepairable: Vec<(SafePath, String)>,
}

/// What `prune` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Restore points that are gone.
    pub removed_points: Vec<RestorePointId>,
    /// Restore points whose tree went compressed to the store.
    pub cooled_points: Vec<RestorePointId>,
    /// Release trees that are gone.
    pub removed_releases: Vec<String>,
    /// Objects that nothing named any more.
    pub removed_objects: usize,
    /// Bytes allocated before; 0 when nobody asked for measures, as for the two below.
    pub bytes_before: u64,
    /// Bytes allocated after.
    pub bytes_after: u64,
    /// Bytes that full copies of the kept restore points would take beyond what they take now.
    pub bytes_saved_by_sharing: u64,
}

/// One restore point as it is listed, newest first.
#[derive(Debug)]
pub struct PointListed {
    /// Its id.
    pub id: RestorePointId,
    /// What it leads back to, or what is wrong with it.
    pub point: Result<PointSeen, PointError>,
}
