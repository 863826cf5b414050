//! The bundle file: header, manifest, signature, payload (`docs/formats/bundle.md`).
//!
//! [`Bundle::open`] reads only the header, the manifest's bytes and the signature's bytes, each within its limit, and
//! believes none of them. [`Bundle::verify`] checks the signature before the manifest is parsed, and the manifest before
//! a payload byte is read.

use std::{
    io::{self, Write},
    sync::Arc,
};

use cutover_core::model::{
    DeltaManifestError, Digest, Hasher, Instant, Manifest, ManifestError, ObjectEntry, ReleaseRef,
};

use crate::{
    anchor::TrustAnchor,
    limits::Limits,
    object::{self, ObjectError},
    read_at::{RangeReader, ReadAt},
    signer::Signer,
    trust::{self, RevocationLists, SignError, SignedBy, TrustError},
    write::{self, WriteError},
};

/// The first eight bytes of a bundle; the last of them is the version of the container.
pub const MAGIC: [u8; 8] = *b"CUTOVER\x01";
/// Bytes before the manifest: the magic and two big-endian `u32` lengths.
pub const HEADER_BYTES: usize = 16;

/// Why a file is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The source could not be read.
    #[error("failed to read the bundle")]
    Io(#[from] io::Error),
    /// It does not start with [`MAGIC`].
    #[error("this file is not a bundle")]
    NotABundle,
    /// A container of the future.
    #[error("bundle container version {0} is unsupported; this program reads version 1")]
    Version(u8),
    /// The file ends before what its header declares.
    #[error("the bundle is cut off: it has {actual} bytes and needs at least {needed}")]
    Truncated {
        /// What the header asks for.
        needed: u64,
        /// What there is.
        actual: u64,
    },
    /// A length in the header is over its limit.
    #[error("the {part} has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// `manifest` or `signature`.
        part: &'static str,
        /// Its length.
        actual: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no bundle.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// It is not signed by whom we trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Its signed manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its signed delta manifest breaks a rule.
    #[error(transparent)]
    Delta(#[from] DeltaManifestError),
    /// Its delta manifest and the release's manifest contradict each other.
    #[error("the delta does not fit the release: {0}")]
    DeltaMismatch(String),
    /// Its payload is shorter or longer than the signed manifest says.
    #[error("the payload has {actual} bytes where the manifest declares {expected}")]
    PayloadSize {
        /// What the manifest declares.
        expected: u64,
        /// What there is.
        actual: u64,
    },
}

impl BundleError {
    /// A stable word for logs and machines, one per kind of refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Container(error) => match error {
                ContainerError::Io(_) => "bundle.io",
                ContainerError::NotABundle => "bundle.not-a-bundle",
                ContainerError::Version(_) => "bundle.version",
                ContainerError::Truncated { .. } => "bundle.truncated",
                ContainerError::TooLarge { .. } => "bundle.too-large",
            },
            Self::Trust(error) => error.code(),
            Self::Manifest(error) => match error {
                ManifestError::TooLarge { .. } => "manifest.too-large",
                ManifestError::Format(_) => "manifest.format",
                ManifestError::Syntax(_) => "manifest.syntax",
                ManifestError::Path(_) => "manifest.path",
                ManifestError::SymlinkTarget { .. } => "manifest.symlink",
                ManifestError::Limit { .. } => "manifest.limit",
                ManifestError::Inconsistent(_) => "manifest.inconsistent",
            },
            Self::Delta(_) => "delta.manifest",
            Self::DeltaMismatch(_) => "delta.mismatch",
            Self::PayloadSize { .. } => "bundle.payload-size",
        }
    }
}

/// A bundle whose header was read and of which nothing is believed yet. Made by [`Bundle::open`], consumed by
/// [`Bundle::verify`].
#[derive(Debug)]
pub struct Bundle<R> {
    source: R,
    limits: Limits,
    manifest: Vec<u8>,
    signature: Vec<u8>,
    payload_offset: u64,
    payload_bytes: u64,
}

