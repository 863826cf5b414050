//! The switch: the one visible change, for each layout, forward and back.
//!
//! Every function here can be run again after it was cut off at any point: it looks at what is there, not at what it did.
//! Going back verifies what it returns to before it touches anything (I12).

use std::{collections::BTreeSet, io, path::Path};

use cutover_core::{
    model::{ReleaseRef, RestorePoint, SafePath, SeenFile, SeenKind, SeenTree},
    plan::{Change, Layout, Plan, Switch},
};

use super::{
    current,
    error::{NodeError, PointError, StageError},
    files::{Attempt as _, Files},
    mend, place, restore,
    tree::{self, Attributes, Hashes, Reading},
};
use crate::disk::{EntryKind, Metadata};

/// From how many directories below the root on one flush of the file system is cheaper than one each.
const SYNC_EACH_MAX: usize = 8;

/// Performs the switch. `point` is this execution's restore point.
pub(crate) fn perform(
    files: &Files,
    plan: &Plan,
    switch: &Switch,
    point: &RestorePoint,
    hashes: &Hashes,
) -> Result<(), NodeError> {
    match plan.layout {
        Layout::Versioned => link(files, plan, plan.from.as_ref(), plan.to.as_ref()),
        Layout::Exchange => exchange(files, plan.from.as_ref(), plan.to.as_ref()),
        Layout::InPlace => change(files, plan, switch, point, hashes),
    }
}

/// Undoes the switch, whether it happened or not.
pub(crate) fn undo(
    files: &Files,
    plan: &Plan,
    point: &RestorePoint,
    warnings: &mut Vec<String>,
) -> Result<(), NodeError> {
    match plan.layout {
        Layout::Versioned => {
            if current::linked(files)? != plan.from.as_ref().map(|from| place::release(&from.name())) {
                verify_tree(files, plan, point)?;
            }
            link(files, plan, plan.to.as_ref(), plan.from.as_ref())
        }
        Layout::Exchange => {
            settle(files, [plan.from.as_ref(), plan.to.as_ref()])?;
            if current::marked(files, place::CURRENT.as_ref())? != plan.from {
                verify_tree(files, plan, point)?;
            }
            exchange(files, plan.to.as_ref(), plan.from.as_ref())
        }
        Layout::InPlace => change_back(files, plan, point, warnings),
    }
}

/// I12: the tree that is returned to is what the restore point says; what is damaged is mended from the store, and if that
/// cannot be done nothing is touched.
fn verify_tree(files: &Files, plan: &Plan, point: &RestorePoint) -> Result<(), NodeError> {
    let Some(from) = &point.from else { return Ok(()) };
    check_tree(
        files,
        &place::release(&from.name()),
        &point.files,
        &place::staging(plan.number).join("mend"),
        point,
        Reading::Always,
    )
}

/// Re-hashes a kept tree against what a restore point says, mending it where needed.
pub(crate) fn check_tree(
    files: &Files,
    base: &Path,
    seen: &SeenTree,
    scratch: &Path,
    point: &RestorePoint,
    reading: Reading<'_>,
) -> Result<(), NodeError> {
    let expected = tree::expected_of_seen(seen);
    let differences = tree::differences(files, base, &expected, reading)?;
    if !differences.is_empty() {
        let above = scratch.parent().expect("scratch lies in staging");
        files.ensure_dir(above, 0o700)?;
    }
    match mend::mend(files, base, &expected, &differences, scratch)?.into_iter().next() {
        None => Ok(()),
        Some((path, reason)) => Err(PointError::File {
            id: point.id.clone(),
            path: base.join(path.as_path()).display().to_string(),
            problem: format!("was altered and cannot be repaired ({reason})"),
        }
        .into()),
    }
}

fn elsewhere(found: impl std::fmt::Display) -> NodeError {
    current::damaged(place::CURRENT, format!("it is {found}, neither the old nor the new release"))
}

