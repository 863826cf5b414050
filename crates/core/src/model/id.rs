//! Short names that become parts of file names: packages, channels, platforms, restore points.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes.
const LENGTH_MAX: usize = 64;

/// Why a string is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a valid {what}: use 1 to 64 of A-Z a-z 0-9 . _ - and do not start with . or -")]
pub struct IdError {
    /// What was given, shortened and escaped.
    pub input: String,
    /// What it was meant to be.
    pub what: &'static str,
}

fn check(input: &str, what: &'static str) -> Result<String, IdError> {
    let good = !input.is_empty()
        && input.len() <= LENGTH_MAX
        && !input.starts_with(['.', '-'])
        && input.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if good {
        Ok(input.to_owned())
    } else {
        Err(IdError { input: input.chars().take(64).flat_map(char::escape_default).collect(), what })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(input: &str) -> Result<Self, IdError> {
                check(input, $what).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// The name of a package, platform or channel: 1 to 64 of `A-Za-z0-9._-`, not starting with `.` or `-`.
    Name,
    "name"
);
name_type!(
    /// The id of a restore point: the number of the execution that made it, zero-padded, such as `000012`.
    /// Any other well-formed name parses too; it is then merely unknown.
    RestorePointId,
    "restore point id"
);

impl RestorePointId {
    /// The id of the restore point that execution `number` makes.
    pub fn of_execution(number: u64) -> Self {
        Self(format!("{number:06}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // P7
    #[test]
    fn restore_point_id_that_leaves_its_directory_is_refused() {
        for text in ["../../x", "..", ".", "", "a/b", "a\\b", "a\0", "-rf", "a b", "é"] {
            assert!(text.parse::<RestorePointId>().is_err(), "{text:?} was accepted");
        }
        assert_eq!(RestorePointId::of_execution(12).as_str(), "000012");
    }
}
