//! One root with everything around it: settings, node, service, probes. Shared by all commands that work on a root.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cutover_core::{
    model::{Instant, Manifest, Name, ReleaseRef, Version},
    plan::{Layout, OnProbeFailure, Plan, Policy, Step},
};
use cutover_host::{
    clock::Clock,
    disk::RealDisk,
    node::{CatalogPort, Node, NodeError, NodeLock, NodeOptions, NodePorts, Observed, Ports, Report},
    preflight::{
        Check, DependencyCheck, DiskCheck, MemoryCheck, Need, PreflightReport, PreflightSettings,
        SameFileSystemCheck, ServiceCheck, WritableCheck, available_memory, disk_space, run_checks,
    },
    probe::{OnFailure, Probes},
    service::{Activation, ServiceManager, ServiceState, service_manager, supervisor::Current},
};

use super::{Context, outcome, schema_port::SchemaPort};
use crate::{clock, exit::Exit, failure::Failure, files, output, progress, settings::Settings};

/// How long recovery waits for the supervisor that started it.
const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Instant {
        clock::now()
    }
}

/// What becomes of a root that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is made: this is its first use.
    Make,
    /// It is looked at as if it were an empty directory.
    Imagine,
    /// Whatever was asked, the answer is that nothing is there.
    Refuse,
}

/// One root with everything around it.
pub(super) struct Site {
    pub(super) root: PathBuf,
    pub(super) settings: Settings,
    pub(super) node: Arc<Node>,
    pub(super) service: Arc<dyn ServiceManager>,
    packages: BTreeMap<Name, Version>,
    probes: Probes,
    schema: Option<SchemaPort>,
    /// The empty directory that stands for a root that is not there.
    _imagined: Option<tempfile::TempDir>,
}

impl Site {
    /// Opens a root for whatever needs to know nothing of the other packages on the host, and so depends on no other root.
    ///
    /// # Errors
    /// It is not there, was laid out otherwise, or is damaged.
    pub(super) fn open(
        root: &Path,
        settings: Settings,
        missing: Missing,
        command: &str,
    ) -> Result<Self, Failure> {
        Self::open_among(root, settings, BTreeMap::new(), missing, command)
    }

    /// Opens a root to plan an update of it among the other packages on the host.
    ///
    /// # Errors
    /// As [`Site::open`], of this root or of another one.
    pub(super) fn open_to_update(
        root: &Path,
        settings: Settings,
        missing: Missing,
        command: &str,
    ) -> Result<Self, Failure> {
        let packages = packages(root, &settings)?;
        Self::open_among(root, settings, packages, missing, command)
    }

    /// As [`Site::open`], with these other packages on the host.
    ///
    /// # Errors
    /// As [`Site::open`].
    pub(super) fn open_among(
        root: &Path,
        settings: Settings,
        packages: BTreeMap<Name, Version>,
        missing: Missing,
        command: &str,
    ) -> Result<Self, Failure> {
        files::text("root", root)?;
        let mut imagined = None;
        let root = match (root.is_dir(), missing) {
            (false, Missing::Refuse) => {
                return Err(Failure::usage(format!("there is no root `{}`", root.display()))
                    .hint("the first `cutover apply BUNDLE` makes it"));
            }
            (false, Missing::Imagine) => {
                let directory = tempfile::tempdir()
                    .map_err(|source| Failure::io("make a directory in", &std::env::temp_dir(), source))?;
                imagined = Some(directory);
                std::path::absolute(root)
            }
            (false, Missing::Make) => {
                crate::files::make_directory(root, 0o755)?;
                root.canonicalize()
            }
            (true, _) => root.canonicalize(),
        }
        .map_err(|source| Failure::io("find", root, source))?;
        // Journals, plans and the supervisor's socket write it as text.
        files::text("root", &root)?;
        let looked_at = imagined.as_ref().map_or(root.as_path(), tempfile::TempDir::path);
        let node = Arc::new(node_at(looked_at, &settings, packages.clone(), command)?);
        let of = (Arc::clone(&node), root.clone());
        let current = move || {
            // Whoever asks for the service is not told of damaged state here.
            let (release, tree, hints) = current(&of.0, &of.1).ok().flatten()?;
            Some(Activation { release: Some(release), tree, hints, anew: false })
        };
        let service: Arc<dyn ServiceManager> = Arc::from(service_manager(&settings.service, &root, current));
        let probes = Probes::new(&settings.probes, Arc::clone(&service));
        let schema = settings.schema.url.is_some().then(|| SchemaPort::new(&settings.schema, &root));
        Ok(Self { root, settings, node, service, packages, probes, schema, _imagined: imagined })
    }

    /// Other packages of this host.
    pub(super) fn packages(&self) -> &BTreeMap<Name, Version> {
        &self.packages
    }

    /// What the operator wants, for the planner.
    ///
    /// # Errors
    /// This platform has no name.
    pub(super) fn policy(&self, now: Instant) -> Result<Policy, Failure> {
        Ok(Policy {
            platform: platform(&self.settings)?,
            on_probe_failure: match self.settings.probes.on_failure {
                OnFailure::Restore => OnProbeFailure::Restore,
                OnFailure::Keep => OnProbeFailure::Keep,
            },
            local_changes: self.settings.install.local_changes,
            schema: self.schema.as_ref().map(SchemaPort::seen).transpose()?,
            now,
        })
    }

