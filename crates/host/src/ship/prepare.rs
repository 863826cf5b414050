//! Making an episode ready to be sent: packing a folder, hashing, finding the commit.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use cutover_bundle::episode::{ArchiveWriter, CommitScan, META_NAME, ScanLimits, Scanned, commit_in_meta};
use cutover_core::{
    admission::{CommitHash, EpisodeKey},
    model::{Digest, Hasher},
};

use super::spool::{EntryError, Kind, OWN, Print, Spool};
use crate::disk::{Disk as _, EntryKind};

/// Blocks that are read and hashed.
const BLOCK: usize = 1 << 20;

/// What is sent for an episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// What it was made of.
    pub(super) print: Print,
    pub(super) sha256: Digest,
    pub(super) size_bytes: u64,
    /// Nothing when its `meta.json` names none; then no header is sent.
    pub(super) commit: Option<CommitHash>,
}

/// Where a packed folder lies, below the spool.
pub(super) fn packed_path(number: i64) -> PathBuf {
    PathBuf::from(format!("{OWN}/packed/{number}.tar.zst"))
}

/// Where the bytes to send lie, below the spool.
pub(super) fn bytes_path(path: &str, kind: Kind, number: i64) -> PathBuf {
    match kind {
        Kind::Archive => PathBuf::from(path),
        Kind::Folder => packed_path(number),
    }
}

/// Hashes an archive, or packs a folder; the packed file is durable. An error leaves nothing behind that counts.
pub(super) fn prepare(
    spool: &Spool,
    path: &str,
    kind: Kind,
    key: &EpisodeKey,
    number: i64,
    zstd_level: i32,
) -> Result<Prepared, EntryError> {
    let print = spool.print(path, kind)?;
    let prepared = match kind {
        Kind::Archive => read_archive(spool, path, print)?,
        Kind::Folder => pack(spool, path, key, number, zstd_level, print)?,
    };
    if spool.print(path, kind)?.strict != prepared.print.strict {
        return Err(still_written(path));
    }
    Ok(prepared)
}

fn still_written(path: &str) -> EntryError {
    let source =
        io::Error::new(io::ErrorKind::ResourceBusy, "it changed meanwhile; somebody still writes it");
    EntryError::io("read", Path::new(path))(source)
}

fn read_archive(spool: &Spool, path: &str, print: Print) -> Result<Prepared, EntryError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => EntryError::Gone,
        _ => EntryError::io("read", Path::new(path))(error),
    };
    let mut file = spool.disk.open(Path::new(path)).map_err(failed)?;
    let mut scan = CommitScan::new(ScanLimits::default()).map_err(failed)?;
    let (mut hasher, mut size_bytes, mut block) = (Hasher::new(), 0, vec![0; BLOCK]);
    let mut looking = true;
    loop {
        let read = match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(&block[..read]);
        size_bytes += read as u64;
        if looking {
            looking = scan.push(&block[..read]) == Scanned::More;
        }
    }
    let commit =
        scan.finish().inspect_err(|reason| tracing::warn!(path, %reason, "the archive says no commit")).ok();
    Ok(Prepared { print, sha256: hasher.finish(), size_bytes, commit })
}

/// Hashes and counts what is written.
struct Tee<W: Write> {
    to: BufWriter<W>,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.to.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn pack(
    spool: &Spool,
    path: &str,
    key: &EpisodeKey,
    number: i64,
    zstd_level: i32,
    print: Print,
) -> Result<Prepared, EntryError> {
    let (temporary, place) = (PathBuf::from(format!("{OWN}/packed/.{number}.tmp")), packed_path(number));
    let written = (|| {
        match spool.disk.remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(EntryError::io("remove", &temporary)(error));
            }
            _ => {}
        }
        let mut file = spool.disk.create(&temporary, 0o600).map_err(EntryError::io("make", &temporary))?;
        let written = write_archive(spool, Path::new(path), key, zstd_level, &mut *file, &temporary)?;
        file.sync().map_err(EntryError::io("flush", &temporary))?;
        Ok(written)
    })();
    let (sha256, size_bytes) = written.inspect_err(|_| {
        // The disk may be full because of it.
        let _ = spool.disk.remove_file(&temporary);
    })?;
    spool.disk.rename(&temporary, &place).map_err(EntryError::io("rename", &temporary))?;
    let directory = place.parent().unwrap_or(Path::new(OWN));
    spool.disk.sync_dir(directory).map_err(EntryError::io("flush", directory))?;
    let commit = meta(spool, path)?.as_deref().and_then(commit_in_meta);
    if commit.is_none() {
        tracing::warn!(path, "its meta.json names no full commit");
    }
    Ok(Prepared { print, sha256, size_bytes, commit })
}

