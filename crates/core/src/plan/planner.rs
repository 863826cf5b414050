//! The planner: from what is installed, what was seen and what is wanted to a plan, or a reasoned refusal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::step::{
    Change, CheckTree, Expand, Layout, MigrationFile, OnProbeFailure, Ownership, Plan, PlanBytes, PlanKind,
    Reuse, Source, Stage, StageFile, Step, Switch,
};
use crate::model::{
    Constraint, Digest, FileEntry, FileKind, FileMode, Instant, Manifest, Name, ReleaseRef, RestorePoint,
    RestorePointId, SafePath, SeenFile, SeenKind, SeenTree, Symlink, Version,
};

/// The release that is current, as the node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Which release.
    pub release: ReleaseRef,
    /// Its manifest; no part of a digest, because `release` already names it by its own.
    #[serde(skip)]
    pub manifest: Arc<Manifest>,
}

/// Whether the tree a restore point describes still lies in `releases/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KeptTree {
    /// It does.
    Kept,
    /// It was compressed into the store, or the layout is `in-place`.
    Cold,
}

/// One restore point as the node lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointSeen {
    /// The verified restore point.
    pub point: Arc<RestorePoint>,
    /// Whether its tree is still there.
    pub tree: KeptTree,
    /// The manifest of `point.from`.
    pub manifest: Option<Arc<Manifest>>,
}

/// Everything a plan may depend on. Gathered by `host`, never looked up by the planner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// Layout of the root.
    pub layout: Layout,
    /// The number the next execution gets.
    pub next_number: u64,
    /// What is current.
    pub installed: Option<Installed>,
    /// The present tree at every path of the installed and the wanted manifest; drift included.
    pub seen: SeenTree,
    /// Objects the store holds.
    pub stored: BTreeSet<Digest>,
    /// Other packages of this host and their versions.
    pub packages: BTreeMap<Name, Version>,
    /// What copies cost below the root.
    pub copies: Copies,
}

/// What the copy of a file costs on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copies {
    /// Nothing, or that is not known: the two may share their content until one is written.
    #[default]
    MayShare,
    /// As much room as the file: nothing is ever shared there.
    TakeRoom,
}

impl Observation {
    /// The digest a plan is bound to.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self).expect("maps with string keys always serialise")
    }
}

/// What to do about config files that were changed where they are installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalChanges {
    /// Refuse the update and name them.
    #[default]
    Refuse,
    /// Replace them; the restore point keeps the changed ones.
    Replace,
}

/// What the database of the service tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaSeen {
    /// The lowest schema version whose code it still serves; grows when a contract is completed.
    pub floor: u64,
}

/// The operator's choices, and what is known from beyond the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// This host's platform, such as `linux-x86_64`.
    pub platform: Name,
    /// What a failed probe leads to.
    pub on_probe_failure: OnProbeFailure,
    /// What to do about changed config files.
    pub local_changes: LocalChanges,
    /// The database whose schema the releases change; `None` when none is configured.
    pub schema: Option<SchemaSeen>,
    /// Now.
    pub now: Instant,
}

