//! The object store: file contents by digest, as bundles encode them, in packs of their own inodes. A live file never shares
//! an inode with the store: damage to one must not reach what repairs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
    sync::Mutex,
};

use cutover_bundle::{ObjectError, decode_object};
use cutover_core::{
    causes::chain,
    model::{Digest, ObjectEntry},
};

use super::{
    files::{Attempt as _, Files, FsError},
    pack::{self, PackError, PackIndex, PackWriter, Window},
    place,
};

/// A sweep leaves a pack alone as long as no more than this part of it is of no use.
const WASTE_MAX: u64 = 4;
/// Above this many packs a sweep joins the small ones.
const PACKS_MAX: usize = 64;

/// Why an object of the store could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there.
    #[error("object {0} is not in the store")]
    Missing(Digest),
    /// It is there and damaged, or could not be written where it was wanted.
    #[error("the store's copy is of no use")]
    Object(#[from] ObjectError),
    /// The file system refused something.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// What lies in the store.
pub(crate) struct Store<'a> {
    files: &'a Files,
    /// In the order of their digests; of several copies the newest.
    objects: Vec<Stored>,
}

/// An object, and the number of the pack it lies in.
struct Stored {
    entry: ObjectEntry,
    pack: u64,
}

impl<'a> Store<'a> {
    /// Reads the indexes of all packs. A pack whose index cannot be read holds nothing.
    pub(crate) fn open(files: &'a Files) -> Result<Self, FsError> {
        let mut objects: Vec<Stored> = Vec::new();
        for number in numbers(files)?.into_iter().rev() {
            let index = index(files, number);
            objects.extend(
                index.into_iter().flat_map(|index| index.objects).map(|entry| Stored { entry, pack: number }),
            );
        }
        // The newest come first, and stay first of those with one digest.
        objects.sort_by_key(|stored| stored.entry.sha256);
        objects.dedup_by_key(|stored| stored.entry.sha256);
        objects.shrink_to_fit();
        Ok(Self { files, objects })
    }

    fn find(&self, digest: Digest) -> Option<&Stored> {
        let at = self.objects.binary_search_by_key(&digest, |stored| stored.entry.sha256).ok()?;
        self.objects.get(at)
    }

    /// The digests of its objects.
    pub(crate) fn digests(&self) -> BTreeSet<Digest> {
        self.objects.iter().map(|stored| stored.entry.sha256).collect()
    }

    /// Decodes an object of `size` bytes into `content`, checking its digest. What was written before an error must be
    /// thrown away.
    pub(crate) fn decode(
        &self,
        digest: Digest,
        size: u64,
        content: &mut dyn Write,
    ) -> Result<(), StoreError> {
        let Stored { entry, pack } = self.find(digest).ok_or(StoreError::Missing(digest))?;
        let path = place::pack(*pack);
        let file = match self.files.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(digest)),
            file => file.attempt("open", &path)?,
        };
        let stored = Window { file: &*file, at: entry.offset, left: entry.stored_size };
        Ok(decode_object(&ObjectEntry { size, ..entry.clone() }, stored, content)?)
    }
}

/// The packs that can be read, oldest first.
fn packs(files: &Files) -> Result<BTreeMap<u64, PackIndex>, FsError> {
    let mut packs = BTreeMap::new();
    for number in numbers(files)? {
        packs.extend(index(files, number).map(|index| (number, index)));
    }
    Ok(packs)
}

/// The index of a pack; `None` when it is gone or cannot be read.
fn index(files: &Files, number: u64) -> Option<PackIndex> {
    let path = place::pack(number);
    match files.disk.open(&path).map_err(PackError::from).and_then(|file| pack::read_index(&*file)) {
        Ok(index) => Some(index),
        Err(PackError::Read(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(pack = %path.display(), error = %chain(&error), "its objects cannot be used");
            None
        }
    }
}

fn numbers(files: &Files) -> Result<BTreeSet<u64>, FsError> {
    let listed = files.list(place::STORE.as_ref())?;
    Ok(listed.iter().filter_map(|(name, _)| place::pack_number(name)).collect())
}

/// The packs that one step writes: as many as there are threads writing at once.
pub(crate) struct NewPacks<'a> {
    files: &'a Files,
    directory: &'a Path,
    state: Mutex<State<'a>>,
}

