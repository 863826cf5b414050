//! The bytes of a block that differ from the old ones: how far from one to the next, and the new byte.

use super::bits::{Bit, BitCoder, Number};
use super::mix::{Mixing, TABLES};

const CONTEXTS: usize = 6;

/// Adaptive model of literals: of their differences, in the contexts of those before and of the old bytes around.
struct LiteralModel {
    gap: GapModel,
    bytes: Bytes,
    /// For few literals gaps are worth as much care as bytes.
    gap_engine: Option<Mixing<CONTEXTS>>,
    gaps: [u64; 3],
    differences: [u8; 3],
}

/// All literals of a patch, put into blocks in the order of the file.
pub(super) struct Literals {
    model: LiteralModel,
    /// Bytes before the next one, once it was read.
    zeros: Option<u64>,
    left: u32,
}

impl Literals {
    pub(super) fn new(count: u32) -> Self {
        Self { model: LiteralModel::new(count), zeros: None, left: count }
    }

    pub(super) fn are_all_read(&self) -> bool {
        self.left == 0
    }

    /// Turns `bytes`, which are those of `old` from `old_at`, into new ones. The encoder has gaps and bytes in `actual`,
    /// for the decoder it is empty. A gap is coded when the first byte behind the literal before it is reached.
    #[inline]
    pub(super) fn apply<C: BitCoder>(
        &mut self,
        coder: &mut C,
        old: &[u8],
        old_at: usize,
        bytes: &mut [u8],
        actual: &mut std::slice::Iter<'_, (u64, u8)>,
    ) {
        let mut at = 0;
        while self.left > 0 && at < bytes.len() {
            let next = actual.as_slice().first().copied().unwrap_or_default();
            let zeros = match self.zeros {
                Some(zeros) => zeros,
                None => self.model.gap(coder, old, old_at + at, next.0),
            };
            let rest = (bytes.len() - at) as u64;
            if zeros >= rest {
                self.zeros = Some(zeros - rest);
                return;
            }
            at += zeros as usize;
            actual.next();
            bytes[at] = self.model.byte(coder, old, old_at + at, next.1);
            at += 1;
            self.left -= 1;
            self.zeros = None;
        }
    }
}

/// More care where time does not matter.
enum Bytes {
    Few(Mixing<CONTEXTS>),
    Many(Box<Guessing>),
}

/// Up to this many literals the gaps are mixed too.
const FEW: u32 = 1 << 15;

fn class(gap: u64) -> usize {
    match gap {
        0..4 => gap as usize,
        4..8 => 4,
        8..16 => 5,
        16..64 => 6,
        _ => 7,
    }
}

impl LiteralModel {
    /// A model for `count` literals.
    fn new(count: u32) -> Self {
        let bits = (count.min(FEW) * 8 * CONTEXTS as u32 * 4)
            .clamp(1 << 12, 1 << 18)
            .next_power_of_two()
            .trailing_zeros();
        Self {
            gap: GapModel::new(),
            bytes: if count <= FEW {
                Bytes::Few(Mixing::new(bits, [64, 256], 250, 24))
            } else {
                Bytes::Many(Box::new(Guessing::new()))
            },
            gap_engine: (count <= FEW).then(|| Mixing::new(bits, [64, 256], 250, 24)),
            gaps: [u64::MAX; 3],
            differences: [0; 3],
        }
    }

    /// Codes how many bytes are the same before the next literal; `old[at..]` are the old bytes from there.
    #[inline]
    fn gap<C: BitCoder>(&mut self, coder: &mut C, old: &[u8], at: usize, gap: u64) -> u64 {
        const LONG: u64 = 255;
        let [one, two, three] = self.gaps.map(|gap| gap.min(LONG));
        let context = class(one) << 3 | class(two);
        let mut read = LONG;
        if let Some(engine) = &mut self.gap_engine {
            let byte = |at: usize| u64::from(old.get(at).copied().unwrap_or(0));
            let [first, second, _] = self.differences.map(u64::from);
            let contexts = [
                one,
                one | two << 8,
                one | two << 8 | three << 16,
                first | one << 8,
                first | second << 8 | one << 16,
                first | byte(at) << 8 | byte(at + 1) << 16 | byte(at + 2) << 24 | byte(at + 3) << 32,
            ];
            read = u64::from(engine.symbol(coder, &contexts, [context, first as usize], gap.min(LONG) as u8));
        }
        let is_mixed = self.gap_engine.is_some();
        let from = if is_mixed { LONG } else { 0 };
        let gap = if read < LONG {
            read
        } else {
            self.gap.code(coder, context, gap.wrapping_sub(from)).saturating_add(from)
        };
        self.gaps = [gap, self.gaps[0], self.gaps[1]];
        gap
    }

