//! The PostgreSQL engine against a real server.

mod copying;
mod preserving;
mod server;
mod support;
