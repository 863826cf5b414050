//! The crate through its public API: publishing, removal, crashes at every step, and clients under attack.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods)]

mod attacks;
mod client;
mod crash;
mod publish;
mod world;
