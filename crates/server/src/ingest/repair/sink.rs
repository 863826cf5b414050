//! Where hashed episodes go: rows that are appended, or shown, and findings.

use std::{
    collections::{HashMap, hash_map},
    io,
    path::Path,
};

use cutover_core::{
    admission::{EpisodeKey, IndexRow, SCHEMA_VERSION, received_at_wall},
    model::Digest,
};

use super::{
    episodes::Task,
    finding::Finding,
    options::{Check, RepairOptions, Writing},
    report::{RepairError, RepairWatch, Repaired},
};
use crate::ingest::{
    index::{Appended, Index},
    inspect::Inspected,
};

/// At most this many rows are appended under one lock, so that a receiver never waits for long.
const BATCH_MAX: usize = 256;
/// How many rows a dry run shows.
pub(super) const SHOWN: usize = 5;

/// Where hashed files go, in their order.
pub(super) struct Sink {
    index: Option<Index>,
    pub(super) repaired: Repaired,
    /// The first episode of each content.
    same: HashMap<Digest, EpisodeKey>,
    waiting: Vec<IndexRow>,
    check: Check,
}

impl Sink {
    /// A sink that writes to `index`, if there is one, and adds to `repaired`.
    pub(super) fn new(index: Option<Index>, repaired: Repaired, check: Check) -> Self {
        Self { index, repaired, same: HashMap::new(), waiting: Vec::new(), check }
    }

    /// Whether so many rows wait that they are to be written.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= BATCH_MAX
    }

    /// Takes in one episode, as it was hashed or could not be.
    pub(super) fn take(
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
            hash_map::Entry::Vacant(place) => drop(place.insert(key)),
            hash_map::Entry::Occupied(first) => {
                let first = first.get().clone();
                self.repaired.findings.push(Finding::SameBytes { key, first });
            }
        }
    }

    /// Appends what waits, in batches; durable when it returns.
    pub(super) fn write(&mut self, path: &Path) -> Result<(), RepairError> {
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
