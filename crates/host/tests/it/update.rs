//! Updates that go well, and those that are refused or fail before the switch.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::atomic::Ordering,
};

use cutover_core::{
    event::Event,
    execute::Outcome,
    plan::{Layout, OnProbeFailure, Refusal, plan_update},
};
use cutover_host::{
    node::{NodeError, Ports, StageError, StepResult, Way},
    payload::Payload,
};

use crate::world::{LAYOUTS, Release, Verdict, World, first, second};

// E4
#[test]
fn installed_tree_has_the_hashes_and_modes_of_the_manifest_in_every_layout() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        for release in [first(), second()] {
            let report = world.apply(&release);
            assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?}");
            assert_eq!(world.tree(), release.tree(), "{layout:?}");
            assert!(report.restore_point.is_some() && !report.message.is_empty());
        }
        assert_eq!(world.running().as_deref(), Some("2.0.0"));
        assert!(world.node().verify().expect("verified").is_clean());
        assert!(world.node().status().expect("status").in_flight.is_none());
    }
}

// E6
#[test]
fn restore_point_that_cannot_be_written_aborts_before_any_change() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let (node, bundle) = (world.node(), second().bundle());
        let plan = world.plan(&node, &bundle);
        // The place where it goes is gone by then.
        let points = world.path().join(".cutover/restore");
        let lose = |step: &str| {
            if step == "restore-point" {
                std::fs::rename(&points, world.path().join(".cutover/aside")).expect("renamed");
            }
        };
        let ports = Ports { before_step: Some(&lose), ..world.ports() };
        let lock = node.lock().expect("locked");
        let report = node.execute(&lock, &plan, Some(&bundle), &ports).expect("ran");
        assert!(
            matches!(&report.outcome, Outcome::Undone { reason } if reason.contains(".cutover/restore/000002")),
            "{layout:?} {report:?}"
        );
        let last = report.steps.iter().rfind(|step| step.way == Way::Forward).expect("it did something");
        assert_eq!((last.step, &last.result), ("restore-point", &StepResult::Failed), "{layout:?}");
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
        let staged = std::fs::read_dir(world.path().join(".cutover/staging"));
        assert_eq!(staged.map_or(0, Iterator::count), 0, "{layout:?}");
    }
}

// E6
#[test]
fn place_of_restore_points_that_is_none_aborts_before_the_first_step() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let (node, bundle) = (world.node(), second().bundle());
        let plan = world.plan(&node, &bundle);
        let points = world.path().join(".cutover/restore");
        std::fs::rename(&points, world.path().join(".cutover/aside")).expect("renamed");
        std::fs::write(&points, "a file where the directory belongs").expect("written");
        let lock = node.lock().expect("locked");
        let error = node.execute(&lock, &plan, Some(&bundle), &world.ports()).expect_err("refused");
        assert!(error.to_string().contains(".cutover/restore"), "{layout:?} {error}");
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
    }
}

// E4
#[test]
fn updated_files_are_reported_in_manifest_order() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let updated = world.apply(&second()).updated;
        let updated: Vec<&str> = updated.iter().map(cutover_core::model::SafePath::as_str).collect();
        let wanted = ["bin/app", "lib/libnew.so", "share/deep", "empty/not", "var/twice-a", "var/twice-b"];
        assert_eq!(updated, wanted, "{layout:?}");
    }
}

// inst-7
#[test]
fn modes_are_those_of_the_manifest_whatever_the_umask() {
    // The umask is the process's, which other tests may share, so this happens in one of its own.
    const ALONE: &str = "CUTOVER_TEST_UMASK";
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "update::modes_are_those_of_the_manifest_whatever_the_umask"])
            .env(ALONE, "")
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&alone.stdout);
        return assert!(alone.status.success() && said.contains("1 passed"), "{said}");
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let world = World::new(Layout::Versioned);
    assert_eq!(world.apply(&first()).outcome, Outcome::Confirmed);
    assert_eq!(world.tree(), first().tree());
    let directory = std::fs::metadata(world.installed("bin")).expect("metadata");
    assert_eq!(directory.permissions().mode() & 0o777, 0o755);
    let private = std::fs::metadata(world.path().join(".cutover")).expect("metadata");
    assert_eq!(private.permissions().mode() & 0o777, 0o700);
}

