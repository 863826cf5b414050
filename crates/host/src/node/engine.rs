//! The loop that runs a plan: what to do next is the fold over the journal, here it is done and recorded.
//!
//! The one rule: a line that announces something is durable before that something begins (I2). Records are collected and
//! written with the next announcement, so a step's outcome and the next one's intent cost one flush. When the journal
//! cannot be written, everything stops at once (I13); the next process takes up from what is on disk.

use std::{error::Error, io, sync::Arc, time::Instant as Monotonic};

use cutover_core::{
    causes::chain,
    event::Event,
    execute::{Direction, Next, Outcome, Record, StepState},
    lifecycle::State,
    plan::{Plan, Step},
};

use super::{
    error::NodeError,
    journal,
    report::{Driven, Held, StepReport, StepResult, Way},
    run::Run,
    steps::{Effect, STAGE_PERCENT},
};

/// What to do now, without a borrow of the execution.
enum Turn {
    Perform(usize),
    Undo(usize),
    Hold,
    Finish(Outcome),
}

impl Run<'_> {
    /// Runs to the end, or until it waits for its set.
    pub(super) fn drive(mut self) -> Result<Driven, NodeError> {
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
}

/// Whether an error comes from a full disk.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let full = error.downcast_ref::<io::Error>().is_some_and(journal::is_full);
    full || error.source().is_some_and(is_full)
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
