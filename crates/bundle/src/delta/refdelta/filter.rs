//! Targets instead of distances in new code, reversibly.
//!
//! Relative fields of code that no block holds are stored as targets, so that calls of one function look alike. The
//! map of a field is a bijection which never touches an opcode, so undoing it finds the same fields: with t = v + s
//! (s the field's own place), a value v whose target t lies in the image (below `span`) becomes t; a value that looks
//! like a target but is not one takes a value that became free.

use super::image::Layout;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToTargets,
    FromTargets,
}

/// Rewrites the fields of a run of new bytes at `offset`; only what lies in a code segment and wholly in the run.
pub(super) fn rewrite(bytes: &mut [u8], offset: u32, layout: &Layout, direction: Direction) {
    let span = (layout.hi - layout.lo) as u32;
    let mut start = 0usize;
    while start < bytes.len() {
        let at = offset + start as u32;
        match layout.segment_at(at) {
            Err(next) => {
                if next == u32::MAX {
                    return;
                }
                start += (next - at) as usize;
            }
            Ok(segment) => {
                let len = (segment.offset + segment.len - at) as usize;
                let end = bytes.len().min(start + len);
                if segment.is_code {
                    let place = segment.address + u64::from(at - segment.offset);
                    code_x86(&mut bytes[start..end], place.wrapping_sub(layout.lo) as u32, span, direction);
                }
                start = end;
            }
        }
    }
}

fn code_x86(bytes: &mut [u8], place: u32, span: u32, direction: Direction) {
    let mut at = 0;
    // A field that was looked at is never rewritten afterwards, or undoing would see another value.
    let mut seen = 0;
    while at + 6 <= bytes.len() {
        let skip = super::x86::field_at(bytes[at], bytes[at + 1]).map_or(0, |(skip, _)| skip);
        let field = at + skip;
        if skip == 0 || field < seen {
            at += 1;
            continue;
        }
        seen = field + 4;
        let value = u32::from_le_bytes([bytes[field], bytes[field + 1], bytes[field + 2], bytes[field + 3]]);
        let shift = place.wrapping_add(field as u32 + 4);
        let mapped = match direction {
            Direction::ToTargets => to_target(value, shift, span),
            Direction::FromTargets => from_target(value, shift, span),
        };
        match mapped {
            Some(mapped) => {
                bytes[field..field + 4].copy_from_slice(&mapped.to_le_bytes());
                at = field + 4;
            }
            None => at += 1,
        }
    }
}

/// A = values whose target is below `span`, B = values below `span`; A becomes B, the rest of B the rest of A.
fn to_target(value: u32, shift: u32, span: u32) -> Option<u32> {
    let target = value.wrapping_add(shift);
    if target < span {
        return Some(target);
    }
    (value < span).then(|| value.wrapping_add(free(shift, span)))
}

fn from_target(value: u32, shift: u32, span: u32) -> Option<u32> {
    if value < span {
        return Some(value.wrapping_sub(shift));
    }
    (value.wrapping_add(shift) < span).then(|| value.wrapping_sub(free(shift, span)))
}

/// What leads from B without A to A without B. A is B moved by -shift; where both overlap, what sticks out of A on
/// the other side is `span` away.
fn free(shift: u32, span: u32) -> u32 {
    let start = shift.wrapping_neg();
    if start < span {
        span
    } else if shift < span {
        span.wrapping_neg()
    } else {
        start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delta::refdelta::image::Segment;

    proptest! {
        #[test]
        fn every_field_comes_back(value: u32, shift: u32, span in 1u32..1 << 31) {
            let (there, from) = (to_target(value, shift, span), from_target(value, shift, span));
            prop_assert_eq!(there.and_then(|mapped| from_target(mapped, shift, span)), there.map(|_| value));
            prop_assert_eq!(there.is_some(), from.is_some());
        }

        #[test]
        fn any_code_comes_back(
            code in proptest::collection::vec(prop_oneof![Just(0xE8u8), Just(5), Just(0), any::<u8>()], 0..400),
            at in 0u32..300,
        ) {
            let segments = vec![Segment { offset: 100, len: 300, address: 0x1000, is_code: true }];
            let layout = Layout { segments, lo: 0x1000, hi: 0x9000 };
            let mut rewritten = code.clone();
            rewrite(&mut rewritten, at, &layout, Direction::ToTargets);
            rewrite(&mut rewritten, at, &layout, Direction::FromTargets);
            prop_assert_eq!(rewritten, code);
        }
    }
}
