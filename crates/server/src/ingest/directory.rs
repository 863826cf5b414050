//! Episodes in the directory of the gate: uploads become durable by flush, rename and flush of the directory, several at once
//! (docs/decisions/0040).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::DirEntry,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Mutex,
};

use cutover_core::admission::{EpisodeKey, HostId};

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
}

impl Directory {
    /// Opens it, making it when it is not there.
    pub(super) fn open(layout: &Layout) -> io::Result<Self> {
        files::make_directories(&layout.episodes())?;
        Ok(Self { episodes: files::open_directory(&layout.episodes())?, hosts: Mutex::default() })
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
pub(super) fn flush_contents(steps: &mut [Step]) {
    let is_due = |step: &Step| step.item.finished.flush == Flush::Due;
    let due = steps.iter().filter(|step| is_due(step)).count();
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
pub(super) fn flush_names(steps: &mut [Step]) {
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
