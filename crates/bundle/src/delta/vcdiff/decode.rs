//! Applying a patch, window by window.

use super::{
    Dialect, SECTIONS, adler32,
    cache::AddressCache,
    layout::{Layout, Window, Windows},
    lzma::Decompressor,
    read_varint,
    table::{Kind, TABLE},
};
use crate::delta::{DeltaError, Inputs, Output, base::BaseReader};

/// How many instructions in a row may make nothing. Nobody writes even one.
const IDLE_INSTRUCTIONS_MAX: u32 = 16;

/// Applies a patch.
pub(in crate::delta) fn apply(
    dialect: Dialect,
    inputs: &Inputs<'_>,
    out: &mut Output<'_>,
) -> Result<(), DeltaError> {
    let layout = Layout::read(dialect, inputs)?;
    let secondary = layout.lzma_bytes.iter().any(|bytes| *bytes > 0)
        || layout.decoded_bytes_max.iter().any(|bytes| *bytes > 0);
    let mut sections = Vec::new();
    for index in 0..3 {
        sections.push(SectionReader::new(inputs, &layout, index)?);
    }
    let mut decoder = Decoder {
        inputs: *inputs,
        base: BaseReader::new(inputs),
        kept: reserve(inputs, layout.kept_bytes)?,
        kept_bytes: layout.kept_bytes,
        target: reserve(inputs, layout.target_bytes_max)?,
    };
    let mut windows = Windows::new(dialect, inputs, layout.windows_at);
    while let Some(window) = windows.next(secondary)? {
        // A patch that changes while it is read must not make more of memory than was reckoned.
        let kept = window.segment.of_result && window.segment.at + window.segment.len > layout.kept_bytes;
        if kept || window.target_bytes > layout.target_bytes_max {
            return Err(inputs.damaged(window.at, "window", "the patch changed while it was read"));
        }
        for (index, section) in sections.iter_mut().enumerate() {
            section.read(inputs, &window, index)?;
        }
        decoder.window(&window, sections[0].bytes(), sections[1].bytes(), sections[2].bytes())?;
        out.put(&decoder.target)?;
        decoder.keep();
    }
    Ok(())
}

/// A vector with room for exactly `bytes` bytes, which were reckoned before.
fn reserve(inputs: &Inputs<'_>, bytes: u64) -> Result<Vec<u8>, DeltaError> {
    let mut vector = Vec::new();
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    vector.try_reserve_exact(size).map_err(|_| DeltaError::Memory {
        algorithm: inputs.algorithm(),
        needed: bytes,
        limit: inputs.limits().memory_bytes_max,
    })?;
    Ok(vector)
}

/// Reads one section type, window after window.
struct SectionReader {
    raw: Vec<u8>,
    decoded: Vec<u8>,
    raw_max: u64,
    decoded_max: u64,
    decompressor: Option<Decompressor>,
    is_compressed: bool,
}

impl SectionReader {
    fn new(inputs: &Inputs<'_>, layout: &Layout, index: usize) -> Result<Self, DeltaError> {
        let memory = layout.lzma_bytes[index];
        let decompressor = (memory > 0).then(|| Decompressor::new(memory)).transpose();
        Ok(Self {
            raw: reserve(inputs, layout.raw_bytes_max[index])?,
            decoded: reserve(inputs, layout.decoded_bytes_max[index])?,
            raw_max: layout.raw_bytes_max[index],
            decoded_max: layout.decoded_bytes_max[index],
            decompressor: decompressor
                .map_err(|reason| inputs.damaged(layout.windows_at, SECTIONS[index], reason))?,
            is_compressed: false,
        })
    }

    fn read(&mut self, inputs: &Inputs<'_>, window: &Window, index: usize) -> Result<(), DeltaError> {
        let section = &window.sections[index];
        let damaged = |reason: String| inputs.damaged(section.at, SECTIONS[index], reason);
        if section.len > self.raw_max || section.decoded.is_some_and(|bytes| bytes > self.decoded_max) {
            return Err(damaged("the patch changed while it was read".to_owned()));
        }
        self.raw.clear();
        self.raw.resize(section.len as usize, 0);
        inputs.read_patch(section.at, &mut self.raw)?;
        self.is_compressed = section.decoded.is_some();
        if let Some(bytes) = section.decoded {
            self.decoded.clear();
            self.decoded.resize(bytes as usize, 0);
            match &mut self.decompressor {
                Some(decompressor) => decompressor.section(&self.raw, &mut self.decoded).map_err(damaged)?,
                None if bytes == 0 && self.raw.is_empty() => {}
                None => return Err(damaged("it is empty, and declares bytes".to_owned())),
            }
        }
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        if self.is_compressed { &self.decoded } else { &self.raw }
    }
}

