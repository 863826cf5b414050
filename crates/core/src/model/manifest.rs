//! The manifest: the signed description of a release.
//!
//! [`Manifest::parse`] turns bytes into a value for which every rule below holds. The signature covers the bytes that
//! were given, never a re-serialisation, so there is no canonical form to get wrong. Format: `docs/formats/bundle.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Constraint, Digest, Instant, Name, Parsed, PathError, SafePath, SafePathSet, Version};

/// The manifest format this program reads and writes.
pub const MANIFEST_FORMAT: u32 = 1;

/// The signed description of a release. Built by [`Manifest::parse`] from bytes, or by a release builder and then
/// checked by [`Manifest::to_bytes`]; both enforce [`Manifest::check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`MANIFEST_FORMAT`].
    pub format: u32,
    /// What is released.
    pub package: Name,
    /// Which version of it.
    pub version: Version,
    /// Where it runs, such as `linux-x86_64`; `any` runs everywhere.
    pub platform: Name,
    /// The stream it belongs to, such as `stable`.
    pub channel: Name,
    /// When it was released.
    pub released_at: Instant,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// The oldest installed version that can be updated to this one directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_upgrade_from: Option<Version>,
    /// Where it was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildInfo>,
    /// Packages it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Requirement>,
    /// Packages it cannot live with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// Its files, in the order in which they are laid down.
    pub files: Vec<FileEntry>,
    /// Its symbolic links, all of which stay inside the release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symlinks: Vec<Symlink>,
    /// Paths that outlive releases: linked into each one from `shared/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SafePath>,
    /// The distinct contents of its files and documents, in payload order.
    pub objects: Vec<ObjectEntry>,
    /// What is said about it, at most one of each kind. They are signed and transported with it, and not installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<Document>,
    /// The database schema it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// How its service is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceHints>,
    /// What changed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// How urgent a release is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// May wait.
    Low,
    /// The default.
    #[default]
    Normal,
    /// A security or data-loss fix.
    Critical,
}

/// Where a release was built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildInfo {
    /// The source revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When it was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<Instant>,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
}

/// A package this release needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Its name.
    pub package: Name,
    /// The versions that will do.
    #[serde(default)]
    pub constraint: Constraint,
    /// Whether it may be absent.
    #[serde(default)]
    pub optional: bool,
}

/// A package this release cannot live with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflict {
    /// Its name.
    pub package: Name,
    /// The versions that conflict.
    #[serde(default)]
    pub constraint: Constraint,
}

/// What a file is for; decides how it is laid down and when it may be shared between release trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A program.
    Executable,
    /// Code that programs load.
    Library,
    /// Settings that an operator may edit.
    Config,
    /// Anything else.
    Data,
}

/// Permission bits, `0o000` to `0o777`, written as four octal digits (`"0755"`). Set-id and sticky bits are refused:
/// a release never hands out privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileMode(u16);

impl FileMode {
    /// Wraps `bits`; `None` when any bit outside `0o777` is set.
    pub fn new(bits: u32) -> Option<Self> {
        u16::try_from(bits).ok().filter(|bits| *bits <= 0o777).map(Self)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// Whether nobody may write to the file.
    pub fn is_read_only(self) -> bool {
        self.0 & 0o222 == 0
    }
}

impl std::str::FromStr for FileMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octal = text.len() == 4 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        octal
            .then(|| u32::from_str_radix(text, 8).ok().and_then(Self::new))
            .flatten()
            .ok_or("a mode is four octal digits from 0000 to 0777")
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("a mode"))
    }
}

/// One file of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it lies below the tree's root.
    pub path: SafePath,
    /// What it is for.
    pub kind: FileKind,
    /// Its permission bits.
    pub mode: FileMode,
    /// Its content: the object of this name.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// One symbolic link of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Where the link lies.
    pub path: SafePath,
    /// What it points to: relative, `..` only at its start, never above the tree's root.
    pub target: String,
}

