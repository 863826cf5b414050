//! Documents about a release: made part of it, shown, demanded by policy, published with it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use cutover_bundle::{Bundle, Limits, assemble, assemble_delta, sign_manifest};
use cutover_core::model::{
    DELTA_FORMAT, DeltaManifest, Digest, DocumentKind, Manifest, ManifestLimits, ReleaseRef,
};

use crate::{
    repo::Repository,
    world::{Ran, Release, World, files_of, now, seen, signer, stamped, text},
};

/// Written by `cyclonedx-py environment` (cyclonedx-bom 7.5.0) about an environment of Python.
const SBOM: &str = include_str!("../fixtures/sbom-by-cyclonedx-py.cdx.json");
const BUILDER: &str = "https://github.com/actions/runner/github-hosted";
const SOURCE: &str = "https://github.com/acme/tool";

/// Provenance as the builders of GitHub write it, about these files of a tree.
fn provenance(tree: &Path, files: &[&str]) -> serde_json::Value {
    let subject = |name: &&str| {
        let digest = Digest::of(&fs::read(tree.join(name)).expect("read"));
        serde_json::json!({ "name": name, "digest": { "sha256": digest.to_string() } })
    };
    serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": files.iter().map(subject).collect::<Vec<_>>(),
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://actions.github.io/buildtypes/workflow/v1",
                "externalParameters": {
                    "workflow": { "ref": "refs/tags/v1", "repository": SOURCE, "path": ".github/workflows/x.yml" },
                },
                "internalParameters": { "github": { "event_name": "push" } },
                "resolvedDependencies": [
                    { "uri": format!("git+{SOURCE}@refs/tags/v1"), "digest": { "gitCommit": "1".repeat(40) } },
                ],
            },
            "runDetails": {
                "builder": { "id": BUILDER },
                "metadata": { "invocationId": format!("{SOURCE}/actions/runs/1/attempts/1") },
            },
        },
    })
}

/// The files of a release of tests that are code.
const CODE: [&str; 2] = ["bin/tool", "lib/libsame.so.1"];

