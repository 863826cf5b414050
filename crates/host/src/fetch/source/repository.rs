//! A release repository, at one or several URLs or directories.

use super::{Listing, Source};
use crate::fetch::{FetchError, FetchPorts, Fetcher, Got, RelativePath, SourceSettings, Tag, Token};

/// Files below base URLs or directories that hold the same.
pub struct RepositorySource {
    fetcher: Fetcher,
    urls: Vec<String>,
}

impl RepositorySource {
    /// Opens `settings.urls`.
    ///
    /// # Errors
    /// Those of [`Fetcher::new`].
    pub fn open(
        settings: &SourceSettings,
        token: Option<Token>,
        ports: FetchPorts,
    ) -> Result<Self, FetchError> {
        let fetcher = Fetcher::new(&settings.urls, settings, token, ports)?;
        Ok(Self { fetcher, urls: settings.urls.clone() })
    }
}

impl Source for RepositorySource {
    fn describe(&self) -> String {
        format!("repository {}", self.urls.join(", "))
    }

    fn get(&self, path: &RelativePath, limit: u64, known: Option<&Tag>) -> Result<Got, FetchError> {
        self.fetcher.get(path, limit, known)
    }

    fn listing(&self, _: Option<Listing>) -> Result<Option<Listing>, FetchError> {
        Ok(None)
    }

    fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}
