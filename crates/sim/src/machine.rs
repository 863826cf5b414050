//! A simulated machine: a disk and a catalog that outlive its processes, and processes that live until they are killed.
//!
//! Everything a process does to the root goes through the production [`Node`]; what is simulated is only what it stands
//! on. Read [`Machine`] first, then [`Process`].

use std::{
    error::Error,
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use cutover_core::{
    event::Silent,
    model::{Instant, Manifest, ReleaseRef},
    plan::{
        Layout, LocalChanges, OnProbeFailure, Policy, Refusal, RollbackTarget, SchemaSeen, plan_rollback,
        plan_update,
    },
    retain::Retention,
};
use cutover_host::{
    catalog::Catalog,
    clock::Clock,
    node::{
        CatalogPort, Edited, Node, NodeError, NodeLock, NodeOptions, NodePorts, Observed, Ports, PruneReport,
        RepairReport, Report, Status,
    },
    payload::Payload,
    probe::{ProbeContext, ProbeOutcome, ProbeReport, ProbeResult, Prober},
    schema::{Migration, SchemaManager},
    service::{Activated, Activation, ServiceError, ServiceManager, ServiceState, ServiceStatus},
};

use crate::{
    disk::FaultDisk,
    fault::{Call, Death, Fault, Faults, Moment, Op},
    fs::{FileSystem, Options},
};

mod sets;

pub use sets::{PART_ROOTS, SetAction, SetEnded, SetLife, SetMachine, SetStory};

/// What a process can be asked to do, as the commands of the program do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `apply`: the release of this index in [`crate::releases`].
    Update(usize),
    /// `rollback`.
    Rollback(RollbackTarget),
    /// `prune`.
    Prune(Retention),
    /// `repair`.
    Repair(Edited),
    /// `recover`.
    Recover,
}

/// What an action came to.
#[derive(Debug)]
pub enum Ended {
    /// An execution ran to its end.
    Executed(Box<Report>),
    /// There was nothing to recover.
    Nothing,
    /// It was pruned.
    Pruned(PruneReport),
    /// It was repaired.
    Repaired(RepairReport),
    /// There was no plan.
    Refused(Box<Refusal>),
    /// It failed.
    Failed(NodeError),
}

/// Where the present process of a machine can be found by what outlives it.
type Present = Arc<Mutex<Option<FaultDisk>>>;

/// How the probe of a release ends.
pub type Verdicts = Arc<dyn Fn(&ReleaseRef) -> ProbeOutcome + Send + Sync>;

/// A machine between two processes.
pub struct Machine {
    /// Its disk as the next process finds it.
    pub fs: FileSystem,
    /// The layout of its root.
    pub layout: Layout,
    /// What probes say.
    pub verdicts: Verdicts,
    /// What to do about edited config files.
    pub local_changes: LocalChanges,
    catalog: Arc<Catalog>,
    generation: Generation,
    present: Present,
    world: Arc<World>,
}

/// Stands for the content of a catalog: two catalogs of one generation hold the same.
type Generation = Arc<AtomicU64>;

/// The machine as it is at one call of a process.
struct Image {
    /// The disk and its cache.
    fs: FileSystem,
    service: Service,
    schema: Vec<String>,
    now: i64,
}

/// A process that went through undisturbed, and the machine at each of its calls.
pub(crate) struct Recording {
    /// What it did.
    pub(crate) life: Life,
    /// The machine it left.
    pub(crate) machine: Machine,
    /// Before each call, and after the last one.
    images: Vec<Image>,
    /// The catalog after so many commits, and its generation.
    catalogs: Vec<(Arc<Catalog>, u64)>,
    /// The calls from which on one more commit is done.
    commits: Vec<u64>,
}

/// What a process left when it died: a machine that has not booted yet.
pub(crate) struct Remains {
    /// What the next boot finds.
    pub(crate) fs: FileSystem,
    /// What its service does.
    pub(crate) service: Service,
    /// The migrations that its database has.
    pub(crate) schema: Vec<String>,
    /// Stands for the content of the catalog.
    pub(crate) generation: u64,
    catalog: Arc<Catalog>,
    now: i64,
}

/// The service of a root. Others run it, so it survives the death of our processes, and ends with the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The machine lost power. The next boot starts what is current then, as `cutover run` does.
    Off,
    /// It was stopped for a switch.
    Stopped,
    /// A boot has started it; whether it becomes ready, nobody has asked. Without a release there is nothing to run.
    Starting(Option<ReleaseRef>),
    /// Somebody waited until it was ready.
    Ready(Option<ReleaseRef>),
}

