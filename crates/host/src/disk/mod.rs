//! The disk port: every file-system effect below one root, and nothing else.
//!
//! All durable writes of an update go through [`Disk`], so that the simulation can lose, tear and fail each of them. Paths
//! are relative to the root and are resolved beneath it without following symlinks (`openat2(2)`), so a directory that is
//! swapped for a link in mid-run leads nowhere. Order is the caller's: write, sync, rename, sync the directory.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use cutover_core::plan::Copies;

mod real;

pub use real::{RealDisk, begin_write_back};

/// A path relative to the root of a [`Disk`]; `""` is the root itself.
pub type RelPath = Path;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe: never ours.
    Other,
}

/// What is known about one path without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number; with `changed` and `size` it tells whether a file was touched since it was hashed.
    pub inode: u64,
    /// Hard links to the inode.
    pub links: u64,
    /// Time of the last change of content or attributes, in nanoseconds since the epoch.
    pub changed_ns: i128,
    /// Time of the last change of content, in nanoseconds since the epoch. Anybody may set it, so alone it tells nothing.
    pub modified_ns: i128,
    /// Blocks used, in bytes.
    pub allocated: u64,
}

/// Free space of the file system below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged writer may still use.
    pub free_bytes: u64,
    /// Inodes left; `None` where the file system has no such limit.
    pub free_inodes: Option<u64>,
}

/// How a file's content came to its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The two share extents until one is written.
    Reflink,
    /// The bytes were copied.
    Bytes,
}

/// A file being written. Nothing of it is durable before [`NewFile::sync`] returns success.
pub trait NewFile: Write + Send {
    /// Sets permission bits, whatever the umask.
    fn set_mode(&mut self, mode: u32) -> io::Result<()>;
    /// Makes content and attributes durable. After an error the file must be removed and written anew to a new inode:
    /// a second sync would report success for bytes that never reached the disk (I13).
    fn sync(&mut self) -> io::Result<()>;
}

/// An existing file opened for reading.
pub trait OpenFile: Read + Send + Sync {
    /// Reads some bytes at `offset`, wherever [`Read`] has got to; 0 means that the file ends there.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Its metadata, of the very file that is read.
    fn metadata(&self) -> io::Result<Metadata>;
}

/// The answer to an attempt to take a lock.
pub enum Locked {
    /// Ours until the guard is dropped or this process dies.
    Taken(Box<dyn Any + Send + Sync>),
    /// Somebody else's.
    Held {
        /// What the holder wrote about itself; empty when it has not yet.
        note: String,
    },
}

/// Every file-system effect below one root.
///
/// Errors are plain [`io::Error`]s; callers add what they attempted. Implementations: [`RealDisk`] and the
/// simulation's `FaultDisk`. All methods may be called from several threads.
pub trait Disk: Send + Sync {
    /// The absolute path of the root, for messages and for starting processes; never for opening files.
    fn root(&self) -> PathBuf;
    /// Opens a regular file.
    fn open(&self, path: &RelPath) -> io::Result<Box<dyn OpenFile + '_>>;
    /// Creates a file that must not exist.
    fn create(&self, path: &RelPath, mode: u32) -> io::Result<Box<dyn NewFile + '_>>;
    /// Opens a file for appending, creating it if needed. Each `write` appends at the end.
    fn append(&self, path: &RelPath, mode: u32) -> io::Result<Box<dyn NewFile + '_>>;
    /// Cuts a file to `size` bytes and makes that durable.
    fn truncate(&self, path: &RelPath, size: u64) -> io::Result<()>;
    /// Renames, replacing a file or symlink at `to`.
    fn rename(&self, from: &RelPath, to: &RelPath) -> io::Result<()>;
    /// Swaps two existing entries atomically.
    fn exchange(&self, a: &RelPath, b: &RelPath) -> io::Result<()>;
    /// Makes a second name for a file.
    fn hard_link(&self, from: &RelPath, to: &RelPath) -> io::Result<()>;
    /// Copies a file to a path that must not exist, sharing extents where the file system can.
    fn copy(&self, from: &RelPath, to: &RelPath, mode: u32) -> io::Result<Copied>;
    /// Copies a file only by sharing extents; `ErrorKind::Unsupported` where the file system cannot.
    fn reflink(&self, from: &RelPath, to: &RelPath, mode: u32) -> io::Result<()>;
    /// Creates a symbolic link at `link`.
    fn symlink(&self, target: &str, link: &RelPath) -> io::Result<()>;
    /// Reads a symbolic link.
    fn read_link(&self, path: &RelPath) -> io::Result<String>;
    /// Removes a file or symlink.
    fn remove_file(&self, path: &RelPath) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &RelPath) -> io::Result<()>;
    /// Creates a directory.
    fn create_dir(&self, path: &RelPath, mode: u32) -> io::Result<()>;
    /// Lists a directory, sorted by name; names that are not UTF-8 are an error naming them.
    fn list(&self, path: &RelPath) -> io::Result<Vec<(String, EntryKind)>>;
    /// As [`Disk::list`], whatever the names are: for what is taken apart or measured, and may not be ours.
    fn names(&self, path: &RelPath) -> io::Result<Vec<(OsString, EntryKind)>> {
        Ok(self.list(path)?.into_iter().map(|(name, kind)| (name.into(), kind)).collect())
    }
    /// Metadata of a path, not following a symlink at its end; `None` when nothing is there.
    fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>>;
    /// Extended attributes (ACLs included) by name.
    fn xattrs(&self, path: &RelPath) -> io::Result<BTreeMap<String, Vec<u8>>>;
    /// Sets the owner and replaces the extended attributes of a regular file; what it has already is not set again, so
    /// that an unprivileged process can keep what it owns. Attributes the kernel maintains itself (`security.*`,
    /// `trusted.*`) are set when given and never removed.
    fn set_ownership(
        &self,
        path: &RelPath,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()>;
    /// Sets permission bits.
    fn set_mode(&self, path: &RelPath, mode: u32) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &RelPath) -> io::Result<()>;
    /// Makes everything durable that was written below the root so far (`syncfs(2)`, which reports write-back errors
    /// since Linux 5.8).
    fn sync_all(&self) -> io::Result<()>;
    /// The time stamp that a file changed now gets, in nanoseconds since the epoch. Only ever compared with
    /// [`Metadata::changed_ns`].
    fn time_ns(&self) -> i128;
    /// Takes an exclusive lock on a file without waiting, creating it if needed. The file is never deleted; the lock
    /// ends with the guard or the process, and is not inherited by processes we start.
    fn lock(&self, path: &RelPath, note: &str) -> io::Result<Locked>;
    /// What a copy costs here; the same at any time.
    fn copies(&self) -> Copies {
        Copies::MayShare
    }
    /// Free space.
    fn space(&self) -> io::Result<Space>;
}
