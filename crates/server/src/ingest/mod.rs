//! Stored episodes and their index.
//!
//! Owns the layout of the directory or [`Bucket`] that episodes lie in, and the index file with its lock. Read [`Index`] first.

mod bucket;
mod directory;
mod files;
mod index;
mod inspect;
mod layout;
pub mod repair;
mod sequences;
mod store;

pub use bucket::{Bucket, Created};
pub(crate) use files::remove;
pub use index::{Appended, Entry, Index, Loaded, Locked, Rows, Warning, Warnings};
pub use layout::Layout;
pub use store::{Clock, Finished, OpenError, Origin, Reconciled, Store, StoreError, Stored, Upload};