impl Service {
    /// The release that it runs.
    pub(crate) fn release(&self) -> Option<&ReleaseRef> {
        match self {
            Self::Off | Self::Stopped => None,
            Self::Starting(release) | Self::Ready(release) => release.as_ref(),
        }
    }

    /// What a boot starts: what is current, unless the files of an interrupted in-place switch lie half exchanged.
    fn boot(status: &Status) -> Self {
        let in_between = status.in_flight.as_ref().is_some_and(|in_flight| in_flight.tree_in_between);
        let runs = status.layout != Some(Layout::InPlace) || !in_between;
        Self::Starting(status.installed.clone().filter(|_| runs))
    }
}

impl Default for Service {
    fn default() -> Self {
        Self::Ready(None)
    }
}

/// What goes on beside the disk.
#[derive(Debug, Default)]
struct World {
    now: AtomicI64,
    probes: AtomicU64,
    service: Mutex<Service>,
    /// The texts of the migrations that the database has. It lives elsewhere and survives whatever happens here.
    schema: Mutex<Vec<String>>,
    /// What must never happen, did. A panic in a port would only fail the step.
    broken: Mutex<Option<String>>,
}

impl World {
    /// The same with a future of its own.
    fn fork(&self) -> Self {
        Self {
            now: self.now.load(Ordering::Relaxed).into(),
            probes: AtomicU64::default(),
            service: Mutex::new(lock(&self.service).clone()),
            schema: Mutex::new(lock(&self.schema).clone()),
            broken: Mutex::default(),
        }
    }

    fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            lock(&self.broken).get_or_insert_with(what);
        }
    }
}

/// What one process did.
#[derive(Debug)]
pub struct Life {
    /// What its action came to; whatever it says after a crash, nobody heard it.
    pub ended: Ended,
    /// Whether it died.
    pub crashed: bool,
    /// Every call it made.
    pub trace: Vec<Call>,
    /// The call that was hit by a fault.
    pub hit: Option<Call>,
    /// How often it probed.
    pub probes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the calls before and after each commit of the catalog are called.
const COMMIT: &str = "commit of the catalog";

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Every commit of the catalog is a point where the process may die.
fn gate(present: &Present, generation: &Generation) -> Box<dyn Fn() -> io::Result<()> + Send + Sync> {
    let (present, generation) = (present.clone(), generation.clone());
    Box::new(move || {
        // Before a commit nothing has changed yet; to count it as a change is harmless.
        generation.store(next_generation(), Ordering::Relaxed);
        let disk = lock(&present).clone();
        disk.map_or(Ok(()), |disk| disk.effect(COMMIT, || Ok(())))
    })
}

impl Machine {
    /// A machine with an empty root.
    pub fn new(layout: Layout, options: Options) -> Self {
        let (present, generation) = (Present::default(), Generation::new(next_generation().into()));
        let world = World::default();
        world.now.store(crate::release::RELEASED_AT + 1_000_000, Ordering::Relaxed);
        Self {
            fs: FileSystem::new(options),
            layout,
            verdicts: Arc::new(|_| ProbeOutcome::Passed),
            local_changes: LocalChanges::Refuse,
            catalog: Arc::new(Catalog::in_memory(gate(&present, &generation)).expect("memory")),
            generation,
            present,
            world: Arc::new(world),
        }
    }

    /// A machine like this one with a future of its own.
    pub fn fork(&self) -> Self {
        self.boot(self.remains())
    }

    /// What the catalog knows of releases, for comparisons.
    pub(crate) fn indexed(&self) -> String {
        format!("{:?} {:?}", self.catalog.releases(), self.catalog.tombstones())
    }

