//! `trust`: arguments.

use std::path::PathBuf;

use clap::Subcommand;

/// `trust`.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Writes a copy of this program that trusts the given root.
    Embed {
        /// The root certificates in PEM; or an anchor file with `threshold` and `revocation` lines.
        #[arg(long, value_name = "PEM")]
        anchor: PathBuf,
        /// How many signers with distinct keys a release needs.
        #[arg(long, value_name = "N")]
        threshold: Option<usize>,
        /// Refuse every release while no current revocation list is configured.
        #[arg(long)]
        require_crl: bool,
        /// The file to write.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Shows whom this program trusts.
    Show,
}
