//! Going back: to the newest restore point, to older ones, and what keeps a damaged one from doing harm.

use std::os::unix::fs::MetadataExt as _;

use cutover_core::{
    execute::Outcome,
    plan::{Layout, Refusal, RollbackTarget, plan_rollback},
};
use cutover_host::node::PointListed;

use crate::{
    not_run::not_run,
    world::{Entry, LAYOUTS, Release, Verdict, World, first, second},
};

fn third() -> Release {
    Release::new("3.0.0").program("bin/app", "three").data("share/only-in-three", "3")
}

// E15, E17
#[test]
fn rollback_restores_every_byte_and_mode_and_removes_what_was_added() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        world.apply(&second());
        std::fs::write(world.installed("bin/app"), "corrupted").expect("written");
        let report = world.rollback();
        assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?} {report:?}");
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
        assert!(world.node().verify().expect("verified").is_clean());
    }
}

// E15
#[test]
fn file_corrupted_in_place_is_right_after_rollback_although_both_trees_share_its_inode() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.apply(&second());
    std::fs::write(world.installed("lib/libsame.so"), "corrupted in place").expect("written");
    assert_eq!(world.rollback().outcome, Outcome::Confirmed);
    assert_eq!(world.tree(), first().tree());
}

#[test]
fn rollback_over_several_updates_uses_up_the_points_in_between() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        for release in [first(), second(), third()] {
            assert_eq!(world.apply(&release).outcome, Outcome::Confirmed);
        }
        let points = world.node().restore_points().expect("listed");
        assert_eq!(points.len(), 3);
        let target = RollbackTarget::Point(points[1].id.clone());
        let report = world.try_rollback_on(&world.node(), &target).expect("ran");
        assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?} {report:?}");
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        let left = world.node().restore_points().expect("listed");
        assert_eq!(left.len(), 1, "{layout:?}");
        assert_eq!(world.rollback().outcome, Outcome::Confirmed, "back to an empty root");
        assert!(world.tree().is_empty(), "{layout:?} {:?}", world.tree());
        assert_eq!(world.running(), None);
        assert!(world.node().status().expect("status").installed.is_none());
        assert_eq!(world.apply(&second()).outcome, Outcome::Confirmed, "{layout:?}: and on again");
        assert_eq!(world.tree(), second().tree());
    }
}

#[test]
fn rollback_that_fails_its_probe_leaves_the_newer_release_running() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        world.apply(&second());
        world.fail_probes();
        let report = world.rollback();
        assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{layout:?} {report:?}");
        assert_eq!(world.tree(), second().tree(), "{layout:?}");
        assert_eq!(world.running().as_deref(), Some("2.0.0"));
        world.set_verdict(Verdict::Pass);
        assert_eq!(world.rollback().outcome, Outcome::Confirmed);
        assert_eq!(world.tree(), first().tree());
    }
}

// E16
#[test]
fn altered_restore_point_is_refused_naming_the_file_and_nothing_is_restored() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        world.apply(&second());
        let point = world.path().join(".cutover/restore/000002/manifest.json");
        let mut bytes = std::fs::read(&point).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&point, bytes).expect("altered");
        let observed = world.node().observe(None).expect("observed");
        let damage = observed.points_for(&RollbackTarget::Newest).expect_err("refused").to_string();
        assert!(damage.contains("restore/000002/manifest.json"), "{damage}");
        assert_eq!(world.tree(), second().tree());
        assert!(observed.points_for(&RollbackTarget::Point("000001".parse().expect("an id"))).is_err());
        let listed = world.node().restore_points().expect("listed");
        assert!(listed[0].point.is_err() && listed[1].point.is_ok());
    }
}

