//! Whole releases by delta bundles: making them, installing them, and every way in which a patch may be of no use.

use std::{fs, io::Read as _, path::PathBuf};

use cutover_bundle::{
    Bundle, Limits, assemble_delta,
    delta::{self, Algorithm, GenerateOptions, Pair},
    sign_manifest,
};
use cutover_core::model::{
    DELTA_FORMAT, DeltaFile, DeltaManifest, Digest, Manifest, ObjectEntry, ReleaseRef,
};

use crate::world::{LAYOUTS, Release, World, files_of, finish, now, seen, signer, stamped, text};

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

// D12
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

// D12: the patch is not there at all.
#[test]
fn payload_that_ends_early_is_made_up_for_by_the_full_bundle_file_by_file() {
    let scene = scene("versioned");
    let good = fs::read(&scene.delta).unwrap();
    let full = text(&scene.full).to_owned();
    let inspected = scene.world.run(&["bundle", "inspect", text(&scene.delta), "--json"]).must(0).json();
    let payload = inspected["payload_bytes"].as_u64().expect("a number") as usize;
    // First the patch is cut, which lies last; then also what is carried in full.
    let carried = inspected["delta"]["objects"].as_array().expect("objects").len();
    for (missing, from_full) in [(1, 1), (payload, 1 + carried)] {
        fs::write(&scene.delta, &good[..good.len() - missing]).unwrap();
        scene.world.apply(&scene.delta, &[]).must(16);
        scene.is_at("1.0.0");
        scene.world.apply(&scene.delta, &["--dry-run", "--full", &full]).must(0);
        let report = scene.world.apply(&scene.delta, &["--json", "--full", &full]).must(0).json();
        assert_eq!(report["delta"]["from_full"], from_full, "{report}");
        assert_eq!(report["delta"]["patches_failed"], 1, "{report}");
        scene.is_at("1.1.0");
        scene.world.on_root(&["rollback"]).must(0);
        scene.world.on_root(&["prune", "--keep", "0"]);
    }
}

#[test]
fn delta_bundles_are_verified_inspected_and_planned_like_full_ones() {
    let scene = scene("versioned");
    let (delta, full) = (text(&scene.delta).to_owned(), text(&scene.full).to_owned());
    let verified = scene.world.run(&["bundle", "verify", &delta, "--json"]).must(0).json();
    assert_eq!((&verified["verified"], &verified["patches"]), (&true.into(), &1.into()), "{verified}");
    assert_eq!(verified["from"]["version"], "1.0.0");
    assert_eq!(verified["version"], "1.1.0");
    let told = scene.world.run(&["bundle", "verify", &delta]).must(0).stdout;
    assert!(told.contains("a delta from tool 1.0.0 to tool 1.1.0"), "{told}");
    let inspected = scene.world.run(&["bundle", "inspect", &delta]).must(0).stdout;
    assert!(inspected.contains("NOT VERIFIED") && inspected.contains("share/data"), "{inspected}");
    let raw = scene.world.run(&["bundle", "inspect", &delta, "--manifest"]).must(0).stdout;
    assert!(raw.contains("\"patch_sha256\""), "{raw}");
    let bytes = fs::read(&scene.delta).unwrap();
    let length = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let begins = 24 + length(8) + length(12);
    assert_eq!(raw.as_bytes(), &bytes[begins..begins + length(16)], "the exact bytes of the delta manifest");

    // From 1.0.5 the delta leads nowhere, and with the full bundle it does.
    let other = scene.world.build_version("1.0.5");
    scene.world.apply(&other, &[]).must(0);
    scene.world.on_root(&["plan", &delta]).must(13);
    scene.world.on_root(&["plan", &delta, "--full", &full]).must(0);

    scene.damage_patch();
    scene.world.run(&["bundle", "verify", &delta]).must(16);
    scene.world.run(&["bundle", "inspect", &delta]).must(0);
}

