//! Recovery: what an interrupted process left, and journals that were torn or altered.

use std::sync::atomic::Ordering;

use cutover_core::{execute::Outcome, plan::Layout};
use cutover_host::node::NodeError;

use crate::world::{LAYOUTS, World, first, second};

/// The journal of the last execution.
fn last_journal(world: &World) -> std::path::PathBuf {
    let journals = std::fs::read_dir(world.path().join(".cutover/journal")).expect("listed");
    journals.map(|entry| entry.expect("an entry").path()).max().expect("one")
}

/// Cuts the last journal behind its first `lines` lines, as a process that died there would have left it.
fn cut_journal(world: &World, lines: usize) {
    let path = last_journal(world);
    let text = std::fs::read_to_string(&path).expect("read");
    let kept: String = text.split_inclusive('\n').take(lines).collect();
    std::fs::write(path, kept).expect("cut");
}

// S10, E5
#[test]
fn interrupted_execution_is_seen_refuses_new_ones_and_is_ended_by_recovery() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        world.apply(&second());
        // Died after the switch, before it was known that the service runs.
        let text = std::fs::read_to_string(last_journal(&world)).expect("read");
        let switched = text.lines().position(|line| line.contains(r#""intent","step":4"#)).expect("a line");
        cut_journal(&world, switched + 1);
        let node = world.node();
        let in_flight = node.status().expect("status").in_flight.expect("one");
        assert_eq!((in_flight.number, in_flight.step), (2, Some("activate")));
        let lock = node.lock().expect("the lock");
        let plan = in_flight.plan;
        assert!(matches!(node.execute(&lock, &plan, None, &world.ports()), Err(NodeError::Unfinished(2))));
        drop(lock);
        let calls = world.prober.calls.load(Ordering::SeqCst);
        let report = world.recover().expect("an execution");
        assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?}");
        assert_eq!(world.prober.calls.load(Ordering::SeqCst), calls + 1);
        assert_eq!(world.tree(), second().tree());
        assert!(world.recover().is_none(), "nothing is left to do");
        let rows = world.node().history(9).expect("history");
        assert_eq!(rows.iter().filter(|row| row.number == Some(2)).count(), 1, "one row per execution");
    }
}

#[test]
fn torn_tail_of_a_journal_is_dropped() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let path = last_journal(&world);
    let whole = std::fs::read(&path).expect("read");
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    for cut in [last + 1, last + 30, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).expect("torn");
        let report = world.recover().expect("it had not ended");
        assert_eq!(report.outcome, Outcome::Confirmed);
        assert_eq!(world.tree(), first().tree());
    }
}

// Exit code 17
#[test]
fn journal_altered_in_its_middle_is_damage_and_nothing_is_done() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let lines = std::fs::read_to_string(last_journal(&world)).expect("read").lines().count();
    cut_journal(&world, lines - 1);
    let path = last_journal(&world);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).expect("altered");
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let error = node.recover(&lock, &world.ports()).expect_err("refused");
    assert!(matches!(&error, NodeError::Damaged { path, .. } if path.contains("000001.jsonl")), "{error}");
    assert_eq!(world.tree(), first().tree());
}

#[test]
fn stuck_execution_can_be_taken_up_again_once_the_cause_is_gone() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.fail_probes();
    let old = world.path().join("releases").join(first().bundle().release().name().as_str());
    let (store, aside) = (world.path().join(".cutover/store"), world.path().join(".cutover/aside"));
    let (damaged, from, to) = (old.join("empty"), store.clone(), aside.clone());
    world.service.on_activate(
        "2.0.0",
        Box::new(move || {
            std::fs::write(&damaged, "damaged").expect("written");
            if from.exists() {
                std::fs::rename(&from, &to).expect("moved");
            }
        }),
    );
    assert!(matches!(world.apply(&second()).outcome, Outcome::Stuck { .. }));
    assert!(matches!(world.recover().expect("still").outcome, Outcome::Stuck { .. }));
    std::fs::rename(&aside, &store).expect("moved back");
    let report = world.recover().expect("taken up");
    assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{report:?}");
    assert_eq!(world.tree(), first().tree());
    assert_eq!(world.running().as_deref(), Some("1.0.0"));
    assert!(!world.node().state(1).expect("state").0.is_in_flight());
}

// inst-4
#[test]
fn reserve_of_the_journal_is_set_aside_again_once_it_was_used() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    assert_eq!(std::fs::metadata(world.path().join(".cutover/reserve")).expect("kept").len(), 1 << 20);
    std::fs::remove_file(world.path().join(".cutover/reserve")).expect("removed");
    world.recover();
    assert!(world.path().join(".cutover/reserve").exists(), "it is set aside again");
    std::fs::write(world.path().join(".cutover/reserve"), "cut off").expect("written");
    world.recover();
    assert_eq!(std::fs::metadata(world.path().join(".cutover/reserve")).expect("kept").len(), 1 << 20);
}

// inst-3
#[test]
fn first_use_that_died_before_it_chose_a_layout_leaves_nothing_and_chooses_none() {
    let world = World::new(Layout::Exchange);
    let ours = world.path().join(".cutover");
    let died = |name: &str| {
        std::fs::create_dir_all(&ours).expect("made");
        std::fs::write(ours.join(name), b"torn").expect("written");
    };
    died("lock");
    died("layout.tmp");
    let node = world.node();
    node.forget_first_use().expect("forgotten");
    assert!(!ours.join("layout.tmp").exists());
    assert_eq!(node.status().expect("status").layout, None, "the next use may still choose");
    node.forget_first_use().expect("nothing to do");
    assert_eq!(world.apply(&first()).outcome, Outcome::Confirmed);
}

#[test]
fn housekeeping_that_fails_keeps_nobody_from_recovering_and_is_told() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.apply(&second());
    world.rollback();
    let disk = cutover_host::disk::RealDisk::open(world.path()).expect("a disk");
    let catalog = cutover_host::catalog::Catalog::open_made(&disk).expect("opened").expect("made");
    catalog.bury(second().bundle().release().manifest).expect("buried").expect("known");
    drop(catalog);
    let rotten = world.path().join(".cutover/manifests").join(format!("{}.json", "0".repeat(64)));
    std::fs::write(&rotten, "rotten").expect("written");
    world.apply(&second().version("3.0.0"));
    let text = std::fs::read_to_string(last_journal(&world)).expect("read");
    let switched = text.lines().position(|line| line.contains(r#""intent","step":4"#)).expect("a line");
    cut_journal(&world, switched + 1);
    let report = world.recover().expect("an execution");
    assert_eq!(report.outcome, Outcome::Confirmed);
    assert!(report.warnings.iter().any(|warning| warning.contains("removed releases")), "{report:?}");
    assert!(world.recover().is_none(), "and nobody is kept from anything");
    std::fs::remove_file(&rotten).expect("removed");
    world.recover();
    let catalog = cutover_host::catalog::Catalog::open_made(&disk).expect("opened").expect("made");
    assert!(catalog.tombstones().expect("read").is_empty(), "the next run does what is left");
}
