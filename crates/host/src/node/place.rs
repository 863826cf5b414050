//! Where things lie below a root. The one place that knows; the format is `docs/formats/root.md`.

use std::path::{Path, PathBuf};

use cutover_core::model::{Digest, ReleaseName, ReleaseRef, RestorePointId, SafePath};

/// The switch of the whole-tree layouts.
pub(crate) const CURRENT: &str = "current";
/// Complete release trees.
pub(crate) const RELEASES: &str = "releases";
/// Files that outlive releases.
pub(crate) const SHARED: &str = "shared";
/// Says, inside a release's tree, which release it is.
pub(crate) const MARKER: &str = ".cutover-release";
/// Ours; mode 0700.
pub(crate) const META: &str = ".cutover";
pub(crate) const LOCK: &str = ".cutover/lock";
pub(crate) const LAYOUT: &str = ".cutover/layout";
/// What it is called until it is whole; see [`super::files::Files::replace`].
pub(crate) const LAYOUT_NEW: &str = ".cutover/layout.tmp";
pub(crate) const JOURNAL: &str = ".cutover/journal";
pub(crate) const STORE: &str = ".cutover/store";
pub(crate) const MANIFESTS: &str = ".cutover/manifests";
pub(crate) const RESTORE: &str = ".cutover/restore";
pub(crate) const STAGING: &str = ".cutover/staging";
pub(crate) const TRASH: &str = ".cutover/trash";
/// Bytes that are given up when the journal meets a full disk.
pub(crate) const RESERVE: &str = ".cutover/reserve";
pub(crate) const STATE_LOG: &str = ".cutover/state.jsonl";
/// What is current in place; written last by its switch.
pub(crate) const CURRENT_IN_PLACE: &str = ".cutover/current.json";

/// Journals of sets that this root coordinates.
pub(crate) const SETS: &str = ".cutover/sets";
/// Says that this root is part of a set that has not ended.
pub(crate) const SET_MARK: &str = ".cutover/set.json";
/// What it is called until it is whole; see [`super::files::Files::replace`].
pub(crate) const SET_MARK_NEW: &str = ".cutover/set.json.tmp";

/// The directories below [`META`] that every root has.
pub(crate) const DIRECTORIES: [&str; 6] = [JOURNAL, STORE, MANIFESTS, RESTORE, STAGING, TRASH];

pub(crate) fn journal(number: u64) -> PathBuf {
    Path::new(JOURNAL).join(format!("{number:06}.jsonl"))
}

/// The journal of a set.
pub(crate) fn set_journal(number: u64) -> PathBuf {
    Path::new(SETS).join(format!("{number:06}.jsonl"))
}

/// The number in a journal's file name.
pub(crate) fn journal_number(name: &str) -> Option<u64> {
    numbered(name, ".jsonl")
}

fn numbered(name: &str, suffix: &str) -> Option<u64> {
    let number = name.strip_suffix(suffix)?;
    (number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| number.parse().ok())?
}

pub(crate) fn release(name: &ReleaseName) -> PathBuf {
    Path::new(RELEASES).join(name.as_str())
}

/// What the `current` link holds.
pub(crate) fn link_target(release: &ReleaseRef) -> String {
    format!("{RELEASES}/{}", release.name())
}

pub(crate) fn staging(number: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{number:06}"))
}

/// Where files are built.
pub(crate) fn staged_tree(number: u64) -> PathBuf {
    staging(number).join("tree")
}

/// Where packs wait until they are durable.
pub(crate) fn staged_packs(number: u64) -> PathBuf {
    staging(number).join("packs")
}

pub(crate) fn manifest(digest: Digest) -> PathBuf {
    Path::new(MANIFESTS).join(format!("{digest}.json"))
}

pub(crate) fn signature(digest: Digest) -> PathBuf {
    Path::new(MANIFESTS).join(format!("{digest}.p7s"))
}

pub(crate) fn point(id: &RestorePointId) -> PathBuf {
    Path::new(RESTORE).join(id.as_str())
}

pub(crate) fn point_manifest(id: &RestorePointId) -> PathBuf {
    point(id).join("manifest.json")
}

/// Where a restore point keeps the files of an in-place update.
pub(crate) fn point_files(id: &RestorePointId) -> PathBuf {
    point(id).join("files")
}

pub(crate) fn pack(number: u64) -> PathBuf {
    Path::new(STORE).join(format!("{number:06}.pack"))
}

/// The number in a pack's file name.
pub(crate) fn pack_number(name: &str) -> Option<u64> {
    numbered(name, ".pack")
}

pub(crate) fn shared(path: &SafePath) -> PathBuf {
    Path::new(SHARED).join(path.as_path())
}

/// The relative link to a shared path, from `path` in a tree that lies `depth` directories below the root.
pub(crate) fn shared_link(path: &SafePath, depth: usize) -> String {
    let up = depth + path.components().count() - 1;
    format!("{}{SHARED}/{path}", "../".repeat(up))
}

/// Where the supervisor keeps a release's output.
pub(crate) fn log(release: &ReleaseRef) -> PathBuf {
    Path::new(META).join("logs").join(format!("{}.log", release.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_journals_have_a_number() {
        assert_eq!(journal_number("000012.jsonl"), Some(12));
        assert_eq!(journal_number("1000000.jsonl"), Some(1_000_000));
        for name in ["12.jsonl", "+00012.jsonl", "000012.jsonl.damaged-1", "x.jsonl"] {
            assert_eq!(journal_number(name), None, "{name}");
        }
    }

    #[test]
    fn shared_link_leads_from_any_depth_to_the_shared_directory() {
        let path = "etc/a.conf".parse().expect("a path");
        assert_eq!(shared_link(&path, 2), "../../../shared/etc/a.conf");
        assert_eq!(shared_link(&path, 1), "../../shared/etc/a.conf");
    }
}
