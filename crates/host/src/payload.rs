//! The one way by which a bundle's bytes reach the engine: from a [`VerifiedBundle`], and from nothing else.

use std::{
    io::{self, Write},
    sync::Arc,
};

use cutover_bundle::{
    ObjectError, ReadAt, VerifiedBundle,
    delta::{DeltaError, Source},
};
use cutover_core::model::{DeltaFile, Digest, Manifest, ObjectEntry, ReleaseRef};

/// A verified release whatever its source. Only [`VerifiedBundle`], [`DeltaPayload`](crate::delta_payload::DeltaPayload) and
/// [`FetchedPayload`](crate::fetched_payload::FetchedPayload) are one, so that trust stays a type.
pub trait Payload: sealed::Sealed + Sync {
    /// The release in it.
    fn release(&self) -> ReleaseRef;

    /// Its manifest.
    fn manifest(&self) -> &Arc<Manifest>;

    /// Writes the exact bytes that were signed.
    ///
    /// # Errors
    /// They cannot be had any longer, or `out` fails; what was written then must be thrown away.
    fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()>;

    /// The signature over them.
    fn signature_bytes(&self) -> &[u8];

    /// Streams one object: decoded and checked to `content`, as stored to `stored`. What was written before an error
    /// must be thrown away.
    ///
    /// # Errors
    /// The object cannot be read, is not what the manifest says, or cannot be written.
    fn copy_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError>;

    /// The patch that makes this object from an installed file, if there is one.
    fn patch(&self, _sha256: Digest) -> Option<&DeltaFile> {
        None
    }

    /// Applies that patch to `base`. What was written before an error must be thrown away.
    ///
    /// # Errors
    /// See [`DeltaError`].
    fn apply_patch(
        &self,
        file: &DeltaFile,
        _base: &Source<'_>,
        _out: &mut dyn Write,
    ) -> Result<(), DeltaError> {
        Err(DeltaError::Unavailable(file.algorithm))
    }

    /// Is told that a patch was of no use.
    fn patch_failed(&self) {}

    /// The objects whose patches must be applied one after the other, in this order.
    fn patch_order(&self) -> Vec<Digest> {
        Vec::new()
    }

    /// Is told that laying down has failed: nothing more is wanted, and whoever waits for an object is to give up.
    fn abandon(&self) {}
}

mod sealed {
    pub trait Sealed {}
}

impl<R> sealed::Sealed for crate::delta_payload::DeltaPayload<R> {}

impl sealed::Sealed for crate::fetched_payload::FetchedPayload {}

impl<R> sealed::Sealed for VerifiedBundle<R> {}

impl<R: ReadAt + Sync> Payload for VerifiedBundle<R> {
    fn release(&self) -> ReleaseRef {
        VerifiedBundle::release(self)
    }

    fn manifest(&self) -> &Arc<Manifest> {
        VerifiedBundle::manifest(self)
    }

    fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()> {
        VerifiedBundle::write_manifest(self, out)
    }

    fn signature_bytes(&self) -> &[u8] {
        VerifiedBundle::signature_bytes(self)
    }

    fn copy_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        VerifiedBundle::copy_object(self, entry, content, stored)
    }
}
