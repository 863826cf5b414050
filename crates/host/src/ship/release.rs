//! Which release of this host the code of an episode came in.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cutover_core::{admission::CommitHash, model::Digest};

use crate::{disk::RealDisk, node::release_built_from};

/// The releases at one root, asked for by commit.
pub(super) struct Releases {
    root: PathBuf,
    /// What was found. A release that is removed later was there all the same.
    found: Mutex<BTreeMap<CommitHash, Digest>>,
}

impl Releases {
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), found: Mutex::default() }
    }

    /// The digest of the manifest of the release that was built from a commit; `None` when this host has none.
    pub(super) fn of(&self, commit: &CommitHash) -> Option<Digest> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = found.get(commit) {
            return Some(*digest);
        }
        let looked = RealDisk::open(&self.root).map_err(|error| error.to_string()).and_then(|disk| {
            release_built_from(Arc::new(disk), commit.as_str()).map_err(|error| error.to_string())
        });
        match looked {
            Ok(Some(digest)) => {
                found.insert(commit.clone(), digest);
                Some(digest)
            }
            Ok(None) => {
                tracing::warn!(%commit, root = %self.root.display(), "no release here was built from this commit: none is named");
                None
            }
            Err(error) => {
                tracing::error!(root = %self.root.display(), error, "failed to look for the release of a commit");
                None
            }
        }
    }
}

impl fmt::Debug for Releases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Releases({})", self.root.display())
    }
}
