//! One root: everything that is installed below one directory, and every way to change it.
//!
//! Owns the order of effects on disk and nothing else: what to do comes from `cutover-core` as a plan, and how far it got
//! is the fold over its journal. Never decides about versions or policy, and never deletes what a restore point needs.
//! Read [`Node`] first, then the `engine` module.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use cutover_core::{
    event::Observer,
    execute::{Direction, Execution, FoldError, Record, StepState},
    lifecycle::{Entry, Lifecycle, State},
    model::{
        FileKind, Instant, Manifest, ManifestError, Name, ReleaseRef, RestorePointError, RestorePointId,
        SafePath, SeenTree, Version,
    },
    plan::{
        Installed, Layout, Observation, Plan, PlanKind, PointSeen, RollbackTarget, Violation, check_plan,
    },
    retain::Retention,
    set::{SetFoldError, SetId},
};

use self::{
    engine::{Run, Start},
    files::{Attempt as _, Files},
    journal::Journal,
    restore::Target,
    store::Store,
    tree::{Attributes, Difference, Hashes, Reading},
};
use crate::{
    catalog::{CATALOG_PATH, Catalog, CatalogError, HistoryRow, Tombstone},
    clock::Clock,
    disk::{Disk, EntryKind, Locked},
    nice::Nice,
    payload::Payload,
    probe::Prober,
    schema::SchemaManager,
    service::ServiceManager,
};

mod current;
mod engine;
mod events;
mod files;
mod garbage;
mod journal;
mod mend;
mod pack;
mod place;
mod prune;
mod report;
mod restore;
mod sets;
mod stage;
mod state_log;
mod store;
mod switch;
mod tree;

pub use current::release_built_from;
pub use pack::{PackError, PackIndex};
pub use report::{
    Drift, Driven, Held, InFlight, Observed, PointListed, PruneReport, RepairReport, Report, Status,
    StepReport, StepResult, Way,
};
pub use sets::{
    Member, Members, OpenSet, PartReport, PastSet, Perform, SetReport, coordinate, open_set, recover_set,
    sets, way_back,
};
pub use stage::StageError;
pub use state_log::{Idempotent, StateError, StateLog, StateObserver};
pub use store::StoreError;

/// An effect on the file system that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} `{}`", path.display())]
pub struct FsError {
    /// What was attempted.
    pub what: &'static str,
    /// On which path, relative to the root.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Why a restore point cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// Its manifest was altered or cannot be read.
    #[error("`{path}`: {source}")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong.
        source: RestorePointError,
    },
    /// A file it keeps was altered, is missing, or is one too many.
    #[error("file `{path}` of restore point {id} {problem}")]
    File {
        /// Which restore point.
        id: RestorePointId,
        /// The file, relative to the root.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// It, or the journal that vouches for it, cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No journal vouches for it.
    #[error("restore point {0} has no journal that vouches for it")]
    Unsealed(RestorePointId),
}

