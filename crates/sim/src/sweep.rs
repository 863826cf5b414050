//! Sweeps: one story, broken at every point it has, and what must hold afterwards.
//!
//! A [`Subject`] runs its story once without faults. Then every call of that run is a place where a fault can be put;
//! [`Subject::attempt`] runs the story anew with it, recovers, and checks the promises. The first that does not hold is
//! a [`Failure`], which says how to replay it.

use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::AddAssign,
    path::Path,
    str::FromStr,
    sync::Arc,
};

use cutover_core::{execute::Outcome, model::ReleaseRef, plan::Layout};
use cutover_host::probe::ProbeOutcome;

use crate::{
    Action, Call, Death, Ended, Errno, Fault, Faults, FileSystem, Lasting, Life, Machine, Moment, Random,
    SetStory, SetSubject, Tree, TreeKind,
    fs::hash_content,
    machine::{Recording, Remains},
    release::releases,
    state::{Visible, damaged_objects, leftovers, named_objects, shared_inodes},
    story::{Story, story, succeeded},
};

/// A fault and the call it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Which call of the process, from 0.
    pub call: u64,
    /// What happens to it.
    pub fault: Fault,
}

/// Everything that is needed to run one broken story again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The story.
    pub story: String,
    /// The layout of the root.
    pub layout: Layout,
    /// What goes wrong during the action.
    pub first: Injection,
    /// What goes wrong during the recovery.
    pub second: Option<Injection>,
}

/// A promise that did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Where.
    pub point: Point,
    /// The call that was hit.
    pub call: Option<Call>,
    /// What is wrong.
    pub problem: String,
}

/// One story in one layout, ready to be broken.
pub struct Subject {
    story: Story,
    layout: Layout,
    base: Machine,
    /// What is visible before the action.
    before: Visible,
    /// What is visible after it.
    after: Visible,
    /// The release whose service runs, before the action and after it.
    running: [Option<ReleaseRef>; 2],
    /// What is visible until the probe has failed.
    tried: Option<Visible>,
    /// Names below `.cutover` and `releases` after it, journals and the like left out.
    kept: Vec<String>,
    /// The action when nothing goes wrong.
    unbroken: Recording,
    outcome: Option<Outcome>,
}

/// How thoroughly a sweep looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// A kill and three power cuts before and after every call that changes anything. Of the other faults one at about
    /// every fourth call, and of second crashes one for about every eighth state that a first one left, both chosen by
    /// the seed. For every test run.
    Sampled,
    /// Every fault at every call. A second crash, a kill and a power cut, at and inside every call of every recovery from a kill
    /// and from a power cut that kept only what was synced; one for each recovery from the other power cuts.
    Full,
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Faults that were tried: pairs of a call and what happens to it, and for double crashes two of them.
    pub points: u64,
    /// How many of these had a second crash, in the recovery.
    pub double: u64,
    /// How many different states they left; each was recovered and checked.
    pub states: u64,
    /// How many of these also were to repeat the action and to install the next release.
    pub continued: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.points += other.points;
        self.double += other.double;
        self.states += other.states;
        self.continued += other.continued;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}, {}", self.points, self.double, self.states, self.continued)
    }
}

/// What an answer that somebody heard promises to be visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Promised {
    Nothing,
    Old,
    New,
}

/// What was recovered and checked already. Many faults leave the same: nothing needs to be checked twice.
struct Seen {
    /// Exact states with what was promised of them, hashed whole: a collision would hide a state, one in 10^10 sweeps.
    states: HashSet<u64>,
    /// States after a recovery, without what tells only when they came to be, by a hash.
    settled: HashSet<u64>,
    depth: Depth,
    tally: Tally,
}

