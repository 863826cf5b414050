//! Arguments: every command and flag, as typed. The doc comments are the help texts and the reference page.
//!
//! Nothing here acts. Read [`Cli`] first, then [`Command`].

mod schema;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cutover_core::{
    model::{IdError, Instant, Name, RestorePointId, Version, VersionError},
    plan::Layout,
};
pub(crate) use schema::{AtDatabase, Schema, SchemaApply};

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

/// `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Makes a root authority and one signer: `root.pem`, `root.key`, `signer.pem`, `signer.key` (ECDSA P-256).
    Init {
        /// The directory to write to; it must not hold a PKI yet.
        dir: PathBuf,
        /// Your organization, as it stands in the certificates.
        #[arg(long, value_name = "NAME")]
        org: String,
        /// Days the root is valid.
        #[arg(long, default_value_t = 3650)]
        root_days: u32,
        /// Days the signer's certificate is valid.
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
    /// Issues one more signer's certificate from the root in DIR: `NAME.pem`, `NAME.key`.
    Issue {
        /// The directory of `pki init`.
        dir: PathBuf,
        /// The signer's name; also the name of its files.
        #[arg(long)]
        name: String,
        /// Your organization, as it stands in the certificate.
        #[arg(long, value_name = "NAME")]
        org: String,
        /// Days the certificate is valid.
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
    /// Makes a revocation list from the root in DIR.
    Revoke {
        /// The directory of `pki init`.
        dir: PathBuf,
        /// Serial numbers of all revoked certificates, as `bundle verify` shows them; none makes an empty list.
        #[arg(value_name = "SERIAL")]
        serials: Vec<String>,
        /// The list's number, which must grow from list to list.
        #[arg(long)]
        number: u64,
        /// Days until the next list is due.
        #[arg(long, default_value_t = 30)]
        days: u32,
        /// The file to write.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}

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

/// `bundle`.
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Packs a directory into a bundle; signs it when a key is given.
    Create(Create),
    /// Signs a bundle.
    Sign {
        /// The bundle.
        bundle: PathBuf,
        /// The file to write. Default: the bundle is replaced.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Adds to the present signatures instead of replacing them.
        #[arg(long)]
        add: bool,
        /// Who signs.
        #[command(flatten)]
        signing: Signing,
    },
    /// Verifies signature, manifest and every payload byte against this program's trust anchor.
    Verify {
        /// The bundle.
        bundle: PathBuf,
    },
    /// Shows what a bundle claims about itself; verifies nothing.
    Inspect {
        /// The bundle.
        bundle: PathBuf,
        /// Prints the manifest's exact bytes.
        #[arg(long)]
        manifest: bool,
    },
    /// Unpacks the files of a verified bundle into a new directory.
    Extract {
        /// The bundle.
        bundle: PathBuf,
        /// The directory to make.
        #[arg(long, short, value_name = "DIR")]
        output: PathBuf,
        /// Also writes the documents about the release, `sbom.cdx.json` and `provenance.intoto.json`, into this directory.
        #[arg(long, value_name = "DIR")]
        documents: Option<PathBuf>,
    },
}

/// `delta`.
#[derive(Debug, Subcommand)]
pub(crate) enum Delta {
    /// Makes a patch that turns OLD into NEW, and its description beside it.
    ///
    /// Tries every algorithm, applies each patch, and keeps the best by the policy. One that is not smaller than NEW
    /// compressed is not written.
    Generate(DeltaGenerate),
    /// Makes the new file from OLD and PATCH.
    ///
    /// The base is hashed first, the patch before it is parsed, the result always. The output gets its name only when
    /// all of that held.
    Apply {
        /// The file the patch applies to.
        old: PathBuf,
        /// The patch.
        patch: PathBuf,
        /// The file to write.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
    /// Applies PATCH to OLD and throws the result away.
    Verify {
        /// The file the patch applies to.
        old: PathBuf,
        /// The patch.
        patch: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
    /// Shows what a patch is for, what its decoder needs, and what was tried when it was made.
    Inspect {
        /// The patch.
        patch: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
}

/// `delta generate`.
#[derive(Args, Debug)]
pub(crate) struct DeltaGenerate {
    /// The file that is there.
    pub(crate) old: PathBuf,
    /// The file that is wanted.
    pub(crate) new: PathBuf,
    /// The patch to write; its description gets the same name with `.json` behind it.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Only these: `bsdiff`, `xdelta3`, `vcdiff`, `zstd-dict`, `refdelta`. A single one is kept whatever its size.
    #[arg(long, value_name = "NAME")]
    pub(crate) algorithm: Vec<cutover_core::model::DeltaAlgorithm>,
    /// What counts when several patches will do.
    #[arg(long, value_enum, default_value_t = DeltaPolicy::Smallest)]
    pub(crate) policy: DeltaPolicy,
    /// The most memory a patch may need when it is applied, such as `64M`.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = byte_count)]
    pub(crate) memory: u64,
    /// How many patches are made at once. Default: as many as there are processors.
    #[arg(long, value_name = "COUNT")]
    pub(crate) threads: Option<std::num::NonZeroUsize>,
}

/// What counts when several patches will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeltaPolicy {
    /// The fewest bytes.
    Smallest,
    /// The least time to apply.
    FastestApply,
    /// The least time to download at 100 Mbit/s and apply.
    Balanced,
}

/// How a patch is described, and what may be used.
#[derive(Args, Debug)]
pub(crate) struct DeltaWith {
    /// The patch's description. Default: the patch's name with `.json` behind it.
    #[arg(long, value_name = "FILE")]
    pub(crate) description: Option<PathBuf>,
    /// The most memory that may be used, such as `64M`.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = byte_count)]
    pub(crate) memory: u64,
}

/// A number of bytes, with `K`, `M` or `G` for the powers of 1024.
fn byte_count(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "write a number of bytes, such as 65536, 64M or 2G".to_owned())
}

/// `bundle create`.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The directory that holds the release's files.
    pub(crate) dir: PathBuf,
    /// What is released: `release.toml`.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: PathBuf,
    /// The version, in place of the one in the specification.
    #[arg(long, value_name = "VERSION")]
    pub(crate) release_version: Option<cutover_core::model::Version>,
    /// The file to write.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// When it was released, such as `2026-01-02T03:04:05Z`. Default: `SOURCE_DATE_EPOCH`, else now.
    #[arg(long, value_name = "TIME")]
    pub(crate) released_at: Option<Instant>,
    /// An earlier bundle: also writes a delta bundle that leads from its release to this one.
    #[arg(long, value_name = "OLD")]
    pub(crate) delta_from: Option<PathBuf>,
    /// The delta bundle to write. Default: beside the bundle, `NAME.from-VERSION.cutover-delta`.
    #[arg(long, value_name = "FILE", requires = "delta_from")]
    pub(crate) delta_output: Option<PathBuf>,
    /// What the release is made of: a CycloneDX document in JSON. It is signed with the release, and not installed.
    #[arg(long, value_name = "FILE")]
    pub(crate) sbom: Option<PathBuf>,
    /// How the release was made: an in-toto statement with SLSA provenance, whose subjects are files of the release. It is
    /// signed with the release, and not installed.
    #[arg(long, value_name = "FILE")]
    pub(crate) provenance: Option<PathBuf>,
    /// Zstandard level, 1 (fast) to 22 (small).
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Who signs.
    #[command(flatten)]
    pub(crate) signing: Signing,
}

/// Who signs, and with what.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Signing {
    /// A private key (PKCS#8 in PEM). With several signers, one for each `--sign-cert`, in the same order.
    #[arg(long, value_name = "FILE", requires = "sign_cert", conflicts_with_all = ["pkcs11", "sign_command"])]
    pub(crate) sign_key: Vec<PathBuf>,
    /// A signer's certificate in PEM, followed by the authorities between it and the root.
    #[arg(long, value_name = "FILE")]
    pub(crate) sign_cert: Vec<PathBuf>,
    /// A key in a token: `pkcs11:token=…;object=…?module-path=…&pin-source=file:…`; without `--sign-cert` its
    /// certificate is read from the token too.
    #[arg(long, value_name = "URI", conflicts_with = "sign_command")]
    pub(crate) pkcs11: Option<String>,
    /// A command that gets the bytes to be signed on stdin and writes the signature to stdout; it runs in `sh -c`
    /// with `CUTOVER_SCHEME` (such as `ecdsa-p256-sha256`) and `CUTOVER_CERTIFICATE`.
    #[arg(long, value_name = "COMMAND", requires = "sign_cert")]
    pub(crate) sign_command: Option<String>,
}

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
    pub(crate) log: Option<cutover_bundle::tlog::VerifierKey>,
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
    pub(crate) role: cutover_repo::tuf::RoleKind,
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

/// Who signs a repository's metadata. Each key counts for the roles that the root lists it for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RepoKeys {
    /// A directory whose `*.key` files (PKCS#8 in PEM) are used.
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
    /// A private key (PKCS#8 in PEM). May be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// A key in a token: `pkcs11:token=…;object=…?module-path=…&pin-source=file:…`, which holds its certificate too.
    /// May be repeated.
    #[arg(long, value_name = "URI")]
    pub(crate) key_pkcs11: Vec<String>,
    /// A command that gets the bytes to be signed on stdin and writes the signature to stdout, as for bundles.
    #[arg(long, value_name = "COMMAND", requires = "key_cert")]
    pub(crate) key_command: Option<String>,
    /// A certificate with the key of `--key-command`; only its key matters.
    #[arg(long, value_name = "FILE", requires = "key_command")]
    pub(crate) key_cert: Option<PathBuf>,
}

