//! A release of a repository as the source of an update: its signed manifest, and objects that are fetched by digest.
//!
//! What a plan needs is fetched while the plan is executed: staging waits for each object. What turns out to be needed all
//! the same, because a file that was to be reused is damaged, is fetched when it is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cutover_bundle::{
    ObjectError, RangeReader, VerifiedDelta, VerifiedManifest, copy_object,
    delta::{DeltaError, DeltaLimits, Source as DeltaSource},
};
use cutover_core::model::{DeltaFile, Digest, Manifest, ObjectEntry, ReleaseRef};

use crate::{
    delta_room::Room,
    fetch::{Downloads, End, FetchError, OnFailure, Report, Shelf, Sink, Source, Wanted, Watch},
    payload::Payload,
};

/// The exact bytes of a manifest, in a file: of a release of many files they take more memory than the rest of an update.
#[derive(Debug)]
pub struct SpooledManifest {
    file: File,
    size_bytes: u64,
}

impl SpooledManifest {
    /// Writes them to a new file, which should have no name: it is not looked for again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(file: File, manifest: &[u8]) -> io::Result<Self> {
        file.write_all_at(manifest, 0)?;
        Ok(Self { file, size_bytes: manifest.len() as u64 })
    }

    /// Copies them to `out`.
    ///
    /// # Errors
    /// The file cannot be read, or `out` not be written.
    pub fn copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut reader = RangeReader::new(&self.file, 0, self.size_bytes);
        let copied = io::copy(&mut reader, out)?;
        if copied < self.size_bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// A release whose objects lie in a source.
pub struct FetchedPayload {
    release: VerifiedManifest,
    manifest: SpooledManifest,
    /// By the digest of each content, the file that holds it.
    objects: BTreeMap<Digest, Wanted>,
    source: Box<dyn Source>,
    watch: Arc<dyn Watch>,
    downloads: OnceLock<Arc<Downloads>>,
    delta: OnceLock<(VerifiedDelta<File>, Room)>,
    fetched_bytes: AtomicU64,
    shelf: Shelf,
    /// Files that are being fetched onto the shelf.
    announced: OnceLock<BTreeSet<Digest>>,
}

impl FetchedPayload {
    /// Uses a verified manifest and its bytes, the files that hold its objects, and the source they lie in.
    pub fn new(
        release: VerifiedManifest,
        manifest: SpooledManifest,
        objects: BTreeMap<Digest, Wanted>,
        source: Box<dyn Source>,
        watch: Arc<dyn Watch>,
    ) -> Self {
        let (downloads, delta) = (OnceLock::new(), OnceLock::new());
        let (fetched_bytes, shelf, announced) = (AtomicU64::new(0), Shelf::new(), OnceLock::new());
        Self { release, manifest, objects, source, watch, downloads, delta, fetched_bytes, shelf, announced }
    }

    /// The release's manifest, as it was verified.
    pub fn verified_manifest(&self) -> &VerifiedManifest {
        &self.release
    }

    /// The file that holds a content.
    pub fn wanted(&self, sha256: Digest) -> Option<&Wanted> {
        self.objects.get(&sha256)
    }

    /// Where it comes from.
    pub fn source(&self) -> &dyn Source {
        self.source.as_ref()
    }

    /// Bytes that came from the source so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Says where downloads lie. Only the first call counts.
    pub fn attach(&self, downloads: Arc<Downloads>) {
        // The root is the same whoever attaches it.
        let _ = self.downloads.set(downloads);
    }

    /// Uses a delta to this very release; `false` when it leads to another one, and then it is not used. The limit of `limits`
    /// on memory is that of all patches together which are applied at the same time.
    pub fn use_delta(&self, delta: VerifiedDelta<File>, limits: DeltaLimits) -> bool {
        delta.verified_manifest().release() == self.release.release()
            && self.delta.set((delta, Room::new(limits))).is_ok()
    }

    /// Fetches files of the source; all of them, or none counts. They stay among the downloads.
    ///
    /// # Errors
    /// The first reason.
    pub fn fetch(&self, wanted: &[Wanted]) -> Result<(), FetchError> {
        let Some(downloads) = self.downloads.get() else { return Ok(()) };
        let report = self.fetch_to(downloads, wanted)?;
        self.fetched_bytes.fetch_add(report.fetched_bytes(), Ordering::Relaxed);
        report.into_result().map(drop)
    }

