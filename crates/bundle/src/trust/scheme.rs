//! The algorithms that are accepted, in one place: keys, digests, and signatures by both.

use const_oid::db::{
    rfc5912::{
        ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_EC_PUBLIC_KEY, ID_SHA_256, ID_SHA_384,
        ID_SHA_512, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SHA_256_WITH_RSA_ENCRYPTION,
        SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
    },
    rfc8410::ID_ED_25519,
};
use der::{
    Decode, Reader, SliceReader,
    asn1::{Any, ObjectIdentifier, UintRef},
};
use rustls_pki_types::SignatureVerificationAlgorithm;
use webpki::aws_lc_rs as algorithms;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// The smallest RSA key, in bits.
const RSA_BITS_MIN: usize = 3072;
/// The largest RSA key, in bits: larger ones only cost time.
const RSA_BITS_MAX: usize = 8192;

/// The signatures by which certificates and revocation lists may be signed. Keys are checked by [`Key::of`] first.
pub(crate) static CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::ED25519,
];

/// The kind of an accepted public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    P256,
    P384,
    Rsa,
    Ed25519,
}

impl Key {
    /// Names the kind of `key`; the error describes a key that is too weak or unknown.
    pub(crate) fn of(key: &SubjectPublicKeyInfoOwned) -> Result<Self, String> {
        let algorithm = &key.algorithm;
        match algorithm.oid {
            ID_EC_PUBLIC_KEY => match algorithm.parameters.as_ref().map(Any::decode_as::<ObjectIdentifier>) {
                Some(Ok(SECP_256_R_1)) => Ok(Self::P256),
                Some(Ok(SECP_384_R_1)) => Ok(Self::P384),
                Some(Ok(curve)) => Err(format!("elliptic curve {}", name(curve))),
                Some(Err(_)) | None => Err("an elliptic curve that is not named".to_owned()),
            },
            RSA_ENCRYPTION if is_null(algorithm) => match rsa_bits(key) {
                Some(bits) if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) => Ok(Self::Rsa),
                Some(bits) => Err(format!("RSA with {bits} bits (needs {RSA_BITS_MIN} to {RSA_BITS_MAX})")),
                None => Err("RSA key that cannot be read".to_owned()),
            },
            ID_ED_25519 if algorithm.parameters.is_none() => Ok(Self::Ed25519),
            oid => Err(format!("algorithm {}", name(oid))),
        }
    }

    /// The digest that our own signatures by such a key use. For Ed25519 it is RFC 8419's.
    pub(crate) fn digest(self) -> DigestAlgorithm {
        match self {
            Self::P256 | Self::Rsa => DigestAlgorithm::Sha256,
            Self::P384 => DigestAlgorithm::Sha384,
            Self::Ed25519 => DigestAlgorithm::Sha512,
        }
    }
}

fn is_null(algorithm: &AlgorithmIdentifierOwned) -> bool {
    algorithm.parameters.as_ref().is_some_and(Any::is_null)
}

/// The size of an RSA modulus in bits.
fn rsa_bits(key: &SubjectPublicKeyInfoOwned) -> Option<usize> {
    let bytes = key.subject_public_key.as_bytes()?;
    let read = || -> der::Result<usize> {
        let mut reader = SliceReader::new(bytes)?;
        let bits = reader.sequence(|reader| {
            let modulus = UintRef::decode(reader)?;
            UintRef::decode(reader)?;
            let first = modulus.as_bytes().first().copied().unwrap_or_default();
            Ok::<_, der::Error>((modulus.as_bytes().len() * 8).saturating_sub(first.leading_zeros() as usize))
        })?;
        reader.finish()?;
        Ok(bits)
    };
    read().ok()
}

/// An accepted digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DigestAlgorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl DigestAlgorithm {
    /// Reads an identifier; parameters are absent or NULL (RFC 5754, section 2). The error names what was found.
    pub(crate) fn of(algorithm: &AlgorithmIdentifierOwned) -> Result<Self, String> {
        match algorithm.oid {
            _ if !(algorithm.parameters.is_none() || is_null(algorithm)) => {
                Err(format!("{} with parameters", name(algorithm.oid)))
            }
            ID_SHA_256 => Ok(Self::Sha256),
            ID_SHA_384 => Ok(Self::Sha384),
            ID_SHA_512 => Ok(Self::Sha512),
            oid => Err(name(oid)),
        }
    }

    pub(crate) fn identifier(self) -> AlgorithmIdentifierOwned {
        let oid = match self {
            Self::Sha256 => ID_SHA_256,
            Self::Sha384 => ID_SHA_384,
            Self::Sha512 => ID_SHA_512,
        };
        AlgorithmIdentifierOwned { oid, parameters: None }
    }

    pub(crate) fn digest(self, bytes: &[u8]) -> aws_lc_rs::digest::Digest {
        let algorithm = match self {
            Self::Sha256 => &aws_lc_rs::digest::SHA256,
            Self::Sha384 => &aws_lc_rs::digest::SHA384,
            Self::Sha512 => &aws_lc_rs::digest::SHA512,
        };
        aws_lc_rs::digest::digest(algorithm, bytes)
    }
}

