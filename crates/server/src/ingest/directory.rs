//! Episodes in the directory of the gate: uploads become durable by flush, rename and flush of the directory, several at once
//! (docs/decisions/0040).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::DirEntry,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cutover_core::admission::{EpisodeKey, HostId};
use rustix::io::Errno;

use super::{
    Entry, Layout, Loaded, files,
    inspect::{BLOCK, Commit, Inspected, inspect},
    sequences::Sequences,
    store::{Finished, Flush, Row, Step, StoreError, Stored, fail_all, is_replay, lock},
};

/// From so many files on, one flush of the file system is cheaper than one for each file.
const FLUSH_ALL_FROM: usize = 3;

/// `episodes/`, open.
#[derive(Debug)]
pub(super) struct Directory {
    episodes: OwnedFd,
    /// Hosts whose directory is known to be durable.
    hosts: Mutex<HashSet<HostId>>,
    /// How often the file system could not be flushed.
    failures: AtomicU64,
}

impl Directory {
    /// Opens it, making it when it is not there.
    pub(super) fn open(layout: &Layout) -> io::Result<Self> {
        files::make_directories(&layout.episodes())?;
        let episodes = files::open_directory(&layout.episodes())?;
        Ok(Self { episodes, hosts: Mutex::default(), failures: AtomicU64::new(0) })
    }

    /// How often the file system could not be flushed so far.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// Flushes everything on the file system.
    ///
    /// The kernel tells each open descriptor once that bytes could not be written back, counted from when it was opened (errseq; for
    /// `syncfs` since Linux 5.8). So it is always asked through the descriptor that was opened before any upload, which hears of
    /// every failure; and what it says holds for all uploads that had begun, also those of later rounds, which it tells nothing
    /// any more: see [`Directory::failures`].
    fn flush_all(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(&self.episodes).inspect_err(|_| {
            self.failures.fetch_add(1, Ordering::AcqRel);
        })
    }

    /// What lies on the file system of the episodes.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.episodes
    }

    /// The directory of a host, made durable when it is first used.
    pub(super) fn of_host(&self, host: &HostId) -> io::Result<OwnedFd> {
        if lock(&self.hosts).contains(host) {
            return files::open_directory_at(&self.episodes, host.as_str());
        }
        files::make_directory_at(&self.episodes, host.as_str())?;
        rustix::fs::fsync(&self.episodes)?;
        let directory = files::open_directory_at(&self.episodes, host.as_str())?;
        lock(&self.hosts).insert(host.clone());
        Ok(directory)
    }
}

/// Goes through what an earlier receiver left: removes unfinished files, and hands over each file that has no row. Returns how
/// many it removed. What cannot be read keeps its place and gets no row: one bad file keeps no receiver from starting.
pub(super) fn mend(
    layout: &Layout,
    has_row: &dyn Fn(&EpisodeKey) -> bool,
    add_row: &mut dyn FnMut(&EpisodeKey, &Inspected) -> io::Result<()>,
) -> io::Result<u64> {
    let mut removed = 0;
    for host in std::fs::read_dir(layout.episodes())? {
        let host = host?;
        let Some(id) =
            Layout::host_of(&host.file_name()).filter(|_| host.file_type().is_ok_and(|kind| kind.is_dir()))
        else {
            continue;
        };
        let files = match std::fs::read_dir(host.path()) {
            Ok(files) => files,
            Err(error) => {
                unreadable(&host.path(), &error);
                continue;
            }
        };
        for file in files {
            let found = file.and_then(|file| left_behind(&file, &host.path(), &id, has_row));
            match found.inspect_err(|error| unreadable(&host.path(), error)) {
                Ok(Left::Part) => removed += 1,
                Ok(Left::Episode(key, inspected)) => add_row(&key, &inspected)?,
                Ok(Left::Nothing) | Err(_) => {}
            }
        }
    }
    Ok(removed)
}

fn unreadable(directory: &Path, error: &io::Error) {
    let directory = directory.display();
    tracing::error!(%directory, "something an earlier receiver left is passed over until the next start: {error}");
}

/// What one file turned out to be.
enum Left {
    /// Nothing of ours, or in order.
    Nothing,
    /// Unfinished; it is removed.
    Part,
    /// Without a row; it is durable.
    Episode(EpisodeKey, Inspected),
}

fn left_behind(
    file: &DirEntry,
    directory: &Path,
    host: &HostId,
    has_row: &dyn Fn(&EpisodeKey) -> bool,
) -> io::Result<Left> {
    let path = file.path();
    let named = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
    if !file.file_type().map_err(named)?.is_file() {
        return Ok(Left::Nothing);
    }
    if Layout::is_part(&file.file_name()) {
        files::remove(&path).map_err(named)?;
        return Ok(Left::Part);
    }
    let Some(episode) = Layout::episode_of(&file.file_name()) else { return Ok(Left::Nothing) };
    let key = EpisodeKey { host: host.clone(), episode };
    if has_row(&key) {
        return Ok(Left::Nothing);
    }
    let mut episode = files::open_episode(&path).map_err(named)?;
    episode.sync_all().map_err(named)?;
    files::sync_directory(directory)?;
    let mut block = vec![0; BLOCK];
    let inspected = inspect(&mut episode, Commit::Find, &key, &mut block, &mut |_| ()).map_err(named)?;
    Ok(Left::Episode(key, inspected))
}

