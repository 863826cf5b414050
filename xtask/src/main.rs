//! Development tasks: test, tidy, reference, crash, real-update, bench. Never part of what is shipped.
#![allow(clippy::disallowed_methods)] // A developer's tool: its files need not survive a power cut.
#![allow(clippy::print_stdout)] // Tables are its result.

mod bench;
mod crash;
mod node;
mod pairs;
mod program;
mod real_tree;
mod real_update;
mod reference;
mod test;
mod tidy;
mod trace;
mod tree;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;

/// Development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Runs every test there is, then a bounded crash sweep.
    Test,
    /// Checks the rules that a machine can check.
    Tidy,
    /// Writes the pages in docs/reference that come from the code.
    Reference,
    /// Strikes the real binary at every file-system call.
    Crash(crash::Options),
    /// Writers against migrations, by random seeds, with their ledgers against the tables afterwards.
    SchemaSweep {
        /// 200 seeds on each engine, instead of 12.
        #[arg(long)]
        full: bool,
        /// As many seeds on each engine.
        #[arg(long)]
        seeds: Option<u64>,
    },
    /// A thousand clients, a shipper and a receiver, killed at random for a time; then every episode is looked for.
    GateSweep {
        /// How long, in seconds, each of the two parts.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Installs, updates, kills and rolls back two consecutive releases of real programs.
    RealUpdate(real_update::Options),
    /// Makes the old and new files of the delta benchmark.
    Pairs(pairs::Options),
    /// Measures.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = workspace()?;
    match task {
        Task::Test => test::run(&root),
        Task::Tidy => tidy::run(&root),
        Task::Reference => reference::write(&root),
        Task::Crash(options) => crash::run(&root, &options),
        Task::GateSweep { seconds } => sweep(
            &root,
            ("GATE_SWEEP_S", seconds),
            &["cutover", "killed_again_and_again", "--test-threads=1"],
        ),
        Task::SchemaSweep { full, seeds } => {
            let seeds = seeds.unwrap_or(if full { 200 } else { 12 });
            sweep(
                &root,
                ("SCHEMA_SEEDS", seeds),
                &["cutover-migrate", "no_acknowledged_write", "lose_nothing"],
            )
        }
        Task::Pairs(options) => pairs::run(&root, &options),
        Task::Bench(bench) => bench::run(&root, &bench),
        Task::RealUpdate(options) => real_update::run(&root, &options),
    }
}

/// Runs tests of a package that go further when a variable says so.
fn sweep(root: &Path, (variable, value): (&str, u64), which: &[&str]) -> Result<()> {
    let (package, filters) = which.split_first().context("a package is named")?;
    let mut command = std::process::Command::new(program::cargo());
    command.current_dir(root).env(variable, value.to_string());
    command.args(["test", "-p", package, "--test", "it", "--", "--nocapture"]).args(filters);
    anyhow::ensure!(command.status().context("failed to start cargo")?.success(), "the sweep failed");
    Ok(())
}

/// The workspace this program was built from.
fn workspace() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).context("xtask lies in the workspace")
}
