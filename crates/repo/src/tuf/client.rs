//! The client's work: fetching metadata in the order of the specification, keeping what is believed, and finding targets.
//!
//! Everything that is fetched is bounded, and everything that is kept was believed first, so that a state on disk never
//! goes backwards.

use std::io;

use cutover_core::model::Instant;

use super::{
    role::{RoleKind, TargetFile},
    trusted::{Change, Origin, Refused, TrustedMetadata},
};
use crate::{
    fetch::{Fetch, FetchError},
    state::State,
};

/// What the names of delegated roles begin with where they are kept: a repository chooses them, and one called `log` must not
/// take the place of what this host remembers of the log.
const DELEGATED: &str = "delegated.";

/// Bounds on what a client fetches, where signed metadata does not give one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Most bytes of a root.
    pub root_bytes_max: u64,
    /// Most bytes of a timestamp.
    pub timestamp_bytes_max: u64,
    /// Most bytes of a snapshot.
    pub snapshot_bytes_max: u64,
    /// Most bytes of a targets role.
    pub targets_bytes_max: u64,
    /// Most roots followed in one refresh.
    pub root_updates_max: u64,
    /// Most delegated roles asked for one target.
    pub delegations_max: usize,
}

impl Default for ClientLimits {
    /// 512 kB, 16 KiB, 8 MB, 32 MB; 256 roots; 32 roles.
    fn default() -> Self {
        Self {
            root_bytes_max: 512_000,
            timestamp_bytes_max: 16 << 10,
            snapshot_bytes_max: 8_000_000,
            targets_bytes_max: 32_000_000,
            root_updates_max: 256,
            delegations_max: 32,
        }
    }
}

/// Why a client does not know what to install.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Metadata is refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Something could not be fetched.
    #[error("failed to fetch `{path}`")]
    Fetch {
        /// What.
        path: String,
        /// The cause.
        #[source]
        source: FetchError,
    },
    /// The state on disk could not be read or written.
    #[error("failed to {action} the trusted metadata of `{role}`")]
    State {
        /// `read`, `keep` or `forget`.
        action: &'static str,
        /// Whose metadata.
        role: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no root to start from.
    #[error("no root metadata is trusted yet")]
    NoRoot,
    /// No role that may speak for it lists this target.
    #[error("the repository has no `{0}`")]
    NoTarget(String),
}

impl ClientError {
    /// A stable word for logs and machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.code(),
            Self::Fetch { source: FetchError::NotFound, .. } => "metadata.not-found",
            Self::Fetch { source: FetchError::TooLarge { .. }, .. } => "metadata.too-large",
            Self::Fetch { source: FetchError::Failed(_), .. } => "metadata.fetch",
            Self::State { .. } => "metadata.state",
            Self::NoRoot => "metadata.no-root",
            Self::NoTarget(_) => "metadata.no-target",
        }
    }
}

/// Follows one repository. Made by [`Client::refresh`]; then [`Client::target`] answers from one consistent state.
pub struct Client<'a> {
    fetch: &'a dyn Fetch,
    state: &'a dyn State,
    limits: ClientLimits,
    trusted: TrustedMetadata,
}

impl<'a> Client<'a> {
    /// Brings the trusted metadata up to date: root, timestamp, snapshot, targets. What is believed is durable in `state`
    /// when this returns, and also when it fails halfway.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::NoRoot`] when `state` has no root to start from.
    pub fn refresh(
        fetch: &'a dyn Fetch,
        state: &'a dyn State,
        now: Instant,
        limits: ClientLimits,
    ) -> Result<Self, ClientError> {
        let root = load(state, "root")?.ok_or(ClientError::NoRoot)?;
        let trusted = TrustedMetadata::new(&root, now)?;
        let mut client = Self { fetch, state, limits, trusted };
        client.update_root()?;
        client.update_timestamp()?;
        client.update_snapshot()?;
        client.load_targets("targets", None)?;
        Ok(client)
    }

    /// The metadata that is believed now.
    pub fn trusted(&self) -> &TrustedMetadata {
        &self.trusted
    }

