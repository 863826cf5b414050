//! Stored episodes: from bytes that come in to a file and a row that survive a power cut.
//!
//! An [`Upload`] takes the bytes to an unfinished file. [`Store::commit`] then makes it an episode: the file is flushed,
//! renamed, its directory flushed, its row appended and flushed, and only then is there an answer. Uploads that end at about
//! the same time share these flushes: one thread takes all that wait, and flushes once for all of them
//! (docs/decisions/0040). That thread alone decides who of two was first. Read [`Store`] first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use cutover_core::{
    admission::{CommitHash, EpisodeKey, HostId, IndexRow, SCHEMA_VERSION, received_at_wall},
    model::{Digest, Hasher},
};
use cutover_host::disk::begin_write_back;
use tokio::sync::{mpsc, oneshot};

use super::{
    Appended, Entry, Index, Layout, Rows, files,
    sequences::{Sequences, Use},
};

/// Most uploads that share one flush.
const BATCH_MAX: usize = 512;
/// Most finished uploads that wait for the committing thread; more wait with their connection.
const QUEUE: usize = 4096;
/// From so many files on, one flush of the file system is cheaper than one for each file.
const FLUSH_ALL_FROM: usize = 3;
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
    /// 503: the receiver is stopping.
    #[error("the receiver is stopping")]
    Stopping,
}

