//! Signed uploads: the commit is vouched for, a bad signature is refused, and none is used twice.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64ct::{Base64, Encoding as _};
use cutover_core::{
    admission::{EpisodeKey, Statement},
    model::Digest,
};
use cutover_server::settings::AttestPolicy;

use crate::world::{Answer, World, sha256};

pub(crate) type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

pub(crate) fn ed25519() -> (String, Sign) {
    let pair = Ed25519KeyPair::generate().unwrap();
    let public = format!("ed25519:{}", Base64::encode_string(pair.public_key().as_ref()));
    (public, Box::new(move |bytes| pair.sign(bytes).as_ref().to_vec()))
}

fn p256() -> (String, Sign) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public = format!("p256:{}", Base64::encode_string(pair.public_key().as_ref()));
    let random = aws_lc_rs::rand::SystemRandom::new();
    (public, Box::new(move |bytes| pair.sign(&random, bytes).unwrap().as_ref().to_vec()))
}

fn world(policy: AttestPolicy, keys: &[(&str, &str)]) -> World {
    World::with(|settings| {
        settings.attest.policy = policy;
        settings.attest.keys =
            keys.iter().map(|(host, key)| ((*host).to_owned(), (*key).to_owned())).collect();
    })
}

/// What a host puts into its header for an upload.
pub(crate) fn header(world: &World, sign: &Sign, key: &str, body: &[u8], sequence: u64) -> String {
    let (host, episode) = key.split_once('/').unwrap();
    let commit = world.head().parse().unwrap();
    let (key, sha256) = (EpisodeKey::new(host, episode).unwrap(), Digest::of(body));
    let signed = Statement { commit: &commit, key: &key, sha256, sequence, release: None }.bytes();
    format!("v=1; seq={sequence}; sig={}", Base64::encode_string(&sign(&signed)))
}

pub(crate) fn put_signed(world: &World, key: &str, body: &[u8], header: &str) -> Answer {
    let headers = [
        ("X-Code-Commit", &*world.head()),
        ("X-Content-SHA256", &*sha256(body)),
        ("X-Code-Attestation", header),
    ];
    world.put_with(key, body, &headers)
}

// gate-1
#[test]
fn only_a_signature_of_the_host_makes_a_commit_verified() {
    for (public, sign) in [ed25519(), p256()] {
        let world = world(AttestPolicy::Accept, &[("h", &public)]);
        put_signed(&world, "h/a", b"x", &header(&world, &sign, "h/a", b"x", 1)).must(201);
        world.put("h/b", b"x").must(201);
        let rows = world.rows();
        assert_eq!(rows[0]["commit_verified"], true);
        assert!(rows[1].get("commit_verified").is_none());
        // Signed for another episode, host, body; by another key; without a key; not alone.
        let of = |key: &str, body: &[u8]| header(&world, &sign, key, body, 2);
        for (key, header) in [
            ("h/c", of("h/d", b"x")),
            ("i/c", of("i/c", b"x")),
            ("h/c", of("h/c", b"y")),
            ("h/c", header(&world, &ed25519().1, "h/c", b"x", 2)),
            ("h/c", "v=1; seq=2; sig=AAAA".to_owned()),
            ("h/c", "nonsense".to_owned()),
        ] {
            assert_eq!(
                put_signed(&world, key, b"x", &header).must(403).json()["error"],
                "attestation-invalid",
                "{header}"
            );
        }
        world
            .put_with(
                "h/c",
                b"x",
                &[("X-Code-Commit", &world.head()), ("X-Code-Attestation", &of("h/c", b"x"))],
            )
            .must(403);
        // The signature is over the declared digest, and the body is held to that.
        let headers = [
            ("X-Code-Commit", &*world.head()),
            ("X-Content-SHA256", &*sha256(b"x")),
            ("X-Code-Attestation", &*of("h/c", b"x")),
        ];
        world.put_with("h/c", b"y", &headers).must(422);
        assert_eq!(world.rows().len(), 2);
    }
}

#[test]
fn signature_is_demanded_where_the_policy_says_so_and_ignored_where_it_is_off() {
    let (public, sign) = ed25519();
    let mut world = world(AttestPolicy::Require, &[("h", &public)]);
    assert_eq!(world.put("h/a", b"x").must(403).json()["error"], "attestation-missing");
    put_signed(&world, "h/a", b"x", &header(&world, &sign, "h/a", b"x", 1)).must(201);
    world.set(|settings| settings.attest.policy = AttestPolicy::Off);
    put_signed(&world, "h/b", b"x", "nonsense").must(201);
    assert!(world.rows()[1].get("commit_verified").is_none());
}

// A replay is refused over restarts; the same upload again is not one.
#[test]
fn sequence_number_is_used_for_one_upload_only() {
    let (public, sign) = ed25519();
    let mut world = world(AttestPolicy::Require, &[("h", &public)]);
    let first = header(&world, &sign, "h/a", b"x", 5);
    put_signed(&world, "h/a", b"x", &first).must(201);
    for _ in 0..2 {
        put_signed(&world, "h/a", b"x", &first).must(200);
        let again = header(&world, &sign, "h/b", b"y", 5);
        assert_eq!(put_signed(&world, "h/b", b"y", &again).must(403).json()["error"], "attestation-replayed");
        world.restart();
    }
    // Uploads may overtake each other.
    put_signed(&world, "h/c", b"z", &header(&world, &sign, "h/c", b"z", 4)).must(201);
    // What an operator removed does not come back by a replay.
    world.stop();
    std::fs::remove_file(world.root().join("episodes/h/a.tar.zst")).unwrap();
    let kept = world.index().lines().skip(1).map(|line| format!("{line}\n")).collect::<String>();
    std::fs::write(world.root().join("index.jsonl"), kept).unwrap();
    world.restart();
    assert_eq!(put_signed(&world, "h/a", b"x", &first).must(403).json()["error"], "attestation-replayed");
    assert_eq!(world.files().keys().collect::<Vec<_>>(), ["h/c.tar.zst"]);
}
