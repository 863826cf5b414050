//! Pruning: what retention does not keep goes, older trees go compressed to the store, and then whatever nothing names.
//!
//! What stays is decided by [`cutover_core::retain`]; here it is done, in an order in which a crash can only leave too much.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _, Write as _},
    path::Path,
};

use cutover_core::{
    causes::chain,
    model::{
        Digest, Encoding, Hasher, Instant, ObjectEntry, ReleaseName, ReleaseRef, RestorePoint,
        RestorePointId, SafePath, SeenKind, Version,
    },
    plan::{KeptTree, Layout, PointSeen},
    retain::{PointFacts, Retention, retain, unneeded_trees},
};

use super::{
    current,
    error::{NodeError, PointError},
    files::{Attempt as _, Files, FsError},
    garbage, journal,
    pack::PackWriter,
    place,
    report::PruneReport,
    restore::{self, Target},
    root::{Node, NodeLock},
    store::{self, NewPacks, Store, StoreError},
};
use crate::{catalog::HistoryRow, disk::EntryKind};

/// How hard cold files are compressed: they are written once and rarely read.
const COLD_LEVEL: i32 = 9;

/// Whether a prune measures what is allocated before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// It looks at every file there is, and for objects that nothing names even when nothing else goes.
    Everything,
    /// It costs nothing when there is nothing to do: after every update.
    Nothing,
}

impl Node {
    /// Removes restore points that `retention` does not keep, and whatever nothing names any more. Older ones that stay
    /// go compressed to the store.
    ///
    /// # Errors
    /// Something cannot be removed; what was removed stays removed, and the rest follows the next time.
    pub fn prune(&self, lock: &NodeLock, retention: &Retention) -> Result<PruneReport, NodeError> {
        prune(self, lock, retention, Measure::Everything)
    }

    /// As [`Node::prune`], without measuring: costs nothing when there is nothing to do. For the end of every update.
    ///
    /// # Errors
    /// As [`Node::prune`].
    pub fn prune_after_update(
        &self,
        lock: &NodeLock,
        retention: &Retention,
    ) -> Result<PruneReport, NodeError> {
        prune(self, lock, retention, Measure::Nothing)
    }

    /// Removes a release that is neither current nor led back to by a restore point: from the index, and its tree,
    /// manifest and objects from the disk.
    ///
    /// # Errors
    /// [`NodeError::UnknownRelease`] or [`NodeError::Needed`]; nothing is changed then.
    pub fn forget(&self, _lock: &NodeLock, version: &Version) -> Result<(), NodeError> {
        forget(self, version)
    }
}

fn prune(
    node: &Node,
    lock: &NodeLock,
    retention: &Retention,
    measure: Measure,
) -> Result<PruneReport, NodeError> {
    node.must_be_idle()?;
    let files = &node.files;
    let layout = node.layout()?;
    let bytes_before = measured(measure, || allocated(files));
    let mut report = PruneReport { bytes_before, ..PruneReport::default() };
    let mut points = Vec::new();
    let damaged =
        evidence_only(node.each_point(layout, Target::Check, |seen| points.push(Head::of(&seen)))?)?;
    let facts = facts(files, layout, &points, retention)?;
    let verdict = retain(&facts, retention, node.clock().now());

    for id in &verdict.remove {
        files.discard(&place::point(id))?;
        report.removed_points.push(id.clone());
    }
    // A damaged one is of no use, but it is kept as evidence until a good one of its age would go too.
    let number = restore::number_of;
    let is_older = |id| verdict.remove.last().is_some_and(|last| number(id) < number(last));
    for id in damaged.iter().filter(|id| is_older(id)) {
        files.discard(&place::point(id))?;
        report.removed_points.push(id.clone());
    }
    let current = current::release(files, layout)?;
    let kept: Vec<&Head> = points.iter().filter(|head| !verdict.remove.contains(&head.id)).collect();
    let removed = remove_unneeded(node, current.as_ref(), &kept, &mut report)?;
    let changed = removed == Removed::Some || !report.removed_points.is_empty();
    if changed || measure == Measure::Everything {
        report.removed_objects = garbage::sweep(files)?;
    }
    if changed {
        remove_journals(files)?;
    }
    // Once there is all the room that can be had: compressing takes some.
    for head in kept.iter().filter(|head| verdict.cool.contains(&head.id) && head.from != current) {
        if cool(files, &head.id)? {
            report.cooled_points.push(head.id.clone());
        }
    }
    if changed || !report.cooled_points.is_empty() || report.removed_objects > 0 {
        node.record(
            lock,
            &HistoryRow {
                number: None,
                at: node.clock().now(),
                action: "prune".to_owned(),
                from: None,
                to: None,
                outcome: "confirmed".to_owned(),
                error: None,
                restore_point: None,
            },
        )?;
    }
    report.bytes_after = measured(measure, || allocated(files));
    let current_bytes = measured(measure, || match (&current, layout) {
        (Some(release), Layout::Versioned | Layout::Exchange) => {
            tree_bytes(files, &current::tree(layout, release), &mut BTreeSet::new())
        }
        // In place it lies among files that are not ours, and none of it was measured.
        (Some(_), Layout::InPlace) | (None, _) => Ok(0),
    });
    let points_bytes = report.bytes_after.saturating_sub(current_bytes);
    let full_copies: u64 = kept.iter().map(|head| head.bytes).sum();
    report.bytes_saved_by_sharing = match measure {
        Measure::Everything => full_copies.saturating_sub(points_bytes),
        Measure::Nothing => 0,
    };
    Ok(report)
}

