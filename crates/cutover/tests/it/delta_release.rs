//! Whole releases by delta bundles: making them, installing them, and every way in which a patch may be of no use.

use std::{fs, path::PathBuf};

use crate::world::{LAYOUTS, Release, World, files_of, finish, seen, stamped, text};

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
    let world = World::new();
    let contents = |change: &str| ["a", "b", "c"].map(|name| data(&format!("{change} of {name}")));
    let paths = ["share/a", "share/b", "share/c"];
    let build = |version: &str, change: &str| {
        let contents = contents(change);
        let files: Vec<(&str, &str)> = paths.into_iter().zip(contents.iter().map(String::as_str)).collect();
        world.build(&Release { files: &files, ..Release::new(version) })
    };
    let (first, full) = (build("1.0.0", "old"), build("1.1.0", "new and longer"));
    let delta = world.path("ordered.cutover-delta");
    // c comes first by its order; a waits for b.
    let entries = [("share/a", 1, vec!["share/b"]), ("share/b", 1, vec![]), ("share/c", 0, vec![])];
    ordered_delta(&first, &full, &delta, &entries);
    world.apply(&first, &["--layout", "versioned"]).must(0);
    // Patches whose base is damaged are told of in the order in which they are tried.
    for path in paths {
        let path = world.visible().join(path);
        let mut bytes = fs::read(&path).expect("read");
        bytes[10] ^= 1;
        fs::write(path, bytes).expect("written");
    }
    let mut command = world.on_root_command(&["apply", text(&delta), "--json", "--full", text(&full)]);
    command.env("CUTOVER_LOG", "warn");
    let ran = finish(command).must(0);
    assert_eq!(ran.json()["delta"]["patches_failed"], 3, "{}", ran.stderr);
    let told: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.contains("the patch is of no use"))
        .filter_map(|line| paths.into_iter().find(|path| line.contains(path)))
        .collect();
    assert_eq!(told, ["share/c", "share/b", "share/a"], "{}", ran.stderr);
    assert_eq!(seen(&world), files_of(&world, "1.1.0"));
    // With whole bases the patches are taken.
    world.on_root(&["rollback"]).must(0);
    assert_eq!(world.version(), "1.0.0");
}

/// Writes a delta bundle whose patches have an order: path, order, dependencies.
fn ordered_delta(
    old: &std::path::Path,
    new: &std::path::Path,
    output: &std::path::Path,
    entries: &[(&str, u32, Vec<&str>)],
) {
    use cutover_bundle::{
        Bundle, Limits, assemble_delta,
        delta::{self, Algorithm, GenerateOptions, Pair},
        sign_manifest,
        signer::{CertificateChain, FileSigner},
    };
    use cutover_core::model::{DELTA_FORMAT, DeltaFile, DeltaManifest, Digest, Manifest, ReleaseRef};

    let open = |path| {
        let bundle = Bundle::open(fs::File::open(path).expect("open"), &Limits::default()).expect("a bundle");
        let manifest = bundle.inspect_untrusted().claimed_manifest.expect("a manifest");
        (bundle, manifest)
    };
    let ((old, old_manifest), (new, new_manifest)) = (open(old), open(new));
    let release = |bundle: &Bundle<fs::File>, manifest: &Manifest| ReleaseRef {
        package: manifest.package.clone(),
        version: manifest.version.clone(),
        manifest: Digest::of(bundle.untrusted_manifest_bytes()),
    };
    let content = |bundle: &Bundle<fs::File>, manifest: &Manifest, path: &str| {
        let file = manifest.files.iter().find(|file| file.path.as_str() == path).expect("a file");
        let object = manifest.objects.iter().find(|object| object.sha256 == file.sha256).expect("an object");
        let mut content = Vec::new();
        bundle.decode_untrusted_object(object, &mut content).expect("decoded");
        content
    };
    let (mut files, mut payload) = (Vec::new(), Vec::new());
    for (path, order, depends_on) in entries {
        let (base, target) = (content(&old, &old_manifest, path), content(&new, &new_manifest, path));
        let pair = Pair::new(&base, &target);
        let patch = delta::generate(Algorithm::Bsdiff, &pair, &GenerateOptions::default()).expect("a patch");
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
            order: *order,
            depends_on: depends_on.iter().map(|path| path.parse().expect("a path")).collect(),
            candidates: Vec::new(),
        });
        payload.extend(patch);
    }
    let manifest = DeltaManifest {
        format: DELTA_FORMAT,
        from: release(&old, &old_manifest),
        to: release(&new, &new_manifest),
        enforce_order: true,
        files,
        objects: Vec::new(),
    };
    let pki = &stamped().pki;
    let chain =
        CertificateChain::from_pem(&fs::read(pki.join("signer.pem")).expect("read")).expect("a chain");
    let signer =
        FileSigner::from_pem(&fs::read(pki.join("signer.key")).expect("read"), chain).expect("a signer");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let now = cutover_core::model::Instant::from_unix(now as i64).expect("a time");
    let bytes = manifest.to_bytes().expect("sound");
    let signature = sign_manifest(&bytes, &[&signer], now).expect("signed");
    let mut out = fs::File::create(output).expect("made");
    let release = (new.untrusted_manifest_bytes(), new.untrusted_signature_bytes());
    let delta = (&manifest, bytes.as_slice(), signature.as_slice());
    assemble_delta(release, delta, &mut payload.as_slice(), &mut out, &Limits::default()).expect("written");
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
