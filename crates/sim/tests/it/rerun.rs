//! A process is killed where it has made a directory, the same is asked for once more, and then the power fails: what the
//! second process was answered, or built on, must not hang on a name that nobody flushed.

use std::path::Path;

use cutover_core::{execute::Outcome, plan::Layout};
use cutover_sim::{
    Action, Call, Death, Ended, Fault, Faults, LAYOUTS, Machine, Moment, Op, Random, Visible, layout_name,
    leftovers, seed, story,
};

/// Calls of the second process after which the power fails, for each directory that the first one made.
const CUTS: usize = 12;

fn cut(seed: u64) -> Fault {
    Fault::Crash(Moment::After, Death::PowerCut { seed })
}

/// Whether a call makes a directory, or shows one under the name it is to have.
fn makes_directory(call: &Call) -> bool {
    call.op == Op::CreateDir || (call.op == Op::Rename && call.path.starts_with(".cutover/trash"))
}

fn recovered(machine: &Machine, point: &str) -> Visible {
    let mut machine = machine.fork();
    let life = machine.run(&Action::Recover, Faults::none());
    assert!(!matches!(life.ended, Ended::Failed(_)), "{point}: {:?}", life.ended);
    assert_eq!(leftovers(&machine.fs), [""; 0], "{point}");
    Visible::of(&machine.fs, machine.layout)
}

fn breaks_nothing(name: &str) {
    let story = story(name).expect(name);
    let mut random = Random::new(seed());
    for layout in LAYOUTS {
        let base = story.prepare(layout).expect(name);
        let before = Visible::of(&base.fs, layout);
        let mut good = base.fork();
        let unbroken = good.run(&story.action, Faults::none());
        let after = Visible::of(&good.fs, layout);
        let made: Vec<&Call> = unbroken.trace.iter().filter(|call| makes_directory(call)).collect();
        assert!(made.len() > 3, "{name}: {made:?}");
        for call in made {
            let point = format!("seed={} {name}/{}: killed after {call}", seed(), layout_name(layout));
            let mut killed = base.fork();
            let kill = Fault::Crash(Moment::After, Death::Kill);
            assert!(killed.run(&story.action, Faults::at(call.index, kill)).crashed, "{point}");
            let mut again = killed.fork();
            let life = again.run(&story.action, Faults::none());
            // From the switch on, its recovery completes the first one, and there is nothing left to do.
            let confirmed = |ended: &Ended| matches!(ended, Ended::Executed(report) if report.outcome == Outcome::Confirmed);
            assert!(
                confirmed(&life.ended) || matches!(life.ended, Ended::Refused(_)),
                "{point}: {:?}",
                life.ended
            );
            assert_eq!(Visible::of(&again.fs, layout), after, "{point}");
            for seed in [0, 1, 3 + random.below(1 << 16)] {
                let mut left = again.fork();
                left.fs = again.fs.after_power_cut(seed);
                let point = format!("{point}, answered, power cut {seed}");
                assert_eq!(recovered(&left, &point), after, "{point}");
            }
            let effects: Vec<&Call> = life.trace.iter().filter(|call| call.op.is_effect()).collect();
            for _ in 0..CUTS {
                let (second, seed) = (random.pick(&effects).index, random.below(9));
                let mut left = killed.fork();
                left.run(&story.action, Faults::at(second, cut(seed)));
                let point = format!("{point}, {} in the second", cut(seed));
                let now = recovered(&left, &point);
                assert!(now == before || now == after, "{point}, call {second}: {}", now.difference(&after));
            }
        }
    }
}

#[test]
fn first_install_that_was_killed_after_a_mkdir_and_run_again_survives_a_power_cut() {
    breaks_nothing("first-install");
}

#[test]
fn update_that_was_killed_after_a_mkdir_and_run_again_survives_a_power_cut() {
    breaks_nothing("update");
}

#[test]
fn rollback_that_was_killed_after_a_mkdir_and_run_again_survives_a_power_cut() {
    breaks_nothing("rollback-to-cold");
}

/// `shared/` may lie on volumes of its own, which the flush of the root's file system does not reach.
#[test]
fn directories_of_shared_files_are_flushed_by_themselves_although_a_killed_process_made_them() {
    let story = story("first-install").expect("a story");
    for layout in [Layout::Versioned, Layout::Exchange] {
        let base = story.prepare(layout).expect("prepared");
        let unbroken = base.fork().run(&story.action, Faults::none());
        let shown = |call: &&Call| {
            call.op == Op::Rename && call.to.as_ref().is_some_and(|to| to.starts_with("shared"))
        };
        let shown: Vec<&Call> = unbroken.trace.iter().filter(shown).collect();
        assert!(shown.len() > 2, "{shown:?}");
        for call in shown {
            let mut killed = base.fork();
            let kill = Fault::Crash(Moment::After, Death::Kill);
            assert!(killed.run(&story.action, Faults::at(call.index, kill)).crashed);
            let trace = killed.run(&story.action, Faults::none()).trace;
            for directory in ["shared", "shared/etc"] {
                let flushed = |call: &Call| call.op == Op::SyncDir && call.path == Path::new(directory);
                assert!(trace.iter().any(flushed), "killed after {call}: `{directory}` is not flushed");
            }
        }
    }
}
