//! The commands that lead to a release: `plan` and `apply`.

use std::{path::Path, sync::Arc};

use cutover_core::{
    execute::Outcome,
    model::{Manifest, ReleaseRef},
    plan::{Layout, LocalChanges, Plan as PlanDocument, PlanKind, check_plan, plan_update},
};
use cutover_host::{
    node::{NodeError, Observed, Report},
    payload::Payload,
    preflight::PreflightReport,
};

use super::{
    Context,
    describe::describe,
    fetching::{offers_bundles, reference, with_hint},
    log, offers,
    opened::{FromFile, open_update},
    outcome::{DeltaSaved, finish},
    sets,
    site::{Missing, Site, must_have_layout},
    source::{self, Fetched},
};
use crate::{
    args::{Apply, AtRoot, FromRepository, Plan, UpdateFlags},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    settings::{PruneWhen, Settings},
};

type Flag = (&'static str, String, &'static str);

fn flags_of(update: &UpdateFlags) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    flags.extend(update.layout.map(|layout| ("install.layout", layout.name().to_owned(), "--layout")));
    flags.extend(update.jobs.map(|jobs| ("install.jobs", jobs.to_string(), "--jobs")));
    flags.extend(update.nice.map(|nice| ("install.nice", nice.to_string(), "--nice")));
    if update.replace_changed {
        flags.push(("install.local_changes", "replace".to_owned(), "--replace-changed"));
    }
    if update.keep_on_probe_failure {
        flags.push(("probes.on_failure", "keep".to_owned(), "--keep-on-probe-failure"));
    }
    flags
}

/// What an update comes from; this program's anchor vouches for it.
enum Update {
    /// A file on this machine.
    File(FromFile),
    /// A release of a repository, whose objects are fetched.
    Fetched(Box<Fetched>),
}

impl Update {
    /// As the engine wants it.
    fn payload(&self) -> &dyn Payload {
        match self {
            Self::File(FromFile::Full(bundle)) => bundle,
            Self::File(FromFile::Delta(delta)) => delta,
            Self::Fetched(fetched) => &fetched.payload,
        }
    }

    /// The release that comes out.
    fn release(&self) -> ReleaseRef {
        self.payload().release()
    }

    /// Its manifest.
    fn manifest(&self) -> &Manifest {
        self.payload().manifest()
    }

    /// Reads and checks every byte of the payload.
    ///
    /// # Errors
    /// The first that is not as declared, with `message`.
    fn check(&self, message: &str) -> Result<(), Failure> {
        match self {
            Self::File(FromFile::Full(bundle)) => {
                bundle.check_objects().map_err(|error| Failure::about(error, message))
            }
            Self::File(FromFile::Delta(delta)) => {
                delta.check_payload().map_err(|error| Failure::about(error, message))
            }
            // Every file is checked as it is fetched.
            Self::Fetched(_) => Ok(()),
        }
    }

    /// A delta needs the release it leads from, or a full bundle.
    ///
    /// # Errors
    /// Another release is installed, or none.
    fn check_base(&self, installed: Option<&ReleaseRef>) -> Result<(), Failure> {
        let Self::File(FromFile::Delta(payload)) = self else { return Ok(()) };
        let from = &payload.delta().delta().from;
        if installed == Some(from) || payload.has_full() {
            return Ok(());
        }
        let there = installed.map_or_else(|| "nothing is".to_owned(), |there| format!("{there} is"));
        Err(Failure::new(Exit::Policy, format!("the delta leads from {from}, and {there} installed here"))
            .hint("use the full bundle, or pass it with --full"))
    }
}

/// What is to be installed, as it was named.
struct Given<'a> {
    path: &'a Path,
    full: Option<&'a Path>,
    from: &'a FromRepository,
}

