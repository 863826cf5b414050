//! Stored episodes: from bytes that come in to a file and a row that survive a power cut.
//!
//! An [`Upload`] takes the bytes to an unfinished file. [`Store::commit`] then makes it an episode: the file is flushed,
//! renamed, its directory flushed (or written to a bucket), its row appended and flushed, and only then is there an answer. Uploads that end at about
//! the same time share these flushes: one thread takes all that wait, and flushes once for all of them
//! (docs/decisions/0040). That thread alone decides who of two was first. Read [`Store`] first.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write as _},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cutover_core::{
    admission::{CommitHash, EpisodeKey, IndexRow, SCHEMA_VERSION, received_at_wall},
    model::{Digest, Hasher},
};
use cutover_host::disk::begin_write_back;
use tokio::sync::{mpsc, oneshot};

use super::{
    Appended, Bucket, Entry, Index, Layout, Loaded, Rows,
    bucket::{Mending, Placed, Remote},
    directory::{self, Directory},
    files,
    inspect::{BLOCK, Commit, Inspected, inspect},
    sequences::{Sequences, Use},
};

/// Most uploads that share one flush.
const BATCH_MAX: usize = 512;
/// Most finished uploads that wait for the committing thread; more wait with their connection.
const QUEUE: usize = 4096;
/// An upload's bytes are handed to the disk in pieces of this size while more come in, so that little is left to flush.
const WRITE_OUT: u64 = 8 << 20;

/// The wall clock: an argument, so that there is one.
pub type Clock = fn() -> jiff::Timestamp;

/// Why an upload was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// 507: the disk is full. Nothing is left of the upload.
    #[error("there is no room left for `{0}`")]
    NoRoom(EpisodeKey),
    /// 500: something else went wrong. What was not answered may be sent again.
    #[error("failed to {what} for `{key}`")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// For which episode.
        key: EpisodeKey,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// 503: the bucket could not be written to, or it is not known whether it was. Nothing is left on this machine.
    #[error("failed to write `{key}` to the bucket")]
    Away {
        /// Which episode.
        key: EpisodeKey,
        /// When it may be tried again.
        retry_after: Duration,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// 503: the receiver is stopping.
    #[error("the receiver is stopping")]
    Stopping,
}

impl StoreError {
    pub(super) fn of(what: &'static str, key: &EpisodeKey, source: &io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoRoom(key.clone())
            }
            _ => Self::Io { what, key: key.clone(), source: copy_of(source) },
        }
    }
}

/// One error told to several uploads.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// File and row are durable now.
    New,
    /// They were there already, with the same bytes; both are durable.
    Present,
    /// There is another episode of this key; nothing has changed.
    Conflict {
        /// The SHA-256 of what is stored.
        stored: Digest,
    },
    /// The sequence number of its signature was used for another upload; nothing has changed.
    Replayed,
}

/// What is known about the origin of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The commit it was made by.
    pub commit: Option<CommitHash>,
    /// The sequence number of the host's signature that vouches for it; `None`: nobody does.
    pub sequence: Option<u64>,
}

/// What episodes are kept in.
#[derive(Debug)]
enum Home {
    Directory(Arc<Directory>),
    Bucket {
        remote: Arc<Remote>,
        /// How many unfinished uploads were removed from its spool.
        left: u64,
    },
}