struct Decoder<'a> {
    inputs: Inputs<'a>,
    base: BaseReader<'a>,
    /// The start of the result, as far as later windows copy from it.
    kept: Vec<u8>,
    kept_bytes: u64,
    target: Vec<u8>,
}

impl Decoder<'_> {
    /// Makes one window in `target`.
    fn window(
        &mut self,
        window: &Window,
        data: &[u8],
        instructions: &[u8],
        addresses: &[u8],
    ) -> Result<(), DeltaError> {
        let size = window.target_bytes as usize;
        let mut cache = AddressCache::new();
        let (mut data_at, mut at, mut address_at) = (0, 0, 0);
        self.target.clear();
        let inputs = self.inputs;
        let damaged = |section: usize, at: usize, reason: &str| {
            let offset = window.sections[section].at;
            let place = if window.sections[section].decoded.is_some() { 0 } else { offset };
            inputs.damaged(place + at as u64, SECTIONS[section], reason)
        };
        let mut idle = 0;
        while let Some(code) = instructions.get(at) {
            let code_at = at;
            at += 1;
            for instruction in TABLE[usize::from(*code)] {
                if instruction.kind == Kind::Noop {
                    continue;
                }
                let length = match instruction.size {
                    0 => read_varint(instructions, &mut at)
                        .ok_or_else(|| damaged(1, code_at, "a size is cut off or has more than 64 bits"))?,
                    size => u64::from(size),
                };
                let left = size - self.target.len();
                let length = usize::try_from(length).ok().filter(|length| *length <= left);
                let length =
                    length.ok_or_else(|| damaged(1, code_at, "an instruction goes beyond its window"))?;
                idle = if length == 0 { idle + 1 } else { 0 };
                if idle > IDLE_INSTRUCTIONS_MAX {
                    return Err(damaged(1, code_at, "too many instructions in a row do nothing"));
                }
                match instruction.kind {
                    Kind::Noop => {}
                    Kind::Add => {
                        let bytes = data.get(data_at..).and_then(|data| data.get(..length));
                        let bytes = bytes.ok_or_else(|| damaged(0, data_at, "it ends too early"))?;
                        self.target.extend_from_slice(bytes);
                        data_at += length;
                    }
                    Kind::Run => {
                        let byte =
                            data.get(data_at).ok_or_else(|| damaged(0, data_at, "it ends too early"))?;
                        self.target.resize(self.target.len() + length, *byte);
                        data_at += 1;
                    }
                    Kind::Copy(mode) => {
                        let here = window.segment.len + self.target.len() as u64;
                        let address = cache
                            .decode(mode, here, addresses, &mut address_at)
                            .map_err(|reason| damaged(2, address_at, reason))?;
                        self.copy(window, address, length)?;
                    }
                }
            }
        }
        if self.target.len() != size {
            return Err(damaged(1, at, "they make fewer bytes than the window has"));
        }
        if data_at != data.len() {
            return Err(damaged(0, data_at, "it has bytes that no instruction uses"));
        }
        if address_at != addresses.len() {
            return Err(damaged(2, address_at, "it has bytes that no instruction uses"));
        }
        match window.adler32 {
            Some(expected) if expected != adler32(&self.target) => {
                Err(inputs.damaged(window.at, "Adler-32", "the window has another one"))
            }
            _ => Ok(()),
        }
    }

    /// Copies from the source segment followed by the window itself; `address` is before the end of both, and `length`
    /// bytes fit into the window.
    fn copy(&mut self, window: &Window, address: u64, length: usize) -> Result<(), DeltaError> {
        let mut length = length;
        let mut address = address;
        if address < window.segment.len {
            let count = usize::try_from(window.segment.len - address).unwrap_or(usize::MAX).min(length);
            let from = window.segment.at + address;
            if window.segment.of_result {
                // The layout keeps everything that a segment covers.
                let from = from as usize;
                self.target.extend_from_slice(&self.kept[from..from + count]);
            } else {
                let start = self.target.len();
                self.target.resize(start + count, 0);
                self.base.read(from, &mut self.target[start..])?;
            }
            length -= count;
            address = window.segment.len;
        }
        let from = (address - window.segment.len) as usize;
        // What is copied may overlap what it makes: in steps of what there is already.
        while length > 0 {
            let count = length.min(self.target.len() - from);
            self.target.extend_from_within(from..from + count);
            length -= count;
        }
        Ok(())
    }

    /// Keeps of the window just made what later windows copy from.
    fn keep(&mut self) {
        let wanted = usize::try_from(self.kept_bytes - self.kept.len() as u64).unwrap_or(usize::MAX);
        self.kept.extend_from_slice(&self.target[..self.target.len().min(wanted)]);
    }
}
