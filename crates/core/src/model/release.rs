//! Which release is meant, and what its tree is called on disk.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Digest, Name, Version};

/// One exact release: the version people say and the digest of the manifest that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// The package.
    pub package: Name,
    /// Its version.
    pub version: Version,
    /// SHA-256 of the manifest's exact bytes.
    pub manifest: Digest,
}

impl ReleaseRef {
    /// The directory name of this release's tree.
    pub fn name(&self) -> ReleaseName {
        ReleaseName(format!("{}-{}", self.version, self.manifest.short()))
    }
}

impl fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.package, self.version)
    }
}

/// The directory name of a release's tree: `<version>-<first 8 digits of the manifest's digest>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseName(String);

impl ReleaseName {
    /// The text, safe as one path component.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReleaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{}` is not a release name", text.escape_default());
        let (version, digest) = text.rsplit_once('-').ok_or_else(refuse)?;
        let hex = digest.len() == 8 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let canonical = version.parse::<Version>().is_ok_and(|parsed| parsed.to_string() == version);
        if hex && canonical { Ok(Self(text.to_owned())) } else { Err(refuse()) }
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for ReleaseName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ReleaseName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_name_is_version_and_short_digest() {
        let release = ReleaseRef {
            package: "db".parse().expect("a name"),
            version: "1.10.0-rc.1".parse().expect("a version"),
            manifest: Digest::of(b"abc"),
        };
        assert_eq!(release.name().as_str(), "1.10.0-rc.1-ba7816bf");
        assert_eq!("1.10.0-rc.1-ba7816bf".parse(), Ok(release.name()));
        for text in ["1.0.0", "1.0.0-xyz", "../1.0.0-ba7816bf", "v1.0.0-ba7816bf", "1.0.0-BA7816BF"] {
            assert!(text.parse::<ReleaseName>().is_err(), "{text}");
        }
    }
}
