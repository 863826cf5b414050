//! Sets: several packages of a host that change as one execution.
//!
//! Each package has an execution of its own ([`crate::execute`]) which holds before `confirm`. The journal of the set says
//! what all of them come to: once every part holds, one record commits the set, and then every part is confirmed; until
//! then, whatever goes wrong takes every part that was started back, the last one first. So the set is entirely old or
//! entirely new (two-phase commit; Gray, "Notes on Data Base Operating Systems", 1978; the coordinator is the journal).
//!
//! [`Set::fold`] replays records, [`Set::next`] says what to do now. Nothing here performs anything. Decision:
//! `docs/decisions/0043-a-set-has-a-journal.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    execute::{Outcome, RecordError, line_records, records_line},
    model::{Instant, Name, Version},
};

/// Which set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetId {
    /// The root that keeps the journal of the set: an absolute path.
    pub coordinator: String,
    /// Its number there, from 1.
    pub number: u64,
}

/// One package of a set changes its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The package.
    pub package: Name,
    /// Where it is installed: an absolute path.
    pub root: String,
    /// What it has; `None` when it is not installed.
    pub from: Option<Version>,
    /// What it gets; `None` when it goes.
    pub to: Option<Version>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{} {from} -> {to}", self.package),
            (None, Some(to)) => write!(f, "{} {to}", self.package),
            (Some(from), None) => write!(f, "{} {from} -> nothing", self.package),
            (None, None) => write!(f, "{}", self.package),
        }
    }
}

/// How a package goes back to what it had before a set. Made by [`Set::way_back`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Back {
    /// The change: from what the set gave it to what it had before.
    #[serde(flatten)]
    pub part: Part,
    /// The execution in its root whose restore point leads there.
    pub execution: u64,
}

/// One thing that the journal of a set tells. Format: `docs/formats/set.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SetRecord {
    /// The first record: what changes, in order. A package may come twice, by way of a version between.
    Begun {
        /// What changes.
        parts: Vec<Part>,
        /// The number of the earlier set that this one takes back, if that is what it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takes_back: Option<u64>,
    },
    /// The execution of a part is about to begin in its root.
    Started {
        /// Index of the part.
        part: usize,
        /// The number of the execution there; the restore point has the same.
        execution: u64,
    },
    /// The execution of a part is switched and probed, and waits.
    Held {
        /// Index of the part.
        part: usize,
    },
    /// A part was refused or failed; everything started is taken back from here on.
    Failed {
        /// Index of the part.
        part: usize,
        /// How its own execution ended.
        outcome: Outcome,
    },
    /// A later process took over after an interruption.
    Resumed,
    /// Every part holds and the set is declared good; from here on there is only forward.
    Committed,
    /// A part is confirmed.
    Confirmed {
        /// Index of the part.
        part: usize,
    },
    /// A part is as it was before.
    Undone {
        /// Index of the part.
        part: usize,
    },
    /// A part could not be taken back.
    UndoFailed {
        /// Index of the part.
        part: usize,
        /// Why, for people.
        error: String,
    },
    /// The set has ended. An end in [`Outcome::Stuck`] is not recorded: it can be taken up again.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

impl SetRecord {
    /// The journal line of records that are written together; as [`crate::execute::Record::to_line`].
    pub fn to_line(records: &[Self], at: Instant) -> Vec<u8> {
        records_line(records, at)
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_line(line: &[u8]) -> Result<(Instant, Vec<Self>), RecordError> {
        line_records(line)
    }
}

/// Where one part stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartState {
    /// Not begun.
    Waiting,
    /// Its execution may have begun.
    Started,
    /// Switched and probed; it waits for the others.
    Held,
    /// It failed; its execution may have to be taken back still.
    Failed,
    /// It is confirmed.
    Confirmed,
    /// It is as before.
    Undone,
    /// It could not be taken back; somebody must act.
    UndoFailed,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run the execution of this part until it holds, and record what came of it.
    Perform(usize),
    /// Record [`SetRecord::Committed`].
    Commit,
    /// Release the execution of this part, let it end, and record that.
    Confirm(usize),
    /// Take back the execution of this part, and record what came of it.
    Undo(usize),
    /// Record this end.
    Finish(Outcome),
    /// It has ended.
    Ended(Outcome),
}

