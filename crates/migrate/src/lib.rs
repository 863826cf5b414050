//! Changes schemas: online migrations for PostgreSQL and SQLite, in step with the code.
//!
//! Owns migration files, the planner, the protocol by which a table is changed while applications write to it, the state
//! of a migration in the target database, and the two engines. It knows neither bundles nor rollouts: whoever calls it says
//! which release needs what. Everything is synchronous; threads are scoped.
//!
//! Read [`ir::Migration`] first, then [`change::TableChange`], [`plan`], and [`engine::Engine`].

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod catalog;
pub mod change;
pub mod engine;
pub mod error;
pub mod file;
pub mod grace;
pub mod ir;
pub mod lint;
pub mod metrics;
pub mod open;
pub mod plan;
pub mod plugin;
pub mod postgres;
pub mod run;
pub mod sqlite;
pub mod state;
pub mod throttle;

pub use error::{Error, Refusal};
pub use open::open;