/// Why there is no plan. Refusals are answers, not failures; each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The wanted release is current already.
    #[error("already at version {0}")]
    AlreadyCurrent(Version),
    /// An older version is wanted.
    #[error("{wanted} is older than the installed {installed}; going back is done with `cutover rollback`")]
    Downgrade {
        /// What is installed.
        installed: Version,
        /// What was asked for.
        wanted: Version,
    },
    /// The same version with other content.
    #[error(
        "version {version} is installed with other content (manifest {installed}); releases are immutable, publish a new version"
    )]
    SameVersion {
        /// The version.
        version: Version,
        /// The installed manifest.
        installed: Digest,
    },
    /// A stepping stone was left out.
    #[error(
        "{wanted} can be reached from {minimum} on, but {installed} is installed; update to {minimum} first"
    )]
    TooOld {
        /// What is installed.
        installed: Version,
        /// The oldest that will do.
        minimum: Version,
        /// What was asked for.
        wanted: Version,
    },
    /// Built for another platform.
    #[error("the release is for {release}, this host is {host}")]
    Platform {
        /// The release's platform.
        release: Name,
        /// This host's.
        host: Name,
    },
    /// The root belongs to another package.
    #[error("this root holds package `{installed}`, the release is of `{wanted}`; use another --root")]
    Package {
        /// What the root holds.
        installed: Name,
        /// What was asked for.
        wanted: Name,
    },
    /// A required package is absent or of the wrong version.
    #[error("needs package `{package}` {constraint}, {}", .found.as_ref().map_or("which was not found".to_owned(), |version| format!("found {version}")))]
    Dependency {
        /// The package.
        package: Name,
        /// The versions that will do.
        constraint: Constraint,
        /// The version found.
        found: Option<Version>,
    },
    /// A conflicting package is installed.
    #[error("conflicts with package `{package}` {found}")]
    Conflict {
        /// The package.
        package: Name,
        /// Its version.
        found: Version,
    },
    /// Config files were changed in place.
    #[error("changed since installation: {}; list them under `shared` in the release, or pass --replace-changed (the restore point keeps them)", .0.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", "))]
    LocalChanges(Vec<SafePath>),
    /// Something that is not ours lies where the release wants a file.
    #[error(
        "`{0}` exists and belongs to no release; move it away, or pass --replace-changed (the restore point keeps it)"
    )]
    Foreign(SafePath),
    /// The release changes the schema of a database, and none is configured.
    #[error("the release carries schema migrations, and no database is configured")]
    NoDatabase,
    /// The database no longer serves the code of the release.
    #[error(
        "{release} was made for schema version {made_for}, but the database serves code for version {floor} and later only: what \
         older code needs was dropped"
    )]
    SchemaContracted {
        /// The release.
        release: Version,
        /// The schema version that it declares; 0 when it declares none.
        made_for: u64,
        /// The lowest that is served.
        floor: u64,
    },
    /// There is no such restore point.
    #[error("there is no restore point `{0}`; `cutover restore-points` lists them")]
    UnknownPoint(RestorePointId),
    /// There is nothing to go back to.
    #[error("there is no restore point to go back to")]
    NoPoint,
}

/// Plans the update to `wanted`, whose manifest has digest `release.manifest`.
///
/// # Errors
/// A [`Refusal`] when the update is not allowed or not needed.
pub fn plan_update(
    observation: &Observation,
    release: &ReleaseRef,
    wanted: &Manifest,
    policy: &Policy,
) -> Result<Plan, Refusal> {
    check_allowed(observation, release, wanted, policy)?;
    let (stage, switch) = match observation.layout {
        Layout::Versioned | Layout::Exchange => (stage_tree(observation, wanted), Switch::default()),
        Layout::InPlace => in_place(observation, wanted),
    };
    let bytes = cost(observation, &stage, &switch, wanted);
    let steps = Variable { first: Step::Stage(stage), expand: expand(wanted), switch };
    Ok(assemble(observation, policy, PlanKind::Update, Some(release.clone()), bytes, steps))
}

fn check_allowed(
    observation: &Observation,
    release: &ReleaseRef,
    wanted: &Manifest,
    policy: &Policy,
) -> Result<(), Refusal> {
    if wanted.platform.as_str() != "any" && wanted.platform != policy.platform {
        return Err(Refusal::Platform { release: wanted.platform.clone(), host: policy.platform.clone() });
    }
    if let Some(installed) = &observation.installed {
        check_upgrade(&installed.release, release, wanted)?;
    }
    check_schema(wanted, policy)?;
    for requirement in &wanted.requires {
        let found = observation.packages.get(&requirement.package);
        let satisfied = found.map_or(requirement.optional, |version| requirement.constraint.allows(version));
        if !satisfied {
            let (package, constraint) = (requirement.package.clone(), requirement.constraint.clone());
            return Err(Refusal::Dependency { package, constraint, found: found.cloned() });
        }
    }
    for conflict in &wanted.conflicts {
        if let Some(found) = observation.packages.get(&conflict.package)
            && conflict.constraint.allows(found)
        {
            return Err(Refusal::Conflict { package: conflict.package.clone(), found: found.clone() });
        }
    }
    match policy.local_changes {
        LocalChanges::Refuse => check_local_changes(observation, wanted),
        LocalChanges::Replace => Ok(()),
    }
}

/// Whether the database can, or could after the migrations of the release, serve its code.
fn check_schema(wanted: &Manifest, policy: &Policy) -> Result<(), Refusal> {
    let made_for = wanted.schema.as_ref().map_or(0, |schema| schema.version);
    let migrations = wanted.schema.as_ref().map_or(0, |schema| schema.migrations.len());
    match policy.schema {
        None if migrations > 0 => Err(Refusal::NoDatabase),
        Some(SchemaSeen { floor }) if made_for < floor => {
            Err(Refusal::SchemaContracted { release: wanted.version.clone(), made_for, floor })
        }
        _ => Ok(()),
    }
}

