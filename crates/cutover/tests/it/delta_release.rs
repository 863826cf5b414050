//! Whole releases by delta bundles: making them, installing them, and every way in which a patch may be of no use.

use std::{fs, path::PathBuf};

use crate::world::{LAYOUTS, Release, World, files_of, seen, stamped, text};

/// Text that does not compress well; `change` is somewhere in the middle.
fn data(change: &str) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}\n", state)
    };
    let mut text: String = (0..6000).map(|_| next()).collect();
    text.insert_str(50_000, change);
    text
}

/// 1.0.0 is installed; 1.1.0 is built, in full and as a delta.
struct Scene {
    world: World,
    full: PathBuf,
    delta: PathBuf,
}

fn scene(layout: &str) -> Scene {
    let world = World::new();
    let (old, new) = (data("old"), data("new and longer"));
    let files = [("share/data", old.as_str()), ("lib/second", "the same\n")];
    let first = world.build(&Release { files: &files, ..Release::new("1.0.0") });
    world.apply(&first, &["--layout", layout]).must(0);
    let files =
        [("share/data", new.as_str()), ("share/fresh", "only in 1.1.0\n"), ("lib/second", "the same\n")];
    let (tree, spec) = world.tree(&Release { files: &files, ..Release::new("1.1.0") });
    let full = world.bundle_path("1.1.0");
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let made = world
        .run(&[
            "bundle",
            "create",
            text(&tree),
            "--spec",
            text(&spec),
            "-o",
            text(&full),
            "--json",
            "--progress",
            "none",
            "--sign-key",
            text(&key),
            "--sign-cert",
            text(&certificate),
            "--delta-from",
            text(&first),
        ])
        .must(0)
        .json();
    let delta = PathBuf::from(made["delta"]["bundle"].as_str().expect("a path"));
    assert_eq!(delta.file_name().expect("a name"), "tool-1.1.0.from-1.0.0.cutover-delta");
    assert_eq!(made["delta"]["patches"], 1, "{made}");
    Scene { world, full, delta }
}

impl Scene {
    /// Damages the patch, which lies at the delta bundle's end.
    fn damage_patch(&self) {
        let mut bytes = fs::read(&self.delta).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&self.delta, bytes).expect("written");
    }

    /// Damages the installed base without touching its length.
    fn damage_base(&self) {
        let path = self.world.visible().join("share/data");
        let mut bytes = fs::read(&path).expect("read");
        bytes[10] ^= 1;
        fs::write(path, bytes).expect("written");
    }

    fn is_at(&self, version: &str) {
        assert_eq!(seen(&self.world), files_of(&self.world, version));
        assert_eq!(self.world.version(), version);
        self.world.on_root(&["verify"]).must(0);
    }
}

#[test]
fn release_by_delta_is_the_release_of_the_full_bundle_in_every_layout() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let full_bytes = fs::metadata(&scene.full).unwrap().len();
        let delta_bytes = fs::metadata(&scene.delta).unwrap().len();
        assert!(delta_bytes < full_bytes / 2, "{delta_bytes} against {full_bytes}");
        let report = scene.world.apply(&scene.delta, &["--json"]).must(0).json();
        assert_eq!(report["delta"]["patched"], 1, "{report}");
        assert_eq!(report["delta"]["patches_failed"], 0);
        assert!(report["delta"]["saved_bytes"].as_u64().unwrap() > full_bytes / 3, "{report}");
        scene.is_at("1.1.0");
        scene.world.on_root(&["rollback"]).must(0);
        scene.is_at("1.0.0");
        // The result lies in the store like any object: going forward again repairs from there.
        scene.world.apply(&scene.full, &[]).must(0);
        scene.is_at("1.1.0");
    }
}

#[test]
fn dry_run_and_verification_by_plan_change_nothing() {
    let scene = scene("versioned");
    scene.world.apply(&scene.delta, &["--dry-run"]).must(0);
    scene.is_at("1.0.0");
    scene.damage_patch();
    scene.world.apply(&scene.delta, &["--dry-run"]).must(16);
    scene.is_at("1.0.0");
}