/// Digest and size of what was written to `file`, which is called `place`.
fn write_archive(
    spool: &Spool,
    folder: &Path,
    key: &EpisodeKey,
    zstd_level: i32,
    file: &mut dyn Write,
    place: &Path,
) -> Result<(Digest, u64), EntryError> {
    let out = Tee { to: BufWriter::with_capacity(BLOCK, file), hasher: Hasher::new(), bytes: 0 };
    let mut archive = ArchiveWriter::new(out, zstd_level).map_err(EntryError::io("write", place))?;
    write_members(spool, folder, key, &mut archive)?;
    let mut out = archive.finish().map_err(EntryError::io("write", place))?;
    out.flush().map_err(EntryError::io("write", place))?;
    Ok((out.hasher.finish(), out.bytes))
}

fn write_members<W: Write>(
    spool: &Spool,
    folder: &Path,
    key: &EpisodeKey,
    archive: &mut ArchiveWriter<W>,
) -> Result<(), EntryError> {
    let root = Path::new(key.episode.as_str());
    let name = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
    archive.directory(&name(root)).map_err(EntryError::io("pack", folder))?;
    for member in spool.members(folder)? {
        let below = member.path.strip_prefix(folder).expect("members lie below their folder");
        let inside = name(&root.join(below));
        let failed = EntryError::io("pack", &member.path);
        match member.metadata.kind {
            EntryKind::Directory => archive.directory(&inside).map_err(failed)?,
            EntryKind::Symlink => {
                let target =
                    spool.disk.read_link(&member.path).map_err(EntryError::io("read", &member.path))?;
                archive.symlink(&inside, target.as_bytes()).map_err(failed)?;
            }
            EntryKind::File => {
                let content = spool.disk.open(&member.path).map_err(EntryError::io("open", &member.path))?;
                let size = content.metadata().map_err(EntryError::io("look at", &member.path))?.size;
                let executable = member.metadata.mode & 0o100 != 0;
                let mut content = BufReader::with_capacity(BLOCK, content);
                archive.file(&inside, executable, size, &mut content).map_err(failed)?;
            }
            EntryKind::Other => unreachable!("special files end the listing"),
        }
    }
    Ok(())
}

/// The `meta.json` of a folder, if it has one that is a file of a sensible size.
fn meta(spool: &Spool, path: &str) -> Result<Option<Vec<u8>>, EntryError> {
    let path = Path::new(path).join(META_NAME);
    let limit = ScanLimits::default().meta_bytes_max;
    match spool.disk.metadata(&path).map_err(EntryError::io("look at", &path))? {
        Some(metadata) if metadata.kind == EntryKind::File && metadata.size <= limit => {
            let mut bytes = Vec::new();
            let file = spool.disk.open(&path).map_err(EntryError::io("open", &path))?;
            file.take(limit).read_to_end(&mut bytes).map_err(EntryError::io("read", &path))?;
            Ok(Some(bytes))
        }
        _ => Ok(None),
    }
}

/// Opens the bytes to send, if they are as many as were hashed.
pub(super) fn open_bytes(spool: &Spool, place: &Path, size_bytes: u64) -> Result<Option<File>, EntryError> {
    let path = spool.disk.root().join(place);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW;
    match rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            let metadata = file.metadata().map_err(EntryError::io("look at", place))?;
            Ok((metadata.is_file() && metadata.size() == size_bytes).then_some(file))
        }
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(EntryError::io("open", place)(error.into())),
    }
}
