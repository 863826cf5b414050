//! What the sweeps found once, by name.

use std::sync::Arc;

use cutover_core::{
    execute::Outcome,
    plan::{Layout, RollbackTarget},
    retain::Retention,
};
use cutover_host::probe::ProbeOutcome;
use cutover_sim::{
    Action, Call, Death, Ended, Errno, Fault, Faults, Injection, LAYOUTS, Lasting, Machine, Moment, Op,
    Options, SetStory, SetSubject, TreeKind, Visible, shared_inodes,
};

fn machine(layout: Layout, before: &[Action]) -> Machine {
    let mut machine = Machine::new(layout, Options::default());
    for action in before {
        assert_confirmed(&machine.run(action, Faults::none()).ended);
    }
    machine
}

fn assert_confirmed(ended: &Ended) {
    assert!(
        matches!(ended, Ended::Executed(report) if report.outcome == Outcome::Confirmed),
        "not confirmed: {ended:?}"
    );
}

/// The calls of `action` on a fork of `machine`, when nothing goes wrong.
fn calls(machine: &Machine, action: &Action) -> Vec<Call> {
    machine.fork().run(action, Faults::none()).trace
}

/// Those of its calls that change anything.
fn effects(machine: &Machine, action: &Action) -> Vec<Call> {
    calls(machine, action).into_iter().filter(|call| call.op.is_effect()).collect()
}

#[test]
fn root_whose_layout_survived_a_power_cut_has_all_its_directories() {
    let fresh = machine(Layout::Versioned, &[]);
    let trace = calls(&fresh, &Action::Update(0));
    let named =
        trace.iter().find(|call| call.op == Op::Rename && call.names(".cutover/layout")).expect("named");
    for seed in 0..200 {
        let mut machine = fresh.fork();
        let cut = Fault::Crash(Moment::After, Death::PowerCut { seed });
        machine.run(&Action::Update(0), Faults::at(named.index, cut));
        assert_confirmed(&machine.run(&Action::Update(0), Faults::none()).ended);
    }
}

#[test]
fn prune_that_cannot_read_a_restore_point_removes_nothing_it_needs() {
    let keep_one = Retention { keep: 1, warm: 1, ..Retention::default() };
    for layout in LAYOUTS {
        let ready = machine(layout, &[Action::Update(0), Action::Update(1), Action::Update(2)]);
        let prune = Action::Prune(keep_one.clone());
        let reads = calls(&ready, &prune).into_iter().filter(|call| {
            matches!(call.op, Op::Open | Op::Read)
                && [".cutover/restore/000003", ".cutover/journal/000003"]
                    .iter()
                    .any(|path| call.path.to_string_lossy().starts_with(path))
        });
        let mut tried = 0;
        for call in reads {
            let mut machine = ready.fork();
            let fault = Fault::Error(Errno::Eio, Lasting::Once);
            let life = machine.run(&prune, Faults::at(call.index, fault));
            match &life.ended {
                Ended::Failed(_) => {}
                // Housekeeping asked, before anything was to be pruned: it tries again the next time.
                Ended::Pruned(report) => {
                    let needed = "000003".parse().expect("an id");
                    assert!(!report.removed_points.contains(&needed), "{layout:?} {call}: {report:?}");
                }
                ended => panic!("{layout:?} {call}: {ended:?}"),
            }
            let trace = calls(&machine, &prune);
            assert!(!trace.is_empty());
            assert_confirmed(&machine.run(&Action::Rollback(RollbackTarget::Newest), Faults::none()).ended);
            tried += 1;
        }
        assert!(tried > 0, "{layout:?}");
    }
}

