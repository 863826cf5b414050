//! Several roots of one simulated machine that change as one execution, on one disk that dies as a whole.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use cutover_core::{
    execute::Outcome,
    model::RestorePointId,
    plan::{Copies, Layout, RollbackTarget, plan_rollback},
    set::{Back, Part, Set},
};
use cutover_host::{
    clock::Clock as _,
    disk::{Copied, Disk, EntryKind, Locked, Metadata, NewFile, OpenFile, Space},
    node::{Member, Members, Perform, SetReport, coordinate, open_set, recover_set, way_back},
};

use super::{
    AtomicU64, Call, Catalog, CatalogPort, FaultDisk, Faults, FileSystem, Generation, LocalChanges, Node,
    NodeError, NodeLock, NodeOptions, NodePorts, NonZeroUsize, OnProbeFailure, Options, Policy, Ports,
    Present, ProbeOutcome, ReleaseRef, SchemaSeen, Service, Silent, SimulatedClock, SimulatedProber,
    SimulatedSchema, SimulatedService, Verdicts, World, gate, lock, next_generation, plan_update,
};
use crate::{
    release::releases,
    state::{Visible, damaged_objects_below, leftovers_below, shared_inodes_below},
};

/// The roots of the machine; the last keeps the journal of the set.
pub const PART_ROOTS: [&str; 3] = ["a", "b", "c"];

/// What changes together, and what goes wrong without any fault.
#[derive(Clone, Debug)]
pub struct SetStory {
    /// What it is called.
    pub name: &'static str,
    /// For each root the release that is installed before, if any.
    pub before: [Option<usize>; 3],
    /// The parts: a root and the release that it gets.
    pub parts: Vec<(usize, usize)>,
    /// What happens while things go wrong.
    pub action: SetAction,
    /// The root whose probe fails from then on.
    pub probe_fails: Option<usize>,
}

/// What a story of a set does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAction {
    /// The set changes.
    Update,
    /// It has changed, and is taken back.
    TakeBack,
}

impl SetStory {
    /// The stories that are swept.
    pub fn all() -> Vec<Self> {
        let three = vec![(0, 1), (1, 1), (2, 1)];
        let before = [Some(0), Some(0), Some(0)];
        let update =
            |name, parts, probe_fails| Self { name, before, parts, action: SetAction::Update, probe_fails };
        let take_back = |story: Self| Self { action: SetAction::TakeBack, ..story };
        vec![
            update("set", three.clone(), None),
            update("failing-set", three.clone(), Some(2)),
            Self {
                before: [Some(0), None, Some(0)],
                ..update("set-by-a-version-between", vec![(0, 1), (0, 2), (1, 1), (2, 1)], None)
            },
            Self {
                before: [Some(0), None, Some(0)],
                // What comes after the version between is not next to it.
                ..update("failing-set-by-a-version-between", vec![(0, 1), (1, 1), (0, 2), (2, 1)], Some(2))
            },
            // It goes back by one step where it came by two, and to nothing where nothing was.
            take_back(Self {
                before: [Some(0), None, Some(0)],
                ..update("set-rollback", vec![(0, 1), (1, 1), (0, 2), (2, 1)], None)
            }),
            take_back(update("failing-set-rollback", three, Some(0))),
        ]
    }
}

/// What a process came to.
#[derive(Debug)]
pub enum SetEnded {
    /// A set ran to its end.
    Ran(Box<SetReport>),
    /// There was nothing to recover.
    Nothing,
    /// It failed.
    Failed(NodeError),
}

impl SetEnded {
    /// How the set ended, if it did.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ran(report) => Some(&report.outcome),
            Self::Nothing | Self::Failed(_) => None,
        }
    }
}

/// What one process did.
#[derive(Debug)]
pub struct SetLife {
    /// What it came to; whatever it says after a crash, nobody heard it.
    pub ended: SetEnded,
    /// Whether it died.
    pub crashed: bool,
    /// Every call it made.
    pub trace: Vec<Call>,
}

/// A machine with several roots between two processes.
pub struct SetMachine {
    /// Its disk as the next process finds it.
    pub fs: FileSystem,
    layout: Layout,
    story: SetStory,
    /// Whether the probe that the story names fails now.
    fails: bool,
    catalogs: Vec<Arc<Catalog>>,
    generations: Vec<Generation>,
    present: Present,
    worlds: Vec<Arc<World>>,
}

