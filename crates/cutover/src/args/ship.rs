//! `ship`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `ship`.
#[derive(Debug, Subcommand)]
pub(crate) enum Ship {
    /// Ships what is in the spool and what comes into it, until it is stopped.
    ///
    /// The local copy of an episode is removed only after the receiver has repeated its SHA-256. Refused episodes are
    /// parked: kept, reported with what to do about them, and not sent again before `ship retry`.
    Run {
        /// Where the spool and the receiver are, unless the settings say so.
        #[command(flatten)]
        place: ShipPlace,
        /// Ends when everything in the spool is shipped or parked; the exit code is 1 when something is parked.
        #[arg(long)]
        once: bool,
    },
    /// Shows every episode that is not shipped, and why it waits.
    Status {
        /// Where the spool is, unless the settings say so.
        #[command(flatten)]
        place: ShipPlace,
    },
    /// Sends episodes again: parked ones, and those that wait for their next try.
    Retry {
        /// HOST/EPISODE, or EPISODE where only one host has it.
        #[arg(required_unless_present = "all")]
        episodes: Vec<String>,
        /// Every parked episode.
        #[arg(long, conflicts_with = "episodes")]
        all: bool,
        /// Where the spool is, unless the settings say so.
        #[command(flatten)]
        place: ShipPlace,
    },
    /// Makes a key for this host, which signs the commit of each episode, and prints what the receiver has to know.
    Key {
        /// The file to write (`ship.attest_key`).
        file: PathBuf,
    },
    /// Gives parked episodes up: removes their local copies, which no receiver has.
    Drop {
        /// HOST/EPISODE, or EPISODE where only one host has it.
        #[arg(required = true)]
        episodes: Vec<String>,
        /// Where the spool is, unless the settings say so.
        #[command(flatten)]
        place: ShipPlace,
    },
}

/// Where the spool and the receiver are.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShipPlace {
    /// The directory of episodes [setting: ship.spool].
    #[arg(long, value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,
    /// The receiver [setting: ship.url].
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The id of this host [setting: ship.host].
    #[arg(long, value_name = "ID")]
    pub(crate) host: Option<String>,
}
