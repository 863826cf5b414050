//! The file system as a whole: its inodes, the changes that are not durable yet, time and space.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use super::inode::{Attributes, BLOCK, Body, DirectoryBody, FileBody, Ino, Inode, Name, ROOT, allocated};

/// A whole file system, cached and durable state. Cloning it is cheap, because clones share the inodes that neither
/// changed since; a clone is an image to boot from.
#[derive(Clone, Debug)]
pub struct FileSystem {
    pub(super) options: Options,
    pub(super) inodes: BTreeMap<Ino, Arc<Inode>>,
    pub(super) pending: Vec<Arc<Pending>>,
    pub(super) next_ino: Ino,
    pub(super) next_pending: u64,
    pub(super) clock: u64,
}

/// A change of names that is not durable yet. Atomic: it happens whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) number: u64,
    /// What each name means afterwards.
    pub(super) sets: Vec<(Ino, Name, Option<Ino>)>,
    /// Earlier changes without which this one cannot be on disk.
    pub(super) after: Vec<u64>,
}

/// Whether files can share extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reflinks {
    /// As on btrfs and XFS.
    Supported,
    /// As on ext4.
    Unsupported,
}

/// What kind of file system it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Whether files can share extents.
    pub reflinks: Reflinks,
    /// Bytes it can hold, in whole blocks; `None` for no limit.
    pub capacity_bytes: Option<u64>,
    /// Inodes it can hold; `None` for no limit.
    pub capacity_inodes: Option<u64>,
    /// How many changes share one time stamp: 1 tells all apart, a real kernel has thousands within one tick.
    pub changes_per_tick: u64,
}

impl Default for Options {
    /// Unlimited, without reflinks, exact time stamps.
    fn default() -> Self {
        Self {
            reflinks: Reflinks::Unsupported,
            capacity_bytes: None,
            capacity_inodes: None,
            changes_per_tick: 1,
        }
    }
}

impl FileSystem {
    /// Makes an empty file system.
    pub fn new(options: Options) -> Self {
        let attributes = Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            changed_ns: 0,
            modified_ns: 0,
        };
        let root = Inode {
            body: Body::Directory(DirectoryBody::default()),
            durable_attributes: attributes.clone(),
            attributes,
            links: 1,
            open: 0,
        };
        Self {
            options,
            inodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            pending: Vec::new(),
            next_ino: ROOT + 1,
            next_pending: 0,
            clock: 0,
        }
    }

    /// The same content on another kind of file system.
    pub fn with_options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// What kind of file system it is.
    pub fn options(&self) -> Options {
        self.options
    }

    pub(super) fn now_ns(&mut self) -> i128 {
        self.clock += 1;
        self.time_ns()
    }

    /// The time stamp of the last change, which the next one may share.
    pub fn time_ns(&self) -> i128 {
        1_700_000_000_000_000_000 + i128::from(self.clock / self.options.changes_per_tick.max(1)) * 4_000_000
    }

    pub(super) fn inode(&self, ino: Ino) -> &Inode {
        self.inodes.get(&ino).expect("names lead to inodes that exist")
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&ino).expect("names lead to inodes that exist"))
    }

    pub(super) fn directory(&self, ino: Ino) -> io::Result<&DirectoryBody> {
        match &self.inode(ino).body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(errno(libc::ENOTDIR)),
            Body::Symlink(_) => Err(link_on_the_way()),
        }
    }

    pub(super) fn directory_mut(&mut self, ino: Ino) -> &mut DirectoryBody {
        match &mut self.inode_mut(ino).body {
            Body::Directory(directory) => directory,
            Body::File(_) | Body::Symlink(_) => unreachable!("only directories hold names"),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> &mut FileBody {
        match &mut self.inode_mut(ino).body {
            Body::File(file) => file,
            Body::Directory(_) | Body::Symlink(_) => unreachable!("only files are opened"),
        }
    }

    pub(super) fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.inode(ino).body, Body::Directory(_))
    }

    pub(super) fn bytes(&self, ino: Ino) -> &[u8] {
        match &self.inode(ino).body {
            Body::File(file) => &file.cached,
            Body::Directory(_) | Body::Symlink(_) => &[],
        }
    }

    pub(super) fn touch(&mut self, ino: Ino) {
        let now = self.now_ns();
        self.inode_mut(ino).attributes.changed_ns = now;
    }

    /// The content of a file changed.
    pub(super) fn touch_content(&mut self, ino: Ino) {
        self.touch(ino);
        let attributes = &mut self.inode_mut(ino).attributes;
        attributes.modified_ns = attributes.changed_ns;
    }

    pub(super) fn add_inode(&mut self, body: Body, mode: u32) -> io::Result<Ino> {
        if self.free_inodes().is_some_and(|free| free == 0) {
            return Err(errno(libc::ENOSPC));
        }
        let now = self.now_ns();
        let attributes = Attributes {
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            changed_ns: now,
            modified_ns: now,
        };
        let ino = self.next_ino;
        self.next_ino += 1;
        let inode = Inode { body, durable_attributes: attributes.clone(), attributes, links: 1, open: 0 };
        self.inodes.insert(ino, Arc::new(inode));
        Ok(ino)
    }

    pub(super) fn in_use(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.values().map(Arc::as_ref).filter(|inode| inode.links > 0 || inode.open > 0)
    }

    pub(super) fn free_inodes(&self) -> Option<u64> {
        self.options.capacity_inodes.map(|capacity| capacity.saturating_sub(self.used_inodes()))
    }

    /// Inodes in use.
    pub fn used_inodes(&self) -> u64 {
        self.in_use().count() as u64
    }

    /// Bytes in use, in whole blocks; shared extents count once.
    pub fn used_bytes(&self) -> u64 {
        let mut counted = BTreeSet::new();
        self.in_use()
            .map(|inode| match &inode.body {
                Body::File(file) if counted.insert(Arc::as_ptr(&file.cached)) => allocated(file.cached.len()),
                Body::File(_) | Body::Symlink(_) => 0,
                Body::Directory(_) => BLOCK as u64,
            })
            .sum()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.options
            .capacity_bytes
            .map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(self.used_bytes()))
    }
}

pub(crate) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// What the real disk makes of `ELOOP`.
pub(super) fn link_on_the_way() -> io::Error {
    io::Error::other("a symbolic link lies on the way; none is followed")
}