/// `versioned`: a new link is renamed over the old one.
fn link(
    files: &Files,
    plan: &Plan,
    from: Option<&ReleaseRef>,
    to: Option<&ReleaseRef>,
) -> Result<(), NodeError> {
    let tree = |release: Option<&ReleaseRef>| release.map(|release| place::release(&release.name()));
    let present = current::linked(files)?;
    if present != tree(to) {
        if present != tree(from) {
            return Err(elsewhere(
                present.map_or("nothing".to_owned(), |path| format!("`{}`", path.display())),
            ));
        }
        match to {
            Some(to) => {
                if current::marked(files, &place::release(&to.name()))?.as_ref() != Some(to) {
                    return Err(current::damaged(
                        place::release(&to.name()),
                        "the tree to switch to is not there",
                    ));
                }
                let scratch = place::staging(plan.number);
                files.ensure_dir(&scratch, 0o700)?;
                let fresh = scratch.join("current");
                files.remove_file(&fresh)?;
                files.disk.symlink(&place::link_target(to), &fresh).attempt("create link", &fresh)?;
                files.rename(&fresh, place::CURRENT.as_ref())?;
            }
            None => files.remove_file(place::CURRENT.as_ref())?,
        }
    }
    // Also when it was there already: a run that was cut off may not have come to this.
    Ok(files.sync_dir(Path::new(""))?)
}

/// `exchange`: the live directory and the staged one change places. The markers in the trees say which is which.
fn exchange(files: &Files, from: Option<&ReleaseRef>, to: Option<&ReleaseRef>) -> Result<(), NodeError> {
    let current = Path::new(place::CURRENT);
    settle(files, [from, to])?;
    let present = current::marked(files, current)?;
    if present.as_ref() != to {
        if present.as_ref() != from {
            return Err(elsewhere(present.map_or("nothing".to_owned(), |release| release.to_string())));
        }
        let tree = |release: &ReleaseRef| place::release(&release.name());
        if let Some(to) = to
            && current::marked(files, &tree(to))?.as_ref() != Some(to)
        {
            return Err(current::damaged(tree(to), "the tree to switch to is not there"));
        }
        match (from, to) {
            (Some(_), Some(to)) => {
                files.disk.exchange(current, &tree(to)).attempt("exchange with `current`", tree(to))?;
            }
            (None, Some(to)) => files.rename(&tree(to), current)?,
            (Some(from), None) => {
                files.discard(&tree(from))?;
                files.rename(current, &tree(from))?;
            }
            (None, None) => {}
        }
        settle(files, [from, to])?;
    }
    files.sync_dir(Path::new(""))?;
    Ok(files.sync_dir(place::RELEASES.as_ref())?)
}

/// Gives the trees of the two releases in `releases/` the names their markers say: an exchange leaves the old tree under
/// the new one's name.
fn settle(files: &Files, releases: [Option<&ReleaseRef>; 2]) -> Result<(), NodeError> {
    for release in releases.into_iter().flatten() {
        let path = place::release(&release.name());
        if let Some(marked) = current::marked(files, &path)?
            && marked != *release
            && releases.contains(&Some(&marked))
        {
            let name = place::release(&marked.name());
            files.discard(&name)?;
            files.rename(&path, &name)?;
        }
    }
    Ok(())
}

/// The paths that a switch changes. Each may be a link, with other paths behind it.
type Known<'p> = BTreeSet<&'p SafePath>;

fn metadata(files: &Files, path: &SafePath, known: &Known<'_>) -> Result<Option<Metadata>, NodeError> {
    Ok(tree::metadata(files, Path::new(""), path, |path| known.contains(path))?)
}

fn kind(files: &Files, path: &SafePath, known: &Known<'_>) -> Result<Option<EntryKind>, NodeError> {
    Ok(metadata(files, path, known)?.map(|metadata| metadata.kind))
}

fn is_directory(files: &Files, path: &SafePath, known: &Known<'_>) -> Result<bool, NodeError> {
    Ok(kind(files, path, known)? == Some(EntryKind::Directory))
}

/// What an in-place update is about to change, as it is now: the content of its restore point.
pub(crate) struct Before {
    pub(crate) files: SeenTree,
    pub(crate) added: Vec<SafePath>,
    pub(crate) directories: Vec<SafePath>,
}

/// Looks at every path the switch changes, refusing what could not be put back.
pub(crate) fn before(files: &Files, switch: &Switch, hashes: &Hashes) -> Result<Before, NodeError> {
    let known: Known<'_> = switch.changes.iter().map(Change::path).collect();
    let paths: Vec<SafePath> = known.iter().copied().cloned().collect();
    let seen = tree::look(files, Path::new(""), &paths, Attributes::Read, hashes)?;
    let removed: Known<'_> = switch
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Remove { path } => Some(path),
            Change::Put { .. } | Change::Link { .. } => None,
        })
        .collect();
    let (mut added, mut directories, mut looked_at) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for change in &switch.changes {
        let path = change.path();
        match change {
            Change::Remove { .. } => {}
            Change::Put { .. } | Change::Link { .. } => {
                if !seen.contains_key(path) {
                    added.push(path.clone());
                    check_free(files, path, &removed, &known)?;
                }
                for parent in path.ancestors() {
                    if !looked_at.insert(parent.clone()) {
                        continue;
                    }
                    match kind(files, &parent, &known)? {
                        Some(EntryKind::Directory) => {}
                        None => drop(directories.insert(parent)),
                        Some(_) if removed.contains(&parent) => drop(directories.insert(parent)),
                        Some(_) => return Err(StageError::Directory(parent).into()),
                    }
                }
            }
        }
    }
    Ok(Before { files: seen, added, directories: directories.into_iter().collect() })
}

