//! Predicts what a reference of the old file holds in the new one, and codes what it really holds.
//!
//! Encoder and decoder run [`Predictor::code`] over the same references in the same order. Each offers a short list of
//! candidates, most trusted first; one adaptive bit per distinct candidate says whether it is the one. Only when none
//! is, the difference to the first is coded as a number.

use super::bits::{Bit, BitCoder, Number};
use super::image::Layout;
use super::matching::Block;
use super::project::Projection;
use super::references::{KINDS, Kind, Reference, References};

/// What is remembered of a target that projection got wrong.
#[derive(Clone, Copy)]
struct Learned {
    /// The low 32 bits of the old place.
    from: u32,
    /// How often it was right, plus 1; 0 for nothing learned.
    hits: u32,
    /// By how much it moved.
    moved: i64,
}

/// The segment that was asked for last.
#[derive(Clone, Copy, Default)]
struct Nearby {
    start: u32,
    len: u32,
    shift: u64,
}

impl Nearby {
    /// As [`Layout::place`].
    #[inline(always)]
    fn place(&mut self, layout: &Layout, offset: u32) -> u64 {
        if offset.wrapping_sub(self.start) >= self.len {
            match layout.segment_at(offset) {
                Ok(segment) => {
                    let shift = segment.address.wrapping_sub(u64::from(segment.offset));
                    *self = Self { start: segment.offset, len: segment.len, shift };
                }
                Err(next) => {
                    *self = Self { start: offset, len: next - offset, shift: super::image::FILE_SPACE }
                }
            }
        }
        self.shift.wrapping_add(u64::from(offset))
    }
}

const NEIGHBOURS_BITS: u32 = 14;
const STATES: usize = 8;

/// The state that both sides keep in step.
pub(super) struct Predictor<'a> {
    old: &'a Layout,
    new: &'a Layout,
    old_at: Nearby,
    new_at: Nearby,
    projection: &'a Projection<'a>,
    references: &'a References,
    new_bases: &'a [u64],
    /// By how much the last target of each kind moved.
    last: [i64; KINDS],
    history: [u8; KINDS],
    learned: Vec<Learned>,
    learned_mask: u64,
    /// By how much the last target in a neighbourhood moved.
    neighbours: Vec<i64>,
    first: Vec<Bit>,
    other: Vec<Bit>,
    residual: Vec<Number>,
}

/// How the value of a field and its target belong together: target = origin + factor * value.
#[derive(Clone, Copy)]
struct Rule {
    origin: u64,
    /// 0: an instruction of arm64.
    factor: i64,
    /// The kind and the old instruction.
    arm: (Kind, u32),
}

const NO_ARM: (Kind, u32) = (Kind::ArmJump, 0);

fn sign_extend(value: u32, bits: u32) -> i64 {
    i64::from((value << (32 - bits)) as i32 >> (32 - bits))
}

/// The target of an arm64 branch at `place`.
pub(super) fn arm_target(kind: Kind, word: u32, place: u64) -> u64 {
    let words = match kind {
        Kind::ArmJump => sign_extend(word, 26),
        Kind::ArmBranch => sign_extend(word >> 5, 19),
        _ => sign_extend(word >> 5, 14),
    };
    place.wrapping_add_signed(words * 4)
}

/// The page of an `adrp` at `place`.
fn arm_page(word: u32, place: u64) -> u64 {
    let pages = sign_extend((word >> 5 & 0x7_FFFF) << 2 | word >> 29 & 3, 21);
    (place & !0xFFF).wrapping_add_signed(pages << 12)
}

/// `word` with the bits of its field taken from `value`.
fn arm_insert(kind: Kind, word: u32, value: u32) -> u32 {
    match kind {
        Kind::ArmJump => word & 0xFC00_0000 | value & 0x03FF_FFFF,
        Kind::ArmBranch => word & 0xFF00_001F | (value & 0x7_FFFF) << 5,
        Kind::ArmTest => word & 0xFFF8_001F | (value & 0x3FFF) << 5,
        Kind::ArmPage => word & 0x9F00_001F | (value & 3) << 29 | (value >> 2 & 0x7_FFFF) << 5,
        _ => word & 0xFFC0_03FF | (value & 0xFFF) << 10,
    }
}

