//! Restore points: written before anything changes, believed only as far as the journal vouches for them.
//!
//! The digest of a restore point's manifest is in the journal of the execution that made it; the digests of the files an
//! in-place restore point keeps are in that manifest. So nothing in its directory can be altered unnoticed.
//! Format: `docs/formats/restore-point.md`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::{
    causes::chain,
    model::{Digest, RestorePoint, RestorePointError, RestorePointId, SafePath, SeenFile, SeenKind},
    plan::{KeptTree, Layout, PointSeen},
};

use super::{
    current,
    error::{NodeError, PointError},
    files::{Attempt as _, Files, Hashed},
    journal, place, tree,
};
use crate::disk::EntryKind;

/// The ids of all restore points on disk, in the order they were made. A directory without an id is not ours.
pub(crate) fn ids(files: &Files) -> Result<Vec<(u64, RestorePointId)>, NodeError> {
    let mut ids: Vec<(u64, RestorePointId)> = files
        .list(place::RESTORE.as_ref())?
        .iter()
        .filter_map(|(name, _)| {
            let number = name.parse().ok()?;
            let id = RestorePointId::of_execution(number);
            (id.as_str() == name).then_some((number, id))
        })
        .collect();
    ids.sort();
    Ok(ids)
}

/// The number of the execution that made restore point `id`.
pub(crate) fn number_of(id: &RestorePointId) -> Option<u64> {
    let number = id.as_str().parse().ok()?;
    (RestorePointId::of_execution(number) == *id).then_some(number)
}

/// Reads a restore point that its journal vouches for.
pub(crate) fn read(files: &Files, id: &RestorePointId) -> Result<Arc<RestorePoint>, PointError> {
    let evidence = match number_of(id).map(|number| journal::evidence(files, number)) {
        Some(Ok(Some(evidence))) => evidence,
        Some(Err(NodeError::Fs(error))) => return Err(error.into()),
        Some(Ok(None) | Err(_)) | None => return Err(PointError::Unsealed(id.clone())),
    };
    read_sealed(files, id, evidence)
}

/// Reads a restore point whose manifest must have the digest `evidence`.
pub(crate) fn read_sealed(
    files: &Files,
    id: &RestorePointId,
    evidence: Digest,
) -> Result<Arc<RestorePoint>, PointError> {
    let path = place::point_manifest(id);
    let missing = || PointError::File {
        id: id.clone(),
        path: path.display().to_string(),
        problem: "is missing".to_owned(),
    };
    let altered =
        |source: RestorePointError| PointError::Manifest { path: path.display().to_string(), source };
    if let Some(point) = files.points.get(evidence).filter(|point| point.id == *id) {
        return match files.digest(&path)?.ok_or_else(missing)? {
            actual if actual == evidence => Ok(point),
            actual => Err(altered(RestorePointError::Altered { id: id.clone(), expected: evidence, actual })),
        };
    }
    if let Some(point) = files.read_large_json::<RestorePoint>(&path, evidence)?
        && (point.format, &point.id) == (1, id)
    {
        let point = Arc::new(point);
        files.points.know(evidence, &point);
        return Ok(point);
    }
    let bytes = files.read(&path)?.ok_or_else(missing)?;
    let actual = Digest::of(&bytes);
    if actual != evidence {
        return Err(altered(RestorePointError::Altered { id: id.clone(), expected: evidence, actual }));
    }
    let point =
        files.points.get_or(evidence, || RestorePoint::parse(id, &bytes, evidence)).map_err(altered)?;
    // The same bytes under another id would be a swapped restore point.
    if point.id != *id {
        let reason = "it names another id".to_owned();
        return Err(altered(RestorePointError::Syntax { id: id.clone(), reason }));
    }
    Ok(point)
}

/// Whether the manifest of the release that a restore point leads back to is read with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is, for planning.
    Read,
    /// Only its digest is checked.
    Check,
}

/// Reads a restore point together with what planning needs to know about it.
pub(crate) fn see(
    files: &Files,
    layout: Layout,
    id: &RestorePointId,
    target: Target,
) -> Result<PointSeen, PointError> {
    let point = read(files, id)?;
    let unusable = |error: NodeError| match error {
        NodeError::Fs(error) => PointError::Fs(error),
        other => PointError::File {
            id: id.clone(),
            path: place::point(id).display().to_string(),
            problem: format!("cannot be used: {}", chain(&other)),
        },
    };
    let kept = match (&point.from, layout) {
        (Some(from), Layout::Versioned | Layout::Exchange) => {
            let tree = place::release(&from.name());
            current::marked(files, &tree).map_err(unusable)?.as_ref() == Some(from)
        }
        (None, Layout::Versioned | Layout::Exchange) => true,
        (_, Layout::InPlace) => false,
    };
    let manifest = match (&point.from, target) {
        (Some(from), Target::Read) => current::manifest(files, from.manifest).map_err(unusable)?,
        (Some(from), Target::Check) => {
            current::check_manifest(files, from.manifest).map_err(unusable)?;
            None
        }
        (None, _) => None,
    };
    Ok(PointSeen { point, tree: if kept { KeptTree::Kept } else { KeptTree::Cold }, manifest })
}

