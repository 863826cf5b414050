//! What a root looks like from outside, and whether that is in order.

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_bundle::decode_object;
use cutover_core::{model::ObjectEntry, plan::Layout};
use cutover_host::node::{PackError, PackIndex};

use crate::{FileSystem, Release, Tree, TreeKind};

/// The marker of a release's tree.
const MARKER: &str = ".cutover-release";

/// What a user of the root sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Where the current release's files lie; `None` when nothing is installed (never in place).
    pub path: Option<String>,
    /// What is there.
    pub tree: Tree,
    /// A file that is not ours.
    pub foreign: Option<Vec<u8>>,
}

impl Visible {
    /// Looks at a root.
    pub fn of(fs: &FileSystem, layout: Layout) -> Self {
        Self::below(fs, "", layout)
    }

    /// Looks at a root that lies in a directory of the disk.
    pub fn below(fs: &FileSystem, root: &str, layout: Layout) -> Self {
        let root = Path::new(root);
        let path = match layout {
            Layout::Versioned => fs.read_symlink(root.join("current")),
            Layout::Exchange => fs.tree(root.join("current")).map(|_| "current".to_owned()),
            Layout::InPlace => Some(String::new()),
        };
        let mut tree = path.as_ref().and_then(|path| fs.tree(root.join(path))).unwrap_or_default();
        if layout == Layout::InPlace {
            tree.0.retain(|path, _| !path.starts_with(".cutover") && path != "FOREIGN");
        }
        Self { path, tree, foreign: fs.read_file(root.join("FOREIGN")) }
    }

    /// How it differs from `other`; empty when it does not.
    pub fn difference(&self, other: &Self) -> String {
        let mut lines = self.tree.difference(&other.tree);
        if self.path != other.path {
            lines += &format!("  current is {:?} instead of {:?}\n", self.path, other.path);
        }
        if self.foreign != other.foreign {
            lines += "  a foreign file changed\n";
        }
        lines
    }

    /// Paths that are as in none of `states`: torn, even for an in-place switch that is half done. Directories may be
    /// there already or still, and a path whose kind changes may be missing for a moment.
    pub fn torn(&self, states: &[&Self]) -> String {
        let paths: BTreeSet<&String> =
            states.iter().copied().chain([self]).flat_map(|state| state.tree.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| {
                let entry = self.tree.0.get(*path);
                let known = states.iter().any(|state| state.tree.0.get(*path) == entry);
                let changes_kind = states.iter().any(|state| {
                    state.tree.0.get(*path).is_some_and(|entry| entry.kind == TreeKind::Directory)
                });
                let between = entry.map_or(changes_kind, |entry| entry.kind == TreeKind::Directory);
                !known && !between
            })
            .map(|path| format!("  {path}: {:?} is neither old nor new\n", self.tree.0.get(path)))
            .collect()
    }

    /// How the files of a release differ from what lies there; empty when they do not. Shared paths belong to the
    /// operator.
    pub fn difference_from_release(&self, release: &Release, layout: Layout) -> String {
        let mut lines = String::new();
        let shared = &release.spec.shared;
        let mut expected: BTreeSet<&str> = BTreeSet::new();
        for file in release.spec.files.iter().filter(|file| !shared.contains(&file.path)) {
            expected.insert(file.path);
            match self.tree.0.get(file.path) {
                Some(entry)
                    if entry.mode == file.mode && entry.kind == TreeKind::File(file.bytes.clone().into()) => {
                }
                entry => lines += &format!("  {}: {entry:?} is not as released\n", file.path),
            }
        }
        for (path, target) in &release.spec.symlinks {
            expected.insert(path);
            let found = self.tree.0.get(*path);
            let same = |entry: &crate::TreeEntry| entry.kind == TreeKind::Symlink((*target).to_owned());
            if !found.is_some_and(same) {
                lines += &format!("  {path}: {found:?} is not the link to `{target}`\n");
            }
        }
        for (path, entry) in self.tree.0.iter().filter(|(_, entry)| entry.kind != TreeKind::Directory) {
            let ours = path == MARKER && layout != Layout::InPlace;
            if !expected.contains(path.as_str()) && !shared.contains(&path.as_str()) && !ours {
                lines += &format!("  {path}: {entry:?} is not part of the release\n");
            }
        }
        lines
    }
}