/// Measures if that is wanted. What cannot be looked at keeps nothing from being pruned; then it is 0.
fn measured(measure: Measure, bytes: impl FnOnce() -> Result<u64, FsError>) -> u64 {
    match measure {
        Measure::Nothing => 0,
        Measure::Everything => bytes().unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "what is allocated could not be measured");
            0
        }),
    }
}

fn forget(node: &Node, version: &Version) -> Result<(), NodeError> {
    node.must_be_idle()?;
    let layout = node.layout()?;
    let release = current::releases(&node.files)?
        .into_iter()
        .find(|release| release.version == *version)
        .ok_or_else(|| NodeError::UnknownRelease(version.clone()))?;
    let mut leads_back = false;
    let leads = |seen: PointSeen| leads_back |= seen.point.from.as_ref() == Some(&release);
    evidence_only(node.each_point(layout, Target::Check, leads)?)?;
    let needed = leads_back || current::release(&node.files, layout)?.as_ref() == Some(&release);
    if needed {
        return Err(NodeError::Needed(version.clone()));
    }
    garbage::forget(&node.files, &*node.catalog()?, release.manifest)
}

/// What pruning needs to know about a restore point. One of many files takes megabytes, and there are several.
struct Head {
    id: RestorePointId,
    created_at: Instant,
    from: Option<ReleaseRef>,
    tree: KeptTree,
    /// Bytes that a whole copy of what it leads back to would take.
    bytes: u64,
}

impl Head {
    fn of(seen: &PointSeen) -> Self {
        let RestorePoint { id, created_at, from, files, .. } = seen.point.as_ref();
        let size = |kind: &SeenKind| match kind {
            SeenKind::File { size, .. } => *size,
            SeenKind::Symlink { .. } => 0,
        };
        Self {
            id: id.clone(),
            created_at: *created_at,
            from: from.clone(),
            tree: seen.tree,
            bytes: files.values().map(|file| size(&file.kind)).sum(),
        }
    }
}

/// The restore points that nobody can go back to. Fails when one merely cannot be read at the moment: nothing would keep
/// the tree and the objects it needs.
fn evidence_only(damaged: Vec<(RestorePointId, PointError)>) -> Result<Vec<RestorePointId>, NodeError> {
    let sort = |(id, error)| match error {
        PointError::Fs(error) => Err(error.into()),
        PointError::Manifest { .. } | PointError::File { .. } | PointError::Unsealed(_) => Ok(id),
    };
    damaged.into_iter().map(sort).collect()
}

/// What retention needs to know. Only bytes nothing else shares count for a restore point.
fn facts(
    files: &Files,
    layout: Layout,
    points: &[Head],
    retention: &Retention,
) -> Result<Vec<PointFacts>, NodeError> {
    let mut facts = Vec::with_capacity(points.len());
    for head in points {
        let tree = match (&head.from, head.tree, layout) {
            (Some(from), KeptTree::Kept, Layout::Versioned | Layout::Exchange) => Some(from.name()),
            _ => None,
        };
        let mut bytes = 0;
        // Looking at every file is only worth it where bytes decide.
        if retention.bytes.is_some() {
            bytes = tree_bytes(files, &place::point(&head.id), &mut BTreeSet::new())?;
            if let Some(tree) = &tree {
                bytes += own_bytes(files, &place::release(tree))?;
            }
        }
        facts.push(PointFacts { id: head.id.clone(), created_at: head.created_at, bytes, tree });
    }
    Ok(facts)
}

