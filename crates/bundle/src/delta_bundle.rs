//! The delta bundle: how an installed release becomes the next one, in one signed file (`docs/formats/delta.md`).
//!
//! It carries the next release's manifest with its signature, exactly as the full bundle has them, and a delta manifest
//! with a signature of its own; then contents in full and patches. [`DeltaBundle::verify`] checks both signatures before
//! either manifest is parsed. What it makes is a [`VerifiedManifest`] like any other: the release that comes out is the
//! same, whichever way its bytes came.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use cutover_core::model::{
    DeltaFile, DeltaManifest, DeltaManifestError, Digest, FileEntry, Instant, Manifest, ManifestError,
    ObjectEntry, SafePath,
};

use crate::{
    anchor::TrustAnchor,
    container::{BundleError, ContainerError, VerifiedManifest, verify_detached},
    delta::{self, Applied, Content, Declared, DeltaError, DeltaLimits, Part, Source},
    limits::Limits,
    object::{self, ObjectError},
    read_at::{RangeReader, ReadAt, fill},
    signer::Signer,
    trust::{self, RevocationLists, SignedBy, TrustError},
    write::WriteError,
};

/// The first eight bytes of a delta bundle; the last of them is the version of the container.
pub const DELTA_MAGIC: [u8; 8] = *b"CUTDELT\x01";
/// Bytes before the first manifest: the magic and four big-endian `u32` lengths.
const HEADER_BYTES: usize = 24;
/// The four parts behind the header, in their order.
const PARTS: [&str; 4] = ["manifest", "signature", "delta manifest", "delta signature"];

/// A delta bundle whose header was read and of which nothing is believed yet.
#[derive(Debug)]
pub struct DeltaBundle<R> {
    source: R,
    limits: Limits,
    parts: [Vec<u8>; PARTS.len()],
    payload_offset: u64,
    payload_bytes: u64,
}

