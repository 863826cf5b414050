//! `zstd --patch-from`: one Zstandard frame (RFC 8878) whose matches reach back into the old file, which lies before it
//! like a prefix. Content size and checksum are in the frame; a dictionary id, a skippable or a further frame is refused.
//!
//! The decoder holds the whole old file and the frame's window: Zstandard gives it no other choice. The window is at most
//! 2 GiB, so in a longer result the old file is out of reach of what comes after its first 2 GiB.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use super::{Algorithm, CHUNK_BYTES, DeltaError, GenerateOptions, Inputs, Output, Pair, Part};
use crate::zstd_frame::{FrameHeader, HEADER_BYTES_MAX};

/// What patches are compressed with: the best level as long as that takes seconds, then the best without `--ultra`.
const LEVEL_SMALL: i32 = 22;
const LEVEL_LARGE: i32 = 19;
/// The largest result, in bytes, that counts as small.
const SMALL_BYTES_MAX: usize = 16 << 20;
/// The encoder stops to look for a better match when it has one of this length (`ZSTD_TARGETLENGTH_MAX`).
const TARGET_LENGTH: u32 = 128 << 10;
/// The most positions of which the encoder keeps a tree, as a power of two (two links for each), and the heads of the trees:
/// 1 GiB of memory with the level for small results; 128 and 128 MiB with that for large ones, where more takes longer and saves
/// little (measured on 150 MB: 10.1 MB with the level's own 24 and 22, 5.9 MB with these, 5.7 MB with 27 and 26).
const CHAIN_LOG_MAX_SMALL: u32 = 28;
const CHAIN_LOG_MAX_LARGE: u32 = 25;
const HASH_LOG_MAX_LARGE: u32 = 25;
/// How much goes into one block. From 128 KiB on, zstd 1.5.7 guesses at block borders before it has compressed, which
/// costs a patch of few bytes more than it saves (measured: 1322 against 1148 bytes on a 9 MB script).
const BLOCK_BYTES: usize = CHUNK_BYTES - 1;
const WINDOW_LOG_MIN: u32 = 10;
const WINDOW_LOG_MAX: u32 = 31;
/// The decoder's tables, a block, the buffers for input and output.
const FIXED_BYTES: u64 = (1 << 20) + 3 * CHUNK_BYTES as u64;

/// Makes a patch.
pub(super) fn generate(pair: &Pair<'_>, options: &GenerateOptions<'_>) -> Result<Vec<u8>, DeltaError> {
    compress(pair, options)
        .map_err(|error| DeltaError::Generate { algorithm: Algorithm::ZstdDict, reason: error.to_string() })
}

/// The log of a window from which every byte of `bytes` can be reached.
fn window_log(bytes: u64) -> u32 {
    (u64::BITS - bytes.leading_zeros()).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX)
}

fn compress(pair: &Pair<'_>, options: &GenerateOptions<'_>) -> io::Result<Vec<u8>> {
    let (old, new) = (pair.base(), pair.result());
    let is_small = new.len() <= SMALL_BYTES_MAX;
    let mut encoder = Encoder::with_ref_prefix(if is_small { LEVEL_SMALL } else { LEVEL_LARGE }, old)?;
    encoder.set_parameter(CParameter::WindowLog(window_log(new.len() as u64)))?;
    encoder.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
    // What is farther back than the trees reach is found by long-distance matching alone.
    let both = window_log(old.len() as u64 + new.len() as u64);
    if is_small {
        encoder.set_parameter(CParameter::TargetLength(TARGET_LENGTH))?;
        encoder.set_parameter(CParameter::ChainLog((both + 1).min(CHAIN_LOG_MAX_SMALL)))?;
    } else {
        encoder.set_parameter(CParameter::ChainLog((both + 1).min(CHAIN_LOG_MAX_LARGE)))?;
        encoder.set_parameter(CParameter::HashLog(both.min(HASH_LOG_MAX_LARGE)))?;
    }
    encoder.set_parameter(CParameter::ContentSizeFlag(true))?;
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    encoder.set_parameter(CParameter::DictIdFlag(false))?;
    encoder.set_pledged_src_size(Some(new.len() as u64))?;
    let mut patch = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    for block in new.chunks(BLOCK_BYTES) {
        let mut input = InBuffer::around(block);
        let mut left = 1;
        while input.pos() < block.len() || left > 0 {
            let mut output = OutBuffer::around(buffer.as_mut_slice());
            if input.pos() < block.len() {
                encoder.run(&mut input, &mut output)?;
            } else {
                left = encoder.flush(&mut output)?;
            }
            patch.extend_from_slice(output.as_slice());
        }
        done += block.len();
        (options.progress)(done as f64 / new.len() as f64);
    }
    loop {
        let mut output = OutBuffer::around(buffer.as_mut_slice());
        let left = encoder.finish(&mut output, true)?;
        patch.extend_from_slice(output.as_slice());
        if left == 0 {
            return Ok(patch);
        }
    }
}

