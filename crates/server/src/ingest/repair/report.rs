//! What a repair tells: before, while and after it runs, and why it does not.

use std::{
    io,
    path::{Path, PathBuf},
};

use cutover_core::admission::IndexRow;

use super::finding::Finding;

/// How many episodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored episodes.
    pub scanned: usize,
    /// Those with a row.
    pub already_indexed: usize,
    /// Those without.
    pub to_backfill: usize,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files hashed.
    pub files: usize,
    /// Of so many.
    pub files_all: usize,
    /// Bytes hashed.
    pub bytes: u64,
    /// Of so many.
    pub bytes_all: u64,
}

/// Is told how it goes.
pub trait RepairWatch {
    /// What will be done, before it is done.
    fn counted(&mut self, counts: Counts);
    /// How far it has come, now and then.
    fn progress(&mut self, progress: Progress);
    /// An episode or a directory cannot be read; the others go on.
    fn failed(&mut self, path: &Path, error: &io::Error);
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// What there was.
    pub counts: Counts,
    /// Rows that were added; those that a receiver added meanwhile are none of them.
    pub added: usize,
    /// The first rows of a dry run.
    pub shown: Vec<IndexRow>,
    /// What [`Check::Everything`](super::Check::Everything) found.
    pub findings: Vec<Finding>,
    /// How many files were hashed and how many bytes they have.
    pub hashed: (usize, u64),
    /// How many files and directories could not be read.
    pub failures: usize,
}

/// Why nothing is repaired, or not all.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// There is nothing to look at.
    #[error("no episodes dir at {}", .0.display())]
    NoEpisodes(PathBuf),
    /// A bucket cannot be listed.
    #[error("failed to list the episodes in `{place}`")]
    Bucket {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index cannot be read or written.
    #[error("failed to {attempt} `{}`", path.display())]
    Index {
        /// What was attempted.
        attempt: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
