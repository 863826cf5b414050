//! Looking at trees: hashing what is there and comparing it with what should be.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    path::Path,
    sync::Mutex,
};

use cutover_core::{
    model::{Digest, Hasher, Manifest, SafePath, SeenFile, SeenKind, SeenTree},
    plan::Layout,
};

use super::{
    FsError,
    files::{Attempt as _, Files},
    place,
};
use crate::{
    catalog::Fingerprint,
    disk::{EntryKind, Metadata},
};

const BUFFER_BYTES: u64 = 256 << 10;

/// Reads a file whole and returns its digest and size. What is hashed is what one open handle gives.
pub(crate) fn hash(files: &Files, path: &Path) -> Result<(Digest, Metadata), FsError> {
    let mut file = files.disk.open(path).attempt("open", path)?;
    let metadata = file.metadata().attempt("look at", path)?;
    let mut buffer = vec![0; usize::try_from(metadata.size.clamp(1, BUFFER_BYTES)).unwrap_or(1)];
    let mut hasher = Hasher::new();
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), metadata)),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).attempt("read", path),
        }
    }
}

/// Digests of files that were hashed before and not touched since, as inode, size and time of change tell. They make a
/// plan cost what changed, not what is installed; whatever guards a switch hashes anew.
#[derive(Default)]
pub(crate) struct Hashes {
    known: Mutex<HashMap<u64, Fingerprint>>,
    /// What the last probe hashed.
    probed: Mutex<Vec<Fingerprint>>,
}

/// A change within the same tick of the file system's clock would go unnoticed, so files younger than a few ticks are
/// hashed anew. Where stamps are whole seconds, a tick is a second or two.
const SETTLED_NS: i128 = 50_000_000;
const SETTLED_COARSE_NS: i128 = 2_000_000_000;

impl Hashes {
    /// Takes in what the catalog remembers.
    pub(crate) fn load(&self, fingerprints: Vec<Fingerprint>) {
        let mut known = self.known.lock().expect("no holder panics");
        known.extend(fingerprints.into_iter().map(|file| (file.inode, file)));
    }

    /// What the last probe hashed and may be remembered.
    pub(crate) fn take_probed(&self) -> Vec<Fingerprint> {
        std::mem::take(&mut self.probed.lock().expect("no holder panics"))
    }

    fn hash(&self, files: &Files, path: &Path, metadata: &Metadata) -> Result<(Digest, u64), FsError> {
        let known = self.known.lock().expect("no holder panics").get(&metadata.inode).copied();
        if let Some(file) = known
            && (file.size, file.changed_ns) == (metadata.size, metadata.changed_ns)
        {
            return Ok((file.sha256, file.size));
        }
        let (fingerprint, settled) = self.hash_anew(files, path)?;
        if settled {
            self.known.lock().expect("no holder panics").insert(fingerprint.inode, fingerprint);
        }
        Ok((fingerprint.sha256, fingerprint.size))
    }

    /// Hashes a file whatever is known about it; says whether the digest may be remembered.
    fn hash_anew(&self, files: &Files, path: &Path) -> Result<(Fingerprint, bool), FsError> {
        let began = files.disk.time_ns();
        let (sha256, metadata) = hash(files, path)?;
        let Metadata { inode, size, changed_ns, .. } = metadata;
        let settle = if changed_ns % 1_000_000_000 == 0 { SETTLED_COARSE_NS } else { SETTLED_NS };
        Ok((Fingerprint { inode, size, changed_ns, sha256 }, changed_ns + settle < began))
    }
}

/// Whether extended attributes are part of the picture: in place they are kept, in trees of our own there are none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attributes {
    Ignore,
    Read,
}

/// What lies at `paths` below `base`. Absent paths, directories and devices are left out.
pub(crate) fn look(
    files: &Files,
    base: &Path,
    paths: &[SafePath],
    attributes: Attributes,
    hashes: &Hashes,
) -> Result<SeenTree, FsError> {
    let seen = files.for_each(paths, |path| {
        Ok(look_at(files, &base.join(path.as_path()), attributes, hashes)?.map(|seen| (path.clone(), seen)))
    })?;
    Ok(seen.into_iter().flatten().collect())
}

fn look_at(
    files: &Files,
    path: &Path,
    attributes: Attributes,
    hashes: &Hashes,
) -> Result<Option<SeenFile>, FsError> {
    let Some(metadata) = files.metadata(path)? else { return Ok(None) };
    let kind = match metadata.kind {
        EntryKind::File => {
            let (sha256, size) = hashes.hash(files, path, &metadata)?;
            SeenKind::File { sha256, size }
        }
        EntryKind::Symlink => {
            SeenKind::Symlink { target: files.disk.read_link(path).attempt("read link", path)? }
        }
        EntryKind::Directory | EntryKind::Other => return Ok(None),
    };
    let (mode, xattrs) = match &kind {
        SeenKind::File { .. } if attributes == Attributes::Read => {
            let xattrs = files.disk.xattrs(path).attempt("read attributes of", path)?;
            (metadata.mode, xattrs.iter().map(|(name, value)| (name.clone(), to_hex(value))).collect())
        }
        SeenKind::File { .. } => (metadata.mode, BTreeMap::new()),
        SeenKind::Symlink { .. } => (0o777, BTreeMap::new()),
    };
    Ok(Some(SeenFile { kind, mode, uid: metadata.uid, gid: metadata.gid, xattrs }))
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal text; `None` when it is none.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

/// What should lie at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) kind: SeenKind,
    /// Of a file; links have none.
    pub(crate) mode: u32,
}