    /// Codes the new byte in place of `old[at]`, after its gap.
    #[inline]
    fn byte<C: BitCoder>(&mut self, coder: &mut C, old: &[u8], at: usize, new: u8) -> u8 {
        let around = |at: usize| u64::from(old.get(at).copied().unwrap_or(0));
        let here = around(at);
        let [one, two, three] = self.differences.map(u64::from);
        let (gap, before) = (class(self.gaps[0]) as u64, class(self.gaps[1]) as u64);
        let difference = new.wrapping_sub(here as u8);
        let difference = match &mut self.bytes {
            Bytes::Few(engine) => {
                let near = here | around(at.wrapping_sub(1)) << 8 | around(at + 1) << 16 | one << 24;
                let contexts = [
                    gap,
                    one | gap << 8,
                    one | two << 8 | gap << 16,
                    one | two << 8 | three << 16 | gap << 24 | before << 32,
                    here | gap << 8,
                    near | two << 32,
                ];
                let sets = [(gap << 3 | before) as usize, one as usize];
                engine.symbol(coder, &contexts, sets, difference)
            }
            Bytes::Many(guessing) => {
                guessing.code(coder, [one | gap << 8, here | gap << 8].map(|key| key as usize), difference)
            }
        };
        self.differences = [difference, self.differences[0], self.differences[1]];
        difference.wrapping_add(here as u8)
    }
}

/// Gaps: up to 15 and bit lengths up to 19 are one symbol of five bits, in the context of the two gaps before.
struct GapModel {
    symbol: [[Bit; 32]; 64],
    /// By the class of the gap before and the symbol.
    high: [[[Bit; 8]; 16]; 8],
    low: [[[Bit; 16]; 16]; 8],
    longer: Number,
}

impl GapModel {
    /// Gaps below this are symbols.
    const DIRECT: u64 = 16;
    /// The bit length of the least other gap.
    const LENGTH_MIN: u32 = 5;
    /// The symbol of gaps of more than 19 bits.
    const LONGER: u32 = 31;

    fn new() -> Self {
        Self {
            symbol: [[Bit::NEW; 32]; 64],
            high: [[[Bit::NEW; 8]; 16]; 8],
            low: [[[Bit::NEW; 16]; 16]; 8],
            longer: Number::new(),
        }
    }

    #[inline]
    fn code<C: BitCoder>(&mut self, coder: &mut C, context: usize, gap: u64) -> u64 {
        let symbol = if gap < Self::DIRECT {
            gap as u32
        } else {
            (16 + 64 - gap.leading_zeros() - Self::LENGTH_MIN).min(Self::LONGER)
        };
        let symbol = coder.tree(&mut self.symbol[context], 5, symbol);
        if u64::from(symbol) < Self::DIRECT {
            return u64::from(symbol);
        }
        if symbol == Self::LONGER {
            return self.longer.code(coder, gap);
        }
        let index = (symbol - 16) as usize;
        let below = symbol - 16 + Self::LENGTH_MIN - 1;
        let rest = below - 3;
        let high = coder.tree(&mut self.high[context >> 3][index], 3, (gap >> rest & 7) as u32);
        let mut result = 8 | u64::from(high);
        let low = &mut self.low[context >> 3][index];
        for place in (0..rest).rev() {
            let bit = coder.bit(&mut low[place as usize], gap >> place & 1 == 1);
            result = result << 1 | u64::from(bit);
        }
        result
    }
}

/// Differences of many literals: first whether it is the one that was last seen in each of two contexts, and only if
/// not, its bits, under the mean of two estimates in the logistic domain.
struct Guessing {
    /// By context and key, the difference seen last there.
    guess: [[u8; Self::KEYS]; 2],
    /// How often in a row it was right.
    run: [[u8; Self::KEYS]; 2],
    /// Whether it is right: the first guess of two that differ, the second, the first where both are the same.
    by_key: [[Bit; Self::KEYS]; 3],
    by_run: [[[Bit; Self::RUN_MAX as usize + 1]; 8]; 3],
    slots: [Vec<Estimate>; 2],
    weights: [[i32; 2]; 8],
}

