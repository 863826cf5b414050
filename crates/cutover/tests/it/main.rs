//! The real binary, as people and scripts use it.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

mod bundle;
mod cli;
mod delta;
mod delta_release;
mod demo;
mod documents;
mod gate;
mod gate_release;
#[cfg(feature = "s3")]
mod gate_s3;
mod guides;
mod install;
mod log;
#[cfg(feature = "s3")]
#[allow(dead_code, reason = "each of the two crates uses what it needs")]
#[path = "../../../s3/tests/it/moto.rs"]
mod moto;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
#[cfg(feature = "s3")]
#[allow(dead_code, reason = "each of the two crates uses what it needs")]
#[path = "../../../s3/tests/it/proxy.rs"]
mod proxy;
#[cfg(feature = "s3")]
#[path = "../../../repo/tests/it/pypi.rs"]
mod pypi;
#[allow(dead_code, reason = "the shipper's own tests use all of it")]
#[path = "../../../host/tests/ship/receiver.rs"]
mod receiver;
mod refusals;
mod repo;
#[cfg(feature = "s3")]
mod s3;
mod schema;
mod sets;
mod settings;
mod ship;
mod ship_gate;
mod source;
mod world;
