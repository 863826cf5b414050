//! Publishing: releases become files and metadata in an order in which every reader sees the old state or the new one.
//!
//! The order is the whole point: intent, then contents (objects, manifests, deltas), then the metadata that names them,
//! and last the one file with a fixed name, `metadata/timestamp.json`. Until it is replaced nothing of the new state can
//! be found; once it is, all of it is there. A publication that was cut off is begun again: what is there already is not
//! written twice, and what nobody came back for is deleted after the grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use cutover_bundle::{
    Limits, ObjectError, RangeReader, ReadAt, VerifiedBundle, decode_object,
    tlog::{CheckpointError, EntriesError, NoteError},
};
use cutover_core::model::{Digest, Instant, Manifest, Name, ObjectEntry, ReleaseRef, Version};

use crate::{
    bootstrap::{BOOTSTRAP_PATH, Bootstrap},
    hash::HashWriter,
    index::{
        DeltaRef, FileRef, Index, IndexEntry, IndexError, ManifestPatch, ObjectList, Yanked, delta_path,
        index_path, manifest_path, object_path, objects_path, patch_path, signature_path,
    },
    log::{CHECKPOINT_PATH, Growing, OwnLog},
    manifest_patch,
    present::{Present, must, target_file},
    settings::{self, RepositorySettings, days_after, seconds_after},
    sign::{MetadataKey, SigningError, keys_of, sign_metadata},
    storage::{Lock, Locked, Storage},
    tombstone,
    tuf::{
        Listing, MetaFile, PublicKey, Refused, RoleKeys, RoleKind, Root, TargetFile, Targets,
        consistent_target_path, metadata_path,
    },
};

/// The version of the TUF specification that metadata follows.
const SPEC_VERSION: &str = "1.0.33";

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

/// A release to be published.
pub struct NewRelease<'a, R> {
    /// Its bundle.
    pub bundle: &'a VerifiedBundle<R>,
    /// The channel; without, the one that its manifest names.
    pub channel: Option<Name>,
    /// Deltas that lead to it.
    pub deltas: Vec<NewDelta<'a>>,
}

/// A delta bundle to be published.
pub struct NewDelta<'a> {
    /// The release that it leads from.
    pub from: ReleaseRef,
    /// The file.
    pub file: &'a dyn ReadAt,
}

/// What a publication did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Releases that are new in their channel.
    pub releases: usize,
    /// Objects that were written.
    pub objects_new: usize,
    /// Objects that were there.
    pub objects_shared: usize,
    /// Deltas that were written.
    pub deltas: usize,
    /// Bytes that were written, without metadata.
    pub bytes: u64,
    /// The version of the timestamp that announces it.
    pub version: u64,
}

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
    written: Vec<String>,
    _lock: Box<dyn Locked>,
}