    /// Finds a target, asking delegated roles in order (section 5.6.7).
    ///
    /// # Errors
    /// [`ClientError::NoTarget`]; or a role's metadata cannot be had.
    pub fn target(&mut self, path: &str) -> Result<TargetFile, ClientError> {
        let mut to_visit = vec![("targets".to_owned(), None::<String>)];
        let mut visited = std::collections::BTreeSet::new();
        while let Some((role, parent)) = to_visit.pop() {
            if visited.len() > self.limits.delegations_max {
                break;
            }
            if !visited.insert(role.clone()) {
                continue;
            }
            if let Some(parent) = &parent {
                self.load_targets(&role, Some(parent))?;
            }
            let targets = self.trusted.targets(&role).ok_or(Refused::Order("targets"))?;
            if let Some(target) = targets.targets.get(path) {
                return Ok(target.clone());
            }
            let Some(delegations) = &targets.delegations else { continue };
            let mut children = Vec::new();
            for (child, terminating) in delegations.roles_for(path) {
                children.push((child, Some(role.clone())));
                if terminating {
                    to_visit.clear();
                    break;
                }
            }
            to_visit.extend(children.into_iter().rev());
        }
        Err(ClientError::NoTarget(path.to_owned()))
    }

    /// Fetches a target whole and checks it. For small ones: it is held in memory.
    ///
    /// # Errors
    /// It cannot be fetched, or is not what the metadata says.
    pub fn fetch_target(&self, path: &str, target: &TargetFile) -> Result<Vec<u8>, ClientError> {
        let name = self.target_path(path, target);
        let bytes = self.get(&name, target.length)?;
        target.check(path, &bytes)?;
        Ok(bytes)
    }

    /// As [`Client::fetch_target`], unless the same bytes are kept from an earlier time; and keeps them. For small files
    /// that are read again and again.
    ///
    /// # Errors
    /// As [`Client::fetch_target`]; or the state cannot be read or written.
    pub(crate) fn kept_target(&self, path: &str, target: &TargetFile) -> Result<Vec<u8>, ClientError> {
        let name = format!("target.{path}");
        if let Some(kept) = load(self.state, &name)?
            && target.check(path, &kept).is_ok()
        {
            return Ok(kept);
        }
        let bytes = self.fetch_target(path, target)?;
        self.state.keep(&quoted(&name), &bytes).map_err(|source| state_error("keep", &name, source))?;
        Ok(bytes)
    }

    /// Where a target lies below the repository: its digest is part of its name when the root says so.
    pub fn target_path(&self, path: &str, target: &TargetFile) -> String {
        let digest = target.hashes.get("sha256").or_else(|| target.hashes.values().next());
        match digest.filter(|_| self.trusted.root().consistent_snapshot) {
            Some(digest) => consistent_target_path(path, digest),
            None => path.to_owned(),
        }
    }

    fn update_root(&mut self) -> Result<(), ClientError> {
        let before = self.trusted.root().clone();
        for _ in 0..self.limits.root_updates_max {
            let path = metadata_path("root", Some(self.trusted.root().version + 1));
            let bytes = match self.fetch.fetch(&path, self.limits.root_bytes_max) {
                Ok(bytes) => bytes,
                Err(FetchError::NotFound) => break,
                Err(source) => return Err(ClientError::Fetch { path, source }),
            };
            self.trusted.update_root(&bytes)?;
            self.keep("root", &bytes)?;
        }
        self.trusted.finish_root()?;
        // A repository whose online keys were stolen may have been wound forward; new keys end that (section 5.3.11).
        for kind in [RoleKind::Timestamp, RoleKind::Snapshot] {
            if before.role(kind) != self.trusted.root().role(kind) {
                for role in ["timestamp", "snapshot"] {
                    let forgotten = self.state.remove(role);
                    forgotten.map_err(|source| state_error("forget", role, source))?;
                }
            }
        }
        Ok(())
    }

