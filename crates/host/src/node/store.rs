//! The object store: file contents by digest, as bundles encode them, each in an inode of its own. A live file never
//! shares an inode with an object: damage to one must not reach what repairs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use cutover_bundle::{ObjectError, decode_object};
use cutover_core::model::{Digest, Encoding, ObjectEntry};

use super::{
    FsError,
    files::{Attempt as _, Files},
    place,
};

/// Why an object of the store could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there.
    #[error("object {0} is not in the store")]
    Missing(Digest),
    /// It is there and damaged, or could not be written where it was wanted.
    #[error("the store's copy is of no use")]
    Object(#[from] ObjectError),
    /// The file system refused something.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// The objects that lie in the store, with their encoding.
pub(crate) fn list(files: &Files) -> Result<BTreeMap<Digest, Encoding>, FsError> {
    let mut objects = BTreeMap::new();
    for (directory, _) in files.list(place::STORE.as_ref())? {
        let listed = files.list(&Path::new(place::STORE).join(&directory))?;
        objects.extend(listed.iter().filter_map(|(name, _)| place::object_named(&directory, name)));
    }
    Ok(objects)
}

/// The digests in the store.
pub(crate) fn digests(files: &Files) -> Result<BTreeSet<Digest>, FsError> {
    Ok(list(files)?.into_keys().collect())
}

/// How an object is stored, and in how many bytes.
fn find(files: &Files, digest: Digest) -> Result<Option<(Encoding, u64)>, FsError> {
    for encoding in [Encoding::Zstd, Encoding::Raw] {
        if let Some(metadata) = files.metadata(&place::object(digest, encoding))? {
            return Ok(Some((encoding, metadata.size)));
        }
    }
    Ok(None)
}

/// Decodes an object of `size` bytes into `content`, checking its digest. What was written before an error must be thrown
/// away.
pub(crate) fn decode(
    files: &Files,
    digest: Digest,
    size: u64,
    content: &mut dyn Write,
) -> Result<(), StoreError> {
    let (encoding, stored_size) = find(files, digest)?.ok_or(StoreError::Missing(digest))?;
    let path = place::object(digest, encoding);
    let stored = files.disk.open(&path).attempt("open", &path)?;
    let entry = ObjectEntry { sha256: digest, size, stored_size, encoding, offset: 0 };
    Ok(decode_object(&entry, stored, content)?)
}

/// Moves files whose content is durable to their places in the store. Their names become durable with the next flush of
/// the file system.
pub(crate) fn adopt(files: &Files, from: &Path, objects: &[(Digest, Encoding)]) -> Result<(), FsError> {
    let mut directories: BTreeSet<_> = files
        .list(place::STORE.as_ref())?
        .into_iter()
        .map(|(name, _)| Path::new(place::STORE).join(name))
        .collect();
    for (digest, encoding) in objects {
        let path = place::object(*digest, *encoding);
        let directory = path.parent().expect("objects lie in a directory of the store");
        if directories.insert(directory.to_owned()) {
            files.ensure_dir(directory, 0o700)?;
        }
        files.rename(&from.join(digest.to_string()), &path)?;
    }
    Ok(())
}

/// Removes an object that is of no use, in whatever encoding it lies there.
pub(crate) fn remove(files: &Files, digest: Digest) -> Result<(), FsError> {
    [Encoding::Zstd, Encoding::Raw]
        .into_iter()
        .try_for_each(|encoding| files.remove_file(&place::object(digest, encoding)))
}

/// Removes every object that is not `named`; returns how many.
pub(crate) fn sweep(files: &Files, named: &BTreeSet<Digest>) -> Result<usize, FsError> {
    let unnamed: Vec<_> = list(files)?.into_iter().filter(|(digest, _)| !named.contains(digest)).collect();
    for (digest, encoding) in &unnamed {
        files.remove_file(&place::object(*digest, *encoding))?;
    }
    Ok(unnamed.len())
}

/// Writes to several files at once: an object that a release has in several places is read and decoded once.
pub(crate) struct Tee<'a>(pub(crate) Vec<Box<dyn crate::disk::NewFile + 'a>>);

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.iter_mut().try_for_each(|file| file.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
