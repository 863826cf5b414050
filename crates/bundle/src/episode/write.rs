//! Makes an episode's archive: the same files become the same bytes.

use std::io::{self, Read, Write};

use super::tar::{BLOCK, checksum, padding};

/// Longer paths get a GNU `L` or `K` header in front.
const FIELD_PATH_MAX: usize = 100;
/// The largest size that eleven octal digits hold, in bytes; a larger one is written in GNU's binary form.
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;

/// Writes an archive: tar with GNU headers within one Zstandard frame with a checksum.
///
/// What differs between two copies of the same files is left out: owners are 0 and nameless, times are 0, modes are `0755` for
/// directories and executables and `0644` for other files. The caller gives the members in the order of
/// `docs/formats/episode.md`. The bytes depend on the files, the level and the version of the Zstandard library.
pub struct ArchiveWriter<W: Write> {
    out: zstd::stream::write::Encoder<'static, W>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Starts an archive with this Zstandard level, 1 to 22.
    ///
    /// # Errors
    /// `out` fails, or there is no memory.
    pub fn new(out: W, level: i32) -> io::Result<Self> {
        let mut out = zstd::stream::write::Encoder::new(out, level)?;
        out.include_checksum(true)?;
        Ok(Self { out })
    }

    /// Adds a directory; `path` is relative and has no slash at its end.
    ///
    /// # Errors
    /// `out` fails.
    pub fn directory(&mut self, path: &[u8]) -> io::Result<()> {
        let path = [path, b"/"].concat();
        self.header(b'5', &path, b"", 0o755, 0)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// `out` fails.
    pub fn symlink(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.header(b'2', path, target, 0o777, 0)
    }

    /// Adds a file of exactly `size_bytes`.
    ///
    /// # Errors
    /// `out` or `content` fails; [`io::ErrorKind::InvalidData`] when `content` has another length.
    pub fn file(
        &mut self,
        path: &[u8],
        executable: bool,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.header(b'0', path, b"", if executable { 0o755 } else { 0o644 }, size_bytes)?;
        let copied = io::copy(&mut content.take(size_bytes), &mut self.out)?;
        let mut rest = [0];
        if copied != size_bytes || content.read(&mut rest)? != 0 {
            let reason = "a file changed its length while it was read";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.out.write_all(&[0; BLOCK][..padding(size_bytes) as usize])
    }

    /// Ends the archive and hands back what it was written to, not flushed.
    ///
    /// # Errors
    /// `out` fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }

    fn header(&mut self, kind: u8, path: &[u8], target: &[u8], mode: u32, size: u64) -> io::Result<()> {
        for (kind, text) in [(b'K', target), (b'L', path)] {
            if text.len() > FIELD_PATH_MAX {
                let text = [text, b"\0"].concat();
                let long = text.len() as u64;
                self.out.write_all(&block(kind, b"././@LongLink", b"", 0o644, long))?;
                self.out.write_all(&text)?;
                self.out.write_all(&[0; BLOCK][..padding(long) as usize])?;
            }
        }
        self.out.write_all(&block(kind, path, target, mode, size))
    }
}

/// One header.
fn block(kind: u8, path: &[u8], target: &[u8], mode: u32, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &path[..path.len().min(FIELD_PATH_MAX)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    if size <= OCTAL_SIZE_MAX {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    put(156, &[kind]);
    put(157, &target[..target.len().min(FIELD_PATH_MAX)]);
    put(257, b"ustar  \0");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
