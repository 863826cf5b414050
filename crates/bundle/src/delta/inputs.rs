//! What a decoder reads: the base and the patch, of declared sizes, and the limits it works under.

use std::borrow::Cow;

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
    held: Option<&'a [u8]>,
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
            held: None,
            patch,
            base_bytes: declared.base.size,
            patch_bytes: declared.patch.size,
            result_bytes: declared.result.size,
            limits,
        }
    }

    /// The same with the base in memory, as it was checked.
    pub(super) fn holding(self, base: &'a [u8]) -> Self {
        Self { held: Some(base), ..self }
    }

    /// The whole base, for decoders that need all of it at hand.
    ///
    /// # Errors
    /// [`DeltaError::Read`]; [`DeltaError::Memory`] when there is none for it.
    pub(super) fn whole_base(&self) -> Result<Cow<'a, [u8]>, DeltaError> {
        if let Some(base) = self.held {
            return Ok(Cow::Borrowed(base));
        }
        let mut base = self.room_for_base()?;
        self.read_base(0, &mut base)?;
        Ok(Cow::Owned(base))
    }

    /// Memory for the whole base.
    ///
    /// # Errors
    /// [`DeltaError::Memory`] when there is none.
    pub(super) fn room_for_base(&self) -> Result<Vec<u8>, DeltaError> {
        let (needed, limit) = (self.base_bytes, self.limits.memory_bytes_max);
        let memory = || DeltaError::Memory { algorithm: self.algorithm, needed, limit };
        let bytes = usize::try_from(needed).ok().filter(|_| needed <= limit).ok_or_else(memory)?;
        // Asked for first, since zeroed memory that cannot be had ends the program.
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| memory())?;
        Ok(vec![0; bytes])
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
