//! Snapshots of directory trees: every path with its kind, mode and content, and how two of them differ.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::program;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory and its permission bits.
    Directory { mode: u32 },
    /// A file, its permission bits, size and SHA-256.
    File { mode: u32, size: u64, sha256: [u8; 32] },
    /// A symbolic link and where it points.
    Link { target: PathBuf },
    /// A device, socket or pipe.
    Other,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Directory { mode } => write!(f, "directory {mode:04o}"),
            Entry::File { mode, size, sha256 } => {
                write!(f, "file {mode:04o} {size} bytes ")?;
                sha256[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Entry::Link { target } => write!(f, "link to {}", target.display()),
            Entry::Other => f.write_str("neither file nor directory nor link"),
        }
    }
}

/// Every entry below a directory, by relative path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The entries.
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
}

impl Snapshot {
    /// Reads the tree below `root` (which may be a link to it), leaving out what is at or below the names `except`.
    /// A root that does not exist is an empty tree.
    pub(crate) fn of(root: &Path, except: &[&str]) -> Result<Self> {
        let mut snapshot = Snapshot::default();
        let Ok(start) = root.canonicalize() else { return Ok(snapshot) };
        let walk = walkdir::WalkDir::new(&start).min_depth(1).into_iter();
        let wanted = walk.filter_entry(|entry| {
            entry.depth() != 1 || !except.iter().any(|name| entry.file_name() == *name)
        });
        for entry in wanted {
            let entry = entry?;
            let path = entry.path().strip_prefix(&start).context("a path outside the tree")?;
            snapshot.entries.insert(path.to_owned(), read(entry.path())?);
        }
        Ok(snapshot)
    }

    /// Bytes in all files.
    pub(crate) fn bytes(&self) -> u64 {
        let sizes = self.entries.values().map(|entry| match entry {
            Entry::File { size, .. } => *size,
            Entry::Directory { .. } | Entry::Link { .. } | Entry::Other => 0,
        });
        sizes.sum()
    }

    /// How many files there are.
    pub(crate) fn files(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry, Entry::File { .. })).count()
    }

    /// How `self` differs from `wanted`, one line for each path; empty when it does not.
    pub(crate) fn differences(&self, wanted: &Snapshot) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, entry) in &wanted.entries {
            match self.entries.get(path) {
                None => lines.push(format!("{} is missing", path.display())),
                Some(present) if present != entry => {
                    lines.push(format!("{} is {present}, not {entry}", path.display()));
                }
                Some(_) => {}
            }
        }
        let extra = self.entries.keys().filter(|path| !wanted.entries.contains_key(*path));
        lines.extend(extra.map(|path| format!("{} is extra", path.display())));
        lines
    }
}

fn read(path: &Path) -> Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    Ok(if metadata.is_dir() {
        Entry::Directory { mode }
    } else if metadata.is_symlink() {
        Entry::Link { target: fs::read_link(path)? }
    } else if metadata.is_file() {
        Entry::File { mode, size: metadata.len(), sha256: hash(path)? }
    } else {
        Entry::Other
    })
}

/// The SHA-256 of a file.
pub(crate) fn hash(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..read]);
    }
}

/// Copies a tree as it is: modes, owners, times, links, hard links.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=never"]).arg(from).arg(to);
    program::succeed(command).map(drop)
}

/// Removes a tree, if there is one, whatever its modes.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let mut command = Command::new("rm");
    command.arg("-rf").arg(path);
    program::succeed(command).map(drop)
}

/// Bytes allocated below `root`, each inode once, as `du` counts.
pub(crate) fn allocated(root: &Path) -> Result<u64> {
    let mut inodes = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let metadata = entry?.metadata()?;
        inodes.insert((metadata.dev(), metadata.ino()), metadata.blocks() * 512);
    }
    Ok(inodes.values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_modes_links_and_extra_entries_are_differences() {
        let held = tempfile::tempdir().unwrap();
        let (a, b) = (held.path().join("a"), held.path().join("b"));
        fs::create_dir_all(a.join("d")).unwrap();
        fs::write(a.join("d/f"), "one").unwrap();
        std::os::unix::fs::symlink("d/f", a.join("l")).unwrap();
        copy(&a, &b).unwrap();
        let taken = |path: &Path| Snapshot::of(path, &[]).unwrap();
        assert_eq!(taken(&b).differences(&taken(&a)), Vec::<String>::new());

        fs::set_permissions(b.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(taken(&b).differences(&taken(&a)).len(), 1);
        fs::remove_file(b.join("l")).unwrap();
        fs::write(b.join("new"), "").unwrap();
        assert_eq!(taken(&b).differences(&taken(&a)).len(), 3);
    }

    #[test]
    fn a_missing_root_is_an_empty_tree_and_exceptions_are_left_out() {
        let held = tempfile::tempdir().unwrap();
        assert_eq!(Snapshot::of(&held.path().join("none"), &[]).unwrap(), Snapshot::default());
        fs::create_dir(held.path().join(".cutover")).unwrap();
        fs::write(held.path().join(".cutover/x"), "").unwrap();
        assert_eq!(Snapshot::of(held.path(), &[".cutover"]).unwrap(), Snapshot::default());
    }
}
