//! The crate through its public API: publishing, removal, crashes at every step, and clients under attack.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods)]
// `Publisher::refresh` is not general enough where a closure is.
#![allow(clippy::redundant_closure_for_method_calls)]

mod attacks;
mod client;
mod crash;
mod log;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
mod publish;
mod pypi;
mod python;
mod rotate;
mod world;