impl Subject {
    /// Runs the story without faults.
    ///
    /// # Errors
    /// What does not even work then.
    pub fn prepare(story: Story, layout: Layout) -> Result<Self, String> {
        let base = story.prepare(layout)?;
        let before = Visible::of(&base.fs, layout);
        let unbroken = base.record(&story.action);
        let life = &unbroken.life;
        let expected = match &life.ended {
            Ended::Executed(report) if story.probe_fails.is_some() => {
                matches!(report.outcome, Outcome::ProbeFailed { .. })
            }
            ended => succeeded(ended),
        };
        if !expected {
            return Err(format!("without any fault: {:?}", life.ended));
        }
        let outcome = match &life.ended {
            Ended::Executed(report) => Some(report.outcome.clone()),
            _ => None,
        };
        let after = Visible::of(&unbroken.machine.fs, layout);
        let tried = story.probe_fails.map(|_| {
            let mut machine = base.fork();
            machine.verdicts = Arc::new(|_| ProbeOutcome::Passed);
            machine.run(&story.action, Faults::none());
            Visible::of(&machine.fs, layout)
        });
        let kept = kept(&unbroken.machine);
        let running = [base.running(), unbroken.machine.running()];
        let subject = Self { kept, running, story, layout, base, before, after, tried, unbroken, outcome };
        subject.check_reference(subject.unbroken.life.probes)?;
        subject
            .settle(subject.unbroken.machine.fork(), Promised::New, &mut Seen::new(Depth::Full))
            .map_err(|problem| format!("without any fault: {problem}"))?;
        Ok(subject)
    }

    /// What must be visible when nothing went wrong, told by the releases and not by the engine.
    fn check_reference(&self, probes: u64) -> Result<(), String> {
        let installed = match (&self.story.action, self.story.probe_fails) {
            (Action::Update(index), None) => Some(&releases()[*index]),
            _ => None,
        };
        let difference = installed.map(|release| self.after.difference_from_release(release, self.layout));
        if let Some(difference) = difference.filter(|difference| !difference.is_empty()) {
            return Err(format!("the installed tree is not the release:\n{difference}"));
        }
        let release = installed.map(|release| release.bundle.release());
        if release.is_some() && self.running[1] != release {
            return Err(format!("the service runs {:?}", self.running[1]));
        }
        // E9: exactly once, unless there is nothing to probe.
        let expected = match (&self.story.action, &self.after.path) {
            (Action::Update(_) | Action::Rollback(_), _) if self.story.name == "rollback-to-nothing" => 0,
            (Action::Update(_) | Action::Rollback(_), _) => 1,
            (Action::Prune(_) | Action::Repair(_) | Action::Recover, _) => 0,
        };
        if probes == expected { Ok(()) } else { Err(format!("{probes} probes instead of {expected}")) }
    }

    /// The calls of the unbroken action.
    pub fn calls(&self) -> &[Call] {
        &self.unbroken.life.trace
    }

