//! The port by which a client reads a repository: small files by path, each within a limit.

use std::io;

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is none.
    #[error("there is no such file")]
    NotFound,
    /// It has more bytes than it may have; it was not read further.
    #[error("it has more than the {limit} bytes it may have")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// It could not be had.
    #[error("it could not be read")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads files of a repository.
pub trait Fetch {
    /// Reads the file at `path`, relative to the repository, whole. `path` is percent-encoded as in a URL; an
    /// implementation that maps it to a file name uses it as it is.
    ///
    /// # Errors
    /// See [`FetchError`]. Implementations stop after `bytes_max` bytes, and give up on a source that makes no progress.
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError>;

    /// As [`Fetch::fetch`], for a file that is asked for again and again; `None` when it is still `known`, which was fetched
    /// before. Whoever cannot tell without reading it reads it.
    ///
    /// # Errors
    /// As [`Fetch::fetch`].
    fn fetch_again(
        &self,
        path: &str,
        bytes_max: u64,
        _known: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        self.fetch(path, bytes_max).map(Some)
    }
}

/// Reads `source` whole, within a limit.
///
/// # Errors
/// [`FetchError::TooLarge`] or a failed read.
pub fn read_bounded(source: impl io::Read, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(source, bytes_max.saturating_add(1)), &mut bytes)
        .map_err(|error| FetchError::Failed(Box::new(error)))?;
    if bytes.len() as u64 > bytes_max { Err(FetchError::TooLarge { limit: bytes_max }) } else { Ok(bytes) }
}