/// A probability that a bit is 0, of 65536, and how many bits made it.
#[derive(Clone, Copy)]
struct Estimate {
    zero: u16,
    count: u16,
}

impl Estimate {
    const RATES: [u8; 6] = [1, 2, 3, 3, 4, 4];

    #[inline(always)]
    fn saw(&mut self, bit: bool) {
        let count = usize::from(self.count).min(Self::RATES.len() - 1);
        let rate = Self::RATES[count];
        if bit {
            self.zero -= self.zero >> rate;
        } else {
            self.zero += (u16::MAX - self.zero) >> rate;
        }
        self.count = count as u16 + 1;
    }
}

impl Guessing {
    const KEYS: usize = 1 << 11;
    const RUN_MAX: u8 = 15;
    const SLOT_BITS: u32 = 17;

    fn new() -> Self {
        let slots = || vec![Estimate { zero: 1 << 15, count: 0 }; 1 << Self::SLOT_BITS];
        Self {
            guess: [[0; Self::KEYS]; 2],
            run: [[0; Self::KEYS]; 2],
            by_key: [[Bit::NEW; Self::KEYS]; 3],
            by_run: [[[Bit::NEW; Self::RUN_MAX as usize + 1]; 8]; 3],
            slots: [slots(), slots()],
            weights: [[26_000; 2]; 8],
        }
    }

    #[inline]
    fn code<C: BitCoder>(&mut self, coder: &mut C, keys: [usize; 2], difference: u8) -> u8 {
        let keys = keys.map(|key| key % Self::KEYS);
        let gap = keys[0] >> 8;
        let guesses = [self.guess[0][keys[0]], self.guess[1][keys[1]]];
        let is_agreed = guesses[0] == guesses[1];
        let mut ask = |which: usize, index: usize| {
            let run = usize::from(self.run[index][keys[index]]);
            let (by_key, by_run) = (&mut self.by_key[which][keys[index]], &mut self.by_run[which][gap][run]);
            let is_wrong = coder.raw((by_key.zero() + by_run.zero()) >> 1, difference != guesses[index]);
            by_key.saw(is_wrong);
            by_run.saw(is_wrong);
            !is_wrong
        };
        let difference = if ask(if is_agreed { 2 } else { 0 }, 0) {
            guesses[0]
        } else if !is_agreed && ask(1, 1) {
            guesses[1]
        } else {
            self.spell(coder, keys, gap, difference)
        };
        for ((guesses, runs), key) in self.guess.iter_mut().zip(&mut self.run).zip(keys) {
            let (guess, run) = (&mut guesses[key], &mut runs[key]);
            *run = if *guess == difference { (*run + 1).min(Self::RUN_MAX) } else { *run / 2 };
            *guess = difference;
        }
        difference
    }

    /// Codes all bits of a difference.
    fn spell<C: BitCoder>(&mut self, coder: &mut C, keys: [usize; 2], gap: usize, difference: u8) -> u8 {
        const MASK: usize = (1 << Guessing::SLOT_BITS) - 1;
        let weights = &mut self.weights[gap];
        let mut node = 1usize;
        let mut half = [0; 2];
        for shift in (0..8).rev() {
            if shift == 7 || shift == 3 {
                // A half of the byte has its sixteen estimates side by side.
                half = keys.map(|key| {
                    let context = (key << 9 | if shift == 3 { node } else { 0 }) as u64;
                    ((context.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize * 16) & MASK
                });
            }
            let within = if shift > 3 { node } else { node & ((1 << (3 - shift)) - 1) | 1 << (3 - shift) };
            let places = half.map(|half| half | within);
            let estimates = [self.slots[0][places[0]], self.slots[1][places[1]]];
            let inputs =
                estimates.map(|one| if one.count == 0 { 0 } else { TABLES.stretch(u32::from(one.zero)) });
            let sum = (inputs[0] * weights[0] + inputs[1] * weights[1]) >> 16;
            let zero = TABLES.squash(sum).clamp(32, 65536 - 32);
            let bit = coder.raw(zero as u32, difference >> shift & 1 == 1);
            let error = if bit { -zero } else { 65536 - zero };
            for (weight, input) in weights.iter_mut().zip(inputs) {
                *weight = (*weight + ((input * error) >> 13)).clamp(-(1 << 18), 1 << 18);
            }
            for (slots, place) in self.slots.iter_mut().zip(places) {
                slots[place].saw(bit);
            }
            node = node << 1 | usize::from(bit);
        }
        node as u8
    }
}
