//! `rollback --whole-set`: a set that was confirmed is taken back as one execution; every package goes back, or none does.

use std::{path::Path, sync::Arc};

use cutover_core::{
    model::{ReleaseRef, RestorePointId, Version},
    plan::{Plan as PlanDocument, RollbackTarget},
    set::{Back, Part, Set as Parts, SetId},
};
use cutover_host::{
    catalog::HistoryRow,
    node::{Member, Members, NodeError, NodeLock, Observed, Perform, Ports, coordinate, way_back},
    preflight::{DiskCheck, PreflightReport, disk_space},
};

use super::{
    super::{
        Context,
        describe::describe,
        node::{must_be_used, plan_back},
        site::{self, Missing, Site},
    },
    Supervisors, coordinator_of, end_interrupted, finish, is_same, policy, stop_at,
};
use crate::{
    args::Rollback,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
};

/// `rollback --whole-set`.
///
/// # Errors
/// Refusals before anything is done.
pub(in crate::commands) fn rollback(command: &Rollback, context: &Context) -> Result<Exit, Failure> {
    let root = &command.at.root;
    let site = open(root, root, context)?;
    must_be_used(&site)?;
    if command.dry_run {
        let status = site.node.status()?;
        if let Some(set) = status.set {
            return Err(NodeError::InSet(set).into());
        }
        if let Some(in_flight) = status.in_flight {
            return Err(NodeError::Unfinished(in_flight.number).into());
        }
        let back = Backwards::open(&set_of(&site, command)?, root, context)?;
        let prepared = back.prepared(context)?;
        return back.plan(&prepared, context);
    }
    if let Some(coordinator) = coordinator_of(&site)? {
        end_interrupted(&coordinator, root, Supervisors::Ask, context)?;
    }
    drop(site.lock_and_recover(context)?);
    match run(&site, command, context) {
        Err(failure) => {
            // E18: somebody wanted to go back and could not; that belongs into the history.
            if let Err(error) = tell_history(&site, command, &failure, context) {
                output::note(format!("warning: the history could not be written: {error}"));
            }
            Err(failure)
        }
        ended => ended,
    }
}

fn run(site: &Site, command: &Rollback, context: &Context) -> Result<Exit, Failure> {
    let back = Backwards::open(&set_of(site, command)?, &command.at.root, context)?;
    back.prepared(context)?;
    back.execute(command.stop_at.as_ref(), context)
}

fn tell_history(
    site: &Site,
    command: &Rollback,
    failure: &Failure,
    context: &Context,
) -> Result<(), NodeError> {
    let lock = site.node.lock()?;
    let from = site.node.status()?.installed.map(|release| release.version);
    let row = HistoryRow {
        number: None,
        at: context.now,
        action: "rollback".to_owned(),
        from,
        to: None,
        outcome: "refused".to_owned(),
        error: Some(failure.to_string()),
        restore_point: command.id.as_ref().map(ToString::to_string),
    };
    site.node.record(&lock, &row)
}

/// Opens a root. `own` is the one whose settings are given on the command line; every other has those of its files.
fn open(root: &Path, own: &Path, context: &Context) -> Result<Site, Failure> {
    let settings = if is_same(root, own) {
        context.settings(Some(root), [])?
    } else {
        context.settings_of_site(root)?
    };
    Site::open(root, settings.settings, Missing::Refuse, "rollback")
}

/// The set that made the restore point which is meant.
fn set_of(site: &Site, command: &Rollback) -> Result<SetId, Failure> {
    site.node.set_of_point(command.id.as_ref())?.ok_or_else(|| {
        let what = match &command.id {
            Some(id) => format!("restore point {id} was not made by a set"),
            None => "what changed here last was not part of a set".to_owned(),
        };
        Failure::new(Exit::Policy, what)
            .hint("leave out --whole-set to take this package back alone, or name a restore point of the set")
    })
}

/// What takes a set back, with the root of each part.
struct Backwards {
    id: SetId,
    parts: Vec<(Back, Site)>,
    /// The part whose root keeps the journal.
    coordinator: usize,
}

/// A part as it would begin.
struct Prepared {
    observed: Observed,
    plan: Arc<PlanDocument>,
    preflight: PreflightReport,
}

impl Backwards {
    fn open(id: &SetId, own: &Path, context: &Context) -> Result<Self, Failure> {
        let coordinator = Path::new(&id.coordinator);
        let Some(back) = way_back(&open(coordinator, own, context)?.node, id.number)? else {
            let what = format!("set {} of `{}` is not one that can be taken back", id.number, id.coordinator);
            return Err(Failure::new(Exit::Policy, what).hint(
                "its journal is not kept any more, or it was not confirmed; `cutover rollback` takes one package back",
            ));
        };
        let mut parts = Vec::with_capacity(back.len());
        for back in back {
            let site = open(Path::new(&back.part.root), own, context)?;
            parts.push((back, site));
        }
        let coordinator = parts.iter().position(|(_, site)| site.root == coordinator);
        let Some(coordinator) = coordinator else { return Err(NodeError::Changed.into()) };
        Ok(Self { id: id.clone(), parts, coordinator })
    }

