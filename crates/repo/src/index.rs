//! The list of a package's releases: what a client reads to choose one (`docs/formats/repository.md`).
//!
//! One small file for each package, platform and channel. It is a TUF target, so its digest is signed with the metadata;
//! it names manifests by digest, and manifests name objects. Everything below it is therefore trusted by digest alone.

use std::cmp::Ordering;

use cutover_core::model::{
    Conflict, Digest, Instant, Manifest, Name, ObjectEntry, Priority, ReleaseRef, Requirement, Version,
};
use serde::{Deserialize, Serialize};

/// The version of the format.
pub const INDEX_FORMAT: u32 = 1;
/// Most bytes of an index that a client reads.
pub const INDEX_BYTES_MAX: u64 = 32 << 20;

/// The releases of one package for one platform in one channel, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Always [`INDEX_FORMAT`].
    pub format: u32,
    /// The package.
    pub package: Name,
    /// The platform; `any` for releases that run everywhere.
    pub platform: Name,
    /// The channel.
    pub channel: Name,
    /// The releases, highest version first.
    pub releases: Vec<IndexEntry>,
}

/// A file of the repository, by digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// How many there are.
    pub size: u64,
}

impl FileRef {
    /// Names these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Digest::of(bytes), size: bytes.len() as u64 }
    }
}

/// One release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// Its version.
    pub version: Version,
    /// Its signed manifest, `manifests/SHA256.json`.
    pub manifest: FileRef,
    /// The signature over it, `manifests/SHA256.p7s`.
    pub signature: FileRef,
    /// The list of its objects as they are stored, `manifests/SHA256.objects`.
    pub objects: FileRef,
    /// How urgent it is.
    pub priority: Priority,
    /// When it was released, as its manifest says.
    pub released_at: Instant,
    /// When it was put into this channel.
    pub published_at: Instant,
    /// Bytes of all its objects as they are stored: the most a client downloads.
    pub payload_bytes: u64,
    /// Bytes of all its files as they are installed.
    pub installed_bytes: u64,
    /// The oldest version it can follow directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_upgrade_from: Option<Version>,
    /// Packages it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Requirement>,
    /// Packages it cannot live with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// Which entry of the repository's log it is; none where no log is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
    /// Set when nobody should choose it any more. It can still be installed by its exact version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yanked: Option<Yanked>,
    /// Deltas that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<DeltaRef>,
    /// Patches that make its manifest from that of an earlier release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifest_patches: Vec<ManifestPatch>,
}

/// Why a release is not to be chosen any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yanked {
    /// When that was said.
    pub at: Instant,
    /// Why, for people.
    pub reason: String,
}

/// A delta bundle that leads from an earlier release to this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRef {
    /// The release it leads from.
    pub from: ReleaseRef,
    /// The delta bundle, `deltas/ab/SHA256.cutover-delta`.
    pub bundle: FileRef,
}

/// A patch that makes a manifest from an earlier one; `zstd --patch-from` makes and applies such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestPatch {
    /// The earlier manifest.
    pub from: FileRef,
    /// The patch, `manifests/SHA256.patch`.
    pub patch: FileRef,
}

/// Why bytes are no index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// A format of the future.
    #[error("index format {0} is unsupported; this program reads format {INDEX_FORMAT}")]
    Format(u64),
    /// It cannot be read.
    #[error("the index cannot be read: {0}")]
    Syntax(String),
    /// It contradicts itself, or the path it was found at.
    #[error("the index contradicts itself: {0}")]
    Inconsistent(String),
}

impl Index {
    /// An index without releases.
    pub fn new(package: Name, platform: Name, channel: Name) -> Self {
        Self { format: INDEX_FORMAT, package, platform, channel, releases: Vec::new() }
    }

    /// Reads the index that lies at target `path`.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let syntax = |error: serde_json::Error| IndexError::Syntax(error.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(syntax)?;
        if head.format != u64::from(INDEX_FORMAT) {
            return Err(IndexError::Format(head.format));
        }
        let index: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        if index.path() != path {
            return Err(IndexError::Inconsistent(format!(
                "it is of `{}` and lies at `{path}`",
                index.path()
            )));
        }
        if index.releases.windows(2).any(|pair| order(&pair[0], &pair[1]) != Ordering::Less) {
            return Err(IndexError::Inconsistent("its releases are not ordered by version".to_owned()));
        }
        Ok(index)
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("an index always serialises");
        bytes.push(b'\n');
        bytes
    }

    /// The target's path.
    pub fn path(&self) -> String {
        index_path(&self.package, &self.platform, &self.channel)
    }

    /// Adds a release, or replaces the one of the same version.
    pub fn insert(&mut self, entry: IndexEntry) {
        self.releases.retain(|release| release.version.cmp_precedence(&entry.version) != Ordering::Equal);
        self.releases.push(entry);
        self.releases.sort_by(order);
    }

    /// The release of this exact version.
    pub fn get(&self, version: &Version) -> Option<&IndexEntry> {
        self.releases.iter().find(|release| release.version == *version)
    }
}

