//! What is stored: every episode in the directory or the bucket, and what is to be done about it.

use std::{ffi::OsString, fs::FileType, io, path::Path};

use cutover_core::admission::EpisodeKey;

use super::{
    options::{Check, RepairOptions},
    report::{Counts, RepairError, RepairWatch, Repaired},
};
use crate::ingest::{
    bucket::Bucket,
    index::{Entry, Loaded},
    layout::Layout,
};

/// One file to hash.
pub(super) struct Task {
    pub(super) key: EpisodeKey,
    /// What its row says.
    pub(super) row: Option<Entry>,
    pub(super) size: u64,
}

/// Every stored episode, sorted by host and episode.
pub(super) fn walk(
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
    let hosts = entries(&episodes, FileType::is_dir);
    let hosts = hosts.unwrap_or_else(|error| {
        failed(&episodes, &error);
        Vec::new()
    });
    for host in hosts.iter().filter_map(|name| Layout::host_of(name)).filter(|host| options.wants(host)) {
        let directory = options.layout.host(&host);
        let names = match entries(&directory, FileType::is_file) {
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
pub(super) fn list(
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
fn entries(directory: &Path, kind: impl Fn(&FileType) -> bool) -> io::Result<Vec<OsString>> {
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