impl Rule {
    #[inline(always)]
    fn target(&self, value: i64) -> u64 {
        if self.factor == 0 {
            return match self.arm.0 {
                Kind::ArmPage => arm_page(value as u32, self.origin),
                Kind::ArmLow => {
                    let low = (value as u32 >> 10 & 0xFFF) << arm_scale(value as u32);
                    self.origin.wrapping_add(u64::from(low))
                }
                kind => arm_target(kind, value as u32, self.origin),
            };
        }
        self.origin.wrapping_add_signed(value.wrapping_mul(self.factor))
    }

    #[inline(always)]
    fn value(&self, target: u64) -> i64 {
        let distance = target.wrapping_sub(self.origin) as i64;
        if self.factor == 0 {
            let (kind, word) = self.arm;
            let field = match kind {
                Kind::ArmPage => (target >> 12).wrapping_sub(self.origin >> 12) as u32,
                Kind::ArmLow => (target & 0xFFF) as u32 >> arm_scale(word),
                _ => (distance >> 2) as u32,
            };
            return i64::from(arm_insert(kind, word, field) as i32);
        }
        match self.factor {
            1 => distance,
            4 => distance >> 2,
            -1 => distance.wrapping_neg(),
            factor => distance.wrapping_div(factor),
        }
    }
}

/// What the instruction `distance` behind the `adrp` at `at` adds.
fn arm_low(bytes: &[u8], at: usize, distance: u32) -> u64 {
    let word = read(bytes, at.wrapping_add(distance as usize * 4), 4) as u32;
    u64::from((word >> 10 & 0xFFF) << arm_scale(word))
}

/// By what the 12 bits of an instruction are multiplied, as a shift.
fn arm_scale(word: u32) -> u32 {
    super::references::low_arm64(word, word >> 5 & 31).unwrap_or(0)
}

fn hash(value: u64) -> u64 {
    value.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}

/// The 4-byte value as a signed number; for 8 bytes all of it.
#[inline(always)]
pub(super) fn read(bytes: &[u8], at: usize, width: u32) -> i64 {
    if width == 4 {
        bytes
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok())
            .map_or(0, |f| i64::from(i32::from_le_bytes(f)))
    } else {
        bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, i64::from_le_bytes)
    }
}

#[inline(always)]
fn truncate(value: i64, width: u32) -> i64 {
    if width == 4 { i64::from(value as i32) } else { value }
}

impl<'a> Predictor<'a> {
    /// A predictor at its start.
    pub(super) fn new(
        old: &'a Layout,
        new: &'a Layout,
        projection: &'a Projection<'a>,
        references: &'a References,
        new_bases: &'a [u64],
    ) -> Self {
        let slots = (references.all.len() as u64 / 4).next_power_of_two().clamp(1 << 8, 1 << 18);
        Self {
            old,
            new,
            old_at: Nearby::default(),
            new_at: Nearby::default(),
            projection,
            references,
            new_bases,
            last: [0; KINDS],
            history: [0; KINDS],
            learned: vec![Learned { from: 0, hits: 0, moved: 0 }; slots as usize],
            learned_mask: slots - 1,
            neighbours: vec![0; 1 << NEIGHBOURS_BITS],
            first: vec![Bit::NEW; (256 + KINDS) * STATES * 4],
            other: vec![Bit::NEW; KINDS * 8 * 4],
            residual: (0..KINDS).map(|_| Number::new()).collect(),
        }
    }

