//! The kept files of `fuzz/seeds`: good ones of each kind, from which the fuzzer starts. They also stand for the files of
//! earlier versions, which must open for ever.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cutover_bundle::{
    DeltaBundle, Limits, RevocationLists, TrustAnchor, assemble_delta, decode_object,
    delta::{self, Algorithm, DeltaError, DeltaLimits},
    sign_manifest, verify_detached,
};
use cutover_core::model::{
    DELTA_FORMAT, DeltaFile, DeltaManifest, Digest, Manifest, ManifestLimits, ReleaseRef, Version,
};

use crate::delta::{generate, hostile, noise, words};
use crate::support::{bundle, contents, days, file_signer, now, pki, release};

fn seeds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds")
}

#[test]
fn kept_files_still_open() {
    check(&seeds());
}

/// With `WRITE_FUZZ_SEEDS=1` they replace the kept ones, with new keys.
#[test]
fn new_seeds_are_what_their_names_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = if std::env::var_os("WRITE_FUZZ_SEEDS").is_some() { seeds() } else { dir.path().to_owned() };
    write(&target);
    check(&target);
}

fn check(dir: &Path) {
    let read = |name: &str| fs::read(dir.join(name)).expect(name);
    let anchor = TrustAnchor::parse(&read("anchor.pem")).expect("an anchor");
    let manifest = read("manifest/good");
    let check = |signature: &str, lists: &RevocationLists| {
        verify_detached(&manifest, read(signature), &anchor, lists, now(), &Limits::default())
            .map_err(|error| error.code())
            .map(|verified| verified.manifest().files.len())
    };
    let none = RevocationLists::none();
    assert_eq!(check("cms/good", &none), Ok(5));
    assert_eq!(check("cms/good-by-subordinate", &none), Ok(5));
    let lists = RevocationLists::parse(&read("cms/revocation-list")).expect("a list");
    assert_eq!(check("cms/good", &lists), Ok(5));
    assert_eq!(check("cms/good-by-subordinate", &lists), Err("trust.revocation-unknown"));

    let bytes = read("container/good");
    let verified = crate::support::verify(&bytes, &anchor).expect("trusted");
    assert_eq!(verified.manifest_bytes().expect("read"), manifest);
    verified.check_objects().expect("good objects");

    let entry = &verified.manifest().objects[0];
    assert_eq!(entry.size, 7000, "as the target `object` expects");
    decode_object(entry, read("object/good").as_slice(), &mut std::io::sink()).expect("a good object");

    let base = read("delta-base");
    for algorithm in delta::AVAILABLE {
        let name = format!("delta_{}/good", algorithm.id().replace('-', "_"));
        let mut out = Vec::new();
        // The size that the delta targets expect.
        delta::decode_unchecked(*algorithm, &base, &read(&name), 760, &DeltaLimits::default(), &mut out)
            .expect(&name);
        assert!(out == delta_result(&base), "{name}");
    }
    for name in ["delta_vcdiff/wraps", "delta_vcdiff/idles"] {
        let limits = DeltaLimits::default();
        let patch = read(name);
        let refused =
            delta::decode_unchecked(Algorithm::Vcdiff, &base, &patch, 760, &limits, &mut Vec::new());
        assert!(matches!(refused, Err(DeltaError::Patch { .. })), "{name}: {refused:?}");
    }
    let torn = read("refdelta_image/torn-tables");
    generate(Algorithm::Refdelta, &torn, &[&torn[..], b"x"].concat());

    let base = read("refdelta_image/pie");
    let mut out = Vec::new();
    let patch = read("delta_refdelta/good-executable");
    // The size that the target expects.
    delta::decode_unchecked(Algorithm::Refdelta, &base, &patch, 3000, &DeltaLimits::default(), &mut out)
        .expect("a good patch");
    assert!(out == executable_result(&base));

    let limits = ManifestLimits::default();
    let manifest = DeltaManifest::parse(&read("delta_manifest/good"), &limits).expect("a good manifest");
    let bundle = DeltaBundle::open(read("delta_bundle/good"), &Limits::default()).expect("a bundle");
    let verified = bundle.verify(&anchor, &none, now()).expect("trusted");
    assert_eq!(*verified.delta(), manifest);
    verified.check_payload().expect("a good payload");
}

/// What the seed of a patch for an executable makes of `base`.
fn executable_result(base: &[u8]) -> Vec<u8> {
    let mut result = base.to_vec();
    result.splice(base.len() / 2..base.len() / 2, noise(3000 - base.len(), 42));
    result
}

