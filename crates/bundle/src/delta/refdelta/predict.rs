//! Predicts what a reference of the old file holds in the new one, and codes what it really holds.
//!
//! Encoder and decoder run [`Predictor::code`] over the same references in the same order. Each offers a short list of
//! candidates, most trusted first; one adaptive bit per distinct candidate says whether it is the one. Only when none
//! is, the difference to the first is coded as a number.

use super::arm64;
use super::bits::{Bit, BitCoder, Number};
use super::block::Block;
use super::image::Layout;
use super::project::Projection;
use super::references::{KINDS, Kind, Reference, References};

/// What is remembered of a target that projection got wrong; small, for it is looked up at random.
#[derive(Clone, Copy, Default)]
struct Learned {
    /// The low 29 bits of the old place, and below them how often it was right, plus 1 (at most [`HITS_MAX`]); 0 for nothing learned.
    tag: u32,
    /// By how much it moved.
    moved: i32,
}

impl Learned {
    #[inline(always)]
    fn hits(self, target: u64) -> Option<u32> {
        let hits = self.tag ^ (target as u32) << 3;
        (1..8).contains(&hits).then_some(hits)
    }

    #[inline(always)]
    fn tag(target: u64, hits: u32) -> u32 {
        (target as u32) << 3 | hits
    }
}

/// What of a kind the loop over references asks for each of them.
#[derive(Clone, Copy)]
struct Traits {
    /// target = origin + value, where origin is the sum of `plus` and of what these select.
    is_plain: bool,
    by_place: u64,
    by_base: u64,
    plus: u64,
    width: u32,
    is_sequence: bool,
    /// Whether a target in the same block moves with the block.
    is_code: bool,
    /// Whether what the reference has above its kind is a number of [`References::bases`].
    has_base: bool,
}

static TRAITS: [Traits; KINDS] = {
    let mut traits = [Traits {
        is_plain: false,
        by_place: 0,
        by_base: 0,
        plus: 0,
        width: 4,
        is_sequence: false,
        is_code: false,
        has_base: false,
    }; KINDS];
    let mut index = 0;
    while index < KINDS {
        let kind = Kind::from_index(index as u32);
        let of = &mut traits[index];
        of.width = kind.width();
        of.is_sequence = kind.is_sequence();
        of.has_base = kind.has_base();
        of.by_base = if of.has_base || matches!(kind, Kind::JumpTable) { u64::MAX } else { 0 };
        of.is_plain = true;
        match kind {
            Kind::Call | Kind::Jump | Kind::Branch | Kind::Operand => {
                (of.by_place, of.plus, of.is_code) = (u64::MAX, 4, true);
            }
            Kind::FrameBegin | Kind::FrameArea => of.by_place = u64::MAX,
            Kind::ArmJump | Kind::ArmBranch | Kind::ArmTest => (of.is_plain, of.is_code) = (false, true),
            Kind::ArmPage
            | Kind::ArmLow
            | Kind::SymbolIndex
            | Kind::GoUnit
            | Kind::SymbolSize
            | Kind::FrameCommon
            | Kind::FrameRange => of.is_plain = false,
            _ => {}
        }
        index += 1;
    }
    traits
};

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

const LEARNED_BITS_MAX: u32 = 17;
const NEIGHBOURS_BITS: u32 = 14;
/// Right predictions that are counted of a learned target.
const HITS_MAX: u32 = 4;
/// How many references are looked up before the first of them is coded.
const AHEAD: usize = 32;

/// A reference that was looked up.
#[derive(Clone, Copy, Default)]
struct Ready {
    reference: Reference,
    /// Where it lies in the new file.
    new_at: u32,
    place: u64,
    base: u64,
    value: i64,
    target: u64,
    is_local: bool,
    is_looked_up: bool,
    /// What was learned of the target after so many lessons; and its projection if that was nothing.
    learned: Learned,
    lessons: u32,
    projected: Option<(u64, u32)>,
}
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
    /// How often `learned` was written.
    lessons: u32,
    /// By how much the last target in a neighbourhood moved, modulo 2^32.
    neighbours: Vec<i32>,
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

impl Rule {
    #[inline(always)]
    fn target(&self, value: i64) -> u64 {
        if self.factor == 1 {
            return self.origin.wrapping_add_signed(value);
        }
        if self.factor == 0 {
            return match self.arm.0 {
                Kind::ArmPage => arm64::page(value as u32, self.origin),
                Kind::ArmLow => {
                    let low = (value as u32 >> 10 & 0xFFF) << arm64::scale(value as u32);
                    self.origin.wrapping_add(u64::from(low))
                }
                kind => arm64::target(kind, value as u32, self.origin),
            };
        }
        self.origin.wrapping_add_signed(value.wrapping_mul(self.factor))
    }