/// Nothing, or a directory of which nothing will be left, lies where a file goes.
fn check_free(
    files: &Files,
    path: &SafePath,
    removed: &Known<'_>,
    known: &Known<'_>,
) -> Result<(), NodeError> {
    match kind(files, path, known)? {
        None => return Ok(()),
        Some(EntryKind::Directory) => {}
        Some(_) => return Err(StageError::Directory(path.clone()).into()),
    }
    for (name, kind) in files.list(path.as_path())? {
        let child = format!("{path}/{name}").parse::<SafePath>();
        match (child, kind) {
            (Ok(child), EntryKind::Directory) => check_free(files, &child, removed, known)?,
            (Ok(child), _) if removed.contains(&child) => {}
            _ => return Err(StageError::Directory(path.clone()).into()),
        }
    }
    Ok(())
}

/// `in-place`: one rename per path, and the record of what is current as the last act.
fn change(
    files: &Files,
    plan: &Plan,
    switch: &Switch,
    point: &RestorePoint,
    hashes: &Hashes,
) -> Result<(), NodeError> {
    let mut state = current::in_place(files)?;
    if state.release != plan.to {
        if state.release != plan.from {
            return Err(elsewhere(state.release.map_or("nothing".to_owned(), |release| release.to_string())));
        }
        state.directories.extend(point.directories.iter().cloned());
        let known = switch.changes.iter().map(Change::path).collect();
        let stays = |change: &&Change| !matches!(change, Change::Remove { .. });
        let in_the_way = in_the_way(switch.changes.iter().filter(stays).map(Change::path));
        let (first, last): (Vec<&Change>, Vec<&Change>) = switch
            .changes
            .iter()
            .filter(|change| matches!(change, Change::Remove { .. }))
            .partition(|change| in_the_way(change.path()));
        for change in &first {
            remove(files, change.path(), &known)?;
        }
        for change in &switch.changes {
            match change {
                Change::Put { path, sha256, .. } => put(files, plan, path, *sha256, hashes)?,
                Change::Link { path, target } => put_link(files, plan, path, target)?,
                Change::Remove { .. } => {}
            }
        }
        for change in &last {
            remove(files, change.path(), &known)?;
        }
        let emptied = switch.changes.iter().map(Change::path).flat_map(SafePath::ancestors);
        remove_empty(files, emptied.filter(|path| state.directories.contains(path)).collect(), &known)?;
        let mut gone = Vec::new();
        for directory in &state.directories {
            if !is_directory(files, directory, &known)? {
                gone.push(directory.clone());
            }
        }
        for directory in &gone {
            state.directories.remove(directory);
        }
        sync_above(files, &known)?;
        state.release.clone_from(&plan.to);
        current::set_in_place(files, &state)?;
    }
    Ok(())
}

/// Says of a path that is removed whether one of `puts` needs its place first: as a directory, or because it lies where a
/// directory was.
fn in_the_way<'p>(puts: impl Iterator<Item = &'p SafePath>) -> impl Fn(&SafePath) -> bool {
    let (mut paths, mut above) = (BTreeSet::new(), BTreeSet::new());
    for put in puts {
        paths.insert(put);
        above.extend(put.ancestors());
    }
    move |path| above.contains(path) || path.ancestors().any(|parent| paths.contains(&parent))
}

fn put(
    files: &Files,
    plan: &Plan,
    path: &SafePath,
    sha256: cutover_core::model::Digest,
    hashes: &Hashes,
) -> Result<(), NodeError> {
    let staged = place::staged_tree(plan.number).join(path.as_path());
    let target = path.as_path();
    if let Some(before) = files.metadata(&staged)? {
        clear_directory(files, target)?;
        files.ensure_parents(target, 0o755)?;
        files.rename(&staged, target)?;
        if let Some(after) = files.metadata(target)? {
            hashes.follow(&before, &after);
        }
        return Ok(());
    }
    // A run that was cut off has put it there already.
    match files.metadata(target)? {
        Some(metadata) if metadata.kind == EntryKind::File && tree::hash(files, target)?.0 == sha256 => {
            Ok(())
        }
        _ => Err(current::damaged(target, "it is neither staged nor in place")),
    }
}

