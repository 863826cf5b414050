//! The decisions of a metadata client (TUF specification 1.0, section 5): which metadata may follow which.
//!
//! [`TrustedMetadata`] takes bytes and the time and either believes them or says why not. It fetches nothing and keeps
//! nothing on disk: [`super::client`] does.

use std::collections::BTreeMap;

use cutover_core::model::{Digest, Instant};

use super::{
    key::PublicKey,
    role::{Envelope, Listing, Malformed, MetaFile, RoleKeys, RoleKind, Root, TargetFile, Targets},
};

/// Why metadata is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be read.
    #[error("the metadata of `{role}` cannot be read")]
    Malformed {
        /// Whose metadata.
        role: String,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// Too few of the keys that count signed it.
    #[error("`{role}` is signed by {found} of the keys that count; it takes {needed}")]
    Threshold {
        /// Whose metadata.
        role: String,
        /// Distinct keys with a right signature.
        found: u64,
        /// How many it takes.
        needed: u64,
    },
    /// It is older than what was seen before.
    #[error("`{role}` has version {found}, and version {seen} was seen before: refused as a step back")]
    Rollback {
        /// Whose metadata.
        role: String,
        /// The version that was seen.
        seen: u64,
        /// The version that was offered.
        found: u64,
    },
    /// It is not the version that was announced.
    #[error("`{role}` has version {found} where {expected} was announced")]
    Version {
        /// Whose metadata.
        role: String,
        /// The version that was announced.
        expected: u64,
        /// The version that was offered.
        found: u64,
    },
    /// Its time is over.
    #[error("`{role}` expired at {at}: the repository is not kept up, or an old state of it is replayed")]
    Expired {
        /// Whose metadata.
        role: String,
        /// Its last second.
        at: Instant,
    },
    /// It is not the file that was announced.
    #[error("`{name}` is not the file that was announced: its {what} differs")]
    Content {
        /// The file or role.
        name: String,
        /// `size` or `digest`.
        what: &'static str,
    },
    /// Signed metadata does not list it.
    #[error("the snapshot does not list `{0}`")]
    NotListed(String),
    /// No metadata of an earlier step is there.
    #[error("`{0}` was not loaded yet")]
    Order(&'static str),
}

impl Refused {
    /// A stable word for logs and machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "metadata.malformed",
            Self::Threshold { .. } => "metadata.threshold",
            Self::Rollback { .. } => "metadata.rollback",
            Self::Version { .. } => "metadata.version",
            Self::Expired { .. } => "metadata.expired",
            Self::Content { .. } => "metadata.content",
            Self::NotListed(_) => "metadata.not-listed",
            Self::Order(_) => "metadata.order",
        }
    }
}

/// How far bytes are to be believed before their version is compared with what the snapshot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Kept here from an earlier refresh. Size and digest are not compared: it was believed before, and its signatures
    /// and version are checked again.
    Kept,
    /// Just fetched.
    Fetched,
}

/// Metadata that was believed. Made from a root; grows in the order root, timestamp, snapshot, targets, delegated roles.
#[derive(Clone, Debug)]
pub struct TrustedMetadata {
    now: Instant,
    root: Root,
    timestamp: Option<Listing>,
    snapshot: Option<Listing>,
    /// By role, with the role that delegated to it when it was believed.
    targets: BTreeMap<String, (Option<String>, Targets)>,
}

