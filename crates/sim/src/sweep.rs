//! Sweeps: one story, broken at every point it has, and what must hold afterwards.
//!
//! A [`Subject`] runs its story once without faults. Then every call of that run is a place where a fault can be put;
//! [`Subject::attempt`] runs the story anew with it, recovers, and checks the promises. The first that does not hold is
//! a [`Failure`], which says how to replay it.

use std::{fmt, str::FromStr};

use cutover_core::{execute::Outcome, plan::Layout};

use crate::{
    Action, Call, Death, Ended, Errno, Fault, Faults, Lasting, Life, Machine, Moment, Random, Tree,
    release::releases,
    state::{Visible, damaged_objects, leftovers, shared_inodes},
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
    /// Names below `.cutover` and `releases` after it, journals and the like left out.
    kept: Vec<String>,
    /// The calls of the action when nothing goes wrong.
    calls: Vec<Call>,
    outcome: Option<Outcome>,
}

/// How thoroughly a sweep looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every call, each with a few faults in turn, and one crash in the recovery now and then. For every test run.
    Sampled,
    /// Every call with every fault, and every call of every recovery from a crash with a second crash.
    Full,
}

/// Whether to check that the machine can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Check,
    Skip,
}

/// What an attempt came to.
struct Attempt {
    /// The calls of the recovery, when it was not broken itself.
    recovery: Vec<Call>,
}

impl Subject {
    /// Runs the story without faults.
    ///
    /// # Errors
    /// What does not even work then.
    pub fn prepare(story: Story, layout: Layout) -> Result<Self, String> {
        let base = story.prepare(layout)?;
        let before = Visible::of(&base.fs, layout);
        let mut machine = base.fork();
        let life = machine.run(&story.action, Faults::none());
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
        let after = Visible::of(&machine.fs, layout);
        let subject =
            Self { kept: kept(&machine), story, layout, base, before, after, calls: life.trace, outcome };
        subject.check_reference(life.probes)?;
        subject
            .settle(machine, Some(&subject.after), Next::Check)
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
        &self.calls
    }