    fn prepare(&self, part: usize, context: &Context) -> Result<Prepared, Failure> {
        let (Back { part, execution }, site) = &self.parts[part];
        let target = RollbackTarget::Point(RestorePointId::of_execution(*execution));
        let observed = site.node.observe_for_rollback(&target)?;
        let installed = observed.observation.installed.as_ref().map(|installed| &installed.release);
        must_be_as_left(part, installed, &self.id)?;
        let plan = plan_back(&observed, &target, &policy(site, context)?)
            .map_err(|failure| failure.of(&part.package))?;
        let preflight = site.preflight(&plan, None).map_err(|failure| failure.of(&part.package))?;
        Ok(Prepared { observed, plan: Arc::new(plan), preflight })
    }

    /// Plans and checks every part as its root is now.
    fn prepared(&self, context: &Context) -> Result<Vec<Prepared>, Failure> {
        let prepared = (0..self.parts.len()).map(|part| self.prepare(part, context));
        let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        let needs = self.parts.iter().zip(&prepared).map(|((_, site), part)| site.need(&part.plan)).collect();
        // Each alone may fit where all together do not.
        let settings = &self.parts[self.coordinator].1.settings.preflight;
        site::check(vec![Box::new(DiskCheck::new(needs, disk_space))], settings)?;
        Ok(prepared)
    }

    fn plan(&self, prepared: &[Prepared], context: &Context) -> Result<Exit, Failure> {
        let parts = || self.parts.iter().map(|(back, _)| &back.part).zip(prepared);
        match context.form {
            Form::Json => {
                let parts: Vec<serde_json::Value> = parts()
                    .map(|(part, prepared)| {
                        serde_json::json!({
                            "package": part.package,
                            "from": part.from,
                            "to": part.to,
                            "root": part.root,
                            "plan": prepared.plan,
                            "preflight": prepared.preflight,
                        })
                    })
                    .collect();
                let set = serde_json::json!({ "takes_back": self.id, "parts": parts });
                output::json(&serde_json::json!({ "dry_run": true, "set": set }))?;
            }
            Form::Text => {
                output::line(format!(
                    "one execution that takes set {} back; whatever fails, every package stays as it is now",
                    self.id.number
                ));
                let version = |version: &Option<Version>| {
                    version.as_ref().map_or_else(|| "nothing".to_owned(), Version::to_string)
                };
                let row = |(index, (part, prepared)): (usize, (&Part, &Prepared))| {
                    vec![
                        (index + 1).to_string(),
                        part.package.to_string(),
                        version(&part.from),
                        version(&part.to),
                        part.root.clone(),
                        format!("{} new", output::bytes(prepared.plan.bytes.new)),
                    ]
                };
                let rows = parts().enumerate().map(row).collect();
                output::line(output::table(&["step", "package", "from", "to", "root", "files"], rows));
                for prepared in prepared {
                    output::line("");
                    output::line(describe(&prepared.plan));
                }
            }
        }
        Ok(Exit::Done)
    }

    fn execute(&self, step: Option<&String>, context: &Context) -> Result<Exit, Failure> {
        let mut locks = Vec::with_capacity(self.parts.len());
        for (_, site) in &self.parts {
            locks.push(site.lock_and_recover(context)?);
        }
        let stop = stop_at(step);
        let ports: Vec<Ports<'_>> = self
            .parts
            .iter()
            .map(|(_, site)| Ports { before_step: Some(&stop), ..site.ports(context) })
            .collect();
        let host = Host { back: self, locks: &locks, ports: &ports, context };
        let parts = self.parts.iter().map(|(back, _)| back.part.clone()).collect();
        let set = Parts::new(parts).taking_back(Some(self.id.number));
        let report = coordinate(&self.parts[self.coordinator].1.node, set, &host)?;
        finish(&report, context)
    }
}

/// What a set gave a package is what has to be there still.
fn must_be_as_left(part: &Part, installed: Option<&ReleaseRef>, id: &SetId) -> Result<(), Failure> {
    let is_as_left = match (&part.from, installed) {
        (Some(from), Some(there)) => (from, &part.package) == (&there.version, &there.package),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if is_as_left {
        return Ok(());
    }
    let there = installed.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    let left = part.from.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
    let what =
        format!("`{}` has {there}, and set {} left {} {left} there", part.root, id.number, part.package);
    Err(Failure::new(Exit::Policy, what)
        .hint(format!("take back what came later first: `cutover rollback --root {}`", part.root)))
}

/// The locked roots.
struct Host<'a> {
    back: &'a Backwards,
    locks: &'a [NodeLock],
    ports: &'a [Ports<'a>],
    context: &'a Context,
}

impl Members for Host<'_> {
    fn member(&self, part: usize) -> Member<'_> {
        Member { node: &self.back.parts[part].1.node, lock: &self.locks[part], ports: &self.ports[part] }
    }

    fn perform(&self, part: usize, run: &mut Perform<'_>) -> Result<(), String> {
        let parts = &self.back.parts;
        output::note(output::printable(&format!(
            "step {} of {}: {}",
            part + 1,
            parts.len(),
            parts[part].0.part
        )));
        let prepared = self.back.prepare(part, self.context);
        let ran = prepared.and_then(|Prepared { observed, plan, .. }| Ok(run(observed, &plan, None)?));
        ran.map(drop).map_err(|failure| failure.in_one_line())
    }
}
