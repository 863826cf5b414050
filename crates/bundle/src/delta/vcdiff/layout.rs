//! The headers of a patch: all that is known about its windows before an instruction is read.

use super::{
    Dialect, HEADER_APPLICATION, HEADER_CODE_TABLE, HEADER_SECONDARY, MAGIC, SECONDARY_LZMA, SECTIONS,
    WINDOW_ADLER32, WINDOW_SOURCE, WINDOW_TARGET, lzma,
};
use crate::delta::{DeltaError, Inputs, Part, base::BaseReader};

/// The longest application header that is skipped, in bytes.
const APPLICATION_BYTES_MAX: u64 = 64 << 10;
/// The largest window, in bytes: sizes within a window have 31 bits.
const WINDOW_BYTES_MAX: u64 = i32::MAX as u64;
/// The most decoded bytes of each section: per byte that the window makes, and beside these. Each byte to add makes one; an
/// instruction that makes one takes a code and a size of at most ten bytes, and an address has at most ten.
const SECTION_BYTES_MAX: [(u64, u64); 3] = [(1, 0), (11, 64), (10, 64)];
/// What a decoder needs beside its windows.
const FIXED_BYTES: u64 = BaseReader::MEMORY_BYTES + (1 << 20);

/// Where a window copies from, beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// From the result made so far, rather than from the base.
    pub(super) of_result: bool,
    /// Where it starts there.
    pub(super) at: u64,
    /// Its length in bytes.
    pub(super) len: u64,
}

/// One section of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    /// Where it starts in the patch.
    pub(super) at: u64,
    /// How long it is there.
    pub(super) len: u64,
    /// Its size when decoded, if it is compressed.
    pub(super) decoded: Option<u64>,
}

/// One window's header, checked against the base, the patch and what was made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Where it starts in the patch.
    pub(super) at: u64,
    /// Its source segment; an empty one if it has none.
    pub(super) segment: Segment,
    /// How many bytes of the result it makes.
    pub(super) target_bytes: u64,
    /// Data, instructions, addresses.
    pub(super) sections: [Section; 3],
    /// The Adler-32 of what it makes.
    pub(super) adler32: Option<u32>,
}

/// What all windows of a patch need at most. Made by reading every header once.
pub(super) struct Layout {
    /// Where the first window starts.
    pub(super) windows_at: u64,
    /// The most bytes that one window makes.
    pub(super) target_bytes_max: u64,
    /// The most bytes of each section, as in the patch.
    pub(super) raw_bytes_max: [u64; 3],
    /// The most bytes of each section that is compressed, decoded.
    pub(super) decoded_bytes_max: [u64; 3],
    /// How many bytes of the result are copied from again by later windows.
    pub(super) kept_bytes: u64,
    /// The memory of each section's decompressor; 0 where none is needed.
    pub(super) lzma_bytes: [u64; 3],
    /// All of it together.
    pub(super) memory_bytes: u64,
}

impl Layout {
    /// Reads all headers of the patch.
    ///
    /// # Errors
    /// [`DeltaError::Patch`], [`DeltaError::Unsupported`], [`DeltaError::WrongSize`] of the result, a failed read.
    pub(super) fn read(dialect: Dialect, inputs: &Inputs<'_>) -> Result<Self, DeltaError> {
        let (windows_at, secondary) = read_header(dialect, inputs)?;
        let mut layout = Self {
            windows_at,
            target_bytes_max: 0,
            raw_bytes_max: [0; 3],
            decoded_bytes_max: [0; 3],
            kept_bytes: 0,
            lzma_bytes: [0; 3],
            memory_bytes: 0,
        };
        let mut windows = Windows::new(dialect, inputs, windows_at);
        while let Some(window) = windows.next(secondary)? {
            layout.target_bytes_max = layout.target_bytes_max.max(window.target_bytes);
            if window.segment.of_result {
                layout.kept_bytes = layout.kept_bytes.max(window.segment.at + window.segment.len);
            }
            for (index, section) in window.sections.iter().enumerate() {
                layout.raw_bytes_max[index] = layout.raw_bytes_max[index].max(section.len);
                let Some(decoded) = section.decoded else { continue };
                layout.decoded_bytes_max[index] = layout.decoded_bytes_max[index].max(decoded);
                if layout.lzma_bytes[index] == 0 && section.len > 0 {
                    layout.lzma_bytes[index] = lzma_bytes(inputs, section, SECTIONS[index])?;
                }
            }
        }
        let made = windows.made;
        if made != inputs.result_bytes() {
            let (part, expected) = (Part::Result, inputs.result_bytes());
            return Err(DeltaError::WrongSize { part, expected, actual: made });
        }
        layout.memory_bytes = [layout.raw_bytes_max, layout.decoded_bytes_max, layout.lzma_bytes]
            .as_flattened()
            .iter()
            .chain([&layout.target_bytes_max, &layout.kept_bytes])
            .fold(FIXED_BYTES, |sum, bytes| sum.saturating_add(*bytes));
        Ok(layout)
    }
}

