//! Sources: where releases come from, behind one port.
//!
//! A `repository` is described by metadata that somebody else understands (`crates/repo`); `github` and `file` offer whole
//! bundles. All of them hand out small files and fetch objects.

mod file;
mod github;
mod repository;

use std::{path::PathBuf, sync::Arc};

use cutover_core::{fetch::Priority, model::Digest};
use serde::{Deserialize, Serialize};

pub use file::FileSource;
pub use github::GithubSource;
pub use repository::RepositorySource;

use super::{
    Downloads, FetchError, FetchPorts, Fetcher, Got, OnFailure, RelativePath, Report, Sink, SourceKind,
    SourceSettings, Tag, Token, Wanted, Watch,
};

/// Where releases come from.
pub trait Source: Send + Sync {
    /// What messages call it.
    fn describe(&self) -> String;

    /// One small file of at most `limit` bytes; `known` is what was got before.
    ///
    /// # Errors
    /// [`FetchError`].
    fn get(&self, path: &RelativePath, limit: u64, known: Option<&Tag>) -> Result<Got, FetchError>;

    /// The whole bundles it offers; `None` for a repository, whose metadata says what there is. `known` is the listing got
    /// before, which is returned again when nothing changed.
    ///
    /// # Errors
    /// [`FetchError`].
    fn listing(&self, known: Option<Listing>) -> Result<Option<Listing>, FetchError>;

    /// Fetches what it holds.
    fn fetcher(&self) -> &Fetcher;

    /// Fetches objects; see [`Fetcher::fetch`].
    ///
    /// # Errors
    /// [`FetchError`].
    fn fetch(
        &self,
        downloads: &Arc<Downloads>,
        wanted: &[Wanted],
        on_failure: OnFailure,
        watch: &Arc<dyn Watch>,
        sink: &mut dyn Sink,
    ) -> Result<Report, FetchError> {
        self.fetcher().fetch(downloads, wanted, on_failure, watch, sink)
    }
}

/// What a source offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// The bundles, newest first where the source knows.
    pub offers: Vec<Offer>,
    /// Names this state of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

/// A bundle that a source offers. Nothing of it is trusted but what the bundle's own signature proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Its file name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 that the source names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// The release it is attached to, such as `v1.4.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Not meant for everybody yet.
    #[serde(default)]
    pub prerelease: bool,
    /// Where it lies.
    pub place: OfferPlace,
}

/// Where a bundle lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OfferPlace {
    /// On this machine: it is opened there.
    Local(PathBuf),
    /// At this path below the source: it is fetched.
    Remote(String),
}

impl Offer {
    /// What to fetch.
    ///
    /// # Errors
    /// [`FetchError::NoDigest`] when the source names no SHA-256, or the bundle lies on this machine and is not fetched.
    pub fn wanted(&self) -> Result<Wanted, FetchError> {
        match (&self.place, self.sha256) {
            (OfferPlace::Remote(path), Some(digest)) => Ok(Wanted {
                path: RelativePath::new(path)?,
                digest,
                size_bytes: self.size_bytes,
                priority: Priority::default(),
            }),
            _ => Err(FetchError::NoDigest(self.name.clone())),
        }
    }
}

/// The end of a bundle's file name.
const BUNDLE_SUFFIX: &str = ".cutover";

/// Opens the source that `settings` describe; `None` when they describe none. `variable` reads the environment.
///
/// # Errors
/// [`FetchError::Setting`] and what opening the source reports.
pub fn open_source(
    settings: &SourceSettings,
    variable: &dyn Fn(&str) -> Option<String>,
    ports: FetchPorts,
) -> Result<Option<Box<dyn Source>>, FetchError> {
    let token = Token::of(settings, variable)?;
    let missing = |key, what: &str| FetchError::Setting { key, reason: what.to_owned() };
    match settings.kind {
        SourceKind::Repository if settings.urls.is_empty() => Ok(None),
        SourceKind::Repository => Ok(Some(Box::new(RepositorySource::open(settings, token, ports)?))),
        SourceKind::Github => {
            let name = settings.github.as_deref();
            let name = name.ok_or_else(|| missing("github", "a source of kind `github` needs OWNER/NAME"))?;
            Ok(Some(Box::new(GithubSource::open(name, settings, token, ports)?)))
        }
        SourceKind::File => {
            let path = settings.path.as_deref();
            let path = path.ok_or_else(|| missing("path", "a source of kind `file` needs a path"))?;
            Ok(Some(Box::new(FileSource::open(path, settings, ports)?)))
        }
    }
}