/// The migrations of a release, with their contents.
fn expand(wanted: &Manifest) -> Option<Step> {
    let schema = wanted.schema.as_ref().filter(|schema| !schema.migrations.is_empty())?;
    let digests: BTreeMap<&SafePath, Digest> =
        wanted.files.iter().map(|file| (&file.path, file.sha256)).collect();
    let file = |path: &SafePath| MigrationFile { path: path.clone(), sha256: digests[path] };
    Some(Step::Expand(Expand {
        version: schema.version,
        migrations: schema.migrations.iter().map(file).collect(),
    }))
}

fn check_upgrade(installed: &ReleaseRef, release: &ReleaseRef, wanted: &Manifest) -> Result<(), Refusal> {
    if installed.package != release.package {
        return Err(Refusal::Package {
            installed: installed.package.clone(),
            wanted: release.package.clone(),
        });
    }
    if installed.manifest == release.manifest {
        return Err(Refusal::AlreadyCurrent(installed.version.clone()));
    }
    if installed.version == release.version {
        return Err(Refusal::SameVersion {
            version: installed.version.clone(),
            installed: installed.manifest,
        });
    }
    if release.version < installed.version {
        return Err(Refusal::Downgrade {
            installed: installed.version.clone(),
            wanted: release.version.clone(),
        });
    }
    match &wanted.min_upgrade_from {
        Some(minimum) if installed.version < *minimum => Err(Refusal::TooOld {
            installed: installed.version.clone(),
            minimum: minimum.clone(),
            wanted: release.version.clone(),
        }),
        _ => Ok(()),
    }
}

/// Config files of the installed release that were edited, and foreign files where the release wants its own
/// (`in-place` only: the other layouts build a tree of their own).
fn check_local_changes(observation: &Observation, wanted: &Manifest) -> Result<(), Refusal> {
    let shared: BTreeSet<&SafePath> = wanted.shared.iter().collect();
    let ours: BTreeMap<&SafePath, &FileEntry> = observation
        .installed
        .iter()
        .flat_map(|installed| &installed.manifest.files)
        .map(|file| (&file.path, file))
        .collect();
    let changed: Vec<SafePath> = ours
        .values()
        .filter(|file| {
            file.kind == FileKind::Config
                && !shared.contains(&file.path)
                && !is_shared(observation, &file.path)
        })
        .filter(
            |file| matches!(observation.seen.get(&file.path), Some(seen) if !has_content(seen, file.sha256)),
        )
        .map(|file| file.path.clone())
        .collect();
    if !changed.is_empty() {
        return Err(Refusal::LocalChanges(changed));
    }
    if observation.layout == Layout::InPlace {
        let our_links: BTreeSet<&SafePath> = observation
            .installed
            .iter()
            .flat_map(|installed| &installed.manifest.symlinks)
            .map(|link| &link.path)
            .collect();
        let foreign = wanted
            .files
            .iter()
            .map(|file| (&file.path, Some(file.sha256)))
            .chain(wanted.symlinks.iter().map(|link| (&link.path, None)))
            .find(|(path, digest)| {
                !ours.contains_key(path)
                    && !our_links.contains(path)
                    && !shared.contains(path)
                    && observation
                        .seen
                        .get(*path)
                        .is_some_and(|seen| digest.is_none_or(|digest| !has_content(seen, digest)))
            });
        if let Some((path, _)) = foreign {
            return Err(Refusal::Foreign(path.clone()));
        }
    }
    Ok(())
}

fn is_shared(observation: &Observation, path: &SafePath) -> bool {
    observation.installed.as_ref().is_some_and(|installed| installed.manifest.shared.contains(path))
}

fn has_content(seen: &SeenFile, digest: Digest) -> bool {
    matches!(&seen.kind, SeenKind::File { sha256, .. } if *sha256 == digest)
}

/// A whole new tree: every file of the manifest, reusing what the present tree holds undamaged.
fn stage_tree(observation: &Observation, wanted: &Manifest) -> Stage {
    let mut present: Vec<Present<'_>> = observation
        .seen
        .iter()
        .filter_map(|(path, seen)| match &seen.kind {
            SeenKind::File { sha256, .. } => Some(Present { sha256, path, seen }),
            SeenKind::Symlink { .. } => None,
        })
        .collect();
    // Those with one content stay in the order of their paths.
    present.sort_by_key(|file| file.sha256);

    Stage {
        files: wanted
            .files
            .iter()
            .map(|file| stage_file(file, source_for(file, &present, observation)))
            .collect(),
        symlinks: wanted.symlinks.clone(),
        shared: wanted.shared.clone(),
    }
}

