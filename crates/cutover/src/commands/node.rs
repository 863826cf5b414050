//! The commands that work on what a root holds: `status history verify rollback restore-points recover prune`.

use cutover_core::{
    execute::Outcome,
    model::RestorePointId,
    plan::{KeptTree, Layout, Plan as PlanDocument, Refusal, RollbackTarget, check_plan, plan_rollback},
};
use cutover_host::{
    catalog::HistoryRow,
    node::{Drift, Edited, Observed},
    service::ServiceState,
};

use super::{
    Context,
    bundle::{self, Update},
    describe::describe,
    log, offers,
    outcome::{finish, with_exit},
    site::{Missing, Site},
};
use crate::{
    args::{AtRoot, History, Prune, Recover, Rollback, Verify},
    exit::Exit,
    failure::Failure,
    output::{self, Form},
    settings::Settings,
};

type Flag = (&'static str, String, &'static str);

fn flags_of(update: &UpdateFlags) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    if let Some(layout) = update.layout {
        let name = match layout {
            Layout::Versioned => "versioned",
            Layout::Exchange => "exchange",
            Layout::InPlace => "in-place",
        };
        flags.push(("install.layout", name.to_owned(), "--layout"));
    }
    if update.replace_changed {
        flags.push(("install.local_changes", "replace".to_owned(), "--replace-changed"));
    }
    if update.keep_on_probe_failure {
        flags.push(("probes.on_failure", "keep".to_owned(), "--keep-on-probe-failure"));
    }
    flags
}

/// What is to be installed, as it was named.
struct Given<'a> {
    path: &'a Path,
    full: Option<&'a Path>,
    from: &'a FromRepository,
}

