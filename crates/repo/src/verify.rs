//! The check of a whole repository: every file that metadata leads to is there and is what it should be.

use std::{collections::BTreeSet, io};

use cutover_bundle::{Limits, ObjectError, decode_object, tlog::LogEntry};
use cutover_core::model::{Digest, Instant, Manifest, ObjectEntry};

use crate::{
    error::PublishError,
    fetch::{Fetch, FetchError, read_bounded},
    hash::{HashReader, HashWriter},
    index::{
        FileRef, IndexEntry, ObjectList, delta_path, manifest_path, object_path, objects_path, patch_path,
        signature_path,
    },
    own_log,
    present::{Present, must},
    storage::{PRIVATE, Storage},
    tombstone,
};

/// What a check of a repository found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Distinct releases.
    pub releases: usize,
    /// Distinct objects.
    pub objects: usize,
    /// Deltas.
    pub deltas: usize,
    /// Bytes that were read and hashed.
    pub bytes: u64,
    /// What is wrong, in sentences. A client would refuse what it concerns.
    pub problems: Vec<String>,
    /// Files that nothing names and no tombstone will delete. They do no harm.
    pub unreferenced: Vec<String>,
    /// Files that will be deleted once their grace is over.
    pub pending: usize,
}

/// Judges a manifest and its signature; `Err` says why it is refused.
pub type CheckRelease<'a> = &'a dyn Fn(&[u8], &[u8]) -> Result<(), String>;

/// Checks all of a repository as clients would at `now`, and `check_release` every signature.
///
/// # Errors
/// See [`PublishError`]: metadata that no client would believe. What is wrong with single files is in the report.
pub fn verify(
    storage: &dyn Storage,
    check_release: CheckRelease<'_>,
    now: Instant,
) -> Result<Report, PublishError> {
    let present = Present::load(storage, Some(now))?;
    let mut check = Check {
        storage,
        report: Report::default(),
        seen: BTreeSet::new(),
        named: BTreeSet::new(),
        logged: Vec::new(),
    };
    check.named.extend(present.metadata_files());
    for index in present.indexes(storage)?.values() {
        for entry in &index.releases {
            let name = format!("{} {} ({}, {})", index.package, entry.version, index.platform, index.channel);
            check.release(&name, entry, check_release)?;
            let (package, version, platform) =
                (index.package.clone(), entry.version.clone(), index.platform.clone());
            let logged = LogEntry { package, version, platform, manifest: entry.manifest.sha256 };
            check.logged.push((name, logged, entry.log_index));
        }
    }
    let (problems, files) = own_log::problems(storage, &Whole(storage), &check.logged)?;
    check.report.problems.extend(problems);
    check.named.extend(files);
    check.unreferenced()?;
    Ok(check.report)
}

struct Check<'a> {
    storage: &'a dyn Storage,
    report: Report,
    seen: BTreeSet<Digest>,
    named: BTreeSet<String>,
    /// Every release that is listed, and where the log should have it.
    logged: Vec<(String, LogEntry, Option<u64>)>,
}

/// Reads a store as a client would.
struct Whole<'a>(&'a dyn Storage);

impl Fetch for Whole<'_> {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let file = self.0.open(path).map_err(|error| FetchError::Failed(Box::new(error)))?;
        read_bounded(file.ok_or(FetchError::NotFound)?, bytes_max)
    }
}