    fn update_timestamp(&mut self) -> Result<(), ClientError> {
        let kept = load(self.state, "timestamp")?;
        // Not believed any more, or expired: the fetched one is judged all the same.
        let known = kept.filter(|kept| note(self.trusted.update_timestamp(kept).map(drop), "timestamp"));
        let (path, limit) = (metadata_path("timestamp", None), self.limits.timestamp_bytes_max);
        let fetched = self.fetch.fetch_again(&path, limit, known.as_deref());
        let Some(bytes) = fetched.map_err(|source| ClientError::Fetch { path, source })? else {
            return Ok(());
        };
        if self.trusted.update_timestamp(&bytes)? == Change::Newer {
            self.keep("timestamp", &bytes)?;
        }
        Ok(())
    }

    fn update_snapshot(&mut self) -> Result<(), ClientError> {
        if let Some(kept) = load(self.state, "snapshot")?
            && note(self.trusted.update_snapshot(&kept, Origin::Kept), "snapshot")
        {
            return Ok(());
        }
        let announced = self.trusted.announced_snapshot().ok_or(Refused::Order("timestamp"))?;
        let limit = announced.length.unwrap_or(self.limits.snapshot_bytes_max);
        let path = metadata_path("snapshot", self.consistent(announced.version));
        let bytes = self.get(&path, limit.min(self.limits.snapshot_bytes_max))?;
        self.trusted.update_snapshot(&bytes, Origin::Fetched)?;
        self.keep("snapshot", &bytes)
    }

    fn load_targets(&mut self, role: &str, parent: Option<&str>) -> Result<(), ClientError> {
        if self.trusted.is_delegated_by(role, parent) {
            return Ok(());
        }
        let place = parent.map_or_else(|| role.to_owned(), |_| format!("{DELEGATED}{role}"));
        if let Some(kept) = load(self.state, &place)?
            && note(self.trusted.update_targets(role, parent, &kept, Origin::Kept), role)
        {
            return Ok(());
        }
        let announced =
            self.trusted.announced(role).ok_or_else(|| Refused::NotListed(format!("{role}.json")))?;
        let limit = announced.length.unwrap_or(self.limits.targets_bytes_max);
        let path = metadata_path(role, self.consistent(announced.version));
        let bytes = self.get(&path, limit.min(self.limits.targets_bytes_max))?;
        self.trusted.update_targets(role, parent, &bytes, Origin::Fetched)?;
        self.keep(&place, &bytes)
    }

    fn consistent(&self, version: u64) -> Option<u64> {
        self.trusted.root().consistent_snapshot.then_some(version)
    }

    pub(crate) fn get(&self, path: &str, limit: u64) -> Result<Vec<u8>, ClientError> {
        self.fetch.fetch(path, limit).map_err(|source| ClientError::Fetch { path: path.to_owned(), source })
    }

    fn keep(&self, role: &str, bytes: &[u8]) -> Result<(), ClientError> {
        self.state.keep(&quoted(role), bytes).map_err(|source| state_error("keep", role, source))
    }
}

fn load(state: &dyn State, role: &str) -> Result<Option<Vec<u8>>, ClientError> {
    state.load(&quoted(role)).map_err(|source| state_error("read", role, source))
}

fn state_error(action: &'static str, role: &str, source: io::Error) -> ClientError {
    ClientError::State { action, role: role.to_owned(), source }
}

/// Whether kept metadata is still the one to use.
fn note(result: Result<(), Refused>, role: &str) -> bool {
    if let Err(refused) = &result {
        tracing::debug!(role, %refused, "kept metadata is not current");
    }
    result.is_ok()
}

/// Where metadata lies below the repository.
pub(crate) fn metadata_path(role: &str, version: Option<u64>) -> String {
    match version {
        Some(version) => format!("metadata/{version}.{}.json", quoted(role)),
        None => format!("metadata/{}.json", quoted(role)),
    }
}

/// Where a target lies when its digest is part of its name.
pub(crate) fn consistent_target_path(path: &str, digest: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{digest}.{name}"),
        None => format!("{digest}.{path}"),
    }
}

/// A role's name as one component of a path or URL: names are data (RFC 3986, section 2.1). The result never is `.` or
/// `..`, for a suffix follows.
fn quoted(role: &str) -> String {
    let mut text = String::with_capacity(role.len());
    for byte in role.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.push_str(&super::hex::encode(&[byte]).to_ascii_uppercase());
        }
    }
    text
}