impl<R: ReadAt> Bundle<R> {
    /// Reads the header, the manifest's bytes and the signature's bytes; parses neither.
    ///
    /// # Errors
    /// See [`ContainerError`]. No more is allocated than the limits allow and the source holds.
    pub fn open(source: R, limits: &Limits) -> Result<Self, ContainerError> {
        let actual = source.size()?;
        let mut header = [0; HEADER_BYTES];
        let read = crate::read_at::fill(&mut RangeReader::new(&source, 0, HEADER_BYTES as u64), &mut header)?;
        let (magic, lengths) = header.split_at(MAGIC.len());
        let name = MAGIC.len() - 1;
        if read < MAGIC.len() || magic[..name] != MAGIC[..name] {
            return Err(ContainerError::NotABundle);
        }
        if magic[name] != MAGIC[name] {
            return Err(ContainerError::Version(magic[name]));
        }
        if read < HEADER_BYTES {
            let needed = HEADER_BYTES as u64;
            return Err(ContainerError::Truncated { needed, actual });
        }
        let length = |at: usize| u32::from_be_bytes(lengths[at..at + 4].try_into().expect("a slice of four"));
        let capped = |part, length: u32, limit: usize| match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(ContainerError::TooLarge { part, actual: u64::from(length), limit: limit as u64 }),
        };
        let manifest_bytes = capped("manifest", length(0), limits.manifest.bytes_max)?;
        let signature_bytes = capped("signature", length(4), limits.signature_bytes_max)?;
        let payload_offset = HEADER_BYTES as u64 + manifest_bytes as u64 + signature_bytes as u64;
        let payload_bytes = actual
            .checked_sub(payload_offset)
            .ok_or(ContainerError::Truncated { needed: payload_offset, actual })?;
        let part = |offset: usize, length: usize| {
            let mut bytes = vec![0; length];
            let mut reader = RangeReader::new(&source, offset as u64, length as u64);
            match crate::read_at::fill(&mut reader, &mut bytes)? {
                read if read == length => Ok(bytes),
                read => {
                    Err(ContainerError::Truncated { needed: payload_offset, actual: (offset + read) as u64 })
                }
            }
        };
        let manifest = part(HEADER_BYTES, manifest_bytes)?;
        let signature = part(HEADER_BYTES + manifest_bytes, signature_bytes)?;
        Ok(Self { source, limits: *limits, manifest, signature, payload_offset, payload_bytes })
    }

    /// Checks the signature over the manifest's exact bytes, then the manifest, then the payload's length.
    ///
    /// # Errors
    /// See [`BundleError`]; the manifest is not parsed unless the signature holds.
    pub fn verify(
        self,
        anchor: &TrustAnchor,
        revocation: &RevocationLists,
        now: Instant,
    ) -> Result<VerifiedBundle<R>, BundleError> {
        let verified = Verified::new(&self.manifest, self.signature, anchor, revocation, now, &self.limits)?;
        let (expected, actual) = (verified.manifest.payload_bytes(), self.payload_bytes);
        if actual != expected {
            return Err(BundleError::PayloadSize { expected, actual });
        }
        let manifest_bytes = self.manifest.len() as u64;
        Ok(VerifiedBundle {
            verified,
            source: self.source,
            manifest_bytes,
            payload_offset: self.payload_offset,
        })
    }

    /// What the bundle claims about itself, for display only.
    pub fn inspect_untrusted(&self) -> UntrustedView {
        UntrustedView {
            claimed_manifest: Manifest::parse(&self.manifest, &self.limits.manifest),
            claimed_signers: trust::claimed_signers(&self.signature, &self.limits),
            manifest_sha256: Digest::of(&self.manifest),
            manifest_bytes: self.manifest.len(),
            signature_bytes: self.signature.len(),
            payload_bytes: self.payload_bytes,
        }
    }

    /// The bytes that were or will be signed. Unverified.
    pub fn untrusted_manifest_bytes(&self) -> &[u8] {
        &self.manifest
    }

    /// The signature, empty in an unsigned bundle. Unverified.
    pub fn untrusted_signature_bytes(&self) -> &[u8] {
        &self.signature
    }

    /// Decodes an object of this bundle, which nobody vouches for; its digest is checked all the same. For whoever builds
    /// a delta from it.
    ///
    /// # Errors
    /// See [`ObjectError`].
    pub fn decode_untrusted_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        object::copy_object(entry, self.untrusted_stored(entry), content, &mut io::sink())
    }

    /// An object of this bundle as it is stored. Unverified.
    pub fn untrusted_stored(&self, entry: &ObjectEntry) -> RangeReader<'_, R> {
        RangeReader::new(&self.source, self.payload_offset.saturating_add(entry.offset), entry.stored_size)
    }

    /// Writes this bundle with another signature; manifest and payload stay as they are.
    ///
    /// # Errors
    /// [`WriteError::Manifest`] when the manifest cannot be read, [`WriteError::PayloadSize`] when it does not fit the
    /// payload (so that no broken bundle is signed), or a failed read or write.
    pub fn write_with_signature(&self, signature: &[u8], out: &mut dyn Write) -> Result<(), WriteError> {
        let payload = RangeReader::new(&self.source, self.payload_offset, self.payload_bytes);
        write::assemble(&self.manifest, signature, payload, out, &self.limits)
    }

    /// Signs the manifest with every signer in `signers`, replacing any signature, and writes the bundle.
    ///
    /// # Errors
    /// [`WriteError::Sign`], and as [`Bundle::write_with_signature`].
    pub fn sign(&self, signers: &[&dyn Signer], now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        self.check_signable()?;
        let signature = trust::sign_manifest(&self.manifest, signers, now)?;
        self.write_with_signature(&signature, out)
    }

    /// Adds `signer` to the bundle's signature and writes the bundle, for anchors with a threshold.
    ///
    /// # Errors
    /// As [`Bundle::sign`]; the present signature must be well-formed.
    pub fn cosign(&self, signer: &dyn Signer, now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        self.check_signable()?;
        let signature = trust::cosign_manifest(&self.manifest, &self.signature, signer, now, &self.limits)?;
        self.write_with_signature(&signature, out)
    }

    /// Checks before a signer is asked what [`write::assemble`] would only find out afterwards.
    fn check_signable(&self) -> Result<(), WriteError> {
        let expected = Manifest::parse(&self.manifest, &self.limits.manifest)?.payload_bytes();
        if expected == self.payload_bytes { Ok(()) } else { Err(WriteError::PayloadSize { expected }) }
    }
}

