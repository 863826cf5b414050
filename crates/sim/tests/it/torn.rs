//! The repair of a journal whose last line was cut off is itself interrupted: by the power, or by a flush that fails.

use cutover_core::execute::Outcome;
use cutover_sim::{
    Action, Call, Death, Ended, Fault, Faults, LAYOUTS, Machine, Moment, Op, Visible, layout_name, story,
};

/// A machine whose update was killed inside the write of a line that tells of the switch or of what follows, with what was
/// visible before and what would have been after.
fn torn() -> Vec<(String, Machine, [Visible; 2])> {
    let mut all = Vec::new();
    for layout in LAYOUTS {
        let story = story("update").expect("a story");
        let base = story.prepare(layout).expect("prepared");
        let mut good = base.fork();
        let unbroken = good.run(&story.action, Faults::none());
        let visible = [Visible::of(&base.fs, layout), Visible::of(&good.fs, layout)];
        let writes = |call: &&Call| call.op == Op::Write && call.path.starts_with(".cutover/journal");
        let writes: Vec<&Call> = unbroken.trace.iter().filter(writes).collect();
        assert!(writes.len() > 5, "{writes:?}");
        for call in writes {
            let mut killed = base.fork();
            killed.run(&story.action, Faults::at(call.index, Fault::Crash(Moment::During, Death::Kill)));
            all.push((format!("{}, killed in {call}", layout_name(layout)), killed, visible.clone()));
        }
    }
    all
}

fn repairs(call: &Call) -> bool {
    call.op == Op::Truncate && call.path.starts_with(".cutover/journal")
}

/// Whether a recovery that starts from what is left ends, with the old or the new tree and room for the next update.
fn ends(point: &str, mut machine: Machine, visible: &[Visible; 2]) {
    let ended = machine.run(&Action::Recover, Faults::none()).ended;
    assert!(!matches!(ended, Ended::Failed(_)), "{point}: {ended:?}");
    let now = Visible::of(&machine.fs, machine.layout);
    assert!(visible.contains(&now), "{point}: {}", now.difference(&visible[0]));
    let again = machine.run(&Action::Recover, Faults::none()).ended;
    assert!(matches!(again, Ended::Nothing), "{point}: {again:?}");
    let next = machine.run(&Action::Update(3), Faults::none()).ended;
    assert!(
        matches!(&next, Ended::Executed(report) if report.outcome == Outcome::Confirmed),
        "{point}: {next:?}"
    );
}

#[test]
fn torn_line_whose_repair_loses_power_midway_is_repaired_by_the_next_recovery() {
    let mut tried = 0;
    for (point, killed, visible) in torn() {
        for seed in 0..12 {
            let cut = Fault::Crash(Moment::During, Death::PowerCut { seed });
            let mut machine = killed.fork();
            let life =
                machine.run(&Action::Recover, Faults::script(move |call, _| repairs(call).then_some(cut)));
            tried += u64::from(life.crashed);
            ends(&format!("{point}, power cut {seed} in its repair"), machine, &visible);
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn torn_line_whose_repair_cannot_be_flushed_is_repaired_by_the_next_recovery() {
    let mut tried = 0;
    for (point, killed, visible) in torn() {
        for seed in 0..6 {
            let mut machine = killed.fork();
            let lie = |call: &Call, _: &mut _| repairs(call).then_some(Fault::FsyncLie);
            let life = machine.run(&Action::Recover, Faults::script(lie));
            tried += u64::from(life.hit.is_some());
            machine.cut_power(seed);
            ends(&format!("{point}, its repair is not flushed, power cut {seed}"), machine, &visible);
        }
    }
    assert!(tried > 50, "{tried}");
}
