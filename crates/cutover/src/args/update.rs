//! `check`, `plan` and `apply`: arguments.

use std::path::PathBuf;

use clap::Args;
use cutover_core::{model::Name, plan::Layout};

use super::node::AtRoot;

/// `check`.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The package. Default: the one that is installed.
    #[arg(value_name = "NAME")]
    pub(crate) package: Option<Name>,
    /// Where it is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Where to look.
    #[command(flatten)]
    pub(crate) from: FromRepository,
}

/// `plan`.
#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// The bundle, or the delta bundle; or a release of a repository, NAME@VERSION or NAME for the newest.
    #[arg(value_name = "BUNDLE|NAME@VERSION")]
    pub(crate) bundle: PathBuf,
    /// The full bundle of the same release, as for `apply`.
    #[arg(long, value_name = "FILE")]
    pub(crate) full: Option<PathBuf>,
    /// Where a release comes from.
    #[command(flatten)]
    pub(crate) from: FromRepository,
    /// Where it would be installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// What decides besides settings.
    #[command(flatten)]
    pub(crate) update: UpdateFlags,
    /// Writes the plan to a file that `apply --plan` takes.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `apply`.
#[derive(Args, Debug)]
pub(crate) struct Apply {
    /// The bundle, or the delta bundle; or a release of a repository, NAME@VERSION or NAME for the newest.
    #[arg(value_name = "BUNDLE|NAME@VERSION")]
    pub(crate) bundle: PathBuf,
    /// Where a release comes from.
    #[command(flatten)]
    pub(crate) from: FromRepository,
    /// The full bundle of the same release: what a delta cannot make is taken from it, file by file.
    #[arg(long, value_name = "FILE")]
    pub(crate) full: Option<PathBuf>,
    /// Where it is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// What decides besides settings.
    #[command(flatten)]
    pub(crate) update: UpdateFlags,
    /// Verifies, plans and checks as a real run does, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Executes exactly this plan of `plan --output`, or refuses if the root has changed since.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layout", "replace_changed", "keep_on_probe_failure"])]
    pub(crate) plan: Option<PathBuf>,
    /// Stops this process (SIGSTOP) once the intent of STEP is durable; for tests.
    #[arg(long, value_name = "STEP", hide = true)]
    pub(crate) stop_at: Option<String>,
}

/// What decides about an update besides settings.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpdateFlags {
    /// How a new root is laid out [setting: install.layout].
    #[arg(long, value_name = "LAYOUT", value_parser = layout)]
    pub(crate) layout: Option<Layout>,
    /// At most this many files are hashed and laid down at the same time [setting: install.jobs].
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// How far the threads that do this and fetch give way to other work, 0 to 19 [setting: install.nice].
    #[arg(long, value_name = "N")]
    pub(crate) nice: Option<u8>,
    /// Replaces config files that were changed where they are installed; the restore point keeps them [setting:
    /// install.local_changes].
    #[arg(long)]
    pub(crate) replace_changed: bool,
    /// Keeps the new release when a probe fails, instead of restoring the old one [setting: probes.on_failure].
    #[arg(long)]
    pub(crate) keep_on_probe_failure: bool,
}

fn layout(text: &str) -> Result<Layout, String> {
    match text {
        "versioned" => Ok(Layout::Versioned),
        "exchange" => Ok(Layout::Exchange),
        "in-place" => Ok(Layout::InPlace),
        _ => Err("a layout is `versioned`, `exchange` or `in-place`".to_owned()),
    }
}

/// Which repository, and what of it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FromRepository {
    /// The repository: a URL (also `s3://BUCKET/PREFIX`) or a directory [setting: source.urls]. May be repeated for mirrors.
    #[arg(long, value_name = "URL|DIR")]
    pub(crate) source: Vec<String>,
    /// The channel [setting: trust-policy.channels; else `stable`]. May be repeated; the first that has a version wins.
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) channel: Vec<Name>,
    /// The repository's first root, for one that this program's anchor does not vouch for.
    #[arg(long, value_name = "FILE")]
    pub(crate) trusted_root: Option<PathBuf>,
}