/// The directory of the gate, open for storing, with the bucket if the episodes are kept in one.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    home: Home,
    rows: Rows,
    parts: AtomicU64,
    queue: Mutex<Option<mpsc::Sender<Item>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    index: Arc<Mutex<Index>>,
    sequences: Arc<Mutex<Sequences>>,
    /// Stops the thread that looks through a bucket, when dropped.
    mending: Mutex<Option<std::sync::mpsc::Sender<()>>>,
    /// Held as long as the store is open: one receiver per directory.
    _lock: File,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another receiver has it.
    #[error("another receiver uses `{0}`")]
    InUse(String),
    /// It cannot be made, read or locked.
    #[error("failed to open `{path}`")]
    Io {
        /// Which file or directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// Opens the directory of a gate, making it when it is not there, and starts the committing thread. With a `bucket`, episodes
    /// are kept there, and the directory has the index only.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(root: &Path, bucket: Option<Arc<dyn Bucket>>, clock: Clock) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(root);
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| OpenError::Io { path, source }
        };
        files::make_directories(root).map_err(io(root))?;
        let lock_path = root.join(".receiver.lock");
        let lock = files::lock_file(&lock_path).map_err(io(&lock_path))?;
        let Some(lock) = lock else { return Err(OpenError::InUse(root.display().to_string())) };
        let home = match bucket {
            None => {
                let directory = Directory::open(&layout).map_err(io(&layout.episodes()))?;
                Home::Directory(Arc::new(directory))
            }
            Some(bucket) => {
                let (remote, left) = Remote::open(&layout, bucket).map_err(io(&layout.incoming()))?;
                Home::Bucket { remote: Arc::new(remote), left }
            }
        };
        let mut index = Index::open(layout.index()).map_err(io(&layout.index()))?;
        // What an earlier process wrote and did not answer may not be durable.
        index.lock().and_then(|mut index| index.sync()).map_err(io(&layout.index()))?;
        let rows = index.shared_rows();
        let attested = root.join("attested.jsonl");
        let sequences = Sequences::open(&attested).map_err(io(&attested))?;
        let sequences = Arc::new(Mutex::new(sequences));
        let (queue, items) = mpsc::channel(QUEUE);
        let index = Arc::new(Mutex::new(index));
        let directory = match &home {
            Home::Directory(directory) => Some(Arc::clone(directory)),
            Home::Bucket { .. } => None,
        };
        let mut committer = Committer {
            directory,
            index: Arc::clone(&index),
            sequences: Arc::clone(&sequences),
            items,
            clock,
            left: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("commit".to_owned()).spawn(move || committer.run());
        let thread = thread.map_err(io(root))?;
        Ok(Arc::new(Self {
            layout,
            home,
            rows,
            parts: AtomicU64::new(0),
            queue: Mutex::new(Some(queue)),
            committer: Mutex::new(Some(thread)),
            index,
            sequences,
            mending: Mutex::default(),
            _lock: lock,
        }))
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is stored.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The row of an episode, once it is durable. Reads the file: not for an async thread.
    ///
    /// # Errors
    /// The index cannot be read, or does not say any more what it said.
    pub fn row(&self, key: &EpisodeKey) -> io::Result<Option<serde_json::Value>> {
        let Some(entry) = self.rows.durable(key) else { return Ok(None) };
        let text = lock(&self.index).row_text(&entry)?.unwrap_or_default();
        // Rows that were glued together share a line.
        let rows = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let is_it = |row: &serde_json::Value| {
            row["host_id"] == key.host.as_str() && row["episode_id"] == key.episode.as_str()
        };
        // Somebody asks whether an episode is safe: what is known to be stored is never said not to be.
        let gone =
            || io::Error::new(io::ErrorKind::InvalidData, format!("the row of `{key}` is not in its place"));
        rows.map_while(Result::ok).find(is_it).map(Some).ok_or_else(gone)
    }

    /// Bytes free for this process on the file system that uploads come to.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let room = rustix::fs::fstatvfs(match &self.home {
            Home::Directory(directory) => directory.descriptor(),
            Home::Bucket { remote, .. } => remote.incoming(),
        })?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    /// For how long uploads should come no more, because the bucket has just failed.
    pub fn away_for(&self) -> Option<Duration> {
        match &self.home {
            Home::Directory(_) => None,
            Home::Bucket { remote, .. } => remote.away_for(),
        }
    }

    /// Whether uploads can still become episodes: the committing thread runs until it is told to stop.
    pub fn is_committing(&self) -> bool {
        lock(&self.committer).as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Begins to take in an episode.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn begin(self: &Arc<Self>, key: EpisodeKey) -> Result<Upload, StoreError> {
        let of = |what| {
            let key = key.clone();
            move |error: io::Error| StoreError::of(what, &key, &error)
        };
        let (directory, flush) = match &self.home {
            Home::Directory(directory) => (directory.of_host(&key.host), Flush::Due),
            Home::Bucket { remote, .. } => (remote.incoming().try_clone(), Flush::Never),
        };
        let directory = directory.map_err(of("open the directory"))?;
        // Before there is a file whose bytes could be lost.
        let begun = match &self.home {
            Home::Directory(directory) => directory.failures(),
            Home::Bucket { .. } => 0,
        };
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let part = Layout::part_name(&key.episode, number);
        let file = files::create_at(&directory, &part).map_err(of("create a file"))?;
        let part = Part { directory, name: part };
        Ok(Upload { key, part, file, hasher: Hasher::new(), size: 0, handed_over: 0, flush, begun })
    }

    /// Makes an upload an episode. Durable when it returns well.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the upload is left, or a file that the next try or start gives its row.
    pub async fn commit(&self, finished: Finished, origin: Origin) -> Result<Stored, StoreError> {
        let queue = lock(&self.queue).clone().ok_or(StoreError::Stopping)?;
        let (reply, answer) = oneshot::channel();
        match &self.home {
            Home::Directory(_) => {
                let item = Item { finished, origin, placed: None, reply };
                queue.send(item).await.map_err(|_| StoreError::Stopping)?;
            }
            Home::Bucket { remote, .. } => {
                let turn = remote.turns.take(&finished.key, origin.sequence).await;
                let memory = remote.memory_for(finished.size).await?;
                let (remote, rows, sequences) =
                    (Arc::clone(remote), self.rows.clone(), Arc::clone(&self.sequences));
                // Once begun, it goes on to its row, whether or not the client waits for that.
                tokio::task::spawn_blocking(move || {
                    match remote.write(&finished, &origin, &rows, &sequences) {
                        Ok((stored, row)) => {
                            drop(memory);
                            let placed = Some(Placed { stored, row, _turn: turn });
                            // When nobody takes it, the receiver is stopping; the next start finds the object.
                            let _ = queue.blocking_send(Item { finished, origin, placed, reply });
                        }
                        Err(error) => {
                            // Nothing is left of it before it is answered.
                            drop((finished, turn));
                            let _ = reply.send(Err(error));
                        }
                    }
                });
            }
        }
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// Commits what waits, then stops. Waits for it.
    pub fn close(&self) {
        drop(lock(&self.mending).take());
        drop(lock(&self.queue).take());
        if let Some(thread) = lock(&self.committer).take() {
            // It has panicked only if our own code is wrong; then it said so on stderr.
            let _ = thread.join();
        }
    }

    /// What an earlier receiver left: unfinished uploads are removed, and stored episodes without a row get one. In a bucket
    /// they get it beside new uploads, after this has returned.
    ///
    /// # Errors
    /// The directory of all episodes cannot be read, or the index cannot be written. A file or a host's directory that cannot be
    /// read is logged and passed over.
    pub fn reconcile(&self, clock: Clock) -> io::Result<Reconciled> {
        let (rows, index) = (self.rows.clone(), Arc::clone(&self.index));
        match &self.home {
            Home::Directory(_) => {
                let mut done = Reconciled::default();
                let has_row = |key: &EpisodeKey| rows.all().get(key).is_some();
                done.parts = directory::mend(&self.layout, &has_row, &mut |key, inspected| {
                    append_inspected(&index, key, inspected, clock)?;
                    done.rows += 1;
                    Ok(())
                })?;
                Ok(done)
            }
            Home::Bucket { remote, left } => {
                let (stop, stopped) = std::sync::mpsc::channel();
                let mending = Mending { remote: Arc::clone(remote), index, rows, clock, stop: stopped };
                std::thread::Builder::new().name("mend".to_owned()).spawn(move || mending.run())?;
                *lock(&self.mending) = Some(stop);
                Ok(Reconciled { rows: 0, parts: *left })
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// What [`Store::reconcile`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Rows added for files that had none.
    pub rows: u64,
    /// Unfinished files removed.
    pub parts: u64,
}

/// An unfinished file; removed unless it becomes an episode.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) directory: OwnedFd,
    /// Empty once it has another name.
    pub(super) name: String,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // The next start removes what cannot be removed now.
            let _ = files::remove_at(&self.directory, &self.name);
        }
    }
}

/// Bytes that come in. Dropping it leaves nothing.
pub struct Upload {
    key: EpisodeKey,
    part: Part,
    file: File,
    hasher: Hasher,
    size: u64,
    handed_over: u64,
    flush: Flush,
    begun: u64,
}

impl Upload {
    /// Takes in more bytes. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| StoreError::of("write", &self.key, &error))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        if self.flush == Flush::Due && self.size - self.handed_over >= WRITE_OUT {
            begin_write_back(&self.file);
            self.handed_over = self.size;
        }
        Ok(())
    }

    /// Ends it: the bytes are hashed and on their way to the disk. A large file is flushed here, beside others.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn finish(self) -> Result<Finished, StoreError> {
        let flush = match self.flush {
            Flush::Due if self.size > WRITE_OUT => {
                self.file.sync_all().map_err(|error| StoreError::of("flush", &self.key, &error))?;
                Flush::Done
            }
            Flush::Due => {
                begin_write_back(&self.file);
                Flush::Due
            }
            flush @ (Flush::Done | Flush::Never) => flush,
        };
        Ok(Finished {
            key: self.key,
            part: self.part,
            file: self.file,
            digest: self.hasher.finish(),
            size: self.size,
            flush,
            begun: self.begun,
        })
    }
}

