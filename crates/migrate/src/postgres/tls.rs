//! How connections are made: a Unix socket or TCP.

use postgres::{Client, Config, NoTls};

/// The transport of all connections of one engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls;

impl Tls {
    /// Connects.
    pub(crate) fn connect(&self, config: &Config) -> Result<Client, postgres::Error> {
        config.connect(NoTls)
    }
}
