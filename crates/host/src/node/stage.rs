//! Stage: lays the files of a plan down where nothing reads them, checks every one, and makes them durable.
//!
//! Each bundle object is read once: its content goes to the staged files, its stored bytes to the store. Unchanged files
//! come from the present tree. Nothing outside `.cutover/staging` is touched before everything is laid down, flushed and
//! checked (I1).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cutover_bundle::{
    ObjectError, ObjectWriter, ReadAt,
    delta::{DeltaError, Part},
};
use cutover_core::{
    causes::chain,
    model::{
        DeltaFile, Digest, Encoding, ObjectEntry, ReleaseRef, RestorePoint, RestorePointId, SafePath,
        SeenFile, SeenKind, Symlink,
    },
    plan::{Change, Layout, Ownership, Plan, Reuse, Source, Stage, StageFile},
};

use super::{
    current,
    error::{NodeError, StageError},
    files::{Attempt as _, Files, FsError, Hashed, gathered},
    place, restore,
    store::{self, NewPacks, Store, Tee},
    tree::{self, Difference, Expected, Hashes, Reading},
};
use crate::{
    disk::{Copied, NewFile, OpenFile},
    payload::Payload,
};

/// Most files one object is written to at once; a release that has it in more places gets the rest as copies.
const TEE_MAX: usize = 16;

/// An installed file, as the base of a patch.
struct Base<'a>(Box<dyn OpenFile + 'a>);

impl ReadAt for Base<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size)
    }
}

/// Writes to two places.
struct Both<'a>(&'a mut dyn io::Write, &'a mut dyn io::Write);

impl io::Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What one staging works with.
pub(crate) struct Staging<'a> {
    pub(crate) files: &'a Files,
    pub(crate) hashes: &'a Hashes,
    pub(crate) plan: &'a Plan,
    pub(crate) stage: &'a Stage,
    pub(crate) payload: Option<&'a dyn Payload>,
    /// Is told how many of the plan's bytes are laid down.
    pub(crate) progress: &'a (dyn Fn(u64) + Sync),
    /// Places in the payload's list of objects, in the order of their digests.
    entries: Vec<u32>,
    /// The store as it was before, opened when something is wanted from it.
    store: Mutex<Option<Arc<Store<'a>>>>,
    laid: AtomicU64,
    linked: AtomicU64,
    cloned: AtomicU64,
}

impl<'a> Staging<'a> {
    pub(crate) fn new(
        files: &'a Files,
        hashes: &'a Hashes,
        plan: &'a Plan,
        stage: &'a Stage,
        payload: Option<&'a dyn Payload>,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        let zero = AtomicU64::default;
        let (entries, store) = (by_digest(payload), Mutex::default());
        let (laid, linked, cloned) = (zero(), zero(), zero());
        Self { files, hashes, plan, stage, payload, progress, entries, store, laid, linked, cloned }
    }

