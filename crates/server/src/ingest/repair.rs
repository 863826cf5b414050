//! Rows for stored episodes that have none, and a check of those that have one. (CONTRACT 8, backfill)
//!
//! Works beside a receiver: the index is locked for the appending of a few rows at a time, and every row is looked for again
//! under the lock. What is hashed is written at once, so a run that is stopped loses little, and the next one goes on where it
//! was. Rows that are there stay as they are; nothing is ever removed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use cutover_core::{
    admission::{EpisodeKey, HostId, IndexRow, SCHEMA_VERSION, received_at_wall},
    model::Digest,
};

use super::{
    Appended, Bucket, Entry, Index, Layout, Loaded, Warning, files,
    inspect::{BLOCK, Commit, Inspected, inspect},
};

/// At most this many rows are appended under one lock, so that a receiver never waits for long.
const BATCH_MAX: usize = 256;
/// Hashed rows are written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// So many results may wait for one that takes longer.
const AHEAD_MAX: usize = 4096;
/// How many rows a dry run shows.
const SHOWN: usize = 5;

/// What to repair, and how.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// The directory that holds `episodes/`.
    pub layout: Layout,
    /// What holds `episodes/` instead.
    pub bucket: Option<Arc<dyn Bucket>>,
    /// The index file.
    pub index: PathBuf,
    /// Only these hosts. Empty: all.
    pub hosts: BTreeSet<HostId>,
    /// Whether rows are written.
    pub writing: Writing,
    /// Whether episodes that have a row are hashed and compared with it.
    pub check: Check,
    /// Files hashed at the same time.
    pub jobs: NonZeroUsize,
}

impl RepairOptions {
    fn wants(&self, host: &HostId) -> bool {
        self.hosts.is_empty() || self.hosts.contains(host)
    }

    /// What messages call an episode.
    fn path(&self, key: &EpisodeKey) -> PathBuf {
        match &self.bucket {
            None => self.layout.episode(key),
            Some(bucket) => PathBuf::from(format!("{}/{}", bucket.place(), Layout::object(key))),
        }
    }
}

/// Whether rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// Missing rows are added.
    Rows,
    /// Nothing is written; the first rows are shown.
    Nothing,
}

/// Whether episodes that have a row are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Only those without a row are hashed.
    Missing,
    /// All are hashed and compared.
    Everything,
}

/// How many episodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored episodes.
    pub scanned: usize,
    /// Those with a row.
    pub already_indexed: usize,
    /// Those without.
    pub to_backfill: usize,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files hashed.
    pub files: usize,
    /// Of so many.
    pub files_all: usize,
    /// Bytes hashed.
    pub bytes: u64,
    /// Of so many.
    pub bytes_all: u64,
}

/// Is told how it goes.
pub trait RepairWatch {
    /// What will be done, before it is done.
    fn counted(&mut self, counts: Counts);
    /// How far it has come, now and then.
    fn progress(&mut self, progress: Progress);
    /// An episode or a directory cannot be read; the others go on.
    fn failed(&mut self, path: &Path, error: &io::Error);
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The bytes are not those of the row.
    #[error(
        "rot: {key}: the index says {expected} ({expected_bytes} bytes), the file has {found} ({found_bytes} bytes)"
    )]
    Rot {
        /// Which.
        key: EpisodeKey,
        /// What the row says.
        expected: Digest,
        /// What the row says.
        expected_bytes: u64,
        /// What is stored.
        found: Digest,
        /// What is stored.
        found_bytes: u64,
    },
    /// A row without a file.
    #[error("missing: {0}: the index has a row, and there is no file")]
    Missing(EpisodeKey),
    /// More than one row for a key.
    #[error("duplicate: {key}: {}", if *.same { "a second row says the same" } else { "a second row says something else; the first counts" })]
    SecondRow {
        /// Which.
        key: EpisodeKey,
        /// Whether it says the same.
        same: bool,
    },
    /// Two episodes with the same bytes.
    #[error("duplicate: {key} has the same bytes as {first}")]
    SameBytes {
        /// Which.
        key: EpisodeKey,
        /// The other one.
        first: EpisodeKey,
    },
    /// A line of the index that is no row.
    #[error("index: {0}")]
    Line(String),
}

