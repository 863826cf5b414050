//! The names of delta algorithms. A name always means the real format it names; none ever stands for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A patch format. Written as its [`DeltaAlgorithm::id`] in manifests and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeltaAlgorithm {
    /// `bsdiff`: `BSDIFF40`, as bsdiff 4.3 writes and bspatch reads it.
    Bsdiff,
    /// `xdelta3`: VCDIFF as the xdelta3 program has it, with Adler-32 and LZMA secondary compression.
    Xdelta3,
    /// `vcdiff`: plain RFC 3284 with the default code table.
    Vcdiff,
    /// `zstd-dict`: a Zstandard frame with the old file as its prefix, as `zstd --patch-from` has it.
    ZstdDict,
    /// `refdelta`: this project's own (`docs/formats/delta.md`).
    Refdelta,
}

/// A name that is no [`DeltaAlgorithm`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("delta algorithm `{}` is unknown; known are bsdiff, xdelta3, vcdiff, zstd-dict, refdelta", .0.escape_default())]
pub struct UnknownDeltaAlgorithm(
    /// The name.
    pub String,
);

impl DeltaAlgorithm {
    /// Every algorithm, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::Bsdiff, Self::Xdelta3, Self::Vcdiff, Self::ZstdDict, Self::Refdelta];

    /// The name in manifests and on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Bsdiff => "bsdiff",
            Self::Xdelta3 => "xdelta3",
            Self::Vcdiff => "vcdiff",
            Self::ZstdDict => "zstd-dict",
            Self::Refdelta => "refdelta",
        }
    }
}

impl fmt::Display for DeltaAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for DeltaAlgorithm {
    type Err = UnknownDeltaAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownDeltaAlgorithm> {
        let known = Self::ALL.into_iter().find(|algorithm| algorithm.id() == text);
        known.ok_or_else(|| UnknownDeltaAlgorithm(text.to_owned()))
    }
}

impl Serialize for DeltaAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

impl<'de> Deserialize<'de> for DeltaAlgorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_parsed_back_and_nothing_else_is() {
        for algorithm in DeltaAlgorithm::ALL {
            assert_eq!(algorithm.id().parse(), Ok(algorithm));
            let json = format!("\"{algorithm}\"");
            assert_eq!(serde_json::from_str::<DeltaAlgorithm>(&json).unwrap(), algorithm);
            assert_eq!(serde_json::to_string(&algorithm).unwrap(), json);
        }
        for name in ["", "BSDIFF", "bsdiff40", "zstd", "xdelta", " bsdiff", "hdiff"] {
            let refused = name.parse::<DeltaAlgorithm>().unwrap_err().to_string();
            assert!(refused.contains(&format!("`{name}`")), "{refused}");
        }
    }
}