#[test]
fn unchanged_code_shares_an_inode_between_release_trees_and_never_with_the_store() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let before = std::fs::metadata(world.installed("lib/libsame.so")).expect("metadata").ino();
    let data = std::fs::metadata(world.installed("etc/app.conf")).expect("metadata").ino();
    world.apply(&second());
    let after = std::fs::metadata(world.installed("lib/libsame.so")).expect("metadata");
    assert_eq!(after.ino(), before);
    assert_ne!(std::fs::metadata(world.installed("etc/app.conf")).expect("metadata").ino(), data);
    let store = crate::world::tree_at(&world.path().join(".cutover/store"));
    assert!(!store.is_empty());
    for object in store.keys() {
        let object = std::fs::metadata(world.path().join(".cutover/store").join(object)).expect("metadata");
        assert_eq!(object.nlink(), 1);
    }
}

#[test]
fn unchanged_symbolic_link_takes_no_inode_and_a_changed_one_leads_where_the_release_says() {
    let world = World::new(Layout::Versioned);
    let release = |version, target| {
        Release::new(version).program("bin/app", "app").link("same", "bin/app").link("other", target)
    };
    world.apply(&release("1.0.0", "bin/app"));
    let inode = |path| std::fs::symlink_metadata(world.installed(path)).expect("metadata").ino();
    let before = (inode("same"), inode("other"));
    world.apply(&release("1.1.0", "same"));
    assert_eq!(inode("same"), before.0);
    assert_ne!(inode("other"), before.1);
    assert_eq!(std::fs::read_link(world.installed("other")).expect("a link"), std::path::Path::new("same"));
}

// E9
#[test]
fn passing_probe_confirms_and_is_asked_exactly_once() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    assert_eq!(world.prober.calls.load(Ordering::SeqCst), 1);
    assert_eq!(*world.service.calls.lock().unwrap(), ["quiesce", "activate 1.0.0"]);
}

// E10
#[test]
fn failing_probe_restores_everything_exactly_once() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let before = everything(&world);
        world.fail_probes();
        let report = world.apply(&second());
        assert!(matches!(&report.outcome, Outcome::ProbeFailed { reason } if !reason.is_empty()));
        assert!(report.probe_failed && report.restore_point.is_none());
        assert!(report.message.contains("probe"), "{}", report.message);
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        assert_eq!(everything(&world), before, "{layout:?}: nothing is left behind");
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
        let undone = |event: &&Event| matches!(event, Event::UndoDone { step: "switch" });
        assert_eq!(world.events.0.lock().unwrap().iter().filter(undone).count(), 1);
        let history = world.node().history(9).expect("history");
        assert_eq!(history[0].outcome, "probe-failed");
        assert!(history[0].error.as_deref().is_some_and(|error| error.contains("said so")));

        world.set_verdict(Verdict::Pass);
        assert_eq!(world.apply(&second()).outcome, Outcome::Confirmed, "{layout:?}: a retry works");
        assert_eq!(world.tree(), second().tree());
    }
}

/// What lies on disk apart from what records that something was tried.
fn everything(world: &World) -> Vec<String> {
    let all = crate::world::tree_at(world.path()).into_keys();
    let own = crate::world::tree_at(&world.path().join(".cutover")).into_keys();
    let kept = |path: &String| {
        !["journal/", "catalog.db", "state.jsonl"].iter().any(|prefix| path.starts_with(prefix))
    };
    all.chain(own.filter(kept).map(|path| format!(".cutover/{path}"))).collect()
}

// E11
#[test]
fn failing_probe_with_rollback_off_keeps_the_new_release_unconfirmed() {
    let mut world = World::new(Layout::Versioned);
    world.policy.on_probe_failure = OnProbeFailure::Keep;
    world.apply(&first());
    world.fail_probes();
    let report = world.apply(&second());
    assert_eq!(report.outcome, Outcome::KeptUnconfirmed);
    assert!(report.probe_failed && report.message.contains("post-update probe failed"), "{}", report.message);
    assert_eq!(world.tree(), second().tree());
    assert!(!world.events.0.lock().unwrap().iter().any(|event| matches!(event, Event::UndoStarted { .. })));
    world.set_verdict(Verdict::Pass);
    assert_eq!(world.rollback().outcome, Outcome::Confirmed, "its restore point leads back");
    assert_eq!(world.tree(), first().tree());
}

// E13
#[test]
fn panicking_prober_counts_as_a_failed_probe() {
    let world = World::new(Layout::Exchange);
    world.apply(&first());
    world.set_verdict(Verdict::Panic);
    let report = world.apply(&second());
    assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }));
    assert_eq!(world.tree(), first().tree());
}