/// A file of the present tree.
struct Present<'a> {
    sha256: &'a Digest,
    path: &'a SafePath,
    seen: &'a SeenFile,
}

/// `present` are the files of the present tree in the order of their contents.
fn source_for(file: &FileEntry, present: &[Present<'_>], observation: &Observation) -> Source {
    let code = matches!(file.kind, FileKind::Executable | FileKind::Library);
    let from = present.partition_point(|present| *present.sha256 < file.sha256);
    let count = present[from..].partition_point(|present| *present.sha256 == file.sha256);
    let candidates = &present[from..from + count];
    let linkable = candidates.iter().filter(|present| code && present.seen.mode == file.mode.bits());
    let same_path = |present: &&Present<'_>| *present.path == file.path;
    let best = linkable.clone().find(same_path).or_else(|| linkable.clone().next());
    match (best, candidates.first()) {
        (Some(present), _) => Source::Present { path: present.path.clone(), reuse: Reuse::Link },
        (None, Some(present)) => Source::Present { path: present.path.clone(), reuse: Reuse::Copy },
        (None, None) if observation.stored.contains(&file.sha256) => Source::Store,
        (None, None) => Source::Bundle,
    }
}

fn stage_file(file: &FileEntry, source: Source) -> StageFile {
    StageFile { path: file.path.clone(), mode: file.mode, sha256: file.sha256, size: file.size, source }
}

/// Only what differs from the present files; the rest stays where it is, and so do shared paths that exist.
fn in_place(observation: &Observation, wanted: &Manifest) -> (Stage, Switch) {
    let mut stage = Stage::default();
    let mut changes = Vec::new();
    for file in &wanted.files {
        let seen = observation.seen.get(&file.path);
        if wanted.shared.contains(&file.path) && seen.is_some() {
            continue;
        }
        if !seen.is_some_and(|seen| has_content(seen, file.sha256) && seen.mode == file.mode.bits()) {
            let source =
                if observation.stored.contains(&file.sha256) { Source::Store } else { Source::Bundle };
            stage.files.push(stage_file(file, source));
            changes.push(Change::Put {
                path: file.path.clone(),
                sha256: file.sha256,
                keep: seen.and_then(ownership),
            });
        }
    }
    for link in &wanted.symlinks {
        let same =
            |seen: &SeenFile| matches!(&seen.kind, SeenKind::Symlink { target } if *target == link.target);
        if !observation.seen.get(&link.path).is_some_and(same) {
            changes.push(Change::Link { path: link.path.clone(), target: link.target.clone() });
        }
    }
    let wanted_paths: BTreeSet<&SafePath> = wanted
        .files
        .iter()
        .map(|file| &file.path)
        .chain(wanted.symlinks.iter().map(|link| &link.path))
        .chain(&wanted.shared)
        .collect();
    for path in observation.installed.iter().flat_map(|installed| manifest_paths(&installed.manifest)) {
        if !wanted_paths.contains(path)
            && observation.seen.contains_key(path)
            && !is_shared(observation, path)
        {
            changes.push(Change::Remove { path: path.clone() });
        }
    }
    (stage, Switch { changes })
}

fn manifest_paths(manifest: &Manifest) -> impl Iterator<Item = &SafePath> {
    manifest.files.iter().map(|file| &file.path).chain(manifest.symlinks.iter().map(|link| &link.path))
}

fn ownership(seen: &SeenFile) -> Option<Ownership> {
    match seen.kind {
        SeenKind::File { .. } => {
            Some(Ownership { uid: seen.uid, gid: seen.gid, xattrs: seen.xattrs.clone() })
        }
        SeenKind::Symlink { .. } => None,
    }
}

/// Free space that contents and what is kept of them need while they are laid down. (E23)
fn twice(new: u64, kept: u64) -> u64 {
    new.saturating_add(kept).saturating_mul(2)
}

/// Free space that an update from `before` to `wanted` needs at most, when `before` is not there yet to be planned from: room
/// for everything that `before` does not have, as [`PlanBytes::need`] counts it where copies may share their content.
pub fn need_after(before: &Manifest, wanted: &Manifest) -> u64 {
    let there: BTreeSet<Digest> = before.files.iter().map(|file| file.sha256).collect();
    let is_new = |sha256: &Digest| !there.contains(sha256);
    let new = wanted.files.iter().filter(|file| is_new(&file.sha256)).map(|file| file.size);
    let kept = wanted.objects.iter().filter(|object| is_new(&object.sha256)).map(|object| object.stored_size);
    twice(new.sum(), kept.sum())
}

fn cost(observation: &Observation, stage: &Stage, switch: &Switch, wanted: &Manifest) -> PlanBytes {
    let reused = |file: &&StageFile| matches!(file.source, Source::Present { .. });
    let new: u64 = stage.files.iter().filter(|file| !reused(file)).map(|file| file.size).sum();
    let from_bundle = stage.files.iter().filter(|file| file.source == Source::Bundle);
    let brought: BTreeSet<&Digest> = from_bundle.map(|file| &file.sha256).collect();
    let kept = wanted.objects.iter().filter(|object| brought.contains(&object.sha256));
    let need = twice(new, kept.map(|object| object.stored_size).sum());
    let need = need.saturating_add(copied(observation, &stage.files, switch));
    PlanBytes { new, reused: stage.files.iter().filter(reused).map(|file| file.size).sum(), need }
}

/// Room for what is copied on this host: present files that cannot be shared between trees, and what the restore point of an
/// in-place switch keeps of what is replaced or removed.
fn copied(observation: &Observation, staged: &[StageFile], switch: &Switch) -> u64 {
    if observation.copies == Copies::MayShare {
        return 0;
    }
    let is_copy = |file: &&StageFile| matches!(file.source, Source::Present { reuse: Reuse::Copy, .. });
    let kept = switch.changes.iter().filter_map(|change| observation.seen.get(change.path()));
    let kept = kept.map(|seen| match seen.kind {
        SeenKind::File { size, .. } => size,
        SeenKind::Symlink { .. } => 0,
    });
    staged.iter().filter(is_copy).map(|file| file.size).chain(kept).fold(0, u64::saturating_add)
}

/// Which restore point to go back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollbackTarget {
    /// The newest.
    Newest,
    /// This one.
    Point(RestorePointId),
}