    #[inline(always)]
    fn rule(kind: Kind, place: u64, base: u64, bytes: &[u8], at: usize, arm: (u32, u32)) -> Rule {
        match kind {
            Kind::ArmJump | Kind::ArmBranch | Kind::ArmTest | Kind::ArmPage => {
                Rule { origin: place, factor: 0, arm: (kind, arm.0) }
            }
            Kind::ArmLow => {
                let back = arm.1 * 4;
                let page = read(bytes, at.wrapping_sub(back as usize), 4) as u32;
                let origin = arm_page(page, place.wrapping_sub(u64::from(back)));
                Rule { origin, factor: 0, arm: (kind, arm.0) }
            }
            Kind::Call | Kind::Jump | Kind::Branch | Kind::Operand => {
                Rule { origin: place.wrapping_add(4), factor: 1, arm: NO_ARM }
            }
            Kind::Word
            | Kind::WordInSequence
            | Kind::RelaOffset
            | Kind::RelaAddend
            | Kind::SymbolValue
            | Kind::Counter
            | Kind::Absolute => Rule { origin: 0, factor: 1, arm: NO_ARM },
            Kind::SymbolIndex => Rule { origin: base, factor: 24, arm: NO_ARM },
            Kind::GoUnit => Rule { origin: base, factor: 4, arm: NO_ARM },
            Kind::SymbolName
            | Kind::Based
            | Kind::JumpTable
            | Kind::GoEntry
            | Kind::GoFunction
            | Kind::GoName
            | Kind::GoTable
            | Kind::GoData => Rule { origin: base, factor: 1, arm: NO_ARM },
            Kind::SymbolSize => Rule {
                origin: (read(bytes, at.wrapping_sub(8), 8) as u64).wrapping_sub(1),
                factor: 1,
                arm: NO_ARM,
            },
            Kind::FrameBegin | Kind::FrameArea => Rule { origin: place, factor: 1, arm: NO_ARM },
            Kind::FrameCommon => Rule { origin: place, factor: -1, arm: NO_ARM },
            Kind::FrameRange => Rule {
                origin: place.wrapping_sub(5).wrapping_add_signed(read(bytes, at.wrapping_sub(4), 4)),
                factor: 1,
                arm: NO_ARM,
            },
        }
    }

    /// Codes the field of `reference` that moved to `new_at`: `new[..]` is known before it. `actual` is what the encoder
    /// found there; the answer is what the decoder has to write.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "one hot function, both directions")]
    pub(super) fn code<C: BitCoder>(
        &mut self,
        coder: &mut C,
        reference: Reference,
        old_bytes: &[u8],
        new_bytes: &[u8],
        new_bytes_at: u32,
        new_at: u32,
        block: Block,
        actual: i64,
    ) -> i64 {
        let kind = reference.kind();
        let width = kind.width();
        let class = kind as usize;
        let at = reference.position as usize;
        let old_place = self.old_at.place(self.old, reference.position);
        let new_place = self.new_at.place(self.new, new_at);
        let (old_base, new_base) = match kind {
            kind if kind.has_base() => {
                let base = reference.base();
                (self.references.bases[base], self.new_bases[base])
            }
            Kind::JumpTable => {
                let base = self.references.tables[reference.base()];
                (base, base.wrapping_add(new_place).wrapping_sub(old_place))
            }
            _ => (0, 0),
        };
        let old_value = read(old_bytes, at, width);
        let arm = (old_value as u32, reference.base() as u32);
        let from = Self::rule(kind, old_place, old_base, old_bytes, at, arm);
        let to = Self::rule(kind, new_place, new_base, new_bytes, (new_at - new_bytes_at) as usize, arm);
        let mut target = from.target(old_value);
        if kind == Kind::ArmPage {
            target = target.wrapping_add(arm_low(old_bytes, at, arm.1));
        }

        let moved = self.last[class];
        let slot = (hash(target) & self.learned_mask) as usize;
        let learned = self.learned[slot];
        let is_learned = learned.from == target as u32 && learned.hits > 0;
        let local =
            matches!(
                kind,
                Kind::Call
                    | Kind::Jump
                    | Kind::Branch
                    | Kind::Operand
                    | Kind::ArmJump
                    | Kind::ArmBranch
                    | Kind::ArmTest
            ) && self.old.offset(target).is_some_and(|offset| offset.wrapping_sub(block.old) < block.len);
        let (projected, distance) = if local {
            (target.wrapping_add(new_place).wrapping_sub(old_place), 0)
        } else {
            self.projection.of(target)
        };
        let place_value = |place: u64| truncate(to.value(place), width);
        let (best, state) = if kind.is_sequence() {
            (target.wrapping_add_signed(moved), 7)
        } else if local {
            (projected, 7)
        } else if is_learned {
            (target.wrapping_add_signed(learned.moved), 2 + learned.hits.min(4) as usize)
        } else {
            (
                projected,
                if distance == 0 {
                    0
                } else if distance < 32 {
                    1
                } else {
                    2
                },
            )
        };
        let best_place = best;
        let best = place_value(best);
        let opcode = match kind {
            Kind::Operand => KINDS + usize::from(old_bytes[at - 2]),
            _ => class,
        };
        let history = self.history[class];
        let context = (opcode * STATES + state) * 4 + usize::from(history & 3);
        let mut value = best;
        let mut hit = coder.bit(&mut self.first[context], actual != best);
        hit = !hit;
        if !hit {
            let neighbour = self.neighbours[(hash(target >> 8) as usize) & ((1 << NEIGHBOURS_BITS) - 1)];
            let candidates = [
                place_value(target.wrapping_add_signed(moved)),
                place_value(target.wrapping_add_signed(neighbour)),
                place_value(projected),
                old_value,
            ];
            let mut found = false;
            for (number, candidate) in candidates.into_iter().enumerate() {
                if candidate == best || candidates[..number].contains(&candidate) {
                    continue;
                }
                let context = (class * 8 + number) * 4 + usize::from(history & 3);
                if !coder.bit(&mut self.other[context], actual != candidate) {
                    value = candidate;
                    found = true;
                    break;
                }
            }
            if !found {
                let residual = truncate(actual.wrapping_sub(best), width);
                let residual = self.residual[class].code_signed(coder, residual);
                value = truncate(best.wrapping_add(residual), width);
            }
        }
        self.history[class] = history << 1 | u8::from(!hit);
        let mut new_target = to.target(value);
        if kind == Kind::ArmPage {
            new_target = new_target.wrapping_add(best_place & 0xFFF);
        }
        let moved = new_target.wrapping_sub(target) as i64;
        self.last[class] = moved;
        if !kind.is_sequence() {
            self.neighbours[(hash(target >> 8) as usize) & ((1 << NEIGHBOURS_BITS) - 1)] = moved;
            if !hit {
                self.learned[slot] = Learned { from: target as u32, hits: 1, moved };
            } else if is_learned {
                self.learned[slot].hits = (learned.hits + 1).min(4);
            }
        }
        value
    }
}

