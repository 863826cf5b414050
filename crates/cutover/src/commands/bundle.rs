//! `bundle create | sign | verify | inspect | extract`.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use cutover_bundle::{
    Bundle as OpenBundle, DeltaBundle, Level, Limits, VerifiedBundle, WriteError,
    signer::{CertificateChain, CommandSigner, FileSigner, Pin, Pkcs11Signer, Pkcs11Uri, Signer},
};
use cutover_core::model::{Instant, Manifest, ObjectEntry};
use cutover_host::disk::{Disk as _, RealDisk};
use zeroize::Zeroizing;

use super::{
    delta_release,
    describe::{signer_json, summary, tell_signer},
    documents,
    opened::{FromFile, object_of, open, open_delta, open_update, open_verified},
    trust,
};
use crate::{
    args::{Bundle, Create, Signing},
    commands::Context,
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    spec::{self, ReleaseSpec},
};

pub(super) fn run(command: Bundle, context: &Context) -> Result<Exit, Failure> {
    match command {
        Bundle::Create(create) => self::create(&create, context),
        Bundle::Sign { bundle, output, add, signing } => {
            sign(&bundle, output.as_deref(), add, &signing, context)
        }
        Bundle::Verify { bundle } => verify(&bundle, context),
        Bundle::Inspect { bundle, manifest } => inspect(&bundle, manifest, context),
        Bundle::Extract { bundle, output, documents } => {
            extract(&bundle, &output, documents.as_deref(), context)
        }
    }
}

fn create(create: &Create, context: &Context) -> Result<Exit, Failure> {
    let signers = signers(&create.signing)?;
    if signers.is_empty() && create.delta_from.is_some() {
        return Err(Failure::usage("a delta bundle is signed when it is made")
            .hint("pass --sign-key and --sign-cert, --pkcs11, or --sign-command"));
    }
    let from = create.delta_from.as_deref().map(delta_release::open).transpose()?;
    let spec = ReleaseSpec::read(&create.spec)?;
    let released_at = released_at(create, context)?;
    let spool = tempfile::tempfile()
        .map_err(|source| Failure::io("make a file in", &std::env::temp_dir(), source))?;
    let level = Level::new(create.level).ok_or_else(|| Failure::usage("a level is 1 to 22"))?;
    let documents = documents::Given::read(create)?;
    let contents = documents.contents();
    let version = create.release_version.as_ref();
    let packed = spec::pack(&spec, version, &create.dir, released_at, level, &contents, spool)?;
    documents.check(&packed.manifest)?;
    must_not_be_packed(create, &packed.manifest)?;
    for path in &packed.left_out {
        output::note(format!("warning: `{path}` is an empty directory, which a release does not hold"));
    }
    let manifest = packed.manifest.to_bytes()?;
    let signature = match signers.as_slice() {
        [] => Vec::new(),
        signers => {
            let signers: Vec<&dyn Signer> = signers.iter().map(AsRef::as_ref).collect();
            cutover_bundle::sign_manifest(&manifest, &signers, context.now)?
        }
    };
    let payload_bytes = packed.payload.bytes;
    files::write(&create.output, 0o644, Existing::Replace, |out| {
        cutover_bundle::assemble(&manifest, &signature, packed.payload.into_reader(), out, &Limits::default())
            .map_err(|error| Failure::about(error, format!("failed to write `{}`", create.output.display())))
    })?;
    let delta = from.as_ref().map(|from| {
        let signers: Vec<&dyn Signer> = signers.iter().map(AsRef::as_ref).collect();
        delta_release::write(from, &create.output, create.delta_output.as_deref(), &signers, context)
    });
    let delta = delta.transpose()?;
    let written = (payload_bytes, delta);
    report_written(&create.output, &packed.manifest, &manifest, written, signers.len(), context)
}

/// Refuses a release that holds what it is made with: a bundle that was written into the directory before, or a private key.
///
/// # Errors
/// One of them is among the files.
fn must_not_be_packed(create: &Create, manifest: &Manifest) -> Result<(), Failure> {
    let Ok(dir) = create.dir.canonicalize() else { return Ok(()) };
    let keys = create.signing.sign_key.iter().map(|key| (key, "the key that signs it"));
    let outputs = [Some(&create.output), create.delta_output.as_ref()];
    let outputs = outputs.into_iter().flatten().map(|output| (output, "what is to be written"));
    for (path, what) in keys.chain(outputs) {
        let found = path.canonicalize().ok();
        let packed = found.as_deref().and_then(|path| path.strip_prefix(&dir).ok());
        if packed.is_some_and(|path| manifest.files.iter().any(|file| file.path.as_path() == path)) {
            return Err(Failure::usage(format!("the release would hold {what}, `{}`", path.display()))
                .hint("move it out of the directory, or leave it out with `exclude` in the specification"));
        }
    }
    Ok(())
}

