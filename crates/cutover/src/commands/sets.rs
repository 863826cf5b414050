//! Several packages of a host as one execution: `plan` and `apply NAME@VERSION` where `package.sites` names other roots,
//! `rollback --whole-set`, and `recover` of what was interrupted.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::{
    execute::Outcome,
    model::{Name, Version},
    plan::{OnProbeFailure, Plan as PlanDocument, Policy, check_plan, need_after, plan_update},
    resolve::{Candidate, Step as Change},
    set::{Part, PartState, Set as Parts},
};
use cutover_host::{
    fetch::Downloads,
    node::{
        Member, Members, NodeError, NodeLock, Observed, Perform, Ports, SetReport, coordinate, open_set,
        recover_set,
    },
    payload::Payload as _,
    preflight::{DiskCheck, Need, PreflightReport, disk_space},
};

use super::{
    Context,
    describe::describe,
    fetching::{Named, offers_bundles},
    outcome::{tell_rest, with_exit},
    site::{self, Missing, Site, entries_of},
    source::{self, Fetched, Together},
    update::prune_after,
};
use crate::{
    args::FromRepository,
    exit::Exit,
    failure::{self, Failure},
    files,
    output::{self, Form},
    settings::{PruneWhen, Settings},
};

mod back;

pub(super) use back::rollback;

/// A root of the host, with its settings.
struct Root {
    path: PathBuf,
    settings: Settings,
}

/// Releases that change together, each with the root it goes to.
pub(super) struct Set {
    roots: Vec<Root>,
    /// For each part the index of its root.
    at: Vec<usize>,
    together: Together,
}