impl Given<'_> {
    fn open(&self, root: &Path, settings: &Settings, context: &Context) -> Result<Update, Failure> {
        let wanted = reference(self.path, self.from, settings)?;
        if wanted.is_none() || offers_bundles(self.from, settings) {
            log::refuse_files(settings, self.path)?;
        }
        match wanted {
            Some(_) if self.full.is_some() => Err(Failure::usage("--full is for delta bundles")),
            Some(wanted) if offers_bundles(self.from, settings) => {
                offers::open(&wanted, root, settings, context).map(Update::File)
            }
            Some(wanted) => source::open(wanted, self.from, root, settings, context).map(Update::Fetched),
            None if *self.from != FromRepository::default() => Err(Failure::usage(format!(
                "`{}` is a file; --source, --channel and --trusted-root are for releases of a repository",
                self.path.display()
            ))),
            None => open_update(self.path, self.full, settings, context.now)
                .map(Update::File)
                .map_err(|failure| with_hint(failure, self.path)),
        }
    }

    /// What has to change together, if a release of a repository is meant and takes that.
    fn open_set(
        &self,
        root: &Path,
        settings: &Settings,
        update: &UpdateFlags,
        is_planned: bool,
        context: &Context,
    ) -> Result<Option<sets::Set>, Failure> {
        let Some(wanted) = reference(self.path, self.from, settings)? else { return Ok(None) };
        let set = sets::open(&wanted, self.from, root, settings, context)?;
        let refused = |what: &str| {
            Err(Failure::usage(format!("{what}: this changes several packages, or one in several steps")))
        };
        match &set {
            Some(_) if is_planned => refused("a plan in a file is for one package"),
            Some(_) if update.keep_on_probe_failure => refused("--keep-on-probe-failure is for one package"),
            Some(_) | None => Ok(set),
        }
    }
}

/// A verified bundle, and the plan to install it here.
struct Planned {
    bundle: Update,
    plan: PlanDocument,
}

fn plan_bundle(
    site: &Site,
    bundle: Update,
    observed: &Observed,
    is_read: bool,
    context: &Context,
) -> Result<Planned, Failure> {
    let release = bundle.release();
    bundle.check_base(observed.observation.installed.as_ref().map(|installed| &installed.release))?;
    let mut policy = site.policy(context.now)?;
    if is_read {
        // The plan says what becomes of changed files, whoever carries it out.
        policy.local_changes = LocalChanges::Replace;
    }
    let plan = plan_update(&observed.observation, &release, bundle.manifest(), &policy)?;
    check_plan(&plan, &observed.observation, Some((&release, bundle.manifest())), &observed.points)
        .map_err(NodeError::from)?;
    Ok(Planned { bundle, plan })
}

/// Looks and plans without a lock; a root that is not there yet is planned for as an empty directory. A plan that was read is
/// looked at instead of the one made here.
fn plan_only(
    given: &Given<'_>,
    read: Option<PlanDocument>,
    at: &AtRoot,
    update: &UpdateFlags,
    context: &Context,
) -> Result<(Planned, PreflightReport), Failure> {
    let settings = context.settings(Some(&at.root), flags_of(update))?.settings;
    let bundle = given.open(&at.root, &settings, context)?;
    plan_opened(bundle, read, &at.root, settings, update.layout, context)
}

/// Refuses a plan that was read for what the engine would refuse it for.
fn must_fit(planned: &Planned, observed: &Observed) -> Result<(), Failure> {
    let Planned { bundle, plan } = planned;
    let release = bundle.release();
    let wanted = match plan.kind {
        PlanKind::Update if plan.to.as_ref() != Some(&release) => return Err(NodeError::Payload.into()),
        PlanKind::Update => Some((&release, bundle.manifest())),
        PlanKind::Rollback => None,
    };
    if plan.based_on != observed.observation.digest() {
        return Err(NodeError::Changed.into());
    }
    Ok(check_plan(plan, &observed.observation, wanted, &observed.points).map_err(NodeError::from)?)
}