fn released_at(create: &Create, context: &Context) -> Result<Instant, Failure> {
    match (create.released_at, &context.source_date) {
        (Some(at), _) => Ok(at),
        (None, Some(text)) => text
            .trim()
            .parse()
            .ok()
            .and_then(Instant::from_unix)
            .ok_or_else(|| Failure::usage("SOURCE_DATE_EPOCH is no number of seconds")),
        (None, None) => Ok(context.now),
    }
}

fn report_written(
    path: &Path,
    manifest: &Manifest,
    manifest_bytes: &[u8],
    (payload_bytes, delta): (u64, Option<delta_release::Written>),
    signers: usize,
    context: &Context,
) -> Result<Exit, Failure> {
    let sha256 = cutover_core::model::Digest::of(manifest_bytes);
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "bundle": path.display().to_string(),
            "package": manifest.package,
            "version": manifest.version,
            "manifest_sha256": sha256,
            "files": manifest.files.len(),
            "bytes": manifest.total_bytes(),
            "payload_bytes": payload_bytes,
            "signers": signers,
            "delta": delta.as_ref().map(|delta| serde_json::json!({
                "bundle": delta.path.display().to_string(),
                "from": delta.from,
                "patches": delta.patches,
                "objects": delta.carried,
                "payload_bytes": delta.payload_bytes,
            })),
        }))?,
        Form::Text => {
            output::line(format!(
                "{}: {} {}, {} files, {} in {}, manifest {}",
                path.display(),
                manifest.package,
                manifest.version,
                manifest.files.len(),
                output::bytes(manifest.total_bytes()),
                output::bytes(payload_bytes),
                sha256.short(),
            ));
            if let Some(delta) = delta {
                output::line(format!(
                    "{}: from {}, {} patches and {} files in full in {}",
                    delta.path.display(),
                    delta.from,
                    delta.patches,
                    delta.carried,
                    output::bytes(delta.payload_bytes),
                ));
            }
        }
    }
    if signers == 0 {
        output::note("the bundle is not signed, so no host will install it");
        output::note(format!(
            "hint: sign it with `cutover bundle sign {} --sign-key signer.key --sign-cert signer.pem`",
            path.display()
        ));
    }
    Ok(Exit::Done)
}

/// What can be signed.
enum Signable {
    Full(OpenBundle<File>),
    Delta(DeltaBundle<File>),
}

impl Signable {
    fn sign(&self, signers: &[&dyn Signer], now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        match self {
            Self::Full(bundle) => bundle.sign(signers, now, out),
            Self::Delta(delta) => delta.sign(signers, now, out),
        }
    }

    fn cosign(&self, signer: &dyn Signer, now: Instant, out: &mut dyn Write) -> Result<(), WriteError> {
        match self {
            Self::Full(bundle) => bundle.cosign(signer, now, out),
            Self::Delta(delta) => delta.cosign(signer, now, out),
        }
    }
}

fn sign(
    path: &Path,
    output: Option<&Path>,
    add: bool,
    signing: &Signing,
    context: &Context,
) -> Result<Exit, Failure> {
    let signers = signers(signing)?;
    let output = output.unwrap_or(path);
    let bundle = match open_delta(path)? {
        Some(delta) => Signable::Delta(delta),
        None => Signable::Full(open(path)?),
    };
    let failed = |error| Failure::about(error, format!("failed to sign `{}`", path.display()));
    match (signers.as_slice(), add) {
        ([], _) => {
            return Err(Failure::usage("nobody to sign with")
                .hint("pass --sign-key and --sign-cert, --pkcs11, or --sign-command"));
        }
        ([signer], true) => files::write(output, 0o644, Existing::Replace, |out| {
            bundle.cosign(signer.as_ref(), context.now, out).map_err(failed)
        })?,
        (_, true) => return Err(Failure::usage("--add takes one signer at a time")),
        (signers, false) => {
            let signers: Vec<&dyn Signer> = signers.iter().map(AsRef::as_ref).collect();
            files::write(output, 0o644, Existing::Replace, |out| {
                bundle.sign(&signers, context.now, out).map_err(failed)
            })?;
        }
    }
    match context.form {
        Form::Json => output::json(
            &serde_json::json!({ "bundle": output.display().to_string(), "signers": signers.len() }),
        )?,
        Form::Text => output::line(format!("{}: signed", output.display())),
    }
    Ok(Exit::Done)
}

