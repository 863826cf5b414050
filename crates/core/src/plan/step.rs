//! The plan and its atoms.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    model::{Digest, FileMode, Instant, ReleaseRef, RestorePointId, SafePath, SeenTree, Symlink},
    tagged::{self, NoFields, Tagged},
};

/// How a root is laid out, chosen when it is first used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `current` is a symlink to `releases/<name>`; the switch renames a new link over it.
    #[default]
    Versioned,
    /// `current` is a directory; the switch swaps it with the staged one (`renameat2(RENAME_EXCHANGE)`).
    Exchange,
    /// The release's files lie in the root among files that are not ours; the switch is a journaled series of renames.
    InPlace,
}

impl Layout {
    /// As it is written in settings and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Versioned => "versioned",
            Self::Exchange => "exchange",
            Self::InPlace => "in-place",
        }
    }
}

/// Whether a plan moves on or goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanKind {
    /// To a release that is not installed.
    Update,
    /// To the state a restore point describes.
    Rollback,
}

/// What happens when a probe fails after the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnProbeFailure {
    /// Everything is undone and the old release runs again.
    #[default]
    Restore,
    /// The new release stays, unconfirmed.
    Keep,
}

/// An immutable description of one update or rollback on one root. Recorded whole as the first line of its journal.
///
/// Made by [`super::plan_update`] or [`super::plan_rollback`], verified by [`super::check_plan`], run by `host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Format of this record: 1.
    pub format: u32,
    /// Number of the execution; grows by one with each and names its journal.
    pub number: u64,
    /// On or back.
    pub kind: PlanKind,
    /// Layout of the root.
    pub layout: Layout,
    /// The release that is current now.
    pub from: Option<ReleaseRef>,
    /// The release that will be current; `None` when a rollback returns to an empty root.
    pub to: Option<ReleaseRef>,
    /// When it was planned.
    pub planned_at: Instant,
    /// Digest of the observation it was derived from: a plan is refused once the world has changed.
    pub based_on: Digest,
    /// What a failed probe leads to.
    pub on_probe_failure: OnProbeFailure,
    /// What it costs.
    pub bytes: PlanBytes,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// What a plan costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanBytes {
    /// Bytes laid down anew.
    pub new: u64,
    /// Bytes reused from the present tree.
    pub reused: u64,
    /// Free bytes required before the first write: twice what is laid down anew and kept in the store, and once what is
    /// copied where copies take room.
    pub need: u64,
}

/// One atom of a plan. Each is idempotent, and each undo tolerates a step that never happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Lay the files down where nothing reads them; verified, flushed, and for whole-tree layouts moved into
    /// `releases/`. Undo: remove them.
    Stage(Stage),
    /// Re-hash a kept release tree, repairing damaged files from the store. Undo: nothing.
    CheckTree(CheckTree),
    /// Write the restore point durably. Undo: remove it.
    RestorePoint {
        /// Its id.
        id: RestorePointId,
    },
    /// Bring the database to serve the code of this release beside that of the present one. Undo: nothing, as the present
    /// release goes on working on an expanded schema.
    Expand(Expand),
    /// Ready the service for the switch. Undo: make it run whatever is current.
    Quiesce,
    /// The one visible change. Undo: the reverse change, after checking digests.
    Switch(Switch),
    /// Make the service run the new release. Undo: nothing (that of `Quiesce` follows).
    Activate,
    /// Check installed bytes and the service. Undo: nothing.
    Probe,
    /// Record the release as good. From here on only forward.
    Confirm,
}

impl Step {
    /// The step's name as printed and recorded.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stage(_) => "stage",
            Self::CheckTree(_) => "check-tree",
            Self::RestorePoint { .. } => "restore-point",
            Self::Expand(_) => "expand",
            Self::Quiesce => "quiesce",
            Self::Switch(_) => "switch",
            Self::Activate => "activate",
            Self::Probe => "probe",
            Self::Confirm => "confirm",
        }
    }
}