    /// Runs `work` while `wanted` is fetched; whatever `work` needs of it waits until it is there. When `work` is done, or
    /// says that it has failed ([`Payload::abandon`]), what is still under way is ended at once and stays among the
    /// downloads. Returns what became of `work`, and why something could not be fetched: only if that came before `work` gave
    /// up for a reason of its own. Only the first call counts.
    pub fn while_fetching<T>(&self, wanted: &[Wanted], work: impl FnOnce() -> T) -> (T, Option<FetchError>) {
        let Some(downloads) = self.downloads.get() else { return (work(), None) };
        // Before anybody asks for anything, so that nothing is fetched twice.
        if self.announced.set(wanted.iter().map(|wanted| wanted.digest).collect()).is_err() {
            return (work(), None);
        }
        std::thread::scope(|scope| {
            let fetching = scope.spawn(|| {
                self.shelf.while_filling(|sink| {
                    self.source.fetch(downloads, wanted, OnFailure::Stop, &self.watch, sink)
                })
            });
            let done = work();
            let end = self.shelf.abandon();
            let failed = match fetching.join().expect("fetching does not panic") {
                Ok(report) => {
                    self.fetched_bytes.fetch_add(report.fetched_bytes(), Ordering::Relaxed);
                    report.into_result().err()
                }
                Err(error) => Some(error),
            };
            (done, failed.filter(|_| end == End::Ended))
        })
    }

    /// Removes everything that was fetched.
    ///
    /// # Errors
    /// [`FetchError::Fs`].
    pub fn clear_downloads(&self) -> Result<(), FetchError> {
        self.downloads.get().map_or(Ok(()), |downloads| downloads.keep_only(&BTreeSet::new()))
    }

    fn fetch_to(&self, downloads: &Arc<Downloads>, wanted: &[Wanted]) -> Result<Report, FetchError> {
        let sink: &mut dyn Sink = &mut crate::fetch::KeepAll;
        self.source.fetch(downloads, wanted, OnFailure::Stop, &self.watch, sink)
    }

    fn copy_fetched(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        let digest = entry.sha256;
        let wanted = self.objects.get(&digest).ok_or(ObjectError::NotInRelease(digest))?;
        let downloads = self.downloads.get().ok_or(ObjectError::NotCarried(digest))?;
        let failed = |error: FetchError| ObjectError::Read { digest, source: io::Error::other(error) };
        let announced = self.announced.get().is_some_and(|announced| announced.contains(&wanted.digest));
        if announced && !self.shelf.wait(wanted.digest) {
            // Why is told by whoever fetches.
            return Err(failed(FetchError::Stopped));
        }
        let file = match downloads.open_object(wanted.digest) {
            Ok(file) => file,
            Err(_) => {
                self.fetch(std::slice::from_ref(wanted)).map_err(failed)?;
                downloads.open_object(wanted.digest).map_err(failed)?
            }
        };
        copy_object(entry, file, content, stored)
    }

    fn delta(&self) -> Option<&VerifiedDelta<File>> {
        self.delta.get().map(|(delta, _)| delta)
    }
}

impl Payload for FetchedPayload {
    fn release(&self) -> ReleaseRef {
        self.release.release()
    }

    fn manifest(&self) -> &Arc<Manifest> {
        self.release.manifest()
    }

    fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()> {
        self.manifest.copy_to(out)
    }

    fn signature_bytes(&self) -> &[u8] {
        self.release.signature_bytes()
    }

    fn copy_object(
        &self,
        entry: &ObjectEntry,
        content: &mut dyn Write,
        stored: &mut dyn Write,
    ) -> Result<(), ObjectError> {
        match self.delta() {
            Some(delta) if delta.carried(entry.sha256).is_some() => {
                delta.copy_object(entry.sha256, content, stored)
            }
            Some(_) | None => self.copy_fetched(entry, content, stored),
        }
    }

    fn patch(&self, sha256: Digest) -> Option<&DeltaFile> {
        self.delta()?.patch(sha256)
    }

    fn apply_patch(
        &self,
        file: &DeltaFile,
        base: &DeltaSource<'_>,
        out: &mut dyn Write,
    ) -> Result<(), DeltaError> {
        match self.delta.get() {
            Some((delta, room)) => room.apply(delta, file, base, out),
            None => Err(DeltaError::Unavailable(file.algorithm)),
        }
    }

    fn patch_order(&self) -> Vec<Digest> {
        self.delta().map(VerifiedDelta::patch_order).unwrap_or_default()
    }

    fn abandon(&self) {
        self.shelf.abandon();
    }
}
