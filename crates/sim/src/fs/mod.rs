//! A file system in memory that knows what is on disk and what is merely in the page cache.
//!
//! Owns the model: inodes, names, and for each of them the cached and the durable state. It injects no faults and
//! counts no calls; [`crate::FaultDisk`] does. The model is as unkind as Linux file systems may be, and no unkinder:
//!
//! * Bytes and attributes of a file are durable after its sync, its name is not. Unsynced bytes survive per 4 KiB block,
//!   torn, as zeros, or not at all.
//! * Names are durable after the sync of their directory. Unsynced name changes survive in any subset, except that
//!   changes of one name keep their order, a rename is atomic within one directory and for directories, and a file that
//!   moves between directories may be found under both names but never under none.
//! * A failed sync leaves its pages clean and lost: the next one succeeds without writing them (I13).
//!
//! Read [`FileSystem`] first, then [`FileSystem::after_power_cut`].

mod compare;
mod durability;
mod file_system;
mod inode;
mod names;
mod operations;
mod power_cut;
mod tree;

pub(crate) use self::{
    file_system::errno,
    inode::{Ino, hash_content},
};
pub use self::{
    file_system::{FileSystem, Options, Reflinks},
    inode::BLOCK,
    tree::{Tree, TreeEntry, TreeKind},
};
