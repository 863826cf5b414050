//! Downloads against servers that do what they should and servers that do not.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod github;
mod hostile;
mod killed;
mod metadata;
mod resume;
mod server;
mod several;
mod sources;
mod tls;
mod world;
