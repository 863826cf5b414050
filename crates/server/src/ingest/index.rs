//! `index.jsonl`: one JSON object for each stored episode, one line each, only ever appended to.
//!
//! Owns reading it with all its possible damage, the lock that writers share, and appending. A row is one write to a file
//! that is open for appending, under `flock` on that file; whoever takes the lock reads first what others appended, so
//! no key is ever written twice. Read [`Index`] first; docs/formats/index.md is the format.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use cutover_core::{
    admission::{EpisodeId, EpisodeKey, HostId, IndexRow, SeenRow},
    model::Digest,
};
use rustix::fs::{FlockOperation, flock};

use super::files;

/// The longest line read; a longer one is no row. A row of ours has at most 700 bytes.
const LINE_MAX: usize = 1 << 20;
/// How many warnings are kept with their place; further ones are counted.
const WARNINGS_KEPT: usize = 100;
/// How many of them are logged one by one.
const WARNINGS_LOGGED: u64 = 20;

/// What the first row of a key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The SHA-256 of the stored bytes.
    pub digest: Digest,
    /// How many bytes are stored.
    pub size: u64,
    /// Where the row begins in the file, in bytes.
    pub offset: u64,
}

/// Something in the file that is no row, or a row that does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A line, or what is left of a line after rows in it, is no row.
    #[error("at byte {offset}: no row: {reason}")]
    NoRow {
        /// Where the line begins.
        offset: u64,
        /// Why.
        reason: String,
    },
    /// A key that an earlier row has already; that one counts.
    #[error("at byte {offset}: a second row for {key}; the first counts")]
    Second {
        /// Where the line begins.
        offset: u64,
        /// The key.
        key: EpisodeKey,
        /// Whether it says the same of the bytes as the first.
        same: bool,
    },
    /// The last line has no end: whoever wrote it was stopped.
    #[error("at byte {offset}: the last line is torn")]
    Torn {
        /// Where the line begins.
        offset: u64,
    },
}

/// All that was odd about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    /// How many.
    pub count: u64,
    /// The first hundred.
    pub first: Vec<Warning>,
}

impl Warnings {
    fn add(&mut self, path: &Path, warning: Warning) {
        self.count += 1;
        if self.count <= WARNINGS_LOGGED {
            tracing::warn!(index = %path.display(), "{warning}");
        }
        if self.first.len() < WARNINGS_KEPT {
            self.first.push(warning);
        }
    }
}

/// The rows that count, by key.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    hosts: HashMap<HostId, Host>,
    /// What was odd.
    pub warnings: Warnings,
}

#[derive(Clone, Debug, Default)]
struct Host {
    episodes: HashMap<EpisodeId, Entry>,
    bytes: u64,
}