/// One set as its journal tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    parts: Vec<Part>,
    takes_back: Option<u64>,
    states: Vec<PartState>,
    executions: Vec<Option<u64>>,
    /// Why it goes back, if it does: how the part that failed ended.
    failure: Option<Outcome>,
    committed: bool,
    outcome: Option<Outcome>,
}

/// Why the journal of a set makes no sense. Damaged state: exit code 17.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetFoldError {
    /// There is no record.
    #[error("the journal is empty")]
    Empty,
    /// The first record does not say what changes, or says it of nothing.
    #[error("the first record does not say what changes")]
    Begin,
    /// An order that cannot happen.
    #[error("record {index}: {what} does not follow from what was recorded before")]
    Order {
        /// Index of the record, from 0.
        index: usize,
        /// What it says.
        what: &'static str,
    },
}

impl Set {
    /// A set whose journal holds nothing but its beginning.
    pub fn new(parts: Vec<Part>) -> Self {
        let count = parts.len();
        Self {
            parts,
            takes_back: None,
            states: vec![PartState::Waiting; count],
            executions: vec![None; count],
            failure: None,
            committed: false,
            outcome: None,
        }
    }

    /// The same as what takes the earlier set with this number back.
    pub fn taking_back(self, number: Option<u64>) -> Self {
        Self { takes_back: number, ..self }
    }

    /// Its first record.
    pub fn beginning(&self) -> SetRecord {
        SetRecord::Begun { parts: self.parts.clone(), takes_back: self.takes_back }
    }

    /// Replays a journal.
    ///
    /// # Errors
    /// [`SetFoldError`] when the records cannot have been written by this program in this order.
    pub fn fold(records: impl IntoIterator<Item = SetRecord>) -> Result<Self, SetFoldError> {
        let mut records = records.into_iter().enumerate();
        let mut set = match records.next() {
            None => return Err(SetFoldError::Empty),
            Some((_, SetRecord::Begun { parts, takes_back })) if !parts.is_empty() => {
                Self::new(parts).taking_back(takes_back)
            }
            Some(_) => return Err(SetFoldError::Begin),
        };
        for (index, record) in records {
            set.apply(&record).map_err(|what| SetFoldError::Order { index, what })?;
        }
        Ok(set)
    }