    /// Runs the story with `first` going wrong, recovers with `second` going wrong, and checks everything.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn attempt(&self, first: Injection, second: Option<Injection>) -> Result<(), Failure> {
        self.run(first, second, &mut Seen::new(Depth::Full))
    }

    fn failure(
        &self,
        first: Injection,
        second: Option<Injection>,
        hit: Option<&Call>,
        problem: String,
    ) -> Failure {
        Failure {
            point: Point { story: self.story.name.to_owned(), layout: self.layout, first, second },
            call: hit.cloned(),
            problem,
        }
    }

    fn run(&self, first: Injection, second: Option<Injection>, seen: &mut Seen) -> Result<(), Failure> {
        let mut machine = self.base.fork();
        let life = machine.run(&self.story.action, Faults::at(first.call, first.fault));
        let fail = |problem: String| self.failure(first, second, life.hit.as_ref(), problem);
        self.check_at_once(&machine.fs).map_err(fail)?;
        let promised = promised(&life).map_err(fail)?;
        if !life.crashed {
            // Whatever was answered must hold when the power fails right after.
            for seed in answer_cuts(first.call, seen.depth) {
                self.settle_once(machine.after_power_cut(seed), promised, seen).map_err(|problem| {
                    fail(format!(
                        "after the answer {} and a power cut (seed {seed}): {problem}",
                        told(&life.ended)
                    ))
                })?;
            }
        }
        if let Some(second) = second {
            let again = machine.run(&Action::Recover, Faults::at(second.call, second.fault));
            let during = |problem: String| {
                let hit = again.hit.as_ref().map_or_else(String::new, Call::to_string);
                fail(format!("after a second fault at {hit}: {problem}"))
            };
            self.check_at_once(&machine.fs).map_err(during)?;
            return self.settle_once(machine.remains(), promised, seen).map_err(during);
        }
        let ended =
            if life.crashed { String::new() } else { format!("after the answer {}: ", told(&life.ended)) };
        self.settle_once(machine.remains(), promised, seen)
            .map_err(|problem| fail(format!("{ended}{problem}")))
    }

    /// What must hold at any moment, recovered or not.
    fn check_at_once(&self, fs: &FileSystem) -> Result<(), String> {
        let now = Visible::of(fs, self.layout);
        let torn = match (&self.story.action, self.layout) {
            (Action::Repair(_), _) | (_, Layout::InPlace) => {
                let states: Vec<&Visible> =
                    [&self.before, &self.after].into_iter().chain(&self.tried).collect();
                now.torn(&states)
            }
            (_, Layout::Versioned | Layout::Exchange) if self.tried.as_ref() == Some(&now) => String::new(),
            (_, Layout::Versioned | Layout::Exchange) => self.neither(&now),
        };
        if torn.is_empty() { Ok(()) } else { Err(format!("before any recovery:\n{torn}")) }
    }

    fn neither(&self, now: &Visible) -> String {
        if now == &self.before || now == &self.after {
            return String::new();
        }
        format!(
            "neither old nor new; compared with the old:\n{}  compared with the new:\n{}",
            now.difference(&self.before),
            now.difference(&self.after)
        )
    }

    /// What a promise makes visible.
    fn visible(&self, promised: Promised) -> Option<&Visible> {
        match promised {
            Promised::Nothing => None,
            Promised::Old => Some(&self.before),
            Promised::New => Some(&self.after),
        }
    }

    /// Recovers what a process left, and checks everything that must hold then, unless that was done already.
    fn settle_once(&self, remains: Remains, promised: Promised, seen: &mut Seen) -> Result<(), String> {
        if seen.is_new(&remains, promised) {
            self.settle(self.base.boot(remains), promised, seen)
        } else {
            Ok(())
        }
    }

    /// Recovers, and checks everything that must hold then.
    fn settle(&self, mut machine: Machine, promised: Promised, seen: &mut Seen) -> Result<(), String> {
        let life = machine.run(&Action::Recover, Faults::none());
        self.check_recovered(machine, &life, promised, seen)
    }

    /// Checks everything that must hold after a recovery.
    fn check_recovered(
        &self,
        mut machine: Machine,
        life: &Life,
        promised: Promised,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let mut now = Visible::of(&machine.fs, self.layout);
        let reported = match &life.ended {
            Ended::Nothing => Promised::Nothing,
            Ended::Executed(report) => match &report.outcome {
                Outcome::Confirmed => Promised::New,
                Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => Promised::Old,
                Outcome::Stuck { .. } | Outcome::KeptUnconfirmed => {
                    return Err(format!("recovery: {report:?}"));
                }
            },
            ended => return Err(format!("recovery failed: {ended:?}")),
        };
        for (expected, what) in [(promised, "promised"), (reported, "reported by the recovery")] {
            let difference =
                self.visible(expected).map_or(String::new(), |expected| now.difference(expected));
            if !difference.is_empty() {
                return Err(format!("not what was {what}:\n{difference}"));
            }
        }
        let torn = match &self.story.action {
            Action::Repair(_) => now.torn(&[&self.before, &self.after]),
            _ => self.neither(&now),
        };
        if !torn.is_empty() {
            return Err(format!("after the recovery:\n{torn}"));
        }
        self.check_service(&machine, &now)?;
        self.check_housekeeping(&mut machine)?;
        self.check_recovery_is_a_no_op(&mut machine)?;
        if !seen.is_newly_settled(&machine) {
            return Ok(());
        }
        if matches!(self.story.action, Action::Prune(_) | Action::Repair(_)) || now != self.after {
            self.check_retry(&mut machine)?;
            now = Visible::of(&machine.fs, self.layout);
        }
        self.check_next_update(&mut machine, &now)
    }

    /// What is visible is what runs.
    fn check_service(&self, machine: &Machine, now: &Visible) -> Result<(), String> {
        let [before, after] = &self.running;
        let expected = if *now == self.after { after } else { before };
        let running = machine.running();
        if running == *expected {
            Ok(())
        } else {
            Err(format!("the service runs {running:?} instead of {expected:?}"))
        }
    }

    fn check_housekeeping(&self, machine: &mut Machine) -> Result<(), String> {
        let empty = |what: &str, found: Vec<String>| {
            if found.is_empty() { Ok(()) } else { Err(format!("{what}: {}", found.join(", "))) }
        };
        empty("left over", leftovers(&machine.fs))?;
        empty("damaged objects in the store", damaged_objects(&machine.fs))?;
        empty("live files that share an inode with what repairs them", shared_inodes(&machine.fs))?;
        let before = machine.fs.clone();
        let (unusable, _) = machine.live(Faults::none(), |process| {
            let points = process
                .node()
                .and_then(|node| node.restore_points())
                .map_err(|error| format!("{error:?}"))?;
            Ok::<_, String>(
                points
                    .into_iter()
                    .filter_map(|listed| Some(format!("{}: {:?}", listed.id, listed.point.err()?)))
                    .collect(),
            )
        });
        machine.fs = before;
        empty("unusable restore points", unusable?)
    }

    fn check_recovery_is_a_no_op(&self, machine: &mut Machine) -> Result<(), String> {
        let before = machine.fs.clone();
        let life = machine.run(&Action::Recover, Faults::none());
        if !matches!(life.ended, Ended::Nothing) {
            return Err(format!("the second recovery was not a no-op: {:?}", life.ended));
        }
        if machine.fs.looks_the_same_but_for(LOCK, &before) {
            return Ok(());
        }
        let difference = whole(&machine.fs).difference(&whole(&before));
        if difference.is_empty() {
            Ok(())
        } else {
            Err(format!("the second recovery changed something:\n{difference}"))
        }
    }

    /// The same action once more must do what it did when nothing went wrong.
    fn check_retry(&self, machine: &mut Machine) -> Result<(), String> {
        let life = machine.run(&self.story.action, Faults::none());
        let same = match (&life.ended, &self.outcome) {
            (Ended::Executed(report), Some(outcome)) => {
                std::mem::discriminant(&report.outcome) == std::mem::discriminant(outcome)
            }
            (ended, None) => succeeded(ended),
            (_, Some(_)) => false,
        };
        if !same {
            return Err(format!("trying again: {:?}", life.ended));
        }
        let difference = Visible::of(&machine.fs, self.layout).difference(&self.after);
        if !difference.is_empty() {
            return Err(format!("after trying again:\n{difference}"));
        }
        self.check_service(machine, &self.after)
            .map_err(|problem| format!("after trying again {problem}"))?;
        if matches!(self.story.action, Action::Prune(_)) && kept(machine) != self.kept {
            return Err(format!("pruning again keeps {:?} instead of {:?}", kept(machine), self.kept));
        }
        Ok(())
    }

    /// The machine must be able to go on.
    fn check_next_update(&self, machine: &mut Machine, now: &Visible) -> Result<(), String> {
        let newest = releases().len() - 1;
        let life = machine.run(&Action::Update(newest), Faults::none());
        if !succeeded(&life.ended) {
            return Err(format!("the next update: {:?}", life.ended));
        }
        let then = Visible::of(&machine.fs, self.layout);
        let difference = then.difference_from_release(&releases()[newest], self.layout);
        if !difference.is_empty() {
            return Err(format!("after the next update:\n{difference}"));
        }
        let running = machine.running();
        if running != Some(releases()[newest].bundle.release()) {
            return Err(format!("after the next update the service runs {running:?}"));
        }
        if then.foreign != now.foreign {
            return Err("the next update changed a foreign file".to_owned());
        }
        Ok(())
    }

    /// Breaks the story everywhere.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep(&self, depth: Depth, seed: u64) -> Result<Tally, Failure> {
        let mut seen = Seen::new(depth);
        // What is tried in one story and layout does not depend on which others are swept.
        let mut hasher = DefaultHasher::new();
        (seed, self.story.name, layout_name(self.layout)).hash(&mut hasher);
        let mut random = Random::new(hasher.finish());
        for call in self.calls() {
            for death in deaths(&mut random) {
                for moment in [Moment::Before, Moment::After] {
                    let fault = Fault::Crash(moment, death);
                    if fault.can_hit(call.op) {
                        self.crash(Injection { call: call.index, fault }, call, &mut random, &mut seen)?;
                    }
                }
            }
            for fault in other_faults(call, depth, &mut random) {
                let first = Injection { call: call.index, fault };
                seen.tally.points += 1;
                self.run(first, None, &mut seen)?;
                if fault == Fault::FsyncLie {
                    self.cut_after_a_lost_flush(first, &mut random, &mut seen)?;
                }
            }
        }
        Ok(seen.tally)
    }

    /// What a failed flush left in memory only, the next process sees; it must not have built on that when the power fails.
    fn cut_after_a_lost_flush(
        &self,
        first: Injection,
        random: &mut Random,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let mut machine = self.base.fork();
        machine.run(&self.story.action, Faults::at(first.call, first.fault));
        let effects = machine.run(&Action::Recover, Faults::none()).trace;
        let effects: Vec<_> =
            effects.iter().filter(|call| call.op.is_effect()).map(|call| (call.index, call.op)).collect();
        let count = match seen.depth {
            Depth::Full => LOST_FLUSH_CUTS,
            Depth::Sampled => 1,
        };
        for _ in 0..if effects.is_empty() { 0 } else { count } {
            let [_, synced, names, part] = deaths(random);
            let (call, op) = *random.pick(&effects);
            let moment = if op.has_halves() && random.coin() { Moment::During } else { Moment::After };
            let fault = Fault::Crash(moment, *random.pick(&[synced, names, part]));
            let second = Injection { call, fault };
            seen.tally.points += 1;
            seen.tally.double += 1;
            self.run(first, Some(second), seen)?;
        }
        Ok(())
    }

    /// A crash right before or after a call. What it leaves was recorded: nothing runs anew up to it.
    fn crash(
        &self,
        first: Injection,
        call: &Call,
        random: &mut Random,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let fail = |problem| self.failure(first, None, Some(call), problem);
        let remains = left_by(&self.unbroken, first);
        seen.tally.points += 1;
        if !seen.is_new(&remains, Promised::Nothing) {
            return Ok(());
        }
        self.check_at_once(&remains.fs).map_err(fail)?;
        let machine = self.base.boot(remains);
        if seen.depth == Depth::Sampled && random.below(8) > 0 {
            return self.settle(machine, Promised::Nothing, seen).map_err(fail);
        }
        let recovery = machine.record(&Action::Recover);
        let recovered = recovery.machine.fork();
        self.check_recovered(recovered, &recovery.life, Promised::Nothing, seen).map_err(fail)?;
        let mut seconds: Vec<Injection> = Vec::new();
        for call in recovery.life.trace.iter().filter(|call| call.op.is_effect()) {
            // After one call is before the next: the process is killed at every boundary but the last, and there is
            // nothing left to do there.
            let cut = Death::PowerCut { seed: random.below(1 << 16) };
            let halves = [Death::Kill, cut].map(|death| (Moment::During, death));
            for (moment, death) in
                [(Moment::Before, Death::Kill), (Moment::After, cut)].into_iter().chain(halves)
            {
                let fault = Fault::Crash(moment, death);
                if fault.can_hit(call.op) {
                    seconds.push(Injection { call: call.index, fault });
                }
            }
        }
        let everywhere = seen.depth == Depth::Full
            && matches!(first.fault, Fault::Crash(_, Death::Kill | Death::PowerCut { seed: 0 }));
        if !everywhere && !seconds.is_empty() {
            seconds = vec![*random.pick(&seconds)];
        }
        for second in seconds {
            let hit = recovery.life.trace.iter().find(|call| call.index == second.call);
            let fail = |problem: String| {
                let hit = hit.map_or_else(String::new, Call::to_string);
                let problem = format!("after a second fault at {hit}: {problem}");
                self.failure(first, Some(second), Some(call), problem)
            };
            seen.tally.points += 1;
            seen.tally.double += 1;
            let remains = match second.fault {
                // What is half done was not recorded.
                Fault::Crash(Moment::During, _) => {
                    let mut again = machine.fork();
                    again.run(&Action::Recover, Faults::at(second.call, second.fault));
                    again.remains()
                }
                _ => left_by(&recovery, second),
            };
            if seen.is_new(&remains, Promised::Nothing) {
                self.check_at_once(&remains.fs).map_err(fail)?;
                self.settle(self.base.boot(remains), Promised::Nothing, seen).map_err(fail)?;
            }
        }
        Ok(())
    }
}