/// Highest version first.
fn order(one: &IndexEntry, other: &IndexEntry) -> Ordering {
    other.version.cmp_precedence(&one.version)
}

impl IndexEntry {
    /// Lists a release with its manifest, signature and list of objects.
    pub fn new(manifest: &Manifest, files: [FileRef; 3], published_at: Instant) -> Self {
        let [bytes, signature, objects] = files;
        Self {
            version: manifest.version.clone(),
            manifest: bytes,
            signature,
            objects,
            priority: manifest.priority,
            released_at: manifest.released_at,
            published_at,
            payload_bytes: manifest.payload_bytes(),
            installed_bytes: manifest.total_bytes(),
            min_upgrade_from: manifest.min_upgrade_from.clone(),
            requires: manifest.requires.clone(),
            conflicts: manifest.conflicts.clone(),
            log_index: None,
            yanked: None,
            deltas: Vec::new(),
            manifest_patches: Vec::new(),
        }
    }

    /// The release.
    pub fn release(&self, package: &Name) -> ReleaseRef {
        ReleaseRef { package: package.clone(), version: self.version.clone(), manifest: self.manifest.sha256 }
    }
}

/// Where the index of a package, platform and channel lies; this is the name of the TUF target.
pub fn index_path(package: &Name, platform: &Name, channel: &Name) -> String {
    format!("packages/{package}/{platform}/{channel}.json")
}

/// Reads [`index_path`] backwards; `None` for any other target.
pub fn parse_index_path(path: &str) -> Option<(Name, Name, Name)> {
    let rest = path.strip_prefix("packages/")?.strip_suffix(".json")?;
    let mut parts = rest.split('/');
    let mut part = || parts.next()?.parse::<Name>().ok();
    let names = (part()?, part()?, part()?);
    parts.next().is_none().then_some(names)
}

/// Where a manifest lies.
pub fn manifest_path(sha256: Digest) -> String {
    format!("manifests/{sha256}.json")
}

/// Where a signature over a manifest lies, by the digest of the signature itself: one manifest may be signed twice, and
/// what has a name never changes.
pub fn signature_path(sha256: Digest) -> String {
    format!("manifests/{sha256}.p7s")
}

/// Where a patch between manifests lies.
pub fn patch_path(sha256: Digest) -> String {
    format!("manifests/{sha256}.patch")
}

/// Where the list of a release's objects lies.
pub fn objects_path(sha256: Digest) -> String {
    format!("manifests/{sha256}.objects")
}

/// Where an object lies, by the digest of its bytes as they are stored. Whoever mirrors a repository can check every file
/// by its name; and one content that two compressors stored differently is two files, each of which is right.
pub fn object_path(stored: Digest) -> String {
    let digest = stored.to_string();
    format!("objects/{}/{digest}", &digest[..2])
}

/// The objects of a release as they are stored: one digest for each object of its manifest, in the manifest's order.
///
/// A manifest names contents; this names files. It is trusted by its own digest, which the index names, and decides nothing:
/// a content that is not what the signed manifest says is refused whatever the file's digest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectList(Vec<Digest>);

impl ObjectList {
    /// Lists these.
    pub fn new(stored: Vec<Digest>) -> Self {
        Self(stored)
    }

    /// Reads a list: 32 bytes for each object.
    ///
    /// # Errors
    /// [`IndexError::Syntax`] when its length is no multiple of that.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let (digests, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(IndexError::Syntax("a list of objects is cut off".to_owned()));
        }
        Ok(Self(digests.iter().copied().map(Digest::from_bytes).collect()))
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|digest| *digest.as_bytes()).collect()
    }

    /// The digests.
    pub fn digests(&self) -> &[Digest] {
        &self.0
    }

    /// The objects of a manifest, each with the digest of its stored bytes.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] when there are not as many of one as of the other.
    pub fn of<'m>(&self, manifest: &'m Manifest) -> Result<Vec<(&'m ObjectEntry, Digest)>, IndexError> {
        if self.0.len() != manifest.objects.len() {
            return Err(IndexError::Inconsistent(format!(
                "the list names {} objects and the manifest has {}",
                self.0.len(),
                manifest.objects.len()
            )));
        }
        Ok(manifest.objects.iter().zip(self.0.iter().copied()).collect())
    }
}

/// Where a delta bundle lies.
pub fn delta_path(sha256: Digest) -> String {
    let digest = sha256.to_string();
    format!("deltas/{}/{digest}.cutover-delta", &digest[..2])
}
