//! Episodes in a bucket: the port, and the way of an upload through it.
//!
//! An upload is spooled to `incoming/` first, and written to the bucket once it is whole and its digest is known. Its object
//! comes before its row, as a file does; both come before the answer (docs/decisions/0045). The index stays a file of this
//! machine. Objects are written beside each other, outside the committing thread; [`Turns`] keep two uploads of one episode,
//! or two with one signature, from being written at the same time. Read [`Bucket`] first.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use cutover_core::{
    admission::{EpisodeKey, HostId},
    causes::chain,
    model::{Digest, Hasher},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{
    Clock, Entry, Index, Layout, Loaded, Origin, Rows, files,
    inspect::{BLOCK, Commit, inspect},
    sequences::Sequences,
    store::{Finished, Row, StoreError, Stored, append_found, is_replay, lock},
};

/// Memory for objects that are written at the same time, in MiB, and what each is counted with: as much as it has, within these.
/// So there are at most 32 small ones or three large ones, each with a thread.
const MEMORY_MIB: usize = 96;
const EACH_MIB: (u64, u64) = (3, 32);
/// An object that cannot be read is passed over at the start after so many tries.
const READS: u32 = 3;
/// After a failure, uploads are refused before their body for so long; then the next one tries.
const AWAY: Duration = Duration::from_secs(5);
/// The first and the longest pause between two tries to list a bucket.
const LIST_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Where the bytes of episodes are kept, when not in the directory of the gate: objects that are written once, under paths such
/// as `episodes/<host>/<episode>.tar.zst`. Its calls block; they come from threads that may wait, several at once.
///
/// An error of the kind [`io::ErrorKind::StorageFull`] says that nothing more can be stored; every other one, that it may work
/// later.
pub trait Bucket: fmt::Debug + Send + Sync {
    /// What messages call it.
    fn place(&self) -> String;

    /// Stores `size` bytes, all or nothing, if there is nothing under this path; durable on return. An error of `content` stores
    /// nothing. Holds at most 32 MiB of them in memory.
    ///
    /// # Errors
    /// It cannot be stored, or it is not known whether it was.
    fn create(&self, path: &str, content: &mut dyn Read, size: u64) -> io::Result<Created>;

    /// The size of an object in bytes; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn size(&self, path: &str) -> io::Result<Option<u64>>;

    /// Opens an object for reading; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read + Send>>>;

    /// Visits the path and size of every object below a directory, in the order of their bytes, those after `after` only. Holds
    /// one page of them in memory.
    ///
    /// # Errors
    /// It cannot be listed, or the visit failed.
    fn list(
        &self,
        directory: &str,
        after: Option<&str>,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// What became of an object that was to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is stored.
    New,
    /// There was one under this path; nothing has changed.
    Taken,
}

/// A bucket, with what its uploads need on this machine.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) turns: Arc<Turns>,
    memory: Arc<Semaphore>,
    incoming: OwnedFd,
    away_until: Mutex<Option<Instant>>,
}

impl Remote {
    /// Opens the spool of uploads, making it when it is not there, and removes what an earlier receiver left in it. Returns how
    /// much that was.
    pub(super) fn open(layout: &Layout, bucket: Arc<dyn Bucket>) -> io::Result<(Self, u64)> {
        files::make_directories(&layout.incoming())?;
        let incoming = files::open_directory(&layout.incoming())?;
        let mut removed = 0;
        for file in std::fs::read_dir(layout.incoming())? {
            let file = file?;
            if Layout::is_part(&file.file_name()) {
                files::remove(&file.path())?;
                removed += 1;
            }
        }
        let (turns, memory) = (Arc::default(), Arc::new(Semaphore::new(MEMORY_MIB)));
        Ok((Self { bucket, turns, memory, incoming, away_until: Mutex::default() }, removed))
    }

    /// Where uploads are spooled.
    pub(super) fn incoming(&self) -> &OwnedFd {
        &self.incoming
    }

    /// Waits until there is memory for an object of this size.
    pub(super) async fn memory_for(&self, size: u64) -> Result<OwnedSemaphorePermit, StoreError> {
        let (least, most) = EACH_MIB;
        let mib = u32::try_from((size >> 20).clamp(least, most)).unwrap_or(u32::MAX);
        Arc::clone(&self.memory).acquire_many_owned(mib).await.map_err(|_| StoreError::Stopping)
    }