    /// What a process that ended here left.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            fs: self.fs.clone(),
            service: lock(&self.world.service).clone(),
            schema: lock(&self.world.schema).clone(),
            generation: self.generation.load(Ordering::Relaxed),
            catalog: self.catalog.clone(),
            now: self.world.now.load(Ordering::Relaxed),
        }
    }

    /// A machine like this one that goes on from `remains`.
    pub(crate) fn boot(&self, remains: Remains) -> Self {
        let (present, generation) = (Present::default(), Generation::new(remains.generation.into()));
        let world = World {
            now: remains.now.into(),
            probes: AtomicU64::default(),
            service: Mutex::new(remains.service),
            schema: Mutex::new(remains.schema),
            broken: Mutex::default(),
        };
        Self {
            fs: remains.fs,
            layout: self.layout,
            verdicts: self.verdicts.clone(),
            local_changes: self.local_changes,
            catalog: Arc::new(remains.catalog.fork(gate(&present, &generation)).expect("memory")),
            generation,
            present,
            world: Arc::new(world),
        }
    }

    /// Runs one process undisturbed on a fork of this machine and remembers the machine at each of its calls.
    pub(crate) fn record(&self, action: &Action) -> Recording {
        let mut machine = self.fork();
        let images: Arc<Mutex<Vec<Image>>> = Arc::default();
        let (world, taken) = (machine.world.clone(), images.clone());
        let image = move |fs: &FileSystem| Image {
            fs: fs.clone(),
            service: lock(&world.service).clone(),
            schema: lock(&world.schema).clone(),
            now: world.now.load(Ordering::Relaxed),
        };
        let look = image.clone();
        let life = machine.run(
            action,
            Faults::script(move |_, fs| {
                lock(&taken).push(look(fs));
                None
            }),
        );
        let mut images = std::mem::take(&mut *lock(&images));
        images.push(image(&machine.fs));
        // The gate is passed twice, before a commit and after it.
        let gates = life.trace.iter().filter(|call| call.op == Op::Other && call.names(COMMIT));
        let commits: Vec<u64> = gates.skip(1).step_by(2).map(|call| call.index).collect();
        let mut catalogs = vec![(self.catalog.clone(), self.generation.load(Ordering::Relaxed))];
        for call in commits.iter().rev().skip(1).rev() {
            let mut until = self.fork();
            until.run(action, Faults::at(*call, Fault::Crash(Moment::Before, Death::Kill)));
            catalogs.push((until.catalog, next_generation()));
        }
        if !commits.is_empty() {
            let catalog = machine.catalog.fork(Box::new(|| Ok(()))).expect("memory");
            catalogs.push((Arc::new(catalog), machine.generation.load(Ordering::Relaxed)));
        }
        Recording { life, machine, images, catalogs, commits }
    }

    /// Loses the catalog, as when its file was damaged.
    pub fn lose_catalog(&mut self) {
        self.generation.store(next_generation(), Ordering::Relaxed);
        self.catalog = Arc::new(Catalog::in_memory(gate(&self.present, &self.generation)).expect("memory"));
    }

    /// Turns the clock, in either direction.
    pub fn turn_clock(&self, seconds: i64) {
        self.world.now.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The release whose service runs.
    pub fn running(&self) -> Option<ReleaseRef> {
        lock(&self.world.service).release().cloned()
    }

    /// What is left when the power of the idle machine fails.
    pub(crate) fn after_power_cut(&self, seed: u64) -> Remains {
        Remains { fs: self.fs.after_power_cut(seed), service: Service::Off, ..self.remains() }
    }

    /// Cuts the power of the idle machine.
    pub fn cut_power(&mut self, seed: u64) {
        self.fs = self.fs.after_power_cut(seed);
        *lock(&self.world.service) = Service::Off;
    }

    /// Starts the service if the machine has just booted. That needs no lock and changes nothing on disk.
    fn start_service(&self) {
        if *lock(&self.world.service) == Service::Off {
            let disk = FaultDisk::new(self.fs.clone(), Faults::none());
            let status = Process { machine: self, disk }.node().and_then(|node| node.status());
            // A root that cannot be read runs nothing.
            let service = status.map_or(Service::Starting(None), |status| Service::boot(&status));
            *lock(&self.world.service) = service;
        }
    }

    /// Runs one process from its start to its end or its death; the machine is then as it leaves it.
    pub fn run(&mut self, action: &Action, faults: Faults) -> Life {
        let (ended, life) = self.live(faults, |process| process.act(action));
        Life { ended, ..life }
    }

    /// Runs one process that does `work`.
    pub fn live<T>(&mut self, faults: Faults, work: impl FnOnce(&Process<'_>) -> T) -> (T, Life) {
        self.start_service();
        let disk = FaultDisk::new(self.fs.clone(), faults);
        *lock(&self.present) = Some(disk.clone());
        let probes = self.world.probes.load(Ordering::Relaxed);
        let done = work(&Process { machine: self, disk: disk.clone() });
        *lock(&self.present) = None;
        assert_eq!(*lock(&self.world.broken), None, "what must never happen, did");
        self.fs = disk.reboot();
        if disk.has_lost_power() {
            *lock(&self.world.service) = Service::Off;
        }
        let life = Life {
            ended: Ended::Nothing,
            crashed: disk.has_crashed(),
            trace: disk.trace(),
            hit: disk.hit(),
            probes: self.world.probes.load(Ordering::Relaxed) - probes,
        };
        (done, life)
    }
}

impl Recording {
    /// What would have been left, had the process died at call `index`. `None` when that needs the call to be half
    /// done, which was not recorded.
    pub(crate) fn remains(&self, index: u64, moment: Moment, death: Death) -> Option<Remains> {
        let image = usize::try_from(index).expect("an index");
        let image = match moment {
            Moment::Before => self.images.get(image)?,
            Moment::During => return None,
            Moment::After => self.images.get(image + 1)?,
        };
        let commits = self.commits.iter().filter(|done| **done <= index).count();
        let (catalog, generation) = self.catalogs.get(commits)?.clone();
        let (fs, service) = match death {
            Death::Kill => (image.fs.after_kill(), image.service.clone()),
            Death::PowerCut { seed } => (image.fs.after_power_cut(seed), Service::Off),
        };
        Some(Remains { fs, service, schema: image.schema.clone(), generation, catalog, now: image.now })
    }
}

/// A process of the program while it lives.
pub struct Process<'m> {
    machine: &'m Machine,
    /// Its disk.
    pub disk: FaultDisk,
}

