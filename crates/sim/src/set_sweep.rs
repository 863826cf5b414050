//! Sweeps of sets: three roots that change as one, broken everywhere; afterwards every root is as before, or every root is new.
//!
//! As the sweep of single roots, with one difference: a set makes some thousand calls, so a sampled sweep takes a part of them
//! ([`SetSubject::sweep`]).

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Component, Path},
};

use cutover_core::{execute::Outcome, model::ReleaseRef, plan::Layout};

use crate::{
    Call, Depth, Failure, Fault, Faults, Injection, Moment, Op, PART_ROOTS, Point, Random, SetEnded, SetLife,
    SetMachine, SetStory, Tally, Visible, layout_name,
    sweep::{Promised, answer_cuts, deaths, other_faults, whole},
};

/// Whether the machine has to show that it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Stop,
}

/// At every so manieth call.
const GO_ON_EVERY: u64 = 13;
/// A sampled sweep breaks every so manieth call that changes something, besides the first of each kind.
const SAMPLED_EVERY: usize = 6;

/// One story of a set in one layout, ready to be broken.
pub struct SetSubject {
    story: &'static str,
    layout: Layout,
    base: SetMachine,
    before: Vec<Visible>,
    after: Vec<Visible>,
    /// The release whose service runs in each root, before the set and after it.
    running: [Vec<Option<ReleaseRef>>; 2],
    unbroken: SetLife,
    fails: bool,
}

impl SetSubject {
    /// Runs the story without faults.
    ///
    /// # Errors
    /// What does not even work then.
    pub fn prepare(story: SetStory, layout: Layout) -> Result<Self, String> {
        let (name, fails) = (story.name, story.probe_fails);
        let base = SetMachine::prepare(story, layout)?;
        let before = base.visible();
        let mut good = base.fork();
        good.mend();
        let life = good.act(Faults::none());
        if life.ended.outcome() != Some(&Outcome::Confirmed) {
            return Err(format!("without any fault: {:?}", life.ended));
        }
        let after = good.visible();
        if before.iter().zip(&after).any(|(old, new)| old == new) {
            return Err("a root does not change".to_owned());
        }
        let running = [base.running(), good.running()];
        let mut machine = base.fork();
        let unbroken = machine.act(Faults::none());
        let failing = fails.map_or(String::new(), |root| format!("package-{}", PART_ROOTS[root]));
        let named = |outcome: &Outcome| matches!(outcome, Outcome::ProbeFailed { reason } if reason.contains(&failing));
        let fails = fails.is_some();
        if fails && !unbroken.ended.outcome().is_some_and(named) {
            return Err(format!("the probe should have failed: {:?}", unbroken.ended));
        }
        let subject = Self { story: name, layout, base, before, after, running, unbroken, fails };
        let promised = if fails { Promised::Old } else { Promised::New };
        subject
            .settle(machine, promised, Then::GoOn)
            .map_err(|problem| format!("without any fault: {problem}"))?;
        Ok(subject)
    }

    /// The calls of the unbroken set.
    pub fn calls(&self) -> &[Call] {
        &self.unbroken.trace
    }

    /// Those that a sweep breaks: all that change something, or a part of them in which every kind is, the rest evenly spread.
    /// The seed says where counting begins.
    fn chosen(&self, depth: Depth, random: &mut Random) -> Vec<&Call> {
        let effects = self.calls().iter().filter(|call| call.op.is_effect());
        match depth {
            Depth::Full => effects.collect(),
            Depth::Sampled => {
                let (mut kinds, begin) = (BTreeSet::new(), random.index(SAMPLED_EVERY));
                effects
                    .enumerate()
                    .filter(|(place, call)| kinds.insert(kind(call)) || place % SAMPLED_EVERY == begin)
                    .map(|(_, call)| call)
                    .collect()
            }
        }
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
        let expected = &self.running[usize::from(now == Promised::New)];
        if machine.running() != *expected {
            return Err(format!("the services run {:?} instead of {expected:?}", machine.running()));
        }
        let damage = machine.damage();
        if !damage.is_empty() {
            return Err(damage.join(", "));
        }
        let mut again = machine.fork();
        let second = again.recover(Faults::none());
        if !matches!(second.ended, SetEnded::Nothing) {
            return Err(format!("the second recovery was not a no-op: {:?}", second.ended));
        }
        let difference = whole(&again.fs).difference(&whole(&machine.fs));
        if !difference.is_empty() {
            return Err(format!("the second recovery changed something:\n{difference}"));
        }
        if then == Then::Stop {
            return Ok(());
        }
        if now == Promised::Old {
            machine.mend();
            let retried = machine.act(Faults::none());
            if retried.ended.outcome() != Some(&Outcome::Confirmed) {
                return Err(format!("trying again: {:?}", retried.ended));
            }
            for ((root, now), after) in PART_ROOTS.iter().zip(&machine.visible()).zip(&self.after) {
                if now != after {
                    return Err(format!("tried again, {root} is not new:\n{}", now.difference(after)));
                }
            }
        }
        // The roots can go on, each alone.
        for root in 0..PART_ROOTS.len() {
            machine.install(root, 3).map_err(|problem| format!("the next update of {root}: {problem}"))?;
        }
        Ok(())
    }