#[derive(Default)]
struct State<'a> {
    created: usize,
    /// Those that nobody writes to at the moment.
    idle: Vec<PackWriter<'a>>,
}

impl<'a> NewPacks<'a> {
    /// New packs are made in `directory`, which is on the store's file system and holds none.
    pub(crate) fn new(files: &'a Files, directory: &'a Path) -> Self {
        Self { files, directory, state: Mutex::default() }
    }

    /// Adds the object that `write` writes in its stored form; its stored size and place are what turns out. After an error
    /// the pack goes on without it.
    pub(crate) fn add<E: From<FsError>>(
        &self,
        entry: ObjectEntry,
        write: impl FnOnce(&mut PackWriter<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = || self.state.lock().expect("no holder panics");
        let idle = state().idle.pop();
        let mut pack = match idle {
            Some(pack) => pack,
            None => {
                let mut state = state();
                state.created += 1;
                let path = self.directory.join(format!("pack-{}", state.created));
                PackWriter::create(self.files, &path)?
            }
        };
        let added = pack.add(entry, write);
        state().idle.push(pack);
        added
    }

    /// Ends the packs: everything is written, nothing is durable.
    pub(crate) fn finish(self) -> Result<Finished, FsError> {
        let mut state = self.state.into_inner().expect("no holder panics");
        // In the order they were begun, whoever was the last to use them.
        state.idle.sort_by(|a, b| a.path().cmp(b.path()));
        let mut finished = Finished(Vec::new());
        for pack in state.idle {
            let path = pack.path().to_owned();
            if pack.finish()?.is_some() {
                finished.0.push(path);
            }
        }
        Ok(finished)
    }
}

/// Whole packs that are not in the store yet.
pub(crate) struct Finished(Vec<std::path::PathBuf>);

/// Moves packs whose content is durable into the store. Their names become durable with the next flush of the file system.
pub(crate) fn adopt(files: &Files, finished: &Finished) -> Result<(), FsError> {
    let mut last = numbers(files)?.last().copied().unwrap_or(0);
    for path in &finished.0 {
        last += 1;
        files.rename(path, &place::pack(last))?;
    }
    Ok(())
}

/// Removes objects that are not `named`, and older copies of others; returns how many. A pack of which most is of use stays
/// as it is, and so does everything when there is no room to write the rest anew.
pub(crate) fn sweep(files: &Files, named: &BTreeSet<Digest>) -> Result<usize, FsError> {
    let packs = packs(files)?;
    let mut seen = BTreeSet::new();
    let mut verdicts: Vec<Verdict> = Vec::new();
    for (number, index) in packs.into_iter().rev() {
        let (wanted, waste): (Vec<_>, Vec<_>) = index
            .objects
            .into_iter()
            .partition(|entry| named.contains(&entry.sha256) && seen.insert(entry.sha256));
        verdicts.push(Verdict { number, wanted, waste });
    }
    let (keep, mut rewrite): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(Verdict::is_fine);
    rewrite.extend(too_many(keep));
    if rewrite.is_empty() {
        return Ok(0);
    }
    let scratch = Path::new(place::STAGING).join("sweep");
    files.discard(&scratch)?;
    files.ensure_dir(&scratch, 0o700)?;
    let (empty, mixed): (Vec<_>, Vec<_>) = rewrite.into_iter().partition(|verdict| verdict.wanted.is_empty());
    let mut removed = remove(files, &empty)?;
    match rewritten(files, &mixed, &scratch) {
        Ok(finished) => {
            adopt(files, &finished)?;
            files.sync_dir(place::STORE.as_ref())?;
            removed += remove(files, &mixed)?;
        }
        Err(error)
            if matches!(error.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            tracing::warn!(error = %chain(&error), "no room to write the rest of the store anew; it stays as it is");
        }
        Err(error) => return Err(error),
    }
    files.discard(&scratch)?;
    Ok(removed)
}

/// What a sweep finds in one pack.
struct Verdict {
    number: u64,
    wanted: Vec<ObjectEntry>,
    waste: Vec<ObjectEntry>,
}

impl Verdict {
    /// Whether writing it anew would bring too little.
    fn is_fine(&self) -> bool {
        let sum = |entries: &[ObjectEntry]| entries.iter().map(|entry| entry.stored_size).sum::<u64>();
        let (wanted, waste) = (sum(&self.wanted), sum(&self.waste));
        !self.wanted.is_empty() && waste.saturating_mul(WASTE_MAX) <= wanted.saturating_add(waste)
    }
}

/// The smaller half of the packs when there are too many.
fn too_many(mut packs: Vec<Verdict>) -> Vec<Verdict> {
    if packs.len() <= PACKS_MAX {
        return Vec::new();
    }
    packs.sort_by_key(|pack| pack.wanted.iter().map(|entry| entry.stored_size).sum::<u64>());
    packs.truncate(packs.len() / 2);
    packs
}

/// Copies what is wanted of some packs into one new one, which is durable but not in the store.
fn rewritten(files: &Files, packs: &[Verdict], scratch: &Path) -> Result<Finished, FsError> {
    let path = scratch.join("pack");
    let mut target = PackWriter::create(files, &path)?;
    for pack in packs {
        let from = place::pack(pack.number);
        let file = files.disk.open(&from).attempt("open", &from)?;
        for entry in &pack.wanted {
            let mut stored = Window { file: &*file, at: entry.offset, left: entry.stored_size };
            target.add(entry.clone(), |target| {
                io::copy(&mut stored, target).map(drop).attempt("copy objects of", &from)
            })?;
        }
    }
    let Some(mut file) = target.finish()? else { return Ok(Finished(Vec::new())) };
    file.sync().attempt("flush", &path)?;
    Ok(Finished(vec![path]))
}

/// Removes packs, and counts the objects that are gone with them.
fn remove(files: &Files, packs: &[Verdict]) -> Result<usize, FsError> {
    for pack in packs {
        files.remove_file(&place::pack(pack.number))?;
    }
    Ok(packs.iter().map(|pack| pack.waste.len()).sum())
}

/// Writes to several files at once: an object that a release has in several places is read and decoded once.
pub(crate) struct Tee<'a>(pub(crate) Vec<Box<dyn crate::disk::NewFile + 'a>>);

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.iter_mut().try_for_each(|file| file.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, sync::Arc};

    use cutover_core::model::Encoding;

    use super::*;
    use crate::{disk::RealDisk, nice::Nice};

    struct Scene {
        directory: tempfile::TempDir,
        files: Files,
    }

    fn scene() -> Scene {
        let directory = tempfile::tempdir().expect("a directory");
        for path in [place::STORE, place::STAGING, place::TRASH] {
            std::fs::create_dir_all(directory.path().join(path)).expect("made");
        }
        let disk = RealDisk::open(directory.path()).expect("a disk");
        let files = Files::new(Arc::new(disk), NonZeroUsize::new(4).expect("four"), Nice::NONE);
        Scene { directory, files }
    }

    fn entry(content: &[u8]) -> ObjectEntry {
        let size = content.len() as u64;
        ObjectEntry { sha256: Digest::of(content), size, stored_size: 0, encoding: Encoding::Raw, offset: 0 }
    }

    impl Scene {
        /// Puts one step's objects into the store.
        fn put(&self, contents: &[&[u8]]) {
            let packs = NewPacks::new(&self.files, place::STAGING.as_ref());
            for content in contents {
                let write = |pack: &mut PackWriter<'_>| pack.write_all(content).attempt("write", "");
                packs.add(entry(content), write).expect("written");
            }
            adopt(&self.files, &packs.finish().expect("finished")).expect("adopted");
        }

        fn get(&self, content: &[u8]) -> Result<(), StoreError> {
            let mut got = Vec::new();
            let store = Store::open(&self.files).expect("opened");
            store.decode(Digest::of(content), content.len() as u64, &mut got)?;
            assert_eq!(got, content);
            Ok(())
        }

        fn sweep(&self, wanted: &[&[u8]]) -> usize {
            sweep(&self.files, &wanted.iter().map(|content| Digest::of(content)).collect()).expect("swept")
        }

        fn pack(&self, number: u64) -> std::path::PathBuf {
            self.directory.path().join(place::pack(number))
        }

        fn damage(&self, number: u64, at: usize) {
            let mut bytes = std::fs::read(self.pack(number)).expect("read");
            bytes[at] ^= 1;
            std::fs::write(self.pack(number), bytes).expect("written");
        }

        fn numbers(&self) -> Vec<u64> {
            numbers(&self.files).expect("listed").into_iter().collect()
        }
    }

    #[test]
    fn newer_copy_of_an_object_is_taken_and_a_sweep_drops_the_older() {
        let scene = scene();
        scene.put(&[b"one"]);
        scene.damage(1, 0);
        assert!(matches!(scene.get(b"one"), Err(StoreError::Object(_))));
        scene.put(&[b"one"]);
        scene.get(b"one").expect("the good one");
        assert_eq!(scene.sweep(&[b"one"]), 1);
        assert_eq!(scene.numbers(), [2]);
        scene.get(b"one").expect("still there");
    }

    #[test]
    fn sweep_removes_what_nothing_names_and_leaves_a_little_waste() {
        let scene = scene();
        let big = [7; 400];
        scene.put(&[b"gone", b"too"]);
        scene.put(&[b"small", &big]);
        scene.put(&[&[8; 400], b"kept"]);
        assert_eq!(scene.sweep(&[&big, b"kept"]), 3, "two with their pack, one big one");
        assert_eq!(scene.numbers(), [2, 4], "the second is mostly of use, the third is written anew");
        scene.get(&big).expect("kept");
        scene.get(b"kept").expect("kept");
        scene.get(b"small").expect("not worth the writing");
        assert!(matches!(scene.get(&[8; 400]), Err(StoreError::Missing(_))));
        assert_eq!(scene.sweep(&[&big, b"kept"]), 0, "nothing is left to do");
    }

    #[test]
    fn sweep_joins_small_packs_when_there_are_too_many() {
        let scene = scene();
        let contents: Vec<[u8; 2]> = (0..70).map(|number| [number, 1]).collect();
        contents.iter().for_each(|content| scene.put(&[content]));
        let wanted: Vec<&[u8]> = contents.iter().map(<[u8; 2]>::as_slice).collect();
        assert_eq!(scene.sweep(&wanted), 0);
        assert_eq!(scene.numbers().len(), 36);
        wanted.iter().for_each(|content| scene.get(content).expect("kept"));
    }

    #[test]
    fn pack_with_a_damaged_index_holds_nothing_and_is_left_alone() {
        let scene = scene();
        scene.put(&[b"one"]);
        let whole = std::fs::read(scene.pack(1)).expect("read");
        for at in 3..whole.len() {
            std::fs::write(scene.pack(1), &whole).expect("written");
            scene.damage(1, at);
            assert!(matches!(scene.get(b"one"), Err(StoreError::Missing(_))), "byte {at}");
        }
        for length in 0..whole.len() {
            std::fs::write(scene.pack(1), &whole[..length]).expect("written");
            assert!(matches!(scene.get(b"one"), Err(StoreError::Missing(_))), "{length} bytes");
        }
        assert_eq!(scene.sweep(&[]), 0);
        assert_eq!(scene.numbers(), [1]);
    }

    #[test]
    fn threads_write_at_once_and_an_object_that_failed_is_not_there() {
        let scene = scene();
        let packs = NewPacks::new(&scene.files, place::STAGING.as_ref());
        let contents: Vec<Vec<u8>> = (0..200_u32).map(|number| number.to_le_bytes().repeat(50)).collect();
        scene
            .files
            .for_each(&contents, |content| {
                packs.add(entry(content), |pack| pack.write_all(content).attempt("write", ""))
            })
            .expect("written");
        let failed = packs.add(entry(b"half"), |pack| {
            pack.write_all(b"ha").attempt("write", "")?;
            Err(io::Error::other("no more")).attempt("read", "")
        });
        assert!(failed.is_err());
        adopt(&scene.files, &packs.finish().expect("finished")).expect("adopted");
        contents.iter().for_each(|content| scene.get(content).expect("whole"));
        assert!(matches!(scene.get(b"half"), Err(StoreError::Missing(_))));
        assert!(scene.numbers().len() <= 4, "no more packs than threads");
    }

    #[test]
    fn index_of_the_first_format_is_read() {
        let pack = include_bytes!("../../tests/fixtures/000001.pack");
        let scene = scene();
        scene
            .files
            .disk
            .create(&place::pack(1), 0o600)
            .and_then(|mut file| file.write_all(pack))
            .expect("put");
        scene.get(b"one\n").expect("raw");
        scene.get(&b"compressed ".repeat(20)).expect("one Zstandard frame");
    }
}