/// Plans the way back to a restore point. `points` are all usable ones in the order they were made; those from the
/// target on are used up by the rollback.
///
/// # Errors
/// [`Refusal::UnknownPoint`] or [`Refusal::NoPoint`].
pub fn plan_rollback(
    observation: &Observation,
    points: &[PointSeen],
    target: &RollbackTarget,
    policy: &Policy,
) -> Result<Plan, Refusal> {
    let index = match target {
        RollbackTarget::Newest => points.len().checked_sub(1).ok_or(Refusal::NoPoint)?,
        RollbackTarget::Point(id) => points
            .iter()
            .position(|seen| seen.point.id == *id)
            .ok_or_else(|| Refusal::UnknownPoint(id.clone()))?,
    };
    let seen = &points[index];
    if let Some(manifest) = &seen.manifest {
        check_schema(manifest, policy)?;
    }
    let (first, switch) = match (observation.layout, seen.tree) {
        (Layout::InPlace, _) => {
            let (stage, switch) = in_place_back(observation, &points[index..]);
            (Step::Stage(stage), switch)
        }
        (Layout::Versioned | Layout::Exchange, KeptTree::Kept) => (
            Step::CheckTree(CheckTree { point: seen.point.id.clone(), files: seen.point.files.clone() }),
            Switch::default(),
        ),
        (Layout::Versioned | Layout::Exchange, KeptTree::Cold) => {
            (Step::Stage(stage_cold(seen)), Switch::default())
        }
    };
    let staged = match &first {
        Step::Stage(stage) => stage.files.as_slice(),
        _ => &[],
    };
    let new: u64 = staged.iter().map(|file| file.size).sum();
    let need = twice(new, 0).saturating_add(copied(observation, staged, &switch));
    let bytes = PlanBytes { new, reused: 0, need };
    let steps = Variable { first, expand: None, switch };
    Ok(assemble(observation, policy, PlanKind::Rollback, seen.point.from.clone(), bytes, steps))
}

/// The tree of a restore point whose files went to the store.
fn stage_cold(seen: &PointSeen) -> Stage {
    let shared = seen.manifest.as_ref().map(|manifest| manifest.shared.clone()).unwrap_or_default();
    let mut stage = Stage { shared, ..Stage::default() };
    for (path, file) in &seen.point.files {
        match &file.kind {
            _ if stage.shared.contains(path) => {}
            SeenKind::File { sha256, size } => stage.files.push(StageFile {
                path: path.clone(),
                mode: permission_bits(file.mode),
                sha256: *sha256,
                size: *size,
                source: Source::Store,
            }),
            SeenKind::Symlink { target } => {
                stage.symlinks.push(Symlink { path: path.clone(), target: target.clone() })
            }
        }
    }
    stage
}

