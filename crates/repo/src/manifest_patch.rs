//! Patches between manifests: a client that has one manifest of a package gets the next one in a tenth of the bytes and less.
//!
//! The result is compared with the digest that the index names, as if it had been fetched whole; the signature is over the
//! same bytes.

use std::num::NonZeroUsize;

use cutover_bundle::delta::{
    self, Algorithm, Content, Declared, DeltaError, DeltaLimits, GenerateOptions, Pair,
};

use crate::index::{FileRef, IndexEntry, ManifestPatch};

/// Makes the patch from `old` to `new`; `None` when it does not save half of the bytes.
pub(crate) fn make(old: &[u8], new: &[u8]) -> Option<(ManifestPatch, Vec<u8>)> {
    let options = GenerateOptions { threads: NonZeroUsize::MIN, progress: &|_| {} };
    let patch = delta::generate(Algorithm::ZstdDict, &Pair::new(old, new), &options).ok()?;
    let named = ManifestPatch { from: FileRef::of(old), patch: FileRef::of(&patch) };
    (patch.len() < new.len() / 2).then_some((named, patch))
}

/// Makes the manifest of `entry` from `old`, which is the one that `named` says.
pub(crate) fn apply(
    entry: &IndexEntry,
    named: &ManifestPatch,
    old: &[u8],
    patch: &[u8],
) -> Result<Vec<u8>, DeltaError> {
    let content = |file: &FileRef| Content { size: file.size, sha256: file.sha256 };
    let declared = Declared {
        base: content(&named.from),
        patch: content(&named.patch),
        result: content(&entry.manifest),
    };
    let (old, patch) = (old.to_vec(), patch.to_vec());
    let limits = DeltaLimits::default();
    delta::apply(Algorithm::ZstdDict, &old, &patch, &declared, &limits, Vec::new()).map(|(bytes, _)| bytes)
}
