//! Delta bundles: the one that leads from an earlier release to a newer one is written for `bundle create --delta-from` and
//! `repo publish`; `bundle verify` and `bundle inspect` tell of one.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Seek as _, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cutover_bundle::{
    Bundle as OpenBundle, DeltaBundle, Limits, assemble_delta,
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

use cutover_host::delta_payload::DeltaPayload;

use super::{
    Context, delta,
    describe::{signer_json, summary, summary_line, tell_signer},
    documents, opened,
};
use crate::{
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    progress,
};

/// `bundle verify` of a delta bundle whose signatures hold: checks every object, patch and document it carries.
pub(super) fn verify(
    path: &Path,
    payload: &DeltaPayload<File>,
    signature: Duration,
    context: &Context,
) -> Result<Exit, Failure> {
    let bundle = payload.delta();
    payload
        .check_payload()
        .map_err(|error| Failure::about(error, format!("refused `{}`", path.display())))?;
    let delta = bundle.delta();
    // What a delta does not carry lies beside it, in a repository.
    let mut manifest = Manifest::clone(bundle.verified_manifest().manifest());
    manifest.documents.retain(|document| bundle.carried(document.sha256).is_some());
    let read = |object: &ObjectEntry| opened::object_of(payload, object);
    documents::check_all(&manifest, &read).map_err(|failure| documents::with_hint(failure, path))?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "bundle": path.display().to_string(),
            "verified": true,
            "signature_us": u64::try_from(signature.as_micros()).unwrap_or(u64::MAX),
            "package": manifest.package,
            "version": manifest.version,
            "manifest_sha256": delta.to.manifest,
            "from": delta.from,
            "patches": delta.files.len(),
            "objects": delta.objects.len(),
            "payload_bytes": delta.payload_bytes(),
            "documents": documents::json(&manifest, &read),
            "signers": bundle.signers().iter().map(signer_json).collect::<Vec<_>>(),
        }))?,
        Form::Text => {
            output::line(format!(
                "{}: verification passed: a delta from {} to {}, {}",
                path.display(),
                delta.from,
                delta.to,
                contents(delta),
            ));
            documents::lines(&manifest, &read).into_iter().for_each(output::line);
            bundle.signers().iter().for_each(tell_signer);
        }
    }
    Ok(Exit::Done)
}

/// `bundle inspect` of a delta bundle.
pub(super) fn inspect(
    path: &Path,
    bundle: &DeltaBundle<File>,
    raw_manifest: bool,
    context: &Context,
) -> Result<Exit, Failure> {
    if raw_manifest {
        output::exact(bundle.untrusted_delta_bytes());
        return Ok(Exit::Done);
    }
    let view = bundle.inspect_untrusted();
    let refused = |what: &str| format!("the {what} of `{}` is refused", path.display());
    let delta = view.claimed_delta.map_err(|error| Failure::about(error, refused("delta manifest")))?;
    let manifest = view.claimed_manifest.map_err(|error| Failure::about(error, refused("manifest")))?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "bundle": path.display().to_string(),
            "verified": false,
            "manifest_sha256": view.manifest_sha256,
            "payload_bytes": view.payload_bytes,
            "signers": view.claimed_signers.iter().flatten().map(signer_json).collect::<Vec<_>>(),
            "delta": delta,
            "manifest": manifest,
        }))?,
        Form::Text => {
            output::line(format!("{}: NOT VERIFIED; it says about itself:", path.display()));
            output::line(format!("delta     from {}, {}", delta.from, contents(&delta)));
            output::line(summary(&manifest));
            for document in &manifest.documents {
                let told = format!("{}, {}", output::bytes(document.size), document.sha256.short());
                output::line(summary_line(document.kind.name(), &told));
            }
            match view.claimed_signers {
                Ok(signers) => {
                    for signer in signers {
                        output::line(format!("signer    {}", output::printable(&signer.subject)));
                    }
                }
                Err(error) => output::line(format!("signature {}", output::printable(&error.to_string()))),
            }
            let row = |file: &DeltaFile| {
                vec![
                    file.path.to_string(),
                    file.algorithm.to_string(),
                    file.patch_size.to_string(),
                    file.target_size.to_string(),
                    file.base_sha256.short(),
                    file.target_sha256.short(),
                ]
            };
            output::line(output::table(
                &["path", "algorithm", "patch", "size", "base", "sha256"],
                delta.files.iter().map(row).collect(),
            ));
        }
    }
    Ok(Exit::Done)
}

fn contents(delta: &DeltaManifest) -> String {
    format!(
        "{} patches and {} files in full in {}",
        delta.files.len(),
        delta.objects.len(),
        output::bytes(delta.payload_bytes()),
    )
}

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

/// A release of the publisher's own, whose claims are taken as they are: whoever applies a delta checks every digest.
pub(super) trait Side {
    fn manifest(&self) -> &Manifest;

    fn release(&self) -> &ReleaseRef;

    /// A content, decoded.
    fn read(&self, object: &ObjectEntry) -> Result<Vec<u8>, Failure>;
}

/// A release in a bundle.
pub(super) struct Opened {
    bundle: OpenBundle<File>,
    manifest: Manifest,
    release: ReleaseRef,
}

