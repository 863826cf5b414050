//! `repo log init | key | show | verify | cosign | add`, and what `[trust-policy]` demands of the log.

use std::path::Path;

use cutover_bundle::tlog::{Checkpoint, CheckpointPolicy, KeyKind, NoteError};
use cutover_core::model::{Digest, Manifest};
use cutover_host::fetch::{SourceSettings, open_source};
use cutover_repo::{
    Fetch, FollowedLog, MetadataKey, Publisher, State, StateDirectory, add_cosignatures, audit,
    claimed_log_key,
};

use super::{
    Context,
    fetching::{Metadata, ports},
    place::{is_in_bucket, open},
    repo::{key_at, key_file, metadata_keys, said},
};
use crate::{
    args::{LogSource, RepoKeys, RepoLog},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    settings::{Settings, TrustPolicy},
};

/// How many entries `repo log show` lists.
const SHOWN: usize = 20;

pub(super) fn run(command: RepoLog, context: &Context) -> Result<Exit, Failure> {
    match command {
        RepoLog::Init { dir, name, keys } => init(&dir, &name, &keys, context),
        RepoLog::Key { name, output } => {
            let key =
                key_at(&output, MetadataKey::generate_ed25519)?.verifier_key(&name, KeyKind::Witness)?;
            said(
                context,
                &serde_json::json!({ "key": key, "private_key": output.display().to_string() }),
                || key.to_string(),
            )
        }
        RepoLog::Show(log) => show(&log, context),
        RepoLog::Verify(log) => verify(&log, context),
        RepoLog::Cosign { log, witness_key, name, state, output } => {
            cosign(&log, (&witness_key, &name), &state, output.as_deref(), context)
        }
        RepoLog::Add { dir, checkpoints } => {
            let notes = checkpoints.iter().map(|path| files::read("the checkpoint", path));
            let notes = notes.collect::<Result<Vec<_>, _>>()?;
            let added = add_cosignatures(open(&dir, context)?.as_ref(), &notes)?;
            if added == 0 {
                return Err(Failure::new(Exit::NothingToDo, "the checkpoint has these cosignatures already"));
            }
            said(context, &serde_json::json!({ "added": added }), || format!("{added} cosignatures added"))
        }
    }
}

fn init(dir: &Path, name: &str, named: &RepoKeys, context: &Context) -> Result<Exit, Failure> {
    if let Some(keys) = &named.keys {
        key_at(&keys.join("log.key"), MetadataKey::generate_ed25519)?;
    }
    let (storage, keys) = (open(dir, context)?, metadata_keys(named)?);
    let mut candidates = keys.iter().filter_map(|key| key.verifier_key(name, KeyKind::Log).ok());
    let key = match (candidates.next(), candidates.next()) {
        (Some(key), None) => key,
        (None, _) => {
            return Err(Failure::usage(
                "none of the keys can sign a log: it takes an Ed25519 key, and a name",
            )
            .hint("pass --keys with the directory of the repository's keys: `log.key` is made there"));
        }
        // Those of the metadata may be of Ed25519 as well; then the one that is called so counts.
        (Some(_), Some(_)) => match &named.keys {
            Some(dir) => key_file(&dir.join("log.key"))?.verifier_key(name, KeyKind::Log)?,
            None => return Err(Failure::usage("several keys could sign the log: pass one with --key")),
        },
    };
    let checkpoint = Publisher::open(storage.as_ref(), &keys, context.now)?.start_log(&key)?;
    let json = serde_json::json!({ "log": key, "entries": checkpoint.size, "root": checkpoint.root });
    said(context, &json, || key.to_string())
}

/// A log's files, and its key.
struct Opened {
    source: Box<dyn cutover_host::fetch::Source>,
    policy: CheckpointPolicy,
}

impl Opened {
    fn new(named: &LogSource, context: &Context) -> Result<Self, Failure> {
        let settings = context.settings(None, [])?.settings;
        let source = SourceSettings { urls: vec![named.source.clone()], ..settings.source.clone() };
        let source = SourceSettings { kind: cutover_host::fetch::SourceKind::Repository, ..source };
        let variable = |name: &str| std::env::var(name).ok();
        let source = open_source(&source, &variable, ports(&settings))?;
        let source = source.ok_or_else(|| Failure::usage("there is no repository to look in"))?;
        let policy = &settings.trust_policy;
        let key = match (&named.log, &policy.log) {
            (Some(key), _) => key.clone(),
            (None, Some(key)) => key.clone(),
            (None, None) => {
                let key = claimed_log_key(&Metadata { source: source.as_ref(), tags: None })?;
                output::note(output::printable(&format!(
                    "warning: the repository says itself that its log is {key}"
                )));
                key
            }
        };
        let policy = CheckpointPolicy::new(key, Vec::new(), 0).map_err(|error| not_a_policy(&error))?;
        Ok(Self { source, policy })
    }

    fn files(&self) -> Metadata<'_> {
        Metadata { source: self.source.as_ref(), tags: None }
    }
}

fn not_a_policy(error: &NoteError) -> Failure {
    Failure::usage(format!("the keys of log and witnesses cannot be used: {error}"))
}

fn checkpoint_json(checkpoint: &Checkpoint) -> serde_json::Value {
    serde_json::json!({ "origin": checkpoint.origin, "entries": checkpoint.size, "root": checkpoint.root })
}

