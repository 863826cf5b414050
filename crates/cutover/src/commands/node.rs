//! The commands that work on what a root holds: `status history verify rollback restore-points recover prune`.

use std::sync::Arc;

use cutover_core::{
    execute::Outcome,
    model::RestorePointId,
    plan::{
        KeptTree, Layout, Plan as PlanDocument, Policy, Refusal, RollbackTarget, check_plan, plan_rollback,
    },
};
use cutover_host::{
    catalog::HistoryRow,
    node::{Drift, Edited, NodeError, Observed, PastSet},
    service::ServiceState,
};

use super::{
    Context,
    describe::describe,
    outcome::{finish, with_exit},
    sets::{self, Supervisors},
    site::{Missing, Site},
};
use crate::{
    args::{AtRoot, History, Prune, Recover, Rollback, Verify},
    exit::Exit,
    failure::Failure,
    output::{self, Form},
    settings::Settings,
};

/// Refuses to change a root that was never used: taking its lock would choose a layout for it.
pub(super) fn must_be_used(site: &Site) -> Result<(), Failure> {
    match site.node.status()?.layout {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Exit::NothingToDo,
            format!("nothing was ever installed in `{}`", site.root.display()),
        )
        .hint("install something with `cutover apply BUNDLE`")),
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
            "root": site.root.display().to_string(),
            "package": status.installed.as_ref().map(|release| &release.package),
            "version": status.installed.as_ref().map(|release| &release.version),
            "release": status.installed.as_ref().map(cutover_core::model::ReleaseRef::name),
            "manifest_sha256": status.installed.as_ref().map(|release| release.manifest),
            "layout": status.layout,
            "tree": tree.display().to_string(),
            "state": lifecycle.state(),
            "in_flight": status.in_flight,
            "set": status.set,
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
                output::line(context.naming_root(&format!(
                    "unfinished      execution {}{}; `cutover recover` ends it",
                    in_flight.number,
                    in_flight.step.map_or(String::new(), |step| format!(", at {step}"))
                )));
            }
            if let Some(set) = &status.set {
                output::line(context.naming_root(&format!(
                    "set             part of set {} of `{}`, which has not ended; `cutover recover` ends it",
                    set.number, set.coordinator
                )));
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
    let limit = command.limit.unwrap_or(usize::MAX >> 1);
    let rows = site.node.history(limit)?;
    let sets: Vec<PastSet> = cutover_host::node::sets(&site.node)?.into_iter().take(limit).collect();
    match context.form {
        Form::Json => output::json(&serde_json::json!({ "history": rows, "sets": sets }))?,
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
            if !sets.is_empty() {
                output::line("");
                let rows = sets.iter().map(set_row).collect();
                output::line(output::table(&["set", "at", "packages", "outcome", "error"], rows));
            }
        }
    }
    Ok(Exit::Done)
}

/// A line about several packages that changed together.
fn set_row(set: &PastSet) -> Vec<String> {
    let (outcome, error) = match &set.outcome {
        None => ("not ended", ""),
        Some(Outcome::Confirmed) => ("confirmed", ""),
        Some(Outcome::Undone { reason }) => ("undone", reason.as_str()),
        Some(Outcome::ProbeFailed { reason }) => ("probe-failed", reason.as_str()),
        Some(Outcome::KeptUnconfirmed) => ("kept-unconfirmed", ""),
        Some(Outcome::Stuck { reason }) => ("stuck", reason.as_str()),
    };
    let packages = set.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let packages = match set.takes_back {
        Some(number) => format!("set {number} taken back: {packages}"),
        None => packages,
    };
    vec![set.number.to_string(), set.at.to_string(), packages, outcome.to_owned(), error.to_owned()]
}