fn put_link(files: &Files, plan: &Plan, path: &SafePath, target: &str) -> Result<(), NodeError> {
    let place = path.as_path();
    let present = files.metadata(place)?.map(|metadata| metadata.kind);
    if present == Some(EntryKind::Symlink)
        && files.disk.read_link(place).attempt("read link", place)? == target
    {
        return Ok(());
    }
    let scratch = place::staging(plan.number);
    files.ensure_dir(&scratch, 0o700)?;
    let fresh = scratch.join("link");
    files.remove_file(&fresh)?;
    files.disk.symlink(target, &fresh).attempt("create link", &fresh)?;
    clear_directory(files, place)?;
    files.ensure_parents(place, 0o755)?;
    Ok(files.rename(&fresh, place)?)
}

/// Removes a file or link unless it is gone or a directory took its place.
fn remove(files: &Files, path: &SafePath, known: &Known<'_>) -> Result<(), NodeError> {
    match kind(files, path, known)? {
        Some(EntryKind::File | EntryKind::Symlink) => Ok(files.remove_file(path.as_path())?),
        Some(EntryKind::Other) => Err(current::damaged(path.as_path(), "it is a device, socket or pipe")),
        Some(EntryKind::Directory) | None => Ok(()),
    }
}

/// Removes a directory of empty directories that lies where a file goes; anything in it is an error.
fn clear_directory(files: &Files, path: &Path) -> Result<(), NodeError> {
    if files.metadata(path)?.is_some_and(|metadata| metadata.kind == EntryKind::Directory) {
        for (name, _) in files.list(path)? {
            clear_directory(files, &path.join(name))?;
        }
        files.disk.remove_dir(path).attempt("replace directory", path)?;
    }
    Ok(())
}

/// Removes those of `directories` that are empty, innermost first.
fn remove_empty(files: &Files, directories: BTreeSet<SafePath>, known: &Known<'_>) -> Result<(), NodeError> {
    // A directory sorts before what lies in it.
    for directory in directories.iter().rev() {
        let path = directory.as_path();
        if is_directory(files, directory, known)? {
            match files.disk.remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => removed.attempt("remove directory", path)?,
            }
        }
    }
    Ok(())
}

/// Makes the names of what changed, and of the directories above it, durable.
fn sync_above(files: &Files, known: &Known<'_>) -> Result<(), NodeError> {
    let directories: BTreeSet<SafePath> = known.iter().flat_map(|path| path.ancestors()).collect();
    if directories.len() >= SYNC_EACH_MAX {
        return Ok(files.sync_all()?);
    }
    for directory in &directories {
        if is_directory(files, directory, known)? {
            files.sync_dir(directory.as_path())?;
        }
    }
    Ok(files.sync_dir(Path::new(""))?)
}

/// Puts everything back that an in-place switch changed. First every kept copy is verified; then what was added goes, and
/// the copies are renamed back, so that a full disk cannot stop it. What the new release wrote meanwhile is moved out of the way
/// (`docs/decisions/0069-what-a-failed-release-wrote-is-moved-aside.md`).
fn change_back(
    files: &Files,
    plan: &Plan,
    point: &RestorePoint,
    warnings: &mut Vec<String>,
) -> Result<(), NodeError> {
    let kept = place::point_files(&point.id);
    let known = point.files.keys().chain(&point.added).collect();
    let mut back = BTreeSet::new();
    for (path, seen) in &point.files {
        if is_as_before(files, path, seen, &known)? {
            back.insert(path.clone());
        }
    }
    restore::verify_kept(files, point, &kept, &back)?;

    for path in &point.added {
        remove(files, path, &known)?;
    }
    remove_empty(files, point.directories.iter().cloned().collect(), &known)?;
    let mut state = current::in_place(files)?;
    let missing = missing_above(files, point.files.keys().filter(|path| !back.contains(*path)), &known)?;
    if !missing.is_empty() {
        // Before they are made: a run that is cut off after that finds them there, and could not tell whose they are.
        state.directories.extend(missing.iter().cloned());
        current::set_in_place(files, &state)?;
    }
    for directory in &missing {
        move_aside(files, directory.as_path(), warnings)?;
        files.ensure_visible_dir(directory.as_path(), 0o755)?;
    }
    for (path, seen) in point.files.iter().filter(|(path, _)| !back.contains(*path)) {
        if is_directory(files, path, &known)? && holds_files(files, path.as_path())? {
            move_aside(files, path.as_path(), warnings)?;
        }
        match &seen.kind {
            SeenKind::File { .. } => {
                clear_directory(files, path.as_path())?;
                files.rename(&kept.join(path.as_path()), path.as_path())?;
            }
            SeenKind::Symlink { target } => put_link(files, plan, path, target)?,
        }
    }
    sync_above(files, &known)?;
    for directory in &point.directories {
        state.directories.remove(directory);
    }
    state.release.clone_from(&point.from);
    current::set_in_place(files, &state)
}

