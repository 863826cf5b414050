//! `demo`: arguments.

use std::path::PathBuf;

use clap::Args;

/// `demo`.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Works in this directory, which must be empty or new, and keeps it.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Fewer connections and requests: a few seconds instead of a minute.
    #[arg(long)]
    pub(crate) quick: bool,
}

/// `demo-service`.
#[derive(Args, Debug)]
pub(crate) struct DemoService {
    /// A file with `version = "…"` and optionally `sick = true`.
    #[arg(long)]
    pub(crate) release: PathBuf,
    /// Longest time to finish open connections, in seconds.
    #[arg(long, default_value_t = 20)]
    pub(crate) drain_s: u64,
}
