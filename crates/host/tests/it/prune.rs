//! Pruning: what retention does not keep goes, older trees go cold, and what stays is usable.

use cutover_core::{
    execute::Outcome,
    model::Version,
    plan::{Layout, OnProbeFailure, RollbackTarget},
    retain::Retention,
};
use cutover_host::{
    catalog::Catalog,
    disk::RealDisk,
    node::{Node, NodeError, PruneReport},
};

use crate::world::{LAYOUTS, Release, Verdict, World};

const VERSIONS: [&str; 5] = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"];

/// Five releases of which each changes a little of a lot.
fn release(version: &'static str) -> Release {
    let noise = |seed: u32| -> Vec<u8> {
        (0..40_000u32).map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 11) as u8).collect()
    };
    let seed = version.as_bytes()[2].into();
    Release::new(version).program("bin/app", version).program("bin/big", noise(0)).data("data", noise(seed))
}

fn five(layout: Layout) -> World {
    let world = World::new(layout);
    for version in VERSIONS {
        assert_eq!(world.apply(&release(version)).outcome, Outcome::Confirmed);
    }
    world
}

fn prune(node: &Node, retention: &Retention) -> PruneReport {
    let lock = node.lock().expect("the lock");
    node.prune(&lock, retention).expect("pruned")
}

fn points(node: &Node) -> Vec<String> {
    node.restore_points().expect("listed").iter().map(|listed| listed.id.to_string()).collect()
}

// E20
#[test]
fn three_newest_restore_points_stay_and_every_one_leads_back() {
    for layout in LAYOUTS {
        for back in 0..3usize {
            let world = five(layout);
            let node = world.node();
            let report = prune(&node, &Retention::default());
            assert_eq!(report.removed_points.len(), 2, "{layout:?}");
            assert_eq!(points(&node), ["000005", "000004", "000003"]);
            assert!(report.bytes_after < report.bytes_before, "{report:?}");
            let target = RollbackTarget::Point(points(&node)[back].parse().expect("an id"));
            let report = world.try_rollback_on(&node, &target).expect("ran");
            assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?} {back} {report:?}");
            assert_eq!(world.tree(), release(VERSIONS[3 - back]).tree(), "{layout:?} {back}");
            assert!(node.verify().expect("verified").is_clean());
        }
    }
}

#[test]
fn cold_restore_points_have_no_tree_and_come_back_from_the_store() {
    let world = five(Layout::Versioned);
    let node = world.node();
    let report = prune(&node, &Retention { keep: 4, warm: 1, ..Retention::default() });
    let cooled: Vec<String> = report.cooled_points.iter().map(ToString::to_string).collect();
    assert_eq!(cooled, ["000002", "000003", "000004"]);
    let trees = std::fs::read_dir(world.path().join("releases")).expect("listed").count();
    assert_eq!(trees, 2, "the current and the warm one");
    let target = RollbackTarget::Point("000002".parse().expect("an id"));
    assert_eq!(world.try_rollback_on(&node, &target).expect("ran").outcome, Outcome::Confirmed);
    assert_eq!(world.tree(), release("1.0.0").tree());
    assert!(report.bytes_saved_by_sharing > 0, "{report:?}");
}

#[test]
fn content_that_only_a_restore_point_knows_goes_cold_with_it() {
    let mut world = World::new(Layout::Versioned);
    world.policy.local_changes = cutover_core::plan::LocalChanges::Replace;
    world.apply(&release("1.0.0").config("conf", "as released"));
    std::fs::write(world.installed("conf"), "as edited").expect("edited");
    for version in ["1.1.0", "1.2.0"] {
        world.apply(&release(version).config("conf", "as released"));
    }
    let node = world.node();
    prune(&node, &Retention { keep: 9, warm: 1, ..Retention::default() });
    let target = RollbackTarget::Point("000002".parse().expect("an id"));
    assert_eq!(world.try_rollback_on(&node, &target).expect("ran").outcome, Outcome::Confirmed);
    assert_eq!(std::fs::read(world.installed("conf")).expect("back"), b"as edited");
}

