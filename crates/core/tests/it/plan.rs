//! Plans and their independent check.

use std::sync::Arc;

use cutover_core::{
    model::{Conflict, Digest, FileKind, Manifest, Requirement, Schema, SeenKind, Symlink},
    plan::{
        Change, Copies, Expand, Layout, LocalChanges, MigrationFile, Observation, Plan, PlanBytes, PlanKind,
        Policy, Refusal, Reuse, RollbackTarget, SchemaSeen, Source, Stage, Step, Switch, check_plan,
        need_after, plan_rollback, plan_update,
    },
};
use proptest::prelude::*;

use crate::fixtures::{Spec, manifest, observation, path, point, policy, release, version};

const LAYOUTS: [Layout; 3] = [Layout::Versioned, Layout::Exchange, Layout::InPlace];

const OLD: [Spec<'_>; 4] = [
    ("bin/db", FileKind::Executable, "old program"),
    ("lib/db.so", FileKind::Library, "library"),
    ("etc/db.conf", FileKind::Config, "config"),
    ("share/gone", FileKind::Data, "gone"),
];
const NEW: [Spec<'_>; 4] = [
    ("bin/db", FileKind::Executable, "new program"),
    ("lib/db.so", FileKind::Library, "library"),
    ("etc/db.conf", FileKind::Config, "config"),
    ("share/come", FileKind::Data, "come"),
];

fn old() -> Manifest {
    manifest("1.0.0", &OLD)
}

fn new() -> Manifest {
    manifest("1.1.0", &NEW)
}

fn plan(observation: &Observation, wanted: &Manifest) -> Result<Plan, Refusal> {
    plan_with(observation, wanted, &policy())
}

/// Plans, and has every plan checked.
fn plan_with(observation: &Observation, wanted: &Manifest, policy: &Policy) -> Result<Plan, Refusal> {
    let plan = plan_update(observation, &release(wanted), wanted, policy)?;
    check_plan(&plan, observation, Some((&release(wanted), wanted)), &[])
        .expect("every plan passes its check");
    Ok(plan)
}

fn refused(observation: &Observation, wanted: &Manifest) -> Refusal {
    plan(observation, wanted).expect_err("a refusal")
}

fn stage(plan: &Plan) -> &Stage {
    plan.steps
        .iter()
        .find_map(|step| if let Step::Stage(stage) = step { Some(stage) } else { None })
        .expect("a stage step")
}