/// What an unverified bundle says about itself. Nothing in here may decide anything.
#[derive(Debug)]
pub struct UntrustedView {
    /// The manifest, when it can be read.
    pub claimed_manifest: Result<Manifest, ManifestError>,
    /// Who claims to have signed, when the signature can be read.
    pub claimed_signers: Result<Vec<SignedBy>, TrustError>,
    /// The digest of the manifest's bytes.
    pub manifest_sha256: Digest,
    /// How many bytes the manifest has.
    pub manifest_bytes: usize,
    /// How many bytes the signature has; 0 when the bundle is unsigned.
    pub signature_bytes: usize,
    /// How many bytes the payload has.
    pub payload_bytes: u64,
}

/// A manifest whose signature was checked against a [`TrustAnchor`]. Made by [`verify_detached`] and [`Bundle::verify`]
/// only.
#[derive(Debug)]
pub struct VerifiedManifest(Verified);

/// What a checked signature vouches for. It does not hold the bytes that were signed: of a release of many files they take more
/// than the manifest that was read from them.
#[derive(Debug)]
struct Verified {
    manifest: Arc<Manifest>,
    sha256: Digest,
    signature: Vec<u8>,
    signers: Vec<SignedBy>,
}

impl Verified {
    fn new(
        manifest: &[u8],
        signature: Vec<u8>,
        anchor: &TrustAnchor,
        revocation: &RevocationLists,
        now: Instant,
        limits: &Limits,
    ) -> Result<Self, BundleError> {
        let signers = trust::verify(manifest, &signature, anchor, revocation, now, limits)?;
        let parsed = Manifest::parse(manifest, &limits.manifest)?;
        Ok(Self { manifest: Arc::new(parsed), sha256: Digest::of(manifest), signature, signers })
    }

    fn release(&self) -> ReleaseRef {
        ReleaseRef {
            package: self.manifest.package.clone(),
            version: self.manifest.version.clone(),
            manifest: self.sha256,
        }
    }
}

/// Checks a manifest and its detached signature, as [`Bundle::verify`] does for a whole bundle.
///
/// # Errors
/// [`BundleError::Trust`] or [`BundleError::Manifest`].
pub fn verify_detached(
    manifest: &[u8],
    signature: Vec<u8>,
    anchor: &TrustAnchor,
    revocation: &RevocationLists,
    now: Instant,
    limits: &Limits,
) -> Result<VerifiedManifest, BundleError> {
    Verified::new(manifest, signature, anchor, revocation, now, limits).map(VerifiedManifest)
}