impl TrustedMetadata {
    /// Starts from a root that is trusted already. It must still be signed by its own keys; it may have expired, for a
    /// newer one may follow.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn new(root: &[u8], now: Instant) -> Result<Self, Refused> {
        let (envelope, root) = read_root(root)?;
        verify(&envelope, "root", root.role(RoleKind::Root), &root.keys)?;
        Ok(Self { now, root, timestamp: None, snapshot: None, targets: BTreeMap::new() })
    }

    /// The root that counts.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The snapshot's metadata as the timestamp announces it.
    pub fn announced_snapshot(&self) -> Option<&MetaFile> {
        self.timestamp.as_ref()?.meta.get("snapshot.json")
    }

    /// A role's metadata as the snapshot announces it.
    pub fn announced(&self, role: &str) -> Option<&MetaFile> {
        self.snapshot.as_ref()?.meta.get(&format!("{role}.json"))
    }

    /// The timestamp, once it is believed.
    pub fn timestamp(&self) -> Option<&Listing> {
        self.timestamp.as_ref()
    }

    /// The snapshot, once it is believed.
    pub fn snapshot(&self) -> Option<&Listing> {
        self.snapshot.as_ref()
    }

    /// A targets role, once it is believed.
    pub fn targets(&self, role: &str) -> Option<&Targets> {
        self.targets.get(role).map(|(_, targets)| targets)
    }

    /// Whether a role was believed because `parent` delegates to it. Another role may delegate to it with other keys.
    pub fn is_delegated_by(&self, role: &str, parent: Option<&str>) -> bool {
        self.targets.get(role).is_some_and(|(delegator, _)| delegator.as_deref() == parent)
    }

    /// Takes the next root: signed by the keys of the present one and by its own, one version higher (section 5.3).
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let (envelope, next) = read_root(bytes)?;
        verify(&envelope, "root", self.root.role(RoleKind::Root), &self.root.keys)?;
        if next.version != self.root.version + 1 {
            let expected = self.root.version + 1;
            return Err(Refused::Version { role: "root".to_owned(), expected, found: next.version });
        }
        verify(&envelope, "root", next.role(RoleKind::Root), &next.keys)?;
        self.root = next;
        Ok(())
    }

    /// Ends the updates of root: the last one must not have expired.
    ///
    /// # Errors
    /// [`Refused::Expired`].
    pub fn finish_root(&self) -> Result<(), Refused> {
        self.check_time("root", self.root.expires)
    }

    /// Takes a timestamp (section 5.4). A kept one may have expired: then it is remembered, so that a fetched one cannot
    /// step behind it.
    ///
    /// # Errors
    /// See [`Refused`]; [`Refused::Expired`] after it was remembered.
    pub fn update_timestamp(&mut self, bytes: &[u8]) -> Result<Change, Refused> {
        let next = self.read_top_level::<Listing>(RoleKind::Timestamp, bytes)?;
        let announced = next.meta.get("snapshot.json").ok_or_else(|| Refused::Malformed {
            role: "timestamp".to_owned(),
            source: Malformed("it does not list `snapshot.json`".to_owned()),
        })?;
        if let Some(seen) = &self.timestamp {
            rollback("timestamp", seen.version, next.version)?;
            if next.version == seen.version {
                // The same version is the same file: a replaced one is not taken (section 5.4.3.1).
                return self.check_time("timestamp", seen.expires).map(|()| Change::Same);
            }
            if let Some(seen) = seen.meta.get("snapshot.json") {
                rollback("snapshot", seen.version, announced.version)?;
            }
        }
        let expires = next.expires;
        self.timestamp = Some(next);
        self.check_time("timestamp", expires).map(|()| Change::Newer)
    }

    /// Takes the snapshot that the timestamp announces (section 5.5). A kept one of a lower version is remembered, so that
    /// nothing it lists can step back.
    ///
    /// # Errors
    /// See [`Refused`]; [`Refused::Version`] or [`Refused::Expired`] after it was remembered.
    pub fn update_snapshot(&mut self, bytes: &[u8], origin: Origin) -> Result<(), Refused> {
        let announced = self.announced_snapshot().cloned().ok_or(Refused::Order("timestamp"))?;
        if let Some(timestamp) = &self.timestamp {
            self.check_time("timestamp", timestamp.expires)?;
        }
        if origin == Origin::Fetched {
            check_content("snapshot", bytes, announced.length, &announced.hashes)?;
        }
        let next = self.read_top_level::<Listing>(RoleKind::Snapshot, bytes)?;
        if let Some(seen) = &self.snapshot {
            for (name, file) in &seen.meta {
                let next = next.meta.get(name).ok_or_else(|| Refused::NotListed(name.clone()))?;
                rollback(name.trim_end_matches(".json"), file.version, next.version)?;
            }
        }
        let (version, expires) = (next.version, next.expires);
        match origin {
            Origin::Fetched => {
                expect_version("snapshot", announced.version, version)?;
                self.check_time("snapshot", expires)?;
                self.snapshot = Some(next);
                Ok(())
            }
            Origin::Kept => {
                self.snapshot = Some(next);
                expect_version("snapshot", announced.version, version)?;
                self.check_time("snapshot", expires)
            }
        }
    }

    /// Takes the top-level targets, or a delegated role of `parent` (section 5.6).
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn update_targets(
        &mut self,
        role: &str,
        parent: Option<&str>,
        bytes: &[u8],
        origin: Origin,
    ) -> Result<(), Refused> {
        let snapshot = self.snapshot.as_ref().ok_or(Refused::Order("snapshot"))?;
        let announced =
            self.announced_snapshot().map(|file| file.version).ok_or(Refused::Order("timestamp"))?;
        expect_version("snapshot", announced, snapshot.version)?;
        self.check_time("snapshot", snapshot.expires)?;
        let announced = self.announced(role).ok_or_else(|| Refused::NotListed(format!("{role}.json")))?;
        if origin == Origin::Fetched {
            check_content(role, bytes, announced.length, &announced.hashes)?;
        }
        let (role_keys, keys) = match parent {
            None => (self.root.role(RoleKind::Targets), &self.root.keys),
            Some(parent) => {
                let delegations = self.targets(parent).and_then(|targets| targets.delegations.as_ref());
                let delegations = delegations.ok_or(Refused::Order("the delegating role"))?;
                let role_keys = delegations
                    .role_keys(role)
                    .ok_or_else(|| Refused::NotListed(format!("{role}, delegated by {parent}")))?;
                (role_keys, &delegations.keys)
            }
        };
        let envelope = parse(role, bytes)?;
        verify(&envelope, role, role_keys, keys)?;
        let next: Targets = envelope
            .read(RoleKind::Targets)
            .and_then(|next: Targets| next.check().map(|()| next))
            .map_err(malformed(role))?;
        expect_version(role, announced.version, next.version)?;
        self.check_time(role, next.expires)?;
        self.targets.insert(role.to_owned(), (parent.map(str::to_owned), next));
        Ok(())
    }

    fn read_top_level<T: serde::de::DeserializeOwned>(
        &self,
        kind: RoleKind,
        bytes: &[u8],
    ) -> Result<T, Refused> {
        let envelope = parse(kind.name(), bytes)?;
        verify(&envelope, kind.name(), self.root.role(kind), &self.root.keys)?;
        envelope.read(kind).map_err(malformed(kind.name()))
    }

    fn check_time(&self, role: &str, expires: Instant) -> Result<(), Refused> {
        // "The expiration timestamp MUST be higher than the fixed update start time."
        if expires > self.now { Ok(()) } else { Err(Refused::Expired { role: role.to_owned(), at: expires }) }
    }
}