impl SetMachine {
    /// The machine as it is before the set: what the story says is installed.
    ///
    /// # Errors
    /// What did not go as it should, though nothing was broken yet.
    pub fn prepare(story: SetStory, layout: Layout) -> Result<Self, String> {
        let present = Present::default();
        let generations: Vec<Generation> =
            PART_ROOTS.iter().map(|_| Arc::new(AtomicU64::new(next_generation()))).collect();
        let catalogs = generations
            .iter()
            .map(|generation| Arc::new(Catalog::in_memory(gate(&present, generation)).expect("memory")))
            .collect();
        let worlds = PART_ROOTS
            .iter()
            .map(|_| {
                let world = World::default();
                world.now.store(crate::release::RELEASED_AT + 1_000_000, Ordering::Relaxed);
                Arc::new(world)
            })
            .collect();
        let fs = FileSystem::new(Options::default());
        let mut machine = Self { fs, layout, story, fails: false, catalogs, generations, present, worlds };
        let disk = FaultDisk::new(machine.fs.clone(), Faults::none());
        for root in PART_ROOTS {
            disk.create_dir(Path::new(root), 0o755).map_err(|error| error.to_string())?;
        }
        disk.sync_all().map_err(|error| error.to_string())?;
        machine.fs = disk.reboot();
        for (root, release) in machine.story.before.into_iter().enumerate() {
            if let Some(release) = release {
                machine.install(root, release)?;
            }
        }
        if machine.story.action == SetAction::TakeBack {
            let life = machine.run(Faults::none(), |host| host.begin(SetAction::Update));
            if life.ended.outcome() != Some(&Outcome::Confirmed) {
                return Err(format!("before it is taken back: {:?}", life.ended));
            }
        }
        machine.fails = true;
        Ok(machine)
    }

