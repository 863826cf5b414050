//! Signers: where a private key lives and how it is asked for a signature.
//!
//! A signer gets the bytes to be signed, never the manifest's path, and returns one signature. Keys come as bytes, by a
//! PKCS#11 URI, or stay behind a closure that asks somebody else.

mod command;
mod file;
mod pkcs11;

use rustls_pki_types::{CertificateDer, pem::PemObject as _};

pub use command::CommandSigner;
pub use file::FileSigner;
pub use pkcs11::{Pin, Pkcs11Signer, Pkcs11Uri};

use crate::trust::{Certificate, TrustError};

/// Somebody who can sign: a certificate and access to its key.
pub trait Signer {
    /// The signer's certificate and the authorities between it and the root.
    fn chain(&self) -> &CertificateChain;

    /// Signs `message` as the chain's [`CertificateChain::scheme`] says.
    ///
    /// # Errors
    /// See [`SignerError`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// Why a signer cannot be used or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The certificates cannot be read.
    #[error("the signer's certificates cannot be read: {0}")]
    Certificates(String),
    /// A certificate is not usable.
    #[error(transparent)]
    Certificate(#[from] TrustError),
    /// The private key cannot be read. The message never holds key material.
    #[error("the private key cannot be read: {0}")]
    Key(&'static str),
    /// The PKCS#11 URI cannot be read.
    #[error("the PKCS#11 URI cannot be used: {0}")]
    Uri(String),
    /// The token, or its module, failed.
    #[error("the PKCS#11 token failed to {action}: {reason}")]
    Token {
        /// What it was asked to do.
        action: &'static str,
        /// What it answered.
        reason: String,
    },
    /// The external command failed.
    #[error("the signing command failed")]
    Command(#[source] std::io::Error),
    /// The key refused to sign.
    #[error("the private key could not sign")]
    Failed,
}

/// How a signer signs a message; follows from its certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// ECDSA on P-256 over SHA-256, as DER.
    EcdsaP256Sha256,
    /// ECDSA on P-384 over SHA-384, as DER.
    EcdsaP384Sha384,
    /// RSA PKCS#1 v1.5 over SHA-256.
    RsaPkcs1Sha256,
    /// Ed25519 over the message itself.
    Ed25519,
}

impl Scheme {
    /// A word for commands and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::RsaPkcs1Sha256 => "rsa-pkcs1-sha256",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// A signer's certificate, followed by the authorities that issued it, without the root: whoever verifies has that.
#[derive(Clone, Debug)]
pub struct CertificateChain {
    leaf: Certificate,
    authorities: Vec<Certificate>,
}

impl CertificateChain {
    /// Reads certificates in PEM, the signer's first. Self-issued ones after it (roots) are left out.
    ///
    /// # Errors
    /// [`SignerError::Certificates`] when there is none, [`SignerError::Certificate`] when one is not accepted.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignerError> {
        let ders = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| SignerError::Certificates(error.to_string()))?;
        Self::from_ders(&ders)
    }

    /// As [`CertificateChain::from_pem`], from DER.
    ///
    /// # Errors
    /// As [`CertificateChain::from_pem`].
    pub fn from_ders(ders: &[impl AsRef<[u8]>]) -> Result<Self, SignerError> {
        let mut certificates = Vec::new();
        for der in ders {
            certificates.push(Certificate::parse(der.as_ref())?);
        }
        let mut certificates = certificates.into_iter();
        let leaf = certificates
            .next()
            .ok_or_else(|| SignerError::Certificates("there is no certificate in PEM".to_owned()))?;
        let authorities = certificates.filter(|certificate| !certificate.is_self_issued()).collect();
        Ok(Self { leaf, authorities })
    }

    /// Whom the signer's certificate names, escaped for display.
    pub fn subject(&self) -> &str {
        &self.leaf.subject
    }

    /// How the signer signs.
    pub fn scheme(&self) -> Scheme {
        use crate::trust::Key;
        match self.leaf.key {
            Key::P256 => Scheme::EcdsaP256Sha256,
            Key::P384 => Scheme::EcdsaP384Sha384,
            Key::Rsa => Scheme::RsaPkcs1Sha256,
            Key::Ed25519 => Scheme::Ed25519,
        }
    }

    /// The signer's public key: the DER of its SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).
    pub fn public_key_der(&self) -> &[u8] {
        &self.leaf.key_der
    }

    pub(crate) fn leaf(&self) -> &Certificate {
        &self.leaf
    }

    pub(crate) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        std::iter::once(&self.leaf).chain(&self.authorities)
    }
}
