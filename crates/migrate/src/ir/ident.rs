//! Names of tables, columns, indexes and constraints.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes: PostgreSQL cuts longer ones silently (`NAMEDATALEN` 64).
const LENGTH_MAX: usize = 63;

/// A name of 1 to 63 bytes without control characters. Always printed quoted ([`quoted`](Self::quoted)), so any other
/// character is allowed. May not begin with `_cutover_`: those are ours.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident(String);

/// Why a string is no [`Ident`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentError {
    /// Nothing there.
    #[error("a name is empty")]
    Empty,
    /// More than 63 bytes.
    #[error("the name `{0}` is longer than 63 bytes")]
    Long(String),
    /// A control character.
    #[error("the name {0:?} has a control character in it")]
    Control(String),
    /// One of ours.
    #[error("the name `{0}` begins with `_cutover_`, which is kept for the engine's own tables")]
    Reserved(String),
}

impl Ident {
    /// Checks a name.
    ///
    /// # Errors
    /// See [`IdentError`].
    pub fn new(name: impl Into<String>) -> Result<Self, IdentError> {
        let name = name.into();
        if name.to_ascii_lowercase().starts_with("_cutover_") {
            return Err(IdentError::Reserved(name));
        }
        Self::ours(name)
    }

    /// A name that may be one of the engine's own.
    ///
    /// # Errors
    /// See [`IdentError`]; never `Reserved`.
    pub fn ours(name: impl Into<String>) -> Result<Self, IdentError> {
        let name = name.into();
        if name.is_empty() {
            Err(IdentError::Empty)
        } else if name.chars().any(char::is_control) {
            Err(IdentError::Control(name))
        } else if name.len() > LENGTH_MAX {
            Err(IdentError::Long(name))
        } else {
            Ok(Self(name))
        }
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as SQL text: in double quotes, quotes doubled. The same in both dialects.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl FromStr for Ident {
    type Err = IdentError;

    fn from_str(name: &str) -> Result<Self, IdentError> {
        Self::new(name)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl Serialize for Ident {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Ident {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // X1.
    #[test]
    fn empty_long_and_reserved_names_are_refused() {
        assert_eq!(Ident::new(""), Err(IdentError::Empty));
        assert!(matches!(Ident::new("x".repeat(64)), Err(IdentError::Long(_))));
        assert!(matches!(Ident::new("_CUTOVER_x"), Err(IdentError::Reserved(_))));
        assert!(matches!(Ident::new("a\0b"), Err(IdentError::Control(_))));
    }

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(Ident::new("a\"; DROP TABLE b").unwrap().quoted(), "\"a\"\"; DROP TABLE b\"");
    }
}
