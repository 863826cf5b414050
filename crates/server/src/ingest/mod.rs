//! Stored episodes and their index.
//!
//! Owns the layout of the directory, and the index file with its lock. Read [`Index`] first.

mod files;
mod index;
mod layout;

pub use index::{Appended, Entry, Index, Loaded, Locked, Warning, Warnings};
pub use layout::Layout;
