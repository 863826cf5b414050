//! What a repository says now: its metadata, verified, and its indexes.

use std::{collections::BTreeMap, io};

use cutover_core::model::{Instant, Name};

use crate::{
    error::PublishError,
    index::{FileRef, INDEX_BYTES_MAX, Index, IndexEntry, ObjectList, objects_path},
    storage::{Storage, read},
    tombstone,
    tuf::{
        Envelope, Listing, Origin, Refused, Root, TargetFile, Targets, TrustedMetadata,
        consistent_target_path, metadata_path,
    },
};

const METADATA_BYTES_MAX: u64 = 64 << 20;

/// Present metadata, each file with its bytes.
pub(crate) struct Present {
    pub(crate) root: Root,
    pub(crate) targets: Targets,
    pub(crate) targets_envelope: Envelope,
    pub(crate) snapshot: Listing,
    pub(crate) timestamp: Listing,
}

impl Present {
    /// Reads the metadata as a client would, from the first root on. With `now`, expired metadata is refused; without, a
    /// publisher reads what it is about to renew.
    pub(crate) fn load(storage: &dyn Storage, now: Option<Instant>) -> Result<Self, PublishError> {
        let never = Instant::from_unix(0).expect("the epoch is a time");
        let at = now.unwrap_or(never);
        let root = get(storage, &metadata_path("root", Some(1)))?.ok_or(PublishError::NotARepository)?;
        let mut trusted = TrustedMetadata::new(&root, at)?;
        while let Some(next) = get(storage, &metadata_path("root", Some(trusted.root().version + 1)))? {
            trusted.update_root(&next)?;
        }
        trusted.finish_root()?;
        let timestamp = must(storage, &metadata_path("timestamp", None))?;
        trusted.update_timestamp(&timestamp)?;
        let announced = trusted.announced_snapshot().ok_or(Refused::Order("timestamp"))?.version;
        let snapshot = must(storage, &metadata_path("snapshot", Some(announced)))?;
        trusted.update_snapshot(&snapshot, Origin::Fetched)?;
        let announced =
            trusted.announced("targets").ok_or(Refused::NotListed("targets.json".to_owned()))?.version;
        let targets = must(storage, &metadata_path("targets", Some(announced)))?;
        trusted.update_targets("targets", None, &targets, Origin::Fetched)?;
        let missing = || Refused::Order("targets");
        Ok(Self {
            root: trusted.root().clone(),
            targets: trusted.targets("targets").ok_or_else(missing)?.clone(),
            targets_envelope: Envelope::parse(&targets)
                .map_err(|source| Refused::Malformed { role: "targets".to_owned(), source })?,
            snapshot: trusted.snapshot().ok_or_else(missing)?.clone(),
            timestamp: trusted.timestamp().ok_or_else(missing)?.clone(),
        })
    }

    /// The metadata files that clients of this state read.
    pub(crate) fn metadata_files(&self) -> Vec<String> {
        let roots = (1..=self.root.version).map(|version| metadata_path("root", Some(version)));
        let mut files: Vec<String> = roots.collect();
        files.push(metadata_path("timestamp", None));
        files.push(metadata_path("snapshot", Some(self.snapshot.version)));
        files.push(metadata_path("targets", Some(self.targets.version)));
        files.extend(self.targets.targets.iter().filter_map(|(path, target)| target_file(path, target)));
        files
    }

    /// Reads an index; `None` when the package has none for this platform and channel.
    pub(crate) fn index(&self, storage: &dyn Storage, path: &str) -> Result<Option<Index>, PublishError> {
        let Some(target) = self.targets.targets.get(path) else { return Ok(None) };
        let file = target_file(path, target)
            .ok_or_else(|| PublishError::Damaged(format!("`{path}` has no SHA-256 in the metadata")))?;
        let bytes = must(storage, &file)?;
        target.check(path, &bytes)?;
        Ok(Some(Index::parse(path, &bytes)?))
    }

    /// Reads every index.
    pub(crate) fn indexes(&self, storage: &dyn Storage) -> Result<BTreeMap<String, Index>, PublishError> {
        self.indexes_below(storage, "")
    }

    /// Reads the indexes of a package.
    pub(crate) fn indexes_of(
        &self,
        storage: &dyn Storage,
        package: &Name,
    ) -> Result<BTreeMap<String, Index>, PublishError> {
        self.indexes_below(storage, &format!("packages/{package}/"))
    }

    fn indexes_below(
        &self,
        storage: &dyn Storage,
        prefix: &str,
    ) -> Result<BTreeMap<String, Index>, PublishError> {
        let mut indexes = BTreeMap::new();
        for path in self.targets.targets.keys().filter(|path| path.starts_with(prefix)) {
            if let Some(index) = self.index(storage, path)? {
                indexes.insert(path.clone(), index);
            }
        }
        Ok(indexes)
    }
}

/// Where the file of a target lies, by its SHA-256.
pub(crate) fn target_file(path: &str, target: &TargetFile) -> Option<String> {
    target.hashes.get("sha256").map(|digest| consistent_target_path(path, digest))
}

fn get(storage: &dyn Storage, path: &str) -> Result<Option<Vec<u8>>, PublishError> {
    read(storage, path, METADATA_BYTES_MAX.max(INDEX_BYTES_MAX)).map_err(PublishError::storage("read", path))
}

pub(crate) fn must(storage: &dyn Storage, path: &str) -> Result<Vec<u8>, PublishError> {
    get(storage, path)?.ok_or_else(|| {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        PublishError::Storage { action: "read", path: path.to_owned(), source: missing }
    })
}

/// One release in one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The package.
    pub package: Name,
    /// The platform.
    pub platform: Name,
    /// The channel.
    pub channel: Name,
    /// What the index says.
    pub entry: IndexEntry,
}

/// The releases of a repository by package, platform and channel, highest version first, whether its metadata expired or
/// not. Releases whose removal was begun are not listed.
///
/// # Errors
/// See [`PublishError`].
pub fn list(storage: &dyn Storage) -> Result<Vec<Listed>, PublishError> {
    let present = Present::load(storage, None)?;
    let tombstones = tombstone::load_all(storage).map_err(PublishError::storage("read", "tombstones"))?;
    let removed: Vec<_> = tombstones.into_iter().filter_map(|(_, tombstone)| tombstone.release).collect();
    let mut listed = Vec::new();
    for index in present.indexes(storage)?.into_values() {
        let (package, platform, channel) = (index.package, index.platform, index.channel);
        for entry in index.releases {
            if !removed.iter().any(|removal| removal.names(&package, &platform, &channel, &entry)) {
                let (package, platform, channel) = (package.clone(), platform.clone(), channel.clone());
                listed.push(Listed { package, platform, channel, entry });
            }
        }
    }
    Ok(listed)
}

/// Reads the list of a release's objects.
pub(crate) fn read_objects(storage: &dyn Storage, entry: &IndexEntry) -> Result<ObjectList, PublishError> {
    let bytes = read_named(storage, objects_path(entry.objects.sha256), &entry.objects)?;
    Ok(ObjectList::parse(&bytes)?)
}

/// Reads a small file of the repository, which must be the one that is named.
pub(crate) fn read_named(
    storage: &dyn Storage,
    path: String,
    manifest: &FileRef,
) -> Result<Vec<u8>, PublishError> {
    let bytes = must(storage, &path)?;
    if FileRef::of(&bytes) == *manifest {
        Ok(bytes)
    } else {
        Err(PublishError::Damaged(format!("`{path}` is altered")))
    }
}
