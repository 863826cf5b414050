//! Ids of hosts and episodes: short names that become parts of file names.

use std::fmt;

use crate::text::{checked_text, is_plain, shown};

/// The longest id, in bytes.
const LENGTH_MAX: usize = 128;

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a valid {what} id: use 1 to 128 of A-Z a-z 0-9 . _ - and do not start with .")]
pub struct IngestIdError {
    /// What was given, shortened and escaped.
    pub input: String,
    /// What it was meant to be.
    pub what: &'static str,
}

fn check(input: &str, what: &'static str) -> Result<(), IngestIdError> {
    let good = (1..=LENGTH_MAX).contains(&input.len()) && !input.starts_with('.') && is_plain(input);
    if good { Ok(()) } else { Err(IngestIdError { input: shown(input), what }) }
}

checked_text!(
    /// The id of a host: 1 to 128 of `A-Za-z0-9._-`, not starting with `.`.
    HostId,
    "host",
    check,
    IngestIdError
);
checked_text!(
    /// The id of an episode, unique on its host: 1 to 128 of `A-Za-z0-9._-`, not starting with `.`.
    EpisodeId,
    "episode",
    check,
    IngestIdError
);

/// What an episode is known by: its host and its id there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpisodeKey {
    /// The host.
    pub host: HostId,
    /// The episode.
    pub episode: EpisodeId,
}

impl EpisodeKey {
    /// Checks both ids.
    ///
    /// # Errors
    /// [`IngestIdError`] for the first that is none.
    pub fn new(host: &str, episode: &str) -> Result<Self, IngestIdError> {
        Ok(Self { host: host.parse()?, episode: episode.parse()? })
    }

    /// Reads `HOST/EPISODE` as it stands in the path of a request: percent-decoded once, then checked, so that an encoded
    /// separator is as bad as a plain one.
    ///
    /// # Errors
    /// [`IngestIdError`]
    pub fn from_path(path: &str) -> Result<Self, IngestIdError> {
        let mut parts = path.split('/');
        let (host, episode) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if parts.next().is_some() {
            return Err(IngestIdError { input: shown(path), what: "episode" });
        }
        Self::new(&percent_decoded(host), &percent_decoded(episode))
    }
}

impl fmt::Display for EpisodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.episode)
    }
}

/// Decodes `%XX` (RFC 3986, 2.1). What is no UTF-8 or no encoding becomes a character that no id may have.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let pair = (*first == b'%').then(|| tail.get(..2)).flatten();
        let value = pair.and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                rest = &tail[2..];
            }
            None => decoded.push(*first),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    // I19
    #[test]
    fn ids_with_separators_dots_or_control_characters_are_refused_also_percent_encoded() {
        let long = "a".repeat(129);
        let huge = "a".repeat(65_536);
        for bad in ["", ".", "..", ".a", "a/b", "a\\b", "a\0", "a\n", "a b", "é", "%2e%2e", &long, &huge] {
            assert!(EpisodeKey::new("h", bad).is_err(), "{bad:?}");
            assert!(EpisodeKey::new(bad, "e").is_err(), "{bad:?}");
        }
        for bad in [
            "h/..",
            "../e",
            "h/%2e%2e",
            "h/a%2Fb",
            "h%2f..%2fx/e",
            "h/a%00",
            "h/%ff",
            "h/e/f",
            "h",
            "",
            "h/e%",
            "h/%zz",
        ] {
            assert!(EpisodeKey::from_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(EpisodeKey::from_path("h%2D1/e%5f2"), EpisodeKey::new("h-1", "e_2"));
        assert_eq!(EpisodeKey::new("-h", &"a".repeat(128)).unwrap().host.as_str(), "-h");
    }
}
