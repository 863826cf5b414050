//! The log of a repository as its publisher has it: its head, its files, and the cosignatures that witnesses hand in.

use std::{collections::BTreeSet, error::Error as _};

use cutover_bundle::tlog::{
    Checkpoint, CheckpointPolicy, LogEntry, Note, NoteError, VerifierKey, files_of_tree,
};

use crate::{
    error::PublishError,
    fetch::Fetch,
    lock::take_lock,
    log::{CHECKPOINT_PATH, LOG_KEY_PATH, audit, in_log},
    present::must,
    storage::{Storage, read},
};

/// The log of a repository as its publisher has it.
#[derive(Clone, Debug)]
pub(crate) struct OwnLog {
    pub(crate) key: VerifierKey,
    pub(crate) checkpoint: Checkpoint,
}

impl OwnLog {
    /// Reads the log of a repository; `None` when it has none.
    pub(crate) fn load(storage: &dyn Storage) -> Result<Option<Self>, PublishError> {
        let failed = |path| PublishError::storage("read", path);
        let Some(key) = read(storage, LOG_KEY_PATH, 1024).map_err(failed(LOG_KEY_PATH))? else {
            return Ok(None);
        };
        let key: VerifierKey = String::from_utf8_lossy(&key).parse().map_err(PublishError::Note)?;
        let note = must(storage, CHECKPOINT_PATH)?;
        let policy = CheckpointPolicy::new(key.clone(), Vec::new(), 0).map_err(PublishError::Note)?;
        let checkpoint = policy.verify(&note).map_err(PublishError::Log)?;
        Ok(Some(Self { key, checkpoint }))
    }

    /// The files of the repository that belong to it.
    pub(crate) fn files(&self) -> BTreeSet<String> {
        let fixed = [LOG_KEY_PATH, CHECKPOINT_PATH].map(str::to_owned);
        files_of_tree(self.checkpoint.size).map(|path| in_log(&path)).chain(fixed).collect()
    }
}

/// A log that is about to grow.
pub(crate) struct Growing {
    /// Files to be written, by path in the repository.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) superseded: Vec<String>,
    /// The new `log/checkpoint`.
    pub(crate) checkpoint: Vec<u8>,
}

/// Adds cosignatures to the present checkpoint; returns how many are new. A note of an earlier checkpoint is refused.
///
/// # Errors
/// See [`PublishError`].
pub fn add_cosignatures(storage: &dyn Storage, notes: &[Vec<u8>]) -> Result<usize, PublishError> {
    let _lock = take_lock(storage)?;
    let damaged = |error: NoteError| PublishError::Damaged(format!("`{CHECKPOINT_PATH}`: {error}"));
    let mut note = Note::parse(&must(storage, CHECKPOINT_PATH)?).map_err(damaged)?;
    let mut added = 0;
    for other in notes {
        let other = Note::parse(other).map_err(PublishError::Note)?;
        added += note.merge(&other).map_err(PublishError::Note)?;
    }
    if added > 0 {
        let replaced = storage.replace(CHECKPOINT_PATH, &note.to_bytes());
        replaced.map_err(PublishError::storage("write", CHECKPOINT_PATH))?;
    }
    Ok(added)
}

/// What a check of a repository says of its log.
pub(crate) fn problems(
    storage: &dyn Storage,
    fetch: &dyn Fetch,
    listed: &[(String, LogEntry, Option<u64>)],
) -> Result<(Vec<String>, BTreeSet<String>), PublishError> {
    let log = match OwnLog::load(storage) {
        Ok(None) => return Ok((Vec::new(), BTreeSet::new())),
        Ok(Some(log)) => log,
        Err(error @ PublishError::Storage { .. }) => return Err(error),
        Err(error) => return Ok((vec![format!("log: {error}")], BTreeSet::new())),
    };
    let files = log.files();
    let policy = CheckpointPolicy::new(log.key, Vec::new(), 0).map_err(PublishError::Note)?;
    let audit = match audit(fetch, &policy) {
        Ok(audit) => audit,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}"));
            return Ok((vec![format!("log: {error}{}", cause.unwrap_or_default())], files));
        }
    };
    let is_there = |entry: &LogEntry, at: u64| {
        let at = usize::try_from(at).ok();
        at.and_then(|at| audit.entries.get(at)?.as_ref()) == Some(entry)
    };
    // One without a place was published before the log was begun, and its begin was cut off.
    let missing = listed.iter().filter(|(_, entry, at)| at.is_some_and(|at| !is_there(entry, at)));
    Ok((missing.map(|(name, ..)| format!("{name}: it is not where the log should have it")).collect(), files))
}
