//! `repo init | publish | list | remove | promote | yank | refresh | verify`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use cutover_bundle::{
    Limits,
    signer::{CertificateChain, CommandSigner, Pkcs11Signer, Signer},
};
use cutover_core::model::{Manifest, Name, ObjectEntry, ReleaseRef};
use cutover_repo::{
    Base, MetadataKey, NewDelta, NewRelease, Published, Publisher, RepositorySettings, Rotation,
    SigningError,
    tuf::{PublicKey, RoleKind},
};
use zeroize::Zeroizing;

use super::{
    Context, bundle, delta_release, log, opened,
    place::{is_in_bucket, make, open},
    trust,
};
use crate::{
    args::{Repo, RepoInit, RepoKeys, RepoPublish, RepoRemove, RepoRotateKey, Signing},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
};

pub(super) fn run(command: Repo, context: &Context) -> Result<Exit, Failure> {
    match command {
        Repo::Init(command) => init(&command, context),
        Repo::Publish(command) => publish(&command, context),
        Repo::List { dir } => list(&dir, context),
        Repo::Remove(command) => remove(&command, context),
        Repo::Promote { dir, release, to, platform, keys } => {
            let (storage, keys) = (open(&dir, context)?, metadata_keys(&keys)?);
            let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
            let platforms = publisher.promote(&release.package, &release.version, platform.as_ref(), &to)?;
            if platforms.is_empty() {
                return Err(Failure::new(Exit::NothingToDo, format!("`{to}` has {release} already")));
            }
            let platforms: Vec<&str> = platforms.iter().map(Name::as_str).collect();
            let json = serde_json::json!({
                "package": release.package, "version": release.version, "channel": to, "platforms": platforms,
            });
            said(context, &json, || format!("{release} is in `{to}` now ({})", platforms.join(", ")))
        }
        Repo::Yank { dir, release, reason, undo, platform, keys } => {
            let (storage, keys) = (open(&dir, context)?, metadata_keys(&keys)?);
            let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
            let reason = reason.as_deref().filter(|_| !undo);
            let places = publisher.yank(&release.package, &release.version, platform.as_ref(), reason)?;
            if places == 0 {
                return Err(Failure::new(Exit::NothingToDo, format!("{release} stands so already")));
            }
            let json = serde_json::json!({
                "package": release.package, "version": release.version, "yanked": reason, "places": places,
            });
            said(context, &json, || match reason {
                Some(reason) => format!("{release} is yanked: {reason}"),
                None => format!("{release} is not yanked any more"),
            })
        }
        Repo::Refresh { dir, keys, signing } => {
            let signers = bundle::signers(&signing)?;
            let (storage, keys) = (open(&dir, context)?, metadata_keys(&keys)?);
            let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
            publisher.refresh()?;
            vouch(&publisher, &signers, context)?;
            let expires = publisher.expires();
            let json: BTreeMap<&str, _> = expires.iter().map(|(kind, at)| (kind.name(), at)).collect();
            said(context, &serde_json::json!({ "expires": json }), || {
                let lines: Vec<String> =
                    expires.iter().map(|(kind, at)| format!("{kind:<10} counts until {at}")).collect();
                lines.join("\n")
            })
        }
        Repo::RotateKey(command) => rotate_key(&command, context),
        Repo::Log(command) => log::run(command, context),
        Repo::Verify { dir } => verify(&dir, context),
    }
}