impl StoreError {
    fn of(what: &'static str, key: &EpisodeKey, source: &io::Error) -> Self {
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

/// The directory of the gate, open for storing.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    episodes: OwnedFd,
    rows: Rows,
    /// Hosts whose directory is known to be durable.
    hosts: Mutex<HashSet<HostId>>,
    parts: AtomicU64,
    queue: Mutex<Option<mpsc::Sender<Item>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    index: Arc<Mutex<Index>>,
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
    /// Opens the directory of a gate, making it when it is not there, and starts the committing thread.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(root: &Path, clock: Clock) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(root);
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| OpenError::Io { path, source }
        };
        files::make_directories(&layout.episodes()).map_err(io(&layout.episodes()))?;
        let lock_path = root.join(".receiver.lock");
        let lock = files::lock_file(&lock_path).map_err(io(&lock_path))?;
        let Some(lock) = lock else { return Err(OpenError::InUse(root.display().to_string())) };
        let episodes = files::open_directory(&layout.episodes()).map_err(io(&layout.episodes()))?;
        let mut index = Index::open(layout.index()).map_err(io(&layout.index()))?;
        // What an earlier process wrote and did not answer may not be durable.
        index.lock().and_then(|mut index| index.sync()).map_err(io(&layout.index()))?;
        let rows = index.shared_rows();
        let attested = root.join("attested.jsonl");
        let sequences = Sequences::open(&attested).map_err(io(&attested))?;
        let (queue, items) = mpsc::channel(QUEUE);
        let index = Arc::new(Mutex::new(index));
        let mut committer =
            Committer { index: Arc::clone(&index), sequences, items, clock, left: Vec::new() };
        let thread = std::thread::Builder::new().name("commit".to_owned()).spawn(move || committer.run());
        let thread = thread.map_err(io(root))?;
        Ok(Arc::new(Self {
            layout,
            episodes,
            rows,
            hosts: Mutex::default(),
            parts: AtomicU64::new(0),
            queue: Mutex::new(Some(queue)),
            committer: Mutex::new(Some(thread)),
            index,
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
    /// The index cannot be read.
    pub fn row(&self, key: &EpisodeKey) -> io::Result<Option<serde_json::Value>> {
        let Some(entry) = self.rows.durable(key) else { return Ok(None) };
        let text = lock(&self.index).row_text(&entry)?.unwrap_or_default();
        // Rows that were glued together share a line.
        let rows = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let is_it = |row: &serde_json::Value| {
            row["host_id"] == key.host.as_str() && row["episode_id"] == key.episode.as_str()
        };
        Ok(rows.map_while(Result::ok).find(is_it))
    }

    /// Bytes free for this process on the file system of the episodes.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let room = rustix::fs::fstatvfs(&self.episodes)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
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
        let directory = self.host_directory(&key.host).map_err(of("open the directory"))?;
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let part = Layout::part_name(&key.episode, number);
        let file = files::create_at(&directory, &part).map_err(of("create a file"))?;
        let part = Part { directory, name: part };
        Ok(Upload { key, part, file, hasher: Hasher::new(), size: 0, handed_over: 0 })
    }

    /// Makes an upload an episode. Durable when it returns well.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the upload is left, or a file that the next try or start gives its row.
    pub async fn commit(&self, finished: Finished, origin: Origin) -> Result<Stored, StoreError> {
        let queue = lock(&self.queue).clone().ok_or(StoreError::Stopping)?;
        let (reply, answer) = oneshot::channel();
        queue.send(Item { finished, origin, reply }).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// Commits what waits, then stops. Waits for it.
    pub fn close(&self) {
        drop(lock(&self.queue).take());
        if let Some(thread) = lock(&self.committer).take() {
            // It has panicked only if our own code is wrong; then it said so on stderr.
            let _ = thread.join();
        }
    }

    /// The directory of a host, made durable when it is first used.
    fn host_directory(&self, host: &HostId) -> io::Result<OwnedFd> {
        if lock(&self.hosts).contains(host) {
            return files::open_directory_at(&self.episodes, host.as_str());
        }
        files::make_directory_at(&self.episodes, host.as_str())?;
        rustix::fs::fsync(&self.episodes)?;
        let directory = files::open_directory_at(&self.episodes, host.as_str())?;
        lock(&self.hosts).insert(host.clone());
        Ok(directory)
    }

    /// What every directory of a host holds at the start: unfinished files are removed, and files without a row get one.
    ///
    /// # Errors
    /// The directories cannot be read, or the index cannot be written.
    pub fn reconcile(&self, clock: Clock) -> io::Result<Reconciled> {
        let mut done = Reconciled::default();
        for host in std::fs::read_dir(self.layout.episodes())? {
            let host = host?;
            let Some(id) = Layout::host_of(&host.file_name())
                .filter(|_| host.file_type().is_ok_and(|kind| kind.is_dir()))
            else {
                continue;
            };
            for file in std::fs::read_dir(host.path())? {
                let file = file?;
                if !file.file_type()?.is_file() {
                    continue;
                }
                if Layout::is_part(&file.file_name()) {
                    files::remove(&file.path())?;
                    done.parts += 1;
                    continue;
                }
                let Some(episode) = Layout::episode_of(&file.file_name()) else { continue };
                let key = EpisodeKey { host: id.clone(), episode };
                if self.rows.all().get(&key).is_none() {
                    self.add_row(&key, &file.path(), clock)?;
                    done.rows += 1;
                }
            }
        }
        Ok(done)
    }

    fn add_row(&self, key: &EpisodeKey, path: &Path, clock: Clock) -> io::Result<()> {
        let file = File::open(path)?;
        let (sha256, size_bytes) = hash(&file)?;
        file.sync_all()?;
        files::sync_directory(files::parent(path))?;
        let mut index = lock(&self.index);
        let mut index = index.lock()?;
        index.append(&row(key, sha256, size_bytes, &Origin::default(), clock, Written::Later))?;
        index.sync()
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
struct Part {
    directory: OwnedFd,
    /// Empty once it has another name.
    name: String,
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
        if self.size - self.handed_over >= WRITE_OUT {
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
        let large = self.size > WRITE_OUT;
        if large {
            self.file.sync_all().map_err(|error| StoreError::of("flush", &self.key, &error))?;
        } else {
            begin_write_back(&self.file);
        }
        let flush = if large { Flush::Done } else { Flush::Due };
        Ok(Finished {
            key: self.key,
            part: self.part,
            file: self.file,
            digest: self.hasher.finish(),
            size: self.size,
            flush,
        })
    }
}

/// All bytes of an upload, hashed.
#[derive(Debug)]
pub struct Finished {
    key: EpisodeKey,
    part: Part,
    file: File,
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    flush: Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Due,
    Done,
}

#[derive(Debug)]
struct Item {
    finished: Finished,
    origin: Origin,
    reply: oneshot::Sender<Result<Stored, StoreError>>,
}

/// The thread that makes uploads episodes, all that wait at once.
struct Committer {
    index: Arc<Mutex<Index>>,
    sequences: Sequences,
    items: mpsc::Receiver<Item>,
    clock: Clock,
    /// A second upload of a key, or with the same sequence number, waits until the first has its row.
    left: Vec<Item>,
}

/// An item on its way through one batch.
struct Step {
    item: Item,
    /// What it will be told; an error overrides it.
    fate: Result<Stored, StoreError>,
    row: Row,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    /// It has one, or must not get one.
    None,
    /// Its file is in place and its row is due.
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
        flush_contents(&mut steps);
        let mut index = lock(&self.index);
        match index.lock() {
            Ok(mut index) => {
                put_in_place(&mut steps, &index.rows(), &self.sequences);
                flush_directories(&mut steps);
                append_rows(&mut steps, &mut index, self.clock);
                take_sequences(&mut steps, &mut self.sequences);
            }
            Err(error) => fail_all(&mut steps, "lock the index", &error, |_| true),
        }
        drop(index);
        for step in steps {
            let Item { finished, reply, .. } = step.item;
            // What did not become an episode is gone before anybody is answered.
            drop(finished);
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

/// The bytes of every file become durable.
fn flush_contents(steps: &mut [Step]) {
    let due = steps.iter().filter(|step| step.item.finished.flush == Flush::Due).count();
    let is_due = |step: &Step| step.item.finished.flush == Flush::Due;
    if due >= FLUSH_ALL_FROM {
        let any =
            steps.iter().find(|step| is_due(step)).map(|step| rustix::fs::syncfs(&step.item.finished.file));
        if let Some(Err(error)) = any {
            fail_all(steps, "flush", &error.into(), is_due);
        }
        return;
    }
    for step in steps.iter_mut().filter(|step| is_due(step)) {
        if let Err(error) = step.item.finished.file.sync_all() {
            step.fate = Err(StoreError::of("flush", &step.item.finished.key, &error));
        }
    }
}

/// Every file gets its name, unless there is an episode of its key.
fn put_in_place(steps: &mut [Step], rows: &super::Loaded, sequences: &Sequences) {
    for step in steps.iter_mut().filter(|step| step.fate.is_ok()) {
        let finished = &mut step.item.finished;
        if let Some(sequence) = step.item.origin.sequence {
            let found = sequences.judge(&finished.key, finished.digest, sequence);
            // The same upload again is no replay, as long as it is stored.
            let again = found == Use::Same && rows.get(&finished.key).is_some();
            if found != Use::First && !again {
                step.fate = Ok(Stored::Replayed);
                continue;
            }
        }
        match place(finished, rows.get(&finished.key)) {
            Ok((stored, row)) => (step.fate, step.row) = (Ok(stored), row),
            Err(error) => step.fate = Err(StoreError::of("put the file in place", &finished.key, &error)),
        }
    }
}

fn place(finished: &mut Finished, row: Option<&Entry>) -> io::Result<(Stored, Row)> {
    let name = Layout::file_name(&finished.key.episode);
    let directory = &finished.part.directory;
    match row {
        Some(row) if row.digest != finished.digest => {
            return Ok((Stored::Conflict { stored: row.digest }, Row::None));
        }
        Some(_) if files::is_file_at(directory, &name)? => return Ok((Stored::Present, Row::None)),
        Some(_) | None => {}
    }
    if files::rename_new_at(directory, &finished.part.name, &name)? {
        finished.part.name.clear();
        // With a row and without a file, the file was lost; it is back, and the row stays as it is.
        return Ok(if row.is_some() { (Stored::Present, Row::None) } else { (Stored::New, Row::Due) });
    }
    // A file without a row: a receiver was killed between the two.
    let file = files::open_file_at(directory, &name)?;
    let (stored, _) = hash(&file)?;
    if stored != finished.digest {
        return Ok((Stored::Conflict { stored }, Row::None));
    }
    file.sync_all()?;
    Ok((Stored::Present, Row::Due))
}

/// The names of the files become durable.
fn flush_directories(steps: &mut [Step]) {
    let changed =
        |step: &Step| step.fate.is_ok() && (step.row == Row::Due || step.item.finished.part.name.is_empty());
    let mut directories: BTreeMap<HostId, &OwnedFd> = BTreeMap::new();
    for step in steps.iter().filter(|step| changed(step)) {
        let finished = &step.item.finished;
        directories.insert(finished.key.host.clone(), &finished.part.directory);
    }
    let mut failed = HashMap::new();
    if directories.len() >= FLUSH_ALL_FROM {
        if let Some(Err(error)) = directories.values().next().map(rustix::fs::syncfs) {
            failed.extend(directories.keys().map(|host| (host.clone(), error)));
        }
    } else {
        for (host, directory) in &directories {
            if let Err(error) = rustix::fs::fsync(directory) {
                failed.insert(host.clone(), error);
            }
        }
    }
    for step in steps.iter_mut().filter(|step| changed(step)) {
        let key = &step.item.finished.key;
        if let Some(error) = failed.get(&key.host) {
            step.fate = Err(StoreError::of("flush the directory", key, &(*error).into()));
            step.row = Row::None;
        }
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

fn fail_all(steps: &mut [Step], what: &'static str, error: &io::Error, which: impl Fn(&Step) -> bool) {
    for step in steps.iter_mut().filter(|step| which(step)) {
        if step.fate.is_ok() {
            step.fate = Err(StoreError::of(what, &step.item.finished.key, error));
        }
    }
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

fn hash(file: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut buffer[..]))?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
