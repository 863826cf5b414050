//! What a repository was set up with: how long its metadata counts, how long removed files stay.

use std::io;

use cutover_core::model::Instant;
use serde::{Deserialize, Serialize};

use crate::storage::{PRIVATE, Storage, read};

/// How a repository is kept. Chosen by `repo init`, kept beside it in `.publish/settings.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositorySettings {
    /// Always 1.
    pub format: u32,
    /// Days a root counts.
    pub root_days: u32,
    /// Days the list of targets counts.
    pub targets_days: u32,
    /// Days a snapshot counts.
    pub snapshot_days: u32,
    /// Days a timestamp counts: the longest time for which somebody in the middle can hide new releases.
    pub timestamp_days: u32,
    /// Seconds for which files stay after the last metadata that named them: the longest time a client may take.
    pub grace_s: u32,
    /// How many earlier releases of a channel and platform deltas lead from.
    pub deltas: u32,
}

impl Default for RepositorySettings {
    /// 365, 90, 30 and 7 days; a day of grace; deltas from the last 3 releases.
    fn default() -> Self {
        Self {
            format: 1,
            root_days: 365,
            targets_days: 90,
            snapshot_days: 30,
            timestamp_days: 7,
            grace_s: 86_400,
            deltas: 3,
        }
    }
}

/// `days` after `now`.
pub(crate) fn days_after(now: Instant, days: u32) -> Instant {
    seconds_after(now, u64::from(days) * 86_400)
}

/// `seconds` after `now`.
pub(crate) fn seconds_after(now: Instant, seconds: u64) -> Instant {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Instant::from_unix(now.unix().saturating_add(seconds)).unwrap_or(now)
}

fn path() -> String {
    format!("{PRIVATE}/settings.json")
}

pub(crate) fn load(storage: &dyn Storage) -> io::Result<RepositorySettings> {
    match read(storage, &path(), 1 << 16)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        None => Ok(RepositorySettings::default()),
    }
}

pub(crate) fn store(storage: &dyn Storage, settings: &RepositorySettings) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(settings).expect("settings always serialise");
    storage.replace(&path(), &bytes)
}