/// Why something could not be done with a root.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Another process holds the lock. Exit code 10.
    #[error("another run is already in progress on this root{}", if .holder.is_empty() { String::new() } else { format!(" ({})", .holder) })]
    AlreadyRunning {
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file system refused something.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The catalog refused something.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A restore point cannot be used. Exit code 17.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Files could not be laid down. Exit code 1.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// An object could not be had from the store. Exit code 17.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state log refused a change. Exit code 1.
    #[error(transparent)]
    State(#[from] StateError),
    /// Local state makes no sense. Exit code 17.
    #[error("local state is damaged: `{path}`: {problem}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A journal makes no sense. Exit code 17.
    #[error("local state is damaged: journal `{path}`")]
    Journal {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: FoldError,
    },
    /// The journal of a set makes no sense. Exit code 17.
    #[error("local state is damaged: journal `{path}`")]
    SetJournal {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: SetFoldError,
    },
    /// A manifest that was stored cannot be read. Exit code 17.
    #[error("local state is damaged: manifest `{path}`")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The root was laid out otherwise when it was first used. Exit code 13.
    #[error(
        "this root has layout {present:?}, {wanted:?} was asked for; the layout is chosen at the first use"
    )]
    Layout {
        /// What it has.
        present: Layout,
        /// What was asked for.
        wanted: Layout,
    },
    /// The world changed since the plan was made. Exit code 1.
    #[error("something changed since the plan was made; plan again")]
    Changed,
    /// The plan breaks a safety rule. Exit code 1.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// An update needs the bundle of the release it leads to.
    #[error("the plan leads to another release than the bundle holds")]
    Payload,
    /// An execution has not ended. Exit code 1.
    #[error("execution {0} was interrupted and has not ended; run `cutover recover` first")]
    Unfinished(u64),
    /// The root is part of a set that has not ended. Exit code 1.
    #[error(
        "this root is part of set {} of `{}`, which has not ended; run `cutover recover --root {}` first", .0.number, .0.coordinator, .0.coordinator
    )]
    InSet(SetId),
    /// A set was committed, and its execution here could not be confirmed yet. Exit code 15.
    #[error(
        "execution {number} is decided and could not be confirmed: {error}; mend this, then run `cutover recover`"
    )]
    NotConfirmed {
        /// The execution.
        number: u64,
        /// Why.
        error: String,
    },
    /// Not enough room. Exit code 12.
    #[error("{free} bytes are free below the root, {needed} are needed (twice what the update lays down)")]
    NoSpace {
        /// What is needed.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The journal could not be written: nothing more was done. Exit code 15.
    #[error("stopped: the journal could not be written; free or repair the disk, then run `cutover recover`")]
    Stopped(#[source] FsError),
    /// There is no such release. Exit code 1.
    #[error("no release {0} is known here")]
    UnknownRelease(Version),
    /// The release is needed. Exit code 13.
    #[error("release {0} is current or needed by a restore point")]
    Needed(Version),
}

/// Where the catalog is.
#[derive(Clone, Default)]
pub enum CatalogPort {
    /// In `.cutover/catalog.db`, opened when it is first needed.
    #[default]
    OnDisk,
    /// Here: the simulation's.
    Shared(Arc<Catalog>),
}

/// What a node stands on.
#[derive(Clone)]
pub struct NodePorts {
    /// The root directory.
    pub disk: Arc<dyn Disk>,
    /// Its catalog.
    pub catalog: CatalogPort,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The operator's choices about a root.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The layout for the first use; `None` takes what the root has, or `versioned`.
    pub layout: Option<Layout>,
    /// Other packages of this host, for requirements and conflicts.
    pub packages: BTreeMap<Name, Version>,
    /// Threads that lay down and hash files. The simulation uses one, so that the order of effects is always the same.
    pub threads: NonZeroUsize,
    /// How far these threads give way to others.
    pub nice: Nice,
    /// What the lock says about its holder, such as `pid 4711`.
    pub holder: String,
}

impl Default for NodeOptions {
    /// Any layout, no other packages, as many threads as there are processors up to four.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        Self {
            layout: None,
            packages: BTreeMap::new(),
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
            nice: Nice::NONE,
            holder: format!("pid {}", std::process::id()),
        }
    }
}

/// Whom an execution talks to.
pub struct Ports<'a> {
    /// Whoever runs the service.
    pub service: &'a dyn ServiceManager,
    /// Examines the release after the switch, exactly once.
    pub prober: &'a dyn Prober,
    /// Changes the schema of the service's database; `None` when none is configured, and then a release that carries
    /// migrations is not installed.
    pub schema: Option<&'a dyn SchemaManager>,
    /// Is told what happens. It runs on a thread of its own: a slow one delays nothing, a panicking one harms nothing.
    pub observer: Arc<dyn Observer>,
    /// Is called with a step's name in the execution's own thread, once the step's intent is durable and before it
    /// begins: the place where a test stops the process.
    pub before_step: Option<&'a dyn Fn(&'static str)>,
}

/// The usable restore points in the order they were made, and the damaged ones.
type Points = (Vec<PointSeen>, Vec<(RestorePointId, PointError)>);

/// A restore point, or why it is of no use.
type Point = Result<PointSeen, (RestorePointId, PointError)>;

/// The right to change a root: only one process has it. Freed when dropped, or by the kernel when the process dies.
pub struct NodeLock {
    _guard: Box<dyn std::any::Any + Send + Sync>,
}

/// One root.
pub struct Node {
    files: Files,
    ports: NodePorts,
    options: NodeOptions,
    hashes: Hashes,
    catalog: Mutex<Option<Arc<Catalog>>>,
}

impl Node {
    /// Takes a look at a root. Writes nothing: a root is made by the first [`Node::lock`].
    ///
    /// # Errors
    /// [`NodeError::Layout`] or damaged state.
    pub fn open(ports: NodePorts, options: NodeOptions) -> Result<Self, NodeError> {
        let files = Files::new(Arc::clone(&ports.disk), options.threads, options.nice);
        if let (Some(present), Some(wanted)) = (current::layout(&files)?, options.layout)
            && present != wanted
        {
            return Err(NodeError::Layout { present, wanted });
        }
        Ok(Self { files, ports, options, hashes: Hashes::default(), catalog: Mutex::new(None) })
    }

