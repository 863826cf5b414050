//! Full commit hashes, as git prints them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A full commit hash in lower case: 40 hexadecimal digits, or 64 in a SHA-256 repository. Nothing else can be made into
/// one, so no commit that came from outside can be mistaken for an option or a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitHash(Box<str>);

/// Which hash function a repository names its objects with (gitformat-hash-function-transition(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashFormat {
    /// 40 digits.
    Sha1,
    /// 64 digits.
    Sha256,
}

/// Why a text is no commit hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a commit is named by its full hash: 40 hexadecimal digits, or 64 in a SHA-256 repository")]
pub struct CommitError;

impl CommitHash {
    /// The digits, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash function it is a value of.
    pub fn format(&self) -> HashFormat {
        if self.0.len() == 40 { HashFormat::Sha1 } else { HashFormat::Sha256 }
    }

    /// Reads header bytes: spaces and tabs around the digits are no part of them (RFC 9110, 5.5).
    ///
    /// # Errors
    /// [`CommitError`] for everything but one full hash.
    pub fn from_header(value: &[u8]) -> Result<Self, CommitError> {
        let is_padding = |byte: &u8| matches!(byte, b' ' | b'\t');
        let start = value.iter().position(|byte| !is_padding(byte)).ok_or(CommitError)?;
        let end = value.iter().rposition(|byte| !is_padding(byte)).ok_or(CommitError)?;
        std::str::from_utf8(&value[start..=end]).map_err(|_| CommitError)?.parse()
    }
}

impl FromStr for CommitHash {
    type Err = CommitError;

    fn from_str(text: &str) -> Result<Self, CommitError> {
        let full = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if full { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(CommitError) }
    }
}

impl fmt::Display for CommitHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for CommitHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CommitHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // I4
    #[test]
    fn upper_case_commit_is_kept_in_lower_case() {
        let commit: CommitHash = "ABCDEF0123456789abcdef0123456789ABCDEF01".parse().unwrap();
        assert_eq!(commit.as_str(), "abcdef0123456789abcdef0123456789abcdef01");
    }

    #[test]
    fn everything_but_a_full_hash_is_refused() {
        let good = "a".repeat(40);
        assert_eq!(CommitHash::from_header(format!(" \t{good} ").as_bytes()).unwrap().as_str(), good);
        assert_eq!("b".repeat(64).parse::<CommitHash>().unwrap().format(), HashFormat::Sha256);
        for bad in [
            "",
            " ",
            &good[1..],
            &format!("{good}0"),
            &good.replace('a', "g"),
            &format!("{good},{good}"),
            "HEAD",
        ] {
            assert_eq!(CommitHash::from_header(bad.as_bytes()), Err(CommitError), "{bad:?}");
        }
        for bad in
            ["--upload-pack=touch /tmp/x --------------", &format!("{}\n", &good[1..]), &"é".repeat(20)]
        {
            assert_eq!(CommitHash::from_header(bad.as_bytes()), Err(CommitError), "{bad:?}");
        }
        assert_eq!(CommitHash::from_header(&[0xff; 40]), Err(CommitError));
        assert_eq!(CommitHash::from_header(&[0; 40]), Err(CommitError));
    }
}
