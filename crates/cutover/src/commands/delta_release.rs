//! `bundle create --delta-from`: the delta bundle that leads from an earlier release to the one just built.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use cutover_bundle::{
    Bundle as OpenBundle, Limits, assemble_delta,
    delta::{
        AVAILABLE, Content, DeltaLimits, GenerateOptions, Pair,
        choose::{self, ChooseOptions, Policy},
    },
    signer::Signer,
};
use cutover_core::{
    event::Event,
    model::{
        DELTA_FORMAT, DeltaFile, DeltaManifest, Digest, FileEntry, Manifest, ObjectEntry, ReleaseRef,
        SafePath,
    },
};

use super::{Context, bundle, delta};
use crate::{
    failure::Failure,
    files::{self, Existing},
    progress,
};

/// What a patch's entry takes in the delta manifest, in bytes: a patch must save more than that.
const ENTRY_BYTES: u64 = 1024;

/// A delta bundle that was written.
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) from: ReleaseRef,
    pub(super) patches: usize,
    pub(super) carried: usize,
    pub(super) payload_bytes: u64,
}

/// The default name: that of the full bundle, and where it leads from.
pub(super) fn default_name(full: &Path, from: &ReleaseRef) -> PathBuf {
    let stem = full.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    full.with_file_name(format!("{stem}.from-{}.cutover-delta", from.version))
}

/// A bundle of the publisher's own, whose claims are taken as they are.
struct Opened {
    bundle: OpenBundle<File>,
    manifest: Manifest,
    release: ReleaseRef,
}

fn open(path: &Path) -> Result<Opened, Failure> {
    let bundle = bundle::open(path)?;
    let view = bundle.inspect_untrusted();
    let manifest = view
        .claimed_manifest
        .map_err(|error| Failure::about(error, format!("the manifest of `{}` is refused", path.display())))?;
    let release = ReleaseRef {
        package: manifest.package.clone(),
        version: manifest.version.clone(),
        manifest: view.manifest_sha256,
    };
    Ok(Opened { bundle, manifest, release })
}

impl Opened {
    fn object(&self, sha256: Digest) -> &ObjectEntry {
        let found = self.manifest.objects.iter().find(|object| object.sha256 == sha256);
        found.expect("a checked manifest has an object for every file")
    }

    /// A content, decoded.
    fn read(&self, sha256: Digest) -> Result<Vec<u8>, Failure> {
        let mut content = Vec::new();
        self.bundle.decode_untrusted_object(self.object(sha256), &mut content)?;
        Ok(content)
    }

    /// The file that the new one most likely was: that of the same path, else one of the same name and kind.
    fn base_of(&self, file: &FileEntry) -> Option<&FileEntry> {
        let name = |path: &SafePath| path.components().next_back().map(str::to_owned);
        let files = &self.manifest.files;
        let same_path = files.iter().find(|old| old.path == file.path);
        same_path
            .or_else(|| files.iter().find(|old| old.kind == file.kind && name(&old.path) == name(&file.path)))
    }
}