    /// Installs a release in one root alone.
    ///
    /// # Errors
    /// It is not confirmed.
    pub fn install(&mut self, root: usize, release: usize) -> Result<(), String> {
        let (installed, _) = self.live(Faults::none(), |host| {
            let payload = &releases()[release].bundle;
            let (node, lock) = (&host.nodes[root], &host.locks[root]);
            let recovered = node.recover(lock, &host.ports[root])?;
            if recovered.is_some() {
                return Err(NodeError::Changed);
            }
            let observed = node.observe(Some(payload.manifest()))?;
            let plan = plan_update(
                &observed.observation,
                &payload.release(),
                payload.manifest(),
                &host.policy(root),
            )
            .map_err(|_| NodeError::Changed)?;
            node.execute_on(observed, lock, &Arc::new(plan), Some(payload), &host.ports[root])
        });
        match installed.and_then(|report| report) {
            Ok(report) if report.outcome == Outcome::Confirmed => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// A machine like this one with a future of its own.
    pub fn fork(&self) -> Self {
        let present = Present::default();
        let generations: Vec<Generation> = self
            .generations
            .iter()
            .map(|generation| Arc::new(AtomicU64::new(generation.load(Ordering::Relaxed))))
            .collect();
        let catalogs = self
            .catalogs
            .iter()
            .zip(&generations)
            .map(|(catalog, generation)| Arc::new(catalog.fork(gate(&present, generation)).expect("memory")))
            .collect();
        let worlds = self.worlds.iter().map(|world| Arc::new(world.fork())).collect();
        Self {
            fs: self.fs.clone(),
            layout: self.layout,
            story: self.story.clone(),
            fails: self.fails,
            catalogs,
            generations,
            present,
            worlds,
        }
    }

    /// What a user of each root sees.
    pub fn visible(&self) -> Vec<Visible> {
        PART_ROOTS.iter().map(|root| Visible::below(&self.fs, root, self.layout)).collect()
    }

    /// The release whose service runs, by root.
    pub fn running(&self) -> Vec<Option<ReleaseRef>> {
        self.worlds.iter().map(|world| lock(&world.service).release().cloned()).collect()
    }

    /// Cuts the power of the idle machine.
    pub(crate) fn cut_power(&mut self, seed: u64) {
        self.fs = self.fs.after_power_cut(seed);
        self.switch_off();
    }

    fn switch_off(&self) {
        for world in &self.worlds {
            *lock(&world.service) = Service::Off;
        }
    }

    /// Starts the services if the machine has just booted, as [`super::Machine`] does.
    fn start_services(&self) {
        for (root, world) in self.worlds.iter().enumerate() {
            if *lock(&world.service) == Service::Off {
                let disk = FaultDisk::new(self.fs.clone(), Faults::none());
                let status = self.node(&disk, root).and_then(|node| node.status());
                let service = status.map_or(Service::Starting(None), |status| Service::boot(&status));
                *lock(&world.service) = service;
            }
        }
    }

    /// What should not be there once nothing is going on.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = PART_ROOTS
            .iter()
            .flat_map(|root| {
                leftovers_below(&self.fs, root).into_iter().map(move |path| format!("{root}/{path}"))
            })
            .collect();
        let marks = PART_ROOTS.map(|root| format!("{root}/.cutover/set.json"));
        found.extend(marks.into_iter().filter(|mark| self.fs.read_file(mark).is_some()));
        found
    }

    /// Makes the probe of the story pass from now on.
    pub fn mend(&mut self) {
        self.fails = false;
    }

    /// One process that does what `apply` or `rollback` of a set does: it first ends what an earlier one left.
    pub fn act(&mut self, faults: Faults) -> SetLife {
        let action = self.story.action;
        self.run(faults, |host| {
            host.recover_set()?;
            host.recover_roots()?;
            host.begin(action)
        })
    }

    /// One process that does what `recover` does.
    pub fn recover(&mut self, faults: Faults) -> SetLife {
        self.run(faults, |host| {
            let report = host.recover_set()?;
            host.recover_roots().map(|()| report)
        })
    }

    fn run(
        &mut self,
        faults: Faults,
        work: impl FnOnce(&Host<'_>) -> Result<Option<SetReport>, NodeError>,
    ) -> SetLife {
        let (done, mut life) = self.live(faults, work);
        life.ended = match done.and_then(|done| done) {
            Ok(Some(report)) => SetEnded::Ran(Box::new(report)),
            Ok(None) => SetEnded::Nothing,
            Err(error) => SetEnded::Failed(error),
        };
        life
    }

    /// Runs one process that locks every root and does `work`.
    fn live<T>(
        &mut self,
        faults: Faults,
        work: impl FnOnce(&Host<'_>) -> T,
    ) -> (Result<T, NodeError>, SetLife) {
        self.start_services();
        let disk = FaultDisk::new(self.fs.clone(), faults);
        *lock(&self.present) = Some(disk.clone());
        let done = self.process(&disk, work);
        *lock(&self.present) = None;
        for world in &self.worlds {
            assert_eq!(*lock(&world.broken), None, "what must never happen, did");
        }
        self.fs = disk.reboot();
        if disk.has_lost_power() {
            self.switch_off();
        }
        let life = SetLife { ended: SetEnded::Nothing, crashed: disk.has_crashed(), trace: disk.trace() };
        (done, life)
    }

    fn node(&self, disk: &FaultDisk, root: usize) -> Result<Node, NodeError> {
        let ports = NodePorts {
            disk: Arc::new(Below { disk: disk.clone(), root: PART_ROOTS[root] }),
            catalog: CatalogPort::Shared(self.catalogs[root].clone()),
            clock: Arc::new(SimulatedClock(self.worlds[root].clone())),
        };
        let options = NodeOptions {
            layout: Some(self.layout),
            threads: NonZeroUsize::MIN,
            holder: "simulated".to_owned(),
            ..NodeOptions::default()
        };
        Node::open(ports, options)
    }

    /// What is wrong with what each root keeps: damaged objects, live files that share an inode with what repairs them, restore
    /// points that cannot be used.
    pub(crate) fn damage(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (root, name) in PART_ROOTS.iter().enumerate() {
            let at = Path::new(name);
            found.extend(
                damaged_objects_below(&self.fs, at)
                    .into_iter()
                    .map(|object| format!("{name}: damaged object {object}")),
            );
            found.extend(
                shared_inodes_below(&self.fs, at)
                    .into_iter()
                    .map(|path| format!("{name}: shared inode {path}")),
            );
            let disk = FaultDisk::new(self.fs.clone(), Faults::none());
            match self.node(&disk, root).and_then(|node| node.restore_points()) {
                Err(error) => found.push(format!("{name}: restore points: {error:?}")),
                Ok(points) => found.extend(points.into_iter().filter_map(|listed| {
                    Some(format!("{name}: restore point {}: {:?}", listed.id, listed.point.err()?))
                })),
            }
        }
        found
    }

    fn process<T>(&self, disk: &FaultDisk, work: impl FnOnce(&Host<'_>) -> T) -> Result<T, NodeError> {
        let (mut nodes, mut locks, mut around) = (Vec::new(), Vec::new(), Vec::new());
        for (root, world) in self.worlds.iter().enumerate() {
            let node = self.node(disk, root)?;
            locks.push(node.lock()?);
            nodes.push(node);
            let fails = self.fails && self.story.probe_fails == Some(root);
            let outcome = if fails { ProbeOutcome::Failed } else { ProbeOutcome::Passed };
            let verdicts: Verdicts = Arc::new(move |_| outcome);
            around.push((
                SimulatedService { disk: disk.clone(), world: world.clone() },
                SimulatedProber { disk: disk.clone(), world: world.clone(), verdicts },
                SimulatedSchema { disk: disk.clone(), world: world.clone() },
            ));
        }
        let ports: Vec<Ports<'_>> = around
            .iter()
            .map(|(service, prober, schema)| Ports {
                service,
                prober,
                schema: Some(schema),
                observer: Arc::new(Silent),
                before_step: None,
            })
            .collect();
        Ok(work(&Host {
            machine: self,
            nodes: &nodes,
            locks: &locks,
            ports: &ports,
            roots: RefCell::default(),
            work: RefCell::default(),
        }))
    }
}

/// A process of the program while it lives, with every root locked.
struct Host<'p> {
    machine: &'p SetMachine,
    nodes: &'p [Node],
    locks: &'p [NodeLock],
    ports: &'p [Ports<'p>],
    /// The root of each part of the set that is under way.
    roots: RefCell<Vec<usize>>,
    /// What each part does, if this process began the set.
    work: RefCell<Vec<Work>>,
}

/// What a part does.
#[derive(Clone)]
enum Work {
    /// It installs a release.
    Install(usize),
    /// It goes back to what this restore point leads to.
    GoBack(RestorePointId),
}

impl Host<'_> {
    fn policy(&self, root: usize) -> Policy {
        Policy {
            platform: "simulated".parse().expect("a name"),
            on_probe_failure: OnProbeFailure::Restore,
            local_changes: LocalChanges::Refuse,
            schema: Some(SchemaSeen { floor: 0 }),
            now: SimulatedClock(self.machine.worlds[root].clone()).now(),
        }
    }

    fn parts(&self) -> Vec<Part> {
        let mut has = self.machine.story.before;
        let version = |release: usize| releases()[release].bundle.release().version;
        let part = |(root, release): &(usize, usize)| Part {
            package: format!("package-{}", PART_ROOTS[*root]).parse().expect("a name"),
            root: format!("/simulated/{}", PART_ROOTS[*root]),
            from: has[*root].replace(*release).map(version),
            to: Some(version(*release)),
        };
        self.machine.story.parts.iter().map(part).collect()
    }

    fn update(&self) -> Result<Option<SetReport>, NodeError> {
        let parts = self.parts();
        let work = self.machine.story.parts.iter().map(|(_, release)| Work::Install(*release));
        self.is_about(&parts, work.collect());
        coordinate(&self.nodes[2], Set::new(parts), self).map(Some)
    }

    fn take_back(&self) -> Result<Option<SetReport>, NodeError> {
        // Whichever root is asked, it knows which set that was.
        let set = self.nodes[0].set_of_point(None)?.ok_or(NodeError::Changed)?;
        let back = way_back(&self.nodes[2], set.number)?.ok_or(NodeError::Changed)?;
        let point = |back: &Back| Work::GoBack(RestorePointId::of_execution(back.execution));
        let work = back.iter().map(point).collect();
        let parts: Vec<Part> = back.into_iter().map(|back| back.part).collect();
        self.is_about(&parts, work);
        coordinate(&self.nodes[2], Set::new(parts).taking_back(Some(set.number)), self).map(Some)
    }

    fn try_perform(&self, part: usize, run: &mut Perform<'_>) -> Result<(), String> {
        let root = self.roots.borrow()[part];
        let (node, policy) = (&self.nodes[root], self.policy(root));
        let wrong = |error: NodeError| format!("{error:?}");
        let work = self.work.borrow()[part].clone();
        match work {
            Work::Install(release) => {
                let payload = &releases()[release].bundle;
                let observed = node.observe(Some(payload.manifest())).map_err(wrong)?;
                let plan =
                    plan_update(&observed.observation, &payload.release(), payload.manifest(), &policy)
                        .map_err(|refusal| refusal.to_string())?;
                run(observed, &Arc::new(plan), Some(payload)).map(drop).map_err(wrong)
            }
            Work::GoBack(id) => {
                let observed = node.observe(None).map_err(wrong)?;
                let target = RollbackTarget::Point(id);
                let points = observed.points_for(&target).map_err(ToString::to_string)?;
                let plan = plan_rollback(&observed.observation, points, &target, &policy)
                    .map_err(|refusal| refusal.to_string())?;
                run(observed, &Arc::new(plan), None).map(drop).map_err(wrong)
            }
        }
    }

    fn begin(&self, action: SetAction) -> Result<Option<SetReport>, NodeError> {
        match action {
            SetAction::Update => self.update(),
            SetAction::TakeBack => self.take_back(),
        }
    }

    /// Takes up the set that an earlier process left.
    fn recover_set(&self) -> Result<Option<SetReport>, NodeError> {
        let Some(open) = open_set(&self.nodes[2])? else { return Ok(None) };
        self.is_about(open.set.parts(), Vec::new());
        recover_set(&self.nodes[2], self)
    }

    /// Takes up what an earlier process left in each root alone.
    fn recover_roots(&self) -> Result<(), NodeError> {
        for root in 0..PART_ROOTS.len() {
            self.nodes[root].recover(&self.locks[root], &self.ports[root])?;
        }
        Ok(())
    }

    fn is_about(&self, parts: &[Part], work: Vec<Work>) {
        let root = |part: &Part| {
            let name = part.root.strip_prefix("/simulated/");
            PART_ROOTS.iter().position(|root| Some(*root) == name).expect("a root of this machine")
        };
        *self.roots.borrow_mut() = parts.iter().map(root).collect();
        *self.work.borrow_mut() = work;
    }
}

impl Members for Host<'_> {
    fn member(&self, part: usize) -> Member<'_> {
        let root = self.roots.borrow()[part];
        Member { node: &self.nodes[root], lock: &self.locks[root], ports: &self.ports[root] }
    }

    fn perform(&self, part: usize, run: &mut Perform<'_>) -> Result<(), String> {
        self.try_perform(part, run)
    }
}