/// Prints a result in the form that was asked for.
pub(super) fn said(
    context: &Context,
    json: &serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<Exit, Failure> {
    match context.form {
        Form::Json => output::json(json)?,
        Form::Text => output::line(output::printable(&text())),
    }
    Ok(Exit::Done)
}

/// Opens the keys that are named.
pub(super) fn metadata_keys(named: &RepoKeys) -> Result<Vec<MetadataKey>, Failure> {
    let mut files = named.key.clone();
    if let Some(dir) = &named.keys {
        files.extend(key_files(dir)?);
    }
    let mut keys = files.iter().map(|path| key_file(path)).collect::<Result<Vec<_>, _>>()?;
    for uri in &named.key_pkcs11 {
        let uri = uri.parse()?;
        let signer = Pkcs11Signer::open(&uri, bundle::pin(&uri)?.as_ref(), None)?;
        keys.push(MetadataKey::from_signer(Box::new(signer))?);
    }
    if let (Some(command), Some(certificate)) = (&named.key_command, &named.key_cert) {
        let chain = chain(certificate)?;
        let (command, certificate, scheme) = (command.clone(), certificate.clone(), chain.scheme().name());
        let ask = move |message: &[u8]| bundle::ask_command(&command, &certificate, scheme, message);
        keys.push(MetadataKey::from_signer(Box::new(CommandSigner::new(chain, ask)))?);
    }
    if keys.is_empty() {
        return Err(Failure::usage("nobody to sign the metadata with")
            .hint("pass --keys with the directory that `cutover repo init` wrote the keys to"));
    }
    Ok(keys)
}

fn chain(certificate: &Path) -> Result<CertificateChain, Failure> {
    let pem = files::read("the certificate", certificate)?;
    CertificateChain::from_pem(&pem)
        .map_err(|error| Failure::about(error, format!("cannot sign with `{}`", certificate.display())))
}

fn key_files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source| Failure::io("list the keys in", dir, source);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "key") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn key_file(path: &Path) -> Result<MetadataKey, Failure> {
    let pem = Zeroizing::new(files::read("the private key", path)?);
    MetadataKey::from_pem(&pem)
        .map_err(|error| Failure::about(error, format!("cannot sign with `{}`", path.display())))
}

/// The key of that name in the directory of keys; made when it is not there.
fn key_named(dir: &Path, name: &str) -> Result<MetadataKey, Failure> {
    key_at(&dir.join(format!("{name}.key")), MetadataKey::generate)
}

/// Makes a key and its private half in PEM.
type Generate = fn() -> Result<(MetadataKey, Zeroizing<String>), SigningError>;

/// The key in a file; made when it is not there.
pub(super) fn key_at(path: &Path, generate: Generate) -> Result<MetadataKey, Failure> {
    if path.exists() {
        return key_file(path);
    }
    let (key, pem) = generate()?;
    files::write(path, 0o600, Existing::Keep, |out| {
        out.write_all(pem.as_bytes()).map_err(|source| Failure::io("write", path, source))
    })?;
    Ok(key)
}

fn init(command: &RepoInit, context: &Context) -> Result<Exit, Failure> {
    let signers = bundle::signers(&command.signing)?;
    if command.root_threshold > command.root_keys {
        return Err(Failure::usage("--root-threshold asks for more keys than --root-keys makes"));
    }
    if !is_in_bucket(&command.dir) {
        let (served, keys) = (files::resolved(&command.dir)?, files::resolved(&command.keys)?);
        if keys.starts_with(&served) || served.starts_with(&keys) {
            return Err(Failure::usage(format!(
                "the keys in `{}` and what is served from `{}` must lie apart",
                keys.display(),
                served.display()
            ))
            .hint("pass --keys a directory that nobody serves"));
        }
    }
    files::make_directory(&command.keys, 0o700)?;
    let root_name = |number: u8| match command.root_keys {
        1 => "root".to_owned(),
        _ => format!("root-{number}"),
    };
    let mut keys = Vec::new();
    for number in 1..=command.root_keys {
        keys.push(key_named(&command.keys, &root_name(number))?);
    }
    let root_publics: Vec<PublicKey> = keys.iter().map(|key| key.public().clone()).collect();
    let mut roles = BTreeMap::from([(RoleKind::Root, (root_publics, u64::from(command.root_threshold)))]);
    for kind in [RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp] {
        let key = key_named(&command.keys, kind.name())?;
        roles.insert(kind, (vec![key.public().clone()], 1));
        keys.push(key);
    }
    let settings = RepositorySettings {
        root_days: command.root_days,
        targets_days: command.targets_days,
        snapshot_days: command.snapshot_days,
        timestamp_days: command.timestamp_days,
        grace_s: command.grace_s,
        deltas: command.deltas,
        ..RepositorySettings::default()
    };
    let storage = make(&command.dir, context)?;
    let publisher = Publisher::create(storage.as_ref(), &roles, settings, &keys, context.now)?;
    let vouched = vouch(&publisher, &signers, context)?;
    let json = serde_json::json!({
        "repository": command.dir.display().to_string(), "keys": command.keys.display().to_string(), "bootstrap": vouched,
        "key_ids": keys.iter().map(MetadataKey::id).collect::<Vec<_>>(),
    });
    said(context, &json, || {
        format!("{}: a repository; its keys are in {}", command.dir.display(), command.keys.display())
    })?;
    if !vouched {
        output::note("new clients need its first root: nobody signed it for this program's anchor");
        output::note(
            "hint: pass --sign-key and --sign-cert, or give clients `metadata/1.root.json` yourself",
        );
    }
    Ok(Exit::Done)
}