/// What is to be installed, if it takes several packages, or several steps, as one execution.
///
/// # Errors
/// The repository cannot be had or believed, or there is no way.
pub(super) fn open(
    named: &Named,
    from: &FromRepository,
    root: &Path,
    settings: &Settings,
    context: &Context,
) -> Result<Option<Set>, Failure> {
    if settings.package.sites.is_empty() || offers_bundles(from, settings) {
        return Ok(None);
    }
    if let Some(only) = settings.package.name.as_ref().filter(|only| **only != named.package) {
        let message = format!("`package.name` allows `{only}` only, and not `{}`", named.package);
        return Err(Failure::new(Exit::Policy, message));
    }
    let mut known: BTreeMap<Name, Root> = BTreeMap::new();
    for (package, site) in &settings.package.sites {
        let settings = context.settings_of_site(site)?.settings;
        known.insert(package.clone(), Root { path: site.clone(), settings });
    }
    known.insert(named.package.clone(), Root { path: root.to_owned(), settings: settings.clone() });
    for (package, site) in &known {
        let twice = known.iter().find(|(other, root)| *other > package && is_same(&root.path, &site.path));
        if let Some((other, _)) = twice {
            let place = site.path.display();
            return Err(Failure::usage(format!("`{package}` and `{other}` cannot share the root `{place}`")));
        }
    }
    let found = {
        let site = |package: &Name| known.get(package).map(|root| (root.path.as_path(), &root.settings));
        source::open_together(named, from, root, settings, &site, context)?
    };
    let Some(together) = found else { return Ok(None) };
    let (mut roots, mut at, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
    for change in &together.changes {
        let index = match places.get(&change.package) {
            Some(index) => *index,
            None => {
                roots.push(known.remove(&change.package).expect("it was looked up"));
                places.insert(change.package.clone(), roots.len() - 1);
                roots.len() - 1
            }
        };
        at.push(index);
    }
    // The one that was asked for keeps the journal, and nothing was asked for that does not change it.
    Ok(Some(Set { roots, at, together }))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    found(one) == found(other)
}

/// A part as it would begin.
struct Prepared {
    observed: Observed,
    plan: Arc<PlanDocument>,
    preflight: PreflightReport,
}

/// A set is restored as a whole, whatever the settings of one root say.
fn policy(site: &Site, context: &Context) -> Result<Policy, Failure> {
    Ok(Policy { on_probe_failure: OnProbeFailure::Restore, ..site.policy(context.now)? })
}

/// `beside` are the other packages of the host as the part finds them.
fn prepare(
    site: &Site,
    fetched: &Fetched,
    beside: BTreeMap<Name, Version>,
    context: &Context,
) -> Result<Prepared, Failure> {
    let (release, manifest) = (fetched.payload.release(), fetched.payload.manifest());
    let mut observed = site.node.observe(Some(manifest))?;
    observed.observation.packages.clone_from(&beside);
    let plan = plan_update(&observed.observation, &release, manifest, &policy(site, context)?)?;
    check_plan(&plan, &observed.observation, Some((&release, manifest)), &observed.points)
        .map_err(NodeError::from)?;
    let preflight = site.preflight(&plan, Some((manifest, &beside)))?;
    Ok(Prepared { observed, plan: Arc::new(plan), preflight })
}

impl Set {
    /// The other packages of a part as they are when its leg is done: what it requires and conflicts with counts then.
    fn beside(&self, part: usize) -> BTreeMap<Name, Version> {
        let version = |(name, candidate): (&Name, &Candidate)| (name.clone(), candidate.version.clone());
        let mut packages: BTreeMap<Name, Version> = self.together.present.iter().map(version).collect();
        let done = &self.together.changes[..self.together.holds_after[part]];
        packages.extend(done.iter().map(|change| (change.package.clone(), change.to.clone())));
        packages.remove(&self.together.changes[part].package);
        packages
    }

    fn site(&self, root: usize, missing: Missing, command: &str) -> Result<Site, Failure> {
        let Root { path, settings } = &self.roots[root];
        // Every part brings what is beside it.
        Site::open_among(path, settings.clone(), BTreeMap::new(), missing, command)
    }

    /// Plans and checks the first part of every root as it is now: what a later part of the same root finds is not there yet.
    fn prepared(&self, context: &Context) -> Result<Vec<Option<Prepared>>, Failure> {
        let (mut prepared, mut needs) = (Vec::new(), Vec::<Need>::new());
        for (part, (root, fetched)) in self.at.iter().zip(&self.together.parts).enumerate() {
            if let Some(before) = self.at[..part].iter().rposition(|at| at == root) {
                let path = needs[before].path.clone();
                needs.push(self.need_after(before, part, path));
                prepared.push(None);
                continue;
            }
            let change = &self.together.changes[part];
            let site = self.site(*root, Missing::Imagine, "plan")?;
            let status = site.node.status()?;
            if let Some(set) = status.set {
                return Err(NodeError::InSet(set).into());
            }
            if let Some(in_flight) = status.in_flight {
                return Err(NodeError::Unfinished(in_flight.number).into());
            }
            must_start_from(change, status.installed.as_ref().map(|release| &release.version))?;
            let prepare = prepare(&site, fetched, self.beside(part), context);
            let prepare = prepare.map_err(|failure| failure.of(change))?;
            needs.push(site.need(&prepare.plan));
            prepared.push(Some(prepare));
        }
        // Each alone may fit where all together do not.
        let settings = &self.roots[0].settings.preflight;
        site::check(vec![Box::new(DiskCheck::new(needs, disk_space))], settings)?;
        Ok(prepared)
    }

    /// The room that a part needs which begins where an earlier one of the same root ends.
    fn need_after(&self, before: usize, part: usize, path: PathBuf) -> Need {
        let manifest = |part: usize| self.together.parts[part].payload.manifest();
        let wanted = manifest(part);
        Need {
            path,
            bytes: need_after(manifest(before), wanted),
            inodes: entries_of(wanted.files.len() + wanted.symlinks.len() + wanted.shared.len()),
        }
    }
}

fn must_start_from(change: &Change, installed: Option<&Version>) -> Result<(), Failure> {
    if change.from.as_ref() == installed { Ok(()) } else { Err(NodeError::Changed.into()) }
}

/// Prints what would be done, and changes nothing.
///
/// # Errors
/// A part is refused.
pub(super) fn plan(set: &Set, dry_run: bool, context: &Context) -> Result<Exit, Failure> {
    let prepared = set.prepared(context)?;
    let parts = || set.together.changes.iter().zip(&set.at).zip(&prepared);
    match context.form {
        Form::Json => {
            let parts: Vec<serde_json::Value> = parts()
                .map(|((change, root), prepared)| {
                    serde_json::json!({
                        "package": change.package,
                        "from": change.from,
                        "to": change.to,
                        "root": set.roots[*root].path.display().to_string(),
                        "plan": prepared.as_ref().map(|prepared| prepared.plan.as_ref()),
                        "preflight": prepared.as_ref().map(|prepared| &prepared.preflight),
                    })
                })
                .collect();
            output::json(&serde_json::json!({ "dry_run": dry_run, "set": { "parts": parts } }))?;
        }
        Form::Text => {
            output::line("one execution; whatever fails, every package is restored");
            let row =
                |(index, ((change, root), prepared)): (usize, ((&Change, &usize), &Option<Prepared>))| {
                    vec![
                        (index + 1).to_string(),
                        change.package.to_string(),
                        change.from.as_ref().map_or_else(|| "-".to_owned(), Version::to_string),
                        change.to.to_string(),
                        set.roots[*root].path.display().to_string(),
                        prepared.as_ref().map_or_else(
                            || "planned when it is reached".to_owned(),
                            |prepared| format!("{} new", output::bytes(prepared.plan.bytes.new)),
                        ),
                    ]
                };
            let rows = parts().enumerate().map(row).collect();
            output::line(output::table(&["step", "package", "from", "to", "root", "files"], rows));
            for prepared in prepared.iter().flatten() {
                output::line("");
                output::line(describe(&prepared.plan));
            }
        }
    }
    Ok(Exit::Done)
}

/// The locked roots of a set.
struct Host<'a> {
    sites: &'a [Site],
    locks: &'a [NodeLock],
    ports: &'a [Ports<'a>],
    at: &'a [usize],
    /// What each part installs; a recovery has none of it and needs none.
    set: Option<&'a Set>,
    /// Where the roots keep what is fetched: of the parts of one root, all use the same.
    downloads: RefCell<BTreeMap<PathBuf, Arc<Downloads>>>,
    context: &'a Context,
}