    fn store(&self) -> Result<Arc<Store<'a>>, FsError> {
        let mut held = self.store.lock().expect("no holder panics");
        if let Some(store) = &*held {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(Store::open(self.files)?);
        *held = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Performs the whole step; returns what is worth telling.
    pub(crate) fn perform(&self) -> Result<String, NodeError> {
        let files = self.files;
        files.discard(&place::staging(self.plan.number))?;
        let packs = place::staged_packs(self.plan.number);
        for directory in [&place::staging(self.plan.number), &packs] {
            files.ensure_dir(directory, 0o700)?;
        }
        files.ensure_dir(&self.tree(), 0o755)?;
        self.store_manifest()?;
        self.make_directories()?;
        let packs = NewPacks::new(files, &packs);
        self.lay_files(&packs)?;
        let packs = packs.finish()?;
        self.lay_links()?;
        self.keep_ownership()?;
        if self.check_while_flushing()? == Laid::Again {
            files.sync_all()?;
        }
        // From here on the bytes can be relied on.
        store::adopt(files, &packs)?;
        match (self.plan.layout, &self.plan.to) {
            (Layout::Versioned | Layout::Exchange, Some(to)) => self.move_tree(to)?,
            (Layout::Versioned | Layout::Exchange, None) | (Layout::InPlace, _) => {}
        }
        files.sync_all()?;
        Ok(self.note())
    }

    fn tree(&self) -> PathBuf {
        place::staged_tree(self.plan.number)
    }

    fn staged(&self, path: &SafePath) -> PathBuf {
        self.tree().join(path.as_path())
    }

    /// The tree that present files are reused from.
    fn present(&self) -> Option<PathBuf> {
        self.plan.from.as_ref().map(|from| current::tree(self.plan.layout, from))
    }

    fn note(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let total = self.stage.files.len() as u64;
        let (linked, cloned) = (count(&self.linked), count(&self.cloned));
        format!(
            "{total} files, {} bytes new, {} reused ({linked} hard links, {cloned} reflinks, {} written)",
            self.plan.bytes.new,
            self.plan.bytes.reused,
            total - linked - cloned
        )
    }

    /// Keeps manifest and signature: what is installed must be known without the bundle.
    fn store_manifest(&self) -> Result<(), NodeError> {
        type Write<'w> = &'w dyn Fn(&mut dyn io::Write) -> io::Result<()>;

        let Some(payload) = self.payload else { return Ok(()) };
        let digest = payload.release().manifest;
        // Flushed with everything else; the names are new, so nobody can see half of them.
        let put = |path: &Path, digest: Digest, write: Write<'_>| -> Result<(), FsError> {
            if self.files.digest(path)? == Some(digest) {
                return Ok(());
            }
            self.files.remove_file(path)?;
            let mut file = self.files.disk.create(path, 0o600).attempt("create", path)?;
            gathered(&mut file, |out| {
                let mut out = Hashed::new(out);
                write(&mut out)?;
                match out.finish() {
                    (written, _) if written == digest => Ok(()),
                    _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it changed since it was verified")),
                }
            })
            .attempt("write", path)
        };
        let (manifest, signature) = (place::manifest(digest), payload.signature_bytes());
        put(&manifest, digest, &|out| payload.write_manifest(out))?;
        self.files.manifests.know(digest, payload.manifest());
        put(&place::signature(digest), Digest::of(signature), &|out| out.write_all(signature))?;
        Ok(())
    }

    fn make_directories(&self) -> Result<(), NodeError> {
        let links = self.stage.symlinks.iter().map(|link| &link.path);
        let paths = self.stage.files.iter().map(|file| &file.path).chain(links).chain(&self.stage.shared);
        let directories: BTreeSet<SafePath> = paths.flat_map(SafePath::ancestors).collect();
        // Sorted, so that a directory comes before what lies in it.
        for directory in &directories {
            self.files.ensure_dir(&self.staged(directory), 0o755)?;
        }
        Ok(())
    }

