//! Why a manifest is refused.

use super::description::MANIFEST_FORMAT;
use crate::model::{PathError, SafePath};

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
