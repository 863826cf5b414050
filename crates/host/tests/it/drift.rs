//! Drift: what changed since it was installed is found, named and repaired.

use std::os::unix::fs::PermissionsExt as _;

use cutover_core::plan::{Layout, LocalChanges, Refusal, plan_update};
use cutover_host::node::{Edited, Node};

use crate::world::{LAYOUTS, World, first, second};

fn repair(node: &Node, edited: Edited) -> cutover_host::node::RepairReport {
    let lock = node.lock().expect("the lock");
    node.repair(&lock, edited).expect("repaired")
}

#[test]
fn every_kind_of_drift_is_found_and_repaired_from_the_store() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        std::fs::write(world.installed("bin/app"), "damaged").expect("written");
        std::fs::remove_file(world.installed("share/only-in-one")).expect("removed");
        std::fs::set_permissions(world.installed("empty"), std::fs::Permissions::from_mode(0o600))
            .expect("changed");
        std::fs::remove_file(world.installed("bin/alias")).expect("removed");
        std::os::unix::fs::symlink("elsewhere", world.installed("bin/alias")).expect("linked");
        std::fs::write(world.installed("etc/app.conf"), "port = 81\n").expect("edited");
        std::fs::write(world.installed("share/extra"), "not ours").expect("written");

        let node = world.node();
        let drift = node.verify().expect("verified");
        let names = |paths: &[cutover_core::model::SafePath]| -> Vec<String> {
            paths.iter().map(ToString::to_string).collect()
        };
        assert!(!drift.is_clean());
        assert_eq!(names(&drift.damaged), ["bin/alias", "bin/app"], "{layout:?}");
        assert_eq!(names(&drift.missing), ["share/only-in-one"]);
        assert_eq!(names(&drift.mode_changed), ["empty"]);
        assert_eq!(names(&drift.edited), ["etc/app.conf"]);
        let extra: &[&str] = if layout == Layout::InPlace { &[] } else { &["share/extra"] };
        assert_eq!(drift.extra, extra);

        let report = repair(&node, Edited::Keep);
        assert!(report.unrepairable.is_empty() && report.repaired.len() == 4, "{report:?}");
        assert!(node.verify().expect("verified").is_clean());
        assert_eq!(std::fs::read(world.installed("etc/app.conf")).expect("kept"), b"port = 81\n");
        repair(&node, Edited::Replace);
        let mut tree = world.tree();
        assert!(tree.remove("share/extra").is_some());
        assert_eq!(tree, first().tree(), "{layout:?}");
        assert_eq!(node.history(1).expect("history")[0].action, "repair");
    }
}

#[test]
fn what_cannot_be_repaired_is_named_and_the_rest_is_repaired() {
    let world = World::new(Layout::Versioned);
    world.apply(&first());
    let damaged = ["bin/app", "share/only-in-one"];
    for path in damaged {
        std::fs::write(world.installed(path), "damaged").expect("written");
    }
    let digest = cutover_core::model::Digest::of(b"gone in 2.0.0");
    world.damage_object(digest);
    let report = repair(&world.node(), Edited::Keep);
    assert_eq!(report.repaired.len(), 1);
    assert_eq!(report.unrepairable[0].0.as_str(), "share/only-in-one");
    assert!(report.unrepairable[0].1.contains(&digest.to_string()), "{report:?}");
}

#[test]
fn edited_config_refuses_the_update_and_comes_back_after_replacing_and_rolling_back() {
    for layout in LAYOUTS {
        let mut world = World::new(layout);
        world.apply(&first());
        std::fs::write(world.installed("etc/app.conf"), "port = 81\n").expect("edited");
        let bundle = second().bundle();
        let observed = world.node().observe(Some(bundle.manifest())).expect("observed");
        let refusal = plan_update(&observed.observation, &bundle.release(), bundle.manifest(), &world.policy)
            .expect_err("refused");
        assert!(matches!(&refusal, Refusal::LocalChanges(paths) if paths[0].as_str() == "etc/app.conf"));
        world.policy.local_changes = LocalChanges::Replace;
        world.apply(&second());
        assert_eq!(world.tree(), second().tree());
        world.rollback();
        let conf = std::fs::read(world.installed("etc/app.conf")).expect("back");
        assert_eq!(conf, b"port = 81\n", "{layout:?}");
    }
}
