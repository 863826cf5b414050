//! `BSDIFF40`, the format of bsdiff 4.3: a 32-byte header and three bzip2 streams, control, difference and extra.
//!
//! Integers are 64 bits, little endian, sign and magnitude. A control entry is (how many bytes of the base are added to
//! bytes of the difference stream, how many bytes are copied from the extra stream, how far the base is moved on).
//! Sizes up to 2^63-1; a patch can be made for any old file that fits into memory five times. The decoder needs
//! [`MEMORY_BYTES`], whatever the files.

use std::io::{BufReader, Write};

use bzip2::{Compression, bufread::BzDecoder, write::BzEncoder};

use super::{
    Algorithm, CHUNK_BYTES, DeltaError, GenerateOptions, Inputs, Output, Pair, Part,
    base::BaseReader,
    matching::{self, Block},
};
use crate::read_at::{RangeReader, fill};

const MAGIC: [u8; 8] = *b"BSDIFF40";
const HEADER_BYTES: usize = 32;
/// A decoder of the largest block size takes 3.7 MB (bzip2(1)); three of them, the base's cache, the buffers.
const MEMORY_BYTES: u64 = 3 * (4 << 20) + BaseReader::MEMORY_BYTES + 5 * (CHUNK_BYTES as u64) + (1 << 20);
/// How many controls in a row may add nothing to the result. bsdiff makes at most one.
const IDLE_CONTROLS_MAX: u32 = 16;

/// The gains of [`matching::blocks`] that are tried; the smallest patch is kept. bsdiff has 8.
const GAINS: [usize; 2] = [8, 16];

/// Makes a patch.
pub(super) fn generate(pair: &Pair<'_>, options: &GenerateOptions<'_>) -> Result<Vec<u8>, DeltaError> {
    let half = |from: f64| move |done: f64| (options.progress)(from + done / 2.0);
    let (first, second) = (half(0.0), half(0.5));
    let quiet = |_: f64| {};
    let patch_with = |gain, progress: &(dyn Fn(f64) + Sync)| {
        let options = GenerateOptions { progress, ..*options };
        encode(pair, &matching::blocks(pair, gain, &options))
    };
    let patches = if options.threads.get() > 1 {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| patch_with(GAINS[1], &quiet));
            let one = patch_with(GAINS[0], options.progress);
            [one, other.join().unwrap_or_else(|_| Err(refuse("a thread panicked")))]
        })
    } else {
        [patch_with(GAINS[0], &first), patch_with(GAINS[1], &second)]
    };
    let [one, other] = patches;
    let (one, other) = (one?, other?);
    Ok(if other.len() < one.len() { other } else { one })
}

fn refuse(reason: impl Into<String>) -> DeltaError {
    DeltaError::Generate { algorithm: Algorithm::Bsdiff, reason: reason.into() }
}

fn encode(pair: &Pair<'_>, blocks: &[Block]) -> Result<Vec<u8>, DeltaError> {
    let (old, new) = (pair.base(), pair.result());
    let stream = || BzEncoder::new(Vec::new(), Compression::best());
    let (mut control, mut difference, mut extra) = (stream(), stream(), stream());
    let failed = |error: std::io::Error| refuse(error.to_string());
    let mut buffer = Vec::new();
    // bsdiff's first control starts at 0 of both files, so a file that begins with something else begins with an idle one.
    let start = Block { new: 0, old: 0, len: 0 };
    let idle = !new.is_empty() && blocks.first().is_none_or(|block| block.new > 0 || block.old > 0);
    let all: Vec<Block> = idle.then_some(start).into_iter().chain(blocks.iter().copied()).collect();
    for (index, block) in all.iter().enumerate() {
        buffer.clear();
        let pairs = new[block.new..][..block.len].iter().zip(&old[block.old..][..block.len]);
        buffer.extend(pairs.map(|(new, old)| new.wrapping_sub(*old)));
        difference.write_all(&buffer).map_err(failed)?;
        let end = block.new + block.len;
        let next = all.get(index + 1);
        let gap = &new[end..next.map_or(new.len(), |next| next.new)];
        extra.write_all(gap).map_err(failed)?;
        let seek = next.map_or(0, |next| next.old as i64 - (block.old + block.len) as i64);
        for number in [block.len as i64, gap.len() as i64, seek] {
            control.write_all(&encode_integer(number)).map_err(failed)?;
        }
    }
    let control = control.finish().map_err(failed)?;
    let difference = difference.finish().map_err(failed)?;
    let extra = extra.finish().map_err(failed)?;
    let mut patch = Vec::with_capacity(HEADER_BYTES + control.len() + difference.len() + extra.len());
    patch.extend(MAGIC);
    for number in [control.len(), difference.len(), new.len()] {
        patch.extend(encode_integer(number as i64));
    }
    patch.extend(control);
    patch.extend(difference);
    patch.extend(extra);
    Ok(patch)
}

fn encode_integer(number: i64) -> [u8; 8] {
    let sign = if number < 0 { 1 << 63 } else { 0 };
    (number.unsigned_abs() | sign).to_le_bytes()
}

fn decode_integer(bytes: [u8; 8]) -> i64 {
    let bits = u64::from_le_bytes(bytes);
    let magnitude = (bits & !(1 << 63)) as i64;
    if bits >> 63 == 1 { -magnitude } else { magnitude }
}

/// The header, checked: where each stream starts and how long it is.
struct Header {
    control: (u64, u64),
    difference: (u64, u64),
    extra: (u64, u64),
}

