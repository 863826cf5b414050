//! A process that dies at any effect on the disk: afterwards the tree is entirely old or entirely new, and everything works.
//!
//! Here the disk is a real one and keeps what was written (`kill -9`). An update or rollback dies at every effect; for a
//! recovery that dies, too, the pairs of effects are sampled, the same in every run. The simulation takes more of them, in its
//! full sweep every second call after a kill, with a disk that also forgets what was not flushed, and `cargo xtask crash` all
//! calls of the real program.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use cutover_core::{
    execute::Outcome,
    plan::{Layout, RollbackTarget},
};
use cutover_host::{
    catalog::Catalog,
    disk::{Copied, Disk, EntryKind, Locked, Metadata, NewFile, OpenFile, RealDisk, Space},
    node::CatalogPort,
};

use crate::world::{LAYOUTS, Tree, Verdict, Verified, World, first, second};

/// Lets so many effects happen and then answers nothing any more.
struct Mortal {
    disk: RealDisk,
    left: AtomicUsize,
    dead: Arc<AtomicBool>,
    /// Whether the last effect still happens, or only its caller never hears of it.
    last_happens: bool,
}

fn dead<T>() -> io::Result<T> {
    Err(io::Error::other("the process is dead"))
}

impl Mortal {
    /// Runs an effect unless the process is dead or dies of it.
    fn effect<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.dead.load(Ordering::SeqCst) {
            return dead();
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.dead.store(true, Ordering::SeqCst);
            if self.last_happens {
                let _ = work();
            }
            return dead();
        }
        work()
    }

    fn look<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.dead.load(Ordering::SeqCst) { dead() } else { work() }
    }
}

struct MortalFile<'a>(&'a Mortal, Box<dyn NewFile + 'a>);

impl Write for MortalFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Torn: a write that is cut off leaves half of it.
        if self.0.left.load(Ordering::SeqCst) == 1 && self.0.last_happens {
            let half = &bytes[..bytes.len() / 2];
            return self.0.effect(|| self.1.write(half));
        }
        self.0.effect(|| self.1.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewFile for MortalFile<'_> {
    fn set_mode(&mut self, mode: u32) -> io::Result<()> {
        self.0.effect(|| self.1.set_mode(mode))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.effect(|| self.1.sync())
    }
}

impl Disk for Mortal {
    fn root(&self) -> PathBuf {
        self.disk.root()
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile + '_>> {
        self.look(|| self.disk.open(path))
    }
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        let file = self.effect(|| self.disk.create(path, mode))?;
        Ok(Box::new(MortalFile(self, file)))
    }
    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        let file = self.effect(|| self.disk.append(path, mode))?;
        Ok(Box::new(MortalFile(self, file)))
    }
    fn truncate(&self, path: &Path, size: u64) -> io::Result<()> {
        self.effect(|| self.disk.truncate(path, size))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.effect(|| self.disk.rename(from, to))
    }
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.effect(|| self.disk.exchange(a, b))
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.effect(|| self.disk.hard_link(from, to))
    }
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> io::Result<Copied> {
        self.effect(|| self.disk.copy(from, to, mode))
    }
    fn reflink(&self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        self.effect(|| self.disk.reflink(from, to, mode))
    }
    fn symlink(&self, target: &str, link: &Path) -> io::Result<()> {
        self.effect(|| self.disk.symlink(target, link))
    }
    fn read_link(&self, path: &Path) -> io::Result<String> {
        self.look(|| self.disk.read_link(path))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.effect(|| self.disk.remove_file(path))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.effect(|| self.disk.remove_dir(path))
    }
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.effect(|| self.disk.create_dir(path, mode))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<(String, EntryKind)>> {
        self.look(|| self.disk.list(path))
    }
    fn metadata(&self, path: &Path) -> io::Result<Option<Metadata>> {
        self.look(|| self.disk.metadata(path))
    }
    fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        self.look(|| self.disk.xattrs(path))
    }
    fn set_ownership(
        &self,
        path: &Path,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        self.effect(|| self.disk.set_ownership(path, uid, gid, xattrs))
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.effect(|| self.disk.set_mode(path, mode))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.effect(|| self.disk.sync_dir(path))
    }
    fn sync_all(&self) -> io::Result<()> {
        self.effect(|| self.disk.sync_all())
    }
    fn time_ns(&self) -> i128 {
        self.disk.time_ns()
    }
    fn lock(&self, path: &Path, note: &str) -> io::Result<Locked> {
        self.look(|| self.disk.lock(path, note))
    }
    fn space(&self) -> io::Result<Space> {
        self.look(|| self.disk.space())
    }
}

