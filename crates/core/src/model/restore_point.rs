//! What a tree looked like, with digests: the basis of plans, of drift reports and of the way back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, Instant, ReleaseRef, RestorePointId, SafePath};

/// What was found at one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "type")]
pub enum SeenKind {
    /// A regular file.
    File {
        /// SHA-256 of its content.
        sha256: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: String,
    },
}

/// One path of a tree as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenFile {
    /// What it is.
    pub kind: SeenKind,
    /// Permission bits, set-id and sticky included (`0o7777`); 0o777 for links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes (ACLs included) by name; values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// A tree, or the part of one that a release describes, as it was found. Paths that were looked for and are absent are
/// simply not in the map.
pub type SeenTree = BTreeMap<SafePath, SeenFile>;

/// What is needed to go back to an earlier state, with digests. Written durably before anything changes; its own
/// SHA-256 is recorded in the journal, so an altered restore point is refused.
///
/// Made by `host` in the step of the same name, consumed by `plan_rollback` and by the undo of `switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePoint {
    /// Format of this file: 1.
    pub format: u32,
    /// Its id.
    pub id: RestorePointId,
    /// When it was made.
    pub created_at: Instant,
    /// The release that was current, or `None` before a first installation.
    pub from: Option<ReleaseRef>,
    /// The release the execution was about to switch to; `None` when it returned to an empty root.
    pub to: Option<ReleaseRef>,
    /// The present tree (layouts `versioned` and `exchange`), or every path the update replaces or removes
    /// (`in-place`), as found.
    pub files: SeenTree,
    /// Paths the update adds where nothing was; a restore removes them (`in-place` only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<SafePath>,
    /// Directories the update makes where nothing was; a restore removes those that are empty then (`in-place` only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<SafePath>,
}

/// Why a restore point cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestorePointError {
    /// Not the JSON of a restore point.
    #[error("restore point `{id}` cannot be read: {reason}")]
    Syntax {
        /// Which one.
        id: RestorePointId,
        /// What is wrong.
        reason: String,
    },
    /// Its bytes are not those that were recorded.
    #[error("restore point `{id}` was altered: its digest is {actual}, recorded was {expected}")]
    Altered {
        /// Which one.
        id: RestorePointId,
        /// The digest the journal holds.
        expected: Digest,
        /// The digest of the file now.
        actual: Digest,
    },
}

impl RestorePoint {
    /// Reads a restore point whose digest must be `expected`.
    ///
    /// # Errors
    /// [`RestorePointError::Altered`] before anything is parsed, [`RestorePointError::Syntax`] after.
    pub fn parse(id: &RestorePointId, bytes: &[u8], expected: Digest) -> Result<Self, RestorePointError> {
        let actual = Digest::of(bytes);
        if actual != expected {
            return Err(RestorePointError::Altered { id: id.clone(), expected, actual });
        }
        let syntax = |reason: String| RestorePointError::Syntax { id: id.clone(), reason };
        let point: Self = serde_json::from_slice(bytes).map_err(|error| syntax(error.to_string()))?;
        if point.format != 1 || point.id != *id {
            return Err(syntax("it names another format or id".to_owned()));
        }
        Ok(point)
    }

    /// The bytes to be stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with string keys always serialise")
    }
}
