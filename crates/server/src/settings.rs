//! `[gate]`: who may hand in data, where it is kept, and how the receiver listens.
//!
//! Owns the values and their check, never their use. Read [`GateSettings`].

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use cutover_core::{
    admission::{HostId, Order, Switch, window_of},
    model::{Digest, Name, Version},
};
use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::gate::{Ages, Both, GitSource, Owner, ReleaseTrust, ReleasesSource, Rules, Selection, Source};

/// `[gate]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Whether commits are judged. When not, everything is admitted.
    pub enabled: bool,
    /// The emergency switch: nothing is admitted, hosts keep their data and come again.
    pub closed: bool,
    /// Sockets: `tcp:ADDRESS:PORT` or `unix:/PATH`.
    pub listen: Vec<String>,
    /// The directory of `episodes/` and `index.jsonl`.
    pub root: PathBuf,
    /// Where episodes are kept when not in the root.
    pub storage: StorageSettings,
    /// The request header that names the commit.
    pub header: String,
    /// Other names of that header.
    pub aliases: Vec<String>,
    /// What a refused host is told to do, verbatim.
    pub remediation: String,
    /// Where the accepted commits come from.
    pub source: SourceKind,
    /// The clone.
    pub git: GitSettings,
    /// The releases.
    pub releases: ReleasesSettings,
    /// What hosts sign.
    pub attest: AttestSettings,
    /// What the receiver allows.
    pub limits: LimitSettings,
    /// TLS; unset: plain HTTP.
    pub tls: TlsSettings,
    /// The SHA-256 of each host's bearer token, 64 hexadecimal digits; `*` may act for every host. Empty: none is asked for.
    pub tokens: BTreeMap<String, String>,
}

/// Where the accepted commits come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The last commits of a clone.
    #[default]
    Git,
    /// The commits that the releases of a repository were built from.
    Releases,
    /// Both; the newest commit is the clone's.
    Both,
}

/// `[gate.releases]`: the releases whose commits are accepted. They are read as often as `gate.git.ttl_s` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReleasesSettings {
    /// The directory of a release repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<PathBuf>,
    /// By what the releases are believed.
    pub trust: ReleasesTrust,
    /// Only releases of this package. Unset: of every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<Name>,
    /// Only those of this channel. Unset: of every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<Name>,
    /// Only this version and later ones. Unset: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Version>,
    /// Only so many versions, counted from the newest. 0: any number.
    pub last: usize,
}

/// By what releases are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleasesTrust {
    /// By where they lie: whoever writes to the directory is trusted.
    #[default]
    Directory,
    /// By the trust anchor of the program: metadata and manifests are verified as on a host.
    Anchor,
}

/// `[gate.storage]`: where episodes are kept when not in the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// A place in a bucket of S3-compatible storage: `s3://BUCKET/PREFIX`. The index stays in the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// `[gate.attest]`: what hosts sign.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttestSettings {
    /// What is demanded.
    pub policy: AttestPolicy,
    /// What makes a signed commit verified.
    pub proof: AttestProof,
    /// The public key of each host: `ed25519:BASE64` (32 bytes) or `p256:BASE64` (the uncompressed point, 65 bytes).
    pub keys: BTreeMap<String, String>,
}

/// What is demanded of hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttestPolicy {
    /// Signatures are not looked at; every commit is a claim.
    #[default]
    Off,
    /// A signature must be good where there is one; commits without one are claims.
    Accept,
    /// Every upload must be signed.
    Require,
}

/// What makes a signed commit verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttestProof {
    /// The signature of the host.
    #[default]
    Host,
    /// That, and that it names a release whose signed manifest was built from the commit.
    Release,
}