fn switch(plan: &Plan) -> &Switch {
    plan.steps
        .iter()
        .find_map(|step| if let Step::Switch(switch) = step { Some(switch) } else { None })
        .expect("a switch step")
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

#[test]
fn first_installation_is_planned_in_every_layout() {
    for layout in LAYOUTS {
        let plan = plan(&observation(layout, None), &new()).expect("a plan");
        assert_eq!((plan.from.as_ref(), plan.kind), (None, PlanKind::Update));
        assert_eq!(
            names(&plan),
            ["stage", "restore-point", "quiesce", "switch", "activate", "probe", "confirm"]
        );
        assert!(stage(&plan).files.iter().all(|file| file.source == Source::Bundle));
        assert_eq!(plan.bytes.need, 4 * new().total_bytes(), "twice what is laid down and kept in the store");
    }
}

#[test]
fn update_that_cannot_be_planned_yet_is_counted_as_its_plan_will_be() {
    let planned = plan(&observation(Layout::Versioned, Some(&old())), &new()).expect("a plan");
    assert!(need_after(&old(), &new()) >= planned.bytes.need && planned.bytes.need > 0);
    assert_eq!(need_after(&new(), &new()), 0);
}

#[test]
fn what_is_copied_counts_where_copies_take_room() {
    for layout in LAYOUTS {
        let shared = observation(layout, Some(&old()));
        let full = Observation { copies: Copies::TakeRoom, ..observation(layout, Some(&old())) };
        let (sharing, copying) =
            (plan(&shared, &new()).expect("a plan"), plan(&full, &new()).expect("a plan"));
        let copied: u64 = match layout {
            // The unchanged config.
            Layout::Versioned | Layout::Exchange => stage(&copying)
                .files
                .iter()
                .filter(|file| matches!(file.source, Source::Present { reuse: Reuse::Copy, .. }))
                .map(|file| file.size)
                .sum(),
            // What the restore point keeps: the old program, and what is gone.
            Layout::InPlace => ["bin/db", "share/gone"]
                .iter()
                .map(|gone| old().files.iter().find(|file| file.path == path(gone)).expect("a file").size)
                .sum(),
        };
        assert!(copied > 0, "{layout:?}");
        assert_eq!(
            copying.bytes,
            PlanBytes { need: sharing.bytes.need + copied, ..sharing.bytes },
            "{layout:?}"
        );
        let short = PlanBytes { need: 2 * copying.bytes.new + copied - 1, ..copying.bytes };
        let short = Plan { bytes: short, ..copying };
        assert!(check_plan(&short, &full, Some((&release(&new()), &new())), &[]).is_err(), "{layout:?}");
    }
}

#[test]
fn room_for_the_copies_of_an_in_place_rollback_counts() {
    let at_new = |copies| Observation { copies, ..observation(Layout::InPlace, Some(&new())) };
    let points = [point(6, &old(), &new(), &["share/come"])];
    let need =
        |copies| rollback(&at_new(copies), &points, &RollbackTarget::Newest).expect("a plan").bytes.need;
    let kept: u64 = new().files.iter().filter(|file| !old().files.contains(file)).map(|file| file.size).sum();
    assert_eq!(need(Copies::TakeRoom), need(Copies::MayShare) + kept);
}

#[test]
fn unchanged_code_is_linked_and_unchanged_config_is_copied() {
    let plan = plan(&observation(Layout::Versioned, Some(&old())), &new()).expect("a plan");
    let sources: Vec<_> = stage(&plan).files.iter().map(|file| file.source.clone()).collect();
    let present = |at: &str, reuse| Source::Present { path: path(at), reuse };
    assert_eq!(
        sources,
        [
            Source::Bundle,
            present("lib/db.so", Reuse::Link),
            present("etc/db.conf", Reuse::Copy),
            Source::Bundle
        ]
    );
    assert_eq!(plan.bytes.new, ("new program".len() + "come".len()) as u64);
}

#[test]
fn damaged_or_differently_permitted_code_is_not_linked() {
    let mut damaged = observation(Layout::Versioned, Some(&old()));
    let library = damaged.seen.get_mut("lib/db.so").expect("the library");
    library.mode = 0o700;
    let plan_of_mode = plan(&damaged, &new()).expect("a plan");
    assert!(matches!(stage(&plan_of_mode).files[1].source, Source::Present { reuse: Reuse::Copy, .. }));
    damaged.seen.remove("lib/db.so");
    let plan_of_missing = plan(&damaged, &new()).expect("a plan");
    assert_eq!(stage(&plan_of_missing).files[1].source, Source::Bundle);
}

#[test]
fn object_in_the_store_is_not_taken_from_the_bundle() {
    let mut seen = observation(Layout::Versioned, Some(&old()));
    seen.stored.insert(new().files[0].sha256);
    assert_eq!(stage(&plan(&seen, &new()).expect("a plan")).files[0].source, Source::Store);
}

// E4
#[test]
fn in_place_changes_only_what_differs_in_manifest_order() {
    let plan = plan(&observation(Layout::InPlace, Some(&old())), &new()).expect("a plan");
    let changed: Vec<_> = switch(&plan).changes.iter().map(|change| change.path().as_str()).collect();
    assert_eq!(changed, ["bin/db", "share/come", "share/gone"]);
    assert!(
        matches!(&switch(&plan).changes[0], Change::Put { keep: Some(_), .. }),
        "owner and attributes are kept"
    );
    assert!(matches!(&switch(&plan).changes[2], Change::Remove { .. }));
    assert_eq!(stage(&plan).files.len(), 2);
}

// E22
#[test]
fn same_release_again_is_nothing_to_do() {
    for layout in LAYOUTS {
        let refusal = refused(&observation(layout, Some(&new())), &new());
        assert_eq!(refusal.to_string(), "already at version 1.1.0");
    }
}

// V3
#[test]
fn downgrade_is_refused() {
    let refusal =
        refused(&observation(Layout::Versioned, Some(&manifest("2.0.0", &OLD))), &manifest("1.9.0", &NEW));
    assert_eq!(refusal, Refusal::Downgrade { installed: version("2.0.0"), wanted: version("1.9.0") });
}

// V4
#[test]
fn version_below_min_upgrade_from_is_refused() {
    let wanted = Manifest { min_upgrade_from: Some(version("1.0.0")), ..new() };
    assert!(matches!(
        refused(&observation(Layout::Versioned, Some(&manifest("0.9.0", &OLD))), &wanted),
        Refusal::TooOld { .. }
    ));
    plan(&observation(Layout::Versioned, Some(&manifest("1.0.0", &OLD))), &wanted).expect("1.0.0 will do");
    plan(&observation(Layout::Versioned, None), &wanted).expect("nothing installed is no old version");
}

#[test]
fn other_content_platform_or_package_is_refused() {
    let on = |installed: &Manifest| observation(Layout::Versioned, Some(installed));
    assert!(matches!(refused(&on(&manifest("1.1.0", &OLD)), &new()), Refusal::SameVersion { .. }));
    let arm = Manifest { platform: "linux-aarch64".parse().expect("a name"), ..new() };
    assert!(matches!(refused(&on(&old()), &arm), Refusal::Platform { .. }));
    let other = Manifest { package: "web".parse().expect("a name"), ..new() };
    assert!(matches!(refused(&on(&old()), &other), Refusal::Package { .. }));
}

// H6, R10
#[test]
fn missing_or_old_dependency_and_installed_conflict_are_refused() {
    let requirement = |optional| Requirement {
        package: "storage".parse().expect("a name"),
        constraint: ">=1.4.0".parse().expect("a constraint"),
        optional,
    };
    let needs = |optional| Manifest { requires: vec![requirement(optional)], ..new() };
    let with = |found: Option<&str>| {
        let mut seen = observation(Layout::Versioned, Some(&old()));
        seen.packages.extend(found.map(|text| ("storage".parse().expect("a name"), version(text))));
        seen
    };
    assert!(refused(&with(None), &needs(false)).to_string().contains("not found"));
    assert!(matches!(
        refused(&with(Some("1.3.9")), &needs(true)),
        Refusal::Dependency { found: Some(_), .. }
    ));
    plan(&with(None), &needs(true)).expect("optional may be absent");
    plan(&with(Some("1.4.0")), &needs(false)).expect("equal will do");
    let conflict = Conflict {
        package: "storage".parse().expect("a name"),
        constraint: "<2.0.0".parse().expect("a constraint"),
    };
    let hates = Manifest { conflicts: vec![conflict], ..new() };
    assert!(matches!(refused(&with(Some("1.4.0")), &hates), Refusal::Conflict { .. }));
    plan(&with(Some("2.0.0")), &hates).expect("outside the range");
}

fn with_migration(version: u64) -> Manifest {
    Manifest { schema: Some(Schema { version, migrations: vec![path("share/come")] }), ..new() }
}

#[test]
fn migrations_run_after_the_restore_point_and_before_the_switch() {
    for layout in LAYOUTS {
        let (seen, wanted) = (observation(layout, Some(&old())), with_migration(2));
        let policy = Policy { schema: Some(SchemaSeen { floor: 0 }), ..policy() };
        let plan = plan_update(&seen, &release(&wanted), &wanted, &policy).expect("a plan");
        let names: Vec<&str> = plan.steps.iter().map(Step::name).collect();
        assert_eq!(
            names,
            ["stage", "restore-point", "expand", "quiesce", "switch", "activate", "probe", "confirm"]
        );
        let file = wanted.files.iter().find(|file| file.path == path("share/come")).expect("the migration");
        let migrations = vec![MigrationFile { path: file.path.clone(), sha256: file.sha256 }];
        assert_eq!(plan.steps[2], Step::Expand(Expand { version: 2, migrations }));
        check_plan(&plan, &seen, Some((&release(&wanted), &wanted)), &[]).expect("it is safe");

        let mut late = plan.clone();
        late.steps.swap(2, 4);
        let mut other = plan.clone();
        let Step::Expand(expand) = &mut other.steps[2] else { panic!("expand is the third step") };
        expand.migrations[0].sha256 = Digest::of(b"another");
        let mut without = plan;
        without.steps.remove(2);
        for unsafe_plan in [late, other, without] {
            check_plan(&unsafe_plan, &seen, Some((&release(&wanted), &wanted)), &[]).expect_err("unsafe");
        }
    }
}

#[test]
fn release_with_migrations_needs_a_database() {
    let seen = observation(Layout::Versioned, Some(&old()));
    assert_eq!(refused(&seen, &with_migration(2)), Refusal::NoDatabase);
}

#[test]
fn release_that_the_database_no_longer_serves_is_refused_forwards_and_back() {
    let policy = Policy { schema: Some(SchemaSeen { floor: 3 }), ..policy() };
    let seen = observation(Layout::Versioned, Some(&old()));
    let refused = |wanted: &Manifest| plan_update(&seen, &release(wanted), wanted, &policy);
    let gone = |result, made_for| match result {
        Err(Refusal::SchemaContracted { made_for: found, floor: 3, .. }) => assert_eq!(found, made_for),
        other => panic!("{other:?}"),
    };
    gone(refused(&with_migration(2)), 2);
    gone(refused(&new()), 0);
    refused(&with_migration(3)).expect("the database serves it");
    let points = [point(1, &old(), &new(), &[])];
    gone(plan_rollback(&seen, &points, &RollbackTarget::Newest, &policy), 0);
}

#[test]
fn changed_config_is_refused_by_name_unless_it_may_be_replaced() {
    for layout in LAYOUTS {
        let mut seen = observation(layout, Some(&old()));
        let config = seen.seen.get_mut("etc/db.conf").expect("the config");
        config.kind = SeenKind::File { sha256: old().files[0].sha256, size: 3 };
        assert_eq!(refused(&seen, &new()), Refusal::LocalChanges(vec![path("etc/db.conf")]));
        let replace = Policy { local_changes: LocalChanges::Replace, ..policy() };
        plan_with(&seen, &new(), &replace).expect("may be replaced");
    }
}

#[test]
fn shared_config_may_be_changed() {
    for layout in LAYOUTS {
        let shared = |manifest: Manifest| Manifest { shared: vec![path("etc/db.conf")], ..manifest };
        let mut seen = observation(layout, Some(&shared(old())));
        let config = seen.seen.get_mut("etc/db.conf").expect("the config");
        config.kind = SeenKind::File { sha256: old().files[0].sha256, size: 3 };
        let plan = plan(&seen, &shared(new())).expect("a plan");
        assert!(switch(&plan).changes.iter().all(|change| change.path().as_str() != "etc/db.conf"));
    }
}

#[test]
fn foreign_file_in_the_way_is_refused_in_place() {
    let mut seen = observation(Layout::InPlace, Some(&old()));
    let foreign = seen.seen.get("bin/db").expect("the program").clone();
    seen.seen.insert(path("share/come"), foreign);
    assert_eq!(refused(&seen, &new()), Refusal::Foreign(path("share/come")));
}

#[test]
fn changed_link_is_replaced_and_dropped_link_is_removed_in_place() {
    let link = |at: &str, target: &str| Symlink { path: path(at), target: target.to_owned() };
    let before = Manifest { symlinks: vec![link("bin/a", "db"), link("bin/b", "db")], ..old() };
    let after = Manifest { symlinks: vec![link("bin/a", "../lib/db.so")], ..new() };
    let plan = plan(&observation(Layout::InPlace, Some(&before)), &after).expect("a plan");
    assert!(
        switch(&plan)
            .changes
            .contains(&Change::Link { path: path("bin/a"), target: "../lib/db.so".to_owned() })
    );
    assert!(switch(&plan).changes.contains(&Change::Remove { path: path("bin/b") }));
}

fn rollback(
    observation: &Observation,
    points: &[cutover_core::plan::PointSeen],
    target: &RollbackTarget,
) -> Result<Plan, Refusal> {
    let plan = plan_rollback(observation, points, target, &policy())?;
    check_plan(&plan, observation, None, points).expect("every plan passes its check");
    Ok(plan)
}

#[test]
fn rollback_checks_the_kept_tree_and_switches_to_it() {
    for layout in [Layout::Versioned, Layout::Exchange] {
        let points = [point(6, &old(), &new(), &[])];
        let plan =
            rollback(&observation(layout, Some(&new())), &points, &RollbackTarget::Newest).expect("a plan");
        assert_eq!(
            names(&plan),
            ["check-tree", "restore-point", "quiesce", "switch", "activate", "probe", "confirm"]
        );
        assert_eq!((plan.kind, plan.to.as_ref()), (PlanKind::Rollback, Some(&release(&old()))));
        assert_eq!(plan.bytes.new, 0, "nothing is copied");
    }
}

// E17, P7, E18
#[test]
fn rollback_in_place_over_two_updates_takes_the_oldest_truth_and_removes_what_was_added() {
    let newest = manifest(
        "1.2.0",
        &[("bin/db", FileKind::Executable, "newest program"), ("share/late", FileKind::Data, "late")],
    );
    let points = [point(5, &old(), &new(), &["share/come"]), point(6, &new(), &newest, &["share/late"])];
    let seen = observation(Layout::InPlace, Some(&newest));
    let target = RollbackTarget::Point(points[0].point.id.clone());
    let plan = rollback(&seen, &points, &target).expect("a plan");
    assert!(switch(&plan).changes.contains(&Change::Remove { path: path("share/late") }));
    let program = stage(&plan).files.iter().find(|file| file.path.as_str() == "bin/db").expect("the program");
    assert_eq!(
        (program.sha256, &program.source),
        (old().files[0].sha256, &Source::RestorePoint { id: points[0].point.id.clone() })
    );
    let unknown = RollbackTarget::Point("000099".parse().expect("an id"));
    assert!(matches!(rollback(&seen, &points, &unknown), Err(Refusal::UnknownPoint(_))));
    assert_eq!(rollback(&seen, &[], &RollbackTarget::Newest), Err(Refusal::NoPoint));
}

// E15
#[test]
fn rollback_in_place_mends_an_unchanged_file_that_was_damaged() {
    let points = [point(6, &old(), &new(), &["share/come"])];
    let mut known = points.clone();
    Arc::make_mut(&mut known[0].point).files.remove("lib/db.so");
    let mut seen = observation(Layout::InPlace, Some(&new()));
    let library = old().files[1].clone();
    seen.stored.insert(library.sha256);
    seen.seen.get_mut("lib/db.so").expect("the library").kind =
        SeenKind::File { sha256: old().files[0].sha256, size: 1 };
    let plan = rollback(&seen, &known, &RollbackTarget::Newest).expect("a plan");
    let mended = stage(&plan).files.iter().find(|file| file.path == library.path).expect("the library");
    assert_eq!((mended.sha256, &mended.source), (library.sha256, &Source::Store));
}

/// A name and what it does to a good value.
type Edit<T> = (&'static str, fn(&mut T));

/// Each edit breaks one rule; the check must notice every one of them.
#[test]
fn check_refuses_every_broken_plan() {
    let edits: [Edit<Plan>; 14] = [
        ("no restore point", |plan| plan.steps.retain(|step| step.name() != "restore-point")),
        ("no probe", |plan| plan.steps.retain(|step| step.name() != "probe")),
        ("no stage", |plan| drop(plan.steps.remove(0))),
        ("switch before restore point", |plan| plan.steps.swap(1, 3)),
        ("confirm before probe", |plan| plan.steps.swap(5, 6)),
        ("two switches", |plan| plan.steps.insert(3, plan.steps[3].clone())),
        ("other restore point", |plan| {
            plan.steps[1] = Step::RestorePoint { id: "000001".parse().expect("an id") }
        }),
        ("too little space", |plan| plan.bytes.need = plan.bytes.new),
        ("other number", |plan| plan.number += 1),
        ("other basis", |plan| plan.based_on = cutover_core::model::Digest::of(b"")),
        ("starts elsewhere", |plan| plan.from = None),
        ("leads elsewhere", |plan| plan.to = plan.from.clone()),
        ("file missing", |plan| edit_stage(plan, |stage| drop(stage.files.pop()))),
        ("unverified source", |plan| {
            edit_stage(plan, |stage| {
                stage.files[0].source = Source::Present { path: path("share/gone"), reuse: Reuse::Copy };
            });
        }),
    ];
    for layout in LAYOUTS {
        let seen = observation(layout, Some(&old()));
        let good = plan(&seen, &new()).expect("a plan");
        for (name, edit) in edits {
            let mut bad = good.clone();
            edit(&mut bad);
            assert!(
                check_plan(&bad, &seen, Some((&release(&new()), &new())), &[]).is_err(),
                "{name} {layout:?}"
            );
        }
    }
}

fn edit_stage(plan: &mut Plan, edit: impl FnOnce(&mut Stage)) {
    for step in &mut plan.steps {
        if let Step::Stage(stage) = step {
            return edit(stage);
        }
    }
}

#[test]
fn check_refuses_in_place_changes_that_miss_the_release_or_touch_foreign_files() {
    let seen = observation(Layout::InPlace, Some(&old()));
    let good = plan(&seen, &new()).expect("a plan");
    let edits: [Edit<Switch>; 4] = [
        ("foreign file removed", |switch| switch.changes.push(Change::Remove { path: path("home/data") })),
        ("path twice", |switch| switch.changes.push(switch.changes[0].clone())),
        ("put forgotten", |switch| drop(switch.changes.remove(0))),
        ("wanted file removed", |switch| switch.changes.push(Change::Remove { path: path("lib/db.so") })),
    ];
    for (name, edit) in edits {
        let mut bad = good.clone();
        for step in &mut bad.steps {
            if let Step::Switch(switch) = step {
                edit(switch);
            }
        }
        assert!(check_plan(&bad, &seen, Some((&release(&new()), &new())), &[]).is_err(), "{name}");
    }
}

const KINDS: [FileKind; 4] = [FileKind::Executable, FileKind::Library, FileKind::Config, FileKind::Data];

/// Up to eight files out of twelve names, four kinds and six contents.
fn files() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    proptest::collection::btree_map(0..12usize, (0..4usize, 0..6usize), 0..8)
        .prop_map(|files| files.into_iter().map(|(name, (kind, content))| (name, kind, content)).collect())
}

fn random_manifest(version: &str, files: &[(usize, usize, usize)]) -> Manifest {
    let contents = ["", "a", "bb", "ccc", "dddd", "eeeee"];
    let names: Vec<String> = (0..12).map(|n| format!("dir{}/file{n}", n % 3)).collect();
    let specs: Vec<Spec<'_>> = files
        .iter()
        .map(|(name, kind, content)| (names[*name].as_str(), KINDS[*kind], contents[*content]))
        .collect();
    manifest(version, &specs)
}

proptest! {
    #[test]
    fn every_planned_update_and_its_rollback_pass_the_check(
        before in files(),
        after in files(),
        layout in 0..3usize,
        damaged in proptest::collection::vec(0..12usize, 0..4),
    ) {
        let (old, new) = (random_manifest("1.0.0", &before), random_manifest("2.0.0", &after));
        let mut seen = observation(LAYOUTS[layout], Some(&old));
        for name in damaged {
            seen.seen.remove(format!("dir{}/file{name}", name % 3).as_str());
        }
        plan_with(&seen, &new, &policy()).expect("nothing forbids it");
        let points = [point(6, &old, &new, &[])];
        rollback(&observation(LAYOUTS[layout], Some(&new)), &points, &RollbackTarget::Newest).expect("nothing forbids it");
    }
}