impl<R: ReadAt> DeltaBundle<R> {
    /// Whether `source` starts as a delta bundle does, of whatever version.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_one(source: &R) -> io::Result<bool> {
        let mut magic = [0; DELTA_MAGIC.len() - 1];
        let read = fill(&mut RangeReader::new(source, 0, magic.len() as u64), &mut magic)?;
        Ok(read == magic.len() && magic == DELTA_MAGIC[..magic.len()])
    }

    /// Reads the header and both manifests with their signatures; parses none of them.
    ///
    /// # Errors
    /// See [`ContainerError`]. No more is allocated than the limits allow and the source holds.
    pub fn open(source: R, limits: &Limits) -> Result<Self, ContainerError> {
        let actual = source.size()?;
        let mut header = [0; HEADER_BYTES];
        let read = fill(&mut RangeReader::new(&source, 0, HEADER_BYTES as u64), &mut header)?;
        let version = DELTA_MAGIC.len() - 1;
        if read <= version || header[..version] != DELTA_MAGIC[..version] {
            return Err(ContainerError::NotABundle);
        }
        if header[version] != DELTA_MAGIC[version] {
            return Err(ContainerError::Version(header[version]));
        }
        if read < HEADER_BYTES {
            return Err(ContainerError::Truncated { needed: HEADER_BYTES as u64, actual });
        }
        let mut lengths = [0usize; PARTS.len()];
        for (index, part) in PARTS.into_iter().enumerate() {
            let bytes = header[8 + 4 * index..].first_chunk::<4>().copied().unwrap_or_default();
            let limit = if index % 2 == 0 { limits.manifest.bytes_max } else { limits.signature_bytes_max };
            let length = u32::from_be_bytes(bytes);
            lengths[index] = usize::try_from(length)
                .ok()
                .filter(|length| *length <= limit)
                .ok_or(ContainerError::TooLarge { part, actual: u64::from(length), limit: limit as u64 })?;
        }
        let payload_offset = HEADER_BYTES as u64 + lengths.iter().map(|length| *length as u64).sum::<u64>();
        let payload_bytes = actual
            .checked_sub(payload_offset)
            .ok_or(ContainerError::Truncated { needed: payload_offset, actual })?;
        let mut at = HEADER_BYTES as u64;
        let mut parts: [Vec<u8>; PARTS.len()] = Default::default();
        for (part, length) in parts.iter_mut().zip(lengths) {
            *part = vec![0; length];
            let read = fill(&mut RangeReader::new(&source, at, length as u64), part)?;
            if read < length {
                let actual = at + read as u64;
                return Err(ContainerError::Truncated { needed: payload_offset, actual });
            }
            at += length as u64;
        }
        Ok(Self { source, limits: *limits, parts, payload_offset, payload_bytes })
    }

    /// What the delta bundle claims about itself, for display only.
    pub fn inspect_untrusted(&self) -> UntrustedDeltaView {
        let [manifest, _, delta, signature] = &self.parts;
        UntrustedDeltaView {
            claimed_delta: DeltaManifest::parse(delta, &self.limits.manifest),
            claimed_manifest: Manifest::parse(manifest, &self.limits.manifest),
            claimed_signers: trust::claimed_signers(signature, &self.limits),
            manifest_sha256: Digest::of(manifest),
            payload_bytes: self.payload_bytes,
        }
    }

    /// The bytes of the delta manifest. Unverified.
    pub fn untrusted_delta_bytes(&self) -> &[u8] {
        &self.parts[2]
    }

    /// Signs the release's manifest and the delta manifest with every signer in `signers`, replacing both signatures, and
    /// writes the bundle.
    ///
    /// # Errors
    /// [`WriteError::Delta`] or [`WriteError::PayloadSize`] before a signer is asked, so that no broken bundle is signed;
    /// [`WriteError::Sign`], or a failed read or write.
    pub fn sign(&self, signers: &[&dyn Signer], now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        let delta = self.signable()?;
        let sign = |bytes: &[u8]| trust::sign_manifest(bytes, signers, now);
        self.write_with(&delta, &sign(&self.parts[0])?, &sign(&self.parts[2])?, out)
    }

    /// Adds `signer` to both signatures and writes the bundle, for anchors with a threshold.
    ///
    /// # Errors
    /// As [`DeltaBundle::sign`]; the present signatures must be well-formed.
    pub fn cosign(&self, signer: &dyn Signer, now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        let delta = self.signable()?;
        let [manifest, signature, delta_bytes, delta_signature] = &self.parts;
        let add =
            |bytes: &[u8], present: &[u8]| trust::cosign_manifest(bytes, present, signer, now, &self.limits);
        self.write_with(&delta, &add(manifest, signature)?, &add(delta_bytes, delta_signature)?, out)
    }

    fn signable(&self) -> Result<DeltaManifest, WriteError> {
        Manifest::parse(&self.parts[0], &self.limits.manifest)?;
        let delta = DeltaManifest::parse(&self.parts[2], &self.limits.manifest)?;
        let expected = delta.payload_bytes();
        if expected == self.payload_bytes { Ok(delta) } else { Err(WriteError::PayloadSize { expected }) }
    }

    fn write_with(
        &self,
        delta: &DeltaManifest,
        signature: &[u8],
        delta_signature: &[u8],
        out: &mut dyn Write,
    ) -> Result<(), WriteError> {
        let mut payload = RangeReader::new(&self.source, self.payload_offset, self.payload_bytes);
        let delta = (delta, self.parts[2].as_slice(), delta_signature);
        assemble_delta((&self.parts[0], signature), delta, &mut payload, out, &self.limits)
    }

    /// Checks both signatures, then both manifests, then that they speak of the same release, then the payload's length.
    ///
    /// # Errors
    /// See [`BundleError`]; no manifest is parsed unless its signature holds.
    pub fn verify(
        self,
        anchor: &TrustAnchor,
        revocation: &RevocationLists,
        now: Instant,
    ) -> Result<VerifiedDelta<R>, BundleError> {
        let actual = self.payload_bytes;
        let verified = self.verify_cut_off(anchor, revocation, now)?;
        let expected = verified.delta.payload_bytes();
        if actual != expected {
            return Err(BundleError::PayloadSize { expected, actual });
        }
        Ok(verified)
    }

    /// As [`DeltaBundle::verify`], but the payload may end early, as after a broken download: for whoever has the full
    /// bundle at hand for what is missing. Every object and every patch is checked when it is read, as ever.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn verify_cut_off(
        self,
        anchor: &TrustAnchor,
        revocation: &RevocationLists,
        now: Instant,
    ) -> Result<VerifiedDelta<R>, BundleError> {
        let [manifest, signature, delta, delta_signature] = self.parts;
        let signers = trust::verify(&delta, &delta_signature, anchor, revocation, now, &self.limits)?;
        let release = verify_detached(&manifest, signature, anchor, revocation, now, &self.limits)?;
        let delta = DeltaManifest::parse(&delta, &self.limits.manifest)?;
        check_together(&delta, &release)?;
        let (expected, actual) = (delta.payload_bytes(), self.payload_bytes);
        if actual > expected {
            return Err(BundleError::PayloadSize { expected, actual });
        }
        let (source, payload_offset) = (self.source, self.payload_offset);
        let objects = delta.objects.iter().enumerate();
        let carried = objects.map(|(at, object)| (object.sha256, at)).collect();
        let files = delta.files.iter().enumerate();
        let patched = files.map(|(at, file)| (file.target_sha256, at)).collect();
        Ok(VerifiedDelta { release, manifest, delta, carried, patched, signers, source, payload_offset })
    }
}

