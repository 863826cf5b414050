//! `repo log`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cutover_bundle::tlog::VerifierKey;

use super::signing::RepoKeys;

/// `repo log`.
#[derive(Debug, Subcommand)]
pub(crate) enum RepoLog {
    /// Begins the log of a repository with every release that is there; from then on `publish` adds to it.
    ///
    /// Its key, `log.key`, is made in the directory of `--keys` unless it is there. Prints the verifier key for the setting
    /// `trust-policy.log` of hosts.
    Init {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
        /// The log's name, such as `releases.example.com/app`; it never changes.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Who signs the metadata.
        #[command(flatten)]
        keys: RepoKeys,
    },
    /// Makes the key of a witness, and prints its verifier key for the setting `trust-policy.witnesses` of hosts.
    Key {
        /// The witness's name, such as `witness.example.org/w1`.
        name: String,
        /// The private key to write; one that is there is used.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Shows the checkpoint and the last entries.
    Show(LogSource),
    /// Reads the whole log and checks that all of it belongs together: every entry, every tile, the checkpoint.
    Verify(LogSource),
    /// Cosigns the checkpoint as a witness, once it is proven that the log which this witness saw last only grew.
    Cosign {
        /// The log.
        #[command(flatten)]
        log: LogSource,
        /// The witness's private key.
        #[arg(long, value_name = "FILE")]
        witness_key: PathBuf,
        /// The witness's name.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The directory in which the witness keeps what it saw last; made when it is not there.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Writes the cosigned checkpoint to this file, for `repo log add`. Default: it replaces that of the repository, which
        /// must be a directory.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Adds the cosignatures of witnesses to the checkpoint of a repository.
    Add {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
        /// Cosigned checkpoints.
        #[arg(required = true)]
        checkpoints: Vec<PathBuf>,
    },
}

/// Which log.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogSource {
    /// The repository: a URL (also `s3://BUCKET/PREFIX`) or a directory.
    #[arg(value_name = "URL|DIR")]
    pub(crate) source: String,
    /// The log's verifier key [setting: trust-policy.log]. Without, the repository's own word for it is taken.
    #[arg(long, value_name = "NAME+HASH+KEY")]
    pub(crate) log: Option<VerifierKey>,
}