pub(super) fn verify(command: &Verify, context: &Context) -> Result<Exit, Failure> {
    let site = open(&command.at, context, "verify")?;
    let before = site.node.verify()?;
    let Some(release) = before.release.clone() else {
        return Err(Failure::new(Exit::NothingToDo, "nothing is installed in this root")
            .hint("install something with `cutover apply BUNDLE`"));
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
    let failure = (!after.is_clean()).then(|| {
        let count = after.damaged.len() + after.missing.len() + after.mode_changed.len();
        let hint = if command.repair {
            "apply the bundle of this release's successor, or go back to one of `cutover restore-points`"
        } else {
            "`cutover verify --repair` brings them back"
        };
        Failure::new(Exit::Damaged, format!("{count} files of {release} are not as they were installed"))
            .hint(hint)
            .naming_root(context.root.as_deref())
    });
    let exit = failure.as_ref().map_or(Exit::Done, Failure::exit);
    match context.form {
        Form::Json => {
            let after = repaired.as_ref().map(|_| &after);
            let value = serde_json::json!({ "drift": before, "repair": repaired, "after": after });
            output::json(&with_exit(Ok(value), exit, failure.as_ref())?)?;
        }
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
    if let Some(failure) = failure {
        output::failure(&failure, Form::Text);
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
    if command.whole_set {
        return sets::rollback(command, context);
    }
    let target = command.id.clone().map_or(RollbackTarget::Newest, RollbackTarget::Point);
    let site = open(&command.at, context, "rollback")?;
    must_be_used(&site)?;
    if command.dry_run {
        if let Some(in_flight) = site.node.status()?.in_flight {
            return Err(NodeError::Unfinished(in_flight.number).into());
        }
        let observed = site.node.observe_for_rollback(&target)?;
        let plan = plan_back(&observed, &target, &site.policy(context.now)?)?;
        let preflight = site.preflight(&plan, None)?;
        match context.form {
            Form::Json => {
                output::json(&serde_json::json!({ "dry_run": true, "plan": plan, "preflight": preflight }))?
            }
            Form::Text => output::line(describe(&plan)),
        }
        return Ok(Exit::Done);
    }
    let (lock, recovered) = site.lock_and_tell(context)?;
    if let (RollbackTarget::Newest, Some(report)) = (&target, recovered)
        && report.outcome != Outcome::Confirmed
    {
        // Whoever wanted to go back from that run is there; the restore point before it was not meant.
        return Err(Failure::new(Exit::NothingToDo, report.message)
            .hint("`cutover rollback` again goes to the restore point before"));
    }
    let observed = site.node.observe_for_rollback(&target)?;
    let planned = site.policy(context.now).and_then(|policy| plan_back(&observed, &target, &policy));
    let plan = match planned {
        Ok(plan) => Arc::new(plan),
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

/// Plans the way back to a restore point.
///
/// # Errors
/// It is not known, cannot be used, or is refused.
pub(super) fn plan_back(
    observed: &Observed,
    target: &RollbackTarget,
    policy: &Policy,
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
    let newest = points.last().filter(|_| *target == RollbackTarget::Newest);
    if let Some(seen) = newest.filter(|seen| seen.point.from.is_none()) {
        let message =
            "there is no release to go back to: the newest restore point was made before the first one";
        return Err(Failure::new(Exit::Policy, message)
            .hint(format!("`cutover rollback {}` removes the package", seen.point.id)));
    }
    let plan = plan_rollback(&observed.observation, points, target, policy)?;
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
    if let Some(coordinator) = sets::coordinator_of(&site)? {
        let supervisors = match command.wait_for_supervisor {
            true => Supervisors::WaitFor,
            false => Supervisors::Ask,
        };
        if let Some(report) = sets::recover(&coordinator, &command.at.root, supervisors, context)? {
            // That an interrupted update was undone is what was asked for here.
            if let Outcome::Undone { .. } = report.outcome {
                match context.form {
                    Form::Json => output::json(&with_exit(serde_json::to_value(&report), Exit::Done, None)?)?,
                    Form::Text => output::line(output::printable(&report.message)),
                }
                return Ok(Exit::Done);
            }
            return sets::finish(&report, context);
        }
    }
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
                    None,
                )?)?;
            }
            Form::Text => output::line(message),
        }
        return Ok(exit);
    };
    // That an interrupted update was undone is what was asked for here.
    if let Outcome::Undone { .. } = report.outcome {
        match context.form {
            Form::Json => output::json(&with_exit(serde_json::to_value(&report), Exit::Done, None)?)?,
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
