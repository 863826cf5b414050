//! Whether two file systems are the same, for whoever reboots or for whoever reads.

use std::{
    hash::{Hash, Hasher},
    path::Path,
    sync::Arc,
};

use super::file_system::FileSystem;

impl FileSystem {
    /// Whether both hold the same, cached and durable, inode by inode. What the next new inode is called and what the
    /// next time stamp is may differ: no program can tell.
    pub fn is_same(&self, other: &Self) -> bool {
        self.options == other.options && self.inodes == other.inodes && self.pending == other.pending
    }

    /// Whether readers see the same in both, but for the file at `path`.
    pub(crate) fn looks_the_same_but_for(&self, path: &str, other: &Self) -> bool {
        let left_out = self.find(Path::new(path)).ok();
        self.inodes.len() == other.inodes.len()
            && self.inodes.iter().zip(&other.inodes).all(|((ino, inode), (other_ino, other))| {
                ino == other_ino
                    && (Arc::ptr_eq(inode, other) || Some(*ino) == left_out || inode.looks_like(other))
            })
    }
}

/// Of what [`FileSystem::is_same`] compares.
impl Hash for FileSystem {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.options, &self.inodes, &self.pending).hash(hasher);
    }
}
