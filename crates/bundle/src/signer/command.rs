//! A signer somewhere else: a command, a service, a person with a card.

use std::io;

use super::{CertificateChain, Signer, SignerError};

/// Signs by asking a closure, which gets the bytes to be signed and returns the signature: ECDSA as DER, RSA and
/// Ed25519 as they are. Starting a process is the closure's business: this crate starts none.
pub struct CommandSigner<F> {
    chain: CertificateChain,
    ask: F,
}

impl<F: Fn(&[u8]) -> io::Result<Vec<u8>>> CommandSigner<F> {
    /// Signs for `chain` by calling `ask`.
    pub fn new(chain: CertificateChain, ask: F) -> Self {
        Self { chain, ask }
    }
}

impl<F: Fn(&[u8]) -> io::Result<Vec<u8>>> Signer for CommandSigner<F> {
    fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        (self.ask)(message).map_err(SignerError::Command)
    }
}
