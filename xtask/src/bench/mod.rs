//! `cargo xtask bench install`: Cutover beside what users have, on one real tree, in one run.
//!
//! Every method installs the same tree on the same file system, each followed by `sync -f`; rounds are interleaved, so
//! that a slow minute hits all methods alike; the table shows medians. After the first round each result is compared
//! with the tree, so that a fast wrong answer is an error. Read [`Options`] first.

mod delta;
mod fetch;
mod gate;
mod index;
mod peers;
mod schema;
mod targets;
mod transfer;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use crate::{
    node::{self, Finished, Layout, Node, Publisher, Usage, exit},
    program::{self, Profile},
    real_tree,
    tree::{self, Snapshot},
};
use peers::{Origin, PEERS, Peer};

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Bench {
    /// Installing a real tree, beside other tools, and the targets.
    Install(Options),
    /// Patches of ours beside those of other tools.
    Delta(delta::Options),
    /// Downloads of ours beside those of other tools.
    Fetch(fetch::Options),
    /// The receiver of the version gate beside nginx and a Python receiver.
    Gate(gate::Options),
    /// Adding the rows that an index lacks, beside `sha256sum` and Python.
    Index(index::Options),
    /// Bytes that an update takes from a repository, beside other tools.
    Transfer,
    /// The rewrite of a column of a large table, beside other ways.
    Schema(schema::Options),
}

/// How it is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Interleaved rounds; the table shows medians.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Install this tree instead of the real releases (its update is the tree with every 20th file changed).
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Installs the Debian packages of missing peers first. Needs root.
    #[arg(long)]
    install_peers: bool,
    /// Where to install. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Only the comparison with peers, not the targets.
    #[arg(long)]
    peers_only: bool,
    /// Only the targets.
    #[arg(long, conflicts_with = "peers_only")]
    targets_only: bool,
    /// Only methods whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// What was measured of one method.
#[derive(Clone, Debug, Default)]
struct Samples {
    took: Vec<Duration>,
    processor: Vec<Duration>,
    peak_bytes: u64,
}

impl Samples {
    fn add(&mut self, took: Duration, usage: Usage) {
        self.took.push(took);
        self.processor.push(usage.processor);
        self.peak_bytes = self.peak_bytes.max(usage.peak_bytes);
    }
}

