//! What the header of a Zstandard frame promises, read before a decoder allocates for it (RFC 8878, 3.1.1.1).

/// The first four bytes of a Zstandard frame (RFC 8878, 3.1.1).
const MAGIC: [u8; 4] = 0xFD2F_B528u32.to_le_bytes();
/// The longest header, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 18;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// How many bytes back the frame's matches may reach.
    pub(crate) window_bytes: u64,
    /// How many bytes come out, if it says so.
    pub(crate) content_bytes: Option<u64>,
    /// Whether a checksum follows the content.
    pub(crate) has_checksum: bool,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`. A skippable frame, a reserved bit and a dictionary are refused.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "its header is cut off".to_owned();
        let rest = bytes.strip_prefix(&MAGIC).ok_or("it does not start with the magic number of a frame")?;
        let (&descriptor, rest) = rest.split_first().ok_or_else(cut)?;
        let single_segment = descriptor & 0x20 != 0;
        if descriptor & 0x08 != 0 {
            return Err("a reserved bit is set".to_owned());
        }
        if descriptor & 0x03 != 0 {
            return Err("it needs a dictionary".to_owned());
        }
        let size_bytes = match (descriptor >> 6, single_segment) {
            (0, false) => 0,
            (0, true) => 1,
            (1, _) => 2,
            (2, _) => 4,
            (_, _) => 8,
        };
        let (window, rest) = if single_segment {
            (None, rest)
        } else {
            let (&byte, rest) = rest.split_first().ok_or_else(cut)?;
            let base = 1u64 << (10 + (byte >> 3));
            (Some(base + base / 8 * u64::from(byte & 7)), rest)
        };
        let field = rest.get(..size_bytes).ok_or_else(cut)?;
        let mut padded = [0; 8];
        padded[..size_bytes].copy_from_slice(field);
        // A two-byte size counts from 256 on.
        let declared = u64::from_le_bytes(padded).saturating_add(if size_bytes == 2 { 256 } else { 0 });
        Ok(Self {
            window_bytes: window.unwrap_or(declared),
            content_bytes: (size_bytes > 0).then_some(declared),
            has_checksum: descriptor & 0x04 != 0,
        })
    }
}
