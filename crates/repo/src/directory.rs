//! A directory and what lies below it, call by call ([`Files`]), and the real one: through one handle, so that no path leaves it
//! and no link is followed.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::storage::Locked;

/// What a repository in a directory needs of a file system. Paths are relative to the directory, with `/` between components.
/// Nothing is durable before it is flushed.
pub trait Files {
    /// Opens a file for reading; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>>;

    /// The size of a file in bytes; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn size(&self, path: &str) -> io::Result<Option<u64>>;

    /// Makes a directory and those above it, as far as they are missing.
    ///
    /// # Errors
    /// One cannot be made.
    fn make(&self, path: &str) -> io::Result<()>;

    /// Makes a new, empty file, replacing none.
    ///
    /// # Errors
    /// It cannot be made.
    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile + '_>>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// It cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; whether there was one.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&self, path: &str) -> io::Result<bool>;

    /// Removes a directory if it is empty; whether it is gone.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove_if_empty(&self, path: &str) -> io::Result<bool>;

    /// Flushes a directory: the names in it are durable.
    ///
    /// # Errors
    /// It cannot be flushed.
    fn sync(&self, path: &str) -> io::Result<()>;

    /// Flushes the whole file system: contents and names.
    ///
    /// # Errors
    /// It cannot be flushed.
    fn sync_all(&self) -> io::Result<()>;

    /// The names in a directory with whether each is a directory, sorted; none when there is no such directory.
    ///
    /// # Errors
    /// It cannot be listed.
    fn list(&self, path: &str) -> io::Result<Vec<(String, bool)>>;

    /// Locks a file that is never removed; `None` when another process holds it. The lock ends with what is returned, also
    /// when the process dies.
    ///
    /// # Errors
    /// The lock cannot be asked for.
    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn Locked>>>;
}

/// A file being written.
pub trait NewFile: Write {
    /// Flushes its content.
    ///
    /// # Errors
    /// It cannot be flushed.
    fn sync(&mut self) -> io::Result<()>;
}

impl NewFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Writes a file whole or not at all: aside, flushed, renamed, its directory flushed.
pub(crate) fn replace(files: &dyn Files, path: &str, bytes: &[u8]) -> io::Result<()> {
    let (directory, name) = split(path);
    let aside = join(directory, &format!(".{name}.new"));
    // Left by a run that was killed; its content was never believed.
    files.remove(&aside)?;
    let mut file = files.create(&aside)?;
    file.write_all(bytes)?;
    file.sync()?;
    drop(file);
    files.rename(&aside, path)?;
    files.sync(directory)
}

/// A directory of this machine that is open.
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

    /// As [`Directory::open`], making the last component when it is not there. Its name is durable in either case: a process
    /// that was killed may have made it and not come to the flush.
    pub(crate) fn open_or_make(path: &Path) -> io::Result<Self> {
        let made = match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => false,
            made => made.map(|()| true)?,
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        match Self::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync("")) {
            // What this process may not even read, it did not make anything in.
            Err(error) if !made && error.kind() == io::ErrorKind::PermissionDenied => {}
            flushed => flushed?,
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

    fn open_file(&self, path: &str) -> io::Result<Option<File>> {
        match self.openat(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Files for Directory {
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>> {
        Ok(self.open_file(path)?.map(|file| Box::new(file) as Box<dyn Read>))
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
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

    fn make(&self, path: &str) -> io::Result<()> {
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

    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile + '_>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(Box::new(File::from(self.openat(path, flags, Mode::from_raw_mode(0o644))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_parent, from_name), (to_parent, to_name)) = (self.parent(from)?, self.parent(to)?);
        Ok(fs::renameat(&from_parent, from_name, &to_parent, to_name)?)
    }

    fn remove(&self, path: &str) -> io::Result<bool> {
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

    fn remove_if_empty(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        match fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self, path: &str) -> io::Result<()> {
        Ok(fs::fsync(self.openat(path, DIRECTORY, Mode::empty())?)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(fs::syncfs(&self.0)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<(String, bool)>> {
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

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn Locked>>> {
        let file = self.openat(path, OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o644))?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
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
