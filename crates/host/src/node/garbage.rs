//! What is needed, and the removal of what is not: objects that no manifest and no restore point names, and releases that
//! the catalog has buried.

use std::collections::BTreeSet;

use cutover_core::model::{Digest, ReleaseRef, SeenKind};

use super::{
    current,
    error::{NodeError, PointError},
    files::Files,
    place, restore, store,
};
use crate::catalog::{Catalog, Tombstone};

/// The objects that some stored manifest or restore point names. Fails rather than leaving one out: what cannot be read
/// might name anything.
pub(crate) fn named(files: &Files) -> Result<BTreeSet<Digest>, NodeError> {
    let mut named = BTreeSet::new();
    for digest in current::manifests(files)? {
        if let Some(manifest) = current::manifest(files, digest)? {
            named.extend(manifest.objects.iter().map(|object| object.sha256));
        }
    }
    for (_, id) in restore::ids(files)? {
        match restore::read(files, &id) {
            Ok(point) => named.extend(point.files.values().filter_map(|seen| match &seen.kind {
                SeenKind::File { sha256, .. } => Some(*sha256),
                SeenKind::Symlink { .. } => None,
            })),
            Err(PointError::Fs(error)) => return Err(error.into()),
            // Nobody can go back to it.
            Err(PointError::Manifest { .. } | PointError::File { .. } | PointError::Unsealed(_)) => {}
        }
    }
    Ok(named)
}

/// Removes every object that nothing names; returns how many.
pub(crate) fn sweep(files: &Files) -> Result<usize, NodeError> {
    let named = named(files)?;
    Ok(store::sweep(files, &named)?)
}

/// Removes a release that nothing needs. One that was confirmed is in the index: a tombstone says that it goes.
pub(crate) fn forget(files: &Files, catalog: &Catalog, manifest: Digest) -> Result<(), NodeError> {
    match catalog.bury(manifest)? {
        Some(tombstone) => bury(files, catalog, &tombstone),
        None => remove(files, manifest),
    }
}

/// Removes what a tombstone stands for, then the tombstone. Can be cut off anywhere and run again; if the release is needed
/// again by then, only the tombstone goes.
pub(crate) fn bury(files: &Files, catalog: &Catalog, tombstone: &Tombstone) -> Result<(), NodeError> {
    if !is_needed(files, tombstone.manifest)? {
        remove(files, tombstone.manifest)?;
    }
    Ok(catalog.drop_tombstone(tombstone)?)
}

/// Removes the tree and the manifest of a release, and all that nothing names then.
fn remove(files: &Files, manifest: Digest) -> Result<(), NodeError> {
    for (path, release) in current::trees(files)? {
        if release.manifest == manifest {
            files.discard(&path)?;
        }
    }
    files.remove_file(&place::manifest(manifest))?;
    files.remove_file(&place::signature(manifest))?;
    files.sync_dir(place::MANIFESTS.as_ref())?;
    sweep(files)?;
    Ok(())
}

/// Whether a release is current or a restore point leads back to it. Fails when one merely cannot be read at the moment: it
/// might.
fn is_needed(files: &Files, manifest: Digest) -> Result<bool, NodeError> {
    let is_it = |release: &ReleaseRef| release.manifest == manifest;
    let layout = current::layout(files)?.unwrap_or_default();
    if current::release(files, layout)?.as_ref().is_some_and(is_it) {
        return Ok(true);
    }
    for (_, id) in restore::ids(files)? {
        match restore::read(files, &id) {
            Ok(point) if point.from.as_ref().is_some_and(is_it) => return Ok(true),
            Err(PointError::Fs(error)) => return Err(error.into()),
            Ok(_) | Err(PointError::Manifest { .. } | PointError::File { .. } | PointError::Unsealed(_)) => {}
        }
    }
    Ok(false)
}
