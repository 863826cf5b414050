//! What a client can learn from a repository: which releases there are, which one to take, and its signed manifest.

use cutover_core::model::{Digest, Name, Version};

use crate::{
    fetch::FetchError,
    index::{
        FileRef, INDEX_BYTES_MAX, Index, IndexEntry, IndexError, ObjectList, index_path, manifest_path,
        objects_path, parse_index_path, patch_path, signature_path,
    },
    manifest_patch,
    tuf::{Client, ClientError, Refused},
};

/// Why a release cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The metadata, or a file it names, cannot be had or believed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An index is refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The repository has nothing of this package for this host.
    #[error("the repository has no `{package}` for {platform} in {channels}")]
    NoPackage {
        /// The package.
        package: Name,
        /// The platform.
        platform: Name,
        /// The channels that were looked at.
        channels: String,
    },
    /// It has the package, and not this version.
    #[error("the repository has no {package} {version} for this host in {channels}; the newest is {newest}")]
    NoVersion {
        /// The package.
        package: Name,
        /// The version.
        version: Version,
        /// The channels that were looked at.
        channels: String,
        /// What there is instead.
        newest: String,
    },
}

/// Which release is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The package.
    pub package: Name,
    /// The version; without, the newest.
    pub version: Option<Version>,
    /// This host's platform. Releases for `any` fit too.
    pub platform: Name,
    /// The channels that may be used, such as `stable`.
    pub channels: Vec<Name>,
}

/// A release that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The package.
    pub package: Name,
    /// The platform it is for.
    pub platform: Name,
    /// The channel it was found in.
    pub channel: Name,
    /// What the index says of it.
    pub entry: IndexEntry,
}

/// The small files of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseFiles {
    /// The manifest's exact bytes.
    pub manifest: Vec<u8>,
    /// The signature over them.
    pub signature: Vec<u8>,
    /// How its objects are stored.
    pub objects: ObjectList,
}

/// Answers questions about one consistent state of a repository.
pub struct Catalogue<'a> {
    client: Client<'a>,
}

impl<'a> Catalogue<'a> {
    /// Uses metadata that was just refreshed.
    pub fn new(client: Client<'a>) -> Self {
        Self { client }
    }

