//! Release versions: Semantic Versioning 2.0.0, with an optional leading `v` on input.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A release version. Ordered by semver precedence; build metadata is kept and breaks ties so that the order is total.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(semver::Version);

/// Why a string is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a version: {reason} (expected MAJOR.MINOR.PATCH, see semver.org)")]
pub struct VersionError {
    /// What was given, shortened and escaped.
    pub input: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The longest version string accepted, in bytes. It becomes part of directory names.
const LENGTH_MAX: usize = 128;

impl Version {
    /// Builds a release version without pre-release or build metadata.
    pub fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self(semver::Version::new(major, minor, patch))
    }

    /// The major number.
    pub fn major(&self) -> u64 {
        self.0.major
    }

    /// The minor number.
    pub fn minor(&self) -> u64 {
        self.0.minor
    }

    /// True for versions such as `1.10.0-rc.1`.
    pub fn is_prerelease(&self) -> bool {
        !self.0.pre.is_empty()
    }

    /// Compares by semver precedence only: build metadata does not count.
    pub fn cmp_precedence(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp_precedence(&other.0)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(input: &str) -> Result<Self, VersionError> {
        let refuse = |reason: String| VersionError { input: crate::text::shown(input), reason };
        if input.len() > LENGTH_MAX {
            return Err(refuse(format!("longer than {LENGTH_MAX} bytes")));
        }
        let bare = input.strip_prefix('v').unwrap_or(input);
        semver::Version::parse(bare).map(Self).map_err(|error| refuse(error.to_string()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a valid version")
    }

    // V1
    #[test]
    fn leading_v_and_build_metadata_are_accepted_and_round_trip() {
        assert_eq!(version("v1.2.3").to_string(), "1.2.3");
        assert_eq!(version("1.0.0-rc.1+build.123").to_string(), "1.0.0-rc.1+build.123");
    }

    // V1
    #[test]
    fn incomplete_or_wordy_versions_are_refused() {
        for text in ["1.2", "invalid", "", "1.2.3.4", "01.2.3", "vv1.2.3", "1.2.3 ", "../1.2.3"] {
            assert!(text.parse::<Version>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("1.0.0-{}", "a".repeat(LENGTH_MAX)).parse::<Version>().is_err());
    }

    // V2, M17
    #[test]
    fn order_is_semver_precedence() {
        assert!(version("1.0.0-beta") < version("1.0.0"));
        assert!(version("1.9.0") < version("1.10.0-rc.1"));
        assert!(version("1.10.0-rc.1") < version("1.10.0"));
    }
}
