//! One line of `index.jsonl`: the record of one stored episode. docs/formats/index.md has the table.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{CommitHash, EpisodeId, EpisodeKey, HostId, IngestIdError};
use crate::model::Digest;

/// The version of the rows this program writes.
pub const SCHEMA_VERSION: u32 = 1;

/// A row as it is written. The fields stand in the order of their names, so keys are sorted in the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRow {
    /// Whether the row was not written when the episode was received: by `index repair` or at the receiver's start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backfilled: bool,
    /// The commit the episode was made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitHash>,
    /// Whether a signature of the host vouches for `commit`; else it is the host's claim.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub commit_verified: bool,
    /// The episode.
    pub episode_id: EpisodeId,
    /// The host it came from.
    pub host_id: HostId,
    /// When it was stored, found again or backfilled, as [`received_at_wall`] prints it.
    pub received_at_wall: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The SHA-256 of the stored bytes.
    pub sha256: Digest,
    /// How many bytes are stored.
    pub size_bytes: u64,
}

impl IndexRow {
    /// The line, with its newline.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("rows have string keys");
        line.push(b'\n');
        line
    }

    /// What the row is about.
    pub fn key(&self) -> EpisodeKey {
        EpisodeKey { host: self.host_id.clone(), episode: self.episode_id.clone() }
    }
}

/// ISO 8601 in UTC with microseconds and an offset: `2026-01-02T03:04:05.000006+00:00`.
pub fn received_at_wall(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

/// What a reader takes from a row, whoever wrote it: other programs leave fields out and add their own.
#[derive(Debug, Deserialize)]
pub struct SeenRow<'a> {
    /// The host, not yet checked.
    #[serde(borrow)]
    pub host_id: Cow<'a, str>,
    /// The episode, not yet checked.
    #[serde(borrow)]
    pub episode_id: Cow<'a, str>,
    /// The SHA-256 of the stored bytes.
    pub sha256: Digest,
    /// How many bytes are stored.
    pub size_bytes: u64,
}

impl SeenRow<'_> {
    /// The key, checked.
    ///
    /// # Errors
    /// [`IngestIdError`]
    pub fn key(&self) -> Result<EpisodeKey, IngestIdError> {
        EpisodeKey::new(&self.host_id, &self.episode_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_line_are_sorted_and_absent_fields_are_left_out() {
        let row = IndexRow {
            backfilled: true,
            commit: Some("a".repeat(40).parse().unwrap()),
            commit_verified: true,
            episode_id: "e".parse().unwrap(),
            host_id: "h".parse().unwrap(),
            received_at_wall: received_at_wall(
                jiff::Timestamp::from_microsecond(1_767_323_045_000_006).unwrap(),
            ),
            schema_version: SCHEMA_VERSION,
            sha256: Digest::of(b""),
            size_bytes: 0,
        };
        let line = String::from_utf8(row.line()).unwrap();
        let keys: Vec<&str> = line
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|word| line.contains(&format!("\"{word}\":")))
            .collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_eq!((keys.len(), &keys), (9, &sorted), "{line}");
        assert!(line.contains("\"received_at_wall\":\"2026-01-02T03:04:05.000006+00:00\""), "{line}");
        assert_eq!(serde_json::from_str::<IndexRow>(&line).unwrap(), row);
        let bare = IndexRow { backfilled: false, commit: None, commit_verified: false, ..row };
        assert!(!String::from_utf8(bare.line()).unwrap().contains("commit"));
    }

    // I14
    #[test]
    fn rows_of_other_programs_are_readable() {
        let digest = Digest::of(b"x");
        let text = format!(
            r#"{{"commit": null, "episode_id": "\u0065", "extra": [1], "host_id": "h", "sha256": "{digest}", "size_bytes": 1}}"#
        );
        let seen: SeenRow<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!((seen.key(), seen.sha256), (EpisodeKey::new("h", "e"), digest));
    }
}
