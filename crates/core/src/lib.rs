//! Decides: values in, values out.
//!
//! This crate owns the model (versions, digests, paths, manifests), the plan of an update and its independent
//! check, the execution of a plan as a fold over its journal, the lifecycle of a node, and the retention rules.
//! It never performs I/O, never reads a clock, the environment or a random source, and knows no threads: whatever
//! it needs to know is an argument, so every decision can be replayed from its inputs.
//!
//! Read [`plan::Plan`] first, then [`execute::Execution`].

pub mod admission;
pub mod causes;
pub mod event;
pub mod execute;
pub mod fetch;
pub mod lifecycle;
pub mod model;
pub mod plan;
pub mod resolve;
pub mod retain;
pub mod set;
pub mod ship;
pub mod supervise;
mod tagged;
mod text;
