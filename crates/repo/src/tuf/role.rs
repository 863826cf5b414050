//! The four kinds of metadata and the envelope they are signed in (TUF specification 1.0, section 4).
//!
//! An [`Envelope`] keeps the JSON value it was read from, and signatures are checked over that value's canonical form:
//! members that are unknown here are covered too. The typed views below are read from it afterwards.

use std::collections::{BTreeMap, BTreeSet};

use cutover_core::model::Instant;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{canonical::canonical, key::PublicKey};

/// Which kind of metadata. Delegated roles are of kind [`RoleKind::Targets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleKind {
    /// Lists the keys of all roles.
    Root,
    /// Says which targets there are.
    Targets,
    /// Says which versions of targets metadata belong together.
    Snapshot,
    /// Says which snapshot is the present one.
    Timestamp,
}

impl RoleKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// Its name in metadata and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }
}

impl std::fmt::Display for RoleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for RoleKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| "a role is root, targets, snapshot or timestamp".to_owned())
    }
}

/// A signature and the key that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The id of the key.
    pub keyid: String,
    /// The signature, in hexadecimal.
    pub sig: String,
}

/// Signed metadata, of which nothing is believed yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// What is signed.
    pub signed: Value,
    /// By whom.
    pub signatures: Vec<Signature>,
}

/// Which keys count for a role, and how many of them it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// The ids of the keys.
    pub keyids: Vec<String>,
    /// How many distinct keys must have signed, at least 1.
    pub threshold: u64,
}

/// The `root` role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The version of the TUF specification.
    pub spec_version: String,
    /// Grows by one from root to root.
    pub version: u64,
    /// The last second in which it counts.
    pub expires: Instant,
    /// Whether metadata and targets have their version or digest in their names.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// All keys, by their ids.
    pub keys: BTreeMap<String, PublicKey>,
    /// Which keys count for which role.
    pub roles: BTreeMap<String, RoleKeys>,
}

/// What one metadata file says of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: u64,
    /// Its size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its digests, by algorithm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
}

/// The `timestamp` and the `snapshot` role, which have the same members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The version of the TUF specification.
    pub spec_version: String,
    /// Grows from file to file.
    pub version: u64,
    /// The last second in which it counts.
    pub expires: Instant,
    /// Metadata files, by name.
    pub meta: BTreeMap<String, MetaFile>,
}

/// A file that clients download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFile {
    /// Its size in bytes.
    pub length: u64,
    /// Its digests, by algorithm.
    pub hashes: BTreeMap<String, String>,
}

/// The `targets` role and roles it delegates to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// The version of the TUF specification.
    pub spec_version: String,
    /// Grows from file to file.
    pub version: u64,
    /// The last second in which it counts.
    pub expires: Instant,
    /// The targets, by path.
    pub targets: BTreeMap<String, TargetFile>,
    /// Roles that speak for some targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
}

/// Roles that a targets role delegates to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegations {
    /// Their keys, by id.
    pub keys: BTreeMap<String, PublicKey>,
    /// The roles, in order of priority.
    #[serde(default)]
    pub roles: Vec<DelegatedRole>,
    /// Roles of equal rank that share all targets by their digests (TAP 15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succinct_roles: Option<SuccinctRoles>,
}

/// One delegated role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Its name.
    pub name: String,
    /// Whose signatures it needs.
    #[serde(flatten)]
    pub keys: RoleKeys,
    /// Whether nobody after it is asked about its targets.
    pub terminating: bool,
    /// Patterns of the paths it may speak for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Prefixes of the SHA-256 of paths it may speak for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
}

/// Roles that share all targets by the first bits of the SHA-256 of their paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccinctRoles {
    /// Whose signatures each needs.
    #[serde(flatten)]
    pub keys: RoleKeys,
    /// How many bits choose the role, 1 to 32.
    pub bit_length: u32,
    /// What their names start with.
    pub name_prefix: String,
}

