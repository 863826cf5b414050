//! Types that are a text which was checked once: names and ids that become parts of file names.

/// Bytes of a text that an error shows at most, before escaping.
const SHOWN_MAX: usize = 64;

/// What was given, for an error: shortened and escaped.
pub(crate) fn shown(input: &str) -> String {
    input.chars().take(SHOWN_MAX).flat_map(char::escape_default).collect()
}

/// Whether every byte is one of `A-Za-z0-9._-`.
pub(crate) fn is_plain(input: &str) -> bool {
    input.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// A type that holds a text which `$check(text, $what)` accepted: parsed, shown, written and read as that text.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path, $error:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(input: &str) -> Result<Self, $error> {
                $check(input, $what).map(|()| Self(input.into()))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use checked_text;
