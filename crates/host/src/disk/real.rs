//! The real disk: one directory handle, and every path resolved beneath it by the kernel.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::{CStr, OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cutover_core::plan::Copies;
use rustix::{
    fs::{
        AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid,
        XattrFlags,
    },
    io::Errno,
};

use super::{Copied, Disk, EntryKind, Locked, Metadata, NewFile, OpenFile, RelPath, Space};

/// The one directory that may lie on another file system: shared data often has a volume of its own. Nothing is ever
/// renamed into or out of it.
const MOUNTABLE: &str = "shared";

/// How often an `openat2(2)` that raced with a rename is tried again.
const RACES_MAX: u32 = 32;

/// A directory on this machine.
///
/// The root's own path is the operator's and may contain symlinks; it is opened once. From then on every path is
/// resolved by `openat2(2)` beneath that handle, so nothing that happens to the directories above or below it can lead
/// an access elsewhere.
#[derive(Debug)]
pub struct RealDisk {
    root: OwnedFd,
    path: PathBuf,
    /// Cleared once the file system said that it cannot share extents.
    reflinks: AtomicBool,
    copies: Copies,
}

/// File systems that never share the content of two files, by their numbers in statfs(2): ext2 to ext4, tmpfs, ramfs, F2FS. The
/// others may, or it depends on how they were made.
const NEVER_SHARE: [u32; 4] = [0xEF53, 0x0102_1994, 0x8584_58F6, 0xF2F5_2010];

/// What copies cost on a file system of this kind.
fn copies_on(kind: impl TryInto<i64>) -> Copies {
    // Some machines have the number signed and with 32 bits.
    let kind = kind.try_into().unwrap_or(0) & i64::from(u32::MAX);
    if NEVER_SHARE.iter().any(|known| i64::from(*known) == kind) {
        Copies::TakeRoom
    } else {
        Copies::MayShare
    }
}

impl RealDisk {
    /// Opens the directory at `path`, which must exist.
    ///
    /// # Errors
    /// Whatever opening it reports; `NotADirectory` when it is something else.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())?;
        let copies = copies_on(rustix::fs::fstatfs(&root)?.f_type);
        Ok(Self { root, path, reflinks: AtomicBool::new(true), copies })
    }

    fn open_at(&self, path: &RelPath, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if !path.starts_with(MOUNTABLE) {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { lexically_beneath(path)? };
        let mut races = 0;
        loop {
            match rustix::fs::openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::from_raw_mode(mode),
                resolve,
            ) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if races < RACES_MAX => races += 1,
                Err(Errno::LOOP) => return Err(other("a symbolic link lies on the way; none is followed")),
                Err(Errno::XDEV) => return Err(other("another file system is mounted on the way")),
                result => return Ok(result?),
            }
        }
    }

    /// The handle of the directory that holds `path`, and the name of `path` in it.
    fn parent<'p>(&self, path: &'p RelPath) -> io::Result<(OwnedFd, &'p Path)> {
        let name = lexically_beneath(path)?.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY, 0)?, Path::new(name)))
    }

    /// Renames to a name that nothing may have; `AlreadyExists` when something does.
    ///
    /// # Errors
    /// Whatever `renameat2(2)` reports.
    pub(crate) fn rename_to_free(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let ((from_parent, from), (to_parent, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat_with(&from_parent, from, &to_parent, to, RenameFlags::NOREPLACE)?)
    }

    /// The entries of a directory, sorted, each name as `named` makes it.
    fn entries<N: Ord>(
        &self,
        path: &RelPath,
        named: impl Fn(&CStr) -> io::Result<N>,
    ) -> io::Result<Vec<(N, EntryKind)>> {
        let directory = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if entry.file_name() == c"." || entry.file_name() == c".." {
                continue;
            }
            let name = named(entry.file_name())?;
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            entries.push((name, kind_of(kind)));
        }
        entries.sort();
        Ok(entries)
    }

    fn open_regular(&self, path: &RelPath) -> io::Result<File> {
        let file = self.open_at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(File::from(file)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        }
    }

    fn create_file(&self, path: &RelPath, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = self.open_at(path, flags, mode)?;
        // Once more, because the umask had its say.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(File::from(file))
    }

    fn try_reflink(&self, from: &File, to: &File) -> io::Result<()> {
        let unsupported =
            || io::Error::new(io::ErrorKind::Unsupported, "the file system cannot share extents");
        if !self.reflinks.load(Ordering::Relaxed) {
            return Err(unsupported());
        }
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                self.reflinks.store(false, Ordering::Relaxed);
                Err(unsupported())
            }
            Err(Errno::XDEV | Errno::INVAL) => Err(unsupported()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what was created when filling it failed, so that a retry finds the place free.
    fn created<T>(&self, path: &RelPath, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            // The first error is the one worth reporting.
            let _ = self.remove_file(path);
        }
        result
    }
}