fn header(inputs: &Inputs<'_>) -> Result<FrameHeader, DeltaError> {
    let length = usize::try_from(inputs.patch_bytes()).unwrap_or(usize::MAX).min(HEADER_BYTES_MAX);
    let mut bytes = [0; HEADER_BYTES_MAX];
    inputs.read_patch(0, &mut bytes[..length])?;
    let damaged = |reason: String| inputs.damaged(0, "frame header", reason);
    let header = FrameHeader::parse(&bytes[..length]).map_err(damaged)?;
    match header.content_bytes {
        None => return Err(damaged("it does not declare the size of its content".to_owned())),
        Some(actual) if actual != inputs.result_bytes() => {
            let (part, expected) = (Part::Result, inputs.result_bytes());
            return Err(DeltaError::WrongSize { part, expected, actual });
        }
        Some(_) => {}
    }
    if !header.has_checksum {
        return Err(inputs.unsupported("a frame without a checksum"));
    }
    if header.window_bytes > 1 << WINDOW_LOG_MAX {
        return Err(inputs.unsupported(format!("a window of {} bytes", header.window_bytes)));
    }
    Ok(header)
}

/// What the decoder needs: the old file, the window, which never holds more than the result, and some fixed tables.
pub(super) fn memory_needed(inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    let window = header(inputs)?.window_bytes.min(inputs.result_bytes());
    Ok(inputs.base_bytes().saturating_add(window).saturating_add(FIXED_BYTES))
}

/// Applies a patch.
pub(super) fn apply(inputs: &Inputs<'_>, out: &mut Output<'_>) -> Result<(), DeltaError> {
    let header = header(inputs)?;
    let base = inputs.whole_base()?;
    let mut at = 0;
    let damaged = |at: u64, error: io::Error| inputs.damaged(at, "frame", error.to_string());
    let mut decoder = Decoder::with_ref_prefix(&base).map_err(|error| damaged(0, error))?;
    let log = window_log(header.window_bytes);
    decoder.set_parameter(DParameter::WindowLogMax(log)).map_err(|error| damaged(0, error))?;
    let (mut chunk, mut buffer) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut ended = false;
    while at < inputs.patch_bytes() {
        if ended {
            return Err(inputs.damaged(at, "frame", "there are bytes behind it"));
        }
        let length = usize::try_from(inputs.patch_bytes() - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        inputs.read_patch(at, &mut chunk[..length])?;
        let mut input = InBuffer::around(&chunk[..length]);
        let mut full = true;
        while !ended && (full || input.pos() < length) {
            let mut output = OutBuffer::around(buffer.as_mut_slice());
            // The hint is 0 exactly when the frame is decoded and flushed.
            let hint = decoder.run(&mut input, &mut output);
            ended = hint.map_err(|error| damaged(at + input.pos() as u64, error))? == 0;
            full = output.pos() == CHUNK_BYTES;
            out.put(output.as_slice())?;
        }
        at += input.pos() as u64;
        if ended && input.pos() < length {
            return Err(inputs.damaged(at, "frame", "there are bytes behind it"));
        }
    }
    if ended { Ok(()) } else { Err(inputs.damaged(at, "frame", "it is cut off")) }
}