// D12, D13
#[test]
fn patch_that_is_of_no_use_is_replaced_by_the_full_file() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        scene.damage_patch();
        let full = text(&scene.full).to_owned();
        let report = scene.world.apply(&scene.delta, &["--json", "--full", &full]).must(0).json();
        assert_eq!(report["delta"]["patches_failed"], 1, "{report}");
        assert_eq!(report["delta"]["from_full"], 1);
        scene.is_at("1.1.0");
    }
}

// D11
#[test]
fn damaged_base_is_noticed_and_repaired_from_the_full_file() {
    let scene = scene("versioned");
    scene.damage_base();
    let full = text(&scene.full).to_owned();
    let report = scene.world.apply(&scene.delta, &["--json", "--full", &full]).must(0).json();
    assert_eq!(report["delta"]["patches_failed"], 1, "{report}");
    scene.is_at("1.1.0");
}

// D14
#[test]
fn without_a_full_file_the_update_fails_and_the_install_is_unchanged() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        scene.damage_patch();
        let failed = scene.world.apply(&scene.delta, &[]).must(16);
        assert!(failed.stderr.contains("patch"), "{}", failed.stderr);
        scene.is_at("1.0.0");
        // The full bundle is damaged too.
        let mut bytes = fs::read(&scene.full).unwrap();
        let at = bytes.len() - 2000;
        bytes[at] ^= 1;
        fs::write(&scene.full, bytes).unwrap();
        let full = text(&scene.full).to_owned();
        scene.world.apply(&scene.delta, &["--full", &full]).must(16);
        scene.is_at("1.0.0");
    }
}

#[test]
fn delta_from_another_release_is_refused_unless_the_full_bundle_is_given() {
    let scene = scene("versioned");
    let other = scene.world.build_version("1.0.5");
    scene.world.apply(&other, &[]).must(0);
    let refused = scene.world.apply(&scene.delta, &[]).must(13);
    assert!(refused.stderr.contains("leads from tool 1.0.0"), "{}", refused.stderr);
    assert_eq!(scene.world.version(), "1.0.5");
    let full = text(&scene.full).to_owned();
    scene.world.apply(&scene.delta, &["--full", &full]).must(0);
    scene.is_at("1.1.0");
}

#[test]
fn delta_bundles_are_trusted_only_with_both_signatures() {
    let scene = scene("versioned");
    let good = fs::read(&scene.delta).unwrap();
    let payload = 2000.min(good.len() / 10);
    // Somewhere in both manifests, both signatures and the header.
    for at in (0..good.len() - payload).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&scene.delta, &bytes).unwrap();
        let refused = scene.world.apply(&scene.delta, &[]);
        assert_ne!(refused.code, 0, "byte {at}");
        assert_eq!(scene.world.version(), "1.0.0", "byte {at}");
    }
    fs::write(&scene.delta, &good[..good.len() - 1]).unwrap();
    scene.world.apply(&scene.delta, &[]).must(16);
    scene.is_at("1.0.0");
    fs::write(&scene.delta, &good).unwrap();
    scene.world.apply(&scene.delta, &[]).must(0);
}

#[test]
fn full_bundle_of_another_release_is_refused() {
    let scene = scene("versioned");
    let other = scene.world.build_version("1.0.5");
    let other = text(&other).to_owned();
    scene.world.apply(&scene.delta, &["--full", &other]).must(2);
    scene.world.apply(&scene.full, &["--full", &other]).must(2);
    scene.is_at("1.0.0");
}

#[test]
fn run_killed_at_any_step_leaves_a_whole_release() {
    for step in ["stage", "restore-point", "switch", "confirm"] {
        let scene = scene("versioned");
        let delta = text(&scene.delta).to_owned();
        let mut child = scene.world.stopped_at(step, &["apply", &delta]);
        child.kill().expect("killed");
        child.wait().expect("ended");
        let _ = scene.world.on_root(&["recover"]);
        let version = scene.world.version();
        let version = version.as_str().expect("a version").to_owned();
        assert_eq!(version, if matches!(step, "switch" | "confirm") { "1.1.0" } else { "1.0.0" }, "{step}");
        scene.is_at(&version);
        if version == "1.0.0" {
            scene.world.apply(&scene.delta, &[]).must(0);
            scene.is_at("1.1.0");
        }
    }
}