/// Writes the delta bundle from the release of `old` to that of `new`, signed by `signers`.
///
/// # Errors
/// A bundle cannot be read, a manifest contradicts the other, signing fails, or the file cannot be written.
pub(super) fn write(
    old: &Path,
    new: &Path,
    output: Option<&Path>,
    signers: &[&dyn Signer],
    context: &Context,
) -> Result<Written, Failure> {
    let (from, to) = (open(old)?, open(new)?);
    let path = output.map_or_else(|| default_name(new, &from.release), Path::to_owned);
    let mut spool = tempfile::tempfile()
        .map_err(|source| Failure::io("make a file in", &std::env::temp_dir(), source))?;
    let in_spool = |source| Failure::io("write", &std::env::temp_dir(), source);
    let known: std::collections::BTreeSet<Digest> =
        from.manifest.objects.iter().map(|object| object.sha256).collect();
    let fresh: Vec<&ObjectEntry> =
        to.manifest.objects.iter().filter(|object| !known.contains(&object.sha256)).collect();
    let (mut objects, mut patches, mut end) = (Vec::new(), Vec::new(), 0u64);
    let observer = progress::observer(context.progress);
    for (index, object) in fresh.iter().enumerate() {
        let tell = |done: f64| {
            let percent = (100.0 * (index as f64 + done) / fresh.len() as f64) as u8;
            observer.observe(&Event::Progress { percent });
        };
        if let Some(patch) = patch_for(&from, &to, object, &tell)? {
            patches.push(patch);
            continue;
        }
        std::io::copy(&mut to.bundle.untrusted_stored(object), &mut spool).map_err(in_spool)?;
        objects.push(ObjectEntry { offset: end, ..(*object).clone() });
        end += object.stored_size;
    }
    drop(observer);
    let mut files = Vec::new();
    for (mut file, patch) in patches {
        spool.write_all(&patch).map_err(in_spool)?;
        file.offset = end;
        end += file.patch_size;
        files.push(file);
    }
    let (patched, carried) = (files.len(), objects.len());
    let (from_release, to_release) = (from.release, to.release);
    let manifest = DeltaManifest {
        format: DELTA_FORMAT,
        from: from_release.clone(),
        to: to_release,
        enforce_order: false,
        files,
        objects,
    };
    let bytes = manifest.to_bytes()?;
    let signature = cutover_bundle::sign_manifest(&bytes, signers, context.now)?;
    spool.rewind().map_err(in_spool)?;
    files::write(&path, 0o644, Existing::Replace, |out| {
        let release = (to.bundle.untrusted_manifest_bytes(), to.bundle.untrusted_signature_bytes());
        let delta = (&manifest, bytes.as_slice(), signature.as_slice());
        assemble_delta(release, delta, &mut spool, out, &Limits::default())
            .map_err(|error| Failure::about(error, format!("failed to write `{}`", path.display())))
    })?;
    Ok(Written { path, from: from_release, patches: patched, carried, payload_bytes: end })
}

/// The best patch for an object, unless the object itself is smaller.
fn patch_for(
    from: &Opened,
    to: &Opened,
    object: &ObjectEntry,
    progress: &(dyn Fn(f64) + Sync),
) -> Result<Option<(DeltaFile, Vec<u8>)>, Failure> {
    let file = to.manifest.files.iter().find(|file| file.sha256 == object.sha256);
    let file = file.expect("a checked manifest has a file for every object");
    let base = from.base_of(file).filter(|base| base.size > 0 && object.stored_size > ENTRY_BYTES);
    let Some(base) = base else { return Ok(None) };
    let (old, new) = (from.read(base.sha256)?, to.read(object.sha256)?);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
    let choice = choose::choose(
        &Pair::new(&old, &new),
        AVAILABLE,
        &ChooseOptions {
            policy: Policy::Smallest,
            full_bytes: object.stored_size.saturating_sub(ENTRY_BYTES),
            limits: DeltaLimits::default(),
            generate: GenerateOptions { threads, progress },
            clock: &|| started.elapsed(),
        },
    );
    let Some((algorithm, patch)) = choice.patch else { return Ok(None) };
    let content = Content::of(&patch);
    let file = DeltaFile {
        path: file.path.clone(),
        base_path: (base.path != file.path).then(|| base.path.clone()),
        base_sha256: base.sha256,
        base_size: base.size,
        target_sha256: object.sha256,
        target_size: object.size,
        patch_sha256: content.sha256,
        patch_size: content.size,
        // Known once all objects that are carried in full are.
        offset: 0,
        algorithm,
        order: 0,
        depends_on: Vec::new(),
        candidates: choice.candidates.iter().map(delta::candidate_of).collect(),
    };
    Ok(Some((file, patch)))
}