impl Seen {
    fn new(depth: Depth) -> Self {
        Self { states: HashSet::new(), settled: HashSet::new(), depth, tally: Tally::default() }
    }

    /// Whether this state was not seen yet.
    fn is_new(&mut self, remains: &Remains, promised: Promised) -> bool {
        let mut hasher = DefaultHasher::new();
        let service = format!("{:?}", remains.service);
        (&remains.fs, service, &remains.schema, remains.generation, promised).hash(&mut hasher);
        let new = self.states.insert(hasher.finish());
        self.tally.states += u64::from(new);
        new
    }

    /// Whether a recovered machine differs from all before it in more than when things happened. In a full sweep what
    /// the journals say counts, too, as far as their lengths tell it, and every 32nd machine is taken anyway.
    fn is_newly_settled(&mut self, machine: &Machine) -> bool {
        let mut hasher = DefaultHasher::new();
        machine.indexed().hash(&mut hasher);
        machine.running().map(|release| release.name().to_string()).hash(&mut hasher);
        for (path, entry) in &machine.fs.tree("").unwrap_or_default().0 {
            (path, entry.mode).hash(&mut hasher);
            match &entry.kind {
                TreeKind::File(_) if path == LOCK => {}
                TreeKind::File(bytes) if path == STATE || path.starts_with(JOURNALS) => {
                    (self.depth == Depth::Full).then_some(bytes.len()).hash(&mut hasher);
                }
                TreeKind::File(bytes) => hash_content(bytes, &mut hasher),
                TreeKind::Directory => {}
                TreeKind::Symlink(target) => target.hash(&mut hasher),
            }
        }
        let sampled = self.depth == Depth::Full && self.tally.states.is_multiple_of(32);
        let new = self.settled.insert(hasher.finish()) || sampled;
        self.tally.continued += u64::from(new);
        new
    }
}