#[test]
fn service_that_does_not_start_brings_the_old_release_back() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        world.service.refuses.lock().unwrap().push("2.0.0".parse().expect("a version"));
        let report = world.apply(&second());
        assert!(matches!(report.outcome, Outcome::Undone { .. }));
        assert_eq!(world.tree(), first().tree());
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
        assert_eq!(world.prober.calls.load(Ordering::SeqCst), 1, "2.0.0 was never probed");
    }
}

#[test]
fn failed_releases_log_is_kept_and_named() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let name = second().bundle().release().name();
    let logs = world.path().join(".cutover/logs");
    std::fs::create_dir_all(&logs).expect("made");
    let log = logs.join(format!("{name}.log"));
    std::fs::write(&log, "what went wrong").expect("written");
    world.fail_probes();
    let report = world.apply(&second());
    assert_eq!(report.failed_log.as_deref(), Some(log.canonicalize().expect("a path").as_path()));
    assert!(log.exists());
}

// E22
#[test]
fn same_release_again_is_refused_as_already_current_and_changes_nothing() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let node = world.node();
    let bundle = first().bundle();
    let observed = node.observe(Some(bundle.manifest())).expect("observed");
    let refusal = plan_update(&observed.observation, &bundle.release(), bundle.manifest(), &world.policy)
        .expect_err("no");
    assert!(matches!(refusal, Refusal::AlreadyCurrent(_)));
    assert_eq!(node.restore_points().expect("listed").len(), 1);
}

// E2
#[test]
fn looking_and_planning_write_nothing() {
    let world = World::new(Layout::Versioned);
    let node = world.node();
    world.plan(&node, &first().bundle());
    node.status().and_then(|_| node.verify()).expect("looked");
    assert!(node.history(9).expect("history").is_empty());
    assert_eq!(std::fs::read_dir(world.path()).expect("listed").count(), 0);
}

#[test]
fn plan_for_another_state_of_the_world_is_refused_before_anything_is_done() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let (node, bundle) = (world.node(), second().bundle());
    let plan = world.plan(&node, &bundle);
    std::fs::write(world.installed("share/deep/er/data"), "changed").expect("written");
    let before = everything(&world);
    let lock = node.lock().expect("the lock");
    let error =
        node.execute(&lock, &plan, Some(&bundle as &dyn Payload), &world.ports()).expect_err("refused");
    assert!(matches!(error, NodeError::Changed), "{error}");
    assert_eq!(everything(&world), before);
}

#[test]
fn plan_without_its_bundle_is_refused() {
    let world = World::new(Layout::Versioned);
    let (node, bundle) = (world.node(), first().bundle());
    let plan = world.plan(&node, &bundle);
    let lock = node.lock().expect("the lock");
    for payload in [None, Some(second().bundle())] {
        let payload = payload.as_ref().map(|bundle| bundle as &dyn Payload);
        assert!(matches!(node.execute(&lock, &plan, payload, &world.ports()), Err(NodeError::Payload)));
    }
}

// E7
#[test]
fn damaged_object_in_the_bundle_aborts_before_any_change() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let before = everything(&world);
        let bundle = second().damaged_bundle(|manifest, payload| {
            let object = manifest.objects.iter().max_by_key(|object| object.size).expect("some");
            payload[usize::try_from(object.offset + object.stored_size / 2).expect("small")] ^= 1;
        });
        let report = world.try_apply_on(&world.node(), &bundle).expect("it ran");
        assert!(
            matches!(&report.outcome, Outcome::Undone { reason } if reason.contains("lib/libnew.so")),
            "{report:?}"
        );
        assert_eq!(everything(&world), before, "{layout:?}");
        assert_eq!(world.running().as_deref(), Some("1.0.0"));
        assert!(!world.service.calls.lock().unwrap().contains(&"activate 2.0.0".to_owned()));
    }
}

#[test]
fn damaged_present_file_is_laid_down_anew_from_the_store() {
    // The plan was made from a digest that was right; the file is damaged between then and staging.
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let (node, bundle) = (world.node(), second().bundle());
    let lock = node.lock().expect("the lock");
    let path = world.installed("lib/libsame.so");
    // Young files are hashed anew for every plan, so the damage has to be older than the observation says.
    let plan = world.plan(&node, &bundle);
    std::fs::write(&path, vec![9; 3000]).expect("damaged");
    let error =
        node.execute(&lock, &plan, Some(&bundle as &dyn Payload), &world.ports()).expect_err("noticed");
    assert!(matches!(error, NodeError::Changed));
    drop(lock);
    let report = world.apply(&second());
    assert_eq!(report.outcome, Outcome::Confirmed);
    assert_eq!(world.tree(), second().tree());
}