impl Check<'_> {
    fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    fn release(
        &mut self,
        name: &str,
        entry: &IndexEntry,
        check_release: CheckRelease<'_>,
    ) -> Result<(), PublishError> {
        let is_new = self.seen.insert(entry.manifest.sha256);
        let manifest = self.file(name, &manifest_path(entry.manifest.sha256), &entry.manifest)?;
        let signature = self.file(name, &signature_path(entry.signature.sha256), &entry.signature)?;
        for delta in &entry.deltas {
            let path = delta_path(delta.bundle.sha256);
            if self.named.insert(path.clone()) {
                self.report.deltas += 1;
                self.hashed(name, &path, &delta.bundle)?;
            }
        }
        let objects = self.file(name, &objects_path(entry.objects.sha256), &entry.objects)?;
        for named in &entry.manifest_patches {
            self.file(name, &patch_path(named.patch.sha256), &named.patch)?;
        }
        let (Some(manifest), Some(signature), Some(objects)) = (manifest, signature, objects) else {
            return Ok(());
        };
        if let Err(reason) = check_release(&manifest, &signature) {
            self.problem(format!("{name}: {reason}"));
        }
        match Manifest::parse(&manifest, &Limits::default().manifest) {
            Ok(manifest) if is_new => {
                self.report.releases += 1;
                let list = ObjectList::parse(&objects)?;
                let objects = list.of(&manifest)?;
                objects.into_iter().try_for_each(|(object, stored)| self.object(name, object, stored))
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.problem(format!("{name}: its manifest is refused: {error}"));
                Ok(())
            }
        }
    }

    /// Reads a small file and compares its digest.
    fn file(&mut self, name: &str, path: &str, file: &FileRef) -> Result<Option<Vec<u8>>, PublishError> {
        self.named.insert(path.to_owned());
        match must(self.storage, path) {
            Ok(bytes) if FileRef::of(&bytes) == *file => {
                self.report.bytes += file.size;
                Ok(Some(bytes))
            }
            Ok(_) => {
                self.problem(format!("{name}: `{path}` is altered"));
                Ok(None)
            }
            Err(PublishError::Storage { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.problem(format!("{name}: `{path}` is missing"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn hashed(&mut self, name: &str, path: &str, file: &FileRef) -> Result<(), PublishError> {
        let Some(mut content) = self.open(path)? else {
            self.problem(format!("{name}: `{path}` is missing"));
            return Ok(());
        };
        let mut hashed = HashWriter::default();
        io::copy(&mut content, &mut hashed).map_err(PublishError::storage("read", path))?;
        let found = hashed.finish();
        self.report.bytes += found.size;
        if found != *file {
            self.problem(format!("{name}: `{path}` is altered"));
        }
        Ok(())
    }

    fn object(&mut self, name: &str, object: &ObjectEntry, stored: Digest) -> Result<(), PublishError> {
        let path = object_path(stored);
        if !self.named.insert(path.clone()) {
            return Ok(());
        }
        self.report.objects += 1;
        let Some(file) = self.open(&path)? else {
            self.problem(format!("{name}: `{path}` is missing"));
            return Ok(());
        };
        let mut file = HashReader::new(file);
        match decode_object(object, &mut file, &mut io::sink()) {
            Ok(()) if file.finish().sha256 != stored => self.problem(format!("{name}: `{path}` is altered")),
            Ok(()) => self.report.bytes += object.stored_size,
            Err(ObjectError::Read { source, .. }) => {
                return Err(PublishError::Storage { action: "read", path, source });
            }
            Err(error) => self.problem(format!("{name}: `{path}`: {error}")),
        }
        Ok(())
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn io::Read>>, PublishError> {
        self.storage.open(path).map_err(PublishError::storage("read", path))
    }

    fn unreferenced(&mut self) -> Result<(), PublishError> {
        let listed = |error| PublishError::storage("list", ".")(error);
        let tombstones =
            tombstone::load_all(self.storage).map_err(PublishError::storage("read", "tombstones"))?;
        let mut pending: BTreeSet<String> =
            tombstones.into_iter().flat_map(|(_, tombstone)| tombstone.files).collect();
        let intent =
            tombstone::load_intent(self.storage).map_err(PublishError::storage("read", "the intent"))?;
        pending.extend(intent.into_iter().flat_map(|intent| intent.files));
        for file in self.storage.list("").map_err(listed)? {
            // What was being written when a run died; the next one that writes the same file takes its place.
            if file.rsplit('/').next().is_some_and(|name| name.starts_with('.')) {
                continue;
            }
            if self.named.contains(&file)
                || file.starts_with(PRIVATE)
                || file == crate::bootstrap::BOOTSTRAP_PATH
            {
                continue;
            }
            if pending.contains(&file) {
                self.report.pending += 1;
            } else if ["metadata/", "packages/", "manifests/", "objects/", "deltas/", "log/"]
                .iter()
                .any(|ours| file.starts_with(ours))
            {
                self.report.unreferenced.push(file);
            }
        }
        Ok(())
    }
}
