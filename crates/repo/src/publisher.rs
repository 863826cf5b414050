//! The one who changes a repository: its lock, its keys, and what is there.
//!
//! Read [`Publisher`] first. What can be done with it is beside this: `open`, `publish`, `channels`, `bases`, `remove`, `refresh`,
//! `rotate`, `grow_log`; all of them end in `commit`.

use std::collections::BTreeMap;

use cutover_core::model::Instant;

use crate::{
    bootstrap::{BOOTSTRAP_PATH, Bootstrap},
    error::PublishError,
    own_log::OwnLog,
    present::{Present, must},
    settings::{RepositorySettings, seconds_after},
    sign::MetadataKey,
    storage::{Locked, Storage},
    tombstone,
    tuf::{RoleKind, Root, metadata_path},
};

/// The one who may change a repository: holds its lock and the keys.
pub struct Publisher<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) keys: &'a [MetadataKey],
    pub(crate) settings: RepositorySettings,
    pub(crate) present: Present,
    pub(crate) now: Instant,
    /// The log of published releases, if the repository keeps one.
    pub(crate) log: Option<OwnLog>,
    /// Contents that this run wrote and no metadata names yet.
    pub(crate) written: Vec<String>,
    _lock: Box<dyn Locked>,
}

impl<'a> Publisher<'a> {
    /// A publisher of what is `present`.
    pub(crate) fn new(
        storage: &'a dyn Storage,
        keys: &'a [MetadataKey],
        settings: RepositorySettings,
        present: Present,
        log: Option<OwnLog>,
        now: Instant,
        lock: Box<dyn Locked>,
    ) -> Self {
        Self { storage, keys, settings, present, now, log, written: Vec::new(), _lock: lock }
    }

    /// The settings of the repository.
    pub fn settings(&self) -> &RepositorySettings {
        &self.settings
    }

    /// The root that counts.
    pub fn root(&self) -> &Root {
        &self.present.root
    }

    /// Until when each role's metadata counts.
    pub fn expires(&self) -> BTreeMap<RoleKind, Instant> {
        let present = &self.present;
        BTreeMap::from([
            (RoleKind::Root, present.root.expires),
            (RoleKind::Targets, present.targets.expires),
            (RoleKind::Snapshot, present.snapshot.expires),
            (RoleKind::Timestamp, present.timestamp.expires),
        ])
    }

    /// Lets a signer of releases vouch for the present root, so that new clients can start from it.
    ///
    /// # Errors
    /// `sign` fails, or the file cannot be written.
    pub fn vouch<E: From<PublishError>>(
        &self,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let version = self.present.root.version;
        let root = must(self.storage, &metadata_path("root", Some(version)))?;
        let bootstrap = Bootstrap::new(version, &sign(&root)?).to_bytes();
        let written = self.storage.replace(BOOTSTRAP_PATH, &bootstrap);
        Ok(written.map_err(PublishError::storage("write", BOOTSTRAP_PATH))?)
    }

    /// Writes a tombstone for files that are superseded.
    pub(crate) fn bury(&self, name: &str, files: Vec<String>) -> Result<(), PublishError> {
        if files.is_empty() {
            return Ok(());
        }
        tombstone::add(self.storage, name, self.grace_ends(), files)
            .map_err(PublishError::storage("write", "a tombstone"))
    }

    /// When files that are superseded now may go.
    pub(crate) fn grace_ends(&self) -> Instant {
        seconds_after(self.now, u64::from(self.settings.grace_s))
    }

    /// Names the files that are about to be written: a run that comes after one that was cut off knows them.
    pub(crate) fn intend(&self, files: Vec<String>) -> Result<(), PublishError> {
        tombstone::store_intent(self.storage, files).map_err(PublishError::storage("write", "the intent"))
    }

    /// Ends what [`Publisher::intend`] began.
    pub(crate) fn forget_intent(&mut self) -> Result<(), PublishError> {
        self.written.clear();
        tombstone::remove_intent(self.storage).map_err(PublishError::storage("remove", "the intent"))
    }
}