/// A release as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackageVersion {
    pub(crate) package: Name,
    pub(crate) version: Version,
}

impl std::str::FromStr for PackageVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (package, version) =
            text.split_once('@').ok_or("write NAME@VERSION, such as storage@1.4.0".to_owned())?;
        Ok(Self {
            package: package.parse().map_err(|error: IdError| error.to_string())?,
            version: version.parse().map_err(|error: VersionError| error.to_string())?,
        })
    }
}

impl std::fmt::Display for PackageVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.package, self.version)
    }
}

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

/// `index`.
#[derive(Debug, Subcommand)]
pub(crate) enum Index {
    /// Adds rows for stored episodes that have none, beside a receiver that runs.
    ///
    /// Rows that are there stay as they are. The exit code is 0 also when nothing was missing, 1 after an error of the disk,
    /// and 2 when there is no directory of episodes.
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

/// The root a command works on.
#[derive(Args, Clone, Debug)]
pub(crate) struct AtRoot {
    /// Where the package is installed.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: PathBuf,
}

/// `run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Lets this program take the place of the supervisor that runs: same process id, sockets and services; then returns.
    #[arg(long)]
    pub(crate) replace: bool,
}

/// What decides about an update besides settings.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpdateFlags {
    /// How a new root is laid out [setting: install.layout].
    #[arg(long, value_name = "LAYOUT", value_parser = layout)]
    pub(crate) layout: Option<Layout>,
    /// At most this many files are hashed and laid down at the same time [setting: install.jobs].
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// How far the threads that do this and fetch give way to other work, 0 to 19 [setting: install.nice].
    #[arg(long, value_name = "N")]
    pub(crate) nice: Option<u8>,
    /// Replaces config files that were changed where they are installed; the restore point keeps them [setting:
    /// install.local_changes].
    #[arg(long)]
    pub(crate) replace_changed: bool,
    /// Keeps the new release when a probe fails, instead of restoring the old one [setting: probes.on_failure].
    #[arg(long)]
    pub(crate) keep_on_probe_failure: bool,
}

