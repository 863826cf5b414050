//! Making a patch: at each place of the result the copy that saves most, from under the last one in the old file, from
//! anywhere in the old file (suffix array) or from the window itself; what no copy makes is added.

use std::ops::Range;

use super::{
    Dialect, HEADER_SECONDARY, MAGIC, SECONDARY_LZMA, SECTIONS, WINDOW_ADLER32, WINDOW_SOURCE, adler32,
    cache::AddressCache, lzma::Compressor, push_varint, table, table::Kind, varint_bytes,
};
use crate::delta::{Algorithm, DeltaError, GenerateOptions, Pair, SuffixArray, pair::common_prefix};

/// How much of the result one window makes, in bytes. xdelta3 3.0.11 reads at most 16 MiB.
const WINDOW_BYTES: usize = 8 << 20;
/// How much of an old file that is too large for one suffix array is looked at on either side of the same place, in
/// bytes. Readers with 32-bit sizes must be able to add a window to what a window reaches.
const REACH_BYTES: usize = 512 << 20;
/// What the code of an instruction takes, in bytes.
const CODE_BYTES: usize = 1;
/// A copy must save this many bytes, or it only splits an ADD; the other is for sections that are compressed.
const SAVED_BYTES_MIN: usize = 1;
const SAVED_BYTES_MIN_COMPRESSED: usize = 4;
/// How far the longest match in the old file is looked for, and from which length on none is looked for at all.
const MATCH_BYTES_MAX: usize = 4 << 10;
const LONG_BYTES: usize = 64;
/// The shortest RUN.
const RUN_BYTES_MIN: usize = 6;

/// What one part of a window is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// These bytes of the window.
    Add(usize, usize),
    /// One byte, repeated.
    Run(u8, usize),
    /// From the old file.
    FromOld(usize, usize),
    /// From an earlier place in the window.
    FromWindow(usize, usize),
}

impl Piece {
    /// How much of the window it makes, in bytes.
    fn bytes(self) -> usize {
        let (Self::Add(_, length)
        | Self::Run(_, length)
        | Self::FromOld(_, length)
        | Self::FromWindow(_, length)) = self;
        length
    }
}

/// Makes a patch.
pub(in crate::delta) fn generate(
    dialect: Dialect,
    pair: &Pair<'_>,
    options: &GenerateOptions<'_>,
) -> Result<Vec<u8>, DeltaError> {
    let windows = parse(dialect, pair, options);
    let plain = assemble(dialect, &windows, None);
    if dialect == Dialect::Plain {
        return Ok(plain);
    }
    let failed = |reason| DeltaError::Generate { algorithm: Algorithm::Xdelta3, reason };
    let packed = compress(&windows).map_err(failed)?;
    let packed = assemble(dialect, &windows, Some(&packed));
    Ok(if packed.len() < plain.len() { packed } else { plain })
}

/// The windows' ranges; an empty file has one empty window, without which xdelta3 takes the patch for cut off.
fn split(length: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(WINDOW_BYTES).max(1);
    (0..count).map(move |index| index * WINDOW_BYTES..length.min((index + 1) * WINDOW_BYTES))
}

/// Parses and encodes every window.
fn parse(dialect: Dialect, pair: &Pair<'_>, options: &GenerateOptions<'_>) -> Vec<Window> {
    let (old, new) = (pair.base(), pair.result());
    let mut windows = Vec::new();
    let mut push = |near: &Pair<'_>, low: usize, range: Range<usize>| {
        let (window, end) = (&new[range.clone()], range.end);
        let pieces = Parse::new(dialect, near, low, range, window).run();
        windows.push(Window::new(window, &pieces));
        (options.progress)(end as f64 / new.len().max(1) as f64);
    };
    if old.len() <= 2 * REACH_BYTES {
        split(new.len()).for_each(|range| push(pair, 0, range));
        return windows;
    }
    // Windows of one stretch share what they reach, and its suffix array.
    for stretch in (0..new.len()).step_by(REACH_BYTES) {
        let low = stretch.saturating_sub(REACH_BYTES).min(old.len());
        let near = Pair::new(&old[low..old.len().min(stretch + 2 * REACH_BYTES)], new);
        let ranges = split(new.len()).skip_while(|range| range.start < stretch);
        ranges
            .take_while(|range| range.start < stretch + REACH_BYTES)
            .for_each(|range| push(&near, low, range));
    }
    windows
}

/// Finds the pieces of one window.
struct Parse<'a> {
    /// What of the old file can be reached, and where in it that starts.
    old: &'a [u8],
    low: usize,
    suffixes: Option<&'a SuffixArray<'a>>,
    window: &'a [u8],
    /// How many bytes a copy must save.
    saved_min: usize,
    pieces: Vec<Piece>,
    at: usize,
    /// Where the window and the old file met last: a place in each; may lie outside of the latter.
    met: (usize, usize),
    /// By the hash of four bytes: where they were added last, plus one.
    recent: Vec<u32>,
}

const HASH_BITS: u32 = 16;