/// What should lie in a tree.
pub(crate) type ExpectedTree = BTreeMap<SafePath, Expected>;

/// What a release's tree should hold. Shared content is nobody's business but the service's.
pub(crate) fn expected_of_manifest(manifest: &Manifest, layout: Layout) -> ExpectedTree {
    let file = |sha256, size, mode| Expected { kind: SeenKind::File { sha256, size }, mode };
    let link = |target: String| Expected { kind: SeenKind::Symlink { target }, mode: 0o777 };
    let mut tree: ExpectedTree = manifest
        .files
        .iter()
        .filter(|entry| !manifest.shared.contains(&entry.path))
        .map(|entry| (entry.path.clone(), file(entry.sha256, entry.size, entry.mode.bits())))
        .collect();
    tree.extend(manifest.symlinks.iter().map(|entry| (entry.path.clone(), link(entry.target.clone()))));
    if let Some(depth) = depth(layout) {
        let links = manifest.shared.iter();
        tree.extend(links.map(|path| (path.clone(), link(place::shared_link(path, depth)))));
    }
    tree
}

/// What a tree held when it was looked at.
pub(crate) fn expected_of_seen(seen: &SeenTree) -> ExpectedTree {
    seen.iter()
        .map(|(path, file)| (path.clone(), Expected { kind: file.kind.clone(), mode: file.mode }))
        .collect()
}

/// How many directories lie between the root and the top of the current tree, for the layouts that link to `shared`.
pub(crate) fn depth(layout: Layout) -> Option<usize> {
    match layout {
        Layout::Versioned => Some(2),
        Layout::Exchange => Some(1),
        Layout::InPlace => None,
    }
}

/// How a path differs from what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is gone, or something else lies there.
    Missing,
    /// It has other content or another target.
    Content,
    /// Only its permission bits differ.
    Mode,
}

impl Difference {
    /// What to say about it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Content => "has other content",
            Self::Mode => "has other permission bits",
        }
    }
}

/// As [`differences`], and remembers the digests of what is as it should be for the next plan.
pub(crate) fn probe(
    files: &Files,
    base: &Path,
    expected: &ExpectedTree,
    hashes: &Hashes,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    hashes.take_probed();
    compare(expected, files, |path, expected| {
        let path = base.join(path.as_path());
        let differs = |path: &Path| -> Result<bool, FsError> {
            let (fingerprint, settled) = hashes.hash_anew(files, path)?;
            if settled {
                hashes.probed.lock().expect("no holder panics").push(fingerprint);
            }
            Ok(!matches!(expected.kind, SeenKind::File { sha256, .. } if sha256 == fingerprint.sha256))
        };
        difference_by(files, &path, expected, differs)
    })
}

/// Hashes everything `expected` below `base` and returns what differs.
pub(crate) fn differences(
    files: &Files,
    base: &Path,
    expected: &ExpectedTree,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    compare(expected, files, |path, expected| difference(files, &base.join(path.as_path()), expected))
}

fn compare(
    expected: &ExpectedTree,
    files: &Files,
    compare: impl Fn(&SafePath, &Expected) -> Result<Option<Difference>, FsError> + Sync,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    let expected: Vec<_> = expected.iter().collect();
    let found = files.for_each(&expected, |(path, expected)| {
        Ok(compare(path, expected)?.map(|found| ((*path).clone(), found)))
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// How the entry at `path` differs.
pub(crate) fn difference(
    files: &Files,
    path: &Path,
    expected: &Expected,
) -> Result<Option<Difference>, FsError> {
    difference_by(files, path, expected, |path| {
        let found = hash(files, path)?.0;
        Ok(!matches!(expected.kind, SeenKind::File { sha256, .. } if sha256 == found))
    })
}

/// How the entry at `path` differs, where `differs` says whether a file of the right size has other content.
fn difference_by(
    files: &Files,
    path: &Path,
    expected: &Expected,
    differs: impl FnOnce(&Path) -> Result<bool, FsError>,
) -> Result<Option<Difference>, FsError> {
    let Some(metadata) = files.metadata(path)? else { return Ok(Some(Difference::Missing)) };
    Ok(match (&expected.kind, metadata.kind) {
        (SeenKind::File { size, .. }, EntryKind::File) if metadata.size != *size => Some(Difference::Content),
        (SeenKind::File { .. }, EntryKind::File) if differs(path)? => Some(Difference::Content),
        (SeenKind::File { .. }, EntryKind::File) => {
            (metadata.mode != expected.mode).then_some(Difference::Mode)
        }
        (SeenKind::Symlink { target }, EntryKind::Symlink) => {
            let present = files.disk.read_link(path).attempt("read link", path)?;
            (present != *target).then_some(Difference::Content)
        }
        _ => Some(Difference::Missing),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_odd_or_foreign_digits_are_refused() {
        assert_eq!(from_hex(&to_hex(&[0, 0x0f, 0xff])), Some(vec![0, 0x0f, 0xff]));
        assert_eq!(from_hex(""), Some(Vec::new()));
        for text in ["f", "0g", "+1"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