/// What an answer promises, if anybody heard one.
fn promised(life: &Life) -> Result<Promised, String> {
    if life.crashed {
        return Ok(Promised::Nothing);
    }
    match &life.ended {
        Ended::Executed(report) => match &report.outcome {
            Outcome::Confirmed => Ok(Promised::New),
            Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => Ok(Promised::Old),
            Outcome::Stuck { .. } => Ok(Promised::Nothing),
            Outcome::KeptUnconfirmed => Err("kept a release whose probe failed".to_owned()),
        },
        Ended::Pruned(_) => Ok(Promised::New),
        Ended::Repaired(report) if report.unrepairable.is_empty() => Ok(Promised::New),
        Ended::Repaired(_) | Ended::Failed(_) => Ok(Promised::Nothing),
        Ended::Nothing | Ended::Refused(_) => Err(format!("answered {:?}", life.ended)),
    }
}

/// What is left when the process dies at one of the recorded calls.
fn left_by(recording: &Recording, injection: Injection) -> Remains {
    match injection.fault {
        Fault::Crash(moment, death) => recording.remains(injection.call, moment, death),
        Fault::Error(..) | Fault::DoneButError(_) | Fault::ShortWrite | Fault::FsyncLie => None,
    }
    .expect("crashes before and after a call are recorded")
}