impl Given<'_> {
    fn open(&self, root: &Path, settings: &Settings, context: &Context) -> Result<Update, Failure> {
        let wanted = source::reference(self.path, self.from, settings);
        if wanted.is_none() || source::offers_bundles(self.from, settings) {
            log::refuse_files(settings, self.path)?;
        }
        match wanted {
            Some(_) if self.full.is_some() => Err(Failure::usage("--full is for delta bundles")),
            Some(wanted) if source::offers_bundles(self.from, settings) => {
                offers::open(&wanted, root, settings, context)
            }
            Some(wanted) => source::open(wanted, self.from, root, settings, context).map(Update::Fetched),
            None => bundle::open_update(self.path, self.full, settings, context.now),
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
    context: &Context,
) -> Result<Planned, Failure> {
    let release = bundle.release();
    bundle.check_base(observed.observation.installed.as_ref().map(|installed| &installed.release))?;
    let policy = site.policy(context.now)?;
    let plan = plan_update(&observed.observation, &release, bundle.manifest(), &policy)?;
    check_plan(&plan, &observed.observation, Some((&release, bundle.manifest())), &observed.points)
        .map_err(cutover_host::node::NodeError::from)?;
    Ok(Planned { bundle, plan })
}

/// Looks and plans without a lock; a root that is not there yet is planned for as an empty directory.
fn plan_only(
    given: &Given<'_>,
    at: &AtRoot,
    update: &UpdateFlags,
    context: &Context,
) -> Result<(Planned, PreflightReport), Failure> {
    let settings = context.settings(Some(&at.root), flags_of(update))?.settings;
    let bundle = given.open(&at.root, &settings, context)?;
    plan_opened(bundle, &at.root, settings, context)
}

fn plan_opened(
    bundle: Update,
    root: &Path,
    settings: Settings,
    context: &Context,
) -> Result<(Planned, PreflightReport), Failure> {
    let site = Site::open(root, settings, Missing::Imagine, "plan")?;
    if let Some(in_flight) = site.node.status()?.in_flight {
        return Err(cutover_host::node::NodeError::Unfinished(in_flight.number).into());
    }
    let observed = site.node.observe(Some(bundle.manifest()))?;
    let planned = plan_bundle(&site, bundle, &observed, context)?;
    let report = site.preflight(&planned.plan, Some(planned.bundle.manifest()))?;
    Ok((planned, report))
}

pub(super) fn plan(command: &Plan, context: &Context) -> Result<Exit, Failure> {
    let given = Given { path: &command.bundle, full: command.full.as_deref(), from: &command.from };
    let (planned, preflight) = plan_only(&given, &command.at, &command.update, context)?;
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
    if command.dry_run {
        let (planned, preflight) = plan_only(&given, &command.at, &command.update, context)?;
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
        bundle = plan_opened(bundle, &command.at.root, settings.clone(), context)?.0.bundle;
    }
    let name = format!("apply {}", bundle.release());
    let site = Site::open(&command.at.root, settings, Missing::Make, &name)?;
    let lock = site.lock_and_recover(context)?;
    let observed = site.node.observe(Some(bundle.manifest()))?;
    let planned = plan_bundle(&site, bundle, &observed, context)?;
    let plan = match given_plan {
        // Exactly the plan that was read; the engine refuses it when the root has changed since.
        Some(given) => given,
        None => planned.plan,
    };
    site.preflight(&plan, Some(planned.bundle.manifest()))?;
    let payload = Some(planned.bundle.payload());
    let installed = observed.observation.installed.as_ref().map(|installed| installed.release.clone());
    let execute = || site.execute(observed, &lock, &plan, payload, context, command.stop_at.as_ref());
    let (report, not_fetched) = match &planned.bundle {
        Update::Fetched(fetched) => {
            fetched.while_fetching(&site, &plan, installed.as_ref(), context, execute)?
        }
        Update::Full(_) | Update::Delta(_) => (execute(), None),
    };
    let report = report?;
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

/// What an update by delta spared the network.
#[derive(serde::Serialize)]
struct DeltaSaved {
    /// The delta bundle's size.
    downloaded_bytes: u64,
    /// What the full bundle's payload has.
    full_bytes: u64,
    /// What the release has when it is laid out.
    raw_bytes: u64,
    /// `full_bytes` without what was downloaded.
    saved_bytes: u64,
    /// `raw_bytes` without what was downloaded.
    saved_raw_bytes: u64,
    /// Objects made by a patch, taken from the full bundle, and patches that were of no use.
    patched: u64,
    from_full: u64,
    patches_failed: u64,
}

fn delta_saved(update: &Update, path: &Path) -> Option<DeltaSaved> {
    let Update::Delta(payload) = update else { return None };
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

impl DeltaSaved {
    fn line(&self) -> String {
        format!(
            "delta of {}: {} saved against the full bundle, {} against the files; {} made by patches, {} taken from the \
             full bundle, {} patches failed",
            output::bytes(self.downloaded_bytes),
            output::bytes(self.saved_bytes),
            output::bytes(self.saved_raw_bytes),
            self.patched,
            self.from_full,
            self.patches_failed,
        )
    }
}

/// Retention after an update: the update stands whatever comes of it.
fn prune_after(site: &Site, lock: &cutover_host::node::NodeLock) {
    if let Err(error) = site.node.prune_after_update(lock, &site.settings.retention) {
        output::note(format!("warning: old restore points were not pruned: {error}"));
        output::note("hint: `cutover prune` tries again");
    }
}

fn read_plan(path: &Path) -> Result<PlanDocument, Failure> {
    let text = files::read("the plan", path)?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::usage(format!("`{}` is no plan", path.display())).because(error))
}

/// Prints what an execution did, and says how the run ends.
fn finish(report: &Report, delta: Option<&DeltaSaved>, context: &Context) -> Result<Exit, Failure> {
    let exit = failure::exit_of_outcome(&report.outcome);
    match context.form {
        Form::Json => {
            let mut value = with_exit(serde_json::to_value(report), exit)?;
            if let (serde_json::Value::Object(map), Some(delta)) = (&mut value, delta) {
                map.insert("delta".to_owned(), serde_json::json!(delta));
            }
            output::json(&value)?;
        }
        Form::Text if exit == Exit::Done => {
            output::line(output::printable(&report.message));
            if let Some(delta) = delta {
                output::line(delta.line());
            }
            if let Some(point) = &report.restore_point {
                output::line(format!("restore point {point}: `cutover rollback {point}` goes back"));
            }
        }
        Form::Text => {}
    }
    for warning in &report.warnings {
        output::note(format!("warning: {}", output::printable(warning)));
    }
    if exit != Exit::Done {
        output::failure(&failure_of(report), Form::Text);
    }
    Ok(exit)
}

/// A document with `exit_code` and `kind` in it.
fn with_exit(
    value: Result<serde_json::Value, serde_json::Error>,
    exit: Exit,
) -> Result<serde_json::Value, Failure> {
    let mut value =
        value.map_err(|error| Failure::new(Exit::Failed, "failed to write JSON").because(error))?;
    if let serde_json::Value::Object(map) = &mut value {
        map.insert("exit_code".to_owned(), exit.code().into());
        map.insert("ended".to_owned(), exit.word().into());
    }
    Ok(value)
}

/// An execution that did not succeed, as a failure with hints.
pub(super) fn failure_of(report: &Report) -> Failure {
    let exit = failure::exit_of_outcome(&report.outcome);
    let mut failure = Failure::new(exit, report.message.clone());
    if let Some(log) = &report.failed_log {
        failure = failure.hint(format!("the failed release's output is in `{}`", log.display()));
    }
    let next = match exit {
        Exit::RestoreFailed => "act now: mend what the message names, then run `cutover recover`",
        Exit::ProbeFailedKept => "`cutover rollback` brings the old release back",
        _ => "`cutover history` lists what happened; nothing needs to be cleaned up",
    };
    failure.hint(next)
}

/// A plan in words.
fn describe(plan: &PlanDocument) -> String {
    let name = |release: &Option<cutover_core::model::ReleaseRef>| {
        release.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    let mut lines = vec![format!(
        "{} {} -> {}, layout {}",
        match plan.kind {
            PlanKind::Update => "update",
            PlanKind::Rollback => "rollback",
        },
        name(&plan.from),
        name(&plan.to),
        match plan.layout {
            Layout::Versioned => "versioned",
            Layout::Exchange => "exchange",
            Layout::InPlace => "in-place",
        }
    )];
    lines.push(format!(
        "{} laid down anew, {} reused, {} must be free",
        output::bytes(plan.bytes.new),
        output::bytes(plan.bytes.reused),
        output::bytes(plan.bytes.need)
    ));
    lines.extend(plan.steps.iter().enumerate().map(|(index, step)| {
        format!("{:>2}. {:<14} {}", index + 1, step.name(), describe_step(step)).trim_end().to_owned()
    }));
    lines.join("\n")
}

fn describe_step(step: &Step) -> String {
    match step {
        Step::Stage(stage) => {
            let count =
                |which: fn(&Source) -> bool| stage.files.iter().filter(|file| which(&file.source)).count();
            let parts = [
                (count(|source| matches!(source, Source::Bundle)), "from the bundle"),
                (count(|source| matches!(source, Source::Present { .. })), "from the present release"),
                (count(|source| matches!(source, Source::Store)), "from the store"),
                (count(|source| matches!(source, Source::RestorePoint { .. })), "from restore points"),
                (stage.symlinks.len(), "symbolic links"),
                (stage.shared.len(), "shared"),
            ];
            let parts: Vec<String> = parts
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            parts.join(", ")
        }
        Step::CheckTree(check) => format!("{} files of restore point {}", check.files.len(), check.point),
        Step::RestorePoint { id } => id.to_string(),
        Step::Expand(expand) => {
            let count = expand.migrations.len();
            format!(
                "to schema version {}, {count} migration{}",
                expand.version,
                if count == 1 { "" } else { "s" }
            )
        }
        Step::Switch(switch) if !switch.changes.is_empty() => {
            let count =
                |which: fn(&Change) -> bool| switch.changes.iter().filter(|change| which(change)).count();
            format!(
                "{} files, {} links, {} removals",
                count(|change| matches!(change, Change::Put { .. })),
                count(|change| matches!(change, Change::Link { .. })),
                count(|change| matches!(change, Change::Remove { .. }))
            )
        }
        Step::Switch(_) | Step::Quiesce | Step::Activate | Step::Probe | Step::Confirm => String::new(),
    }
}

/// Refuses to change a root that was never used: taking its lock would choose a layout for it.
fn must_be_used(site: &Site) -> Result<(), Failure> {
    match site.node.status()?.layout {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Exit::NothingToDo,
            format!("nothing was ever installed in `{}`", site.root.display()),
        )
        .hint("install something with `cutover apply BUNDLE --root DIR`")),
    }
}

fn open(at: &AtRoot, context: &Context, command: &str) -> Result<Site, Failure> {
    let settings: Settings = context.settings(Some(&at.root), [])?.settings;
    Site::open(&at.root, settings, Missing::Refuse, command)
}

pub(super) fn status(at: &AtRoot, context: &Context) -> Result<Exit, Failure> {
    let site = open(at, context, "status")?;
    let status = site.node.status()?;
    let (lifecycle, _) = site.node.state(0)?;
    let service = site.service.status();
    let tree = match status.layout {
        Some(Layout::InPlace) => site.root.clone(),
        Some(Layout::Versioned | Layout::Exchange) | None => site.root.join("current"),
    };
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "root": site.root,
            "package": status.installed.as_ref().map(|release| &release.package),
            "version": status.installed.as_ref().map(|release| &release.version),
            "release": status.installed.as_ref().map(cutover_core::model::ReleaseRef::name),
            "manifest_sha256": status.installed.as_ref().map(|release| release.manifest),
            "layout": status.layout,
            "tree": tree,
            "state": lifecycle.state(),
            "in_flight": status.in_flight,
            "highest": status.highest,
            "restore_points": status.restore_points,
            "service": match &service {
                Ok(service) => serde_json::to_value(service).unwrap_or_default(),
                Err(error) => serde_json::json!({ "state": "unknown", "note": error.to_string() }),
            },
        }))?,
        Form::Text => {
            match &status.installed {
                Some(release) => output::line(format!("installed       {release} ({})", release.name())),
                None => output::line("installed       nothing"),
            }
            output::line(format!("tree            {}", tree.display()));
            output::line(format!("state           {}", lifecycle.state().name()));
            if let Some(in_flight) = &status.in_flight {
                output::line(format!(
                    "unfinished      execution {}{}; `cutover recover` ends it",
                    in_flight.number,
                    in_flight.step.map_or(String::new(), |step| format!(", at {step}"))
                ));
            }
            output::line(format!("restore points  {}", status.restore_points));
            match service {
                Ok(service) => output::line(output::printable(&format!(
                    "service         {}{}{}",
                    word(service.state),
                    service.pid.map_or(String::new(), |pid| format!(", process {pid}")),
                    if service.note.is_empty() { String::new() } else { format!(" ({})", service.note) }
                ))),
                Err(error) => output::line(format!("service         unknown ({error})")),
            }
        }
    }
    Ok(Exit::Done)
}

