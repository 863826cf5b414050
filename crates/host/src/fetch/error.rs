//! Why something was not fetched, with the URL it happened to and what to do about it.

use std::{error::Error, io, path::PathBuf, time::Duration};

use cutover_core::{fetch::answer::Refusal, model::Digest};

use crate::node::FsError;

/// Why something was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A setting that cannot be used.
    #[error("`source.{key}`: {reason}")]
    Setting {
        /// Its key within `[source]`.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Another process downloads below the same root.
    #[error("another process uses the downloads of this root{}", if .0.is_empty() { String::new() } else { format!(" ({})", .0) })]
    Busy(String),
    /// A path that may not be asked for.
    #[error("`{0}` is no path below a source")]
    Path(String),
    /// A file whose content nobody vouches for. (W14)
    #[error("`{0}` has no SHA-256: what it contains could not be checked")]
    NoDigest(String),
    /// Too little room.
    #[error("{needed} bytes of free space are needed for the download and {free} are free")]
    Space {
        /// Bytes demanded.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The server's answer is of no use.
    #[error("failed to fetch `{url}`")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        #[source]
        source: Refusal,
    },
    /// No answer, or a broken one.
    #[error("failed to fetch `{url}`: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// A place in a bucket cannot be opened, or nothing there can be asked for.
    #[error("failed to ask for `{place}`")]
    Bucket {
        /// The place, or the address of an object.
        place: String,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Too few bytes for too long.
    #[error("failed to fetch `{url}`: less than {bytes_min} bytes in {window:?}")]
    Stalled {
        /// What was asked for.
        url: String,
        /// How many bytes had to come ...
        bytes_min: u64,
        /// ... in this time.
        window: Duration,
    },
    /// More bytes than there may be.
    #[error("`{url}` is longer than the {limit} bytes it may have")]
    TooLong {
        /// What was asked for.
        url: String,
        /// The most bytes it may have.
        limit: u64,
    },
    /// Fewer bytes than announced.
    #[error("`{url}` ended after {found} of {expected} bytes")]
    Short {
        /// What was asked for.
        url: String,
        /// Bytes received.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The bytes are not the ones that were described.
    #[error("hash mismatch: `{url}` has the SHA-256 {found} instead of {expected}")]
    Mismatch {
        /// Where they came from.
        url: String,
        /// The digest that was signed.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A redirect that is not followed.
    #[error("`{url}` redirects to `{to}`, {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it leads.
        to: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The server wants us to wait too long.
    #[error("`{url}` asks to come back in {} s, which is longer than `source.retry_wait_max_s`", wait.as_secs())]
    TooLongAWait {
        /// What was asked for.
        url: String,
        /// How long.
        wait: Duration,
    },
    /// The answer is not what the protocol says.
    #[error("`{url}` answers with something else than {expected}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A file of the source cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The downloads below the root cannot be written or read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Whoever takes the objects failed.
    #[error("failed to take a downloaded object")]
    Sink(#[source] Box<dyn Error + Send + Sync>),
    /// Not fetched because another object failed, or because nobody wants it any more.
    #[error("not fetched because something else failed first")]
    Stopped,
    /// The runtime for downloads cannot be started.
    #[error("failed to start the runtime for downloads")]
    Runtime(#[source] io::Error),
}

/// What a failure means for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// The same place may do better next time, after this wait if the server asked for one.
    Transient(Option<Duration>),
    /// This place will not do better; another one may.
    Elsewhere,
    /// Nothing will help: it is ours.
    Fatal,
}

impl FetchError {
    pub(super) fn outlook(&self) -> Outlook {
        match self {
            Self::Answer { source, .. } if source.is_transient() => Outlook::Transient(source.wait()),
            Self::Transport { .. } | Self::Stalled { .. } | Self::Short { .. } => Outlook::Transient(None),
            Self::Answer { .. }
            | Self::TooLong { .. }
            | Self::Mismatch { .. }
            | Self::Redirect { .. }
            | Self::TooLongAWait { .. }
            | Self::Malformed { .. }
            | Self::Bucket { .. }
            | Self::Read { .. } => Outlook::Elsewhere,
            Self::Setting { .. }
            | Self::Busy(_)
            | Self::Path(_)
            | Self::NoDigest(_)
            | Self::Space { .. }
            | Self::Fs(_)
            | Self::Sink(_)
            | Self::Stopped
            | Self::Runtime(_) => Outlook::Fatal,
        }
    }

    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Setting { key, .. } => format!("set `source.{key}` right; docs/reference/settings.md has every key"),
            Self::Busy(_) => "wait until the other run has ended".to_owned(),
            Self::NoDigest(_) => "publish it again with a tool that records its SHA-256".to_owned(),
            Self::Space { .. } => "free some space, for example with `cutover prune --keep 1`".to_owned(),
            Self::Answer { source, .. } => return answer_remedy(source),
            Self::Transport { .. } => {
                "check the address, the proxy and the certificates in `[source]`; what was fetched is kept".to_owned()
            }
            Self::Stalled { .. } | Self::Short { .. } => {
                "run the command again: it goes on with what was fetched".to_owned()
            }
            Self::TooLong { .. } | Self::Mismatch { .. } | Self::Malformed { .. } => {
                "the source is damaged or not the right one: check it with `cutover repo verify`, or use another mirror"
                    .to_owned()
            }
            Self::Redirect { .. } => "put the address it should lead to into `source.urls`".to_owned(),
            Self::TooLongAWait { .. } => "try again later, or use a token or another mirror".to_owned(),
            Self::Path(_)
            | Self::Bucket { .. }
            | Self::Read { .. }
            | Self::Fs(_)
            | Self::Sink(_)
            | Self::Stopped
            | Self::Runtime(_) => return None,
        };
        Some(text)
    }
}

fn answer_remedy(refusal: &Refusal) -> Option<String> {
    let text = match refusal {
        Refusal::Missing(_) => "check the address in `[source]`, and that the release is published there",
        Refusal::Denied(_) => {
            "check `source.token_file` or `source.token_variable` and what the token may read; for a bucket, the \
             credentials and that they allow s3:GetObject and s3:ListBucket"
        }
        Refusal::Busy { .. } | Refusal::Failed(_) => "try again later: what was fetched is kept",
        Refusal::Encoded(_) => "make the server or proxy send files as they are, without compressing them",
        Refusal::Length { .. } => "an error page or another file lies there: publish it again",
        Refusal::Status(_) | Refusal::Range => return None,
    };
    Some(text.to_owned())
}

/// Adds to an I/O error what was attempted, and on what.
pub(super) trait Attempt<T> {
    fn attempt(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, FetchError>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, FetchError> {
        self.map_err(|source| FsError { what, path: path.into(), source }.into())
    }
}
