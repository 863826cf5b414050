//! What every command that fetches needs: the names that releases are asked for by, and the ports of this machine.

use std::{error::Error, num::NonZeroUsize, path::Path, sync::Arc};

use cutover_core::{
    fetch::speeds::Speeds,
    model::{Digest, Name, Version},
};
use cutover_host::fetch::{FetchError, FetchPorts, Got, RealTimer, RelativePath, Source, SourceKind, Tag};
use cutover_repo::{Fetch, State as _, StateDirectory};

use super::{place, site};
use crate::{args::FromRepository, failure::Failure, settings::Settings};

/// A release as it was named.
pub(super) struct Named {
    pub(super) package: Name,
    pub(super) version: Option<Version>,
}

/// Whether a release of a repository is meant and not a file: a repository is named beside it; or there is no such file, and
/// it reads `NAME@VERSION`, or `NAME` when the settings name a repository.
///
/// # Errors
/// A release is meant, and this is no name of one.
pub(super) fn reference(
    text: &Path,
    from: &FromRepository,
    settings: &Settings,
) -> Result<Option<Named>, Failure> {
    let no_name = |reason: Option<Box<dyn Error + Send + Sync>>| {
        let failure = Failure::usage(format!("`{}` names no release", text.display()));
        let failure = match reason {
            Some(reason) => failure.because(reason),
            None => failure,
        };
        Err(failure.hint("a release is written NAME@VERSION, such as `tool@1.4.0`, or NAME for its newest"))
    };
    let is_meant = !from.source.is_empty();
    if !is_meant && is_a_file(text) {
        return Ok(None);
    }
    let Some(name) = text.to_str() else { return if is_meant { no_name(None) } else { Ok(None) } };
    let read = || -> Result<Named, Box<dyn Error + Send + Sync>> {
        match name.split_once('@') {
            Some((package, version)) => {
                Ok(Named { package: package.parse()?, version: Some(version.parse()?) })
            }
            None => Ok(Named { package: name.parse()?, version: None }),
        }
    };
    match read() {
        Ok(named) if is_meant || named.version.is_some() || has_source(from, settings) => Ok(Some(named)),
        Err(reason) if is_meant || (name.contains('@') && !name.contains('/')) => no_name(Some(reason)),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Whether there is something to open; a directory is no bundle.
fn is_a_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_dir())
}

/// What to do when there is no such file, and a release may be meant.
pub(super) fn with_hint(failure: Failure, text: &Path) -> Failure {
    match text.to_str().map(str::parse::<Name>) {
        Some(Ok(_)) if !is_a_file(text) => {
            failure.hint("name a repository with --source, if this is a release of one")
        }
        _ => failure,
    }
}

/// Whether anything says where releases come from.
fn has_source(from: &FromRepository, settings: &Settings) -> bool {
    !from.source.is_empty() || !settings.source.urls.is_empty() || offers_bundles(from, settings)
}

/// Whether releases come as whole bundles, and not from a repository.
pub(super) fn offers_bundles(from: &FromRepository, settings: &Settings) -> bool {
    from.source.is_empty() && settings.source.kind != SourceKind::Repository
}

/// What fetching needs of this machine.
pub(super) fn ports(settings: &Settings) -> FetchPorts {
    FetchPorts {
        timer: Arc::new(RealTimer::start()),
        clock: Arc::new(site::WallClock),
        seed: rand::random(),
        jobs: NonZeroUsize::new(settings.install.jobs).unwrap_or(NonZeroUsize::MIN),
        nice: settings.install.nice,
        speeds: Speeds::default(),
        buckets: place::buckets(settings),
    }
}

/// The port of the metadata client over the downloader.
pub(super) struct Metadata<'a> {
    pub(super) source: &'a dyn Source,
    /// Where the tags of files that are asked for again and again are kept.
    pub(super) tags: Option<&'a StateDirectory>,
}

/// Where the tag of the one file that changes is kept.
pub(super) const TAG: &str = "timestamp.tag";

/// By what a place knows the version of a file that is kept.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptTag {
    /// The file's SHA-256: the tag means this one.
    sha256: Digest,
    tag: Tag,
}

fn not_fetched(error: FetchError) -> cutover_repo::FetchError {
    match error {
        FetchError::TooLong { limit, .. } => cutover_repo::FetchError::TooLarge { limit },
        other => cutover_repo::FetchError::Failed(Box::new(other)),
    }
}

impl Metadata<'_> {
    fn get(&self, path: &str, bytes_max: u64, known: Option<&Tag>) -> Result<Got, cutover_repo::FetchError> {
        let path = RelativePath::new(path).map_err(not_fetched)?;
        self.source.get(&path, bytes_max, known).map_err(not_fetched)
    }
}

impl Fetch for Metadata<'_> {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, cutover_repo::FetchError> {
        match self.get(path, bytes_max, None)? {
            Got::Content { bytes, .. } => Ok(bytes),
            // Nothing was named as known.
            Got::Missing | Got::Unchanged => Err(cutover_repo::FetchError::NotFound),
        }
    }

    fn fetch_again(
        &self,
        path: &str,
        bytes_max: u64,
        known: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, cutover_repo::FetchError> {
        // Without a tag, or with one of another file, the file is fetched: nothing is lost but its bytes.
        let kept = self.tags.and_then(|tags| tags.load(TAG).ok().flatten());
        let kept = kept.and_then(|bytes| serde_json::from_slice::<KeptTag>(&bytes).ok());
        let kept = kept.filter(|kept| known.is_some_and(|known| kept.sha256 == Digest::of(known)));
        match self.get(path, bytes_max, kept.as_ref().map(|kept| &kept.tag))? {
            Got::Unchanged => Ok(None),
            Got::Missing => Err(cutover_repo::FetchError::NotFound),
            Got::Content { bytes, tag } => {
                if let (Some(tags), Some(tag)) = (self.tags, tag) {
                    let kept = KeptTag { sha256: Digest::of(&bytes), tag };
                    let kept = serde_json::to_vec(&kept).expect("a tag always serialises");
                    if let Err(error) = tags.keep(TAG, &kept) {
                        tracing::debug!(%error, "a tag is not kept");
                    }
                }
                Ok(Some(bytes))
            }
        }
    }
}
