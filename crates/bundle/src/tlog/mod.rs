//! The transparency log of a repository: what proves that everybody is shown the same releases.
//!
//! The log is a Merkle tree over entries, one for each manifest that was published (RFC 6962, section 2.1; its proofs as in RFC
//! 9162). Its head is a [`Checkpoint`], a signed note, which witnesses cosign once they have seen that the tree only grew. This
//! module owns the mathematics and the formats: bytes in, values out. Files come through closures. Formats:
//! <https://c2sp.org/signed-note>, <https://c2sp.org/tlog-checkpoint>, <https://c2sp.org/tlog-tiles>,
//! <https://c2sp.org/tlog-cosignature>.

mod checkpoint;
pub mod merkle;
mod note;
mod tiles;

use cutover_core::model::{Digest, Manifest, Name, Version};

pub use checkpoint::{Checkpoint, CheckpointError, CheckpointPolicy};
pub use merkle::ProofError;
pub use note::{KeyKind, NOTE_BYTES_MAX, Note, NoteError, SignedAt, VerifierKey};
pub use tiles::{
    EntriesError, Growth, TILE_WIDTH, TileNodes, entries_of, entries_path, files_of_tree, grow, tile_path,
};

/// What the log says of one release: who it is, and its manifest. The bytes follow from the manifest alone, so that
/// whoever has it can look it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The package.
    pub package: Name,
    /// Its version.
    pub version: Version,
    /// The platform.
    pub platform: Name,
    /// SHA-256 of the manifest's exact bytes.
    pub manifest: Digest,
}

/// The first line of an entry.
const ENTRY: &str = "cutover-release/v1";

impl LogEntry {
    /// The entry of a release whose manifest has the digest `sha256`.
    pub fn new(manifest: &Manifest, sha256: Digest) -> Self {
        Self {
            package: manifest.package.clone(),
            version: manifest.version.clone(),
            platform: manifest.platform.clone(),
            manifest: sha256,
        }
    }

    /// Its bytes: five lines.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { package, version, platform, manifest } = self;
        format!("{ENTRY}\n{package}\n{version}\n{platform}\n{manifest}\n").into_bytes()
    }

    /// Reads an entry; `None` when it is none of this version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut lines = text.split('\n');
        (lines.next()? == ENTRY).then_some(())?;
        let entry = Self {
            package: lines.next()?.parse().ok()?,
            version: lines.next()?.parse().ok()?,
            platform: lines.next()?.parse().ok()?,
            manifest: lines.next()?.parse().ok()?,
        };
        lines.next().is_none().then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_what_was_written_and_nothing_else() {
        let entry = LogEntry {
            package: "tool".parse().unwrap(),
            version: "1.0.0-rc.1+build".parse().unwrap(),
            platform: "linux-x86_64".parse().unwrap(),
            manifest: Digest::of(b"a manifest"),
        };
        let bytes = entry.to_bytes();
        assert_eq!(LogEntry::parse(&bytes), Some(entry));
        for cut in 0..bytes.len() {
            assert_eq!(LogEntry::parse(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(LogEntry::parse(&[bytes.as_slice(), b"x\n"].concat()), None);
    }
}
