//! Fetching: objects from URLs and directories, verified, resumed, limited, in parallel.
//!
//! This module owns every byte that comes over a network on a node, and `.cutover/downloads`. It knows neither what a
//! repository looks like nor what is installed: it is given paths below a source, each with the SHA-256 and the size that
//! something signed promised, and hands over what has them. The rules (when to try again, what an answer means, how fast)
//! are in [`cutover_core::fetch`]. Read [`Fetcher`] first, then [`Source`].
//!
//! Inside is one tokio runtime; outside everything blocks. Network work runs on its threads, reading, writing and hashing
//! files beside them.

mod base;
mod downloads;
mod error;
mod get;
mod http;
mod run;
mod settings;
mod shelf;
mod source;
mod stop;
mod timer;
mod transfer;
mod writer;

use cutover_core::{fetch::Priority, model::Digest};

pub use base::{Bucket, Buckets, RelativePath, Signing};
pub use downloads::Downloads;
pub use error::FetchError;
pub use get::{Got, Tag};
pub use run::{FetchPorts, Fetcher, OnFailure, Report};
pub(crate) use settings::read_small;
pub use settings::{SourceKind, SourceSettings, Token};
pub use shelf::{End, Shelf};
pub use source::{
    FileSource, GithubSource, Listing, Offer, OfferPlace, RepositorySource, Source, open_source,
};
pub use stop::Stop;
pub(crate) use timer::Limiter;
pub use timer::{RealTimer, Timer};

/// One object that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it lies below the source.
    pub path: RelativePath,
    /// The SHA-256 of its bytes as they lie there.
    pub digest: Digest,
    /// How many they are.
    pub size_bytes: u64,
    /// Higher ones are fetched first.
    pub priority: Priority,
}

/// One object that was fetched and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that came from the source for it, over all tries.
    pub fetched_bytes: u64,
    /// Whether bytes of an earlier run or try were used.
    pub resumed: bool,
    /// How often it was tried again.
    pub retries: u32,
}

/// What becomes of an object's file once its taker has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is removed: the taker has its content somewhere else.
    Consumed,
    /// It stays among the downloads.
    Kept,
}

/// Takes objects as they arrive, on the thread that called [`Fetcher::fetch`], while others are still under way.
pub trait Sink {
    /// Takes the object `fetched`, which is `wanted[index]`; its content is read with [`Downloads::open_object`]. Each
    /// digest is handed over once, however often it is wanted.
    ///
    /// # Errors
    /// Any error stops the download.
    fn take(
        &mut self,
        index: usize,
        fetched: &Fetched,
        downloads: &Downloads,
    ) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>>;

    /// By what the taker ends the download when it wants nothing more of it. Asked for once, before the first byte.
    fn stop(&self) -> Stop {
        Stop::new()
    }
}

/// Takes nothing: everything stays among the downloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl Sink for KeepAll {
    fn take(
        &mut self,
        _: usize,
        _: &Fetched,
        _: &Downloads,
    ) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Taken::Kept)
    }
}

/// What happens to an object. (W18)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Bytes come in.
    Downloading,
    /// All bytes are there and are hashed.
    Verifying,
    /// It is verified.
    Done,
}

impl Phase {
    /// Its name in events: `downloading`, `verifying`, `done`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Done => "done",
        }
    }
}

/// Is told how a download goes, from several threads. It must not block.
pub trait Watch: Send + Sync {
    /// `bytes` of the object `wanted[index]` are there.
    fn progress(&self, index: usize, phase: Phase, bytes: u64);
    /// A try failed and another one follows.
    fn retry(&self, _index: usize, _error: &FetchError) {}
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn progress(&self, _: usize, _: Phase, _: u64) {}
}
