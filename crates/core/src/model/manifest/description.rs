//! What a manifest says.

use serde::{Deserialize, Serialize};

use super::{
    contents::{FileEntry, ObjectEntry, Symlink},
    document::{Document, DocumentKind},
    service::ServiceHints,
};
use crate::model::{Constraint, Instant, Name, SafePath, Version};

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

/// The database schema a release needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// The schema's version after the migrations.
    pub version: u64,
    /// Migration files of this release, in order.
    pub migrations: Vec<SafePath>,
}

impl Manifest {
    /// A release without files, for any platform and in the channel `stable`: what a builder fills.
    pub fn new(package: Name, version: Version, released_at: Instant) -> Self {
        let name = |text: &str| text.parse().expect("it is a name");
        Self {
            format: MANIFEST_FORMAT,
            package,
            version,
            platform: name("any"),
            channel: name("stable"),
            released_at,
            priority: Priority::default(),
            min_upgrade_from: None,
            build: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
            files: Vec::new(),
            symlinks: Vec::new(),
            shared: Vec::new(),
            objects: Vec::new(),
            documents: Vec::new(),
            schema: None,
            service: None,
            notes: None,
        }
    }

    /// The bytes that all files take once they are laid down.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The bytes the payload takes.
    pub fn payload_bytes(&self) -> u64 {
        self.objects.last().map_or(0, |last| last.offset + last.stored_size)
    }

    /// The document of a kind, if there is one.
    pub fn document(&self, kind: DocumentKind) -> Option<&Document> {
        self.documents.iter().find(|document| document.kind == kind)
    }
}
