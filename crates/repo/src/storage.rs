//! The port by which a repository is written, and the directory behind it.
//!
//! What a publisher needs of a store: batches that are durable before anybody is told of them, single files that are
//! replaced whole, removal, and one publisher at a time. The order of all that is the publisher's, the same for every store.
//! A bucket of S3-compatible storage is behind the same port in `cutover-s3`.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, Read, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::Mutex,
};

use crate::{
    directory::{Directory, Files, replace, split},
    fetch::{Fetch, FetchError, read_bounded},
};

/// Fills one file of a batch.
pub type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// A store that a repository lies in. Paths are relative, with `/` between components.
pub trait Storage {
    /// Opens a file for reading; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>>;

    /// The size of a file in bytes; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn size(&self, path: &str) -> io::Result<Option<u64>>;

    /// The sizes of several files, in their order; for a store that can ask for them at the same time.
    ///
    /// # Errors
    /// One cannot be looked at.
    fn sizes(&self, paths: &[&str]) -> io::Result<Vec<Option<u64>>> {
        paths.iter().map(|path| self.size(path)).collect()
    }

    /// Starts a batch of new files.
    ///
    /// # Errors
    /// The store cannot be written to.
    fn batch(&self) -> io::Result<Box<dyn Batch + '_>>;

    /// Replaces one file whole or not at all; durable on return.
    ///
    /// # Errors
    /// It cannot be written; then the old one is still there.
    fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Removes files; those that are not there are passed over. Durable on return.
    ///
    /// # Errors
    /// One cannot be removed.
    fn remove(&self, paths: &[String]) -> io::Result<()>;

    /// Every file below a directory, sorted.
    ///
    /// # Errors
    /// A directory cannot be listed.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;

    /// Asks for the publisher's lock.
    ///
    /// # Errors
    /// The lock cannot be asked for.
    fn lock(&self) -> io::Result<Lock>;
}

/// What became of asking for the publisher's lock.
pub enum Lock {
    /// It is held.
    Held(Box<dyn Locked>),
    /// Another publisher holds it.
    InUse {
        /// Who, where the store knows.
        by: Option<String>,
    },
}

/// Holds the publisher's lock until it is dropped.
pub trait Locked {}

impl Locked for OwnedFd {}

/// New files, each of which gets its name after all of its bytes are durable: a name never stands for less than its content.
/// Before [`Batch::commit`] returns, any of them may have its name or not; so it is when the batch is dropped without it.
pub trait Batch {
    /// Adds a file, written by `fill`.
    ///
    /// # Errors
    /// Whatever `fill` or the store reports.
    fn add(&mut self, path: &str, fill: Fill<'_>) -> io::Result<()>;

    /// Makes all of them durable under their names, replacing files that have them.
    ///
    /// # Errors
    /// One cannot be written.
    fn commit(self: Box<Self>) -> io::Result<()>;
}

/// Reads a small file of a store whole; `None` when there is none.
///
/// # Errors
/// It cannot be read, or has more than `bytes_max` bytes.
pub(crate) fn read(storage: &dyn Storage, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = storage.open(path)? else { return Ok(None) };
    read_bounded(file, bytes_max).map(Some).map_err(io::Error::other)
}

/// Where the publisher keeps what no client needs.
pub(crate) const PRIVATE: &str = ".publish";
const ASIDE: &str = ".publish/aside";
const LOCK: &str = ".publish/lock";

/// A repository in a directory, which any web server can serve.
pub struct DirectoryStorage {
    files: Box<dyn Files>,
    /// Directories whose names are known to be on disk.
    durable: Mutex<BTreeSet<String>>,
}

impl DirectoryStorage {
    /// Opens the directory of a repository.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::over(Directory::open(path)?))
    }