    /// Takes the lock, making `.cutover` on first use. Every method that changes something needs it.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRunning`], or the lock file cannot be made.
    pub fn lock(&self) -> Result<NodeLock, NodeError> {
        let files = &self.files;
        files.ensure_dir(place::META.as_ref(), 0o700)?;
        let lock = self.hold()?;
        // The layout is written last: a root that has one is whole.
        if current::layout(files)?.is_none() {
            for directory in place::DIRECTORIES {
                files.ensure_dir(directory.as_ref(), 0o700)?;
            }
            // Durable before it: a power cut may keep a later name and lose an earlier one.
            files.sync_dir(place::META.as_ref())?;
            files.sync_dir(Path::new(""))?;
            current::set_layout(files, self.options.layout.unwrap_or_default())?;
        }
        Ok(lock)
    }

    fn hold(&self) -> Result<NodeLock, NodeError> {
        match self.files.disk.lock(place::LOCK.as_ref(), &self.options.holder).attempt("lock", place::LOCK)? {
            Locked::Taken(guard) => Ok(NodeLock { _guard: guard }),
            Locked::Held { note } => Err(NodeError::AlreadyRunning { holder: note }),
        }
    }

    /// Removes what a first use left that died before the root had a layout, without choosing one. To be called instead
    /// of [`Node::lock`] and [`Node::recover`] when there is none.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRunning`], or it cannot be removed.
    pub fn forget_first_use(&self) -> Result<(), NodeError> {
        let files = &self.files;
        if files.exists(place::LAYOUT_NEW.as_ref())? {
            let _lock = self.hold()?;
            files.remove_file(place::LAYOUT_NEW.as_ref())?;
            files.sync_dir(place::META.as_ref())?;
        }
        Ok(())
    }

    fn clock(&self) -> &dyn Clock {
        self.ports.clock.as_ref()
    }

    /// The layout of the root, or the one it will get.
    fn layout(&self) -> Result<Layout, NodeError> {
        Ok(current::layout(&self.files)?.or(self.options.layout).unwrap_or_default())
    }

    /// The catalog, opened at the first need. One that was damaged is moved aside and filled again.
    fn catalog(&self) -> Result<Arc<Catalog>, NodeError> {
        let mut held = self.catalog.lock().expect("no holder panics");
        if let Some(catalog) = &*held {
            return Ok(Arc::clone(catalog));
        }
        let catalog = match &self.ports.catalog {
            CatalogPort::Shared(catalog) => Arc::clone(catalog),
            CatalogPort::OnDisk => {
                let fresh = !self.files.exists(CATALOG_PATH.as_ref())?;
                let opened = Catalog::open(self.files.disk.as_ref())?;
                if let Some(aside) = &opened.moved_aside {
                    tracing::warn!(%aside, "the catalog was damaged, is moved aside and filled again");
                }
                if fresh || opened.moved_aside.is_some() {
                    self.fill(&opened.catalog)?;
                }
                Arc::new(opened.catalog)
            }
        };
        self.hashes.load(|take| catalog.fingerprints(take))?;
        *held = Some(Arc::clone(&catalog));
        Ok(catalog)
    }

    /// The catalog unless there is none yet: what only reads does not make one.
    fn catalog_if_any(&self) -> Result<Option<Arc<Catalog>>, NodeError> {
        let shared = matches!(self.ports.catalog, CatalogPort::Shared(_));
        if shared || self.files.exists(CATALOG_PATH.as_ref())? { self.catalog().map(Some) } else { Ok(None) }
    }

    /// Fills a new catalog from what lies on disk: manifests, and journals for the history.
    fn fill(&self, catalog: &Catalog) -> Result<(), NodeError> {
        for digest in current::manifests(&self.files)? {
            if let Ok(Some(manifest)) = current::manifest(&self.files, digest) {
                catalog.index(digest, &manifest)?;
            }
        }
        for number in journal::numbers(&self.files)? {
            if journal::end(&self.files, number)? != journal::End::Ended {
                continue;
            }
            let Ok(Some(read)) = journal::read(&self.files, number) else { continue };
            let Ok(execution) = Execution::fold(read.records) else { continue };
            let (Some(outcome), Some((_, at))) = (execution.outcome(), read.written) else { continue };
            let plan = execution.plan();
            let version =
                |release: &Option<ReleaseRef>| release.as_ref().map(|release| release.version.clone());
            let point = RestorePointId::of_execution(number);
            let kept = self.files.exists(&place::point(&point))?;
            catalog.record(&HistoryRow {
                number: Some(number),
                at,
                action: engine::action(plan.kind).to_owned(),
                from: version(&plan.from),
                to: version(&plan.to),
                outcome: engine::outcome_name(outcome).to_owned(),
                error: match execution.direction() {
                    Direction::Forward => None,
                    Direction::Back { reason } => Some(reason.clone()),
                },
                restore_point: kept.then(|| point.to_string()),
            })?;
        }
        Ok(())
    }