    /// Takes in one more record.
    ///
    /// # Errors
    /// The name of what cannot follow here.
    pub fn apply(&mut self, record: &SetRecord) -> Result<(), &'static str> {
        use PartState::{Confirmed, Failed, Held, Started, UndoFailed, Undone, Waiting};
        if self.outcome.is_some() {
            return Err("a record after the end");
        }
        match record {
            SetRecord::Begun { .. } => Err("a second beginning"),
            SetRecord::Started { part, execution } => {
                if self.next() != Next::Perform(*part) {
                    return Err("the start of a part");
                }
                self.executions[*part] = Some(*execution);
                self.step(*part, "the start of a part", &[Waiting], Started)
            }
            SetRecord::Held { part } if self.is_forward() => {
                self.step(*part, "a part that holds", &[Started], Held)
            }
            SetRecord::Failed { part, outcome } if self.is_forward() => {
                let to = match (self.executions.get(*part), outcome) {
                    // It was refused before its execution began: there is nothing to take back.
                    (Some(None), _) => Undone,
                    (_, Outcome::Stuck { .. }) => UndoFailed,
                    _ => Failed,
                };
                self.step(*part, "a failed part", &[Waiting, Started], to)?;
                self.failure = Some(outcome.clone());
                Ok(())
            }
            SetRecord::Resumed => {
                for state in self.states.iter_mut().filter(|state| **state == UndoFailed) {
                    *state = Failed;
                }
                // Nobody was told of a success yet, and what a part that waits needs is not at hand any more.
                if self.is_forward() && self.next() != Next::Commit {
                    let reason = "interrupted before every package was switched and probed".to_owned();
                    self.failure = Some(Outcome::Undone { reason });
                }
                Ok(())
            }
            SetRecord::Committed if self.next() == Next::Commit => {
                self.committed = true;
                Ok(())
            }
            SetRecord::Confirmed { part } if self.committed => {
                self.step(*part, "a confirmed part", &[Held], Confirmed)
            }
            SetRecord::Undone { part } if self.next() == Next::Undo(*part) => {
                self.step(*part, "a part taken back", &[Started, Held, Failed], Undone)
            }
            SetRecord::UndoFailed { part, .. } if self.next() == Next::Undo(*part) => {
                self.step(*part, "a part that could not be taken back", &[Started, Held, Failed], UndoFailed)
            }
            SetRecord::Finished { outcome } if matches!(self.next(), Next::Finish(_)) => {
                self.outcome = Some(outcome.clone());
                Ok(())
            }
            SetRecord::Held { .. } | SetRecord::Failed { .. } => {
                Err("a part on the way back or after the commit")
            }
            SetRecord::Committed => Err("a commit"),
            SetRecord::Confirmed { .. } => Err("a confirmed part"),
            SetRecord::Undone { .. } | SetRecord::UndoFailed { .. } => Err("a part taken back"),
            SetRecord::Finished { .. } => Err("an end"),
        }
    }

    fn step(
        &mut self,
        part: usize,
        what: &'static str,
        from: &[PartState],
        to: PartState,
    ) -> Result<(), &'static str> {
        match self.states.get_mut(part) {
            Some(state) if from.contains(state) => {
                *state = to;
                Ok(())
            }
            _ => Err(what),
        }
    }

    /// Whether it still may become good or bad.
    fn is_forward(&self) -> bool {
        self.failure.is_none() && !self.committed
    }

    /// What to do now.
    pub fn next(&self) -> Next {
        use PartState::{Confirmed, Held, UndoFailed, Undone, Waiting};
        if let Some(outcome) = &self.outcome {
            return Next::Ended(outcome.clone());
        }
        let first = |which: PartState| self.states.iter().position(|state| *state != which);
        match &self.failure {
            None if self.committed => {
                first(Confirmed).map_or(Next::Finish(Outcome::Confirmed), Next::Confirm)
            }
            None => first(Held).map_or(Next::Commit, Next::Perform),
            Some(failure) => {
                let reason = self.reason(failure);
                match self.states.iter().rposition(|state| !matches!(state, Waiting | Undone)) {
                    Some(part) if self.states[part] == UndoFailed => Next::Finish(Outcome::Stuck { reason }),
                    Some(part) => Next::Undo(part),
                    None if matches!(failure, Outcome::ProbeFailed { .. }) => {
                        Next::Finish(Outcome::ProbeFailed { reason })
                    }
                    None => Next::Finish(Outcome::Undone { reason }),
                }
            }
        }
    }

    fn reason(&self, failure: &Outcome) -> String {
        match failure {
            Outcome::Undone { reason } | Outcome::ProbeFailed { reason } | Outcome::Stuck { reason } => {
                reason.clone()
            }
            Outcome::Confirmed | Outcome::KeptUnconfirmed => "a part ended by itself".to_owned(),
        }
    }

    /// Why it goes back, for people.
    pub fn back(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| self.reason(failure))
    }

    /// What takes it back: one change for each root, what changed last first. A package that went by way of a version between
    /// goes back at once. `None` unless it ended confirmed; and what took a set back leaves nothing behind to go back to.
    pub fn way_back(&self) -> Option<Vec<Back>> {
        if self.outcome != Some(Outcome::Confirmed) || self.takes_back.is_some() {
            return None;
        }
        let mut back: Vec<Back> = Vec::new();
        for (part, execution) in self.parts.iter().zip(&self.executions).rev() {
            let execution = (*execution)?;
            match back.iter_mut().find(|later| later.part.root == part.root) {
                Some(later) => {
                    later.part.to.clone_from(&part.from);
                    later.execution = execution;
                }
                None => {
                    let (from, to) = (part.to.clone(), part.from.clone());
                    back.push(Back { part: Part { from, to, ..part.clone() }, execution });
                }
            }
        }
        Some(back)
    }

    /// The number of the earlier set that it takes back, if that is what it does.
    pub fn takes_back(&self) -> Option<u64> {
        self.takes_back
    }

    /// What changes, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Where each part stands.
    pub fn states(&self) -> &[PartState] {
        &self.states
    }

    /// The number of a part's execution in its root, once it may have begun.
    pub fn execution(&self, part: usize) -> Option<u64> {
        self.executions.get(part).copied().flatten()
    }

    /// Whether it was declared good.
    pub fn is_committed(&self) -> bool {
        self.committed
    }

    /// How it ended, if it did.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }
}
