//! The PostgreSQL engine against a real server.

mod back;
mod between;
mod cases;
mod copying;
mod crashes;
mod harness;
mod oracle;
mod preserving;
pub(crate) mod server;
mod tls;