/// What an unverified delta bundle says about itself. Nothing in here may decide anything.
#[derive(Debug)]
pub struct UntrustedDeltaView {
    /// The delta manifest, when it can be read.
    pub claimed_delta: Result<DeltaManifest, DeltaManifestError>,
    /// The manifest of the release that comes out, when it can be read.
    pub claimed_manifest: Result<Manifest, ManifestError>,
    /// Who claims to have signed the delta manifest, when the signature can be read.
    pub claimed_signers: Result<Vec<SignedBy>, TrustError>,
    /// The digest of the release's manifest.
    pub manifest_sha256: Digest,
    /// How many bytes the payload has.
    pub payload_bytes: u64,
}

/// The delta makes this very release, and carries its objects as the release's own manifest describes them.
fn check_together(delta: &DeltaManifest, release: &VerifiedManifest) -> Result<(), BundleError> {
    let mismatch = |reason: String| Err(BundleError::DeltaMismatch(reason));
    let manifest: &Manifest = release.manifest();
    if delta.to != release.release() {
        return mismatch(format!(
            "it leads to {}, and carries the manifest of {}",
            delta.to,
            release.release()
        ));
    }
    let described = |object: &ObjectEntry| {
        let ObjectEntry { sha256, size, stored_size, encoding, offset: _ } = *object;
        (sha256, size, stored_size, encoding)
    };
    let objects: BTreeMap<Digest, &ObjectEntry> =
        manifest.objects.iter().map(|object| (object.sha256, object)).collect();
    for carried in &delta.objects {
        let theirs = objects.get(&carried.sha256);
        if theirs.is_none_or(|object| described(object) != described(carried)) {
            return mismatch(format!("object {} is not the release's", carried.sha256));
        }
    }
    let files: BTreeMap<&SafePath, &FileEntry> =
        manifest.files.iter().map(|file| (&file.path, file)).collect();
    for file in &delta.files {
        let theirs = files.get(&file.path);
        if theirs.is_none_or(|entry| (entry.sha256, entry.size) != (file.target_sha256, file.target_size)) {
            return mismatch(format!("`{}` becomes another file than the release has", file.path));
        }
    }
    Ok(())
}

/// A delta bundle both of whose manifests are signed by whom we trust.
#[derive(Debug)]
pub struct VerifiedDelta<R> {
    release: VerifiedManifest,
    manifest: Vec<u8>,
    delta: DeltaManifest,
    /// Where in the delta manifest an object is that is carried in full.
    carried: BTreeMap<Digest, usize>,
    /// Where in it the patch is that makes an object.
    patched: BTreeMap<Digest, usize>,
    signers: Vec<SignedBy>,
    source: R,
    payload_offset: u64,
}

impl<R> VerifiedDelta<R> {
    /// Who signed the delta manifest; at least one.
    pub fn signers(&self) -> &[SignedBy] {
        &self.signers
    }

    /// The release that comes out.
    pub fn verified_manifest(&self) -> &VerifiedManifest {
        &self.release
    }

    /// The exact bytes of its manifest.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest
    }

    /// How it comes out.
    pub fn delta(&self) -> &DeltaManifest {
        &self.delta
    }

    /// The entry of an object that is carried in full.
    pub fn carried(&self, sha256: Digest) -> Option<&ObjectEntry> {
        self.carried.get(&sha256).map(|at| &self.delta.objects[*at])
    }

    /// The patch that makes this object, if there is one.
    pub fn patch(&self, sha256: Digest) -> Option<&DeltaFile> {
        self.patched.get(&sha256).map(|at| &self.delta.files[*at])
    }

    /// The objects whose patches must be applied one after the other, in this order; nothing when any order will do.
    pub fn patch_order(&self) -> Vec<Digest> {
        if !self.delta.enforce_order {
            return Vec::new();
        }
        let ordered = self.delta.in_order().expect("a parsed delta manifest has an order");
        ordered.into_iter().map(|file| file.target_sha256).collect()
    }
}

