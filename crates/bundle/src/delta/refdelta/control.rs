//! The list of blocks, the layout of the new file and the bases: all that must be known before the first byte is made.

use super::bits::{Bit, BitCoder, Number};
use super::block::Block;
use super::frame_index::FrameIndex;
use super::image::{Layout, SEGMENTS_MAX, Segment};

const RECENT: usize = 15;

/// Codes blocks: the gap before one, its length, and by how much it moved, mostly as one of the last such distances.
pub(super) struct BlockModel {
    gap: [Number; 2],
    len: [Number; 3],
    jump: Number,
    choice: [[Bit; 16]; 4],
    recent: [i64; RECENT],
    history: usize,
    at: u32,
}

impl BlockModel {
    pub(super) fn new() -> Self {
        Self {
            gap: [const { Number::new() }; 2],
            len: [const { Number::new() }; 3],
            jump: Number::new(),
            choice: [[Bit::NEW; 16]; 4],
            recent: [0; RECENT],
            history: 0,
            at: 0,
        }
    }

    /// Codes one block. What it returns is as hostile as the patch; `None` when the block is not within 32 bits.
    pub(super) fn code<C: BitCoder>(&mut self, coder: &mut C, block: Block) -> Option<Block> {
        let shift = i64::from(block.old) - i64::from(block.new);
        let found = self.recent.iter().position(|recent| *recent == shift).unwrap_or(RECENT);
        let choice = coder.tree(&mut self.choice[self.history & 3], 4, found as u32) as usize;
        let jump_from = self.recent[0];
        let shift = match self.recent.get(choice) {
            Some(shift) => *shift,
            None => jump_from.checked_add(self.jump.code_signed(coder, shift.wrapping_sub(jump_from)))?,
        };
        let place = choice.min(RECENT - 1);
        self.recent.copy_within(0..place, 1);
        self.recent[0] = shift;
        self.history = self.history << 1 | usize::from(choice == RECENT);
        let gap =
            self.gap[usize::from(choice == RECENT)].code(coder, u64::from(block.new.wrapping_sub(self.at)));
        let kind = if choice == RECENT { 2 } else { usize::from(choice != 0) };
        let len = self.len[kind].code(coder, u64::from(block.len));
        let new = self.at.checked_add(u32::try_from(gap).ok()?)?;
        let len = u32::try_from(len).ok()?;
        let old = u32::try_from(i64::from(new).checked_add(shift)?).ok()?;
        self.at = new.checked_add(len)?;
        old.checked_add(len)?;
        Some(Block { new, old, len })
    }
}

/// Codes the layout of the new file as its difference to the old one's. The answer is not checked.
pub(super) fn code_layout<C: BitCoder>(coder: &mut C, old: &Layout, new: &Layout) -> Option<Layout> {
    let mut numbers = Number::new();
    let mut flag = Bit::NEW;
    let mut difference = |coder: &mut C, old: u64, new: u64| {
        old.wrapping_add_signed(numbers.code_signed(coder, new.wrapping_sub(old) as i64))
    };
    let count = difference(coder, old.segments.len() as u64, new.segments.len() as u64);
    if count > SEGMENTS_MAX as u64 {
        return None;
    }
    let nothing = Segment { offset: 0, len: 0, address: 0, is_code: false };
    let mut layout = Layout { segments: Vec::with_capacity(count as usize), lo: 0, hi: 0 };
    layout.lo = difference(coder, old.lo, new.lo);
    layout.hi = difference(coder, old.hi, new.hi);
    let mut moved = (0u64, 0u64);
    for index in 0..count as usize {
        let from = old.segments.get(index).unwrap_or(&nothing);
        let to = new.segments.get(index).unwrap_or(&nothing);
        let guess = (u64::from(from.offset).wrapping_add(moved.0), from.address.wrapping_add(moved.1));
        let offset = difference(coder, guess.0, u64::from(to.offset));
        let address = difference(coder, guess.1, to.address);
        let len = difference(coder, u64::from(from.len), u64::from(to.len));
        let is_code = coder.bit(&mut flag, to.is_code != from.is_code) != from.is_code;
        moved = (offset.wrapping_sub(u64::from(from.offset)), address.wrapping_sub(from.address));
        layout.segments.push(Segment {
            offset: u32::try_from(offset).ok()?,
            len: u32::try_from(len).ok()?,
            address,
            is_code,
        });
    }
    Some(layout)
}

/// Codes where the bases lie, as differences to where the projection expects them.
pub(super) fn code_bases<C: BitCoder>(coder: &mut C, expected: &[u64], actual: &[u64]) -> Vec<u64> {
    let mut numbers = Number::new();
    let actual = |index: usize| actual.get(index).copied().unwrap_or(0);
    expected
        .iter()
        .enumerate()
        .map(|(index, base)| {
            base.wrapping_add_signed(numbers.code_signed(coder, actual(index).wrapping_sub(*base) as i64))
        })
        .collect()
}

/// Codes where the frame index lies, as differences to the old one. The answer is not checked.
pub(super) fn code_frame_index<C: BitCoder>(
    coder: &mut C,
    old: &FrameIndex,
    new: &FrameIndex,
) -> Option<FrameIndex> {
    let mut numbers = Number::new();
    let mut difference = |old: u32, new: u32| {
        let moved = numbers.code_signed(coder, i64::from(new) - i64::from(old));
        i64::from(old).checked_add(moved).and_then(|value| u32::try_from(value).ok())
    };
    Some(FrameIndex {
        index: difference(old.index, new.index)?,
        index_len: difference(old.index_len, new.index_len)?,
        frames: difference(old.frames, new.frames)?,
        frames_len: difference(old.frames_len, new.frames_len)?,
    })
}