/// Reads the patch's header: where the windows start, and whether their sections may be compressed.
fn read_header(dialect: Dialect, inputs: &Inputs<'_>) -> Result<(u64, bool), DeltaError> {
    let mut cursor = Cursor::new(inputs, 0);
    let mut magic = [0; 3];
    for byte in &mut magic {
        *byte = cursor.byte("magic")?;
    }
    if magic != MAGIC {
        return Err(inputs.damaged(0, "magic", "it does not start as VCDIFF does"));
    }
    match cursor.byte("version")? {
        0 => {}
        b'S' => return Err(inputs.unsupported("open-vcdiff's SDCH version `S`")),
        version => return Err(inputs.unsupported(format!("VCDIFF version {version}"))),
    }
    let indicator = cursor.byte("header indicator")?;
    let unknown = indicator & !(HEADER_SECONDARY | HEADER_CODE_TABLE | HEADER_APPLICATION);
    if unknown != 0 {
        return Err(inputs.damaged(4, "header indicator", format!("bits {unknown:#04x} are not defined")));
    }
    let has_secondary = indicator & HEADER_SECONDARY != 0;
    if has_secondary {
        let id = cursor.byte("secondary compressor")?;
        match (id, dialect) {
            (SECONDARY_LZMA, Dialect::Xdelta3) => {}
            (SECONDARY_LZMA, Dialect::Plain) => {
                return Err(inputs.unsupported("xdelta3's LZMA secondary compression"));
            }
            (1, _) => return Err(inputs.unsupported("DJW secondary compression")),
            (16, _) => return Err(inputs.unsupported("FGK secondary compression")),
            _ => return Err(inputs.unsupported(format!("secondary compressor {id}"))),
        }
    }
    if indicator & HEADER_CODE_TABLE != 0 {
        return Err(inputs.unsupported("a code table of its own"));
    }
    if indicator & HEADER_APPLICATION != 0 {
        if dialect == Dialect::Plain {
            return Err(inputs.unsupported("xdelta3's application header"));
        }
        let length = cursor.varint("length of the application header")?;
        if length > APPLICATION_BYTES_MAX {
            let reason = format!("it has {length} bytes; the limit is {APPLICATION_BYTES_MAX}");
            return Err(inputs.damaged(cursor.at, "application header", reason));
        }
        cursor.skip(length, "application header")?;
    }
    Ok((cursor.at, has_secondary))
}

/// The memory that the decompressor of a section type asks for, from the head of its stream in its first section.
fn lzma_bytes(inputs: &Inputs<'_>, section: &Section, field: &'static str) -> Result<u64, DeltaError> {
    let mut head = [0; lzma::HEAD_BYTES];
    let length = section.len.min(lzma::HEAD_BYTES as u64) as usize;
    inputs.read_patch(section.at, &mut head[..length])?;
    lzma::memory_needed(&head[..length]).map_err(|reason| inputs.damaged(section.at, field, reason))
}

/// The windows of a patch, one after the other. Keeps none of them.
pub(super) struct Windows<'a> {
    dialect: Dialect,
    cursor: Cursor<'a>,
    /// How many bytes the windows so far make.
    pub(super) made: u64,
}

impl<'a> Windows<'a> {
    pub(super) fn new(dialect: Dialect, inputs: &Inputs<'a>, at: u64) -> Self {
        Self { dialect, cursor: Cursor::new(inputs, at), made: 0 }
    }

