//! Removal: tombstone first, then metadata without the release, then, after the grace, the files that nothing else names.

use std::collections::BTreeSet;

use cutover_core::model::{Digest, Name, Version};

use crate::{
    commit::Renew,
    error::PublishError,
    index::{
        Index, IndexEntry, delta_path, manifest_path, object_path, objects_path, patch_path, signature_path,
    },
    present::read_objects,
    publisher::Publisher,
    sign::{SigningError, keys_of},
    storage::Storage,
    tombstone::{self, Removal, Tombstone},
    tuf::RoleKind,
};

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// From how many channels and platforms the release was taken.
    pub places: usize,
    /// Files that were deleted now, those of earlier removals among them.
    pub files_deleted: usize,
    /// Whether files stay until the grace is over.
    pub is_pending: bool,
}

impl Publisher<'_> {
    /// Removes a release: from one channel, or from all. Its files stay for the grace of the settings, and longer as far as
    /// another release or channel names them.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when there is none, and [`SigningError::TooFewKeys`] without the keys to
    /// say so to clients. Then nothing has changed.
    pub fn remove(
        &mut self,
        package: &Name,
        version: &Version,
        platform: Option<&Name>,
        channel: Option<&Name>,
    ) -> Result<Removed, PublishError> {
        // A tombstone alone takes nothing from anybody: it would only be found by a later run that has the keys.
        for role in [RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp] {
            let keys = self.present.root.role(role);
            let (found, needed) = (keys_of(keys, self.keys).len() as u64, keys.threshold);
            if found < needed {
                return Err(SigningError::TooFewKeys { role, found, needed }.into());
            }
        }
        let indexes = self.present.indexes_of(self.storage, package)?;
        let mut removed = Removed::default();
        for index in indexes.values() {
            let here = platform.is_none_or(|platform| index.platform == *platform)
                && channel.is_none_or(|channel| index.channel == *channel);
            let Some(entry) = index.get(version).filter(|_| here) else { continue };
            let release = Removal {
                package: package.clone(),
                version: version.clone(),
                platform: index.platform.clone(),
                channel: index.channel.clone(),
                manifest: entry.manifest.sha256,
            };
            let files = files_of(self.storage, entry)?;
            let tombstone = Tombstone { format: 1, after: self.grace_ends(), release: Some(release), files };
            let (next, digest) = (self.present.timestamp.version + 1, entry.manifest.sha256.short());
            let name = format!("{next}-removed-{digest}-{}-{}", index.platform, index.channel);
            tombstone::store(self.storage, &name, &tombstone)
                .map_err(PublishError::storage("write", "a tombstone"))?;
            removed.places += 1;
        }
        if removed.places == 0 {
            return Err(PublishError::NotFound(format!("{package} {version}")));
        }
        self.complete_removals()?;
        removed.files_deleted = self.collect()?;
        let left = tombstone::load_all(self.storage).map_err(PublishError::storage("read", "tombstones"))?;
        removed.is_pending = !left.is_empty();
        Ok(removed)
    }

    /// Writes metadata without the releases whose removal was begun, as far as there are keys for that.
    pub(crate) fn complete_removals(&mut self) -> Result<(), PublishError> {
        let failed = || PublishError::storage("read", "tombstones");
        let tombstones = tombstone::load_all(self.storage).map_err(failed())?;
        let pending: Vec<(String, Tombstone)> =
            tombstones.into_iter().filter(|(_, tombstone)| tombstone.release.is_some()).collect();
        let targets = self.present.root.role(RoleKind::Targets);
        if pending.is_empty() || (keys_of(targets, self.keys).len() as u64) < targets.threshold {
            return Ok(());
        }
        let removals: Vec<&Removal> =
            pending.iter().filter_map(|(_, tombstone)| tombstone.release.as_ref()).collect();
        let mut changed: Vec<Index> = Vec::new();
        for mut index in self.present.indexes(self.storage)?.into_values() {
            let (package, platform, channel) =
                (index.package.clone(), index.platform.clone(), index.channel.clone());
            let before = index.releases.len();
            index.releases.retain(|entry| {
                !removals.iter().any(|removal| removal.names(&package, &platform, &channel, entry))
            });
            if index.releases.len() < before {
                changed.push(index);
            }
        }
        if !changed.is_empty() {
            self.commit(&changed.iter().collect::<Vec<_>>(), Renew::All, None)?;
        }
        for (path, tombstone) in pending {
            // From here on the release may be published again; the tombstone only speaks of files.
            let name = path.rsplit('/').next().unwrap_or(&path).trim_end_matches(".json");
            tombstone::store(self.storage, name, &Tombstone { release: None, ..tombstone })
                .map_err(PublishError::storage("write", "a tombstone"))?;
        }
        Ok(())
    }

    /// Deletes the files of tombstones whose grace is over, unless something names them, then the tombstones; returns how
    /// many files.
    pub(crate) fn collect(&self) -> Result<usize, PublishError> {
        let failed = || PublishError::storage("read", "tombstones");
        let tombstones = tombstone::load_all(self.storage).map_err(failed())?;
        let (due, later): (Vec<_>, Vec<_>) = tombstones
            .into_iter()
            .partition(|(_, tombstone)| tombstone.after <= self.now && tombstone.release.is_none());
        let mut candidates: BTreeSet<String> =
            due.iter().flat_map(|(_, tombstone)| tombstone.files.iter().cloned()).collect();
        for file in self.present.metadata_files() {
            candidates.remove(&file);
        }
        for file in later.iter().flat_map(|(_, tombstone)| &tombstone.files) {
            candidates.remove(file);
        }
        if candidates.iter().any(|file| file.starts_with("log/"))
            && let Some(log) = &self.log
        {
            let named = log.files();
            candidates.retain(|file| !named.contains(file));
        }
        // Only a removed release or an interrupted publication leaves these, and only then every manifest is read.
        if candidates.iter().any(|file| !is_metadata(file)) {
            let mut seen = BTreeSet::<Digest>::new();
            for index in self.present.indexes(self.storage)?.values() {
                for entry in &index.releases {
                    candidates.remove(&signature_path(entry.signature.sha256));
                    for delta in &entry.deltas {
                        candidates.remove(&delta_path(delta.bundle.sha256));
                    }
                    for named in &entry.manifest_patches {
                        candidates.remove(&patch_path(named.patch.sha256));
                    }
                    if seen.insert(entry.manifest.sha256) {
                        for file in files_of(self.storage, entry)? {
                            candidates.remove(&file);
                        }
                    }
                }
            }
        }
        let deleted: Vec<String> = candidates.into_iter().collect();
        self.storage.remove(&deleted).map_err(PublishError::storage("delete from", "."))?;
        let gone: Vec<String> = due.into_iter().map(|(path, _)| path).collect();
        self.storage.remove(&gone).map_err(PublishError::storage("delete", "tombstones"))?;
        Ok(deleted.len())
    }
}

/// Whether a file is nothing that a release consists of.
fn is_metadata(file: &str) -> bool {
    ["metadata/", "packages/", "log/"].iter().any(|ours| file.starts_with(ours))
}

/// Every file of a release: manifest, signature, objects with their list, and the patches and deltas that lead to it.
pub(crate) fn files_of(storage: &dyn Storage, entry: &IndexEntry) -> Result<Vec<String>, PublishError> {
    let objects = read_objects(storage, entry)?;
    let mut files = vec![
        manifest_path(entry.manifest.sha256),
        signature_path(entry.signature.sha256),
        objects_path(entry.objects.sha256),
    ];
    files.extend(objects.digests().iter().copied().map(object_path));
    files.extend(entry.manifest_patches.iter().map(|named| patch_path(named.patch.sha256)));
    files.extend(entry.deltas.iter().map(|delta| delta_path(delta.bundle.sha256)));
    Ok(files)
}
