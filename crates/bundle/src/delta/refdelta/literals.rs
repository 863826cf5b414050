//! The bytes of a block that differ from the old ones: how far from one to the next, and the new byte.

use super::bits::{BitCoder, Number};
use super::mix::{Mixing, Tables, tables};

const CONTEXTS: usize = 6;

/// Adaptive model of literals: of their differences, in the contexts of those before and of the old bytes around.
pub(super) struct LiteralModel {
    gap: Vec<Number>,
    bytes: Bytes,
    tables: &'static Tables,
    /// For few literals gaps are worth as much care as bytes.
    gap_engine: Option<Mixing<CONTEXTS>>,
    gaps: [u64; 3],
    differences: [u8; 3],
}

/// More care where time does not matter.
enum Bytes {
    Few(Mixing<CONTEXTS>),
    Many(Mixing<4>),
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
    pub(super) fn new(count: u32) -> Self {
        let bits = (count.min(FEW) * 8 * CONTEXTS as u32 * 4)
            .clamp(1 << 12, 1 << 18)
            .next_power_of_two()
            .trailing_zeros();
        Self {
            gap: (0..64).map(|_| Number::new()).collect(),
            bytes: if count <= FEW {
                Bytes::Few(Mixing::new(bits, [64, 256], 250, 24))
            } else {
                Bytes::Many(Mixing::new(18, [64, 256], 250, 16))
            },
            tables: tables(),
            gap_engine: (count <= FEW).then(|| Mixing::new(bits, [64, 256], 250, 24)),
            gaps: [u64::MAX; 3],
            differences: [0; 3],
        }
    }

    /// Codes how many bytes are the same before the next literal; `old[at..]` are the old bytes from there.
    #[inline]
    pub(super) fn gap<C: BitCoder>(&mut self, coder: &mut C, old: &[u8], at: usize, gap: u64) -> u64 {
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
            read = u64::from(engine.symbol(
                coder,
                self.tables,
                &contexts,
                [context, first as usize],
                gap.min(LONG) as u8,
            ));
        }
        let is_mixed = self.gap_engine.is_some();
        let from = if is_mixed { LONG } else { 0 };
        let gap = if read < LONG {
            read
        } else {
            self.gap[context].code(coder, gap.wrapping_sub(from)).saturating_add(from)
        };
        self.gaps = [gap, self.gaps[0], self.gaps[1]];
        gap
    }

    /// Codes the new byte in place of `old[at]`, after its gap.
    #[inline]
    pub(super) fn byte<C: BitCoder>(&mut self, coder: &mut C, old: &[u8], at: usize, new: u8) -> u8 {
        let around = |at: usize| u64::from(old.get(at).copied().unwrap_or(0));
        let here = around(at);
        let [one, two, three] = self.differences.map(u64::from);
        let (gap, before) = (class(self.gaps[0]) as u64, class(self.gaps[1]) as u64);
        let near = here | around(at.wrapping_sub(1)) << 8 | around(at + 1) << 16 | one << 24;
        let sets = [(gap << 3 | before) as usize, one as usize];
        let difference = new.wrapping_sub(old.get(at).copied().unwrap_or(0));
        let difference = match &mut self.bytes {
            Bytes::Few(engine) => {
                let contexts = [
                    gap,
                    one | gap << 8,
                    one | two << 8 | gap << 16,
                    one | two << 8 | three << 16 | gap << 24 | before << 32,
                    here | gap << 8,
                    near | two << 32,
                ];
                engine.symbol(coder, self.tables, &contexts, sets, difference)
            }
            Bytes::Many(engine) => {
                let contexts = [one | gap << 8, one | two << 8 | gap << 16, here | gap << 8, near];
                engine.symbol(coder, self.tables, &contexts, sets, difference)
            }
        };
        self.differences = [difference, self.differences[0], self.differences[1]];
        difference.wrapping_add(here as u8)
    }
}
