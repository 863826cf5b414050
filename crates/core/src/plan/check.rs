//! The independent check of a plan: the safety rules derived again, from the facts and not from the planner.
//!
//! Shares no function with the planner on purpose. A plan that breaks a rule is a bug of ours; it is stopped here before it
//! touches anything.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    planner::{Copies, Observation, PointSeen},
    step::{Change, Expand, Layout, Plan, PlanKind, Reuse, Source, Stage, StageFile, Step, Switch},
};
use crate::model::{FileEntry, FileKind, Manifest, ReleaseRef, RestorePointId, SafePath, SeenKind};

/// A safety rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan breaks a safety rule: {0}")]
pub struct Violation(String);

/// Checks `plan` against what was observed, the wanted release (updates) and the restore points (rollbacks).
///
/// # Errors
/// The first rule that is broken.
pub fn check_plan(
    plan: &Plan,
    observation: &Observation,
    wanted: Option<(&ReleaseRef, &Manifest)>,
    points: &[PointSeen],
) -> Result<(), Violation> {
    let parts = Parts::of(plan)?;
    ensure(plan.based_on == observation.digest(), || {
        "it was made for another state of this host".to_owned()
    })?;
    ensure(plan.number == observation.next_number && plan.layout == observation.layout, || {
        "it has another number or layout than this root".to_owned()
    })?;
    let installed = observation.installed.as_ref().map(|installed| &installed.release);
    ensure(plan.from.as_ref() == installed, || "it starts from a release that is not current".to_owned())?;
    if let Some(stage) = parts.stage {
        check_sources(plan, stage, observation, wanted.map(|(_, manifest)| manifest))?;
    }
    check_bytes(plan, &parts, observation)?;
    check_changes(plan, &parts)?;
    match (plan.kind, wanted) {
        (PlanKind::Update, Some((release, manifest))) => {
            check_update(plan, &parts, observation, release, manifest)
        }
        (PlanKind::Update, None) => Err(Violation("an update without a release".to_owned())),
        (PlanKind::Rollback, _) => check_rollback(plan, &parts, points),
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// The steps by role, once their order is known to be right.
struct Parts<'a> {
    stage: Option<&'a Stage>,
    checked_point: Option<&'a RestorePointId>,
    expand: Option<&'a Expand>,
    switch: &'a Switch,
}

impl<'a> Parts<'a> {
    /// The only orders there are: \[stage or check-tree\], restore-point, \[expand\], quiesce, switch, activate, \[probe\],
    /// confirm.
    /// Only a return to an empty root has nothing to probe.
    fn of(plan: &'a Plan) -> Result<Self, Violation> {
        let names: Vec<&str> = plan.steps.iter().map(Step::name).collect();
        let rest = match names.as_slice() {
            ["stage" | "check-tree", rest @ ..] => rest,
            rest => rest,
        };
        let good = match rest {
            ["restore-point", "expand", "quiesce", "switch", "activate", "probe", "confirm"] => {
                plan.kind == PlanKind::Update
            }
            ["restore-point", "quiesce", "switch", "activate", "probe", "confirm"] => plan.to.is_some(),
            ["restore-point", "quiesce", "switch", "activate", "confirm"] => plan.to.is_none(),
            _ => false,
        };
        ensure(good, || format!("its steps come in the order {}", names.join(", ")))?;
        ensure(plan.to.is_none() || rest.len() < names.len(), || {
            "nothing is laid down or checked".to_owned()
        })?;
        let mut parts = Self { stage: None, checked_point: None, expand: None, switch: &EMPTY_SWITCH };
        for step in &plan.steps {
            match step {
                Step::Stage(stage) => parts.stage = Some(stage),
                Step::CheckTree(check) => parts.checked_point = Some(&check.point),
                Step::Expand(expand) => parts.expand = Some(expand),
                Step::Switch(switch) => parts.switch = switch,
                Step::RestorePoint { id } => {
                    ensure(*id == RestorePointId::of_execution(plan.number), || {
                        format!("restore point {id} belongs to another execution")
                    })?
                }
                Step::Quiesce | Step::Activate | Step::Probe | Step::Confirm => {}
            }
        }
        Ok(parts)
    }
}

static EMPTY_SWITCH: Switch = Switch { changes: Vec::new() };

fn check_sources(
    plan: &Plan,
    stage: &Stage,
    observation: &Observation,
    wanted: Option<&Manifest>,
) -> Result<(), Violation> {
    let in_bundle: BTreeMap<_, _> = wanted
        .iter()
        .flat_map(|manifest| &manifest.objects)
        .map(|object| (&object.sha256, object.size))
        .collect();
    let kinds: BTreeMap<&SafePath, FileKind> =
        wanted.iter().flat_map(|manifest| &manifest.files).map(|file| (&file.path, file.kind)).collect();
    let mut paths = BTreeSet::new();
    for file in &stage.files {
        ensure(paths.insert(&file.path), || format!("`{}` is laid down twice", file.path))?;
        let sound = match &file.source {
            Source::Bundle => {
                plan.kind == PlanKind::Update
                    && in_bundle.get(&file.sha256).is_some_and(|size| *size == file.size)
            }
            Source::Store => observation.stored.contains(&file.sha256) || plan.kind == PlanKind::Rollback,
            Source::Present { path, reuse } => {
                is_reusable(file, path, *reuse, kinds.get(&file.path), observation)
            }
            Source::RestorePoint { .. } => plan.kind == PlanKind::Rollback && plan.layout == Layout::InPlace,
        };
        ensure(sound, || format!("the source of `{}` is unverified or cannot be had", file.path))?;
    }
    Ok(())
}

/// A present file may be reused if its content was seen to be right, and shared as an inode only if it is code.
fn is_reusable(
    file: &StageFile,
    path: &SafePath,
    reuse: Reuse,
    kind: Option<&FileKind>,
    observation: &Observation,
) -> bool {
    let Some(seen) = observation.seen.get(path) else { return false };
    let right =
        matches!(seen.kind, SeenKind::File { sha256, size } if sha256 == file.sha256 && size == file.size);
    let code = matches!(kind, Some(FileKind::Executable | FileKind::Library));
    right && (reuse == Reuse::Copy || (code && seen.mode == file.mode.bits()))
}

fn check_bytes(plan: &Plan, parts: &Parts<'_>, observation: &Observation) -> Result<(), Violation> {
    let (mut new, mut copied) = (0_u64, 0_u64);
    for file in parts.stage.iter().flat_map(|stage| &stage.files) {
        match &file.source {
            Source::Bundle | Source::Store | Source::RestorePoint { .. } => new += file.size,
            Source::Present { reuse: Reuse::Copy, .. } => copied += file.size,
            Source::Present { reuse: Reuse::Link, .. } => {}
        }
    }
    // In place, whatever is there and changes is kept as a copy.
    let changed: BTreeSet<&SafePath> = parts.switch.changes.iter().map(Change::path).collect();
    for (_, seen) in observation.seen.iter().filter(|(path, _)| changed.contains(path)) {
        if let SeenKind::File { size, .. } = seen.kind {
            copied += size;
        }
    }
    let needed = match observation.copies {
        Copies::MayShare => new.saturating_mul(2),
        Copies::TakeRoom => new.saturating_mul(2).saturating_add(copied),
    };
    ensure(plan.bytes.new == new && plan.bytes.need >= needed, || {
        format!("it asks for {} free bytes, but {needed} are needed", plan.bytes.need)
    })
}

/// No path is changed twice, whole-tree layouts change none, and what is put was staged.
fn check_changes(plan: &Plan, parts: &Parts<'_>) -> Result<(), Violation> {
    let changes = &parts.switch.changes;
    ensure(plan.layout == Layout::InPlace || changes.is_empty(), || {
        "a whole-tree switch changes paths".to_owned()
    })?;
    let mut staged: BTreeMap<_, _> = parts
        .stage
        .filter(|_| plan.layout == Layout::InPlace)
        .iter()
        .flat_map(|stage| &stage.files)
        .map(|file| (&file.path, file.sha256))
        .collect();
    let mut paths = BTreeSet::new();
    for change in changes {
        ensure(paths.insert(change.path()), || format!("`{}` is changed twice", change.path()))?;
        if let Change::Put { path, sha256, .. } = change {
            ensure(staged.remove(path) == Some(*sha256), || format!("`{path}` is put but not staged"))?;
        }
    }
    match staged.keys().next() {
        Some(path) => Err(Violation(format!("`{path}` is staged but never put"))),
        None => Ok(()),
    }
}

fn check_update(
    plan: &Plan,
    parts: &Parts<'_>,
    observation: &Observation,
    release: &ReleaseRef,
    manifest: &Manifest,
) -> Result<(), Violation> {
    ensure(plan.to.as_ref() == Some(release), || "it leads to another release".to_owned())?;
    ensure(release.version == manifest.version && release.package == manifest.package, || {
        "the release and its manifest differ".to_owned()
    })?;
    if let Some(from) = &plan.from {
        ensure(from.package == release.package && from.version < release.version, || {
            "it does not go up".to_owned()
        })?;
    }
    check_expand(parts.expand, manifest)?;
    let Some(stage) = parts.stage else { return Err(Violation("an update stages nothing".to_owned())) };
    match plan.layout {
        Layout::Versioned | Layout::Exchange => check_whole_tree(stage, manifest),
        Layout::InPlace => check_result_in_place(stage, parts.switch, observation, manifest),
    }
}

/// The database is brought to what the release declares, by the migrations that it carries and no others.
fn check_expand(expand: Option<&Expand>, manifest: &Manifest) -> Result<(), Violation> {
    let declared = manifest.schema.as_ref().filter(|schema| !schema.migrations.is_empty());
    let same = match (expand, declared) {
        (None, None) => true,
        (Some(expand), Some(schema)) => {
            let carried = expand.migrations.iter().all(|migration| {
                let is_it = |file: &FileEntry| file.path == migration.path && file.sha256 == migration.sha256;
                manifest.files.iter().any(is_it)
            });
            let paths = expand.migrations.iter().map(|migration| &migration.path);
            carried && expand.version == schema.version && paths.eq(&schema.migrations)
        }
        _ => false,
    };
    ensure(same, || "its migrations are not those of the release".to_owned())
}

/// The staged tree is the manifest's, file by file.
fn check_whole_tree(stage: &Stage, manifest: &Manifest) -> Result<(), Violation> {
    ensure(stage.files.len() == manifest.files.len(), || "files are missing or too many".to_owned())?;
    for (staged, file) in stage.files.iter().zip(&manifest.files) {
        let same = (&staged.path, staged.mode, staged.sha256, staged.size)
            == (&file.path, file.mode, file.sha256, file.size);
        ensure(same, || format!("`{}` is not laid down as the manifest says", file.path))?;
    }
    ensure(stage.symlinks == manifest.symlinks && stage.shared == manifest.shared, || {
        "links or shared paths differ from the manifest".to_owned()
    })
}

/// Plays the changes on what was seen: the result must be the new release, and nothing foreign may be touched.
fn check_result_in_place(
    stage: &Stage,
    switch: &Switch,
    observation: &Observation,
    manifest: &Manifest,
) -> Result<(), Violation> {
    let staged: BTreeMap<&SafePath, &StageFile> = stage.files.iter().map(|file| (&file.path, file)).collect();
    let changes: BTreeMap<&SafePath, &Change> =
        switch.changes.iter().map(|change| (change.path(), change)).collect();
    let mut ours: BTreeSet<&SafePath> = BTreeSet::new();
    for file in &manifest.files {
        ours.insert(&file.path);
        let present = observation.seen.get(&file.path);
        let holds = match changes.get(&file.path) {
            Some(Change::Put { .. }) => staged.get(&file.path).is_some_and(|staged| {
                (staged.sha256, staged.mode, staged.size) == (file.sha256, file.mode, file.size)
            }),
            Some(Change::Link { .. } | Change::Remove { .. }) => false,
            None if manifest.shared.contains(&file.path) => present.is_some(),
            None => present.is_some_and(|seen| {
                seen.mode == file.mode.bits()
                    && matches!(seen.kind, SeenKind::File { sha256, .. } if sha256 == file.sha256)
            }),
        };
        ensure(holds, || format!("`{}` would not be as the manifest says", file.path))?;
    }
    for link in &manifest.symlinks {
        ours.insert(&link.path);
        let present = observation.seen.get(&link.path).map(|seen| &seen.kind);
        let holds = match changes.get(&link.path) {
            Some(Change::Link { target, .. }) => *target == link.target,
            Some(Change::Put { .. } | Change::Remove { .. }) => false,
            None => matches!(present, Some(SeenKind::Symlink { target }) if *target == link.target),
        };
        ensure(holds, || format!("link `{}` would not be as the manifest says", link.path))?;
    }
    let before: BTreeSet<&SafePath> = observation
        .installed
        .iter()
        .flat_map(|installed| {
            let files = installed.manifest.files.iter().map(|file| &file.path);
            files.chain(installed.manifest.symlinks.iter().map(|link| &link.path))
        })
        .collect();
    for (path, change) in &changes {
        let known = match change {
            Change::Remove { .. } => before.contains(path) && !ours.contains(path),
            Change::Put { .. } | Change::Link { .. } => ours.contains(path),
        };
        ensure(known, || format!("`{path}` belongs to neither release"))?;
    }
    Ok(())
}

fn check_rollback(plan: &Plan, parts: &Parts<'_>, points: &[PointSeen]) -> Result<(), Violation> {
    let known = |id: &RestorePointId| points.iter().find(|seen| seen.point.id == *id);
    if let Some(id) = parts.checked_point {
        let seen = known(id).ok_or_else(|| Violation(format!("restore point {id} is unknown")))?;
        ensure(seen.point.from == plan.to, || format!("restore point {id} leads elsewhere"))?;
    }
    ensure(points.iter().any(|seen| seen.point.from == plan.to), || {
        "no restore point leads there".to_owned()
    })?;
    let sources = parts.stage.iter().flat_map(|stage| &stage.files).filter_map(|file| match &file.source {
        Source::RestorePoint { id } => Some((file, id)),
        _ => None,
    });
    for (file, id) in sources {
        let held = known(id).and_then(|seen| seen.point.files.get(&file.path)).is_some_and(
            |held| matches!(held.kind, SeenKind::File { sha256, size } if sha256 == file.sha256 && size == file.size),
        );
        ensure(held, || format!("restore point {id} does not hold `{}`", file.path))?;
    }
    Ok(())
}