    /// Runs the set with a fault, recovers with another one, and checks everything.
    fn try_to(&self, first: Injection, second: Option<Injection>, depth: Depth) -> Result<Tried, String> {
        let goes_on = depth == Depth::Full || first.call.is_multiple_of(GO_ON_EVERY);
        // To go on takes longer than all the rest.
        let then = if goes_on { Then::GoOn } else { Then::Stop };
        let mut machine = self.base.fork();
        let life = machine.act(Faults::at(first.call, first.fault));
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
            for seed in answer_cuts(first.call, depth) {
                let mut cut = machine.fork();
                cut.cut_power(seed);
                self.settle(cut, promised, then).map_err(|problem| {
                    format!("after the answer and a power cut (seed {seed}): {problem}")
                })?;
            }
        }
        let mut is_double = false;
        if let Some(second) = second {
            is_double = machine.recover(Faults::at(second.call, second.fault)).crashed;
        }
        self.settle(machine, promised, then).map(|()| Tried { is_double, goes_on })
    }

    /// Breaks the set at every call, or ([`Depth::Sampled`]) at the first of every kind and at evenly spread ones: a kill before
    /// and a power cut after each; of the other power cuts, of other faults, and of second crashes in the recovery some.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep(&self, depth: Depth, seed: u64) -> Result<Tally, Failure> {
        let mut hasher = DefaultHasher::new();
        (seed, self.story, layout_name(self.layout)).hash(&mut hasher);
        let mut random = Random::new(hasher.finish());
        let mut tally = Tally::default();
        for call in self.chosen(depth, &mut random) {
            let [kill, cut, _, other_cut] = deaths(&mut random);
            let mut faults = vec![Fault::Crash(Moment::Before, kill), Fault::Crash(Moment::After, cut)];
            if depth == Depth::Full || random.below(3) == 0 {
                faults.push(Fault::Crash(Moment::After, other_cut));
            }
            faults.retain(|fault| fault.can_hit(call.op));
            faults.extend(other_faults(call, depth, &mut random));
            for fault in faults {
                let first = Injection { call: call.index, fault };
                let mut seconds = vec![None];
                // As with single roots, a second crash follows a first one, or a flush that failed.
                if matches!(fault, Fault::Crash(..) | Fault::FsyncLie) && random.below(6) == 0 {
                    let deaths = deaths(&mut random);
                    let death = *random.pick(&deaths);
                    let effects = self.effects_of_recovery(first);
                    if !effects.is_empty() {
                        let (call, op) = *random.pick(&effects);
                        let half = op.has_halves() && random.coin();
                        let moment = if half { Moment::During } else { Moment::After };
                        seconds.push(Some(Injection { call, fault: Fault::Crash(moment, death) }));
                    }
                }
                for second in seconds {
                    let tried = self.try_to(first, second, depth);
                    let tried = tried.map_err(|problem| self.failure(first, second, Some(call), problem))?;
                    tally.points += 1;
                    tally.states += 1;
                    tally.double += u64::from(tried.is_double);
                    tally.continued += u64::from(tried.goes_on);
                }
            }
        }
        Ok(tally)
    }

    /// The calls of the recovery from `first` that change something.
    fn effects_of_recovery(&self, first: Injection) -> Vec<(u64, Op)> {
        let mut machine = self.base.fork();
        machine.act(Faults::at(first.call, first.fault));
        let trace = machine.recover(Faults::none()).trace;
        trace.iter().filter(|call| call.op.is_effect()).map(|call| (call.index, call.op)).collect()
    }

    /// Runs the set with `first` going wrong, recovers with `second` going wrong, and checks everything.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn attempt(&self, first: Injection, second: Option<Injection>) -> Result<(), Failure> {
        let hit = usize::try_from(first.call).ok().and_then(|call| self.calls().get(call));
        let tried = self.try_to(first, second, Depth::Full);
        tried.map(drop).map_err(|problem| self.failure(first, second, hit, problem))
    }

    fn failure(
        &self,
        first: Injection,
        second: Option<Injection>,
        hit: Option<&Call>,
        problem: String,
    ) -> Failure {
        let point = Point { story: self.story.to_owned(), layout: self.layout, first, second };
        Failure { point, call: hit.cloned(), problem }
    }
}

/// What one attempt came to.
struct Tried {
    /// Whether the recovery died, too.
    is_double: bool,
    /// Whether the machine also had to go on.
    goes_on: bool,
}

/// What a call does, to which root, and where in it: what differs by number or name only is of one kind.
fn kind(call: &Call) -> (Op, String, &'static str) {
    let place = |path: &Path| {
        let named = path.components().filter(|component| matches!(component, Component::Normal(_)));
        let named: Vec<_> = named.take(3).map(|component| component.as_os_str().to_string_lossy()).collect();
        let place = named.join("/");
        place.chars().filter(|character| !character.is_ascii_digit()).collect::<String>()
    };
    (call.op, place(&call.path), call.note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_sweep_has_every_kind_of_write_and_a_part_of_all() {
        let story = SetStory::all().remove(0);
        let subject = SetSubject::prepare(story, Layout::Versioned).expect("a story");
        let kinds = |calls: &[&Call]| calls.iter().map(|call| kind(call)).collect::<BTreeSet<_>>();
        let all = subject.chosen(Depth::Full, &mut Random::new(1));
        for seed in 0..4 {
            let some = subject.chosen(Depth::Sampled, &mut Random::new(seed));
            assert_eq!(kinds(&some), kinds(&all));
            assert!(some.len() < all.len() / 2, "{} of {}", some.len(), all.len());
        }
    }
}
