//! The order of writes that every change of a repository ends in.
//!
//! Intent, then the metadata that names what is new, and last the one file with a fixed name, `metadata/timestamp.json`. Until
//! it is replaced nothing of the new state can be found; once it is, all of it is there.

use std::collections::BTreeMap;

use cutover_core::model::{Digest, Instant};

use crate::{
    error::PublishError,
    index::Index,
    log::CHECKPOINT_PATH,
    own_log::{Growing, OwnLog},
    present::{Present, target_file},
    publisher::Publisher,
    settings::days_after,
    sign::{keys_of, sign_metadata},
    tuf::{MetaFile, RoleKind, TargetFile, consistent_target_path, metadata_path},
};

/// Which metadata a commit writes anew, beside what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renew {
    /// All of it.
    All,
    /// That of this role, and what depends on it.
    Role(RoleKind),
    /// What has spent half of its time, as far as there are keys.
    Due,
}

impl Publisher<'_> {
    /// Writes new metadata with these indexes in place of those of the same path; an empty index is left out. The log grows
    /// before; the last write is that of the timestamp.
    pub(crate) fn commit(
        &mut self,
        indexes: &[&Index],
        renew: Renew,
        growing: Option<Growing>,
    ) -> Result<(), PublishError> {
        let (storage, settings, now) = (self.storage, self.settings, self.now);
        let next = self.present.timestamp.version + 1;
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut superseded = Vec::new();
        let mut checkpoint = None;
        if let Some(growing) = growing {
            files.extend(growing.files);
            superseded.extend(growing.superseded);
            checkpoint = Some(growing.checkpoint);
        }
        let mut targets = self.present.targets.clone();
        for index in indexes {
            let path = index.path();
            let old = targets.targets.remove(&path).and_then(|target| target_file(&path, &target));
            let mut new = None;
            if !index.releases.is_empty() {
                let bytes = index.to_bytes();
                let digest = Digest::of(&bytes).to_string();
                let file = consistent_target_path(&path, &digest);
                let length = bytes.len() as u64;
                files.push((file.clone(), bytes));
                let hashes = BTreeMap::from([("sha256".to_owned(), digest)]);
                targets.targets.insert(path, TargetFile { length, hashes });
                new = Some(file);
            }
            superseded.extend(old.filter(|old| new.as_ref() != Some(old)));
        }
        let root = self.present.root.clone();
        let renew_targets = !indexes.is_empty()
            || self.is_due(renew, RoleKind::Targets, self.present.targets.expires, settings.targets_days);
        if renew_targets {
            targets.version = self.present.targets.version + 1;
            targets.expires = days_after(now, settings.targets_days);
            superseded.extend(old_metadata("targets", self.present.targets.version));
        }
        let renew_snapshot = renew_targets
            || self.is_due(renew, RoleKind::Snapshot, self.present.snapshot.expires, settings.snapshot_days);
        let mut snapshot = self.present.snapshot.clone();
        if renew_targets {
            let bytes =
                sign_metadata(RoleKind::Targets, &targets, &[root.role(RoleKind::Targets)], self.keys)?;
            snapshot.meta.insert("targets.json".to_owned(), meta_file(targets.version, &bytes));
            files.push((metadata_path("targets", Some(targets.version)), bytes));
        }
        let mut timestamp = self.present.timestamp.clone();
        if renew_snapshot {
            superseded.extend(old_metadata("snapshot", snapshot.version));
            snapshot.version += 1;
            snapshot.expires = days_after(now, settings.snapshot_days);
            let bytes =
                sign_metadata(RoleKind::Snapshot, &snapshot, &[root.role(RoleKind::Snapshot)], self.keys)?;
            timestamp.meta.insert("snapshot.json".to_owned(), meta_file(snapshot.version, &bytes));
            files.push((metadata_path("snapshot", Some(snapshot.version)), bytes));
        }
        timestamp.version = next;
        timestamp.expires = days_after(now, settings.timestamp_days);
        let timestamp_bytes =
            sign_metadata(RoleKind::Timestamp, &timestamp, &[root.role(RoleKind::Timestamp)], self.keys)?;
        if !files.is_empty() {
            let names = files.iter().map(|(path, _)| path).chain(&self.written);
            self.intend(names.cloned().collect())?;
            let mut batch = storage.batch().map_err(PublishError::storage("write to", "."))?;
            for (path, bytes) in &files {
                batch
                    .add(path, &mut |out| out.write_all(bytes))
                    .map_err(PublishError::storage("write", path))?;
            }
            batch.commit().map_err(PublishError::storage("write to", "metadata"))?;
        }
        // Written while the files are still named: whoever collects leaves alone what is named.
        self.bury(&format!("{next}-superseded"), superseded)?;
        // What metadata is about to name is in the log first.
        if let Some(checkpoint) = checkpoint {
            let written = storage.replace(CHECKPOINT_PATH, &checkpoint);
            written.map_err(PublishError::storage("write", CHECKPOINT_PATH))?;
            self.log = OwnLog::load(storage)?;
        }
        let path = metadata_path("timestamp", None);
        storage.replace(&path, &timestamp_bytes).map_err(PublishError::storage("write", &path))?;
        self.forget_intent()?;
        self.present = Present::load(storage, None)?;
        Ok(())
    }

    /// Whether a role's metadata is to be written anew.
    pub(crate) fn is_due(&self, renew: Renew, kind: RoleKind, expires: Instant, days: u32) -> bool {
        let keys = keys_of(self.present.root.role(kind), self.keys).len() as u64;
        let half = i64::from(days) * 86_400 / 2;
        match renew {
            Renew::All => true,
            Renew::Role(role) => role == kind,
            Renew::Due => {
                keys >= self.present.root.role(kind).threshold
                    && expires.unix().saturating_sub(self.now.unix()) <= half
            }
        }
    }
}

/// The file of a version that is followed by another; a new repository has none.
fn old_metadata(role: &str, version: u64) -> Option<String> {
    (version > 0).then(|| metadata_path(role, Some(version)))
}

fn meta_file(version: u64, bytes: &[u8]) -> MetaFile {
    let hashes = BTreeMap::from([("sha256".to_owned(), Digest::of(bytes).to_string())]);
    MetaFile { version, length: Some(bytes.len() as u64), hashes }
}
