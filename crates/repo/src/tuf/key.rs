//! Keys of metadata: their public halves as root and delegating roles list them, and how a signature is checked.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use cutover_core::model::Digest;
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{canonical::canonical, hex};

/// A public key as metadata lists it (TUF specification 1.0, section 4.2.2). Key types and schemes that are unknown
/// here are read and verify nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `ecdsa`, `ed25519` or `rsa`.
    pub keytype: String,
    /// How it signs, such as `ecdsa-sha2-nistp256`.
    pub scheme: String,
    /// The key itself.
    pub keyval: KeyValue,
    /// Whatever else stands there.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// The value of a [`PublicKey`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// PEM, or hexadecimal for Ed25519.
    pub public: String,
    /// Whatever else stands there.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl PublicKey {
    /// A key of a known kind.
    pub(crate) fn new(keytype: &str, scheme: &str, public: String) -> Self {
        Self {
            keytype: keytype.to_owned(),
            scheme: scheme.to_owned(),
            keyval: KeyValue { public, rest: BTreeMap::new() },
            rest: BTreeMap::new(),
        }
    }

    /// What the key is listed under: SHA-256 of its canonical form, in hexadecimal.
    pub fn id(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        // Fields that were read from JSON may hold a fraction; then the key is one nobody can name.
        canonical(&value).map(|bytes| Digest::of(&bytes).to_string()).unwrap_or_default()
    }

    /// What tells this key from others, whatever it is listed under.
    pub(crate) fn identity(&self) -> (&str, &str) {
        (&self.scheme, self.keyval.public.trim())
    }

    /// Whether `signature` (hexadecimal) is one of this key over `message`. Never fails: what cannot be read or is of an
    /// unknown kind is no signature.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm =
            match (self.keytype.as_str(), self.scheme.as_str()) {
                ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => &ECDSA_P256_SHA256_ASN1,
                ("ecdsa" | "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384") => &ECDSA_P384_SHA384_ASN1,
                ("ed25519", "ed25519") => &ED25519,
                ("rsa", "rsassa-pss-sha256") => &RSA_PSS_2048_8192_SHA256,
                ("rsa", "rsa-pkcs1v15-sha256") => &RSA_PKCS1_2048_8192_SHA256,
                _ => return false,
            };
        let key = if self.keytype == "ed25519" {
            hex::decode(&self.keyval.public)
        } else {
            SubjectPublicKeyInfoDer::from_pem_slice(self.keyval.public.as_bytes())
                .ok()
                .map(|der| der.as_ref().to_vec())
        };
        let (Some(key), Some(signature)) = (key, hex::decode(signature)) else { return false };
        UnparsedPublicKey::new(algorithm, key).verify(message, &signature).is_ok()
    }
}