/// The bytes of every file become durable.
pub(super) fn flush_contents(steps: &mut [Step], directory: &Directory) {
    let is_due = |step: &Step| step.item.finished.flush == Flush::Due;
    let due = steps.iter().filter(|step| is_due(step)).count();
    if due >= FLUSH_ALL_FROM {
        if let Err(error) = directory.flush_all() {
            fail_all(steps, "flush", &error.into(), is_due);
        }
        // An earlier flush that failed may have been the one to hear of these bytes.
        let failures = directory.failures();
        let lost = io::Error::other("the file system could not be flushed since the upload began");
        fail_all(steps, "flush", &lost, |step| is_due(step) && step.item.finished.begun < failures);
        return;
    }
    for step in steps.iter_mut().filter(|step| is_due(step)) {
        if let Err(error) = step.item.finished.file.sync_all() {
            step.fate = Err(StoreError::of("flush", &step.item.finished.key, &error));
        }
    }
}

/// A file gets its name, unless there is an episode of its key or its signature was used before.
pub(super) fn put_in_place(step: &mut Step, rows: &Loaded, sequences: &Sequences) {
    let finished = &mut step.item.finished;
    let row = rows.get(&finished.key);
    if is_replay(finished, &step.item.origin, row, sequences) {
        step.fate = Ok(Stored::Replayed);
        return;
    }
    match place(finished, row) {
        Ok((stored, row)) => (step.fate, step.row) = (Ok(stored), row),
        Err(error) => step.fate = Err(StoreError::of("put the file in place", &finished.key, &error)),
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
    let mut file = files::open_file_at(directory, &name)?;
    let mut block = vec![0; BLOCK];
    let stored = inspect(&mut file, Commit::Ignore, &finished.key, &mut block, &mut |_| ())?.digest;
    if stored != finished.digest {
        return Ok((Stored::Conflict { stored }, Row::None));
    }
    file.sync_all()?;
    Ok((Stored::Present, Row::Due))
}

/// The names of the files become durable.
pub(super) fn flush_names(steps: &mut [Step], directory: &Directory) {
    let changed = |step: &Step| {
        let finished = &step.item.finished;
        let named = step.row == Row::Due || finished.part.name.is_empty();
        step.fate.is_ok() && finished.flush != Flush::Never && named
    };
    let mut directories: BTreeMap<HostId, &OwnedFd> = BTreeMap::new();
    for step in steps.iter().filter(|step| changed(step)) {
        let finished = &step.item.finished;
        directories.insert(finished.key.host.clone(), &finished.part.directory);
    }
    let mut failed = HashMap::new();
    if directories.len() >= FLUSH_ALL_FROM {
        if let Err(error) = directory.flush_all() {
            failed.extend(directories.keys().map(|host| (host.clone(), error)));
        }
    } else {
        for (host, names) in &directories {
            if let Err(error) = rustix::fs::fsync(names) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::store::Item, *};
    use crate::ingest::{Origin, Store};

    fn step(store: &Arc<Store>, name: &str) -> Step {
        let mut upload = store.begin(EpisodeKey::new("h", name).unwrap()).unwrap();
        upload.write(b"x").unwrap();
        let (finished, reply) = (upload.finish().unwrap(), tokio::sync::oneshot::channel().0);
        let item = Item { finished, origin: Origin::default(), placed: None, reply };
        Step { item, fate: Ok(Stored::New), row: Row::None }
    }

    #[test]
    fn flush_that_failed_holds_for_every_upload_that_had_begun() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path(), None, jiff::Timestamp::now).unwrap();
        let steps = |count| (0..count).map(|number| step(&store, &number.to_string())).collect::<Vec<_>>();
        let fates = |steps: &[Step]| steps.iter().map(|step| step.fate.is_ok()).collect::<Vec<_>>();
        // Through a descriptor of this kind nothing can be flushed.
        let path_only = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let directory = Directory {
            episodes: rustix::fs::open(place.path(), path_only, rustix::fs::Mode::empty()).unwrap(),
            ..Directory::open(store.layout()).unwrap()
        };
        let (mut first, mut later) = (steps(3), steps(4));
        flush_contents(&mut first, &directory);
        assert_eq!((fates(&first), directory.failures()), (vec![false; 3], 1));
        // The next flush is a success, and says nothing of what had failed before.
        let directory =
            Directory { failures: directory.failures, ..Directory::open(store.layout()).unwrap() };
        later[3].item.finished.begun = 1;
        flush_contents(&mut later, &directory);
        assert_eq!(fates(&later), [false, false, false, true]);
        // A file that is flushed by itself says itself whether it was written.
        let mut two = steps(2);
        flush_contents(&mut two, &directory);
        assert_eq!(fates(&two), [true, true]);
    }
}
