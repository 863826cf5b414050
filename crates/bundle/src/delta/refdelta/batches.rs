//! The order of work: batches of blocks, code first.
//!
//! A *cell* is a block with the gap before it; what follows the last block is a cell with an empty block. Cells are put
//! into batches of [`BATCH_BYTES`] or a little more; a batch also ends where code begins or ends. All batches of code
//! come before the others, so that what was learned of targets there serves tables and data. Both sides work in this
//! order.

use std::ops::Range;

use super::image::Layout;
use super::matching::Block;

const BATCH_BYTES: u32 = 256 << 10;

/// Consecutive cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The blocks.
    pub(super) blocks: Range<usize>,
    /// The bytes of the new file.
    pub(super) bytes: Range<u32>,
    /// Where its gaps begin among the extra bytes.
    pub(super) extra: u32,
}

/// The batches by their place in the new file, and the order in which they are worked on.
pub(super) fn plan(blocks: &[Block], new_len: u32, layout: &Layout) -> (Vec<Batch>, Vec<usize>) {
    let is_code = |block: &Block| layout.segment_at(block.new).is_ok_and(|segment| segment.is_code);
    let mut batches: Vec<Batch> = Vec::new();
    let mut code = Vec::new();
    let (mut start, mut first, mut extra, mut gaps) = (0u32, 0, 0u32, 0u32);
    let mut end = 0u32;
    for (index, block) in blocks.iter().enumerate() {
        gaps += block.new - end;
        end = block.new_end();
        let here = is_code(block);
        let next_differs = blocks.get(index + 1).is_none_or(|next| is_code(next) != here);
        if end - start >= BATCH_BYTES || next_differs {
            batches.push(Batch { blocks: first..index + 1, bytes: start..end, extra });
            code.push(here);
            (start, first, extra) = (end, index + 1, gaps);
        }
    }
    if end < new_len {
        batches.push(Batch { blocks: blocks.len()..blocks.len(), bytes: end..new_len, extra });
        code.push(false);
    }
    let order = (0..batches.len())
        .filter(|batch| code[*batch])
        .chain((0..batches.len()).filter(|batch| !code[*batch]));
    let order = order.collect();
    (batches, order)
}
