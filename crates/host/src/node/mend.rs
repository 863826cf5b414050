//! Mending: damaged files of a tree are laid down anew from the store, each by a rename.

use std::{collections::BTreeMap, path::Path};

use cutover_core::{
    causes::chain,
    model::{SafePath, SeenKind},
};

use super::{
    error::NodeError,
    files::{Attempt as _, Files, FsError},
    store::Store,
    tree::{Difference, Expected, ExpectedTree},
};
use crate::disk::EntryKind;

/// Makes the paths in `differences` below `base` as `expected` again. Returns what could not be had, and why; everything
/// else is durable. New files are made below `scratch`.
pub(crate) fn mend(
    files: &Files,
    base: &Path,
    expected: &ExpectedTree,
    differences: &BTreeMap<SafePath, Difference>,
    scratch: &Path,
) -> Result<Vec<(SafePath, String)>, NodeError> {
    if differences.is_empty() {
        return Ok(Vec::new());
    }
    files.discard(scratch)?;
    files.ensure_dir(scratch, 0o700)?;
    let store = Store::open(files)?;
    let mut left = Vec::new();
    for (path, difference) in differences {
        let Some(wanted) = expected.get(path) else { continue };
        match mend_one(&store, files, &base.join(path.as_path()), wanted, *difference, &scratch.join("file"))
        {
            Ok(()) => tracing::info!(%path, "repaired"),
            Err(NodeError::Store(error)) => left.push((path.clone(), chain(&error))),
            Err(error) => return Err(error),
        }
    }
    // Permission bits are set on the file itself, which only this makes durable.
    files.sync_all()?;
    files.discard(scratch)?;
    Ok(left)
}

fn mend_one(
    store: &Store<'_>,
    files: &Files,
    path: &Path,
    wanted: &Expected,
    difference: Difference,
    temporary: &Path,
) -> Result<(), NodeError> {
    files.remove_file(temporary)?;
    match (&wanted.kind, difference) {
        (SeenKind::File { .. }, Difference::Mode) => {
            return Ok(files.disk.set_mode(path, wanted.mode).attempt("set the mode of", path)?);
        }
        (SeenKind::File { sha256, size }, _) => {
            let decoded = (|| {
                let mut file = files.disk.create(temporary, wanted.mode).attempt("create", temporary)?;
                store.decode(*sha256, *size, &mut file)?;
                file.sync().attempt("flush", temporary)?;
                Ok::<_, NodeError>(())
            })();
            if decoded.is_err() {
                files.remove_file(temporary)?;
            }
            decoded?;
            keep_owner(files, path, temporary)?;
        }
        (SeenKind::Symlink { target }, _) => {
            files.disk.symlink(target, temporary).attempt("create link", temporary)?;
        }
    }
    make_room(files, path)?;
    files.ensure_parents(path, 0o755)?;
    files.rename(temporary, path)?;
    Ok(files.sync_parent(path)?)
}

/// A repaired file keeps the owner and attributes of the one it replaces.
fn keep_owner(files: &Files, present: &Path, fresh: &Path) -> Result<(), FsError> {
    match files.metadata(present)? {
        Some(metadata) if metadata.kind == EntryKind::File => {
            let xattrs = files.disk.xattrs(present).attempt("read attributes of", present)?;
            files
                .disk
                .set_ownership(fresh, metadata.uid, metadata.gid, &xattrs)
                .attempt("set the owner of", fresh)
        }
        _ => Ok(()),
    }
}

/// A directory that took a file's place goes if it is empty.
fn make_room(files: &Files, path: &Path) -> Result<(), FsError> {
    match files.metadata(path)? {
        Some(metadata) if metadata.kind == EntryKind::Directory => {
            files.disk.remove_dir(path).attempt("replace directory", path)
        }
        _ => Ok(()),
    }
}
