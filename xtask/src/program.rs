//! The real `cutover` binary: building it and running it.
//!
//! Everything xtask knows about the product goes through its command line, as for any user.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// How the binary is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As tests are: quick to build, with debug assertions.
    Dev,
    /// As users run it.
    Release,
}

impl Profile {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            // What `cargo xtask test` has built already.
            Profile::Dev => &["--features", TESTED_FEATURES],
            Profile::Release => &["--release"],
        }
    }
}

/// Features that are off by default and tested all the same; with them in every part of the tests, nothing is built twice.
pub(crate) const TESTED_FEATURES: &str = "cutover/s3";

/// Builds `cutover` and says where the binary is.
pub(crate) fn build(root: &Path, profile: Profile) -> Result<PathBuf> {
    build_one(root, profile, "cutover", "cutover")
}

/// Builds one program of a package and says where the binary is.
pub(crate) fn build_one(root: &Path, profile: Profile, package: &str, name: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(cargo());
    cargo.current_dir(root).args(["build", "--quiet", "--package", package, "--bin", name]);
    cargo.args(profile.arguments()).args(["--message-format", "json-render-diagnostics"]);
    cargo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = cargo.spawn().context("failed to run cargo build")?;
    let mut messages = String::new();
    child.stdout.take().context("cargo's output was not captured")?.read_to_string(&mut messages)?;
    ensure!(child.wait()?.success(), "`{name}` does not build");
    let binary = messages.lines().filter_map(|message| executable_of(message, name)).next_back();
    binary.with_context(|| format!("cargo named no executable for `{name}`"))
}

fn executable_of(message: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message["target"]["name"] == name).then_some(())?;
    message["executable"].as_str().map(PathBuf::from)
}

/// The cargo that runs us.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Runs a program that has to succeed and returns what it printed.
pub(crate) fn text(program: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    succeed(command)
}

/// Runs a command that has to succeed and returns what it printed.
pub(crate) fn succeed(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("failed to start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