fn word(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Unmanaged => "unmanaged",
        ServiceState::NoSupervisor => "no supervisor",
        ServiceState::Stopped => "stopped",
        ServiceState::Starting => "starting",
        ServiceState::Ready => "ready",
        ServiceState::BackOff => "crashed, waits before it is started again",
        ServiceState::CrashLoop => "crashes again and again",
        ServiceState::Failed => "failed",
        ServiceState::Unknown => "unknown",
    }
}

pub(super) fn history(command: &History, context: &Context) -> Result<Exit, Failure> {
    let site = open(&command.at, context, "history")?;
    if command.clear {
        must_be_used(&site)?;
        let lock = site.node.lock()?;
        site.node.clear_history(&lock)?;
        match context.form {
            Form::Json => output::json(&serde_json::json!({ "cleared": true }))?,
            Form::Text => output::line("the history is empty now"),
        }
        return Ok(Exit::Done);
    }
    let rows = site.node.history(command.limit.unwrap_or(usize::MAX >> 1))?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({ "history": rows }))?,
        Form::Text => {
            let version = |version: &Option<cutover_core::model::Version>| {
                version.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
            };
            output::line(output::table(
                &["number", "at", "action", "from", "to", "outcome", "restore point", "error"],
                rows.iter()
                    .map(|row| {
                        vec![
                            row.number.map_or_else(|| "-".to_owned(), |number| number.to_string()),
                            row.at.to_string(),
                            row.action.clone(),
                            version(&row.from),
                            version(&row.to),
                            row.outcome.clone(),
                            row.restore_point.clone().unwrap_or_default(),
                            row.error.clone().unwrap_or_default(),
                        ]
                    })
                    .collect(),
            ));
        }
    }
    Ok(Exit::Done)
}

