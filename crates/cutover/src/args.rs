//! Arguments: every command and flag, as typed. The doc comments are the help texts and the reference page.
//!
//! Nothing here acts. Read [`Cli`] first, then [`Command`]; the flags of a command are in the file that is called as
//! the file of `commands/` that acts on them.

mod bundle;
mod config;
mod delta;
mod demo;
mod gate;
mod index;
mod log;
mod node;
mod package_version;
mod pki;
mod repo;
mod schema;
mod ship;
mod signing;
mod trust;
mod update;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::{
    bundle::{Bundle, Create},
    config::Config,
    delta::{Delta, DeltaGenerate, DeltaPolicy, DeltaWith},
    demo::{Demo, DemoService},
    gate::{Gate, GateServe, GateSource},
    index::{Index, IndexRepair},
    log::{LogSource, RepoLog},
    node::{AtRoot, History, Prune, Recover, Rollback, Run, Verify},
    pki::Pki,
    repo::{Repo, RepoInit, RepoPublish, RepoRemove, RepoRotateKey},
    schema::{AtDatabase, Schema, SchemaApply},
    ship::{Ship, ShipPlace},
    signing::{RepoKeys, Signing},
    trust::Trust,
    update::{Apply, Check, FromRepository, Plan, UpdateFlags},
};

/// Moves running services from one release to the next, safely.
///
/// Builds and signs releases, installs them all-or-nothing with a way back, hands connections over without dropping
/// one, probes the new release and restores the old one by itself.
#[derive(Debug, Parser)]
#[command(
    name = "cutover",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed and nothing changed, 2 usage, 3 nothing to do, 10 already in \
                  progress, 11 not trusted, 12 preflight, 13 policy, 14 probe failed and restored, 15 restore \
                  failed: act now, 16 unsafe content, 17 damaged local state, 18 probe failed and kept."
)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EVERY: &str = "Options of every command";

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Prints the result as one JSON document with a format number.
    #[arg(long, global = true, help_heading = EVERY)]
    pub(crate) json: bool,
    /// How progress is shown on stderr.
    #[arg(long, global = true, value_enum, default_value_t = ProgressForm::Auto, value_name = "FORM", help_heading = EVERY)]
    pub(crate) progress: ProgressForm,
    /// The settings file. Default: `cutover.toml` in the root, else `/etc/cutover/cutover.toml`.
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERY)]
    pub(crate) config: Option<PathBuf>,
    /// Sets one setting for this run, such as `--set retention.keep=5`. May be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", help_heading = EVERY)]
    pub(crate) settings: Vec<String>,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressForm {
    /// A bar on a terminal, otherwise one line for each step.
    Auto,
    /// One line for each step.
    Lines,
    /// One JSON object for each event.
    Json,
    /// Nothing.
    None,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the whole story on this machine; needs no network, no root and no settings.
    ///
    /// Makes a PKI, builds and signs releases, installs them under the supervisor with 1,000 connections open,
    /// updates, refuses hostile bundles, restores a failing release, repairs a damaged file, survives SIGKILL. Every
    /// line is checked; the exit code is 0 only when all hold.
    Demo(Demo),
    /// Makes a root authority and certificates for signing releases.
    #[command(subcommand)]
    Pki(Pki),
    /// Puts a trust anchor into a copy of this program, or shows this program's.
    #[command(subcommand)]
    Trust(Trust),
    /// Builds, signs, verifies and unpacks bundles.
    #[command(subcommand)]
    Bundle(Bundle),
    /// Makes, applies, checks and shows patches between single files.
    #[command(subcommand)]
    Delta(Delta),
    /// Publishes releases in a repository that clients can trust.
    #[command(subcommand)]
    Repo(Repo),
    /// Changes the schema of a database while old and new code use it.
    #[command(subcommand)]
    Schema(Schema),
    /// Shows what a repository has for this host: how big, how urgent, and what holds it back.
    ///
    /// The exit code is 0 when there is something newer to install, and 3 when there is not.
    Check(Check),
    /// Shows what `apply` would do.
    Plan(Plan),
    /// Installs a bundle, or a release of a repository, all or nothing.
    ///
    /// Verifies the signature, plans, checks this host, then stages, makes a restore point, switches, hands the service
    /// over, probes and confirms. A failed probe brings the old release back.
    Apply(Apply),
    /// Shows what is installed, what runs, and what is unfinished.
    Status(AtRoot),
    /// Lists past updates and rollbacks, newest first.
    History(History),
    /// Hashes every installed file and compares it with the signed manifest.
    Verify(Verify),
    /// Goes back to a restore point; without ID, to the newest.
    Rollback(Rollback),
    /// Lists restore points, newest first.
    RestorePoints(AtRoot),
    /// Finishes or undoes an interrupted run, cleans up, and resets the state `failed`.
    Recover(Recover),
    /// Removes restore points, trees and objects that the retention settings no longer keep.
    Prune(Prune),
    /// Supervises the service: holds its sockets, restarts it after crashes, hands over to new releases.
    Run(Run),
    /// Takes in data only from hosts whose code is recent enough.
    #[command(subcommand)]
    Gate(Gate),
    /// Hands the episodes in a spool to a receiver: each exactly once, oldest first, whatever fails in between.
    #[command(subcommand)]
    Ship(Ship),
    /// Looks after the index of stored episodes.
    #[command(subcommand)]
    Index(Index),
    /// Shows and checks settings.
    #[command(subcommand)]
    Config(Config),
    /// Prints completions for a shell.
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages.
    Man {
        /// The directory to write to.
        dir: PathBuf,
    },
    /// Prints a reference page.
    #[command(name = "__reference", hide = true)]
    Reference {
        /// Which page.
        #[arg(value_enum)]
        page: ReferencePage,
    },
    /// The service of the demo.
    #[command(name = "demo-service", hide = true)]
    DemoService(DemoService),
}