/// Whether an update brought something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The version that is trusted already.
    Same,
    /// A newer version.
    Newer,
}

fn parse(role: &str, bytes: &[u8]) -> Result<Envelope, Refused> {
    Envelope::parse(bytes).map_err(malformed(role))
}

fn malformed(role: &str) -> impl Fn(Malformed) -> Refused {
    let role = role.to_owned();
    move |source| Refused::Malformed { role: role.clone(), source }
}

fn read_root(bytes: &[u8]) -> Result<(Envelope, Root), Refused> {
    let envelope = parse("root", bytes)?;
    let root: Root = envelope.read(RoleKind::Root).map_err(malformed("root"))?;
    root.check().map_err(malformed("root"))?;
    Ok((envelope, root))
}

fn verify(
    envelope: &Envelope,
    role: &str,
    keys: &RoleKeys,
    known: &BTreeMap<String, PublicKey>,
) -> Result<(), Refused> {
    let found = envelope.count_signatures(keys, known).map_err(malformed(role))?;
    // A role without a threshold was refused when its keys were read; this holds whatever happened before.
    let needed = keys.threshold.max(1);
    if found >= needed { Ok(()) } else { Err(Refused::Threshold { role: role.to_owned(), found, needed }) }
}

fn rollback(role: &str, seen: u64, found: u64) -> Result<(), Refused> {
    if found >= seen { Ok(()) } else { Err(Refused::Rollback { role: role.to_owned(), seen, found }) }
}

fn expect_version(role: &str, expected: u64, found: u64) -> Result<(), Refused> {
    if found == expected { Ok(()) } else { Err(Refused::Version { role: role.to_owned(), expected, found }) }
}

/// Compares bytes with what signed metadata says of them. Digests of unknown algorithms cannot be compared; when none is
/// known, the bytes are refused.
pub(crate) fn check_content(
    name: &str,
    bytes: &[u8],
    length: Option<u64>,
    hashes: &BTreeMap<String, String>,
) -> Result<(), Refused> {
    let refuse = |what| Refused::Content { name: name.to_owned(), what };
    if length.is_some_and(|length| length != bytes.len() as u64) {
        return Err(refuse("size"));
    }
    let mut known = hashes.is_empty();
    for (algorithm, expected) in hashes {
        let actual = match algorithm.as_str() {
            "sha256" => Digest::of(bytes).to_string(),
            "sha512" => {
                super::hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, bytes).as_ref())
            }
            _ => continue,
        };
        known = true;
        if actual != *expected {
            return Err(refuse("digest"));
        }
    }
    if known { Ok(()) } else { Err(refuse("digest")) }
}

impl TargetFile {
    /// Whether `bytes` are this target.
    ///
    /// # Errors
    /// [`Refused::Content`].
    pub fn check(&self, name: &str, bytes: &[u8]) -> Result<(), Refused> {
        if self.hashes.is_empty() {
            return Err(Refused::Content { name: name.to_owned(), what: "digest" });
        }
        check_content(name, bytes, Some(self.length), &self.hashes)
    }
}
