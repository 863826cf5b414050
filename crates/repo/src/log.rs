//! The transparency log of a repository: appending to it, following it as a client, and auditing all of it.
//!
//! The log lies in `log/` as static files (`docs/formats/repository.md`). It is extended before the release is announced: what
//! metadata names is in the log, and the log may hold what was never announced because a run was cut off. The one file that is
//! replaced is `log/checkpoint`.

use std::collections::{BTreeMap, BTreeSet};

use cutover_bundle::tlog::{
    Checkpoint, CheckpointError, CheckpointPolicy, EntriesError, Growth, KeyKind, LogEntry, NOTE_BYTES_MAX,
    Note, NoteError, ProofError, TILE_WIDTH, TileNodes, VerifierKey, entries_of, entries_path, files_of_tree,
    grow, merkle,
};
use cutover_core::model::{Digest, Instant, Manifest};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::{Fetch, FetchError},
    index::Index,
    present::must,
    publish::{PublishError, Publisher, Renew},
    sign::{MetadataKey, SigningError},
    state::State,
    storage::{Storage, read},
};

/// The head of the log.
pub const CHECKPOINT_PATH: &str = "log/checkpoint";
/// The log's verifier key, for people and for the publisher: clients get theirs from their settings.
pub const LOG_KEY_PATH: &str = "log/key";
/// The state in which a client or a witness keeps the checkpoint it saw last.
const SEEN: &str = "log";
/// The most bytes of an entry bundle.
const BUNDLE_BYTES_MAX: u64 = TILE_WIDTH * (2 + u16::MAX as u64);

/// Why the log is not believed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file of the log cannot be had.
    #[error("failed to fetch `{path}`")]
    Fetch {
        /// Which.
        path: String,
        /// The cause.
        #[source]
        source: FetchError,
    },
    /// The checkpoint that was seen last cannot be read or written.
    #[error("failed to {action} the checkpoint that was seen last")]
    State {
        /// `read` or `keep`.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The checkpoint is not believed.
    #[error("the checkpoint of the log is refused")]
    Checkpoint(#[from] CheckpointError),
    /// A file of the log has not the form of one.
    #[error(transparent)]
    Entries(#[from] EntriesError),
    /// The log is not what it was, with more entries: somebody is shown another one.
    #[error("the log of {new} entries is not the one of {old} entries that was seen before")]
    Forked {
        /// The entries seen before.
        old: u64,
        /// The entries now.
        new: u64,
        /// What is wrong with the proof.
        #[source]
        source: ProofError,
    },
    /// The release is not where the index says.
    #[error("{release} is not entry {index} of the log")]
    NotThere {
        /// The release.
        release: String,
        /// Where the index says it is.
        index: u64,
        /// What is wrong with the proof.
        #[source]
        source: ProofError,
    },
    /// The index says nothing of the log.
    #[error("{0} is not in the log")]
    NotLogged(String),
    /// The files are not the log that its checkpoint speaks of.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// A witness's key does not sign.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// A note or a key has not the form of one.
    #[error(transparent)]
    Note(#[from] NoteError),
}

fn in_log(path: &str) -> String {
    format!("log/{path}")
}

fn get(fetch: &dyn Fetch, path: String, limit: u64) -> Result<Vec<u8>, LogError> {
    fetch.fetch(&path, limit).map_err(|source| LogError::Fetch { path, source })
}

fn nodes<'f>(
    fetch: &'f dyn Fetch,
    size: u64,
) -> TileNodes<impl Fn(&str, usize) -> Result<Vec<u8>, LogError> + 'f> {
    TileNodes::new(size, move |path: &str, bytes: usize| get(fetch, in_log(path), bytes as u64))
}

/// What a client keeps of a log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    /// Always 1.
    format: u32,
    /// The note.
    checkpoint: String,
}

/// A log as a client sees it: one checkpoint, which follows the one it saw before.
pub struct FollowedLog<'f> {
    fetch: &'f dyn Fetch,
    checkpoint: Checkpoint,
    note: Vec<u8>,
}

