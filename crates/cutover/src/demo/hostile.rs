//! Bundles that no honest program writes: they show that this one refuses them.

use std::path::Path;

use cutover_bundle::{
    HEADER_BYTES, MAGIC,
    signer::{CertificateChain, FileSigner},
};
use cutover_core::model::Instant;

use crate::{exit::Exit, failure::Failure, files};

/// A bundle with one bit of its manifest flipped.
///
/// # Errors
/// The bundle cannot be read.
pub(super) fn tampered(bundle: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = files::read("the bundle", bundle)?;
    let (manifest_bytes, _) = lengths(&bytes)?;
    let middle = HEADER_BYTES + manifest_bytes / 2;
    bytes[middle] ^= 1;
    Ok(bytes)
}

/// A bundle whose manifest puts the file `from` at `to`, with a signature that holds: what a compromised or careless
/// signer would make. The manifest is edited as text, since no part of this program would write it.
///
/// # Errors
/// The bundle or the keys cannot be read.
pub(super) fn signed_with_path(
    bundle: &Path,
    pki: &Path,
    from: &str,
    to: &str,
    now: Instant,
) -> Result<Vec<u8>, Failure> {
    let bytes = files::read("the bundle", bundle)?;
    let (manifest_bytes, signature_bytes) = lengths(&bytes)?;
    let (manifest, rest) = bytes[HEADER_BYTES..].split_at(manifest_bytes);
    let manifest = String::from_utf8_lossy(manifest).replace(&format!("\"{from}\""), &format!("\"{to}\""));
    if !manifest.contains(to) {
        return Err(Failure::new(Exit::Failed, format!("the demo's release has no file `{from}`")));
    }
    let chain = CertificateChain::from_pem(&files::read("the certificate", &pki.join("signer.pem"))?)?;
    let signer = FileSigner::from_pem(&files::read("the private key", &pki.join("signer.key"))?, chain)?;
    let signature = cutover_bundle::sign_manifest(manifest.as_bytes(), &[&signer], now)?;
    let length = |part: &[u8]| u32::try_from(part.len()).expect("the demo's bundles are small").to_be_bytes();
    let mut hostile = MAGIC.to_vec();
    hostile.extend(length(manifest.as_bytes()));
    hostile.extend(length(&signature));
    hostile.extend(manifest.as_bytes());
    hostile.extend(&signature);
    hostile.extend(&rest[signature_bytes..]);
    Ok(hostile)
}

/// The lengths of manifest and signature.
fn lengths(bundle: &[u8]) -> Result<(usize, usize), Failure> {
    let length = |at: usize| {
        let bytes = bundle.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    match (length(8), length(12)) {
        (Some(manifest), Some(signature)) if HEADER_BYTES + manifest + signature <= bundle.len() => {
            Ok((manifest, signature))
        }
        _ => Err(Failure::new(Exit::Failed, "the demo's own bundle is cut off")),
    }
}
