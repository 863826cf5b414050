//! The delta manifest: the signed description of how one release becomes another.
//!
//! [`DeltaManifest::parse`] turns bytes into a value for which every rule below holds; [`DeltaManifest::in_order`] says in
//! which order its patches are applied. Format: `docs/formats/delta.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    DeltaAlgorithm, Digest, Encoding, ManifestLimits, ObjectEntry, PathError, ReleaseRef, SafePath,
    SafePathSet,
};

/// The delta manifest format this program reads and writes.
pub const DELTA_FORMAT: u32 = 1;
/// Most candidates that are told of per file.
const CANDIDATES_MAX: usize = 16;
/// Most bytes of a candidate's note.
const NOTE_BYTES_MAX: usize = 200;

/// How the files of one release become those of another. Built by [`DeltaManifest::parse`] from bytes, or by a release
/// builder and then checked by [`DeltaManifest::to_bytes`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaManifest {
    /// Always [`DELTA_FORMAT`].
    pub format: u32,
    /// The release that must be installed.
    pub from: ReleaseRef,
    /// The release that comes out.
    pub to: ReleaseRef,
    /// Whether patches are applied one after the other, in [`DeltaManifest::in_order`].
    #[serde(default)]
    pub enforce_order: bool,
    /// The files that are patched.
    pub files: Vec<DeltaFile>,
    /// The contents that are carried in full, in payload order, before the patches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<ObjectEntry>,
}

/// How one file is patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaFile {
    /// Where it lies in the new release.
    pub path: SafePath,
    /// Where its base lies in the old release, if elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_path: Option<SafePath>,
    /// SHA-256 of its base.
    pub base_sha256: Digest,
    /// Size of its base in bytes.
    pub base_size: u64,
    /// SHA-256 of what it becomes.
    pub target_sha256: Digest,
    /// Size of what it becomes in bytes.
    pub target_size: u64,
    /// SHA-256 of the patch.
    pub patch_sha256: Digest,
    /// Size of the patch in bytes.
    pub patch_size: u64,
    /// Where the patch starts, in bytes from the start of the payload.
    pub offset: u64,
    /// The format of the patch.
    pub algorithm: DeltaAlgorithm,
    /// Its place among those that do not depend on each other; lower is earlier.
    #[serde(default)]
    pub order: u32,
    /// Files of this delta that are patched before it, by their paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<SafePath>,
    /// What was tried when the patch was made, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<DeltaCandidate>,
}

/// One thing that was tried for a file. Decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaCandidate {
    /// The algorithm, or `full` for the compressed file.
    pub what: String,
    /// How many bytes it takes; absent when it was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why it was taken or not.
    pub note: String,
}

/// The description of one patch that stands by itself, beside it in a file. What it says is only worth as much as where
/// it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaDescription {
    /// Always [`DELTA_FORMAT`].
    pub format: u32,
    /// The format of the patch.
    pub algorithm: DeltaAlgorithm,
    /// SHA-256 of the file it applies to.
    pub base_sha256: Digest,
    /// Size of the file it applies to in bytes.
    pub base_size: u64,
    /// SHA-256 of what comes out.
    pub target_sha256: Digest,
    /// Size of what comes out in bytes.
    pub target_size: u64,
    /// SHA-256 of the patch.
    pub patch_sha256: Digest,
    /// Size of the patch in bytes.
    pub patch_size: u64,
    /// What was tried when the patch was made, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<DeltaCandidate>,
}

impl DeltaDescription {
    /// Reads a description.
    ///
    /// # Errors
    /// [`DeltaManifestError::Syntax`] or [`DeltaManifestError::Format`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DeltaManifestError> {
        let description: Self =
            serde_json::from_slice(bytes).map_err(|error| DeltaManifestError::Syntax(error.to_string()))?;
        match description.format {
            DELTA_FORMAT => Ok(description),
            other => Err(DeltaManifestError::Format(other)),
        }
    }
}