impl<'a> Publisher<'a> {
    /// Sets up a repository: the first root, which lists `roles`, and empty metadata, all signed by `keys`.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Exists`] when there is one. A set-up that was cut off is begun again.
    pub fn create(
        storage: &'a dyn Storage,
        roles: &BTreeMap<RoleKind, (Vec<PublicKey>, u64)>,
        settings: RepositorySettings,
        keys: &'a [MetadataKey],
        now: Instant,
    ) -> Result<Self, PublishError> {
        let lock = take_lock(storage)?;
        let timestamp_path = metadata_path("timestamp", None);
        let is_there =
            storage.size(&timestamp_path).map_err(PublishError::storage("look at", &timestamp_path))?;
        if is_there.is_some() {
            return Err(PublishError::Exists);
        }
        let mut root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            version: 1,
            expires: days_after(now, settings.root_days),
            consistent_snapshot: true,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
        };
        for (kind, (publics, threshold)) in roles {
            let keyids = publics.iter().map(PublicKey::id).collect();
            root.keys.extend(publics.iter().map(|public| (public.id(), public.clone())));
            root.roles.insert(kind.name().to_owned(), RoleKeys { keyids, threshold: *threshold });
        }
        root.check().map_err(|source| Refused::Malformed { role: "root".to_owned(), source })?;
        let root_bytes = sign_metadata(RoleKind::Root, &root, &[root.role(RoleKind::Root)], keys)?;
        settings::store(storage, &settings).map_err(PublishError::storage("write", "the settings"))?;
        let root_path = metadata_path("root", Some(1));
        storage.replace(&root_path, &root_bytes).map_err(PublishError::storage("write", &root_path))?;
        let nothing = |version| Listing {
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires: now,
            meta: BTreeMap::new(),
        };
        let targets = Targets {
            spec_version: SPEC_VERSION.to_owned(),
            version: 0,
            expires: now,
            targets: BTreeMap::new(),
            delegations: None,
        };
        let present = Present {
            root,
            targets,
            targets_envelope: crate::tuf::Envelope {
                signed: serde_json::Value::Null,
                signatures: Vec::new(),
            },
            snapshot: nothing(0),
            timestamp: nothing(0),
        };
        let (log, written) = (None, Vec::new());
        let mut publisher = Self { storage, keys, settings, present, now, log, written, _lock: lock };
        publisher.commit(&[], Renew::All, None)?;
        Ok(publisher)
    }

    /// Opens a repository for changing it: takes the lock, reads and verifies the metadata, and takes over what a run that
    /// was cut off has left.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn open(
        storage: &'a dyn Storage,
        keys: &'a [MetadataKey],
        now: Instant,
    ) -> Result<Self, PublishError> {
        let lock = take_lock(storage)?;
        let settings = settings::load(storage).map_err(PublishError::storage("read", "the settings"))?;
        let present = Present::load(storage, None)?;
        let (log, written) = (OwnLog::load(storage)?, Vec::new());
        let mut publisher = Self { storage, keys, settings, present, now, log, written, _lock: lock };
        publisher.check_own()?;
        publisher.take_over_intent()?;
        publisher.complete_removals()?;
        Ok(publisher)
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

    /// The targets metadata is what readers' trust hangs on here: it must be signed by a key in hand, not only by keys that
    /// the root in the same directory lists.
    fn check_own(&self) -> Result<(), PublishError> {
        let own = keys_of(self.present.root.role(RoleKind::Targets), self.keys);
        if own.is_empty() {
            return Ok(());
        }
        let role = RoleKeys { keyids: own.iter().map(|key| key.id().to_owned()).collect(), threshold: 1 };
        let keys = own.iter().map(|key| (key.id().to_owned(), key.public().clone())).collect();
        let signed = self.present.targets_envelope.count_signatures(&role, &keys);
        if signed.is_ok_and(|signed| signed > 0) {
            Ok(())
        } else {
            Err(PublishError::ForeignMetadata(RoleKind::Targets))
        }
    }

    /// What an interrupted publication wrote may be deleted when nobody comes back for it.
    fn take_over_intent(&self) -> Result<(), PublishError> {
        let failed = || PublishError::storage("take over", "the intent of an interrupted run");
        let Some(intent) = tombstone::load_intent(self.storage).map_err(failed())? else { return Ok(()) };
        let name = format!("{}-abandoned", self.present.timestamp.version);
        self.bury(&name, intent.files)?;
        tombstone::remove_intent(self.storage).map_err(failed())
    }

    /// Writes a tombstone for files that are superseded.
    pub(crate) fn bury(&self, name: &str, files: Vec<String>) -> Result<(), PublishError> {
        if files.is_empty() {
            return Ok(());
        }
        tombstone::add(self.storage, name, self.grace_ends(), files)
            .map_err(PublishError::storage("write", "a tombstone"))
    }

    pub(crate) fn grace_ends(&self) -> Instant {
        seconds_after(self.now, u64::from(self.settings.grace_s))
    }

    /// Publishes releases, all of them or none: readers see them together.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Conflict`] when a version is there with another manifest.
    pub fn publish<R: ReadAt>(&mut self, releases: &[NewRelease<'_, R>]) -> Result<Published, PublishError> {
        let mut published = Published::default();
        let mut indexes: BTreeMap<String, Index> = BTreeMap::new();
        for package in releases.iter().map(|release| &release.bundle.manifest().package) {
            indexes.append(&mut self.present.indexes_of(self.storage, package)?);
        }
        let mut changed = BTreeSet::new();
        let mut prepared = Vec::new();
        for release in releases {
            check_new(release.bundle, &indexes)?;
            let mut release = Prepared::new(release)?;
            self.patch_manifest(&mut release, &indexes)?;
            let (path, listed) = self.list_release(&release, &mut indexes)?;
            prepared.push(release);
            published.releases += usize::from(listed == ListedAs::New);
            if listed != ListedAs::Before {
                changed.insert(path);
            }
        }
        // Also for what was published before: what has got lost is written again.
        let wrote = self.add_contents(&prepared, &indexes, &mut published)?;
        if changed.is_empty() {
            published.version = self.present.timestamp.version;
            if wrote {
                self.forget_intent()?;
            }
            return Ok(published);
        }
        let growing = self.append_to_log(&mut indexes, &changed)?;
        let changed: Vec<&Index> = changed.iter().filter_map(|path| indexes.get(path)).collect();
        self.commit(&changed, Renew::All, growing)?;
        self.collect()?;
        published.version = self.present.timestamp.version;
        Ok(published)
    }

    /// Makes patches to the manifest from those of the latest releases below it, unless it is there already.
    fn patch_manifest<R: ReadAt>(
        &self,
        prepared: &mut Prepared<'_, '_, R>,
        indexes: &BTreeMap<String, Index>,
    ) -> Result<(), PublishError> {
        let bundle = prepared.release.bundle;
        let manifest = bundle.manifest();
        let channel = prepared.release.channel.as_ref().unwrap_or(&manifest.channel);
        let path = index_path(&manifest.package, &manifest.platform, channel);
        let Some(index) = indexes.get(&path).filter(|index| index.get(&manifest.version).is_none()) else {
            return Ok(());
        };
        let older = index.releases.iter().filter(|entry| {
            entry.version.cmp_precedence(&manifest.version).is_lt() && entry.yanked.is_none()
        });
        for entry in older.take(self.settings.deltas as usize) {
            let path = manifest_path(entry.manifest.sha256);
            // One that is published in this very run is not there yet.
            let is_there = self.storage.size(&path).map_err(PublishError::storage("look at", &path))?;
            if is_there.is_some() {
                let old = read_named(self.storage, path, &entry.manifest)?;
                prepared.patches.extend(manifest_patch::make(&old, &prepared.manifest));
            }
        }
        Ok(())
    }

    /// Adds a release to its index and says how it stands there.
    fn list_release<R: ReadAt>(
        &self,
        prepared: &Prepared<'_, '_, R>,
        indexes: &mut BTreeMap<String, Index>,
    ) -> Result<(String, ListedAs), PublishError> {
        let release = prepared.release;
        let manifest = release.bundle.manifest();
        let channel = release.channel.as_ref().unwrap_or(&manifest.channel);
        let path = index_path(&manifest.package, &manifest.platform, channel);
        let index = indexes.entry(path.clone()).or_insert_with(|| {
            Index::new(manifest.package.clone(), manifest.platform.clone(), channel.clone())
        });
        let files =
            [&*prepared.manifest, release.bundle.signature_bytes(), &prepared.objects].map(FileRef::of);
        let known = index.get(&manifest.version).cloned();
        let mut entry = known.clone().unwrap_or_else(|| IndexEntry::new(manifest, files, self.now));
        if known.is_none() {
            entry.manifest_patches = prepared.patches.iter().map(|(named, _)| *named).collect();
        }
        for delta in &release.deltas {
            // Patches are signed anew each time they are made; one that is there is as good.
            if !entry.deltas.iter().any(|known| known.from == delta.from) {
                let bundle = file_ref(delta.file).map_err(PublishError::storage("read", "a delta"))?;
                entry.deltas.push(DeltaRef { from: delta.from.clone(), bundle });
            }
        }
        let listed = match known {
            None => ListedAs::New,
            Some(known) if known == entry => ListedAs::Before,
            Some(_) => ListedAs::WithMoreDeltas,
        };
        index.insert(entry);
        Ok((path, listed))
    }

    fn intend(&self, files: Vec<String>) -> Result<(), PublishError> {
        tombstone::store_intent(self.storage, files).map_err(PublishError::storage("write", "the intent"))
    }

    fn forget_intent(&mut self) -> Result<(), PublishError> {
        self.written.clear();
        tombstone::remove_intent(self.storage).map_err(PublishError::storage("remove", "the intent"))
    }

    /// Writes what `indexes` say of these releases and is not there yet; whether there was anything.
    fn add_contents<R: ReadAt>(
        &mut self,
        releases: &[Prepared<'_, '_, R>],
        indexes: &BTreeMap<String, Index>,
        published: &mut Published,
    ) -> Result<bool, PublishError> {
        let listed: BTreeSet<Digest> = indexes
            .values()
            .flat_map(|index| &index.releases)
            .flat_map(|entry| {
                let deltas = entry.deltas.iter().map(|delta| delta.bundle.sha256);
                let patches = entry.manifest_patches.iter().map(|named| named.patch.sha256);
                deltas.chain(patches).chain([entry.signature.sha256, entry.objects.sha256])
            })
            .collect();
        let mut files: BTreeMap<String, Content<'_, R>> = BTreeMap::new();
        for Prepared { release, manifest, stored, objects, patches } in releases {
            for delta in &release.deltas {
                let file = file_ref(delta.file).map_err(PublishError::storage("read", "a delta"))?;
                if listed.contains(&file.sha256) {
                    files.insert(delta_path(file.sha256), Content::File(delta.file, file.size));
                }
            }
            for (named, patch) in patches.iter().filter(|(named, _)| listed.contains(&named.patch.sha256)) {
                files.insert(patch_path(named.patch.sha256), Content::Bytes(patch));
            }
            let bundle = release.bundle;
            let signature = bundle.signature_bytes();
            files.insert(manifest_path(Digest::of(manifest)), Content::Bytes(manifest));
            // The same manifest may have been published before with another signature, and from a bundle whose objects were
            // stored otherwise; then those count.
            if listed.contains(&Digest::of(signature)) {
                files.insert(signature_path(Digest::of(signature)), Content::Bytes(signature));
            }
            if listed.contains(&Digest::of(objects)) {
                files.insert(objects_path(Digest::of(objects)), Content::Bytes(objects));
                for (object, stored) in bundle.manifest().objects.iter().zip(stored) {
                    files.insert(object_path(*stored), Content::Object(bundle, object));
                }
            }
        }
        let is_object = |path: &str| path.starts_with("objects/");
        let mut missing = Vec::new();
        let paths: Vec<&str> = files.keys().map(String::as_str).collect();
        let sizes = self.storage.sizes(&paths).map_err(PublishError::storage("look at", "."))?;
        for ((path, content), there) in files.iter().zip(sizes) {
            // A name appears after its content is durable, so another size is damage; it is mended here.
            if there != Some(content.size()) {
                missing.push(path.clone());
            } else if is_object(path) {
                published.objects_shared += 1;
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        self.intend(missing.clone())?;
        self.written.clone_from(&missing);
        let mut batch = self.storage.batch().map_err(PublishError::storage("write to", "."))?;
        for path in missing {
            let content = &files[&path];
            published.bytes += content.size();
            match content {
                Content::Object(..) => published.objects_new += 1,
                Content::File(..) => published.deltas += 1,
                Content::Bytes(_) => {}
            }
            batch.add(&path, &mut |out| content.write(out)).map_err(PublishError::storage("write", &path))?;
        }
        batch.commit().map_err(PublishError::storage("write to", "."))?;
        Ok(true)
    }

    /// The releases from which deltas to `manifest` are worth making: the latest ones below it in its channel, as many as
    /// the settings say.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn bases(&self, manifest: &Manifest, channel: &Name) -> Result<Vec<Base>, PublishError> {
        let path = index_path(&manifest.package, &manifest.platform, channel);
        let Some(index) = self.present.index(self.storage, &path)? else { return Ok(Vec::new()) };
        let present = index.get(&manifest.version);
        let older = index.releases.iter().filter(|entry| {
            let has_delta = |delta: &DeltaRef| delta.from.manifest == entry.manifest.sha256;
            entry.version.cmp_precedence(&manifest.version).is_lt()
                && entry.yanked.is_none()
                && !present.is_some_and(|present| present.deltas.iter().any(has_delta))
        });
        older
            .take(self.settings.deltas as usize)
            .map(|entry| {
                let path = manifest_path(entry.manifest.sha256);
                let bytes = read_named(self.storage, path, &entry.manifest)?;
                let parsed = Manifest::parse(&bytes, &Limits::default().manifest)
                    .map_err(|error| PublishError::Damaged(error.to_string()))?;
                let objects = read_objects(self.storage, entry)?;
                let stored = objects.of(&parsed)?.into_iter().map(|(object, stored)| (object.sha256, stored));
                let stored = stored.collect();
                Ok(Base { release: entry.release(&manifest.package), manifest: parsed, stored })
            })
            .collect()
    }

    /// Reads an object of a published release, decoded and checked.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn read_object(&self, base: &Base, object: &ObjectEntry) -> Result<Vec<u8>, PublishError> {
        let stored = base.stored.get(&object.sha256);
        let stored = stored.ok_or_else(|| PublishError::NotFound(format!("object {}", object.sha256)))?;
        let path = object_path(*stored);
        let file = self.storage.open(&path).map_err(PublishError::storage("read", &path))?;
        let file = file.ok_or_else(|| PublishError::Damaged(format!("`{path}` is missing")))?;
        let mut content = Vec::new();
        decode_object(object, file, &mut content)
            .map_err(|error| PublishError::Damaged(format!("`{path}`: {error}")))?;
        Ok(content)
    }

    /// Puts a release that is in one channel into another.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when no channel has it.
    pub fn promote(
        &mut self,
        package: &Name,
        version: &Version,
        platform: Option<&Name>,
        to: &Name,
    ) -> Result<Vec<Name>, PublishError> {
        let mut indexes = self.present.indexes_of(self.storage, package)?;
        let found: BTreeMap<Name, IndexEntry> = indexes
            .values()
            .filter(|index| platform.is_none_or(|platform| index.platform == *platform))
            .filter_map(|index| Some((index.platform.clone(), index.get(version)?.clone())))
            .collect();
        if found.is_empty() {
            return Err(PublishError::NotFound(format!("{package} {version}")));
        }
        let mut changed = Vec::new();
        for (platform, mut entry) in found {
            let path = index_path(package, &platform, to);
            let index = indexes
                .entry(path.clone())
                .or_insert_with(|| Index::new(package.clone(), platform.clone(), to.clone()));
            if index.get(version).is_none() {
                entry.published_at = self.now;
                index.insert(entry);
                changed.push((platform, path));
            }
        }
        if !changed.is_empty() {
            let indexes: Vec<&Index> = changed.iter().filter_map(|(_, path)| indexes.get(path)).collect();
            self.commit(&indexes, Renew::All, None)?;
            self.collect()?;
        }
        Ok(changed.into_iter().map(|(platform, _)| platform).collect())
    }

    /// Says in every channel that nobody should choose this release any more, or takes that back. Whoever asks for exactly
    /// this version still gets it, with a warning.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when no channel has it.
    pub fn yank(
        &mut self,
        package: &Name,
        version: &Version,
        platform: Option<&Name>,
        reason: Option<&str>,
    ) -> Result<usize, PublishError> {
        let mut indexes = self.present.indexes_of(self.storage, package)?;
        let yanked = reason.map(|reason| Yanked { at: self.now, reason: reason.to_owned() });
        let mut is_there = false;
        let mut changed = Vec::new();
        for index in indexes.values_mut() {
            if platform.is_some_and(|platform| index.platform != *platform) {
                continue;
            }
            let Some(entry) = index.releases.iter_mut().find(|entry| entry.version == *version) else {
                continue;
            };
            is_there = true;
            let said = |yanked: &Option<Yanked>| yanked.as_ref().map(|yanked| yanked.reason.clone());
            if said(&entry.yanked) != said(&yanked) {
                entry.yanked = yanked.clone();
                changed.push(index.path());
            }
        }
        if !is_there {
            return Err(PublishError::NotFound(format!("{package} {version}")));
        }
        if !changed.is_empty() {
            let changed: Vec<&Index> = changed.iter().filter_map(|path| indexes.get(path)).collect();
            self.commit(&changed, Renew::All, None)?;
            self.collect()?;
        }
        Ok(changed.len())
    }

    /// Renews the metadata, so that it does not expire: the timestamp always; snapshot, targets and root when half of
    /// their time is over and their keys are given. Deletes what was removed and whose grace is over.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn refresh(&mut self) -> Result<(), PublishError> {
        if self.is_due(Renew::Due, RoleKind::Root, self.present.root.expires, self.settings.root_days) {
            self.write_root(self.present.root.clone())?;
        }
        self.commit(&[], Renew::Due, None)?;
        self.collect()?;
        Ok(())
    }

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
    fn is_due(&self, renew: Renew, kind: RoleKind, expires: Instant, days: u32) -> bool {
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

/// How a release stands in its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedAs {
    /// It was not there.
    New,
    /// It was there, with other deltas.
    WithMoreDeltas,
    /// It was there just so.
    Before,
}

/// A release that is published already, as the base of a delta.
#[derive(Clone, Debug)]
pub struct Base {
    /// The release.
    pub release: ReleaseRef,
    /// Its manifest.
    pub manifest: Manifest,
    /// By the digest of each content, that of the file which holds it.
    stored: BTreeMap<Digest, Digest>,
}

/// A release that is to be published, and how its objects are stored.
struct Prepared<'a, 'r, R> {
    release: &'r NewRelease<'a, R>,
    /// The bytes of its manifest.
    manifest: Vec<u8>,
    /// The digest of each object's stored bytes, in the manifest's order.
    stored: Vec<Digest>,
    /// The list of them.
    objects: Vec<u8>,
    /// Patches that make its manifest.
    patches: Vec<(ManifestPatch, Vec<u8>)>,
}

impl<'a, 'r, R: ReadAt> Prepared<'a, 'r, R> {
    /// Reads and checks every byte of the bundle.
    fn new(release: &'r NewRelease<'a, R>) -> Result<Self, PublishError> {
        let mut stored = Vec::new();
        for object in &release.bundle.manifest().objects {
            let mut hashed = HashWriter::default();
            release.bundle.copy_object(object, &mut io::sink(), &mut hashed)?;
            stored.push(hashed.finish().sha256);
        }
        let objects = ObjectList::new(stored.clone()).to_bytes();
        let manifest = release.bundle.manifest_bytes().map_err(PublishError::storage("read", "a bundle"))?;
        Ok(Self { release, manifest, stored, objects, patches: Vec::new() })
    }
}

/// The bytes of a file that is to be published.
enum Content<'a, R> {
    Object(&'a VerifiedBundle<R>, &'a ObjectEntry),
    File(&'a dyn ReadAt, u64),
    Bytes(&'a [u8]),
}

impl<R: ReadAt> Content<'_, R> {
    fn size(&self) -> u64 {
        match self {
            Self::Object(_, object) => object.stored_size,
            Self::File(_, size) => *size,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Objects are decoded and their digests compared on the way.
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Object(bundle, object) => {
                bundle.copy_object(object, &mut io::sink(), out).map_err(io::Error::other)
            }
            Self::File(file, size) => io::copy(&mut RangeReader::new(file, 0, *size), out).map(drop),
            Self::Bytes(bytes) => out.write_all(bytes),
        }
    }
}

/// A version that is there with another manifest, in whatever channel, is refused: versions never change.
fn check_new<R>(bundle: &VerifiedBundle<R>, indexes: &BTreeMap<String, Index>) -> Result<(), PublishError> {
    let (manifest, release) = (bundle.manifest(), bundle.release());
    let same_place = indexes
        .values()
        .filter(|index| index.package == manifest.package && index.platform == manifest.platform);
    for entry in same_place.flat_map(|index| &index.releases) {
        let same = entry.version.cmp_precedence(&manifest.version).is_eq();
        if same && entry.manifest.sha256 != release.manifest {
            return Err(PublishError::Conflict {
                release: release.to_string(),
                platform: manifest.platform.clone(),
                published: entry.manifest.sha256.short(),
                offered: release.manifest.short(),
            });
        }
    }
    Ok(())
}

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

/// The file of a version that is followed by another; a new repository has none.
fn old_metadata(role: &str, version: u64) -> Option<String> {
    (version > 0).then(|| metadata_path(role, Some(version)))
}

fn meta_file(version: u64, bytes: &[u8]) -> MetaFile {
    let hashes = BTreeMap::from([("sha256".to_owned(), Digest::of(bytes).to_string())]);
    MetaFile { version, length: Some(bytes.len() as u64), hashes }
}

fn file_ref(file: &dyn ReadAt) -> io::Result<FileRef> {
    let size = file.size()?;
    let mut hashed = HashWriter::default();
    io::copy(&mut RangeReader::new(&file, 0, size), &mut hashed)?;
    Ok(hashed.finish())
}

pub(crate) fn take_lock(storage: &dyn Storage) -> Result<Box<dyn Locked>, PublishError> {
    match storage.lock().map_err(PublishError::storage("lock", "."))? {
        Lock::Held(lock) => Ok(lock),
        Lock::InUse { by } => Err(PublishError::InUse { by }),
    }
}

/// Reads the list of a release's objects.
pub(crate) fn read_objects(storage: &dyn Storage, entry: &IndexEntry) -> Result<ObjectList, PublishError> {
    let bytes = read_named(storage, objects_path(entry.objects.sha256), &entry.objects)?;
    Ok(ObjectList::parse(&bytes)?)
}

/// Reads a small file of the repository, which must be the one that is named.
fn read_named(storage: &dyn Storage, path: String, manifest: &FileRef) -> Result<Vec<u8>, PublishError> {
    let bytes = must(storage, &path)?;
    if FileRef::of(&bytes) == *manifest {
        Ok(bytes)
    } else {
        Err(PublishError::Damaged(format!("`{path}` is altered")))
    }
}
