//! Adaptive binary range coding, the same loop for both directions.
//!
//! A model asks a [`BitCoder`] to code a bit under a [`Bit`] (an adaptive probability) or a number under a [`Number`];
//! the encoder writes the value it is given and returns it, the decoder ignores the argument and returns what it read.
//! So a model is written once and both sides follow the same rules. All arithmetic is on integers: a patch decodes to
//! the same bytes on every machine. The coder is the carry-propagating range coder of G. N. N. Martin ("Range encoding",
//! 1979) with a range of 64 bits, of which 32 are shifted out at a time; the probability is the mean of a fast and a slow
//! estimate.

/// An adaptive probability that a bit is 0, in units of 1/65536.
#[derive(Clone, Copy)]
pub(super) struct Bit {
    fast: u16,
    slow: u16,
    /// By how many bits both shifts still lag behind their final values: the first bits count more.
    age: u16,
}

const FAST: u16 = 4;
const SLOW: u16 = 7;

impl Bit {
    /// Both values are equally likely.
    pub(super) const NEW: Self = Self { fast: 1 << 15, slow: 1 << 15, age: 1 };

    #[inline(always)]
    pub(super) fn zero(self) -> u32 {
        (u32::from(self.fast) + u32::from(self.slow)) >> 1
    }

    #[inline(always)]
    pub(super) fn saw(&mut self, bit: bool) {
        let (fast, slow) = (self.age.min(FAST), self.age);
        if bit {
            self.fast -= self.fast >> fast;
            self.slow -= self.slow >> slow;
        } else {
            self.fast += (u16::MAX - self.fast) >> fast;
            self.slow += (u16::MAX - self.slow) >> slow;
        }
        self.age = (self.age + 1).min(SLOW);
    }
}

/// One direction of the range coder.
pub(super) trait BitCoder {
    /// Codes one bit under `probability` (that it is 0, of 65536; 1 to 65535).
    fn raw(&mut self, probability: u32, bit: bool) -> bool;

    /// Codes one bit under an adaptive probability and adapts it.
    #[inline(always)]
    fn bit(&mut self, model: &mut Bit, bit: bool) -> bool {
        let bit = self.raw(model.zero(), bit);
        model.saw(bit);
        bit
    }

    /// Codes `count` bits (at most 8) most significant first; the bits so far are the context. `models` has
    /// `1 << count` places.
    #[inline(always)]
    fn tree(&mut self, models: &mut [Bit], count: u32, value: u32) -> u32 {
        let mut node = 1usize;
        for shift in (0..count).rev() {
            let bit = self.bit(&mut models[node], value >> shift & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        node as u32 - (1 << count)
    }
}

/// Below this, 32 bits are shifted out of the range.
const RANGE_MIN: u64 = 1 << 32;

/// Writes bits.
pub(super) struct Encoder {
    low: u64,
    range: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { low: 0, range: u64::MAX, out: Vec::new() }
    }

    fn carry(&mut self) {
        for byte in self.out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return;
            }
        }
    }

    /// Ends the stream with the fewest bytes; zeros at the end are left out, the decoder supplies them.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let top = u128::from(self.low) + u128::from(self.range) - 1;
        for zeros in (0..65).rev() {
            let value = top >> zeros << zeros;
            if value >= u128::from(self.low) {
                if value > u128::from(u64::MAX) {
                    self.carry();
                }
                self.out.extend_from_slice(&(value as u64).to_be_bytes());
                break;
            }
        }
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl BitCoder for Encoder {
    #[inline(always)]
    fn raw(&mut self, probability: u32, bit: bool) -> bool {
        let bound = (self.range >> 16) * u64::from(probability);
        if bit {
            let (low, is_over) = self.low.overflowing_add(bound);
            self.low = low;
            if is_over {
                self.carry();
            }
            self.range -= bound;
        } else {
            self.range = bound;
        }
        if self.range < RANGE_MIN {
            self.out.extend_from_slice(&((self.low >> 32) as u32).to_be_bytes());
            self.low <<= 32;
            self.range <<= 32;
        }
        bit
    }
}

