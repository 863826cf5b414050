//! The version gate: which code may hand in data.
//!
//! Owns asking git and repositories for the commits that count, keeping that set fresh, and the gate as a layer for other
//! servers. It never decides by rules of its own: `cutover_core::admission` does. Read [`Gate`] first.

mod git;
mod keeper;
mod layer;
mod releases;

use std::{io, path::PathBuf, process::ExitStatus, sync::Arc, time::Duration};

use cutover_core::admission::{Claim, ClaimError, Freshness, Known, Refusal, claim, freshness};
pub use git::{GitSource, Owner};
pub use keeper::{Admitted, Gate, Rules, Status};
pub use layer::{GateLayer, Gated, GatedFuture};
pub use releases::{ReleaseTrust, ReleasesSource, Selection};

/// Where known commits come from.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// Reads the set. May take long; called from one thread at a time.
    ///
    /// # Errors
    /// [`SourceError`]
    fn read(&self) -> Result<Known, SourceError>;

    /// What it reads, in one line. Two sources that say the same are the same.
    fn describes(&self) -> String;
}

/// Why a source has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The program is not there or cannot be started.
    #[error("failed to start `{}`", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Git took too long and was killed.
    #[error("git took longer than {} s and was stopped", limit.as_secs_f32())]
    TimeLimit {
        /// The limit.
        limit: Duration,
    },
    /// Git refused.
    #[error("git refused to read `{}` ({status}): {said}", repository.display())]
    Git {
        /// The clone.
        repository: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        said: String,
    },
    /// It answered something else.
    #[error("{0}")]
    Output(String),
    /// There is no commit yet.
    #[error("`{}` has no commits", repository.display())]
    NoCommits {
        /// The clone or repository.
        repository: PathBuf,
    },
    /// Reading its answer failed.
    #[error("failed to read what git wrote")]
    Io(#[source] io::Error),
}

/// How old a set of known commits may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Older than this, it is read again.
    pub ttl: Duration,
    /// Older than this, it is not judged by any more.
    pub max_stale: Duration,
}

impl Ages {
    fn of(self, age: Duration) -> Freshness {
        freshness(Some(age), self.ttl, self.max_stale)
    }
}

impl Source for GitSource {
    fn read(&self) -> Result<Known, SourceError> {
        GitSource::read(self)
    }

    fn describes(&self) -> String {
        format!("git {} {}", self.repository.display(), self.reference)
    }
}

/// Two sources: what either knows is known; the head is the first's.
#[derive(Clone, Debug)]
pub struct Both(pub Arc<dyn Source>, pub Arc<dyn Source>);

impl Source for Both {
    fn read(&self) -> Result<Known, SourceError> {
        Ok(self.0.read()?.and(&self.1.read()?))
    }

    fn describes(&self) -> String {
        format!("{} and {}", self.0.describes(), self.1.describes())
    }
}

/// The claim in the headers of a request; `names` are the header and its aliases.
pub fn claim_of(headers: &http::HeaderMap, names: &[http::HeaderName]) -> Claim {
    claim(names.iter().map(|name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes)))
}

/// A decision as a label for counting.
pub fn outcome_of(decision: &Result<Admitted, Refusal>) -> &'static str {
    match decision {
        Ok(_) => "admitted",
        Err(Refusal::Claim(ClaimError::Missing)) => "commit-missing",
        Err(Refusal::Claim(ClaimError::Malformed | ClaimError::OtherFormat)) => "commit-malformed",
        Err(Refusal::Claim(ClaimError::Ambiguous)) => "commit-ambiguous",
        Err(Refusal::OutOfDate { .. }) => "not-accepted",
        Err(Refusal::Unknown) => "unknown",
        Err(Refusal::Closed) => "closed",
    }
}
