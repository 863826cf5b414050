//! Bounds on everything a bundle may ask for, checked before memory is allocated.

use cutover_core::model::ManifestLimits;

/// Bounds on a bundle; the defaults are in [`Limits::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bounds on the manifest.
    pub manifest: ManifestLimits,
    /// Most bytes of signature.
    pub signature_bytes_max: usize,
    /// Most certificates in one signature.
    pub certificates_max: usize,
    /// Most signers of one signature.
    pub signers_max: usize,
}

impl Default for Limits {
    /// [`ManifestLimits::default`], 64 KiB of signature, 16 certificates, 8 signers.
    fn default() -> Self {
        Self {
            manifest: ManifestLimits::default(),
            signature_bytes_max: 64 << 10,
            certificates_max: 16,
            signers_max: 8,
        }
    }
}
