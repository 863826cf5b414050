//! A simulated machine: a disk and a catalog that outlive its processes, and processes that live until they are killed.
//!
//! Everything a process does to the root goes through the production [`Node`]; what is simulated is only what it stands
//! on. Read [`Machine`] first, then [`Process`].

use std::{
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
        Layout, LocalChanges, OnProbeFailure, Policy, Refusal, RollbackTarget, plan_rollback, plan_update,
    },
    retain::Retention,
};
use cutover_host::{
    catalog::Catalog,
    clock::Clock,
    node::{
        CatalogPort, Edited, Node, NodeError, NodeLock, NodeOptions, NodePorts, Observed, Ports, PruneReport,
        RepairReport, Report,
    },
    payload::Payload,
    probe::{ProbeContext, ProbeOutcome, ProbeReport, ProbeResult, Prober},
    service::{Activated, Activation, ServiceError, ServiceManager, ServiceState, ServiceStatus},
};

use crate::{
    disk::FaultDisk,
    fault::{Call, Faults},
    fs::{FileSystem, Options},
};

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
    present: Present,
    world: Arc<World>,
}

/// What goes on beside the disk.
#[derive(Debug, Default)]
struct World {
    now: AtomicI64,
    probes: AtomicU64,
    running: Mutex<Option<ReleaseRef>>,
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

/// Every commit of the catalog is a point where the process may die.
fn gate(present: &Present) -> Box<dyn Fn() -> io::Result<()> + Send + Sync> {
    let present = present.clone();
    Box::new(move || {
        let disk = lock(&present).clone();
        disk.map_or(Ok(()), |disk| disk.effect("commit of the catalog", || Ok(())))
    })
}

impl Machine {
    /// A machine with an empty root.
    pub fn new(layout: Layout, options: Options) -> Self {
        let present = Present::default();
        let world = World::default();
        world.now.store(crate::release::RELEASED_AT + 1_000_000, Ordering::Relaxed);
        Self {
            fs: FileSystem::new(options),
            layout,
            verdicts: Arc::new(|_| ProbeOutcome::Passed),
            local_changes: LocalChanges::Refuse,
            catalog: Arc::new(Catalog::in_memory(gate(&present)).expect("memory")),
            present,
            world: Arc::new(world),
        }
    }

    /// A machine like this one with a future of its own.
    pub fn fork(&self) -> Self {
        let present = Present::default();
        let world = World::default();
        world.now.store(self.world.now.load(Ordering::Relaxed), Ordering::Relaxed);
        lock(&world.running).clone_from(&lock(&self.world.running));
        Self {
            fs: self.fs.clone(),
            layout: self.layout,
            verdicts: self.verdicts.clone(),
            local_changes: self.local_changes,
            catalog: Arc::new(self.catalog.fork(gate(&present)).expect("memory")),
            present,
            world: Arc::new(world),
        }
    }

    /// Loses the catalog, as when its file was damaged.
    pub fn lose_catalog(&mut self) {
        self.catalog = Arc::new(Catalog::in_memory(gate(&self.present)).expect("memory"));
    }

    /// Turns the clock, in either direction.
    pub fn turn_clock(&self, seconds: i64) {
        self.world.now.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The release whose service runs.
    pub fn running(&self) -> Option<ReleaseRef> {
        lock(&self.world.running).clone()
    }

    /// Runs one process from its start to its end or its death; the machine is then as it leaves it.
    pub fn run(&mut self, action: &Action, faults: Faults) -> Life {
        let (ended, life) = self.live(faults, |process| process.act(action));
        Life { ended, ..life }
    }

    /// Runs one process that does `work`.
    pub fn live<T>(&mut self, faults: Faults, work: impl FnOnce(&Process<'_>) -> T) -> (T, Life) {
        let disk = FaultDisk::new(self.fs.clone(), faults);
        *lock(&self.present) = Some(disk.clone());
        let probes = self.world.probes.load(Ordering::Relaxed);
        let done = work(&Process { machine: self, disk: disk.clone() });
        *lock(&self.present) = None;
        self.fs = disk.reboot();
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
                let report = self.with_ports(|ports| node.execute(guard, &plan, Some(payload), ports))?;
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
                let report = self.with_ports(|ports| node.execute(guard, &plan, None, ports))?;
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
        work(&Ports { service: &service, prober: &prober, observer: Arc::new(Silent), before_step: None })
    }
}

/// A clock that moves a second with each look at it.
struct SimulatedClock(Arc<World>);

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        Instant::from_unix(self.0.now.fetch_add(1, Ordering::Relaxed)).expect("in range")
    }
}

/// A service that runs whatever it is told to. It lives apart from our processes, so it survives their death.
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
        self.told("quiesce the service", || ())
    }

    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        self.told("activate the service", || {
            lock(&self.world.running).clone_from(&target.release);
            Activated::default()
        })
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        let mut status = ServiceStatus::bare(ServiceState::Ready, "simulated");
        status.release = lock(&self.world.running).clone();
        Ok(status)
    }
}

/// A prober that says what the story wants.
struct SimulatedProber {
    disk: FaultDisk,
    world: Arc<World>,
    verdicts: Verdicts,
}

impl Prober for SimulatedProber {
    fn probe(&self, context: &ProbeContext) -> ProbeReport {
        self.world.probes.fetch_add(1, Ordering::Relaxed);
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