/// Undoes several in-place updates at once: for each path the oldest restore point that knows it is the truth. Paths that
/// none knows did not change since, so there the manifest is; what was damaged meanwhile comes from the store.
fn in_place_back(observation: &Observation, points: &[PointSeen]) -> (Stage, Switch) {
    let mut truth: BTreeMap<&SafePath, Option<(&RestorePointId, &SeenFile)>> = BTreeMap::new();
    for seen in points {
        for (path, file) in &seen.point.files {
            truth.entry(path).or_insert(Some((&seen.point.id, file)));
        }
        for path in &seen.point.added {
            truth.entry(path).or_insert(None);
        }
    }
    let (mut stage, mut changes) = (Stage::default(), Vec::new());
    let target = points.first().and_then(|seen| seen.manifest.as_ref());
    for file in target.into_iter().flat_map(|manifest| damaged(observation, manifest)) {
        if !truth.contains_key(&file.path) {
            let keep = observation.seen.get(&file.path).and_then(ownership);
            changes.push(Change::Put { path: file.path.clone(), sha256: file.sha256, keep });
            stage.files.push(stage_file(file, Source::Store));
        }
    }
    for (path, state) in truth {
        match state {
            Some((_, file)) if observation.seen.get(path) == Some(file) => {}
            Some((id, file)) => match &file.kind {
                SeenKind::File { sha256, size } => {
                    stage.files.push(StageFile {
                        path: path.clone(),
                        mode: permission_bits(file.mode),
                        sha256: *sha256,
                        size: *size,
                        source: Source::RestorePoint { id: id.clone() },
                    });
                    changes.push(Change::Put { path: path.clone(), sha256: *sha256, keep: ownership(file) });
                }
                SeenKind::Symlink { target } => {
                    changes.push(Change::Link { path: path.clone(), target: target.clone() })
                }
            },
            None if observation.seen.contains_key(path) => {
                changes.push(Change::Remove { path: path.clone() })
            }
            None => {}
        }
    }
    (stage, Switch { changes })
}

/// The files of a manifest that are not as it says and that the store can mend. Config may have been edited and shared
/// paths are their owner's, so these stay as they are.
fn damaged<'m>(observation: &Observation, manifest: &'m Manifest) -> Vec<&'m FileEntry> {
    let sound = |file: &FileEntry| {
        let seen = observation.seen.get(&file.path);
        seen.is_some_and(|seen| has_content(seen, file.sha256) && seen.mode == file.mode.bits())
    };
    let ours = |file: &FileEntry| file.kind != FileKind::Config && !manifest.shared.contains(&file.path);
    let mendable = |file: &FileEntry| observation.stored.contains(&file.sha256);
    manifest.files.iter().filter(|file| ours(file) && !sound(file) && mendable(file)).collect()
}

fn permission_bits(mode: u32) -> FileMode {
    FileMode::new(mode & 0o777).expect("masked to permission bits")
}

/// The steps that differ from plan to plan.
struct Variable {
    /// How the new tree is had.
    first: Step,
    /// What becomes of the database.
    expand: Option<Step>,
    switch: Switch,
}

fn assemble(
    observation: &Observation,
    policy: &Policy,
    kind: PlanKind,
    to: Option<ReleaseRef>,
    bytes: PlanBytes,
    Variable { first, expand, switch }: Variable,
) -> Plan {
    let number = observation.next_number;
    let id = RestorePointId::of_execution(number);
    let mut steps = Vec::new();
    if to.is_some() || matches!(&first, Step::Stage(stage) if !stage.files.is_empty()) {
        steps.push(first);
    }
    steps.push(Step::RestorePoint { id });
    steps.extend(expand);
    steps.extend([Step::Quiesce, Step::Switch(switch), Step::Activate]);
    if to.is_some() {
        steps.push(Step::Probe);
    }
    steps.push(Step::Confirm);
    Plan {
        format: 1,
        number,
        kind,
        layout: observation.layout,
        from: observation.installed.as_ref().map(|installed| installed.release.clone()),
        to,
        planned_at: policy.now,
        based_on: observation.digest(),
        on_probe_failure: policy.on_probe_failure,
        bytes,
        steps,
    }
}