/// A path in a tree.
pub(crate) fn tree_path(tree: &str, path: &str) -> PathBuf {
    PathBuf::from(tree).join(path)
}

/// What should not be there once nothing is going on: temporary files, staged trees, trash.
pub fn leftovers(fs: &FileSystem) -> Vec<String> {
    leftovers_below(fs, "")
}

/// As [`leftovers`], of a root that lies in a directory of the disk.
pub(crate) fn leftovers_below(fs: &FileSystem, root: &str) -> Vec<String> {
    let Some(ours) = fs.tree(Path::new(root).join(".cutover")) else { return Vec::new() };
    let temporary = |path: &str| {
        let top = path.split('/').next().unwrap_or_default();
        (matches!(top, "staging" | "trash") && path != top) || path.ends_with(".tmp")
    };
    ours.0.keys().filter(|path| temporary(path)).cloned().collect()
}

/// Packs of the store that cannot be read, and objects in them whose content is not what the index says.
pub fn damaged_objects(fs: &FileSystem) -> Vec<String> {
    damaged_objects_below(fs, Path::new(""))
}

/// As [`damaged_objects`], of a root that lies in a directory of the disk.
pub(crate) fn damaged_objects_below(fs: &FileSystem, root: &Path) -> Vec<String> {
    let mut damaged = Vec::new();
    for (path, bytes) in packs(fs, root) {
        match index(&bytes) {
            Ok(index) => damaged.extend(
                index
                    .objects
                    .iter()
                    .filter(|object| !is_sound(object, &bytes))
                    .map(|object| format!("{path}: {}", object.sha256)),
            ),
            Err(error) => damaged.push(format!("{path}: {error}")),
        }
    }
    damaged
}

/// The objects of the store that some manifest or restore point names.
pub(crate) fn named_objects(fs: &FileSystem) -> BTreeSet<String> {
    let mut naming = String::new();
    for top in [".cutover/manifests", ".cutover/restore"] {
        for (path, entry) in fs.tree(top).unwrap_or_default().0 {
            if let TreeKind::File(bytes) = entry.kind
                && path.ends_with(".json")
            {
                naming += &String::from_utf8_lossy(&bytes);
            }
        }
    }
    packs(fs, Path::new(""))
        .iter()
        .filter_map(|(_, bytes)| index(bytes).ok())
        .flat_map(|index| index.objects)
        .map(|object| object.sha256.to_string())
        .filter(|digest| naming.contains(digest))
        .collect()
}

fn packs(fs: &FileSystem, root: &Path) -> Vec<(String, Arc<Vec<u8>>)> {
    let mut packs = Vec::new();
    for (path, entry) in fs.tree(root.join(".cutover/store")).unwrap_or_default().0 {
        if let TreeKind::File(bytes) = entry.kind {
            packs.push((path, bytes));
        }
    }
    packs
}

fn index(pack: &[u8]) -> Result<PackIndex, PackError> {
    PackIndex::read(pack.len() as u64, |buffer, at| {
        usize::try_from(at).ok().and_then(|at| pack.get(at..)).unwrap_or_default().read(buffer)
    })
}

fn is_sound(object: &ObjectEntry, pack: &[u8]) -> bool {
    let range =
        usize::try_from(object.offset).ok().zip(usize::try_from(object.offset + object.stored_size).ok());
    let stored = range.and_then(|(start, end)| pack.get(start..end));
    stored.is_some_and(|stored| decode_object(object, stored, &mut std::io::sink()).is_ok())
}

/// Files of `releases/` that share an inode with the store or a restore point: one damage would hit both (point-3).
pub fn shared_inodes(fs: &FileSystem) -> Vec<String> {
    shared_inodes_below(fs, Path::new(""))
}

/// As [`shared_inodes`], of a root that lies in a directory of the disk.
pub(crate) fn shared_inodes_below(fs: &FileSystem, root: &Path) -> Vec<String> {
    let inodes = |top: &str| fs.inodes_below(root.join(top));
    let store: BTreeSet<u64> = [".cutover/store", ".cutover/restore"]
        .iter()
        .flat_map(|top| inodes(top))
        .map(|(_, ino)| ino)
        .collect();
    let mut everything = inodes("");
    everything.retain(|(path, ino)| !path.starts_with(".cutover") && store.contains(ino));
    everything.into_iter().map(|(path, _)| path).collect()
}