/// Why bytes are no metadata of the kind that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Envelope {
    /// Reads an envelope.
    ///
    /// # Errors
    /// It is no JSON of that form, or a key signed it twice: *"multiple signatures with the same key id are not
    /// allowed"* (section 4.2.1).
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let envelope: Self = serde_json::from_slice(bytes).map_err(|error| Malformed(error.to_string()))?;
        let distinct: BTreeSet<&str> = envelope.signatures.iter().map(|one| one.keyid.as_str()).collect();
        if distinct.len() < envelope.signatures.len() {
            return Err(Malformed("two of its signatures name the same key".to_owned()));
        }
        Ok(envelope)
    }

    /// The signed part, as metadata of `kind`.
    ///
    /// # Errors
    /// It is of another kind, of another major version of the specification, or malformed.
    pub fn read<T: DeserializeOwned>(&self, kind: RoleKind) -> Result<T, Malformed> {
        let member = |name| self.signed.get(name).and_then(Value::as_str);
        if member("_type") != Some(kind.name()) {
            return Err(Malformed(format!("it is no metadata of the role `{kind}`")));
        }
        if member("spec_version").and_then(|version| version.split('.').next()) != Some("1") {
            return Err(Malformed("it does not follow version 1 of the TUF specification".to_owned()));
        }
        if self.signed.get("version").and_then(Value::as_u64).is_none_or(|version| version == 0) {
            return Err(Malformed("its version is no positive integer".to_owned()));
        }
        serde_json::from_value(self.signed.clone()).map_err(|error| Malformed(error.to_string()))
    }

    /// How many distinct keys of `role` signed it. One key counts once, whatever ids it is listed under.
    ///
    /// # Errors
    /// What is signed has no canonical form.
    pub fn count_signatures(
        &self,
        role: &RoleKeys,
        keys: &BTreeMap<String, PublicKey>,
    ) -> Result<u64, Malformed> {
        let message = canonical(&self.signed).map_err(|error| Malformed(error.to_string()))?;
        let signed: BTreeSet<(&str, &str)> = self
            .signatures
            .iter()
            .filter(|signature| role.keyids.contains(&signature.keyid))
            .filter_map(|signature| Some((keys.get(&signature.keyid)?, signature)))
            .filter(|(key, signature)| key.verifies(&message, &signature.sig))
            .map(|(key, _)| key.identity())
            .collect();
        Ok(signed.len() as u64)
    }
}

impl Root {
    /// Checks what [`Envelope::read`] cannot: every top-level role has keys and a threshold.
    ///
    /// # Errors
    /// One has not.
    pub fn check(&self) -> Result<(), Malformed> {
        for kind in RoleKind::ALL {
            let role = self.roles.get(kind.name());
            let role = role.ok_or_else(|| Malformed(format!("it has no keys for the role `{kind}`")))?;
            role.check(kind.name())?;
        }
        Ok(())
    }

    /// The keys of a top-level role. [`Root::check`] has seen that they are there.
    pub fn role(&self, kind: RoleKind) -> &RoleKeys {
        self.roles.get(kind.name()).expect("a checked root lists the keys of every role")
    }
}

impl RoleKeys {
    fn check(&self, name: &str) -> Result<(), Malformed> {
        let distinct: BTreeSet<&String> = self.keyids.iter().collect();
        if self.threshold == 0 {
            return Err(Malformed(format!("the threshold of `{name}` is 0")));
        }
        if distinct.len() < self.keyids.len() {
            return Err(Malformed(format!("a key of `{name}` is listed twice")));
        }
        Ok(())
    }
}

impl Targets {
    /// Checks what [`Envelope::read`] cannot.
    ///
    /// # Errors
    /// A delegation has no threshold, contradicts itself, or has the name of a top-level role.
    pub fn check(&self) -> Result<(), Malformed> {
        let Some(delegations) = &self.delegations else { return Ok(()) };
        let mut names = BTreeSet::new();
        for role in &delegations.roles {
            role.keys.check(&role.name)?;
            if role.name.is_empty() || RoleKind::ALL.iter().any(|kind| kind.name() == role.name) {
                return Err(Malformed(format!(
                    "it delegates to a role named `{}`",
                    role.name.escape_default()
                )));
            }
            if !names.insert(&role.name) {
                return Err(Malformed(format!("it delegates twice to `{}`", role.name.escape_default())));
            }
            if role.paths.is_some() == role.path_hash_prefixes.is_some() {
                return Err(Malformed("a delegation needs either paths or prefixes of digests".to_owned()));
            }
        }
        if let Some(succinct) = &delegations.succinct_roles {
            succinct.keys.check(&succinct.name_prefix)?;
            if !delegations.roles.is_empty() || !(1..=32).contains(&succinct.bit_length) {
                return Err(Malformed("its succinct delegation contradicts itself".to_owned()));
            }
        }
        Ok(())
    }
}