impl Process<'_> {
    /// Opens the root.
    ///
    /// # Errors
    /// Those of [`Node::open`].
    pub fn node(&self) -> Result<Node, NodeError> {
        let ports = NodePorts {
            disk: Arc::new(self.disk.clone()),
            catalog: CatalogPort::Shared(self.machine.catalog.clone()),
            clock: Arc::new(SimulatedClock(self.machine.world.clone())),
        };
        let options = NodeOptions {
            layout: Some(self.machine.layout),
            threads: NonZeroUsize::MIN,
            holder: "simulated".to_owned(),
            ..NodeOptions::default()
        };
        Node::open(ports, options)
    }

    /// Does what the program's command of the same name does, and in the same order.
    pub fn act(&self, action: &Action) -> Ended {
        self.try_act(action).unwrap_or_else(Ended::Failed)
    }

    fn try_act(&self, action: &Action) -> Result<Ended, NodeError> {
        let node = self.node()?;
        let guard = node.lock()?;
        let recovered = self.with_ports(|ports| node.recover(&guard, ports))?;
        match action {
            Action::Update(index) => self.update(&node, &guard, &crate::release::releases()[*index].bundle),
            Action::Rollback(target) => self.roll_back(&node, &guard, target),
            Action::Prune(retention) => Ok(Ended::Pruned(node.prune(&guard, retention)?)),
            Action::Repair(edited) => Ok(Ended::Repaired(node.repair(&guard, *edited)?)),
            Action::Recover => {
                Ok(recovered.map_or(Ended::Nothing, |report| Ended::Executed(Box::new(report))))
            }
        }
    }

    /// Installs a release from its bundle.
    ///
    /// # Errors
    /// Those of the engine; a refusal to plan is no error.
    pub fn update(&self, node: &Node, guard: &NodeLock, payload: &dyn Payload) -> Result<Ended, NodeError> {
        let observed = self.observe(node, Some(payload.manifest()))?;
        let planned =
            plan_update(&observed.observation, &payload.release(), payload.manifest(), &self.policy());
        match planned {
            Err(refusal) => Ok(Ended::Refused(Box::new(refusal))),
            Ok(plan) => {
                let report = self.with_ports(|ports| {
                    node.execute_on(observed, guard, &Arc::new(plan), Some(payload), ports)
                })?;
                Ok(Ended::Executed(Box::new(report)))
            }
        }
    }

    fn roll_back(&self, node: &Node, guard: &NodeLock, target: &RollbackTarget) -> Result<Ended, NodeError> {
        let observed = self.observe(node, None)?;
        let points = match observed.points_for(target) {
            Ok(points) => points,
            Err(damage) => {
                let problem = damage.to_string();
                return Err(NodeError::Damaged { path: "restore point".to_owned(), problem });
            }
        };
        match plan_rollback(&observed.observation, points, target, &self.policy()) {
            Err(refusal) => Ok(Ended::Refused(Box::new(refusal))),
            Ok(plan) => {
                let report =
                    self.with_ports(|ports| node.execute_on(observed, guard, &Arc::new(plan), None, ports))?;
                Ok(Ended::Executed(Box::new(report)))
            }
        }
    }

    fn observe(&self, node: &Node, wanted: Option<&Manifest>) -> Result<Observed, NodeError> {
        node.observe(wanted)
    }

    fn policy(&self) -> Policy {
        Policy {
            platform: "simulated".parse().expect("a name"),
            on_probe_failure: OnProbeFailure::Restore,
            local_changes: self.machine.local_changes,
            schema: Some(SchemaSeen { floor: 0 }),
            now: SimulatedClock(self.machine.world.clone()).now(),
        }
    }

    fn with_ports<T>(&self, work: impl FnOnce(&Ports<'_>) -> T) -> T {
        let service = SimulatedService { disk: self.disk.clone(), world: self.machine.world.clone() };
        let prober = SimulatedProber {
            disk: self.disk.clone(),
            world: self.machine.world.clone(),
            verdicts: self.machine.verdicts.clone(),
        };
        let schema = SimulatedSchema { disk: self.disk.clone(), world: self.machine.world.clone() };
        let observer = Arc::new(Silent);
        work(&Ports {
            service: &service,
            prober: &prober,
            schema: Some(&schema),
            observer,
            before_step: None,
        })
    }
}