#[test]
fn pruning_twice_changes_nothing_and_needs_no_execution_under_way() {
    let world = five(Layout::Exchange);
    let node = world.node();
    prune(&node, &Retention::default());
    let again = prune(&node, &Retention::default());
    assert!(again.removed_points.is_empty() && again.cooled_points.is_empty() && again.removed_objects == 0);
    assert_eq!(again.bytes_before, again.bytes_after);
}

// M14, M15
#[test]
fn forgotten_release_is_gone_with_its_tree_objects_and_tombstone() {
    let world = five(Layout::Versioned);
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let unknown = node.forget(&lock, &Version::new(9, 9, 9)).expect_err("unknown");
    assert!(matches!(unknown, NodeError::UnknownRelease(_)));
    let needed = node.forget(&lock, &Version::new(1, 4, 0)).expect_err("current");
    assert!(matches!(needed, NodeError::Needed(_)));
    drop(lock);
    // Going back and not on again leaves a release that nothing needs.
    world.rollback();
    let before = everything(&world);
    let lock = node.lock().expect("the lock");
    node.forget(&lock, &Version::new(1, 4, 0)).expect("forgotten");
    let gone: Vec<String> = before.into_iter().filter(|path| !everything(&world).contains(path)).collect();
    for part in ["releases/1.4.0", ".cutover/manifests/", ".cutover/store/"] {
        assert!(gone.iter().any(|path| path.starts_with(part)), "{part}: {gone:?}");
    }
    assert!(!node.releases().expect("listed").iter().any(|release| release.version == Version::new(1, 4, 0)));
    let before = everything(&world);
    assert!(matches!(node.forget(&lock, &Version::new(1, 4, 0)), Err(NodeError::UnknownRelease(_))));
    assert_eq!(everything(&world), before);
    drop(lock);
    let catalog = catalog(&world);
    assert!(catalog.tombstones().expect("read").is_empty());
    assert!(!catalog.releases().expect("read").contains(&release("1.4.0").bundle().release().manifest));
}

fn everything(world: &World) -> Vec<String> {
    let own = crate::world::tree_at(&world.path().join(".cutover")).into_keys();
    crate::world::tree_at(world.path())
        .into_keys()
        .chain(own.map(|path| format!(".cutover/{path}")))
        .collect()
}

// M16
#[test]
fn removal_that_was_cut_off_after_its_tombstone_is_completed_at_the_next_start() {
    let world = five(Layout::Versioned);
    world.rollback();
    let digest = release("1.4.0").bundle().release().manifest;
    catalog(&world).bury(digest).expect("buried").expect("known");
    let manifest = world.path().join(format!(".cutover/manifests/{digest}.json"));
    assert!(manifest.exists());
    world.recover();
    assert!(!manifest.exists());
    assert!(catalog(&world).tombstones().expect("read").is_empty());
}

/// The catalog beside whoever uses it.
fn catalog(world: &World) -> Catalog {
    let disk = RealDisk::open(world.path()).expect("a disk");
    Catalog::open_made(&disk).expect("opened").expect("made")
}

#[test]
fn release_that_is_installed_again_is_no_longer_buried() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        let [one, two] = ["1.0.0", "1.1.0"].map(release);
        world.apply(&one);
        world.apply(&two);
        world.rollback();
        // It is buried, and what nothing names cannot be found out, so that its tombstone stays.
        catalog(&world).bury(two.bundle().release().manifest).expect("buried").expect("known");
        let rotten = world.path().join(".cutover/manifests").join(format!("{}.json", "0".repeat(64)));
        std::fs::write(&rotten, "rotten").expect("written");
        world.recover();
        assert_eq!(catalog(&world).tombstones().expect("read").len(), 1, "{layout:?}");
        assert_eq!(world.apply(&two).outcome, Outcome::Confirmed, "{layout:?}");
        assert!(catalog(&world).tombstones().expect("read").is_empty(), "{layout:?}");
        world.recover();
        assert_eq!(world.tree(), two.tree(), "{layout:?}");
    }
}

