//! `index`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `index`.
#[derive(Debug, Subcommand)]
pub(crate) enum Index {
    /// Adds rows for stored episodes that have none, beside a receiver that runs.
    ///
    /// Rows that are there stay as they are. The exit code is 0 also when nothing was missing, 1 after an error of the disk,
    /// 2 when there is no directory of episodes, and 17 when `--verify` finds damage.
    Repair(IndexRepair),
}

/// `index repair`.
#[derive(Args, Debug)]
pub(crate) struct IndexRepair {
    /// The directory that holds `episodes/`.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) root: PathBuf,
    /// The place in a bucket that holds `episodes/` instead: `s3://BUCKET/PREFIX`. The index stays in the root.
    #[arg(long, value_name = "PLACE")]
    pub(crate) storage: Option<String>,
    /// The index file. Default: `index.jsonl` in the root.
    #[arg(long, value_name = "FILE")]
    pub(crate) index: Option<PathBuf>,
    /// Only this host's episodes. May be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) host: Vec<String>,
    /// Says what would be added, and writes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Hashes every stored file and compares it with its row: reports rot, missing files and duplicates.
    #[arg(long)]
    pub(crate) verify: bool,
}
