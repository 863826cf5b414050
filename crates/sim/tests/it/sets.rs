//! Sets of three roots, broken at every call: afterwards every root is as before, or every root is new.
//!
//! Sampled like the sweep of single roots: a kill before and a power cut after every call that changes something; other power
//! cuts and faults at some, and for some of the states so left a second crash in the recovery. `CUTOVER_SIM_SEED` chooses.

use cutover_core::{execute::Outcome, plan::Layout};
use cutover_sim::{
    Call, Death, Errno, Fault, Faults, LAYOUTS, Lasting, Moment, PART_ROOTS, Random, SetEnded, SetLife,
    SetMachine, SetStory, Visible, layout_name, seed,
};

/// What an answer promises, if anybody heard one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promised {
    Nothing,
    Old,
    New,
}

/// Whether the machine has to show that it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Stop,
}

/// At every so manieth call.
const GO_ON_EVERY: u64 = 13;

struct Subject {
    base: SetMachine,
    before: Vec<Visible>,
    after: Vec<Visible>,
    unbroken: SetLife,
    fails: bool,
}

impl Subject {
    fn prepare(story: SetStory, layout: Layout) -> Self {
        let fails = story.probe_fails.is_some();
        let base = SetMachine::prepare(story, layout).expect("prepared");
        let before = base.visible();
        let mut good = base.fork();
        good.mend();
        let life = good.apply(Faults::none());
        assert_eq!(life.ended.outcome(), Some(&Outcome::Confirmed), "{:?}", life.ended);
        let after = good.visible();
        for (old, new) in before.iter().zip(&after) {
            assert_ne!(old, new, "every root changes");
        }
        let mut machine = base.fork();
        let unbroken = machine.apply(Faults::none());
        if fails {
            assert!(
                matches!(unbroken.ended.outcome(), Some(Outcome::ProbeFailed { reason }) if reason.contains("package-c")),
                "{:?}",
                unbroken.ended
            );
        }
        let subject = Self { base, before, after, unbroken, fails };
        let promised = if fails { Promised::Old } else { Promised::New };
        subject.settle(machine, promised, Then::GoOn).expect("without any fault");
        subject
    }

    fn effects(&self) -> impl Iterator<Item = &Call> {
        self.unbroken.trace.iter().filter(|call| call.op.is_effect())
    }

    /// Which of both every root is; nothing in between.
    fn is(&self, machine: &SetMachine) -> Result<Promised, String> {
        let now = machine.visible();
        if now == self.before {
            return Ok(Promised::Old);
        }
        if now == self.after {
            return Ok(Promised::New);
        }
        let mut lines = String::new();
        for (root, now) in PART_ROOTS.iter().zip(&now) {
            lines += &format!("  {root}: {:?}\n", now.path);
        }
        Err(format!("neither entirely old nor entirely new:\n{lines}"))
    }

    /// Recovers, and checks everything that must hold then.
    fn settle(&self, mut machine: SetMachine, promised: Promised, then: Then) -> Result<(), String> {
        let life = machine.recover(Faults::none());
        let reported = match &life.ended {
            SetEnded::Nothing => Promised::Nothing,
            SetEnded::Failed(error) => return Err(format!("recovery failed: {error:?}")),
            SetEnded::Ran(report) => match &report.outcome {
                Outcome::Confirmed => Promised::New,
                Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => Promised::Old,
                Outcome::Stuck { .. } | Outcome::KeptUnconfirmed => {
                    return Err(format!("recovery: {report:?}"));
                }
            },
        };
        let now = self.is(&machine)?;
        for expected in [promised, reported] {
            if expected != Promised::Nothing && expected != now {
                return Err(format!(
                    "{expected:?} was promised, {now:?} is there; recovery: {:?}",
                    life.ended
                ));
            }
        }
        if self.fails && now == Promised::New {
            return Err("a set whose probe fails is there".to_owned());
        }
        let left = machine.leftovers();
        if !left.is_empty() {
            return Err(format!("left over: {}", left.join(", ")));
        }
        if then == Then::Stop {
            return Ok(());
        }
        let again = machine.fork().recover(Faults::none());
        if !matches!(again.ended, SetEnded::Nothing) {
            return Err(format!("the second recovery was not a no-op: {:?}", again.ended));
        }
        if now == Promised::Old {
            machine.mend();
            let retried = machine.apply(Faults::none());
            if retried.ended.outcome() != Some(&Outcome::Confirmed) || machine.visible() != self.after {
                return Err(format!("trying again: {:?}", retried.ended));
            }
        }
        // The roots can go on, each alone.
        for root in 0..PART_ROOTS.len() {
            machine.install(root, 3).map_err(|problem| format!("the next update of {root}: {problem}"))?;
        }
        Ok(())
    }

