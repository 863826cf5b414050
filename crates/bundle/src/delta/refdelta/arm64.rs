//! The fields of arm64 instructions that hold addresses (Arm Architecture Reference Manual, A64).

use super::{
    image::{Layout, u32_at},
    references::{ARM_REACH, Kind, Reference},
};

/// What of `instruction` completes an `adrp` to `register`: by what its 12 bits are multiplied, as a shift.
#[inline]
fn low(instruction: u32, register: u32) -> Option<u32> {
    if instruction >> 5 & 31 != register {
        return None;
    }
    if instruction & 0x7FC0_0000 == 0x1100_0000 {
        return Some(0);
    }
    (instruction & 0x3B00_0000 == 0x3900_0000).then(|| {
        let is_vector_of_16 = instruction & 0x0480_0000 == 0x0480_0000 && instruction >> 30 == 0;
        if is_vector_of_16 { 4 } else { instruction >> 30 }
    })
}

/// Finds fields of instructions in one piece of code (Arm Architecture Reference Manual, A64).
pub(super) fn scan(bytes: &[u8], offset: u32, layout: &Layout, out: &mut Vec<Reference>) {
    let start = offset.next_multiple_of(4) - offset;
    let Some(bytes) = bytes.get(start as usize..) else { return };
    let offset = offset + start;
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default())).collect();
    // What completes an `adrp` before: the distance to it.
    let mut completes = vec![0u8; words.len()];
    for (index, &word) in words.iter().enumerate() {
        let at = offset + index as u32 * 4;
        let kind = match word {
            _ if completes[index] > 0 => {
                out.push(Reference::based(at, Kind::ArmLow, usize::from(completes[index])));
                continue;
            }
            _ if word & 0x7C00_0000 == 0x1400_0000 => Kind::ArmJump,
            _ if word & 0xFF00_0010 == 0x5400_0000 || word & 0x7E00_0000 == 0x3400_0000 => Kind::ArmBranch,
            _ if word & 0x7E00_0000 == 0x3600_0000 => Kind::ArmTest,
            _ if word & 0x9F00_0000 == 0x9000_0000 => {
                let register = word & 31;
                let completed = (1..=ARM_REACH as usize).find(|distance| {
                    words.get(index + distance).is_some_and(|word| low(*word, register).is_some())
                        && completes[index + distance] == 0
                });
                let Some(distance) = completed else { continue };
                completes[index + distance] = distance as u8;
                out.push(Reference::based(at, Kind::ArmPage, distance));
                continue;
            }
            _ => continue,
        };
        let target = target(kind, word, layout.place(at));
        if layout.is_mapped(target) {
            out.push(Reference::new(at, kind));
        }
    }
}

#[inline]
fn sign_extend(value: u32, bits: u32) -> i64 {
    i64::from((value << (32 - bits)) as i32 >> (32 - bits))
}

/// The target of an arm64 branch at `place`.
#[inline]
pub(super) fn target(kind: Kind, word: u32, place: u64) -> u64 {
    let words = match kind {
        Kind::ArmJump => sign_extend(word, 26),
        Kind::ArmBranch => sign_extend(word >> 5, 19),
        _ => sign_extend(word >> 5, 14),
    };
    place.wrapping_add_signed(words * 4)
}

/// The page of an `adrp` at `place`.
#[inline]
pub(super) fn page(word: u32, place: u64) -> u64 {
    let pages = sign_extend((word >> 5 & 0x7_FFFF) << 2 | word >> 29 & 3, 21);
    (place & !0xFFF).wrapping_add_signed(pages << 12)
}

/// `word` with the bits of its field taken from `value`.
#[inline]
pub(super) fn insert(kind: Kind, word: u32, value: u32) -> u32 {
    match kind {
        Kind::ArmJump => word & 0xFC00_0000 | value & 0x03FF_FFFF,
        Kind::ArmBranch => word & 0xFF00_001F | (value & 0x7_FFFF) << 5,
        Kind::ArmTest => word & 0xFFF8_001F | (value & 0x3FFF) << 5,
        Kind::ArmPage => word & 0x9F00_001F | (value & 3) << 29 | (value >> 2 & 0x7_FFFF) << 5,
        _ => word & 0xFFC0_03FF | (value & 0xFFF) << 10,
    }
}

/// What the instruction `distance` behind the `adrp` at `at` adds.
#[inline]
pub(super) fn low_of(bytes: &[u8], at: usize, distance: u32) -> u64 {
    let word = u32_at(bytes, at.wrapping_add(distance as usize * 4)).unwrap_or(0);
    u64::from((word >> 10 & 0xFFF) << scale(word))
}

/// By what the 12 bits of an instruction are multiplied, as a shift.
#[inline]
pub(super) fn scale(word: u32) -> u32 {
    low(word, word >> 5 & 31).unwrap_or(0)
}
