//! `.cutover/downloads`: what was fetched and is not consumed yet, whole or in part.
//!
//! Nothing here is flushed: whatever a power cut leaves is hashed as a whole before it is used, and fetched again when it is
//! not right. The format is `docs/formats/downloads.md`.

use std::{
    any::Any,
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::{
    fetch::resume::Validator,
    model::{Digest, Hasher},
};
use serde::{Deserialize, Serialize};

use super::{FetchError, error::Attempt as _};
use crate::disk::{Disk, EntryKind, Locked, OpenFile};

const META: &str = ".cutover";
const PLACE: &str = ".cutover/downloads";
const LOCK: &str = ".cutover/downloads/lock";
/// How much is read at once.
const BLOCK: usize = 256 << 10;
/// The largest sidecar.
const SIDECAR_MAX: u64 = 64 << 10;

/// The downloads of one root. One process at a time.
pub struct Downloads {
    disk: Arc<dyn Disk>,
    _lock: Box<dyn Any + Send + Sync>,
}

/// What lies there of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    /// All of it, verified when it was finished.
    pub(super) whole: bool,
    /// Bytes of an unfinished download.
    pub(super) partial_bytes: u64,
    /// Where the unfinished bytes came from.
    pub(super) sidecar: Option<Sidecar>,
}

/// `<sha256>.json`: which version of which file the partial bytes belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sidecar {
    /// 1.
    pub(super) format: u32,
    /// The base URL the bytes came from; its validator means nothing to another server.
    pub(super) from: String,
    /// The size of the whole object, in bytes.
    pub(super) size_bytes: u64,
    /// What the server said about the version.
    #[serde(default)]
    pub(super) validator: Validator,
}

impl Downloads {
    /// Opens the downloads below the root of `disk`, creating the directories if needed.
    ///
    /// # Errors
    /// [`FetchError::Busy`] when another process has them open; [`FetchError::Fs`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, FetchError> {
        for directory in [META, PLACE] {
            match disk.create_dir(Path::new(directory), 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.attempt("create directory", directory)?,
            }
        }
        let note = format!("process {}", std::process::id());
        match disk.lock(Path::new(LOCK), &note).attempt("lock", LOCK)? {
            Locked::Taken(lock) => Ok(Self { disk, _lock: lock }),
            Locked::Held { note } => Err(FetchError::Busy(note)),
        }
    }

    /// Opens a verified object for reading.
    ///
    /// # Errors
    /// [`FetchError::Fs`], also when it is not there.
    pub fn open_object(&self, digest: Digest) -> Result<Box<dyn OpenFile + '_>, FetchError> {
        let path = whole(digest);
        self.disk.open(&path).attempt("open", path)
    }

    /// The path of a verified object, relative to the root.
    pub fn path(digest: Digest) -> PathBuf {
        whole(digest)
    }

    /// Removes an object that was consumed; nothing when it is not there.
    ///
    /// # Errors
    /// [`FetchError::Fs`].
    pub fn consume(&self, digest: Digest) -> Result<(), FetchError> {
        self.remove(&whole(digest))
    }

    /// Removes everything but what belongs to `wanted`: the rests of releases that nobody wants any more.
    ///
    /// # Errors
    /// [`FetchError::Fs`].
    pub fn keep_only(&self, wanted: &BTreeSet<Digest>) -> Result<(), FetchError> {
        for (name, kind) in self.disk.list(Path::new(PLACE)).attempt("list", PLACE)? {
            let stem = name.split('.').next().unwrap_or_default();
            let kept = name == "lock" || stem.parse::<Digest>().is_ok_and(|digest| wanted.contains(&digest));
            if kind == EntryKind::File && !kept {
                self.remove(&Path::new(PLACE).join(name))?;
            }
        }
        Ok(())
    }

    /// Free bytes of the file system.
    pub(super) fn free_bytes(&self) -> Result<u64, FetchError> {
        Ok(self.disk.space().attempt("look at the free space of", PLACE)?.free_bytes)
    }

    /// What lies there of an object of `size` bytes. What cannot be it is removed.
    pub(super) fn present(&self, digest: Digest, size: u64) -> Result<Present, FetchError> {
        if let Some(bytes) = self.size_of(&whole(digest))? {
            if bytes == size {
                return Ok(Present { whole: true, partial_bytes: 0, sidecar: None });
            }
            self.remove(&whole(digest))?;
        }
        let Some(bytes) = self.size_of(&part(digest))? else { return Ok(Present::default()) };
        if bytes == 0 || bytes > size {
            self.drop_partial(digest)?;
            return Ok(Present::default());
        }
        Ok(Present { whole: false, partial_bytes: bytes, sidecar: self.sidecar(digest, size)? })
    }

    fn size_of(&self, path: &Path) -> Result<Option<u64>, FetchError> {
        let metadata = self.disk.metadata(path).attempt("look at", path)?;
        match metadata {
            Some(metadata) if metadata.kind == EntryKind::File => Ok(Some(metadata.size)),
            Some(_) => {
                let odd = io::Error::new(io::ErrorKind::InvalidData, "it is no file of ours");
                Err(odd).attempt("use", path)
            }
            None => Ok(None),
        }
    }

    /// One that cannot be read says nothing.
    fn sidecar(&self, digest: Digest, size: u64) -> Result<Option<Sidecar>, FetchError> {
        let path = sidecar(digest);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.attempt("open", &path)?,
        };
        let mut bytes = Vec::new();
        file.take(SIDECAR_MAX).read_to_end(&mut bytes).attempt("read", &path)?;
        let sidecar = serde_json::from_slice::<Sidecar>(&bytes).ok();
        Ok(sidecar.filter(|sidecar| sidecar.format == 1 && sidecar.size_bytes == size))
    }

    /// Notes where the partial bytes come from, before the first of them is written.
    pub(super) fn remember(&self, digest: Digest, known: &Sidecar) -> Result<(), FetchError> {
        let path = sidecar(digest);
        self.remove(&path)?;
        let text = serde_json::to_vec(known).expect("a sidecar is JSON");
        let mut file = self.disk.create(&path, 0o600).attempt("create", &path)?;
        file.write_all(&text).attempt("write", &path)
    }

    /// Appends to the partial bytes.
    pub(super) fn append(&self, digest: Digest, pieces: &[impl AsRef<[u8]>]) -> Result<(), FetchError> {
        let path = part(digest);
        let mut file = self.disk.append(&path, 0o600).attempt("open", &path)?;
        pieces.iter().try_for_each(|piece| file.write_all(piece.as_ref())).attempt("write", &path)
    }

    /// Drops partial bytes and what is known about them.
    pub(super) fn drop_partial(&self, digest: Digest) -> Result<(), FetchError> {
        self.remove(&part(digest))?;
        self.remove(&sidecar(digest))
    }

    /// Reads the partial bytes (or the whole object) and hashes them.
    pub(super) fn hash(&self, digest: Digest, of: Of) -> Result<Digest, FetchError> {
        let path = match of {
            Of::Whole => whole(digest),
            Of::Partial => part(digest),
        };
        let mut file = self.disk.open(&path).attempt("open", &path)?;
        let mut hasher = Hasher::new();
        let mut block = vec![0; BLOCK];
        loop {
            match file.read(&mut block) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(bytes) => hasher.update(&block[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).attempt("read", path),
            }
        }
    }

    /// The partial bytes were verified: they are the whole object.
    pub(super) fn finish(&self, digest: Digest) -> Result<(), FetchError> {
        self.disk.rename(&part(digest), &whole(digest)).attempt("rename", part(digest))?;
        self.remove(&sidecar(digest))
    }

    fn remove(&self, path: &Path) -> Result<(), FetchError> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.attempt("remove", path),
        }
    }
}

