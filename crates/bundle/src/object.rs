//! Decoding one object: stored bytes in, checked content out, in bounded memory.
//!
//! Nothing here trusts the stored bytes. The declared size, digest and stored size come from a signed manifest; output
//! stops at the declared size, whatever the compressed bytes claim.

use std::io::{self, Read, Write};

use cutover_core::model::{Digest, Encoding, Hasher, ObjectEntry};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::{read_at::fill, zstd_frame::FrameHeader};

/// The largest window a stored Zstandard frame may need, in bytes; it bounds the memory of every reader.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// [`WINDOW_BYTES_MAX`] as a power of two.
pub(crate) const WINDOW_LOG_MAX: u32 = 23;

const CHUNK_BYTES: usize = 128 << 10;

/// Why an object is refused. Bytes that were written before the refusal must be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The entry is none of this release's.
    #[error("object {0} does not belong to this release")]
    NotInRelease(Digest),
    /// A delta carries neither it nor a patch that worked, and no full bundle was given.
    #[error("object {0} is not carried by this delta")]
    NotCarried(Digest),
    /// The stored bytes could not be read.
    #[error("failed to read object {digest}")]
    Read {
        /// The object.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The decoded or stored bytes could not be written.
    #[error("failed to write object {digest}")]
    Write {
        /// The object.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There are fewer or more stored bytes than the manifest says.
    #[error("object {digest} has {problem} stored bytes than the {expected} the manifest declares")]
    StoredSize {
        /// The object.
        digest: Digest,
        /// Its declared stored size.
        expected: u64,
        /// `fewer` or `more`.
        problem: &'static str,
    },
    /// The content is shorter or longer than the manifest says.
    #[error("object {digest} has {problem} bytes than the {expected} the manifest declares")]
    Size {
        /// The object.
        digest: Digest,
        /// Its declared size.
        expected: u64,
        /// `fewer` or `more`.
        problem: &'static str,
    },
    /// The content is another one.
    #[error("object {expected} has the digest {actual}: its bytes were damaged or replaced")]
    Digest {
        /// The object.
        expected: Digest,
        /// What was found.
        actual: Digest,
    },
    /// Not exactly one Zstandard frame as this format allows it.
    #[error("object {digest} is not stored as one plain Zstandard frame: {reason}")]
    Frame {
        /// The object.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
}

/// Decodes `stored`, which must hold exactly the stored bytes of `entry`, into `content`.
///
/// Needs about 10 MiB of memory at most. On success everything was written; `content` is not flushed.
///
/// # Errors
/// See [`ObjectError`]; what `content` received before an error is not to be used.
pub fn decode_object(
    entry: &ObjectEntry,
    stored: impl Read,
    content: &mut dyn Write,
) -> Result<(), ObjectError> {
    copy_object(entry, stored, content, &mut io::sink())
}

/// Stores content that was made here, such as the result of a patch, as bundles store it: one Zstandard frame.
pub struct ObjectWriter<W: Write>(zstd::stream::write::Encoder<'static, W>);

/// Fast, with a window of 2 MiB.
const WRITER_LEVEL: i32 = 3;

impl<W: Write> ObjectWriter<W> {
    /// Writes the stored form to `stored`.
    ///
    /// # Errors
    /// The compressor cannot be had.
    pub fn new(stored: W) -> io::Result<Self> {
        zstd::stream::write::Encoder::new(stored, WRITER_LEVEL).map(Self)
    }

    /// Ends the frame; nothing is flushed.
    ///
    /// # Errors
    /// Whatever the sink reports.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}

impl<W: Write> Write for ObjectWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// As [`decode_object`], and hands the stored bytes on to `copy` as they are read.
///
/// # Errors
/// See [`ObjectError`]; what `content` and `copy` received before an error is not to be used.
pub fn copy_object(
    entry: &ObjectEntry,
    mut stored: impl Read,
    content: &mut dyn Write,
    copy: &mut dyn Write,
) -> Result<(), ObjectError> {
    let stored: &mut dyn Read = &mut stored;
    let mut source = Source { entry, stored, copy, left: entry.stored_size, buffer: vec![0; CHUNK_BYTES] };
    let mut sink = Sink { entry, content, hasher: Hasher::new(), left: entry.size };
    match entry.encoding {
        Encoding::Raw => {
            while let Some(chunk) = source.next()? {
                sink.push(chunk)?;
            }
        }
        Encoding::Zstd => inflate(entry, &mut source, &mut sink)?,
    }
    sink.finish()
}

/// The stored bytes, of which there must be exactly as many as declared.
struct Source<'a> {
    entry: &'a ObjectEntry,
    stored: &'a mut dyn Read,
    copy: &'a mut dyn Write,
    left: u64,
    buffer: Vec<u8>,
}

impl Source<'_> {
    /// The next bytes; a full buffer but at the end.
    fn next(&mut self) -> Result<Option<&[u8]>, ObjectError> {
        let digest = self.entry.sha256;
        let size = |problem| ObjectError::StoredSize { digest, expected: self.entry.stored_size, problem };
        let count =
            fill(self.stored, &mut self.buffer).map_err(|source| ObjectError::Read { digest, source })?;
        if count == 0 {
            return if self.left == 0 { Ok(None) } else { Err(size("fewer")) };
        }
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| size("more"))?;
        let chunk = &self.buffer[..count];
        self.copy.write_all(chunk).map_err(|source| ObjectError::Write { digest, source })?;
        Ok(Some(chunk))
    }
}

/// The content, which stops at its declared size.
struct Sink<'a> {
    entry: &'a ObjectEntry,
    content: &'a mut dyn Write,
    hasher: Hasher,
    left: u64,
}

