//! How an execution ends: the history, what it used up, and the report to whoever began it.

use std::sync::Arc;

use cutover_core::{
    causes::chain,
    event::Event,
    execute::{Outcome, Record, StepState},
    lifecycle::State,
    model::{ReleaseRef, RestorePointId, SafePath},
    plan::{OnProbeFailure, Plan, PlanKind, Source, Step},
};

use super::{
    error::{NodeError, PointError},
    place,
    report::{Report, StepReport, StepResult},
    restore,
    run::Run,
};
use crate::catalog::HistoryRow;

impl Run<'_> {
    /// Writes the end, tidies up, and reports.
    pub(super) fn finish(mut self, outcome: Outcome) -> Result<Report, NodeError> {
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
        let mut used = Vec::new();
        for (number, id) in restore::ids(files)?.into_iter().rev() {
            if number >= self.plan.number {
                continue;
            }
            used.push(place::point(&id));
            match restore::read(files, &id) {
                Ok(point) if point.from == self.plan.to => {
                    used.iter().try_for_each(|point| files.discard(point))?;
                    break;
                }
                // It may be the target, or say that an older one is not.
                Err(PointError::Fs(error)) => return Err(error.into()),
                Ok(_)
                | Err(PointError::Manifest { .. } | PointError::File { .. } | PointError::Unsealed(_)) => {}
            }
        }
        Ok(files.discard(&place::point(&RestorePointId::of_execution(self.plan.number)))?)
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
