//! Exit codes of the errors of `cutover-repo`.

use std::{error::Error, io};

use cutover_bundle::tlog::CheckpointError;
use cutover_repo::{
    BootstrapError, CatalogueError, FetchError, IndexError, LogError, PublishError, SigningError,
    tuf::{ClientError, Refused},
};

use super::Classify;
use crate::exit::Exit;

impl Classify for Refused {
    fn code(&self) -> Option<&'static str> {
        Some(Refused::code(self))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Malformed { .. }
            | Self::Threshold { .. }
            | Self::Rollback { .. }
            | Self::Version { .. }
            | Self::Expired { .. }
            | Self::Content { .. }
            | Self::NotListed(_)
            | Self::Order(_) => Exit::NotTrusted,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Expired { .. } => {
                "check this host's clock with `date -u`; whoever keeps the repository runs `cutover repo refresh`"
            }
            Self::Rollback { .. } => "an old copy of the repository is being served; use the original one",
            Self::Content { .. } | Self::Version { .. } | Self::NotListed(_) => {
                "try again: the copy that is served may be half updated"
            }
            Self::Malformed { .. } | Self::Threshold { .. } | Self::Order(_) => {
                "ask whoever keeps the repository to run `cutover repo verify`"
            }
        };
        vec![hint.to_owned()]
    }
}

