//! `release.toml`: what is released, and packing a directory as it says.
//!
//! Equal input gives equal bytes: files in the order of their names, no time but the given one, nothing of the machine.
//! Whatever a release must not carry is refused here already: devices, sockets, set-id bits, names that are no UTF-8,
//! files that change while they are read. Read [`ReleaseSpec`] first, then [`pack`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Seek, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cutover_bundle::{Level, Limits, Payload, PayloadWriter};
use cutover_core::model::{
    BuildInfo, Conflict, Digest, Document, DocumentKind, FileEntry, FileKind, FileMode, Instant,
    MANIFEST_FORMAT, Manifest, Name, PathError, Priority, Requirement, SafePath, Schema, ServiceHints,
    Symlink, Version,
};
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use crate::{
    exit::Exit,
    failure::{Classify, Failure},
    settings,
};

/// `release.toml`, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseSpec {
    /// What is released.
    pub package: Name,
    /// Which version; `--release-version` goes before.
    #[serde(default)]
    pub version: Option<Version>,
    /// Where it runs. Default: `any`.
    #[serde(default)]
    pub platform: Option<Name>,
    /// The stream it belongs to. Default: `stable`.
    #[serde(default)]
    pub channel: Option<Name>,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// The oldest version that can be updated to this one directly.
    #[serde(default)]
    pub min_upgrade_from: Option<Version>,
    /// What changed, for people.
    #[serde(default)]
    pub notes: Option<String>,
    /// Paths that outlive releases.
    #[serde(default)]
    pub shared: Vec<SafePath>,
    /// Globs of what is left out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Globs of files that are not of the kind they look like.
    #[serde(default)]
    pub kinds: Kinds,
    /// Where it was built from.
    #[serde(default)]
    pub build: Option<BuildInfo>,
    /// Packages it needs.
    #[serde(default)]
    pub requires: Vec<Requirement>,
    /// Packages it cannot live with.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// The database schema it needs, and the migration files of the release that lead to it.
    #[serde(default)]
    pub schema: Option<Schema>,
    /// How its service is run.
    #[serde(default)]
    pub service: Option<ServiceHints>,
}

/// `[kinds]`: globs by kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kinds {
    /// Programs.
    pub executable: Vec<String>,
    /// Code that programs load.
    pub library: Vec<String>,
    /// Settings that an operator may edit.
    pub config: Vec<String>,
    /// Anything else.
    pub data: Vec<String>,
}

/// Why a directory cannot be released.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the specification nor the command line names a version.
    #[error("no version: write `version` in the specification or pass --release-version")]
    NoVersion,
    /// A glob that is none.
    #[error("`{glob}` is no glob")]
    Glob {
        /// The text.
        glob: String,
        /// What is wrong with it.
        #[source]
        source: globset::Error,
    },
    /// A file that globs of two kinds match.
    #[error("`{path}` is matched by the globs of two kinds: {kinds:?}")]
    TwoKinds {
        /// The file.
        path: SafePath,
        /// The kinds.
        kinds: [FileKind; 2],
    },
    /// A name that is no UTF-8.
    #[error("`{}` has a name that is not UTF-8", .0.display())]
    Name(PathBuf),
    /// A path no release may have.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A device, socket or pipe.
    #[error("`{path}` is {what}; a release holds files, directories and symbolic links")]
    Special {
        /// Where.
        path: SafePath,
        /// What it is.
        what: &'static str,
    },
    /// A file with set-id or sticky bits.
    #[error("`{path}` has mode {mode:04o}; a release hands out no privileges")]
    Privileged {
        /// Where.
        path: SafePath,
        /// Its permission bits.
        mode: u32,
    },
    /// It changed while it was packed.
    #[error("`{0}` changed while it was packed")]
    Changed(SafePath),
    /// It cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to release.
    #[error("`{}` holds no files", .0.display())]
    Empty(PathBuf),
}

impl Classify for SpecError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoVersion | Self::Glob { .. } | Self::TwoKinds { .. } | Self::Empty(_) => Exit::Usage,
            Self::Name(_) | Self::Path(_) | Self::Special { .. } | Self::Privileged { .. } => {
                Exit::UnsafeContent
            }
            Self::Changed(_) | Self::Read { .. } => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Name(_) | Self::Path(_) | Self::Special { .. } => {
                "rename it, or leave it out with `exclude` in the specification"
            }
            Self::Privileged { .. } => {
                "clear the bits with `chmod u-s,g-s,-t`; grant privileges in the service's own settings"
            }
            Self::TwoKinds { .. } => "make the globs under `[kinds]` more precise",
            Self::Changed(_) => "wait until the build has finished, then create the bundle again",
            Self::Empty(_) => "name the directory that holds the release's files",
            Self::NoVersion | Self::Glob { .. } | Self::Read { .. } => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// What is known about an entry without reading it; equal before and after means that nobody touched it meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    File(Stamp),
    Link(String),
    EmptyDirectory,
}

/// A packed release: its manifest and its payload.
pub struct Packed<S> {
    /// The manifest.
    pub manifest: Manifest,
    /// The payload.
    pub payload: Payload<S>,
    /// Empty directories, which a release does not hold.
    pub left_out: Vec<SafePath>,
}