#[test]
fn trash_of_a_killed_process_is_taken_apart_only_when_it_cannot_come_back() {
    let keep_one = Action::Prune(Retention { keep: 1, warm: 1, ..Retention::default() });
    let ready = machine(Layout::Versioned, &[Action::Update(0), Action::Update(1), Action::Update(2)]);
    let discards = calls(&ready, &keep_one).into_iter().filter(|call| {
        call.op == Op::Rename && call.to.as_ref().is_some_and(|to| to.starts_with(".cutover/trash"))
    });
    for discard in discards {
        let mut killed = ready.fork();
        killed.run(&keep_one, Faults::at(discard.index, Fault::Crash(Moment::After, Death::Kill)));
        for (call, seed) in
            effects(&killed, &Action::Recover).iter().flat_map(|call| (0..9).map(move |seed| (call, seed)))
        {
            let mut machine = killed.fork();
            let cut = Fault::Crash(Moment::After, Death::PowerCut { seed });
            machine.run(&Action::Recover, Faults::at(call.index, cut));
            machine.run(&Action::Recover, Faults::none());
            let (points, _) = machine.live(Faults::none(), |process| {
                process.node().and_then(|node| node.restore_points()).expect("listed")
            });
            for listed in points {
                assert!(listed.point.is_ok(), "{discard}, {call}, seed {seed}: {:?}", listed.point);
            }
        }
    }
}

#[test]
fn record_of_an_in_place_switch_is_durable_before_its_recovery_goes_on() {
    let fresh = machine(Layout::InPlace, &[]);
    let named = |call: &Call| call.op == Op::Rename && call.names(".cutover/current.json");
    let switched = calls(&fresh, &Action::Update(0)).into_iter().find(named).expect("the record is written");
    let mut killed = fresh.fork();
    killed.run(&Action::Update(0), Faults::at(switched.index, Fault::Crash(Moment::After, Death::Kill)));
    for (call, seed) in
        effects(&killed, &Action::Recover).iter().flat_map(|call| (0..9).map(move |seed| (call, seed)))
    {
        let mut machine = killed.fork();
        let cut = Fault::Crash(Moment::After, Death::PowerCut { seed });
        machine.run(&Action::Recover, Faults::at(call.index, cut));
        machine.run(&Action::Recover, Faults::none());
        assert_confirmed(&machine.run(&Action::Update(1), Faults::none()).ended);
    }
}

#[test]
fn restore_point_of_an_undone_update_does_not_come_back_after_its_recovery() {
    let mut ready = machine(Layout::InPlace, &[Action::Update(0)]);
    ready.verdicts = Arc::new(|_| ProbeOutcome::Failed);
    let discarded = |call: &Call| call.op == Op::Rename && call.path.as_os_str() == ".cutover/restore/000002";
    let discard =
        calls(&ready, &Action::Update(1)).into_iter().find(discarded).expect("its restore point goes again");
    let mut killed = ready.fork();
    killed.run(&Action::Update(1), Faults::at(discard.index, Fault::Crash(Moment::After, Death::Kill)));
    for (call, seed) in
        effects(&killed, &Action::Recover).iter().flat_map(|call| (0..9).map(move |seed| (call, seed)))
    {
        let mut machine = killed.fork();
        let cut = Fault::Crash(Moment::After, Death::PowerCut { seed });
        machine.run(&Action::Recover, Faults::at(call.index, cut));
        machine.run(&Action::Recover, Faults::none());
        assert_eq!(shared_inodes(&machine.fs), [""; 0], "{call}, seed {seed}");
        let point = machine.fs.tree(".cutover/restore/000002");
        assert!(point.is_none(), "{call}, seed {seed}: {point:?}");
    }
}

#[test]
fn directory_made_in_place_is_open_to_all_although_the_process_died_while_making_it() {
    let ready = machine(Layout::InPlace, &[Action::Update(0)]);
    let made: Vec<Call> =
        calls(&ready, &Action::Update(1)).into_iter().filter(|call| call.op == Op::CreateDir).collect();
    assert!(!made.is_empty());
    for call in made {
        let mut machine = ready.fork();
        let killed = Fault::Crash(Moment::During, Death::Kill);
        assert!(machine.run(&Action::Update(1), Faults::at(call.index, killed)).crashed);
        machine.run(&Action::Recover, Faults::none());
        let tree = machine.fs.tree("").expect("a root");
        for (path, entry) in tree.0.iter().filter(|(path, _)| !path.starts_with(".cutover")) {
            let closed = entry.kind == TreeKind::Directory && entry.mode != 0o755;
            assert!(!closed, "{call}: {path} has mode {:o}", entry.mode);
        }
    }
}

