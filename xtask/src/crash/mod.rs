//! `cargo xtask crash`: the kill sweep over the real binary.
//!
//! For every file-system call a command makes below its root and for every fault, the command is run with that fault at
//! that call; then `recover` runs twice, and the visible tree has to be wholly old or wholly new, an acknowledged run
//! must not be lost, nothing may be left over, and the next update has to succeed. A violation prints the command that
//! replays it. Read [`Options`] first.

mod power_cut;
mod scene;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    node::Layout,
    program::{self, Profile},
    trace::{Call, Ending, Fault, Lasting, errno_of},
};
use scene::{Samples, Scene, Subject};

/// What is swept, and how much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// A sample of the points, in about a minute, with the binary that tests use.
    #[arg(long)]
    quick: bool,
    /// Only this layout.
    #[arg(long)]
    layout: Option<Layout>,
    /// Only this command.
    #[arg(long)]
    command: Option<Subject>,
    /// Only this fault.
    #[arg(long)]
    fault: Option<FaultKind>,
    /// Only the call with this number: replays one point.
    #[arg(long, short = 'n')]
    at: Option<u64>,
    /// Chooses the sample.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At most this many points for each command and layout, chosen by the seed.
    #[arg(long)]
    sample: Option<usize>,
    /// Sweeps at the same time.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Also lets EIO, ENOSPC and EROFS stay once they appeared, until the run ends.
    #[arg(long)]
    lasting: bool,
    /// Cuts the power of a loop device with this file system at each call instead. Needs root.
    #[arg(long, value_name = "FS")]
    power_cut: Option<power_cut::FileSystem>,
    /// Lists the calls of the undisturbed run and stops.
    #[arg(long)]
    list: bool,
    /// Writes the totals as a Markdown table to this file as well.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Options {
    /// The bounded sweep of the test command.
    pub(crate) fn quick() -> Self {
        Options {
            quick: true,
            layout: None,
            command: None,
            fault: None,
            at: None,
            seed: 1,
            sample: None,
            workers: 2,
            lasting: false,
            power_cut: None,
            list: false,
            report: None,
        }
    }

    fn profile(&self) -> Profile {
        if self.quick { Profile::Dev } else { Profile::Release }
    }

    fn sample_size(&self) -> Option<usize> {
        self.sample.or(if self.quick { Some(QUICK_POINTS) } else { None })
    }

    /// Into how many points of an update and a rollback the recover scenes are cut.
    fn recover_points(&self) -> usize {
        if self.quick { 2 } else { 6 }
    }

    fn layouts(&self) -> Vec<Layout> {
        Layout::ALL.iter().copied().filter(|layout| self.layout.is_none_or(|only| only == *layout)).collect()
    }

    fn subjects(&self) -> Vec<Subject> {
        Subject::ALL
            .iter()
            .copied()
            .filter(|subject| self.command.is_none_or(|only| only == *subject))
            .collect()
    }
}

/// Points for each scene in the bounded sweep.
const QUICK_POINTS: usize = 16;

/// A fault of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum FaultKind {
    /// SIGKILL before the call.
    Kill,
    /// SIGKILL after the call.
    KillAfter,
    /// The call fails with an I/O error.
    Eio,
    /// The call fails because the disk is full.
    Enospc,
    /// The call fails because the file system became read-only.
    Erofs,
    /// The call writes half of what it was given.
    Short,
    /// From this call on every change fails with an I/O error.
    EioForever,
    /// From this call on the disk is full.
    EnospcForever,
    /// From this call on the file system is read-only.
    ErofsForever,
}

impl FaultKind {
    const ONCE: &[FaultKind] = &[
        FaultKind::Kill,
        FaultKind::KillAfter,
        FaultKind::Eio,
        FaultKind::Enospc,
        FaultKind::Erofs,
        FaultKind::Short,
    ];
    const FOREVER: &[FaultKind] = &[FaultKind::EioForever, FaultKind::EnospcForever, FaultKind::ErofsForever];

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether this fault at this call can show anything that another point does not.
    fn applies_to(self, call: &Call) -> bool {
        match self {
            // Before a call that only reads, the disk is as it is before the next one that changes something.
            FaultKind::Kill | FaultKind::KillAfter => call.changes,
            FaultKind::Enospc
            | FaultKind::Erofs
            | FaultKind::EioForever
            | FaultKind::EnospcForever
            | FaultKind::ErofsForever => call.changes,
            FaultKind::Eio => true,
            FaultKind::Short => call.length.is_some_and(|length| length > 1),
        }
    }

