//! Who signs metadata: keys in files, in tokens, or behind a command.

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RSA_PSS_SHA256,
    },
};
use cutover_bundle::{
    signer::{CertificateChain, Scheme, Signer, SignerError},
    tlog::{KeyKind, VerifierKey},
};
use der::pem::{LineEnding, encode_string};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::Serialize;
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use crate::tuf::{Envelope, NotCanonical, PublicKey, RoleKeys, RoleKind, Signature, canonical, hex};

/// Why metadata could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The private key cannot be read. The message never holds key material.
    #[error("the private key cannot be read: {0}")]
    Key(&'static str),
    /// A key could not be made.
    #[error("a key could not be made")]
    Generate,
    /// The key did not sign.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The keys that are here are not enough for a role.
    #[error("the role `{role}` takes {needed} of its keys, and {found} of them are given")]
    TooFewKeys {
        /// The role.
        role: RoleKind,
        /// How many are given that count.
        found: u64,
        /// How many it takes.
        needed: u64,
    },
    /// What is to be signed has no canonical form.
    #[error(transparent)]
    NotCanonical(#[from] NotCanonical),
}

/// A key that can sign metadata.
pub struct MetadataKey {
    public: PublicKey,
    id: String,
    private: Private,
}

enum Private {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
    Elsewhere(Box<dyn Signer>),
}

impl std::fmt::Debug for MetadataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetadataKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MetadataKey {
    /// Makes a key (ECDSA P-256) and returns it with its private half in PEM (PKCS#8).
    ///
    /// # Errors
    /// [`SigningError::Generate`].
    pub fn generate() -> Result<(Self, Zeroizing<String>), SigningError> {
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| SigningError::Generate)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| SigningError::Generate)?;
        let pem = encode_string("PRIVATE KEY", LineEnding::LF, pkcs8.as_ref())
            .map_err(|_| SigningError::Generate)?;
        let pem = Zeroizing::new(pem);
        Ok((Self::from_pem(pem.as_bytes())?, pem))
    }

    /// Reads an unencrypted PKCS#8 key in PEM: ECDSA P-256 or P-384, Ed25519, or RSA.
    ///
    /// # Errors
    /// [`SigningError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningError> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|_| SigningError::Key("there is no unencrypted PKCS#8 key in PEM in it"))?;
        let key = Self::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        key
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SigningError> {
        let spki = |der: Result<PublicKeyX509Der<'_>, _>| {
            der.map(|der: PublicKeyX509Der<'_>| public_pem(der.as_ref()))
                .map_err(|_: aws_lc_rs::error::Unspecified| SigningError::Key("it has no public half"))
        };
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8) {
            let public = PublicKey::new("ecdsa", "ecdsa-sha2-nistp256", spki(pair.public_key().as_der())?);
            return Ok(Self::new(public, Private::Ecdsa(pair)));
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8) {
            let public = PublicKey::new("ecdsa", "ecdsa-sha2-nistp384", spki(pair.public_key().as_der())?);
            return Ok(Self::new(public, Private::Ecdsa(pair)));
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
            let public = PublicKey::new("ed25519", "ed25519", hex::encode(pair.public_key().as_ref()));
            return Ok(Self::new(public, Private::Ed25519(pair)));
        }
        if let Ok(pair) = RsaKeyPair::from_pkcs8(pkcs8) {
            let public = PublicKey::new("rsa", "rsassa-pss-sha256", spki(pair.public_key().as_der())?);
            return Ok(Self::new(public, Private::Rsa(pair)));
        }
        Err(SigningError::Key("it is neither ECDSA P-256 or P-384, Ed25519 nor RSA"))
    }

    /// Uses a signer of bundles, such as one in a PKCS#11 token, by the key of its certificate. Only the key matters:
    /// the certificate may be self-signed, and its dates are not looked at.
    ///
    /// # Errors
    /// The certificate's key has no form in metadata.
    pub fn from_signer(signer: Box<dyn Signer>) -> Result<Self, SigningError> {
        let public = public_key_of(signer.chain())?;
        Ok(Self::new(public, Private::Elsewhere(signer)))
    }

    /// Makes a key for a log or a witness (Ed25519) and returns it with its private half in PEM (PKCS#8).
    ///
    /// # Errors
    /// [`SigningError::Generate`].
    pub fn generate_ed25519() -> Result<(Self, Zeroizing<String>), SigningError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| SigningError::Generate)?;
        let pkcs8 = pair.to_pkcs8().map_err(|_| SigningError::Generate)?;
        let pem = encode_string("PRIVATE KEY", LineEnding::LF, pkcs8.as_ref());
        let pem = Zeroizing::new(pem.map_err(|_| SigningError::Generate)?);
        Ok((Self::from_pem(pem.as_bytes())?, pem))
    }

    /// By what notes that this key signs are verified.
    ///
    /// # Errors
    /// [`SigningError::Key`]: it is no Ed25519 key, or the name is none.
    pub fn verifier_key(&self, name: &str, kind: KeyKind) -> Result<VerifierKey, SigningError> {
        let (scheme, public) = self.public.identity();
        let public = (scheme == "ed25519").then(|| hex::decode(public)).flatten();
        let public = public.and_then(|public| <[u8; 32]>::try_from(public).ok());
        let public = public.ok_or(SigningError::Key("a log and its witnesses sign with Ed25519"))?;
        VerifierKey::new(name, kind, public)
            .map_err(|_| SigningError::Key("a name has 1 to 256 characters, no white space and no `+`"))
    }

    fn new(public: PublicKey, private: Private) -> Self {
        let id = public.id();
        Self { public, id, private }
    }

    /// The public half, as metadata lists it.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What it is listed under.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Signs bytes as the key's scheme says.
    ///
    /// # Errors
    /// The key, or whoever holds it, does not sign.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let failed = |_| SigningError::Signer(SignerError::Failed);
        let random = SystemRandom::new();
        match &self.private {
            Private::Ecdsa(pair) => {
                pair.sign(&random, message).map(|sig| sig.as_ref().to_vec()).map_err(failed)
            }
            Private::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Private::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            Private::Elsewhere(signer) => Ok(signer.sign(message)?),
        }
    }
}