/// Whether a call flushes a journal.
fn flushes_journal(call: &&Call) -> bool {
    call.op == Op::Sync && call.path.extension().is_some_and(|extension| extension == "jsonl")
}

// What a failed flush leaves in memory can be read, is clean, and never reaches the disk (fsync(2) on Linux).
#[test]
fn journal_line_of_a_set_whose_flush_failed_is_not_built_on_by_its_recovery() {
    let story = SetStory::all().into_iter().find(|story| story.name == "set").expect("a story");
    let subject = SetSubject::prepare(story, Layout::Versioned).expect("prepared");
    let is_of_set_or_member =
        |call: &&Call| flushes_journal(call) && !call.path.ends_with(".cutover/state.jsonl");
    let flushes: Vec<u64> =
        subject.calls().iter().filter(is_of_set_or_member).map(|call| call.index).collect();
    assert!(flushes.len() > 20, "{flushes:?}");
    for (place, flush) in flushes.into_iter().enumerate() {
        let first = Injection { call: flush, fault: Fault::FsyncLie };
        // Names reach the disk, bytes that were not flushed do not.
        let cut = Fault::Crash(Moment::After, Death::PowerCut { seed: 1 });
        for call in (3 + place as u64 % 9..260).step_by(29) {
            let second = Injection { call, fault: cut };
            subject.attempt(first, Some(second)).unwrap_or_else(|failure| panic!("{failure}"));
        }
    }
}

#[test]
fn journal_line_whose_flush_failed_is_not_built_on_by_the_recovery() {
    for layout in LAYOUTS {
        let ready = machine(layout, &[Action::Update(0)]);
        let trace = calls(&ready, &Action::Update(1));
        for flush in trace.iter().filter(flushes_journal) {
            let mut stopped = ready.fork();
            let life = stopped.run(&Action::Update(1), Faults::at(flush.index, Fault::FsyncLie));
            assert!(!life.crashed);
            for call in effects(&stopped, &Action::Recover) {
                let mut machine = stopped.fork();
                let cut = Fault::Crash(Moment::After, Death::PowerCut { seed: 1 });
                machine.run(&Action::Recover, Faults::at(call.index, cut));
                let ended = machine.run(&Action::Recover, Faults::none()).ended;
                assert!(!matches!(ended, Ended::Failed(_)), "{flush}, {call}: {ended:?}");
                let ended = machine.run(&Action::Update(2), Faults::none()).ended;
                assert!(matches!(ended, Ended::Executed(_)), "{flush}, {call}: {ended:?}");
            }
        }
    }
}

#[test]
fn directory_that_an_undone_rollback_brings_back_goes_with_the_next_one_wherever_the_first_was_killed() {
    let back = Action::Rollback(RollbackTarget::Newest);
    let passes = machine(Layout::InPlace, &[Action::Update(0), Action::Update(1)]);
    let mut good = passes.fork();
    assert_confirmed(&good.run(&back, Faults::none()).ended);
    let after = Visible::of(&good.fs, Layout::InPlace);
    let mut fails = passes.fork();
    fails.verdicts = Arc::new(|_| ProbeOutcome::Failed);
    let made: Vec<Call> = effects(&fails, &back);
    assert!(made.iter().any(|call| call.op == Op::Rename && call.names("schema")), "it is brought back");
    for call in made {
        let mut killed = fails.fork();
        killed.run(&back, Faults::at(call.index, Fault::Crash(Moment::After, Death::Kill)));
        killed.verdicts = passes.verdicts.clone();
        killed.run(&Action::Recover, Faults::none());
        if Visible::of(&killed.fs, Layout::InPlace) != after {
            assert_confirmed(&killed.run(&back, Faults::none()).ended);
        }
        let now = Visible::of(&killed.fs, Layout::InPlace);
        assert!(now == after, "{call}: {}", now.difference(&after));
    }
}