    fn at(self, at: u64) -> Fault<'static> {
        let fail = |name: &str, lasting| Fault::Fail {
            at,
            errno: errno_of(name).expect("the names below are known"),
            lasting,
        };
        match self {
            FaultKind::Kill => Fault::KillBefore { at },
            FaultKind::KillAfter => Fault::KillAfter { at },
            FaultKind::Eio => fail("EIO", Lasting::Once),
            FaultKind::Enospc => fail("ENOSPC", Lasting::Once),
            FaultKind::Erofs => fail("EROFS", Lasting::Once),
            FaultKind::Short => Fault::Shorten { at },
            FaultKind::EioForever => fail("EIO", Lasting::Forever),
            FaultKind::EnospcForever => fail("ENOSPC", Lasting::Forever),
            FaultKind::ErofsForever => fail("EROFS", Lasting::Forever),
        }
    }
}

/// What one layout and subject came to.
#[derive(Clone, Debug, Default)]
struct Tally {
    calls: u64,
    runs: u64,
    acknowledged: u64,
    violations: Vec<String>,
}

/// Runs the sweep; fails when a violation was found.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "the sweep needs Linux: it traces system calls");
    let binary = program::build(root, options.profile())?;
    if let Some(file_system) = options.power_cut {
        return power_cut::run(&binary, file_system, options);
    }
    let started = Instant::now();
    let place = scratch()?;
    let samples = Samples::make(&binary, place.path())?;
    let work: Mutex<VecDeque<(Layout, Subject)>> = Mutex::new(
        options
            .layouts()
            .into_iter()
            .flat_map(|layout| options.subjects().into_iter().map(move |subject| (layout, subject)))
            .collect(),
    );
    let tallies: Mutex<BTreeMap<(Layout, Subject), Tally>> = Mutex::new(BTreeMap::new());
    let violations = AtomicU64::new(0);
    // Each worker takes a whole layout and subject: a scene's root has one user at a time.
    let outcome: Result<()> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.workers.max(1))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = work.lock().expect("no worker panics holding it").pop_front();
                        let Some((layout, subject)) = next else { return Ok(()) };
                        let tally = sweep(&samples, layout, subject, options, place.path(), &violations)
                            .with_context(|| format!("{layout}, {}", subject.name()))?;
                        tallies.lock().expect("no worker panics holding it").insert((layout, subject), tally);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    outcome?;
    let tallies = tallies.into_inner().expect("the workers are gone");
    if options.list {
        return Ok(());
    }
    let table = table_of(&tallies, options, started.elapsed());
    println!("{table}");
    if let Some(report) = &options.report {
        std::fs::write(report, &table)?;
    }
    let total: usize = tallies.values().map(|tally| tally.violations.len()).sum();
    ensure!(total == 0, "crash: {total} violation(s)");
    Ok(())
}

fn sweep(
    samples: &Samples,
    layout: Layout,
    subject: Subject,
    options: &Options,
    place: &Path,
    violations: &AtomicU64,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for scene in Scene::all_of(samples, layout, subject, options.recover_points(), place)? {
        scene.reset()?;
        let watched = scene.traced(scene.command()).run(Fault::Watch)?;
        tally.calls += watched.calls.len() as u64;
        if options.list {
            println!("{layout} {} {}", subject.name(), scene.variant);
            watched
                .calls
                .iter()
                .for_each(|call| println!("  {}{call}", if call.changes { "" } else { "(reads) " }));
            continue;
        }
        for (at, kind) in points(&watched.calls, options) {
            tally.runs += 1;
            let problems = strike(&scene, at, kind, &mut tally)?;
            for problem in problems {
                violations.fetch_add(1, Ordering::Relaxed);
                let call = watched.calls.get(at as usize - 1).map(ToString::to_string).unwrap_or_default();
                let line = format!(
                    "VIOLATION {layout} {} {} {} at {call}: {problem}\n  replay: cargo xtask crash --layout {layout} \
                     --command {} --fault {} --at {at}{}",
                    subject.name(),
                    scene.variant,
                    kind.name(),
                    subject.name(),
                    kind.name(),
                    if options.quick { " --quick" } else { "" },
                );
                eprintln!("{line}");
                tally.violations.push(line);
            }
            ensure!(
                violations.load(Ordering::Relaxed) < MOST_VIOLATIONS,
                "giving up after {MOST_VIOLATIONS} violations"
            );
        }
    }
    Ok(tally)
}

/// After this many the sweep has said what there is to say.
const MOST_VIOLATIONS: u64 = 200;