#[test]
fn tombstone_of_what_is_current_or_led_back_to_removes_nothing() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        let releases = ["1.0.0", "1.1.0"].map(release);
        for release in &releases {
            world.apply(release);
        }
        for release in &releases {
            catalog(&world).bury(release.bundle().release().manifest).expect("buried").expect("known");
        }
        let before = everything(&world);
        world.recover();
        assert_eq!(everything(&world), before, "{layout:?}");
        assert!(catalog(&world).tombstones().expect("read").is_empty(), "{layout:?}");
        assert_eq!(world.rollback().outcome, Outcome::Confirmed, "{layout:?}");
        assert_eq!(world.tree(), releases[0].tree(), "{layout:?}");
    }
}

#[test]
fn release_that_was_kept_unconfirmed_is_forgotten_as_any_other() {
    let mut world = World::new(Layout::Versioned);
    world.policy.on_probe_failure = OnProbeFailure::Keep;
    world.apply(&release("1.0.0"));
    world.fail_probes();
    assert_eq!(world.apply(&release("1.1.0")).outcome, Outcome::KeptUnconfirmed);
    world.set_verdict(Verdict::Pass);
    world.rollback();
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.forget(&lock, &Version::new(1, 1, 0)).expect("forgotten");
    assert!(!node.releases().expect("listed").iter().any(|release| release.version == Version::new(1, 1, 0)));
    assert!(!everything(&world).iter().any(|path| path.starts_with("releases/1.1.0")));
}

#[test]
fn what_is_rotten_in_the_store_is_compressed_anew_from_the_tree_that_goes_cold() {
    let world = five(Layout::Versioned);
    let node = world.node();
    let bundle = release("1.0.0").bundle();
    let data = bundle.manifest().files.iter().find(|file| file.path.as_str() == "data").expect("listed");
    world.damage_object(data.sha256);
    let report = prune(&node, &Retention { keep: 4, warm: 1, ..Retention::default() });
    assert_eq!(report.cooled_points.len(), 3, "{report:?}");
    let target = RollbackTarget::Point("000002".parse().expect("an id"));
    assert_eq!(world.try_rollback_on(&node, &target).expect("ran").outcome, Outcome::Confirmed);
    assert_eq!(world.tree(), release("1.0.0").tree());
}

// M17
#[test]
fn releases_are_listed_by_semver_newest_first() {
    let world = World::new(Layout::Versioned);
    for version in ["1.9.0", "1.10.0-rc.1", "1.10.0"] {
        world.apply(&Release::new(version).program("bin/app", version));
    }
    let listed = world.node().releases().expect("listed");
    let versions: Vec<String> = listed.iter().map(|release| release.version.to_string()).collect();
    assert_eq!(versions, ["1.10.0", "1.10.0-rc.1", "1.9.0"]);
}

#[test]
fn release_is_not_forgotten_while_a_point_cannot_be_read() {
    let world = five(Layout::Versioned);
    let point = world.path().join(".cutover/restore/000004/manifest.json");
    std::fs::remove_file(&point).expect("removed");
    std::fs::create_dir(&point).expect("made");
    let node = world.node();
    let lock = node.lock().expect("the lock");
    let error = node.forget(&lock, &Version::new(1, 2, 0)).expect_err("it might lead there");
    assert!(matches!(error, NodeError::Fs(_)), "{error}");
    assert!(node.releases().expect("listed").iter().any(|release| release.version == Version::new(1, 2, 0)));
}

#[test]
fn foreign_files_of_any_name_beside_ours_do_not_keep_a_prune_from_its_end() {
    use std::os::unix::ffi::OsStrExt as _;

    for layout in LAYOUTS {
        let world = five(layout);
        let odd = world.current().join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
        std::fs::write(odd, vec![0; 4 << 20]).expect("written");
        let node = world.node();
        let report = prune(&node, &Retention { keep: 2, ..Retention::default() });
        assert_eq!(report.removed_points.len(), 3, "{layout:?}");
        assert_eq!(node.history(1).expect("read")[0].action, "prune", "{layout:?}");
        if layout == Layout::InPlace {
            assert!(report.bytes_before < 4 << 20, "what is not ours does not count: {report:?}");
        }
    }
}