/// Compresses the tree of a restore point into the store and removes it. Says whether it was done: a tree whose content is
/// not what the restore point says is left alone, and so is one for which there is no room.
fn cool(files: &Files, id: &RestorePointId) -> Result<bool, NodeError> {
    let point = restore::read(files, id)?;
    let Some(from) = &point.from else { return Ok(false) };
    let tree = place::release(&from.name());
    let scratch = Path::new(place::STAGING).join("cool");
    let stored = match store_tree(files, &point, &tree, &scratch) {
        Err(NodeError::Fs(error)) if journal::is_full(&error.source) => {
            tracing::warn!(point = %id, error = %chain(&error), "no room to compress its tree; it stays as it is");
            false
        }
        stored => stored?,
    };
    files.discard(&scratch)?;
    if stored {
        files.discard(&tree)?;
    }
    Ok(stored)
}

/// Makes the store hold everything that a restore point says lies in `tree`; what it holds already is read, because the tree will
/// not be there to do without it. Says whether the store holds everything now.
fn store_tree(files: &Files, point: &RestorePoint, tree: &Path, scratch: &Path) -> Result<bool, NodeError> {
    let stored = Store::open(files)?;
    let mut contents: BTreeMap<Digest, (u64, &SafePath)> = BTreeMap::new();
    for (path, file) in &point.files {
        if let SeenKind::File { sha256, size } = &file.kind {
            contents.insert(*sha256, (*size, path));
        }
    }
    let contents: Vec<_> = contents.into_iter().collect();
    let missing = files.find_each(&contents, |(sha256, (size, path))| {
        match stored.decode(*sha256, *size, &mut io::sink()) {
            Ok(()) => Ok(None),
            Err(StoreError::Missing(_) | StoreError::Object(_)) => Ok(Some((*sha256, *size, *path))),
            Err(StoreError::Fs(error)) => Err(error),
        }
    })?;
    files.discard(scratch)?;
    files.ensure_dir(scratch, 0o700)?;
    let packs = NewPacks::new(files, scratch);
    for (sha256, size, path) in missing {
        let path = tree.join(path.as_path());
        let entry = ObjectEntry { sha256, size, stored_size: 0, encoding: Encoding::Zstd, offset: 0 };
        let mut content = Content::Altered;
        packs.add(entry, |pack| {
            content = compress(files, &path, sha256, pack)?;
            Ok::<_, NodeError>(())
        })?;
        if content == Content::Altered {
            tracing::warn!(path = %path.display(), "was altered; its restore point stays as it is");
            return Ok(false);
        }
    }
    let packs = packs.finish()?;
    files.sync_all()?;
    store::adopt(files, &packs)?;
    files.sync_all()?;
    Ok(true)
}

/// What a file turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// What its restore point says.
    Expected,
    /// Something else, or it is gone.
    Altered,
}

/// Writes the compressed content of `from` to `pack`.
fn compress(
    files: &Files,
    from: &Path,
    digest: Digest,
    pack: &mut PackWriter<'_>,
) -> Result<Content, NodeError> {
    let mut source = match files.disk.open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Altered),
        source => source.attempt("open", from)?,
    };
    let size = source.metadata().attempt("look at", from)?.size;
    let mut encoder = zstd::stream::write::Encoder::new(pack, COLD_LEVEL).attempt("compress", from)?;
    encoder.set_pledged_src_size(Some(size)).attempt("compress", from)?;
    encoder.window_log(window_log(size)).attempt("compress", from)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer).attempt("read", from)? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                encoder.write_all(&buffer[..count]).attempt("compress", from)?;
            }
        }
    }
    encoder.finish().attempt("compress", from)?;
    Ok(if hasher.finish() == digest { Content::Expected } else { Content::Altered })
}

/// The smallest window that covers `size`, within what readers accept.
fn window_log(size: u64) -> u32 {
    let bits = u64::BITS - size.max(1).leading_zeros();
    bits.clamp(10, cutover_bundle::WINDOW_BYTES_MAX.trailing_zeros())
}

/// Whether anything was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Some,
    None,
}

