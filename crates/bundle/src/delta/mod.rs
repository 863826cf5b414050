//! Deltas: an old file and a patch become a new file, byte for byte, in bounded memory; and how patches are made.
//!
//! Owns five patch formats behind one pair of functions, [`generate`] and [`apply`]. An [`Algorithm`] always means the
//! real format it names. Patches are hostile until proven otherwise: [`apply`] checks the base, then the patch's size
//! and digest, before a decoder interprets one byte; a decoder checks every number before it allocates or seeks by it;
//! the output stops at the declared size and must have the declared digest. This module opens no files and knows no
//! clock. Read [`apply`] first. Formats: `docs/formats/delta.md`.
//!
//! One codec is one module with three functions: `generate(pair, options)`, which makes a patch; `memory_needed(inputs)`,
//! which reads no more than what it needs to tell the decoder's memory; and `apply(inputs, out)`, the decoder.

mod base;
mod bsdiff;
pub mod choose;
mod error;
mod inputs;
mod matching;
mod output;
mod pair;
mod refdelta;
mod vcdiff;
mod zstd_dict;

use std::io::Write;

use cutover_core::model::{Digest, Hasher};

pub use cutover_core::model::{DeltaAlgorithm as Algorithm, UnknownDeltaAlgorithm};
pub use error::{DeltaError, Part};
pub use inputs::{Inputs, Source};
pub use output::Output;
pub use pair::{GenerateOptions, Pair, SUFFIX_ARRAY_BYTES_MAX, SuffixArray};

use crate::read_at::ReadAt;

/// What a file must be: its size and digest. Comes from a signed manifest; there is no way to leave one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: Digest,
}

impl Content {
    /// Measures bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, sha256: Digest::of(bytes) }
    }

    /// Measures `source` from its start to its end.
    ///
    /// # Errors
    /// Whatever the source reports.
    pub fn read(source: &dyn ReadAt) -> std::io::Result<Self> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut size = 0;
        loop {
            match source.read_at(&mut buffer, size) {
                Ok(0) => return Ok(Self { size, sha256: hasher.finish() }),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuses `source` unless it is this content.
    ///
    /// # Errors
    /// [`DeltaError::Read`], [`DeltaError::WrongSize`] before a byte is read, or [`DeltaError::WrongDigest`].
    pub fn check(&self, part: Part, source: &dyn ReadAt) -> Result<(), DeltaError> {
        let read = |source| DeltaError::Read { part, source };
        let size = source.size().map_err(read)?;
        if size != self.size {
            return Err(DeltaError::WrongSize { part, expected: self.size, actual: size });
        }
        let found = Self::read(source).map_err(read)?;
        if found.size != self.size {
            return Err(DeltaError::WrongSize { part, expected: self.size, actual: found.size });
        }
        if found.sha256 != self.sha256 {
            return Err(DeltaError::WrongDigest { part, expected: self.sha256, actual: found.sha256 });
        }
        Ok(())
    }
}

/// How much of a base is read before it goes to the thread that hashes it, in bytes.
const HOLD_BYTES: usize = 1 << 20;

impl Content {
    /// Reads the base into memory, once, and refuses it unless it is this content.
    ///
    /// # Errors
    /// As [`Content::check`], and [`DeltaError::Memory`].
    fn hold(&self, inputs: &Inputs<'_>, source: &Source<'_>) -> Result<Vec<u8>, DeltaError> {
        let part = Part::Base;
        let size = source.size().map_err(|source| DeltaError::Read { part, source })?;
        if size != self.size {
            return Err(DeltaError::WrongSize { part, expected: self.size, actual: size });
        }
        let mut base = inputs.room_for_base()?;
        let actual = std::thread::scope(|scope| {
            let (to_hash, read) = std::sync::mpsc::channel::<&[u8]>();
            let hash = scope.spawn(move || {
                let mut hasher = Hasher::new();
                read.iter().for_each(|bytes| hasher.update(bytes));
                hasher.finish()
            });
            for (number, bytes) in base.chunks_mut(HOLD_BYTES).enumerate() {
                inputs.read_base((number * HOLD_BYTES) as u64, bytes)?;
                // It can only have ended by a panic, which the join shows.
                let _ = to_hash.send(bytes);
            }
            drop(to_hash);
            hash.join().map_err(|_| DeltaError::Read { part, source: std::io::ErrorKind::Other.into() })
        })?;
        if actual != self.sha256 {
            return Err(DeltaError::WrongDigest { part, expected: self.sha256, actual });
        }
        Ok(base)
    }
}

/// How much is read at once where nothing else decides it, in bytes.
pub(crate) const CHUNK_BYTES: usize = 128 << 10;

/// What the signed manifest says about one patch and both files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The file it applies to.
    pub base: Content,
    /// The patch itself.
    pub patch: Content,
    /// What comes out.
    pub result: Content,
}

