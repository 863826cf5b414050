//! What clients fetch, keep and find.

use cutover_core::model::Digest;
use cutover_repo::{
    Catalogue, MetadataKey, State as _, StateDirectory, Storage as _,
    tuf::{Envelope, Signature, canonical},
};

use crate::world::{Meddled, Memory, World, bundle, name, refresh, resolve, version};

#[test]
fn a_client_without_a_root_trusts_nothing() {
    let world = World::new(0);
    assert_eq!(
        refresh(&world.storage(), &Memory::default(), 1).err().unwrap().to_string(),
        "no root metadata is trusted yet"
    );
}

#[test]
fn an_unchanged_repository_costs_a_client_one_timestamp() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    let (storage, client) = (world.storage(), world.client());
    refresh(&storage, &client, 1).unwrap();
    let counted = Meddled::new(&storage);
    refresh(&counted, &client, 2).unwrap();
    let read: Vec<String> = counted.read.borrow().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(read, ["metadata/timestamp.json"]);
}

#[test]
fn the_cost_of_a_refresh_does_not_grow_with_the_objects() {
    let cost = |objects: usize| {
        let world = World::new(0);
        let contents: Vec<(String, Vec<u8>)> =
            (0..objects).map(|number| (format!("f{number}"), number.to_string().into_bytes())).collect();
        let files: Vec<(&str, &[u8])> =
            contents.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
        world.publish(1, &[&bundle("1.0.0", &files)]);
        let storage = world.storage();
        let counted = Meddled::new(&storage);
        refresh(&counted, &world.client(), 1).unwrap();
        counted.bytes_read()
    };
    let (few, many) = (cost(2), cost(2000));
    // Signatures in DER differ by a few bytes.
    assert!(many < few + 100, "{few} {many}");
}

#[test]
fn state_in_a_directory_survives_and_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trusted");
    let state = StateDirectory::open(&path).unwrap();
    state.keep("root", b"one").unwrap();
    state.keep("root", b"two").unwrap();
    drop(state);
    let state = StateDirectory::open(&path).unwrap();
    assert_eq!(state.load("root").unwrap(), Some(b"two".to_vec()));
    state.remove("root").unwrap();
    state.remove("root").unwrap();
    assert_eq!(state.load("root").unwrap(), None);
}

#[test]
fn a_delegated_role_takes_the_place_of_nothing_else_that_is_kept() {
    let world = World::new(0);
    let storage = world.storage();
    let read = |path: String| -> serde_json::Value {
        let bytes = std::fs::read(world.dir.path().join(path)).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["signed"].clone()
    };
    let sign = |key: &MetadataKey, signed: serde_json::Value| {
        let signature = key.sign(&canonical(&signed).unwrap()).unwrap();
        let sig = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let signatures = vec![Signature { keyid: key.id().to_owned(), sig }];
        serde_json::to_vec(&Envelope { signed, signatures }).unwrap()
    };
    let mut timestamp = read("metadata/timestamp.json".to_owned());
    let mut snapshot =
        read(format!("metadata/{}.snapshot.json", timestamp["meta"]["snapshot.json"]["version"]));
    let mut targets = read(format!("metadata/{}.targets.json", snapshot["meta"]["targets.json"]["version"]));
    let key = &world.keys[4];
    let mut role = targets.clone();
    role["version"] = 1.into();
    role["targets"] = serde_json::json!({ "x": { "length": 1, "hashes": { "sha256": "00" } } });
    targets["version"] = 9.into();
    targets["delegations"] = serde_json::json!({
        "keys": { key.id(): key.public() },
        "roles": [{
            "name": "log", "keyids": [key.id()], "threshold": 1, "terminating": false, "paths": ["x"],
        }],
    });
    snapshot["version"] = 9.into();
    snapshot["meta"] = serde_json::json!({ "targets.json": { "version": 9 }, "log.json": { "version": 1 } });
    timestamp["version"] = 9.into();
    timestamp["meta"] = serde_json::json!({ "snapshot.json": { "version": 9 } });
    let meddled = Meddled::new(&storage)
        .with("metadata/1.log.json", sign(key, role))
        .with("metadata/9.targets.json", sign(&world.keys[1], targets))
        .with("metadata/9.snapshot.json", sign(&world.keys[2], snapshot))
        .with("metadata/timestamp.json", sign(&world.keys[3], timestamp));
    let client = world.client();
    client.keep("log", b"what was seen of the log").unwrap();
    for _ in 0..2 {
        meddled.read.borrow_mut().clear();
        assert_eq!(refresh(&meddled, &client, 1).unwrap().target("x").unwrap().length, 1);
        assert_eq!(client.load("log").unwrap(), Some(b"what was seen of the log".to_vec()));
    }
    let read: Vec<String> = meddled.read.borrow().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(read, ["metadata/timestamp.json"], "the role is kept as well");
}

#[test]
fn a_release_that_is_altered_on_the_way_is_refused() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    let storage = world.storage();
    let client = world.client();
    for file in world.files() {
        let meddled_with = ["manifests/", "objects/", "packages/"].iter().any(|part| file.starts_with(part));
        if !meddled_with {
            continue;
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut storage.open(&file).unwrap().unwrap(), &mut bytes).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let meddled = Meddled::new(&storage).with(&file, bytes);
        assert!(resolve(&meddled, &client.clone(), 1, None).is_err(), "{file}");
    }
    assert_eq!(resolve(&storage, &client, 1, None), Ok("1.0.0".to_owned()));
}

#[test]
fn a_client_with_the_last_manifest_gets_the_next_one_in_a_tenth_of_the_bytes() {
    let files_of = |changed: usize| -> Vec<(String, Vec<u8>)> {
        let content = |number: usize| if number < 100 { number + changed } else { number };
        (0..10_000)
            .map(|number| (format!("share/{number}"), content(number).to_string().into_bytes()))
            .collect()
    };
    let world = World::new(0);
    let bundles = [("1.0.0", files_of(0)), ("1.1.0", files_of(1_000_000))].map(|(version, files)| {
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
        bundle(version, &files)
    });
    world.publish(1, &[&bundles[0]]);
    world.publish(2, &[&bundles[1]]);
    assert_eq!(world.must_be_clean(2).releases, 2);
    let (storage, client) = (world.storage(), world.client());
    let old = &bundles[0].manifest_bytes().unwrap();
    let cost = |known: &dyn Fn(Digest) -> Option<Vec<u8>>| {
        let counted = Meddled::new(&storage);
        let mut catalogue = Catalogue::new(refresh(&counted, &client, 2).unwrap());
        let index = catalogue.index(&name("app"), &name("any"), &name("stable")).unwrap().unwrap();
        counted.read.borrow_mut().clear();
        let files = catalogue.files(&index.releases[0], known).unwrap();
        assert_eq!(files.manifest, bundles[1].manifest_bytes().unwrap());
        counted.bytes_read()
    };
    let whole = cost(&|_| None);
    let patched = cost(&|digest| (digest == Digest::of(old)).then(|| old.to_vec()));
    println!("{whole} bytes whole, {patched} by patch");
    assert!(patched * 10 <= whole, "{patched} of {whole}");
    // Whoever has something else under that name gets it whole.
    assert!(cost(&|_| Some(b"something else".to_vec())) >= whole);
    // A removed release takes its patches along.
    world
        .with_publisher(3, |publisher| publisher.remove(&name("app"), &version("1.1.0"), None, None))
        .unwrap();
    assert!(!world.files().iter().any(|file| file.ends_with(".patch")));
    world.must_be_clean(3);
}
