//! Reading the base at random through a small cache, so that many short copies do not become many system calls.

use super::{DeltaError, Inputs};

/// What is read for one place: a page, which the system reads anyway.
const BLOCK_BYTES: usize = 4 << 10;
const SLOTS: usize = 1024;
/// Most blocks that are read at once. As much and more is read past the cache.
const RUN_BLOCKS: usize = 16;
/// How many bytes may be read ahead for each byte that was asked for: a patch that jumps about gets pages and no more.
const AHEAD_FACTOR: usize = 16;

/// A direct-mapped cache of the base, [`BaseReader::MEMORY_BYTES`] in size.
pub(super) struct BaseReader<'a> {
    inputs: Inputs<'a>,
    blocks: Vec<u8>,
    /// Which block of the base lies in each slot.
    held: Vec<Option<u64>>,
    /// The block behind the last one that was read.
    next: u64,
    /// How many bytes may be read ahead.
    credit: usize,
}

impl<'a> BaseReader<'a> {
    /// What it needs, in bytes.
    pub(super) const MEMORY_BYTES: u64 = (BLOCK_BYTES * SLOTS + (16 << 10)) as u64;

    pub(super) fn new(inputs: &Inputs<'a>) -> Self {
        let (blocks, held) = (vec![0; BLOCK_BYTES * SLOTS], vec![None; SLOTS]);
        Self { inputs: *inputs, blocks, held, next: 0, credit: 0 }
    }

    /// Fills `buffer` from the base at `offset`. The caller has checked that it lies within the base.
    ///
    /// # Errors
    /// [`DeltaError::Read`].
    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        if buffer.len() >= RUN_BLOCKS * BLOCK_BYTES {
            return self.inputs.read_base(offset, buffer);
        }
        self.credit = (self.credit + buffer.len() * AHEAD_FACTOR).min(RUN_BLOCKS * BLOCK_BYTES);
        let mut offset = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let number = offset / BLOCK_BYTES as u64;
            let within = (offset % BLOCK_BYTES as u64) as usize;
            let block = self.block(number, (within + rest.len()).div_ceil(BLOCK_BYTES))?;
            // The last block is short; a read beyond it means that the base shrank under us.
            let available = block.get(within..).filter(|bytes| !bytes.is_empty());
            let Some(available) = available else {
                return self.inputs.read_base(offset, rest);
            };
            let count = available.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&available[..count]);
            rest = tail;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// One block, the first of `wanted` that are asked for.
    fn block(&mut self, number: u64, wanted: usize) -> Result<&[u8], DeltaError> {
        let slot = (number % SLOTS as u64) as usize;
        if self.held[slot] != Some(number) {
            self.fill(number, slot, wanted)?;
        }
        let length = self.bytes_from(number).min(BLOCK_BYTES);
        Ok(&self.blocks[slot * BLOCK_BYTES..][..length])
    }

    /// Reads `wanted` blocks, and some more where the base is gone through in order.
    fn fill(&mut self, number: u64, slot: usize, wanted: usize) -> Result<(), DeltaError> {
        let goes_on = number.checked_sub(self.next).is_some_and(|skipped| skipped < RUN_BLOCKS as u64);
        let ahead = if goes_on { self.credit / BLOCK_BYTES } else { 0 };
        let count = (wanted + ahead).min(RUN_BLOCKS).min(SLOTS - slot);
        self.credit -= count.saturating_sub(wanted) * BLOCK_BYTES;
        let length = self.bytes_from(number).min(count * BLOCK_BYTES);
        let held = &mut self.held[slot..slot + count];
        held.fill(None);
        let start = number.saturating_mul(BLOCK_BYTES as u64);
        self.inputs.read_base(start, &mut self.blocks[slot * BLOCK_BYTES..][..length])?;
        for (held, number) in held.iter_mut().zip(number..).take(length.div_ceil(BLOCK_BYTES)) {
            *held = Some(number);
        }
        self.next = number.saturating_add(count as u64);
        Ok(())
    }

    /// How many bytes the base has from the start of a block on.
    fn bytes_from(&self, number: u64) -> usize {
        let start = number.saturating_mul(BLOCK_BYTES as u64);
        usize::try_from(self.inputs.base_bytes().saturating_sub(start)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{
        delta::{Algorithm, Content, Declared, DeltaLimits},
        read_at::ReadAt,
    };

    /// A base whose bytes follow from their places, which counts what is read of it.
    struct Counting {
        size: u64,
        reads: AtomicU64,
        bytes: AtomicU64,
    }

    fn byte_at(offset: u64) -> u8 {
        (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
    }

    impl ReadAt for Counting {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
            let count = buffer.len().min(self.size.saturating_sub(offset) as usize);
            for (byte, offset) in buffer[..count].iter_mut().zip(offset..) {
                *byte = byte_at(offset);
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(count as u64, Ordering::Relaxed);
            Ok(count)
        }

        fn size(&self) -> std::io::Result<u64> {
            Ok(self.size)
        }
    }

    /// Reads every range in turn; how often the base was asked, and for how many bytes.
    fn read_all(size: u64, ranges: impl Iterator<Item = (u64, usize)>) -> (u64, u64) {
        let base = Counting { size, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let (nothing, nothing_held) = (Content::of(b""), Vec::<u8>::new());
        let declared = Declared { base: Content { size, ..nothing }, patch: nothing, result: nothing };
        let limits = DeltaLimits::default();
        let inputs = Inputs::new(Algorithm::Vcdiff, &base, &nothing_held, &declared, &limits);
        let mut reader = BaseReader::new(&inputs);
        for (offset, len) in ranges {
            let mut buffer = vec![0; len];
            reader.read(offset, &mut buffer).expect("within the base");
            assert!(buffer.iter().zip(offset..).all(|(byte, offset)| *byte == byte_at(offset)), "{offset}");
        }
        (base.reads.into_inner(), base.bytes.into_inner())
    }

    #[test]
    fn scattered_bytes_cost_a_page_each() {
        let count = 3000;
        let (_, bytes) = read_all(1 << 40, (0..count).map(|n| ((n * 0x9E37_79B9_7F4A) % (1 << 40), 1)));
        assert!(bytes <= count * 4096, "{bytes}");
        // Neighbours far from the next neighbours: reading ahead is earned first.
        let (_, bytes) = read_all(1 << 40, (0..count).map(|n| ((n / 2) << 28 | (n % 2 * 4096), 1)));
        assert!(bytes <= count * (4096 + 16), "{bytes}");
    }

    #[test]
    fn what_is_read_in_order_is_read_in_large_pieces() {
        let size = 16 << 20;
        for step in [100, 1000, 5000] {
            let (reads, bytes) = read_all(size, (0..size / step).map(|n| (n * step, step as usize)));
            assert!(reads <= size / (64 << 10) + 64, "{step}: {reads}");
            assert!(bytes <= size, "{step}: {bytes}");
        }
        // With gaps, as between copies.
        let (reads, _) = read_all(size, (0..size / 1000 - 1).map(|n| (n * 1000, 500)));
        assert!(reads <= size / (64 << 10) + 64, "{reads}");
    }

    #[test]
    fn any_range_has_its_bytes() {
        let size = 9_000_001;
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let ranges: Vec<(u64, usize)> = (0..2000)
            .map(|n| {
                let most = [1, 50, 5000, 70_000][n % 4];
                let offset = next(size);
                (offset, next(most + 1).min(size - offset) as usize)
            })
            .collect();
        read_all(size, ranges.into_iter());
        read_all(size, [(size - 1, 1), (size, 0), (0, 0), (size - 100, 100)].into_iter());
    }
}
