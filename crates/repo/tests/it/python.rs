//! Another implementation follows our repositories: python-tuf's client.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use cutover_repo::{Index, MetadataKey, Rotation, tuf::RoleKind};
use der::pem::{LineEnding, encode_string};

use crate::{
    pypi::environment,
    world::{World, bundle, now_hours},
};

/// What is installed from PyPI.
const TUF: [&str; 2] = ["tuf==7.0.1", "securesystemslib[crypto]==1.6.0"];
const INDEX: &str = "packages/app/any/stable.json";

/// A Python with python-tuf; `None` when it cannot be had here.
fn python() -> Option<PathBuf> {
    let environment = environment("python-tuf-7.0.1", &TUF, "import tuf.ngclient, cryptography")?;
    Some(environment.join("bin/python"))
}

fn key(pkcs8: &[u8]) -> MetadataKey {
    let pem = encode_string("PRIVATE KEY", LineEnding::LF, pkcs8).expect("it fits");
    MetadataKey::from_pem(pem.as_bytes()).expect("a key")
}

/// One key of every kind that files can hold: P-384, Ed25519, RSA, P-256, and one more P-256.
fn keys_of_every_kind() -> Vec<MetadataKey> {
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).expect("a key");
    let ed25519 = Ed25519KeyPair::generate().expect("a key");
    let rsa = RsaKeyPair::generate(KeySize::Rsa3072).expect("a key");
    let rsa: Pkcs8V1Der<'_> = rsa.as_der().expect("its PKCS#8");
    vec![
        key(p384.to_pkcs8v1().expect("its PKCS#8").as_ref()),
        key(ed25519.to_pkcs8v1().expect("its PKCS#8").as_ref()),
        key(rsa.as_ref()),
        MetadataKey::generate().expect("a key").0,
        MetadataKey::generate().expect("a key").0,
    ]
}

#[test]
fn python_tuf_follows_and_downloads_through_new_releases_and_new_keys() {
    let Some(python) = python() else { return };
    // It has no clock but the real one.
    let now = now_hours();
    let world = World { dir: tempfile::tempdir().unwrap(), keys: keys_of_every_kind(), grace_s: 0 };
    world.create_at(&world.storage(), now).unwrap();
    let (state, downloads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(state.path().join("root.json"), world.root()).unwrap();
    let follow = || -> (serde_json::Value, Vec<String>) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_tuf.py");
        let output = Command::new(&python)
            .arg(script)
            .args([world.dir.path(), state.path(), downloads.path()])
            .arg(INDEX)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let index = std::fs::read(downloads.path().join("target")).unwrap();
        let index = Index::parse(INDEX, &index).unwrap();
        let releases = index.releases.iter().map(|entry| entry.version.to_string()).collect();
        (serde_json::from_slice(&output.stdout).unwrap(), releases)
    };

    world.publish(now, &[&bundle("1.0.0", &[("a", b"one")])]);
    let (versions, releases) = follow();
    assert_eq!((&versions["root"], releases), (&1.into(), vec!["1.0.0".to_owned()]));
    world.publish(now, &[&bundle("1.1.0", &[("a", b"two")])]);
    assert_eq!(follow().1, ["1.1.0", "1.0.0"]);
    for (position, role) in [(0, RoleKind::Root), (3, RoleKind::Timestamp)] {
        let rotation = Rotation {
            role,
            add: vec![world.keys[4].public().clone()],
            retire: vec![world.keys[position].id().to_owned()],
            threshold: None,
        };
        world.with_publisher(now, |publisher| publisher.rotate(&rotation)).unwrap();
    }
    let (versions, releases) = follow();
    assert_eq!((&versions["root"], releases.len()), (&5.into(), 2));
}