/// A directory of a disk as a disk.
struct Below {
    disk: FaultDisk,
    root: &'static str,
}

impl Below {
    fn at(&self, path: &Path) -> PathBuf {
        Path::new(self.root).join(path)
    }
}

impl Disk for Below {
    fn root(&self) -> PathBuf {
        self.disk.root().join(self.root)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile + '_>> {
        self.disk.open(&self.at(path))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        self.disk.create(&self.at(path), mode)
    }

    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        self.disk.append(&self.at(path), mode)
    }

    fn truncate(&self, path: &Path, size: u64) -> io::Result<()> {
        self.disk.truncate(&self.at(path), size)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(&self.at(from), &self.at(to))
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.disk.exchange(&self.at(a), &self.at(b))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.hard_link(&self.at(from), &self.at(to))
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> io::Result<Copied> {
        self.disk.copy(&self.at(from), &self.at(to), mode)
    }

    fn reflink(&self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        self.disk.reflink(&self.at(from), &self.at(to), mode)
    }

    fn symlink(&self, target: &str, link: &Path) -> io::Result<()> {
        self.disk.symlink(target, &self.at(link))
    }

    fn read_link(&self, path: &Path) -> io::Result<String> {
        self.disk.read_link(&self.at(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(&self.at(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(&self.at(path))
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.disk.create_dir(&self.at(path), mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, EntryKind)>> {
        self.disk.list(&self.at(path))
    }

    fn metadata(&self, path: &Path) -> io::Result<Option<Metadata>> {
        self.disk.metadata(&self.at(path))
    }

    fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        self.disk.xattrs(&self.at(path))
    }

    fn set_ownership(
        &self,
        path: &Path,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        self.disk.set_ownership(&self.at(path), uid, gid, xattrs)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.disk.set_mode(&self.at(path), mode)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(&self.at(path))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.disk.sync_all()
    }

    fn time_ns(&self) -> i128 {
        self.disk.time_ns()
    }

    fn lock(&self, path: &Path, note: &str) -> io::Result<Locked> {
        self.disk.lock(&self.at(path), note)
    }

    fn copies(&self) -> Copies {
        self.disk.copies()
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }
}