/// A delta manifest that leads from one release to another by a patch of the first file, and a payload.
fn delta_between(old: &[u8], new: &[u8]) -> (DeltaManifest, Vec<u8>) {
    let reference = |bytes: &[u8]| {
        let manifest = Manifest::parse(bytes, &ManifestLimits::default()).expect("ours");
        let (package, version) = (manifest.package.clone(), manifest.version.clone());
        (ReleaseRef { package, version, manifest: Digest::of(bytes) }, manifest)
    };
    let ((from, from_manifest), (to, to_manifest)) = (reference(old), reference(new));
    let (base, target) = (&from_manifest.files[0], &to_manifest.files[0]);
    let content = |contents: Vec<(&str, Vec<u8>)>| contents.into_iter().next().expect("a file").1;
    let patch = generate(Algorithm::Bsdiff, &content(contents()), &content(next_contents()));
    let file = DeltaFile {
        path: target.path.clone(),
        base_path: None,
        base_sha256: base.sha256,
        base_size: base.size,
        target_sha256: target.sha256,
        target_size: target.size,
        patch_sha256: Digest::of(&patch),
        patch_size: patch.len() as u64,
        offset: 0,
        algorithm: Algorithm::Bsdiff,
        order: 1,
        depends_on: Vec::new(),
        candidates: Vec::new(),
    };
    let delta = DeltaManifest {
        format: DELTA_FORMAT,
        from,
        to,
        enforce_order: true,
        files: vec![file],
        objects: Vec::new(),
    };
    (delta, patch)
}

fn next_contents() -> Vec<(&'static str, Vec<u8>)> {
    let mut contents = contents();
    contents[0].1.extend_from_slice(b"exit 0\n");
    contents
}

/// What the seeds of delta patches make of `base`.
fn delta_result(base: &[u8]) -> Vec<u8> {
    let mut result = base.to_vec();
    result[50] ^= 1;
    result.splice(200..230, noise(100, 41));
    result.extend_from_slice(&[b'r'; 30]);
    result.extend_from_slice(&base[100..160]);
    result
}

fn write(dir: &Path) {
    let pki = pki();
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    let below = pki.root.subordinate("Example", "Release Authority", days(3000)).expect("an authority");
    let issued = below.issue_signer("Example", "Bob", days(3000)).expect("a signer");
    let by_subordinate = sign_manifest(&manifest, &[&file_signer(&issued)], now()).expect("signed");
    let list = pki.root.revocation_list(&["0102"], 1, days(3000)).expect("a list");
    let parsed = Manifest::parse(&manifest, &ManifestLimits::default()).expect("ours");
    let object = &parsed.objects[0];
    for (name, bytes) in [
        ("anchor.pem", pki.root.certificate_pem().as_bytes()),
        ("manifest/good", &manifest),
        ("cms/good", &signature),
        ("cms/good-by-subordinate", &by_subordinate),
        ("cms/revocation-list", list.as_bytes()),
        ("container/good", &bundle(&manifest, &signature, &payload)),
        ("object/good", &payload[..object.stored_size as usize]),
    ] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
        fs::write(path, bytes).expect("written");
    }
    let base = words(600, 40);
    let result = delta_result(&base);
    fs::write(dir.join("delta-base"), &base).expect("written");
    for algorithm in delta::AVAILABLE {
        let path = dir.join(format!("delta_{}", algorithm.id().replace('-', "_")));
        fs::create_dir_all(&path).expect("a directory");
        fs::write(path.join("good"), generate(*algorithm, &base, &result)).expect("written");
    }
    fs::write(dir.join("delta_vcdiff/wraps"), hostile::vcdiff_that_wraps()).expect("written");
    fs::write(dir.join("delta_vcdiff/idles"), hostile::vcdiff_that_idles(40)).expect("written");
    let base = fs::read(seeds().join("refdelta_image/pie")).expect("a kept executable");
    fs::create_dir_all(dir.join("refdelta_image")).expect("a directory");
    fs::write(dir.join("refdelta_image/pie"), &base).expect("written");
    fs::write(dir.join("refdelta_image/torn-tables"), hostile::executable_with_torn_tables())
        .expect("written");
    let patch = generate(Algorithm::Refdelta, &base, &executable_result(&base));
    fs::write(dir.join("delta_refdelta/good-executable"), patch).expect("written");

    let (next, _) = release(Version::new(1, 1, 0), &next_contents());
    let next_signature = sign_manifest(&next, &[&pki.signer], now()).expect("signed");
    let (delta, patch) = delta_between(&manifest, &next);
    let delta_bytes = delta.to_bytes().expect("ours");
    let delta_signature = sign_manifest(&delta_bytes, &[&pki.signer], now()).expect("signed");
    let mut container = Vec::new();
    let signed = (&delta, delta_bytes.as_slice(), delta_signature.as_slice());
    assemble_delta(
        (&next, &next_signature),
        signed,
        &mut patch.as_slice(),
        &mut container,
        &Limits::default(),
    )
    .expect("in memory");
    for (name, bytes) in [("delta_manifest", &delta_bytes), ("delta_bundle", &container)] {
        fs::create_dir_all(dir.join(name)).expect("a directory");
        fs::write(dir.join(name).join("good"), bytes).expect("written");
    }
}
