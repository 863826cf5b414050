//! What every scene is given, and processes that end with the scene.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use clap::Args;

use super::cutover::Cutover;

/// What is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rows of the tables that are rewritten.
    #[arg(long, default_value_t = 2_000_000)]
    pub(super) rows: u64,
    /// Rows of the table to which columns are added.
    #[arg(long, default_value_t = 10_000_000)]
    pub(super) additive_rows: u64,
    /// Columns that are added, one migration each.
    #[arg(long, default_value_t = 20)]
    pub(super) additive_rounds: u64,
    /// Transactions per second of the clients, under load.
    #[arg(long, default_value_t = 400)]
    pub(super) tps: u64,
    /// Writes per second of SQLite's writer.
    #[arg(long, default_value_t = 200)]
    pub(super) writes: u64,
    /// Seconds of load before a change begins: the latency that clients have without it.
    #[arg(long, default_value_t = 8)]
    pub(super) baseline_s: u64,
    /// Small tables whose swap is measured.
    #[arg(long, default_value_t = 40)]
    pub(super) swaps: u64,
    /// Rounds of apply and rollback on each engine.
    #[arg(long, default_value_t = 3)]
    pub(super) rollbacks: u64,
    /// Where the databases lie. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    pub(super) place: Option<PathBuf>,
    /// Only scenes whose name contains this. May be repeated.
    #[arg(long, value_name = "SCENE")]
    pub(super) only: Vec<String>,
    /// Of the scene `rewrite`, only ways whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub(super) way: Option<String>,
    /// The `cutover` to measure. Default: one is built as users run it.
    #[arg(long, value_name = "FILE")]
    pub(super) program: Option<PathBuf>,
}

/// Where a scene plays: a directory of its own, and the program that is measured.
pub(super) struct Stage {
    pub(super) options: Options,
    /// Empty at first; removed afterwards.
    pub(super) place: PathBuf,
    pub(super) cutover: Cutover,
}

/// A process that is killed when this is dropped, and when we die.
pub(super) struct Running(Child);

impl Running {
    /// Starts a program without input and output. It must be started by the thread that lives longest, which is the first:
    /// the kernel ends it with the thread that started it (prctl(2), PR_SET_PDEATHSIG).
    pub(super) fn start(program: &Path, arguments: &[String], user: Option<(u32, u32)>) -> Result<Self> {
        let mut command = bound(program, user);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("failed to start {}", program.display()))?;
        Ok(Self(child))
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub(super) fn terminate(&mut self) -> Result<()> {
        let id = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        self.wait()
    }

    /// Waits for its own end.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself. What it leaves is thrown away with its directory.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that the kernel ends with us, as another user if one is given.
pub(super) fn bound(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if let Some((uid, gid)) = user {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    command.arg("--").arg(program).current_dir("/").stdin(Stdio::null());
    command
}