// E16, point-2
#[test]
fn altered_missing_extra_or_swapped_backup_file_aborts_the_restore_before_anything_changes() {
    type Meddle = fn(&std::path::Path);
    let meddles: [(&str, Meddle); 4] = [
        ("bin/app", |files| std::fs::write(files.join("bin/app"), "altered").expect("written")),
        ("etc/app.conf", |files| {
            // Not changed by the update, so not kept: one too many.
            std::fs::create_dir_all(files.join("etc")).expect("made");
            std::fs::write(files.join("etc/app.conf"), "extra").expect("written");
        }),
        ("share/only-in-one", |files| {
            std::fs::remove_file(files.join("share/only-in-one")).expect("removed")
        }),
        ("share/deep/er/data", |files| {
            std::fs::copy(files.join("bin/app"), files.join("share/deep/er/data"))
                .map(drop)
                .expect("swapped");
        }),
    ];
    for (path, meddle) in meddles {
        let world = World::new(Layout::InPlace);
        world.apply(&first());
        // The update fails its probe, so that the undo needs the backups, which are meddled with meanwhile.
        let files = world.path().join(".cutover/restore/000002/files");
        world.fail_probes();
        world.service.on_activate("2.0.0", Box::new(move || meddle(&files)));
        let report = world.apply(&second());
        assert!(matches!(report.outcome, Outcome::Stuck { .. }), "{path}: {report:?}");
        assert!(report.message.contains(path), "{path}: {}", report.message);
        assert_eq!(world.tree(), second().tree(), "{path}: nothing half restored");
    }
}

// E16
#[test]
fn altered_backup_stops_an_operators_rollback_in_place_and_is_named() {
    let same_size = b"?!/bin/sh\necho one\n".repeat(50);
    for altered in [&b"altered"[..], b"", &same_size] {
        let world = World::new(Layout::InPlace);
        world.apply(&first());
        world.apply(&second());
        std::fs::write(world.path().join(".cutover/restore/000002/files/bin/app"), altered).expect("written");
        let report = world.try_rollback_on(&world.node(), &RollbackTarget::Newest).expect("ran");
        assert!(
            matches!(&report.outcome, Outcome::Undone { reason } if reason.contains("`bin/app`")),
            "{report:?}"
        );
        assert_eq!(world.tree(), second().tree());
        assert_eq!(world.running().as_deref(), Some("2.0.0"));
    }
}

// E14
#[test]
fn failed_probe_and_failed_restore_leave_state_failed_and_both_in_the_history() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    world.fail_probes();
    let point = world.path().join(".cutover/restore/000002/manifest.json");
    let tree = world.path().join("releases").join(first().bundle().release().name().as_str());
    let store = world.path().join(".cutover/store");
    world.service.on_activate(
        "2.0.0",
        Box::new(move || {
            assert!(point.exists());
            std::fs::remove_file(tree.join("share/only-in-one")).expect("damaged");
            std::fs::remove_dir_all(&store).expect("and no way to repair it");
        }),
    );
    let report = world.apply(&second());
    assert!(matches!(report.outcome, Outcome::Stuck { .. }));
    assert!(report.probe_failed && report.message.contains("share/only-in-one"), "{}", report.message);
    let (lifecycle, _) = world.node().state(1).expect("state");
    assert_eq!(lifecycle.state(), cutover_core::lifecycle::State::Failed);
    let history = world.node().history(2).expect("history");
    assert_eq!(history[0].outcome, "stuck");
    assert!(history[1].error.as_deref().is_some_and(|error| error.contains("probe")), "{history:?}");
    let failed = |event: &cutover_core::event::Event| {
        matches!(event, cutover_core::event::Event::UndoFailed { step: "switch", .. })
    };
    assert!(world.events.0.lock().unwrap().iter().any(failed));
    assert!(world.node().status().expect("status").in_flight.is_some());
}

// E18
#[test]
fn rollback_to_an_unknown_id_is_refused_and_changes_nothing() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let observed = world.node().observe(None).expect("observed");
    let target = RollbackTarget::Point("999999".parse().expect("an id"));
    let points = observed.points_for(&target).expect("no damage");
    let refusal = plan_rollback(&observed.observation, points, &target, &world.policy).expect_err("unknown");
    assert!(matches!(refusal, Refusal::UnknownPoint(_)));
    assert_eq!(world.tree(), first().tree());
}

