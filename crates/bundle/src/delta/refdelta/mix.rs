//! A mixing model for bytes: several predictions of the next bit, weighted by how well they did.
//!
//! The method is Matt Mahoney's ("Adaptive weighing of context models for lossless data compression", 2005), in small:
//! adaptive probabilities in the contexts of the last bytes and of the old file, a match model, and gated linear mixing
//! in the logistic domain. It packs new code and data a sixth tighter than LZMA at about 1 MB/s, so that it is for small
//! streams. All numbers are integers.

use std::sync::OnceLock;

use super::bits::BitCoder;

/// Logistic domain: 8 fractional bits, -2047 to 2047; probabilities have 12 bits here.
fn squash(x: i32) -> i32 {
    const POINTS: [i32; 33] = [
        1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2047, 2549, 2994, 3348, 3607,
        3785, 3901, 3975, 4022, 4050, 4068, 4079, 4085, 4089, 4092, 4093, 4094,
    ];
    let x = x.clamp(-2047, 2047) + 2048;
    let (index, within) = ((x >> 7) as usize, x & 127);
    (POINTS[index] * (128 - within) + POINTS[index + 1] * within + 64) >> 7
}

struct Tables {
    stretch: [i16; 4096],
    /// 65536 / (n + 1.6): how much of an error an estimate takes over after n bits.
    rate: [i32; 256],
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = Tables { stretch: [0; 4096], rate: [0; 256] };
        let mut from = 0;
        for x in -2047..=2047 {
            let to = squash(x);
            for place in from..=to {
                tables.stretch[place as usize] = x as i16;
            }
            from = to + 1;
        }
        for place in from..4096 {
            tables.stretch[place as usize] = 2047;
        }
        for (count, rate) in tables.rate.iter_mut().enumerate() {
            *rate = (65536 * 10 / (count * 10 + 16)) as i32;
        }
        tables
    })
}

/// A probability that a bit is 1, of 22 bits, and how often it was seen, of 10.
#[derive(Clone, Copy)]
struct Slot(u32);

impl Slot {
    const NEW: Self = Self(1 << 31);

    fn probability(self) -> i32 {
        (self.0 >> 20) as i32
    }

    fn count(self) -> u32 {
        self.0 & 1023
    }

    #[inline(always)]
    fn saw(&mut self, bit: bool, rates: &[i32; 256], most: u32) {
        let count = self.count();
        let probability = i64::from(self.0 >> 10);
        let target = if bit { (1i64 << 22) - 1 } else { 0 };
        let moved = probability + (((target - probability) * i64::from(rates[count as usize])) >> 16);
        self.0 = (moved as u32) << 10 | if count < most { count + 1 } else { count };
    }
}

/// Contexts besides the match model.
const CONTEXTS: usize = 8;
/// Two inputs per context, two of the match model, one constant.
const INPUTS: usize = CONTEXTS * 2 + 3;
const MATCH_MIN: usize = 4;
const COUNT_MAX: u32 = 250;
/// How much of the old file the match model sees.
pub(super) const REMEMBERED_MAX: usize = 1 << 20;

struct Mixer {
    weights: Vec<[i32; INPUTS]>,
    chosen: usize,
    output: i32,
}

impl Mixer {
    fn new(sets: usize) -> Self {
        Self { weights: vec![[(1 << 16) / 5; INPUTS]; sets], chosen: 0, output: 2048 }
    }

    #[inline(always)]
    fn mix(&mut self, inputs: &[i32; INPUTS], set: usize) -> i32 {
        self.chosen = set;
        let sum: i64 = inputs
            .iter()
            .zip(&self.weights[set])
            .map(|(input, weight)| i64::from(*input) * i64::from(*weight))
            .sum();
        let x = (sum >> 16).clamp(-2047, 2047) as i32;
        self.output = squash(x);
        x
    }

    #[inline(always)]
    fn saw(&mut self, inputs: &[i32; INPUTS], bit: bool) {
        let error = ((i32::from(bit) << 12) - self.output) * 10;
        for (input, weight) in inputs.iter().zip(&mut self.weights[self.chosen]) {
            *weight = (*weight + ((input * error + (1 << 15)) >> 16)).clamp(-(1 << 20), 1 << 20);
        }
    }
}

/// The state of the model: what was seen, and the statistics about it.
pub(super) struct MixModel {
    history: Vec<u8>,
    slots: Vec<Slot>,
    mask: usize,
    recent: Vec<u32>,
    matched: usize,
    matched_len: usize,
    match_slots: Vec<Slot>,
    mixers: [Mixer; 3],
}

/// What is known about a byte besides the bytes before it.
#[derive(Clone, Copy, Default)]
pub(super) struct Hint {
    /// The old bytes where this one might have come from: the one before, itself, the next.
    pub(super) old: [u8; 3],
    /// What kind of byte it is, below 4.
    pub(super) kind: u8,
}

