//! Reading the base at random through a small cache, so that many short copies do not become many system calls.

use super::{DeltaError, Inputs};

const BLOCK_BYTES: usize = 64 << 10;
const SLOTS: usize = 64;

/// A direct-mapped cache of the base, [`BaseReader::MEMORY_BYTES`] in size.
pub(super) struct BaseReader<'a> {
    inputs: Inputs<'a>,
    blocks: Vec<u8>,
    /// Which block of the base lies in each slot.
    held: Vec<Option<u64>>,
}

impl<'a> BaseReader<'a> {
    /// What it needs, in bytes.
    pub(super) const MEMORY_BYTES: u64 = (BLOCK_BYTES * SLOTS + (1 << 12)) as u64;

    pub(super) fn new(inputs: &Inputs<'a>) -> Self {
        Self { inputs: *inputs, blocks: vec![0; BLOCK_BYTES * SLOTS], held: vec![None; SLOTS] }
    }

    /// Fills `buffer` from the base at `offset`. The caller has checked that it lies within the base.
    ///
    /// # Errors
    /// [`DeltaError::Read`].
    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        if buffer.len() >= BLOCK_BYTES {
            return self.inputs.read_base(offset, buffer);
        }
        let mut offset = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let number = offset / BLOCK_BYTES as u64;
            let within = (offset % BLOCK_BYTES as u64) as usize;
            let block = self.block(number)?;
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

    fn block(&mut self, number: u64) -> Result<&[u8], DeltaError> {
        let slot = (number % SLOTS as u64) as usize;
        let start = number.saturating_mul(BLOCK_BYTES as u64);
        let left = self.inputs.base_bytes().saturating_sub(start);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let block = &mut self.blocks[slot * BLOCK_BYTES..][..length];
        if self.held[slot] != Some(number) {
            self.held[slot] = None;
            self.inputs.read_base(start, block)?;
            self.held[slot] = Some(number);
        }
        Ok(block)
    }
}