impl<'a> Parse<'a> {
    fn new(dialect: Dialect, near: &'a Pair<'_>, low: usize, range: Range<usize>, window: &'a [u8]) -> Self {
        // Compressed, a byte that is added costs about half of a byte of an address.
        let saved_min = match dialect {
            Dialect::Plain => SAVED_BYTES_MIN,
            Dialect::Xdelta3 => SAVED_BYTES_MIN_COMPRESSED,
        };
        Self {
            old: near.base(),
            low,
            suffixes: near.suffixes(),
            window,
            saved_min,
            pieces: Vec::new(),
            at: 0,
            met: (0, range.start.saturating_sub(low)),
            recent: vec![0; 1 << HASH_BITS],
        }
    }

    fn run(mut self) -> Vec<Piece> {
        let mut at = 0;
        let mut next = None;
        while at < self.window.len() {
            let (piece, saved) = next.take().unwrap_or_else(|| self.best(at));
            // Lazy: the next byte may begin something that saves more.
            let later = (piece.bytes() < LONG_BYTES && saved > 0).then(|| self.best(at + 1));
            let is_better = later.as_ref().is_some_and(|(_, later)| *later > saved);
            if saved < self.saved_min || is_better {
                self.remember(at);
                at += 1;
                next = later;
                continue;
            }
            self.add_until(at);
            if let Piece::FromOld(old, length) = piece {
                self.met = (at + length, old - self.low + length);
            } else {
                for within in at..at + piece.bytes().min(LONG_BYTES) {
                    self.remember(within);
                }
            }
            at += piece.bytes();
            self.at = at;
            self.pieces.push(piece);
        }
        self.add_until(at);
        self.pieces
    }

    /// The piece for `at` that saves most, and how many bytes.
    fn best(&self, at: usize) -> (Piece, usize) {
        let rest = self.window.get(at..).unwrap_or_default();
        let nothing = (Piece::Add(at, 1), 0);
        let Some(byte) = rest.first() else { return nothing };
        // What lies under the last copy is told by the near cache.
        let under = (self.met.1 + at).checked_sub(self.met.0);
        let under = under
            .map_or((0, 0), |under| (under, common_prefix(self.old.get(under..).unwrap_or_default(), rest)));
        let saves = |length: usize, address_bytes: usize| {
            let size_bytes = if length > 18 { varint_bytes(length as u64) } else { 0 };
            length.saturating_sub(CODE_BYTES + size_bytes + address_bytes)
        };
        let of_old = |(at, length): (usize, usize), address_bytes| {
            (Piece::FromOld(self.low + at, length), saves(length, address_bytes))
        };
        let distance = at.saturating_sub(self.met.0).max(1);
        let mut best = of_old(under, varint_bytes(distance as u64 * 2));
        if under.1 >= LONG_BYTES {
            return best;
        }
        let mut consider = |other: (Piece, usize)| {
            if other.1 > best.1 {
                best = other;
            }
        };
        let run = rest.iter().take_while(|other| *other == byte).count();
        if run >= RUN_BYTES_MIN {
            consider((Piece::Run(*byte, run), saves(run, 1)));
        }
        let (from, length) = self.repeat(at);
        consider((Piece::FromWindow(from, length), saves(length, varint_bytes((at - from) as u64).max(2))));
        if let Some(suffixes) = self.suffixes {
            let (from, mut length) = suffixes.longest_match(&rest[..rest.len().min(MATCH_BYTES_MAX)]);
            if length == MATCH_BYTES_MAX {
                length += common_prefix(&self.old[from + length..], &rest[length..]);
            }
            consider(of_old((from, length), varint_bytes(self.old.len() as u64)));
        }
        if best.1 > 0 { best } else { nothing }
    }

    fn add_until(&mut self, end: usize) {
        if end > self.at {
            self.pieces.push(Piece::Add(self.at, end - self.at));
            self.at = end;
        }
    }

    fn slot(&self, at: usize) -> Option<usize> {
        let bytes = self.window.get(at..)?.first_chunk::<4>()?;
        Some((u32::from_le_bytes(*bytes).wrapping_mul(0x9E37_79B1) >> (32 - HASH_BITS)) as usize)
    }

    fn remember(&mut self, at: usize) {
        if let Some(slot) = self.slot(at) {
            self.recent[slot] = at as u32 + 1;
        }
    }

    /// Where the bytes at `at` were met before in the window, and how many of them.
    fn repeat(&self, at: usize) -> (usize, usize) {
        let found = self.slot(at).map_or(0, |slot| self.recent[slot]);
        match (found as usize).checked_sub(1) {
            Some(from) if from < at => (from, common_prefix(&self.window[from..], &self.window[at..])),
            _ => (at, 0),
        }
    }
}

/// A window, encoded.
struct Window {
    segment: Range<usize>,
    target_bytes: usize,
    sections: [Vec<u8>; 3],
    adler32: u32,
}