impl MixModel {
    /// A model for about `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        let bits = (len.max(1) * 24 * CONTEXTS).next_power_of_two().trailing_zeros().clamp(16, 24);
        Self {
            history: vec![0; 8],
            slots: vec![Slot::NEW; 1 << bits],
            mask: (1 << bits) - 1,
            recent: vec![0; 1 << 16],
            matched: 0,
            matched_len: 0,
            match_slots: vec![Slot::NEW; 64 * 2],
            mixers: [Mixer::new(256), Mixer::new(64 * 4), Mixer::new(256 * 4)],
        }
    }

    /// Memory in bytes of [`MixModel::new`] after `len` bytes.
    pub(super) fn memory(len: u64) -> u64 {
        (len.saturating_mul(24 * CONTEXTS as u64 * 2).clamp(1 << 16, 1 << 22)) * 4 + len + (1 << 20)
    }

    /// Takes over bytes that both sides know, without statistics: only the match model sees them.
    pub(super) fn remember(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.history.push(byte);
            let key = self.match_key();
            self.recent[key] = self.history.len() as u32;
        }
        self.matched_len = 0;
    }

    fn match_key(&self) -> usize {
        let end = self.history.len();
        let last = &self.history[end - MATCH_MIN..];
        let word = last.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        (word.wrapping_mul(0x9E37_79B1) >> 16) as usize
    }

    fn find_match(&mut self) {
        let end = self.history.len();
        if self.matched_len > 0 && self.history[self.matched] == self.history[end - 1] {
            self.matched += 1;
            self.matched_len = (self.matched_len + 1).min(63);
        } else {
            self.matched_len = 0;
        }
        let key = self.match_key();
        if self.matched_len == 0 {
            let at = self.recent[key] as usize;
            if at > 0 {
                let mut len = 0;
                while len < 32 && len < at && self.history[at - 1 - len] == self.history[end - 1 - len] {
                    len += 1;
                }
                if len >= MATCH_MIN {
                    self.matched = at;
                    self.matched_len = len;
                }
            }
        }
        self.recent[key] = end as u32;
    }

    /// Codes one byte.
    pub(super) fn code<C: BitCoder>(&mut self, coder: &mut C, hint: Hint, byte: u8) -> u8 {
        let tables = tables();
        let end = self.history.len();
        let last = |back: usize| u64::from(self.history[end - back]);
        let kind = u64::from(hint.kind);
        let [before, old, after] = hint.old.map(u64::from);
        let (one, two, three) = (last(1), last(2), last(3));
        let contexts: [u64; CONTEXTS] = [
            kind,
            one | kind << 8 | 1 << 16,
            one | two << 8 | 2 << 32,
            one | two << 8 | three << 16 | 3 << 32,
            one | two << 8 | three << 16 | last(4) << 24 | 4 << 32,
            (one | two << 8 | three << 16 | last(4) << 24 | last(5) << 32 | last(6) << 40) ^ 5 << 56,
            old | before << 8 | one << 16 | kind << 24 | 6 << 32,
            old | after << 8 | before << 16 | kind << 24 | 7 << 32,
        ];
        let bases = contexts.map(|context| {
            let hash = context.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            ((hash ^ hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32) as usize
        });
        let expected = if self.matched_len > 0 { self.history[self.matched] as usize | 256 } else { 0 };
        let match_set = if expected > 0 { self.matched_len } else { 0 };
        let mut node = 1usize;
        for shift in (0..8).rev() {
            let mut inputs = [0i32; INPUTS];
            let mut places = [0usize; CONTEXTS];
            for (index, base) in bases.iter().enumerate() {
                let place = (base + node * 0x9E35) & self.mask;
                places[index] = place;
                let slot = self.slots[place];
                let stretched = i32::from(tables.stretch[slot.probability() as usize]);
                let count = slot.count();
                if count > 0 {
                    inputs[index * 2] = stretched;
                    inputs[index * 2 + 1] =
                        if count > 3 { stretched } else { (slot.probability() - 2048) >> 2 };
                }
            }
            let expects = expected > 0 && (expected | 256) >> (shift + 1) == node;
            let expected_bit = expects && expected >> shift & 1 == 1;
            let match_place = self.matched_len * 2 + usize::from(expected_bit);
            if expects {
                let slot = self.match_slots[match_place];
                inputs[CONTEXTS * 2] = i32::from(tables.stretch[slot.probability() as usize]);
                let strength = (self.matched_len.min(32) as i32) * 16;
                inputs[CONTEXTS * 2 + 1] = if expected_bit { strength } else { -strength };
            }
            inputs[CONTEXTS * 2 + 2] = 256;
            let set = if expects { match_set } else { 0 };
            let x = self.mixers[0].mix(&inputs, node)
                + self.mixers[1].mix(&inputs, set << 2 | usize::from(hint.kind))
                + self.mixers[2].mix(&inputs, (one as usize) << 2 | usize::from(hint.kind));
            let x = x / 3;
            let mixed = squash(x);
            let one_of_65536 = (mixed * 16).clamp(32, 65536 - 32);
            let bit = coder.raw(65536 - one_of_65536 as u32, byte >> shift & 1 == 1);
            for (place, index) in places.iter().zip(0..) {
                let most = if index == 0 { COUNT_MAX } else { 60 };
                self.slots[*place].saw(bit, &tables.rate, most);
            }
            if expects {
                self.match_slots[match_place].saw(bit, &tables.rate, COUNT_MAX);
            }
            for mixer in &mut self.mixers {
                mixer.saw(&inputs, bit);
            }
            node = node << 1 | usize::from(bit);
        }
        let byte = node as u8;
        self.history.push(byte);
        self.find_match();
        byte
    }
}
