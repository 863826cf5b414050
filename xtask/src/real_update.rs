//! `cargo xtask real-update`: real releases installed, updated, killed at random, rolled back and compared.
//!
//! Every comparison is byte for byte and mode for mode against the tree the bundle was made from.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    node::{Layout, Node, Publisher, exit},
    program::{self, Profile},
    real_tree,
    tree::{self, Snapshot},
};

/// How much is done.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Kills for each layout and command.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Chooses the moments.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this layout.
    #[arg(long)]
    layout: Option<Layout>,
    /// Where to install. Default: a new directory below `target`.
    #[arg(long)]
    place: Option<PathBuf>,
}

/// What the kills of one command led to.
#[derive(Default)]
struct Kills {
    old: u32,
    new: u32,
    finished: u32,
}

/// Runs it and prints the table.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    let mut random = StdRng::seed_from_u64(seed);
    let trees = real_tree::make(root)?;
    let snapshots = [Snapshot::of(&trees[0], &[])?, Snapshot::of(&trees[1], &[])?];
    let program = program::build(root, Profile::Release)?;
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/real-update"));
    tree::remove(&place)?;
    let publisher = Publisher::new(&program, &place.join("publisher"))?;
    let mut bundles = Vec::new();
    for (tree, release) in trees.iter().zip(&real_tree::RELEASES) {
        bundles.push(publisher.release(tree, release.version, real_tree::SPEC, 9)?);
    }
    println!("seed {seed}, {} kills for each layout and command", options.kills);
    for (release, snapshot) in real_tree::RELEASES.iter().zip(&snapshots) {
        let megabytes = snapshot.bytes() as f64 / 1e6;
        println!("{}: {} files, {megabytes:.1} MB", release.version, snapshot.files());
    }
    println!(
        "\nlayout | install | update | rollback | killed updates: old / new / finished | killed rollbacks: old / new / finished | compared"
    );
    println!("-|-:|-:|-:|-:|-:|-:");
    for layout in
        Layout::ALL.iter().copied().filter(|layout| options.layout.is_none_or(|only| only == *layout))
    {
        let node = Node {
            binary: publisher.binary.clone(),
            root: place.join(layout.name()),
            layout,
            settings: Vec::new(),
        };
        let mut story = Story { node, bundles: &bundles, snapshots: &snapshots, compared: 0 };
        let line =
            story.tell(options.kills, &mut random).with_context(|| format!("{layout}, seed {seed}"))?;
        println!("{layout} | {line} | {}", story.compared);
    }
    tree::remove(&place)
}

struct Story<'a> {
    node: Node,
    bundles: &'a [PathBuf],
    snapshots: &'a [Snapshot; 2],
    compared: u32,
}

impl Story<'_> {
    fn tell(&mut self, kills: u32, random: &mut StdRng) -> Result<String> {
        std::fs::create_dir_all(&self.node.root)?;
        let install = self.node.apply(&self.bundles[0])?.with(&[exit::DONE])?.took;
        self.expect(0)?;
        let update = self.node.apply(&self.bundles[1])?.with(&[exit::DONE])?.took;
        self.expect(1)?;
        let rollback = self.node.run(&["rollback"])?.with(&[exit::DONE])?.took;
        self.expect(0)?;

        let mut updates = Kills::default();
        let mut rollbacks = Kills::default();
        for _ in 0..kills {
            self.kill(0, update, &mut updates, random)?;
            // To the new release, so that there is something to roll back.
            if self.now()? == 0 {
                self.node.apply(&self.bundles[1])?.with(&[exit::DONE])?;
                self.expect(1)?;
            }
            self.kill(1, rollback, &mut rollbacks, random)?;
            if self.now()? == 1 {
                self.node.run(&["rollback"])?.with(&[exit::DONE])?;
                self.expect(0)?;
            }
        }
        self.node.run(&["verify"])?.with(&[exit::DONE])?;
        let line = |kills: &Kills| format!("{} / {} / {}", kills.old, kills.new, kills.finished);
        Ok(format!(
            "{} ms | {} ms | {} ms | {} | {}",
            install.as_millis(),
            update.as_millis(),
            rollback.as_millis(),
            line(&updates),
            line(&rollbacks)
        ))
    }

    /// Kills the step away from release `from` at a random moment, recovers and compares.
    fn kill(&mut self, from: usize, usual: Duration, kills: &mut Kills, random: &mut StdRng) -> Result<()> {
        let mut command = match from {
            0 => self.node.apply_command(&self.bundles[1]),
            _ => self.node.command(&["rollback"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let after = usual.mul_f64(random.random_range(0.0..1.1));
        let started = Instant::now();
        let mut child = command.spawn()?;
        std::thread::sleep(after.saturating_sub(started.elapsed()));
        child.kill()?;
        let acknowledged = child.wait()?.success();
        self.node.run(&["recover"])?.with(&[exit::DONE, exit::NOTHING_TO_DO])?;
        let now = self.now()?;
        ensure!(!acknowledged || now != from, "an acknowledged change is lost after {after:?}");
        match (acknowledged, now == from) {
            (true, _) => kills.finished += 1,
            (false, true) => kills.old += 1,
            (false, false) => kills.new += 1,
        }
        Ok(())
    }

    /// Which release is there, wholly.
    fn now(&mut self) -> Result<usize> {
        let seen = self.node.seen(&[])?;
        self.compared += 1;
        let found = self.snapshots.iter().position(|snapshot| *snapshot == seen);
        found.with_context(|| format!("TORN: {}", seen.differences(&self.snapshots[1]).join("; ")))
    }

    fn expect(&mut self, index: usize) -> Result<()> {
        let seen = self.node.seen(&[])?;
        self.compared += 1;
        let differences = seen.differences(&self.snapshots[index]);
        ensure!(differences.is_empty(), "not release {index}: {}", differences.join("; "));
        Ok(())
    }
}
