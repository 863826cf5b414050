//! What an execution tells whoever watches: people through a progress bar, machines through JSON lines.
//!
//! Step events are never lost; progress may be dropped when the watcher is slow. Watching never changes an execution:
//! what a watcher does, or fails to do, has no way back in.

use serde::Serialize;

use crate::{execute::Outcome, model::ReleaseRef};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// An execution begins, or is taken up again.
    Started {
        /// Its number.
        number: u64,
        /// From which release.
        from: Option<ReleaseRef>,
        /// To which release.
        to: Option<ReleaseRef>,
    },
    /// A step's intent is durable; its effect comes next.
    StepStarted {
        /// The step's name.
        step: &'static str,
    },
    /// A step is done.
    StepDone {
        /// The step's name.
        step: &'static str,
        /// How long it took.
        elapsed_ms: u64,
        /// What is worth telling about it.
        note: String,
    },
    /// A step failed.
    StepFailed {
        /// The step's name.
        step: &'static str,
        /// Why.
        error: String,
    },
    /// A step is being undone.
    UndoStarted {
        /// The step's name.
        step: &'static str,
    },
    /// A step is undone.
    UndoDone {
        /// The step's name.
        step: &'static str,
    },
    /// A step could not be undone.
    UndoFailed {
        /// The step's name.
        step: &'static str,
        /// Why.
        error: String,
    },
    /// Share of the whole that is done: 0 to 100, never falling within one execution.
    Progress {
        /// Percent.
        percent: u8,
    },
    /// Something unusual that is still safe.
    Warning {
        /// What.
        message: String,
    },
    /// The execution has ended.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

impl Event {
    /// Whether a slow watcher may miss this event.
    pub fn is_droppable(&self) -> bool {
        matches!(self, Self::Progress { .. })
    }
}

/// Receives events. Implementations must not block for long and must not panic; `host` shields executions from both.
pub trait Observer: Send + Sync {
    /// Takes one event.
    fn observe(&self, event: &Event);
}

/// Ignores every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _: &Event) {}
}