/// `[gate.git]`: the clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GitSettings {
    /// The clone: a work tree or a bare repository that somebody keeps up to date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<PathBuf>,
    /// What to count from: `HEAD`, a branch such as `origin/main`, a tag.
    pub reference: String,
    /// How many commits are accepted, counted from the newest.
    pub window: i64,
    /// In which order they are counted.
    pub order: Order,
    /// The set is read again when it is this old, in seconds.
    pub ttl_s: u64,
    /// Git is stopped after this time, in seconds.
    pub time_limit_s: u64,
    /// While git fails, the last good set is used until it is this old, in seconds.
    pub max_stale_s: u64,
    /// Whose clone is read.
    pub owner: Owner,
    /// The git program.
    pub program: PathBuf,
}

/// `[gate.limits]`: what the receiver allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// The largest episode, in bytes. 0: any size.
    pub body_max_bytes: u64,
    /// Most bytes stored of one host. 0: any.
    pub host_bytes: u64,
    /// Most episodes stored of one host. 0: any.
    pub host_episodes: u64,
    /// Bytes that stay free on the disk.
    pub free_bytes: u64,
    /// Uploads under way at the same time of one host. 0: any.
    pub host_uploads: u64,
    /// Uploads per second of one host. 0: any.
    pub requests_per_s: u32,
    /// Uploads at once before that rate holds.
    pub burst: u32,
    /// Connections at the same time.
    pub connections: usize,
    /// Longest time in which less than 1 KiB of a body comes, in seconds.
    pub stall_timeout_s: u64,
    /// The least bytes per second of a body over its whole length: it must be there after its declared length at this rate, and
    /// the stall timeout. What is declared keeps room from others until then. Lower it for links, or a `ship.bytes_per_s` for each
    /// upload, that are slower. 0: any.
    pub bytes_per_s_min: u64,
    /// Longest time for the head of a request, in seconds; idle connections end after it too.
    pub head_timeout_s: u64,
    /// How long uploads under way may take when the receiver stops, in seconds.
    pub drain_timeout_s: u64,
}

/// `[gate.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate chain (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Certificates (PEM) that clients must lead to. Once set, each client needs one, and may act only for the hosts whose
    /// ids are among its DNS names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            closed: false,
            listen: vec!["tcp:127.0.0.1:8440".to_owned()],
            root: PathBuf::from("/var/lib/cutover-gate"),
            header: "X-Code-Commit".to_owned(),
            aliases: vec!["X-Cis490-Code-Commit".to_owned()],
            remediation: "Update the code on this host to a recent commit, then send the data again."
                .to_owned(),
            storage: StorageSettings::default(),
            source: SourceKind::Git,
            git: GitSettings::default(),
            releases: ReleasesSettings::default(),
            attest: AttestSettings::default(),
            limits: LimitSettings::default(),
            tls: TlsSettings::default(),
            tokens: BTreeMap::new(),
        }
    }
}