/// A clock that moves a second with each look at it.
struct SimulatedClock(Arc<World>);

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        Instant::from_unix(self.0.now.fetch_add(1, Ordering::Relaxed)).expect("in range")
    }
}

/// A service that runs whatever it is told to, and stops for every switch.
struct SimulatedService {
    disk: FaultDisk,
    world: Arc<World>,
}

impl SimulatedService {
    fn told<T>(&self, what: &'static str, act: impl FnOnce() -> T) -> Result<T, ServiceError> {
        self.disk.effect(what, || Ok(act())).map_err(|source| ServiceError::Io {
            what,
            path: "the simulated service".into(),
            source,
        })
    }
}

impl ServiceManager for SimulatedService {
    fn quiesce(&self) -> Result<(), ServiceError> {
        self.told("quiesce the service", || *lock(&self.world.service) = Service::Stopped)
    }

    /// The code of a release works only on a database that has its migrations.
    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        let release = crate::release::releases()
            .iter()
            .find(|known| target.release.as_ref().is_some_and(|release| known.bundle.release() == *release));
        let needed = release.and_then(|release| release.bundle.manifest().schema.as_ref());
        let needed = needed.map_or(0, |schema| schema.migrations.len());
        let there = lock(&self.world.schema).len();
        self.world.demand(there >= needed, || {
            format!("{target:?} needs {needed} migrations, the database has {there}")
        });
        self.told("activate the service", || {
            *lock(&self.world.service) = Service::Ready(target.release.clone());
            Activated::default()
        })
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        let service = lock(&self.world.service).clone();
        let state = match service {
            Service::Off | Service::Stopped => ServiceState::Stopped,
            Service::Starting(_) => ServiceState::Starting,
            Service::Ready(_) => ServiceState::Ready,
        };
        let mut status = ServiceStatus::bare(state, "simulated");
        status.release = service.release().cloned();
        Ok(status)
    }
}

/// A database that is told of migrations and keeps each once.
struct SimulatedSchema {
    disk: FaultDisk,
    world: Arc<World>,
}

impl SchemaManager for SimulatedSchema {
    fn expand(
        &self,
        version: u64,
        migrations: &[Migration],
        _: &dyn Fn(u8),
    ) -> Result<String, Box<dyn Error + Send + Sync>> {
        self.world.demand(version == migrations.len() as u64, || format!("schema version {version}"));
        for (index, migration) in migrations.iter().enumerate() {
            let text = String::from_utf8_lossy(&migration.text).into_owned();
            self.disk.effect("commit of a migration", || {
                let mut schema = lock(&self.world.schema);
                if schema.len() <= index {
                    schema.push(text);
                } else {
                    self.world.demand(schema[index] == text, || format!("another migration {index}: {text}"));
                }
                Ok(())
            })?;
        }
        Ok(format!("schema {version}"))
    }
}

/// A prober that says what the story wants. What is probed has to be ready: a service that is still starting fails its probes.
struct SimulatedProber {
    disk: FaultDisk,
    world: Arc<World>,
    verdicts: Verdicts,
}

impl Prober for SimulatedProber {
    fn probe(&self, context: &ProbeContext) -> ProbeReport {
        self.world.probes.fetch_add(1, Ordering::Relaxed);
        let service = lock(&self.world.service).clone();
        self.world.demand(service == Service::Ready(Some(context.release.clone())), || {
            format!("{} is probed, the service is {service:?}", context.release)
        });
        let asked = self.disk.effect("probe the release", || Ok((self.verdicts)(&context.release)));
        let outcome = asked.unwrap_or(ProbeOutcome::Failed);
        let result = ProbeResult {
            name: "simulated".to_owned(),
            outcome,
            detail: "as the story wants".to_owned(),
            took_ms: 0,
            latency: None,
        };
        ProbeReport { results: vec![result] }
    }
}