impl ReleaseSpec {
    /// Reads a specification; errors name the key, the line, and a known key that looks like it.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        settings::read_file(path).map_err(|error| match error {
            settings::SettingsError::Missing(_) => Failure::usage("there is no release specification")
                .because(error)
                .hint("write one, or name it with --spec: `package` and `version` are enough"),
            settings::SettingsError::Read { .. }
            | settings::SettingsError::Syntax { .. }
            | settings::SettingsError::Value { .. } => {
                Failure::usage("the release specification is not valid").because(error)
            }
            settings::SettingsError::Unknown { .. } | settings::SettingsError::Anchor { .. } => {
                Failure::about(error, "the release specification is not valid")
            }
        })
    }
}

/// Packs the directory `source` as `spec` says, and documents about the release; the payload goes to `spool`.
///
/// # Errors
/// [`SpecError`], or what writing the payload reports.
pub fn pack<S: io::Read + Write + Seek>(
    spec: &ReleaseSpec,
    version: Option<&Version>,
    source: &Path,
    released_at: Instant,
    level: Level,
    documents: &[(DocumentKind, &[u8])],
    spool: S,
) -> Result<Packed<S>, Failure> {
    let version = version.or(spec.version.as_ref()).ok_or(SpecError::NoVersion)?.clone();
    let exclude = globs(&spec.exclude)?;
    let kinds = KindRules::new(&spec.kinds)?;
    let tree = scan(source, &exclude)?;
    if !tree.values().any(|found| matches!(found, Found::File(_) | Found::Link(_))) {
        return Err(SpecError::Empty(source.to_owned()).into());
    }
    let (mut files, mut symlinks, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for (path, found) in &tree {
        match found {
            Found::File(stamp) => files.push(FileEntry {
                path: path.clone(),
                kind: kinds.kind_of(path, stamp.mode)?,
                mode: FileMode::new(stamp.mode & 0o777).expect("masked to permission bits"),
                sha256: Digest::of(&[]),
                size: stamp.size,
            }),
            Found::Link(target) => symlinks.push(Symlink { path: path.clone(), target: target.clone() }),
            Found::EmptyDirectory => left_out.push(path.clone()),
        }
    }
    let mut manifest = Manifest {
        format: MANIFEST_FORMAT,
        package: spec.package.clone(),
        version,
        platform: spec.platform.clone().unwrap_or_else(|| name("any")),
        channel: spec.channel.clone().unwrap_or_else(|| name("stable")),
        released_at,
        priority: spec.priority,
        min_upgrade_from: spec.min_upgrade_from.clone(),
        build: spec.build.clone(),
        requires: spec.requires.clone(),
        conflicts: spec.conflicts.clone(),
        files,
        symlinks,
        shared: spec.shared.clone(),
        objects: Vec::new(),
        documents: documents.iter().map(|(kind, bytes)| document(*kind, bytes)).collect(),
        schema: spec.schema.clone(),
        service: spec.service.clone(),
        notes: spec.notes.clone(),
    };
    // What is wrong with the names is said before anything is compressed.
    manifest.check_layout(&Limits::default().manifest)?;
    let mut payload = PayloadWriter::new(spool, level)?;
    for file in &mut manifest.files {
        let Some(Found::File(stamp)) = tree.get(&file.path) else { continue };
        file.sha256 = pack_file(source, &file.path, stamp, &mut payload)?;
    }
    if let Some(path) = first_difference(&tree, &scan(source, &exclude)?) {
        return Err(SpecError::Changed(path).into());
    }
    for (_, bytes) in documents {
        payload.add(*bytes)?;
    }
    let payload = payload.finish()?;
    manifest.objects.clone_from(&payload.objects);
    Ok(Packed { manifest, payload, left_out })
}

fn document(kind: DocumentKind, bytes: &[u8]) -> Document {
    let (media_type, sha256) = (kind.media_type().to_owned(), Digest::of(bytes));
    Document { kind, media_type, sha256, size: bytes.len() as u64 }
}

fn name(text: &str) -> Name {
    text.parse().expect("a literal name")
}

fn globs(patterns: &[String]) -> Result<GlobSet, SpecError> {
    let wrong = |glob: &str, source| SpecError::Glob { glob: glob.to_owned(), source };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| wrong(pattern, error))?);
    }
    set.build().map_err(|error| wrong(&patterns.join(", "), error))
}

/// Which kind a file is of.
struct KindRules(Vec<(FileKind, GlobSet)>);

impl KindRules {
    fn new(kinds: &Kinds) -> Result<Self, SpecError> {
        Ok(Self(vec![
            (FileKind::Executable, globs(&kinds.executable)?),
            (FileKind::Library, globs(&kinds.library)?),
            (FileKind::Config, globs(&kinds.config)?),
            (FileKind::Data, globs(&kinds.data)?),
        ]))
    }

