//! The receiver as clients see it: real sockets, real git repositories, real files.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

mod admission;
mod attestation;
mod bodies;
mod bucket;
mod concurrency;
mod fronts;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
#[path = "../../../repo/tests/it/pypi.rs"]
mod pypi;
mod tls;
mod world;