    /// The metadata.
    pub fn client(&self) -> &Client<'a> {
        &self.client
    }

    /// Every package, platform and channel that has releases.
    pub fn places(&self) -> Vec<(Name, Name, Name)> {
        let targets = self.client.trusted().targets("targets");
        targets
            .into_iter()
            .flat_map(|targets| targets.targets.keys())
            .filter_map(|path| parse_index_path(path))
            .collect()
    }

    /// The releases of a package for a platform in a channel; `None` when there are none.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub fn index(
        &mut self,
        package: &Name,
        platform: &Name,
        channel: &Name,
    ) -> Result<Option<Index>, CatalogueError> {
        let path = index_path(package, platform, channel);
        let target = match self.client.target(&path) {
            Ok(target) => target,
            Err(ClientError::NoTarget(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if target.length > INDEX_BYTES_MAX {
            let source = FetchError::TooLarge { limit: INDEX_BYTES_MAX };
            return Err(ClientError::Fetch { path, source }.into());
        }
        let bytes = self.client.kept_target(&path, &target)?;
        Ok(Some(Index::parse(&path, &bytes)?))
    }

    /// Every release that would do, highest version first; the channel named first wins for the same version.
    ///
    /// # Errors
    /// See [`CatalogueError`]; [`CatalogueError::NoPackage`] when there is nothing.
    pub fn candidates(&mut self, wanted: &Wanted) -> Result<Vec<Chosen>, CatalogueError> {
        let any: Name = "any".parse().expect("`any` is a name");
        let mut found: Vec<Chosen> = Vec::new();
        for channel in &wanted.channels {
            for platform in [&wanted.platform, &any] {
                let Some(index) = self.index(&wanted.package, platform, channel)? else { continue };
                for entry in index.releases {
                    let same = |chosen: &Chosen| chosen.entry.version.cmp_precedence(&entry.version).is_eq();
                    if !found.iter().any(same) {
                        let (package, platform) = (wanted.package.clone(), platform.clone());
                        found.push(Chosen { package, platform, channel: channel.clone(), entry });
                    }
                }
            }
        }
        found.sort_by(|one, other| other.entry.version.cmp_precedence(&one.entry.version));
        if found.is_empty() {
            return Err(CatalogueError::NoPackage {
                package: wanted.package.clone(),
                platform: wanted.platform.clone(),
                channels: names(&wanted.channels),
            });
        }
        Ok(found)
    }

    /// The release that `wanted` means: exactly its version, yanked or not; else the newest that is not yanked and no
    /// pre-release, else the newest that is not yanked.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub fn choose(&mut self, wanted: &Wanted) -> Result<Chosen, CatalogueError> {
        let candidates = self.candidates(wanted)?;
        let chosen = match &wanted.version {
            Some(version) => candidates.iter().find(|chosen| chosen.entry.version == *version),
            None => {
                let mut eligible = candidates.iter().filter(|chosen| chosen.entry.yanked.is_none());
                let newest = eligible.clone().next();
                eligible.find(|chosen| !chosen.entry.version.is_prerelease()).or(newest)
            }
        };
        match (chosen, &wanted.version) {
            (Some(chosen), _) => Ok(chosen.clone()),
            (None, Some(version)) => Err(CatalogueError::NoVersion {
                package: wanted.package.clone(),
                version: version.clone(),
                channels: names(&wanted.channels),
                newest: candidates[0].entry.version.to_string(),
            }),
            (None, None) => Err(CatalogueError::NoPackage {
                package: wanted.package.clone(),
                platform: wanted.platform.clone(),
                channels: format!("{} that is not yanked", names(&wanted.channels)),
            }),
        }
    }

    /// The small files of a release: what the index names. `known` gives manifests that the client has, by digest; from one of
    /// them the new one is made where there is a patch. Whether the anchor trusts whoever signed the manifest is
    /// checked by `cutover_bundle::verify_detached`, not here.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub fn files(
        &self,
        entry: &IndexEntry,
        known: &dyn Fn(Digest) -> Option<Vec<u8>>,
    ) -> Result<ReleaseFiles, CatalogueError> {
        let manifest = match self.patched_manifest(entry, known) {
            Some(manifest) => manifest,
            None => self.file(&manifest_path(entry.manifest.sha256), &entry.manifest)?,
        };
        let signature = self.file(&signature_path(entry.signature.sha256), &entry.signature)?;
        let objects = self.file(&objects_path(entry.objects.sha256), &entry.objects)?;
        Ok(ReleaseFiles { manifest, signature, objects: ObjectList::parse(&objects)? })
    }

    /// The manifest, made from one that the client has. Whatever goes wrong with that, it can be fetched whole.
    fn patched_manifest(
        &self,
        entry: &IndexEntry,
        known: &dyn Fn(Digest) -> Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        let mut patches = entry.manifest_patches.iter();
        let (named, old) = patches.find_map(|named| Some((named, known(named.from.sha256)?)))?;
        let patch = self.file(&patch_path(named.patch.sha256), &named.patch).ok()?;
        match manifest_patch::apply(entry, named, &old, &patch) {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                tracing::warn!(%error, "a patch between manifests is not used");
                None
            }
        }
    }

    fn file(&self, path: &str, file: &FileRef) -> Result<Vec<u8>, CatalogueError> {
        let limits = cutover_bundle::Limits::default();
        let limit = file.size.min(limits.manifest.bytes_max as u64);
        let bytes = self.client.get(path, limit)?;
        if bytes.len() as u64 != file.size || Digest::of(&bytes) != file.sha256 {
            let what = if bytes.len() as u64 == file.size { "digest" } else { "size" };
            return Err(ClientError::from(Refused::Content { name: path.to_owned(), what }).into());
        }
        Ok(bytes)
    }
}

fn names(channels: &[Name]) -> String {
    channels.iter().map(|channel| format!("`{channel}`")).collect::<Vec<_>>().join(", ")
}
