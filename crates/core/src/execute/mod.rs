//! Executions: one run of a plan, rebuilt from its journal.
//!
//! [`Execution::fold`] replays records; [`Execution::next`] says what to do now. Recovery after a crash is the same
//! code: fold what is there, resume, go on. Nothing here performs anything.
//!
//! The rules: the intent of a step is durable before its effect starts (I2); an intent without outcome is performed, or
//! undone, again; undo covers every *started* step in reverse order (I5); once `confirm` is done there is only forward
//! (I6). An execution that is part of a set ([`crate::set`]) holds before `confirm` until the set is committed.

mod record;

use std::sync::Arc;

use crate::{
    plan::{OnProbeFailure, Plan, Step},
    set::SetId,
};
pub use record::{Outcome, Record, RecordError};
pub(crate) use record::{checked_json, checked_line, line_records, records_line};

/// Where one step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Its intent is durable; whether its effect happened is unknown.
    Started,
    /// Its effect is durable.
    Done,
    /// It reported failure; its effect may have happened in part.
    Failed,
    /// Its undo has begun.
    Undoing,
    /// Its effect is gone.
    Undone,
    /// Its undo failed; somebody must act.
    UndoFailed,
}

/// Which way an execution goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the new release.
    Forward,
    /// Back to the old one, and why.
    Back {
        /// The reason, for people.
        reason: String,
    },
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Record the intent, perform the step, record the outcome.
    Perform(usize, &'a Step),
    /// Record the intent to undo, undo the step, record the outcome.
    Undo(usize, &'a Step),
    /// Wait until the set it is part of is committed ([`Record::Released`]) or turned back ([`Record::TurnedBack`]).
    Hold,
    /// Record this end.
    Finish(Outcome),
    /// It has ended.
    Ended(&'a Outcome),
}

/// After how many interruptions in all an execution still goes forward; after one more it turns back: a release that takes the machine
/// down with it must not do so for ever.
const RESUMES_MAX: u32 = 3;

/// One run of a plan as its journal tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    plan: Arc<Plan>,
    steps: Vec<StepState>,
    direction: Direction,
    probe_failed: bool,
    resumes: u32,
    set: Option<SetId>,
    released: bool,
    outcome: Option<Outcome>,
}

/// Why a journal makes no sense. Damaged state: exit code 17.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// There is no record.
    #[error("the journal is empty")]
    Empty,
    /// The first record is not the plan, or the plan comes twice.
    #[error("record {0}: the plan must be the first record and only there")]
    Plan(usize),
    /// A step that the plan does not have, or an order that cannot happen.
    #[error("record {index}: {what} does not follow from what was recorded before")]
    Order {
        /// Index of the record, from 0.
        index: usize,
        /// What it says.
        what: &'static str,
    },
}

impl Execution {
    /// Starts an execution of `plan` whose journal holds nothing but the plan.
    pub fn new(plan: Arc<Plan>) -> Self {
        let steps = vec![StepState::Waiting; plan.steps.len()];
        Self {
            plan,
            steps,
            direction: Direction::Forward,
            probe_failed: false,
            resumes: 0,
            set: None,
            released: false,
            outcome: None,
        }
    }

    /// The same as part of a set.
    pub fn in_set(self, set: Option<SetId>) -> Self {
        Self { set, ..self }
    }

    /// Replays a journal.
    ///
    /// # Errors
    /// [`FoldError`] when the records cannot have been written by this program in this order.
    pub fn fold(records: impl IntoIterator<Item = Record>) -> Result<Self, FoldError> {
        let mut records = records.into_iter().enumerate();
        let mut execution = match records.next() {
            None => return Err(FoldError::Empty),
            Some((_, Record::Planned { plan, set })) => Self::new(plan).in_set(set),
            Some((index, _)) => return Err(FoldError::Plan(index)),
        };
        for (index, record) in records {
            execution.apply(&record).map_err(|what| match what {
                "a second plan" => FoldError::Plan(index),
                what => FoldError::Order { index, what },
            })?;
        }
        Ok(execution)
    }