// E21
#[test]
fn progress_rises_to_100_and_never_falls() {
    let world = World::new(Layout::Versioned);
    world.apply(&second());
    let events = world.events.0.lock().unwrap();
    let percents: Vec<u8> = events
        .iter()
        .filter_map(|event| match event {
            Event::Progress { percent } => Some(*percent),
            _ => None,
        })
        .collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    let before_its_end = percents.iter().filter(|percent| **percent < 100).count();
    assert!(before_its_end > 3, "it is told of while it rises: {percents:?}");
}

#[test]
fn observer_that_panics_or_hangs_changes_nothing() {
    struct Rude;
    impl cutover_core::event::Observer for Rude {
        fn observe(&self, event: &Event) {
            match event {
                Event::Started { .. } => {}
                _ => panic!("rude"),
            }
        }
    }
    let world = World::new(Layout::Versioned);
    let (node, bundle) = (world.node(), first().bundle());
    let plan = world.plan(&node, &bundle);
    let lock = node.lock().expect("the lock");
    let ports = Ports { observer: std::sync::Arc::new(Rude), ..world.ports() };
    let report = node.execute(&lock, &plan, Some(&bundle as &dyn Payload), &ports).expect("ran");
    assert_eq!(report.outcome, Outcome::Confirmed);
}

#[test]
fn shared_content_is_linked_made_once_and_outlives_releases() {
    for layout in [Layout::Versioned, Layout::Exchange] {
        let world = World::new(layout);
        let with_shared = |release: Release| {
            release.config("conf/local.toml", "initial").shared("conf/local.toml").shared("var/lib")
        };
        world.apply(&with_shared(first()));
        let conf = world.installed("conf/local.toml");
        assert_eq!(std::fs::read_to_string(&conf).expect("through the link"), "initial");
        assert!(world.installed("var/lib").is_dir());
        std::fs::write(&conf, "edited").expect("written");
        std::fs::write(world.installed("var/lib/db"), "rows").expect("written");
        world.apply(&with_shared(Release::new("2.0.0").program("bin/app", "two")));
        assert_eq!(std::fs::read_to_string(&conf).expect("through the link"), "edited", "{layout:?}");
        assert_eq!(std::fs::read_to_string(world.installed("var/lib/db")).expect("kept"), "rows");
        assert!(world.node().verify().expect("verified").is_clean());
        world.rollback();
        assert_eq!(std::fs::read_to_string(&conf).expect("through the link"), "edited");
    }
}

#[test]
fn foreign_files_survive_an_in_place_update_and_its_rollback() {
    let world = World::new(Layout::InPlace);
    std::fs::create_dir(world.path().join("bin")).expect("made");
    std::fs::write(world.path().join("bin/foreign"), "not ours").expect("written");
    std::fs::create_dir(world.path().join("share")).expect("made");
    for release in [first(), second()] {
        world.apply(&release);
        assert_eq!(std::fs::read(world.path().join("bin/foreign")).expect("kept"), b"not ours");
    }
    world.rollback();
    world.rollback();
    let left: Vec<String> = world.tree().into_keys().collect();
    assert_eq!(left, ["bin/foreign"]);
    assert!(world.path().join("share").is_dir(), "an empty directory that was there before stays");
    assert!(!world.path().join("lib").exists(), "directories that a release made go");
}

// E17
#[test]
fn directory_with_foreign_content_where_a_file_goes_stops_the_update_before_any_change() {
    let world = World::new(Layout::InPlace);
    world.apply(&first());
    std::fs::write(world.path().join("share/deep/foreign"), "not ours").expect("written");
    let before = world.tree();
    let report = world.apply(&second());
    assert!(
        matches!(&report.outcome, Outcome::Undone { reason } if reason.contains("share/deep")),
        "{report:?}"
    );
    assert_eq!(world.tree(), before);
}

#[test]
fn stage_error_names_the_file() {
    let error = StageError::Directory("a/b".parse().expect("a path"));
    assert!(error.to_string().contains("`a/b`"));
}

#[test]
fn baseline_that_cannot_be_read_fails_the_probe_and_confirms_nothing() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let catalog = world.path().join(".cutover/catalog.db");
    let connection = rusqlite::Connection::open(catalog).expect("opened");
    connection.execute_batch("DROP TABLE measurements").expect("dropped");
    drop(connection);
    let report = world.apply(&second());
    let reason = "look a measurement up";
    assert!(
        matches!(&report.outcome, Outcome::ProbeFailed { reason: why } if why.contains(reason)),
        "{report:?}"
    );
    assert_eq!(world.tree(), first().tree());
}
