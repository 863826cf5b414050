//! The one settings schema: every section of `cutover.toml`.
//!
//! The structs live with the code that uses them; this module puts them together and adds the sections that belong to the
//! command line itself. Reference: `docs/reference/settings.md`, which a test compares with the code.

use std::{collections::BTreeMap, path::PathBuf};

use cutover_bundle::tlog::VerifierKey;
use cutover_core::{
    model::Name,
    plan::{Layout, LocalChanges},
    resolve::Preference,
    retain::Retention,
};
use cutover_host::{
    fetch::SourceSettings, nice::Nice, preflight::PreflightSettings, probe::ProbeSettings,
    service::ServiceSettings, ship::ShipSettings,
};
use cutover_server::settings::GateSettings;
use serde::{Deserialize, Serialize};

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What may be installed here.
    pub package: PackageSettings,
    /// Where releases come from.
    pub source: SourceSettings,
    /// What a signature must fulfil beyond the anchor.
    #[serde(rename = "trust-policy")]
    pub trust_policy: TrustPolicy,
    /// How updates are laid down.
    pub install: InstallSettings,
    /// What must hold before anything changes.
    pub preflight: PreflightSettings,
    /// How the service is run.
    pub service: ServiceSettings,
    /// How a release is examined after the switch.
    pub probes: ProbeSettings,
    /// Which restore points are kept.
    pub retention: Retention,
    /// Who may hand in data, and where it is kept.
    pub gate: GateSettings,
    /// The database of the service, and how its schema is changed.
    pub schema: SchemaSettings,
    /// What is shipped, where to, and how.
    pub ship: ShipSettings,
    /// How S3-compatible storage is reached.
    pub s3: S3Settings,
}

/// `[package]`: what may be installed here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PackageSettings {
    /// The one package this root may hold. Default: whichever is installed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// This host's platform. Default: that of this program, such as `linux-x86_64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Name>,
    /// Roots of other packages that Cutover keeps on this host; their current versions count like those in
    /// `preflight.packages`.
    pub roots: Vec<PathBuf>,
    /// Roots of other packages on this host, by package, that a release of a repository may change together with this
    /// root's package, all of them or none. Each has its own `cutover.toml`. They count like `roots` otherwise.
    pub sites: BTreeMap<Name, PathBuf>,
    /// Which of the versions that will do is taken of a package that has to change with another: `lowest` or `newest`.
    pub prefer: Preference,
}

/// `[trust-policy]`: what a signature must fulfil beyond the anchor. These can only refuse more, never less.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustPolicy {
    /// Certificate revocation lists (PEM or DER). Once one is set, the status of every certificate must be known and
    /// every list must be current.
    pub crl: Vec<PathBuf>,
    /// The channels releases may come from. Empty: any.
    pub channels: Vec<Name>,
    /// Whether a release needs a bill of materials (CycloneDX).
    pub require_sbom: bool,
    /// Whether a release needs provenance (SLSA) that names every program and library of it.
    pub require_provenance: bool,
    /// The builders that may have built it, by the ids in its provenance, which is then required. Empty: any.
    pub builders: Vec<String>,
    /// The repositories it may be built from, as its provenance names them, which is then required. Empty: any.
    pub source_repositories: Vec<String>,
    /// The verifier key of the log that releases of a repository must be in (`NAME+HASH+KEY`). Unset: no log is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<VerifierKey>,
    /// The verifier keys of witnesses of that log.
    pub witnesses: Vec<VerifierKey>,
    /// How many of them must have cosigned its checkpoint. 0: all.
    pub witness_threshold: usize,
}

/// `[install]`: how updates are laid down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstallSettings {
    /// How a root is laid out when it is first used: `versioned` (default), `exchange` or `in-place`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// What to do about config files that were changed where they are installed: `refuse` or `replace`.
    pub local_changes: LocalChanges,
    /// Files laid down at the same time. 0: as many as this machine has processors, at most 4.
    pub jobs: usize,
    /// How far the threads that fetch, hash and lay down files give way to others: a nice value, 0 to 19.
    pub nice: Nice,
    /// When restore points that retention no longer keeps are removed: `after-update` or `by-command`.
    pub prune: PruneWhen,
}

/// When restore points that retention no longer keeps are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneWhen {
    /// After every confirmed update.
    #[default]
    AfterUpdate,
    /// Only by `cutover prune`.
    ByCommand,
}

/// `[schema]`: the database of the service, and how its schema is changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchemaSettings {
    /// `sqlite:PATH` or `postgres://USER@HOST/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Who asks for migrations, for the history. Default: the user of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The directory with plugins, each called `NAME@VERSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PathBuf>,
    /// A file that is rewritten with Prometheus metrics by `apply` and `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_file: Option<PathBuf>,
    /// A file in which the end of the database's history is kept; a database that does not hold it any more is refused.
    /// Default: in the state of the root for updates, none for `cutover schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_file: Option<PathBuf>,
    /// How long a lock that clients wait for may be held, in milliseconds.
    pub max_hold_ms: u64,
    /// How long one attempt at a lock may wait, in milliseconds (PostgreSQL).
    pub lock_timeout_ms: u64,
    /// Rows of the first chunk.
    pub chunk_rows: u64,
    /// Connections that copy (PostgreSQL).
    pub workers: usize,
    /// How long a migrator that gives no sign of life keeps others out, in seconds; at least 3.
    pub lease_s: u64,
}

/// `[s3]`: how S3-compatible storage is reached. Used by programs that are built with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Settings {
    /// The address of the storage. Default: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, else Amazon's for the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region. Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the bucket is named in the path and not in the host name. Default: yes where an endpoint is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// Whether an endpoint may be plain http.
    pub allow_http: bool,
    /// A file with profiles. Default: `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// The profile in it. Default: `AWS_PROFILE`, else `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Whether the credentials of the machine's own role count when there are no others.
    pub instance_credentials: bool,
    /// Certificates (PEM) that the storage's may lead to, beside the system's. Default: `AWS_CA_BUNDLE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How long a publisher that gives no sign of life keeps others out, in seconds; at least 1.
    pub lease_s: u64,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            credentials_file: None,
            profile: None,
            instance_credentials: false,
            ca_file: None,
            lease_s: 30,
        }
    }
}

impl Default for SchemaSettings {
    fn default() -> Self {
        let policy = cutover_migrate::engine::Policy::default();
        Self {
            url: None,
            author: None,
            plugins: None,
            metrics_file: None,
            head_file: None,
            max_hold_ms: policy.hold_ms,
            lock_timeout_ms: policy.lock_timeout_ms,
            chunk_rows: policy.chunk_rows,
            workers: policy.workers,
            lease_s: 15,
        }
    }
}
