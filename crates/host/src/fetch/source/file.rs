//! A bundle on this machine, or a directory with bundles: a USB stick, a network share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{BUNDLE_SUFFIX, Listing, Offer, OfferPlace, Source};
use crate::{
    disk::{Disk as _, EntryKind, RealDisk},
    fetch::{FetchError, FetchPorts, Fetcher, Got, RelativePath, SourceSettings, Tag, base::Base},
};

/// Bundles on this machine.
pub struct FileSource {
    fetcher: Fetcher,
    directory: PathBuf,
    /// The one bundle that is meant, if it is not the whole directory.
    only: Option<String>,
}

impl FileSource {
    /// Opens a bundle or a directory.
    ///
    /// # Errors
    /// [`FetchError::Read`] when there is nothing.
    pub fn open(path: &Path, settings: &SourceSettings, ports: FetchPorts) -> Result<Self, FetchError> {
        let failed = |source| FetchError::Read { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(failed)?;
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let (directory, only) = match (path.is_dir(), path.parent()) {
            (false, Some(parent)) => (parent.to_owned(), name),
            _ => (path.clone(), None),
        };
        let disk = RealDisk::open(&directory).map_err(failed)?;
        let base = Base::Directory { disk: Arc::new(disk), path: directory.clone() };
        Ok(Self { fetcher: Fetcher::of_bases(vec![base], settings, None, ports)?, directory, only })
    }

    fn offers(&self) -> Result<Vec<Offer>, FetchError> {
        let failed = |source| FetchError::Read { path: self.directory.clone(), source };
        let disk = RealDisk::open(&self.directory).map_err(failed)?;
        let mut offers = Vec::new();
        for (name, kind) in disk.list(Path::new("")).map_err(failed)? {
            let meant = match &self.only {
                Some(only) => *only == name,
                None => name.ends_with(BUNDLE_SUFFIX),
            };
            if !meant || kind != EntryKind::File {
                continue;
            }
            let size = disk.metadata(Path::new(&name)).map_err(failed)?.map_or(0, |found| found.size);
            offers.push(Offer {
                place: OfferPlace::Local(self.directory.join(&name)),
                name,
                size_bytes: size,
                sha256: None,
                release: None,
                prerelease: false,
            });
        }
        Ok(offers)
    }
}

impl Source for FileSource {
    fn describe(&self) -> String {
        self.only
            .as_ref()
            .map_or(self.directory.clone(), |only| self.directory.join(only))
            .display()
            .to_string()
    }

    fn get(&self, path: &RelativePath, limit: u64, known: Option<&Tag>) -> Result<Got, FetchError> {
        self.fetcher.get(path, limit, known)
    }

    fn listing(&self, _: Option<Listing>) -> Result<Option<Listing>, FetchError> {
        Ok(Some(Listing { offers: self.offers()?, tag: None }))
    }

    fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}
