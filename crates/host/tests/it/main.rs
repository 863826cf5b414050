//! The install engine through its public interface, on a real disk with a service and probes that do as they are told.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod crash;
mod drift;
mod fetched;
mod hostile;
mod lock;
mod nice;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
mod prune;
mod recovery;
mod rollback;
mod schema;
mod state;
mod update;
mod world;
