//! Migrations against real databases, through the public API.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)]

mod cases;
mod crash;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
mod oracle;
mod plugins;
mod postgres;
mod quarantine;
mod references;
mod shapes;
mod sqlite;
mod support;
mod twin;