impl<R: ReadAt + Sync> VerifiedDelta<R> {
    /// Applies one of its own patches to `base`. See [`delta::apply`].
    ///
    /// # Errors
    /// See [`DeltaError`]; what was written before an error must be thrown away.
    pub fn apply_patch<W: Write>(
        &self,
        file: &DeltaFile,
        base: &Source<'_>,
        limits: &DeltaLimits,
        out: W,
    ) -> Result<(W, Applied), DeltaError> {
        let patch = self.range(file.offset, file.patch_size);
        delta::apply(file.algorithm, base, &patch, &declared(file), limits, out)
    }

    /// The memory that applying one of its own patches to `base` takes at most, in bytes.
    ///
    /// # Errors
    /// As [`VerifiedDelta::apply_patch`]: the patch is checked before a byte of it is interpreted.
    pub fn memory_needed(
        &self,
        file: &DeltaFile,
        base: &Source<'_>,
        limits: &DeltaLimits,
    ) -> Result<u64, DeltaError> {
        let (patch, declared) = (self.range(file.offset, file.patch_size), declared(file));
        declared.patch.check(Part::Patch, &patch)?;
        delta::memory_needed(file.algorithm, base, &patch, &declared, limits)
    }

    /// Streams an object that is carried in full: decoded and checked to `content`, as stored to `stored`.
    ///
    /// # Errors
    /// See [`ObjectError`]; [`ObjectError::NotCarried`] when it is not.
    pub fn copy_object(
        &self,
        sha256: Digest,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        let entry = self.carried(sha256).ok_or(ObjectError::NotCarried(sha256))?;
        let payload = RangeReader::new(&self.source, self.payload_offset + entry.offset, entry.stored_size);
        object::copy_object(entry, payload, content, stored)
    }

    /// Decodes every carried object and hashes every patch.
    ///
    /// # Errors
    /// The first that is not what the delta manifest says.
    pub fn check_payload(&self) -> Result<(), DeltaPayloadError> {
        for object in &self.delta.objects {
            self.copy_object(object.sha256, &mut io::sink(), &mut io::sink())?;
        }
        for file in &self.delta.files {
            let content = Content { size: file.patch_size, sha256: file.patch_sha256 };
            content.check(Part::Patch, &self.range(file.offset, file.patch_size))?;
        }
        Ok(())
    }

    fn range(&self, offset: u64, length: u64) -> Range<'_, R> {
        Range { source: &self.source, offset: self.payload_offset + offset, length }
    }
}

/// What the delta manifest says of a patch and its files.
fn declared(file: &DeltaFile) -> Declared {
    let content = |size, sha256| Content { size, sha256 };
    Declared {
        base: content(file.base_size, file.base_sha256),
        patch: content(file.patch_size, file.patch_sha256),
        result: content(file.target_size, file.target_sha256),
    }
}

/// Why a delta bundle's payload is refused.
#[derive(Debug, thiserror::Error)]
pub enum DeltaPayloadError {
    /// An object is.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A patch is.
    #[error(transparent)]
    Patch(#[from] DeltaError),
}

/// A part of a source, read at offsets.
struct Range<'a, R> {
    source: &'a R,
    offset: u64,
    length: u64,
}

impl<R: ReadAt> ReadAt for Range<'_, R> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buf.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        self.source.read_at(&mut buf[..wanted], self.offset + offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

/// Writes a delta bundle.
///
/// # Errors
/// [`WriteError::SignatureSize`], [`WriteError::PayloadSize`], [`WriteError::Write`], or a failed read.
pub fn assemble_delta(
    release: (&[u8], &[u8]),
    delta: (&DeltaManifest, &[u8], &[u8]),
    payload: &mut dyn Read,
    out: &mut dyn Write,
    limits: &Limits,
) -> Result<(), WriteError> {
    let (delta, delta_bytes, delta_signature) = delta;
    let limit = limits.signature_bytes_max;
    for signature in [release.1, delta_signature] {
        if signature.len() > limit {
            return Err(WriteError::SignatureSize { actual: signature.len(), limit });
        }
    }
    let parts = [release.0, release.1, delta_bytes, delta_signature];
    out.write_all(&DELTA_MAGIC).map_err(WriteError::Write)?;
    for part in parts {
        let length = u32::try_from(part.len())
            .map_err(|_| WriteError::SignatureSize { actual: part.len(), limit: u32::MAX as usize })?;
        out.write_all(&length.to_be_bytes()).map_err(WriteError::Write)?;
    }
    for part in parts {
        out.write_all(part).map_err(WriteError::Write)?;
    }
    let expected = delta.payload_bytes();
    let copied = io::copy(&mut payload.take(expected.saturating_add(1)), out).map_err(WriteError::Write)?;
    if copied == expected { Ok(()) } else { Err(WriteError::PayloadSize { expected }) }
}
