//! The bytes of a block that differ from the old ones: how far from one to the next, and the new byte.

use super::bits::{Bit, BitCoder, Number};

/// Adaptive model of literals.
pub(super) struct LiteralModel {
    gap: [Number; 2],
    byte: Vec<Bit>,
    was_next: bool,
}

impl LiteralModel {
    pub(super) fn new() -> Self {
        Self { gap: [const { Number::new() }; 2], byte: vec![Bit::NEW; 2 << 16], was_next: false }
    }

    /// Codes how many bytes are the same before the next literal.
    #[inline]
    pub(super) fn gap<C: BitCoder>(&mut self, coder: &mut C, gap: u64) -> u64 {
        let gap = self.gap[usize::from(self.was_next)].code(coder, gap);
        self.was_next = gap == 0;
        gap
    }

    /// Codes the new byte in place of `old`, after its gap.
    #[inline]
    pub(super) fn byte<C: BitCoder>(&mut self, coder: &mut C, old: u8, new: u8) -> u8 {
        let context = (usize::from(self.was_next) << 8 | usize::from(old)) << 8;
        coder.tree(&mut self.byte[context..context + 256], 8, u32::from(new)) as u8
    }
}
