//! Writing bundles: contents become a payload, and a manifest, a signature and a payload become a file.
//!
//! Contents are streamed, so a release may be larger than memory. The manifest comes first in the file but needs the
//! payload's offsets, so the payload is written to a spool (the caller's temporary file) and copied behind the manifest.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom, Write},
};

use cutover_core::model::{
    DeltaManifestError, Digest, Encoding, Hasher, Manifest, ManifestError, ObjectEntry,
};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation as _, OutBuffer};

use crate::{
    container::{HEADER_BYTES, MAGIC},
    limits::Limits,
    object::WINDOW_LOG_MAX,
    read_at::fill,
    trust::SignError,
};

/// Contents up to this size are stored in the smaller of both ways; beyond it, the first part decides.
const SAMPLE_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 128 << 10;

/// Why a bundle cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A content could not be read.
    #[error("failed to read a content")]
    Read(#[source] io::Error),
    /// The spool or the bundle could not be written.
    #[error("failed to write the bundle")]
    Write(#[source] io::Error),
    /// The compressor failed.
    #[error("failed to compress a content")]
    Compress(#[source] io::Error),
    /// The manifest breaks a rule; what cannot be read back is not written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The delta manifest breaks a rule.
    #[error(transparent)]
    Delta(#[from] DeltaManifestError),
    /// The signature is over its limit.
    #[error("the signature has {actual} bytes; the limit is {limit}")]
    SignatureSize {
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload is not the one the manifest describes.
    #[error("the payload does not have the {expected} bytes that the manifest declares")]
    PayloadSize {
        /// What the manifest declares.
        expected: u64,
    },
    /// The manifest could not be signed.
    #[error(transparent)]
    Sign(SignError),
}

/// A Zstandard compression level, 1 (fast) to 22 (small).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(i32);

impl Level {
    /// Wraps `level`; `None` outside 1 to 22.
    pub fn new(level: i32) -> Option<Self> {
        (1..=22).contains(&level).then_some(Self(level))
    }
}

impl Default for Level {
    /// 12. Over 47 MB of programs, 9 wrote twice as fast and 1 % more, 19 a tenth as fast and 10 % less (`verify_bench`).
    fn default() -> Self {
        Self(12)
    }
}

/// What [`PayloadWriter::add`] learned about a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedObject {
    /// Its digest.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Collects contents into a payload. Each distinct content is stored once, compressed when that is smaller.
pub struct PayloadWriter<S> {
    spool: S,
    level: Level,
    objects: Vec<ObjectEntry>,
    known: BTreeMap<Digest, u64>,
    end: u64,
}

/// A finished payload and the objects that are in it.
pub struct Payload<S> {
    /// The objects, for [`Manifest::objects`].
    pub objects: Vec<ObjectEntry>,
    /// How many bytes of the spool are payload.
    pub bytes: u64,
    spool: S,
}

impl<S: Read> Payload<S> {
    /// The payload's bytes, for [`assemble`].
    pub fn into_reader(self) -> impl Read {
        self.spool.take(self.bytes)
    }
}

impl<S: Write + Seek> PayloadWriter<S> {
    /// Starts an empty payload at the spool's start; what the spool held is overwritten.
    ///
    /// # Errors
    /// [`WriteError::Write`] when the spool cannot be positioned.
    pub fn new(mut spool: S, level: Level) -> Result<Self, WriteError> {
        spool.rewind().map_err(WriteError::Write)?;
        Ok(Self { spool, level, objects: Vec::new(), known: BTreeMap::new(), end: 0 })
    }

    /// Reads `content` to its end and stores it unless the same content is already there.
    ///
    /// # Errors
    /// [`WriteError::Read`], [`WriteError::Write`] or [`WriteError::Compress`]; the payload is then unusable.
    pub fn add(&mut self, mut content: impl Read) -> Result<AddedObject, WriteError> {
        let mut sample = Vec::new();
        content.by_ref().take(SAMPLE_BYTES as u64).read_to_end(&mut sample).map_err(WriteError::Read)?;
        let (encoding, sha256, size) = if sample.len() < SAMPLE_BYTES {
            self.add_small(&sample)?
        } else {
            self.add_large(&sample, &mut content)?
        };
        let end = self.spool.stream_position().map_err(WriteError::Write)?;
        if self.known.insert(sha256, size).is_some() {
            // Seen before: the next content overwrites what was just written.
            self.spool.seek(SeekFrom::Start(self.end)).map_err(WriteError::Write)?;
        } else {
            self.objects.push(ObjectEntry {
                sha256,
                size,
                stored_size: end - self.end,
                encoding,
                offset: self.end,
            });
            self.end = end;
        }
        Ok(AddedObject { sha256, size })
    }

    /// Ends the payload and rewinds the spool to its start.
    ///
    /// # Errors
    /// [`WriteError::Write`].
    pub fn finish(mut self) -> Result<Payload<S>, WriteError> {
        self.spool.flush().map_err(WriteError::Write)?;
        self.spool.rewind().map_err(WriteError::Write)?;
        Ok(Payload { objects: self.objects, bytes: self.end, spool: self.spool })
    }

    fn add_small(&mut self, content: &[u8]) -> Result<(Encoding, Digest, u64), WriteError> {
        let sha256 = Digest::of(content);
        let packed = self.compressor()?.compress(content).map_err(WriteError::Compress)?;
        let (encoding, bytes) = if packed.len() < content.len() {
            (Encoding::Zstd, packed.as_slice())
        } else {
            (Encoding::Raw, content)
        };
        self.spool.write_all(bytes).map_err(WriteError::Write)?;
        Ok((encoding, sha256, content.len() as u64))
    }

    /// Streams a content whose first part is `sample`. A sample that hardly shrinks (media, archives) is a content that
    /// is stored as it is.
    fn add_large(
        &mut self,
        sample: &[u8],
        rest: &mut dyn Read,
    ) -> Result<(Encoding, Digest, u64), WriteError> {
        let packed = zstd::bulk::compress(sample, 3).map_err(WriteError::Compress)?;
        let encoding = if packed.len() < sample.len() / 100 * 97 { Encoding::Zstd } else { Encoding::Raw };
        let mut packer = match encoding {
            Encoding::Zstd => Some(Packer::new(self.level)?),
            Encoding::Raw => None,
        };
        let mut hasher = Hasher::new();
        let mut size = 0u64;
        let mut store = |chunk: &[u8], spool: &mut S| {
            hasher.update(chunk);
            size += chunk.len() as u64;
            match &mut packer {
                Some(packer) => packer.push(chunk, spool),
                None => spool.write_all(chunk).map_err(WriteError::Write),
            }
        };
        store(sample, &mut self.spool)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match fill(rest, &mut buffer).map_err(WriteError::Read)? {
                0 => break,
                count => store(&buffer[..count], &mut self.spool)?,
            }
        }
        if let Some(packer) = &mut packer {
            packer.finish(&mut self.spool)?;
        }
        Ok((encoding, hasher.finish(), size))
    }

    fn compressor(&self) -> Result<zstd::bulk::Compressor<'static>, WriteError> {
        let mut compressor = zstd::bulk::Compressor::new(self.level.0).map_err(WriteError::Compress)?;
        if let Some(parameter) = window(self.level) {
            compressor.set_parameter(parameter).map_err(WriteError::Compress)?;
        }
        Ok(compressor)
    }
}

/// Levels above 19 would use windows that readers refuse.
fn window(level: Level) -> Option<CParameter> {
    (level.0 > 19).then_some(CParameter::WindowLog(WINDOW_LOG_MAX))
}

/// A streaming compressor that writes one frame.
struct Packer {
    encoder: Encoder<'static>,
    output: Vec<u8>,
}

impl Packer {
    fn new(level: Level) -> Result<Self, WriteError> {
        let mut encoder = Encoder::new(level.0).map_err(WriteError::Compress)?;
        if let Some(parameter) = window(level) {
            encoder.set_parameter(parameter).map_err(WriteError::Compress)?;
        }
        Ok(Self { encoder, output: vec![0; CHUNK_BYTES] })
    }

    fn push(&mut self, chunk: &[u8], spool: &mut dyn Write) -> Result<(), WriteError> {
        let mut input = InBuffer::around(chunk);
        while input.pos() < chunk.len() {
            let mut out = OutBuffer::around(self.output.as_mut_slice());
            self.encoder.run(&mut input, &mut out).map_err(WriteError::Compress)?;
            spool.write_all(out.as_slice()).map_err(WriteError::Write)?;
        }
        Ok(())
    }

    fn finish(&mut self, spool: &mut dyn Write) -> Result<(), WriteError> {
        loop {
            let mut out = OutBuffer::around(self.output.as_mut_slice());
            let left = self.encoder.finish(&mut out, true).map_err(WriteError::Compress)?;
            spool.write_all(out.as_slice()).map_err(WriteError::Write)?;
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// Writes a bundle. An empty `signature` makes an unsigned bundle, to be signed later and refused until then.
///
/// # Errors
/// [`WriteError::Manifest`], [`WriteError::SignatureSize`], [`WriteError::PayloadSize`], or a failed read or write.
pub fn assemble(
    manifest: &[u8],
    signature: &[u8],
    payload: impl Read,
    out: &mut dyn Write,
    limits: &Limits,
) -> Result<(), WriteError> {
    let expected = Manifest::parse(manifest, &limits.manifest)?.payload_bytes();
    let limit = limits.signature_bytes_max;
    if signature.len() > limit {
        return Err(WriteError::SignatureSize { actual: signature.len(), limit });
    }
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len())
            .map(u32::to_be_bytes)
            .map_err(|_| ManifestError::TooLarge { actual: bytes.len(), limit: u32::MAX as usize })
    };
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&length(manifest)?);
    header[12..].copy_from_slice(&length(signature)?);
    for part in [header.as_slice(), manifest, signature] {
        out.write_all(part).map_err(WriteError::Write)?;
    }
    // One byte more than expected, so that a longer payload is noticed.
    let mut payload = payload.take(expected.saturating_add(1));
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut copied = 0u64;
    loop {
        match fill(&mut payload, &mut buffer).map_err(WriteError::Read)? {
            0 => break,
            count => {
                out.write_all(&buffer[..count]).map_err(WriteError::Write)?;
                copied += count as u64;
            }
        }
    }
    if copied != expected {
        return Err(WriteError::PayloadSize { expected });
    }
    out.flush().map_err(WriteError::Write)
}
