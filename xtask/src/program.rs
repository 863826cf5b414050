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
            Profile::Dev => &[],
            Profile::Release => &["--release"],
        }
    }
}

/// Builds `cutover` and says where the binary is.
pub(crate) fn build(root: &Path, profile: Profile) -> Result<PathBuf> {
    let mut cargo = Command::new(cargo());
    cargo.current_dir(root).args(["build", "--quiet", "--package", "cutover", "--bin", "cutover"]);
    cargo.args(profile.arguments()).args(["--message-format", "json-render-diagnostics"]);
    cargo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = cargo.spawn().context("failed to run cargo build")?;
    let mut messages = String::new();
    child.stdout.take().context("cargo's output was not captured")?.read_to_string(&mut messages)?;
    ensure!(child.wait()?.success(), "`cutover` does not build");
    let binary = messages.lines().filter_map(executable_of).next_back();
    binary.context("cargo named no executable for `cutover`")
}

fn executable_of(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message["target"]["name"] == "cutover").then_some(())?;
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