#[test]
fn enforced_order_is_that_of_the_dependencies_and_not_of_the_paths() {
    let three = Three::new("versioned");
    // c comes first by its order; a waits for b.
    let orders = [(1, vec!["share/b"]), (1, vec![]), (0, vec![])];
    let delta = three.delta(Some(&orders), patch_between);
    // Patches whose base is damaged are told of in the order in which they are tried.
    PATHS.into_iter().for_each(|path| three.damage(path));
    let mut command =
        three.world.on_root_command(&["apply", text(&delta), "--json", "--full", text(&three.full)]);
    command.env("CUTOVER_LOG", "warn");
    let ran = finish(command).must(0);
    assert_eq!(ran.json()["delta"]["patches_failed"], 3, "{}", ran.stderr);
    let told: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.contains("the patch is of no use"))
        .filter_map(|line| PATHS.into_iter().find(|path| line.contains(path)))
        .collect();
    assert_eq!(told, ["share/c", "share/b", "share/a"], "{}", ran.stderr);
    assert_eq!(seen(&three.world), files_of(&three.world, "1.1.0"));
    // With whole bases the patches are taken.
    three.world.on_root(&["rollback"]).must(0);
    assert_eq!(three.world.version(), "1.0.0");
}

// D11
#[test]
fn one_damaged_base_keeps_no_other_patch_from_being_applied() {
    let three = Three::new("versioned");
    let delta = three.delta(None, patch_between);
    three.damage("share/b");
    three.world.apply(&delta, &[]).must(1);
    let report = three.world.apply(&delta, &["--json", "--full", text(&three.full)]).must(0).json();
    assert_eq!(report["delta"]["patches_failed"], 1, "{report}");
    assert_eq!((&report["delta"]["patched"], &report["delta"]["from_full"]), (&2.into(), &1.into()));
    assert_eq!(seen(&three.world), files_of(&three.world, "1.1.0"));
    three.world.on_root(&["verify"]).must(0);
}

// D13: what the patch says is what was signed, and what it makes is something else.
#[test]
fn patch_that_makes_something_else_is_dropped_and_the_full_file_taken() {
    for layout in LAYOUTS {
        let three = Three::new(layout);
        let delta = three.delta(None, |path, base, target| {
            let mut other = target.to_vec();
            other[20] ^= u8::from(path == "share/b");
            patch_between(path, base, &other)
        });
        three.world.run(&["bundle", "verify", text(&delta)]).must(0);
        let before = seen(&three.world);
        let refused = three.world.apply(&delta, &[]).must(1);
        assert!(refused.stderr.contains("the result has the digest"), "{}", refused.stderr);
        assert_eq!(seen(&three.world), before);
        let report = three.world.apply(&delta, &["--json", "--full", text(&three.full)]).must(0).json();
        assert_eq!(report["delta"]["patches_failed"], 1, "{report}");
        assert_eq!((&report["delta"]["patched"], &report["delta"]["from_full"]), (&2.into(), &1.into()));
        assert_eq!(seen(&three.world), files_of(&three.world, "1.1.0"));
        three.world.on_root(&["rollback"]).must(0);
        assert_eq!(seen(&three.world), before);
    }
}

#[test]
fn delta_between_releases_with_shared_files_needs_no_full_bundle() {
    for layout in LAYOUTS {
        let world = World::new();
        let spec = "shared = [\"etc/changed.conf\", \"etc/same.conf\"]\n";
        let build = |version: &str, change: &str, more: &[&str]| {
            // A change in the middle of 8 KiB.
            let conf = data(change)[46_000..54_000].to_owned();
            let (same, plain) = (data("same"), data(change));
            let files = [
                ("etc/changed.conf", conf.as_str()),
                ("etc/same.conf", same.as_str()),
                ("share/data", plain.as_str()),
            ];
            world.build_with(&Release { files: &files, spec, ..Release::new(version) }, more)
        };
        let delta = world.path("shared.cutover-delta");
        let first = build("1.0.0", "old", &[]);
        build("1.1.0", "new", &["--delta-from", text(&first), "--delta-output", text(&delta)]);
        world.apply(&first, &["--layout", layout]).must(0);
        let conf = world.visible().join("etc/changed.conf");
        fs::write(&conf, "what the operator wrote").expect("written");
        let report = world.apply(&delta, &["--json"]).must(0).json();
        // Only the file that is the release's alone is made by a patch.
        assert_eq!(report["delta"]["patched"], 1, "{layout}: {report}");
        assert_eq!(report["delta"]["patches_failed"], 0, "{layout}: {report}");
        assert_eq!(world.version(), "1.1.0");
        let conf = world.visible().join("etc/changed.conf");
        assert_eq!(fs::read_to_string(&conf).expect("read"), "what the operator wrote", "{layout}");
        world.on_root(&["verify"]).must(0);
    }
}

