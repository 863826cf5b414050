//! What is said about a release and signed with it.

use serde::{Deserialize, Serialize};

use crate::model::Digest;

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
