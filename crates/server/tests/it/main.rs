//! The receiver as clients see it: real sockets, real git repositories, real files.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

mod admission;
mod bodies;
mod concurrency;
mod world;
