//! The table: every error kind of the crates below and its exit code.

use cutover_core::{
    execute::Outcome,
    model::{ManifestError, PathError, RestorePointError},
    plan::Refusal,
};

use super::Classify;
use crate::exit::Exit;

impl Classify for PathError {
    fn exit(&self) -> Exit {
        match self {
            Self::Empty
            | Self::Absolute(_)
            | Self::Parent(_)
            | Self::NotNormal(_)
            | Self::Character(_)
            | Self::TooLong(_)
            | Self::Reserved(_)
            | Self::Collision { .. } => Exit::UnsafeContent,
        }
    }
}

impl Classify for ManifestError {
    fn exit(&self) -> Exit {
        match self {
            Self::Path(error) => error.exit(),
            Self::TooLarge { .. }
            | Self::Format(_)
            | Self::Syntax(_)
            | Self::SymlinkTarget { .. }
            | Self::Limit { .. }
            | Self::Inconsistent(_) => Exit::UnsafeContent,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Format(_) => vec!["install a newer cutover on this host, then apply again".to_owned()],
            Self::TooLarge { .. }
            | Self::Syntax(_)
            | Self::Path(_)
            | Self::SymlinkTarget { .. }
            | Self::Limit { .. }
            | Self::Inconsistent(_) => Vec::new(),
        }
    }
}

impl Classify for RestorePointError {
    fn exit(&self) -> Exit {
        match self {
            Self::Syntax { .. } | Self::Altered { .. } => Exit::Damaged,
        }
    }

    fn hints(&self) -> Vec<String> {
        vec!["choose another one from `cutover restore-points`".to_owned()]
    }
}

impl Classify for Refusal {
    fn exit(&self) -> Exit {
        match self {
            Self::AlreadyCurrent(_) => Exit::NothingToDo,
            Self::Downgrade { .. }
            | Self::SameVersion { .. }
            | Self::TooOld { .. }
            | Self::Platform { .. }
            | Self::Package { .. }
            | Self::Dependency { .. }
            | Self::Conflict { .. }
            | Self::LocalChanges(_)
            | Self::Foreign(_)
            | Self::NoDatabase
            | Self::SchemaContracted { .. } => Exit::Policy,
            Self::UnknownPoint(_) | Self::NoPoint => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::AlreadyCurrent(_) => "`cutover verify` checks the installed files",
            Self::Downgrade { .. } => "`cutover restore-points` lists what can be gone back to",
            Self::SameVersion { .. } => "`cutover status` shows what is installed",
            Self::TooOld { .. } => "apply the version it names first",
            Self::Platform { .. } => "choose the bundle for this host's platform",
            Self::Package { .. } => "`cutover status` shows which package this root holds",
            Self::Dependency { .. } => {
                "name this host's other packages in `[preflight.packages]`, or update them first"
            }
            Self::Conflict { .. } => "remove or update the other package first",
            Self::LocalChanges(_) | Self::Foreign(_) => {
                "apply again with `--replace-changed`; `cutover rollback` brings the changed files back"
            }
            Self::NoDatabase => "name the database of the service in `schema.url`",
            Self::SchemaContracted { .. } => {
                "`cutover schema history` tells what was dropped; a release that declares a later `schema.version` is needed"
            }
            Self::UnknownPoint(_) | Self::NoPoint => "`cutover restore-points` lists what is there",
        };
        vec![hint.to_owned()]
    }
}

/// How a run ends whose execution ended so.
pub(crate) fn exit_of_outcome(outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::Confirmed => Exit::Done,
        Outcome::Undone { .. } => Exit::Failed,
        Outcome::ProbeFailed { .. } => Exit::ProbeFailed,
        Outcome::KeptUnconfirmed => Exit::ProbeFailedKept,
        Outcome::Stuck { .. } => Exit::RestoreFailed,
    }
}
