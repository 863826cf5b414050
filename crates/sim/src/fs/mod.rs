//! A file system in memory that knows what is on disk and what is merely in the page cache.
//!
//! Owns the model: inodes, names, and for each of them the cached and the durable state. It injects no faults and
//! counts no calls; [`crate::FaultDisk`] does. The model is as unkind as Linux file systems may be, and no unkinder:
//!
//! * Bytes and attributes of a file are durable after its sync, its name is not. Unsynced bytes survive per 4 KiB block,
//!   torn, as zeros, or not at all.
//! * Names are durable after the sync of their directory. Unsynced name changes survive in any subset, except that
//!   changes of one name keep their order, a rename is atomic within one directory and for directories, and a file that
//!   moves between directories may be found under both names but never under none.
//! * A failed sync leaves its pages clean and lost: the next one succeeds without writing them (I13).
//!
//! Read [`FileSystem`] first, then [`FileSystem::after_power_cut`].

mod power_cut;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    io,
    ops::Range,
    path::{Component, Path},
    sync::Arc,
};

use cutover_host::disk::{EntryKind, Metadata, Space};

pub use tree::{Tree, TreeEntry, TreeKind};

/// Size of a page and of a disk block.
pub const BLOCK: usize = 4096;
/// Longest name of one directory entry (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// Number of an inode.
pub(crate) type Ino = u64;
/// A name in a directory.
type Name = Arc<str>;

const ROOT: Ino = 1;

