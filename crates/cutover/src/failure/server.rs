//! Exit codes of the errors of `cutover-server`.

use cutover_server::{
    gate::SourceError,
    ingest::{OpenError, repair::RepairError},
    receiver::StartError,
    settings::SettingError,
};

use super::Classify;
use crate::exit::Exit;

impl Classify for SettingError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

impl Classify for OpenError {
    fn exit(&self) -> Exit {
        match self {
            Self::InUse(_) => Exit::InProgress,
            Self::Io { .. } => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::InUse(_) => vec![
                "stop the other receiver, or give this one a directory of its own with --root".to_owned(),
            ],
            Self::Io { .. } => {
                vec!["name a directory that this user can write to with --root or `gate.root`".to_owned()]
            }
        }
    }
}

impl Classify for StartError {
    fn exit(&self) -> Exit {
        match self {
            Self::Setting(error) => error.exit(),
            Self::Store(error) => error.exit(),
            Self::Tls { .. } => Exit::Usage,
            Self::Listen { .. } | Self::Io(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Setting(error) => error.hints(),
            Self::Store(error) => error.hints(),
            Self::Tls { .. } => vec!["`gate.tls` names PEM files that this user can read".to_owned()],
            Self::Listen { .. } => vec!["name another socket with --listen or `gate.listen`".to_owned()],
            Self::Io(_) => Vec::new(),
        }
    }
}

impl Classify for SourceError {
    fn exit(&self) -> Exit {
        Exit::Failed
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Start { .. } => "install git, or name the program with `gate.git.program`",
            Self::TimeLimit { .. } => {
                "raise `gate.git.time_limit_s`, or look for what keeps git from answering"
            }
            Self::Git { .. } => {
                "run `git log` in the clone as this user; `gate.git.owner` says whose clones are read"
            }
            Self::NoCommits { .. } => "make a commit, or name another clone with --repository",
            Self::Output(_) | Self::Io(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl Classify for RepairError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoEpisodes(_) => Exit::Usage,
            Self::Bucket { .. } | Self::Index { .. } => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoEpisodes(_) => {
                "name the directory that holds `episodes/` with `--root`, or the bucket that does with `--storage`"
            }
            Self::Bucket { .. } => {
                "check the place, the credentials and the network; `cutover config show` prints `s3`"
            }
            Self::Index { .. } => {
                "rows that were added so far are durable; run it again once the cause is gone"
            }
        };
        vec![hint.to_owned()]
    }
}