    /// For how long uploads should not even be tried.
    pub(super) fn away_for(&self) -> Option<Duration> {
        lock(&self.away_until).and_then(|until| until.checked_duration_since(Instant::now()))
    }

    /// Writes the object of an upload, unless its key or its signature was used before. The caller has the turn of both.
    pub(super) fn write(
        &self,
        finished: &Finished,
        origin: &Origin,
        rows: &Rows,
        sequences: &Mutex<Sequences>,
    ) -> Result<(Stored, Row), StoreError> {
        let row = rows.all().get(&finished.key).copied();
        if is_replay(finished, origin, row.as_ref(), &lock(sequences)) {
            return Ok((Stored::Replayed, Row::None));
        }
        let away = |retry_after, source| StoreError::Away { key: finished.key.clone(), retry_after, source };
        // Those that waited for others to fail need not fail as slowly.
        if let Some(wait) = self.away_for() {
            return Err(away(wait, io::Error::other("it has just failed for another upload")));
        }
        let placed = self.place(finished, row.as_ref());
        let is_away = placed.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::StorageFull);
        *lock(&self.away_until) = is_away.then(|| Instant::now() + AWAY);
        placed.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => StoreError::NoRoom(finished.key.clone()),
            _ => away(AWAY, error),
        })
    }

    fn place(&self, finished: &Finished, row: Option<&Entry>) -> io::Result<(Stored, Row)> {
        let path = Layout::object(&finished.key);
        let row_due = if row.is_some() { Row::None } else { Row::Due };
        if let Some(row) = row {
            if row.digest != finished.digest {
                return Ok((Stored::Conflict { stored: row.digest }, Row::None));
            }
            if self.bucket.size(&path)? == Some(row.size) {
                return Ok((Stored::Present, Row::None));
            }
        }
        let mut content = Spooled::new(finished);
        if self.bucket.create(&path, &mut content, finished.size)? == Created::New {
            // With a row and without an object, the object was lost; it is back, and the row stays as it is.
            let stored = if row.is_some() { Stored::Present } else { Stored::New };
            return Ok((stored, row_due));
        }
        // An object without a row: a receiver was killed between the two, or an answer of the bucket was lost.
        let object = self.bucket.open(&path)?;
        let mut object = object.ok_or_else(|| io::Error::other("somebody else writes it right now"))?;
        let mut block = vec![0; BLOCK];
        let stored = inspect(&mut object, Commit::Ignore, &finished.key, &mut block, &mut |_| ())?.digest;
        if stored != finished.digest {
            return Ok((Stored::Conflict { stored }, Row::None));
        }
        Ok((Stored::Present, row_due))
    }
}

/// What an object becomes, and the turn it was written in; the turn ends with the row.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) stored: Stored,
    pub(super) row: Row,
    pub(super) _turn: Turn,
}

impl Placed {
    /// What holds now that the index is locked: a repair may have added a row meanwhile.
    pub(super) fn judge(&self, finished: &Finished, rows: &Loaded) -> (Stored, Row) {
        match rows.get(&finished.key) {
            Some(row) if self.row == Row::Due && row.digest != finished.digest => {
                (Stored::Conflict { stored: row.digest }, Row::None)
            }
            Some(_) => (self.stored, Row::None),
            None => (self.stored, self.row),
        }
    }
}

/// The spooled bytes of an upload, read once. Ends with an error if they are not what came in.
struct Spooled<'a> {
    file: &'a File,
    at: u64,
    hasher: Option<Hasher>,
    expected: Digest,
}

impl<'a> Spooled<'a> {
    fn new(finished: &'a Finished) -> Self {
        Self { file: &finished.file, at: 0, hasher: Some(Hasher::new()), expected: finished.digest }
    }
}

impl Read for Spooled<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        match (&mut self.hasher, read) {
            (Some(_), 0) if into.is_empty() => {}
            (hasher, 0) => {
                if hasher.take().is_some_and(|hasher| hasher.finish() != self.expected) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the spooled bytes have changed"));
                }
            }
            (Some(hasher), _) => hasher.update(&into[..read]),
            (None, _) => {}
        }
        Ok(read)
    }
}