/// Reads bits. Past the end it reads zeros: every loop that decodes is bounded by a count from the header, and
/// [`Decoder::is_used_up`] tells whether the stream was as long as it had to be.
pub(super) struct Decoder<'a> {
    range: u64,
    code: u64,
    input: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        let mut decoder = Self { range: u64::MAX, code: 0, input, at: 0 };
        decoder.code = u64::from(decoder.next()) << 32;
        decoder.code |= u64::from(decoder.next());
        decoder
    }

    #[inline(always)]
    fn next(&mut self) -> u32 {
        let word = match self.input.get(self.at..self.at + 4) {
            Some(word) => u32::from_be_bytes(word.try_into().unwrap_or_default()),
            None => self.last(),
        };
        self.at += 4;
        word
    }

    #[cold]
    fn last(&self) -> u32 {
        (0..4)
            .fold(0, |word, step| word << 8 | u32::from(self.input.get(self.at + step).copied().unwrap_or(0)))
    }

    /// Whether every byte of the stream was needed.
    pub(super) fn is_used_up(&self) -> bool {
        self.at >= self.input.len()
    }
}

impl BitCoder for Decoder<'_> {
    #[inline(always)]
    fn raw(&mut self, probability: u32, _: bool) -> bool {
        let bound = (self.range >> 16) * u64::from(probability);
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        if self.range < RANGE_MIN {
            self.range <<= 32;
            self.code = self.code << 32 | u64::from(self.next());
        }
        bit
    }
}

/// Context bits of the mantissa which see the bits before them.
const MANTISSA: u32 = 3;

/// Bit lengths that are coded at once; this one stands for the longer ones.
const LONG: u32 = 15;

/// An adaptive code for numbers of up to 64 bits: the bit length, then the bits below the leading one. The first three
/// of these know the length and each other, the rest know the length and their place, so that alignments show.
pub(super) struct Number {
    length: [Bit; 16],
    longer: [Bit; 64],
    high: [[Bit; 1 << MANTISSA]; 65],
    low: [[Bit; 64]; 65],
}

impl Number {
    pub(super) const fn new() -> Self {
        Self {
            length: [Bit::NEW; 16],
            longer: [Bit::NEW; 64],
            high: [[Bit::NEW; 1 << MANTISSA]; 65],
            low: [[Bit::NEW; 64]; 65],
        }
    }

    pub(super) fn code<C: BitCoder>(&mut self, coder: &mut C, value: u64) -> u64 {
        let mut length = 64 - value.leading_zeros();
        let is_long = length >= LONG;
        let short = coder.tree(&mut self.length, 4, length.min(LONG));
        length = if short < LONG {
            short
        } else {
            LONG + coder.tree(&mut self.longer, 6, if is_long { length - LONG } else { 0 })
        };
        let length = length.min(64);
        if length < 2 {
            return u64::from(length);
        }
        let below = length - 1;
        let top = below.min(MANTISSA);
        let mask = (1u64 << top) - 1;
        let high = coder.tree(&mut self.high[length as usize], top, (value >> (below - top) & mask) as u32);
        let mut result = 1u64 << top | u64::from(high);
        let low = &mut self.low[length as usize];
        for place in (0..below - top).rev() {
            let bit = coder.bit(&mut low[place as usize], value >> place & 1 == 1);
            result = result << 1 | u64::from(bit);
        }
        result
    }

    /// As [`Number::code`], for a signed value: small magnitudes first, of both signs.
    pub(super) fn code_signed<C: BitCoder>(&mut self, coder: &mut C, value: i64) -> i64 {
        unzigzag(self.code(coder, zigzag(value)))
    }
}

pub(super) fn zigzag(value: i64) -> u64 {
    (value as u64) << 1 ^ (value >> 63) as u64
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bits_come_back_and_the_stream_is_used_up() {
        let numbers =
            [0, 1, 2, 3, 255, 256, 65_535, 1 << 20, u64::from(u32::MAX), 1 << 40, u64::MAX, 0, 0, 7];
        let code = |numbers: &mut dyn Iterator<Item = u64>, coder: &mut Encoder| {
            let mut model = Number::new();
            numbers.for_each(|number| assert_eq!(model.code(coder, number), number));
        };
        let mut encoder = Encoder::new();
        code(&mut numbers.iter().copied().cycle().take(1000), &mut encoder);
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        let mut model = Number::new();
        for number in numbers.iter().cycle().take(1000) {
            assert_eq!(model.code(&mut decoder, 0), *number);
        }
        assert!(decoder.is_used_up());
    }

    #[test]
    fn carries_run_through_any_number_of_full_bytes() {
        let mut encoder = Encoder::new();
        for step in 0..4000u32 {
            encoder.raw(65_535, false);
            encoder.raw(1 + step % 3, step % 5 != 0);
        }
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        for step in 0..4000u32 {
            assert!(!decoder.raw(65_535, false));
            assert_eq!(decoder.raw(1 + step % 3, false), step % 5 != 0);
        }
    }
}