/// All bytes of an upload, hashed.
#[derive(Debug)]
pub struct Finished {
    pub(super) key: EpisodeKey,
    pub(super) part: Part,
    pub(super) file: File,
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    pub(super) flush: Flush,
    /// How often the file system could not be flushed before it began.
    pub(super) begun: u64,
}

/// What makes the bytes of an upload durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    Due,
    Done,
    /// They are only on their way to a bucket.
    Never,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) finished: Finished,
    pub(super) origin: Origin,
    /// What became of its object; `None`: its file is to be put in place.
    pub(super) placed: Option<Placed>,
    pub(super) reply: oneshot::Sender<Result<Stored, StoreError>>,
}

/// The thread that makes uploads episodes, all that wait at once.
struct Committer {
    /// What the episodes are put into; `None` with a bucket.
    directory: Option<Arc<Directory>>,
    index: Arc<Mutex<Index>>,
    sequences: Arc<Mutex<Sequences>>,
    items: mpsc::Receiver<Item>,
    clock: Clock,
    /// A second upload of a key, or with the same sequence number, waits until the first has its row.
    left: Vec<Item>,
}

/// An item on its way through one batch.
pub(super) struct Step {
    pub(super) item: Item,
    /// What it will be told; an error overrides it.
    pub(super) fate: Result<Stored, StoreError>,
    pub(super) row: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// It has one, or must not get one.
    None,
    /// Its bytes are in place and its row is due.
    Due,
}

