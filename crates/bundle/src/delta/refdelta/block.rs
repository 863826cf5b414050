//! A block in the width of the format.

use crate::delta::matching;

/// A run of new bytes explained by old ones, byte by byte or nearly so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) new: u32,
    pub(super) old: u32,
    pub(super) len: u32,
}

impl Block {
    pub(super) fn new_end(self) -> u32 {
        self.new + self.len
    }

    pub(super) fn old_end(self) -> u32 {
        self.old + self.len
    }
}

impl From<matching::Block> for Block {
    /// Of files below 2 GiB: this codec takes no others.
    fn from(block: matching::Block) -> Self {
        Self { new: block.new as u32, old: block.old as u32, len: block.len as u32 }
    }
}