    /// The newest execution that has not ended, with its journal. Outside of a set only the newest of all can be one,
    /// because none begins before the last has ended; within a set several may wait for it.
    fn unfinished(&self) -> Result<Option<(u64, Execution, journal::Read)>, NodeError> {
        let first_of_set = self.mark()?.map(|mark| mark.first);
        for number in journal::numbers(&self.files)?.into_iter().rev() {
            match journal::end(&self.files, number)? {
                journal::End::Ended if first_of_set.is_some_and(|first| first < number) => continue,
                journal::End::Ended => return Ok(None),
                // Its process died before the first line was whole.
                journal::End::Empty => continue,
                journal::End::Open => {}
            }
            let Some(read) = journal::read(&self.files, number)? else { continue };
            let execution = Execution::fold(read.records.iter().cloned()).map_err(|source| {
                NodeError::Journal { path: place::journal(number).display().to_string(), source }
            })?;
            return Ok(execution.outcome().is_none().then_some((number, execution, read)));
        }
        Ok(None)
    }

    /// Whether nothing is under way here that something else would disturb.
    fn must_be_idle(&self) -> Result<(), NodeError> {
        if let Some(mark) = self.mark()? {
            return Err(NodeError::InSet(mark.set));
        }
        match self.unfinished()? {
            Some((number, ..)) => Err(NodeError::Unfinished(number)),
            None => Ok(()),
        }
    }

    /// The number the next execution gets: above everything that has one.
    fn next_number(&self) -> Result<u64, NodeError> {
        let journals = journal::numbers(&self.files)?.last().copied();
        let points = restore::ids(&self.files)?.last().map(|(number, _)| *number);
        let history = match self.catalog_if_any()? {
            Some(catalog) => catalog.history(64)?.iter().filter_map(|row| row.number).max(),
            None => None,
        };
        Ok(journals.max(points).max(history).unwrap_or(0) + 1)
    }