impl Loaded {
    /// Reads a file as it is, under a shared lock, writing nothing. No file: no rows.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        wait_for(&file, FlockOperation::LockShared)?;
        let mut loaded = Self::default();
        loaded.take_in(path, &file, 0)?;
        Ok(loaded)
    }

    /// What the row of a key says.
    pub fn get(&self, key: &EpisodeKey) -> Option<&Entry> {
        self.hosts.get(&key.host)?.episodes.get(&key.episode)
    }

    /// How many episodes and bytes a host has.
    pub fn of_host(&self, host: &HostId) -> (usize, u64) {
        self.hosts.get(host).map_or((0, 0), |host| (host.episodes.len(), host.bytes))
    }

    /// The hosts that have episodes, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.hosts.keys()
    }

    /// The episodes of a host, in no order.
    pub fn episodes(&self, host: &HostId) -> impl Iterator<Item = (&EpisodeId, &Entry)> {
        self.hosts.get(host).into_iter().flat_map(|host| host.episodes.iter())
    }

    /// How many episodes there are.
    pub fn len(&self) -> usize {
        self.hosts.values().map(|host| host.episodes.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// The first row of a key counts.
    fn insert(&mut self, path: &Path, key: EpisodeKey, entry: Entry) {
        let Some(host) = self.hosts.get_mut(&key.host) else {
            let host = Host { bytes: entry.size, episodes: HashMap::from([(key.episode, entry)]) };
            self.hosts.insert(key.host, host);
            return;
        };
        match host.episodes.get(&key.episode) {
            Some(first) => {
                let same = first.digest == entry.digest;
                self.warnings.add(path, Warning::Second { offset: entry.offset, key, same });
            }
            None => {
                host.bytes = host.bytes.saturating_add(entry.size);
                host.episodes.insert(key.episode, entry);
            }
        }
    }

    /// Reads from `start` to the end. Returns where the end is and whether the last line has one.
    fn take_in(&mut self, path: &Path, file: &File, start: u64) -> io::Result<(u64, Tail)> {
        let mut reader = BufReader::with_capacity(1 << 20, file);
        reader.seek(SeekFrom::Start(start))?;
        let mut offset = start;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok((offset, Tail::Whole));
            }
            let ended = line.last() == Some(&b'\n');
            if ended || read < LINE_MAX {
                self.line(path, offset, &line, ended);
            } else {
                self.warnings.add(path, Warning::NoRow { offset, reason: "the line is too long".to_owned() });
                offset += skip_line(&mut reader)?;
            }
            offset += read as u64;
            if !ended && reader.fill_buf()?.is_empty() {
                return Ok((offset, Tail::Torn));
            }
        }
    }

    /// Takes in what one line says. Rows that two writers glued together count each.
    fn line(&mut self, path: &Path, offset: u64, line: &[u8], ended: bool) {
        let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| offset == 0).unwrap_or(line).trim_ascii();
        if text.is_empty() {
            return;
        }
        let rows = serde_json::Deserializer::from_slice(text).into_iter::<SeenRow<'_>>();
        let mut reason = None;
        for row in rows {
            let row = row.map_err(|error| error.to_string());
            match row.and_then(|row| Ok((row.key().map_err(|error| error.to_string())?, row))) {
                Ok((key, row)) => {
                    self.insert(path, key, Entry { digest: row.sha256, size: row.size_bytes, offset })
                }
                Err(error) => {
                    reason = Some(error);
                    break;
                }
            }
        }
        match reason {
            Some(reason) if ended => self.warnings.add(path, Warning::NoRow { offset, reason }),
            Some(_) => self.warnings.add(path, Warning::Torn { offset }),
            None => {}
        }
    }
}

/// Reads on to the end of a line that is too long. Returns how many bytes that were.
fn skip_line(reader: &mut impl io::BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(length);
        skipped += length as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

/// Whether the last line is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Whole,
    Torn,
}

/// An index that is open for appending.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    file: File,
    rows: Rows,
    /// Up to here the file was read.
    read_to: u64,
    tail: Tail,
    trust: Trust,
}

/// The rows of an index that is open elsewhere: cheap to copy, never waiting for the disk.
#[derive(Clone, Debug, Default)]
pub struct Rows(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    loaded: RwLock<Loaded>,
    /// Up to here the file is known to be durable.
    durable_to: AtomicU64,
}

impl Rows {
    /// All rows, also those whose flush is under way.
    pub fn all(&self) -> RwLockReadGuard<'_, Loaded> {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the row of a key says, once it is durable.
    pub fn durable(&self, key: &EpisodeKey) -> Option<Entry> {
        self.all().get(key).copied().filter(|entry| self.is_durable(entry))
    }

    /// Whether a row is durable.
    pub fn is_durable(&self, entry: &Entry) -> bool {
        entry.offset < self.0.durable_to.load(Ordering::Acquire)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Loaded> {
        self.0.loaded.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn durable_to(&self) -> u64 {
        self.0.durable_to.load(Ordering::Acquire)
    }

    fn set_durable_to(&self, end: u64) {
        self.0.durable_to.store(end, Ordering::Release);
    }
}

/// Whether the file can be flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Flushable,
    /// A flush failed: the page cache may say what the disk will never have (PROMISES, a retried fsync lies).
    FlushFailed,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is the first of its key and was written.
    Added,
    /// There was one already, saying this; nothing was written.
    Present(Entry),
}

impl Index {
    /// Opens an index, making an empty one when there is none, and reads it whole.
    ///
    /// # Errors
    /// It cannot be opened, made or read.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = open_or_make(&path)?;
        let mut index = Self {
            path,
            file,
            rows: Rows::default(),
            read_to: 0,
            tail: Tail::Whole,
            trust: Trust::Flushable,
        };
        drop(index.lock()?);
        Ok(index)
    }

