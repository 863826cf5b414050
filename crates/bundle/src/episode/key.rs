//! A host's key for attestations, Ed25519 (RFC 8032).

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64ct::{Base64, Encoding as _};
use cutover_core::admission::{Attestation, Statement};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use zeroize::{Zeroize as _, Zeroizing};

/// A host's private key.
pub struct HostKey(Ed25519KeyPair);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey(of {})", self.public())
    }
}

/// Why there is no key. The message never holds key material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostKeyError(&'static str);

impl HostKey {
    /// Makes a new key, and its PKCS#8 form in PEM.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn generate() -> Result<(Self, Zeroizing<String>), HostKeyError> {
        let failed = |_| HostKeyError("no key can be made: there is no randomness");
        let key = Ed25519KeyPair::generate().map_err(failed)?;
        let document = key.to_pkcs8v1().map_err(failed)?;
        let pem = der_pem(document.as_ref());
        Ok((Self(key), pem))
    }

    /// Reads an unencrypted PKCS#8 key in PEM.
    ///
    /// # Errors
    /// It is no such key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, HostKeyError> {
        let mut der = PrivateKeyDer::from_pem_slice(pem)
            .map_err(|_| HostKeyError("there is no unencrypted private key in PEM in it"))?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(pkcs8) => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.secret_pkcs8_der())
                    .map_err(|_| HostKeyError("it is no Ed25519 key"))
            }
            _ => Err(HostKeyError("it is not PKCS#8; `cutover ship key` makes one that is")),
        };
        der.zeroize();
        key.map(Self)
    }

    /// What the receiver has to know: `ed25519:BASE64`.
    pub fn public(&self) -> String {
        format!("ed25519:{}", Base64::encode_string(self.0.public_key().as_ref()))
    }

    /// Signs what a host says of an upload. Returns the value of the header `X-Code-Attestation`
    /// (docs/formats/attestation.md).
    pub fn attest(&self, statement: &Statement<'_>) -> String {
        let signature = Base64::encode_string(self.0.sign(&statement.bytes()).as_ref());
        let Statement { sequence, release, .. } = *statement;
        Attestation { release, sequence, signature: &signature }.header()
    }
}

fn der_pem(der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(Base64::encode_string(der));
    Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *body))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use cutover_core::{
        admission::{CommitHash, EpisodeKey},
        model::Digest,
    };

    use super::*;

    // gate-1
    #[test]
    fn signature_holds_for_exactly_what_was_signed() {
        let (made, pem) = HostKey::generate().unwrap();
        let public = Base64::decode_vec(made.public().strip_prefix("ed25519:").unwrap()).unwrap();
        let commit: CommitHash = "a".repeat(40).parse().unwrap();
        let key = EpisodeKey::new("h", "e").unwrap();
        let said =
            Statement { commit: &commit, key: &key, sha256: Digest::of(b"x"), sequence: 3, release: None };
        for said in [said, Statement { release: Some(Digest::of(b"manifest")), ..said }] {
            let value = HostKey::from_pem(pem.as_bytes()).unwrap().attest(&said);
            let header = Attestation::parse(value.as_bytes()).unwrap();
            assert_eq!((header.sequence, header.release), (3, said.release));
            let signature = Base64::decode_vec(header.signature).unwrap();
            let holds = |statement: Statement<'_>| {
                UnparsedPublicKey::new(&ED25519, &public).verify(&statement.bytes(), &signature).is_ok()
            };
            assert!(holds(said));
            assert!(!holds(Statement { sequence: 4, ..said }));
            assert!(!holds(Statement { sha256: Digest::of(b"y"), ..said }));
            assert!(!holds(Statement { key: &EpisodeKey::new("i", "e").unwrap(), ..said }));
            assert!(!holds(Statement { release: Some(Digest::of(b"another")), ..said }));
        }
    }

    #[test]
    fn keys_are_read_or_refused_without_being_shown() {
        let (key, pem) = HostKey::generate().unwrap();
        assert!(!format!("{key:?}").contains(&pem[60..90]));
        for bad in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(HostKey::from_pem(bad.as_bytes()).is_err());
        }
    }
}
