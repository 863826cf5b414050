//! Tests of core through its public API.

mod execution;
mod fixtures;
mod plan;
mod resolve;
mod set;
