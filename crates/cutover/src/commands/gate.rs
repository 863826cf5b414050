//! `gate`: the receiver, a decision by hand, tokens.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use cutover_core::{
    admission::{CommitHash, HostId, Refusal, decide},
    model::Digest,
};
use cutover_server::{
    gate::ReleaseTrust,
    receiver::{Ports, Receiver},
    settings::ReleasesTrust,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, place, trust};
use crate::{
    args::{Gate, GateServe, GateSource},
    clock,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
    settings::{Resolved, Settings},
};

/// How often the settings files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) fn run(command: Gate, context: &Context) -> Result<Exit, Failure> {
    match command {
        Gate::Serve(command) => serve(&command, context),
        Gate::Check { commit, source } => check(&commit, &source, context),
        Gate::Token { host } => token(&host, context),
    }
}

type Flags = Vec<(&'static str, String, &'static str)>;

fn source_flags(source: &GateSource) -> Flags {
    let repository =
        source.repository.as_ref().map(|path| ("gate.git.repository", quoted(path), "--repository"));
    let window = source.window.map(|window| ("gate.git.window", window.to_string(), "--window"));
    repository.into_iter().chain(window).collect()
}

fn serve_flags(command: &GateServe) -> Flags {
    let mut flags = source_flags(&command.source);
    flags.extend(command.root.as_ref().map(|root| ("gate.root", quoted(root), "--root")));
    flags.extend(command.listen.as_ref().map(|place| ("gate.listen", format!("[\"{place}\"]"), "--listen")));
    flags
}

fn quoted(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn serve(command: &GateServe, context: &Context) -> Result<Exit, Failure> {
    let flags = serve_flags(command);
    let Resolved { settings, files, places, .. } = context.settings(None, flags.clone())?;
    let bucket =
        settings.gate.storage.url.as_deref().map(|place| place::keeping(place, &settings)).transpose()?;
    let state = settings.gate.root.join("trusted");
    let trust = release_trust(&settings, state.clone())?;
    let ports = Ports { clock: clock::precise, bucket, trust };
    let failed = |source| Failure::new(Exit::Failed, "failed to start the receiver").because(source);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
        let mut watched = Watched::new(files, places, &settings, state);
        let receiver = Receiver::start(settings.gate, ports).await?;
        announce(&receiver, context)?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => watched.reload(&receiver, context, &flags),
                _ = look.tick() => if watched.changed() { watched.reload(&receiver, context, &flags) },
            }
        }
        // Nobody may be listening.
        let _ = cutover_host::service::notify("STOPPING=1");
        tracing::info!("stopping: uploads under way are finished");
        receiver.stop().await;
        Ok(Exit::Done)
    })
}

/// Says where the receiver listens: on stdout for scripts, and to systemd.
fn announce(receiver: &Receiver, context: &Context) -> Result<(), Failure> {
    let addresses: Vec<String> =
        receiver.addresses().iter().map(|address| format!("tcp:{address}")).collect();
    match context.form {
        Form::Json => output::json(&serde_json::json!({ "listening": addresses }))?,
        Form::Text => output::line(format!("listening on {}", addresses.join(", "))),
    }
    // Without systemd there is nobody to tell.
    let _ = cutover_host::service::notify_ready();
    Ok(())
}

/// The settings files and the revocation lists they name, and how they were when they were read last.
struct Watched {
    files: Vec<(PathBuf, Seen)>,
    /// Where more settings files may come to be.
    places: Vec<(PathBuf, Seen)>,
    /// Where the metadata of releases is kept that was believed last.
    state: PathBuf,
}

type Seen = Option<(u64, u64, i64, i64)>;

impl Watched {
    fn new(files: Vec<PathBuf>, places: Vec<PathBuf>, settings: &Settings, state: PathBuf) -> Self {
        let seen = |path: PathBuf| (path.clone(), look_at(&path));
        let files = files.into_iter().chain(settings.trust_policy.crl.iter().cloned()).map(seen).collect();
        Self { files, places: places.into_iter().map(seen).collect(), state }
    }

    fn changed(&self) -> bool {
        self.files.iter().chain(&self.places).any(|(path, seen)| look_at(path) != *seen)
    }