    /// Whom an execution talks to.
    pub(super) fn ports(&self, context: &Context) -> Ports<'_> {
        Ports {
            service: self.service.as_ref(),
            prober: &self.probes,
            schema: self.schema.as_ref().map(|port| port as &dyn cutover_host::schema::SchemaManager),
            observer: progress::observer(context.progress),
            before_step: None,
        }
    }

    /// Takes the lock, and first of all ends what an interrupted run left.
    ///
    /// # Errors
    /// Another run holds the lock; or going back failed, and nothing may be begun before somebody has acted.
    pub(super) fn lock_and_recover(&self, context: &Context) -> Result<NodeLock, Failure> {
        Ok(self.lock_and_tell(context)?.0)
    }

    /// The same, with what became of an interrupted run.
    ///
    /// # Errors
    /// As [`Site::lock_and_recover`].
    pub(super) fn lock_and_tell(&self, context: &Context) -> Result<(NodeLock, Option<Report>), Failure> {
        let lock = self.node.lock()?;
        let recovered = self.node.recover(&lock, &self.ports(context))?;
        if let Some(report) = &recovered {
            output::note(format!(
                "an interrupted run was ended first: {}",
                output::printable(&report.message)
            ));
            let exit = crate::failure::exit_of_outcome(&report.outcome);
            if exit == Exit::RestoreFailed {
                return Err(outcome::failure_of(report));
            }
        }
        Ok((lock, recovered))
    }

    /// What the supervisor runs: the release, where it lies, and how it wants to be run.
    ///
    /// # Errors
    /// Damaged state.
    pub(super) fn current(&self) -> Result<Option<Current>, Failure> {
        current(&self.node, &self.root)
    }

    /// Waits until the supervisor of this root answers; recovery goes on without it when it does not.
    pub(super) fn wait_for_supervisor(&self) {
        let started = std::time::Instant::now();
        while started.elapsed() < WAIT_MAX {
            match self.service.status() {
                Ok(status) if status.state == ServiceState::NoSupervisor => std::thread::sleep(LOOK_EVERY),
                Ok(_) => return,
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Checks this host before anything changes. `wanted` is the release, and the other packages it will be among.
    ///
    /// # Errors
    /// Exit code 12 with the first reason; all results are printed.
    pub(super) fn preflight(
        &self,
        plan: &Plan,
        wanted: Option<(&Manifest, &BTreeMap<Name, Version>)>,
    ) -> Result<PreflightReport, Failure> {
        let settings = &self.settings.preflight;
        let meta = self.root.join(".cutover");
        let mut checks: Vec<Box<dyn Check>> = vec![
            Box::new(DiskCheck::new(vec![self.need(plan)], disk_space)),
            Box::new(WritableCheck::new(vec![self.root.clone(), meta.clone()])),
            Box::new(SameFileSystemCheck::new(vec![meta, self.root.clone(), self.root.join("releases")])),
            Box::new(ServiceCheck::new(Arc::clone(&self.service))),
        ];
        if settings.memory_mib > 0 {
            checks.push(Box::new(MemoryCheck::new(settings.memory_mib << 20, available_memory)));
        }
        if let Some((manifest, packages)) = wanted {
            let packages = packages.clone();
            checks.push(Box::new(DependencyCheck::new(
                manifest.requires.clone(),
                manifest.conflicts.clone(),
                move || Ok(packages.clone()),
            )));
        }
        check(checks, settings)
    }

    /// The room a plan needs at this root.
    pub(super) fn need(&self, plan: &Plan) -> Need {
        Need { path: self.root.clone(), bytes: plan.bytes.need, inodes: entries(plan) }
    }

    /// Runs a plan; the whole process stops (SIGSTOP) before the step `stop_at`, so that a test can look at it or kill it.
    ///
    /// # Errors
    /// Refusals before anything is done.
    pub(super) fn execute(
        &self,
        observed: Observed,
        lock: &NodeLock,
        plan: &Arc<Plan>,
        payload: Option<&dyn cutover_host::payload::Payload>,
        context: &Context,
        stop_at: Option<&String>,
    ) -> Result<Report, Failure> {
        let stop = |step: &'static str| {
            if stop_at.is_some_and(|wanted| wanted == step) {
                // Cannot fail for the process itself.
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            }
        };
        let ports = Ports { before_step: Some(&stop), ..self.ports(context) };
        Ok(self.node.execute_on(observed, lock, plan, payload, &ports)?)
    }
}

/// The release that is current, where it lies, and how it wants to be run.
fn current(node: &Node, root: &Path) -> Result<Option<Current>, Failure> {
    let status = node.status()?;
    let (Some(release), Some(manifest), Some(layout)) = (status.installed, status.manifest, status.layout)
    else {
        return Ok(None);
    };
    let tree = match layout {
        Layout::InPlace => root.to_owned(),
        Layout::Exchange => root.join("current"),
        Layout::Versioned => root.join("releases").join(release.name().as_str()),
    };
    Ok(Some((release, tree, manifest.service.clone())))
}

/// Runs checks as settings say.
///
/// # Errors
/// Exit code 12 with the first reason.
pub(super) fn check(
    checks: Vec<Box<dyn Check>>,
    settings: &PreflightSettings,
) -> Result<PreflightReport, Failure> {
    let report = run_checks(checks, settings.budget());
    match report.refusal(settings.unknown) {
        None => Ok(report),
        Some(reason) => Err(Failure::new(Exit::Preflight, format!("preflight refused: {reason}"))
            .hint("mend this and apply again; nothing was changed")),
    }
}

/// Files and directories a plan makes, generously.
fn entries(plan: &Plan) -> u64 {
    let staged = plan.steps.iter().map(|step| match step {
        Step::Stage(stage) => stage.files.len() + stage.symlinks.len() + stage.shared.len(),
        Step::CheckTree(_)
        | Step::RestorePoint { .. }
        | Step::Expand(_)
        | Step::Quiesce
        | Step::Switch(_)
        | Step::Activate
        | Step::Probe
        | Step::Confirm => 0,
    });
    entries_of(staged.sum())
}

/// Files and directories that laying down so many takes: each may bring an object for the store and a directory.
pub(super) fn entries_of(staged: usize) -> u64 {
    64 + 3 * staged as u64
}

/// This host's platform.
///
/// # Errors
/// It has no name that could be used.
pub(super) fn platform(settings: &Settings) -> Result<Name, Failure> {
    match &settings.package.platform {
        Some(platform) => Ok(platform.clone()),
        None => format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
            .parse()
            .map_err(|_| Failure::usage("this platform has no name; set `package.platform`")),
    }
}

/// Other packages of this host: those that are named, and those in other roots.
fn packages(root: &Path, settings: &Settings) -> Result<BTreeMap<Name, Version>, Failure> {
    let mut packages = settings.preflight.packages.clone();
    let beside = installed_beside(root, settings)?.into_iter();
    packages.extend(beside.map(|(release, _)| (release.package, release.version)));
    Ok(packages)
}

/// A release that is installed somewhere, and its manifest.
pub(super) type Installed = (ReleaseRef, Arc<Manifest>);

/// What a root holds; nothing when it is not there.
///
/// # Errors
/// It cannot be looked at.
pub(super) fn installed(root: &Path) -> Result<Option<Installed>, Failure> {
    if !root.is_dir() {
        return Ok(None);
    }
    let status = node_at(root, &Settings::default(), BTreeMap::new(), "look")?.status()?;
    Ok(status.installed.zip(status.manifest))
}

/// What the other roots of this host hold.
///
/// # Errors
/// A root cannot be looked at.
pub(super) fn installed_beside(root: &Path, settings: &Settings) -> Result<Vec<Installed>, Failure> {
    let others = other_roots(root, settings)?;
    let found = others.iter().map(|root| installed(root)).collect::<Result<Vec<_>, _>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// The other roots of this host: those in `package.roots`, and those in `package.sites` that are there already.
fn other_roots(own: &Path, settings: &Settings) -> Result<Vec<PathBuf>, Failure> {
    let missing = settings.package.roots.iter().find(|root| !root.is_dir());
    if let Some(root) = missing {
        let message = format!("`package.roots` names `{}`, which is not there", root.display());
        return Err(Failure::usage(message));
    }
    let own = own.canonicalize().ok();
    let sites = settings.package.sites.values().filter(|root| root.is_dir());
    let others = settings.package.roots.iter().chain(sites);
    Ok(others.filter(|root| own.is_none() || root.canonicalize().ok() != own).cloned().collect())
}

fn node_at(
    root: &Path,
    settings: &Settings,
    packages: BTreeMap<Name, Version>,
    command: &str,
) -> Result<Node, Failure> {
    let disk: Arc<RealDisk> =
        Arc::new(RealDisk::open(root).map_err(|source| Failure::io("open the root", root, source))?);
    let defaults = NodeOptions::default();
    let open = |layout| {
        let options = NodeOptions {
            layout,
            packages: packages.clone(),
            threads: NonZeroUsize::new(settings.install.jobs).unwrap_or(defaults.threads),
            nice: settings.install.nice,
            holder: format!("pid {}, `cutover {command}`", std::process::id()),
        };
        Node::open(
            NodePorts { disk: disk.clone(), catalog: CatalogPort::OnDisk, clock: Arc::new(WallClock) },
            options,
        )
    };
    match open(settings.install.layout) {
        // The setting is for roots that were never used.
        Err(NodeError::Layout { .. }) => Ok(open(None)?),
        opened => Ok(opened?),
    }
}

/// Refuses a layout that was asked for on the command line when the root has another one.
///
/// # Errors
/// Exit code 13.
pub(super) fn must_have_layout(site: &Site, wanted: Option<Layout>) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    match site.node.status()?.layout {
        Some(present) if present != wanted => Err(NodeError::Layout { present, wanted }.into()),
        Some(_) | None => Ok(()),
    }
}