/// The ways to die that are tried at every call: a kill, and power cuts that keep only what was synced, all names but no
/// unsynced bytes, and something in between.
pub(crate) fn deaths(random: &mut Random) -> [Death; 4] {
    let cut = |seed| Death::PowerCut { seed };
    [Death::Kill, cut(0), cut(1), cut(3 + random.below(1 << 16))]
}

/// The power cuts that follow an answer: all, or one that the call chooses.
pub(crate) fn answer_cuts(call: u64, depth: Depth) -> Vec<u64> {
    let seeds = [0, 1, call.wrapping_mul(31).wrapping_add(3)];
    match depth {
        Depth::Full => seeds.to_vec(),
        Depth::Sampled => vec![seeds[usize::try_from(call % 3).expect("below 3")]],
    }
}

/// The other faults to try at one call.
pub(crate) fn other_faults(call: &Call, depth: Depth, random: &mut Random) -> Vec<Fault> {
    let mut all: Vec<Fault> =
        deaths(random).iter().map(|death| Fault::Crash(Moment::During, *death)).collect();
    for errno in Errno::ALL {
        all.extend([Fault::Error(errno, Lasting::Once), Fault::Error(errno, Lasting::Forever)]);
    }
    all.extend([Fault::DoneButError(Errno::Eio), Fault::ShortWrite, Fault::FsyncLie]);
    all.retain(|fault| fault.can_hit(call.op));
    match depth {
        Depth::Full => all,
        Depth::Sampled if all.is_empty() || random.below(4) > 0 => Vec::new(),
        Depth::Sampled => vec![*random.pick(&all)],
    }
}

