//! Adding to the log of a repository. What metadata names is in the log before.

use std::collections::{BTreeMap, BTreeSet};

use cutover_bundle::tlog::{
    Checkpoint, Growth, KeyKind, LogEntry, Note, TILE_WIDTH, VerifierKey, entries_of, entries_path, grow,
    merkle,
};
use cutover_core::model::Digest;

use crate::{
    commit::Renew,
    error::PublishError,
    index::Index,
    log::{CHECKPOINT_PATH, LOG_KEY_PATH, in_log},
    own_log::{Growing, OwnLog},
    present::must,
    publisher::Publisher,
    sign::MetadataKey,
};

impl Publisher<'_> {
    /// Starts the log of the repository, named and signed by `key`, with every release that is there; or adds those that are
    /// missing, where that was cut off.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Exists`] when there is a log with another key.
    pub fn start_log(&mut self, key: &VerifierKey) -> Result<Checkpoint, PublishError> {
        match &self.log {
            Some(log) if log.key != *key => return Err(PublishError::Exists),
            Some(_) => {}
            None => {
                let (origin, root) = (key.name().to_owned(), merkle::empty_root());
                let log = OwnLog { key: key.clone(), checkpoint: Checkpoint { origin, size: 0, root } };
                let note = self.signed(&log, &log.checkpoint)?;
                for (path, bytes) in
                    [(CHECKPOINT_PATH, note), (LOG_KEY_PATH, format!("{key}\n").into_bytes())]
                {
                    self.storage.replace(path, &bytes).map_err(PublishError::storage("write", path))?;
                }
                self.log = Some(log);
            }
        }
        let mut indexes = self.present.indexes(self.storage)?;
        let lacks = |index: &Index| index.releases.iter().any(|entry| entry.log_index.is_none());
        let changed: BTreeSet<String> =
            indexes.iter().filter(|(_, index)| lacks(index)).map(|(path, _)| path.clone()).collect();
        if !changed.is_empty() {
            let growing = self.append_to_log(&mut indexes, &changed)?;
            let changed: Vec<&Index> = changed.iter().filter_map(|path| indexes.get(path)).collect();
            self.commit(&changed, Renew::All, growing)?;
            self.collect()?;
        }
        let log = self.log.as_ref().expect("it was started");
        Ok(log.checkpoint.clone())
    }

    /// Gives every release of `changed` that is not in the log a place there; `None` when there is no log, or nothing new.
    pub(crate) fn append_to_log(
        &self,
        indexes: &mut BTreeMap<String, Index>,
        changed: &BTreeSet<String>,
    ) -> Result<Option<Growing>, PublishError> {
        let Some(log) = &self.log else { return Ok(None) };
        let mut known: BTreeMap<Digest, u64> = indexes
            .values()
            .flat_map(|index| &index.releases)
            .filter_map(|entry| Some((entry.manifest.sha256, entry.log_index?)))
            .collect();
        let size = log.checkpoint.size;
        // What a run that was cut off has added stands at the end.
        for (entry, index) in self.tail_of_log(size)? {
            known.entry(entry.manifest).or_insert(index);
        }
        let mut new = Vec::new();
        for index in indexes.iter_mut().filter(|(path, _)| changed.contains(*path)).map(|(_, index)| index) {
            let (package, platform) = (index.package.clone(), index.platform.clone());
            for entry in index.releases.iter_mut().rev().filter(|entry| entry.log_index.is_none()) {
                let manifest = entry.manifest.sha256;
                let at = *known.entry(manifest).or_insert_with(|| {
                    let (package, platform, version) =
                        (package.clone(), platform.clone(), entry.version.clone());
                    new.push(LogEntry { package, version, platform, manifest }.to_bytes());
                    size + new.len() as u64 - 1
                });
                entry.log_index = Some(at);
            }
        }
        if new.is_empty() {
            return Ok(None);
        }
        let Growth { files, superseded, size, root } =
            grow(size, &new, |path| must(self.storage, &in_log(path)))?;
        let checkpoint = Checkpoint { origin: log.key.name().to_owned(), size, root };
        Ok(Some(Growing {
            files: files.into_iter().map(|(path, bytes)| (in_log(&path), bytes)).collect(),
            superseded: superseded.into_iter().map(|path| in_log(&path)).collect(),
            checkpoint: self.signed(log, &checkpoint)?,
        }))
    }

    /// The last entries of the log, at least as many as a publication that was cut off is likely to have added.
    fn tail_of_log(&self, size: u64) -> Result<Vec<(LogEntry, u64)>, PublishError> {
        let mut tail = Vec::new();
        let last = size.div_ceil(TILE_WIDTH);
        for bundle in last.saturating_sub(2)..last {
            let first = bundle * TILE_WIDTH;
            let width = (size - first).min(TILE_WIDTH);
            let path = entries_path(bundle, width);
            let bytes = must(self.storage, &in_log(&path))?;
            let entries = entries_of(&path, &bytes, width)?;
            let parsed = (first..).zip(entries).filter_map(|(at, bytes)| Some((LogEntry::parse(bytes)?, at)));
            tail.extend(parsed);
        }
        Ok(tail)
    }

    fn signed(&self, log: &OwnLog, checkpoint: &Checkpoint) -> Result<Vec<u8>, PublishError> {
        let own = |key: &&MetadataKey| {
            key.verifier_key(log.key.name(), KeyKind::Log).is_ok_and(|verifier| verifier == log.key)
        };
        let key = self.keys.iter().find(own);
        let key = key.ok_or_else(|| PublishError::NoLogKey(log.key.name().to_owned()))?;
        let mut note = Note::new(checkpoint.to_text()).map_err(PublishError::Note)?;
        note.sign(&log.key, self.now, |message| key.sign(message))?;
        Ok(note.to_bytes())
    }
}