impl Window {
    fn new(window: &[u8], pieces: &[Piece]) -> Self {
        let copies = pieces.iter().filter_map(|piece| match *piece {
            Piece::FromOld(at, length) => Some((at, at + length)),
            Piece::Add(..) | Piece::Run(..) | Piece::FromWindow(..) => None,
        });
        let segment = copies
            .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
            .map_or(0..0, |(start, end)| start..end);
        let mut writer = Instructions::default();
        let mut cache = AddressCache::new();
        let mut made = 0;
        for piece in pieces {
            let here = (segment.len() + made) as u64;
            made += match *piece {
                Piece::Add(at, length) => {
                    writer.data.extend_from_slice(&window[at..at + length]);
                    writer.push(Kind::Add, length);
                    length
                }
                Piece::Run(byte, length) => {
                    writer.data.push(byte);
                    writer.push(Kind::Run, length);
                    length
                }
                Piece::FromOld(at, length) => {
                    let mode = cache.encode((at - segment.start) as u64, here, &mut writer.addresses);
                    writer.push(Kind::Copy(mode), length);
                    length
                }
                Piece::FromWindow(at, length) => {
                    let mode = cache.encode((segment.len() + at) as u64, here, &mut writer.addresses);
                    writer.push(Kind::Copy(mode), length);
                    length
                }
            };
        }
        writer.flush();
        Self {
            segment,
            target_bytes: window.len(),
            sections: [writer.data, writer.instructions, writer.addresses],
            adler32: adler32(window),
        }
    }
}

/// Writes instructions, two in one code where the table has one.
#[derive(Default)]
struct Instructions {
    data: Vec<u8>,
    instructions: Vec<u8>,
    addresses: Vec<u8>,
    pending: Option<(Kind, usize)>,
}

impl Instructions {
    fn push(&mut self, kind: Kind, length: usize) {
        let Some(pending) = self.pending else {
            self.pending = Some((kind, length));
            return;
        };
        if let Some(code) = table::code_of_two(pending, (kind, length)) {
            self.instructions.push(code);
            self.pending = None;
        } else {
            self.flush();
            self.pending = Some((kind, length));
        }
    }

    fn flush(&mut self) {
        let Some((kind, length)) = self.pending.take() else { return };
        let (code, size_follows) = table::code(kind, length);
        self.instructions.push(code);
        if size_follows {
            push_varint(&mut self.instructions, length as u64);
        }
    }
}

/// The sections of all windows, compressed; `None` for a section type which that makes larger.
fn compress(windows: &[Window]) -> Result<[Option<Vec<Vec<u8>>>; 3], String> {
    let mut packed = [const { None }; 3];
    for (index, packed) in packed.iter_mut().enumerate() {
        let total: usize = windows.iter().map(|window| window.sections[index].len()).sum();
        if total == 0 {
            continue;
        }
        let mut compressor = Compressor::new(total)?;
        let mut sections = Vec::new();
        for window in windows {
            let section = &window.sections[index];
            // An empty section stays as it is: xdelta3 compresses none.
            sections.push(if section.is_empty() {
                Vec::new()
            } else {
                let mut bytes = Vec::new();
                push_varint(&mut bytes, section.len() as u64);
                bytes.extend(compressor.section(section)?);
                bytes
            });
        }
        if sections.iter().map(Vec::len).sum::<usize>() < total {
            *packed = Some(sections);
        }
    }
    Ok(packed)
}

fn assemble(dialect: Dialect, windows: &[Window], packed: Option<&[Option<Vec<Vec<u8>>>; 3]>) -> Vec<u8> {
    let mut patch = MAGIC.to_vec();
    patch.push(0);
    if packed.is_some() {
        patch.extend([HEADER_SECONDARY, SECONDARY_LZMA]);
    } else {
        patch.push(0);
    }
    for (number, window) in windows.iter().enumerate() {
        let mut compressed = 0;
        let sections: [&[u8]; SECTIONS.len()] = std::array::from_fn(|index| {
            match packed.and_then(|packed| packed[index].as_ref()).map(|packed| packed[number].as_slice()) {
                Some(section) if !section.is_empty() => {
                    compressed |= 1 << index;
                    section
                }
                _ => window.sections[index].as_slice(),
            }
        });
        let has_checksum = dialect == Dialect::Xdelta3;
        let mut encoding = Vec::new();
        push_varint(&mut encoding, window.target_bytes as u64);
        encoding.push(compressed);
        for section in sections {
            push_varint(&mut encoding, section.len() as u64);
        }
        if has_checksum {
            encoding.extend(window.adler32.to_be_bytes());
        }
        let total = encoding.len() + sections.iter().map(|section| section.len()).sum::<usize>();
        let source = if window.segment.is_empty() { 0 } else { WINDOW_SOURCE };
        patch.push(source | if has_checksum { WINDOW_ADLER32 } else { 0 });
        if source != 0 {
            push_varint(&mut patch, window.segment.len() as u64);
            push_varint(&mut patch, window.segment.start as u64);
        }
        push_varint(&mut patch, total as u64);
        patch.extend(encoding);
        sections.into_iter().for_each(|section| patch.extend_from_slice(section));
    }
    patch
}