impl Header {
    fn read(inputs: &Inputs<'_>) -> Result<Self, DeltaError> {
        if inputs.patch_bytes() < HEADER_BYTES as u64 {
            return Err(inputs.damaged(inputs.patch_bytes(), "header", "it is cut off"));
        }
        let mut header = [0; HEADER_BYTES];
        inputs.read_patch(0, &mut header)?;
        if header[..8] != MAGIC {
            return Err(inputs.damaged(0, "magic", "it does not start with BSDIFF40"));
        }
        let length = |at: usize, field| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::try_from(decode_integer(bytes))
                .map_err(|_| inputs.damaged(at as u64, field, "it is negative"))
        };
        let control = length(8, "length of the control stream")?;
        let difference = length(16, "length of the difference stream")?;
        let result = length(24, "size of the result")?;
        if result != inputs.result_bytes() {
            let (expected, part) = (inputs.result_bytes(), Part::Result);
            return Err(DeltaError::WrongSize { part, expected, actual: result });
        }
        let body = inputs.patch_bytes() - HEADER_BYTES as u64;
        let extra = body
            .checked_sub(control)
            .and_then(|rest| rest.checked_sub(difference))
            .ok_or_else(|| inputs.damaged(8, "lengths of the streams", "they go beyond the patch"))?;
        let at = HEADER_BYTES as u64;
        Ok(Self {
            control: (at, control),
            difference: (at + control, difference),
            extra: (at + control + difference, extra),
        })
    }
}

/// What the decoder needs.
pub(super) fn memory_needed(inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    Header::read(inputs)?;
    Ok(MEMORY_BYTES)
}

/// One of the three streams.
struct Stream<'a> {
    inputs: Inputs<'a>,
    field: &'static str,
    decoded: u64,
    bytes: BzDecoder<BufReader<RangeReader<'a, super::Source<'a>>>>,
}

impl<'a> Stream<'a> {
    fn new(inputs: &Inputs<'a>, field: &'static str, (offset, length): (u64, u64)) -> Self {
        let range = RangeReader::new(inputs.patch(), offset, length);
        let bytes = BzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, range));
        Self { inputs: *inputs, field, decoded: 0, bytes }
    }

    /// Fills `buffer`.
    fn read(&mut self, buffer: &mut [u8]) -> Result<(), DeltaError> {
        let read = fill(&mut self.bytes, buffer);
        let count = read.map_err(|error| self.inputs.damaged(self.decoded, self.field, error.to_string()))?;
        self.decoded += count as u64;
        if count < buffer.len() {
            return Err(self.inputs.damaged(self.decoded, self.field, "it ends too early"));
        }
        Ok(())
    }

    /// The stream must be at its end, with its checksum right and nothing behind it.
    fn finish(mut self) -> Result<(), DeltaError> {
        let damaged = |reason: String| self.inputs.damaged(self.decoded, self.field, reason);
        match fill(&mut self.bytes, &mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(damaged("it has more bytes than the controls use".to_owned())),
            Err(error) => return Err(damaged(error.to_string())),
        }
        match fill(&mut self.bytes.into_inner(), &mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(damaged("there are bytes behind its end".to_owned())),
            Err(source) => Err(DeltaError::Read { part: Part::Patch, source }),
        }
    }
}

/// Applies a patch.
pub(super) fn apply(inputs: &Inputs<'_>, out: &mut Output<'_>) -> Result<(), DeltaError> {
    let header = Header::read(inputs)?;
    let mut control = Stream::new(inputs, "control stream", header.control);
    let mut difference = Stream::new(inputs, "difference stream", header.difference);
    let mut extra = Stream::new(inputs, "extra stream", header.extra);
    let mut base = BaseReader::new(inputs);
    let (mut buffer, mut old) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut position = 0i64;
    let mut idle = 0;
    while out.left() > 0 {
        let at = control.decoded;
        let mut entry = [[0; 8]; 3];
        control.read(entry.as_flattened_mut())?;
        let [add, copy, seek] = entry.map(decode_integer);
        let length = |number: i64, field| {
            let number = u64::try_from(number).map_err(|_| inputs.damaged(at, field, "it is negative"))?;
            if number > out.left() {
                return Err(inputs.damaged(at, field, "it goes beyond the result"));
            }
            Ok(number)
        };
        let (add, copy) = (length(add, "control: add")?, length(copy, "control: copy")?);
        if add + copy > out.left() {
            return Err(inputs.damaged(at, "control", "it goes beyond the result"));
        }
        idle = if add + copy == 0 { idle + 1 } else { 0 };
        if idle > IDLE_CONTROLS_MAX {
            return Err(inputs.damaged(at, "control", "too many entries in a row do nothing"));
        }
        if add > 0 {
            let start = u64::try_from(position).ok();
            let end = start.and_then(|start| start.checked_add(add));
            let (Some(start), true) = (start, end.is_some_and(|end| end <= inputs.base_bytes())) else {
                let reason = format!("it reads {add} bytes of the base at {position}");
                return Err(inputs.damaged(at, "control: add", reason));
            };
            let mut done = 0;
            while done < add {
                let count = usize::try_from(add - done).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                difference.read(&mut buffer[..count])?;
                base.read(start + done, &mut old[..count])?;
                for (byte, old) in buffer[..count].iter_mut().zip(&old[..count]) {
                    *byte = byte.wrapping_add(*old);
                }
                out.put(&buffer[..count])?;
                done += count as u64;
            }
        }
        let mut left = copy;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            extra.read(&mut buffer[..count])?;
            out.put(&buffer[..count])?;
            left -= count as u64;
        }
        position = i64::try_from(add)
            .ok()
            .and_then(|add| position.checked_add(add))
            .and_then(|position| position.checked_add(seek))
            .ok_or_else(|| inputs.damaged(at, "control: seek", "it overflows"))?;
    }
    control.finish()?;
    difference.finish()?;
    extra.finish()
}