pub(crate) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    changed_ns: i128,
    modified_ns: i128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileBody {
    /// What readers see.
    cached: Arc<Vec<u8>>,
    /// What the disk holds; `None` until the first sync.
    durable: Option<Arc<Vec<u8>>>,
    /// Bytes before this are clean: written back, or lost.
    clean: usize,
    /// Clean ranges that never reached the disk, after a failed sync.
    lost: Vec<Range<usize>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct DirectoryBody {
    cached: BTreeMap<Name, Ino>,
    durable: BTreeMap<Name, Ino>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Body {
    File(FileBody),
    Directory(DirectoryBody),
    Symlink(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Inode {
    body: Body,
    attributes: Attributes,
    /// What the disk holds: the attributes at creation until the first sync.
    durable_attributes: Attributes,
    links: u64,
    open: u64,
}

/// A change of names that is not durable yet. Atomic: it happens whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    number: u64,
    /// What each name means afterwards.
    sets: Vec<(Ino, Name, Option<Ino>)>,
    /// Earlier changes without which this one cannot be on disk.
    after: Vec<u64>,
}

/// A whole file system, cached and durable state. Cloning it is cheap, because clones share the inodes that neither
/// changed since; a clone is an image to boot from.
#[derive(Clone, Debug)]
pub struct FileSystem {
    options: Options,
    inodes: BTreeMap<Ino, Arc<Inode>>,
    pending: Vec<Arc<Pending>>,
    next_ino: Ino,
    next_pending: u64,
    clock: u64,
}

enum Place {
    Root,
    In { directory: Ino, name: Name },
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

    fn now_ns(&mut self) -> i128 {
        self.clock += 1;
        self.time_ns()
    }

    /// The time stamp of the last change, which the next one may share.
    pub fn time_ns(&self) -> i128 {
        1_700_000_000_000_000_000 + i128::from(self.clock / self.options.changes_per_tick.max(1)) * 4_000_000
    }

    fn inode(&self, ino: Ino) -> &Inode {
        self.inodes.get(&ino).expect("names lead to inodes that exist")
    }

    fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&ino).expect("names lead to inodes that exist"))
    }

    fn directory(&self, ino: Ino) -> io::Result<&DirectoryBody> {
        match &self.inode(ino).body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(errno(libc::ENOTDIR)),
            Body::Symlink(_) => Err(link_on_the_way()),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> &mut DirectoryBody {
        match &mut self.inode_mut(ino).body {
            Body::Directory(directory) => directory,
            Body::File(_) | Body::Symlink(_) => unreachable!("only directories hold names"),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> &mut FileBody {
        match &mut self.inode_mut(ino).body {
            Body::File(file) => file,
            Body::Directory(_) | Body::Symlink(_) => unreachable!("only files are opened"),
        }
    }

    // Names -----------------------------------------------------------------------------------------------------

    fn place(&self, path: &Path) -> io::Result<Place> {
        let mut place = Place::Root;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name.to_str().ok_or_else(|| errno(libc::EILSEQ))?,
                Component::CurDir | Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            };
            let directory = self.at(&place)?;
            self.directory(directory)?;
            place = Place::In { directory, name: name.into() };
        }
        Ok(place)
    }

    fn at(&self, place: &Place) -> io::Result<Ino> {
        self.look(place)?.ok_or_else(|| errno(libc::ENOENT))
    }

    fn look(&self, place: &Place) -> io::Result<Option<Ino>> {
        match place {
            Place::Root => Ok(Some(ROOT)),
            Place::In { directory, name } => self.named(*directory, name),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Ino> {
        self.at(&self.place(path)?)
    }

    /// The directory and name of a path other than the root.
    fn entry(&self, path: &Path) -> io::Result<(Ino, Name)> {
        match self.place(path)? {
            Place::Root => Err(io::ErrorKind::InvalidInput.into()),
            Place::In { directory, name } => {
                self.directory(directory)?;
                Ok((directory, name))
            }
        }
    }

    fn named(&self, directory: Ino, name: &Name) -> io::Result<Option<Ino>> {
        let directory = self.directory(directory)?;
        if name.len() > NAME_MAX {
            return Err(errno(libc::ENAMETOOLONG));
        }
        Ok(directory.cached.get(name).copied())
    }

    fn existing(&self, entry: &(Ino, Name)) -> io::Result<Ino> {
        self.named(entry.0, &entry.1)?.ok_or_else(|| errno(libc::ENOENT))
    }

    fn vacant(&self, entry: (Ino, Name)) -> io::Result<(Ino, Name)> {
        if self.named(entry.0, &entry.1)?.is_some() { Err(errno(libc::EEXIST)) } else { Ok(entry) }
    }

    /// Changes names in the cache and remembers that the disk does not know yet.
    fn set_names(&mut self, sets: Vec<(Ino, Name, Option<Ino>)>, also_after: &[u64]) -> u64 {
        let now = self.now_ns();
        let mut after: Vec<u64> = self
            .pending
            .iter()
            .filter(|pending| {
                pending.sets.iter().any(|(directory, name, _)| {
                    sets.iter().any(|(other, same, _)| directory == other && name == same)
                })
            })
            .map(|pending| pending.number)
            .collect();
        after.extend_from_slice(also_after);
        for (directory, name, ino) in &sets {
            let names = &mut self.directory_mut(*directory).cached;
            match ino {
                Some(ino) => names.insert(name.clone(), *ino),
                None => names.remove(name),
            };
            self.inode_mut(*directory).attributes.changed_ns = now;
        }
        let number = self.next_pending;
        self.next_pending += 1;
        self.pending.push(Arc::new(Pending { number, sets, after }));
        number
    }

    /// Pending changes that make `directory` and those above it visible at all.
    fn changes_above(&self, directory: Ino) -> Vec<u64> {
        let mut wanted = BTreeSet::from([directory]);
        let mut found = Vec::new();
        for pending in self.pending.iter().rev() {
            if pending.sets.iter().any(|(_, _, ino)| ino.is_some_and(|ino| wanted.contains(&ino))) {
                found.push(pending.number);
                wanted.extend(pending.sets.iter().map(|(directory, _, _)| *directory));
            }
        }
        found
    }

    fn changes_within(&self, directory: Ino) -> Vec<u64> {
        let within = |pending: &&Arc<Pending>| pending.sets.iter().any(|(ino, _, _)| *ino == directory);
        self.pending.iter().filter(within).map(|pending| pending.number).collect()
    }

    fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.inode(ino).body, Body::Directory(_))
    }

    /// Whether `inner` is `outer` or lies below it.
    fn is_within(&self, outer: Ino, inner: Ino) -> bool {
        inner == outer
            || match &self.inode(outer).body {
                Body::Directory(directory) => directory
                    .cached
                    .values()
                    .any(|child| self.is_directory(*child) && self.is_within(*child, inner)),
                Body::File(_) | Body::Symlink(_) => false,
            }
    }

    fn touch(&mut self, ino: Ino) {
        let now = self.now_ns();
        self.inode_mut(ino).attributes.changed_ns = now;
    }

    /// The content of a file changed.
    fn touch_content(&mut self, ino: Ino) {
        self.touch(ino);
        let attributes = &mut self.inode_mut(ino).attributes;
        attributes.modified_ns = attributes.changed_ns;
    }

    fn drop_link(&mut self, ino: Ino) {
        self.touch(ino);
        self.inode_mut(ino).links -= 1;
    }

    // Inodes ----------------------------------------------------------------------------------------------------

    fn add_inode(&mut self, body: Body, mode: u32) -> io::Result<Ino> {
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

    fn in_use(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.values().map(Arc::as_ref).filter(|inode| inode.links > 0 || inode.open > 0)
    }

    fn free_inodes(&self) -> Option<u64> {
        self.options.capacity_inodes.map(|capacity| capacity.saturating_sub(self.in_use().count() as u64))
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

    fn free_bytes(&self) -> u64 {
        self.options
            .capacity_bytes
            .map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(self.used_bytes()))
    }

    // Operations, as the disk port has them -----------------------------------------------------------------------

    pub(crate) fn open(&mut self, path: &Path) -> io::Result<Ino> {
        let ino = self.regular(path)?;
        self.inode_mut(ino).open += 1;
        Ok(ino)
    }

    pub(crate) fn close(&mut self, ino: Ino) {
        self.inode_mut(ino).open -= 1;
    }

    pub(crate) fn read(&self, ino: Ino, offset: usize, buffer: &mut [u8]) -> usize {
        let bytes = self.bytes(ino);
        let rest = bytes.get(offset..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        count
    }

    fn bytes(&self, ino: Ino) -> &[u8] {
        match &self.inode(ino).body {
            Body::File(file) => &file.cached,
            Body::Directory(_) | Body::Symlink(_) => &[],
        }
    }

    /// Opens for writing: unlike reading, that is refused for a directory.
    fn open_to_write(&mut self, path: &Path) -> io::Result<Ino> {
        if self.is_directory(self.find(path)?) {
            return Err(errno(libc::EISDIR));
        }
        self.open(path)
    }

    pub(crate) fn create(&mut self, path: &Path, mode: u32) -> io::Result<Ino> {
        if path.as_os_str().is_empty() {
            return Err(errno(libc::EEXIST));
        }
        let (directory, name) = self.vacant(self.entry(path)?)?;
        let ino = self.add_inode(new_file(Arc::default()), mode)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        self.inode_mut(ino).open += 1;
        Ok(ino)
    }

    pub(crate) fn append(&mut self, path: &Path, mode: u32) -> io::Result<Ino> {
        match self.look(&self.place(path)?)? {
            Some(_) => self.open_to_write(path),
            None => self.create(path, mode),
        }
    }

    /// Opens a file to lock it.
    pub(crate) fn open_lock(&mut self, path: &Path) -> io::Result<Ino> {
        self.append(path, 0o600)
    }

    /// Replaces what a lock file says. Nothing depends on it, so it never fails and never is durable.
    pub(crate) fn write_note(&mut self, ino: Ino, note: &str) {
        let file = self.file_mut(ino);
        file.cached = Arc::new(note.as_bytes().to_vec());
        (file.clean, file.durable) = (0, None);
        file.lost.clear();
    }

    pub(crate) fn note(&self, ino: Ino) -> String {
        String::from_utf8_lossy(self.bytes(ino)).into_owned()
    }

    /// Appends as much of `bytes` as there is space for.
    pub(crate) fn write(&mut self, ino: Ino, bytes: &[u8]) -> io::Result<usize> {
        let size = self.bytes(ino).len();
        let slack = (BLOCK - size % BLOCK) % BLOCK;
        let room = (self.free_bytes() / BLOCK as u64 * BLOCK as u64).saturating_add(slack as u64);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(errno(libc::ENOSPC));
        }
        Arc::make_mut(&mut self.file_mut(ino).cached).extend_from_slice(&bytes[..count]);
        self.touch_content(ino);
        Ok(count)
    }

    pub(crate) fn set_mode_of(&mut self, ino: Ino, mode: u32) {
        self.touch(ino);
        self.inode_mut(ino).attributes.mode = mode & 0o7777;
    }

    /// Writes back bytes and attributes.
    pub(crate) fn sync(&mut self, ino: Ino) {
        if self.inode(ino).is_written_back() {
            return;
        }
        let inode = self.inode_mut(ino);
        inode.durable_attributes = inode.attributes.clone();
        if let Body::File(file) = &mut inode.body {
            file.durable = Some(file.written_back());
            file.clean = file.cached.len();
        }
    }

    /// A sync that failed: the pages are clean now, and lost.
    pub(crate) fn lose(&mut self, ino: Ino) {
        if let Body::File(file) = &mut self.inode_mut(ino).body {
            if file.clean < file.cached.len() {
                file.lost.push(file.clean..file.cached.len());
            }
            file.clean = file.cached.len();
        }
    }

    pub(crate) fn lose_all(&mut self) {
        let all: Vec<Ino> = self.inodes.keys().copied().collect();
        all.into_iter().for_each(|ino| self.lose(ino));
    }

    /// Cuts or lengthens a file in the cache; the caller syncs it.
    pub(crate) fn truncate(&mut self, path: &Path, size: u64) -> io::Result<Ino> {
        let ino = self.open_to_write(path)?;
        self.close(ino);
        let size = usize::try_from(size).map_err(|_| errno(libc::EFBIG))?;
        let file = self.file_mut(ino);
        Arc::make_mut(&mut file.cached).resize(size, 0);
        file.clean = file.clean.min(size);
        for lost in &mut file.lost {
            lost.end = lost.end.min(size);
        }
        file.lost.retain(|lost| !lost.is_empty());
        self.touch_content(ino);
        Ok(ino)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        let ino = self.existing(&from)?;
        let replaced = self.named(to.0, &to.1)?;
        let ((from_directory, from_name), (to_directory, to_name)) = (from, to);
        let moves_directory = self.is_directory(ino);
        if moves_directory && self.is_within(ino, to_directory) {
            return Err(errno(libc::EINVAL));
        }
        if replaced == Some(ino) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            self.check_replaceable(moves_directory, replaced, from_directory)?;
            self.drop_link(replaced);
        }
        self.touch(ino);
        let insertion = (to_directory, to_name, Some(ino));
        let removal = (from_directory, from_name, None);
        let mut visible = self.changes_above(to_directory);
        if from_directory == to_directory {
            self.set_names(vec![removal, insertion], &[]);
        } else if moves_directory {
            self.set_names(vec![insertion, removal], &visible);
        } else {
            visible.push(self.set_names(vec![insertion], &[]));
            self.set_names(vec![removal], &visible);
        }
        Ok(())
    }

    fn check_replaceable(&self, moves_directory: bool, replaced: Ino, from_directory: Ino) -> io::Result<()> {
        match (&self.inode(replaced).body, moves_directory) {
            (Body::Directory(_), _) if self.is_within(replaced, from_directory) => {
                Err(errno(libc::ENOTEMPTY))
            }
            (Body::Directory(_), false) => Err(errno(libc::EISDIR)),
            (Body::Directory(directory), true) if !directory.cached.is_empty() => Err(errno(libc::ENOTEMPTY)),
            (Body::File(_) | Body::Symlink(_), true) => Err(errno(libc::ENOTDIR)),
            (Body::Directory(_), true) | (Body::File(_) | Body::Symlink(_), false) => Ok(()),
        }
    }

    pub(crate) fn exchange(&mut self, a: &Path, b: &Path) -> io::Result<()> {
        let (a, b) = (self.entry(a)?, self.entry(b)?);
        let (a_ino, b_ino) = (self.existing(&a)?, self.existing(&b)?);
        let ((a_directory, a_name), (b_directory, b_name)) = (a, b);
        let inside =
            |outer: Ino, directory: Ino| self.is_directory(outer) && self.is_within(outer, directory);
        if inside(a_ino, b_directory) || inside(b_ino, a_directory) {
            return Err(errno(libc::EINVAL));
        }
        if a_ino == b_ino {
            return Ok(());
        }
        self.touch(a_ino);
        self.touch(b_ino);
        let mut visible = self.changes_above(a_directory);
        visible.extend(self.changes_above(b_directory));
        self.set_names(
            vec![(a_directory, a_name, Some(b_ino)), (b_directory, b_name, Some(a_ino))],
            &visible,
        );
        Ok(())
    }

    pub(crate) fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        let ino = self.existing(&from)?;
        let (directory, name) = self.vacant(to)?;
        if self.is_directory(ino) {
            return Err(errno(libc::EPERM));
        }
        self.touch(ino);
        self.inode_mut(ino).links += 1;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    /// Copies the first `limit` bytes; the target is removed again when the space ends.
    pub(crate) fn copy(&mut self, from: &Path, to: &Path, mode: u32, limit: usize) -> io::Result<()> {
        let source = self.open(from)?;
        self.close(source);
        let bytes = Arc::new(self.bytes(source)[..limit.min(self.bytes(source).len())].to_vec());
        let target = self.create(to, mode)?;
        self.close(target);
        match self.write(target, &bytes) {
            Ok(count) if count == bytes.len() => Ok(()),
            result => {
                self.remove_file(to)?;
                Err(result.err().unwrap_or_else(|| errno(libc::ENOSPC)))
            }
        }
    }

    pub(crate) fn reflink(&mut self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        let source = self.open(from)?;
        self.close(source);
        match self.options.reflinks {
            Reflinks::Unsupported => Err(io::ErrorKind::Unsupported.into()),
            Reflinks::Supported => {
                let target = self.create(to, mode)?;
                self.close(target);
                let shared = self.file_mut(source).cached.clone();
                self.file_mut(target).cached = shared;
                Ok(())
            }
        }
    }

    pub(crate) fn symlink(&mut self, target: &str, link: &Path) -> io::Result<()> {
        let entry = self.entry(link)?;
        if target.is_empty() {
            return Err(errno(libc::ENOENT));
        }
        let (directory, name) = self.vacant(entry)?;
        let ino = self.add_inode(Body::Symlink(target.into()), 0o777)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    pub(crate) fn read_link(&self, path: &Path) -> io::Result<String> {
        match &self.inode(self.existing(&self.entry(path)?)?).body {
            Body::Symlink(target) => Ok(target.to_string()),
            Body::File(_) | Body::Directory(_) => Err(errno(libc::EINVAL)),
        }
    }

    pub(crate) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let entry = self.entry(path)?;
        let ino = self.existing(&entry)?;
        if self.is_directory(ino) {
            return Err(errno(libc::EISDIR));
        }
        self.drop_link(ino);
        self.set_names(vec![(entry.0, entry.1, None)], &[]);
        Ok(())
    }

    pub(crate) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let entry = self.entry(path)?;
        let ino = self.existing(&entry)?;
        match &self.inode(ino).body {
            Body::Directory(body) if body.cached.is_empty() => {}
            Body::Directory(_) => return Err(errno(libc::ENOTEMPTY)),
            Body::File(_) | Body::Symlink(_) => return Err(errno(libc::ENOTDIR)),
        }
        let emptied = self.changes_within(ino);
        self.drop_link(ino);
        self.set_names(vec![(entry.0, entry.1, None)], &emptied);
        Ok(())
    }

    pub(crate) fn create_dir(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let (directory, name) = self.vacant(self.entry(path)?)?;
        if self.free_bytes() < BLOCK as u64 {
            return Err(errno(libc::ENOSPC));
        }
        let ino = self.add_inode(Body::Directory(DirectoryBody::default()), mode)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<(String, EntryKind)>> {
        let directory = self.directory(self.find(path)?)?;
        Ok(directory.cached.iter().map(|(name, ino)| (name.to_string(), self.kind(*ino))).collect())
    }

    fn kind(&self, ino: Ino) -> EntryKind {
        match self.inode(ino).body {
            Body::File(_) => EntryKind::File,
            Body::Directory(_) => EntryKind::Directory,
            Body::Symlink(_) => EntryKind::Symlink,
        }
    }

    pub(crate) fn metadata(&self, path: &Path) -> io::Result<Option<Metadata>> {
        let place = match self.place(path) {
            Err(error) if is_absence(&error) => return Ok(None),
            place => place?,
        };
        match self.look(&place) {
            Err(error) if is_absence(&error) => Ok(None),
            found => Ok(found?.map(|ino| self.metadata_of(ino))),
        }
    }

    pub(crate) fn metadata_of(&self, ino: Ino) -> Metadata {
        let inode = self.inode(ino);
        let (size, used) = match &inode.body {
            Body::File(file) => (file.cached.len() as u64, allocated(file.cached.len())),
            Body::Directory(_) => (BLOCK as u64, BLOCK as u64),
            Body::Symlink(target) => (target.len() as u64, 0),
        };
        Metadata {
            kind: self.kind(ino),
            size,
            mode: inode.attributes.mode,
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            inode: ino,
            links: inode.links,
            changed_ns: inode.attributes.changed_ns,
            modified_ns: inode.attributes.modified_ns,
            allocated: used,
        }
    }

    fn regular(&self, path: &Path) -> io::Result<Ino> {
        let ino = self.find(path)?;
        match self.inode(ino).body {
            Body::File(_) => Ok(ino),
            Body::Directory(_) => Err(io::ErrorKind::InvalidInput.into()),
            Body::Symlink(_) => Err(link_on_the_way()),
        }
    }

    pub(crate) fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        Ok(self.inode(self.regular(path)?).attributes.xattrs.clone())
    }

    pub(crate) fn set_ownership(
        &mut self,
        path: &Path,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        let ino = self.regular(path)?;
        self.touch(ino);
        let attributes = &mut self.inode_mut(ino).attributes;
        (attributes.uid, attributes.gid) = (uid, gid);
        attributes.xattrs.retain(|name, _| name.starts_with("security.") || name.starts_with("trusted."));
        attributes.xattrs.extend(xattrs.clone());
        Ok(())
    }

    pub(crate) fn set_mode(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let ino = self.find(path)?;
        if let Body::Symlink(_) = self.inode(ino).body {
            return Err(errno(libc::ELOOP));
        }
        self.set_mode_of(ino, mode);
        Ok(())
    }

    pub(crate) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let ino = self.find(path)?;
        self.directory(ino)?;
        let within = self.changes_within(ino);
        self.persist(&within);
        self.sync(ino);
        Ok(())
    }

    pub(crate) fn sync_all(&mut self) {
        let all: Vec<u64> = self.pending.iter().map(|pending| pending.number).collect();
        self.persist(&all);
        let inodes: Vec<Ino> = self.inodes.keys().copied().collect();
        inodes.into_iter().for_each(|ino| self.sync(ino));
    }

    pub(crate) fn space(&self) -> Space {
        Space { free_bytes: self.free_bytes(), free_inodes: self.free_inodes() }
    }

    /// Makes pending changes durable, and those they depend on.
    fn persist(&mut self, numbers: &[u64]) {
        let mut chosen: BTreeSet<u64> = numbers.iter().copied().collect();
        for pending in self.pending.iter().rev() {
            if chosen.contains(&pending.number) {
                chosen.extend(&pending.after);
            }
        }
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| chosen.contains(&pending.number));
        self.pending = later;
        for (directory, name, ino) in now.iter().flat_map(|pending| &pending.sets) {
            let names = &mut self.directory_mut(*directory).durable;
            match ino {
                Some(ino) => names.insert(name.clone(), *ino),
                None => names.remove(name),
            };
        }
    }

    /// Forgets inodes that neither the cache nor the disk can reach.
    fn forget_unreachable(&mut self) {
        let mut reachable = BTreeSet::new();
        let mut waiting = vec![ROOT];
        waiting.extend(
            self.pending
                .iter()
                .flat_map(|pending| &pending.sets)
                .flat_map(|(directory, _, ino)| std::iter::once(*directory).chain(*ino)),
        );
        while let Some(ino) = waiting.pop() {
            if reachable.insert(ino)
                && let Body::Directory(directory) = &self.inode(ino).body
            {
                waiting.extend(directory.cached.values().chain(directory.durable.values()));
            }
        }
        self.inodes.retain(|ino, _| reachable.contains(ino));
    }

    /// What a killed process leaves behind: everything, the page cache included.
    pub fn after_kill(&self) -> Self {
        let mut survivor = self.clone();
        for inode in survivor.inodes.values_mut().filter(|inode| inode.open > 0) {
            Arc::make_mut(inode).open = 0;
        }
        survivor.forget_unreachable();
        survivor
    }

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

/// Hashes the content of a file: all of it, or of a large one, which only the journal's reserve is, every 16th block.
pub(crate) fn hash_content(bytes: &[u8], hasher: &mut impl Hasher) {
    if bytes.len() <= 16 * BLOCK {
        bytes.hash(hasher);
    } else {
        bytes.len().hash(hasher);
        bytes.chunks(BLOCK).step_by(16).for_each(|block| hasher.write(block));
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

/// Of what [`FileSystem::is_same`] compares.
impl Hash for FileSystem {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.options, &self.inodes, &self.pending).hash(hasher);
    }
}

impl Inode {
    /// Whether a sync would change nothing.
    fn is_written_back(&self) -> bool {
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
    fn looks_like(&self, other: &Self) -> bool {
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
    fn written_back(&self) -> Arc<Vec<u8>> {
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

/// What the real disk makes of `ELOOP`.
fn link_on_the_way() -> io::Error {
    io::Error::other("a symbolic link lies on the way; none is followed")
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn new_file(cached: Arc<Vec<u8>>) -> Body {
    Body::File(FileBody { cached, durable: None, clean: 0, lost: Vec::new() })
}

fn allocated(size: usize) -> u64 {
    size.div_ceil(BLOCK) as u64 * BLOCK as u64
}