    /// Lays down every file; the objects that come with the payload go to `packs`.
    fn lay_files(&self, packs: &NewPacks<'_>) -> Result<(), NodeError> {
        let mut by_object: Vec<&StageFile> = Vec::new();
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for file in &self.stage.files {
            match &file.source {
                Source::Bundle | Source::Store => by_object.push(file),
                Source::Present { path, reuse } => jobs.push(Job::Present(file, path, *reuse)),
                Source::RestorePoint { id } => jobs.push(Job::Point(file, id)),
            }
        }
        by_object.sort_by_key(|file| file.sha256);
        jobs.extend(by_object.chunk_by(|a, b| a.sha256 == b.sha256).map(Job::Object));
        // Big ones first, so that no thread is left alone with one at the end.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.bytes()));
        let points = self.points()?;
        let lay = |job: &Job<'_>| {
            match job {
                Job::Object(places) => self.lay_object(places, packs),
                Job::Present(file, from, reuse) => self.lay_present(file, from, *reuse),
                Job::Point(file, id) => self.lay_from_point(file, id, &points),
            }?;
            (self.progress)(self.laid.fetch_add(job.bytes(), Ordering::Relaxed) + job.bytes());
            Ok::<_, NodeError>(())
        };
        let abandon = || {
            if let Some(payload) = self.payload {
                payload.abandon();
            }
        };
        let patched = self.payload.map(Payload::patch_order).unwrap_or_default();
        if !patched.is_empty() {
            let laid = self.files.aside(|| {
                patched.into_iter().try_for_each(|sha256| {
                    // One after the other, as the delta manifest demands; what is not to be laid down at all has no job.
                    match jobs.iter().position(|job| job.object() == Some(sha256)) {
                        Some(index) => lay(&jobs.remove(index)),
                        None => Ok(()),
                    }
                })
            });
            laid.inspect_err(|_| abandon())?;
        }
        self.files.for_each_or(&jobs, lay, abandon)?;
        Ok(())
    }

    /// The restore points files are taken from, each believed only with its seal.
    fn points(&self) -> Result<BTreeMap<RestorePointId, Arc<RestorePoint>>, NodeError> {
        let ids: BTreeSet<&RestorePointId> = self
            .stage
            .files
            .iter()
            .filter_map(|file| match &file.source {
                Source::RestorePoint { id } => Some(id),
                Source::Bundle | Source::Store | Source::Present { .. } => None,
            })
            .collect();
        ids.into_iter().map(|id| Ok((id.clone(), restore::read(self.files, id)?))).collect()
    }

    /// Decodes one object into all its places. An object from the bundle also goes to the store, unless it is there.
    fn lay_object(&self, places: &[&StageFile], packs: &NewPacks<'_>) -> Result<(), NodeError> {
        let first = places.first().expect("grouped by content, so never empty");
        let (direct, copies) = places.split_at(places.len().min(TEE_MAX));
        let (sha256, size) = (first.sha256, first.size);
        if first.source == Source::Store {
            let store = self.store()?;
            match self.write_to(direct, |content| store.decode(sha256, size, content)) {
                Ok(()) => {}
                Err(NodeError::Store(source)) => {
                    tracing::warn!(object = %sha256, error = %chain(&source), "the store's copy cannot be used");
                    if self.entry(sha256).is_none() {
                        return Err(StageError::Store { path: first.path.clone(), source }.into());
                    }
                    self.lay_from_bundle(first, direct, packs)?;
                }
                Err(error) => return Err(error),
            }
        } else {
            self.lay_from_bundle(first, direct, packs)?;
        }
        for file in copies {
            let (from, to) = (self.staged(&first.path), self.staged(&file.path));
            self.files.disk.copy(&from, &to, file.mode.bits()).attempt("copy to", &to)?;
        }
        Ok(())
    }

    fn lay_from_bundle(
        &self,
        first: &StageFile,
        places: &[&StageFile],
        packs: &NewPacks<'_>,
    ) -> Result<(), NodeError> {
        let payload = self.payload.ok_or_else(|| StageError::NoPayload(first.path.clone()))?;
        let entry = self.entry(first.sha256).ok_or_else(|| StageError::NoPayload(first.path.clone()))?;
        let mut refused = None;
        if let Some(file) = payload.patch(first.sha256) {
            match self.lay_patched(payload, file, places, packs)? {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(path = %first.path, error = %chain(&error), "the patch is of no use");
                    payload.patch_failed();
                    refused = Some(error);
                }
            }
        }
        packs.add(entry.clone(), |pack| {
            self.write_to(places, |content| {
                payload.copy_object(entry, content, pack).map_err(|source| {
                    let path = first.path.clone();
                    match (source, refused.take()) {
                        (ObjectError::NotCarried(_), Some(source)) => StageError::Patch { path, source },
                        (source, _) => StageError::Payload { path, source },
                    }
                })
            })
        })
    }

    /// Makes an object by its patch from the file that is installed, into its places and for the store. A patch or a base
    /// that is of no use is the inner error; then none of the places is left.
    fn lay_patched(
        &self,
        payload: &dyn Payload,
        file: &DeltaFile,
        places: &[&StageFile],
        packs: &NewPacks<'_>,
    ) -> Result<Result<(), DeltaError>, NodeError> {
        let missing = || DeltaError::Read { part: Part::Base, source: io::ErrorKind::NotFound.into() };
        let Some(present) = self.present() else { return Ok(Err(missing())) };
        let base = present.join(file.base_path.as_ref().unwrap_or(&file.path).as_path());
        let base = match self.files.disk.open(&base) {
            Ok(base) => Base(base),
            Err(source) => return Ok(Err(DeltaError::Read { part: Part::Base, source })),
        };
        let (sha256, size) = (file.target_sha256, file.target_size);
        let entry = ObjectEntry { sha256, size, stored_size: 0, encoding: Encoding::Zstd, offset: 0 };
        let store = place::staged_packs(self.plan.number);
        let mut failed = None;
        let written = packs.add(entry, |pack| {
            let mut packer = ObjectWriter::new(pack).attempt("write", &store)?;
            self.write_to(places, |content| {
                let applied = payload.apply_patch(file, &base, &mut Both(content, &mut packer));
                applied.map_err(|error| {
                    failed = Some(error);
                    NodeError::Changed
                })
            })?;
            packer.finish().attempt("write", &store)?;
            Ok(())
        });
        match (written, failed) {
            // A full disk is no fault of the patch: the full content would not fit either.
            (Err(_), Some(DeltaError::Write(source))) => {
                Err(source).attempt("write", &store).map_err(NodeError::from)
            }
            (Err(_), Some(error)) => Ok(Err(error)),
            (Err(error), None) => Err(error),
            (Ok(()), _) => Ok(Ok(())),
        }
    }

    /// The bundle's entry for an object.
    fn entry(&self, digest: Digest) -> Option<&ObjectEntry> {
        let objects = &self.payload?.manifest().objects;
        let at = self.entries.binary_search_by_key(&digest, |at| objects[*at as usize].sha256).ok()?;
        objects.get(self.entries[at] as usize)
    }

    /// Creates `places` and has `write` fill them; when that fails none of them is left.
    fn write_to<E: Into<NodeError>>(
        &self,
        places: &[&StageFile],
        write: impl FnOnce(&mut Tee<'_>) -> Result<(), E>,
    ) -> Result<(), NodeError> {
        let filled = (|| {
            let mut targets: Vec<Box<dyn NewFile + '_>> = Vec::with_capacity(places.len());
            for file in places {
                let path = self.staged(&file.path);
                targets.push(self.files.disk.create(&path, file.mode.bits()).attempt("create", &path)?);
            }
            write(&mut Tee(targets)).map_err(Into::into)
        })();
        if filled.is_err() {
            for file in places {
                // The first error is the one worth reporting.
                let _ = self.files.disk.remove_file(&self.staged(&file.path));
            }
        }
        filled
    }

    /// Takes a file from the present tree, sharing what can be shared.
    fn lay_present(&self, file: &StageFile, from: &SafePath, reuse: Reuse) -> Result<(), NodeError> {
        let base = self.present().ok_or(NodeError::Changed)?;
        let (from, to) = (base.join(from.as_path()), self.staged(&file.path));
        let mode = file.mode.bits();
        if reuse == Reuse::Link {
            match self.files.disk.reflink(&from, &to, mode) {
                Ok(()) => {
                    self.cloned.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                // Whatever else keeps it from being shared, the next way is tried; a full disk fails there too.
                Err(error) => tracing::debug!(path = %to.display(), %error, "not reflinked"),
            }
            let before = self.files.metadata(&from)?;
            match self.files.disk.hard_link(&from, &to) {
                Ok(()) => {
                    if let (Some(before), Some(after)) = (before, self.files.metadata(&to)?) {
                        self.hashes.follow(&before, &after);
                    }
                    self.linked.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => tracing::debug!(path = %to.display(), %error, "not linked"),
            }
        }
        if self.files.disk.copy(&from, &to, mode).attempt("copy", &from)? == Copied::Reflink {
            self.cloned.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a file from a restore point, with the owner and attributes it had.
    fn lay_from_point(
        &self,
        file: &StageFile,
        id: &RestorePointId,
        points: &BTreeMap<RestorePointId, Arc<RestorePoint>>,
    ) -> Result<(), NodeError> {
        let seen = points
            .get(id)
            .and_then(|point| point.files.get(&file.path))
            .ok_or_else(|| StageError::NotInPoint { id: id.clone(), path: file.path.clone() })?;
        let from = place::point_files(id).join(file.path.as_path());
        restore::copy_with_ownership(self.files, &from, &self.staged(&file.path), seen)
    }

    /// Symbolic links, those to shared paths, and the marker: only whole trees have them here.
    fn lay_links(&self) -> Result<(), NodeError> {
        let (Some(depth), Some(to)) = (tree::depth(self.plan.layout), &self.plan.to) else {
            return Ok(());
        };
        let present = self.present();
        self.files.for_each(&self.stage.symlinks, |link| self.lay_link(link, present.as_deref()))?;
        for path in &self.stage.shared {
            self.lay_shared(path, depth)?;
        }
        // Volumes of their own, perhaps, which no other flush reaches; and whoever made what is there may have been killed
        // before it came to this.
        let shared: Vec<PathBuf> = self.stage.shared.iter().map(place::shared).collect();
        let above: BTreeSet<&Path> = shared.iter().flat_map(|path| path.ancestors().skip(1)).collect();
        for directory in above.into_iter().filter(|directory| !directory.as_os_str().is_empty()) {
            self.files.sync_dir(directory)?;
        }
        let marker = self.tree().join(place::MARKER);
        let mut file = self.files.disk.create(&marker, 0o444).attempt("create", &marker)?;
        io::Write::write_all(&mut file, &current::marker_bytes(to)).attempt("write", &marker)?;
        Ok(())
    }

    /// Lays down a symbolic link: the present one under a second name where it is the same, which takes no inode.
    fn lay_link(&self, link: &Symlink, present: Option<&Path>) -> Result<(), NodeError> {
        let path = self.staged(&link.path);
        if let Some(present) = present.map(|present| present.join(link.path.as_path()))
            && self.files.disk.hard_link(&present, &path).is_ok()
        {
            // Looked at under its new name, where nobody else changes it.
            if self.files.disk.read_link(&path).is_ok_and(|target| target == link.target) {
                return Ok(());
            }
            self.files.remove_file(&path)?;
        }
        Ok(self.files.disk.symlink(&link.target, &path).attempt("create link", &path)?)
    }

    /// Links a shared path. If nothing is there yet it gets its first content: the release's file of that path, else an
    /// empty directory. What is there stays, whatever happens to the release.
    fn lay_shared(&self, path: &SafePath, depth: usize) -> Result<(), NodeError> {
        let (staged, shared) = (self.staged(path), place::shared(path));
        let file = self.stage.files.iter().find(|file| file.path == *path);
        if !self.files.exists(&shared)? {
            self.files.ensure_parents(&shared, 0o755)?;
            match file {
                Some(file) => {
                    self.check_file(file)?;
                    let mut name = shared.clone().into_os_string();
                    name.push(".cutover-new");
                    let fresh = PathBuf::from(name);
                    self.files.remove_file(&fresh)?;
                    // A volume of its own, perhaps, so it is flushed by itself.
                    let mut target =
                        self.files.disk.create(&fresh, file.mode.bits()).attempt("create", &fresh)?;
                    let mut source = self.files.disk.open(&staged).attempt("open", &staged)?;
                    io::copy(&mut source, &mut target).attempt("write", &fresh)?;
                    target.sync().attempt("flush", &fresh)?;
                    self.files.rename(&fresh, &shared)?;
                }
                None => self.files.ensure_visible_dir(&shared, 0o755)?,
            }
        }
        if file.is_some() {
            self.files.remove_file(&staged)?;
        }
        let target = place::shared_link(path, depth);
        Ok(self.files.disk.symlink(&target, &staged).attempt("create link", &staged)?)
    }

    /// One flush for everything, while every staged file is read back: the first keeps the disk busy, the second the
    /// processors. With one thread, one after the other.
    fn check_while_flushing(&self) -> Result<Laid, NodeError> {
        if self.files.threads.get() == 1 {
            let laid = self.check()?;
            self.files.sync_all()?;
            return Ok(laid);
        }
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| self.files.sync_all());
            let laid = self.check();
            let flushed = flush.join().expect("flushing does not panic");
            laid.and_then(|laid| Ok(flushed.map(|()| laid)?))
        })
    }

    /// E7: every staged file is read back before anything else happens, but for links to files that are known. A damaged
    /// reused file is laid down once more from the store or the bundle.
    fn check(&self) -> Result<Laid, NodeError> {
        let shared: BTreeSet<&SafePath> = match self.plan.layout {
            Layout::Versioned | Layout::Exchange => self.stage.shared.iter().collect(),
            Layout::InPlace => BTreeSet::new(),
        };
        let staged: Vec<&StageFile> =
            self.stage.files.iter().filter(|file| !shared.contains(&file.path)).collect();
        let again = self.files.find_each(&staged, |file| match (self.difference(file)?, &file.source) {
            (None, _) => Ok(None),
            (Some(_), Source::Present { .. }) => {
                tracing::warn!(path = %file.path, "the present file is damaged and is laid down anew");
                self.files.remove_file(&self.staged(&file.path))?;
                self.lay_anew(file)?;
                self.check_file(file)?;
                Ok(Some(()))
            }
            (Some(difference), Source::Bundle | Source::Store | Source::RestorePoint { .. }) => {
                Err(NodeError::from(StageError::Differs {
                    path: file.path.clone(),
                    problem: difference.text(),
                }))
            }
        })?;
        Ok(if again.is_empty() { Laid::Once } else { Laid::Again })
    }

    fn lay_anew(&self, file: &StageFile) -> Result<(), NodeError> {
        let (sha256, size) = (file.sha256, file.size);
        let store = self.store()?;
        match self.write_to(&[file], |content| store.decode(sha256, size, content)) {
            Err(NodeError::Store(source)) => {
                let (Some(payload), Some(entry)) = (self.payload, self.entry(sha256)) else {
                    return Err(StageError::Store { path: file.path.clone(), source }.into());
                };
                self.write_to(&[file], |content| {
                    payload
                        .copy_object(entry, content, &mut io::sink())
                        .map_err(|source| StageError::Payload { path: file.path.clone(), source })
                })
            }
            written => written,
        }
    }

    fn difference(&self, file: &StageFile) -> Result<Option<Difference>, FsError> {
        let kind = SeenKind::File { sha256: file.sha256, size: file.size };
        let path = self.staged(&file.path);
        let expected = Expected { kind, mode: file.mode.bits() };
        // A hard link to a file that is known brings nothing new to read; whatever was written is read back.
        let reading = match &file.source {
            Source::Present { .. } => Reading::UnlessKnown(self.hashes),
            Source::Bundle | Source::Store | Source::RestorePoint { .. } => Reading::Once(self.hashes),
        };
        match (tree::difference(self.files, &path, &expected, reading)?, &file.source) {
            // A file from a restore point keeps the bits a manifest cannot have.
            (Some(Difference::Mode), Source::RestorePoint { .. }) => {
                let mode = self.files.metadata(&path)?.map(|metadata| metadata.mode & 0o777);
                Ok((mode != Some(file.mode.bits())).then_some(Difference::Mode))
            }
            (difference, _) => Ok(difference),
        }
    }

    fn check_file(&self, file: &StageFile) -> Result<(), NodeError> {
        match self.difference(file)? {
            None => Ok(()),
            Some(difference) => {
                Err(StageError::Differs { path: file.path.clone(), problem: difference.text() }.into())
            }
        }
    }

    /// In place, a file that replaces another keeps its owner and attributes. Done here, so that what cannot be kept
    /// stops the update before anything changes.
    fn keep_ownership(&self) -> Result<(), NodeError> {
        let changes = self.plan.steps.iter().find_map(|step| match step {
            cutover_core::plan::Step::Switch(switch) => Some(&switch.changes),
            _ => None,
        });
        let Some(changes) = changes.filter(|changes| !changes.is_empty()) else { return Ok(()) };
        let modes: BTreeMap<&SafePath, &StageFile> =
            self.stage.files.iter().map(|file| (&file.path, file)).collect();
        for change in changes {
            if let Change::Put { path, sha256, keep: Some(Ownership { uid, gid, xattrs }) } = change
                && let Some(file) = modes.get(path)
                && !matches!(file.source, Source::RestorePoint { .. })
            {
                let kind = SeenKind::File { sha256: *sha256, size: file.size };
                let seen =
                    SeenFile { kind, mode: file.mode.bits(), uid: *uid, gid: *gid, xattrs: xattrs.clone() };
                restore::own(self.files, &self.staged(path), &seen)?;
            }
        }
        Ok(())
    }

    /// Moves the finished tree to its place. A tree that lies there was left by an earlier attempt.
    fn move_tree(&self, to: &ReleaseRef) -> Result<(), NodeError> {
        let target = place::release(&to.name());
        self.files.ensure_visible_dir(place::RELEASES.as_ref(), 0o755)?;
        if current::release(self.files, self.plan.layout)?.as_ref() == Some(to) {
            return Err(NodeError::Changed);
        }
        self.files.discard(&target)?;
        Ok(self.files.rename(&self.tree(), &target)?)
    }
}

/// Places in the list of a payload's objects, in the order of their digests.
fn by_digest(payload: Option<&dyn Payload>) -> Vec<u32> {
    let Some(payload) = payload else { return Vec::new() };
    let objects = &payload.manifest().objects;
    let mut places: Vec<u32> = (0..).take(objects.len()).collect();
    places.sort_unstable_by_key(|at| objects[*at as usize].sha256);
    places
}

/// Whether files had to be laid down a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Laid {
    /// None.
    Once,
    /// Some, and they are not flushed.
    Again,
}