impl Members for Host<'_> {
    fn member(&self, part: usize) -> Member<'_> {
        let root = self.at[part];
        Member { node: &self.sites[root].node, lock: &self.locks[root], ports: &self.ports[root] }
    }

    fn perform(&self, part: usize, run: &mut Perform<'_>) -> Result<(), String> {
        let Some(set) = self.set else { return Err("its release is not at hand".to_owned()) };
        let (fetched, change) = (&set.together.parts[part], &set.together.changes[part]);
        output::note(output::printable(&format!("step {} of {}: {change}", part + 1, self.at.len())));
        self.try_perform(&self.sites[self.at[part]], fetched, set.beside(part), run)
            .map_err(|failure| failure.in_one_line())
    }
}

impl Host<'_> {
    fn try_perform(
        &self,
        site: &Site,
        fetched: &Fetched,
        beside: BTreeMap<Name, Version>,
        run: &mut Perform<'_>,
    ) -> Result<(), Failure> {
        let Prepared { observed, plan, .. } = prepare(site, fetched, beside, self.context)?;
        let installed = observed.observation.installed.as_ref().map(|installed| installed.release.clone());
        let execute = || run(observed, &plan, Some(&fetched.payload));
        let known = self.downloads.borrow().get(&site.root).cloned();
        let downloads = known.map_or_else(|| source::downloads(&site.root), Ok)?;
        self.downloads.borrow_mut().insert(site.root.clone(), Arc::clone(&downloads));
        let (ended, not_fetched) =
            fetched.while_fetching(site, &plan, installed.as_ref(), downloads, self.context, execute)?;
        match (ended?, not_fetched) {
            (Some(Outcome::Undone { .. }), Some(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn stop_at<'a>(step: Option<&'a String>) -> impl Fn(&'static str) + 'a {
    move |name| {
        if step.is_some_and(|wanted| wanted == name) {
            // Cannot fail for the process itself.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        }
    }
}

/// Installs all of it, or nothing.
///
/// # Errors
/// Refusals before anything is done.
pub(super) fn apply(
    set: &Set,
    root: &Path,
    step: Option<&String>,
    context: &Context,
) -> Result<Exit, Failure> {
    // A refusal must leave nothing behind, and taking a lock makes a root: so it is all checked once before.
    set.prepared(context)?;
    let mut sites = Vec::with_capacity(set.roots.len());
    for root in 0..set.roots.len() {
        sites.push(set.site(root, Missing::Make, "apply")?);
    }
    let mut locks = Vec::with_capacity(sites.len());
    for site in &sites {
        locks.push(site.lock_and_recover(context)?);
    }
    for (part, change) in set.together.changes.iter().enumerate() {
        if !set.at[..part].contains(&set.at[part]) {
            let installed = sites[set.at[part]].node.status()?.installed;
            must_start_from(change, installed.as_ref().map(|release| &release.version))?;
        }
    }
    let own = root.canonicalize().map_err(|source| Failure::io("find", root, source))?;
    let coordinator = sites.iter().find(|site| site.root == own);
    let coordinator = coordinator.expect("what was asked for is part of it");
    if let Some(aside) = &set.together.aside {
        aside.settle(&coordinator.root)?;
    }
    let mut parts = Vec::with_capacity(set.at.len());
    for (change, root) in set.together.changes.iter().zip(&set.at) {
        let Change { package, from, to } = change.clone();
        parts.push(Part {
            package,
            root: files::text("root", &sites[*root].root)?.to_owned(),
            from,
            to: Some(to),
        });
    }
    let stop = stop_at(step);
    let ports: Vec<Ports<'_>> =
        sites.iter().map(|site| Ports { before_step: Some(&stop), ..site.ports(context) }).collect();
    let host = Host {
        sites: &sites,
        locks: &locks,
        ports: &ports,
        at: &set.at,
        set: Some(set),
        downloads: RefCell::default(),
        context,
    };
    let report = coordinate(&coordinator.node, Parts::new(parts), &host)?;
    if report.outcome == Outcome::Confirmed {
        for fetched in &set.together.parts {
            fetched.finish();
        }
        for (site, lock) in sites.iter().zip(&locks) {
            if site.settings.install.prune == PruneWhen::AfterUpdate {
                prune_after(site, lock);
            }
        }
    }
    finish(&report, context)
}

/// The root that keeps the journal of the open set that `root` is part of or coordinates.
///
/// # Errors
/// Damaged state.
pub(super) fn coordinator_of(site: &Site) -> Result<Option<PathBuf>, Failure> {
    if let Some(set) = site.node.status()?.set {
        return Ok(Some(PathBuf::from(set.coordinator)));
    }
    Ok(open_set(&site.node)?.map(|open| PathBuf::from(open.id.coordinator)))
}

/// Whether somebody waits for supervisors before an interrupted set is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supervisors {
    WaitFor,
    Ask,
}

/// Ends the set whose journal `coordinator` keeps. `None` when there is none any more. `own` is the root whose settings are
/// given on the command line; every other has those of its files.
///
/// # Errors
/// A root is not there or locked, or its state is damaged.
pub(super) fn recover(
    coordinator: &Path,
    own: &Path,
    supervisors: Supervisors,
    context: &Context,
) -> Result<Option<SetReport>, Failure> {
    let open = |root: &Path| {
        let settings = if is_same(root, own) {
            context.settings(Some(root), [])?
        } else {
            context.settings_of_site(root)?
        };
        Site::open(root, settings.settings, Missing::Refuse, "recover")
    };
    let mut sites = vec![open(coordinator)?];
    let mut locks = vec![sites[0].node.lock()?];
    let Some(unfinished) = open_set(&sites[0].node)? else { return Ok(None) };
    let mut at = Vec::new();
    for part in unfinished.set.parts() {
        let root = Path::new(&part.root);
        let index = match sites.iter().position(|site| site.root == root) {
            Some(index) => index,
            None => {
                let site = open(root)?;
                locks.push(site.node.lock()?);
                sites.push(site);
                sites.len() - 1
            }
        };
        at.push(index);
    }
    if supervisors == Supervisors::WaitFor {
        sites.iter().for_each(Site::wait_for_supervisor);
    }
    let ports: Vec<Ports<'_>> = sites.iter().map(|site| site.ports(context)).collect();
    let host = Host {
        sites: &sites,
        locks: &locks,
        ports: &ports,
        at: &at,
        set: None,
        downloads: RefCell::default(),
        context,
    };
    Ok(recover_set(&sites[0].node, &host)?)
}

/// Ends what an interrupted run left of a set at this root, if anything, before something new is begun.
///
/// # Errors
/// As [`recover`]; or going back failed.
pub(super) fn recover_first(root: &Path, settings: &Settings, context: &Context) -> Result<(), Failure> {
    if !root.join(".cutover").is_dir() {
        return Ok(());
    }
    let site = Site::open(root, settings.clone(), Missing::Refuse, "look")?;
    let Some(open) = open_set(&site.node)? else { return Ok(()) };
    drop(site);
    end_interrupted(Path::new(&open.id.coordinator), root, Supervisors::Ask, context)
}

/// As [`recover`], before something new is begun.
fn end_interrupted(
    coordinator: &Path,
    own: &Path,
    supervisors: Supervisors,
    context: &Context,
) -> Result<(), Failure> {
    if let Some(report) = recover(coordinator, own, supervisors, context)? {
        output::note(format!("an interrupted run was ended first: {}", output::printable(&report.message)));
        if failure::exit_of_outcome(&report.outcome) == Exit::RestoreFailed {
            return Err(failure_of(&report));
        }
    }
    Ok(())
}

/// Prints what a set did, and says how the run ends.
pub(super) fn finish(report: &SetReport, context: &Context) -> Result<Exit, Failure> {
    let exit = failure::exit_of_outcome(&report.outcome);
    let failure = (exit != Exit::Done).then(|| failure_of(report).naming_root(context.root.as_deref()));
    match context.form {
        Form::Json => output::json(&with_exit(serde_json::to_value(report), exit, failure.as_ref())?)?,
        Form::Text if exit == Exit::Done => {
            output::line(output::printable(&report.message));
            output::line(parts_table(report));
            if report.takes_back.is_none() {
                output::line(context.naming_root("`cutover rollback --whole-set` takes all of them back"));
            }
        }
        Form::Text => {}
    }
    tell_rest(&report.warnings, failure.as_ref());
    Ok(exit)
}

fn parts_table(report: &SetReport) -> String {
    let version =
        |version: &Option<Version>| version.as_ref().map_or_else(|| "-".to_owned(), Version::to_string);
    let rows = report.parts.iter().map(|part| {
        vec![
            part.package.to_string(),
            version(&part.from),
            version(&part.to),
            word(part.state).to_owned(),
            part.restore_point.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            part.root.clone(),
        ]
    });
    output::table(&["package", "from", "to", "state", "restore point", "root"], rows.collect())
}

fn word(state: PartState) -> &'static str {
    match state {
        PartState::Waiting => "waiting",
        PartState::Started => "started",
        PartState::Held => "held",
        PartState::Failed => "failed",
        PartState::Confirmed => "confirmed",
        PartState::Undone => "undone",
        PartState::UndoFailed => "undo failed",
    }
}

fn failure_of(report: &SetReport) -> Failure {
    let exit = failure::exit_of_outcome(&report.outcome);
    let mut failure = Failure::new(exit, report.message.clone());
    for log in report.parts.iter().filter_map(|part| part.failed_log.as_ref()) {
        failure = failure.hint(format!("the failed release's output is in `{}`", log.display()));
    }
    failure.hint(match exit {
        Exit::RestoreFailed => "act now: mend what the message names, then run `cutover recover`",
        _ => "`cutover history` lists what happened; nothing needs to be cleaned up",
    })
}
