//! A signer whose private key was read from a file.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        RSA_PKCS1_SHA256,
    },
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroize as _;

use super::{CertificateChain, Scheme, Signer, SignerError};

/// Signs with a key in memory.
pub struct FileSigner {
    chain: CertificateChain,
    key: Key,
}

enum Key {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl FileSigner {
    /// Reads an unencrypted PKCS#8 key in PEM, which must be of the kind that `chain` is for.
    ///
    /// # Errors
    /// [`SignerError::Key`].
    pub fn from_pem(key_pem: &[u8], chain: CertificateChain) -> Result<Self, SignerError> {
        const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
        if key_pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
            return Err(SignerError::Key(
                "it is encrypted; decrypt it with `openssl pkcs8`, or keep it in a PKCS#11 token",
            ));
        }
        let mut der = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|_| SignerError::Key("there is no private key in PEM in it"))?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(pkcs8) => read(pkcs8.secret_pkcs8_der(), chain.scheme()),
            _ => Err(SignerError::Key("it is not PKCS#8; convert it with `openssl pkcs8 -topk8 -nocrypt`")),
        };
        der.zeroize();
        Ok(Self { chain, key: key? })
    }
}

fn read(pkcs8: &[u8], scheme: Scheme) -> Result<Key, SignerError> {
    let other = |_| SignerError::Key("it is not of the kind that the certificate is for");
    match scheme {
        Scheme::EcdsaP256Sha256 => {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map(Key::Ecdsa).map_err(other)
        }
        Scheme::EcdsaP384Sha384 => {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8).map(Key::Ecdsa).map_err(other)
        }
        Scheme::RsaPkcs1Sha256 => RsaKeyPair::from_pkcs8(pkcs8).map(Key::Rsa).map_err(other),
        Scheme::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map(Key::Ed25519).map_err(other),
    }
}

impl Signer for FileSigner {
    fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Ecdsa(key) => key
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SignerError::Failed),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| SignerError::Failed)?;
                Ok(signature)
            }
            Key::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}
