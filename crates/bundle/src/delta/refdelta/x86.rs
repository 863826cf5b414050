//! The fields of x86-64 instructions that hold addresses (Intel 64 Architectures Software Developer's Manual, volume 2).

use super::{
    image::{Layout, u32_at},
    references::{Kind, Reference},
};

pub(super) fn rel32(file: &[u8], at: usize, layout: &Layout) -> Option<u64> {
    let field = u32_at(file, at)?;
    Some(layout.place(at as u32).wrapping_add(4).wrapping_add_signed(i64::from(field as i32)))
}

/// What may begin at an opcode byte: bytes before the field, and the kind.
#[inline(always)]
pub(super) fn field_at(first: u8, second: u8) -> Option<(usize, Kind)> {
    match first {
        0xE8 => Some((1, Kind::Call)),
        0xE9 => Some((1, Kind::Jump)),
        0x0F if second & 0xF0 == 0x80 => Some((2, Kind::Branch)),
        _ if second & 0xC7 == 0x05 => Some((2, Kind::Operand)),
        _ => None,
    }
}

/// Where in `code` an absolute 32-bit field may begin, if the instruction at its start has one.
#[inline(always)]
fn absolute(code: &[u8]) -> Option<usize> {
    let (first, second, third) = (code[0], code[1], code[2]);
    match first {
        0xB8..=0xBF | 0x68 | 0x3D => Some(1),
        0xC7 => match (second >> 6, second & 7) {
            (3, _) => Some(2),
            (0, rm) if rm != 4 && rm != 5 => Some(2),
            (1, rm) if rm != 4 => Some(3),
            (1, 4) => Some(4),
            _ => None,
        },
        0x81 if second >= 0xF8 => Some(2),
        _ if second & 0xC7 == 0x04 && third & 7 == 5 => Some(3),
        _ if second & 0xC0 == 0x80 => Some(if second & 7 == 4 { 3 } else { 2 }),
        _ => None,
    }
}

/// Candidates of 64 places at once: bit i is set where a field may begin behind an opcode at place i. `code` has 72
/// bytes. Nothing is left out that [`scan`] would take: an opcode's second byte and the highest byte of its field
/// are looked at, `reach` being the highest byte of the longest distance, `top` that of the highest address.
#[inline(always)]
fn candidates(code: &[u8; 72], reach: u8, top: u8, is_fixed: bool) -> u64 {
    let mut flags = [0u8; 64];
    let (shift, most) = (reach.wrapping_add(1), reach.saturating_mul(2).saturating_add(1));
    for (place, flag) in flags.iter_mut().enumerate() {
        let (first, second) = (code[place], code[place + 1]);
        let is_near = |high: u8| high.wrapping_add(shift) <= most;
        let one = (first & 0xFE == 0xE8) & is_near(code[place + 4]);
        let two = ((first == 0x0F) & (second & 0xF0 == 0x80)) | (second & 0xC7 == 0x05);
        *flag = u8::from(one | two & is_near(code[place + 5]));
    }
    if is_fixed {
        for (place, flag) in flags.iter_mut().enumerate() {
            let (first, second, third) = (code[place], code[place + 1], code[place + 2]);
            let one = (first & 0xF8 == 0xB8) | (first == 0x68) | (first == 0x3D);
            let is_move = first == 0xC7;
            let is_based = second & 0xC0 == 0x80;
            let two = is_move | (first == 0x81) | is_based;
            let three = is_move | is_based | (second & 0xC7 == 0x04) & (third & 7 == 5);
            let found = one & (code[place + 4] <= top)
                | two & (code[place + 5] <= top)
                | three & (code[place + 6] <= top)
                | is_move & (code[place + 7] <= top);
            *flag |= u8::from(found);
        }
    }
    let mut mask = 0;
    for (index, eight) in flags.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes(eight.try_into().unwrap_or_default());
        mask |= (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (index * 8);
    }
    mask
}

/// Finds fields in one piece of code; a field lies wholly in its piece.
pub(super) fn scan(
    bytes: &[u8],
    offset: u32,
    layout: &Layout,
    is_plt: bool,
    is_fixed: bool,
    out: &mut Vec<Reference>,
) {
    let span = layout.hi - layout.lo;
    // A piece may begin in a segment and end beyond it.
    let reach = ((span + (1 << 17)) >> 24) as u8;
    let most = layout.hi.min(1 << 31);
    let top = (most >> 24) as u8;
    let mut scan = Scan {
        bytes,
        offset,
        place: layout.place(offset),
        lo: layout.lo,
        span,
        absolute: layout.lo.max(0x10000)..most,
        is_fixed,
        out,
    };
    let end = bytes.len().saturating_sub(7);
    if is_plt || reach >= 127 {
        let mut at = 0;
        while at < end {
            at = scan.plt(at, is_plt).or_else(|| scan.field(at)).unwrap_or(at + 1);
        }
        return;
    }
    let mut at = 0;
    for group in (0..end).step_by(64) {
        let mut mask = match bytes.get(group..group + 72).and_then(|code| code.try_into().ok()) {
            Some(code) => candidates(code, reach, top, is_fixed),
            None => {
                let mut code = [0; 72];
                let rest = &bytes[group..bytes.len().min(group + 72)];
                code[..rest.len()].copy_from_slice(rest);
                candidates(&code, reach, top, is_fixed)
            }
        };
        while mask != 0 {
            let candidate = group + mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if candidate >= at && candidate < end {
                at = scan.field(candidate).unwrap_or(candidate + 1);
            }
        }
    }
}

/// One piece of code while it is scanned.
struct Scan<'a> {
    bytes: &'a [u8],
    offset: u32,
    place: u64,
    lo: u64,
    span: u64,
    absolute: std::ops::Range<u64>,
    is_fixed: bool,
    out: &'a mut Vec<Reference>,
}

impl Scan<'_> {
    /// The instruction of a PLT entry that says which relocation it belongs to.
    fn plt(&mut self, at: usize, is_plt: bool) -> Option<usize> {
        let is_counter = is_plt && self.bytes[at] == 0x68 && (self.offset as usize + at) % 16 == 6;
        is_counter.then(|| {
            self.out.push(Reference::new(self.offset + at as u32 + 1, Kind::Counter));
            at + 5
        })
    }

    /// Takes the field behind the opcode at `at` if there is one; says where the scan goes on.
    #[inline(always)]
    fn field(&mut self, at: usize) -> Option<usize> {
        let bytes = self.bytes;
        let read = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if let Some((skip, kind)) = field_at(bytes[at], bytes[at + 1]) {
            let field = at + skip;
            let target =
                self.place.wrapping_add(field as u64 + 4).wrapping_add_signed(i64::from(read(field)));
            if target.wrapping_sub(self.lo) < self.span {
                self.out.push(Reference::new(self.offset + field as u32, kind));
                return Some(field + 4);
            }
        }
        if self.is_fixed
            && let Some(skip) = absolute(&bytes[at..at + 3])
        {
            let field = at + skip;
            if self.absolute.contains(&u64::from(read(field) as u32)) {
                self.out.push(Reference::new(self.offset + field as u32, Kind::Absolute));
                return Some(field + 4);
            }
        }
        None
    }
}
