//! A directory and what lies below it, through one handle: no path leaves it, no link is followed, and what is said to be
//! written is durable.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// A directory that is open. Paths are relative to it, with `/` between components.
#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl Directory {
    /// Opens a directory that the operator names; links on the way to it are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// As [`Directory::open`], making the last component when it is not there.
    pub(crate) fn open_or_make(path: &Path) -> io::Result<Self> {
        match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                Self::open(parent.unwrap_or(Path::new(".")))?.sync("")?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Self::open(path)
    }

    /// Uses a handle of a directory.
    pub(crate) fn from_handle(handle: OwnedFd) -> Self {
        Self(handle)
    }

    fn openat(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, BENEATH)
    }

    /// The directory of a path and its last component.
    fn parent<'p>(&self, path: &'p str) -> rustix::io::Result<(OwnedFd, &'p str)> {
        let (directory, name) = split(path);
        Ok((self.openat(directory, DIRECTORY, Mode::empty())?, name))
    }

    /// Opens a file for reading; `None` when there is none.
    pub(crate) fn open_file(&self, path: &str) -> io::Result<Option<File>> {
        match self.openat(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a file whole; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or has more than `bytes_max` bytes.
    pub(crate) fn read(&self, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        match crate::fetch::read_bounded(file, bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The size of a file; `None` when there is none.
    pub(crate) fn size(&self, path: &str) -> io::Result<Option<u64>> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::NOENT) => return Ok(None),
            found => found?,
        };
        match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(u64::try_from(stat.st_size).unwrap_or_default())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory and those above it, as far as they are missing. Not durable before [`Directory::sync_all`].
    pub(crate) fn make(&self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.openat(path, DIRECTORY, Mode::empty()).is_ok() {
            return Ok(());
        }
        self.make(split(path).0)?;
        let (parent, name) = self.parent(path)?;
        match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a new, empty file, replacing none.
    pub(crate) fn create(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.openat(path, flags, Mode::from_raw_mode(0o644))?))
    }

    /// Gives a file another name, replacing what had it. Not durable before the directory is flushed.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_parent, from_name), (to_parent, to_name)) = (self.parent(from)?, self.parent(to)?);
        Ok(fs::renameat(&from_parent, from_name, &to_parent, to_name)?)
    }

    /// Removes a file; whether there was one.
    pub(crate) fn remove(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::NOENT) => return Ok(false),
            found => found?,
        };
        match fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory if it is empty; whether it is gone.
    pub(crate) fn remove_if_empty(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        match fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a file whole or not at all: aside, flushed, renamed, its directory flushed.
    pub(crate) fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let (directory, name) = split(path);
        let aside = join(directory, &format!(".{name}.new"));
        // Left by a run that was killed; its content was never believed.
        self.remove(&aside)?;
        let mut file = self.create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.rename(&aside, path)?;
        self.sync(directory)
    }

    /// Flushes a directory: the names in it are durable.
    pub(crate) fn sync(&self, path: &str) -> io::Result<()> {
        Ok(fs::fsync(self.openat(path, DIRECTORY, Mode::empty())?)?)
    }

    /// Flushes the whole file system: contents and names.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        Ok(fs::syncfs(&self.0)?)
    }

    /// The names in a directory with whether each is a directory, sorted; none when there is no such directory.
    pub(crate) fn list(&self, path: &str) -> io::Result<Vec<(String, bool)>> {
        let directory = match self.openat(path, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            found => found?,
        };
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let Some(name) = name.to_str().filter(|name| !matches!(*name, "." | "..")) else { continue };
            let stat = fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Directory;
            names.push((name.to_owned(), is_directory));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Locks a file that is never removed; `None` when another process holds it. The lock ends with the handle, also when
    /// the process dies.
    pub(crate) fn lock(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let file = self.openat(path, OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o644))?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The directory of a path, empty for none, and its last component.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}