/// Power cuts in the recovery from one flush that failed, in a full sweep.
const LOST_FLUSH_CUTS: u32 = 4;
/// The lock, whose note tells who held it last.
const LOCK: &str = ".cutover/lock";
/// What a node went through.
const STATE: &str = ".cutover/state.jsonl";
/// Where its journals lie.
const JOURNALS: &str = ".cutover/journal/";

/// Names that an action keeps or removes: restore points, releases, manifests, and the objects that these name.
fn kept(machine: &Machine) -> Vec<String> {
    let names = |top: &str| -> Vec<String> {
        machine
            .fs
            .tree(top)
            .map_or_else(Vec::new, |tree| tree.0.keys().map(|name| format!("{top}/{name}")).collect())
    };
    let mut kept: Vec<String> =
        [".cutover/restore", ".cutover/manifests", "releases"].iter().flat_map(|top| names(top)).collect();
    kept.extend(named_objects(&machine.fs));
    kept
}

/// The whole disk, but for the note in the lock of each root.
pub(crate) fn whole(fs: &FileSystem) -> Tree {
    let mut tree = fs.tree("").unwrap_or_default();
    tree.0.retain(|path, _| !Path::new(path).ends_with(LOCK));
    tree
}

fn told(ended: &Ended) -> String {
    match ended {
        Ended::Executed(report) => format!("{:?}", report.outcome),
        other => format!("{other:?}"),
    }
}

/// The seed of this run: from `CUTOVER_SIM_SEED`, or always the same.
pub fn seed() -> u64 {
    std::env::var("CUTOVER_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_101)
}

/// The revision of the source that is tested, as far as it can be told.
pub fn revision() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

/// The word for a layout.
pub fn layout_name(layout: Layout) -> &'static str {
    match layout {
        Layout::Versioned => "versioned",
        Layout::Exchange => "exchange",
        Layout::InPlace => "in-place",
    }
}

/// The three layouts.
pub const LAYOUTS: [Layout; 3] = [Layout::Versioned, Layout::Exchange, Layout::InPlace];

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.fault, self.call)
    }
}