    /// Runs the set with a fault, recovers with another one, and checks everything.
    fn attempt(&self, call: u64, fault: Fault, second: Option<(u64, Fault)>) -> Result<u64, String> {
        let mut machine = self.base.fork();
        let life = machine.apply(Faults::at(call, fault));
        let promised = match life.ended.outcome().filter(|_| !life.crashed) {
            Some(Outcome::Confirmed) => Promised::New,
            Some(Outcome::Undone { .. } | Outcome::ProbeFailed { .. }) => Promised::Old,
            Some(Outcome::Stuck { .. } | Outcome::KeptUnconfirmed) | None => Promised::Nothing,
        };
        if promised != Promised::Nothing {
            let now = self.is(&machine)?;
            if now != promised {
                return Err(format!("{promised:?} was answered, {now:?} is there"));
            }
            // What was answered must hold when the power fails right after.
            machine.fs = machine.fs.after_power_cut(call);
        }
        let mut calls = 0;
        if let Some((call, fault)) = second {
            let life = machine.recover(Faults::at(call, fault));
            calls = life.trace.len() as u64;
        }
        // To go on takes longer than all the rest.
        let then = if call.is_multiple_of(GO_ON_EVERY) { Then::GoOn } else { Then::Stop };
        self.settle(machine, promised, then).map(|()| calls)
    }

    fn sweep(&self, what: &str) {
        let mut random = Random::new(seed());
        let mut tried = 0;
        let mut double = 0;
        for call in self.effects() {
            let cut = |seed| Death::PowerCut { seed };
            let mut faults =
                vec![Fault::Crash(Moment::Before, Death::Kill), Fault::Crash(Moment::After, cut(0))];
            if random.below(3) == 0 {
                faults.push(Fault::Crash(Moment::After, cut(1 + random.below(1 << 16))));
            }
            for fault in faults.into_iter().filter(|fault| fault.can_hit(call.op)) {
                self.try_one(what, call, fault, None);
                tried += 1;
                if random.below(6) == 0 {
                    let deaths = [Death::Kill, cut(0), cut(3 + random.below(1 << 16))];
                    let second = Fault::Crash(Moment::After, *random.pick(&deaths));
                    // A recovery makes some hundred calls; a number beyond them hits nothing.
                    let at = 3 + random.below(220);
                    double += u64::from(self.try_one(what, call, fault, Some((at, second))) > at);
                }
            }
            let errors = [Errno::Eio, Errno::Enospc].map(|errno| Fault::Error(errno, Lasting::Once));
            let fault = *random.pick(&errors);
            if random.below(6) == 0 && fault.can_hit(call.op) {
                self.try_one(what, call, fault, None);
                tried += 1;
            }
        }
        assert!(
            tried >= 2 * self.effects().count() && double > 10,
            "{what}: {tried} points, {double} double"
        );
    }

    fn try_one(&self, what: &str, call: &Call, fault: Fault, second: Option<(u64, Fault)>) -> u64 {
        self.attempt(call.index, fault, second).unwrap_or_else(|problem| {
            panic!("seed={} {what}: {fault} at {call}, then {second:?}: {problem}", seed())
        })
    }
}

fn sweep(name: &str) {
    for layout in LAYOUTS {
        let story = SetStory::all().into_iter().find(|story| story.name == name).expect(name);
        Subject::prepare(story, layout).sweep(&format!("{name}/{}", layout_name(layout)));
    }
}

#[test]
fn set_of_three_ends_entirely_old_or_entirely_new_whatever_breaks() {
    sweep("set");
}

#[test]
fn set_of_three_of_which_the_last_fails_ends_entirely_old_whatever_breaks() {
    sweep("failing-set");
}

#[test]
fn set_that_goes_by_a_version_between_ends_entirely_old_or_entirely_new_whatever_breaks() {
    sweep("set-by-a-version-between");
}

#[test]
fn failing_set_that_goes_by_a_version_between_ends_entirely_old_whatever_breaks() {
    sweep("failing-set-by-a-version-between");
}