/// Writes a restore point and returns the digest of its manifest. `keep` says where each file of `point.files` lies that
/// is kept as a copy (`in-place`). A half-written predecessor of the same execution is replaced.
pub(crate) fn write(
    files: &Files,
    point: &RestorePoint,
    keep: Option<&Path>,
    scratch: &Path,
) -> Result<Digest, NodeError> {
    let target = place::point(&point.id);
    files.discard(&target)?;
    files.discard(scratch)?;
    files.ensure_dir(scratch, 0o700)?;
    if let Some(base) = keep {
        keep_files(files, point, base, &scratch.join("files"))?;
    }
    let evidence = files.write_new_with(&scratch.join("manifest.json"), 0o600, |out| {
        let mut hashed = Hashed::new(out);
        point.write_to(&mut hashed)?;
        Ok(hashed.finish().0)
    })?;
    match keep {
        // Many files: one flush for all of them, checked by reading them back.
        Some(_) => files.sync_all()?,
        None => files.sync_dir(scratch)?,
    }
    if keep.is_some() {
        verify_kept(files, point, &scratch.join("files"), &BTreeSet::new())?;
    }
    files.rename(scratch, &target)?;
    files.sync_parent(&target)?;
    Ok(evidence)
}

/// Copies the files a point describes, with owner and attributes: never a second name for the same inode.
fn keep_files(files: &Files, point: &RestorePoint, base: &Path, to: &Path) -> Result<(), NodeError> {
    files.ensure_dir(to, 0o700)?;
    let kept: Vec<(&SafePath, &SeenFile)> =
        point.files.iter().filter(|(_, seen)| matches!(seen.kind, SeenKind::File { .. })).collect();
    for (path, _) in &kept {
        files.ensure_parents(&to.join(path.as_path()), 0o700)?;
    }
    files.for_each(&kept, |(path, seen)| {
        copy_with_ownership(files, &base.join(path.as_path()), &to.join(path.as_path()), seen)
    })?;
    Ok(())
}

/// Copies a file to a new place and gives it the owner, attributes and permission bits of `seen`.
pub(crate) fn copy_with_ownership(
    files: &Files,
    from: &Path,
    to: &Path,
    seen: &SeenFile,
) -> Result<(), NodeError> {
    files.disk.copy(from, to, 0o600).attempt("copy", from)?;
    own(files, to, seen)
}

/// Gives a file the owner, attributes and permission bits of `seen`.
pub(crate) fn own(files: &Files, path: &Path, seen: &SeenFile) -> Result<(), NodeError> {
    let mut xattrs = std::collections::BTreeMap::new();
    for (name, value) in &seen.xattrs {
        let value = tree::from_hex(value)
            .ok_or_else(|| current::damaged(path, "an attribute's value is not hexadecimal"))?;
        xattrs.insert(name.clone(), value);
    }
    files.disk.set_ownership(path, seen.uid, seen.gid, &xattrs).attempt("set the owner of", path)?;
    files.disk.set_mode(path, seen.mode).attempt("set the mode of", path)?;
    Ok(())
}

/// Checks the copies a point keeps at `kept`: each is there with its digest, and there is none too many. Those in `used`
/// may be gone, because a restore that was interrupted has put them back already.
pub(crate) fn verify_kept(
    files: &Files,
    point: &RestorePoint,
    kept: &Path,
    used: &BTreeSet<SafePath>,
) -> Result<(), PointError> {
    let problem = |path: &Path, problem: &str| PointError::File {
        id: point.id.clone(),
        path: path.display().to_string(),
        problem: problem.to_owned(),
    };
    let wanted: Vec<(&SafePath, Digest)> = point
        .files
        .iter()
        .filter(|(path, _)| !used.contains(*path))
        .filter_map(|(path, seen)| match seen.kind {
            SeenKind::File { sha256, .. } => Some((path, sha256)),
            SeenKind::Symlink { .. } => None,
        })
        .collect();
    files.for_each(&wanted, |(path, sha256)| {
        let path = kept.join(path.as_path());
        match files.metadata(&path)?.map(|metadata| metadata.kind) {
            None => Err(problem(&path, "is missing")),
            Some(EntryKind::File) if tree::hash(files, &path)?.0 == *sha256 => Ok(()),
            Some(EntryKind::File) => Err(problem(&path, "was altered")),
            Some(_) => Err(problem(&path, "is not a regular file")),
        }
    })?;
    let known: BTreeSet<PathBuf> = point.files.keys().map(|path| kept.join(path.as_path())).collect();
    match extra(files, kept, &known)? {
        Some(path) => Err(problem(&path, "is one too many")),
        None => Ok(()),
    }
}

/// The first file below `directory` that is not `known`.
fn extra(
    files: &Files,
    directory: &Path,
    known: &BTreeSet<PathBuf>,
) -> Result<Option<PathBuf>, super::FsError> {
    for (name, kind) in files.list(directory)? {
        let path = directory.join(name);
        let found = match kind {
            EntryKind::Directory => extra(files, &path, known)?,
            _ if known.contains(&path) => None,
            _ => Some(path),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
