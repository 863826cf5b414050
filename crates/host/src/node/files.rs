//! The few durable operations everything else is made of, each in the one order that survives a power cut.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use cutover_core::{
    causes::chain,
    model::{Digest, Hasher, Manifest, RestorePoint},
};
use serde::de::DeserializeOwned;

use super::place;
use crate::{
    disk::{Disk, EntryKind, Metadata, OpenFile},
    nice::Nice,
};

/// The largest file of ours that is read into memory.
const READ_MAX: u64 = 256 << 20;

/// How often a directory is emptied in which somebody still makes files.
const EMPTYING_MAX: u32 = 3;

/// From how many bytes on a file is parsed as it is read.
const LARGE: u64 = 1 << 20;

/// An effect on the file system that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} `{}`", path.display())]
pub struct FsError {
    /// What was attempted.
    pub what: &'static str,
    /// On which path, relative to the root.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Adds to an I/O error what was attempted, and on what.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, FsError>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, FsError> {
        self.map_err(|source| FsError { what, path: path.as_ref().to_owned(), source })
    }
}

/// A root directory with the operations the engine needs.
pub(crate) struct Files {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) threads: NonZeroUsize,
    nice: Nice,
    discarded: AtomicU64,
    /// What was parsed before, by the digest of its bytes; the bytes are hashed every time.
    pub(crate) manifests: Parsed<Manifest>,
    pub(crate) points: Parsed<RestorePoint>,
}

/// Values by the digest of the bytes they were parsed from, for as long as somebody holds them. One takes megabytes, and a root
/// has many.
pub(crate) struct Parsed<T> {
    keep: Keep,
    known: Mutex<Known<T>>,
}

/// Which value is held although nobody else does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The last one that was asked for: several steps ask for the manifest of the release they lead to.
    Last,
    None,
}

struct Known<T> {
    values: BTreeMap<Digest, Weak<T>>,
    last: Option<Arc<T>>,
}

impl<T> Known<T> {
    fn hold(&mut self, value: &Arc<T>, keep: Keep) {
        self.last = (keep == Keep::Last).then(|| Arc::clone(value));
    }
}

impl<T> Parsed<T> {
    fn new(keep: Keep) -> Self {
        Self { keep, known: Mutex::new(Known { values: BTreeMap::new(), last: None }) }
    }

    fn known(&self) -> MutexGuard<'_, Known<T>> {
        self.known.lock().expect("no holder panics")
    }

    /// The value of the bytes whose digest is `digest`, if they were parsed before.
    pub(crate) fn get(&self, digest: Digest) -> Option<Arc<T>> {
        let mut known = self.known();
        let found = known.values.get(&digest).and_then(Weak::upgrade)?;
        known.hold(&found, self.keep);
        Some(found)
    }

    /// Takes in the value of the bytes whose digest is `digest`, parsed elsewhere.
    pub(crate) fn know(&self, digest: Digest, value: &Arc<T>) {
        let mut known = self.known();
        known.values.insert(digest, Arc::downgrade(value));
        known.hold(value, self.keep);
    }

    /// Holds none of them any longer.
    pub(crate) fn let_go(&self) {
        self.known().last = None;
    }

    /// The value of the bytes whose digest is `digest`, parsed at most once.
    pub(crate) fn get_or<E>(
        &self,
        digest: Digest,
        parse: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        if let Some(known) = self.get(digest) {
            return Ok(known);
        }
        let parsed = Arc::new(parse()?);
        self.know(digest, &parsed);
        Ok(parsed)
    }
}

/// Small pieces are gathered to writes of this size.
const WRITE_BYTES: usize = 256 << 10;

/// Has `write` write to `out`, small pieces gathered. After an error nothing more is written.
pub(crate) fn gathered<W: io::Write, R>(
    out: W,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<R>,
) -> io::Result<R> {
    let mut gathering = io::BufWriter::with_capacity(WRITE_BYTES, out);
    let written = write(&mut gathering).and_then(|value| gathering.flush().map(|()| value));
    // Dropped, it would try to write the rest once more.
    drop(gathering.into_parts());
    written
}