/// One piece of work of a staging.
enum Job<'a> {
    /// An object and the places it goes to.
    Object(&'a [&'a StageFile]),
    /// A file of the present tree.
    Present(&'a StageFile, &'a SafePath, Reuse),
    /// A file of a restore point.
    Point(&'a StageFile, &'a RestorePointId),
}

impl Job<'_> {
    fn object(&self) -> Option<Digest> {
        match self {
            Self::Object(places) => places.first().map(|file| file.sha256),
            Self::Present(..) | Self::Point(..) => None,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Object(places) => places.iter().map(|file| file.size).sum(),
            Self::Present(file, ..) | Self::Point(file, _) => file.size,
        }
    }
}

/// Undoes a staging, whether it happened or not: the tree, the staged files, and the manifest if nothing else needs it.
pub(crate) fn undo(files: &Files, plan: &Plan, still_needed: bool) -> Result<(), NodeError> {
    files.discard(&place::staging(plan.number))?;
    let Some(to) = &plan.to else { return Ok(()) };
    match plan.layout {
        Layout::Versioned | Layout::Exchange => {
            if current::release(files, plan.layout)?.as_ref() == Some(to) {
                return Err(NodeError::Changed);
            }
            files.discard(&place::release(&to.name()))?;
        }
        Layout::InPlace => {}
    }
    if !still_needed {
        files.remove_file(&place::manifest(to.manifest))?;
        files.remove_file(&place::signature(to.manifest))?;
        files.sync_dir(place::MANIFESTS.as_ref())?;
    }
    Ok(())
}
