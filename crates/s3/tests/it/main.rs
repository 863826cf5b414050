//! The storage of a repository in a bucket, against a real server.
#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

#[allow(dead_code, reason = "each of the two crates uses what it needs")]
mod moto;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
mod objects;
mod port;
#[allow(dead_code, reason = "each of the two crates uses what it needs")]
mod proxy;
#[path = "../../../repo/tests/it/pypi.rs"]
mod pypi;