impl<'f> FollowedLog<'f> {
    /// Fetches the checkpoint, checks who signed it and that its tree is the one that was seen before with more entries, and
    /// keeps it; durable in `state` when this returns.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn follow(
        fetch: &'f dyn Fetch,
        state: &dyn State,
        policy: &CheckpointPolicy,
    ) -> Result<Self, LogError> {
        let note = get(fetch, CHECKPOINT_PATH.to_owned(), NOTE_BYTES_MAX as u64)?;
        let checkpoint = policy.verify(&note)?;
        let read = |source| LogError::State { action: "read", source };
        let seen = state.load(SEEN).map_err(read)?;
        let seen = seen.and_then(|bytes| serde_json::from_slice::<Seen>(&bytes).ok());
        // Whoever names another log begins anew with it; that takes the settings of this host.
        let by_log = CheckpointPolicy::new(policy.log().clone(), Vec::new(), 0)?;
        let old = seen.and_then(|seen| by_log.verify(seen.checkpoint.as_bytes()).ok());
        if let Some(old) = &old {
            let (old, new) = (old, &checkpoint);
            let forked = |source| LogError::Forked { old: old.size, new: new.size, source };
            let proof = match old.size {
                _ if old.size > new.size => Vec::new(),
                size => merkle::consistency(&nodes(fetch, new.size), size, new.size)?,
            };
            merkle::verify_consistency((old.size, old.root), (new.size, new.root), &proof).map_err(forked)?;
        }
        if old.as_ref() != Some(&checkpoint) {
            let text = String::from_utf8_lossy(&note).into_owned();
            let seen = serde_json::to_vec(&Seen { format: 1, checkpoint: text });
            let kept = state.keep(SEEN, &seen.expect("a checkpoint always serialises"));
            kept.map_err(|source| LogError::State { action: "keep", source })?;
        }
        Ok(Self { fetch, checkpoint, note })
    }

    /// The head of the log.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Proves that the release with this manifest, whose digest is `sha256`, is entry `index`.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn check(&self, manifest: &Manifest, sha256: Digest, index: Option<u64>) -> Result<(), LogError> {
        let release = format!("{} {}", manifest.package, manifest.version);
        let Some(index) = index else { return Err(LogError::NotLogged(release)) };
        let Checkpoint { size, root, .. } = self.checkpoint;
        let failed = |source| LogError::NotThere { release: release.clone(), index, source };
        if index >= size {
            return Err(failed(ProofError::Outside { index, size }));
        }
        let leaf = merkle::leaf_hash(&LogEntry::new(manifest, sha256).to_bytes());
        let proof = merkle::inclusion(&nodes(self.fetch, size), index, size)?;
        merkle::verify_inclusion(leaf, index, size, &proof, root).map_err(failed)
    }

    /// The checkpoint with the cosignature of a witness, who has followed the log with a state of its own.
    ///
    /// # Errors
    /// The key is no Ed25519 key, or does not sign.
    pub fn cosigned(&self, witness: &MetadataKey, name: &str, now: Instant) -> Result<Vec<u8>, LogError> {
        let key = witness.verifier_key(name, KeyKind::Witness)?;
        let mut note = Note::parse(&self.note)?;
        note.sign(&key, now, |message| witness.sign(message))?;
        Ok(note.to_bytes())
    }
}

/// A whole log that was read and found to be what its checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Its head.
    pub checkpoint: Checkpoint,
    /// In whose names the checkpoint is signed; the log's own signature is verified, and those of witnesses that the policy
    /// names.
    pub signed_by: Vec<String>,
    /// Every entry; `None` for one that is of no known kind.
    pub entries: Vec<Option<LogEntry>>,
}

/// Reads a whole log: every entry, every tile, and whether all of it belongs together.
///
/// # Errors
/// See [`LogError`].
pub fn audit(fetch: &dyn Fetch, policy: &CheckpointPolicy) -> Result<Audit, LogError> {
    let note = get(fetch, CHECKPOINT_PATH.to_owned(), NOTE_BYTES_MAX as u64)?;
    let checkpoint = policy.verify(&note)?;
    let (mut raw, mut at) = (Vec::new(), 0);
    while at < checkpoint.size {
        let width = (checkpoint.size - at).min(TILE_WIDTH);
        let path = entries_path(at / TILE_WIDTH, width);
        let bytes = get(fetch, in_log(&path), BUNDLE_BYTES_MAX)?;
        raw.extend(entries_of(&path, &bytes, width)?.into_iter().map(<[u8]>::to_vec));
        at += width;
    }
    let empty = |path: &str| Err(LogError::Damaged(format!("`{path}` is asked for in an empty log")));
    let grown = grow(0, &raw, empty)?;
    if grown.root != checkpoint.root {
        return Err(LogError::Damaged("its entries are not those of its checkpoint".to_owned()));
    }
    for (path, expected) in &grown.files {
        if get(fetch, in_log(path), expected.len() as u64)? != *expected {
            return Err(LogError::Damaged(format!("`{path}` is not what its entries make")));
        }
    }
    let note = Note::parse(&note)?;
    let signed_by = note.claimed_names().into_iter().map(str::to_owned).collect();
    Ok(Audit { checkpoint, signed_by, entries: raw.iter().map(|entry| LogEntry::parse(entry)).collect() })
}

/// Reads the log's own key from a repository. It says which log this is, and proves nothing.
///
/// # Errors
/// There is none, or it has not the form of one.
pub fn claimed_log_key(fetch: &dyn Fetch) -> Result<VerifierKey, LogError> {
    let bytes = get(fetch, LOG_KEY_PATH.to_owned(), 1024)?;
    Ok(str::from_utf8(&bytes).map_err(|_| NoteError::Key("it is no UTF-8"))?.parse()?)
}

/// Adds cosignatures to the present checkpoint; returns how many are new. A note of an earlier checkpoint is refused.
///
/// # Errors
/// See [`PublishError`].
pub fn add_cosignatures(storage: &dyn Storage, notes: &[Vec<u8>]) -> Result<usize, PublishError> {
    let _lock = crate::publish::take_lock(storage)?;
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
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
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