/// How an object's bytes are stored in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// One Zstandard frame (RFC 8878), window at most 8 MiB.
    Zstd,
    /// As they are.
    Raw,
}

/// One distinct file content and where the payload holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectEntry {
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Bytes it takes in the payload.
    pub stored_size: u64,
    /// How it is stored.
    pub encoding: Encoding,
    /// Where it starts, in bytes from the start of the payload.
    pub offset: u64,
}

/// What a document about a release says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DocumentKind {
    /// What it is made of: a CycloneDX bill of materials in JSON (ECMA-424).
    Sbom,
    /// How it was made: an in-toto statement (v1) with SLSA provenance (v1).
    Provenance,
}

impl DocumentKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Sbom, Self::Provenance];

    /// Its name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sbom => "sbom",
            Self::Provenance => "provenance",
        }
    }

    /// The media type of such documents.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Sbom => "application/vnd.cyclonedx+json",
            Self::Provenance => "application/vnd.in-toto+json",
        }
    }
}

/// The most bytes of a document: it is read as a whole.
pub const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// One document about a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// What it says.
    pub kind: DocumentKind,
    /// Its media type, which its kind decides.
    pub media_type: String,
    /// Its content: the object of this name.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The database schema a release needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// The schema's version after the migrations.
    pub version: u64,
    /// Migration files of this release, in order.
    pub migrations: Vec<SafePath>,
}

/// How a release's service wants to be run; an operator's settings go before these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceHints {
    /// Program (a path in the release) and arguments.
    pub command: Vec<String>,
    /// Sockets that are opened before it starts and passed to it in this order (`LISTEN_FDS`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Listen>,
    /// How it says that it is ready.
    #[serde(default)]
    pub ready: Ready,
    /// How long it may take to become ready, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_timeout_s: Option<u32>,
    /// How long it may take to finish its open connections once it is told to stop, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout_s: Option<u32>,
    /// Environment variables added for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// A listening socket, written `tcp:ADDRESS:PORT` or `unix:/ABSOLUTE/PATH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    /// A TCP socket.
    Tcp(std::net::SocketAddr),
    /// A Unix stream socket.
    Unix(String),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tcp = text.strip_prefix("tcp:").and_then(|address| address.parse().ok()).map(Self::Tcp);
        let unix = text
            .strip_prefix("unix:")
            .filter(|path| path.starts_with('/') && path.len() < 108 && !path.contains('\0'));
        tcp.or_else(|| unix.map(|path| Self::Unix(path.to_owned()))).ok_or_else(|| {
            format!("`{}` is no listen address: write tcp:ADDRESS:PORT or unix:/PATH", text.escape_default())
        })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a service says that it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// It sends `READY=1` to `NOTIFY_SOCKET` (sd_notify(3)).
    #[default]
    Notify,
    /// It counts as ready once it has run for a second.
    Running,
}

/// Bounds on what a manifest may ask for; the defaults are in [`ManifestLimits::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestLimits {
    /// Most bytes of manifest JSON.
    pub bytes_max: usize,
    /// Most files and symlinks together.
    pub entries_max: usize,
    /// Most bytes in one file.
    pub file_bytes_max: u64,
    /// Most bytes in all files together.
    pub total_bytes_max: u64,
}

impl Default for ManifestLimits {
    /// 16 MiB of JSON, 100,000 entries, 1 TiB a file, 4 TiB in all.
    fn default() -> Self {
        Self { bytes_max: 16 << 20, entries_max: 100_000, file_bytes_max: 1 << 40, total_bytes_max: 4 << 40 }
    }
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than allowed.
    #[error("the manifest has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A format of the future, or none.
    #[error("manifest format {0} is unsupported; this program reads format {MANIFEST_FORMAT}")]
    Format(u32),
    /// Not the JSON of a manifest; unknown fields and values are named.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    /// A path rule is broken.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A link points outside, or through `..` in its middle.
    #[error("symlink `{path}` points to `{target}`, outside the release")]
    SymlinkTarget {
        /// The link.
        path: SafePath,
        /// Its target, escaped.
        target: String,
    },
    /// Too many entries, or too many bytes.
    #[error("the release has {actual} {what}; the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// Files, objects and offsets contradict each other.
    #[error("the manifest contradicts itself: {0}")]
    Inconsistent(String),
}

