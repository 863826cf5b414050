//! `refdelta`, the project's own codec: what moved in a rebuilt executable is predicted, and only what surprises stored.
//!
//! A small change of a program moves most of its code and data, and so changes most addresses in it. The generator finds
//! blocks of the old file in the new one; both sides find the fields of the old file that hold addresses, predict from
//! the blocks where they point to now, and code only whether that was right. Files that are not executables have blocks
//! and no fields. Format and bounds: `docs/formats/refdelta.md`; what was tried: `docs/decisions/0014-refdelta.md`.
//!
//! Owns the format; never opens a file. Read [`references`] first, then [`find`], [`predict`] and [`apply`].

mod apply;
mod arm64;
mod batches;
mod bits;
mod block;
mod control;
mod filter;
mod find;
mod frame_index;
mod header;
mod image;
mod literals;
mod make;
mod mix;
mod predict;
mod project;
mod references;
mod streams;
#[cfg(test)]
pub(super) mod tests;
mod x86;

use super::{DeltaError, GenerateOptions, Inputs, Output, Pair, Part};

/// What is wrong with a patch, before it is known whose patch it is.
#[derive(Debug)]
struct Damage {
    at: u64,
    field: &'static str,
    reason: String,
}

impl Damage {
    fn new(at: u64, field: &'static str, reason: &str) -> Self {
        Self { at, field, reason: reason.to_owned() }
    }
}

/// Makes a patch and proves it with the decoder.
///
/// # Errors
/// [`DeltaError::Generate`] for files of 2 GiB and more, and when there is no memory for the index of the old file:
/// about seven times its size.
pub(super) fn generate(pair: &Pair<'_>, options: &GenerateOptions<'_>) -> Result<Vec<u8>, DeltaError> {
    make::generate(pair, options)
}

/// Whether both files are executables whose references this codec knows, a good part of them code.
pub(super) fn are_programs(pair: &Pair<'_>) -> bool {
    make::are_programs(pair)
}

fn read_header(inputs: &Inputs<'_>) -> Result<(header::Header, usize), DeltaError> {
    let mut bytes = [0; header::HEADER_BYTES_MAX];
    let len = inputs.patch_bytes().min(bytes.len() as u64) as usize;
    inputs.read_patch(0, &mut bytes[..len])?;
    let damaged = |damage: Damage| inputs.damaged(damage.at, damage.field, damage.reason);
    let (header, begin) = header::Header::decode(&bytes[..len], inputs.patch_bytes()).map_err(damaged)?;
    if u64::from(header.old_len) != inputs.base_bytes() {
        let (expected, actual) = (u64::from(header.old_len), inputs.base_bytes());
        return Err(DeltaError::WrongSize { part: Part::Base, expected, actual });
    }
    if u64::from(header.new_len) != inputs.result_bytes() {
        let (expected, actual) = (inputs.result_bytes(), u64::from(header.new_len));
        return Err(DeltaError::WrongSize { part: Part::Result, expected, actual });
    }
    Ok((header, begin))
}

/// The decoder's memory in bytes, from the header alone.
///
/// # Errors
/// [`DeltaError::Patch`], [`DeltaError::WrongSize`], [`DeltaError::Read`].
pub(super) fn memory_needed(inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    let (header, _) = read_header(inputs)?;
    Ok(apply::memory(&header, inputs.patch_bytes()))
}

/// The decoder.
///
/// # Errors
/// [`DeltaError::Patch`], [`DeltaError::Read`], [`DeltaError::Write`].
pub(super) fn apply(inputs: &Inputs<'_>, out: &mut Output<'_>) -> Result<(), DeltaError> {
    let (header, begin) = read_header(inputs)?;
    apply::decode(inputs, &header, begin, out)
}
