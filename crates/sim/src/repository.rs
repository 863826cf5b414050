//! The directory of a repository on the simulated disk, so that the production publisher runs there and loses power.

use std::{
    any::Any,
    io::{self, Cursor, Read, Write},
    path::Path,
};

use cutover_host::disk::{Disk as _, EntryKind, Locked as Lock};
use cutover_repo::{Files, Locked, NewFile};

use crate::FaultDisk;

/// A directory that loses power.
pub struct SimulatedDirectory(FaultDisk);

impl SimulatedDirectory {
    /// The root of a disk.
    pub fn new(disk: FaultDisk) -> Self {
        Self(disk)
    }
}

/// What is there, or `None` when nothing is.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

impl Files for SimulatedDirectory {
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some(mut file) = if_there(self.0.open(Path::new(path)))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(Box::new(Cursor::new(bytes))))
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.0.metadata(Path::new(path))?.map(|metadata| metadata.size))
    }

    fn make(&self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.0.metadata(Path::new(path))?.is_some() {
            return Ok(());
        }
        self.make(path.rsplit_once('/').map_or("", |(parent, _)| parent))?;
        self.0.create_dir(Path::new(path), 0o755)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile + '_>> {
        Ok(Box::new(Written(self.0.create(Path::new(path), 0o644)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(Path::new(from), Path::new(to))
    }

    fn remove(&self, path: &str) -> io::Result<bool> {
        Ok(if_there(self.0.remove_file(Path::new(path)))?.is_some())
    }

    fn remove_if_empty(&self, path: &str) -> io::Result<bool> {
        match if_there(self.0.remove_dir(Path::new(path))) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            removed => Ok(removed?.is_some()),
        }
    }

    fn sync(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(Path::new(path))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn list(&self, path: &str) -> io::Result<Vec<(String, bool)>> {
        let listed = if_there(self.0.list(Path::new(path)))?.unwrap_or_default();
        let mut names: Vec<(String, bool)> =
            listed.into_iter().map(|(name, kind)| (name, kind == EntryKind::Directory)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn Locked>>> {
        Ok(match self.0.lock(Path::new(path), "simulated")? {
            Lock::Taken(guard) => Some(Box::new(Guard(guard))),
            Lock::Held { .. } => None,
        })
    }
}

struct Guard(#[allow(dead_code, reason = "it is only dropped")] Box<dyn Any + Send + Sync>);

impl Locked for Guard {}

struct Written<'d>(Box<dyn cutover_host::disk::NewFile + 'd>);

impl Write for Written<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl NewFile for Written<'_> {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}