fn show(named: &LogSource, context: &Context) -> Result<Exit, Failure> {
    let opened = Opened::new(named, context)?;
    let audit = audit(&opened.files(), &opened.policy)?;
    let entries = audit.entries.iter().enumerate().rev().take(SHOWN);
    match context.form {
        Form::Json => {
            let entries = entries.map(|(index, entry)| match entry {
                None => serde_json::json!({ "index": index }),
                Some(entry) => serde_json::json!({
                    "index": index, "package": entry.package, "version": entry.version,
                    "platform": entry.platform, "manifest_sha256": entry.manifest,
                }),
            });
            output::json(&serde_json::json!({
                "checkpoint": checkpoint_json(&audit.checkpoint),
                "signed_by": audit.signed_by,
                "entries": entries.collect::<Vec<_>>(),
            }))?;
        }
        Form::Text => {
            let Checkpoint { origin, size, root } = &audit.checkpoint;
            output::line(output::printable(&format!(
                "log       {origin}\nentries   {size}\nroot      {root}"
            )));
            for name in &audit.signed_by {
                output::line(output::printable(&format!("signed    {name}")));
            }
            let row = |(index, entry): (usize, &Option<cutover_bundle::tlog::LogEntry>)| match entry {
                None => vec![index.to_string(), "?".to_owned(), String::new(), String::new(), String::new()],
                Some(entry) => vec![
                    index.to_string(),
                    entry.package.to_string(),
                    entry.version.to_string(),
                    entry.platform.to_string(),
                    entry.manifest.short(),
                ],
            };
            let head = ["entry", "package", "version", "platform", "manifest"];
            output::line(output::table(&head, entries.map(row).collect()));
        }
    }
    Ok(Exit::Done)
}

fn verify(named: &LogSource, context: &Context) -> Result<Exit, Failure> {
    let opened = Opened::new(named, context)?;
    let audit = audit(&opened.files(), &opened.policy)?;
    let json = serde_json::json!({
        "verified": true, "checkpoint": checkpoint_json(&audit.checkpoint), "signed_by": audit.signed_by,
    });
    said(context, &json, || {
        let Checkpoint { origin, size, .. } = &audit.checkpoint;
        format!("{origin}: verification passed: {size} entries, signed by {}", audit.signed_by.join(", "))
    })
}

fn cosign(
    named: &LogSource,
    (key, name): (&Path, &str),
    state: &Path,
    output: Option<&Path>,
    context: &Context,
) -> Result<Exit, Failure> {
    let opened = Opened::new(named, context)?;
    let witness = key_file(key)?;
    let seen = StateDirectory::open(state).map_err(|source| Failure::io("open directory", state, source))?;
    let files = opened.files();
    let log = FollowedLog::follow(&files, &seen, &opened.policy)?;
    let cosigned = log.cosigned(&witness, name, context.now)?;
    match output {
        Some(path) => files::write(path, 0o644, Existing::Replace, |out| {
            out.write_all(&cosigned).map_err(|source| Failure::io("write", path, source))
        })?,
        None => {
            let dir = Path::new(&named.source);
            if !dir.is_dir() && !is_in_bucket(dir) {
                return Err(Failure::usage("a repository over http cannot be written to").hint(
                    "pass --output, and have whoever keeps the repository run `cutover repo log add`",
                ));
            }
            add_cosignatures(open(dir, context)?.as_ref(), &[cosigned])?;
        }
    }
    let json = serde_json::json!({ "cosigned_by": name, "checkpoint": checkpoint_json(log.checkpoint()) });
    said(context, &json, || {
        format!("{name} cosigned {} entries of {}", log.checkpoint().size, log.checkpoint().origin)
    })
}

fn policy(settings: &TrustPolicy) -> Result<Option<CheckpointPolicy>, Failure> {
    let Some(log) = &settings.log else {
        return match settings.witnesses.as_slice() {
            [] => Ok(None),
            _ => Err(Failure::usage("`trust-policy.witnesses` needs `trust-policy.log`")),
        };
    };
    let threshold = match settings.witness_threshold {
        0 => settings.witnesses.len(),
        threshold => threshold,
    };
    let policy = CheckpointPolicy::new(log.clone(), settings.witnesses.clone(), threshold);
    policy.map(Some).map_err(|error| not_a_policy(&error))
}

/// Demands that a release of a repository is in the log that the settings name; and that this log is the one that this root
/// saw before, with more entries.
///
/// # Errors
/// Exit code 11: it is not.
pub(super) fn judge(
    manifest: &Manifest,
    sha256: Digest,
    index: Option<u64>,
    settings: &Settings,
    (fetch, state): (&dyn Fetch, &dyn State),
) -> Result<(), Failure> {
    let Some(policy) = policy(&settings.trust_policy)? else { return Ok(()) };
    let refused = |error| {
        let name = format!("{} {}", manifest.package, manifest.version);
        Failure::about(error, format!("refused {name}: `trust-policy.log` demands it to be in the log"))
    };
    let log = FollowedLog::follow(fetch, state, &policy).map_err(refused)?;
    log.check(manifest, sha256, index).map_err(refused)
}

/// Follows the log that the settings name, whichever release is looked at.
///
/// # Errors
/// Exit code 11: it is not the one that was seen before, or too few have signed it.
pub(super) fn follow(settings: &Settings, fetch: &dyn Fetch, state: &dyn State) -> Result<(), Failure> {
    let Some(policy) = policy(&settings.trust_policy)? else { return Ok(()) };
    FollowedLog::follow(fetch, state, &policy)?;
    Ok(())
}

/// A release in a file shows no log.
///
/// # Errors
/// Exit code 13: the settings demand one.
pub(super) fn refuse_files(settings: &Settings, path: &Path) -> Result<(), Failure> {
    if settings.trust_policy.log.is_none() {
        return Ok(());
    }
    let message = format!(
        "refused `{}`: `trust-policy.log` demands a release that is in the log, and a file does not show that",
        path.display()
    );
    Err(Failure::new(Exit::Policy, message).hint("install it from a repository: NAME@VERSION with --source"))
}