fn layout(text: &str) -> Result<Layout, String> {
    match text {
        "versioned" => Ok(Layout::Versioned),
        "exchange" => Ok(Layout::Exchange),
        "in-place" => Ok(Layout::InPlace),
        _ => Err("a layout is `versioned`, `exchange` or `in-place`".to_owned()),
    }
}

/// Which repository, and what of it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FromRepository {
    /// The repository: a URL (also `s3://BUCKET/PREFIX`) or a directory [setting: source.urls]. May be repeated for mirrors.
    #[arg(long, value_name = "URL|DIR")]
    pub(crate) source: Vec<String>,
    /// The channel [setting: trust-policy.channels; else `stable`]. May be repeated; the first that has a version wins.
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) channel: Vec<Name>,
    /// The repository's first root, for one that this program's anchor does not vouch for.
    #[arg(long, value_name = "FILE")]
    pub(crate) trusted_root: Option<PathBuf>,
}

/// `check`.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The package. Default: the one that is installed.
    #[arg(value_name = "NAME")]
    pub(crate) package: Option<Name>,
    /// Where it is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Where to look.
    #[command(flatten)]
    pub(crate) from: FromRepository,
}

/// `plan`.
#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// The bundle, or the delta bundle; or a release of a repository, NAME@VERSION or NAME for the newest.
    #[arg(value_name = "BUNDLE|NAME@VERSION")]
    pub(crate) bundle: PathBuf,
    /// The full bundle of the same release, as for `apply`.
    #[arg(long, value_name = "FILE")]
    pub(crate) full: Option<PathBuf>,
    /// Where a release comes from.
    #[command(flatten)]
    pub(crate) from: FromRepository,
    /// Where it would be installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// What decides besides settings.
    #[command(flatten)]
    pub(crate) update: UpdateFlags,
    /// Writes the plan to a file that `apply --plan` takes.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `apply`.