    /// Opens the directory of a repository that is to be; makes it when it is not there. Its parent must be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open_or_make(path: &Path) -> io::Result<Self> {
        Ok(Self::over(Directory::open_or_make(path)?))
    }

    /// Uses a directory of another file system than this machine's.
    pub fn over(files: impl Files + 'static) -> Self {
        Self { files: Box::new(files), durable: Mutex::default() }
    }

    /// Makes a directory and those above it, as far as they are missing. What is flushed in a directory is there after a power
    /// cut only if the directory is; one that is there already may be what a killed process made and did not come to flush,
    /// so each is flushed once by every process.
    fn make_durably(&self, directory: &str) -> io::Result<()> {
        if directory.is_empty() || self.durable.lock().expect("no holder panics").contains(directory) {
            return Ok(());
        }
        let above = split(directory).0;
        self.make_durably(above)?;
        if self.files.size(directory)?.is_none() {
            self.files.make(directory)?;
        }
        self.files.sync(above)?;
        self.durable.lock().expect("no holder panics").insert(directory.to_owned());
        Ok(())
    }

    /// Whether there is anything in it.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.files.list("")?.is_empty())
    }
}

impl Storage for DirectoryStorage {
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>> {
        self.files.open(path)
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
        self.files.size(path)
    }

    fn batch(&self) -> io::Result<Box<dyn Batch + '_>> {
        self.files.make(ASIDE)?;
        // Whoever wrote these is dead: this process holds the lock.
        for (name, _) in self.files.list(ASIDE)? {
            self.files.remove(&format!("{ASIDE}/{name}"))?;
        }
        Ok(Box::new(DirectoryBatch {
            directory: self.files.as_ref(),
            files: Vec::new(),
            is_committed: false,
        }))
    }

    fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.make_durably(split(path).0)?;
        replace(self.files.as_ref(), path, bytes)
    }

    fn remove(&self, paths: &[String]) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for path in paths {
            if self.files.remove(path)? {
                touched.insert(split(path).0);
            }
        }
        for directory in touched {
            // An emptied directory of a batch of objects is not worth keeping; the flush is then that of its parent.
            let is_gone = directory.contains('/') && self.files.remove_if_empty(directory)?;
            if is_gone {
                self.durable.lock().expect("no holder panics").remove(directory);
            }
            self.files.sync(if is_gone { split(directory).0 } else { directory })?;
        }
        Ok(())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            for (name, is_directory) in self.files.list(&directory)? {
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                if is_directory { pending.push(path) } else { files.push(path) }
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn lock(&self) -> io::Result<Lock> {
        self.files.make(PRIVATE)?;
        let Some(lock) = self.files.lock(LOCK)? else { return Ok(Lock::InUse { by: None }) };
        // Whoever held it before may have been killed between a rename and its flush: what this run finds, and builds on or
        // answers by, a power cut must not take back.
        self.files.sync_all()?;
        Ok(Lock::Held(lock))
    }
}

/// Contents are written aside and flushed as a whole (`docs/decisions/0008-staging-is-flushed-as-a-whole.md`): two
/// flushes of the file system, however many files there are.
struct DirectoryBatch<'a> {
    directory: &'a dyn Files,
    files: Vec<(String, String)>,
    is_committed: bool,
}

impl Batch for DirectoryBatch<'_> {
    fn add(&mut self, path: &str, fill: Fill<'_>) -> io::Result<()> {
        let aside = format!("{ASIDE}/{}", self.files.len());
        let mut file = BufWriter::with_capacity(1 << 17, self.directory.create(&aside)?);
        self.files.push((aside, path.to_owned()));
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> io::Result<()> {
        self.is_committed = true;
        self.directory.sync_all()?;
        let directories: BTreeSet<&str> = self.files.iter().map(|(_, path)| split(path).0).collect();
        for directory in directories {
            self.directory.make(directory)?;
        }
        for (aside, path) in &self.files {
            self.directory.rename(aside, path)?;
        }
        self.directory.sync_all()
    }
}

impl Drop for DirectoryBatch<'_> {
    fn drop(&mut self) {
        if !self.is_committed {
            for (aside, _) in &self.files {
                // What stays is removed by the next batch.
                let _ = self.directory.remove(aside);
            }
        }
    }
}

impl Fetch for DirectoryStorage {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let failed = |error: io::Error| FetchError::Failed(Box::new(error));
        match Storage::open(self, path).map_err(failed)? {
            Some(file) => read_bounded(file, bytes_max),
            None => Err(FetchError::NotFound),
        }
    }
}
