//! Keeps: a repository, or objects that are written once, in a bucket of S3-compatible storage.
//!
//! Owns everything that speaks to such a storage: where it is, who asks, conditional writes, the publisher's lock, and which
//! failure means what. It never decides what is written or in which order: that is `cutover_repo::Publisher`, through the
//! port [`cutover_repo::Storage`]. It reads no environment and no wall clock. All of it blocks; the runtime inside is its own.
//!
//! Read [`S3Storage`] or [`S3Objects`] first, then `bucket` for what one request may do.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod address;
mod background;
mod bucket;
mod credentials;
mod error;
mod lease;
mod objects;
mod options;
mod signer;
mod storage;

pub use address::S3Address;
pub use error::S3Error;
pub use objects::S3Objects;
pub use options::S3Options;
pub use signer::S3Signer;
pub use storage::S3Storage;