impl Manifest {
    /// Reads a manifest from the bytes that were signed.
    ///
    /// # Errors
    /// See [`ManifestError`]; nothing is allocated beyond `limits.bytes_max` times a small constant.
    pub fn parse(bytes: &[u8], limits: &ManifestLimits) -> Result<Self, ManifestError> {
        /// Looks at the format before anything else is believed.
        #[derive(Deserialize)]
        struct FormatOnly {
            #[serde(default)]
            format: u32,
        }
        if bytes.len() > limits.bytes_max {
            return Err(ManifestError::TooLarge { actual: bytes.len(), limit: limits.bytes_max });
        }
        let syntax = |error: serde_json::Error| {
            ManifestError::Syntax(
                error
                    .to_string()
                    .chars()
                    .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
                    .collect(),
            )
        };
        match serde_json::from_slice::<FormatOnly>(bytes).map_err(syntax)?.format {
            MANIFEST_FORMAT => {}
            other => return Err(ManifestError::Format(other)),
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// Writes the manifest as the bytes to be signed.
    ///
    /// # Errors
    /// As [`Manifest::parse`]: what cannot be read back is not written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check(&ManifestLimits::default())?;
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The bytes that all files take once they are laid down.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The bytes the payload takes.
    pub fn payload_bytes(&self) -> u64 {
        self.objects.last().map_or(0, |last| last.offset + last.stored_size)
    }

    /// Checks every rule that spans fields.
    ///
    /// # Errors
    /// The first broken rule, by [`ManifestError`].
    pub fn check(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        self.check_layout(limits)?;
        self.check_objects()
    }

    /// Checks every rule but those about objects: what can be known before a payload is made.
    ///
    /// # Errors
    /// The first broken rule, by [`ManifestError`].
    pub fn check_layout(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        if self.format != MANIFEST_FORMAT {
            return Err(ManifestError::Format(self.format));
        }
        self.check_entries(limits)?;
        self.check_symlinks()?;
        self.check_documents()?;
        self.check_references()
    }

    fn check_documents(&self) -> Result<(), ManifestError> {
        let mut kinds = BTreeSet::new();
        for document in &self.documents {
            let (name, expected) = (document.kind.name(), document.kind.media_type());
            if !kinds.insert(document.kind) {
                return Err(ManifestError::Inconsistent(format!("there are two documents of kind `{name}`")));
            }
            if document.media_type != expected {
                let found = document.media_type.chars().take(160).flat_map(char::escape_default);
                let found: String = found.collect();
                let reason = format!("the {name} is of media type `{found}` and not `{expected}`");
                return Err(ManifestError::Inconsistent(reason));
            }
            if document.size > DOCUMENT_BYTES_MAX {
                let (what, actual, limit) = ("bytes in a document", document.size, DOCUMENT_BYTES_MAX);
                return Err(ManifestError::Limit { what, actual, limit });
            }
        }
        Ok(())
    }

    /// The document of a kind, if there is one.
    pub fn document(&self, kind: DocumentKind) -> Option<&Document> {
        self.documents.iter().find(|document| document.kind == kind)
    }

    fn check_entries(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        let over = |what, actual, limit| {
            if actual > limit { Err(ManifestError::Limit { what, actual, limit }) } else { Ok(()) }
        };
        let entries = self.files.len() + self.symlinks.len() + self.shared.len();
        over("entries", entries as u64, limits.entries_max as u64)?;
        let mut names = SafePathSet::default();
        let mut total = 0u64;
        for file in &self.files {
            names.insert(&file.path)?;
            over("bytes in one file", file.size, limits.file_bytes_max)?;
            total = total.saturating_add(file.size);
        }
        over("bytes", total, limits.total_bytes_max)?;
        self.symlinks.iter().try_for_each(|link| names.insert(&link.path))?;
        // A shared path may also be a file, which is then its first content; otherwise it is an entry of its own.
        let listed: BTreeSet<&SafePath> = self.shared.iter().collect();
        let files: BTreeSet<&SafePath> =
            self.files.iter().map(|file| &file.path).filter(|path| listed.contains(path)).collect();
        self.shared.iter().filter(|path| !files.contains(path)).try_for_each(|path| names.insert(path))?;
        let mut shared = SafePathSet::default();
        self.shared.iter().try_for_each(|path| shared.insert(path))?;
        Ok(())
    }

    fn check_objects(&self) -> Result<(), ManifestError> {
        struct Known {
            size: u64,
            is_used: bool,
        }
        let inconsistent = |reason: String| Err(ManifestError::Inconsistent(reason));
        let mut known: BTreeMap<&Digest, Known> = BTreeMap::new();
        let mut end = 0u64;
        for object in &self.objects {
            if object.offset != end {
                return inconsistent(format!(
                    "object {} starts at {} where {end} was expected",
                    object.sha256, object.offset
                ));
            }
            end = match end.checked_add(object.stored_size) {
                Some(end) if end < 1 << 62 => end,
                _ => return inconsistent(format!("object {} ends past any file", object.sha256)),
            };
            if object.encoding == Encoding::Raw && object.stored_size != object.size {
                return inconsistent(format!("object {} is raw but has two sizes", object.sha256));
            }
            if known.insert(&object.sha256, Known { size: object.size, is_used: false }).is_some() {
                return inconsistent(format!("object {} is listed twice", object.sha256));
            }
        }
        let files = self.files.iter().map(|file| (file.path.as_str(), &file.sha256, file.size));
        let documents =
            self.documents.iter().map(|document| (document.kind.name(), &document.sha256, document.size));
        for (name, sha256, bytes) in files.chain(documents) {
            match known.get_mut(sha256) {
                Some(object) if object.size == bytes => object.is_used = true,
                Some(object) => {
                    let size = object.size;
                    return inconsistent(format!("`{name}` has {bytes} bytes but its object has {size}"));
                }
                None => return inconsistent(format!("`{name}` has no object")),
            };
        }
        match known.iter().find(|(_, object)| !object.is_used) {
            Some((digest, _)) => inconsistent(format!("object {digest} belongs to no file")),
            None => Ok(()),
        }
    }

    /// `..` is allowed only at the start of a target. There it steps over real directories (a symlink can never be a
    /// parent, or the names would collide), so the lexical answer is the true one.
    fn check_symlinks(&self) -> Result<(), ManifestError> {
        for link in &self.symlinks {
            let mut rest = link.target.as_str();
            let mut up = 0;
            while let Some(after) = rest.strip_prefix("../").or(if rest == ".." { Some("") } else { None }) {
                (rest, up) = (after, up + 1);
            }
            let depth = link.path.components().count() - 1;
            let inside = up <= depth
                && (rest.parse::<SafePath>().is_ok() || (rest.is_empty() && (1..=depth).contains(&up)));
            if !inside {
                let target = link.target.chars().take(160).flat_map(char::escape_default).collect();
                return Err(ManifestError::SymlinkTarget { path: link.path.clone(), target });
            }
        }
        Ok(())
    }

    fn check_references(&self) -> Result<(), ManifestError> {
        let inconsistent = |reason: String| Err(ManifestError::Inconsistent(reason));
        let files: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if let Some(service) = &self.service {
            match service.command.first() {
                Some(program) if files.contains(program.as_str()) => {}
                Some(program) => {
                    return inconsistent(format!(
                        "the service's program `{}` is no file of the release",
                        program.escape_default()
                    ));
                }
                None => return inconsistent("the service has an empty command".to_owned()),
            }
            let nul = |text: &String| text.contains('\0');
            if service.command.iter().any(nul)
                || service
                    .env
                    .iter()
                    .any(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || nul(value))
            {
                return inconsistent(
                    "the service's command or environment cannot be passed to a process".to_owned(),
                );
            }
        }
        if let Some(schema) = &self.schema
            && let Some(missing) = schema.migrations.iter().find(|path| !files.contains(path.as_str()))
        {
            return inconsistent(format!("migration `{missing}` is no file of the release"));
        }
        let mut packages = BTreeSet::new();
        match self
            .requires
            .iter()
            .find(|requirement| requirement.package == self.package || !packages.insert(&requirement.package))
        {
            Some(twice) => inconsistent(format!(
                "requirement `{}` is listed twice or is the package itself",
                twice.package
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &[u8]) -> FileEntry {
        FileEntry {
            path: path.parse().expect(path),
            kind: FileKind::Data,
            mode: FileMode::new(0o644).expect("a mode"),
            sha256: Digest::of(content),
            size: content.len() as u64,
        }
    }

    fn manifest() -> Manifest {
        let contents: [&[u8]; 6] = [b"one", b"two", b"three", b"four", b"five", b"a bill"];
        let mut offset = 0;
        let objects = contents
            .iter()
            .map(|content| {
                let size = content.len() as u64;
                offset += size;
                ObjectEntry {
                    sha256: Digest::of(content),
                    size,
                    stored_size: size,
                    encoding: Encoding::Raw,
                    offset: offset - size,
                }
            })
            .collect();
        let paths = ["z/one", "bin/two", "three", "lib/four", "five"];
        Manifest {
            format: MANIFEST_FORMAT,
            package: "db".parse().expect("a name"),
            version: Version::new(1, 2, 3),
            platform: "linux-x86_64".parse().expect("a name"),
            channel: "stable".parse().expect("a name"),
            released_at: "2026-01-02T03:04:05Z".parse().expect("a time"),
            priority: Priority::Critical,
            min_upgrade_from: Some(Version::new(1, 0, 0)),
            build: Some(BuildInfo {
                commit: Some("0".repeat(40)),
                date: None,
                toolchain: Some("rustc 1.95.0".to_owned()),
            }),
            requires: vec![Requirement {
                package: "storage".parse().expect("a name"),
                constraint: ">=1.4.0".parse().expect("a constraint"),
                optional: true,
            }],
            conflicts: vec![Conflict {
                package: "old-db".parse().expect("a name"),
                constraint: Constraint::default(),
            }],
            files: paths.iter().zip(contents).map(|(path, content)| file(path, content)).collect(),
            symlinks: vec![Symlink {
                path: "bin/alias".parse().expect("a path"),
                target: "../lib/four".to_owned(),
            }],
            shared: vec!["etc/db.conf".parse().expect("a path"), "three".parse().expect("a path")],
            objects,
            documents: vec![Document {
                kind: DocumentKind::Sbom,
                media_type: "application/vnd.cyclonedx+json".to_owned(),
                sha256: Digest::of(b"a bill"),
                size: 6,
            }],
            schema: Some(Schema { version: 7, migrations: vec!["five".parse().expect("a path")] }),
            service: Some(ServiceHints {
                command: vec!["bin/two".to_owned(), "--flag".to_owned()],
                listen: vec![
                    "tcp:127.0.0.1:80".parse().expect("an address"),
                    "unix:/run/db.sock".parse().expect("an address"),
                ],
                ready: Ready::Notify,
                ready_timeout_s: Some(10),
                drain_timeout_s: None,
                env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            }),
            notes: Some("Faster.".to_owned()),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::parse(bytes, &ManifestLimits::default())
    }

    /// The manifest's JSON after `edit`.
    fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest, ManifestError> {
        let mut json = serde_json::to_value(manifest()).expect("a manifest is JSON");
        edit(&mut json);
        parse(&serde_json::to_vec(&json).expect("JSON"))
    }

    // M1, M13
    #[test]
    fn full_manifest_round_trips_and_keeps_file_order() {
        let parsed = parse(&manifest().to_bytes().expect("valid")).expect("valid");
        assert_eq!(parsed, manifest());
        let paths: Vec<_> = parsed.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["z/one", "bin/two", "three", "lib/four", "five"]);
    }

    // M2, M3
    #[test]
    fn manifest_hash_is_stable_and_depends_on_the_version() {
        let hash = |manifest: &Manifest| Digest::of(&manifest.to_bytes().expect("valid"));
        assert_eq!(hash(&manifest()), hash(&manifest()));
        assert_eq!(hash(&manifest()).to_string().len(), 64);
        assert_ne!(hash(&manifest()), hash(&Manifest { version: Version::new(1, 2, 4), ..manifest() }));
    }

    // M6
    #[test]
    fn file_entry_without_hash_or_size_is_refused() {
        for field in ["sha256", "size", "mode", "kind"] {
            let result = edited(|json| drop(json["files"][0].as_object_mut().expect("a file").remove(field)));
            assert!(
                matches!(result, Err(ManifestError::Syntax(reason)) if reason.contains(field)),
                "{field}"
            );
        }
    }

    // M11
    #[test]
    fn path_listed_twice_is_refused_also_by_case() {
        for path in ["bin/two", "BIN/two", "bin/TWO", "bin/alias", "lib"] {
            let result = edited(|json| json["files"][0]["path"] = path.into());
            assert!(
                matches!(result, Err(ManifestError::Path(PathError::Collision { .. }))),
                "{path}: {result:?}"
            );
        }
    }

    // M12
    #[test]
    fn unknown_format_is_unsupported_before_its_fields_are_read() {
        let result = parse(br#"{"format": 2, "whatever": true}"#);
        assert_eq!(result, Err(ManifestError::Format(2)));
        assert!(ManifestError::Format(2).to_string().contains("unsupported"));
        assert_eq!(parse(b"{}"), Err(ManifestError::Format(0)));
    }

    #[test]
    fn unknown_fields_and_values_are_refused_by_name() {
        for (result, word) in [
            (edited(|json| json["surprise"] = 1.into()), "surprise"),
            (edited(|json| json["files"][0]["surprise"] = 1.into()), "surprise"),
            (edited(|json| json["priority"] = "urgent".into()), "urgent"),
            (edited(|json| json["files"][0]["kind"] = "device".into()), "device"),
            (edited(|json| json["files"][0]["mode"] = "4755".into()), "0777"),
        ] {
            assert!(
                matches!(&result, Err(ManifestError::Syntax(reason)) if reason.contains(word)),
                "{word}: {result:?}"
            );
        }
        assert!(parse(br#"{"format":1,"format":1}"#).is_err(), "a field given twice");
    }

    // P1, P2, P3, P5
    #[test]
    fn hostile_path_anywhere_refuses_the_manifest() {
        for path in [
            "../outside",
            "/etc/passwd",
            "",
            "a/../../b",
            "a\\..\\b",
            "a\0b",
            "C:\\x",
            "a/",
            ".",
            ".cutover/lock",
        ] {
            assert!(edited(|json| json["files"][0]["path"] = path.into()).is_err(), "file {path:?}");
            assert!(edited(|json| json["symlinks"][0]["path"] = path.into()).is_err(), "symlink {path:?}");
            assert!(edited(|json| json["shared"][0] = path.into()).is_err(), "shared {path:?}");
            assert!(
                edited(|json| json["schema"]["migrations"][0] = path.into()).is_err(),
                "migration {path:?}"
            );
        }
    }

    #[test]
    fn documents_are_one_of_each_kind_with_its_media_type_and_an_object() {
        type Edit = (&'static str, fn(&mut serde_json::Value));
        let edits: [Edit; 7] = [
            ("two documents", |json| {
                let first = json["documents"][0].clone();
                json["documents"].as_array_mut().expect("a list").push(first);
            }),
            ("media type", |json| json["documents"][0]["media_type"] = "text/xml".into()),
            ("has no object", |json| json["documents"][0]["sha256"] = Digest::of(b"x").to_string().into()),
            ("but its object has 6", |json| json["documents"][0]["size"] = 7.into()),
            ("bytes in a document", |json| json["documents"][0]["size"] = (17 << 20).into()),
            ("surprise", |json| json["documents"][0]["surprise"] = 1.into()),
            ("belongs to no file", |json| drop(json.as_object_mut().expect("one").remove("documents"))),
        ];
        for (word, edit) in edits {
            let error = edited(edit).expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(edited(|json| json["documents"][0]["kind"] = "licence".into()).is_err());
        assert_eq!(manifest().document(DocumentKind::Provenance), None);
        assert_eq!(manifest().document(DocumentKind::Sbom).map(|document| document.size), Some(6));
    }

    #[test]
    fn symlink_that_leaves_the_release_is_refused() {
        for target in ["../../x", "/etc/passwd", "", "x/../../..", "x/../y", "a//b", "a\0", "../.."] {
            let result = edited(|json| json["symlinks"][0]["target"] = target.into());
            assert!(matches!(result, Err(ManifestError::SymlinkTarget { .. })), "{target:?}: {result:?}");
        }
        for target in ["../x", "x", "x/y", ".."] {
            edited(|json| json["symlinks"][0]["target"] = target.into()).expect(target);
        }
    }

    #[test]
    fn contradicting_sizes_offsets_and_objects_are_refused() {
        type Edit = (&'static str, fn(&mut serde_json::Value));
        let edits: [Edit; 8] = [
            ("file size", |json| json["files"][0]["size"] = 4.into()),
            ("object size", |json| json["objects"][0]["size"] = 4.into()),
            ("offset gap", |json| json["objects"][1]["offset"] = 4.into()),
            ("overflow", |json| json["objects"][0]["stored_size"] = u64::MAX.into()),
            ("2^63", |json| json["objects"][4]["stored_size"] = (1u64 << 63).into()),
            ("unknown object", |json| json["files"][0]["sha256"] = Digest::of(b"other").to_string().into()),
            ("program", |json| json["service"]["command"][0] = "bin/none".into()),
            ("migration", |json| json["schema"]["migrations"][0] = "none".into()),
        ];
        for (name, edit) in edits {
            assert!(matches!(edited(edit), Err(ManifestError::Inconsistent(_))), "{name}");
        }
    }

    #[test]
    fn limits_are_checked_before_the_manifest_is_believed() {
        let bytes = manifest().to_bytes().expect("valid");
        let with = |limits: ManifestLimits| Manifest::parse(&bytes, &limits).expect_err("over the limit");
        let limits = ManifestLimits::default();
        assert!(matches!(
            with(ManifestLimits { bytes_max: 100, ..limits }),
            ManifestError::TooLarge { limit: 100, .. }
        ));
        assert!(matches!(
            with(ManifestLimits { entries_max: 7, ..limits }),
            ManifestError::Limit { what: "entries", .. }
        ));
        assert!(matches!(
            with(ManifestLimits { file_bytes_max: 4, ..limits }),
            ManifestError::Limit { what: "bytes in one file", .. }
        ));
        assert!(matches!(
            with(ManifestLimits { total_bytes_max: 18, ..limits }),
            ManifestError::Limit { what: "bytes", .. }
        ));
    }
}
