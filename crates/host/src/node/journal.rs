//! Journals, of executions and of sets: append-only, flushed before anything they announce. Formats:
//! `docs/formats/journal.md`, `docs/formats/set.md`.

use std::{
    io,
    path::{Path, PathBuf},
};

use cutover_core::{
    execute::{Record, RecordError},
    model::{Digest, Instant},
};

use super::{
    error::NodeError,
    files::{Attempt as _, Files, FsError, gathered},
    place,
};
use crate::disk::{NewFile, OpenFile};

/// A journal open for appending.
pub(crate) struct Journal<'d> {
    files: &'d Files,
    path: PathBuf,
    file: Box<dyn NewFile + 'd>,
    /// Bytes that are known to be whole lines.
    size: u64,
}

/// What a journal file holds.
pub(crate) struct Read<T = Record> {
    /// Its records, in order.
    pub(crate) records: Vec<T>,
    /// When the first and the last line were written.
    pub(crate) written: Option<(Instant, Instant)>,
    /// Bytes of whole lines; what lies behind them is a torn tail.
    whole: u64,
    torn: bool,
}

/// Reads a journal; `None` when there is none. Only its last line may be damaged: that is a write that was cut off
/// before anybody could rely on it.
pub(crate) fn read(files: &Files, number: u64) -> Result<Option<Read>, NodeError> {
    read_lines(files, &place::journal(number), Record::from_line)
}

/// As [`read`], of whatever records `parse` makes of a line.
pub(crate) fn read_lines<T>(
    files: &Files,
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<(Instant, Vec<T>), RecordError>,
) -> Result<Option<Read<T>>, NodeError> {
    let Some(bytes) = files.read(path)? else { return Ok(None) };
    let damaged = |problem: String| NodeError::Damaged { path: path.display().to_string(), problem };
    let mut read = Read { records: Vec::new(), written: None, whole: 0, torn: false };
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let parsed = line.strip_suffix(b"\n").map_or(Err(RecordError::Checksum), &parse);
        match parsed {
            Ok((at, records)) => {
                read.whole += line.len() as u64;
                read.written = Some((read.written.map_or(at, |(first, _)| first), at));
                read.records.extend(records);
            }
            Err(RecordError::Checksum) if lines.peek().is_none() => read.torn = true,
            Err(error) => return Err(damaged(format!("line {}: {error}", index + 1))),
        }
    }
    Ok(Some(read))
}

/// How a journal ends, without reading all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No line is whole: nothing had begun.
    Empty,
    /// Its last line is whole and says that the execution has ended.
    Ended,
    /// It has to be read.
    Open,
}

/// Looks at the end of a journal.
pub(crate) fn end(files: &Files, number: u64) -> Result<End, NodeError> {
    let path = place::journal(number);
    let Some(mut lines) = Backwards::open(files, &path)? else { return Ok(End::Empty) };
    let Some(last) = lines.next().attempt("read", &path)? else { return Ok(End::Empty) };
    let records = last.strip_suffix(b"\n").and_then(|line| Record::from_line(line).ok());
    let is_end = |record: &Record| matches!(record, Record::Finished { .. });
    Ok(match records {
        Some((_, records)) if records.iter().any(is_end) => End::Ended,
        None if lines.is_at_start() => End::Empty,
        Some(_) | None => End::Open,
    })
}