impl FromStr for Injection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (fault, call) = text.split_once('@').ok_or_else(|| format!("`{text}` is not FAULT@CALL"))?;
        Ok(Self { call: call.parse().map_err(|_| format!("`{call}` is no call"))?, fault: fault.parse()? })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.story, layout_name(self.layout), self.first)?;
        self.second.map_or(Ok(()), |second| write!(f, "/{second}"))
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let mut part = |what: &str| parts.next().ok_or_else(|| format!("`{text}` has no {what}"));
        let name = part("story")?.to_owned();
        let layout = part("layout")?;
        let layout = LAYOUTS
            .into_iter()
            .find(|known| layout_name(*known) == layout)
            .ok_or_else(|| format!("`{layout}` is no layout"))?;
        let first = part("fault")?.parse()?;
        let second = parts.next().map(str::parse).transpose()?;
        Ok(Self { story: name, layout, first, second })
    }
}

impl Point {
    /// Runs this point again.
    ///
    /// # Errors
    /// What is wrong with the point, or with the engine.
    pub fn replay(&self) -> Result<(), String> {
        let replayed = match SetStory::all().into_iter().find(|story| story.name == self.story) {
            Some(set) => SetSubject::prepare(set, self.layout)?.attempt(self.first, self.second),
            None => {
                let story = story(&self.story).ok_or_else(|| format!("`{}` is no story", self.story))?;
                Subject::prepare(story, self.layout)?.attempt(self.first, self.second)
            }
        };
        replayed.map_err(|failure| failure.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed={} revision={} point={}", seed(), revision(), self.point)?;
        if let Some(call) = &self.call {
            writeln!(f, "hit: {call}")?;
        }
        writeln!(f, "replay: cargo run -p cutover-sim --example sweep -- {}", self.point)?;
        f.write_str(&self.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    #[test]
    fn recorded_crash_leaves_what_a_run_up_to_it_leaves() {
        for (name, layout) in
            LAYOUTS.iter().flat_map(|layout| ["update", "prune"].map(|name| (name, *layout)))
        {
            let subject = Subject::prepare(story(name).expect(name), layout).expect("a story");
            for (place, call) in subject.calls().iter().filter(|call| call.op.is_effect()).enumerate() {
                let moment = if place.is_multiple_of(2) { Moment::Before } else { Moment::After };
                let death = [Death::Kill, Death::PowerCut { seed: 7 }][place / 2 % 2];
                let fault = Fault::Crash(moment, death);
                let mut machine = subject.base.fork();
                assert!(machine.run(&subject.story.action, Faults::at(call.index, fault)).crashed);
                let recorded = left_by(&subject.unbroken, Injection { call: call.index, fault });
                // The note in the lock is written by the same call as the lock is taken.
                if call.op != Op::Lock {
                    assert!(recorded.fs.is_same(&machine.fs), "{name} {layout:?} {fault} at {call}");
                }
                assert_eq!(recorded.schema, machine.remains().schema, "{name} {layout:?} {fault} at {call}");
                assert_eq!(
                    recorded.service,
                    machine.remains().service,
                    "{name} {layout:?} {fault} at {call}"
                );
                let booted = subject.base.boot(recorded);
                assert_eq!(booted.indexed(), machine.indexed(), "{name} {layout:?} {fault} at {call}");
            }
        }
    }

    #[test]
    fn state_is_checked_once_for_each_promise() {
        let subject =
            Subject::prepare(story("update").expect("a story"), Layout::Versioned).expect("prepared");
        let mut seen = Seen::new(Depth::Full);
        assert!(seen.is_new(&subject.base.remains(), Promised::Nothing));
        assert!(!seen.is_new(&subject.base.fork().remains(), Promised::Nothing), "a fork is the same");
        assert!(seen.is_new(&subject.base.remains(), Promised::Old), "more is promised");
        assert!(seen.is_new(&subject.unbroken.machine.remains(), Promised::Nothing), "another state");
    }

    #[test]
    fn every_point_has_a_name_that_leads_back_to_it() {
        for text in ["update/versioned/kill-after@17", "prune/in-place/cut-before:9@0/eio-once@4"] {
            assert_eq!(text.parse::<Point>().expect("a point").to_string(), text);
        }
        for text in [
            "",
            "update",
            "update/flat/kill-after@1",
            "update/versioned/kill@1",
            "update/versioned/kill-after",
        ] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }
}