    /// Takes in one more record.
    ///
    /// # Errors
    /// The name of what cannot follow here.
    pub fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        use StepState::{Done, Failed, Started, UndoFailed, Undoing, Undone, Waiting};
        if self.outcome.is_some() {
            return Err("a record after the end");
        }
        let forward = self.direction == Direction::Forward;
        match record {
            Record::Planned { .. } => Err("a second plan"),
            Record::Intent { step } if forward => self.step(*step, "an intent", &[Waiting, Started], Started),
            Record::Done { step, .. } if forward => self.step(*step, "a completed step", &[Started], Done),
            Record::Failed { step, error } if forward && !self.released && !self.is_confirmed() => {
                self.step(*step, "a failed step", &[Started], Failed)?;
                self.probe_failed |= matches!(self.plan.steps[*step], Step::Probe);
                let keep = self.probe_failed
                    && self.plan.on_probe_failure == OnProbeFailure::Keep
                    && self.set.is_none();
                if !keep {
                    self.direction = Direction::Back { reason: error.clone() };
                }
                Ok(())
            }
            Record::Resumed => {
                self.resumes += 1;
                for state in self.steps.iter_mut().filter(|state| **state == UndoFailed) {
                    *state = Failed;
                }
                if forward {
                    match self.reason_to_turn_back() {
                        Some(reason) => self.direction = Direction::Back { reason },
                        None => self.activate_again(),
                    }
                }
                Ok(())
            }
            Record::Released if self.is_held() => {
                self.released = true;
                Ok(())
            }
            Record::Released => Err("a release of what does not wait for it"),
            Record::TurnedBack { reason } if forward && !self.is_confirmed() && !self.released => {
                self.direction = Direction::Back { reason: reason.clone() };
                Ok(())
            }
            Record::UndoIntent { step } if !forward => {
                self.step(*step, "an undo intent", &[Started, Done, Failed, Undoing, UndoFailed], Undoing)
            }
            Record::Undone { step } if !forward => self.step(*step, "an undone step", &[Undoing], Undone),
            Record::UndoFailed { step, .. } if !forward => {
                self.step(*step, "a failed undo", &[Undoing], UndoFailed)
            }
            Record::Finished { outcome } => {
                self.outcome = Some(outcome.clone());
                Ok(())
            }
            Record::Intent { .. }
            | Record::Done { .. }
            | Record::Failed { .. }
            | Record::TurnedBack { .. } => Err("a step forward on the way back"),
            Record::UndoIntent { .. } | Record::Undone { .. } | Record::UndoFailed { .. } => {
                Err("an undo on the way forward")
            }
        }
    }

    fn step(
        &mut self,
        step: usize,
        what: &'static str,
        from: &[StepState],
        to: StepState,
    ) -> Result<(), &'static str> {
        match self.steps.get_mut(step) {
            Some(state) if from.contains(state) => {
                *state = to;
                Ok(())
            }
            _ => Err(what),
        }
    }

    /// After an interruption: before the switch has begun nobody has seen anything, so going back is the cheap and safe
    /// way; from then on the way is forward unless it was tried too often.
    fn reason_to_turn_back(&self) -> Option<String> {
        // What waits for its set, or was released by it, is not turned back by an interruption: the set decides.
        if self.released || self.is_held() {
            return None;
        }
        if !self.has_started_switch() {
            return Some("interrupted before the switch".to_owned());
        }
        (self.resumes > RESUMES_MAX && !self.is_confirmed())
            .then(|| format!("interrupted {} times", self.resumes))
    }

    /// What was activated need not have outlived the interruption: after a reboot it may still be starting, or nobody started it.
    /// What is left to examine is made to run again first. Once it was examined or confirmed, an interruption does not call it in
    /// question (`docs/decisions/0061-what-was-activated-is-activated-again-before-it-is-probed.md`).
    fn activate_again(&mut self) {
        let settles = |step: &Step| matches!(step, Step::Probe | Step::Confirm);
        if !self.is_past(settles, |state| state == StepState::Done) {
            let steps = self.plan.steps.iter().zip(&mut self.steps);
            for (_, state) in steps.filter(|(step, _)| matches!(step, Step::Activate)) {
                if *state == StepState::Done {
                    *state = StepState::Started;
                }
            }
        }
    }

    /// What to do now.
    pub fn next(&self) -> Next<'_> {
        if let Some(outcome) = &self.outcome {
            return Next::Ended(outcome);
        }
        match &self.direction {
            Direction::Forward => self.next_forward(),
            Direction::Back { reason } => self.next_back(reason),
        }
    }

    fn next_forward(&self) -> Next<'_> {
        let waiting =
            self.steps.iter().position(|state| matches!(state, StepState::Waiting | StepState::Started));
        match waiting {
            _ if self.probe_failed => Next::Finish(Outcome::KeptUnconfirmed),
            Some(index) if self.must_hold(index) => Next::Hold,
            Some(index) => Next::Perform(index, &self.plan.steps[index]),
            None => Next::Finish(Outcome::Confirmed),
        }
    }

    /// Whether the set has to speak before this step.
    fn must_hold(&self, index: usize) -> bool {
        self.set.is_some() && !self.released && matches!(self.plan.steps[index], Step::Confirm)
    }

    fn next_back(&self, reason: &str) -> Next<'_> {
        let started = |state: &StepState| !matches!(state, StepState::Waiting | StepState::Undone);
        match self.steps.iter().rposition(started) {
            Some(index) if self.steps[index] == StepState::UndoFailed => {
                Next::Finish(Outcome::Stuck { reason: reason.to_owned() })
            }
            Some(index) => Next::Undo(index, &self.plan.steps[index]),
            None if self.probe_failed => Next::Finish(Outcome::ProbeFailed { reason: reason.to_owned() }),
            None => Next::Finish(Outcome::Undone { reason: reason.to_owned() }),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Where each step stands.
    pub fn steps(&self) -> &[StepState] {
        &self.steps
    }

    /// The set it is part of.
    pub fn set(&self) -> Option<&SetId> {
        self.set.as_ref()
    }

    /// Whether everything but `confirm` is done and it waits for its set.
    pub fn is_held(&self) -> bool {
        self.next() == Next::Hold
    }

    /// Whether its set is committed.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Which way it goes.
    pub fn direction(&self) -> &Direction {
        &self.direction
    }

    /// How it ended, if it did.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Whether the one visible change may have happened.
    pub fn has_started_switch(&self) -> bool {
        self.is_past(|step| matches!(step, Step::Switch(_)), |state| state != StepState::Waiting)
    }

    /// Whether the one visible change is under way in either direction, so that in place, files of both releases may lie side by side.
    pub fn is_amid_switch(&self) -> bool {
        use StepState::{Done, Failed, Started, UndoFailed, Undoing, Undone, Waiting};
        self.is_past(
            |step| matches!(step, Step::Switch(_)),
            |state| match state {
                Started | Failed | Undoing | UndoFailed => true,
                Waiting | Done | Undone => false,
            },
        )
    }

    /// Whether the new release was declared good.
    pub fn is_confirmed(&self) -> bool {
        self.is_past(|step| matches!(step, Step::Confirm), |state| state == StepState::Done)
    }

    fn is_past(&self, which: impl Fn(&Step) -> bool, state: impl Fn(StepState) -> bool) -> bool {
        self.plan.steps.iter().zip(&self.steps).any(|(step, now)| which(step) && state(*now))
    }
}
