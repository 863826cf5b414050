//! One installer at a time.

use std::sync::{
    Barrier,
    atomic::{AtomicUsize, Ordering},
};

use cutover_core::plan::Layout;
use cutover_host::{
    disk::RealDisk,
    node::{CatalogPort, Node, NodeError, NodeOptions, NodePorts},
};

use crate::world::{World, first};

// E8, inst-5
#[test]
fn of_sixteen_that_start_at_once_one_wins_and_the_others_hear_already_in_progress() {
    const STARTERS: usize = 16;
    let world = World::new(Layout::Versioned);
    let (won, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (start, end) = (Barrier::new(STARTERS), Barrier::new(STARTERS));
    std::thread::scope(|scope| {
        for _ in 0..STARTERS {
            scope.spawn(|| {
                // Each with a descriptor of its own, as processes have.
                let node = world.node();
                start.wait();
                let lock = node.lock();
                match &lock {
                    Ok(_) => drop(won.fetch_add(1, Ordering::SeqCst)),
                    Err(NodeError::AlreadyRunning { .. }) => drop(lost.fetch_add(1, Ordering::SeqCst)),
                    Err(error) => panic!("{error}"),
                }
                end.wait();
                drop(lock);
            });
        }
    });
    assert_eq!((won.into_inner(), lost.into_inner()), (1, STARTERS - 1));
}

// E8
#[test]
fn second_run_is_told_who_holds_the_lock_and_the_lock_is_free_afterwards() {
    let world = World::new(Layout::Versioned);
    let (one, other) = (world.node(), world.node());
    let lock = one.lock().expect("the lock");
    let Err(error) = other.lock() else { panic!("two at once") };
    assert!(error.to_string().contains("already in progress"), "{error}");
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    drop(lock);
    drop(other.lock().expect("free again"));
    assert!(world.path().join(".cutover/lock").exists(), "the file is never deleted");
}

// E8, inst-5
#[test]
fn lock_of_a_killed_process_is_free_and_is_not_inherited_by_its_children() {
    // A process of our own that takes the lock, starts a child, and is killed.
    const ROOT: &str = "CUTOVER_TEST_LOCK_ROOT";
    if let Ok(root) = std::env::var(ROOT) {
        let disk = std::sync::Arc::new(RealDisk::open(root.as_ref()).expect("a disk"));
        let clock = std::sync::Arc::<crate::world::FakeClock>::default();
        let ports = NodePorts { disk, catalog: CatalogPort::OnDisk, clock };
        let node = Node::open(ports, NodeOptions::default()).expect("a node");
        let _lock = node.lock().expect("free");
        // It speaks for itself: `spawn` may return before its `exec` has closed what it must not keep.
        let script = "echo child $$; exec sleep 30";
        let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().expect("started");
        child.wait().expect("ended");
        return;
    }
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let mut holder = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "lock::lock_of_a_killed_process_is_free_and_is_not_inherited_by_its_children"])
        .args(["--nocapture"])
        .env(ROOT, world.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(holder.stdout.take().expect("piped")));
    let child = lines
        .find_map(|line| line.expect("text").strip_prefix("child ").map(str::to_owned))
        .expect("it says which child it has");
    // The kernel lets the parent go on a moment before it closes the child's inherited descriptors; it names the child after.
    while std::fs::read_to_string(format!("/proc/{child}/comm")).expect("it lives").trim() != "sleep" {
        std::thread::yield_now();
    }
    assert!(matches!(world.node().lock(), Err(NodeError::AlreadyRunning { .. })));
    holder.kill().and_then(|()| holder.wait()).expect("killed");
    let free = world.node().lock();
    let child = rustix::process::Pid::from_raw(child.parse().expect("a pid")).expect("not zero");
    rustix::process::kill_process(child, rustix::process::Signal::TERM).expect("our own child's child");
    free.expect("free, although the child lives");
}