/// What is done while the process dies.
#[derive(Clone, Copy, Debug)]
enum Deed {
    FirstUpdate,
    Update,
    FailingUpdate,
    Rollback,
    RollbackToNothing,
}

/// The bundles of the two releases, made and signed once.
fn bundles() -> &'static [Verified; 2] {
    static BUNDLES: OnceLock<[Verified; 2]> = OnceLock::new();
    BUNDLES.get_or_init(|| [first().bundle(), second().bundle()])
}

/// The trees a deed starts from and leads to.
fn ends(deed: Deed) -> (Tree, Tree) {
    let (one, two) = (first().tree(), second().tree());
    match deed {
        Deed::FirstUpdate => (Tree::new(), one),
        Deed::Update => (one, two),
        Deed::FailingUpdate => (one.clone(), one),
        Deed::Rollback => (two, one),
        Deed::RollbackToNothing => (one, Tree::new()),
    }
}

/// A world ready for `deed`.
fn ready(layout: Layout, deed: Deed) -> World {
    let mut world = World::new(layout);
    world.threads = 1;
    let alive = || Ok(());
    world.catalog = CatalogPort::Shared(Arc::new(Catalog::in_memory(Box::new(alive)).expect("a catalog")));
    match deed {
        Deed::FirstUpdate => {}
        Deed::Update | Deed::FailingUpdate | Deed::RollbackToNothing => {
            world.apply_bundle(&bundles()[0]);
        }
        Deed::Rollback => {
            world.apply_bundle(&bundles()[0]);
            world.apply_bundle(&bundles()[1]);
        }
    }
    world
}

/// Does it on a disk that dies at effect `at`; says whether it lived to the end.
fn attempt(world: &World, deed: Deed, at: usize, last_happens: bool) -> bool {
    let dead = Arc::new(AtomicBool::new(false));
    let disk = Mortal {
        disk: RealDisk::open(world.path()).expect("a disk"),
        left: AtomicUsize::new(at),
        dead: Arc::clone(&dead),
        last_happens,
    };
    let Ok(node) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.node_on(Arc::new(disk))))
    else {
        return false;
    };
    // Observing and planning only look; from the lock on there are effects.
    match deed {
        Deed::FirstUpdate => drop(world.try_apply_on(&node, &bundles()[0])),
        Deed::Update => drop(world.try_apply_on(&node, &bundles()[1])),
        Deed::FailingUpdate => {
            world.set_verdict(Verdict::Fail);
            drop(world.try_apply_on(&node, &bundles()[1]));
        }
        Deed::Rollback | Deed::RollbackToNothing => {
            drop(world.try_rollback_on(&node, &RollbackTarget::Newest));
        }
    }
    !dead.load(Ordering::SeqCst)
}

/// What must hold once recovery is through.
fn check(world: &World, deed: Deed, what: &str) {
    let (old, new) = ends(deed);
    let node = world.node();
    let status = node.status().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(status.in_flight.is_none(), "{what}");
    let tree = world.tree();
    assert!(tree == old || tree == new, "{what}: torn: {:?}", tree.keys());
    let running = world.running();
    let installed = status.installed.as_ref().map(|release| release.version.to_string());
    assert_eq!(running, installed, "{what}: the service runs what is current");
    for directory in ["staging", "trash"] {
        let left = std::fs::read_dir(world.path().join(".cutover").join(directory));
        assert_eq!(left.map_or(0, Iterator::count), 0, "{what}: {directory} is empty");
    }
    assert!(node.restore_points().expect("listed").iter().all(|listed| listed.point.is_ok()), "{what}");
    assert!(node.verify().expect("verified").is_clean(), "{what}");
}