    /// Reads the settings and the revocation lists again. What cannot be used changes nothing.
    fn reload(&mut self, receiver: &Receiver, context: &Context, flags: &Flags) {
        for (path, seen) in self.files.iter_mut().chain(&mut self.places) {
            *seen = look_at(path);
        }
        let read = || {
            let Resolved { settings, files, places, .. } = context.settings(None, flags.clone())?;
            // Without one of its files the rest may mean something else: a receiver without tokens takes from everybody.
            if let Some((gone, _)) = self.files.iter().find(|(_, seen)| seen.is_none()) {
                return Err(Failure::usage(format!("`{}` is gone", gone.display())));
            }
            let trust = release_trust(&settings, self.state.clone())?;
            let watched = Self::new(files, places, &settings, self.state.clone());
            receiver.set(settings.gate, trust.as_ref())?;
            Ok(watched)
        };
        match read() {
            Ok(watched) => {
                *self = watched;
                tracing::info!("the settings were read again");
            }
            Err(failure) => {
                let causes = failure.causes().join(": ");
                tracing::error!(causes, "the new settings cannot be used, the old ones stay: {failure}");
            }
        }
    }
}

fn look_at(path: &Path) -> Seen {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// What releases are verified by; nothing in a program without a trust anchor, which needs none unless the settings say so.
fn release_trust(settings: &Settings, state: PathBuf) -> Result<Option<ReleaseTrust>, Failure> {
    let anchor = match settings.gate.releases.trust {
        ReleasesTrust::Anchor => trust::anchor()?,
        // The settings may come to say otherwise while the receiver runs.
        ReleasesTrust::Directory => match trust::own_anchor()? {
            Some(anchor) => anchor,
            None => return Ok(None),
        },
    };
    let lists = trust::revocation_lists(&settings.trust_policy)?;
    Ok(Some(ReleaseTrust { anchor, lists, state, clock: clock::precise }))
}

fn check(commit: &str, source: &GateSource, context: &Context) -> Result<Exit, Failure> {
    let settings = context.settings(None, source_flags(source))?.settings;
    let gate = &settings.gate;
    let commit: CommitHash = commit.parse().map_err(|error| {
        Failure::usage(format!("`{commit}`: {error}")).hint("`git rev-parse COMMIT` prints it")
    })?;
    // What is believed is not kept: this may be somebody else than the receiver.
    let aside = tempfile::tempdir()
        .map_err(|source| Failure::io("make a directory in", &std::env::temp_dir(), source))?;
    let rules = gate.rules_trusting(release_trust(&settings, aside.path().join("trusted"))?.as_ref())?;
    let known = match &rules.source {
        Some(source) => Some(std::sync::Arc::new(source.read()?)),
        None => None,
    };
    let decision = decide(rules.switch, known.as_ref(), Ok(commit.clone()));
    let head = known.as_ref().map(|known| known.head().as_str());
    let refused = decision.as_ref().err().map(|refusal| match refusal {
        Refusal::OutOfDate { .. } => {
            let newest = head.unwrap_or("unknown");
            let message = format!("{commit} is not accepted: the newest commit is {newest}");
            Failure::new(Exit::Policy, message).hint(gate.remediation.trim().to_owned())
        }
        refusal => Failure::new(Exit::Policy, refusal.to_string()),
    });
    match context.form {
        // There is only ever one document, so this one says of a refusal what a failure's does.
        Form::Json => output::json(&serde_json::json!({
            "commit": commit.as_str(),
            "accepted": refused.is_none(),
            "head_commit": head,
            "known_commits": known.as_ref().map(|known| known.len()),
            "error": refused.as_ref().map(|failure| failure.to_json()["error"].take()),
        }))?,
        Form::Text if refused.is_none() => output::line(format!("{commit} is accepted")),
        Form::Text => {}
    }
    if let Some(failure) = &refused {
        output::failure(failure, Form::Text);
    }
    Ok(if refused.is_none() { Exit::Done } else { Exit::Policy })
}

fn token(host: &str, context: &Context) -> Result<Exit, Failure> {
    if host != "*" {
        host.parse::<HostId>().map_err(|error| Failure::usage(error.to_string()))?;
    }
    let secret: [u8; 32] = rand::random();
    let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Digest::of(token.as_bytes());
    match context.form {
        Form::Json => {
            output::json(&serde_json::json!({ "host": host, "token": token, "sha256": digest.to_string() }))?
        }
        Form::Text => {
            output::line(&token);
            output::note(format!(
                "for the host `{host}`; the receiver's settings get only its hash:\n\n[gate.tokens]\n\"{host}\" = \"{digest}\""
            ));
        }
    }
    Ok(Exit::Done)
}