/// The evidence that the journal of execution `number` holds for its restore point.
pub(crate) fn evidence(files: &Files, number: u64) -> Result<Option<Digest>, NodeError> {
    const FIELD: &[u8] = b"\"evidence\"";
    let path = place::journal(number);
    let Some(mut lines) = Backwards::open(files, &path)? else { return Ok(None) };
    while let Some(line) = lines.next().attempt("read", &path)? {
        // Only the line that names it is parsed: the plan in the first one can be large.
        if !line.windows(FIELD.len()).any(|part| part == FIELD) {
            continue;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let Ok((_, records)) = Record::from_line(line) else { continue };
        let found = records.iter().rev().find_map(|record| match record {
            Record::Done { evidence, .. } => *evidence,
            _ => None,
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The lines of a file from the last to the first. What stands before the lines that were asked for is not read: in a journal
/// that is the plan.
struct Backwards<'f> {
    file: Box<dyn OpenFile + 'f>,
    /// What was read and not handed out; it lies behind the first `before` bytes of the file.
    held: Vec<u8>,
    before: u64,
}

impl<'f> Backwards<'f> {
    /// How much is read at once, at least.
    const CHUNK_BYTES: usize = 16 << 10;

    fn open(files: &'f Files, path: &Path) -> Result<Option<Self>, FsError> {
        let file = match files.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.attempt("open", path)?,
        };
        let before = file.metadata().attempt("look at", path)?.size;
        Ok(Some(Self { file, held: Vec::new(), before }))
    }

    /// Whether the line that was handed out last is the first one of the file.
    fn is_at_start(&self) -> bool {
        self.before == 0 && self.held.is_empty()
    }

    /// The line before, with its newline if it has one.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        // The newline that ends a line is no end of the one before it.
        while self.before > 0 && self.start().is_none() {
            self.read()?;
        }
        let line = self.held.split_off(self.start().unwrap_or(0));
        Ok((!line.is_empty()).then_some(line))
    }

    /// Where the last line that is held begins, if that is known.
    fn start(&self) -> Option<usize> {
        let (_, rest) = self.held.split_last()?;
        rest.iter().rposition(|byte| *byte == b'\n').map(|newline| newline + 1)
    }

    /// Reads more, as much as is held already, so that a long line is not gone through again and again.
    fn read(&mut self) -> io::Result<()> {
        let wanted = self.before.min(self.held.len().max(Self::CHUNK_BYTES) as u64);
        let at = self.before - wanted;
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(Self::CHUNK_BYTES)];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.append(&mut self.held);
        (self.held, self.before) = (bytes, at);
        Ok(())
    }
}

/// The numbers of all journals, ascending.
pub(crate) fn numbers(files: &Files) -> Result<Vec<u64>, FsError> {
    let mut numbers: Vec<u64> = files
        .list(place::JOURNAL.as_ref())?
        .iter()
        .filter_map(|(name, _)| place::journal_number(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl<'d> Journal<'d> {
    /// Starts a journal. Its name is durable when this returns.
    pub(crate) fn create(files: &'d Files, path: PathBuf) -> Result<Self, FsError> {
        let file = retry_with_reserve(files, || files.disk.append(&path, 0o600)).attempt("create", &path)?;
        files.sync_parent(&path)?;
        Ok(Self { files, path, file, size: 0 })
    }

    /// Opens a journal to go on writing it; a torn tail is cut off first.
    pub(crate) fn resume<T>(files: &'d Files, path: PathBuf, read: &Read<T>) -> Result<Self, FsError> {
        if read.torn {
            tracing::warn!(journal = %path.display(), "the last line was cut off and is dropped");
            files.disk.truncate(&path, read.whole).attempt("repair", &path)?;
        }
        let file = files.disk.append(&path, 0o600).attempt("open", &path)?;
        Ok(Self { files, path, file, size: read.whole })
    }

    /// Appends the line of records that `write` writes and makes it durable; `write` returns its length in bytes. After an error
    /// the journal must not be written any more in this process, and the line is taken back: what a failed flush left in memory
    /// looks to the next process as if it were on disk, and no later flush brings it there
    /// (I13; `docs/decisions/0051-a-line-whose-flush-failed-is-taken-back.md`).
    pub(crate) fn append(
        &mut self,
        write: impl Fn(&mut dyn io::Write) -> io::Result<u64>,
    ) -> Result<(), FsError> {
        let appended = self.try_append(&write);
        if appended.is_err()
            && let Err(error) = self.files.disk.truncate(&self.path, self.size)
        {
            // The first error is the one worth reporting.
            tracing::error!(journal = %self.path.display(), %error, "a line that may not be on disk stays");
        }
        appended
    }

    fn try_append(&mut self, write: &dyn Fn(&mut dyn io::Write) -> io::Result<u64>) -> Result<(), FsError> {
        let written = gathered(&mut self.file, write).or_else(|error| {
            if !is_full(&error) {
                return Err(error);
            }
            // Part of the line may be there; it goes before the line is written whole.
            self.files.disk.truncate(&self.path, self.size)?;
            release_reserve(self.files)?;
            gathered(&mut self.file, write)
        });
        let bytes = written.attempt("write", &self.path)?;
        self.file.sync().attempt("flush", &self.path)?;
        self.size += bytes;
        Ok(())
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn retry_with_reserve<T>(files: &Files, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    work().or_else(|error| {
        if !is_full(&error) {
            return Err(error);
        }
        release_reserve(files)?;
        work()
    })
}

/// Gives up the bytes that were kept back for the moment when the disk is full.
pub(crate) fn release_reserve(files: &Files) -> io::Result<()> {
    tracing::warn!("the disk is full: the reserve is used");
    match files.disk.remove_file(place::RESERVE.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Bytes kept back for the journal.
const RESERVE_BYTES: usize = 1 << 20;

/// Sets the reserve aside again if it was used. Failing to is no error: the room is simply not there.
pub(crate) fn keep_reserve(files: &Files) -> Result<(), FsError> {
    let path = place::RESERVE.as_ref();
    match files.metadata(path)? {
        Some(metadata) if metadata.size == RESERVE_BYTES as u64 => return Ok(()),
        // A process died while it wrote it.
        Some(_) => files.remove_file(path)?,
        None => {}
    }
    // Not zeroes: a file system that compresses would keep nothing back.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(RESERVE_BYTES / 8)
    .flatten()
    .collect();
    match files.write_new(path, &bytes, 0o600) {
        Err(error) if is_full(&error.source) => {
            tracing::warn!("no room for the journal's reserve");
            Ok(())
        }
        written => written,
    }
}