pub(super) fn verify(command: &Verify, context: &Context) -> Result<Exit, Failure> {
    let site = open(&command.at, context, "verify")?;
    let before = site.node.verify()?;
    let Some(release) = before.release.clone() else {
        return Err(Failure::new(Exit::NothingToDo, "nothing is installed in this root")
            .hint("install something with `cutover apply BUNDLE --root DIR`"));
    };
    let must_repair =
        command.repair && (!before.is_clean() || (command.replace_edited && !before.edited.is_empty()));
    let (after, repaired) = if must_repair {
        let lock = site.lock_and_recover(context)?;
        let edited = if command.replace_edited { Edited::Replace } else { Edited::Keep };
        let report = site.node.repair(&lock, edited)?;
        (site.node.verify()?, Some(report))
    } else {
        (before.clone(), None)
    };
    let exit = if after.is_clean() { Exit::Done } else { Exit::Damaged };
    match context.form {
        Form::Json => output::json(&with_exit(
            Ok(
                serde_json::json!({ "drift": before, "repair": repaired, "after": repaired.as_ref().map(|_| &after) }),
            ),
            exit,
        )?)?,
        Form::Text => {
            print_drift(&before);
            if let Some(report) = &repaired {
                for path in &report.repaired {
                    output::line(format!("repaired      {path}"));
                }
                for (path, reason) in &report.unrepairable {
                    output::line(output::printable(&format!("unrepairable  {path}: {reason}")));
                }
            }
            if exit == Exit::Done {
                output::line(format!("{release}: {} files are as they were installed", after.checked));
            }
        }
    }
    if exit != Exit::Done {
        let count = after.damaged.len() + after.missing.len() + after.mode_changed.len();
        let failure =
            Failure::new(Exit::Damaged, format!("{count} files of {release} are not as they were installed"));
        let hint = if command.repair {
            "apply the bundle of this release's successor, or `cutover rollback`"
        } else {
            "`cutover verify --repair` brings them back"
        };
        output::failure(&failure.hint(hint), Form::Text);
    }
    Ok(exit)
}

