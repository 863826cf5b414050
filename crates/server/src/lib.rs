//! Coordinates: takes in data from hosts whose code is recent enough, and keeps its index.
//!
//! Owns the ingest side: where episodes lie ([`ingest::Layout`]), the index of what is stored ([`ingest::Index`]). It never
//! decides who may hand in data (`cutover_core::admission` does).

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod gate;
pub mod ingest;
pub mod receiver;
pub mod settings;