/// Hashes what is read through it.
struct Hashing<'f> {
    file: Box<dyn OpenFile + 'f>,
    hasher: Hasher,
}

impl io::Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Hashes and counts what goes through it.
pub(crate) struct Hashed<'w> {
    out: &'w mut dyn io::Write,
    hasher: Hasher,
    bytes: u64,
}

impl<'w> Hashed<'w> {
    pub(crate) fn new(out: &'w mut dyn io::Write) -> Self {
        Self { out, hasher: Hasher::new(), bytes: 0 }
    }

    /// The digest and the number of the bytes so far.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.bytes)
    }
}

impl io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Files {
    pub(crate) fn new(disk: Arc<dyn Disk>, threads: NonZeroUsize, nice: Nice) -> Self {
        let (manifests, points) = (Parsed::new(Keep::Last), Parsed::new(Keep::None));
        Self { disk, threads, nice, discarded: AtomicU64::new(0), manifests, points }
    }

    pub(crate) fn metadata(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        self.disk.metadata(path).attempt("look at", path)
    }

    pub(crate) fn exists(&self, path: &Path) -> Result<bool, FsError> {
        Ok(self.metadata(path)?.is_some())
    }

    pub(crate) fn list(&self, path: &Path) -> Result<Vec<(String, EntryKind)>, FsError> {
        match self.disk.list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.attempt("list", path),
        }
    }

    /// Makes a directory unless it is there.
    pub(crate) fn ensure_dir(&self, path: &Path, mode: u32) -> Result<(), FsError> {
        match self.disk.create_dir(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.attempt("create directory", path),
        }
    }

    /// Makes a directory where others see it unless it is there. It gets its name when its mode is complete: a process
    /// that died before it lifted the umask would leave one that nobody else can enter.
    pub(crate) fn ensure_visible_dir(&self, path: &Path, mode: u32) -> Result<(), FsError> {
        if self.exists(path)? {
            return Ok(());
        }
        let hidden = self.free_in_trash()?;
        self.ensure_dir(&hidden, mode)?;
        let renamed = self.disk.rename(&hidden, path);
        if renamed.is_err() {
            // The first error is the one worth reporting.
            let _ = self.disk.remove_dir(&hidden);
        }
        match renamed {
            // On a volume of its own: what is shared may be.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => self.ensure_dir(path, mode),
            renamed => renamed.attempt("create directory", path),
        }
    }

    /// Makes the missing directories above `path`, outermost first, and returns them.
    pub(crate) fn ensure_parents(&self, path: &Path, mode: u32) -> Result<Vec<PathBuf>, FsError> {
        let mut missing = Vec::new();
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            if self.exists(parent)? {
                break;
            }
            missing.push(parent.to_owned());
        }
        missing.reverse();
        missing.iter().try_for_each(|parent| self.ensure_visible_dir(parent, mode))?;
        Ok(missing)
    }

    /// The content of a file; `None` when there is none.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FsError> {
        let file = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.attempt("open", path)?,
        };
        let size = file.metadata().attempt("look at", path)?.size;
        let mut bytes = Vec::with_capacity(usize::try_from(size.min(READ_MAX)).unwrap_or(0) + 1);
        file.take(READ_MAX + 1).read_to_end(&mut bytes).attempt("read", path)?;
        if bytes.len() as u64 > READ_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any file of ours"))
                .attempt("read", path);
        }
        Ok(Some(bytes))
    }

    /// The value whose JSON a large file holds, if its SHA-256 is `digest`: it is parsed as it is read, because the text takes more
    /// memory than the value. `None` when the file is small, is not there, or is not what it should be: whoever reads it as a
    /// whole, which is faster, finds out what is wrong with it.
    pub(crate) fn read_large_json<T: DeserializeOwned>(
        &self,
        path: &Path,
        digest: Digest,
    ) -> Result<Option<T>, FsError> {
        let file = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.attempt("open", path)?,
        };
        let size = file.metadata().attempt("look at", path)?.size;
        if !(LARGE..=READ_MAX).contains(&size) {
            return Ok(None);
        }
        let mut hashing = Hashing { file, hasher: Hasher::new() };
        match serde_json::from_reader(io::BufReader::with_capacity(WRITE_BYTES, &mut hashing)) {
            // The reader has come to the end of the file, so these are the bytes that were parsed.
            Ok(value) => Ok((hashing.hasher.finish() == digest).then_some(value)),
            Err(error) if error.is_io() => Err(error.into()).attempt("read", path),
            Err(_) => Ok(None),
        }
    }

    /// The SHA-256 of a file; `None` when there is none.
    pub(crate) fn digest(&self, path: &Path) -> Result<Option<Digest>, FsError> {
        let mut file = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.attempt("open", path)?,
        };
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 << 10]);
        loop {
            match file.read(&mut buffer).attempt("read", path)? {
                0 => return Ok(Some(hasher.finish())),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// Writes a new file and makes its content durable; its name is not, yet. When that fails nothing is left of it,
    /// because a second sync of the same file would lie (I13).
    pub(crate) fn write_new(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FsError> {
        self.write_new_with(path, mode, |out| out.write_all(bytes))
    }

    /// As [`Files::write_new`]: the content is what `write` writes, in pieces of any size.
    pub(crate) fn write_new_with<R>(
        &self,
        path: &Path,
        mode: u32,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<R>,
    ) -> Result<R, FsError> {
        let written = (|| {
            let mut file = self.disk.create(path, mode).attempt("create", path)?;
            let value = gathered(&mut file, write).attempt("write", path)?;
            file.sync().attempt("flush", path)?;
            Ok::<R, FsError>(value)
        })();
        if written.is_err() {
            // The first error is the one worth reporting.
            let _ = self.disk.remove_file(path);
        }
        written
    }

    /// Makes `bytes` the content of `path`, durably and all or nothing.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FsError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        self.remove_file(&temporary)?;
        self.write_new(&temporary, bytes, mode)?;
        self.rename(&temporary, path)?;
        self.sync_parent(path)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), FsError> {
        self.disk.rename(from, to).attempt("rename into place", to)
    }

    /// Removes a file or link unless it is gone.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), FsError> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.attempt("remove", path),
        }
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), FsError> {
        self.disk.sync_dir(path).attempt("flush directory", path)
    }

    pub(crate) fn sync_parent(&self, path: &Path) -> Result<(), FsError> {
        self.sync_dir(path.parent().unwrap_or(Path::new("")))
    }

    pub(crate) fn sync_all(&self) -> Result<(), FsError> {
        self.disk.sync_all().attempt("flush", "")
    }

    /// Makes `path` go away at once and durably: it moves to the trash, where it is then taken apart. What remains there,
    /// after a crash or because somebody still writes in it, is removed by recovery: whoever discards something needs it gone
    /// from its place and no more.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), FsError> {
        if !self.exists(path)? {
            return Ok(());
        }
        let trash = self.free_in_trash()?;
        self.disk.rename(path, &trash).attempt("discard", path)?;
        self.sync_parent(path)?;
        if let Err(error) = self.remove_tree(&trash) {
            let (path, error) = (path.display(), chain(&error));
            tracing::warn!(%path, %error, "what it held remains in the trash until the next run");
        }
        Ok(())
    }

    /// A name in the trash that nothing has.
    fn free_in_trash(&self) -> Result<PathBuf, FsError> {
        loop {
            let number = self.discarded.fetch_add(1, Ordering::Relaxed);
            let candidate = Path::new(place::TRASH).join(number.to_string());
            if !self.exists(&candidate)? {
                return Ok(candidate);
            }
        }
    }

    /// Takes a tree apart, whatever the names in it are. Only for what nothing refers to. Everything that can be removed is,
    /// whatever else fails; the first error is returned.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<(), FsError> {
        let Some(metadata) = self.metadata(path)? else { return Ok(()) };
        if metadata.kind != EntryKind::Directory {
            return self.remove_file(path);
        }
        let mut left = EMPTYING_MAX;
        loop {
            let mut first_error = Ok(());
            for (name, kind) in self.disk.names(path).attempt("list", path)? {
                let child = path.join(name);
                let removed = match kind {
                    EntryKind::Directory => self.remove_tree(&child),
                    EntryKind::File | EntryKind::Symlink | EntryKind::Other => self.remove_file(&child),
                };
                first_error = first_error.and(removed);
            }
            first_error?;
            left -= 1;
            match self.disk.remove_dir(path) {
                // Somebody who has it open made another file meanwhile.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && left > 0 => {}
                removed => return removed.attempt("remove directory", path),
            }
        }
    }

    /// Does heavy work: on a thread that gives way where one is wanted, else on this one.
    pub(crate) fn aside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.nice == Nice::NONE {
            return work();
        }
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                self.nice.take_on();
                work()
            });
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` for every item on the threads there are; with one thread, in order. The first error stops it.
    pub(crate) fn for_each<T, R, E>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R, E> + Sync,
    ) -> Result<Vec<R>, E>
    where
        T: Sync,
        R: Send,
        E: Send,
    {
        self.for_each_or(items, work, || {})
    }

    /// As [`Files::for_each`]; calls `failed` after an error, so that work which waits for something is told. The error that is
    /// returned is the first one in time.
    pub(crate) fn for_each_or<T, R, E>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R, E> + Sync,
        failed: impl Fn() + Sync,
    ) -> Result<Vec<R>, E>
    where
        T: Sync,
        R: Send,
        E: Send,
    {
        self.find_each_or(items, |item| work(item).map(Some), failed)
    }

    /// As [`Files::for_each`]; only what `work` found is kept.
    pub(crate) fn find_each<T, R, E>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<Option<R>, E> + Sync,
    ) -> Result<Vec<R>, E>
    where
        T: Sync,
        R: Send,
        E: Send,
    {
        self.find_each_or(items, work, || {})
    }

    fn find_each_or<T, R, E>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<Option<R>, E> + Sync,
        failed: impl Fn() + Sync,
    ) -> Result<Vec<R>, E>
    where
        T: Sync,
        R: Send,
        E: Send,
    {
        let threads = self.threads.get().min(items.len());
        if threads <= 1 {
            let found = || items.iter().filter_map(|item| work(item).transpose()).collect::<Result<_, _>>();
            return self.aside(found).inspect_err(|_| failed());
        }
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
        let first_error: Mutex<Option<E>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    self.nice.take_on();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else { break };
                        match work(item) {
                            Ok(None) => {}
                            Ok(Some(result)) => {
                                results.lock().expect("no holder panics").push((index, result));
                            }
                            Err(error) => {
                                next.store(items.len(), Ordering::Relaxed);
                                first_error.lock().expect("no holder panics").get_or_insert(error);
                                failed();
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = first_error.into_inner().expect("no holder panics") {
            return Err(error);
        }
        let mut results = results.into_inner().expect("no holder panics");
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn work_that_fails_is_told_at_once_on_any_number_of_threads() {
        let directory = tempfile::tempdir().expect("a directory");
        for threads in [1, 3] {
            let disk = Arc::new(RealDisk::open(directory.path()).expect("a disk"));
            let threads = NonZeroUsize::new(threads).expect("some");
            let files = Files::new(disk, threads, Nice::NONE);
            let told = AtomicUsize::new(0);
            let work = |item: &u32| if *item == 2 { Err("as told") } else { Ok(*item) };
            let tell = || {
                told.fetch_add(1, Ordering::SeqCst);
            };
            assert_eq!(files.for_each_or(&[1, 2, 3], work, tell), Err("as told"));
            assert_eq!(told.load(Ordering::SeqCst), 1, "{threads} threads");
        }
    }
}
