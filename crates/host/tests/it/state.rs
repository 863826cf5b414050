//! The state log, the history and the catalog across restarts and damage.

use std::sync::{Arc, Mutex};

use cutover_core::{
    lifecycle::{Entry, LifecycleError, State},
    model::Version,
    plan::Layout,
};
use cutover_host::{
    catalog::HistoryRow,
    node::{Idempotent, Node, NodeError, StateError},
};

use crate::world::{World, first, second};

const GOOD: [State; 3] = [State::Downloading, State::Verifying, State::Applying];

fn version() -> Version {
    Version::new(1, 2, 3)
}

fn states(node: &Node) -> Vec<State> {
    let (_, entries) = node.state(99).expect("read");
    let states = entries.into_iter().filter_map(|(_, entry)| match entry {
        Entry::Moved { to, .. } => Some(to),
        _ => None,
    });
    states.collect()
}

// S1, S9, S10, S11
#[test]
fn transitions_are_durable_lines_and_an_update_in_flight_is_found_on_reopening() {
    let world = World::new(Layout::Versioned);
    assert_eq!(world.node().state(9).expect("read").0.state(), State::Idle);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let mut log = node.state_log(&lock).expect("open");
    for state in GOOD {
        log.go(state, Some(&version())).expect("permitted");
    }
    let (lifecycle, entries) = world.node().state(9).expect("read");
    assert!(lifecycle.is_in_flight() && lifecycle.version() == Some(&version()));
    assert_eq!(entries.len(), 3);
    log.go(State::Idle, None).expect("permitted");
    assert_eq!(states(&world.node()), [State::Idle, State::Applying, State::Verifying, State::Downloading]);
    assert!(!world.node().state(9).expect("read").0.is_in_flight());
    let text = std::fs::read_to_string(world.path().join(".cutover/state.jsonl")).expect("read");
    assert_eq!(text.lines().count(), 4);
}

// S4, S5, S6
#[test]
fn refused_transition_changes_nothing_and_failed_is_left_by_reset_only() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let mut log = node.state_log(&lock).expect("open");
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    log.subscribe(Arc::new(move |lifecycle| tell.lock().unwrap().push(lifecycle.state())));
    assert!(matches!(
        log.go(State::Applying, None),
        Err(StateError::Refused(LifecycleError::Transition { .. }))
    ));
    log.go_through(&[State::Downloading, State::Failed], None).expect("permitted");
    for state in State::ALL {
        assert!(log.go(state, None).is_err());
    }
    log.reset().expect("it failed");
    assert_eq!((log.lifecycle().state(), log.lifecycle().version()), (State::Idle, None));
    assert_eq!(*told.lock().unwrap(), [State::Downloading, State::Failed, State::Idle], "told once each");
}

// S7, S8
#[test]
fn panicking_observer_stops_neither_the_transition_nor_the_other_observers() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let mut log = node.state_log(&lock).expect("open");
    let seen = Arc::new(Mutex::new(None));
    let see = Arc::clone(&seen);
    log.subscribe(Arc::new(|_| panic!("as told")));
    log.subscribe(Arc::new(move |lifecycle| {
        *see.lock().unwrap() = Some((lifecycle.state(), lifecycle.version().cloned()));
    }));
    log.go(State::Downloading, Some(&version())).expect("done all the same");
    assert_eq!(*seen.lock().unwrap(), Some((State::Downloading, Some(version()))));
}

// S12
#[test]
fn torn_last_line_is_dropped_and_the_next_append_starts_a_new_one() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let mut log = node.state_log(&lock).expect("open");
    log.go_through(&GOOD, Some(&version())).expect("permitted");
    drop(log);
    let path = world.path().join(".cutover/state.jsonl");
    let whole = std::fs::read(&path).expect("read");
    for cut in [1, 20, 60] {
        std::fs::write(&path, &whole[..whole.len() - cut]).expect("torn");
        assert_eq!(node.state(9).expect("read").1.len(), 2, "earlier entries are kept");
        let mut log = node.state_log(&lock).expect("repaired");
        assert_eq!(log.lifecycle().state(), State::Verifying);
        log.go(State::Applying, None).expect("permitted");
        drop(log);
        assert_eq!(states(&node), [State::Applying, State::Verifying, State::Downloading], "cut {cut}");
    }
}

#[test]
fn log_that_was_altered_in_its_middle_is_moved_aside_with_all_that_came_after() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.state_log(&lock).expect("open").go_through(&GOOD, Some(&version())).expect("permitted");
    let path = world.path().join(".cutover/state.jsonl");
    let mut bytes = std::fs::read(&path).expect("read");
    let second = bytes.iter().position(|byte| *byte == b'\n').expect("lines") + 1;
    bytes[second + 30] ^= 1;
    std::fs::write(&path, &bytes).expect("altered");
    assert_eq!(node.state(9).expect("read").0.state(), State::Idle);
    let log = node.state_log(&lock).expect("begun anew");
    assert_eq!(log.lifecycle().state(), State::Idle);
    let aside = world.path().join(".cutover/state.jsonl.damaged-1");
    assert_eq!(std::fs::read(aside).expect("moved aside"), bytes);
    assert!(!path.exists());
}

