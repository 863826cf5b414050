//! The receiver: takes in episodes over HTTP, durably, from code that the gate admits.
//!
//! Owns sockets, requests and answers. It never decides over commits (`gate` asks `core`) and never touches a file itself
//! (`ingest` does). docs/formats/gate.md describes the protocol. Read [`Receiver`] first.

mod access;
mod answer;
mod app;
mod attest;
mod body;
mod metrics;
mod put;
mod room;
mod serve;
mod socket;

pub(crate) use answer::Problem;
pub use serve::{Ports, Receiver, StartError};
