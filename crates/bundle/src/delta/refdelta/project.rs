//! Where an old place went: the blocks, sorted by where they come from.

use super::block::Block;
use super::image::Layout;

/// Old offsets per entry of the page table.
const PAGE_BITS: u32 = 8;

/// Maps old places to new ones.
pub(super) struct Projection<'a> {
    old: &'a Layout,
    new: &'a Layout,
    /// Sorted by (old, new).
    blocks: Vec<Block>,
    /// For each page of the old file, how many blocks begin at or before its first byte.
    pages: Vec<u32>,
}

impl<'a> Projection<'a> {
    pub(super) fn new(old: &'a Layout, new: &'a Layout, old_len: u32, blocks: &[Block]) -> Self {
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable_by_key(|block| u64::from(block.old) << 32 | u64::from(block.new));
        let mut pages = vec![0u32; (old_len >> PAGE_BITS) as usize + 2];
        let mut count = 0usize;
        for (page, first) in pages.iter_mut().enumerate() {
            let start = (page as u64) << PAGE_BITS;
            while blocks.get(count).is_some_and(|block| u64::from(block.old) <= start) {
                count += 1;
            }
            *first = count as u32;
        }
        Self { old, new, blocks, pages }
    }

    /// The predicted new place of `place`, and how far outside its block it lies.
    #[inline]
    pub(super) fn of(&self, place: u64) -> (u64, u32) {
        let Some(offset) = self.old.offset(place) else {
            return (place.wrapping_add(self.new.hi).wrapping_sub(self.old.hi), 0);
        };
        let page = (offset >> PAGE_BITS) as usize;
        let count = |page: usize| self.pages.get(page).map_or(self.blocks.len(), |count| *count as usize);
        let first = count(page);
        let in_page = &self.blocks[first..count(page + 1).max(first)];
        let after = first + in_page.partition_point(|block| block.old <= offset);
        let mut best: Option<(u32, Block)> = None;
        for block in self.blocks[after.saturating_sub(4)..after].iter().rev() {
            let distance = (offset - block.old).saturating_sub(block.len - 1);
            if best.is_none_or(|(nearest, one)| {
                distance < nearest || (distance == nearest && block.len > one.len)
            }) {
                best = Some((distance, *block));
            }
        }
        if let Some(block) = self.blocks.get(after) {
            let distance = block.old - offset;
            if best.is_none_or(|(nearest, _)| distance < nearest) {
                best = Some((distance, *block));
            }
        }
        match best {
            None => (place, u32::MAX),
            Some((distance, block)) => {
                let target = i64::from(block.new) + i64::from(offset) - i64::from(block.old);
                let target = target.clamp(0, i64::from(u32::MAX)) as u32;
                (self.new.place(target), distance)
            }
        }
    }
}