impl Finding {
    /// Whether data is lost or wrong, not only there twice.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Rot { .. } | Self::Missing(_) => true,
            Self::SecondRow { same, .. } => !same,
            Self::SameBytes { .. } | Self::Line(_) => false,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// What there was.
    pub counts: Counts,
    /// Rows that were added; those that a receiver added meanwhile are none of them.
    pub added: usize,
    /// The first rows of a dry run.
    pub shown: Vec<IndexRow>,
    /// What [`Check::Everything`] found.
    pub findings: Vec<Finding>,
    /// How many files were hashed and how many bytes they have.
    pub hashed: (usize, u64),
    /// How many files and directories could not be read.
    pub failures: usize,
}

/// Why nothing is repaired, or not all.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// There is nothing to look at.
    #[error("no episodes dir at {}", .0.display())]
    NoEpisodes(PathBuf),
    /// A bucket cannot be listed.
    #[error("failed to list the episodes in `{place}`")]
    Bucket {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index cannot be read or written.
    #[error("failed to {attempt} `{}`", path.display())]
    Index {
        /// What was attempted.
        attempt: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One file to hash.
struct Task {
    key: EpisodeKey,
    /// What its row says.
    row: Option<Entry>,
    size: u64,
}

/// Adds the missing rows, or says which they are; checks the others if asked to. `now` is the time of each row.
///
/// # Errors
/// [`RepairError`]. A file that cannot be read is counted in [`Repaired::failures`] and told to `watch`.
pub fn repair(
    options: &RepairOptions,
    now: &dyn Fn() -> jiff::Timestamp,
    watch: &mut dyn RepairWatch,
) -> Result<Repaired, RepairError> {
    let episodes = options.layout.episodes();
    if options.bucket.is_none() && !std::fs::metadata(&episodes).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(RepairError::NoEpisodes(episodes));
    }
    let failed = |attempt| {
        let path = options.index.clone();
        move |source| RepairError::Index { attempt, path, source }
    };
    let rows = Loaded::read(&options.index).map_err(failed("read"))?;
    let mut repaired = Repaired::default();
    let tasks = match &options.bucket {
        None => walk(options, &rows, &mut repaired, watch),
        Some(bucket) => list(options, bucket.as_ref(), &rows, &mut repaired)?,
    };
    watch.counted(repaired.counts);
    if options.check == Check::Everything {
        odd_rows(options, &rows, &tasks, &mut repaired.findings);
    }
    let bare = |task: &Task| task.row.is_none();
    let tasks: Vec<Task> = match (options.writing, options.check) {
        (_, Check::Everything) => tasks,
        (Writing::Rows, Check::Missing) => tasks.into_iter().filter(bare).collect(),
        (Writing::Nothing, Check::Missing) => tasks.into_iter().filter(bare).take(SHOWN).collect(),
    };
    // A receiver may run: its rows are only waited for when there is something to write.
    let writes = options.writing == Writing::Rows && tasks.iter().any(bare);
    let index = if writes { Some(Index::open(&options.index).map_err(failed("open"))?) } else { None };
    drop(rows);
    let mut sink = Sink { index, repaired, same: HashMap::new(), waiting: Vec::new(), check: options.check };
    hash_all(options, &tasks, now, watch, &mut sink)?;
    Ok(sink.repaired)
}

/// Every stored episode, sorted by host and episode.
fn walk(
    options: &RepairOptions,
    rows: &Loaded,
    repaired: &mut Repaired,
    watch: &mut dyn RepairWatch,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut failed = |path: &Path, error: &io::Error| {
        repaired.failures += 1;
        watch.failed(path, error);
    };
    let episodes = options.layout.episodes();
    let hosts = entries(&episodes, std::fs::FileType::is_dir);
    let hosts = hosts.unwrap_or_else(|error| {
        failed(&episodes, &error);
        Vec::new()
    });
    for host in hosts.iter().filter_map(|name| Layout::host_of(name)).filter(|host| options.wants(host)) {
        let directory = options.layout.host(&host);
        let names = match entries(&directory, std::fs::FileType::is_file) {
            Ok(names) => names,
            Err(error) => {
                failed(&directory, &error);
                continue;
            }
        };
        let mut found: Vec<_> = names.iter().filter_map(|name| Layout::episode_of(name)).collect();
        found.sort();
        for episode in found {
            let key = EpisodeKey { host: host.clone(), episode };
            let size = || {
                let found = std::fs::symlink_metadata(options.layout.episode(&key));
                found.map_or(0, |metadata| metadata.len())
            };
            tasks.extend(task(options, rows, &mut repaired.counts, &key, &size));
        }
    }
    tasks
}

/// Every episode in a bucket, sorted by host and episode.
fn list(
    options: &RepairOptions,
    bucket: &dyn Bucket,
    rows: &Loaded,
    repaired: &mut Repaired,
) -> Result<Vec<Task>, RepairError> {
    let mut tasks = Vec::new();
    let listed = bucket.list(Layout::EPISODES, None, &mut |path, size| {
        if let Some(key) = Layout::key_of(path).filter(|key| options.wants(&key.host)) {
            tasks.extend(task(options, rows, &mut repaired.counts, &key, &|| size));
        }
        Ok(())
    });
    listed.map_err(|source| RepairError::Bucket { place: bucket.place(), source })?;
    // The bucket sorts by whole paths, in which `a-b/` comes before `a/`.
    tasks.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(tasks)
}

/// Counts an episode; what is to be done about it, if anything.
fn task(
    options: &RepairOptions,
    rows: &Loaded,
    counts: &mut Counts,
    key: &EpisodeKey,
    size: &dyn Fn() -> u64,
) -> Option<Task> {
    let row = rows.get(key).copied();
    counts.scanned += 1;
    match row {
        Some(_) => counts.already_indexed += 1,
        None => counts.to_backfill += 1,
    }
    let is_wanted = row.is_none() || options.check == Check::Everything;
    is_wanted.then(|| Task { key: key.clone(), row, size: size() })
}

/// The names of one kind in a directory, sorted. Links are of no kind that is asked for. (I35)
fn entries(
    directory: &Path,
    kind: impl Fn(&std::fs::FileType) -> bool,
) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if kind(&entry.file_type()?) {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

/// Rows without an episode, and rows that are there twice. `tasks` are all episodes there are, sorted; the rows were read
/// before them, so that one that comes meanwhile is not missed.
fn odd_rows(options: &RepairOptions, rows: &Loaded, tasks: &[Task], findings: &mut Vec<Finding>) {
    let mut missing: Vec<EpisodeKey> = Vec::new();
    for host in rows.hosts().filter(|host| options.wants(host)) {
        for (episode, _) in rows.episodes(host) {
            let key = EpisodeKey { host: host.clone(), episode: episode.clone() };
            let is_found = tasks.binary_search_by(|task| task.key.cmp(&key)).is_ok();
            if !is_found && !lies_there(options, &key) {
                missing.push(key);
            }
        }
    }
    missing.sort();
    findings.extend(missing.into_iter().map(Finding::Missing));
    for warning in &rows.warnings.first {
        match warning {
            Warning::Second { key, same, .. } if options.wants(&key.host) => {
                findings.push(Finding::SecondRow { key: key.clone(), same: *same });
            }
            Warning::Second { .. } => {}
            Warning::NoRow { .. } | Warning::Torn { .. } => findings.push(Finding::Line(warning.to_string())),
        }
    }
    let more = rows.warnings.count - rows.warnings.first.len() as u64;
    if more > 0 {
        findings.push(Finding::Line(format!("and {more} more such lines")));
    }
}

/// Whether there is a file in a directory that could not be listed.
fn lies_there(options: &RepairOptions, key: &EpisodeKey) -> bool {
    let found = || std::fs::symlink_metadata(options.layout.episode(key));
    options.bucket.is_none() && found().is_ok_and(|metadata| metadata.is_file())
}

/// Hashes files on several threads and hands them over in their order.
fn hash_all(
    options: &RepairOptions,
    tasks: &[Task],
    now: &dyn Fn() -> jiff::Timestamp,
    watch: &mut dyn RepairWatch,
    sink: &mut Sink,
) -> Result<(), RepairError> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (bytes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Progress {
        files_all: tasks.len(),
        bytes_all: tasks.iter().map(|task| task.size).sum(),
        ..Progress::default()
    };
    std::thread::scope(|scope| {
        let (tell, results) = mpsc::sync_channel(AHEAD_MAX);
        for _ in 0..options.jobs.get().min(tasks.len().max(1)) {
            let (tell, next, done, bytes, stop) = (tell.clone(), &next, &done, &bytes, &stop);
            scope.spawn(move || {
                let mut block = vec![0; BLOCK];
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(number).filter(|_| !stop.load(Ordering::Relaxed)) else {
                        return;
                    };
                    // Nobody may run so far ahead of the slowest that what waits for it fills the memory.
                    while number > done.load(Ordering::Relaxed) + AHEAD_MAX && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let hashed = inspect_task(options, task, &mut block, bytes);
                    if tell.send((number, hashed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        let mut ahead = BTreeMap::new();
        let mut turn = 0;
        let mut written = Instant::now();
        let ended = loop {
            match results.recv_timeout(WRITE_EVERY) {
                Ok((number, hashed)) => drop(ahead.insert(number, hashed)),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            }
            while let Some(hashed) = ahead.remove(&turn) {
                let task = &tasks[turn];
                sink.take(options, task, hashed, now, watch);
                turn += 1;
                done.store(turn, Ordering::Relaxed);
            }
            if sink.waiting.len() >= BATCH_MAX || written.elapsed() >= WRITE_EVERY {
                let bytes = bytes.load(Ordering::Relaxed);
                watch.progress(Progress { files: turn, bytes, ..all });
                if let Err(error) = sink.write(&options.index) {
                    break Err(error);
                }
                written = Instant::now();
            }
        };
        stop.store(true, Ordering::Relaxed);
        drop(results);
        ended?;
        watch.progress(Progress { files: turn, bytes: bytes.load(Ordering::Relaxed), ..all });
        sink.write(&options.index)
    })
}

fn inspect_task(
    options: &RepairOptions,
    task: &Task,
    block: &mut [u8],
    bytes: &AtomicU64,
) -> io::Result<Inspected> {
    let mut episode: Box<dyn Read> = match &options.bucket {
        None => Box::new(files::open_episode(&options.layout.episode(&task.key))?),
        Some(bucket) => {
            let object = bucket.open(&Layout::object(&task.key))?;
            object.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?
        }
    };
    let commit = if task.row.is_none() { Commit::Find } else { Commit::Ignore };
    let mut tell = |read| {
        bytes.fetch_add(read, Ordering::Relaxed);
    };
    inspect(&mut episode, commit, &task.key, block, &mut tell)
}

/// Where hashed files go, in their order.
struct Sink {
    index: Option<Index>,
    repaired: Repaired,
    /// The first episode of each content.
    same: HashMap<Digest, EpisodeKey>,
    waiting: Vec<IndexRow>,
    check: Check,
}

impl Sink {
    fn take(
        &mut self,
        options: &RepairOptions,
        task: &Task,
        hashed: io::Result<Inspected>,
        now: &dyn Fn() -> jiff::Timestamp,
        watch: &mut dyn RepairWatch,
    ) {
        let Inspected { digest, size, commit } = match hashed {
            Ok(hashed) => hashed,
            Err(error) => {
                self.repaired.failures += 1;
                watch.failed(&options.path(&task.key), &error);
                return;
            }
        };
        self.repaired.hashed.0 += 1;
        self.repaired.hashed.1 += size;
        if self.check == Check::Everything {
            self.compare(task, digest, size);
        }
        if task.row.is_some() {
            return;
        }
        let row = IndexRow {
            backfilled: true,
            commit,
            commit_verified: false,
            episode_id: task.key.episode.clone(),
            host_id: task.key.host.clone(),
            received_at_wall: received_at_wall(now()),
            schema_version: SCHEMA_VERSION,
            sha256: digest,
            size_bytes: size,
        };
        match options.writing {
            Writing::Rows => self.waiting.push(row),
            Writing::Nothing if self.repaired.shown.len() < SHOWN => self.repaired.shown.push(row),
            Writing::Nothing => {}
        }
    }

    fn compare(&mut self, task: &Task, found: Digest, found_bytes: u64) {
        let key = task.key.clone();
        if let Some(row) = task.row.filter(|row| row.digest != found || row.size != found_bytes) {
            let (expected, expected_bytes) = (row.digest, row.size);
            let key = key.clone();
            self.repaired.findings.push(Finding::Rot { key, expected, expected_bytes, found, found_bytes });
        }
        match self.same.entry(found) {
            std::collections::hash_map::Entry::Vacant(place) => drop(place.insert(key)),
            std::collections::hash_map::Entry::Occupied(first) => {
                let first = first.get().clone();
                self.repaired.findings.push(Finding::SameBytes { key, first });
            }
        }
    }

    /// Appends what waits, in batches; durable when it returns.
    fn write(&mut self, path: &Path) -> Result<(), RepairError> {
        let failed = |attempt| move |source| RepairError::Index { attempt, path: path.to_owned(), source };
        let Some(index) = &mut self.index else { return Ok(()) };
        let waiting = std::mem::take(&mut self.waiting);
        for batch in waiting.chunks(BATCH_MAX) {
            let mut locked = index.lock().map_err(failed("lock"))?;
            let mut added = 0;
            for row in batch {
                if locked.append(row).map_err(failed("append to"))? == Appended::Added {
                    added += 1;
                }
            }
            locked.sync().map_err(failed("flush"))?;
            self.repaired.added += added;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use cutover_bundle::episode::ArchiveWriter;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    struct World {
        directory: tempfile::TempDir,
        options: RepairOptions,
    }

    /// What was told.
    #[derive(Default)]
    struct Told {
        counts: Counts,
        failed: Vec<PathBuf>,
        last: Progress,
    }

    impl RepairWatch for Told {
        fn counted(&mut self, counts: Counts) {
            self.counts = counts;
        }

        fn progress(&mut self, progress: Progress) {
            assert!(progress.files >= self.last.files && progress.bytes >= self.last.bytes);
            self.last = progress;
        }

        fn failed(&mut self, path: &Path, _: &io::Error) {
            self.failed.push(path.to_owned());
        }
    }

    fn archive(meta: &str) -> Vec<u8> {
        let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
        writer.file(b"e/data", false, 5000, &mut &[7; 5000][..]).unwrap();
        writer.file(b"e/meta.json", false, meta.len() as u64, &mut meta.as_bytes()).unwrap();
        writer.finish().unwrap()
    }

    fn with_commit() -> Vec<u8> {
        archive(&format!(r#"{{"code_version":{{"commit":"{COMMIT}"}}}}"#))
    }

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000).unwrap()
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let layout = Layout::new(directory.path());
            fs::create_dir(layout.episodes()).unwrap();
            let options = RepairOptions {
                index: layout.index(),
                layout,
                bucket: None,
                hosts: BTreeSet::new(),
                writing: Writing::Rows,
                check: Check::Missing,
                jobs: NonZeroUsize::new(2).unwrap(),
            };
            Self { directory, options }
        }

        fn store(&self, key: &str, bytes: &[u8]) -> PathBuf {
            let (host, episode) = key.split_once('/').unwrap();
            let key = EpisodeKey::new(host, episode).unwrap();
            fs::create_dir_all(self.options.layout.host(&key.host)).unwrap();
            let path = self.options.layout.episode(&key);
            fs::write(&path, bytes).unwrap();
            path
        }

        fn repair(&self) -> (Repaired, Told) {
            let mut told = Told::default();
            (repair(&self.options, &now, &mut told).unwrap(), told)
        }

        fn lines(&self) -> Vec<String> {
            let text = fs::read_to_string(&self.options.index).unwrap_or_default();
            assert!(text.is_empty() || text.ends_with('\n'));
            text.lines().map(str::to_owned).collect()
        }

        fn keys(&self) -> Vec<String> {
            let row = |line: &String| serde_json::from_str::<IndexRow>(line).unwrap().key().to_string();
            self.lines().iter().map(row).collect()
        }
    }

    // I15 I26
    #[test]
    fn missing_rows_are_added_sorted_and_a_second_run_adds_none() {
        let world = World::new();
        let bytes = with_commit();
        for key in ["b/e2", "b/e10", "a/e1", "b/e1"] {
            world.store(key, &bytes);
        }
        let (repaired, told) = world.repair();
        assert_eq!(repaired.counts, Counts { scanned: 4, already_indexed: 0, to_backfill: 4 });
        assert_eq!((repaired.counts, repaired.added), (told.counts, 4));
        assert_eq!(
            (told.last.files, told.last.bytes, told.last.bytes_all),
            (4, repaired.hashed.1, repaired.hashed.1)
        );
        assert_eq!(world.keys(), ["a/e1", "b/e1", "b/e10", "b/e2"], "one id on two hosts has two rows");
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        assert_eq!(
            world.lines()[0],
            format!(
                r#"{{"backfilled":true,"commit":"{COMMIT}","episode_id":"e1","host_id":"a","received_at_wall":"2027-01-15T08:00:00.000000+00:00","schema_version":1,"sha256":"{digest}","size_bytes":{size}}}"#
            )
        );
        let before = fs::read(&world.options.index).unwrap();
        let (again, _) = world.repair();
        assert_eq!((again.counts.already_indexed, again.added, again.hashed.0), (4, 0, 0));
        assert_eq!(fs::read(&world.options.index).unwrap(), before);
    }

    // I14
    #[test]
    fn rows_that_are_there_stay_as_they_are() {
        let world = World::new();
        world.store("a/e1", b"one");
        world.store("a/e2", b"two");
        // A row of the Python tools: no commit, other spacing, a field of their own, and a torn line after it.
        let old = format!(
            r#"{{"host_id": "a", "episode_id": "e1", "sha256": "{}", "size_bytes": 3, "received_at_wall": "2025-01-01T00:00:00+00:00", "schema_version": 1, "note": "x"}}"#,
            Digest::of(b"one")
        );
        fs::write(&world.options.index, format!("{old}\n{{\"host_id\": \"a\", \"epi")).unwrap();
        let (repaired, _) = world.repair();
        assert_eq!(repaired.counts, Counts { scanned: 2, already_indexed: 1, to_backfill: 1 });
        let lines = world.lines();
        assert_eq!((lines.len(), &lines[0]), (3, &old));
        assert!(lines[2].contains("\"e2\"") && !lines[2].contains("commit"), "{}", lines[2]);
    }

    // I16
    #[test]
    fn dry_run_writes_no_byte_and_shows_the_first_five_rows() {
        let mut world = World::new();
        for number in 0..8 {
            world.store(&format!("a/e{number}"), &with_commit());
        }
        world.options.writing = Writing::Nothing;
        let tree = || {
            let names = fs::read_dir(world.directory.path()).unwrap();
            names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        let before = tree();
        let (repaired, _) = world.repair();
        assert_eq!((repaired.counts.to_backfill, repaired.added, repaired.hashed.0), (8, 0, SHOWN));
        let shown: Vec<String> = repaired.shown.iter().map(|row| row.key().to_string()).collect();
        assert_eq!(shown, ["a/e0", "a/e1", "a/e2", "a/e3", "a/e4"]);
        assert_eq!(repaired.shown[0].commit.as_ref().unwrap().as_str(), COMMIT);
        assert_eq!(tree(), before, "not even the index file is made");
    }

    // I35
    #[test]
    fn hidden_unfinished_linked_and_stray_files_are_skipped() {
        let world = World::new();
        let real = world.store("a/e1", b"one");
        let (host, episodes) = (real.parent().unwrap(), world.options.layout.episodes());
        for name in [".x.tar.zst", "x.tar.zst.tmp", "x.tar", "a b.tar.zst", ".e.1.part"] {
            fs::write(host.join(name), "x").unwrap();
        }
        fs::create_dir(host.join("dir.tar.zst")).unwrap();
        symlink("e1.tar.zst", host.join("link.tar.zst")).unwrap();
        symlink("a", episodes.join("linked-host")).unwrap();
        fs::write(episodes.join("plain.tar.zst"), "x").unwrap();
        fs::create_dir(episodes.join(".hidden")).unwrap();
        fs::write(episodes.join(".hidden/e9.tar.zst"), "x").unwrap();
        let (repaired, told) = world.repair();
        assert_eq!(
            (repaired.counts.scanned, world.keys(), told.failed.len()),
            (1, vec!["a/e1".to_owned()], 0)
        );
    }

    // I34
    #[test]
    fn row_without_a_commit_where_the_archive_says_none() {
        let world = World::new();
        let bomb = {
            let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
            writer.file(b"zeros", false, 1 << 29, &mut io::Read::take(io::repeat(0), 1 << 29)).unwrap();
            writer.finish().unwrap()
        };
        assert!(bomb.len() < 100_000);
        world.store("a/bomb", &bomb);
        world.store("a/empty", b"");
        world.store("a/none", &archive("{}"));
        world.store("a/other", b"no archive at all");
        world.store("a/short", &with_commit()[..50]);
        let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
        let meta = format!(r#"{{"code_version":{{"commit":"{COMMIT}"}}}}"#);
        writer.file(b"e/xmeta.json", false, meta.len() as u64, &mut meta.as_bytes()).unwrap();
        world.store("a/xmeta", &writer.finish().unwrap());
        let (repaired, told) = world.repair();
        assert_eq!((repaired.added, told.failed.len()), (6, 0));
        assert!(world.lines().iter().all(|line| !line.contains("commit")));
    }

    #[test]
    fn only_the_named_hosts_are_looked_at() {
        let mut world = World::new();
        for key in ["a/e1", "b/e1", "c/e1"] {
            world.store(key, b"x");
        }
        world.options.hosts = BTreeSet::from(["b".parse().unwrap()]);
        assert_eq!(world.repair().0.counts.scanned, 1);
        assert_eq!(world.keys(), ["b/e1"]);
    }

    #[test]
    fn nothing_to_look_at_is_said_so_and_nothing_to_add_makes_no_index() {
        let world = World::new();
        assert_eq!(world.repair().0.counts, Counts::default());
        assert!(!world.options.index.exists());
        fs::remove_dir(world.options.layout.episodes()).unwrap();
        let error = repair(&world.options, &now, &mut Told::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("no episodes dir at {}", world.options.layout.episodes().display())
        );
    }

    #[test]
    fn file_that_cannot_be_read_is_told_and_the_others_are_indexed() {
        let world = World::new();
        world.store("a/e1", b"x");
        world.store("b/e1", b"x");
        // A host's directory that turns out to be none while it is looked at stands for a failing disk: root reads all else.
        let bad = world.store("a/e2", b"x");
        fs::remove_file(&bad).unwrap();
        fs::create_dir(&bad).unwrap();
        let task = Task { key: EpisodeKey::new("a", "e2").unwrap(), row: None, size: 0 };
        let tasks = [task, Task { key: EpisodeKey::new("b", "e1").unwrap(), row: None, size: 1 }];
        let index = Some(Index::open(&world.options.index).unwrap());
        let mut sink = Sink {
            index,
            repaired: Repaired::default(),
            same: HashMap::new(),
            waiting: Vec::new(),
            check: Check::Missing,
        };
        let mut told = Told::default();
        hash_all(&world.options, &tasks, &now, &mut told, &mut sink).unwrap();
        assert_eq!((sink.repaired.failures, sink.repaired.added, told.failed), (1, 1, vec![bad]));
        assert_eq!(world.keys(), ["b/e1"]);
    }

    #[test]
    fn check_reports_rot_missing_files_and_duplicates() {
        let mut world = World::new();
        let rotten = world.store("a/rotten", b"before");
        world.store("a/sound", b"sound");
        let gone = world.store("a/gone", b"gone");
        world.repair();
        fs::write(&rotten, b"beforE").unwrap();
        fs::remove_file(&gone).unwrap();
        world.store("b/copy", b"sound");
        let lines = world.lines();
        let other = lines[1]
            .replace("\"size_bytes\":6", "\"size_bytes\":7")
            .replace(&Digest::of(b"before").to_string(), &"0".repeat(64));
        fs::write(&world.options.index, format!("{}\n{}\nnonsense\n{other}\n", lines.join("\n"), lines[2]))
            .unwrap();
        world.options.check = Check::Everything;
        let (repaired, _) = world.repair();
        assert_eq!((repaired.added, repaired.hashed.0), (1, 3), "the new one is indexed as well");
        let said: Vec<String> = repaired.findings.iter().map(ToString::to_string).collect();
        let find = |start: &str| {
            said.iter().find(|text| text.starts_with(start)).unwrap_or_else(|| panic!("{start}: {said:?}"))
        };
        find("rot: a/rotten");
        find("missing: a/gone");
        find("duplicate: b/copy has the same bytes as a/sound");
        find("duplicate: a/sound: a second row says the same");
        find("duplicate: a/rotten: a second row says something else");
        find("index: ");
        assert_eq!(repaired.findings.iter().filter(|finding| finding.is_damage()).count(), 3);
        assert_eq!(said.len(), 6);
    }

    // I33
    #[test]
    fn backfill_beside_writers_keeps_all_lines_whole_and_no_key_twice() {
        let world = World::new();
        for number in 0..300 {
            world.store(&format!("a/e{number:03}"), format!("{number}").as_bytes());
        }
        std::thread::scope(|scope| {
            for host in ["a", "b"] {
                let index = &world.options.index;
                scope.spawn(move || {
                    let mut index = Index::open(index).unwrap();
                    for number in (0..300).rev() {
                        let row = IndexRow {
                            backfilled: false,
                            commit: None,
                            commit_verified: false,
                            episode_id: format!("e{number:03}").parse().unwrap(),
                            host_id: host.parse().unwrap(),
                            received_at_wall: received_at_wall(now()),
                            schema_version: 1,
                            sha256: Digest::of(format!("{number}").as_bytes()),
                            size_bytes: 1,
                        };
                        let mut locked = index.lock().unwrap();
                        locked.append(&row).unwrap();
                        locked.sync().unwrap();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| world.repair());
            }
        });
        let mut keys = world.keys();
        assert_eq!(keys.len(), 600);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 600);
    }

    #[test]
    fn owner_and_mode_of_the_index_stay() {
        let world = World::new();
        world.store("a/e1", b"x");
        fs::write(&world.options.index, "").unwrap();
        fs::set_permissions(&world.options.index, fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&world.options.index).unwrap();
        world.repair();
        let after = fs::metadata(&world.options.index).unwrap();
        assert_eq!((after.ino(), after.uid(), after.mode()), (before.ino(), before.uid(), before.mode()));
        assert_eq!(world.keys().len(), 1);
    }
}
