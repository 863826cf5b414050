//! The transparency log of a repository: following it as a client, and auditing all of it.
//!
//! The log lies in `log/` as static files (`docs/formats/repository.md`). It is extended before the release is announced: what
//! metadata names is in the log, and the log may hold what was never announced because a run was cut off. The one file that is
//! replaced is `log/checkpoint`.

use cutover_bundle::tlog::{
    Checkpoint, CheckpointError, CheckpointPolicy, EntriesError, KeyKind, LogEntry, NOTE_BYTES_MAX, Note,
    NoteError, ProofError, TILE_WIDTH, TileNodes, VerifierKey, entries_of, entries_path, grow, merkle,
};
use cutover_core::{
    causes::chain,
    model::{Digest, Instant, Manifest},
};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::{Fetch, FetchError},
    sign::{MetadataKey, SigningError},
    state::State,
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

pub(crate) fn in_log(path: &str) -> String {
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
        let old = seen.map(|bytes| remembered(&bytes, policy).map_err(read)).transpose()?.flatten();
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

/// The checkpoint that was kept; `None` when it is one of another log: whoever names another log begins anew with it, which
/// takes the settings of this host. Anything else that is kept and not understood is an error: who forgets what was seen
/// believes a log that went backwards.
fn remembered(kept: &[u8], policy: &CheckpointPolicy) -> std::io::Result<Option<Checkpoint>> {
    let damaged = |cause: String| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!(
                "`{SEEN}.json` is damaged: {cause}; compare `cutover repo log show` with what others see, then remove the file to \
                 begin anew"
            ),
        )
    };
    let seen: Seen = serde_json::from_slice(kept).map_err(|error| damaged(error.to_string()))?;
    let note = Note::parse(seen.checkpoint.as_bytes()).map_err(|error| damaged(chain(&error)))?;
    let checkpoint = Checkpoint::parse(note.text()).map_err(|error| damaged(chain(&error)))?;
    if checkpoint.origin != policy.log().name() {
        return Ok(None);
    }
    note.verify(policy.log()).map_err(|error| damaged(chain(&error)))?;
    Ok(Some(checkpoint))
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