impl Committer {
    fn run(&mut self) {
        loop {
            let mut batch = std::mem::take(&mut self.left);
            if batch.is_empty() {
                match self.items.blocking_recv() {
                    Some(item) => batch.push(item),
                    None => return,
                }
            }
            while batch.len() < BATCH_MAX {
                match self.items.try_recv() {
                    Ok(item) => batch.push(item),
                    Err(_) => break,
                }
            }
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Item>) {
        let batch = self.one_of_each(batch);
        let mut steps: Vec<Step> =
            batch.into_iter().map(|item| Step { item, fate: Ok(Stored::New), row: Row::None }).collect();
        if let Some(directory) = &self.directory {
            directory::flush_contents(&mut steps, directory);
        }
        let mut sequences = lock(&self.sequences);
        let mut index = lock(&self.index);
        match index.lock() {
            Ok(mut index) => {
                put_in_place(&mut steps, &index.rows(), &sequences);
                if let Some(directory) = &self.directory {
                    directory::flush_names(&mut steps, directory);
                }
                append_rows(&mut steps, &mut index, self.clock);
                take_sequences(&mut steps, &mut sequences);
            }
            Err(error) => fail_all(&mut steps, "lock the index", &error, |_| true),
        }
        drop((index, sequences));
        for step in steps {
            let Item { finished, reply, placed, .. } = step.item;
            // What did not become an episode is gone before anybody is answered.
            drop((finished, placed));
            // Who asked may be gone; the next try finds what is stored.
            let _ = reply.send(step.fate);
        }
    }

    fn one_of_each(&mut self, batch: Vec<Item>) -> Vec<Item> {
        let (mut keys, mut numbers) = (HashSet::new(), HashSet::new());
        let (first, again) = batch.into_iter().partition(|item| {
            let key = &item.finished.key;
            let number = item.origin.sequence.map(|sequence| (key.host.clone(), sequence));
            keys.insert(key.clone()) && number.is_none_or(|number| numbers.insert(number))
        });
        self.left = again;
        first
    }
}

/// Every upload that waits is in its place, or is told why not.
fn put_in_place(steps: &mut [Step], rows: &Loaded, sequences: &Sequences) {
    for step in steps.iter_mut().filter(|step| step.fate.is_ok()) {
        match &step.item.placed {
            None => directory::put_in_place(step, rows, sequences),
            Some(placed) => {
                let (stored, row) = placed.judge(&step.item.finished, rows);
                (step.fate, step.row) = (Ok(stored), row);
            }
        }
    }
}

/// Whether the signature of an upload was used for another one. The same upload again is no replay, as long as it is stored.
pub(super) fn is_replay(
    finished: &Finished,
    origin: &Origin,
    row: Option<&Entry>,
    sequences: &Sequences,
) -> bool {
    let Some(sequence) = origin.sequence else { return false };
    match sequences.judge(&finished.key, finished.digest, sequence) {
        Use::First => false,
        Use::Same => row.is_none(),
        Use::Replayed => true,
    }
}

/// Every new file gets its row, and every row is durable, also those that others wrote.
fn append_rows(steps: &mut [Step], index: &mut super::Locked<'_>, clock: Clock) {
    for step in steps.iter_mut().filter(|step| step.row == Row::Due) {
        let finished = &step.item.finished;
        let row =
            row(&finished.key, finished.digest, finished.size, &step.item.origin, clock, Written::AtOnce);
        match index.append(&row) {
            Ok(Appended::Added | Appended::Present(_)) => {}
            Err(error) => step.fate = Err(StoreError::of("append the row", &finished.key, &error)),
        }
    }
    if let Err(error) = index.sync() {
        fail_all(steps, "flush the index", &error, |_| true);
    }
}

/// After the row, so that an upload without one may be tried again with its number; before the answer, so that a number that
/// was answered is never taken again.
fn take_sequences(steps: &mut [Step], sequences: &mut Sequences) {
    let taken = |step: &&mut Step| matches!(step.fate, Ok(Stored::New | Stored::Present));
    for step in steps.iter_mut().filter(taken) {
        let finished = &step.item.finished;
        let Some(sequence) = step.item.origin.sequence else { continue };
        if sequences.judge(&finished.key, finished.digest, sequence) == Use::First
            && let Err(error) = sequences.take(&finished.key, finished.digest, sequence)
        {
            step.fate = Err(StoreError::of("keep the sequence number", &finished.key, &error));
        }
    }
    if let Err(error) = sequences.sync() {
        fail_all(steps, "flush the sequence numbers", &error, |step| step.item.origin.sequence.is_some());
    }
}

pub(super) fn fail_all(
    steps: &mut [Step],
    what: &'static str,
    error: &io::Error,
    which: impl Fn(&Step) -> bool,
) {
    for step in steps.iter_mut().filter(|step| which(step)) {
        if step.fate.is_ok() {
            step.fate = Err(StoreError::of(what, &step.item.finished.key, error));
        }
    }
}

/// Adds the row of a stored episode that has none, with the commit that it says itself; durable when it returns.
pub(super) fn append_found(
    index: &Mutex<Index>,
    key: &EpisodeKey,
    episode: &mut dyn Read,
    clock: Clock,
) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let inspected = inspect(episode, Commit::Find, key, &mut block, &mut |_| ())?;
    append_inspected(index, key, &inspected, clock)
}