/// Opens the keys that `signing` names.
///
/// # Errors
/// A key, a certificate or a token cannot be used.
pub(super) fn signers(signing: &Signing) -> Result<Vec<Box<dyn Signer>>, Failure> {
    let chain = |path: &Path| {
        let pem = files::read("the certificate", path)?;
        CertificateChain::from_pem(&pem)
            .map_err(|error| Failure::about(error, format!("cannot sign with `{}`", path.display())))
    };
    if (signing.pkcs11.is_some() || signing.sign_command.is_some()) && signing.sign_cert.len() > 1 {
        return Err(Failure::usage("--pkcs11 and --sign-command sign once: they take one --sign-cert")
            .hint("put the signer's certificate and its authorities into one file, the signer's first")
            .hint("a second signer signs with `cutover bundle sign --add`"));
    }
    let first_chain = || signing.sign_cert.first().map(|path| chain(path)).transpose();
    if let Some(uri) = &signing.pkcs11 {
        let uri: Pkcs11Uri = uri.parse()?;
        return Ok(vec![Box::new(Pkcs11Signer::open(&uri, pin(&uri)?.as_ref(), first_chain()?)?)]);
    }
    if let Some(command) = &signing.sign_command {
        let Some(certificate) = signing.sign_cert.first() else {
            return Err(Failure::usage("--sign-command needs --sign-cert"));
        };
        let chain = chain(certificate)?;
        let (command, certificate, scheme) = (command.clone(), certificate.clone(), chain.scheme().name());
        let ask = move |message: &[u8]| ask_command(&command, &certificate, scheme, message);
        return Ok(vec![Box::new(CommandSigner::new(chain, ask))]);
    }
    if signing.sign_key.len() != signing.sign_cert.len() {
        return Err(Failure::usage("there must be one --sign-cert for each --sign-key, in the same order"));
    }
    let pairs = signing.sign_key.iter().zip(&signing.sign_cert);
    pairs
        .map(|(key, certificate)| {
            let pem = Zeroizing::new(files::read("the private key", key)?);
            let signer = FileSigner::from_pem(&pem, chain(certificate)?)
                .map_err(|error| Failure::about(error, format!("cannot sign with `{}`", key.display())))?;
            Ok(Box::new(signer) as Box<dyn Signer>)
        })
        .collect()
}

/// Reads the PIN that the URI names.
///
/// # Errors
/// The file cannot be read.
pub(super) fn pin(uri: &Pkcs11Uri) -> Result<Option<Pin>, Failure> {
    let Some(source) = uri.pin_source() else { return Ok(None) };
    let path = Path::new(source.strip_prefix("file:").unwrap_or(source));
    let text = String::from_utf8(files::read("the PIN", path)?)
        .map_err(|_| Failure::usage(format!("`{}` holds no PIN", path.display())))?;
    Ok(Some(Pin::new(text)))
}

/// Runs an operator's command with the bytes to be signed on stdin; its stdout is the signature.
///
/// # Errors
/// It cannot be started, or ends with a failure.
pub(super) fn ask_command(
    command: &str,
    certificate: &Path,
    scheme: &str,
    message: &[u8],
) -> io::Result<Vec<u8>> {
    use std::process::{Command, Stdio};

    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("CUTOVER_SCHEME", scheme)
        .env("CUTOVER_CERTIFICATE", certificate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("it has no stdin"))?;
    let message = message.to_vec();
    // Written aside, so that a command that answers before it has read everything cannot block us.
    let writer = std::thread::spawn(move || stdin.write_all(&message));
    let output = child.wait_with_output()?;
    let written = writer.join().map_err(|_| io::Error::other("the writer panicked"))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("`{command}` ended with {}", output.status)));
    }
    match written {
        // It ended well without reading everything; whether it signed all the same is checked by whoever asked.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(output.stdout),
        written => written.map(|()| output.stdout),
    }
}

fn verify(path: &Path, context: &Context) -> Result<Exit, Failure> {
    let settings = context.settings(None, [])?.settings;
    // Without an anchor nothing can be verified, whatever the file is.
    trust::anchor()?;
    let began = std::time::Instant::now();
    let bundle = match open_update(path, None, &settings, context.now)? {
        FromFile::Full(bundle) => bundle,
        FromFile::Delta(delta) => return delta_release::verify(path, &delta, began.elapsed(), context),
    };
    let signature_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    bundle.check_objects().map_err(|error| Failure::about(error, format!("refused `{}`", path.display())))?;
    let manifest = bundle.manifest();
    let read = |object: &ObjectEntry| object_of(&bundle, object);
    documents::check_all(manifest, &read).map_err(|failure| documents::with_hint(failure, path))?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "bundle": path.display().to_string(),
            "verified": true,
            "signature_us": signature_us,
            "package": manifest.package,
            "version": manifest.version,
            "manifest_sha256": bundle.release().manifest,
            "files": manifest.files.len(),
            "bytes": manifest.total_bytes(),
            "documents": documents::json(manifest, &read),
            "signers": bundle.signers().iter().map(signer_json).collect::<Vec<_>>(),
        }))?,
        Form::Text => {
            output::line(format!(
                "{}: verification passed: {} {}, {} files, {}",
                path.display(),
                manifest.package,
                manifest.version,
                manifest.files.len(),
                output::bytes(manifest.total_bytes())
            ));
            documents::lines(manifest, &read).into_iter().for_each(output::line);
            bundle.signers().iter().for_each(tell_signer);
        }
    }
    Ok(Exit::Done)
}

