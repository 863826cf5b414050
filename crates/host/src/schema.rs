//! The database of the service, as far as an update needs it.
//!
//! A node and the engine that changes schemas are strangers to each other: whoever links both in hands an execution a
//! [`SchemaManager`].

use std::error::Error;

use cutover_core::model::SafePath;

/// A migration that a release carries; its bytes are those that the release's signature vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Where it lies in the release.
    pub path: SafePath,
    /// Its text.
    pub text: Vec<u8>,
}

/// Whoever changes the schema of the database.
pub trait SchemaManager: Send + Sync {
    /// Brings the database to schema `version`, where it serves the code of the new release beside that of the present one,
    /// by the migrations that it does not have yet, in order. Can be called again after it was cut off, and then goes on
    /// where it was. `progress` is told percents of the whole. Returns what it did, for people.
    ///
    /// # Errors
    /// What the operator needs to act. The present release can still work on the database.
    fn expand(
        &self,
        version: u64,
        migrations: &[Migration],
        progress: &dyn Fn(u8),
    ) -> Result<String, Box<dyn Error + Send + Sync>>;
}
