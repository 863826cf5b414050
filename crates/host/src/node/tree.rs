//! Looking at trees: hashing what is there and comparing it with what should be.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::Path,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use cutover_core::{
    model::{Digest, Hasher, Manifest, SafePath, SeenFile, SeenKind, SeenTree},
    plan::Layout,
};

use super::{
    files::{Attempt as _, Files, FsError},
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

/// Digests of files that were hashed before and not touched since, as inode, size and times of change tell. They make an
/// update cost what changed, not what is installed: every byte laid down is read back once, what was there already is
/// not read again. `verify`, rollback and repair never ask here.
#[derive(Default)]
pub(crate) struct Hashes {
    remembered: Mutex<Remembered>,
}

/// By inode. What the catalog told is one sorted list: of tens of thousands of files it takes a third of a map.
#[derive(Default)]
struct Remembered {
    loaded: Vec<(u64, Remembrance)>,
    added: BTreeMap<u64, Remembrance>,
}

/// As [`Fingerprint`], in less room.
#[derive(Clone, Copy)]
struct Remembrance {
    size: u64,
    changed_ns: i64,
    modified_ns: i64,
    sha256: Digest,
    /// Whether the last probe saw it.
    probed: bool,
}

impl Remembrance {
    /// `None` for times that are centuries away: such a file is simply hashed every time.
    fn new(file: &Fingerprint) -> Option<Self> {
        let (changed_ns, modified_ns) = (file.changed_ns.try_into().ok()?, file.modified_ns.try_into().ok()?);
        Some(Self { size: file.size, changed_ns, modified_ns, sha256: file.sha256, probed: false })
    }

    fn fingerprint(&self, inode: u64) -> Fingerprint {
        let (changed_ns, modified_ns) = (self.changed_ns.into(), self.modified_ns.into());
        Fingerprint { inode, size: self.size, changed_ns, modified_ns, sha256: self.sha256 }
    }

    fn is_of(&self, metadata: &Metadata) -> bool {
        (self.size, i128::from(self.changed_ns), i128::from(self.modified_ns))
            == (metadata.size, metadata.changed_ns, metadata.modified_ns)
    }
}

impl Remembered {
    fn get_mut(&mut self, inode: u64) -> Option<&mut Remembrance> {
        match self.loaded.binary_search_by_key(&inode, |(inode, _)| *inode) {
            Ok(at) => Some(&mut self.loaded[at].1),
            Err(_) => self.added.get_mut(&inode),
        }
    }

    /// What is remembered of a file that is as it was when it was hashed.
    fn known(&mut self, metadata: &Metadata) -> Option<&mut Remembrance> {
        self.get_mut(metadata.inode).filter(|file| file.is_of(metadata))
    }

    fn insert(&mut self, file: &Fingerprint) {
        let Some(new) = Remembrance::new(file) else { return };
        match self.get_mut(file.inode) {
            Some(old) => *old = new,
            None => drop(self.added.insert(file.inode, new)),
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = (u64, &mut Remembrance)> {
        let loaded = self.loaded.iter_mut().map(|(inode, file)| (*inode, file));
        loaded.chain(self.added.iter_mut().map(|(inode, file)| (*inode, file)))
    }
}

/// A change within the same tick of the file system's clock would go unnoticed, so files younger than two ticks of the
/// slowest kernels (100 Hz) are hashed anew. Where stamps are whole seconds, a tick is a second or two.
const SETTLED_NS: i128 = 25_000_000;
const SETTLED_COARSE_NS: i128 = 2_000_000_000;
/// One tick of the slowest kernels.
const TICK_NS: i128 = 10_000_000;
/// From this size on, waiting until a file has settled costs less than reading it a second time.
const WORTH_WAITING_BYTES: u64 = 64 << 20;

/// When a file may have changed for the last time without its stamp telling.
fn settled_ns(file: &Metadata) -> i128 {
    file.changed_ns + if file.changed_ns % 1_000_000_000 == 0 { SETTLED_COARSE_NS } else { SETTLED_NS }
}

/// Lets a large file that was written a moment ago settle, so that what is read of it now may be remembered.
fn let_settle(files: &Files, file: &Metadata) {
    let left = settled_ns(file) - files.disk.time_ns();
    // A fine stamp (Linux 6.13) is up to a tick ahead of the clock; one further ahead is coarse, or of a clock that was set back.
    if file.size >= WORTH_WAITING_BYTES && (0..=SETTLED_NS + TICK_NS).contains(&left) {
        std::thread::sleep(Duration::from_nanos(u64::try_from(left + TICK_NS).unwrap_or(0)));
    }
}

impl Hashes {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().expect("no holder panics")
    }

    /// Takes in what the catalog remembers, one file at a time.
    pub(crate) fn load<E>(
        &self,
        fingerprints: impl FnOnce(&mut dyn FnMut(Fingerprint)) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut loaded: Vec<(u64, Remembrance)> = Vec::new();
        fingerprints(&mut |file| loaded.extend(Remembrance::new(&file).map(|known| (file.inode, known))))?;
        loaded.sort_unstable_by_key(|(inode, _)| *inode);
        loaded.shrink_to_fit();
        let mut remembered = self.remembered();
        remembered.added.retain(|inode, _| loaded.binary_search_by_key(inode, |(inode, _)| *inode).is_err());
        remembered.loaded = loaded;
        Ok(())
    }

    /// What the last probe saw and may be remembered. If it saw anything, all else is forgotten.
    pub(crate) fn take_probed(&self) -> Vec<Fingerprint> {
        let mut remembered = self.remembered();
        let Remembered { loaded, added } = &mut *remembered;
        if loaded.iter().map(|(_, file)| file).chain(added.values()).any(|file| file.probed) {
            loaded.retain(|(_, file)| file.probed);
            added.retain(|_, file| file.probed);
        }
        let probed = remembered
            .all_mut()
            .filter_map(|(inode, file)| std::mem::take(&mut file.probed).then(|| file.fingerprint(inode)));
        probed.collect()
    }

    /// Forgets which files the last probe saw.
    fn begin_probe(&self) {
        self.remembered().all_mut().for_each(|(_, file)| file.probed = false);
    }

    /// What is known of a file that is as it was when it was hashed.
    fn known(&self, metadata: &Metadata) -> Option<Fingerprint> {
        self.remembered().known(metadata).map(|file| file.fingerprint(metadata.inode))
    }

    /// The digest of a file, which is read unless it is known.
    fn hash(&self, files: &Files, path: &Path, metadata: &Metadata) -> Result<Digest, FsError> {
        match self.known(metadata) {
            Some(file) => Ok(file.sha256),
            None => self.hash_anew(files, path, metadata),
        }
    }

    /// The digest of a file as it is read now.
    fn hash_anew(&self, files: &Files, path: &Path, metadata: &Metadata) -> Result<Digest, FsError> {
        let_settle(files, metadata);
        let began = files.disk.time_ns();
        let (sha256, metadata) = hash(files, path)?;
        let Metadata { inode, size, changed_ns, modified_ns, .. } = metadata;
        if settled_ns(&metadata) < began {
            self.remembered().insert(&Fingerprint { inode, size, changed_ns, modified_ns, sha256 });
        }
        Ok(sha256)
    }

    /// Goes on knowing a file that got, lost or changed a name: by that only its time of change moved.
    pub(crate) fn follow(&self, before: &Metadata, after: &Metadata) {
        if (before.inode, before.size, before.modified_ns) == (after.inode, after.size, after.modified_ns)
            && let Some(file) = self.known(before)
        {
            self.remembered().insert(&Fingerprint { changed_ns: after.changed_ns, ..file });
        }
    }

    /// Runs `work`, which takes other names away from the files at `paths` below `base`, and goes on knowing them. Returns all
    /// that is known of them then.
    pub(crate) fn follow_through<E: From<FsError>>(
        &self,
        files: &Files,
        base: &Path,
        paths: &[SafePath],
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Vec<Fingerprint>, E> {
        // What is known of each, in the order of the paths.
        let before = files.for_each(paths, |path| {
            let metadata = files.metadata(&base.join(path.as_path()))?;
            Ok::<_, FsError>(metadata.and_then(|metadata| self.known(&metadata)))
        })?;
        work()?;
        let pairs: Vec<(&SafePath, Fingerprint)> =
            paths.iter().zip(before).filter_map(|(path, before)| Some((path, before?))).collect();
        Ok(files.find_each(&pairs, |(path, before)| {
            let Some(after) = files.metadata(&base.join(path.as_path()))? else { return Ok(None) };
            if (before.inode, before.size, before.modified_ns) == (after.inode, after.size, after.modified_ns)
            {
                self.remembered().insert(&Fingerprint { changed_ns: after.changed_ns, ..*before });
            }
            Ok::<_, FsError>(self.known(&after))
        })?)
    }
}

/// How a file's digest is found.
#[derive(Clone, Copy)]
pub(crate) enum Reading<'a> {
    /// By reading it, whatever is remembered; nothing is remembered of it.
    Always,
    /// By reading it; that is remembered.
    Once(&'a Hashes),
    /// By reading it unless it is known.
    UnlessKnown(&'a Hashes),
}

impl Reading<'_> {
    fn digest(self, files: &Files, path: &Path, metadata: &Metadata) -> Result<Digest, FsError> {
        match self {
            Reading::Always => Ok(hash(files, path)?.0),
            Reading::Once(hashes) => hashes.hash_anew(files, path, metadata),
            Reading::UnlessKnown(hashes) => hashes.hash(files, path, metadata),
        }
    }
}

/// Whether extended attributes are part of the picture: in place they are kept, in trees of our own there are none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attributes {
    Ignore,
    Read,
}

/// What lies at `paths`, which are sorted, below `base`. Absent paths, directories and devices are left out.
pub(crate) fn look(
    files: &Files,
    base: &Path,
    paths: &[SafePath],
    attributes: Attributes,
    hashes: &Hashes,
) -> Result<SeenTree, FsError> {
    let is_known = |path: &SafePath| paths.binary_search(path).is_ok();
    let seen = files.find_each(paths, |path| {
        let Some(metadata) = metadata(files, base, path, is_known)? else { return Ok(None) };
        let seen = look_at(files, &base.join(path.as_path()), &metadata, attributes, hashes)?;
        Ok(seen.map(|seen| (path.clone(), seen)))
    })?;
    Ok(seen.into_iter().collect())
}

/// As [`Files::metadata`], of `path` below `base`. Nothing of ours lies behind a link at a known path: where one release has
/// the link, the other has a directory. Any other link on the way was put there by somebody else and is an error.
pub(crate) fn metadata(
    files: &Files,
    base: &Path,
    path: &SafePath,
    is_known: impl Fn(&SafePath) -> bool,
) -> Result<Option<Metadata>, FsError> {
    let error = match files.metadata(&base.join(path.as_path())) {
        Err(error) => error,
        found => return found,
    };
    for above in path.ancestors() {
        match files.metadata(&base.join(above.as_path()))?.map(|metadata| metadata.kind) {
            Some(EntryKind::Directory) => {}
            Some(EntryKind::Symlink) if is_known(&above) => return Ok(None),
            Some(_) | None => break,
        }
    }
    Err(error)
}

fn look_at(
    files: &Files,
    path: &Path,
    metadata: &Metadata,
    attributes: Attributes,
    hashes: &Hashes,
) -> Result<Option<SeenFile>, FsError> {
    let kind = match metadata.kind {
        EntryKind::File => {
            let sha256 = hashes.hash(files, path, metadata)?;
            SeenKind::File { sha256, size: metadata.size }
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

/// What differs in the installed tree. What this execution read before the switch is not read again unless it was touched
/// since; all that is as it should be is remembered for the next plan.
pub(crate) fn probe(
    files: &Files,
    base: &Path,
    expected: &ExpectedTree,
    hashes: &Hashes,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    hashes.begin_probe();
    compare(expected, files, |path, expected| {
        let path = base.join(path.as_path());
        let Some(metadata) = files.metadata(&path)? else { return Ok(Some(Difference::Missing)) };
        let found = difference_of(files, &path, &metadata, expected, Reading::UnlessKnown(hashes))?;
        if found.is_none()
            && let Some(known) = hashes.remembered().known(&metadata)
        {
            known.probed = true;
        }
        Ok(found)
    })
}

/// What differs from `expected` below `base`.
pub(crate) fn differences(
    files: &Files,
    base: &Path,
    expected: &ExpectedTree,
    reading: Reading<'_>,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    compare(expected, files, |path, expected| {
        difference(files, &base.join(path.as_path()), expected, reading)
    })
}

fn compare(
    expected: &ExpectedTree,
    files: &Files,
    compare: impl Fn(&SafePath, &Expected) -> Result<Option<Difference>, FsError> + Sync,
) -> Result<BTreeMap<SafePath, Difference>, FsError> {
    let expected: Vec<_> = expected.iter().collect();
    let found = files.find_each(&expected, |(path, expected)| {
        Ok(compare(path, expected)?.map(|found| ((*path).clone(), found)))
    })?;
    Ok(found.into_iter().collect())
}

/// How the entry at `path` differs.
pub(crate) fn difference(
    files: &Files,
    path: &Path,
    expected: &Expected,
    reading: Reading<'_>,
) -> Result<Option<Difference>, FsError> {
    match files.metadata(path)? {
        Some(metadata) => difference_of(files, path, &metadata, expected, reading),
        None => Ok(Some(Difference::Missing)),
    }
}

fn difference_of(
    files: &Files,
    path: &Path,
    metadata: &Metadata,
    expected: &Expected,
    reading: Reading<'_>,
) -> Result<Option<Difference>, FsError> {
    Ok(match (&expected.kind, metadata.kind) {
        (SeenKind::File { size, .. }, EntryKind::File) if metadata.size != *size => Some(Difference::Content),
        (SeenKind::File { sha256, .. }, EntryKind::File)
            if *sha256 != reading.digest(files, path, metadata)? =>
        {
            Some(Difference::Content)
        }
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
    use std::{num::NonZeroUsize, sync::Arc};

    use super::*;
    use crate::{disk::RealDisk, nice::Nice};

    #[test]
    fn large_file_that_was_just_written_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
        let files = Files::new(disk, NonZeroUsize::MIN, Nice::NONE);
        let path = Path::new("large");
        std::fs::File::create(directory.path().join(path)).unwrap().set_len(WORTH_WAITING_BYTES).unwrap();

        let hashes = Hashes::default();
        let metadata = files.metadata(path).unwrap().expect("the file");
        let sha256 = Reading::Once(&hashes).digest(&files, path, &metadata).unwrap();

        assert_eq!(hashes.known(&metadata).map(|file| file.sha256), Some(sha256));
    }

    #[test]
    fn hex_round_trips_and_odd_or_foreign_digits_are_refused() {
        assert_eq!(from_hex(&to_hex(&[0, 0x0f, 0xff])), Some(vec![0, 0x0f, 0xff]));
        assert_eq!(from_hex(""), Some(Vec::new()));
        for text in ["f", "0g", "+1"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