/// Refuses absolute paths and `.` or `..` components before the kernel sees them: `openat2` alone would accept
/// `a/../b`.
fn lexically_beneath(path: &Path) -> io::Result<&Path> {
    let normal = path.components().all(|component| matches!(component, Component::Normal(_)));
    if normal && !path.as_os_str().is_empty() {
        Ok(path)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not stay below the root"))
    }
}

fn other(message: &'static str) -> io::Error {
    io::Error::other(message)
}

#[allow(clippy::useless_conversion, reason = "the number of links has 32 bits on some machines")]
fn metadata_of(stat: &Stat) -> Metadata {
    Metadata {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        inode: stat.st_ino,
        links: u64::from(stat.st_nlink),
        changed_ns: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
        modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
    }
}

fn kind_of(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::Other,
    }
}

/// Copies bytes inside the kernel where it can, through a buffer where it cannot.
fn copy_bytes(from: &File, to: &mut File) -> io::Result<()> {
    const IN_ONE_CALL: usize = 1 << 30;
    loop {
        match rustix::fs::copy_file_range(from, None, &*to, None, IN_ONE_CALL) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    // Both files stand where the kernel stopped.
    io::copy(&mut &*from, to).map(drop)
}

/// The names of a file's extended attributes; none where the file system has no such thing.
fn xattr_names(file: &File) -> io::Result<Vec<String>> {
    let mut buffer = Vec::new();
    loop {
        let size = match rustix::fs::flistxattr_query(file) {
            Ok(size) => size,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        if size == 0 {
            return Ok(Vec::new());
        }
        buffer.resize(size, 0);
        match rustix::fs::flistxattr(file, &mut buffer[..]) {
            Ok(size) => {
                buffer.truncate(size);
                break;
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let name = |bytes: &[u8]| {
        String::from_utf8(bytes.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "an attribute's name is not UTF-8"))
    };
    buffer.split(|byte| *byte == 0).filter(|bytes| !bytes.is_empty()).map(name).collect()
}

/// The value of one extended attribute; `None` when it went away meanwhile.
fn xattr_value(file: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    loop {
        let size = match rustix::fs::fgetxattr_query(file, name) {
            Ok(size) => size,
            Err(Errno::NODATA) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut value = vec![0; size];
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(size) => {
                value.truncate(size);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn xattrs_of(file: &File) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut attributes = BTreeMap::new();
    for name in xattr_names(file)? {
        if let Some(value) = xattr_value(file, &name)? {
            attributes.insert(name, value);
        }
    }
    Ok(attributes)
}

struct RealNewFile {
    file: File,
    /// Bytes written here since write-back was last begun.
    behind: usize,
}

/// From how many bytes on the kernel is asked to begin writing them back, so that the disk works while we decode and
/// hash what comes next, and the flush at the end finds little to do.
const WRITE_BACK_BYTES: usize = 8 << 20;

impl RealNewFile {
    fn new(file: File) -> Self {
        Self { file, behind: 0 }
    }
}

/// Begins writing back what is dirty in a file and does not wait. A hint: what comes of it is reported by the flush.
#[allow(unsafe_code)]
pub fn begin_write_back(file: &File) {
    // SAFETY: a system call on a descriptor that is open for as long as `file` is borrowed; it touches no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

impl Write for RealNewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.behind += written;
        if self.behind >= WRITE_BACK_BYTES {
            self.behind = 0;
            begin_write_back(&self.file);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewFile for RealNewFile {
    fn set_mode(&mut self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))?)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.file)?)
    }
}

struct RealOpenFile(File);

impl io::Read for RealOpenFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl OpenFile for RealOpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buffer, offset)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Ok(metadata_of(&rustix::fs::fstat(&self.0)?))
    }
}

impl Disk for RealDisk {
    fn root(&self) -> PathBuf {
        self.path.clone()
    }

    fn open(&self, path: &RelPath) -> io::Result<Box<dyn OpenFile + '_>> {
        Ok(Box::new(RealOpenFile(self.open_regular(path)?)))
    }

    fn create(&self, path: &RelPath, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        Ok(Box::new(RealNewFile::new(self.create_file(path, mode)?)))
    }

    fn append(&self, path: &RelPath, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW;
        Ok(Box::new(RealNewFile::new(File::from(self.open_at(path, flags, mode)?))))
    }

    fn truncate(&self, path: &RelPath, size: u64) -> io::Result<()> {
        let file = self.open_at(path, OFlags::WRONLY | OFlags::NOFOLLOW, 0)?;
        rustix::fs::ftruncate(&file, size)?;
        Ok(rustix::fs::fsync(&file)?)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let ((from_parent, from), (to_parent, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(&from_parent, from, &to_parent, to)?)
    }

    fn exchange(&self, a: &RelPath, b: &RelPath) -> io::Result<()> {
        let ((a_parent, a), (b_parent, b)) = (self.parent(a)?, self.parent(b)?);
        Ok(rustix::fs::renameat_with(&a_parent, a, &b_parent, b, RenameFlags::EXCHANGE)?)
    }

    fn hard_link(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let ((from_parent, from), (to_parent, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::linkat(&from_parent, from, &to_parent, to, AtFlags::empty())?)
    }

    fn copy(&self, from: &RelPath, to: &RelPath, mode: u32) -> io::Result<Copied> {
        let source = self.open_regular(from)?;
        let mut target = self.create_file(to, mode)?;
        let result = match self.try_reflink(&source, &target) {
            Ok(()) => Ok(Copied::Reflink),
            // Whatever keeps it from being shared, such as content that ZFS has not written yet (`EAGAIN`): what is wrong
            // with the disk fails the copy too.
            Err(_) => copy_bytes(&source, &mut target).map(|()| Copied::Bytes),
        };
        self.created(to, result)
    }

    fn reflink(&self, from: &RelPath, to: &RelPath, mode: u32) -> io::Result<()> {
        if !self.reflinks.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let source = self.open_regular(from)?;
        let target = self.create_file(to, mode)?;
        let result = self.try_reflink(&source, &target);
        self.created(to, result)
    }

    fn symlink(&self, target: &str, link: &RelPath) -> io::Result<()> {
        let (parent, name) = self.parent(link)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    fn read_link(&self, path: &RelPath) -> io::Result<String> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::readlinkat(&parent, name, Vec::new())?
            .into_string()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the link's target is not UTF-8"))
    }

    fn remove_file(&self, path: &RelPath) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &RelPath) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    fn create_dir(&self, path: &RelPath, mode: u32) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode))?;
        self.set_mode(path, mode)
    }

    fn list(&self, path: &RelPath) -> io::Result<Vec<(String, EntryKind)>> {
        self.entries(path, utf8_name)
    }

    fn names(&self, path: &RelPath) -> io::Result<Vec<(OsString, EntryKind)>> {
        self.entries(path, |name| Ok(OsStr::from_bytes(name.to_bytes()).to_owned()))
    }

    fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        if path.as_os_str().is_empty() {
            return Ok(Some(metadata_of(&rustix::fs::fstat(&self.root)?)));
        }
        let nothing = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        };
        let (parent, name) = match self.parent(path) {
            Err(error) if nothing(&error) => return Ok(None),
            parent => parent?,
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(metadata_of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn xattrs(&self, path: &RelPath) -> io::Result<BTreeMap<String, Vec<u8>>> {
        xattrs_of(&self.open_regular(path)?)
    }

    fn set_ownership(
        &self,
        path: &RelPath,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        let file = self.open_regular(path)?;
        let stat = rustix::fs::fstat(&file)?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            // Changing the owner clears the set-id bits.
            rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        }
        let present = xattrs_of(&file)?;
        for name in present.keys().filter(|name| !xattrs.contains_key(*name)) {
            if !name.starts_with("security.") && !name.starts_with("trusted.") {
                rustix::fs::fremovexattr(&file, name.as_str())?;
            }
        }
        for (name, value) in xattrs.iter().filter(|(name, value)| present.get(*name) != Some(value)) {
            rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn set_mode(&self, path: &RelPath, mode: u32) -> io::Result<()> {
        let handle = self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP.into());
        }
        // A handle without read permission can only be changed through its name in /proc.
        let name = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
        Ok(rustix::fs::chmod(name, Mode::from_raw_mode(mode))?)
    }

    fn sync_dir(&self, path: &RelPath) -> io::Result<()> {
        let directory = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        Ok(rustix::fs::fsync(&directory)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn time_ns(&self) -> i128 {
        // The clock file systems take their time stamps from.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
    }

    fn lock(&self, path: &RelPath, note: &str) -> io::Result<Locked> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
        let mut file = File::from(self.open_at(path, flags, 0o600)?);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    let mut note = String::new();
                    io::Read::by_ref(&mut file).take(256).read_to_string(&mut note)?;
                    return Ok(Locked::Held { note: note.trim_end().to_owned() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The note only serves messages: a full disk must not keep anybody from recovering.
        if file.set_len(0).and_then(|()| file.write_all_at(note.as_bytes(), 0)).is_err() {
            tracing::debug!("the lock's note could not be written");
        }
        let guard: Box<dyn Any + Send + Sync> = Box::new(file);
        Ok(Locked::Taken(guard))
    }

    fn copies(&self) -> Copies {
        self.copies
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }
}

fn utf8_name(name: &CStr) -> io::Result<String> {
    name.to_str().map(str::to_owned).map_err(|_| {
        let shown = name.to_bytes().escape_ascii();
        io::Error::new(io::ErrorKind::InvalidData, format!("the name `{shown}` is not UTF-8"))
    })
}