/// Checks a detached signature over bytes that are no manifest, such as the first root of a repository, by the same rules.
/// Returns who signed, of whom there is at least one. What the bytes mean is the caller's business: they must say
/// themselves what they are, so that one kind of signed bytes is never taken for another.
///
/// # Errors
/// See [`TrustError`].
pub fn verify_signature(
    bytes: &[u8],
    signature: &[u8],
    anchor: &TrustAnchor,
    revocation: &RevocationLists,
    now: Instant,
    limits: &Limits,
) -> Result<Vec<SignedBy>, TrustError> {
    trust::verify(bytes, signature, anchor, revocation, now, limits)
}

impl VerifiedManifest {
    /// The manifest; shared, for one of many files takes megabytes.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.0.manifest
    }

    /// The signature over its bytes. They themselves are not kept.
    pub fn signature_bytes(&self) -> &[u8] {
        &self.0.signature
    }

    /// The release they describe.
    pub fn release(&self) -> ReleaseRef {
        self.0.release()
    }

    /// Who signed; never empty.
    pub fn signers(&self) -> &[SignedBy] {
        &self.0.signers
    }
}

/// A bundle whose manifest is signed by whom we trust: the only thing that can be staged. Its payload is checked object
/// by object as it is read.
#[derive(Debug)]
pub struct VerifiedBundle<R> {
    verified: Verified,
    source: R,
    manifest_bytes: u64,
    payload_offset: u64,
}

impl<R> VerifiedBundle<R> {
    /// The manifest; shared, for one of many files takes megabytes.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.verified.manifest
    }

    /// The signature over the manifest's bytes.
    pub fn signature_bytes(&self) -> &[u8] {
        &self.verified.signature
    }

    /// The release in this bundle.
    pub fn release(&self) -> ReleaseRef {
        self.verified.release()
    }

    /// Who signed; never empty.
    pub fn signers(&self) -> &[SignedBy] {
        &self.verified.signers
    }
}

impl<R: ReadAt> VerifiedBundle<R> {
    /// Reads the manifest's bytes again.
    ///
    /// # Errors
    /// As [`VerifiedBundle::write_manifest`].
    pub fn manifest_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.manifest_bytes).unwrap_or(0));
        self.write_manifest(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the exact bytes that were signed to `out`. They are read again; what was written before an error must be thrown
    /// away.
    ///
    /// # Errors
    /// The bundle cannot be read, is not any longer what was verified (`ErrorKind::InvalidData`), or `out` fails.
    pub fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut source = RangeReader::new(&self.source, HEADER_BYTES as u64, self.manifest_bytes);
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 << 10]);
        loop {
            match crate::read_at::fill(&mut source, &mut buffer)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    out.write_all(&buffer[..count])?;
                }
            }
        }
        if hasher.finish() == self.verified.sha256 {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the bundle has changed since it was verified"))
        }
    }

    /// Streams one object: its decoded bytes to `content`, its bytes as they are stored to `stored`. Reads the payload
    /// once and needs about 10 MiB at most. Several threads may do so at once.
    ///
    /// # Errors
    /// See [`ObjectError`]; what was written before an error must be thrown away.
    pub fn copy_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        if !self.lists(entry) {
            return Err(ObjectError::NotInRelease(entry.sha256));
        }
        let offset = self.payload_offset + entry.offset;
        object::copy_object(entry, RangeReader::new(&self.source, offset, entry.stored_size), content, stored)
    }

    /// Decodes every object and drops the result: a deep check of the whole payload.
    ///
    /// # Errors
    /// The first [`ObjectError`].
    pub fn check_objects(&self) -> Result<(), ObjectError> {
        self.manifest()
            .objects
            .iter()
            .try_for_each(|entry| self.copy_object(entry, &mut io::sink(), &mut io::sink()))
    }

    /// Whether `entry` is one of the manifest's own, which are sorted by offset; only empty ones share an offset.
    fn lists(&self, entry: &ObjectEntry) -> bool {
        let objects = &self.manifest().objects;
        let first = objects.partition_point(|object| object.offset < entry.offset);
        objects[first..]
            .iter()
            .take_while(|object| object.offset == entry.offset)
            .any(|object| object == entry)
    }
}

impl From<SignError> for WriteError {
    fn from(error: SignError) -> Self {
        Self::Sign(error)
    }
}