fn plan_opened(
    bundle: Update,
    read: Option<PlanDocument>,
    root: &Path,
    settings: Settings,
    layout: Option<Layout>,
    context: &Context,
) -> Result<(Planned, PreflightReport), Failure> {
    let site = Site::open_to_update(root, settings, Missing::Imagine, "plan")?;
    must_have_layout(&site, layout)?;
    let status = site.node.status()?;
    if let Some(set) = status.set {
        return Err(NodeError::InSet(set).into());
    }
    if let Some(in_flight) = status.in_flight {
        return Err(NodeError::Unfinished(in_flight.number).into());
    }
    let observed = site.node.observe(Some(bundle.manifest()))?;
    let is_read = read.is_some();
    let mut planned = plan_bundle(&site, bundle, &observed, is_read, context)?;
    planned.plan = read.unwrap_or(planned.plan);
    let report = site.preflight(&planned.plan, Some((planned.bundle.manifest(), site.packages())))?;
    if is_read {
        must_fit(&planned, &observed)?;
    }
    Ok((planned, report))
}

pub(super) fn plan(command: &Plan, context: &Context) -> Result<Exit, Failure> {
    let given = Given { path: &command.bundle, full: command.full.as_deref(), from: &command.from };
    let settings = context.settings(Some(&command.at.root), flags_of(&command.update))?.settings;
    let in_file = command.output.is_some();
    if let Some(set) = given.open_set(&command.at.root, &settings, &command.update, in_file, context)? {
        return sets::plan(&set, false, context);
    }
    let (planned, preflight) = plan_only(&given, None, &command.at, &command.update, context)?;
    if let Some(path) = &command.output {
        let text = serde_json::to_vec_pretty(&planned.plan).expect("plans have string keys");
        files::write(path, 0o644, Existing::Replace, |out| {
            out.write_all(&text).map_err(|source| Failure::io("write", path, source))
        })?;
    }
    match context.form {
        Form::Json => output::json(&serde_json::json!({ "plan": planned.plan, "preflight": preflight }))?,
        Form::Text => output::line(describe(&planned.plan)),
    }
    Ok(Exit::Done)
}

pub(super) fn apply(command: &Apply, context: &Context) -> Result<Exit, Failure> {
    let given = Given { path: &command.bundle, full: command.full.as_deref(), from: &command.from };
    let (root, in_file) = (&command.at.root, command.plan.is_some());
    let settings = context.settings(Some(root), flags_of(&command.update))?.settings;
    if !command.dry_run && !settings.package.sites.is_empty() {
        sets::recover_first(root, &settings, context)?;
    }
    if let Some(set) = given.open_set(root, &settings, &command.update, in_file, context)? {
        return if command.dry_run {
            sets::plan(&set, true, context)
        } else {
            sets::apply(&set, root, command.stop_at.as_ref(), context)
        };
    }
    if command.dry_run {
        let read = command.plan.as_deref().map(read_plan).transpose()?;
        let (planned, preflight) = plan_only(&given, read, &command.at, &command.update, context)?;
        planned.bundle.check(&format!("refused `{}`", command.bundle.display()))?;
        match context.form {
            Form::Json => output::json(&serde_json::json!({
                "dry_run": true,
                "verification": "passed",
                "plan": planned.plan,
                "preflight": preflight,
            }))?,
            Form::Text => {
                output::line("verification passed; nothing was changed");
                output::line(describe(&planned.plan));
            }
        }
        return Ok(Exit::Done);
    }
    loop {
        let applied = apply_once(&given, command, context)?;
        if !applied.is_on_the_way || applied.report.outcome != Outcome::Confirmed {
            return finish(&applied.report, applied.delta.as_ref(), context);
        }
        output::note(output::printable(&format!("{}; going on", applied.report.message)));
    }
}

/// An update that ran.
struct Applied {
    report: Report,
    delta: Option<DeltaSaved>,
    /// Whether another one has to follow to reach what was asked for.
    is_on_the_way: bool,
}