fn append_inspected(
    index: &Mutex<Index>,
    key: &EpisodeKey,
    inspected: &Inspected,
    clock: Clock,
) -> io::Result<()> {
    let Inspected { digest, size, commit } = inspected;
    let origin = Origin { commit: commit.clone(), sequence: None };
    let mut index = lock(index);
    let mut index = index.lock()?;
    index.append(&row(key, *digest, *size, &origin, clock, Written::Later))?;
    index.sync()
}

/// Whether a row is written when its episode is received.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    AtOnce,
    Later,
}

fn row(
    key: &EpisodeKey,
    sha256: Digest,
    size_bytes: u64,
    origin: &Origin,
    clock: Clock,
    written: Written,
) -> IndexRow {
    IndexRow {
        backfilled: written == Written::Later,
        commit: origin.commit.clone(),
        commit_verified: origin.sequence.is_some(),
        episode_id: key.episode.clone(),
        host_id: key.host.clone(),
        received_at_wall: received_at_wall(clock()),
        schema_version: SCHEMA_VERSION,
        sha256,
        size_bytes,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn file_that_cannot_be_read_keeps_no_receiver_from_starting() {
        let place = tempfile::tempdir().unwrap();
        // The path of a file with a long name is longer than any path may be: not even root may open it.
        let mut root = place.path().to_owned();
        while root.as_os_str().as_bytes().len() < 3960 {
            let left = 3980 - root.as_os_str().as_bytes().len();
            root.push("d".repeat(left.min(200)));
        }
        let store = Store::open(&root, None, jiff::Timestamp::now).unwrap();
        let Home::Directory(directory) = &store.home else { panic!("it is one") };
        let host = directory.of_host(&"h".parse().unwrap()).unwrap();
        for name in ["e".to_owned(), "l".repeat(128)] {
            let name = Layout::file_name(&name.parse().unwrap());
            files::create_at(&host, &name).unwrap().write_all(b"x").unwrap();
        }
        let done = store.reconcile(jiff::Timestamp::now).unwrap();
        assert_eq!(done, Reconciled { rows: 1, parts: 0 });
        assert!(store.rows().durable(&EpisodeKey::new("h", "e").unwrap()).is_some());
    }

    #[test]
    fn store_knows_whether_its_thread_still_runs() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path(), None, jiff::Timestamp::now).unwrap();
        assert!(store.is_committing());
        // As a panic ends it.
        drop(lock(&store.queue).take());
        while store.is_committing() {
            std::thread::sleep(Duration::from_millis(1));
        }
        store.close();
        assert!(!store.is_committing());
    }
}
