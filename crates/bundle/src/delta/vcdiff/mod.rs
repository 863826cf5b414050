//! VCDIFF (RFC 3284), in two dialects: plain, and as the xdelta3 program has it.
//!
//! A patch is a header and windows. A window makes up to some MiB of the result from a segment of the base (or of what
//! was made before) with ADD, RUN and COPY instructions; its three sections hold the bytes to add, the instructions and
//! the addresses. The xdelta3 dialect adds an application header, which is skipped, an Adler-32 of each window, and
//! sections compressed with LZMA. The two never stand for each other: what only xdelta3 has is refused in plain patches.
//!
//! The decoder first reads all headers ([`layout`]): the windows' sizes must add up to the declared size, and its memory
//! is known, before a byte is written. Positions have 64 bits; a window's sizes have 31.

mod cache;
mod decode;
mod encode;
mod layout;
mod lzma;
mod table;

pub(super) use decode::apply;
pub(super) use encode::generate;

use super::{DeltaError, Inputs};

/// Which VCDIFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RFC 3284 as it stands, with the default code table.
    Plain,
    /// With xdelta3's extensions.
    Xdelta3,
}

/// What the decoder needs.
pub(super) fn memory_needed(dialect: Dialect, inputs: &Inputs<'_>) -> Result<u64, DeltaError> {
    Ok(layout::Layout::read(dialect, inputs)?.memory_bytes)
}

const MAGIC: [u8; 3] = [0xd6, 0xc3, 0xc4];
/// Header indicator (RFC 3284, 4.1; the application header is xdelta3's).
const HEADER_SECONDARY: u8 = 1;
const HEADER_CODE_TABLE: u8 = 2;
const HEADER_APPLICATION: u8 = 4;
/// Window indicator (RFC 3284, 4.2; the checksum is xdelta3's).
const WINDOW_SOURCE: u8 = 1;
const WINDOW_TARGET: u8 = 2;
const WINDOW_ADLER32: u8 = 4;
/// xdelta3's number for LZMA as the secondary compressor.
const SECONDARY_LZMA: u8 = 2;

/// The three sections of a window, in their order; also the bits of the delta indicator (RFC 3284, 4.3).
const SECTIONS: [&str; 3] = ["data section", "instructions section", "addresses section"];

/// Adler-32 (RFC 1950, 8.2), the checksum of xdelta3's windows.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    let (mut a, mut b) = (1u32, 0u32);
    // The most bytes after which neither sum can have overflowed.
    for chunk in bytes.chunks(5552) {
        for byte in chunk {
            a += u32::from(*byte);
            b += a;
        }
        a %= MODULUS;
        b %= MODULUS;
    }
    b << 16 | a
}

/// Appends `value` as RFC 3284's section 2 writes integers: base 128, most significant digit first.
fn push_varint(out: &mut Vec<u8>, value: u64) {
    let digits = varint_bytes(value);
    for index in (0..digits).rev() {
        let digit = (value >> (7 * index)) as u8 & 0x7f;
        out.push(if index > 0 { digit | 0x80 } else { digit });
    }
}

/// How many bytes [`push_varint`] takes.
fn varint_bytes(value: u64) -> usize {
    ((u64::BITS - value.leading_zeros()).div_ceil(7) as usize).max(1)
}

/// Reads an integer at `*at` and moves on behind it; `None` when it ends too early or has more than 64 bits.
fn read_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for count in 0.. {
        let byte = *bytes.get(*at)?;
        if count == 10 || value >> 57 != 0 {
            return None;
        }
        *at += 1;
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_written_and_read_as_in_the_rfc() {
        let mut bytes = Vec::new();
        // RFC 3284, section 2's example.
        push_varint(&mut bytes, 123_456_789);
        assert_eq!(bytes, [0xba, 0xef, 0x9a, 0x15]);
        for value in [0, 1, 127, 128, 16383, 16384, u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_bytes(value));
            let mut at = 0;
            assert_eq!(read_varint(&bytes, &mut at), Some(value), "{bytes:x?}");
            assert_eq!(at, bytes.len());
        }
    }

    #[test]
    fn endless_and_overlong_integers_are_refused() {
        assert_eq!(read_varint(&[0x80; 100], &mut 0), None);
        assert_eq!(read_varint(&[0xff; 11], &mut 0), None);
        assert_eq!(read_varint(&[0x82, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], &mut 0), None);
        assert_eq!(read_varint(&[0x80, 0x80], &mut 0), None);
        assert_eq!(read_varint(&[], &mut 0), None);
    }

    #[test]
    fn adler32_is_the_one_of_zlib() {
        assert_eq!(adler32(b""), 1);
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
        assert_eq!(adler32(&[0xff; 100_000]), 0x149A_302C);
    }
}