/// Bounds on what applying one patch may take; the defaults are in [`DeltaLimits::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaLimits {
    /// Most bytes of memory a decoder may need, by its own reckoning before it allocates.
    pub memory_bytes_max: u64,
    /// Most bytes a result may have.
    pub result_bytes_max: u64,
    /// Most bytes a patch may have.
    pub patch_bytes_max: u64,
}

impl Default for DeltaLimits {
    /// 1 GiB of memory; 1 TiB of result and of patch, as for a file of a manifest.
    fn default() -> Self {
        Self { memory_bytes_max: 1 << 30, result_bytes_max: 1 << 40, patch_bytes_max: 1 << 40 }
    }
}

/// What applying a patch took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The bound on the decoder's memory that was checked before it began, in bytes.
    pub memory_bytes: u64,
    /// How many bytes were written: the declared size of the result.
    pub result_bytes: u64,
}

/// The algorithms that this build generates and applies.
pub const AVAILABLE: &[Algorithm] =
    &[Algorithm::Bsdiff, Algorithm::Xdelta3, Algorithm::Vcdiff, Algorithm::ZstdDict, Algorithm::Refdelta];

/// Makes a patch that turns `pair.base()` into `pair.result()`.
///
/// # Errors
/// [`DeltaError::Unavailable`], or [`DeltaError::Generate`] where the format cannot hold such files.
pub fn generate(
    algorithm: Algorithm,
    pair: &Pair<'_>,
    options: &GenerateOptions<'_>,
) -> Result<Vec<u8>, DeltaError> {
    match algorithm {
        Algorithm::Bsdiff => bsdiff::generate(pair, options),
        Algorithm::Xdelta3 => vcdiff::generate(vcdiff::Dialect::Xdelta3, pair, options),
        Algorithm::Vcdiff => vcdiff::generate(vcdiff::Dialect::Plain, pair, options),
        Algorithm::ZstdDict => zstd_dict::generate(pair, options),
        Algorithm::Refdelta => refdelta::generate(pair, options),
    }
}

/// Applies `patch` to `old` and writes the result to `out`, which comes back only when everything held. On any error it
/// is dropped, with whatever it had received: give a file that removes itself when it is dropped.
///
/// In this order: limits, the base's size and digest, the patch's size and digest, the memory that the decoder says it
/// needs, the decoder, the result's size and digest. Nothing is flushed.
///
/// # Errors
/// See [`DeltaError`].
pub fn apply<W: Write>(
    algorithm: Algorithm,
    old: &Source<'_>,
    patch: &Source<'_>,
    declared: &Declared,
    limits: &DeltaLimits,
    mut out: W,
) -> Result<(W, Applied), DeltaError> {
    limits.check("size of the result", declared.result.size, limits.result_bytes_max)?;
    limits.check("size of the patch", declared.patch.size, limits.patch_bytes_max)?;
    let mut inputs = Inputs::new(algorithm, old, patch, declared, limits);
    let held = if holds_base(algorithm) { Some(declared.base.hold(&inputs, old)?) } else { None };
    match &held {
        Some(base) => inputs = inputs.holding(base),
        None => declared.base.check(Part::Base, old)?,
    }
    declared.patch.check(Part::Patch, patch)?;
    let memory_bytes = checked_memory(&inputs)?;
    let mut output = Output::new(&mut out, declared.result.size);
    decode(&inputs, &mut output)?;
    output.finish(declared.result.sha256)?;
    Ok((out, Applied { memory_bytes, result_bytes: declared.result.size }))
}

