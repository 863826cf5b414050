//! The durable effects of the ingest side on its directory: making, renaming, removing, in an order that survives a power
//! cut. Nothing else in this crate renames or removes a file.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Opens a directory that the operator names.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, DIRECTORY, Mode::empty())?)
}

/// The directory a file lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts `new` in the place of `path`, durable when it returns.
pub(crate) fn replace(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    sync_directory(parent(path))
}

/// Flushes the names in a directory.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    Ok(fs::fsync(open_directory(path)?)?)
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a new file the owner of the directory it lies in, where this process may: a command run by root must not lock the
/// service's own user out.
pub(crate) fn keep_owner(file: &File, path: &Path) -> io::Result<()> {
    let directory = fs::stat(parent(path))?;
    let own = fs::fstat(file)?;
    if (own.st_uid, own.st_gid) == (directory.st_uid, directory.st_gid)
        || !rustix::process::geteuid().is_root()
    {
        return Ok(());
    }
    let (user, group) = (fs::Uid::from_raw(directory.st_uid), fs::Gid::from_raw(directory.st_gid));
    Ok(fs::fchown(file.as_fd(), Some(user), Some(group))?)
}

/// Makes a directory and those above it, and flushes the names of those that are new. Each is flushed before the next is made,
/// so of those that are there only the innermost may be what a killed process left without a flush: its name is flushed, too.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    if path.is_dir() {
        return match sync_directory(parent(path)) {
            // What this process may not even read, it did not make anything in.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            flushed => flushed,
        };
    }
    make_directories(parent(path))?;
    match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => sync_directory(parent(path)),
        Err(error) => Err(error.into()),
    }
}

/// Takes the lock of a file that is never removed; `None` when another process has it.
pub(crate) fn lock_file(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory in another one; a link is none.
pub(crate) fn open_directory_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    Ok(fs::openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Makes a directory in another one unless it is there.
pub(crate) fn make_directory_at(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a new file, replacing none but what a killed process left under this name.
pub(crate) fn create_at(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let create = || fs::openat(directory, name, flags, Mode::from_raw_mode(0o644));
    match create() {
        Err(Errno::EXIST) => {
            remove_at(directory, name)?;
            Ok(File::from(create()?))
        }
        file => Ok(File::from(file?)),
    }
}

/// Opens a file for reading; a link is none.
pub(crate) fn open_file_at(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(fs::openat(directory, name, flags, Mode::empty())?))
}

/// Opens a stored episode for reading it once from its first byte to its last; what is no regular file is none.
pub(crate) fn open_episode(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    // Only advice: a file system without it reads all the same.
    let _ = fs::fadvise(&file, 0, None, fs::Advice::Sequential);
    Ok(file)
}

/// Whether there is a regular file of this name.
pub(crate) fn is_file_at(directory: &OwnedFd, name: &str) -> io::Result<bool> {
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file another name in its directory; `false` when that name is taken. Not durable yet.
pub(crate) fn rename_new_at(directory: &OwnedFd, old: &str, new: &str) -> io::Result<bool> {
    match fs::renameat_with(directory, old, directory, new, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // A file system that knows no such flag: a link is made only under a name that is free.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match fs::linkat(directory, old, directory, new, AtFlags::empty()) {
                Ok(()) => remove_at(directory, old).map(|()| true),
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a file in a directory if it is there.
pub(crate) fn remove_at(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