/// The files that [`Three`] patches.
const PATHS: [&str; 3] = ["share/a", "share/b", "share/c"];

/// 1.0.0 is installed and 1.1.0 is built; three files differ.
struct Three {
    world: World,
    first: PathBuf,
    full: PathBuf,
}

impl Three {
    fn new(layout: &str) -> Self {
        let world = World::new();
        let build = |version: &str, change: &str| {
            let contents = ["a", "b", "c"].map(|name| data(&format!("{change} of {name}")));
            let files: Vec<(&str, &str)> =
                PATHS.into_iter().zip(contents.iter().map(String::as_str)).collect();
            world.build(&Release { files: &files, ..Release::new(version) })
        };
        let (first, full) = (build("1.0.0", "old"), build("1.1.0", "new and longer"));
        world.apply(&first, &["--layout", layout]).must(0);
        Self { world, first, full }
    }

    /// Damages an installed file without touching its length.
    fn damage(&self, path: &str) {
        let path = self.world.visible().join(path);
        let mut bytes = fs::read(&path).expect("read");
        bytes[10] ^= 1;
        fs::write(path, bytes).expect("written");
    }

    /// Writes a delta bundle by hand: its patches are what `patch` makes of path, base and target, and come in an order
    /// (order, dependencies) if there is one. What else is new is carried in full.
    fn delta(
        &self,
        orders: Option<&[(u32, Vec<&str>)]>,
        patch: impl Fn(&str, &[u8], &[u8]) -> Vec<u8>,
    ) -> PathBuf {
        let open = |path| {
            let bundle =
                Bundle::open(fs::File::open(path).expect("open"), &Limits::default()).expect("a bundle");
            let manifest = bundle.inspect_untrusted().claimed_manifest.expect("a manifest");
            (bundle, manifest)
        };
        let ((old, old_manifest), (new, new_manifest)) = (open(&self.first), open(&self.full));
        let release = |bundle: &Bundle<fs::File>, manifest: &Manifest| ReleaseRef {
            package: manifest.package.clone(),
            version: manifest.version.clone(),
            manifest: Digest::of(bundle.untrusted_manifest_bytes()),
        };
        let file_of = |manifest: &Manifest, path: &str| {
            manifest.files.iter().find(|file| file.path.as_str() == path).expect("a file").sha256
        };
        let content = |bundle: &Bundle<fs::File>, manifest: &Manifest, path: &str| {
            let sha256 = file_of(manifest, path);
            let object = manifest.objects.iter().find(|object| object.sha256 == sha256).expect("an object");
            let mut content = Vec::new();
            bundle.decode_untrusted_object(object, &mut content).expect("decoded");
            content
        };
        let had: Vec<Digest> = old_manifest.files.iter().map(|file| file.sha256).collect();
        let patched = PATHS.map(|path| file_of(&new_manifest, path));
        let (mut objects, mut files, mut payload) = (Vec::new(), Vec::new(), Vec::new());
        for object in &new_manifest.objects {
            if !had.contains(&object.sha256) && !patched.contains(&object.sha256) {
                objects.push(ObjectEntry { offset: payload.len() as u64, ..object.clone() });
                new.untrusted_stored(object).read_to_end(&mut payload).expect("read");
            }
        }
        for (number, path) in PATHS.into_iter().enumerate() {
            let (base, target) = (content(&old, &old_manifest, path), content(&new, &new_manifest, path));
            let patch = patch(path, &base, &target);
            let (order, depends_on) = orders.map_or((0, Vec::new()), |orders| orders[number].clone());
            files.push(DeltaFile {
                path: path.parse().expect("a path"),
                base_path: None,
                base_sha256: Digest::of(&base),
                base_size: base.len() as u64,
                target_sha256: Digest::of(&target),
                target_size: target.len() as u64,
                patch_sha256: Digest::of(&patch),
                patch_size: patch.len() as u64,
                offset: payload.len() as u64,
                algorithm: Algorithm::Bsdiff,
                order,
                depends_on: depends_on.iter().map(|path| path.parse().expect("a path")).collect(),
                candidates: Vec::new(),
            });
            payload.extend(patch);
        }
        let manifest = DeltaManifest {
            format: DELTA_FORMAT,
            from: release(&old, &old_manifest),
            to: release(&new, &new_manifest),
            enforce_order: orders.is_some(),
            files,
            objects,
        };
        let bytes = manifest.to_bytes().expect("sound");
        let signature = sign_manifest(&bytes, &[&signer()], now()).expect("signed");
        let path = self.world.path("by-hand.cutover-delta");
        let mut out = fs::File::create(&path).expect("made");
        let release = (new.untrusted_manifest_bytes(), new.untrusted_signature_bytes());
        let delta = (&manifest, bytes.as_slice(), signature.as_slice());
        assemble_delta(release, delta, &mut payload.as_slice(), &mut out, &Limits::default())
            .expect("written");
        path
    }
}