/// Which file of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Whole,
    Partial,
}

fn whole(digest: Digest) -> PathBuf {
    Path::new(PLACE).join(digest.to_string())
}

fn part(digest: Digest) -> PathBuf {
    Path::new(PLACE).join(format!("{digest}.part"))
}

fn sidecar(digest: Digest) -> PathBuf {
    Path::new(PLACE).join(format!("{digest}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn downloads() -> (tempfile::TempDir, Downloads) {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        (directory, Downloads::open(Arc::new(disk)).unwrap())
    }

    #[test]
    fn what_is_there_is_told_apart_and_what_cannot_be_it_is_removed() {
        let (_root, downloads) = downloads();
        let digest = Digest::of(b"hello world");
        assert_eq!(downloads.present(digest, 11).unwrap(), Present::default());
        downloads.append(digest, &[b"hello", b" worl"]).unwrap();
        assert_eq!(downloads.present(digest, 11).unwrap().partial_bytes, 10);
        downloads.append(digest, &[b"d"]).unwrap();
        assert_eq!(downloads.hash(digest, Of::Partial).unwrap(), digest);
        downloads.finish(digest).unwrap();
        assert!(downloads.present(digest, 11).unwrap().whole);
        assert_eq!(
            downloads.present(digest, 12).unwrap(),
            Present::default(),
            "another size is another file"
        );

        downloads.append(digest, &[b"much too long"]).unwrap();
        assert_eq!(downloads.present(digest, 11).unwrap(), Present::default());
    }

    #[test]
    fn sidecar_is_remembered_and_a_damaged_one_says_nothing() {
        let (root, downloads) = downloads();
        let digest = Digest::of(b"x");
        let validator = Validator { etag: Some("\"a\"".to_owned()), last_modified: None };
        let known = Sidecar { format: 1, from: "http://a/".to_owned(), size_bytes: 9, validator };
        downloads.remember(digest, &known).unwrap();
        downloads.remember(digest, &known).unwrap();
        downloads.append(digest, &[b"abc"]).unwrap();
        assert_eq!(downloads.present(digest, 9).unwrap().sidecar, Some(known));
        assert_eq!(downloads.present(digest, 8).unwrap().sidecar, None, "it belongs to another size");
        std::fs::write(root.path().join(sidecar(digest)), "{\"format\":1").unwrap();
        let present = downloads.present(digest, 9).unwrap();
        assert_eq!((present.partial_bytes, present.sidecar), (3, None));
    }

    #[test]
    fn one_process_at_a_time_and_only_what_is_wanted_is_kept() {
        let (root, downloads) = downloads();
        let again = Downloads::open(Arc::new(RealDisk::open(root.path()).unwrap()));
        assert!(matches!(again, Err(FetchError::Busy(_))));
        let (kept, dropped) = (Digest::of(b"kept"), Digest::of(b"dropped"));
        for digest in [kept, dropped] {
            downloads.append(digest, &[b"abc"]).unwrap();
        }
        downloads.append(Digest::of(b"done"), &[b"done"]).unwrap();
        downloads.finish(Digest::of(b"done")).unwrap();
        downloads.keep_only(&BTreeSet::from([kept])).unwrap();
        let left = std::fs::read_dir(root.path().join(PLACE)).unwrap().count();
        assert_eq!(left, 2, "the lock and what is wanted");
        assert_eq!(downloads.present(kept, 9).unwrap().partial_bytes, 3);
        drop(downloads);
        Downloads::open(Arc::new(RealDisk::open(root.path()).unwrap())).unwrap();
    }
}