// S14, S15, S16, S17
#[test]
fn checkpoints_survive_reopening_and_returning_to_one_prunes_later_ones() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let mut log = node.state_log(&lock).expect("open");
    for (state, id) in GOOD.into_iter().zip(1..) {
        log.go(state, Some(&Version::new(id, 0, 0))).expect("permitted");
        assert_eq!(log.checkpoint().expect("made"), id);
    }
    drop(log);
    let mut log = node.state_log(&lock).expect("reopened");
    let ids: Vec<_> = log.lifecycle().checkpoints().iter().map(|checkpoint| checkpoint.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert!(log.back_to(9).is_err());
    assert_eq!(log.back_to(1).expect("known"), Idempotent::No);
    assert_eq!(log.back_to(1).expect("known"), Idempotent::Yes);
    assert!(log.back_to(2).is_err(), "pruned");
    assert_eq!(log.lifecycle().state(), State::Downloading);
    assert_eq!(log.lifecycle().version(), Some(&Version::new(1, 0, 0)));
    assert!(matches!(node.state(1).expect("read").1[0].1, Entry::Returned { .. }));
}

// S2, S3, S11
#[test]
fn updates_go_through_the_states_and_end_idle() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    assert_eq!(states(&world.node()), [State::Idle, State::Applying, State::Verifying, State::Downloading]);
    world.fail_probes();
    world.apply(&second());
    assert_eq!(states(&world.node())[..3], [State::Idle, State::RollingBack, State::Applying]);
}

fn row(error: Option<&str>) -> HistoryRow {
    HistoryRow {
        number: None,
        at: "2026-01-02T03:04:05Z".parse().expect("a time"),
        action: "rollback".to_owned(),
        from: None,
        to: None,
        outcome: "refused".to_owned(),
        error: error.map(str::to_owned),
        restore_point: None,
    }
}

// E18, S18, S19
#[test]
fn history_keeps_failures_is_newest_first_limited_and_survives_reopening() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.fail_probes();
    world.apply(&second());
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.record(&lock, &row(Some("there is no restore point `999999`"))).expect("recorded");
    drop((lock, node));
    let history = world.node().history(9).expect("read");
    let outcomes: Vec<&str> = history.iter().map(|row| row.outcome.as_str()).collect();
    assert_eq!(outcomes, ["refused", "probe-failed", "confirmed"]);
    assert_eq!(history[0].error.as_deref(), Some("there is no restore point `999999`"));
    assert_eq!(world.node().history(2).expect("read").len(), 2);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.clear_history(&lock).expect("cleared");
    drop((lock, node));
    assert!(world.node().history(9).expect("read").is_empty());
}

// S20
#[test]
fn damaged_catalog_is_moved_aside_and_filled_again_from_what_lies_on_disk() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.apply(&second());
    let before = world.node().history(9).expect("read");
    let catalog = world.path().join(".cutover/catalog.db");
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", catalog.display()));
    }
    std::fs::write(&catalog, "this is no database").expect("damaged");
    let after = world.node().history(9).expect("read");
    assert_eq!(after, before, "also to whoever only looks, perhaps beside an update");
    assert_eq!(std::fs::read(&catalog).expect("read"), b"this is no database");
    assert!(world.recover().is_none());
    assert_eq!(world.node().history(9).expect("read"), before);
    let aside = std::fs::read(format!("{}.damaged-1", catalog.display())).expect("moved aside");
    assert_eq!(aside, b"this is no database");
    assert_eq!(world.node().status().expect("status").highest, Some(Version::new(2, 0, 0)));
    assert_eq!(world.rollback().number, 3, "numbers go on");
}

#[test]
fn layout_is_fixed_at_the_first_use() {
    let mut world = World::new(Layout::Exchange);
    world.apply(&first());
    world.layout = Layout::Versioned;
    let disk = Arc::new(cutover_host::disk::RealDisk::open(world.path()).expect("a disk"));
    let ports = cutover_host::node::NodePorts {
        disk,
        catalog: cutover_host::node::CatalogPort::OnDisk,
        clock: Arc::clone(&world.clock) as Arc<dyn cutover_host::clock::Clock>,
    };
    let options = cutover_host::node::NodeOptions { layout: Some(Layout::Versioned), ..Default::default() };
    assert!(matches!(Node::open(ports, options), Err(NodeError::Layout { .. })));
}