/// Signs the present root for new clients, if signers are given. They are opened before anything is changed: what cannot be
/// vouched for in the end should not have begun.
fn vouch(publisher: &Publisher<'_>, signers: &[Box<dyn Signer>], context: &Context) -> Result<bool, Failure> {
    if signers.is_empty() {
        return Ok(false);
    }
    let signers: Vec<&dyn Signer> = signers.iter().map(AsRef::as_ref).collect();
    publisher
        .vouch(|root| cutover_bundle::sign_manifest(root, &signers, context.now).map_err(Failure::from))?;
    Ok(true)
}

fn publish(command: &RepoPublish, context: &Context) -> Result<Exit, Failure> {
    let settings = context.settings(None, [])?.settings;
    let bundles = command
        .bundles
        .iter()
        .map(|path| opened::open_verified(path, &settings, context.now))
        .collect::<Result<Vec<_>, _>>()?;
    let (storage, keys) = (open(&command.dir, context)?, metadata_keys(&command.keys)?);
    let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
    let mut deltas = Vec::new();
    for (path, bundle) in command.bundles.iter().zip(&bundles) {
        let channel = command.channel.as_ref().unwrap_or(&bundle.manifest().channel);
        deltas.push(make_deltas(&publisher, path, channel, &command.signing, context)?);
    }
    let releases: Vec<NewRelease<'_, File>> = bundles
        .iter()
        .zip(&deltas)
        .map(|(bundle, deltas)| NewRelease {
            bundle,
            channel: command.channel.clone(),
            deltas: deltas.iter().map(|(from, file)| NewDelta { from: from.clone(), file }).collect(),
        })
        .collect();
    let published = publisher.publish(&releases)?;
    let names: Vec<String> = bundles.iter().map(|bundle| bundle.release().to_string()).collect();
    if published.releases == 0 && published.bytes == 0 {
        return Err(Failure::new(Exit::NothingToDo, format!("published before: {}", names.join(", "))));
    }
    report_published(&names, &published, context)
}

/// A release that is in the repository.
struct InRepository<'a> {
    publisher: &'a Publisher<'a>,
    base: Base,
}

impl delta_release::Side for InRepository<'_> {
    fn manifest(&self) -> &Manifest {
        &self.base.manifest
    }

    fn release(&self) -> &ReleaseRef {
        &self.base.release
    }

    fn read(&self, object: &ObjectEntry) -> Result<Vec<u8>, Failure> {
        Ok(self.publisher.read_object(&self.base, object)?)
    }
}

/// Makes deltas from the latest releases to that of `path`, as far as they save anything; none without signers.
fn make_deltas(
    publisher: &Publisher<'_>,
    path: &Path,
    channel: &Name,
    signing: &Signing,
    context: &Context,
) -> Result<Vec<(ReleaseRef, File)>, Failure> {
    let signers = bundle::signers(signing)?;
    if signers.is_empty() {
        return Ok(Vec::new());
    }
    let signers: Vec<&dyn Signer> = signers.iter().map(AsRef::as_ref).collect();
    let to = delta_release::open(path)?;
    let mut deltas = Vec::new();
    for base in publisher.bases(delta_release::Side::manifest(&to), channel)? {
        let from = InRepository { publisher, base };
        let beside = delta_release::Documents::Beside;
        let fresh = delta_release::fresh(&from, &to, beside);
        let in_full: u64 = fresh.iter().map(|object| object.stored_size).sum();
        if in_full == 0 {
            continue;
        }
        let mut made = delta_release::make(&from, &to, beside, &signers, context)?;
        // Without patches, or with larger ones, fetching the missing objects is as good.
        if made.manifest.files.is_empty() || made.manifest.payload_bytes() >= in_full {
            continue;
        }
        let failed = |source| Failure::io("write a delta to", &std::env::temp_dir(), source);
        let mut file = BufWriter::new(tempfile::tempfile().map_err(failed)?);
        made.assemble(&to, &mut file)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        deltas.push((from.base.release, file));
    }
    Ok(deltas)
}

