//! The kept files of `fuzz/seeds`: good ones of each kind, from which the fuzzer starts. They also stand for the files of
//! earlier versions, which must open for ever.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cutover_bundle::{
    Limits, RevocationLists, TrustAnchor, decode_object,
    delta::{self, DeltaLimits},
    sign_manifest, verify_detached,
};
use cutover_core::model::{Manifest, ManifestLimits, Version};

use crate::delta::{generate, noise, words};
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
        verify_detached(manifest.clone(), read(signature), &anchor, lists, now(), &Limits::default())
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
    assert_eq!(verified.manifest_bytes(), manifest);
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
}