#[derive(Args, Debug)]
pub(crate) struct Apply {
    /// The bundle, or the delta bundle; or a release of a repository, NAME@VERSION or NAME for the newest.
    #[arg(value_name = "BUNDLE|NAME@VERSION")]
    pub(crate) bundle: PathBuf,
    /// Where a release comes from.
    #[command(flatten)]
    pub(crate) from: FromRepository,
    /// The full bundle of the same release: what a delta cannot make is taken from it, file by file.
    #[arg(long, value_name = "FILE")]
    pub(crate) full: Option<PathBuf>,
    /// Where it is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// What decides besides settings.
    #[command(flatten)]
    pub(crate) update: UpdateFlags,
    /// Verifies, plans and checks as a real run does, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Executes exactly this plan of `plan --output`, or refuses if the root has changed since.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Stops this process (SIGSTOP) once the intent of STEP is durable; for tests.
    #[arg(long, value_name = "STEP", hide = true)]
    pub(crate) stop_at: Option<String>,
}

/// `history`.
#[derive(Args, Debug)]
pub(crate) struct History {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// At most this many entries.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Removes all entries instead of listing them.
    #[arg(long, conflicts_with = "limit")]
    pub(crate) clear: bool,
}

/// `verify`.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Brings damaged and missing files back from the object store.
    #[arg(long)]
    pub(crate) repair: bool,
    /// With `--repair`: config files that were edited become as installed too; the edits are lost.
    #[arg(long, requires = "repair")]
    pub(crate) replace_edited: bool,
}

/// `recover`.
#[derive(Args, Debug)]
pub(crate) struct Recover {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// First waits until the supervisor of this root answers; it starts recovery so.
    #[arg(long, hide = true)]
    pub(crate) wait_for_supervisor: bool,
}

/// `rollback`.
#[derive(Args, Debug)]
pub(crate) struct Rollback {
    /// The restore point. Default: the newest.
    pub(crate) id: Option<RestorePointId>,
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Takes back the whole set that made the restore point, as one execution: every package of it, or none.
    #[arg(long)]
    pub(crate) whole_set: bool,
    /// Shows what would be done and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stops this process (SIGSTOP) once the intent of STEP is durable; for tests.
    #[arg(long, value_name = "STEP", hide = true)]
    pub(crate) stop_at: Option<String>,
}

/// `prune`.
#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Where the package is installed.
    #[command(flatten)]
    pub(crate) at: AtRoot,
    /// Keeps this many restore points [setting: retention.keep].
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,
}

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