fn report_published(names: &[String], published: &Published, context: &Context) -> Result<Exit, Failure> {
    let json = serde_json::json!({
        "published": names,
        "releases": published.releases,
        "objects_new": published.objects_new,
        "objects_shared": published.objects_shared,
        "deltas": published.deltas,
        "bytes": published.bytes,
        "metadata_version": published.version,
    });
    said(context, &json, || {
        format!(
            "published {}: {} new objects, {} shared, {} deltas, {} written",
            names.join(", "),
            published.objects_new,
            published.objects_shared,
            published.deltas,
            output::bytes(published.bytes),
        )
    })
}

fn list(dir: &Path, context: &Context) -> Result<Exit, Failure> {
    let listed = cutover_repo::list(open(dir, context)?.as_ref())?;
    match context.form {
        Form::Json => {
            let releases: Vec<_> = listed
                .iter()
                .map(|one| {
                    serde_json::json!({
                        "package": one.package,
                        "version": one.entry.version,
                        "platform": one.platform,
                        "channel": one.channel,
                        "manifest_sha256": one.entry.manifest.sha256,
                        "priority": one.entry.priority,
                        "published_at": one.entry.published_at,
                        "payload_bytes": one.entry.payload_bytes,
                        "yanked": one.entry.yanked.as_ref().map(|yanked| &yanked.reason),
                        "deltas_from": one.entry.deltas.iter().map(|delta| &delta.from.version).collect::<Vec<_>>(),
                    })
                })
                .collect();
            output::json(&serde_json::json!({ "releases": releases }))?;
        }
        Form::Text => output::line(output::table(
            &["package", "version", "platform", "channel", "published", "size", "deltas", "state"],
            listed
                .iter()
                .map(|one| {
                    let state = match &one.entry.yanked {
                        Some(yanked) => format!("yanked: {}", yanked.reason),
                        None => format!("{:?}", one.entry.priority).to_lowercase(),
                    };
                    vec![
                        one.package.to_string(),
                        one.entry.version.to_string(),
                        one.platform.to_string(),
                        one.channel.to_string(),
                        one.entry.published_at.to_string(),
                        output::bytes(one.entry.payload_bytes),
                        one.entry.deltas.len().to_string(),
                        state,
                    ]
                })
                .collect(),
        )),
    }
    Ok(Exit::Done)
}

fn remove(command: &RepoRemove, context: &Context) -> Result<Exit, Failure> {
    let (storage, keys) = (open(&command.dir, context)?, metadata_keys(&command.keys)?);
    let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
    let release = &command.release;
    let (platform, channel) = (command.platform.as_ref(), command.channel.as_ref());
    let removed = publisher.remove(&release.package, &release.version, platform, channel)?;
    let json = serde_json::json!({
        "package": release.package, "version": release.version,
        "places": removed.places, "files_deleted": removed.files_deleted, "pending": removed.is_pending,
    });
    said(context, &json, || {
        let later = if removed.is_pending {
            "; the rest goes after the grace, with the next `cutover repo refresh`"
        } else {
            ""
        };
        format!("removed {release}: {} files deleted{later}", removed.files_deleted)
    })
}

