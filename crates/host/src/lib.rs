//! Does: durable disk, store, catalog, journal, releases, service, probes, downloads, shipping.
//!
//! Everything that touches the world on one node. It decides nothing about order, versions or policy: it executes plans
//! that `cutover-core` made, through ports that the simulation can replace. Read [`node::Node`] first, then
//! [`disk::Disk`].
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod catalog;
pub mod clock;
pub mod delta_payload;
mod delta_room;
pub mod disk;
pub mod fetch;
pub mod fetched_payload;
pub mod nice;
pub mod node;
pub mod payload;
pub mod preflight;
pub mod probe;
pub mod schema;
pub mod service;
pub mod ship;