fn median(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The releases that are installed.
pub(super) struct Material {
    /// The tree and its two successors: the next real release, and the same tree with every 20th file changed.
    trees: [PathBuf; 3],
    snapshots: [Snapshot; 3],
    bundles: [PathBuf; 3],
    binary: PathBuf,
    place: PathBuf,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn run(root: &Path, bench: &Bench) -> Result<()> {
    let options = match bench {
        Bench::Install(options) => options,
        Bench::Delta(options) => return delta::run(root, options),
        Bench::Fetch(options) => return fetch::run(root, options),
        Bench::Gate(options) => return gate::run(root, options),
        Bench::Index(options) => return index::run(root, options),
        Bench::Transfer => return transfer::run(root),
        Bench::Schema(options) => return schema::run(root, options),
    };
    if options.install_peers {
        install_peers()?;
    }
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench"));
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    let material = Material::make(root, options, &place)?;
    describe(&material)?;
    if !options.targets_only {
        compare(&material, options)?;
    }
    if !options.peers_only {
        targets::run(&material, options.rounds)?;
    }
    tree::remove(&place)
}

impl Material {
    fn make(root: &Path, options: &Options, place: &Path) -> Result<Self> {
        let program = program::build(root, Profile::Release)?;
        let touched = place.join("tree-touched");
        let (first, second) = match &options.tree {
            Some(tree) => (tree.canonicalize()?, touched.clone()),
            None => {
                let [first, second] = real_tree::make(root)?;
                (first, second)
            }
        };
        tree::copy(&first, &touched)?;
        touch_every_20th(&touched)?;
        let trees = [first, second, touched];
        let publisher = Publisher::new(&program, &place.join("publisher"))?;
        let release =
            |index: usize, version: &str| publisher.release(&trees[index], version, real_tree::SPEC, 9);
        let bundles = [release(0, "1.0.0")?, release(1, "1.1.0")?, release(2, "1.0.1")?];
        let snapshot = |index: usize| Snapshot::of(&trees[index], &[]);
        let snapshots = [snapshot(0)?, snapshot(1)?, snapshot(2)?];
        Ok(Material { trees, snapshots, bundles, binary: publisher.binary, place: place.to_owned() })
    }

    /// A new, empty root.
    pub(super) fn node(&self, name: &str, layout: Layout) -> Result<Node> {
        let root = self.place.join(format!("root-{name}"));
        tree::remove(&root)?;
        std::fs::create_dir_all(&root)?;
        Ok(Node { binary: self.binary.clone(), root, layout, settings: Vec::new() })
    }
}

/// Appends a byte to every 20th file in the order of paths.
fn touch_every_20th(tree: &Path) -> Result<()> {
    use std::io::Write;
    let snapshot = Snapshot::of(tree, &[])?;
    let files = snapshot.entries.iter().filter(|(_, entry)| matches!(entry, tree::Entry::File { .. }));
    for (path, _) in files.skip(19).step_by(20) {
        std::fs::OpenOptions::new().append(true).open(tree.join(path))?.write_all(b"\n")?;
    }
    Ok(())
}

fn install_peers() -> Result<()> {
    let mut missing: Vec<&str> = PEERS.iter().flat_map(Peer::missing).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(missing);
    program::succeed(command).map(drop)
}

fn describe(material: &Material) -> Result<()> {
    let [first, second, touched] = &material.snapshots;
    let changed = touched.differences(first).len();
    let mut stat = Command::new("stat");
    stat.args(["-f", "-c", "%T"]).arg(&material.place);
    println!(
        "tree: {} files, {:.1} MB; next release: {} files, {:.1} MB; touched: {changed} files changed; file system: {}; \
         processors: {}\n",
        first.files(),
        first.bytes() as f64 / 1e6,
        second.files(),
        second.bytes() as f64 / 1e6,
        program::succeed(stat)?.trim(),
        std::thread::available_parallelism()?,
    );
    Ok(())
}

/// A method of the table.
enum Method {
    Peer(&'static Peer),
    Cutover(Act),
}

/// What Cutover does in a row of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Install(Layout),
    Update,
    UpdateTouched,
    Rollback,
    Verify,
}

impl Act {
    const ALL: &[Act] = &[
        Act::Install(Layout::Versioned),
        Act::Install(Layout::Exchange),
        Act::Install(Layout::InPlace),
        Act::Update,
        Act::UpdateTouched,
        Act::Rollback,
        Act::Verify,
    ];

    fn name(self) -> String {
        match self {
            Act::Install(layout) => format!("cutover apply, first install ({layout})"),
            Act::Update => "cutover apply, next release".to_owned(),
            Act::UpdateTouched => "cutover apply, 95 % of files unchanged".to_owned(),
            Act::Rollback => "cutover rollback".to_owned(),
            Act::Verify => "cutover verify (hashes every file)".to_owned(),
        }
    }
}

impl Method {
    fn name(&self) -> String {
        match self {
            Method::Peer(peer) => peer.name.to_owned(),
            Method::Cutover(act) => act.name(),
        }
    }

    fn signed(&self) -> &'static str {
        match self {
            Method::Cutover(_) => "yes",
            Method::Peer(peer) => match peer.origin {
                Origin::Signed => "yes",
                Origin::Unsigned => "no",
            },
        }
    }
}

fn compare(material: &Material, options: &Options) -> Result<()> {
    let mut methods = Vec::new();
    for peer in PEERS {
        let missing = peer.missing();
        if missing.is_empty() {
            methods.push(Method::Peer(peer));
        } else {
            println!("not run: {}: {} is not installed (--install-peers)", peer.name, missing.join(", "));
        }
    }
    methods.extend(Act::ALL.iter().map(|act| Method::Cutover(*act)));
    if let Some(only) = &options.only {
        // The first row stays: the others are measured by it.
        let first = methods.remove(0);
        methods.retain(|method| method.name().contains(only.as_str()));
        methods.insert(0, first);
    }
    // A peer that cannot be prepared or does not install the tree is said to, and the others go on.
    let mut able = Vec::new();
    for method in methods {
        match prepare_and_try(material, &method) {
            Ok(()) => able.push((method, Samples::default())),
            Err(error) => match method {
                Method::Peer(peer) => println!("not run: {}: {error:#}", peer.name),
                Method::Cutover(_) => return Err(error.context(method.name())),
            },
        }
    }
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (method, samples) in &mut able {
            let (took, usage) = measure(material, method)?;
            samples.add(took, usage);
        }
    }
    println!("\nmethod | signed | median | of cp -a | processor time | peak memory");
    println!("-|-|-:|-:|-:|-:");
    let base = able.first().map(|(_, samples)| median(&samples.took)).unwrap_or_default();
    for (method, samples) in &able {
        println!(
            "{} | {} | {} ms | {:.2} | {} ms | {:.1} MB",
            method.name(),
            method.signed(),
            median(&samples.took).as_millis(),
            median(&samples.took).as_secs_f64() / base.as_secs_f64(),
            median(&samples.processor).as_millis(),
            samples.peak_bytes as f64 / 1e6
        );
    }
    println!("\nmedians of {} interleaved rounds, each method followed by `sync -f`", options.rounds);
    Ok(())
}