    /// The rows as of the last time the lock was held.
    pub fn rows(&self) -> RwLockReadGuard<'_, Loaded> {
        self.rows.all()
    }

    /// The rows for others to look at while this index is in use.
    pub fn shared_rows(&self) -> Rows {
        self.rows.clone()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock, then reads what others appended since. Dropping what is returned gives the lock back.
    ///
    /// # Errors
    /// The file cannot be locked or read, or a new copy cannot be made after a flush has failed.
    pub fn lock(&mut self) -> io::Result<Locked<'_>> {
        self.lock_current_file()?;
        if self.trust == Trust::FlushFailed {
            self.rewrite()?;
        }
        self.catch_up()?;
        Ok(Locked { index: self })
    }

    /// The row of a key as it stands in the file, in one line with rows that were glued to it; `None` when the file does not
    /// hold it there any more.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn row_text(&self, entry: &Entry) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let mut block = [0; 4096];
        // As long as the lines that are read as rows at the start.
        while line.len() < LINE_MAX {
            let read = self.file.read_at(&mut block, entry.offset + line.len() as u64)?;
            let end = block[..read].iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&block[..end.unwrap_or(read)]);
            if end.is_some() || read == 0 {
                break;
            }
        }
        Ok(str::from_utf8(&line).ok().map(|line| line.trim_start_matches('\u{feff}').trim().to_owned()))
    }

    /// Takes the lock on the file that has the name now: somebody may have put another one there while we waited.
    fn lock_current_file(&mut self) -> io::Result<()> {
        loop {
            wait_for(&self.file, FlockOperation::LockExclusive)?;
            let ours = self.file.metadata()?;
            match std::fs::metadata(&self.path) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.file = open_or_make(&self.path)?;
            self.forget();
        }
    }

    fn forget(&mut self) {
        *self.rows.change() = Loaded::default();
        self.rows.set_durable_to(0);
        (self.read_to, self.tail) = (0, Tail::Whole);
        self.trust = Trust::Flushable;
    }

    fn catch_up(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length == self.read_to {
            return Ok(());
        }
        if length < self.read_to || self.tail == Tail::Torn {
            // It was cut, or somebody ended the torn line: what we know of it may be wrong.
            tracing::debug!(index = %self.path.display(), "reading the index anew");
            *self.rows.change() = Loaded::default();
            self.read_to = 0;
        }
        self.rows.set_durable_to(self.rows.durable_to().min(self.read_to));
        (self.read_to, self.tail) = self.rows.change().take_in(&self.path, &self.file, self.read_to)?;
        Ok(())
    }

    /// Copies the file to a new inode that can be flushed, and puts it in the place of the old one. The lock of the old
    /// file is held all the while; who waits for it looks at the name again.
    fn rewrite(&mut self) -> io::Result<()> {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let new = files::parent(&self.path).join(format!(".{name}.new"));
        files::remove(&new)?;
        let mut copy = OpenOptions::new().read(true).append(true).create_new(true).mode(0o644).open(&new)?;
        wait_for(&copy, FlockOperation::LockExclusive)?;
        let mut old = &self.file;
        old.seek(SeekFrom::Start(0))?;
        io::copy(&mut old, &mut copy)?;
        files::keep_owner(&copy, &new)?;
        copy.sync_all()?;
        files::replace(&new, &self.path)?;
        tracing::warn!(index = %self.path.display(), "wrote the index anew: it could not be flushed");
        self.file = copy;
        self.forget();
        Ok(())
    }
}

/// An index whose lock is held.
#[derive(Debug)]
pub struct Locked<'a> {
    index: &'a mut Index,
}

impl Locked<'_> {
    /// All rows, those that others appended included.
    pub fn rows(&self) -> RwLockReadGuard<'_, Loaded> {
        self.index.rows.all()
    }

    /// Appends a row unless its key has one. One write; durable after [`Locked::sync`].
    ///
    /// # Errors
    /// It cannot be written. What was written of it is cut off again, or ended by the next writer.
    pub fn append(&mut self, row: &IndexRow) -> io::Result<Appended> {
        let index = &mut *self.index;
        let key = row.key();
        if let Some(entry) = index.rows.all().get(&key) {
            return Ok(Appended::Present(*entry));
        }
        let mut line = row.line();
        let starts = usize::from(index.tail == Tail::Torn);
        if starts == 1 {
            line.insert(0, b'\n');
        }
        match (&index.file).write(&line) {
            Ok(written) if written == line.len() => {}
            failed => {
                let cut = index.file.set_len(index.read_to);
                index.tail = if cut.is_ok() { index.tail } else { Tail::Torn };
                let short = || io::Error::new(io::ErrorKind::StorageFull, "the row was written in part only");
                return Err(failed.err().unwrap_or_else(short));
            }
        }
        let entry = Entry { digest: row.sha256, size: row.size_bytes, offset: index.read_to + starts as u64 };
        index.read_to += line.len() as u64;
        index.tail = Tail::Whole;
        index.rows.change().insert(&index.path, key, entry);
        Ok(Appended::Added)
    }

    /// Flushes rows that are not known to be durable, those of others included.
    ///
    /// # Errors
    /// It cannot be flushed. Then no row since the last flush counts as written: all are read again from a new copy of the
    /// file when the lock is taken next.
    pub fn sync(&mut self) -> io::Result<()> {
        let index = &mut *self.index;
        if index.rows.durable_to() == index.read_to {
            return Ok(());
        }
        match index.file.sync_data() {
            Ok(()) => {
                index.rows.set_durable_to(index.read_to);
                Ok(())
            }
            Err(error) => {
                index.trust = Trust::FlushFailed;
                Err(error)
            }
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // An open file that cannot be unlocked is no file of ours any more.
        let _ = flock(&self.index.file, FlockOperation::Unlock);
    }
}

