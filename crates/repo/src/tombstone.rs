//! Tombstones: what is to be deleted, written down before anything is, so that a deletion that was cut off is completed.
//!
//! Files that metadata named stay for the grace of the settings after the metadata that no longer names them, so that
//! clients which read the older metadata finish. A tombstone never decides alone: what present metadata names stays.

use std::io;

use cutover_core::model::{Digest, Instant, Name, Version};
use serde::{Deserialize, Serialize};

use crate::{
    index::IndexEntry,
    storage::{PRIVATE, Storage, read},
};

/// Most bytes of a tombstone: the paths of a release with as many objects as a manifest may have.
const TOMBSTONE_BYTES_MAX: u64 = 64 << 20;

/// Files that may be deleted later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tombstone {
    /// Always 1.
    pub(crate) format: u32,
    /// Not before this.
    pub(crate) after: Instant,
    /// The release that is to be taken out of an index first. Not set any more once no metadata names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) release: Option<Removal>,
    /// The files, most of which other releases may name too.
    pub(crate) files: Vec<String>,
}

/// A release that is removed from a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Removal {
    pub(crate) package: Name,
    pub(crate) version: Version,
    pub(crate) platform: Name,
    /// The channel it is removed from.
    pub(crate) channel: Name,
    pub(crate) manifest: Digest,
}

impl Removal {
    /// Whether it removes this entry of an index.
    pub(crate) fn names(&self, package: &Name, platform: &Name, channel: &Name, entry: &IndexEntry) -> bool {
        (&self.package, &self.platform, &self.channel, &self.version, self.manifest)
            == (package, platform, channel, &entry.version, entry.manifest.sha256)
    }
}

fn directory() -> String {
    format!("{PRIVATE}/tombstones")
}

/// Every tombstone with its path, oldest first.
pub(crate) fn load_all(storage: &dyn Storage) -> io::Result<Vec<(String, Tombstone)>> {
    let mut tombstones = Vec::new();
    for path in storage.list(&directory())? {
        if !path.ends_with(".json") || path.rsplit('/').next().is_some_and(|name| name.starts_with('.')) {
            continue;
        }
        let Some(bytes) = read(storage, &path, TOMBSTONE_BYTES_MAX)? else { continue };
        let tombstone: Tombstone = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        tombstones.push((path, tombstone));
    }
    Ok(tombstones)
}

/// Writes a tombstone; durable on return. `name` tells it from others; one of the same name is replaced.
pub(crate) fn store(storage: &dyn Storage, name: &str, tombstone: &Tombstone) -> io::Result<()> {
    let bytes = serde_json::to_vec(tombstone).expect("a tombstone always serialises");
    storage.replace(&format!("{}/{name}.json", directory()), &bytes)
}

/// As [`store`], for files only; adds to a tombstone of the same name. Two runs that were cut off between the same two
/// publications have the same name for what they leave.
pub(crate) fn add(
    storage: &dyn Storage,
    name: &str,
    after: Instant,
    mut files: Vec<String>,
) -> io::Result<()> {
    let path = format!("{}/{name}.json", directory());
    if let Some(bytes) = read(storage, &path, TOMBSTONE_BYTES_MAX)? {
        let there: Tombstone = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        files.extend(there.files);
        files.sort_unstable();
        files.dedup();
    }
    store(storage, name, &Tombstone { format: 1, after, release: None, files })
}

/// What a publication is about to add, written down before it adds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Intent {
    /// Always 1.
    pub(crate) format: u32,
    /// Files that are not there yet.
    pub(crate) files: Vec<String>,
}

fn intent_path() -> String {
    format!("{PRIVATE}/intent.json")
}

pub(crate) fn store_intent(storage: &dyn Storage, files: Vec<String>) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Intent { format: 1, files }).expect("an intent always serialises");
    storage.replace(&intent_path(), &bytes)
}

pub(crate) fn load_intent(storage: &dyn Storage) -> io::Result<Option<Intent>> {
    let bytes = read(storage, &intent_path(), TOMBSTONE_BYTES_MAX)?;
    bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)).transpose()
}

pub(crate) fn remove_intent(storage: &dyn Storage) -> io::Result<()> {
    storage.remove(&[intent_path()])
}