/// What only one upload may have at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Claimed {
    Episode(EpisodeKey),
    Number(HostId, u64),
}

/// The uploads that are being written.
#[derive(Debug, Default)]
pub(super) struct Turns {
    claimed: Mutex<HashSet<Claimed>>,
    freed: Notify,
}

impl Turns {
    /// Waits until nobody writes this episode or uses this number.
    pub(super) async fn take(self: &Arc<Self>, key: &EpisodeKey, number: Option<u64>) -> Turn {
        loop {
            let freed = self.freed.notified();
            if let Some(turn) = self.try_take(key, number) {
                return turn;
            }
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>, key: &EpisodeKey, number: Option<u64>) -> Option<Turn> {
        let mut wanted = vec![Claimed::Episode(key.clone())];
        wanted.extend(number.map(|number| Claimed::Number(key.host.clone(), number)));
        let mut claimed = lock(&self.claimed);
        if wanted.iter().any(|wanted| claimed.contains(wanted)) {
            return None;
        }
        claimed.extend(wanted.iter().cloned());
        Some(Turn { turns: Arc::clone(self), claimed: wanted })
    }
}

/// Held while an upload is written.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    claimed: Vec<Claimed>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut claimed = lock(&self.turns.claimed);
        for mine in &self.claimed {
            claimed.remove(mine);
        }
        drop(claimed);
        self.turns.freed.notify_waiters();
    }
}

/// Gives objects without a row theirs, beside uploads, once after each start.
pub(super) struct Mending {
    pub(super) remote: Arc<Remote>,
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) rows: Rows,
    pub(super) clock: Clock,
    /// Ends when its sender does.
    pub(super) stop: mpsc::Receiver<()>,
}

impl Mending {
    /// Goes through the bucket. While it is away, it is tried again, from where it was.
    pub(super) fn run(self) {
        let (mut after, mut pause) = (None, LIST_AGAIN.0);
        let (mut added, mut failures) = (0u64, 0);
        loop {
            let bucket = &self.remote.bucket;
            let listed = bucket.list(Layout::EPISODES, after.clone().as_deref(), &mut |path, _| {
                if self.is_stopped(Duration::ZERO) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                match self.visit(path) {
                    Ok(is_added) => added += u64::from(is_added),
                    Err(error) if failures + 1 < READS => {
                        failures += 1;
                        return Err(error);
                    }
                    Err(error) => {
                        let causes = chain(&error);
                        tracing::error!(
                            path,
                            "an episode without a row cannot be read, and gets none: {causes}"
                        );
                    }
                }
                (after, failures) = (Some(path.to_owned()), 0);
                Ok(())
            });
            match listed {
                Ok(()) if added > 0 => {
                    return tracing::warn!(
                        rows = added,
                        "mended what an earlier receiver left in the bucket"
                    );
                }
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
                Err(error) => {
                    let causes = chain(&error);
                    tracing::warn!(
                        place = bucket.place(),
                        "failed to look for episodes without a row: {causes}"
                    );
                }
            }
            if self.is_stopped(pause) {
                return;
            }
            pause = (pause * 2).min(LIST_AGAIN.1);
        }
    }

    fn is_stopped(&self, within: Duration) -> bool {
        matches!(self.stop.recv_timeout(within), Err(mpsc::RecvTimeoutError::Disconnected))
    }

    /// Adds the row of an object that has none. One that is being written gets it from its upload.
    fn visit(&self, path: &str) -> io::Result<bool> {
        let Some(key) = Layout::key_of(path) else { return Ok(false) };
        if self.rows.all().get(&key).is_some() {
            return Ok(false);
        }
        let Some(_turn) = self.remote.turns.try_take(&key, None) else { return Ok(false) };
        if self.rows.all().get(&key).is_some() {
            return Ok(false);
        }
        let Some(mut object) = self.remote.bucket.open(path)? else { return Ok(false) };
        append_found(&self.index, &key, &mut object, self.clock)?;
        Ok(true)
    }
}
