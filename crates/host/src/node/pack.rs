//! Packs: the files of the object store. Each holds the objects that one step brought, one after the other, and ends with an
//! index of them. The format is `docs/formats/pack.md`.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use cutover_core::model::{Hasher, ObjectEntry};
use serde::{Deserialize, Serialize};

use super::files::{Attempt as _, Files, FsError, Hashed};
use crate::disk::{NewFile, OpenFile};

/// The last bytes of every pack.
const MAGIC: [u8; 8] = *b"CUTPACK\x01";
/// Index length (8), SHA-256 of the index (32), magic (8).
const TRAILER_BYTES: u64 = 48;
/// The largest index: some 300,000 objects.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// An index is read in pieces of this size.
const INDEX_CHUNK_BYTES: usize = 64 << 10;
/// The version of the index that is written here.
const FORMAT: u32 = 1;
/// Small objects are gathered to writes of this size.
const WRITE_BYTES: usize = 256 << 10;

/// What lies in a pack, and where: an entry's offset counts from the start of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackIndex {
    format: u32,
    /// The objects in the order in which they lie.
    pub objects: Vec<ObjectEntry>,
}

/// Why a pack is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It does not end as packs end, or its index has another digest than its trailer says.
    #[error("it is cut off or damaged")]
    Damaged,
    /// Its index cannot be understood.
    #[error("its index is of no use: {0}")]
    Index(String),
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

impl PackIndex {
    /// Reads the index of the pack that `read_at` fills buffers from; `size` is the length of the pack in bytes.
    ///
    /// # Errors
    /// See [`PackError`]. Nothing is allocated before its length has been checked against `size` and 64 MiB.
    pub fn read(
        size: u64,
        mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> Result<Self, PackError> {
        let mut fill = |buffer: &mut [u8], start: u64| {
            let mut done = 0;
            while done < buffer.len() {
                match read_at(&mut buffer[done..], start + done as u64) {
                    Ok(0) => return Err(PackError::Damaged),
                    Ok(count) => done += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        let before_trailer = size.checked_sub(TRAILER_BYTES).ok_or(PackError::Damaged)?;
        let mut trailer = [0; TRAILER_BYTES as usize];
        fill(&mut trailer, before_trailer)?;
        let (length, rest) = trailer.split_at(8);
        let (digest, magic) = rest.split_at(32);
        let length = u64::from_le_bytes(length.try_into().expect("split at 8"));
        if magic != MAGIC || length > before_trailer.min(INDEX_BYTES_MAX) {
            return Err(PackError::Damaged);
        }
        let end = before_trailer - length;
        // Hashed first and read again as it is parsed: the text of an index takes more memory than the index.
        let mut hasher = Hasher::new();
        let mut stream = IndexStream { fill: &mut fill, at: end, end: before_trailer };
        io::copy(&mut io::BufReader::with_capacity(INDEX_CHUNK_BYTES, &mut stream), &mut hasher)?;
        if hasher.finish().as_bytes() != digest {
            return Err(PackError::Damaged);
        }
        let stream = IndexStream { fill, at: end, end: before_trailer };
        let stream = io::BufReader::with_capacity(INDEX_CHUNK_BYTES, stream);
        let index: Self = serde_json::from_reader(stream).map_err(|error| match error.io_error_kind() {
            None => PackError::Index(error.to_string()),
            Some(_) => PackError::Read(error.into()),
        })?;
        if index.format != FORMAT {
            return Err(PackError::Index(format!("format {} is not known", index.format)));
        }
        let outside = |entry: &&ObjectEntry| {
            entry.offset.checked_add(entry.stored_size).is_none_or(|object_end| object_end > end)
        };
        match index.objects.iter().find(outside) {
            Some(entry) => Err(PackError::Index(format!("object {} does not lie in it", entry.sha256))),
            None => Ok(index),
        }
    }
}

/// An index as a stream of bytes.
struct IndexStream<F> {
    fill: F,
    at: u64,
    end: u64,
}

impl<F: FnMut(&mut [u8], u64) -> Result<(), PackError>> io::Read for IndexStream<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.end - self.at).map_or(out.len(), |left| left.min(out.len()));
        match (self.fill)(&mut out[..count], self.at) {
            Ok(()) => {
                self.at += count as u64;
                Ok(count)
            }
            Err(PackError::Read(error)) => Err(error),
            // It ends too early.
            Err(PackError::Damaged | PackError::Index(_)) => Ok(0),
        }
    }
}

/// Reads the index of an opened pack.
pub(crate) fn read_index(file: &dyn OpenFile) -> Result<PackIndex, PackError> {
    PackIndex::read(file.metadata()?.size, |buffer, at| file.read_at(buffer, at))
}

/// A part of an opened file, as a stream.
pub(crate) struct Window<'a> {
    pub(crate) file: &'a dyn OpenFile,
    pub(crate) at: u64,
    pub(crate) left: u64,
}

impl io::Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A pack being written.
pub(crate) struct PackWriter<'a> {
    path: PathBuf,
    file: BufWriter<Box<dyn NewFile + 'a>>,
    at: u64,
    objects: Vec<ObjectEntry>,
}

impl Write for PackWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<'a> PackWriter<'a> {
    /// Begins a pack at `path`, where nothing may be.
    pub(crate) fn create(files: &'a Files, path: &Path) -> Result<Self, FsError> {
        let file = files.disk.create(path, 0o600).attempt("create", path)?;
        let file = BufWriter::with_capacity(WRITE_BYTES, file);
        Ok(Self { path: path.to_owned(), file, at: 0, objects: Vec::new() })
    }

    /// Where it is being written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the object that `write` writes in its stored form. What it wrote before an error stays in the file, and nothing
    /// refers to it.
    pub(crate) fn add<E>(
        &mut self,
        entry: ObjectEntry,
        write: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let offset = self.at;
        write(self)?;
        self.objects.push(ObjectEntry { offset, stored_size: self.at - offset, ..entry });
        Ok(())
    }

    /// Writes index and trailer, and hands over the file, which is not durable yet. `None` when it got no object.
    pub(crate) fn finish(self) -> Result<Option<Box<dyn NewFile + 'a>>, FsError> {
        let Self { path, mut file, objects, .. } = self;
        if objects.is_empty() {
            return Ok(None);
        }
        let index = PackIndex { format: FORMAT, objects };
        (|| {
            let mut hashed = Hashed::new(&mut file);
            serde_json::to_writer(&mut hashed, &index)?;
            let (digest, bytes) = hashed.finish();
            file.write_all(&bytes.to_le_bytes())?;
            file.write_all(digest.as_bytes())?;
            file.write_all(&MAGIC)?;
            file.flush()
        })()
        .attempt("write", &path)?;
        let (file, _) = file.into_parts();
        Ok(Some(file))
    }
}
