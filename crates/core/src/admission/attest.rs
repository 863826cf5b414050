//! What a host signs so that its commit is more than a claim.
//!
//! Only the texts: keys and signatures are judged elsewhere. docs/formats/attestation.md has the table.

use super::{CommitHash, EpisodeKey};
use crate::model::Digest;

/// The request header.
pub const ATTESTATION_HEADER: &str = "X-Code-Attestation";
/// The longest header value that is read, in bytes.
const HEADER_MAX: usize = 1024;

/// A host's signature over one upload, as it stands in the header: `v=1; seq=NUMBER; sig=BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation<'a> {
    /// Grows with every upload of a host; none is used for two episodes.
    pub sequence: u64,
    /// The signature over [`attested`], in base64.
    pub signature: &'a str,
}

/// Why a header is no attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attestation is written `v=1; seq=NUMBER; sig=BASE64`")]
pub struct AttestationError;

impl<'a> Attestation<'a> {
    /// Reads a header value.
    ///
    /// # Errors
    /// [`AttestationError`]: something else, something missing, something twice, or another version.
    pub fn parse(value: &'a [u8]) -> Result<Self, AttestationError> {
        let text = std::str::from_utf8(value)
            .ok()
            .filter(|text| text.len() <= HEADER_MAX)
            .ok_or(AttestationError)?;
        let (mut version, mut sequence, mut signature) = (None, None, None);
        for part in text.split(';') {
            let (name, value) = part.trim().split_once('=').ok_or(AttestationError)?;
            let place = match name {
                "v" => &mut version,
                "seq" => &mut sequence,
                "sig" => &mut signature,
                _ => return Err(AttestationError),
            };
            if place.replace(value).is_some() {
                return Err(AttestationError);
            }
        }
        let (Some("1"), Some(sequence), Some(signature)) = (version, sequence, signature) else {
            return Err(AttestationError);
        };
        let digits = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
        let sequence = sequence.parse().ok().filter(|_| digits).ok_or(AttestationError)?;
        Ok(Self { sequence, signature })
    }
}

/// The bytes a host signs: six lines, so that no two uploads have the same.
pub fn attested(commit: &CommitHash, key: &EpisodeKey, sha256: Digest, sequence: u64) -> Vec<u8> {
    format!("cutover-attestation-v1\n{commit}\n{}\n{}\n{sha256}\n{sequence}\n", key.host, key.episode)
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_strictly() {
        let good = Attestation::parse(b"v=1; seq=7;sig=AA==").unwrap();
        assert_eq!((good.sequence, good.signature), (7, "AA=="));
        let long = format!("v=1; seq=7; sig={}", "A".repeat(2000));
        for bad in [
            "",
            "v=1; seq=7",
            "v=2; seq=7; sig=A",
            "v=1; seq=-7; sig=A",
            "v=1; seq=+7; sig=A",
            "v=1; seq=; sig=A",
            "v=1; seq=7; seq=8; sig=A",
            "v=1; seq=7; sig=A; x=1",
            "v=1; seq=18446744073709551616; sig=A",
            &long,
        ] {
            assert_eq!(Attestation::parse(bad.as_bytes()), Err(AttestationError), "{bad}");
        }
    }

    #[test]
    fn what_is_signed_has_one_line_for_each_thing() {
        let commit: CommitHash = "a".repeat(40).parse().unwrap();
        let bytes = attested(&commit, &EpisodeKey::new("h", "e").unwrap(), Digest::of(b"x"), 7);
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            ["cutover-attestation-v1", commit.as_str(), "h", "e", &Digest::of(b"x").to_string(), "7"]
        );
    }
}