/// A bundle with the documents that are given.
fn build(world: &World, version: &str, sbom: Option<&str>, provenance: Option<&serde_json::Value>) -> Ran {
    let (tree, spec) = world.tree(&Release::new(version));
    let out = bundle(world, version);
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let mut all =
        vec!["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&out), "--level", "1"];
    all.extend(["--sign-key", text(&key), "--sign-cert", text(&certificate)]);
    let sbom = sbom.map(|sbom| world.write(&format!("sbom-{version}.json"), sbom));
    let statement = provenance.map(|value| world.write(&format!("prov-{version}.json"), value.to_string()));
    if let Some(path) = &sbom {
        all.extend(["--sbom", text(path)]);
    }
    if let Some(path) = &statement {
        all.extend(["--provenance", text(path)]);
    }
    world.run(&all)
}

fn bundle(world: &World, version: &str) -> PathBuf {
    world.path(&format!("with-{version}.cutover"))
}

fn tree(world: &World, version: &str) -> PathBuf {
    world.tree(&Release::new(version)).0
}

const STRICT: [&str; 8] = [
    "--set",
    "trust-policy.require_sbom=true",
    "--set",
    "trust-policy.require_provenance=true",
    "--set",
    "trust-policy.builders=[\"https://github.com/actions/runner/github-hosted\"]",
    "--set",
    "trust-policy.source_repositories=[\"https://github.com/acme/tool\"]",
];

#[test]
fn documents_are_signed_shown_extracted_and_not_installed() {
    let world = World::new();
    let statement = provenance(&tree(&world, "1.0.0"), &CODE);
    build(&world, "1.0.0", Some(SBOM), Some(&statement)).must(0);
    let bundle = bundle(&world, "1.0.0");
    let shown = world.run(&["bundle", "inspect", text(&bundle)]).must(0).stdout;
    assert!(shown.contains("CycloneDX 1.6, 3 components"), "{shown}");
    assert!(shown.contains(&format!("2 files built by {BUILDER} from {SOURCE}")), "{shown}");
    let verified = world.run(&["bundle", "verify", text(&bundle), "--json"]).must(0).json();
    assert_eq!(verified["documents"][0]["media_type"], "application/vnd.cyclonedx+json");
    assert_eq!(verified["documents"][1]["slsa"]["builder"], BUILDER);
    let (out, documents) = (world.path("out"), world.path("documents"));
    let all = ["bundle", "extract", text(&bundle), "-o", text(&out), "--documents", text(&documents)];
    world.run(&all).must(0);
    assert_eq!(fs::read_to_string(documents.join("sbom.cdx.json")).expect("written"), SBOM);
    let written = fs::read_to_string(documents.join("provenance.intoto.json")).expect("written");
    assert_eq!(written, statement.to_string());
    world.apply(&bundle, &STRICT).must(0);
    world.on_root(&["verify"]).must(0);
    assert_eq!(seen(&world), files_of(&world, "1.0.0"));
}

#[test]
fn what_is_no_document_about_this_release_is_refused_when_it_is_made() {
    let world = World::new();
    let tree = tree(&world, "1.0.0");
    let good = provenance(&tree, &CODE);
    let mut foreign = good.clone();
    foreign["subject"][0]["digest"]["sha256"] = Digest::of(b"something else").to_string().into();
    let ran = build(&world, "1.0.0", None, Some(&foreign));
    assert!(ran.stderr.contains("no file of the release"), "{}", ran.stderr);
    ran.must(2);
    build(&world, "1.0.0", Some("{\"bomFormat\": \"SPDX\"}"), None).must(2);
    build(&world, "1.0.0", Some("<bom/>"), None).must(2);
    build(&world, "1.0.0", Some(&good.to_string()), None).must(2);
    assert!(!bundle(&world, "1.0.0").exists());
}

#[test]
fn policy_refuses_what_has_no_documents_or_the_wrong_ones() {
    let world = World::new();
    let tree = tree(&world, "1.0.0");
    let refused = |sbom, statement: Option<&serde_json::Value>, code, word: &str| {
        build(&world, "1.0.0", sbom, statement).must(0);
        let ran = world.apply(&bundle(&world, "1.0.0"), &STRICT);
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
        ran.must(code);
    };
    let good = provenance(&tree, &CODE);
    refused(None, Some(&good), 13, "has no sbom");
    refused(Some(SBOM), None, 13, "has no provenance");
    let mut other = good.clone();
    other["predicate"]["runDetails"]["builder"]["id"] = "https://evil.example/builder".into();
    refused(Some(SBOM), Some(&other), 13, "built by `https://evil.example/builder`");
    let mut other = good.clone();
    other["predicate"]["buildDefinition"]["resolvedDependencies"][0]["uri"] =
        "git+https://github.com/evil/tool@refs/tags/v1".into();
    refused(Some(SBOM), Some(&other), 13, "built from `https://github.com/evil/tool`");
    refused(Some(SBOM), Some(&provenance(&tree, &CODE[..1])), 13, "nothing about `lib/libsame.so.1`");
    assert!(!world.root().join("current").exists());
    build(&world, "1.0.0", Some(SBOM), Some(&good)).must(0);
    world.apply(&bundle(&world, "1.0.0"), &STRICT).must(0);
}

/// A release with good documents, and its twin, trusted all the same, whose signer did not look what the provenance is about.
fn build_about_something_else(world: &World) -> PathBuf {
    let tree = tree(world, "1.0.0");
    let good = provenance(&tree, &CODE);
    let mut foreign = good.clone();
    foreign["subject"][0]["digest"]["sha256"] = Digest::of(b"something else").to_string().into();
    // As files, too, so that both are objects of the release whichever of them is its provenance.
    for (name, statement) in [("good", &good), ("foreign", &foreign)] {
        fs::write(tree.join(format!("share/{name}.json")), statement.to_string()).expect("written");
    }
    build(world, "1.0.0", Some(SBOM), Some(&good)).must(0);
    let bytes = fs::read(bundle(world, "1.0.0")).expect("read");
    let good = Bundle::open(bytes, &Limits::default()).expect("a bundle");
    let mut manifest =
        Manifest::parse(good.untrusted_manifest_bytes(), &ManifestLimits::default()).expect("a manifest");
    let named =
        manifest.files.iter().find(|file| file.path.as_str() == "share/foreign.json").expect("packed");
    let (sha256, size) = (named.sha256, named.size);
    let document = manifest
        .documents
        .iter_mut()
        .find(|document| document.kind == DocumentKind::Provenance)
        .expect("one");
    (document.sha256, document.size) = (sha256, size);
    let mut payload = Vec::new();
    for object in &manifest.objects {
        good.untrusted_stored(object).read_to_end(&mut payload).expect("read");
    }
    let manifest = manifest.to_bytes().expect("a valid manifest");
    let signature = sign_manifest(&manifest, &[&signer()], now()).expect("signed");
    let mut out = Vec::new();
    assemble(&manifest, &signature, payload.as_slice(), &mut out, &Limits::default()).expect("in memory");
    world.write("foreign.cutover", out)
}

#[test]
fn provenance_of_something_else_is_not_trusted_and_nothing_is_installed() {
    let world = World::new();
    let foreign = build_about_something_else(&world);
    let refused = world.apply(&foreign, &STRICT).must(11);
    assert!(refused.stderr.contains("no file of the release"), "{}", refused.stderr);
    let told = world.apply(&foreign, &[&STRICT[..], &["--dry-run", "--json"]].concat()).must(11);
    assert!(told.stdout.contains("\"not-trusted\"") || told.stderr.contains("not-trusted"), "{told:?}");
    assert!(!world.root().join("current").exists());
    // Its signature is right: nobody but who demands provenance looks at it.
    world.apply(&foreign, &[]).must(0);
}

#[test]
fn verification_checks_the_documents_of_full_and_delta_bundles_alike() {
    let world = World::new();
    let old = world.build_version("0.9.0");
    let foreign = build_about_something_else(&world);
    let delta = world.write("foreign.cutover-delta", delta_in_full(&old, &foreign));
    for path in [&foreign, &delta] {
        let ran = world.run(&["bundle", "verify", text(path)]).must(11);
        assert!(ran.stderr.contains("no file of the release"), "{}", ran.stderr);
    }
    let good = bundle(&world, "1.0.0");
    let delta = world.write("good.cutover-delta", delta_in_full(&old, &good));
    let told = |path: &Path| world.run(&["bundle", "verify", text(path), "--json"]).must(0).json();
    assert_eq!(told(&delta)["documents"], told(&good)["documents"]);
    assert_eq!(told(&delta)["documents"].as_array().map(Vec::len), Some(2));
    let lines = world.run(&["bundle", "verify", text(&delta)]).must(0).stdout;
    assert!(lines.contains("CycloneDX 1.6, 3 components") && lines.contains(BUILDER), "{lines}");
}

/// A delta bundle without patches: everything of the new release is carried in full.
fn delta_in_full(old: &Path, new: &Path) -> Vec<u8> {
    let open = |path: &Path| {
        let bundle = Bundle::open(fs::read(path).expect("read"), &Limits::default()).expect("a bundle");
        let manifest = bundle.inspect_untrusted().claimed_manifest.expect("a manifest");
        let sha256 = Digest::of(bundle.untrusted_manifest_bytes());
        let (package, version) = (manifest.package.clone(), manifest.version.clone());
        (bundle, ReleaseRef { package, version, manifest: sha256 }, manifest.objects)
    };
    let ((_, from, _), (new, to, objects)) = (open(old), open(new));
    let mut payload = Vec::new();
    for object in &objects {
        new.untrusted_stored(object).read_to_end(&mut payload).expect("read");
    }
    let delta =
        DeltaManifest { format: DELTA_FORMAT, from, to, enforce_order: false, files: Vec::new(), objects };
    let bytes = delta.to_bytes().expect("sound");
    let signature = sign_manifest(&bytes, &[&signer()], now()).expect("signed");
    let mut out = Vec::new();
    let release = (new.untrusted_manifest_bytes(), new.untrusted_signature_bytes());
    let delta = (&delta, bytes.as_slice(), signature.as_slice());
    assemble_delta(release, delta, &mut payload.as_slice(), &mut out, &Limits::default()).expect("in memory");
    out
}

#[test]
fn documents_go_with_a_release_through_a_repository_and_a_delta() {
    let world = World::new();
    let repository = Repository::new(&world);
    for version in ["1.0.0", "1.1.0"] {
        let statement = provenance(&tree(&world, version), &CODE);
        build(&world, version, Some(SBOM), Some(&statement)).must(0);
        repository.publish(&bundle(&world, version)).must(0);
    }
    repository.run("verify", &[], &[]).must(0);
    let source = text(&repository.dir);
    let apply = |name: &str, more: &[&str]| {
        let mut all = vec!["apply", name, "--source", source];
        all.extend(more);
        world.on_root(&all)
    };
    apply("tool@1.0.0", &STRICT).must(0);
    let bare = world.build_version("1.2.0");
    repository.publish(&bare).must(0);
    let ran = apply("tool@1.2.0", &STRICT);
    assert!(ran.stderr.contains("has no sbom"), "{}", ran.stderr);
    ran.must(13);
    world.on_root(&["plan", "tool@1.2.0", "--source", source, STRICT[0], STRICT[1]]).must(13);

    // A delta carries the documents of the release it leads to, also those that did not change.
    let delta = world.path("1.1.0.cutover-delta");
    let (tree, spec) = world.tree(&Release::new("1.1.0"));
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let (from, to) = (bundle(&world, "1.0.0"), bundle(&world, "1.1.0"));
    let (sbom, statement) = (world.path("sbom-1.1.0.json"), world.path("prov-1.1.0.json"));
    let mut all = vec!["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&to)];
    all.extend(["--sign-key", text(&key), "--sign-cert", text(&certificate), "--delta-from", text(&from)]);
    all.extend(["--delta-output", text(&delta), "--sbom", text(&sbom), "--provenance", text(&statement)]);
    world.run(&all).must(0);
    world.apply(&delta, &STRICT).must(0);
    world.on_root(&["verify"]).must(0);

    // What has to be read and is gone from the repository is not taken for granted.
    fs::remove_dir_all(repository.dir.join("objects")).expect("removed");
    apply("tool@1.1.0", &STRICT).must(1);
}