    /// Looks at the present tree at every path of the installed and the `wanted` manifest, and at the store. Without a wanted
    /// manifest, for a rollback to anywhere, the restore points are read too, all of them.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn observe(&self, wanted: Option<&Manifest>) -> Result<Observed, NodeError> {
        let layout = self.layout()?;
        let points = match (wanted, layout) {
            (None, _) => self.points(layout)?,
            // Their paths count, and nothing else.
            (Some(_), Layout::InPlace) => {
                let mut paths = BTreeSet::new();
                self.each_point(layout, Target::Check, |seen| {
                    paths.extend(seen.point.files.keys().chain(&seen.point.added).cloned());
                })?;
                return self.observe_with(layout, wanted, paths, (Vec::new(), Vec::new()));
            }
            (Some(_), Layout::Versioned | Layout::Exchange) => (Vec::new(), Vec::new()),
        };
        self.observe_with(layout, wanted, paths_of(layout, &points.0), points)
    }

    /// As [`Node::observe`], for a rollback to `target`: of the restore points only those are read that it depends on, and of
    /// these only those are held that a plan is made from.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn observe_for_rollback(&self, target: &RollbackTarget) -> Result<Observed, NodeError> {
        let layout = self.layout()?;
        let (mut points, mut damaged) = (Vec::new(), Vec::new());
        let oldest = match target {
            RollbackTarget::Newest => None,
            RollbackTarget::Point(id) => restore::number_of(id),
        };
        let depends = |number: &u64| oldest.is_none_or(|oldest| *number >= oldest);
        for (number, id) in
            restore::ids(&self.files)?.into_iter().rev().take_while(|(number, _)| depends(number))
        {
            match self.point(layout, number, id, Target::Read)? {
                Some(Ok(seen)) => {
                    // In place the way back leads over every one of them; the release is that of the target.
                    if layout != Layout::InPlace {
                        points.clear();
                    }
                    points.iter_mut().for_each(|newer: &mut PointSeen| newer.manifest = None);
                    points.push(seen);
                    if *target == RollbackTarget::Newest {
                        break;
                    }
                }
                Some(Err(error)) => damaged.push(error),
                None => {}
            }
        }
        points.reverse();
        damaged.reverse();
        self.observe_with(layout, None, paths_of(layout, &points), (points, damaged))
    }

    /// Looks at everything a plan depends on but the restore points, whose paths are `paths`.
    fn observe_with(
        &self,
        layout: Layout,
        wanted: Option<&Manifest>,
        mut paths: BTreeSet<SafePath>,
        (points, damaged): Points,
    ) -> Result<Observed, NodeError> {
        // It remembers digests.
        self.catalog_if_any()?;
        let installed = self.installed(layout)?;
        let manifests = installed.iter().map(|installed| installed.manifest.as_ref()).chain(wanted);
        for manifest in manifests {
            paths.extend(manifest.files.iter().map(|file| file.path.clone()));
            paths.extend(manifest.symlinks.iter().map(|link| link.path.clone()));
            if layout != Layout::InPlace {
                paths.extend(manifest.shared.iter().cloned());
            }
        }
        let (base, attributes) = match (layout, &installed) {
            (Layout::InPlace, _) => (Some(PathBuf::new()), Attributes::Read),
            (_, Some(installed)) => (Some(current::tree(layout, &installed.release)), Attributes::Ignore),
            (_, None) => (None, Attributes::Ignore),
        };
        let paths: Vec<SafePath> = paths.into_iter().collect();
        let seen = match base {
            Some(base) => tree::look(&self.files, &base, &paths, attributes, &self.hashes)?,
            None => SeenTree::new(),
        };
        let observation = Observation {
            layout,
            next_number: self.next_number()?,
            installed,
            seen,
            stored: Store::open(&self.files)?.digests(),
            packages: self.options.packages.clone(),
        };
        Ok(Observed { observation, points, damaged })
    }

    fn installed(&self, layout: Layout) -> Result<Option<Installed>, NodeError> {
        let Some(release) = current::release(&self.files, layout)? else { return Ok(None) };
        let manifest = current::manifest_of(&self.files, &release)?;
        Ok(Some(Installed { release, manifest }))
    }

    /// All restore points.
    fn points(&self, layout: Layout) -> Result<Points, NodeError> {
        let mut points = Vec::new();
        let damaged = self.each_point(layout, Target::Read, |seen| points.push(seen))?;
        Ok((points, damaged))
    }

    /// Hands over the usable restore points in the order they were made, one at a time; returns the damaged ones.
    fn each_point(
        &self,
        layout: Layout,
        target: Target,
        mut take: impl FnMut(PointSeen),
    ) -> Result<Vec<(RestorePointId, PointError)>, NodeError> {
        let mut damaged = Vec::new();
        for (number, id) in restore::ids(&self.files)? {
            match self.point(layout, number, id, target)? {
                Some(Ok(seen)) => take(seen),
                Some(Err(error)) => damaged.push(error),
                None => {}
            }
        }
        Ok(damaged)
    }

    /// One restore point, or why it is of no use; `None` for that of an execution that was undone or is not that far.
    fn point(
        &self,
        layout: Layout,
        number: u64,
        id: RestorePointId,
        target: Target,
    ) -> Result<Option<Point>, NodeError> {
        match restore::see(&self.files, layout, &id, target) {
            Ok(seen) => Ok(Some(Ok(seen))),
            Err(PointError::Unsealed(_)) if self.files.exists(&place::journal(number))? => Ok(None),
            Err(error) => Ok(Some(Err((id, error)))),
        }
    }

    /// Runs `plan`, whoever made it, to its end: confirmed, or everything undone. `payload` is the bundle an update comes from.
    ///
    /// # Errors
    /// Refusals before anything is done, or [`NodeError::Stopped`]; how the execution itself ended is in the report.
    pub fn execute(
        &self,
        lock: &NodeLock,
        plan: &Plan,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
    ) -> Result<Report, NodeError> {
        let wanted = match plan.kind {
            PlanKind::Update => payload.map(|payload| &**payload.manifest()),
            PlanKind::Rollback => None,
        };
        self.execute_on(self.observe(wanted)?, lock, &Arc::new(plan.clone()), payload, ports)
    }

    /// As [`Node::execute`], on what was `observed` since the lock was taken: with the manifest of `payload` for an update,
    /// with none for a rollback.
    ///
    /// # Errors
    /// As [`Node::execute`].
    pub fn execute_on(
        &self,
        observed: Observed,
        lock: &NodeLock,
        plan: &Arc<Plan>,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
    ) -> Result<Report, NodeError> {
        self.must_be_idle()?;
        self.begin(observed, lock, plan, payload, ports, None)?.ended()
    }

    /// Runs `plan` to its end, or until it waits for the set it is part of. Nothing else may be under way.
    fn begin(
        &self,
        observed: Observed,
        lock: &NodeLock,
        plan: &Arc<Plan>,
        payload: Option<&dyn Payload>,
        ports: &Ports<'_>,
        set: Option<SetId>,
    ) -> Result<Driven, NodeError> {
        let wanted = match plan.kind {
            PlanKind::Update => payload.map(|payload| (payload.release(), payload.manifest())),
            PlanKind::Rollback => None,
        };
        if plan.kind == PlanKind::Update && wanted.as_ref().map(|(release, _)| release) != plan.to.as_ref() {
            return Err(NodeError::Payload);
        }
        let Observed { observation, points, damaged: _ } = observed;
        if observation.digest() != plan.based_on {
            return Err(NodeError::Changed);
        }
        let wanted = wanted.as_ref().map(|(release, manifest)| (release, &***manifest));
        check_plan(plan, &observation, wanted, &points)?;
        // From here on only this is needed of what was observed; the rest takes megabytes.
        let seen = present(observation);
        drop(points);
        self.files.manifests.let_go();
        self.files.points.let_go();
        let space = self.files.disk.space().attempt("ask for free space", "")?;
        if space.free_bytes < plan.bytes.need {
            return Err(NodeError::NoSpace { needed: plan.bytes.need, free: space.free_bytes });
        }
        journal::keep_reserve(&self.files)?;
        let version = plan.to.as_ref().map(|to| &to.version);
        let mut log = self.state_log(lock)?;
        let path = engine::path_to(log.lifecycle().state(), State::Applying);
        log.go_through(&path, version)?;
        drop(log);
        let journal = Journal::create(&self.files, place::journal(plan.number))?;
        let plan = Arc::clone(plan);
        let start = Start {
            payload,
            journal,
            execution: Execution::new(Arc::clone(&plan)).in_set(set.clone()),
            first: vec![Record::Planned { plan, set }],
            seen: Some(seen),
        };
        Run::new(self, lock, ports, start).drive()
    }

    /// Takes up what an interrupted process left: its execution, removals and staged files. `None` when there was no
    /// execution to end. Runs at the start of every command that changes something.
    ///
    /// # Errors
    /// As [`Node::execute`]; [`NodeError::InSet`] when the root is part of a set, which only [`recover_set`] can end.
    pub fn recover(&self, lock: &NodeLock, ports: &Ports<'_>) -> Result<Option<Report>, NodeError> {
        let files = &self.files;
        if let Some(mark) = self.mark()? {
            return Err(NodeError::InSet(mark.set));
        }
        let report = match self.unfinished()? {
            None => None,
            Some((number, mut execution, read)) => {
                if let Some(set) = execution.set().filter(|_| !execution.is_released()) {
                    // Its mark was removed by hand; what the set came to is not known here.
                    return Err(NodeError::InSet(set.clone()));
                }
                // What the dead process did is seen, but perhaps not on disk: a power cut must not take back what this
                // run builds on.
                files.sync_all()?;
                let first = Record::Resumed;
                execution.apply(&first).map_err(|what| current::damaged(place::journal(number), what))?;
                let journal = Journal::resume(files, place::journal(number), &read)?;
                let start = Start { payload: None, journal, execution, first: vec![first], seen: None };
                Some(Run::new(self, lock, ports, start).drive()?.ended()?)
            }
        };
        if self.unfinished()?.is_none() {
            self.tidy(lock)?;
        }
        journal::keep_reserve(files)?;
        Ok(report)
    }

    /// Removes what dead processes left: journals that never began, staged files, trash, buried releases.
    fn tidy(&self, lock: &NodeLock) -> Result<(), NodeError> {
        let files = &self.files;
        for number in journal::numbers(files)?.into_iter().rev() {
            match journal::end(files, number)? {
                journal::End::Empty => files.discard(&place::journal(number))?,
                journal::End::Ended | journal::End::Open => break,
            }
        }
        if !files.list(place::TRASH.as_ref())?.is_empty() {
            // What a dead process moved there must not come back under its old name with parts missing.
            files.sync_all()?;
        }
        for directory in [place::STAGING, place::TRASH] {
            for (name, _) in files.list(directory.as_ref())? {
                files.remove_tree(&Path::new(directory).join(name))?;
            }
        }
        if let Some(catalog) = self.catalog_if_any()? {
            for tombstone in catalog.tombstones()? {
                self.bury(&catalog, &tombstone)?;
            }
        }
        let mut log = self.state_log(lock)?;
        if log.lifecycle().state() == State::Failed {
            log.reset()?;
        }
        let path = engine::path_to(log.lifecycle().state(), State::Idle);
        log.go_through(&path, None)?;
        Ok(())
    }

    /// Removes what a tombstone stands for, then the tombstone. Can be cut off anywhere and run again.
    fn bury(&self, catalog: &Catalog, tombstone: &Tombstone) -> Result<(), NodeError> {
        let files = &self.files;
        for (path, release) in current::trees(files)? {
            if release.manifest == tombstone.manifest {
                files.discard(&path)?;
            }
        }
        files.remove_file(&place::manifest(tombstone.manifest))?;
        files.remove_file(&place::signature(tombstone.manifest))?;
        files.sync_dir(place::MANIFESTS.as_ref())?;
        garbage::sweep(files)?;
        Ok(catalog.drop_tombstone(tombstone)?)
    }

    /// What the root holds.
    ///
    /// # Errors
    /// Damaged state.
    pub fn status(&self) -> Result<Status, NodeError> {
        let layout = current::layout(&self.files)?;
        let installed = self.installed(layout.unwrap_or_default())?;
        let (release, manifest) = match installed {
            Some(Installed { release, manifest }) => (Some(release), Some(manifest)),
            None => (None, None),
        };
        let highest = match (self.catalog_if_any()?, &release) {
            (Some(catalog), Some(release)) => catalog.highest(&release.package)?,
            _ => None,
        };
        let in_flight = self.unfinished()?.map(|(number, execution, _)| {
            let begun = execution.steps().iter().rposition(|state| *state != StepState::Waiting);
            InFlight {
                number,
                step: begun.map(|index| execution.plan().steps[index].name()),
                back: match execution.direction() {
                    Direction::Forward => None,
                    Direction::Back { reason } => Some(reason.clone()),
                },
                plan: execution.plan().clone(),
            }
        });
        let restore_points = restore::ids(&self.files)?.len();
        let set = self.mark()?.map(|mark| mark.set);
        Ok(Status { layout, installed: release, manifest, highest, in_flight, restore_points, set })
    }

    /// The restore points, newest first.
    ///
    /// # Errors
    /// They cannot be listed; a damaged one is an entry.
    pub fn restore_points(&self) -> Result<Vec<PointListed>, NodeError> {
        let (points, damaged) = self.points(self.layout()?)?;
        let good = points.into_iter().map(|seen| PointListed { id: seen.point.id.clone(), point: Ok(seen) });
        let bad = damaged.into_iter().map(|(id, error)| PointListed { id, point: Err(error) });
        let mut listed: Vec<PointListed> = good.chain(bad).collect();
        listed.sort_by_key(|listed| std::cmp::Reverse(restore::number_of(&listed.id)));
        Ok(listed)
    }

    /// What happened here, newest first.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn history(&self, limit: usize) -> Result<Vec<HistoryRow>, NodeError> {
        match self.catalog_if_any()? {
            Some(catalog) => Ok(catalog.history(limit)?),
            None => Ok(Vec::new()),
        }
    }

    /// Empties the history.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn clear_history(&self, _lock: &NodeLock) -> Result<(), NodeError> {
        Ok(self.catalog()?.clear_history()?)
    }

    /// Writes an attempt into the history that never came to an execution, such as a refused rollback.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn record(&self, _lock: &NodeLock, row: &HistoryRow) -> Result<(), NodeError> {
        Ok(self.catalog()?.record(row)?)
    }

    /// The state log, open for changes.
    ///
    /// # Errors
    /// It cannot be read or repaired.
    pub fn state_log(&self, lock: &NodeLock) -> Result<StateLog<'_>, NodeError> {
        StateLog::open(&self.files, self.clock(), lock)
    }

    /// The state of the node and the newest `limit` entries of its state log, newest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn state(&self, limit: usize) -> Result<(Lifecycle, Vec<(Instant, Entry)>), NodeError> {
        state_log::look(&self.files, limit)
    }

    /// Hashes the present tree and compares it with the installed release. Changes nothing.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn verify(&self) -> Result<Drift, NodeError> {
        let layout = self.layout()?;
        let Some(installed) = self.installed(layout)? else { return Ok(Drift::default()) };
        let base = current::tree(layout, &installed.release);
        let expected = tree::expected_of_manifest(&installed.manifest, layout);
        let differences = tree::differences(&self.files, &base, &expected, Reading::Always)?;
        let config: BTreeSet<&SafePath> = installed
            .manifest
            .files
            .iter()
            .filter(|file| file.kind == FileKind::Config)
            .map(|file| &file.path)
            .collect();
        let mut drift =
            Drift { release: Some(installed.release.clone()), checked: expected.len(), ..Drift::default() };
        for (path, difference) in differences {
            match difference {
                Difference::Missing => drift.missing.push(path),
                Difference::Mode => drift.mode_changed.push(path),
                Difference::Content if config.contains(&path) => drift.edited.push(path),
                Difference::Content => drift.damaged.push(path),
            }
        }
        if layout != Layout::InPlace {
            let known: BTreeSet<&str> = expected.keys().map(SafePath::as_str).collect();
            self.find_extra(&base, "", &known, &mut drift.extra)?;
        }
        Ok(drift)
    }

    /// Collects what lies in a tree beyond `known`.
    fn find_extra(
        &self,
        base: &Path,
        within: &str,
        known: &BTreeSet<&str>,
        extra: &mut Vec<String>,
    ) -> Result<(), NodeError> {
        for (name, kind) in self.files.list(&base.join(within))? {
            let path = if within.is_empty() { name } else { format!("{within}/{name}") };
            match kind {
                _ if known.contains(path.as_str()) || path == place::MARKER => {}
                EntryKind::Directory => self.find_extra(base, &path, known, extra)?,
                EntryKind::File | EntryKind::Symlink | EntryKind::Other => extra.push(path),
            }
        }
        Ok(())
    }

    /// Makes the present tree as installed again, file by file from the store.
    ///
    /// # Errors
    /// Something cannot be read or written; files repaired before that stay repaired.
    pub fn repair(&self, lock: &NodeLock, edited: Edited) -> Result<RepairReport, NodeError> {
        self.must_be_idle()?;
        let layout = self.layout()?;
        let Some(installed) = self.installed(layout)? else { return Ok(RepairReport::default()) };
        let drift = self.verify()?;
        let base = current::tree(layout, &installed.release);
        let expected = tree::expected_of_manifest(&installed.manifest, layout);
        let mut wanted: BTreeMap<SafePath, Difference> = BTreeMap::new();
        wanted.extend(drift.damaged.into_iter().map(|path| (path, Difference::Content)));
        wanted.extend(drift.missing.into_iter().map(|path| (path, Difference::Missing)));
        wanted.extend(drift.mode_changed.into_iter().map(|path| (path, Difference::Mode)));
        if edited == Edited::Replace {
            wanted.extend(drift.edited.into_iter().map(|path| (path, Difference::Content)));
        }
        let scratch = Path::new(place::STAGING).join("repair");
        let unrepairable = mend::mend(&self.files, &base, &expected, &wanted, &scratch)?;
        let left: BTreeSet<&SafePath> = unrepairable.iter().map(|(path, _)| path).collect();
        let repaired: Vec<SafePath> = wanted.keys().filter(|path| !left.contains(path)).cloned().collect();
        if !wanted.is_empty() {
            let problem = unrepairable.first().map(|(path, reason)| format!("`{path}`: {reason}"));
            let version = Some(installed.release.version);
            self.record(
                lock,
                &HistoryRow {
                    number: None,
                    at: self.clock().now(),
                    action: "repair".to_owned(),
                    from: version.clone(),
                    to: version,
                    outcome: if problem.is_some() { "failed" } else { "confirmed" }.to_owned(),
                    error: problem,
                    restore_point: None,
                },
            )?;
        }
        Ok(RepairReport { repaired, unrepairable })
    }

    /// Removes restore points that `retention` does not keep, and whatever nothing names any more. Older ones that stay
    /// go compressed to the store.
    ///
    /// # Errors
    /// Something cannot be removed; what was removed stays removed, and the rest follows the next time.
    pub fn prune(&self, lock: &NodeLock, retention: &Retention) -> Result<PruneReport, NodeError> {
        prune::prune(self, lock, retention, prune::Measure::Everything)
    }

    /// As [`Node::prune`], without measuring: costs nothing when there is nothing to do. For the end of every update.
    ///
    /// # Errors
    /// As [`Node::prune`].
    pub fn prune_after_update(
        &self,
        lock: &NodeLock,
        retention: &Retention,
    ) -> Result<PruneReport, NodeError> {
        prune::prune(self, lock, retention, prune::Measure::Nothing)
    }

    /// Removes a release that is neither current nor led back to by a restore point: from the index, and its tree,
    /// manifest and objects from the disk.
    ///
    /// # Errors
    /// [`NodeError::UnknownRelease`] or [`NodeError::Needed`]; nothing is changed then.
    pub fn forget(&self, _lock: &NodeLock, version: &Version) -> Result<(), NodeError> {
        prune::forget(self, version)
    }

    /// The releases this root knows, newest version first.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn releases(&self) -> Result<Vec<ReleaseRef>, NodeError> {
        prune::releases(self)
    }
}

