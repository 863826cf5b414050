//! The commits of the releases in a repository.
//!
//! For fleets that run releases rather than clones: the newest releases of a package, those of at least some version, those of
//! a channel; each names in its signed manifest the commit it was built from. The repository is a directory of this machine,
//! the one that is published or a copy of it. Read [`ReleasesSource::read`].

use std::{collections::BTreeSet, path::PathBuf};

use cutover_core::{
    admission::{CommitHash, Known},
    model::{Digest, Manifest, ManifestLimits, Name, Version},
};
use cutover_repo::{DirectoryStorage, Listed, Storage as _, list, manifest_path, read_bounded};

use super::{Source, SourceError};

/// Which releases' commits are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasesSource {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// Only releases of this package; `None`: of every one.
    pub package: Option<Name>,
    /// Only those of this channel; `None`: of every one.
    pub channel: Option<Name>,
    /// Only this version and later ones.
    pub minimum: Option<Version>,
    /// Only so many versions, counted from the newest. 0: any number.
    pub last: usize,
}

impl ReleasesSource {
    fn commits(&self) -> Result<Vec<CommitHash>, SourceError> {
        let failed = |error: &dyn std::error::Error| {
            SourceError::Output(format!(
                "failed to read `{}`: {}",
                self.repository.display(),
                super::chain(error)
            ))
        };
        let storage = DirectoryStorage::open(&self.repository).map_err(|error| failed(&error))?;
        let mut wanted: Vec<Listed> = list(&storage).map_err(|error| failed(&error))?;
        wanted.retain(|listed| self.wants(listed));
        // A release may be there for several platforms and in several channels: versions are counted, not copies.
        wanted.sort_by(|a, b| b.entry.version.cmp(&a.entry.version));
        if self.last > 0 {
            let newest: BTreeSet<Version> =
                wanted.iter().map(|listed| listed.entry.version.clone()).collect();
            let newest: BTreeSet<Version> = newest.into_iter().rev().take(self.last).collect();
            wanted.retain(|listed| newest.contains(&listed.entry.version));
        }
        let limits = ManifestLimits::default();
        let mut commits = Vec::new();
        for Listed { entry, .. } in wanted {
            let path = manifest_path(entry.manifest.sha256);
            let bytes = match storage.open(&path).map_err(|error| failed(&error))? {
                Some(file) => read_bounded(file, limits.bytes_max as u64).map_err(|error| failed(&error))?,
                None => Vec::new(),
            };
            if Digest::of(&bytes) != entry.manifest.sha256 {
                return Err(SourceError::Output(format!("`{path}` is missing or damaged")));
            }
            let manifest = Manifest::parse(&bytes, &limits).map_err(|error| failed(&error))?;
            let commit = manifest.build.and_then(|build| build.commit);
            match commit.as_deref().map(str::parse::<CommitHash>) {
                Some(Ok(commit)) if !commits.contains(&commit) => commits.push(commit),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    tracing::debug!(version = %entry.version, "a release names no full commit; it admits nothing");
                }
            }
        }
        Ok(commits)
    }

    /// A release that was yanked is one nobody should run.
    fn wants(&self, listed: &Listed) -> bool {
        listed.entry.yanked.is_none()
            && self.package.as_ref().is_none_or(|package| listed.package == *package)
            && self.channel.as_ref().is_none_or(|channel| listed.channel == *channel)
            && self.minimum.as_ref().is_none_or(|minimum| listed.entry.version >= *minimum)
    }
}

impl Source for ReleasesSource {
    fn read(&self) -> Result<Known, SourceError> {
        Known::new(self.commits()?)
            .ok_or_else(|| SourceError::NoCommits { repository: self.repository.clone() })
    }

    fn describes(&self) -> String {
        format!("releases {} {:?} {:?}", self.repository.display(), self.package, self.channel)
    }
}