/// Opens a bundle of the publisher's own.
///
/// # Errors
/// It cannot be read.
pub(super) fn open(path: &Path) -> Result<Opened, Failure> {
    let bundle = opened::open(path)?;
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

impl Side for Opened {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn release(&self) -> &ReleaseRef {
        &self.release
    }

    fn read(&self, object: &ObjectEntry) -> Result<Vec<u8>, Failure> {
        let mut content = Vec::new();
        self.bundle.decode_untrusted_object(object, &mut content)?;
        Ok(content)
    }
}

fn object_of(side: &dyn Side, sha256: Digest) -> &ObjectEntry {
    let found = side.manifest().objects.iter().find(|object| object.sha256 == sha256);
    found.expect("a checked manifest has an object for every file")
}

/// The file that the new one most likely was: that of the same path, else one of the same name and kind. No shared one:
/// what a host has there is what was written to it since, and not the old release's.
fn base_of<'s>(side: &'s dyn Side, file: &FileEntry) -> Option<&'s FileEntry> {
    let name = |path: &SafePath| path.components().next_back().map(str::to_owned);
    let manifest = side.manifest();
    let shared: BTreeSet<&SafePath> = manifest.shared.iter().collect();
    let mut files = manifest.files.iter().filter(|old| !shared.contains(&old.path));
    let same_path = files.clone().find(|old| old.path == file.path);
    same_path.or_else(|| files.find(|old| old.kind == file.kind && name(&old.path) == name(&file.path)))
}

/// What becomes of the documents about the new release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Documents {
    /// The delta carries them: nothing else is at hand where it is applied.
    Carried,
    /// They lie beside it, in a repository.
    Beside,
}

/// Objects of `to` that somebody who has the files of `from` lacks.
pub(super) fn fresh<'t>(from: &dyn Side, to: &'t dyn Side, documents: Documents) -> Vec<&'t ObjectEntry> {
    let files = |side: &dyn Side| -> BTreeSet<Digest> {
        side.manifest().files.iter().map(|file| file.sha256).collect()
    };
    let mut wanted: BTreeSet<Digest> = files(to).difference(&files(from)).copied().collect();
    if documents == Documents::Carried {
        wanted.extend(to.manifest().documents.iter().map(|document| document.sha256));
    }
    to.manifest().objects.iter().filter(|object| wanted.contains(&object.sha256)).collect()
}

/// Writes the delta bundle from one release to that of `new`, signed by `signers`.
///
/// # Errors
/// A bundle cannot be read, a manifest contradicts the other, signing fails, or the file cannot be written.
pub(super) fn write(
    from: &Opened,
    new: &Path,
    output: Option<&Path>,
    signers: &[&dyn Signer],
    context: &Context,
) -> Result<Written, Failure> {
    let to = open(new)?;
    let path = output.map_or_else(|| default_name(new, &from.release), Path::to_owned);
    let mut made = make(from, &to, Documents::Carried, signers, context)?;
    files::write(&path, 0o644, Existing::Replace, |out| made.assemble(&to, out))?;
    Ok(Written {
        path,
        from: made.manifest.from.clone(),
        patches: made.manifest.files.len(),
        carried: made.manifest.objects.len(),
        payload_bytes: made.manifest.payload_bytes(),
    })
}

/// A delta, signed; its payload is in a spool.
pub(super) struct Made {
    pub(super) manifest: DeltaManifest,
    bytes: Vec<u8>,
    signature: Vec<u8>,
    spool: File,
}

impl Made {
    /// Writes the delta bundle.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn assemble(&mut self, to: &Opened, out: &mut dyn Write) -> Result<(), Failure> {
        let release = (to.bundle.untrusted_manifest_bytes(), to.bundle.untrusted_signature_bytes());
        let delta = (&self.manifest, self.bytes.as_slice(), self.signature.as_slice());
        assemble_delta(release, delta, &mut self.spool, out, &Limits::default())
            .map_err(|error| Failure::about(error, "failed to write the delta bundle"))
    }
}

/// Makes the delta from one release to another, signed by `signers`.
///
/// # Errors
/// As [`write`].
pub(super) fn make(
    from: &dyn Side,
    to: &Opened,
    documents: Documents,
    signers: &[&dyn Signer],
    context: &Context,
) -> Result<Made, Failure> {
    let mut spool = tempfile::tempfile()
        .map_err(|source| Failure::io("make a file in", &std::env::temp_dir(), source))?;
    let in_spool = |source| Failure::io("write", &std::env::temp_dir(), source);
    let fresh = fresh(from, to, documents);
    let (mut objects, mut patches, mut end) = (Vec::new(), Vec::new(), 0u64);
    let observer = progress::observer(context.progress);
    for (index, object) in fresh.iter().enumerate() {
        let tell = |done: f64| {
            let percent = (100.0 * (index as f64 + done) / fresh.len() as f64) as u8;
            observer.observe(&Event::Progress { percent });
        };
        if let Some(patch) = patch_for(from, to, object, &tell)? {
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
    let manifest = DeltaManifest {
        format: DELTA_FORMAT,
        from: from.release().clone(),
        to: to.release.clone(),
        enforce_order: false,
        files,
        objects,
    };
    let bytes = manifest.to_bytes()?;
    let signature = cutover_bundle::sign_manifest(&bytes, signers, context.now)?;
    spool.rewind().map_err(in_spool)?;
    Ok(Made { manifest, bytes, signature, spool })
}

/// The best patch for an object, unless the object itself is smaller.
fn patch_for(
    from: &dyn Side,
    to: &Opened,
    object: &ObjectEntry,
    progress: &(dyn Fn(f64) + Sync),
) -> Result<Option<(DeltaFile, Vec<u8>)>, Failure> {
    let file = to.manifest.files.iter().find(|file| file.sha256 == object.sha256);
    // A document has no file, and no earlier one on the host to be made from.
    let Some(file) = file else { return Ok(None) };
    let base = base_of(from, file).filter(|base| base.size > 0 && object.stored_size > ENTRY_BYTES);
    let Some(base) = base else { return Ok(None) };
    let (old, new) = (from.read(object_of(from, base.sha256))?, to.read(object)?);
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
