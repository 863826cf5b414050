//! Releases that are published already, as the bases of deltas to a new one.

use std::collections::BTreeMap;

use cutover_bundle::{Limits, decode_object};
use cutover_core::model::{Digest, Manifest, Name, ObjectEntry, ReleaseRef};

use crate::{
    error::PublishError,
    index::{DeltaRef, index_path, manifest_path, object_path},
    present::{read_named, read_objects},
    publisher::Publisher,
};

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

impl Publisher<'_> {
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
}