fn print_drift(drift: &Drift) {
    let groups = [
        ("damaged", &drift.damaged),
        ("missing", &drift.missing),
        ("mode changed", &drift.mode_changed),
        ("edited", &drift.edited),
    ];
    for (what, paths) in groups {
        for path in paths {
            output::line(format!("{what:<13} {path}"));
        }
    }
    for path in &drift.extra {
        output::line(output::printable(&format!("extra         {path}")));
    }
}

pub(super) fn rollback(command: &Rollback, context: &Context) -> Result<Exit, Failure> {
    let target = command.id.clone().map_or(RollbackTarget::Newest, RollbackTarget::Point);
    let site = open(&command.at, context, "rollback")?;
    must_be_used(&site)?;
    if command.dry_run {
        let observed = site.node.observe(None)?;
        let plan = plan_back(&site, &observed, &target, context)?;
        let preflight = site.preflight(&plan, None)?;
        match context.form {
            Form::Json => {
                output::json(&serde_json::json!({ "dry_run": true, "plan": plan, "preflight": preflight }))?
            }
            Form::Text => output::line(describe(&plan)),
        }
        return Ok(Exit::Done);
    }
    let lock = site.lock_and_recover(context)?;
    let observed = site.node.observe(None)?;
    let plan = match plan_back(&site, &observed, &target, context) {
        Ok(plan) => plan,
        Err(failure) => {
            // E18: somebody wanted to go back and could not; that belongs into the history.
            let row = HistoryRow {
                number: None,
                at: context.now,
                action: "rollback".to_owned(),
                from: observed
                    .observation
                    .installed
                    .as_ref()
                    .map(|installed| installed.release.version.clone()),
                to: None,
                outcome: "refused".to_owned(),
                error: Some(failure.to_string()),
                restore_point: command.id.as_ref().map(ToString::to_string),
            };
            if let Err(error) = site.node.record(&lock, &row) {
                output::note(format!("warning: the history could not be written: {error}"));
            }
            return Err(failure);
        }
    };
    site.preflight(&plan, None)?;
    let report = site.execute(observed, &lock, &plan, None, context, command.stop_at.as_ref())?;
    finish(&report, None, context)
}

fn plan_back(
    site: &Site,
    observed: &Observed,
    target: &RollbackTarget,
    context: &Context,
) -> Result<PlanDocument, Failure> {
    let known = |id: &RestorePointId| {
        observed.points.iter().any(|seen| seen.point.id == *id)
            || observed.damaged.iter().any(|(bad, _)| bad == id)
    };
    if let RollbackTarget::Point(id) = target
        && !known(id)
    {
        return Err(Refusal::UnknownPoint(id.clone()).into());
    }
    let points = observed.points_for(target).map_err(|damage| {
        Failure::new(Exit::Damaged, format!("the restore point cannot be used: {damage}"))
            .hint("`cutover restore-points` lists those that can; nothing was changed")
    })?;
    let plan = plan_rollback(&observed.observation, points, target, &site.policy(context.now)?)?;
    check_plan(&plan, &observed.observation, None, points).map_err(cutover_host::node::NodeError::from)?;
    Ok(plan)
}