impl Sink<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        let digest = self.entry.sha256;
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| self.size("more"))?;
        self.hasher.update(bytes);
        self.content.write_all(bytes).map_err(|source| ObjectError::Write { digest, source })
    }

    fn finish(self) -> Result<(), ObjectError> {
        if self.left != 0 {
            return Err(self.size("fewer"));
        }
        let (expected, actual) = (self.entry.sha256, self.hasher.finish());
        if actual == expected { Ok(()) } else { Err(ObjectError::Digest { expected, actual }) }
    }

    fn size(&self, problem: &'static str) -> ObjectError {
        ObjectError::Size { digest: self.entry.sha256, expected: self.entry.size, problem }
    }
}

fn inflate(entry: &ObjectEntry, source: &mut Source<'_>, sink: &mut Sink<'_>) -> Result<(), ObjectError> {
    let refuse = |reason: String| ObjectError::Frame { digest: entry.sha256, reason };
    let from_zstd = |error: io::Error| refuse(error.to_string());
    let mut decoder = Decoder::new().map_err(from_zstd)?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(from_zstd)?;
    let mut output = vec![0; CHUNK_BYTES];
    let mut header_seen = false;
    let mut ended = false;
    while let Some(chunk) = source.next()? {
        if ended {
            return Err(refuse("there are bytes behind the frame".to_owned()));
        }
        if !header_seen {
            check_frame_header(chunk, entry.size).map_err(refuse)?;
            header_seen = true;
        }
        let mut input = InBuffer::around(chunk);
        let mut full = true;
        while !ended && (full || input.pos() < chunk.len()) {
            let mut out = OutBuffer::around(output.as_mut_slice());
            // The hint is 0 exactly when the frame is decoded and flushed.
            ended = decoder.run(&mut input, &mut out).map_err(from_zstd)? == 0;
            full = out.pos() == CHUNK_BYTES;
            sink.push(out.as_slice())?;
        }
        if input.pos() < chunk.len() {
            return Err(refuse("there are bytes behind the frame".to_owned()));
        }
    }
    if ended { Ok(()) } else { Err(refuse("the frame is cut off".to_owned())) }
}

/// Checks what a frame header promises before the decoder allocates for it: a window of at most [`WINDOW_BYTES_MAX`], no
/// other content size than `size`.
fn check_frame_header(bytes: &[u8], size: u64) -> Result<(), String> {
    let header = FrameHeader::parse(bytes)?;
    if let Some(declared) = header.content_bytes.filter(|declared| *declared != size) {
        return Err(format!("it declares {declared} bytes of content instead of {size}"));
    }
    match header.window_bytes {
        window if window <= WINDOW_BYTES_MAX => Ok(()),
        window => Err(format!("it needs a window of {window} bytes; the limit is {WINDOW_BYTES_MAX}")),
    }
}