fn rotate_key(command: &RepoRotateKey, context: &Context) -> Result<Exit, Failure> {
    let signers = bundle::signers(&command.signing)?;
    let storage = open(&command.dir, context)?;
    let mut keys = metadata_keys(&command.keys)?;
    let root = Publisher::open(storage.as_ref(), &keys, context.now)?.root().clone();
    let present = &root.role(command.role).keyids;
    let retire = match (command.retire.as_slice(), present.as_slice()) {
        _ if command.keep_all => Vec::new(),
        ([], [only]) => vec![only.clone()],
        ([], _) => {
            return Err(Failure::usage(format!("`{}` has {} keys", command.role, present.len()))
                .hint(format!("say which one to retire with --retire: {}", present.join(", "))));
        }
        (prefixes, _) => prefixes.iter().map(|prefix| key_id(present, prefix)).collect::<Result<_, _>>()?,
    };
    let made = match (&command.new_key, command.no_new_key || command.new_cert.is_some()) {
        (_, true) => None,
        (Some(path), false) => Some((path.clone(), key_file(path)?)),
        (None, false) => {
            let Some(dir) = &command.keys.keys else {
                return Err(Failure::usage(
                    "--keys says where the new key is made; or give one with --new-key",
                ));
            };
            let name = format!("{}-{}", command.role, root.version + 1);
            Some((dir.join(format!("{name}.key")), key_named(dir, &name)?))
        }
    };
    let mut add: Vec<PublicKey> = made.iter().map(|(_, key)| key.public().clone()).collect();
    if let Some(path) = &command.new_cert {
        add.push(cutover_repo::public_key_of(&chain(path)?)?);
    }
    let file = made.as_ref().map(|(path, _)| path.clone());
    keys.extend(made.map(|(_, key)| key));
    let mut publisher = Publisher::open(storage.as_ref(), &keys, context.now)?;
    let rotation = Rotation { role: command.role, add, retire, threshold: command.threshold };
    publisher.rotate(&rotation)?;
    vouch(&publisher, &signers, context)?;
    let role = publisher.root().role(command.role);
    let json = serde_json::json!({
        "role": command.role, "root_version": publisher.root().version, "new_key": file.as_ref().map(|file| file.display().to_string()),
        "retired": rotation.retire, "key_ids": role.keyids, "threshold": role.threshold,
    });
    said(context, &json, || {
        let new = file.map(|file| format!("; the new key is {}", file.display())).unwrap_or_default();
        format!(
            "root {}: `{}` has {} keys, {} must sign{new}",
            publisher.root().version,
            command.role,
            role.keyids.len(),
            role.threshold
        )
    })
}

/// The one key that starts so.
fn key_id(present: &[String], prefix: &str) -> Result<String, Failure> {
    let found: Vec<&String> = present.iter().filter(|id| id.starts_with(prefix)).collect();
    match found.as_slice() {
        [id] => Ok((*id).clone()),
        _ => {
            Err(Failure::usage(format!("{} keys start with `{prefix}`: {}", found.len(), present.join(", "))))
        }
    }
}

fn verify(dir: &Path, context: &Context) -> Result<Exit, Failure> {
    let anchor = trust::anchor()?;
    let lists = trust::revocation_lists(&context.settings(None, [])?.settings.trust_policy)?;
    let limits = Limits::default();
    let check = |manifest: &[u8], signature: &[u8]| {
        cutover_bundle::verify_detached(manifest, signature.to_vec(), &anchor, &lists, context.now, &limits)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let report = cutover_repo::verify(open(dir, context)?.as_ref(), &check, context.now)?;
    for file in &report.unreferenced {
        output::note(format!("warning: nothing names `{file}`"));
    }
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "releases": report.releases,
            "objects": report.objects,
            "deltas": report.deltas,
            "bytes": report.bytes,
            "problems": report.problems,
            "unreferenced": report.unreferenced,
            "pending": report.pending,
        }))?,
        Form::Text => {
            for problem in &report.problems {
                output::line(output::printable(problem));
            }
            output::line(format!(
                "{} releases, {} objects, {} deltas, {} read; {} problems",
                report.releases,
                report.objects,
                report.deltas,
                output::bytes(report.bytes),
                report.problems.len(),
            ));
        }
    }
    if report.problems.is_empty() {
        return Ok(Exit::Done);
    }
    output::note("error: the repository is damaged; clients will refuse the releases named above");
    output::note("hint: publish the same bundles again: what is missing is written again");
    Ok(Exit::Damaged)
}
