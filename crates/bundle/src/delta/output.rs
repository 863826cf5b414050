//! What a decoder writes: counted against the declared size, hashed as it streams.

use std::io::Write;

use cutover_core::model::{Digest, Hasher};

use super::{DeltaError, Part};

/// The result as it is made. No byte beyond the declared size ever reaches the sink.
pub struct Output<'a> {
    sink: &'a mut dyn Write,
    hasher: Hasher,
    expected: u64,
    written: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(sink: &'a mut dyn Write, expected: u64) -> Self {
        Self { sink, hasher: Hasher::new(), expected, written: 0 }
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.expected - self.written
    }

    /// Writes `bytes`.
    ///
    /// # Errors
    /// [`DeltaError::WrongSize`] when they are more than are declared, and then none of them is written;
    /// [`DeltaError::Write`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if written > self.expected {
            return Err(DeltaError::WrongSize {
                part: Part::Result,
                expected: self.expected,
                actual: written,
            });
        }
        self.hasher.update(bytes);
        self.sink.write_all(bytes).map_err(DeltaError::Write)?;
        self.written = written;
        Ok(())
    }

    pub(super) fn finish(self, expected: Digest) -> Result<(), DeltaError> {
        self.finish_size()?;
        let actual = self.hasher.finish();
        let part = Part::Result;
        if actual == expected { Ok(()) } else { Err(DeltaError::WrongDigest { part, expected, actual }) }
    }

    pub(super) fn finish_size(&self) -> Result<(), DeltaError> {
        let (expected, actual) = (self.expected, self.written);
        let part = Part::Result;
        if actual == expected { Ok(()) } else { Err(DeltaError::WrongSize { part, expected, actual }) }
    }
}
