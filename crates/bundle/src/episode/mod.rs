//! Episodes: archives (`.tar.zst`) of what one host recorded, and the commit of the code that recorded it.
//!
//! Owns the archive's bytes in both directions: [`ArchiveWriter`] makes the same archive of the same files always, and
//! [`CommitScan`] finds the commit in an archive that anybody made, in one pass, with bounded memory and without unpacking
//! anything. It never opens a file: bytes are pushed in and come out. Format: `docs/formats/episode.md`.
//!
//! Read [`CommitScan`] first.

mod key;
mod scan;
mod tar;
mod write;

use cutover_core::admission::CommitHash;
pub use key::{HostKey, HostKeyError};
pub use scan::{CommitScan, NoCommit, ScanLimits, Scanned};
use serde::Deserialize;
pub use write::ArchiveWriter;

/// The member that says what an episode is: the first regular file with exactly this file name, in any directory.
pub const META_NAME: &str = "meta.json";

/// What of [`META_NAME`] matters here; everything else in it is the recorder's own.
#[derive(Deserialize)]
struct Meta {
    code_version: Option<CodeVersion>,
}

#[derive(Deserialize)]
struct CodeVersion {
    commit: Option<serde_json::Value>,
}

/// The commit in a `meta.json`: `code_version.commit`, when it is the full name of a commit, which is 40 hexadecimal digits, or
/// 64 in a repository with SHA-256. In lower case.
pub fn commit_in_meta(meta: &[u8]) -> Option<CommitHash> {
    let meta: Meta = serde_json::from_slice(meta).ok()?;
    let commit = meta.code_version?.commit?;
    commit.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_commit_in_its_place_counts() {
        let commit = "0123456789ABCDEF0123456789abcdef01234567";
        let meta =
            |value: &str| format!(r#"{{"host":"a","code_version":{{"dirty":false,"commit":{value}}}}}"#);
        let found = |value: &str| commit_in_meta(meta(value).as_bytes()).map(|commit| commit.to_string());
        assert_eq!(found(&format!("\"{commit}\"")), Some(commit.to_lowercase()));
        let long = "ab".repeat(32);
        assert_eq!(found(&format!("\"{long}\"")), Some(long));
        for wrong in ["null", "7", "[]", "\"\"", "\"0123456\"", "\"HEAD\"", "{}"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        assert_eq!(found(&format!("\"{}\"", &commit[1..])), None);
        assert_eq!(found(&format!("\" {}\"", &commit[1..])), None);
        for wrong in
            ["", "[]", "{}", "{\"commit\":\"x\"}", "{\"code_version\":null}", "{\"code_version\":3}", "\u{0}"]
        {
            assert_eq!(commit_in_meta(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