/// What was found of the release that is installed.
fn present(observation: Observation) -> SeenTree {
    let Observation { installed, seen, .. } = observation;
    let Some(installed) = installed else { return SeenTree::new() };
    let Manifest { files, symlinks, shared, .. } = installed.manifest.as_ref();
    let links = symlinks.iter().map(|link| &link.path);
    let mut ours: Vec<&SafePath> = files.iter().map(|file| &file.path).chain(links).chain(shared).collect();
    ours.sort_unstable();
    let is_ours = |path: &SafePath| ours.binary_search(&path).is_ok();
    if seen.keys().all(is_ours) {
        return seen;
    }
    let kept = seen.iter().filter(|(path, _)| is_ours(path));
    kept.map(|(path, file)| (path.clone(), file.clone())).collect()
}

/// The paths that restore points say something about; in the other layouts they are those of whole trees.
fn paths_of(layout: Layout, points: &[PointSeen]) -> BTreeSet<SafePath> {
    let points = points.iter().filter(|_| layout == Layout::InPlace);
    points.flat_map(|seen| seen.point.files.keys().chain(&seen.point.added)).cloned().collect()
}

/// What `repair` does about edited config files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edited {
    /// They stay as they are.
    #[default]
    Keep,
    /// They become as installed; the edits are lost.
    Replace,
}