/// Whether anything but directories lies below a directory.
fn holds_files(files: &Files, directory: &Path) -> Result<bool, NodeError> {
    for (name, kind) in files.disk.names(directory).attempt("list", directory)? {
        if kind != EntryKind::Directory || holds_files(files, &directory.join(name))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives what lies at a path, if anything does, another name beside it.
fn move_aside(files: &Files, path: &Path, warnings: &mut Vec<String>) -> Result<(), NodeError> {
    if !files.exists(path)? {
        return Ok(());
    }
    let mut number = 1;
    let aside = loop {
        let aside = format!("{}.moved-aside-{number}", path.display());
        if !files.exists(aside.as_ref())? {
            break aside;
        }
        number += 1;
    };
    files.disk.rename(path, aside.as_ref()).attempt("move aside", path)?;
    warnings
        .push(format!("`{}` was written by the release that failed; it is `{aside}` now", path.display()));
    Ok(())
}

/// The directories above `paths` that are not there, outermost first. A file of the new release that lay where one of them was
/// is gone by now: it was added.
fn missing_above<'p>(
    files: &Files,
    paths: impl Iterator<Item = &'p SafePath>,
    known: &Known<'_>,
) -> Result<BTreeSet<SafePath>, NodeError> {
    let above: BTreeSet<SafePath> = paths.flat_map(SafePath::ancestors).collect();
    let mut missing = BTreeSet::new();
    for directory in above {
        if !is_directory(files, &directory, known)? {
            missing.insert(directory);
        }
    }
    Ok(missing)
}

/// Whether a path is as the restore point says: content, permission bits, owner and attributes.
fn is_as_before(
    files: &Files,
    path: &SafePath,
    seen: &SeenFile,
    known: &Known<'_>,
) -> Result<bool, NodeError> {
    let place = path.as_path();
    let Some(metadata) = metadata(files, path, known)? else { return Ok(false) };
    Ok(match (&seen.kind, metadata.kind) {
        (SeenKind::File { sha256, size }, EntryKind::File) => {
            let xattrs = || -> Result<bool, NodeError> {
                let present = files.disk.xattrs(place).attempt("read attributes of", place)?;
                let same = |(name, value): (&String, &Vec<u8>)| {
                    seen.xattrs.get(name).is_some_and(|hex| *hex == tree::to_hex(value))
                };
                Ok(present.len() == seen.xattrs.len() && present.iter().all(same))
            };
            metadata.size == *size
                && (metadata.mode, metadata.uid, metadata.gid) == (seen.mode, seen.uid, seen.gid)
                && xattrs()?
                && tree::hash(files, place)?.0 == *sha256
        }
        (SeenKind::Symlink { target }, EntryKind::Symlink) => {
            files.disk.read_link(place).attempt("read link", place)? == *target
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_above_or_below_a_new_path_is_in_its_way() {
        let paths = |texts: &[&str]| -> Vec<SafePath> {
            texts.iter().map(|text| text.parse().expect("a path")).collect()
        };
        let puts = paths(&["a/b/c", "d"]);
        let in_the_way = in_the_way(puts.iter());
        assert!(paths(&["a", "a/b", "d/e", "d/e/f"]).iter().all(&in_the_way));
        assert!(!paths(&["a/c", "a/b/d", "e", "dd", "d-/e"]).iter().any(&in_the_way));
    }

    #[test]
    fn many_paths_are_told_apart_in_a_moment() {
        let paths = |base: &str| -> Vec<SafePath> {
            (0..20_000).map(|n| format!("{base}/{}/{n}", n % 100).parse().expect("a path")).collect()
        };
        let (puts, removed) = (paths("new"), paths("old"));
        let began = std::time::Instant::now();
        let in_the_way = in_the_way(puts.iter());
        assert!(!removed.iter().any(in_the_way));
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