/// The key of a signer's certificate, as metadata lists it.
///
/// # Errors
/// It has no form in metadata.
pub fn public_key_of(chain: &CertificateChain) -> Result<PublicKey, SigningError> {
    let spki = chain.public_key_der();
    Ok(match chain.scheme() {
        Scheme::EcdsaP256Sha256 => PublicKey::new("ecdsa", "ecdsa-sha2-nistp256", public_pem(spki)),
        Scheme::EcdsaP384Sha384 => PublicKey::new("ecdsa", "ecdsa-sha2-nistp384", public_pem(spki)),
        Scheme::RsaPkcs1Sha256 => PublicKey::new("rsa", "rsa-pkcs1v15-sha256", public_pem(spki)),
        Scheme::Ed25519 => {
            // RFC 8410: the key is the last 32 bytes of its SubjectPublicKeyInfo.
            let key = spki.last_chunk::<32>().ok_or(SigningError::Key("it is no Ed25519 key"))?;
            PublicKey::new("ed25519", "ed25519", hex::encode(key))
        }
    })
}

fn public_pem(spki: &[u8]) -> String {
    encode_string("PUBLIC KEY", LineEnding::LF, spki).expect("an encoded key has a length that PEM can hold")
}

/// The keys of `given` that count for a role, each once.
pub(crate) fn keys_of<'k>(role: &RoleKeys, given: &'k [MetadataKey]) -> Vec<&'k MetadataKey> {
    let mut keys: Vec<&MetadataKey> = Vec::new();
    for key in given {
        if role.keyids.contains(&key.id) && !keys.iter().any(|known| known.id == key.id) {
            keys.push(key);
        }
    }
    keys
}

/// Signs metadata with every key of `given` that counts for one of `roles`, each of which must be satisfied; returns the
/// file's bytes.
///
/// # Errors
/// [`SigningError::TooFewKeys`], or a key does not sign.
pub(crate) fn sign_metadata(
    kind: RoleKind,
    body: &impl Serialize,
    roles: &[&RoleKeys],
    given: &[MetadataKey],
) -> Result<Vec<u8>, SigningError> {
    let mut signed = serde_json::to_value(body).expect("metadata always serialises");
    if let Value::Object(members) = &mut signed {
        members.insert("_type".to_owned(), kind.name().into());
    }
    let mut signing: Vec<&MetadataKey> = Vec::new();
    for role in roles {
        let keys = keys_of(role, given);
        let found = keys.len() as u64;
        if found < role.threshold {
            return Err(SigningError::TooFewKeys { role: kind, found, needed: role.threshold });
        }
        for key in keys {
            if !signing.iter().any(|known| known.id == key.id) {
                signing.push(key);
            }
        }
    }
    let message = canonical(&signed)?;
    let signatures = signing
        .into_iter()
        .map(|key| Ok(Signature { keyid: key.id.clone(), sig: hex::encode(&key.sign(&message)?) }))
        .collect::<Result<Vec<_>, SigningError>>()?;
    let mut bytes = serde_json::to_vec(&Envelope { signed, signatures }).expect("metadata always serialises");
    bytes.push(b'\n');
    Ok(bytes)
}
