//! What to repair, and how.

use std::{collections::BTreeSet, num::NonZeroUsize, path::PathBuf, sync::Arc};

use cutover_core::admission::{EpisodeKey, HostId};

use crate::ingest::{bucket::Bucket, layout::Layout};

/// What to repair, and how.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// The directory that holds `episodes/`.
    pub layout: Layout,
    /// What holds `episodes/` instead.
    pub bucket: Option<Arc<dyn Bucket>>,
    /// The index file.
    pub index: PathBuf,
    /// Only these hosts. Empty: all.
    pub hosts: BTreeSet<HostId>,
    /// Whether rows are written.
    pub writing: Writing,
    /// Whether episodes that have a row are hashed and compared with it.
    pub check: Check,
    /// Files hashed at the same time.
    pub jobs: NonZeroUsize,
}

impl RepairOptions {
    pub(super) fn wants(&self, host: &HostId) -> bool {
        self.hosts.is_empty() || self.hosts.contains(host)
    }

    /// What messages call an episode.
    pub(super) fn path(&self, key: &EpisodeKey) -> PathBuf {
        match &self.bucket {
            None => self.layout.episode(key),
            Some(bucket) => PathBuf::from(format!("{}/{}", bucket.place(), Layout::object(key))),
        }
    }
}

/// Whether rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// Missing rows are added.
    Rows,
    /// Nothing is written; the first rows are shown.
    Nothing,
}

/// Whether episodes that have a row are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Only those without a row are hashed.
    Missing,
    /// All are hashed and compared.
    Everything,
}
