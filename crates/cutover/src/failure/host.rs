//! Exit codes of the errors of `cutover-host`.

use cutover_host::{
    catalog::CatalogError,
    delta_payload::OtherRelease,
    fetch::FetchError,
    node::{NodeError, PointError, StageError, StateError, StoreError},
    service::ServiceError,
    ship::{QueueError, ShipError},
};

use super::Classify;
use crate::exit::Exit;

impl Classify for NodeError {
    fn exit(&self) -> Exit {
        match self {
            Self::AlreadyRunning { .. } => Exit::InProgress,
            Self::Catalog(error) => error.exit(),
            Self::Point(error) => error.exit(),
            Self::Stage(error) => error.exit(),
            Self::Store(error) => error.exit(),
            Self::State(error) => error.exit(),
            Self::Damaged { .. } | Self::Journal { .. } | Self::SetJournal { .. } | Self::Manifest { .. } => {
                Exit::Damaged
            }
            Self::Layout { .. } | Self::Needed(_) => Exit::Policy,
            Self::NoSpace { .. } => Exit::Preflight,
            Self::Stopped(_) | Self::NotConfirmed { .. } => Exit::RestoreFailed,
            Self::Fs(_)
            | Self::Changed
            | Self::Violation(_)
            | Self::Payload
            | Self::Unfinished(_)
            | Self::InSet(_)
            | Self::UnknownRelease(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::AlreadyRunning { .. } => "wait until it has ended, then look with `cutover status`",
            Self::Point(_) => "choose another one from `cutover restore-points`",
            Self::Catalog(error) => return error.hints(),
            Self::Store(_) => {
                "`cutover verify` shows what is damaged; apply the bundle again to fill the store"
            }
            Self::State(_) | Self::Unfinished(_) | Self::Stopped(_) | Self::NotConfirmed { .. } => {
                "run `cutover recover`"
            }
            Self::InSet(_) => "it ends what was begun for all packages of the set; then run this again",
            Self::Damaged { .. } | Self::Manifest { .. } => {
                "keep a copy of `.cutover`, move the named file away, then run `cutover recover`"
            }
            Self::Journal { .. } | Self::SetJournal { .. } => {
                "keep a copy of `.cutover`, move the named file away, then run `cutover recover`; if a set of packages was open, \
                 compare the versions at all its roots: one may have kept what the others took back"
            }
            Self::Layout { .. } => "leave out `--layout`, or use another root",
            Self::NoSpace { .. } => "free some space, for example with `cutover prune --keep 1`",
            Self::Changed => "run `cutover plan` again and look at the new plan",
            Self::Needed(_) => "prune the restore point that needs it first",
            Self::UnknownRelease(_) => "`cutover history` lists what was installed here",
            Self::Payload => "pass the bundle the plan was made for",
            Self::Fs(_) | Self::Stage(_) | Self::Violation(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl Classify for PointError {
    fn exit(&self) -> Exit {
        match self {
            Self::Manifest { .. } | Self::File { .. } | Self::Unsealed(_) => Exit::Damaged,
            Self::Fs(_) => Exit::Failed,
        }
    }
}

impl Classify for StageError {
    fn exit(&self) -> Exit {
        match self {
            Self::Payload { source, .. } => source.exit(),
            Self::Patch { source, .. } => source.exit(),
            Self::Store { source, .. } => source.exit(),
            Self::Differs { .. } | Self::NoPayload(_) | Self::NotInPoint { .. } | Self::Directory(_) => {
                Exit::Failed
            }
        }
    }
}

impl Classify for StoreError {
    fn exit(&self) -> Exit {
        match self {
            Self::Missing(_) | Self::Object(_) => Exit::Damaged,
            Self::Fs(_) => Exit::Failed,
        }
    }
}

impl Classify for StateError {
    fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) | Self::Fs(_) => Exit::Failed,
        }
    }
}

impl Classify for CatalogError {
    fn exit(&self) -> Exit {
        match self {
            Self::Sqlite { .. } | Self::Io { .. } => Exit::Failed,
            Self::Newer(_) => Exit::Damaged,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Newer(_) => vec!["use the newer cutover that wrote it".to_owned()],
            Self::Sqlite { .. } | Self::Io { .. } => Vec::new(),
        }
    }
}

impl Classify for ServiceError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) => Exit::Usage,
            Self::AlreadySupervised(_) => Exit::InProgress,
            Self::NotReady { .. }
            | Self::NotStopped(_)
            | Self::Superseded(_)
            | Self::Command(_)
            | Self::Supervisor { .. }
            | Self::Io { .. } => Exit::Failed,
        }
    }
}

impl Classify for OtherRelease {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec!["pass the full bundle that was built with the delta".to_owned()]
    }
}

impl Classify for FetchError {
    fn exit(&self) -> Exit {
        match self {
            Self::Setting { .. } | Self::Path(_) => Exit::Usage,
            Self::Busy(_) => Exit::InProgress,
            Self::Bucket { source, .. } => {
                super::repo::of_bucket(source.as_ref()).map_or(Exit::Failed, |(exit, _)| exit)
            }
            Self::Space { .. } => Exit::Preflight,
            Self::NoDigest(_) | Self::Mismatch { .. } | Self::TooLong { .. } | Self::Malformed { .. } => {
                Exit::UnsafeContent
            }
            Self::Answer { .. }
            | Self::Transport { .. }
            | Self::Stalled { .. }
            | Self::Short { .. }
            | Self::Redirect { .. }
            | Self::TooLongAWait { .. }
            | Self::Read { .. }
            | Self::Fs(_)
            | Self::Sink(_)
            | Self::Stopped
            | Self::Runtime(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        if let Self::Bucket { source, .. } = self {
            return super::repo::of_bucket(source.as_ref()).map_or_else(Vec::new, |(_, hints)| hints);
        }
        self.remedy().into_iter().collect()
    }
}

impl Classify for ShipError {
    fn exit(&self) -> Exit {
        match self {
            Self::Setting { .. } | Self::Unknown(_) | Self::NotParked(..) => Exit::Usage,
            Self::Busy(_) => Exit::InProgress,
            Self::Queue(QueueError::Newer(_) | QueueError::Aside(_)) => Exit::Damaged,
            Self::Dropped(..)
            | Self::Queue(QueueError::Sqlite { .. })
            | Self::Io { .. }
            | Self::Runtime(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        self.remedy().into_iter().collect()
    }
}