impl Tagged for Step {
    const TAG: &'static str = "step";
    const VARIANTS: &'static [&'static str] = &[
        "stage",
        "check-tree",
        "restore-point",
        "expand",
        "quiesce",
        "switch",
        "activate",
        "probe",
        "confirm",
    ];

    fn variant<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Option<Result<Self, D::Error>> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Point {
            id: RestorePointId,
        }
        let plain = |step: Self, fields: D| NoFields::deserialize(fields).map(|_| step);
        Some(match name {
            "stage" => Stage::deserialize(fields).map(Self::Stage),
            "check-tree" => CheckTree::deserialize(fields).map(Self::CheckTree),
            "restore-point" => Point::deserialize(fields).map(|Point { id }| Self::RestorePoint { id }),
            "expand" => Expand::deserialize(fields).map(Self::Expand),
            "quiesce" => plain(Self::Quiesce, fields),
            "switch" => Switch::deserialize(fields).map(Self::Switch),
            "activate" => plain(Self::Activate, fields),
            "probe" => plain(Self::Probe, fields),
            "confirm" => plain(Self::Confirm, fields),
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tagged::deserialize(deserializer)
    }
}

/// What [`Step::Stage`] lays down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Files, in manifest order.
    pub files: Vec<StageFile>,
    /// Symbolic links of the release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symlinks: Vec<Symlink>,
    /// Paths linked to `<root>/shared/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SafePath>,
}

/// One file to lay down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageFile {
    /// Where.
    pub path: SafePath,
    /// Its permission bits.
    pub mode: FileMode,
    /// Its content.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where the content comes from.
    pub source: Source,
}

/// Where a file's content comes from; whatever the source, its hash is checked before the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Source {
    /// The verified bundle that is being applied.
    Bundle,
    /// The object store.
    Store,
    /// The same content at `path` in the present tree.
    Present {
        /// Where it lies in the present tree.
        path: SafePath,
        /// How it may be reused.
        reuse: Reuse,
    },
    /// A file kept by a restore point (`in-place`).
    RestorePoint {
        /// Which restore point.
        id: RestorePointId,
    },
}

/// How a present file may be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// Reflink, else hard link: an executable or library with the same mode.
    Link,
    /// Reflink, else copy: config and data, which may be written in place.
    Copy,
}

/// What [`Step::CheckTree`] re-hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckTree {
    /// The restore point that describes the tree.
    pub point: RestorePointId,
    /// What the tree must hold.
    pub files: SeenTree,
}

/// What [`Step::Expand`] brings the database to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expand {
    /// The schema's version after it.
    pub version: u64,
    /// The migrations of the release, in order. Those that the database has already are passed over.
    pub migrations: Vec<MigrationFile>,
}

/// A migration that a release carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationFile {
    /// Where it lies in the release.
    pub path: SafePath,
    /// Its content.
    pub sha256: Digest,
}

/// What [`Step::Switch`] changes. The whole-tree layouts change one name, so `changes` is empty for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// Changes of single paths, in order (`in-place`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// One changed path of an `in-place` switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// The staged file replaces whatever is there.
    Put {
        /// Where.
        path: SafePath,
        /// Its content.
        sha256: Digest,
        /// Owner and attributes that the file had and keeps (rollback: gets back); `None` for a new path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<Ownership>,
    },
    /// A symbolic link replaces whatever is there.
    Link {
        /// Where.
        path: SafePath,
        /// Where it points.
        target: String,
    },
    /// The path goes; directories that become empty and were made by a release go too.
    Remove {
        /// Where.
        path: SafePath,
    },
}

/// Owner and extended attributes of a file that is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ownership {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by name; values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

impl Change {
    /// The path it changes.
    pub fn path(&self) -> &SafePath {
        match self {
            Self::Put { path, .. } | Self::Link { path, .. } | Self::Remove { path } => path,
        }
    }
}
