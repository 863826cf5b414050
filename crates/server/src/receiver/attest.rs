//! Signatures of hosts over what they hand in: the keys, and whether a signature is one of theirs.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use base64ct::{Base64, Encoding as _};
use cutover_core::{
    admission::{ATTESTATION_HEADER, Attestation, CommitHash, EpisodeKey, HostId, attested},
    model::Digest,
};
use http::{HeaderMap, StatusCode};

use super::answer::Problem;
use crate::settings::{AttestPolicy, AttestSettings, SettingError};

/// The public keys of hosts, and what is demanded of them.
#[derive(Debug)]
pub(crate) struct Keys {
    policy: AttestPolicy,
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
        Ok(Self { policy: settings.policy, hosts })
    }

    /// The sequence number that a valid signature carries; `None` when there is no signature and none is demanded.
    pub(crate) fn judge(
        &self,
        headers: &HeaderMap,
        commit: Option<&CommitHash>,
        key: &EpisodeKey,
        declared: Option<Digest>,
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
        let signed = attested(commit, key, declared, attestation.sequence);
        let known = self.hosts.get(&key.host);
        match known.is_some_and(|known| known.verifies(&signed, attestation.signature)) {
            true => Ok(Some(attestation.sequence)),
            false => refused("attestation-invalid", invalid),
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
