//! The PostgreSQL engine against a real server.

mod copying;
mod harness;
mod oracle;
mod preserving;
mod server;