/// The file with every relative field replaced by its target, and if a projection is given, every field by what it
/// predicts: two such images of neighbouring releases match where the raw files differ only by where things lie.
pub(super) fn normalize(
    bytes: &[u8],
    layout: &Layout,
    references: &References,
    projection: Option<(&Projection<'_>, &[u64])>,
) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for reference in &references.all {
        let kind = reference.kind();
        let (at, width) = (reference.position as usize, kind.width());
        let place = layout.place(reference.position);
        let base = match kind {
            kind if kind.has_base() => references.bases[reference.base()],
            Kind::JumpTable => references.tables[reference.base()],
            _ => 0,
        };
        let word = read(bytes, at, width);
        let arm = (word as u32, reference.base() as u32);
        let rule = Predictor::rule(kind, place, base, bytes, at, arm);
        let mut target = rule.target(word);
        if rule.factor == 0 {
            if kind == Kind::ArmPage {
                target = target.wrapping_add(arm_low(bytes, at, arm.1));
            }
            if let Some((projection, _)) = projection {
                target = projection.of(target).0;
            }
            let field = match kind {
                Kind::ArmPage => (target >> 12) as u32,
                Kind::ArmLow => (target & 0xFFF) as u32 >> arm_scale(arm.0),
                _ => (target >> 2) as u32,
            };
            out[at..at + 4].copy_from_slice(&arm_insert(kind, arm.0, field).to_le_bytes());
            continue;
        }
        let mut value = target;
        if let Some((projection, bases)) = projection {
            target = projection.of(target).0;
            value = target;
            match kind {
                kind if kind.has_base() => {
                    value = Rule { origin: bases[reference.base()], ..rule }.value(target) as u64
                }
                Kind::SymbolSize => {
                    value = target.wrapping_sub(projection.of(rule.origin.wrapping_add(1)).0).wrapping_add(1)
                }
                Kind::FrameRange => {
                    value = target.wrapping_sub(projection.of(rule.origin.wrapping_add(1)).0).wrapping_add(1)
                }
                Kind::Counter => value = read(bytes, at, width) as u64,
                _ => {}
            }
        } else if !matches!(
            kind,
            Kind::Call
                | Kind::Jump
                | Kind::Branch
                | Kind::Operand
                | Kind::JumpTable
                | Kind::FrameBegin
                | Kind::FrameArea
                | Kind::FrameCommon
        ) {
            continue;
        }
        let field = value.to_le_bytes();
        out[at..at + width as usize].copy_from_slice(&field[..width as usize]);
    }
    out
}
