//! `repo`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cutover_core::model::Name;
use cutover_repo::tuf::RoleKind;

use super::{
    log::RepoLog,
    package_version::PackageVersion,
    signing::{RepoKeys, Signing},
};

/// `repo`.
#[derive(Debug, Subcommand)]
pub(crate) enum Repo {
    /// Sets up a repository in a directory that any web server can serve, or in a bucket, and makes the keys of its metadata.
    ///
    /// Keys that are in the key directory already are used. With `--sign-key` and `--sign-cert`, new clients need nothing
    /// but this program: its trust anchor vouches for the first root.
    Init(RepoInit),
    /// Publishes bundles: readers see all of them or none.
    ///
    /// Every bundle is verified first. A version never changes: another content under the same version is refused. With
    /// `--sign-key` and `--sign-cert`, deltas from the latest releases of the channel are made and signed.
    Publish(RepoPublish),
    /// Lists the releases, highest version first.
    List {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
    },
    /// Takes a release out. Its files go after the grace, as far as no other release needs them.
    Remove(RepoRemove),
    /// Puts a release into another channel.
    Promote {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
        /// The release.
        #[arg(value_name = "NAME@VERSION")]
        release: PackageVersion,
        /// The channel to put it into.
        #[arg(long, value_name = "CHANNEL")]
        to: Name,
        /// Only the release for this platform.
        #[arg(long, value_name = "PLATFORM")]
        platform: Option<Name>,
        /// Who signs the metadata.
        #[command(flatten)]
        keys: RepoKeys,
    },
    /// Says that nobody should choose a release any more. It can still be installed by its exact version.
    Yank {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
        /// The release.
        #[arg(value_name = "NAME@VERSION")]
        release: PackageVersion,
        /// Why, for those who have it installed.
        #[arg(long, value_name = "TEXT", required_unless_present = "undo")]
        reason: Option<String>,
        /// Takes it back.
        #[arg(long, conflicts_with = "reason")]
        undo: bool,
        /// Only the release for this platform.
        #[arg(long, value_name = "PLATFORM")]
        platform: Option<Name>,
        /// Who signs the metadata.
        #[command(flatten)]
        keys: RepoKeys,
    },
    /// Renews the metadata before it expires, and deletes what was removed. Run it regularly.
    ///
    /// The keys of `timestamp` and `snapshot` are enough. With `--sign-key` and `--sign-cert`, also vouches for the present
    /// root, so that new clients can start from it.
    Refresh {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
        /// Who signs the metadata.
        #[command(flatten)]
        keys: RepoKeys,
        /// Who vouches for the root.
        #[command(flatten)]
        signing: Signing,
    },
    /// Replaces a key of a role, or changes how many must sign.
    ///
    /// Takes the root keys, the new key, and the keys of the metadata that it signs; clients follow without noticing. If it
    /// is interrupted, run it again with `--new-key` and the file it made.
    RotateKey(RepoRotateKey),
    /// Keeps, shows and checks the transparency log of a repository: what proves that everybody sees the same releases.
    #[command(subcommand)]
    Log(RepoLog),
    /// Checks all of it as a client would: metadata, signatures, and every byte of every object.
    Verify {
        /// The repository: a directory, or `s3://BUCKET/PREFIX`.
        dir: PathBuf,
    },
}

/// `repo init`.
#[derive(Args, Debug)]
pub(crate) struct RepoInit {
    /// The directory to serve, made when it is not there; or `s3://BUCKET/PREFIX`.
    pub(crate) dir: PathBuf,
    /// Where the private keys are kept: not in the directory that is served.
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: PathBuf,
    /// How many root keys are made.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) root_keys: u8,
    /// How many of them must sign a root.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) root_threshold: u8,
    /// Days a root counts.
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    pub(crate) root_days: u32,
    /// Days the list of releases counts.
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    pub(crate) targets_days: u32,
    /// Days a snapshot counts.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(crate) snapshot_days: u32,
    /// Days a timestamp counts: how long somebody in the middle could hide a new release; `repo refresh` must run more
    /// often.
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    pub(crate) timestamp_days: u32,
    /// Seconds for which files stay once nothing names them, so that running downloads finish.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub(crate) grace_s: u32,
    /// From how many earlier releases deltas lead to a new one.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) deltas: u32,
    /// Who vouches for the first root.
    #[command(flatten)]
    pub(crate) signing: Signing,
}

/// `repo publish`.
#[derive(Args, Debug)]
pub(crate) struct RepoPublish {
    /// The repository: a directory, or `s3://BUCKET/PREFIX`.
    pub(crate) dir: PathBuf,
    /// The bundles.
    #[arg(required = true)]
    pub(crate) bundles: Vec<PathBuf>,
    /// The channel. Default: the one that each bundle names.
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) channel: Option<Name>,
    /// Who signs the metadata.
    #[command(flatten)]
    pub(crate) keys: RepoKeys,
    /// Who signs deltas.
    #[command(flatten)]
    pub(crate) signing: Signing,
}

/// `repo remove`.
#[derive(Args, Debug)]
pub(crate) struct RepoRemove {
    /// The repository: a directory, or `s3://BUCKET/PREFIX`.
    pub(crate) dir: PathBuf,
    /// The release.
    #[arg(value_name = "NAME@VERSION")]
    pub(crate) release: PackageVersion,
    /// Only the release for this platform.
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Name>,
    /// Only from this channel.
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) channel: Option<Name>,
    /// Who signs the metadata.
    #[command(flatten)]
    pub(crate) keys: RepoKeys,
}

/// `repo rotate-key`.
#[derive(Args, Debug)]
pub(crate) struct RepoRotateKey {
    /// The repository: a directory, or `s3://BUCKET/PREFIX`.
    pub(crate) dir: PathBuf,
    /// Whose key: `root`, `targets`, `snapshot` or `timestamp`.
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: RoleKind,
    /// The new private key (PKCS#8 in PEM). Default: one is made in the directory of `--keys`.
    #[arg(long, value_name = "FILE", conflicts_with = "no_new_key")]
    pub(crate) new_key: Option<PathBuf>,
    /// A certificate with the new key, which is in a token or behind a command: name that with `--key-pkcs11` or
    /// `--key-command`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_key", "no_new_key"])]
    pub(crate) new_cert: Option<PathBuf>,
    /// Only retires keys or changes the threshold.
    #[arg(long)]
    pub(crate) no_new_key: bool,
    /// The id of a key that no longer counts, or its first digits. Default: the role's only key. May be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) retire: Vec<String>,
    /// Retires nothing.
    #[arg(long, conflicts_with = "retire")]
    pub(crate) keep_all: bool,
    /// How many keys must sign from now on.
    #[arg(long, value_name = "N")]
    pub(crate) threshold: Option<u64>,
    /// Who signs the metadata.
    #[command(flatten)]
    pub(crate) keys: RepoKeys,
    /// Who vouches for the new root.
    #[command(flatten)]
    pub(crate) signing: Signing,
}