/// Removes trees and manifests that neither the current release nor a restore point needs.
fn remove_unneeded(
    node: &Node,
    current: Option<&ReleaseRef>,
    kept: &[&Head],
    report: &mut PruneReport,
) -> Result<Removed, NodeError> {
    let files = &node.files;
    let names: BTreeSet<ReleaseName> = current::trees(files)?.values().map(ReleaseRef::name).collect();
    let facts: Vec<PointFacts> = kept
        .iter()
        .map(|head| PointFacts {
            id: head.id.clone(),
            created_at: head.created_at,
            bytes: 0,
            tree: head.from.as_ref().map(ReleaseRef::name),
        })
        .collect();
    let unneeded = unneeded_trees(&names, current.map(ReleaseRef::name).as_ref(), &facts);
    if !unneeded.is_empty() {
        let catalog = node.catalog()?;
        // Trees share inodes: what goes takes names away from files of the tree that stays.
        let layout = node.layout()?;
        let base = current.map(|current| current::tree(layout, current)).unwrap_or_default();
        let staying = current.map_or(Ok(Vec::new()), |current| installed_files(files, current))?;
        let known = node.hashes.follow_through(files, &base, &staying, || {
            unneeded.iter().try_for_each(|name| Ok::<_, NodeError>(files.discard(&place::release(name))?))
        })?;
        catalog.remember(&known)?;
        report.removed_releases.extend(unneeded.iter().map(ToString::to_string));
    }
    let needed: BTreeSet<Digest> = kept
        .iter()
        .filter_map(|head| head.from.as_ref())
        .chain(current)
        .map(|release| release.manifest)
        .collect();
    let unneeded: Vec<Digest> =
        current::manifests(files)?.into_iter().filter(|digest| !needed.contains(digest)).collect();
    for digest in &unneeded {
        garbage::forget(files, &*node.catalog()?, *digest)?;
    }
    let nothing = unneeded.is_empty() && report.removed_releases.is_empty();
    Ok(if nothing { Removed::None } else { Removed::Some })
}

/// The files of a release.
fn installed_files(files: &Files, release: &ReleaseRef) -> Result<Vec<SafePath>, NodeError> {
    let manifest = current::manifest_of(files, release)?;
    Ok(manifest.files.iter().map(|file| file.path.clone()).collect())
}

/// Removes journals that vouch for no restore point; the newest stays, it knows the last number. The history is in the
/// catalog.
fn remove_journals(files: &Files) -> Result<(), NodeError> {
    let numbers = journal::numbers(files)?;
    let kept: BTreeSet<u64> = restore::ids(files)?.into_iter().map(|(number, _)| number).collect();
    let old = numbers.iter().rev().skip(JOURNALS_KEPT).filter(|number| !kept.contains(number));
    for number in old {
        files.remove_file(&place::journal(*number))?;
    }
    Ok(files.sync_dir(place::JOURNAL.as_ref())?)
}

/// Journals kept beside those of restore points, so that a lost catalog can be filled again.
const JOURNALS_KEPT: usize = 20;

/// Bytes allocated by everything that is ours, each inode once.
fn allocated(files: &Files) -> Result<u64, FsError> {
    let mut inodes = BTreeSet::new();
    let places = [place::RELEASES, place::CURRENT, place::STORE, place::RESTORE];
    places.iter().map(|place| tree_bytes(files, place.as_ref(), &mut inodes)).sum()
}

/// Bytes allocated below `path` by inodes that are not in `inodes` yet.
fn tree_bytes(files: &Files, path: &Path, inodes: &mut BTreeSet<u64>) -> Result<u64, FsError> {
    let Some(metadata) = files.metadata(path)? else { return Ok(0) };
    match metadata.kind {
        EntryKind::Directory => {
            let mut sum = metadata.allocated;
            for (name, _) in files.disk.names(path).attempt("list", path)? {
                sum += tree_bytes(files, &path.join(name), inodes)?;
            }
            Ok(sum)
        }
        EntryKind::File if inodes.insert(metadata.inode) => Ok(metadata.allocated),
        EntryKind::File | EntryKind::Symlink | EntryKind::Other => Ok(0),
    }
}

/// Bytes allocated below `path` by files that have no other name.
fn own_bytes(files: &Files, path: &Path) -> Result<u64, FsError> {
    let Some(metadata) = files.metadata(path)? else { return Ok(0) };
    match metadata.kind {
        EntryKind::Directory => {
            let mut sum = metadata.allocated;
            for (name, _) in files.disk.names(path).attempt("list", path)? {
                sum += own_bytes(files, &path.join(name))?;
            }
            Ok(sum)
        }
        EntryKind::File if metadata.links == 1 => Ok(metadata.allocated),
        EntryKind::File | EntryKind::Symlink | EntryKind::Other => Ok(0),
    }
}
