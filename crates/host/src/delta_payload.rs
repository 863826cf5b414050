//! A verified delta as the source of an update: patches where the base is at hand, contents in full where they are
//! carried, and a full bundle of the same release, if one was given, for everything that does not work out.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cutover_bundle::{
    DeltaPayloadError, ObjectError, ReadAt, VerifiedBundle, VerifiedDelta,
    delta::{DeltaError, DeltaLimits, Source},
};
use cutover_core::model::{DeltaFile, Digest, Manifest, ObjectEntry, ReleaseRef};

use crate::{delta_room::Room, payload::Payload};

/// A delta, and the full bundle to fall back to.
pub struct DeltaPayload<R> {
    delta: VerifiedDelta<R>,
    full: Option<VerifiedBundle<R>>,
    room: Room,
    patched: AtomicU64,
    fetched: AtomicU64,
    failed: AtomicU64,
}

/// How the objects of an update by delta came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaCounts {
    /// Made by a patch.
    pub patched: u64,
    /// Taken from the full bundle.
    pub from_full: u64,
    /// Patches that did not work out: a damaged or missing base, a damaged patch.
    pub patches_failed: u64,
}

/// The full bundle that was given is of another release.
#[derive(Debug, thiserror::Error)]
#[error("the full bundle is of {full}, and the delta leads to {delta}, which is another release")]
pub struct OtherRelease {
    /// The bundle's release.
    pub full: ReleaseRef,
    /// The delta's.
    pub delta: ReleaseRef,
}

impl<R> DeltaPayload<R> {
    /// Puts a delta and its full bundle together. The limit of `limits` on memory is that of all patches together which are
    /// applied at the same time.
    ///
    /// # Errors
    /// [`OtherRelease`] unless both make the very same release.
    pub fn new(
        delta: VerifiedDelta<R>,
        full: Option<VerifiedBundle<R>>,
        limits: DeltaLimits,
    ) -> Result<Self, OtherRelease> {
        let wanted = delta.verified_manifest().release();
        if let Some(other) = full.as_ref().map(VerifiedBundle::release).filter(|other| *other != wanted) {
            return Err(OtherRelease { full: other, delta: wanted });
        }
        let zero = AtomicU64::default;
        Ok(Self { delta, full, room: Room::new(limits), patched: zero(), fetched: zero(), failed: zero() })
    }

    /// The delta.
    pub fn delta(&self) -> &VerifiedDelta<R> {
        &self.delta
    }

    /// Whether there is a full bundle to fall back to.
    pub fn has_full(&self) -> bool {
        self.full.is_some()
    }

    /// How objects were made so far.
    pub fn counts(&self) -> DeltaCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeltaCounts {
            patched: count(&self.patched),
            from_full: count(&self.fetched),
            patches_failed: count(&self.failed),
        }
    }
}

impl<R: ReadAt + Sync> DeltaPayload<R> {
    /// Whether the delta has this object in full and undamaged.
    fn carries(&self, sha256: Digest) -> bool {
        match self.delta.copy_object(sha256, &mut io::sink(), &mut io::sink()) {
            Ok(()) => true,
            Err(ObjectError::NotCarried(_)) => false,
            Err(error) => {
                tracing::warn!(%sha256, %error, "what the delta carries in full is of no use");
                false
            }
        }
    }

    /// Checks what the update cannot do without: the full bundle if it was given, else the delta.
    ///
    /// # Errors
    /// The first byte that is not as declared.
    pub fn check_payload(&self) -> Result<(), DeltaPayloadError> {
        match &self.full {
            Some(full) => Ok(full.check_objects()?),
            None => self.delta.check_payload(),
        }
    }
}

impl<R: ReadAt + Sync> Payload for DeltaPayload<R> {
    fn release(&self) -> ReleaseRef {
        self.delta.verified_manifest().release()
    }

    fn manifest(&self) -> &Arc<Manifest> {
        self.delta.verified_manifest().manifest()
    }

    fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.delta.manifest_bytes())
    }

    fn signature_bytes(&self) -> &[u8] {
        self.delta.verified_manifest().signature_bytes()
    }

    fn copy_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        // What was written cannot be taken back, so where there is something to fall back to it is looked at first.
        match &self.full {
            Some(full) if !self.carries(entry.sha256) => {
                full.copy_object(entry, content, stored)?;
                self.fetched.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Some(_) | None => self.delta.copy_object(entry.sha256, content, stored),
        }
    }

    fn patch(&self, sha256: Digest) -> Option<&DeltaFile> {
        self.delta.patch(sha256)
    }

    fn apply_patch(
        &self,
        file: &DeltaFile,
        base: &Source<'_>,
        out: &mut dyn Write,
    ) -> Result<(), DeltaError> {
        self.room.apply(&self.delta, file, base, out)?;
        self.patched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn patch_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn patch_order(&self) -> Vec<Digest> {
        self.delta.patch_order()
    }
}
