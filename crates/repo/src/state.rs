//! What a client keeps of a repository: the metadata it believed last, one file for each role.

use std::{io, os::fd::OwnedFd, path::Path};

use crate::directory::{Directory, Files as _, replace};

/// Where believed metadata is kept. Implementations make it durable before they return.
pub trait State {
    /// The kept metadata of a role. `role` is safe as a component of a path.
    ///
    /// # Errors
    /// It cannot be read.
    fn load(&self, role: &str) -> io::Result<Option<Vec<u8>>>;

    /// Keeps metadata, replacing what was kept of that role whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    fn keep(&self, role: &str, bytes: &[u8]) -> io::Result<()>;

    /// Forgets the metadata of a role; nothing happens when there is none.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&self, role: &str) -> io::Result<()>;
}

/// A directory with one `ROLE.json` for each role (`delegated.ROLE.json` for one that another delegates to), such as `.cutover/trusted` of a root.
#[derive(Debug)]
pub struct StateDirectory(Directory);

impl StateDirectory {
    /// Opens the directory, making it if it is not there. Its parent must be.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Directory::open_or_make(path).map(Self)
    }

    /// Uses a directory that is open already.
    pub fn from_handle(handle: OwnedFd) -> Self {
        Self(Directory::from_handle(handle))
    }
}

/// Most bytes of a kept file. What a client fetched was smaller; a larger one is not ours.
const KEPT_BYTES_MAX: u64 = 64 << 20;

impl State for StateDirectory {
    fn load(&self, role: &str) -> io::Result<Option<Vec<u8>>> {
        self.0.read(&format!("{role}.json"), KEPT_BYTES_MAX)
    }

    fn keep(&self, role: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&self.0, &format!("{role}.json"), bytes)
    }

    fn remove(&self, role: &str) -> io::Result<()> {
        self.0.remove(&format!("{role}.json"))?;
        self.0.sync("")
    }
}