fn patch_between(_path: &str, base: &[u8], target: &[u8]) -> Vec<u8> {
    let pair = Pair::new(base, target);
    delta::generate(Algorithm::Bsdiff, &pair, &GenerateOptions::default()).expect("a patch")
}

#[test]
fn delta_bundle_in_place_of_a_full_one_is_named_as_one() {
    let scene = scene("versioned");
    let delta = text(&scene.delta).to_owned();
    let out = text(&scene.world.path("out")).to_owned();
    let said = "is a delta bundle; give the full bundle of that release";
    let refused = scene.world.run(&["bundle", "extract", &delta, "-o", &out]).must(2).stderr;
    assert!(refused.contains(said), "{refused}");
    let (tree, spec) = scene.world.tree(&Release::new("1.2.0"));
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let mut all = vec!["bundle", "create", text(&tree), "--spec", text(&spec), "-o", &out];
    all.extend(["--sign-key", text(&key), "--sign-cert", text(&certificate), "--delta-from", &delta]);
    let refused = scene.world.run(&all).must(2).stderr;
    assert!(refused.contains(said), "{refused}");
    let refused = scene.world.apply(&scene.delta, &["--full", &delta]).must(2).stderr;
    assert!(refused.contains(said), "{refused}");
    scene.is_at("1.0.0");
}

#[test]
fn delta_bundle_is_signed_again_in_both_places() {
    let scene = scene("versioned");
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let delta = text(&scene.delta).to_owned();
    let signed = scene.world.path("signed-again");
    let sign = |input: &str, more: &[&str]| {
        let mut all = vec!["bundle", "sign", input, "-o", text(&signed)];
        all.extend(["--sign-key", text(&key), "--sign-cert", text(&certificate)]);
        all.extend(more);
        scene.world.run(&all)
    };
    // Both signatures damaged: their bytes lie between the two manifests and before the payload.
    let mut bytes = fs::read(&scene.delta).unwrap();
    let length = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (manifest, signature, between) = (length(8), length(12), length(16));
    for at in [24 + manifest + 40, 24 + manifest + signature + between + 40] {
        bytes[at] ^= 1;
    }
    fs::write(&scene.delta, &bytes).unwrap();
    scene.world.run(&["bundle", "verify", &delta]).must(11);
    sign(&delta, &[]).must(0);
    scene.world.run(&["bundle", "verify", text(&signed)]).must(0);
    scene.world.apply(&signed, &[]).must(0);
    scene.is_at("1.1.0");
    // What is cut off is not signed.
    fs::write(&scene.delta, &bytes[..bytes.len() - 1]).unwrap();
    assert_ne!(sign(&delta, &[]).code, 0);
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
