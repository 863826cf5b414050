//! Why something could not be done with a root.
//!
//! Read [`NodeError`] first. Errors of one effect are where the effect is: `FsError` in `files`, `StoreError` in `store`,
//! `StateError` in `state_log`.

use cutover_bundle::{ObjectError, delta::DeltaError};
use cutover_core::{
    execute::FoldError,
    model::{ManifestError, RestorePointError, RestorePointId, SafePath, Version},
    plan::{Layout, Violation},
    set::{SetFoldError, SetId},
};

use super::{files::FsError, state_log::StateError, store::StoreError};
use crate::catalog::CatalogError;

/// Why something could not be done with a root.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Another process holds the lock. Exit code 10.
    #[error("another run is already in progress on this root{}", if .holder.is_empty() { String::new() } else { format!(" ({})", .holder) })]
    AlreadyRunning {
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file system refused something.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The catalog refused something.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A restore point cannot be used. Exit code 17.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Files could not be laid down. Exit code 1.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// An object could not be had from the store. Exit code 17.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state log refused a change. Exit code 1.
    #[error(transparent)]
    State(#[from] StateError),
    /// Local state makes no sense. Exit code 17.
    #[error("local state is damaged: `{path}`: {problem}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A journal makes no sense. Exit code 17.
    #[error("local state is damaged: journal `{path}`")]
    Journal {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: FoldError,
    },
    /// The journal of a set makes no sense. Exit code 17.
    #[error("local state is damaged: journal `{path}`")]
    SetJournal {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: SetFoldError,
    },
    /// A manifest that was stored cannot be read. Exit code 17.
    #[error("local state is damaged: manifest `{path}`")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The root was laid out otherwise when it was first used. Exit code 13.
    #[error(
        "this root has layout `{}`, `{}` was asked for; the layout is chosen at the first use", .present.name(), .wanted.name()
    )]
    Layout {
        /// What it has.
        present: Layout,
        /// What was asked for.
        wanted: Layout,
    },
    /// The world changed since the plan was made. Exit code 1.
    #[error("something changed since the plan was made; plan again")]
    Changed,
    /// The plan breaks a safety rule. Exit code 1.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// An update needs the bundle of the release it leads to.
    #[error("the plan leads to another release than the bundle holds")]
    Payload,
    /// An execution has not ended. Exit code 1.
    #[error("execution {0} was interrupted and has not ended; run `cutover recover` first")]
    Unfinished(u64),
    /// The root is part of a set that has not ended. Exit code 1.
    #[error(
        "this root is part of set {} of `{}`, which has not ended; run `cutover recover --root {}` first", .0.number, .0.coordinator, .0.coordinator
    )]
    InSet(SetId),
    /// A set was committed, and its execution here could not be confirmed yet. Exit code 15.
    #[error(
        "execution {number} is decided and could not be confirmed: {error}; mend this, then run `cutover recover`"
    )]
    NotConfirmed {
        /// The execution.
        number: u64,
        /// Why.
        error: String,
    },
    /// Not enough room. Exit code 12.
    #[error(
        "{free} bytes are free below the root, {needed} are needed (twice what the update lays down, and what it copies)"
    )]
    NoSpace {
        /// What is needed.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The journal could not be written: nothing more was done. Exit code 15.
    #[error("stopped: the journal could not be written; free or repair the disk, then run `cutover recover`")]
    Stopped(#[source] FsError),
    /// There is no such release. Exit code 1.
    #[error("no release {0} is known here")]
    UnknownRelease(Version),
    /// The release is needed. Exit code 13.
    #[error("release {0} is current or needed by a restore point")]
    Needed(Version),
}

/// Why a restore point cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// Its manifest was altered or cannot be read.
    #[error("`{path}`: {source}")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong.
        source: RestorePointError,
    },
    /// A file it keeps was altered, is missing, or is one too many.
    #[error("file `{path}` of restore point {id} {problem}")]
    File {
        /// Which restore point.
        id: RestorePointId,
        /// The file, relative to the root.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// It, or the journal that vouches for it, cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No journal vouches for it.
    #[error("restore point {0} has no journal that vouches for it")]
    Unsealed(RestorePointId),
}

/// Why staging failed. Nothing outside staging was changed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The bundle's object is unreadable or not what its manifest says.
    #[error("`{path}` cannot be laid down from the bundle")]
    Payload {
        /// The file.
        path: SafePath,
        /// What is wrong.
        #[source]
        source: ObjectError,
    },
    /// A patch cannot be applied, and there is no full object to take instead.
    #[error("`{path}` cannot be made by its patch, and its full content is not at hand")]
    Patch {
        /// The file.
        path: SafePath,
        /// What is wrong with the patch or its base.
        #[source]
        source: DeltaError,
    },
    /// The store's object is unreadable or damaged, and there is no bundle to take it from.
    #[error("`{path}` cannot be laid down from the store")]
    Store {
        /// The file.
        path: SafePath,
        /// What is wrong.
        #[source]
        source: StoreError,
    },
    /// A staged file is not what the plan says.
    #[error("staged file `{path}` {problem}; nothing was changed")]
    Differs {
        /// The file.
        path: SafePath,
        /// How it differs.
        problem: &'static str,
    },
    /// The plan needs a bundle that nobody gave.
    #[error("`{0}` comes from the bundle, which is not at hand")]
    NoPayload(SafePath),
    /// A restore point does not hold a file the plan takes from it.
    #[error("restore point {id} does not hold `{path}`")]
    NotInPoint {
        /// Which restore point.
        id: RestorePointId,
        /// The file.
        path: SafePath,
    },
    /// A directory lies where the release wants a file, and not all of its content is to be removed.
    #[error("`{0}` is a directory with content that belongs to no release; move it away")]
    Directory(SafePath),
}