// E19
#[test]
fn five_updates_make_five_restore_points_listed_newest_first_with_versions() {
    let world = World::new(Layout::Versioned);
    for (version, hour) in ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"].into_iter().zip(1..) {
        world.clock.0.store(1_900_000_000 + hour * 3600, std::sync::atomic::Ordering::SeqCst);
        world.apply(&Release::new(version).program("bin/app", version));
    }
    let listed = world.node().restore_points().expect("listed");
    let made = |listed: &PointListed| listed.point.as_ref().expect("good").point.created_at.unix();
    let hours: Vec<i64> = listed.iter().map(|listed| (made(listed) - 1_900_000_000) / 3600).collect();
    assert_eq!(hours, [5, 4, 3, 2, 1]);
    let rows: Vec<(Option<String>, Option<String>)> = listed
        .iter()
        .map(|listed| {
            let point = &listed.point.as_ref().expect("good").point;
            let version = |release: &Option<cutover_core::model::ReleaseRef>| {
                release.as_ref().map(|release| release.version.to_string())
            };
            (version(&point.from), version(&point.to))
        })
        .collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0], (text("1.3.0"), text("1.4.0")));
    assert_eq!(rows[4], (None, text("1.0.0")));
}

// inst-7
#[test]
fn owner_mode_and_attributes_of_replaced_files_are_kept_in_place_and_come_back() {
    let world = World::new(Layout::InPlace);
    world.apply(&first());
    let path = world.path().join("bin/app");
    let test = "owner_mode_and_attributes_of_replaced_files_are_kept_in_place_and_come_back";
    if let Err(error) = std::os::unix::fs::chown(&path, Some(1234), Some(4321)) {
        return not_run(&format!("{test}: no file can be given to somebody else ({error}); it needs root"));
    }
    let given = rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    if let Err(error) = given {
        not_run(&format!("{test}, its attributes: the file system keeps none ({error})"));
    }
    let attribute = given.is_ok();
    let check = |when: &str| {
        let metadata = std::fs::metadata(&path).expect("metadata");
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{when}");
        let mut value = [0; 16];
        if attribute {
            let size = rustix::fs::getxattr(&path, "user.note", &mut value).expect("kept");
            assert_eq!(&value[..size], b"kept", "{when}");
        }
    };
    world.apply(&second());
    check("after the update");
    world.rollback();
    check("after the rollback");
    assert_eq!(world.tree(), first().tree());
}

// inst-6
#[test]
fn clock_that_goes_backwards_changes_no_order() {
    let world = World::new(Layout::Versioned);
    for (step, release) in [first(), second(), third()].into_iter().enumerate() {
        world.clock.0.store(1_900_000_000 - step as i64 * 100_000, std::sync::atomic::Ordering::SeqCst);
        world.apply(&release);
    }
    world.rollback();
    assert_eq!(world.tree(), second().tree());
    let numbers: Vec<_> = world.node().history(9).expect("history").iter().map(|row| row.number).collect();
    assert_eq!(numbers, [Some(4), Some(3), Some(2), Some(1)]);
}

// Exit code 17
#[test]
fn point_whose_ended_journal_is_damaged_is_reported_and_no_older_one_is_taken_instead() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        for release in [first(), second(), third()] {
            world.apply(&release);
        }
        let journal = world.path().join(".cutover/journal/000003.jsonl");
        let mut bytes = std::fs::read(&journal).expect("read");
        let evidence = bytes.windows(10).position(|part| part == b"\"evidence\"").expect("a seal");
        bytes[evidence + 20] ^= 1;
        std::fs::write(&journal, bytes).expect("altered");
        let target = RollbackTarget::Newest;
        for observed in [world.node().observe(None), world.node().observe_for_rollback(&target)] {
            let observed = observed.expect("observed");
            let damage = observed.points_for(&target).expect_err("refused");
            assert!(damage.to_string().contains("000003"), "{layout:?} {damage}");
        }
    }
}

#[test]
fn used_points_stay_until_the_next_run_when_one_cannot_be_read_at_the_moment() {
    let world = World::new(Layout::Versioned);
    for release in [first(), second(), third()] {
        world.apply(&release);
    }
    let point = |number: u32| world.path().join(format!(".cutover/restore/{number:06}"));
    let (manifest, aside) = (point(2).join("manifest.json"), point(2).join("aside"));
    let (from, to) = (manifest.clone(), aside.clone());
    world.service.on_activate(
        "1.0.0",
        Box::new(move || {
            std::fs::rename(&from, &to).expect("moved");
            std::fs::create_dir(&from).expect("made");
        }),
    );
    let target = RollbackTarget::Point("000002".parse().expect("an id"));
    let report = world.try_rollback_on(&world.node(), &target).expect("ran");
    assert_eq!(report.outcome, Outcome::Confirmed, "{report:?}");
    assert!(report.warnings.iter().any(|warning| warning.contains("used restore points")), "{report:?}");
    std::fs::remove_dir(&manifest).expect("removed");
    std::fs::rename(&aside, &manifest).expect("moved back");
    assert_eq!(world.recover().expect("taken up").outcome, Outcome::Confirmed);
    assert_eq!([1, 2, 3, 4].map(|number| point(number).exists()), [true, false, false, false]);
}

