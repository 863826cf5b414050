//! Why a repository could not be read or changed.

use std::io;

use cutover_bundle::{
    ObjectError,
    tlog::{CheckpointError, EntriesError, NoteError},
};
use cutover_core::model::Name;

use crate::{
    index::IndexError,
    sign::SigningError,
    tuf::{Refused, RoleKind},
};

/// Why a repository could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file could not be read or written.
    #[error("failed to {action} `{path}` of the repository")]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no repository.
    #[error("this is no repository: it has no `metadata/1.root.json`")]
    NotARepository,
    /// There is one already.
    #[error("there is a repository already")]
    Exists,
    /// Its metadata is not right, or expired.
    #[error(transparent)]
    Metadata(#[from] Refused),
    /// One of its indexes is not right.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Metadata could not be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// Its metadata is right, but not by the keys that are given: somebody else may have replaced all of it.
    #[error("the present metadata of `{0}` is not signed by any of the keys that are given")]
    ForeignMetadata(RoleKind),
    /// Another publisher is at work.
    #[error("another publisher is at work in this repository{}", .by.as_ref().map_or(String::new(), |by| format!(": {by}")))]
    InUse {
        /// Who, where the store knows.
        by: Option<String>,
    },
    /// The same version was published with another content.
    #[error(
        "{release} for {platform} was published before with manifest {published}; \
         a version never changes: this one has manifest {offered}"
    )]
    Conflict {
        /// The release.
        release: String,
        /// Its platform.
        platform: Name,
        /// The manifest that is there.
        published: String,
        /// The manifest that was offered.
        offered: String,
    },
    /// A bundle's payload is not what its manifest says.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// There is no such release.
    #[error("the repository has no {0}")]
    NotFound(String),
    /// A file contradicts another.
    #[error("the repository is damaged: {0}")]
    Damaged(String),
    /// The checkpoint of its log is not right.
    #[error("the checkpoint of the repository's log is refused")]
    Log(#[source] CheckpointError),
    /// A file of its log has not the form of one.
    #[error(transparent)]
    LogFile(#[from] EntriesError),
    /// A note or a verifier key cannot be used.
    #[error("a note or a verifier key cannot be used")]
    Note(#[source] NoteError),
    /// The log's key is not given.
    #[error("the key of the log `{0}` is not given")]
    NoLogKey(String),
}

impl PublishError {
    pub(crate) fn storage(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Storage { action, path, source }
    }
}
