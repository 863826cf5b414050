//! The crate through its public API: containers, payloads, anchors, and other people's tools.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

mod anchor;
mod container;
mod delta;
mod episode;
mod hostile;
mod not_run;
mod openssl;
mod payload;
mod pkcs11;
mod seeds;
mod support;
