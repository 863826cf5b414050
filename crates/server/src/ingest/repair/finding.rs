//! What a check finds.

use cutover_core::{admission::EpisodeKey, model::Digest};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The bytes are not those of the row.
    #[error(
        "rot: {key}: the index says {expected} ({expected_bytes} bytes), the file has {found} ({found_bytes} bytes)"
    )]
    Rot {
        /// Which.
        key: EpisodeKey,
        /// What the row says.
        expected: Digest,
        /// What the row says.
        expected_bytes: u64,
        /// What is stored.
        found: Digest,
        /// What is stored.
        found_bytes: u64,
    },
    /// A row without a file.
    #[error("missing: {0}: the index has a row, and there is no file")]
    Missing(EpisodeKey),
    /// More than one row for a key.
    #[error("duplicate: {key}: {}", if *.same { "a second row says the same" } else { "a second row says something else; the first counts" })]
    SecondRow {
        /// Which.
        key: EpisodeKey,
        /// Whether it says the same.
        same: bool,
    },
    /// Two episodes with the same bytes.
    #[error("duplicate: {key} has the same bytes as {first}")]
    SameBytes {
        /// Which.
        key: EpisodeKey,
        /// The other one.
        first: EpisodeKey,
    },
    /// A line of the index that is no row.
    #[error("index: {0}")]
    Line(String),
}

impl Finding {
    /// Whether data is lost or wrong, not only there twice.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Rot { .. } | Self::Missing(_) => true,
            Self::SecondRow { same, .. } => !same,
            Self::SameBytes { .. } | Self::Line(_) => false,
        }
    }
}
