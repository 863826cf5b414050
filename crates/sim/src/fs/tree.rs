//! Whole trees as values, to lay down before a test and to compare after it.

use std::{collections::BTreeMap, fmt, io, path::Path, sync::Arc};

use super::{
    file_system::FileSystem,
    inode::{Body, Ino},
};

/// What lies below a directory, by path relative to it. Two trees are equal when names, bytes, modes, owners and
/// extended attributes are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<String, TreeEntry>);

/// One path of a [`Tree`].
#[derive(Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// What it is.
    pub kind: TreeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What a [`TreeEntry`] is.
#[derive(Clone, PartialEq, Eq)]
pub enum TreeKind {
    /// A file and its bytes.
    File(Arc<Vec<u8>>),
    /// A directory.
    Directory,
    /// A link and its target.
    Symlink(String),
}

impl FileSystem {
    /// The tree below `path`, or `None` when there is no directory.
    pub fn tree(&self, path: impl AsRef<Path>) -> Option<Tree> {
        let mut tree = Tree::default();
        let directory = self.find(path.as_ref()).ok()?;
        self.directory(directory).ok()?;
        self.collect(directory, "", &mut tree);
        Some(tree)
    }

    fn collect(&self, directory: Ino, prefix: &str, tree: &mut Tree) {
        for (name, ino) in self.directory(directory).iter().flat_map(|directory| &directory.cached) {
            let path = format!("{prefix}{name}");
            let inode = self.inode(*ino);
            let kind = match &inode.body {
                Body::File(file) => TreeKind::File(file.cached.clone()),
                Body::Symlink(target) => TreeKind::Symlink(target.to_string()),
                Body::Directory(_) => {
                    self.collect(*ino, &format!("{path}/"), tree);
                    TreeKind::Directory
                }
            };
            let attributes = inode.attributes.clone();
            let (mode, uid, gid, xattrs) =
                (attributes.mode, attributes.uid, attributes.gid, attributes.xattrs);
            tree.0.insert(path, TreeEntry { kind, mode, uid, gid, xattrs });
        }
    }

    /// The bytes of a file, as readers see them.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let ino = self.find(path.as_ref()).ok()?;
        match &self.inode(ino).body {
            Body::File(file) => Some(file.cached.to_vec()),
            Body::Directory(_) | Body::Symlink(_) => None,
        }
    }

    /// The target of a symbolic link.
    pub fn read_symlink(&self, path: impl AsRef<Path>) -> Option<String> {
        self.read_link(path.as_ref()).ok()
    }

    /// Every file below `path` and its inode number.
    pub fn inodes_below(&self, path: impl AsRef<Path>) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        if let Ok(directory) = self.find(path.as_ref()) {
            self.collect_inodes(directory, "", &mut found);
        }
        found
    }

    fn collect_inodes(&self, directory: Ino, prefix: &str, found: &mut Vec<(String, u64)>) {
        for (name, ino) in self.directory(directory).iter().flat_map(|directory| &directory.cached) {
            let path = format!("{prefix}{name}");
            match &self.inode(*ino).body {
                Body::File(_) => found.push((path, *ino)),
                Body::Directory(_) => self.collect_inodes(*ino, &format!("{path}/"), found),
                Body::Symlink(_) => {}
            }
        }
    }

    /// Removes a file durably.
    ///
    /// # Errors
    /// It is not there, or not a file.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        self.remove_file(path.as_ref())?;
        self.sync_all();
        Ok(())
    }

    /// Writes a file durably, with the directories above it: for what was there before the story begins. A file that
    /// exists is overwritten in place, same inode, as a careless administrator or a failing disk would.
    ///
    /// # Errors
    /// The path cannot be made.
    pub fn put(&mut self, path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        let mut above: Vec<&Path> =
            path.ancestors().skip(1).filter(|above| above.parent().is_some()).collect();
        above.reverse();
        for directory in above {
            if self.metadata(directory)?.is_none() {
                self.create_dir(directory, 0o755)?;
            }
        }
        let ino = self.append(path, mode)?;
        self.close(ino);
        self.truncate(path, 0).map(drop)?;
        self.write(ino, bytes)?;
        self.set_mode_of(ino, mode);
        self.sync_all();
        Ok(())
    }
}

impl fmt::Debug for TreeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TreeKind::File(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).escape_debug().to_string();
                write!(f, "file {:04o} {}:{} {} bytes `{text}`", self.mode, self.uid, self.gid, bytes.len())
            }
            TreeKind::Directory => write!(f, "directory {:04o} {}:{}", self.mode, self.uid, self.gid),
            TreeKind::Symlink(target) => write!(f, "link to `{target}`"),
        }?;
        if self.xattrs.is_empty() { Ok(()) } else { write!(f, " {:?}", self.xattrs) }
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(path, entry)| writeln!(f, "  {path}: {entry:?}"))
    }
}

impl Tree {
    /// The lines in which two trees differ, for messages; empty when they are equal.
    pub fn difference(&self, other: &Self) -> String {
        let paths: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| {
                let side =
                    |tree: &Self| tree.0.get(path).map_or("nothing".to_owned(), |entry| format!("{entry:?}"));
                format!("  {path}: {} instead of {}\n", side(self), side(other))
            })
            .collect()
    }
}
