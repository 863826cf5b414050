//! NAME@VERSION: a release as people name it.

use std::{fmt, str::FromStr};

use cutover_core::model::{IdError, Name, Version, VersionError};

/// A release as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackageVersion {
    pub(crate) package: Name,
    pub(crate) version: Version,
}

impl FromStr for PackageVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (package, version) =
            text.split_once('@').ok_or("write NAME@VERSION, such as storage@1.4.0".to_owned())?;
        Ok(Self {
            package: package.parse().map_err(|error: IdError| error.to_string())?,
            version: version.parse().map_err(|error: VersionError| error.to_string())?,
        })
    }
}

impl fmt::Display for PackageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.package, self.version)
    }
}
