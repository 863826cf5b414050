//! Which engine a database URL means.

use std::path::Path;

use crate::{engine::Engine, error::Error, postgres::PostgresEngine, sqlite::Sqlite};

/// Opens `sqlite:PATH`, or `postgres://..` (also `postgresql://..`).
///
/// # Errors
/// [`Error::Url`] for anything else; what the database says.
pub fn open(url: &str) -> Result<Box<dyn Engine>, Error> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || !Path::new(path).is_file() {
            return Err(Error::NoFile(path.into()));
        }
        return Ok(Box::new(Sqlite::open(Path::new(path))?));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Box::new(PostgresEngine::connect(url)?));
    }
    Err(Error::Url(without_password(url)))
}

/// A URL that can be shown: without password and parameters. Of what is no URL nothing is shown: it may hold a password anywhere.
pub fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.contains(['=', '@']) { "what was given".to_owned() } else { url.to_owned() };
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}
