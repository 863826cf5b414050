//! The digest and the size of what is written.

use std::io;

use cutover_core::model::Hasher;

use crate::index::FileRef;

/// Hashes what is written to it.
#[derive(Default)]
pub(crate) struct HashWriter {
    hasher: Hasher,
    size: u64,
}

impl HashWriter {
    pub(crate) fn finish(self) -> FileRef {
        FileRef { sha256: self.hasher.finish(), size: self.size }
    }
}

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what is read through it.
pub(crate) struct HashReader<R> {
    inner: R,
    hashed: HashWriter,
}

impl<R: io::Read> HashReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hashed: HashWriter::default() }
    }

    pub(crate) fn finish(self) -> FileRef {
        self.hashed.finish()
    }
}

impl<R: io::Read> io::Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        io::Write::write(&mut self.hashed, &buffer[..count])
    }
}
