//! `gate`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `gate`.
#[derive(Debug, Subcommand)]
pub(crate) enum Gate {
    /// Runs the receiver: takes in episodes over HTTP, each durable with its row in the index before it is answered.
    ///
    /// Settings are read again on SIGHUP and when a settings file changes; SIGTERM finishes what is under way.
    Serve(GateServe),
    /// Says whether data of a commit would be admitted. The exit code is 0 when it would, and 13 when not.
    Check {
        /// The full hash.
        commit: String,
        #[command(flatten)]
        source: GateSource,
    },
    /// Makes a bearer token for a host, and the line for `[gate.tokens]` that admits it.
    Token {
        /// The host's id; `*` for a token that may act for every host.
        host: String,
    },
}

/// `gate serve`.
#[derive(Args, Debug)]
pub(crate) struct GateServe {
    /// The directory of `episodes/` and `index.jsonl` (`gate.root`).
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// A socket, `tcp:ADDRESS:PORT` or `unix:/PATH` (`gate.listen`).
    #[arg(long, value_name = "SOCKET")]
    pub(crate) listen: Option<String>,
    #[command(flatten)]
    pub(crate) source: GateSource,
}

/// Where accepted commits come from.
#[derive(Args, Debug)]
pub(crate) struct GateSource {
    /// The clone whose last commits are accepted (`gate.git.repository`).
    #[arg(long, value_name = "DIR")]
    pub(crate) repository: Option<PathBuf>,
    /// How many of its commits are accepted (`gate.git.window`).
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) window: Option<i64>,
}