/// The identifier of a CMS signature by `key` over a message hashed with `digest` (RFC 5753, 5754, 8419).
pub(crate) fn signature_identifier(key: Key, digest: DigestAlgorithm) -> AlgorithmIdentifierOwned {
    let (oid, parameters) = match (key, digest) {
        (Key::P256 | Key::P384, DigestAlgorithm::Sha256) => (ECDSA_WITH_SHA_256, None),
        (Key::P256 | Key::P384, DigestAlgorithm::Sha384) => (ECDSA_WITH_SHA_384, None),
        (Key::P256 | Key::P384, DigestAlgorithm::Sha512) => (ECDSA_WITH_SHA_512, None),
        (Key::Rsa, DigestAlgorithm::Sha256) => (SHA_256_WITH_RSA_ENCRYPTION, Some(Any::null())),
        (Key::Rsa, DigestAlgorithm::Sha384) => (SHA_384_WITH_RSA_ENCRYPTION, Some(Any::null())),
        (Key::Rsa, DigestAlgorithm::Sha512) => (SHA_512_WITH_RSA_ENCRYPTION, Some(Any::null())),
        (Key::Ed25519, _) => (ID_ED_25519, None),
    };
    AlgorithmIdentifierOwned { oid, parameters }
}

/// What a signer's algorithm identifiers say.
pub(crate) enum SignatureCheck {
    /// They fit the key: check with this.
    With(&'static dyn SignatureVerificationAlgorithm),
    /// Each is accepted but they do not belong together.
    Mismatch,
    /// The signature algorithm is not accepted; its name.
    Weak(String),
}

/// Chooses the check for a signature that says it was made by `key` with `signature` over a `digest` hash.
pub(crate) fn signature_check(
    key: Key,
    digest: DigestAlgorithm,
    signature: &AlgorithmIdentifierOwned,
) -> SignatureCheck {
    // OpenSSL names RSA signatures by the key's identifier (RFC 5754, section 3.2 allows both).
    let plain_rsa = AlgorithmIdentifierOwned { oid: RSA_ENCRYPTION, parameters: Some(Any::null()) };
    let fits =
        *signature == signature_identifier(key, digest) || (key == Key::Rsa && *signature == plain_rsa);
    if !fits {
        return match signature.oid {
            ECDSA_WITH_SHA_256
            | ECDSA_WITH_SHA_384
            | ECDSA_WITH_SHA_512
            | SHA_256_WITH_RSA_ENCRYPTION
            | SHA_384_WITH_RSA_ENCRYPTION
            | SHA_512_WITH_RSA_ENCRYPTION
            | RSA_ENCRYPTION
            | ID_ED_25519 => SignatureCheck::Mismatch,
            oid => SignatureCheck::Weak(name(oid)),
        };
    }
    match (key, digest) {
        (Key::P256, DigestAlgorithm::Sha256) => SignatureCheck::With(algorithms::ECDSA_P256_SHA256),
        (Key::P256, DigestAlgorithm::Sha384) => SignatureCheck::With(algorithms::ECDSA_P256_SHA384),
        (Key::P256, DigestAlgorithm::Sha512) => SignatureCheck::With(algorithms::ECDSA_P256_SHA512),
        (Key::P384, DigestAlgorithm::Sha256) => SignatureCheck::With(algorithms::ECDSA_P384_SHA256),
        (Key::P384, DigestAlgorithm::Sha384) => SignatureCheck::With(algorithms::ECDSA_P384_SHA384),
        (Key::P384, DigestAlgorithm::Sha512) => SignatureCheck::With(algorithms::ECDSA_P384_SHA512),
        (Key::Rsa, DigestAlgorithm::Sha256) => SignatureCheck::With(algorithms::RSA_PKCS1_2048_8192_SHA256),
        (Key::Rsa, DigestAlgorithm::Sha384) => SignatureCheck::With(algorithms::RSA_PKCS1_2048_8192_SHA384),
        (Key::Rsa, DigestAlgorithm::Sha512) => SignatureCheck::With(algorithms::RSA_PKCS1_2048_8192_SHA512),
        // RFC 8419, section 2.3: Ed25519 goes with SHA-512.
        (Key::Ed25519, DigestAlgorithm::Sha512) => SignatureCheck::With(algorithms::ED25519),
        (Key::Ed25519, DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384) => SignatureCheck::Mismatch,
    }
}

/// Whether a certificate may be signed with `algorithm`; the error names it.
pub(crate) fn check_certificate_signature(algorithm: &AlgorithmIdentifierOwned) -> Result<(), String> {
    match algorithm.oid {
        ECDSA_WITH_SHA_256
        | ECDSA_WITH_SHA_384
        | ECDSA_WITH_SHA_512
        | SHA_256_WITH_RSA_ENCRYPTION
        | SHA_384_WITH_RSA_ENCRYPTION
        | SHA_512_WITH_RSA_ENCRYPTION
        | ID_ED_25519 => Ok(()),
        oid => Err(name(oid)),
    }
}

/// The common name of an algorithm, or its identifier when it has none.
pub(crate) fn name(oid: ObjectIdentifier) -> String {
    const_oid::db::DB.by_oid(&oid).map_or_else(|| oid.to_string(), |name| format!("{name} ({oid})"))
}
