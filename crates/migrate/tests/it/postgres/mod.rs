//! The PostgreSQL engine against a real server.

mod cases;
mod copying;
mod crashes;
mod harness;
mod oracle;
mod preserving;
mod server;
mod tls;