    #[inline(always)]
    fn value(&self, target: u64) -> i64 {
        let distance = target.wrapping_sub(self.origin) as i64;
        if self.factor == 1 {
            return distance;
        }
        if self.factor == 0 {
            let (kind, word) = self.arm;
            let field = match kind {
                Kind::ArmPage => (target >> 12).wrapping_sub(self.origin >> 12) as u32,
                Kind::ArmLow => (target & 0xFFF) as u32 >> arm64::scale(word),
                _ => (distance >> 2) as u32,
            };
            return i64::from(arm64::insert(kind, word, field) as i32);
        }
        match self.factor {
            4 => distance >> 2,
            -1 => distance.wrapping_neg(),
            factor => distance.wrapping_div(factor),
        }
    }
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
        let slots =
            (references.all.len() as u64 / 4).next_power_of_two().clamp(1 << 8, 1 << LEARNED_BITS_MAX);
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
            learned: vec![Learned::default(); slots as usize],
            learned_mask: slots - 1,
            lessons: 0,
            neighbours: vec![0; 1 << NEIGHBOURS_BITS],
            first: vec![Bit::NEW; (256 + KINDS) * STATES * 4],
            other: vec![Bit::NEW; KINDS * 8 * 4],
            residual: (0..KINDS).map(|_| Number::new()).collect(),
        }
    }

    #[inline(always)]
    fn rule(kind: Kind, place: u64, base: u64, bytes: &[u8], at: usize, arm: (u32, u32)) -> Rule {
        let traits = &TRAITS[kind as usize];
        if traits.is_plain {
            let origin =
                (place & traits.by_place).wrapping_add(base & traits.by_base).wrapping_add(traits.plus);
            return Rule { origin, factor: 1, arm: NO_ARM };
        }
        Self::other_rule(kind, place, base, bytes, at, arm)
    }

    /// The rule of a kind whose target is not an origin plus the value.
    fn other_rule(kind: Kind, place: u64, base: u64, bytes: &[u8], at: usize, arm: (u32, u32)) -> Rule {
        match kind {
            Kind::ArmJump | Kind::ArmBranch | Kind::ArmTest | Kind::ArmPage => {
                Rule { origin: place, factor: 0, arm: (kind, arm.0) }
            }
            Kind::ArmLow => {
                let back = arm.1 * 4;
                let page = read(bytes, at.wrapping_sub(back as usize), 4) as u32;
                let origin = arm64::page(page, place.wrapping_sub(u64::from(back)));
                Rule { origin, factor: 0, arm: (kind, arm.0) }
            }
            Kind::SymbolIndex => Rule { origin: base, factor: 24, arm: NO_ARM },
            Kind::GoUnit => Rule { origin: base, factor: 4, arm: NO_ARM },
            Kind::SymbolSize => Rule {
                origin: (read(bytes, at.wrapping_sub(8), 8) as u64).wrapping_sub(1),
                factor: 1,
                arm: NO_ARM,
            },
            Kind::FrameCommon => Rule { origin: place, factor: -1, arm: NO_ARM },
            Kind::FrameRange => Rule {
                origin: place.wrapping_sub(5).wrapping_add_signed(read(bytes, at.wrapping_sub(4), 4)),
                factor: 1,
                arm: NO_ARM,
            },
            _ => Rule { origin: 0, factor: 1, arm: NO_ARM },
        }
    }

    /// Codes the references of `blocks`. `bytes` are new bytes from `bytes_at`, which hold all of the blocks: in the encoder
    /// as they are, in the decoder those of the old file with literals, until this writes the fields.
    pub(super) fn code<C: BitCoder>(
        &mut self,
        coder: &mut C,
        blocks: &[Block],
        old: &[u8],
        bytes: &mut [u8],
        bytes_at: u32,
    ) {
        let references = self.references;
        let mut found = blocks.iter().flat_map(|block| {
            references.within(block.old, block.len).map(move |reference| (reference, *block))
        });
        let mut ready = [Ready::default(); AHEAD];
        loop {
            let mut count = 0;
            // The array comes first: what is taken from `found` must not be lost.
            for (slot, (reference, block)) in ready.iter_mut().zip(&mut found) {
                *slot = self.look_up(reference, block, old);
                count += 1;
            }
            // A loop of its own, which no guess about what was learned holds up.
            for ready in &mut ready[..count] {
                if ready.is_looked_up && ready.learned.hits(ready.target).is_none() {
                    ready.projected = Some(self.projection.of(ready.target));
                }
            }
            for ready in &ready[..count] {
                self.code_field(coder, ready, old, bytes, bytes_at);
            }
            if count < AHEAD {
                return;
            }
        }
    }

    /// What can be known of a reference before those in front of it are coded. It reads tables at random; done for some
    /// references in a row, the processor waits for all of them at once.
    #[inline(always)]
    fn look_up(&mut self, reference: Reference, block: Block, old: &[u8]) -> Ready {
        let kind = reference.kind();
        let traits = &TRAITS[kind as usize];
        let at = reference.position as usize;
        let place = self.old_at.place(self.old, reference.position);
        let base = if traits.has_base {
            self.references.bases[reference.base()]
        } else if kind == Kind::JumpTable {
            self.references.tables[reference.base()]
        } else {
            0
        };
        let value = read(old, at, traits.width);
        let arm = (value as u32, reference.base() as u32);
        let mut target = Self::rule(kind, place, base, old, at, arm).target(value);
        if kind == Kind::ArmPage {
            target = target.wrapping_add(arm64::low_of(old, at, arm.1));
        }
        let is_local = traits.is_code
            && self.old.offset(target).is_some_and(|offset| offset.wrapping_sub(block.old) < block.len);
        let new_at = block.new + (reference.position - block.old);
        let mut ready = Ready { reference, new_at, place, base, value, target, is_local, ..Ready::default() };
        if !is_local && !traits.is_sequence {
            ready.lessons = self.lessons;
            ready.learned = self.learned[self.slot(target)];
            ready.is_looked_up = true;
        }
        ready
    }

    #[inline(always)]
    fn slot(&self, target: u64) -> usize {
        (hash(target) & self.learned_mask) as usize
    }

    #[inline(always)]
    fn code_field<C: BitCoder>(
        &mut self,
        coder: &mut C,
        ready: &Ready,
        old_bytes: &[u8],
        bytes: &mut [u8],
        bytes_at: u32,
    ) {
        let Ready { reference, new_at, place: old_place, value: old_value, target, .. } = *ready;
        let kind = reference.kind();
        let class = kind as usize;
        let traits = &TRAITS[class];
        let width = traits.width;
        let at = reference.position as usize;
        let new_place = self.new_at.place(self.new, new_at);
        let new_base = if traits.has_base {
            self.new_bases[reference.base()]
        } else {
            // A jump table is as far from the field as the old one.
            ready.base.wrapping_add(new_place).wrapping_sub(old_place)
        };
        let field = (new_at - bytes_at) as usize;
        let arm = (old_value as u32, reference.base() as u32);
        let to = Self::rule(kind, new_place, new_base, bytes, field, arm);
        let actual = read(bytes, field, width);

        let moved = self.last[class];
        let mut hits = None;
        let mut projected = ready.projected;
        let (best, state) = if traits.is_sequence {
            (target.wrapping_add_signed(moved), 7)
        } else if ready.is_local {
            let moved = target.wrapping_add(new_place).wrapping_sub(old_place);
            projected = Some((moved, 0));
            (moved, 7)
        } else {
            let learned =
                if ready.lessons == self.lessons { ready.learned } else { self.learned[self.slot(target)] };
            hits = learned.hits(target);
            match hits {
                Some(hits) => (target.wrapping_add_signed(i64::from(learned.moved)), 2 + hits as usize),
                None => {
                    let (place, distance) = projected.unwrap_or_else(|| self.projection.of(target));
                    projected = Some((place, distance));
                    let state = match distance {
                        0 => 0,
                        1..32 => 1,
                        _ => 2,
                    };
                    (place, state)
                }
            }
        };
        let place_value = |place: u64| truncate(to.value(place), width);
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
            let (projected, _) = projected.unwrap_or_else(|| self.projection.of(target));
            let candidates = [
                place_value(target.wrapping_add_signed(moved)),
                place_value(target.wrapping_add_signed(i64::from(neighbour))),
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
        if !traits.is_sequence {
            self.neighbours[(hash(target >> 8) as usize) & ((1 << NEIGHBOURS_BITS) - 1)] = moved as i32;
            let lesson = match hits {
                _ if !hit => i32::try_from(moved).ok().map(|moved| (1, moved)),
                Some(hits) if hits < HITS_MAX => Some((hits + 1, moved as i32)),
                _ => None,
            };
            if let Some((hits, moved)) = lesson {
                let slot = self.slot(target);
                self.learned[slot] = Learned { tag: Learned::tag(target, hits), moved };
                self.lessons = self.lessons.wrapping_add(1);
            }
        }
        if width == 4 {
            bytes[field..field + 4].copy_from_slice(&(value as u32).to_le_bytes());
        } else {
            bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
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
                target = target.wrapping_add(arm64::low_of(bytes, at, arm.1));
            }
            if let Some((projection, _)) = projection {
                target = projection.of(target).0;
            }
            let field = match kind {
                Kind::ArmPage => (target >> 12) as u32,
                Kind::ArmLow => (target & 0xFFF) as u32 >> arm64::scale(arm.0),
                _ => (target >> 2) as u32,
            };
            out[at..at + 4].copy_from_slice(&arm64::insert(kind, arm.0, field).to_le_bytes());
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