impl Classify for SigningError {
    fn exit(&self) -> Exit {
        match self {
            Self::TooFewKeys { .. } | Self::Key(_) => Exit::Usage,
            Self::Signer(error) => error.exit(),
            Self::Generate | Self::NotCanonical(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::TooFewKeys { role, .. } => {
                vec![format!("name the keys of `{role}` with --keys, --key, --key-pkcs11 or --key-command")]
            }
            Self::Key(_) => vec!["use a PKCS#8 key in PEM, as `cutover repo init` makes them".to_owned()],
            Self::Signer(error) => error.hints(),
            Self::Generate | Self::NotCanonical(_) => Vec::new(),
        }
    }
}

impl Classify for IndexError {
    fn exit(&self) -> Exit {
        match self {
            Self::Format(_) | Self::Syntax(_) | Self::Inconsistent(_) => Exit::UnsafeContent,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Format(_) => vec!["install a newer cutover on this host first".to_owned()],
            Self::Syntax(_) | Self::Inconsistent(_) => Vec::new(),
        }
    }
}

impl Classify for PublishError {
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::Metadata(refused) => Some(Refused::code(refused)),
            Self::Storage { .. }
            | Self::NotARepository
            | Self::Exists
            | Self::Index(_)
            | Self::Signing(_)
            | Self::ForeignMetadata(_)
            | Self::InUse { .. }
            | Self::Conflict { .. }
            | Self::Object(_)
            | Self::NotFound(_)
            | Self::Damaged(_)
            | Self::Log(_)
            | Self::LogFile(_)
            | Self::Note(_)
            | Self::NoLogKey(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Metadata(refused) => refused.exit(),
            Self::Index(error) => error.exit(),
            Self::Signing(error) => error.exit(),
            Self::ForeignMetadata(_) => Exit::NotTrusted,
            Self::InUse { .. } => Exit::InProgress,
            Self::Conflict { .. } => Exit::Policy,
            Self::Damaged(_) | Self::Log(_) | Self::LogFile(_) => Exit::Damaged,
            Self::Note(_) | Self::NoLogKey(_) => Exit::Usage,
            Self::Object(error) => error.exit(),
            Self::Storage { source, .. } => of_store(source).0,
            Self::NotARepository | Self::Exists | Self::NotFound(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Metadata(refused) => return refused.hints(),
            Self::Index(error) => return error.hints(),
            Self::Signing(error) => return error.hints(),
            Self::Object(error) => return error.hints(),
            Self::NotARepository => "set one up with `cutover repo init DIR --keys KEYDIR`",
            Self::Exists => "publish in it with `cutover repo publish`",
            Self::ForeignMetadata(_) => {
                "give the keys it was signed with; if those are right, somebody replaced the metadata: restore it"
            }
            Self::InUse { .. } => "wait until it has ended, then run this again",
            Self::Conflict { .. } => "give the new content a new version",
            Self::NotFound(_) => "`cutover repo list` shows what there is",
            Self::Damaged(_) => "`cutover repo verify` lists what is wrong; publish the same bundles again",
            Self::Log(_) | Self::LogFile(_) => "restore `log/` of the repository from a copy or a mirror",
            Self::NoLogKey(_) => "name it with --key, or put it beside the others as `log.key`",
            Self::Storage { source, .. } => return of_store(source).1,
            Self::Note(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// What a failed operation of a store leads to, and what to do about it.
fn of_store(error: &io::Error) -> (Exit, Vec<String>) {
    let of_bucket = error.get_ref().and_then(of_bucket);
    of_bucket.unwrap_or_else(|| match error.kind() {
        io::ErrorKind::StorageFull => (Exit::Failed, vec!["make room there, then run this again".to_owned()]),
        _ => (Exit::Failed, Vec::new()),
    })
}

/// What a failure with a bucket leads to, and what to do about it; `None` when it is another error.
pub(super) fn of_bucket(error: &(dyn Error + Send + Sync + 'static)) -> Option<(Exit, Vec<String>)> {
    #[cfg(feature = "s3")]
    if let Some(error) = error.downcast_ref::<cutover_s3::S3Error>() {
        return Some((error.exit(), error.hints()));
    }
    let _ = error;
    None
}

impl Classify for LogError {
    fn exit(&self) -> Exit {
        match self {
            Self::Fetch { source, .. } => exit_of_fetch(source),
            Self::State { .. } => Exit::Failed,
            Self::Checkpoint(_)
            | Self::Entries(_)
            | Self::Forked { .. }
            | Self::NotThere { .. }
            | Self::NotLogged(_)
            | Self::Damaged(_) => Exit::NotTrusted,
            Self::Signing(error) => error.exit(),
            Self::Note(_) => Exit::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Fetch { .. } => "the repository may keep no log: `cutover repo log init` begins one",
            Self::Checkpoint(CheckpointError::Witnesses { .. }) => {
                "try again once the witnesses have cosigned it: `cutover repo log cosign`"
            }
            Self::Forked { .. } => {
                "an old or another history is shown here: compare `cutover repo log show` from another network, and keep both checkpoints"
            }
            Self::NotLogged(_) | Self::NotThere { .. } => {
                "do not install it before others can see it: ask whoever keeps the repository"
            }
            Self::Checkpoint(_) | Self::Entries(_) | Self::Damaged(_) => {
                "ask whoever keeps the repository to run `cutover repo log verify`"
            }
            Self::Signing(error) => return error.hints(),
            Self::State { .. } | Self::Note(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

fn exit_of_fetch(error: &FetchError) -> Exit {
    match error {
        FetchError::TooLarge { .. } => Exit::UnsafeContent,
        FetchError::NotFound | FetchError::Failed(_) => Exit::Failed,
    }
}

impl Classify for ClientError {
    fn code(&self) -> Option<&'static str> {
        Some(ClientError::code(self))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Refused(refused) => refused.exit(),
            Self::Fetch { source, .. } => exit_of_fetch(source),
            Self::NoRoot => Exit::NotTrusted,
            Self::State { .. } | Self::NoTarget(_) => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused(refused) => refused.hints(),
            Self::Fetch { .. } => {
                vec!["check the address of the repository and that it can be reached".to_owned()]
            }
            Self::NoRoot => vec!["give the repository's first root with --trusted-root".to_owned()],
            Self::State { .. } | Self::NoTarget(_) => Vec::new(),
        }
    }
}

impl Classify for CatalogueError {
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::Client(error) => Some(ClientError::code(error)),
            Self::Index(_) | Self::NoPackage { .. } | Self::NoVersion { .. } => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => error.exit(),
            Self::Index(error) => error.exit(),
            Self::NoPackage { .. } | Self::NoVersion { .. } => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Client(error) => error.hints(),
            Self::Index(error) => error.hints(),
            Self::NoPackage { .. } | Self::NoVersion { .. } => {
                vec!["`cutover check` shows what there is".to_owned()]
            }
        }
    }
}

impl Classify for BootstrapError {
    fn exit(&self) -> Exit {
        match self {
            Self::Fetch { source, .. } => exit_of_fetch(source),
            Self::Malformed(_) => Exit::UnsafeContent,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Fetch { source: FetchError::NotFound, .. } => {
                "is this the address of a repository? One without a signer needs its first root: --trusted-root"
            }
            Self::Fetch { .. } => return Vec::new(),
            Self::Malformed(_) => "give the first root of the repository with --trusted-root",
        };
        vec![hint.to_owned()]
    }
}
