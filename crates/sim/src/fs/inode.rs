//! What the model knows of one inode: the cached and the durable state.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    ops::Range,
    sync::Arc,
};

/// Size of a page and of a disk block.
pub const BLOCK: usize = 4096;
pub(super) const ROOT: Ino = 1;

/// Number of an inode.
pub(crate) type Ino = u64;
/// A name in a directory.
pub(super) type Name = Arc<str>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) changed_ns: i128,
    pub(super) modified_ns: i128,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) attributes: Attributes,
    /// What the disk holds: the attributes at creation until the first sync.
    pub(super) durable_attributes: Attributes,
    pub(super) links: u64,
    pub(super) open: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Body {
    File(FileBody),
    Directory(DirectoryBody),
    Symlink(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileBody {
    /// What readers see.
    pub(super) cached: Arc<Vec<u8>>,
    /// What the disk holds; `None` until the first sync.
    pub(super) durable: Option<Arc<Vec<u8>>>,
    /// Bytes before this are clean: written back, or lost.
    pub(super) clean: usize,
    /// Clean ranges that never reached the disk, after a failed sync.
    pub(super) lost: Vec<Range<usize>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct DirectoryBody {
    pub(super) cached: BTreeMap<Name, Ino>,
    pub(super) durable: BTreeMap<Name, Ino>,
}

impl Inode {
    /// Whether a sync would change nothing.
    pub(super) fn is_written_back(&self) -> bool {
        self.attributes == self.durable_attributes
            && match &self.body {
                Body::File(file) => {
                    file.clean == file.cached.len()
                        && file.lost.is_empty()
                        && file.durable.as_ref().is_some_and(|durable| Arc::ptr_eq(durable, &file.cached))
                }
                Body::Directory(_) | Body::Symlink(_) => true,
            }
    }

    /// Whether readers see no difference.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let (a, b) = (&self.attributes, &other.attributes);
        (a.mode, a.uid, a.gid, &a.xattrs) == (b.mode, b.uid, b.gid, &b.xattrs)
            && match (&self.body, &other.body) {
                (Body::File(a), Body::File(b)) => a.cached == b.cached,
                (Body::Directory(a), Body::Directory(b)) => a.cached == b.cached,
                (Body::Symlink(a), Body::Symlink(b)) => a == b,
                (Body::File(_) | Body::Directory(_) | Body::Symlink(_), _) => false,
            }
    }
}

impl FileBody {
    /// What the disk holds once everything dirty was written back: what was lost stays zero.
    pub(super) fn written_back(&self) -> Arc<Vec<u8>> {
        if self.lost.is_empty() {
            return self.cached.clone();
        }
        let mut bytes = self.cached.to_vec();
        for lost in &self.lost {
            bytes[lost.clone()].fill(0);
        }
        Arc::new(bytes)
    }
}

impl Hash for FileBody {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hash_content(&self.cached, hasher);
        match &self.durable {
            Some(durable) if *durable == self.cached => 1.hash(hasher),
            Some(durable) => hash_content(durable, hasher),
            None => 0.hash(hasher),
        }
        (self.clean, &self.lost).hash(hasher);
    }
}

/// Hashes the content of a file: all of it, or of a large one, which only the journal's reserve is, every 16th block.
pub(crate) fn hash_content(bytes: &[u8], hasher: &mut impl Hasher) {
    if bytes.len() <= 16 * BLOCK {
        bytes.hash(hasher);
    } else {
        bytes.len().hash(hasher);
        bytes.chunks(BLOCK).step_by(16).for_each(|block| hasher.write(block));
    }
}

pub(super) fn new_file(cached: Arc<Vec<u8>>) -> Body {
    Body::File(FileBody { cached, durable: None, clean: 0, lost: Vec::new() })
}

pub(super) fn allocated(size: usize) -> u64 {
    size.div_ceil(BLOCK) as u64 * BLOCK as u64
}