pub(super) fn restore_points(at: &AtRoot, context: &Context) -> Result<Exit, Failure> {
    let site = open(at, context, "restore-points")?;
    let points = site.node.restore_points()?;
    match context.form {
        Form::Json => {
            let rows: Vec<serde_json::Value> = points
                .iter()
                .map(|listed| match &listed.point {
                    Ok(seen) => serde_json::json!({
                        "id": listed.id,
                        "created_at": seen.point.created_at,
                        "leads_to": seen.point.from.as_ref().map(|release| &release.version),
                        "made_before": seen.point.to.as_ref().map(|release| &release.version),
                        "files": seen.point.files.len(),
                        "kept": match seen.tree {
                            KeptTree::Kept => "tree",
                            KeptTree::Cold => "store",
                        },
                        "damage": null,
                    }),
                    Err(error) => serde_json::json!({ "id": listed.id, "damage": error.to_string() }),
                })
                .collect();
            output::json(&serde_json::json!({ "restore_points": rows }))?;
        }
        Form::Text if points.is_empty() => output::line("there are no restore points"),
        Form::Text => output::line(output::table(
            &["id", "made at", "leads to", "made before", "kept as"],
            points
                .iter()
                .map(|listed| match &listed.point {
                    Ok(seen) => {
                        let version = |release: &Option<cutover_core::model::ReleaseRef>| {
                            release
                                .as_ref()
                                .map_or_else(|| "nothing".to_owned(), |release| release.version.to_string())
                        };
                        vec![
                            listed.id.to_string(),
                            seen.point.created_at.to_string(),
                            version(&seen.point.from),
                            version(&seen.point.to),
                            match seen.tree {
                                KeptTree::Kept => "tree".to_owned(),
                                KeptTree::Cold => "store".to_owned(),
                            },
                        ]
                    }
                    Err(error) => vec![
                        listed.id.to_string(),
                        "-".to_owned(),
                        format!("DAMAGED: {error}"),
                        String::new(),
                        String::new(),
                    ],
                })
                .collect(),
        )),
    }
    Ok(Exit::Done)
}

pub(super) fn recover(command: &Recover, context: &Context) -> Result<Exit, Failure> {
    let site = open(&command.at, context, "recover")?;
    if command.wait_for_supervisor {
        site.wait_for_supervisor();
    }
    let (lifecycle, _) = site.node.state(0)?;
    let was_failed = lifecycle.state() == cutover_core::lifecycle::State::Failed;
    let report = match site.node.status()?.layout {
        // Taking the lock would choose a layout for a root that was never used.
        None => {
            site.node.forget_first_use()?;
            None
        }
        Some(_) => {
            let lock = site.node.lock()?;
            site.node.recover(&lock, &site.ports(context))?
        }
    };
    let Some(report) = report else {
        let (exit, message) = if was_failed {
            (Exit::Done, "the state was failed and is idle again")
        } else {
            (Exit::NothingToDo, "nothing to recover")
        };
        match context.form {
            Form::Json => {
                output::json(&with_exit(
                    Ok(serde_json::json!({ "recovered": null, "message": message })),
                    exit,
                )?)?;
            }
            Form::Text => output::line(message),
        }
        return Ok(exit);
    };
    // That an interrupted update was undone is what was asked for here.
    if let Outcome::Undone { .. } = report.outcome {
        match context.form {
            Form::Json => output::json(&with_exit(serde_json::to_value(&report), Exit::Done)?)?,
            Form::Text => output::line(output::printable(&report.message)),
        }
        return Ok(Exit::Done);
    }
    finish(&report, None, context)
}

pub(super) fn prune(command: &Prune, context: &Context) -> Result<Exit, Failure> {
    let keep = command.keep.map(|keep| ("retention.keep", keep.to_string(), "--keep"));
    let settings = context.settings(Some(&command.at.root), keep)?.settings;
    let site = Site::open(&command.at.root, settings, Missing::Refuse, "prune")?;
    must_be_used(&site)?;
    let lock = site.lock_and_recover(context)?;
    let report = site.node.prune(&lock, &site.settings.retention)?;
    match context.form {
        Form::Json => output::json(&report)?,
        Form::Text => {
            for id in &report.removed_points {
                output::line(format!("removed  restore point {id}"));
            }
            for id in &report.cooled_points {
                output::line(format!("packed   restore point {id}"));
            }
            for release in &report.removed_releases {
                output::line(format!("removed  {release}"));
            }
            output::line(format!(
                "{} objects removed, {} -> {} on disk; sharing saves {}",
                report.removed_objects,
                output::bytes(report.bytes_before),
                output::bytes(report.bytes_after),
                output::bytes(report.bytes_saved_by_sharing)
            ));
        }
    }
    Ok(Exit::Done)
}