    /// Runs the story with `first` going wrong, recovers with `second` going wrong, and checks everything.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn attempt(&self, first: Injection, second: Option<Injection>) -> Result<(), Failure> {
        self.run(first, second, Depth::Full).map(drop)
    }

    fn run(&self, first: Injection, second: Option<Injection>, depth: Depth) -> Result<Attempt, Failure> {
        let next = match depth {
            Depth::Sampled if !first.call.is_multiple_of(4) => Next::Skip,
            Depth::Sampled | Depth::Full => Next::Check,
        };
        let mut machine = self.base.fork();
        let life = machine.run(&self.story.action, Faults::at(first.call, first.fault));
        let fail = |problem: String| Failure {
            point: Point { story: self.story.name.to_owned(), layout: self.layout, first, second },
            call: life.hit.clone(),
            problem,
        };
        self.check_at_once(&machine).map_err(fail)?;
        let promised = self.promised(&life).map_err(fail)?;
        if !life.crashed {
            // Whatever was answered must hold when the power fails right after.
            let seeds = [0, 1, first.call.wrapping_mul(31).wrapping_add(3)];
            let seeds = match depth {
                Depth::Full => &seeds[..],
                Depth::Sampled => {
                    std::slice::from_ref(&seeds[usize::try_from(first.call % 3).expect("below 3")])
                }
            };
            for &seed in seeds {
                let mut cut = machine.fork();
                cut.fs = machine.fs.after_power_cut(seed);
                self.settle(cut, promised, next).map_err(|problem| {
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
            self.check_at_once(&machine).map_err(during)?;
            return self.settle(machine, promised, next).map(|recovery| Attempt { recovery }).map_err(during);
        }
        let ended =
            if life.crashed { String::new() } else { format!("after the answer {}: ", told(&life.ended)) };
        self.settle(machine, promised, next)
            .map(|recovery| Attempt { recovery })
            .map_err(|problem| fail(format!("{ended}{problem}")))
    }

    /// What must hold at any moment, recovered or not.
    fn check_at_once(&self, machine: &Machine) -> Result<(), String> {
        let now = Visible::of(&machine.fs, self.layout);
        let torn = match (&self.story.action, self.layout) {
            (Action::Repair(_), _) | (_, Layout::InPlace) => now.torn(&[&self.before, &self.after]),
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

    /// What an answer promises, if anybody heard one.
    fn promised(&self, life: &Life) -> Result<Option<&Visible>, String> {
        if life.crashed {
            return Ok(None);
        }
        match &life.ended {
            Ended::Executed(report) => match &report.outcome {
                Outcome::Confirmed => Ok(Some(&self.after)),
                Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => Ok(Some(&self.before)),
                Outcome::Stuck { .. } => Ok(None),
                Outcome::KeptUnconfirmed => Err("kept a release whose probe failed".to_owned()),
            },
            Ended::Pruned(_) | Ended::Repaired(_) => Ok(Some(&self.after)),
            Ended::Failed(_) => Ok(None),
            Ended::Nothing | Ended::Refused(_) => Err(format!("answered {:?}", life.ended)),
        }
    }

    /// Recovers, and checks everything that must hold then. Returns the calls of the recovery.
    fn settle(
        &self,
        mut machine: Machine,
        promised: Option<&Visible>,
        next: Next,
    ) -> Result<Vec<Call>, String> {
        let life = machine.run(&Action::Recover, Faults::none());
        let mut now = Visible::of(&machine.fs, self.layout);
        let state = match &life.ended {
            Ended::Nothing => None,
            Ended::Executed(report) => match &report.outcome {
                Outcome::Confirmed => Some(&self.after),
                Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => Some(&self.before),
                Outcome::Stuck { .. } | Outcome::KeptUnconfirmed => {
                    return Err(format!("recovery: {report:?}"));
                }
            },
            ended => return Err(format!("recovery failed: {ended:?}")),
        };
        for (expected, what) in [(promised, "promised"), (state, "reported by the recovery")] {
            let difference = expected.map_or(String::new(), |expected| now.difference(expected));
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
        self.check_housekeeping(&machine)?;
        self.check_recovery_is_a_no_op(&mut machine)?;
        if matches!(self.story.action, Action::Prune(_) | Action::Repair(_)) || now != self.after {
            self.check_retry(&mut machine)?;
            now = Visible::of(&machine.fs, self.layout);
        }
        match next {
            Next::Check => self.check_next_update(&mut machine, &now)?,
            Next::Skip => {}
        }
        Ok(life.trace)
    }

    fn check_housekeeping(&self, machine: &Machine) -> Result<(), String> {
        let empty = |what: &str, found: Vec<String>| {
            if found.is_empty() { Ok(()) } else { Err(format!("{what}: {}", found.join(", "))) }
        };
        empty("left over", leftovers(&machine.fs))?;
        empty("damaged objects in the store", damaged_objects(&machine.fs))?;
        empty("live files that share an inode with what repairs them", shared_inodes(&machine.fs))?;
        let mut probe = machine.fork();
        let (unusable, _) = probe.live(Faults::none(), |process| {
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
        empty("unusable restore points", unusable?)
    }

    fn check_recovery_is_a_no_op(&self, machine: &mut Machine) -> Result<(), String> {
        let before = whole(machine);
        let life = machine.run(&Action::Recover, Faults::none());
        if !matches!(life.ended, Ended::Nothing) {
            return Err(format!("the second recovery was not a no-op: {:?}", life.ended));
        }
        let difference = whole(machine).difference(&before);
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
        if then.foreign != now.foreign {
            return Err("the next update changed a foreign file".to_owned());
        }
        Ok(())
    }

    /// Breaks the story everywhere. Returns how many attempts there were.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep(&self, depth: Depth, seed: u64) -> Result<u64, Failure> {
        let mut attempts = 0;
        let mut random = Random::new(seed);
        for call in &self.calls {
            for fault in faults(call, depth, &mut random) {
                let first = Injection { call: call.index, fault };
                let attempt = self.run(first, None, depth)?;
                attempts += 1;
                if let Fault::Crash(..) = fault {
                    attempts += self.sweep_recovery(first, &attempt.recovery, depth, &mut random)?;
                }
            }
        }
        Ok(attempts)
    }

    fn sweep_recovery(
        &self,
        first: Injection,
        recovery: &[Call],
        depth: Depth,
        random: &mut Random,
    ) -> Result<u64, Failure> {
        let effects: Vec<&Call> = recovery.iter().filter(|call| call.op.is_effect()).collect();
        let chosen: Vec<&Call> = match depth {
            Depth::Full => effects,
            Depth::Sampled if effects.is_empty() || !random.below(4).is_multiple_of(4) => Vec::new(),
            Depth::Sampled => vec![*random.pick(&effects)],
        };
        let mut attempts = 0;
        for call in chosen {
            let death =
                if random.coin() { Death::Kill } else { Death::PowerCut { seed: random.below(1 << 16) } };
            let moment = if random.coin() { Moment::Before } else { Moment::After };
            let second = Injection { call: call.index, fault: Fault::Crash(moment, death) };
            self.run(first, Some(second), depth)?;
            attempts += 1;
        }
        Ok(attempts)
    }
}

/// The faults to try at one call.
fn faults(call: &Call, depth: Depth, random: &mut Random) -> Vec<Fault> {
    let mut all: Vec<Fault> = Moment::ALL.iter().map(|moment| Fault::Crash(*moment, Death::Kill)).collect();
    for seed in [0, 1, 3 + random.below(1 << 16), 3 + random.below(1 << 16)] {
        let moments = if seed < 3 { &Moment::ALL[2..] } else { &Moment::ALL[..] };
        all.extend(moments.iter().map(|moment| Fault::Crash(*moment, Death::PowerCut { seed })));
    }
    for errno in Errno::ALL {
        all.extend([Fault::Error(errno, Lasting::Once), Fault::Error(errno, Lasting::Forever)]);
    }
    all.extend([Fault::DoneButError(Errno::Eio), Fault::ShortWrite, Fault::FsyncLie]);
    all.retain(|fault| fault.can_hit(call.op));
    match depth {
        Depth::Full => all,
        Depth::Sampled => {
            let mut few = Vec::new();
            for _ in 0..3.min(all.len()) {
                few.push(all.swap_remove(random.index(all.len())));
            }
            few
        }
    }
}

/// Names that an action keeps or removes: restore points, releases, objects, manifests.
fn kept(machine: &Machine) -> Vec<String> {
    let names = |top: &str| -> Vec<String> {
        machine
            .fs
            .tree(top)
            .map_or_else(Vec::new, |tree| tree.0.keys().map(|name| format!("{top}/{name}")).collect())
    };
    [".cutover/restore", ".cutover/store", ".cutover/manifests", "releases"]
        .iter()
        .flat_map(|top| names(top))
        .collect()
}

/// The whole root, but for the note in the lock.
fn whole(machine: &Machine) -> Tree {
    let mut tree = machine.fs.tree("").unwrap_or_default();
    tree.0.retain(|path, _| path != ".cutover/lock");
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
pub(crate) fn layout_name(layout: Layout) -> &'static str {
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
        let story = story(&self.story).ok_or_else(|| format!("`{}` is no story", self.story))?;
        let subject = Subject::prepare(story, self.layout)?;
        subject.attempt(self.first, self.second).map_err(|failure| failure.to_string())
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