/// The points of one scene: all of them, or a sample in which the calls that move names come first.
fn points(calls: &[Call], options: &Options) -> Vec<(u64, FaultKind)> {
    let kinds = FaultKind::ONCE.iter().chain(if options.lasting { FaultKind::FOREVER } else { &[] });
    let kinds: Vec<FaultKind> =
        kinds.copied().chain(options.fault.filter(|kind| FaultKind::FOREVER.contains(kind))).collect();
    let mut points: Vec<(u64, FaultKind)> = calls
        .iter()
        .filter(|call| options.at.is_none_or(|at| at == call.index))
        .flat_map(|call| kinds.iter().filter(|kind| kind.applies_to(call)).map(|kind| (call.index, *kind)))
        .filter(|(_, kind)| options.fault.is_none_or(|only| only == *kind))
        .collect();
    points.dedup();
    if let Some(size) = options.sample_size().filter(|size| *size < points.len()) {
        let mut random = StdRng::seed_from_u64(options.seed);
        points.shuffle(&mut random);
        let moves = |at: u64| calls[at as usize - 1].name.starts_with("rename");
        // A quarter of the sample goes to renames, the rest anywhere.
        let (renames, others): (Vec<_>, Vec<_>) = points.into_iter().partition(|(at, _)| moves(*at));
        let quarter = size.div_ceil(4).min(renames.len());
        points = renames.into_iter().take(quarter).chain(others.into_iter().take(size - quarter)).collect();
        points.sort_unstable();
    }
    points
}

fn strike(scene: &Scene, at: u64, kind: FaultKind, tally: &mut Tally) -> Result<Vec<String>> {
    scene.reset()?;
    let outcome = scene.traced(scene.command()).run(kind.at(at))?;
    let mut problems = Vec::new();
    let acknowledged = outcome.ending == Ending::Exited(0);
    tally.acknowledged += u64::from(acknowledged);
    match outcome.ending {
        Ending::TimedOut => problems.push("the struck run hung".to_owned()),
        Ending::Signalled(signal) => problems.push(format!("the struck run died of signal {signal}")),
        Ending::Exited(101) => problems.push(format!("the struck run panicked: {}", outcome.stderr.trim())),
        Ending::Exited(_) | Ending::Killed => {}
    }
    if outcome.stderr.contains("panicked at") {
        problems.push(format!("a thread panicked: {}", outcome.stderr.trim()));
    }
    problems.extend(scene.recover_and_judge(acknowledged)?);
    Ok(problems)
}

/// A directory in memory where there is one, else on disk.
fn scratch() -> Result<tempfile::TempDir> {
    let builder = |dir: &Path| tempfile::Builder::new().prefix("cutover-crash-").tempdir_in(dir);
    Ok(builder(Path::new("/dev/shm")).or_else(|_| builder(&std::env::temp_dir()))?)
}

fn table_of(tallies: &BTreeMap<(Layout, Subject), Tally>, options: &Options, took: Duration) -> String {
    let mut table =
        String::from("layout | command | calls | runs | acknowledged | violations\n-|-|-:|-:|-:|-:\n");
    let mut total = Tally::default();
    for ((layout, subject), tally) in tallies {
        let violations = tally.violations.len();
        table.push_str(&format!(
            "{layout} | {} | {} | {} | {} | {violations}\n",
            subject.name(),
            tally.calls,
            tally.runs,
            tally.acknowledged
        ));
        total.calls += tally.calls;
        total.runs += tally.runs;
        total.acknowledged += tally.acknowledged;
        total.violations.extend(tally.violations.iter().cloned());
    }
    table.push_str(&format!(
        "all | | {} | {} | {} | {}\n",
        total.calls,
        total.runs,
        total.acknowledged,
        total.violations.len()
    ));
    let extent = match options.sample_size() {
        Some(size) => format!("at most {size} points for each scene, seed {}", options.seed),
        None => "every call and every fault".to_owned(),
    };
    format!("{table}\n{extent}; {} s with {} workers\n", took.as_secs(), options.workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(index: u64, name: &'static str, changes: bool, length: Option<u64>) -> Call {
        Call { index, name, paths: Vec::new(), changes, length }
    }

    #[test]
    fn every_applicable_fault_is_a_point_for_every_call() {
        let calls =
            [call(1, "read", false, None), call(2, "write", true, Some(9)), call(3, "renameat", true, None)];
        let mut options = Options::quick();
        options.quick = false;
        let points = points(&calls, &options);
        assert_eq!(points.iter().filter(|(at, _)| *at == 1).count(), 1, "a failed read");
        assert_eq!(points.iter().filter(|(at, _)| *at == 2).count(), 6);
        assert_eq!(points.iter().filter(|(at, _)| *at == 3).count(), 5, "no short rename");
    }

    #[test]
    fn a_sample_is_the_same_for_the_same_seed_and_holds_renames() {
        let calls: Vec<Call> = (1..=200)
            .map(|index| call(index, if index % 50 == 0 { "renameat" } else { "write" }, true, Some(4)))
            .collect();
        let mut options = Options::quick();
        let first = points(&calls, &options);
        assert_eq!(first, points(&calls, &options));
        assert_eq!(first.len(), QUICK_POINTS);
        assert!(first.iter().filter(|(at, _)| at % 50 == 0).count() >= QUICK_POINTS / 4);
        options.seed = 2;
        assert_ne!(first, points(&calls, &options));
    }
}
