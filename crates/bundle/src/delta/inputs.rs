//! What a decoder reads: the base and the patch, of declared sizes, and the limits it works under.

use super::{Algorithm, Declared, DeltaError, DeltaLimits, Part};
use crate::read_at::ReadAt;

/// A base or a patch: read at offsets, by several threads if a decoder likes.
pub type Source<'a> = dyn ReadAt + Sync + 'a;

/// What a decoder is given. Sizes were checked against the sources when [`super::apply`] made it; the sources may still
/// change under the decoder, which then fails or makes a wrong result, and never anything worse.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    algorithm: Algorithm,
    base: &'a Source<'a>,
    patch: &'a Source<'a>,
    base_bytes: u64,
    patch_bytes: u64,
    result_bytes: u64,
    limits: &'a DeltaLimits,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(
        algorithm: Algorithm,
        base: &'a Source<'a>,
        patch: &'a Source<'a>,
        declared: &Declared,
        limits: &'a DeltaLimits,
    ) -> Self {
        Self {
            algorithm,
            base,
            patch,
            base_bytes: declared.base.size,
            patch_bytes: declared.patch.size,
            result_bytes: declared.result.size,
            limits,
        }
    }

    /// The format of the patch.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The size of the base in bytes.
    pub fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// The size of the patch in bytes.
    pub fn patch_bytes(&self) -> u64 {
        self.patch_bytes
    }

    /// The declared size of the result in bytes.
    pub fn result_bytes(&self) -> u64 {
        self.result_bytes
    }

    /// The limits.
    pub fn limits(&self) -> &'a DeltaLimits {
        self.limits
    }

    /// Fills `buffer` from the base at `offset`.
    ///
    /// # Errors
    /// [`DeltaError::Read`], also when the base ends there: callers check offsets against [`Inputs::base_bytes`].
    pub fn read_base(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        read_exact(self.base, Part::Base, offset, buffer)
    }

    /// Fills `buffer` from the patch at `offset`.
    ///
    /// # Errors
    /// [`DeltaError::Read`], also when the patch ends there: callers check offsets against [`Inputs::patch_bytes`].
    pub fn read_patch(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        read_exact(self.patch, Part::Patch, offset, buffer)
    }

    /// The patch, for readers of a part of it.
    pub fn patch(&self) -> &'a Source<'a> {
        self.patch
    }

    /// A refusal of the patch: `field` at byte `at` is wrong for `reason`.
    pub fn damaged(&self, at: u64, field: &'static str, reason: impl Into<String>) -> DeltaError {
        DeltaError::Patch { algorithm: self.algorithm, at, field, reason: reason.into() }
    }

    /// A refusal of the patch for a part of its format that is not read here.
    pub fn unsupported(&self, feature: impl Into<String>) -> DeltaError {
        DeltaError::Unsupported { algorithm: self.algorithm, feature: feature.into() }
    }
}

fn read_exact(source: &Source<'_>, part: Part, offset: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(DeltaError::Read { part, source });
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(DeltaError::Read { part, source }),
        }
    }
    Ok(())
}
