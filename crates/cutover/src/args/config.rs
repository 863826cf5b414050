//! `config`: arguments.

use std::path::PathBuf;

use clap::Subcommand;

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Prints the settings in force; secrets are masked.
    Show {
        /// Says where each value came from.
        #[arg(long)]
        origin: bool,
        /// Also reads the settings of this root.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// Reads the settings and says whether they are valid.
    Check {
        /// Also reads the settings of this root.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
}
