//! `cargo xtask test`: everything that can be tested on a bare machine, in one command.
//!
//! Unit, integration and documentation tests of the workspace, then a bounded crash sweep over the real binary. A test
//! that needs a tool which is not installed writes a line to the file named by `XTASK_NOT_RUN` and passes; those
//! lines are printed at the end, so that nothing is left out silently.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    crash,
    program::{self, TESTED_FEATURES},
};

/// The variable that names the file in which skipped tests say so.
const NOT_RUN: &str = "XTASK_NOT_RUN";

/// Runs all of it; every part runs even when an earlier one failed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let started = std::time::Instant::now();
    let not_run = tempfile::NamedTempFile::new()?;
    let mut failed = Vec::new();
    let mut part = |name: &'static str, arguments: &[&str]| -> Result<()> {
        eprintln!("== {name}");
        let mut command = Command::new(program::cargo());
        command.current_dir(root).args(arguments).env(NOT_RUN, not_run.path());
        let status = command.status().with_context(|| format!("failed to start {command:?}"))?;
        if !status.success() {
            failed.push(name);
        }
        Ok(())
    };
    if has_nextest() {
        part(
            "tests (nextest)",
            &["nextest", "run", "--workspace", "--features", TESTED_FEATURES, "--no-fail-fast"],
        )?;
    } else {
        let which = ["--workspace", "--features", TESTED_FEATURES, "--bins", "--lib", "--tests"];
        part("tests", &[&["test", "--no-fail-fast", "--quiet"], &which[..]].concat())?;
    }
    part("documentation tests", &["test", "--workspace", "--features", TESTED_FEATURES, "--doc", "--quiet"])?;
    eprintln!("== crash sweep (bounded; all of it: cargo xtask crash)");
    let sweep = crash::Options::quick();
    if let Err(error) = crash::run(root, &sweep) {
        eprintln!("{error:#}");
        failed.push("crash sweep");
    }
    let notes = std::fs::read_to_string(not_run.path())?;
    let notes: BTreeSet<&str> = notes.lines().collect();
    for note in &notes {
        eprintln!("not run: {note}");
    }
    let not_run = match notes.len() {
        0 => String::new(),
        count => format!("; {count} not run, as said above"),
    };
    let seconds = started.elapsed().as_secs();
    if !failed.is_empty() {
        bail!("FAILED after {seconds} s: {}{not_run}", failed.join(", "));
    }
    println!("all tests passed in {seconds} s{not_run}");
    Ok(())
}

fn has_nextest() -> bool {
    let mut command = Command::new(program::cargo());
    command.args(["nextest", "--version"]);
    command.output().is_ok_and(|output| output.status.success())
}