fn sweep(layout: Layout, deed: Deed) {
    for last_happens in [false, true] {
        let mut at = 1;
        loop {
            let what = format!("{layout:?} {deed:?} dies at effect {at}, which happens: {last_happens}");
            let world = ready(layout, deed);
            let lived = attempt(&world, deed, at, last_happens);
            world.recover();
            check(&world, deed, &what);
            if lived {
                break;
            }
            // Whatever the end was, the next update works.
            world.set_verdict(Verdict::Pass);
            if world.tree() != second().tree() {
                let report = world.apply_bundle(&bundles()[1]);
                assert_eq!(report.outcome, Outcome::Confirmed, "{what}: {report:?}");
            }
            assert_eq!(world.tree(), second().tree(), "{what}");
            at += 1;
        }
    }
}

// E5, inst-1
#[test]
fn first_update_killed_at_any_effect_ends_old_or_new() {
    LAYOUTS.into_iter().for_each(|layout| sweep(layout, Deed::FirstUpdate));
}

// E5, inst-1
#[test]
fn update_killed_at_any_effect_ends_old_or_new() {
    LAYOUTS.into_iter().for_each(|layout| sweep(layout, Deed::Update));
}

// E5, inst-1
#[test]
fn failing_update_killed_at_any_effect_ends_old() {
    LAYOUTS.into_iter().for_each(|layout| sweep(layout, Deed::FailingUpdate));
}

#[test]
fn undo_that_moves_aside_what_was_written_is_killed_at_any_effect_and_ends_old() {
    let mut times_moved = 0;
    for last_happens in [false, true] {
        let mut at = 1;
        loop {
            let world = ready(Layout::InPlace, Deed::FailingUpdate);
            let written = world.path().join("empty/written");
            world
                .service
                .on_activate("2.0.0", Box::new(move || std::fs::write(&written, "").expect("written")));
            let lived = attempt(&world, Deed::FailingUpdate, at, last_happens);
            world.recover();
            let mut tree = world.tree();
            times_moved += usize::from(tree.remove("empty.moved-aside-1/written").is_some());
            assert_eq!(tree, first().tree(), "dies at effect {at}, which happens: {last_happens}");
            assert!(world.node().status().expect("status").in_flight.is_none());
            if lived {
                break;
            }
            at += 1;
        }
    }
    assert!(times_moved > 10, "{times_moved}");
}

// E5, inst-1
#[test]
fn rollback_killed_at_any_effect_ends_old_or_new() {
    LAYOUTS.into_iter().for_each(|layout| sweep(layout, Deed::Rollback));
}

// E5, inst-1
#[test]
fn rollback_to_an_empty_root_killed_at_any_effect_ends_old_or_new() {
    LAYOUTS.into_iter().for_each(|layout| sweep(layout, Deed::RollbackToNothing));
}

/// Recovery that dies at every third of its effects, after a deed that died at every `stride`th.
fn sweep_recovery(deed: Deed, stride: usize) {
    for layout in LAYOUTS {
        let mut at = 1;
        loop {
            let mut again = 1 + at % 3;
            let mut first_lived;
            loop {
                let what = format!("{layout:?} {deed:?} dies at effect {at}, its recovery at {again}");
                let world = ready(layout, deed);
                first_lived = attempt(&world, deed, at, true);
                let dead = Arc::new(AtomicBool::new(false));
                let disk = Mortal {
                    disk: RealDisk::open(world.path()).expect("a disk"),
                    left: AtomicUsize::new(again),
                    dead: Arc::clone(&dead),
                    last_happens: again % 2 == 0,
                };
                let node = world.node_on(Arc::new(disk));
                if let Ok(lock) = node.lock() {
                    let _ = node.recover(&lock, &world.ports());
                }
                drop(node);
                world.recover();
                check(&world, deed, &what);
                if !dead.load(Ordering::SeqCst) {
                    break;
                }
                again += 3;
            }
            if first_lived {
                break;
            }
            at += stride;
        }
    }
}

// E5
#[test]
fn recovery_from_an_update_killed_at_a_sample_of_effects_is_taken_up_by_the_next() {
    sweep_recovery(Deed::Update, 5);
}

// E5
#[test]
fn recovery_from_a_failing_update_killed_at_a_sample_of_effects_is_taken_up_by_the_next() {
    sweep_recovery(Deed::FailingUpdate, 7);
}

// E5
#[test]
fn recovery_from_a_rollback_killed_at_a_sample_of_effects_is_taken_up_by_the_next() {
    sweep_recovery(Deed::Rollback, 5);
}
