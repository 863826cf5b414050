//! Signatures of hosts over what they hand in: the keys, whether a signature is one of theirs, and whether the release it names
//! proves its commit.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use base64ct::{Base64, Encoding as _};
use cutover_core::{
    admission::{ATTESTATION_HEADER, Attestation, CommitHash, EpisodeKey, HostId, Known, Statement},
    model::Digest,
};
use http::{HeaderMap, StatusCode};

use super::answer::Problem;
use crate::settings::{AttestPolicy, AttestProof, AttestSettings, SettingError};

/// The public keys of hosts, and what is demanded of them.
#[derive(Debug)]
pub(crate) struct Keys {
    policy: AttestPolicy,
    proof: AttestProof,
    hosts: BTreeMap<HostId, Key>,
}

#[derive(Debug)]
struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(settings: &AttestSettings) -> Result<Self, SettingError> {
        let mut hosts = BTreeMap::new();
        for (host, key) in &settings.keys {
            let bad = |reason: String| SettingError::new("gate.attest.keys", format!("`{host}`: {reason}"));
            let id: HostId = host.parse().map_err(|error| bad(format!("{error}")))?;
            hosts.insert(
                id,
                Key::parse(key).ok_or_else(|| bad("write `ed25519:BASE64` or `p256:BASE64`".to_owned()))?,
            );
        }
        Ok(Self { policy: settings.policy, proof: settings.proof, hosts })
    }

    /// The sequence number that a valid signature carries; `None` when there is no signature and none is demanded. `known` is
    /// what the gate knows of releases.
    pub(crate) fn judge(
        &self,
        headers: &HeaderMap,
        commit: Option<&CommitHash>,
        key: &EpisodeKey,
        declared: Option<Digest>,
        known: Option<&Known>,
    ) -> Result<Option<u64>, Problem> {
        if self.policy == AttestPolicy::Off {
            return Ok(None);
        }
        let refused = |error, detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, error, detail));
        let mut values = headers.get_all(ATTESTATION_HEADER).iter();
        let value = match (values.next(), values.next()) {
            (None, _) if self.policy == AttestPolicy::Require => {
                return refused(
                    "attestation-missing",
                    "A signature of the host is needed in X-Code-Attestation.",
                );
            }
            (None, _) => return Ok(None),
            (Some(value), None) => value,
            (Some(_), Some(_)) => {
                return refused("attestation-invalid", "X-Code-Attestation is given more than once.");
            }
        };
        let invalid = "The signature in X-Code-Attestation is not one of this host over this upload.";
        let (Ok(attestation), Some(commit)) = (Attestation::parse(value.as_bytes()), commit) else {
            return refused("attestation-invalid", invalid);
        };
        let Some(declared) = declared else {
            return refused("attestation-invalid", "A signed upload says its SHA-256 in Content-Digest.");
        };
        let Attestation { release, sequence, signature } = attestation;
        let signed = Statement { commit, key, sha256: declared, sequence, release }.bytes();
        if !self.hosts.get(&key.host).is_some_and(|host| host.verifies(&signed, signature)) {
            return refused("attestation-invalid", invalid);
        }
        let is_proven =
            || release.zip(known).is_some_and(|(release, known)| known.is_release_of(commit, release));
        match self.proof {
            AttestProof::Release if !is_proven() => refused(
                "release-not-proven",
                "The signature names no release that is known to be built from this commit.",
            ),
            AttestProof::Host | AttestProof::Release => Ok(Some(sequence)),
        }
    }
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let (kind, key) = text.split_once(':')?;
        let bytes = Base64::decode_vec(key).ok()?;
        match (kind, bytes.len()) {
            ("ed25519", 32) => Some(Self { algorithm: &ED25519, bytes }),
            ("p256", 65) if bytes[0] == 4 => Some(Self { algorithm: &ECDSA_P256_SHA256_ASN1, bytes }),
            _ => None,
        }
    }

    fn verifies(&self, signed: &[u8], signature: &str) -> bool {
        let Ok(signature) = Base64::decode_vec(signature) else { return false };
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(signed, &signature).is_ok()
    }
}
