//! Migrations against real databases, through the public API.

#![allow(clippy::disallowed_methods, missing_docs)]

mod oracle;
mod postgres;
mod sqlite;
mod support;
