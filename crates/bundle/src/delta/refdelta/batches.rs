//! The order of work: the new file from its start to its end, in batches of a bounded size.
//!
//! A *cell* is a block with the gap before it; what follows the last block is a cell with an empty block. Long blocks and
//! gaps are cut first, so that no cell is large, and cells are put into batches of [`BATCH_BYTES`] or a little more. Both
//! sides work in this order.

use std::ops::Range;

use super::block::Block;

const BATCH_BYTES: u32 = 256 << 10;
/// No batch is longer.
pub(super) const BATCH_BYTES_MAX: u32 = 3 * BATCH_BYTES;

/// Consecutive cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The blocks, of what [`cut`] made.
    pub(super) blocks: Range<usize>,
    /// The bytes of the new file.
    pub(super) bytes: Range<u32>,
}

/// How many blocks [`cut`] makes at most out of `blocks` in a file of `new_len` bytes.
pub(super) fn cut_max(blocks: u32, new_len: u32) -> u64 {
    u64::from(blocks) + u64::from(new_len / BATCH_BYTES)
}

/// The blocks with long ones cut into pieces, and with empty ones where a long gap is cut.
pub(super) fn cut(blocks: &[Block], new_len: u32) -> Vec<Block> {
    let mut out = Vec::with_capacity(blocks.len() + (new_len / BATCH_BYTES) as usize);
    let mut at = 0;
    let gap = |at: &mut u32, until: u32, out: &mut Vec<Block>| {
        while until - *at > BATCH_BYTES {
            *at += BATCH_BYTES;
            out.push(Block { new: *at, old: 0, len: 0 });
        }
    };
    for &block in blocks {
        gap(&mut at, block.new, &mut out);
        let mut rest = block;
        while rest.len > BATCH_BYTES {
            out.push(Block { len: BATCH_BYTES, ..rest });
            rest = Block {
                new: rest.new + BATCH_BYTES,
                old: rest.old + BATCH_BYTES,
                len: rest.len - BATCH_BYTES,
            };
        }
        out.push(rest);
        at = block.new_end();
    }
    gap(&mut at, new_len, &mut out);
    out
}

/// Puts what [`cut`] made into batches.
pub(super) fn plan(blocks: &[Block], new_len: u32) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let (mut start, mut first) = (0, 0);
    for (index, block) in blocks.iter().enumerate() {
        let end = block.new_end();
        if end - start >= BATCH_BYTES {
            batches.push(Batch { blocks: first..index + 1, bytes: start..end });
            (start, first) = (end, index + 1);
        }
    }
    if start < new_len {
        batches.push(Batch { blocks: first..blocks.len(), bytes: start..new_len });
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batches_are_bounded_and_cover_blocks_and_gaps_in_order(
            cells in proptest::collection::vec((0u32..2_000_000, 1u32..2_000_000), 0..20), last in 0u32..2_000_000,
        ) {
            let mut blocks = Vec::new();
            let mut at = 0;
            for (gap, len) in cells {
                blocks.push(Block { new: at + gap, old: at, len });
                at += gap + len;
            }
            let new_len = at + last;
            let pieces = cut(&blocks, new_len);
            prop_assert!(pieces.len() as u64 <= cut_max(blocks.len() as u32, new_len));
            let held = |blocks: &[Block]| blocks.iter().map(|block| u64::from(block.len)).sum::<u64>();
            prop_assert_eq!(held(&pieces), held(&blocks));
            let batches = plan(&pieces, new_len);
            let (mut at, mut first) = (0, 0);
            for batch in &batches {
                prop_assert_eq!((batch.bytes.start, batch.blocks.start), (at, first));
                prop_assert!(batch.bytes.len() as u32 <= BATCH_BYTES_MAX);
                for block in &pieces[batch.blocks.clone()] {
                    prop_assert!(block.new >= at && block.new_end() <= batch.bytes.end);
                    at = block.new_end();
                }
                (at, first) = (batch.bytes.end, batch.blocks.end);
            }
            prop_assert_eq!((at, first), (new_len, pieces.len()));
        }
    }
}
