//! The simulated disk against the real one, its power cuts, and the engine on it while everything goes wrong.
#![allow(clippy::disallowed_methods)]

mod conformance;
mod found;
mod power_cut;
mod publisher;
mod releases;
mod rerun;
mod sets;
mod space;
mod staging;
mod sweep;
mod torn;
