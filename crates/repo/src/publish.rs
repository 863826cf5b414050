//! Publishing: releases become files and metadata in an order in which every reader sees the old state or the new one.
//!
//! The order is the whole point: intent, then contents (objects, manifests, deltas), then the metadata that names them (see
//! `commit`). A publication that was cut off is begun again: what is there already is not
//! written twice, and what nobody came back for is deleted after the grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use cutover_bundle::{RangeReader, ReadAt, VerifiedBundle};
use cutover_core::model::{Digest, Name, ObjectEntry, ReleaseRef};

use crate::{
    commit::Renew,
    error::PublishError,
    hash::HashWriter,
    index::{
        DeltaRef, FileRef, Index, IndexEntry, ManifestPatch, ObjectList, delta_path, index_path,
        manifest_path, object_path, objects_path, patch_path, signature_path,
    },
    manifest_patch,
    present::read_named,
    publisher::Publisher,
};

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
    /// The release that it leads from. A delta from there that is published already is replaced.
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

impl Publisher<'_> {
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
        let (mut prepared, mut replaced) = (Vec::new(), Vec::new());
        for release in releases {
            check_new(release.bundle, &indexes)?;
            let mut release = Prepared::new(release)?;
            self.patch_manifest(&mut release, &indexes)?;
            let (path, listed) = self.list_release(&release, &mut indexes, &mut replaced)?;
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
        // Before nothing names them any more; should it be cut off in between, they are named, and that counts.
        self.bury(&format!("{}-replaced", self.present.timestamp.version + 1), replaced)?;
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

    /// Adds a release to its index and says how it stands there. The files that its index names no longer go to `replaced`.
    fn list_release<R: ReadAt>(
        &self,
        prepared: &Prepared<'_, '_, R>,
        indexes: &mut BTreeMap<String, Index>,
        replaced: &mut Vec<String>,
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
            let bundle = file_ref(delta.file).map_err(PublishError::storage("read", "a delta"))?;
            match entry.deltas.iter_mut().find(|known| known.from == delta.from) {
                Some(known) if known.bundle == bundle => {}
                Some(known) => {
                    let old = std::mem::replace(&mut known.bundle, bundle);
                    replaced.push(delta_path(old.sha256));
                }
                None => entry.deltas.push(DeltaRef { from: delta.from.clone(), bundle }),
            }
        }
        let listed = match known {
            None => ListedAs::New,
            Some(known) if known == entry => ListedAs::Before,
            Some(_) => ListedAs::WithOtherDeltas,
        };
        index.insert(entry);
        Ok((path, listed))
    }

    /// Writes what `indexes` say of these releases and is not there yet; whether there was anything.
    fn add_contents<R: ReadAt>(
        &mut self,
        releases: &[Prepared<'_, '_, R>],
        indexes: &BTreeMap<String, Index>,
        published: &mut Published,
    ) -> Result<bool, PublishError> {
        let files = contents(releases, indexes)?;
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
}

/// How a release stands in its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedAs {
    /// It was not there.
    New,
    /// It was there, with other deltas.
    WithOtherDeltas,
    /// It was there just so.
    Before,
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

/// What `indexes` say of these releases, by path.
fn contents<'r, R: ReadAt>(
    releases: &'r [Prepared<'_, 'r, R>],
    indexes: &BTreeMap<String, Index>,
) -> Result<BTreeMap<String, Content<'r, R>>, PublishError> {
    let listed: BTreeSet<Digest> = indexes
        .values()
        .flat_map(|index| &index.releases)
        .flat_map(|entry| {
            let deltas = entry.deltas.iter().map(|delta| delta.bundle.sha256);
            let patches = entry.manifest_patches.iter().map(|named| named.patch.sha256);
            deltas.chain(patches).chain([entry.signature.sha256, entry.objects.sha256])
        })
        .collect();
    let mut files = BTreeMap::new();
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
    Ok(files)
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

fn file_ref(file: &dyn ReadAt) -> io::Result<FileRef> {
    let size = file.size()?;
    let mut hashed = HashWriter::default();
    io::copy(&mut RangeReader::new(&file, 0, size), &mut hashed)?;
    Ok(hashed.finish())
}
