//! `schema`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cutover_core::model::Version;

/// `schema`.
#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Shows what a migration would do: tactic, locks, time, disk, and what a rollback would lose. Reads only.
    Plan(SchemaFile),
    /// Says what will hurt about migration files, without a database.
    ///
    /// The exit code is 1 when there is an error among the findings.
    Lint {
        /// The migration files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Runs the whole migration on a copy of the database first: kept on failure, dropped on success.
    Rehearse {
        /// The migration file.
        file: PathBuf,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
        /// A copy that exists already; it is kept. Default: one is made beside the database.
        #[arg(long, value_name = "URL")]
        on: Option<String>,
    },
    /// Applies a migration, or goes on with one that was interrupted. Done before: nothing to do.
    ///
    /// Clients read and write meanwhile. A step that fails undoes the earlier ones, unless the migration says
    /// `rollback = "manual"`. Afterwards both versions of the application can work; `complete` ends that.
    Apply(SchemaApply),
    /// Shows the schema version and where every migration is.
    Status(AtDatabase),
    /// Makes a running migration wait between chunks.
    Pause(SchemaId),
    /// Makes a paused migration go on.
    Resume(SchemaId),
    /// Lists the rows that do not fit and were set aside (`on_reject = "quarantine"`), with their values and why.
    Rejects {
        /// The migration.
        id: String,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
        /// How many to list at most.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Approves that the rows which were set aside stay out of the new schema; `apply` goes on then.
    ///
    /// They stay in the old schema until `complete`, and in the list after it.
    Approve(SchemaId),
    /// Limits how many rows per second a migration copies.
    SetRate {
        /// The migration.
        id: String,
        /// Rows per second, or `none`.
        rate: String,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
    },
    /// Takes a migration back, before or after its swap; what clients wrote meanwhile stays.
    Rollback {
        /// The migration.
        id: String,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
        /// Loses what the old schema cannot hold. Without it, that is listed and nothing is done.
        #[arg(long)]
        accept_loss: bool,
    },
    /// Removes what is left of the old schema, once the grace period is over, every node runs the new version, and no
    /// use is seen.
    Complete {
        /// The migration.
        id: String,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
        /// The lowest version of the application that runs anywhere and that any node can go back to: you vouch for it.
        #[arg(long, value_name = "VERSION")]
        floor: Option<Version>,
    },
    /// Stops a migration and undoes it; takes back a drop that waits for its grace period.
    Cancel(SchemaId),
    /// Lists what was done to the database, after checking the chain of hashes.
    History(AtDatabase),
    /// Accepts a changed file of a migration that was applied, without running anything.
    Rebaseline {
        /// The migration file.
        file: PathBuf,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
        /// Why; goes into the history.
        #[arg(long)]
        reason: String,
    },
    /// Prints the statements with which a connection sees the schema of one version of the application.
    Prelude {
        /// The version as it is in the names of views: the `app_version` of the newest migration that the code knows, such as
        /// `1_5_0`; `p2` when it is the second one and names none; `0` before the first.
        #[arg(value_name = "VERSION")]
        code: String,
        /// The database.
        #[command(flatten)]
        at: AtDatabase,
    },
    /// Tests whether a plugin keeps to the protocol.
    CheckPlugin {
        /// The program.
        program: PathBuf,
        /// The columns of the sample rows, in order.
        #[arg(long, value_name = "NAME", required = true, value_delimiter = ',')]
        columns: Vec<String>,
        /// A sample row as JSON, such as `["030 1234"]`. May be repeated.
        #[arg(long = "row", value_name = "JSON", required = true)]
        rows: Vec<String>,
    },
}

/// Which database.
#[derive(Args, Clone, Debug)]
pub(crate) struct AtDatabase {
    /// The database: `sqlite:PATH` or `postgres://USER@HOST/NAME` [setting: schema.url].
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
}

/// A migration by its id.
#[derive(Args, Clone, Debug)]
pub(crate) struct SchemaId {
    /// The migration.
    pub(crate) id: String,
    /// The database.
    #[command(flatten)]
    pub(crate) at: AtDatabase,
}

/// A migration file.
#[derive(Args, Clone, Debug)]
pub(crate) struct SchemaFile {
    /// The migration file.
    pub(crate) file: PathBuf,
    /// The database.
    #[command(flatten)]
    pub(crate) at: AtDatabase,
}

/// `schema apply`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SchemaApply {
    /// The migration file.
    pub(crate) file: PathBuf,
    /// The database.
    #[command(flatten)]
    pub(crate) at: AtDatabase,
    /// Runs only the plan with this hash, at least its first 8 digits. Default: the plan of this moment.
    #[arg(long, value_name = "HASH")]
    pub(crate) plan: Option<String>,
    /// Refuses unless a rehearsal of this very migration succeeded.
    #[arg(long)]
    pub(crate) rehearsed: bool,
    /// Rows per second at most.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
}