fn inspect(path: &Path, raw_manifest: bool, context: &Context) -> Result<Exit, Failure> {
    if let Some(delta) = open_delta(path)? {
        return delta_release::inspect(path, &delta, raw_manifest, context);
    }
    let bundle = open(path)?;
    if raw_manifest {
        output::exact(bundle.untrusted_manifest_bytes());
        return Ok(Exit::Done);
    }
    let view = bundle.inspect_untrusted();
    let manifest = view
        .claimed_manifest
        .map_err(|error| Failure::about(error, format!("the manifest of `{}` is refused", path.display())))?;
    let signers = view.claimed_signers;
    let read = |object: &ObjectEntry| {
        let mut content = Vec::new();
        bundle.decode_untrusted_object(object, &mut content)?;
        Ok(content)
    };
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "bundle": path.display().to_string(),
            "verified": false,
            "manifest_sha256": view.manifest_sha256,
            "payload_bytes": view.payload_bytes,
            "signers": signers.iter().flatten().map(signer_json).collect::<Vec<_>>(),
            "documents": documents::json(&manifest, &read),
            "manifest": manifest,
        }))?,
        Form::Text => {
            output::line(format!("{}: NOT VERIFIED; it says about itself:", path.display()));
            output::line(summary(&manifest));
            documents::lines(&manifest, &read).into_iter().for_each(output::line);
            match signers {
                Ok(signers) => {
                    for signer in signers {
                        output::line(format!("signer    {}", output::printable(&signer.subject)));
                    }
                }
                Err(error) => output::line(format!("signature {}", output::printable(&error.to_string()))),
            }
            output::line(output::table(
                &["path", "kind", "mode", "size", "sha256"],
                manifest
                    .files
                    .iter()
                    .map(|file| {
                        vec![
                            file.path.to_string(),
                            format!("{:?}", file.kind).to_lowercase(),
                            format!("{:04o}", file.mode.bits()),
                            file.size.to_string(),
                            file.sha256.short(),
                        ]
                    })
                    .collect(),
            ));
        }
    }
    Ok(Exit::Done)
}

fn extract(path: &Path, target: &Path, into: Option<&Path>, context: &Context) -> Result<Exit, Failure> {
    let settings = context.settings(None, [])?.settings;
    let bundle = open_verified(path, &settings, context.now)?;
    if target.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("`{}` exists already", target.display())));
    }
    // Nothing gets its name before every byte of it is checked.
    files::write_directory(target, |disk| unpack(&bundle, disk, target))?;
    let manifest = bundle.manifest();
    if let Some(into) = into {
        documents::extract(manifest, &|object| object_of(&bundle, object), into)?;
    }
    match context.form {
        Form::Json => output::json(
            &serde_json::json!({ "directory": target.display().to_string(), "files": manifest.files.len() }),
        )?,
        Form::Text => output::line(format!("{}: {} files", target.display(), manifest.files.len())),
    }
    Ok(Exit::Done)
}

/// Lays a release out on `disk`, as what will be called `target`.
fn unpack(bundle: &VerifiedBundle<File>, disk: &RealDisk, target: &Path) -> Result<(), Failure> {
    let failed = |what: &Path| {
        let at = target.join(what);
        move |source| Failure::io("write", &at, source)
    };
    let manifest = bundle.manifest();
    let paths =
        manifest.files.iter().map(|file| &file.path).chain(manifest.symlinks.iter().map(|link| &link.path));
    for directory in paths.flat_map(|path| path.ancestors().collect::<Vec<_>>()) {
        match disk.create_dir(directory.as_path(), 0o755) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(directory.as_path())(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    for file in &manifest.files {
        let entry = manifest
            .objects
            .iter()
            .find(|object| object.sha256 == file.sha256)
            .expect("a checked manifest has an object for every file");
        let mut out = disk.create(file.path.as_path(), 0o600).map_err(failed(file.path.as_path()))?;
        bundle
            .copy_object(entry, &mut out, &mut io::sink())
            .map_err(|error| Failure::about(error, format!("failed to unpack `{}`", file.path)))?;
        out.set_mode(file.mode.bits()).map_err(failed(file.path.as_path()))?;
    }
    for link in &manifest.symlinks {
        disk.symlink(&link.target, link.path.as_path()).map_err(failed(link.path.as_path()))?;
    }
    disk.sync_all().map_err(failed(Path::new("")))
}