fn apply_once(given: &Given<'_>, command: &Apply, context: &Context) -> Result<Applied, Failure> {
    let settings = context.settings(Some(&command.at.root), flags_of(&command.update))?.settings;
    let mut bundle = given.open(&command.at.root, &settings, context)?;
    let given_plan = command.plan.as_deref().map(read_plan).transpose()?;
    if !command.at.root.join(".cutover").is_dir() {
        // A refusal must leave nothing behind, and taking the lock makes the root: so it is all checked once before.
        let read = given_plan.clone();
        bundle =
            plan_opened(bundle, read, &command.at.root, settings.clone(), command.update.layout, context)?
                .0
                .bundle;
    }
    let name = format!("apply {}", bundle.release());
    let site = Site::open_to_update(&command.at.root, settings, Missing::Make, &name)?;
    must_have_layout(&site, command.update.layout)?;
    let lock = site.lock_and_recover(context)?;
    let observed = site.node.observe(Some(bundle.manifest()))?;
    let planned = plan_bundle(&site, bundle, &observed, given_plan.is_some(), context)?;
    let plan = match given_plan {
        // Exactly the plan that was read; the engine refuses it when the root has changed since.
        Some(given) => given,
        None => planned.plan,
    };
    let plan = Arc::new(plan);
    site.preflight(&plan, Some((planned.bundle.manifest(), site.packages())))?;
    let payload = Some(planned.bundle.payload());
    let installed = observed.observation.installed.as_ref().map(|installed| installed.release.clone());
    let execute = || site.execute(observed, &lock, &plan, payload, context, command.stop_at.as_ref());
    let (report, not_fetched) = match &planned.bundle {
        Update::Fetched(fetched) => {
            let downloads = source::downloads(&site.root)?;
            fetched.while_fetching(&site, &plan, installed.as_ref(), downloads, context, execute)?
        }
        Update::File(_) => (execute(), None),
    };
    let report = report?;
    drop(plan);
    // What the payload holds is only seen while it is laid down; then everything was undone, and this is the reason.
    if let Outcome::Undone { .. } = report.outcome {
        let message = format!("refused `{}`; nothing was changed", command.bundle.display());
        if let Some(error) = not_fetched {
            return Err(Failure::about(error, message));
        }
        planned.bundle.check(&message)?;
    }
    if let (Update::Fetched(fetched), Outcome::Confirmed) = (&planned.bundle, &report.outcome) {
        fetched.finish();
    }
    if report.outcome == Outcome::Confirmed && site.settings.install.prune == PruneWhen::AfterUpdate {
        prune_after(&site, &lock);
    }
    let delta = delta_saved(&planned.bundle, &command.bundle);
    let is_on_the_way = matches!(&planned.bundle, Update::Fetched(fetched) if fetched.is_on_the_way);
    Ok(Applied { report, delta, is_on_the_way })
}

fn delta_saved(update: &Update, path: &Path) -> Option<DeltaSaved> {
    let Update::File(FromFile::Delta(payload)) = update else { return None };
    let downloaded_bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let (full_bytes, raw_bytes) = (update.manifest().payload_bytes(), update.manifest().total_bytes());
    let counts = payload.counts();
    Some(DeltaSaved {
        downloaded_bytes,
        full_bytes,
        raw_bytes,
        saved_bytes: full_bytes.saturating_sub(downloaded_bytes),
        saved_raw_bytes: raw_bytes.saturating_sub(downloaded_bytes),
        patched: counts.patched,
        from_full: counts.from_full,
        patches_failed: counts.patches_failed,
    })
}

/// Retention after an update: the update stands whatever comes of it. It waits for the next one while a process may need
/// a tree that would go.
pub(super) fn prune_after(site: &Site, lock: &cutover_host::node::NodeLock) {
    let draining = site.service.status().map_or(0, |status| status.draining);
    if !site.settings.retention.keeps_trees_of(draining as usize) {
        let message = format!(
            "{draining} processes of earlier releases still finish their connections: old restore points stay until the next update, \
             or `cutover prune`"
        );
        output::note(output::naming_root(&message, &site.root));
        return;
    }
    if let Err(error) = site.node.prune_after_update(lock, &site.settings.retention) {
        output::note(format!("warning: old restore points were not pruned: {error}"));
        output::note(output::naming_root("hint: `cutover prune` tries again", &site.root));
    }
}

fn read_plan(path: &Path) -> Result<PlanDocument, Failure> {
    let text = files::read("the plan", path)?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::usage(format!("`{}` is no plan", path.display())).because(error))
}
