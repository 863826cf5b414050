//! Reading at an offset, so that several threads can read objects of one bundle at once.

use std::{fs::File, io, ops::Deref, sync::Arc};

/// A source of bytes that is read at offsets. It has no position, so threads can share it.
pub trait ReadAt {
    /// Reads some bytes at `offset` into `buf` and returns how many; 0 means that the source ends there.
    ///
    /// # Errors
    /// Whatever the source reports.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The size of the source in bytes.
    ///
    /// # Errors
    /// Whatever the source reports.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.deref().read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.deref().size()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

/// A part of a [`ReadAt`] as a stream.
pub struct RangeReader<'a, R: ?Sized> {
    source: &'a R,
    at: u64,
    end: u64,
}

impl<'a, R: ReadAt + ?Sized> RangeReader<'a, R> {
    /// Streams `length` bytes of `source` from `offset` on; ends early where the source ends.
    pub fn new(source: &'a R, offset: u64, length: u64) -> Self {
        Self { source, at: offset, end: offset.saturating_add(length) }
    }
}

impl<R: ReadAt + ?Sized> io::Read for RangeReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buf.len().min(left);
        let count = self.source.read_at(&mut buf[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Reads until `buf` is full or the stream ends; returns how many bytes were read.
pub(crate) fn fill(reader: &mut dyn io::Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