impl Command {
    /// The root it works on.
    pub(crate) fn root(&self) -> Option<&Path> {
        let at = match self {
            Self::Check(command) => &command.at,
            Self::Plan(command) => &command.at,
            Self::Apply(command) => &command.at,
            Self::Status(at) | Self::RestorePoints(at) => at,
            Self::History(command) => &command.at,
            Self::Verify(command) => &command.at,
            Self::Rollback(command) => &command.at,
            Self::Recover(command) => &command.at,
            Self::Prune(command) => &command.at,
            Self::Run(command) => &command.at,
            Self::Pki(_)
            | Self::Trust(_)
            | Self::Bundle(_)
            | Self::Delta(_)
            | Self::Repo(_)
            | Self::Schema(_)
            | Self::Demo(_)
            | Self::Gate(_)
            | Self::Ship(_)
            | Self::Index(_)
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Man { .. }
            | Self::Reference { .. }
            | Self::DemoService(_) => return None,
        };
        Some(&at.root)
    }

    /// Whether what it prints is all it does: then nothing is done when that is lost.
    pub(crate) fn only_prints(&self) -> bool {
        match self {
            Self::Check(_)
            | Self::Status(_)
            | Self::RestorePoints(_)
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Reference { .. }
            | Self::Demo(_) => true,
            Self::Pki(_)
            | Self::Recover(_)
            | Self::Prune(_)
            | Self::Run(_)
            | Self::Man { .. }
            | Self::DemoService(_) => false,
            Self::Plan(plan) => plan.output.is_none(),
            Self::Apply(apply) => apply.dry_run,
            Self::History(history) => !history.clear,
            Self::Verify(verify) => !verify.repair,
            Self::Rollback(rollback) => rollback.dry_run,
            Self::Trust(command) => match command {
                Trust::Show => true,
                Trust::Embed { .. } => false,
            },
            Self::Bundle(command) => match command {
                Bundle::Verify { .. } | Bundle::Inspect { .. } => true,
                Bundle::Create(_) | Bundle::Sign { .. } | Bundle::Extract { .. } => false,
            },
            Self::Delta(command) => match command {
                Delta::Verify { .. } | Delta::Inspect { .. } => true,
                Delta::Generate(_) | Delta::Apply { .. } => false,
            },
            Self::Repo(command) => match command {
                Repo::List { .. } | Repo::Verify { .. } => true,
                Repo::Log(command) => match command {
                    RepoLog::Show(_) | RepoLog::Verify(_) => true,
                    RepoLog::Cosign { .. }
                    | RepoLog::Init { .. }
                    | RepoLog::Key { .. }
                    | RepoLog::Add { .. } => false,
                },
                Repo::Init(_)
                | Repo::Publish(_)
                | Repo::Remove(_)
                | Repo::Promote { .. }
                | Repo::Yank { .. }
                | Repo::Refresh { .. }
                | Repo::RotateKey(_) => false,
            },
            Self::Schema(command) => match command {
                Schema::Plan(_)
                | Schema::Lint { .. }
                | Schema::Rehearse { .. }
                | Schema::Status(_)
                | Schema::Rejects { .. }
                | Schema::History(_)
                | Schema::Prelude { .. }
                | Schema::CheckPlugin { .. } => true,
                Schema::Apply(_)
                | Schema::Pause(_)
                | Schema::Resume(_)
                | Schema::Approve(_)
                | Schema::SetRate { .. }
                | Schema::Rollback { .. }
                | Schema::Complete { .. }
                | Schema::Cancel(_)
                | Schema::Rebaseline { .. } => false,
            },
            Self::Gate(command) => match command {
                Gate::Check { .. } | Gate::Token { .. } => true,
                Gate::Serve(_) => false,
            },
            Self::Ship(command) => match command {
                Ship::Status { .. } => true,
                Ship::Run { .. } | Ship::Retry { .. } | Ship::Drop { .. } | Ship::Key { .. } => false,
            },
            Self::Index(Index::Repair(repair)) => repair.dry_run,
        }
    }
}

/// Pages that are printed from the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferencePage {
    /// Commands and flags.
    Cli,
    /// Exit codes.
    ExitCodes,
    /// Settings.
    Settings,
}