impl Default for GitSettings {
    fn default() -> Self {
        Self {
            repository: None,
            reference: "HEAD".to_owned(),
            window: 100,
            order: Order::Log,
            ttl_s: 5,
            time_limit_s: 10,
            max_stale_s: 3600,
            owner: Owner::Any,
            program: PathBuf::from("git"),
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            body_max_bytes: 0,
            host_bytes: 0,
            host_episodes: 0,
            free_bytes: 64 << 20,
            host_uploads: 0,
            requests_per_s: 0,
            burst: 32,
            connections: 1024,
            stall_timeout_s: 30,
            bytes_per_s_min: 4096,
            head_timeout_s: 30,
            drain_timeout_s: 30,
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {reason}")]
pub struct SettingError {
    /// The dotted key.
    pub key: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl SettingError {
    pub(crate) fn new(key: &'static str, reason: impl Into<String>) -> Self {
        Self { key, reason: reason.into() }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port; port 0: any that is free.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl GateSettings {
    /// What is judged by, for a program without a trust anchor.
    ///
    /// # Errors
    /// As [`GateSettings::rules_trusting`].
    pub fn rules(&self) -> Result<Rules, SettingError> {
        self.rules_trusting(None)
    }

    /// What is judged by. `trust` is what releases are verified by where that is demanded.
    ///
    /// # Errors
    /// [`SettingError`]: the source is not named well, its window is none (I22), or there is nothing to verify by.
    pub fn rules_trusting(&self, trust: Option<&ReleaseTrust>) -> Result<Rules, SettingError> {
        let is_verified = self.source != SourceKind::Git && self.releases.trust == ReleasesTrust::Anchor;
        if self.attest.proof == AttestProof::Release && !is_verified {
            let what = "needs `gate.source` `releases` or `both`, and `gate.releases.trust = \"anchor\"`";
            return Err(SettingError::new("gate.attest.proof", what));
        }
        let switch = match (self.closed, self.enabled) {
            (true, _) => Switch::Closed,
            (false, true) => Switch::Enforce,
            (false, false) => Switch::Open,
        };
        let ages = Ages {
            ttl: Duration::from_secs(self.git.ttl_s.max(1)),
            max_stale: Duration::from_secs(self.git.max_stale_s),
        };
        let source: Option<Arc<dyn Source>> = match self.source {
            SourceKind::Git => self.git_source()?,
            SourceKind::Releases => self.releases_source(trust)?,
            SourceKind::Both => match (self.git_source()?, self.releases_source(trust)?) {
                (Some(git), Some(releases)) => Some(Arc::new(Both(git, releases))),
                _ => None,
            },
        };
        if source.is_none() && switch == Switch::Enforce {
            let (key, what) = match self.source {
                SourceKind::Git => ("gate.git.repository", "the clone whose last commits are accepted"),
                SourceKind::Releases => {
                    ("gate.releases.repository", "the repository whose releases are accepted")
                }
                SourceKind::Both => {
                    ("gate.source", "both `gate.git.repository` and `gate.releases.repository`")
                }
            };
            return Err(SettingError::new(key, format!("name {what}, or set `gate.enabled = false`")));
        }
        Ok(Rules { switch, source, ages })
    }

    fn releases_source(&self, trust: Option<&ReleaseTrust>) -> Result<Option<Arc<dyn Source>>, SettingError> {
        let ReleasesSettings { repository, trust: demanded, package, channel, minimum, last } =
            self.releases.clone();
        let Some(repository) = repository else { return Ok(None) };
        let trust = match (demanded, trust) {
            (ReleasesTrust::Directory, _) => None,
            (ReleasesTrust::Anchor, Some(trust)) => Some(trust.clone()),
            (ReleasesTrust::Anchor, None) => {
                return Err(SettingError::new("gate.releases.trust", "this program has no trust anchor"));
            }
        };
        let selection = Selection { package, channel, minimum, last };
        Ok(Some(Arc::new(ReleasesSource::new(repository, selection, trust))))
    }

    fn git_source(&self) -> Result<Option<Arc<dyn Source>>, SettingError> {
        let git = &self.git;
        let window =
            window_of(git.window).map_err(|error| SettingError::new("gate.git.window", error.to_string()))?;
        let reference = &git.reference;
        if reference.is_empty()
            || reference.starts_with('-')
            || reference.contains(['\0', '\n', ' '])
            || reference.contains("..")
        {
            return Err(SettingError::new("gate.git.reference", "use `HEAD`, a branch, a tag or a commit"));
        }
        let Some(repository) = &git.repository else { return Ok(None) };
        let repository = std::path::absolute(repository).unwrap_or_else(|_| repository.clone());
        Ok(Some(Arc::new(GitSource {
            repository,
            reference: reference.clone(),
            window,
            order: git.order,
            time_limit: Duration::from_secs(git.time_limit_s.max(1)),
            owner: git.owner,
            program: git.program.clone(),
        })))
    }

    /// The header that names the commit, and its other names.
    ///
    /// # Errors
    /// [`SettingError`]: one is no header name.
    pub fn header_names(&self) -> Result<Vec<HeaderName>, SettingError> {
        let name = |key, text: &String| {
            text.parse().map_err(|_| SettingError::new(key, format!("`{text}` is not the name of a header")))
        };
        let mut names: Vec<HeaderName> = vec![name("gate.header", &self.header)?];
        for alias in &self.aliases {
            let alias = name("gate.aliases", alias)?;
            if !names.contains(&alias) {
                names.push(alias);
            }
        }
        Ok(names)
    }

    /// Where to listen.
    ///
    /// # Errors
    /// [`SettingError`]: there is nowhere, or a place is not written well.
    pub fn sockets(&self) -> Result<Vec<Listen>, SettingError> {
        let bad = |text: &str| {
            SettingError::new("gate.listen", format!("`{text}`: write `tcp:ADDRESS:PORT` or `unix:/PATH`"))
        };
        if self.listen.is_empty() {
            return Err(SettingError::new("gate.listen", "name at least one socket"));
        }
        let parse = |text: &String| match text.split_once(':') {
            Some(("tcp", address)) => address.parse().map(Listen::Tcp).map_err(|_| bad(text)),
            Some(("unix", path)) if path.starts_with('/') => Ok(Listen::Unix(PathBuf::from(path))),
            _ => Err(bad(text)),
        };
        self.listen.iter().map(parse).collect()
    }

    /// Whose token hashes to what.
    ///
    /// # Errors
    /// [`SettingError`]: a name is no host id, or a value no SHA-256.
    pub fn token_digests(&self) -> Result<Vec<(TokenHolder, Digest)>, SettingError> {
        let mut digests = Vec::new();
        for (host, digest) in &self.tokens {
            let holder = match host.as_str() {
                "*" => TokenHolder::Anybody,
                host => TokenHolder::Host(
                    host.parse().map_err(|error| SettingError::new("gate.tokens", format!("{error}")))?,
                ),
            };
            let digest = digest.parse().map_err(|_| {
                SettingError::new("gate.tokens", format!("`{host}`: write the SHA-256 of the token, never the token; `cutover gate token` prints both"))
            })?;
            digests.push((holder, digest));
        }
        Ok(digests)
    }
}

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenHolder {
    /// One host.
    Host(HostId),
    /// Whoever has it may act for every host.
    Anybody,
}

#[cfg(test)]
mod tests {
    use super::*;

    // I22
    #[test]
    fn window_of_none_no_clone_and_odd_references_are_refused_at_the_start() {
        let good = GateSettings {
            git: GitSettings { repository: Some("/srv/clone".into()), ..GitSettings::default() },
            ..GateSettings::default()
        };
        assert!(good.rules().is_ok());
        let with = |change: fn(&mut GateSettings)| {
            let mut settings = good.clone();
            change(&mut settings);
            settings.rules().map(|_| ()).map_err(|error| error.key)
        };
        assert_eq!(with(|settings| settings.git.window = 0), Err("gate.git.window"));
        assert_eq!(with(|settings| settings.git.window = -1), Err("gate.git.window"));
        assert_eq!(with(|settings| settings.git.repository = None), Err("gate.git.repository"));
        assert_eq!(with(|settings| settings.git.reference = "--all".to_owned()), Err("gate.git.reference"));
        assert_eq!(with(|settings| (settings.git.repository, settings.enabled) = (None, false)), Ok(()));
    }

    #[test]
    fn tokens_are_given_by_their_hash_only() {
        let of = |host: &str, token: &str| GateSettings {
            tokens: BTreeMap::from([(host.to_owned(), token.to_owned())]),
            ..GateSettings::default()
        };
        assert!(of("h", &Digest::of(b"t").to_string()).token_digests().is_ok());
        assert!(of("h", "secret").token_digests().is_err());
        assert!(of("..", &Digest::of(b"t").to_string()).token_digests().is_err());
    }
}