/// Prepares a method, runs it once unmeasured, and compares what it installed.
fn prepare_and_try(material: &Material, method: &Method) -> Result<()> {
    if let Method::Peer(peer) = method {
        peer.prepare(&material.trees[0], &material.place)?;
    }
    measure(material, method)?;
    let (out, wanted) = match method {
        Method::Peer(peer) => (peer.out(&material.place), 0),
        Method::Cutover(act) => {
            let node = bench_node(material, *act)?;
            (
                node.visible(),
                match act {
                    Act::Install(_) | Act::Rollback => 0,
                    Act::Update | Act::Verify => 1,
                    Act::UpdateTouched => 2,
                },
            )
        }
    };
    let differences = Snapshot::of(&out, node::OWN)?.differences(&material.snapshots[wanted]);
    // Some peers give the top directory or links other modes; content and file modes have to agree.
    ensure!(
        differences.is_empty(),
        "installed something else: {}",
        differences[..differences.len().min(3)].join("; ")
    );
    Ok(())
}

/// The node a row acts on, without touching it.
fn bench_node(material: &Material, act: Act) -> Result<Node> {
    let layout = match act {
        Act::Install(layout) => layout,
        Act::Update | Act::UpdateTouched | Act::Rollback | Act::Verify => Layout::Versioned,
    };
    let root = material.place.join("root-row");
    Ok(Node { binary: material.binary.clone(), root, layout, settings: Vec::new() })
}

/// One measured run with its sync; what has to be there before is not measured.
fn measure(material: &Material, method: &Method) -> Result<(Duration, Usage)> {
    let command = match method {
        Method::Peer(peer) => {
            set_aside(&material.place, &peer.out(&material.place))?;
            peer.install(&material.trees[0], &material.place)
        }
        Method::Cutover(act) => {
            let node = bench_node(material, *act)?;
            set_aside(&material.place, &node.root)?;
            std::fs::create_dir_all(&node.root)?;
            let before: &[usize] = match act {
                Act::Install(_) => &[],
                Act::Update | Act::UpdateTouched => &[0],
                Act::Rollback | Act::Verify => &[0, 1],
            };
            for index in before {
                node.apply(&material.bundles[*index])?.with(&[exit::DONE])?;
            }
            match act {
                Act::Install(_) => node.apply_command(&material.bundles[0]),
                Act::Update => node.apply_command(&material.bundles[1]),
                Act::UpdateTouched => node.apply_command(&material.bundles[2]),
                Act::Rollback => node.command(&["rollback"]),
                Act::Verify => node.command(&["verify"]),
            }
        }
    };
    settle(&material.place)?;
    let done = run_and_check(command)?;
    let synced = run_and_check(sync(&material.place))?;
    Ok((done.took + synced.took, done.usage))
}

/// Moves away what an earlier run left; it is removed after the last one. ext4 avoids inodes that were freed within the last
/// half minute and looks at each of them again for every file that is made: removing trees in between would be measured
/// with whatever comes next.
fn set_aside(place: &Path, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let spent = place.join("spent");
    std::fs::create_dir_all(&spent)?;
    let number = std::fs::read_dir(&spent)?.count();
    Ok(std::fs::rename(path, spent.join(number.to_string()))?)
}

fn run_and_check(command: Command) -> Result<Finished> {
    let shown = format!("{command:?}");
    node::finish(command)?.with(&[exit::DONE]).with_context(|| shown)
}

fn sync(place: &Path) -> Command {
    let mut sync = Command::new("sync");
    sync.arg("-f").arg(place);
    sync
}

/// Waits until nothing of an earlier run is left to be written.
fn settle(place: &Path) -> Result<()> {
    run_and_check(sync(place)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value() {
        let ms = |values: &[u64]| values.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(median(&ms(&[9, 1, 5])), Duration::from_millis(5));
        assert_eq!(median(&[]), Duration::ZERO);
    }

    #[test]
    fn every_20th_file_is_touched_and_no_other() {
        let held = tempfile::tempdir().unwrap();
        for index in 0..60 {
            std::fs::write(held.path().join(format!("{index:02}")), "x").unwrap();
        }
        touch_every_20th(held.path()).unwrap();
        let changed: Vec<u32> = (0..60)
            .filter(|index| std::fs::read(held.path().join(format!("{index:02}"))).unwrap().len() == 2)
            .collect();
        assert_eq!(changed, [19, 39, 59]);
    }
}
