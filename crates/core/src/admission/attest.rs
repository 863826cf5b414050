//! What a host signs so that its commit is more than a claim.
//!
//! Only the texts: keys and signatures are judged elsewhere. docs/formats/attestation.md has the table.

use super::{CommitHash, EpisodeKey};
use crate::model::Digest;

/// The request header.
pub const ATTESTATION_HEADER: &str = "X-Code-Attestation";
/// The longest header value that is read, in bytes.
const HEADER_MAX: usize = 1024;

/// A host's signature over one upload, as it stands in the header: `v=1; seq=NUMBER; sig=BASE64`, or
/// `v=2; seq=NUMBER; release=HEX; sig=BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation<'a> {
    /// The digest of the manifest of the release that the commit's code came in, as the host says; version 2 has it.
    pub release: Option<Digest>,
    /// Grows with every upload of a host; none is used for two episodes.
    pub sequence: u64,
    /// The signature over [`Statement::bytes`], in base64.
    pub signature: &'a str,
}

/// Why a header is no attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an attestation is written `v=1; seq=NUMBER; sig=BASE64` or `v=2; seq=NUMBER; release=HEX; sig=BASE64`"
)]
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
        let (mut version, mut sequence, mut release, mut signature) = (None, None, None, None);
        for part in text.split(';') {
            let (name, value) = part.trim().split_once('=').ok_or(AttestationError)?;
            let place = match name {
                "v" => &mut version,
                "seq" => &mut sequence,
                "release" => &mut release,
                "sig" => &mut signature,
                _ => return Err(AttestationError),
            };
            if place.replace(value).is_some() {
                return Err(AttestationError);
            }
        }
        let release = match (version, release) {
            (Some("1"), None) => None,
            (Some("2"), Some(release)) => Some(release.parse().map_err(|_| AttestationError)?),
            _ => return Err(AttestationError),
        };
        let (Some(sequence), Some(signature)) = (sequence, signature) else { return Err(AttestationError) };
        let digits = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
        let sequence = sequence.parse().ok().filter(|_| digits).ok_or(AttestationError)?;
        Ok(Self { release, sequence, signature })
    }

    /// The header value.
    pub fn header(&self) -> String {
        let Self { release, sequence, signature } = self;
        match release {
            None => format!("v=1; seq={sequence}; sig={signature}"),
            Some(release) => format!("v=2; seq={sequence}; release={release}; sig={signature}"),
        }
    }
}

/// What a host says of an upload.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// The commit it was made by.
    pub commit: &'a CommitHash,
    /// Which episode it is.
    pub key: &'a EpisodeKey,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
    /// Used for this upload only.
    pub sequence: u64,
    /// The digest of the manifest of the release that the commit's code came in, where that is said.
    pub release: Option<Digest>,
}

impl Statement<'_> {
    /// The bytes a host signs: one line for each thing, so that no two statements have the same.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { commit, key, sha256, sequence, release } = self;
        let said = format!("{commit}\n{}\n{}\n{sha256}\n{sequence}\n", key.host, key.episode);
        match release {
            None => format!("cutover-attestation-v1\n{said}"),
            Some(release) => format!("cutover-attestation-v2\n{said}{release}\n"),
        }
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_strictly() {
        let good = Attestation::parse(b"v=1; seq=7;sig=AA==").unwrap();
        assert_eq!((good.sequence, good.signature, good.release), (7, "AA==", None));
        let release = "ab".repeat(32);
        let second = format!("v=2; seq=7; release={release}; sig=AA==");
        let good = Attestation::parse(second.as_bytes()).unwrap();
        assert_eq!((good.release.unwrap().to_string(), good.header()), (release.clone(), second));
        let (wrong, other) =
            (format!("v=1; seq=7; release={release}; sig=A"), "v=2; seq=7; release=ab; sig=A".to_owned());
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
            &wrong,
            &other,
        ] {
            assert_eq!(Attestation::parse(bad.as_bytes()), Err(AttestationError), "{bad}");
        }
    }

    #[test]
    fn what_is_signed_has_one_line_for_each_thing() {
        let (commit, key): (CommitHash, _) =
            ("a".repeat(40).parse().unwrap(), EpisodeKey::new("h", "e").unwrap());
        let sha256 = Digest::of(b"x");
        let lines = |release| {
            let statement = Statement { commit: &commit, key: &key, sha256, sequence: 7, release };
            let text = String::from_utf8(statement.bytes()).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let said = [commit.as_str(), "h", "e", &sha256.to_string(), "7"].map(str::to_owned);
        assert_eq!(lines(None), [&["cutover-attestation-v1".to_owned()], &said[..]].concat());
        let release = Digest::of(b"manifest");
        let second = [&["cutover-attestation-v2".to_owned()], &said[..], &[release.to_string()]].concat();
        assert_eq!(lines(Some(release)), second);
    }
}