    /// By the globs; without one by looks: `*.so*` is a library, what anybody may run is executable, what lies under
    /// `etc/` is config, and the rest is data.
    fn kind_of(&self, path: &SafePath, mode: u32) -> Result<FileKind, SpecError> {
        let matching: Vec<FileKind> = self
            .0
            .iter()
            .filter(|(_, globs)| globs.is_match(path.as_path()))
            .map(|(kind, _)| *kind)
            .collect();
        let file = path.components().next_back().unwrap_or_default();
        match matching.as_slice() {
            [kind] => Ok(*kind),
            [first, second, ..] => Err(SpecError::TwoKinds { path: path.clone(), kinds: [*first, *second] }),
            [] if file.ends_with(".so") || file.contains(".so.") => Ok(FileKind::Library),
            [] if mode & 0o111 != 0 => Ok(FileKind::Executable),
            [] if path.components().next() == Some("etc") && path.parent().is_some() => Ok(FileKind::Config),
            [] => Ok(FileKind::Data),
        }
    }
}

fn scan(source: &Path, exclude: &GlobSet) -> Result<BTreeMap<SafePath, Found>, SpecError> {
    let mut found = BTreeMap::new();
    scan_directory(source, "", exclude, &mut found)?;
    Ok(found)
}

/// Adds what lies in the directory `prefix`; says whether there was anything.
fn scan_directory(
    source: &Path,
    prefix: &str,
    exclude: &GlobSet,
    found: &mut BTreeMap<SafePath, Found>,
) -> Result<bool, SpecError> {
    let directory = source.join(prefix);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SpecError::Read { path, source }
    };
    let mut any = false;
    for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
        let entry = entry.map_err(failed(&directory))?;
        let file_name = entry.file_name().into_string().map_err(|_| SpecError::Name(entry.path()))?;
        let relative = if prefix.is_empty() { file_name } else { format!("{prefix}/{file_name}") };
        if exclude.is_match(&relative) {
            continue;
        }
        any = true;
        let path: SafePath = relative.parse()?;
        let metadata = fs::symlink_metadata(entry.path()).map_err(failed(&entry.path()))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !scan_directory(source, &relative, exclude, found)? {
                found.insert(path, Found::EmptyDirectory);
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).map_err(failed(&entry.path()))?;
            let target = target.into_os_string().into_string().map_err(|_| SpecError::Name(entry.path()))?;
            found.insert(path, Found::Link(target));
        } else if kind.is_file() {
            if metadata.mode() & 0o7000 != 0 {
                return Err(SpecError::Privileged { path, mode: metadata.mode() & 0o7777 });
            }
            found.insert(path, Found::File(Stamp::of(&metadata)));
        } else {
            return Err(SpecError::Special { path, what: special(metadata.mode()) });
        }
    }
    Ok(any)
}

fn special(mode: u32) -> &'static str {
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Socket => "a socket",
        rustix::fs::FileType::Fifo => "a pipe",
        rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice => "a device",
        _ => "something else than a file",
    }
}

/// Adds a file's content to the payload; returns its digest.
fn pack_file<S: Write + Seek>(
    source: &Path,
    path: &SafePath,
    stamp: &Stamp,
    payload: &mut PayloadWriter<S>,
) -> Result<Digest, Failure> {
    let on_disk = source.join(path.as_path());
    let failed = |source| SpecError::Read { path: on_disk.clone(), source };
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("open flags are an int");
    let mut file =
        fs::OpenOptions::new().read(true).custom_flags(no_follow).open(&on_disk).map_err(failed)?;
    let is_unchanged =
        |file: &fs::File| Ok::<_, SpecError>(Stamp::of(&file.metadata().map_err(failed)?) == *stamp);
    if !is_unchanged(&file)? {
        return Err(SpecError::Changed(path.clone()).into());
    }
    let added = payload
        .add((&mut file).take(stamp.size.saturating_add(1)))
        .map_err(|error| Failure::about(error, format!("failed to pack `{path}`")))?;
    if added.size != stamp.size || !is_unchanged(&file)? {
        return Err(SpecError::Changed(path.clone()).into());
    }
    Ok(added.sha256)
}

fn first_difference(
    before: &BTreeMap<SafePath, Found>,
    after: &BTreeMap<SafePath, Found>,
) -> Option<SafePath> {
    let paths: BTreeSet<&SafePath> = before.keys().chain(after.keys()).collect();
    paths.into_iter().find(|path| before.get(*path) != after.get(*path)).cloned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A payload nobody may write.
    struct Untouched;

    impl io::Read for Untouched {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the payload was read");
        }
    }

    impl Write for Untouched {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("something was compressed");
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Untouched {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn link_that_leaves_the_release_is_refused_before_anything_is_compressed() {
        let tree = tempfile::tempdir().expect("a directory");
        fs::write(tree.path().join("a"), "content").expect("written");
        symlink("../outside", tree.path().join("z")).expect("linked");
        let spec: ReleaseSpec =
            toml::from_str("package = \"app\"\nversion = \"1.0.0\"\n").expect("a specification");
        let at = Instant::from_unix(0).expect("a time");
        let level = Level::new(1).expect("a level");
        let error = pack(&spec, None, tree.path(), at, level, &[], Untouched).map(drop).expect_err("refused");
        assert!(format!("{error:?}").contains("outside"), "{error:?}");
    }
}