fn open_or_make(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o644);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    match options.create_new(true).open(path) {
        Ok(file) => {
            files::keep_owner(&file, path)?;
            file.sync_all()?;
            files::sync_directory(files::parent(path))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_or_make(path),
        Err(error) => Err(error),
    }
}

/// `flock`, again when a signal interrupts it.
fn wait_for(file: impl AsFd, operation: FlockOperation) -> io::Result<()> {
    rustix::io::retry_on_intr(|| flock(&file, operation)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(host: &str, episode: &str) -> IndexRow {
        IndexRow {
            backfilled: false,
            commit: None,
            commit_verified: false,
            episode_id: episode.parse().unwrap(),
            host_id: host.parse().unwrap(),
            received_at_wall: "2026-01-02T03:04:05.000000+00:00".to_owned(),
            schema_version: 1,
            sha256: Digest::of(episode.as_bytes()),
            size_bytes: episode.len() as u64,
        }
    }

    fn line(episode: &str) -> String {
        String::from_utf8(row("h", episode).line()).unwrap()
    }

    fn loaded(bytes: &[u8]) -> (Loaded, Index, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.jsonl");
        std::fs::write(&path, bytes).unwrap();
        (Loaded::read(&path).unwrap(), Index::open(&path).unwrap(), directory)
    }

    fn names(rows: &Loaded) -> Vec<String> {
        let mut names: Vec<String> = rows
            .hosts()
            .flat_map(|host| rows.episodes(host).map(move |(episode, _)| format!("{host}/{episode}")))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn appended_rows_are_found_again_and_a_second_of_the_same_key_is_not_written() {
        let (_, mut index, directory) = loaded(b"");
        let mut locked = index.lock().unwrap();
        assert_eq!(locked.append(&row("h", "a")).unwrap(), Appended::Added);
        assert!(matches!(locked.append(&row("h", "a")).unwrap(), Appended::Present(_)));
        assert_eq!(locked.append(&row("i", "a")).unwrap(), Appended::Added);
        locked.sync().unwrap();
        drop(locked);
        let text = std::fs::read_to_string(directory.path().join("index.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2);
        let entry = index.shared_rows().durable(&row("i", "a").key()).unwrap();
        assert_eq!(
            index.row_text(&entry).unwrap().unwrap() + "\n",
            String::from_utf8(row("i", "a").line()).unwrap()
        );
        assert_eq!(Index::open(index.path()).unwrap().rows().of_host(&"h".parse().unwrap()), (1, 1));
    }

    #[test]
    fn order_marks_carriage_returns_blank_glued_and_double_lines_lose_no_row() {
        let (a, b, c) = (line("a"), line("b"), line("c"));
        let glued = format!("\u{feff}{}\r\n\r\n{}{}nonsense\n{a}[]\n\"x\"\n", a.trim(), b.trim(), c.trim());
        let (rows, ..) = loaded(glued.as_bytes());
        assert_eq!(names(&rows), ["h/a", "h/b", "h/c"]);
        assert_eq!(rows.warnings.count, 4, "{:?}", rows.warnings);
        let second = Warning::Second { offset: 0, key: row("h", "a").key(), same: true };
        assert!(
            rows.warnings
                .first
                .iter()
                .any(|warning| std::mem::discriminant(warning) == std::mem::discriminant(&second))
        );
    }

    #[test]
    fn first_row_of_a_key_counts() {
        let other = line("a").replace(&Digest::of(b"a").to_string(), &Digest::of(b"other").to_string());
        let (rows, ..) = loaded(format!("{}{other}", line("a")).as_bytes());
        assert_eq!(rows.get(&row("h", "a").key()).unwrap().digest, Digest::of(b"a"));
        let offset = line("a").len() as u64;
        assert_eq!(rows.warnings.first, [Warning::Second { offset, key: row("h", "a").key(), same: false }]);
    }

    #[test]
    fn line_without_end_in_sight_is_skipped_within_bounds() {
        let long = format!("{}{}\n{}", line("a"), "x".repeat(3 * LINE_MAX), line("b"));
        let (rows, ..) = loaded(long.as_bytes());
        assert_eq!((names(&rows), rows.warnings.count), (vec!["h/a".to_owned(), "h/b".to_owned()], 1));
        let torn = format!("{}{}", line("a"), "x".repeat(2 * LINE_MAX));
        let (rows, mut index, _directory) = loaded(torn.as_bytes());
        assert_eq!(names(&rows), ["h/a"]);
        index.lock().unwrap().append(&row("h", "z")).unwrap();
        assert_eq!(names(&Loaded::read(index.path()).unwrap()), ["h/a", "h/z"]);
    }

    // I31
    #[test]
    fn torn_last_line_is_ignored_and_the_next_row_starts_on_a_new_line() {
        let torn = format!("{}{}", line("a"), &line("b")[..40]);
        let (rows, mut index, _directory) = loaded(torn.as_bytes());
        assert_eq!(names(&rows), ["h/a"]);
        assert_eq!(rows.warnings.first, [Warning::Torn { offset: line("a").len() as u64 }]);
        index.lock().unwrap().append(&row("h", "c")).unwrap();
        let text = std::fs::read_to_string(index.path()).unwrap();
        assert_eq!(text, format!("{torn}\n{}", line("c")));
        assert_eq!(names(&Loaded::read(index.path()).unwrap()), ["h/a", "h/c"]);
    }

    // I33
    #[test]
    fn two_writers_of_one_file_see_each_others_rows_and_write_no_key_twice() {
        let (_, first, directory) = loaded(b"");
        drop(first);
        let path = directory.path().join("index.jsonl");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut index = Index::open(&path).unwrap();
                    for number in 0..200 {
                        index.lock().unwrap().append(&row("h", &format!("e{number}"))).unwrap();
                    }
                });
            }
        });
        let rows = Loaded::read(&path).unwrap();
        assert_eq!((rows.len(), rows.warnings.count), (200, 0));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 200);
    }

    #[test]
    fn file_that_another_was_renamed_over_is_left_for_the_new_one() {
        let (_, mut index, directory) = loaded(line("a").as_bytes());
        let new = directory.path().join("new");
        std::fs::write(&new, line("b")).unwrap();
        std::fs::rename(&new, index.path()).unwrap();
        index.lock().unwrap().append(&row("h", "c")).unwrap();
        assert_eq!(names(&index.rows()), ["h/b", "h/c"]);
        assert_eq!(std::fs::read_to_string(index.path()).unwrap().lines().count(), 2);
    }

    #[test]
    fn after_a_failed_flush_the_rows_go_to_a_new_inode() {
        let (_, mut index, _directory) = loaded(line("a").as_bytes());
        let before = index.file.metadata().unwrap().ino();
        index.trust = Trust::FlushFailed;
        let mut locked = index.lock().unwrap();
        locked.append(&row("h", "b")).unwrap();
        locked.sync().unwrap();
        drop(locked);
        assert_ne!(std::fs::metadata(index.path()).unwrap().ino(), before);
        assert_eq!(names(&Loaded::read(index.path()).unwrap()), ["h/a", "h/b"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        // index-2
        #[test]
        fn every_prefix_costs_at_most_its_last_row(cut in 0usize..700) {
            let whole = format!("{}{}{}", line("a"), line("b"), line("c"));
            let cut = cut.min(whole.len());
            let (rows, mut index, _directory) = loaded(&whole.as_bytes()[..cut]);
            let ended = whole[..cut].lines().filter(|row| row.ends_with('}')).count();
            prop_assert_eq!(rows.len(), ended);
            index.lock().unwrap().append(&row("h", "z")).unwrap();
            let after = Loaded::read(index.path()).unwrap();
            prop_assert_eq!(after.len(), ended + 1);
        }

        // sig-7
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (rows, ..) = loaded(&bytes);
            prop_assert!(rows.is_empty());
        }
    }
}