    /// The next window's header; `None` at the patch's end. Every number in it was checked.
    pub(super) fn next(&mut self, secondary: bool) -> Result<Option<Window>, DeltaError> {
        let inputs = self.cursor.inputs;
        let cursor = &mut self.cursor;
        let at = cursor.at;
        if at == inputs.patch_bytes() {
            return Ok(None);
        }
        let indicator = cursor.byte("window indicator")?;
        let known = match self.dialect {
            Dialect::Plain => WINDOW_SOURCE | WINDOW_TARGET,
            Dialect::Xdelta3 => WINDOW_SOURCE | WINDOW_TARGET | WINDOW_ADLER32,
        };
        if indicator & !known == WINDOW_ADLER32 {
            return Err(inputs.unsupported("xdelta3's Adler-32 checksums"));
        }
        if indicator & !known != 0 || indicator & known & 3 == 3 {
            let reason = format!("{indicator:#04x} is not defined");
            return Err(inputs.damaged(at, "window indicator", reason));
        }
        let of_result = indicator & WINDOW_TARGET != 0;
        let mut segment = Segment { of_result, at: 0, len: 0 };
        if indicator & (WINDOW_SOURCE | WINDOW_TARGET) != 0 {
            segment.len = cursor.varint("length of the source segment")?;
            segment.at = cursor.varint("position of the source segment")?;
            let end = segment.at.checked_add(segment.len);
            let available = if of_result { self.made } else { inputs.base_bytes() };
            if end.is_none_or(|end| end > available) {
                let reason = format!("{} bytes at {} of {available}", segment.len, segment.at);
                return Err(inputs.damaged(at, "source segment", reason));
            }
        }
        let encoding_bytes = cursor.varint("length of the delta encoding")?;
        let encoding_at = cursor.at;
        let target_bytes = cursor.varint("size of the target window")?;
        let left = inputs.result_bytes() - self.made;
        if target_bytes > left || target_bytes > WINDOW_BYTES_MAX {
            let reason =
                format!("{target_bytes} bytes, where {left} are left and {WINDOW_BYTES_MAX} the limit");
            return Err(inputs.damaged(encoding_at, "size of the target window", reason));
        }
        let indicator_at = cursor.at;
        let compressed = cursor.byte("delta indicator")?;
        if compressed & !7 != 0 {
            return Err(inputs.damaged(indicator_at, "delta indicator", format!("{compressed:#04x}")));
        }
        if compressed != 0 && !secondary {
            let reason = "sections are compressed, but the header names no compressor";
            return Err(inputs.damaged(indicator_at, "delta indicator", reason));
        }
        let mut sections = [Section::default(); 3];
        for (section, field) in sections.iter_mut().zip(SECTIONS) {
            section.len = cursor.varint(field)?;
        }
        let adler32 = if indicator & WINDOW_ADLER32 == 0 {
            None
        } else {
            let mut sum = 0;
            for _ in 0..4 {
                sum = sum << 8 | u32::from(cursor.byte("Adler-32")?);
            }
            Some(sum)
        };
        let headers = cursor.at - encoding_at;
        let total = sections.iter().try_fold(headers, |sum, section| sum.checked_add(section.len));
        if total != Some(encoding_bytes) {
            let reason = "it is not the sum of what it covers";
            return Err(inputs.damaged(encoding_at, "length of the delta encoding", reason));
        }
        for (index, (section, field)) in sections.iter_mut().zip(SECTIONS).enumerate() {
            section.at = cursor.at;
            let end = cursor.at.checked_add(section.len).filter(|end| *end <= inputs.patch_bytes());
            let end = end.ok_or_else(|| inputs.damaged(section.at, field, "it is cut off"))?;
            if compressed & 1 << index != 0 {
                let decoded = cursor.varint(field)?;
                if decoded > WINDOW_BYTES_MAX || cursor.at > end {
                    let reason = format!("it declares {decoded} decoded bytes");
                    return Err(inputs.damaged(section.at, field, reason));
                }
                *section = Section { at: cursor.at, len: end - cursor.at, decoded: Some(decoded) };
            }
            cursor.skip(end - cursor.at, field)?;
        }
        for ((section, field), (per_byte, more)) in sections.iter().zip(SECTIONS).zip(SECTION_BYTES_MAX) {
            let bytes = section.decoded.unwrap_or(section.len);
            if bytes > target_bytes.saturating_mul(per_byte).saturating_add(more) {
                let reason = format!("{bytes} bytes for a window of {target_bytes}");
                return Err(inputs.damaged(section.at, field, reason));
            }
        }
        self.made += target_bytes;
        Ok(Some(Window { at, segment, target_bytes, sections, adler32 }))
    }
}

const CURSOR_BYTES: u64 = 4 << 10;

/// Reads headers, which are small and far apart.
struct Cursor<'a> {
    inputs: Inputs<'a>,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a> Cursor<'a> {
    fn new(inputs: &Inputs<'a>, at: u64) -> Self {
        Self { inputs: *inputs, at, buffer: Vec::new(), buffer_at: 0 }
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, DeltaError> {
        let held = self.at.checked_sub(self.buffer_at).filter(|within| *within < self.buffer.len() as u64);
        let within = match held {
            Some(within) => within as usize,
            None => {
                let left = self.inputs.patch_bytes().saturating_sub(self.at);
                if left == 0 {
                    return Err(self.inputs.damaged(self.at, field, "it is cut off"));
                }
                self.buffer.clear();
                self.buffer.resize(left.min(CURSOR_BYTES) as usize, 0);
                self.buffer_at = self.at;
                self.inputs.read_patch(self.at, &mut self.buffer)?;
                0
            }
        };
        self.at += 1;
        Ok(self.buffer[within])
    }

    fn varint(&mut self, field: &'static str) -> Result<u64, DeltaError> {
        let (start, mut value) = (self.at, 0u64);
        for _ in 0..10 {
            let byte = self.byte(field)?;
            if value >> 57 != 0 {
                break;
            }
            value = value << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.inputs.damaged(start, field, "the integer has more than 64 bits"))
    }

    fn skip(&mut self, count: u64, field: &'static str) -> Result<(), DeltaError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.inputs.patch_bytes());
        self.at = end.ok_or_else(|| self.inputs.damaged(self.at, field, "it is cut off"))?;
        Ok(())
    }
}
