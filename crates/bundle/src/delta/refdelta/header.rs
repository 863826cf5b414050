//! The plain part of a patch: sizes, counts and the table of streams. Everything that memory is allocated by is here.

use super::Damage;

/// The first bytes of a patch: the name and the version.
pub(super) const MAGIC: &[u8; 8] = b"RFDELTA\x01";
/// Most bytes before the streams.
pub(super) const HEADER_BYTES_MAX: usize = 128;

/// Addresses are predicted; both files are executables.
pub(super) const REFERENCES: u64 = 1;
/// Relative fields of the code among the extra bytes hold their targets.
pub(super) const ABSOLUTE: u64 = 2;
/// All streams are one, the extra bytes in the mixing model of [`super::mix`].
pub(super) const JOINED: u64 = 4;
/// `.eh_frame_hdr` is made from `.eh_frame`.
pub(super) const FRAME_INDEX: u64 = 8;
const KNOWN: u64 = REFERENCES | ABSOLUTE | JOINED | FRAME_INDEX;

/// The frame index is made only where it lies within so many bytes together with the frames: what lies between waits.
pub(super) const FRAME_SPAN_MAX: u32 = 64 << 20;

/// Most extra bytes that the mixing model may have to make: it makes about a million in a second.
pub(super) const MIXED_BYTES_MAX: u32 = 1 << 20;

/// Files are below this.
pub(super) const FILE_BYTES_MAX: u64 = (1 << 31) - 1;

/// How the extra bytes are packed where they have a stream of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Stored,
    Zstd,
    /// Raw LZMA2; literal context, literal position and position bits.
    Lzma {
        lc: u8,
        lp: u8,
        pb: u8,
    },
}

impl Codec {
    fn to_number(self) -> u64 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::Lzma { lc, lp, pb } => 16 + u64::from(lc) + 5 * (u64::from(lp) + 5 * u64::from(pb)),
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Stored),
            1 => Some(Self::Zstd),
            16..141 => {
                let properties = (number - 16) as u8;
                let (lc, lp, pb) = (properties % 5, properties / 5 % 5, properties / 25);
                (lc + lp <= 4 && pb <= 4).then_some(Self::Lzma { lc, lp, pb })
            }
            _ => None,
        }
    }
}

/// The streams in their order in the patch. Where all are one, it is the first.
pub(super) const CONTROL: usize = 0;
pub(super) const LITERALS: usize = 1;
pub(super) const FIELDS: usize = 2;
pub(super) const EXTRA: usize = 3;

/// What a patch says before its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u64,
    pub(super) old_len: u32,
    pub(super) new_len: u32,
    pub(super) blocks: u32,
    pub(super) literals: u32,
    /// References found in the old file.
    pub(super) references: u32,
    /// Bytes that no block holds.
    pub(super) extra_len: u32,
    /// With [`FRAME_INDEX`]: bytes that both sections span.
    pub(super) frame_span: u32,
    pub(super) extra_codec: Codec,
    pub(super) packed: [u32; 4],
}

impl Header {
    pub(super) fn is(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put(&mut out, self.flags);
        for number in [self.old_len, self.new_len, self.blocks, self.literals, self.extra_len] {
            put(&mut out, u64::from(number));
        }
        if self.is(REFERENCES) {
            put(&mut out, u64::from(self.references));
        }
        if self.is(FRAME_INDEX) {
            put(&mut out, u64::from(self.frame_span));
        }
        if self.is(JOINED) {
            put(&mut out, u64::from(self.packed[CONTROL]));
            return out;
        }
        put(&mut out, self.extra_codec.to_number());
        for packed in self.packed {
            put(&mut out, u64::from(packed));
        }
        out
    }

    /// Reads the header of a patch of `patch_len` bytes from its first bytes; also says where the streams begin. Every
    /// bound of `docs/formats/refdelta.md` that can be checked without the streams is checked.
    pub(super) fn decode(bytes: &[u8], patch_len: u64) -> Result<(Self, usize), Damage> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(Damage::new(0, "magic", "not version 1 of this format"));
        }
        let mut reader = Reader { bytes, at: MAGIC.len() };
        let flags = reader.number("flags", u64::MAX)?;
        if flags & !KNOWN != 0 {
            return Err(reader.damage("flags", "unknown flag"));
        }
        let old_len = reader.number("old size", FILE_BYTES_MAX)? as u32;
        let new_len = reader.number("new size", FILE_BYTES_MAX)? as u32;
        let blocks = reader.number("blocks", u64::from(blocks_max(new_len)))? as u32;
        let literals = reader.number("literals", u64::from(new_len))? as u32;
        let mixed_max = if flags & JOINED == 0 { u32::MAX } else { MIXED_BYTES_MAX };
        let extra_len = reader.number("extra bytes", u64::from((new_len - literals).min(mixed_max)))? as u32;
        let mut header = Self {
            flags,
            old_len,
            new_len,
            blocks,
            literals,
            references: 0,
            extra_len,
            frame_span: 0,
            extra_codec: Codec::Stored,
            packed: [0; 4],
        };
        if header.is(REFERENCES) {
            header.references = reader.number("references", u64::from(references_max(old_len)))? as u32;
        } else if flags & (ABSOLUTE | FRAME_INDEX) != 0 {
            return Err(reader.damage("flags", "needs references"));
        }
        if header.is(FRAME_INDEX) {
            let most = u64::from(new_len.min(FRAME_SPAN_MAX));
            header.frame_span = reader.number("frame span", most)? as u32;
        }
        if header.is(JOINED) {
            header.packed[CONTROL] = reader.number("packed size", FILE_BYTES_MAX)? as u32;
        } else {
            let codec = reader.number("codec", u64::MAX)?;
            header.extra_codec =
                Codec::from_number(codec).ok_or_else(|| reader.damage("codec", "unknown codec"))?;
            for packed in &mut header.packed {
                *packed = reader.number("packed size", FILE_BYTES_MAX)? as u32;
            }
            if u64::from(header.packed[EXTRA]) > packed_max(extra_len) {
                return Err(reader.damage("packed size", "larger than stored"));
            }
        }
        if reader.at as u64 + header.packed.iter().map(|packed| u64::from(*packed)).sum::<u64>() != patch_len
        {
            return Err(reader.damage("packed size", "the streams do not fill the patch"));
        }
        Ok((header, reader.at))
    }
}

/// Most blocks for a new file of `new_len` bytes.
pub(super) fn blocks_max(new_len: u32) -> u32 {
    new_len / 8 + 64
}

/// Most references in an old file of `old_len` bytes.
pub(super) fn references_max(old_len: u32) -> u32 {
    old_len / 4
}

fn packed_max(raw_len: u32) -> u64 {
    u64::from(raw_len) + u64::from(raw_len) / 8 + 1024
}

/// Appends a number in LEB128.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn damage(&self, field: &'static str, reason: &str) -> Damage {
        Damage::new(self.at as u64, field, reason)
    }

    /// Reads a LEB128 number in its shortest form, at most `max`.
    fn number(&mut self, field: &'static str, max: u64) -> Result<u64, Damage> {
        let mut number = 0u64;
        for shift in (0..35).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.damage(field, "the patch ends here"));
            };
            self.at += 1;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.damage(field, "a number is not in its shortest form"));
                }
                if number > max {
                    return Err(self.damage(field, &format!("{number} is over the bound of {max}")));
                }
                return Ok(number);
            }
        }
        Err(self.damage(field, "a number is too long"))
    }
}