/// Why a delta manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaManifestError {
    /// More bytes than allowed.
    #[error("the delta manifest has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A format of the future, or none.
    #[error("delta manifest format {0} is unsupported; this program reads format {DELTA_FORMAT}")]
    Format(u32),
    /// Not the JSON of a delta manifest: unknown fields, algorithms, missing or empty digests are named.
    #[error("the delta manifest cannot be read: {0}")]
    Syntax(String),
    /// A path rule is broken.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file depends on one that this delta does not patch.
    #[error("`{path}` depends on `{missing}`, which this delta does not patch")]
    MissingDependency {
        /// The file.
        path: SafePath,
        /// What it depends on.
        missing: SafePath,
    },
    /// Files depend on each other in a circle.
    #[error("`{0}` depends on itself, through others or directly")]
    Cycle(SafePath),
    /// Too many entries, or too many bytes.
    #[error("the delta has {actual} {what}; the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// Entries and offsets contradict each other.
    #[error("the delta manifest contradicts itself: {0}")]
    Inconsistent(String),
}

/// The sums over a delta's files, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaTotals {
    /// All patches.
    pub patches: u64,
    /// All targets.
    pub targets: u64,
}

impl DeltaManifest {
    /// Reads a delta manifest from the bytes that were signed.
    ///
    /// # Errors
    /// See [`DeltaManifestError`].
    pub fn parse(bytes: &[u8], limits: &ManifestLimits) -> Result<Self, DeltaManifestError> {
        /// Looks at the format before anything else is believed.
        #[derive(Deserialize)]
        struct FormatOnly {
            #[serde(default)]
            format: u32,
        }
        if bytes.len() > limits.bytes_max {
            return Err(DeltaManifestError::TooLarge { actual: bytes.len(), limit: limits.bytes_max });
        }
        let syntax = |error: serde_json::Error| {
            let text = error.to_string();
            let printable = text
                .chars()
                .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] });
            DeltaManifestError::Syntax(printable.collect())
        };
        match serde_json::from_slice::<FormatOnly>(bytes).map_err(syntax)?.format {
            DELTA_FORMAT => {}
            other => return Err(DeltaManifestError::Format(other)),
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// Writes the delta manifest as the bytes to be signed.
    ///
    /// # Errors
    /// As [`DeltaManifest::parse`]: what cannot be read back is not written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DeltaManifestError> {
        self.check(&ManifestLimits::default())?;
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| DeltaManifestError::Syntax(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Checks every rule that spans fields.
    ///
    /// # Errors
    /// The first broken rule, by [`DeltaManifestError`].
    pub fn check(&self, limits: &ManifestLimits) -> Result<(), DeltaManifestError> {
        if self.format != DELTA_FORMAT {
            return Err(DeltaManifestError::Format(self.format));
        }
        if self.from.package != self.to.package {
            return Err(inconsistent("it leads from one package to another"));
        }
        if self.from.manifest == self.to.manifest {
            return Err(inconsistent("it leads from a release to itself"));
        }
        self.check_entries(limits)?;
        self.check_payload()?;
        self.in_order().map(|_| ())
    }

    fn check_entries(&self, limits: &ManifestLimits) -> Result<(), DeltaManifestError> {
        let over = |what, actual, limit| {
            if actual > limit { Err(DeltaManifestError::Limit { what, actual, limit }) } else { Ok(()) }
        };
        let dependencies: usize = self.files.iter().map(|file| file.depends_on.len()).sum();
        let entries = self.files.len() + self.objects.len() + dependencies;
        over("entries", entries as u64, limits.entries_max as u64)?;
        let mut names = SafePathSet::default();
        let mut targets: BTreeSet<Digest> = self.objects.iter().map(|object| object.sha256).collect();
        let mut total = 0u64;
        for file in &self.files {
            names.insert(&file.path)?;
            for size in [file.base_size, file.target_size, file.patch_size] {
                over("bytes in one file", size, limits.file_bytes_max)?;
            }
            total = total.saturating_add(file.target_size);
            if !targets.insert(file.target_sha256) {
                return Err(inconsistent(format!("object {} is made twice", file.target_sha256)));
            }
            over("candidates", file.candidates.len() as u64, CANDIDATES_MAX as u64)?;
            let texts = file.candidates.iter().flat_map(|candidate| [&candidate.what, &candidate.note]);
            let longest = texts.map(String::len).max().unwrap_or(0);
            over("bytes in a note", longest as u64, NOTE_BYTES_MAX as u64)?;
        }
        over("bytes", total, limits.total_bytes_max)
    }

    /// Full objects, then patches, end to end.
    fn check_payload(&self) -> Result<(), DeltaManifestError> {
        let objects = self.objects.iter().map(|object| (object.offset, object.stored_size, object.sha256));
        let patches = self.files.iter().map(|file| (file.offset, file.patch_size, file.target_sha256));
        let mut end = 0u64;
        for (offset, length, digest) in objects.chain(patches) {
            if offset != end {
                return Err(inconsistent(format!(
                    "object {digest} starts at {offset} where {end} was expected"
                )));
            }
            end = end
                .checked_add(length)
                .filter(|end| *end < 1 << 62)
                .ok_or_else(|| inconsistent(format!("object {digest} ends past any file")))?;
        }
        let two_sizes =
            |object: &&ObjectEntry| object.encoding == Encoding::Raw && object.stored_size != object.size;
        match self.objects.iter().find(two_sizes) {
            Some(object) => Err(inconsistent(format!("object {} is raw but has two sizes", object.sha256))),
            None => Ok(()),
        }
    }

    /// The bytes the payload takes.
    pub fn payload_bytes(&self) -> u64 {
        let objects = self.objects.last().map_or(0, |last| last.offset + last.stored_size);
        self.files.last().map_or(objects, |last| last.offset + last.patch_size)
    }

    /// The sums over the patched files.
    pub fn totals(&self) -> DeltaTotals {
        self.files.iter().fold(DeltaTotals::default(), |sum, file| DeltaTotals {
            patches: sum.patches.saturating_add(file.patch_size),
            targets: sum.targets.saturating_add(file.target_size),
        })
    }

    /// The files in the order of their dependencies, ties by (order, path). This order is binding when `enforce_order`
    /// is set.
    ///
    /// # Errors
    /// [`DeltaManifestError::MissingDependency`], [`DeltaManifestError::Cycle`].
    pub fn in_order(&self) -> Result<Vec<&DeltaFile>, DeltaManifestError> {
        let files: BTreeMap<&SafePath, &DeltaFile> =
            self.files.iter().map(|file| (&file.path, file)).collect();
        let mut waits: BTreeMap<&SafePath, usize> = BTreeMap::new();
        let mut dependents: BTreeMap<&SafePath, Vec<&DeltaFile>> = BTreeMap::new();
        for file in &self.files {
            let on: BTreeSet<&SafePath> = file.depends_on.iter().collect();
            waits.insert(&file.path, on.len());
            for dependency in on {
                if !files.contains_key(dependency) {
                    let (path, missing) = (file.path.clone(), dependency.clone());
                    return Err(DeltaManifestError::MissingDependency { path, missing });
                }
                dependents.entry(dependency).or_default().push(file);
            }
        }
        let key = |file: &DeltaFile| (file.order, file.path.clone());
        let mut ready: BTreeSet<(u32, SafePath)> =
            self.files.iter().filter(|file| file.depends_on.is_empty()).map(key).collect();
        let mut ordered = Vec::with_capacity(self.files.len());
        while let Some((_, path)) = ready.pop_first() {
            ordered.push(files[&path]);
            for dependent in dependents.remove(&path).unwrap_or_default() {
                let left = waits.get_mut(&dependent.path).expect("every file waits for some number");
                *left -= 1;
                if *left == 0 {
                    ready.insert(key(dependent));
                }
            }
        }
        if ordered.len() == files.len() {
            return Ok(ordered);
        }
        let done: BTreeSet<&SafePath> = ordered.iter().map(|file| &file.path).collect();
        let stuck = self.files.iter().find(|file| !done.contains(&file.path)).expect("one is missing");
        Err(DeltaManifestError::Cycle(stuck.path.clone()))
    }
}

fn inconsistent(reason: impl Into<String>) -> DeltaManifestError {
    DeltaManifestError::Inconsistent(reason.into())
}

#[cfg(test)]
mod tests {
    use super::{super::Version, *};

    fn file(path: &str, offset: u64) -> DeltaFile {
        DeltaFile {
            path: path.parse().expect(path),
            base_path: None,
            base_sha256: Digest::of(b"old"),
            base_size: 3,
            target_sha256: Digest::of(path.as_bytes()),
            target_size: 100,
            patch_sha256: Digest::of(b"patch"),
            patch_size: 5,
            offset,
            algorithm: DeltaAlgorithm::Bsdiff,
            order: 0,
            depends_on: Vec::new(),
            candidates: Vec::new(),
        }
    }

    fn release(version: Version) -> ReleaseRef {
        let manifest = Digest::of(version.to_string().as_bytes());
        ReleaseRef { package: "db".parse().expect("a name"), version, manifest }
    }

    fn manifest(paths: &[&str]) -> DeltaManifest {
        DeltaManifest {
            format: DELTA_FORMAT,
            from: release(Version::new(1, 0, 0)),
            to: release(Version::new(1, 1, 0)),
            enforce_order: true,
            files: paths.iter().zip(0..).map(|(path, index)| file(path, 5 * index)).collect(),
            objects: Vec::new(),
        }
    }

    fn depends(manifest: &mut DeltaManifest, index: usize, on: &[&str]) {
        manifest.files[index].depends_on = on.iter().map(|path| path.parse().expect("a path")).collect();
    }

    fn order(manifest: &DeltaManifest) -> Vec<&str> {
        manifest.in_order().expect("an order").iter().map(|file| file.path.as_str()).collect()
    }

    fn parse(text: &str) -> Result<DeltaManifest, DeltaManifestError> {
        DeltaManifest::parse(text.as_bytes(), &ManifestLimits::default())
    }

    #[test]
    fn what_was_written_is_read_back_equal() {
        let mut all = manifest(&["a", "b/c"]);
        depends(&mut all, 0, &["b/c"]);
        all.files[1].base_path = Some("was/elsewhere".parse().unwrap());
        all.files[1].candidates =
            vec![DeltaCandidate { what: "full".to_owned(), bytes: None, note: "not made".to_owned() }];
        let bytes = all.to_bytes().unwrap();
        assert_eq!(DeltaManifest::parse(&bytes, &ManifestLimits::default()), Ok(all));
    }

    // D7, D17
    #[test]
    fn unknown_algorithms_and_empty_or_missing_digests_are_refused() {
        let text = String::from_utf8(manifest(&["a"]).to_bytes().unwrap()).unwrap();
        let digest = Digest::of(b"old").to_string();
        for (from, to, says) in [
            ("\"bsdiff\"", "\"courgette\"", "courgette"),
            ("\"bsdiff\"", "\"\"", "unknown"),
            (digest.as_str(), "", "64 lower-case"),
            (&Digest::of(b"a").to_string(), "", "64 lower-case"),
            (&Digest::of(b"patch").to_string(), "", "64 lower-case"),
            ("\"target_size\"", "\"target_bytes\"", "unknown field"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let refused = parse(&changed).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
        let without = text.replace(&format!("\"base_sha256\": \"{digest}\","), "");
        assert!(parse(&without).unwrap_err().to_string().contains("base_sha256"));
        assert_eq!(
            parse(&text.replacen("\"format\": 1", "\"format\": 2", 1)),
            Err(DeltaManifestError::Format(2))
        );
    }

    // D18
    #[test]
    fn dependencies_come_first_and_ties_are_broken_by_order_then_path() {
        let mut chain = manifest(&["a", "b", "c"]);
        depends(&mut chain, 0, &["b"]);
        depends(&mut chain, 1, &["c"]);
        assert_eq!(order(&chain), ["c", "b", "a"]);
        let mut ties = manifest(&["d", "c", "b", "a"]);
        ties.files[3].order = 2;
        ties.files[0].order = 1;
        depends(&mut ties, 1, &["a", "a"]);
        assert_eq!(order(&ties), ["b", "d", "a", "c"]);
    }

    // D19
    #[test]
    fn cycles_and_missing_dependencies_are_refused() {
        let mut circle = manifest(&["a", "b", "c"]);
        depends(&mut circle, 0, &["b"]);
        depends(&mut circle, 1, &["a"]);
        assert_eq!(circle.in_order(), Err(DeltaManifestError::Cycle("a".parse().unwrap())));
        assert!(circle.to_bytes().is_err());
        let mut own = manifest(&["a"]);
        depends(&mut own, 0, &["a"]);
        assert!(matches!(own.to_bytes(), Err(DeltaManifestError::Cycle(_))));
        let mut missing = manifest(&["a"]);
        depends(&mut missing, 0, &["z"]);
        assert!(matches!(missing.to_bytes(), Err(DeltaManifestError::MissingDependency { .. })));
    }

    // D15
    #[test]
    fn totals_are_sums_and_those_of_nothing_are_zero() {
        assert_eq!(manifest(&["a", "b", "c"]).totals(), DeltaTotals { patches: 15, targets: 300 });
        assert_eq!(manifest(&[]).totals(), DeltaTotals::default());
        assert_eq!(manifest(&[]).payload_bytes(), 0);
        assert_eq!(manifest(&["a", "b"]).payload_bytes(), 10);
    }

    // P1, P2, P3, P5
    #[test]
    fn bad_path_anywhere_refuses_the_delta_manifest() {
        let mut good = manifest(&["a", "b"]);
        depends(&mut good, 0, &["b"]);
        good.files[0].base_path = Some("c".parse().expect("a path"));
        let good: serde_json::Value = serde_json::from_slice(&good.to_bytes().unwrap()).unwrap();
        assert!(parse(&good.to_string()).is_ok());
        for path in
            ["../outside", "/etc/passwd", "", "a/../../b", "a\\..\\b", "a\0b", "C:\\x", "a/", ".", "./b"]
        {
            for field in ["path", "base_path", "depends_on"] {
                let mut bad = good.clone();
                bad["files"][0][field] = match field {
                    "depends_on" => serde_json::json!([path]),
                    _ => path.into(),
                };
                let refused = parse(&bad.to_string()).unwrap_err();
                let message = refused.to_string();
                assert!(matches!(refused, DeltaManifestError::Syntax(_)), "{field} {path:?}: {refused:?}");
                assert!(message.contains("path") && !message.contains(char::is_control), "{message:?}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |change: &dyn Fn(&mut DeltaManifest)| {
            let mut changed = manifest(&["a", "b"]);
            change(&mut changed);
            changed.to_bytes().unwrap_err()
        };
        for change in [
            &(|m: &mut DeltaManifest| m.files[1].offset = 6) as &dyn Fn(&mut DeltaManifest),
            &|m| m.files[1].target_sha256 = m.files[0].target_sha256,
            &|m| m.files[0].patch_size = 1 << 39,
            &|m| m.to.package = "other".parse().expect("a name"),
            &|m| m.to = m.from.clone(),
        ] {
            assert!(matches!(refused(change), DeltaManifestError::Inconsistent(_)));
        }
        assert!(matches!(
            refused(&|m| m.files[1].path = "A".parse().expect("a path")),
            DeltaManifestError::Path(_)
        ));
        assert!(matches!(refused(&|m| m.files[0].base_size = 1 << 50), DeltaManifestError::Limit { .. }));
    }
}
