//! The commands that work on what a root holds, and `run`: arguments.

use std::path::PathBuf;

use clap::Args;
use cutover_core::model::RestorePointId;

/// The root a command works on.
#[derive(Args, Clone, Debug)]
pub(crate) struct AtRoot {
    /// Where the package is installed.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: PathBuf,
}

/// `history`.
#[derive(Args, Debug)]
pub(crate) struct History {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// At most this many entries.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Removes all entries instead of listing them.
    #[arg(long, conflicts_with = "limit")]
    pub(crate) clear: bool,
}

/// `verify`.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Brings damaged and missing files back from the object store.
    #[arg(long)]
    pub(crate) repair: bool,
    /// With `--repair`: config files that were edited become as installed too; the edits are lost.
    #[arg(long, requires = "repair")]
    pub(crate) replace_edited: bool,
}

/// `recover`.
#[derive(Args, Debug)]
pub(crate) struct Recover {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// First waits until the supervisor of this root answers; it starts recovery so.
    #[arg(long, hide = true)]
    pub(crate) wait_for_supervisor: bool,
}

/// `rollback`.
#[derive(Args, Debug)]
pub(crate) struct Rollback {
    /// The restore point. Default: the newest, if it leads to a release.
    pub(crate) id: Option<RestorePointId>,
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Takes back the whole set that made the restore point, as one execution: every package of it, or none.
    #[arg(long)]
    pub(crate) whole_set: bool,
    /// Shows what would be done and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stops this process (SIGSTOP) once the intent of STEP is durable; for tests.
    #[arg(long, value_name = "STEP", hide = true)]
    pub(crate) stop_at: Option<String>,
}

/// `prune`.
#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Keeps this many restore points [setting: retention.keep].
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,
}

/// `run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Lets this program take the place of the supervisor that runs: same process id, sockets and services; then returns.
    #[arg(long)]
    pub(crate) replace: bool,
}
