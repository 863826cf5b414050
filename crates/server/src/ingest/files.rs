//! The durable effects of the ingest side on its directory: making, renaming, removing, in an order that survives a power
//! cut. Nothing else in this crate renames or removes a file.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, Mode, OFlags},
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