/// Whether both files are executables of one machine, a good part of them code: what [`Algorithm::Refdelta`] was made for.
fn are_programs(pair: &Pair<'_>) -> bool {
    refdelta::are_programs(pair)
}

/// Runs the bare decoder: nothing is hashed, so what comes out is worth nothing. For fuzzing and tests of the decoders.
///
/// # Errors
/// As [`apply`], but for digests.
pub fn decode_unchecked(
    algorithm: Algorithm,
    old: &Source<'_>,
    patch: &Source<'_>,
    result_bytes: u64,
    limits: &DeltaLimits,
    out: &mut dyn Write,
) -> Result<Applied, DeltaError> {
    let size = |part, source: &Source<'_>| source.size().map_err(|source| DeltaError::Read { part, source });
    let of = |size| Content { size, sha256: Digest::of(b"") };
    let declared = Declared {
        base: of(size(Part::Base, old)?),
        patch: of(size(Part::Patch, patch)?),
        result: of(result_bytes),
    };
    let inputs = Inputs::new(algorithm, old, patch, &declared, limits);
    let memory_bytes = checked_memory(&inputs)?;
    let mut output = Output::new(out, result_bytes);
    decode(&inputs, &mut output)?;
    output.finish_size()?;
    Ok(Applied { memory_bytes, result_bytes })
}

/// The memory a decoder will need at most for this patch, in bytes, from the patch's headers alone.
///
/// # Errors
/// [`DeltaError::Unavailable`], [`DeltaError::Patch`], [`DeltaError::Unsupported`] or a failed read.
pub fn memory_needed(
    algorithm: Algorithm,
    old: &Source<'_>,
    patch: &Source<'_>,
    declared: &Declared,
    limits: &DeltaLimits,
) -> Result<u64, DeltaError> {
    needed(&Inputs::new(algorithm, old, patch, declared, limits))
}

fn checked_memory(inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    let needed = needed(inputs)?;
    let limit = inputs.limits().memory_bytes_max;
    if needed > limit {
        return Err(DeltaError::Memory { algorithm: inputs.algorithm(), needed, limit });
    }
    Ok(needed)
}

/// Whether the decoder has all of the base in memory.
fn holds_base(algorithm: Algorithm) -> bool {
    match algorithm {
        Algorithm::Bsdiff | Algorithm::Xdelta3 | Algorithm::Vcdiff => false,
        Algorithm::ZstdDict | Algorithm::Refdelta => true,
    }
}

/// The dispatch to each codec's `memory_needed`.
fn needed(inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    match inputs.algorithm() {
        Algorithm::Bsdiff => bsdiff::memory_needed(inputs),
        Algorithm::Xdelta3 => vcdiff::memory_needed(vcdiff::Dialect::Xdelta3, inputs),
        Algorithm::Vcdiff => vcdiff::memory_needed(vcdiff::Dialect::Plain, inputs),
        Algorithm::ZstdDict => zstd_dict::memory_needed(inputs),
        Algorithm::Refdelta => refdelta::memory_needed(inputs),
    }
}

/// The dispatch to each codec's `apply`.
fn decode(inputs: &Inputs<'_>, out: &mut Output<'_>) -> Result<(), DeltaError> {
    match inputs.algorithm() {
        Algorithm::Bsdiff => bsdiff::apply(inputs, out),
        Algorithm::Xdelta3 => vcdiff::apply(vcdiff::Dialect::Xdelta3, inputs, out),
        Algorithm::Vcdiff => vcdiff::apply(vcdiff::Dialect::Plain, inputs, out),
        Algorithm::ZstdDict => zstd_dict::apply(inputs, out),
        Algorithm::Refdelta => refdelta::apply(inputs, out),
    }
}

impl DeltaLimits {
    fn check(&self, what: &'static str, actual: u64, limit: u64) -> Result<(), DeltaError> {
        if actual > limit { Err(DeltaError::Limit { what, actual, limit }) } else { Ok(()) }
    }
}