/// It has files where [`with_links`] has a link, and shared paths that begin elsewhere.
fn with_directories(version: &'static str) -> Release {
    Release::new(version)
        .program("bin/app", version)
        .data("lib/x", "x")
        .data("lib/sub/y", "y")
        .data("lib64/sub/z", "z")
        .shared("state/inner")
        .data("was/shared", "no longer")
}

fn with_links(version: &'static str) -> Release {
    Release::new(version)
        .program("bin/app", version)
        .link("lib", "lib64")
        .data("lib64/sub/y", "moved")
        .shared("state")
        .shared("was")
}

#[test]
fn directory_becomes_a_link_and_a_link_a_directory_there_and_back() {
    for layout in LAYOUTS {
        for [old, new] in [
            [with_directories("1.0.0"), with_links("2.0.0")],
            [with_links("1.0.0"), with_directories("2.0.0")],
        ] {
            let world = World::new(layout);
            let is_tree_of = |release: &Release| {
                let mut tree = world.tree();
                tree.retain(|_, entry| !matches!(entry, Entry::Link(target) if target.contains("shared/")));
                assert_eq!(tree, release.tree(), "{layout:?}");
                assert!(world.node().verify().expect("verified").is_clean(), "{layout:?}");
            };
            assert_eq!(world.apply(&old).outcome, Outcome::Confirmed, "{layout:?}");
            world.fail_probes();
            let report = world.apply(&new);
            assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{layout:?} {report:?}");
            is_tree_of(&old);
            world.set_verdict(Verdict::Pass);
            for _ in 0..2 {
                let report = world.apply(&new);
                assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?} {report:?}");
                is_tree_of(&new);
                let report = world.rollback();
                assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?} {report:?}");
                is_tree_of(&old);
            }
        }
    }
}

#[test]
fn point_older_than_the_target_that_cannot_be_read_leaves_no_rollback_open() {
    let world = World::new(Layout::Versioned);
    for release in [first(), second(), third()] {
        world.apply(&release);
    }
    let older = world.path().join(".cutover/restore/000002/manifest.json");
    world.service.on_activate(
        "2.0.0",
        Box::new(move || {
            std::fs::remove_file(&older).expect("removed");
            std::fs::create_dir(&older).expect("made");
        }),
    );
    let report = world.rollback();
    assert_eq!(report.outcome, Outcome::Confirmed, "{report:?}");
    assert!(report.warnings.is_empty(), "{report:?}");
    assert!(world.node().status().expect("status").in_flight.is_none());
}

#[test]
fn what_the_new_release_wrote_where_a_file_was_is_moved_aside_when_that_file_comes_back() {
    let world = World::new(Layout::InPlace);
    let old = first().data("cache", "a file").data("log/kept", "in a directory");
    world.apply(&old);
    let at = |path: &str| world.path().join(path);
    let (below, written, log) = (at("cache/below"), at("cache/below/written"), at("log"));
    world.service.on_activate(
        "2.0.0",
        Box::new(move || {
            std::fs::create_dir(&below).expect("made");
            std::fs::write(&written, "at run time").expect("written");
            std::fs::write(&log, "at run time").expect("written");
        }),
    );
    world.fail_probes();
    let report = world.apply(&second().data("cache/index", "in a directory"));
    assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{report:?}");
    let mut tree = world.tree();
    for aside in ["cache.moved-aside-1/below/written", "log.moved-aside-1"] {
        assert_eq!(tree.remove(aside), Some(Entry::File(0o644, b"at run time".to_vec())), "{tree:?}");
    }
    assert_eq!(tree, old.tree());
    for aside in ["`cache.moved-aside-1`", "`log.moved-aside-1`"] {
        assert!(report.warnings.iter().any(|warning| warning.contains(aside)), "{report:?}");
    }
}
