//! The rows that executions leave in the history of the catalog.

use cutover_core::{
    execute::{Direction, Execution, Outcome},
    model::{Instant, ReleaseRef, RestorePointId},
    plan::{Plan, PlanKind},
};

use super::{current, error::NodeError, files::Files, journal, place};
use crate::catalog::{Filling, HistoryRow};

/// The row of an execution that ended so: `kept` is the restore point that stayed, `error` why it did not succeed.
pub(crate) fn row(
    plan: &Plan,
    at: Instant,
    outcome: &Outcome,
    error: Option<String>,
    kept: Option<RestorePointId>,
) -> HistoryRow {
    let version = |release: &Option<ReleaseRef>| release.as_ref().map(|release| release.version.clone());
    HistoryRow {
        number: Some(plan.number),
        at,
        action: action(plan.kind).to_owned(),
        from: version(&plan.from),
        to: version(&plan.to),
        outcome: outcome_name(outcome).to_owned(),
        error,
        restore_point: kept.map(|id| id.to_string()),
    }
}

/// The name of a kind of execution.
fn action(kind: PlanKind) -> &'static str {
    match kind {
        PlanKind::Update => "update",
        PlanKind::Rollback => "rollback",
    }
}

/// The name of an end.
fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Confirmed => "confirmed",
        Outcome::Undone { .. } => "undone",
        Outcome::ProbeFailed { .. } => "probe-failed",
        Outcome::KeptUnconfirmed => "kept-unconfirmed",
        Outcome::Stuck { .. } => "stuck",
    }
}

/// Fills a new catalog from what lies on disk: manifests, and journals for the history.
pub(crate) fn fill(files: &Files, catalog: &Filling<'_>) -> Result<(), NodeError> {
    for digest in current::manifests(files)? {
        if let Ok(Some(manifest)) = current::manifest(files, digest) {
            catalog.index(digest, &manifest)?;
        }
    }
    for number in journal::numbers(files)? {
        if journal::end(files, number)? != journal::End::Ended {
            continue;
        }
        let Ok(Some(read)) = journal::read(files, number) else { continue };
        let Ok(execution) = Execution::fold(read.records) else { continue };
        let (Some(outcome), Some((_, at))) = (execution.outcome(), read.written) else { continue };
        let error = match execution.direction() {
            Direction::Forward => None,
            Direction::Back { reason } => Some(reason.clone()),
        };
        let point = RestorePointId::of_execution(number);
        let kept = files.exists(&place::point(&point))?.then_some(point);
        catalog.record(&row(execution.plan(), at, outcome, error, kept))?;
    }
    Ok(())
}
