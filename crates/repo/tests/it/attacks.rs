//! Clients under attack: whoever stands between them and the repository, or holds some of its keys.

use std::collections::BTreeMap;

use cutover_repo::{
    DirectoryStorage, Fetch, FetchError, MetadataKey, Publisher, RepositorySettings, State as _,
    Storage as _,
    tuf::{Client, ClientError, RoleKind},
};

use crate::world::{Meddled, World, at, bundle, four_keys, refresh, role_keys};

fn code(result: Result<Client<'_>, ClientError>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(error) => error.code(),
    }
}

fn read(storage: &DirectoryStorage, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut storage.open(path).expect("as prepared").expect(path), &mut bytes)
        .expect("as prepared");
    bytes
}

/// All files of a repository, as an attacker may have copied them.
fn copy(world: &World) -> BTreeMap<String, Vec<u8>> {
    let storage = world.storage();
    world.files().into_iter().map(|file| (file.clone(), read(&storage, &file))).collect()
}

struct Copy(BTreeMap<String, Vec<u8>>);

impl Fetch for Copy {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let bytes = self.0.get(path).ok_or(FetchError::NotFound)?;
        cutover_repo::read_bounded(bytes.as_slice(), bytes_max)
    }
}

/// Two releases, one after the other, and a copy of the state between them.
fn two_states() -> (World, BTreeMap<String, Vec<u8>>) {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    let old = copy(&world);
    world.publish(2, &[&bundle("1.1.0", &[("a", b"two")])]);
    (world, old)
}

#[test]
fn an_older_state_is_refused_by_a_client_that_saw_the_newer_one() {
    let (world, old) = two_states();
    let client = world.client();
    refresh(&world.storage(), &client, 2).unwrap();
    let before = client.clone();
    assert!(client.version("timestamp") > 1);
    assert_eq!(code(refresh(&Copy(old), &client, 2)), "metadata.rollback");
    assert_eq!(client, before, "nothing that is kept went back");
}

#[test]
fn a_frozen_state_is_refused_once_it_expires() {
    let (world, old) = two_states();
    let (client, frozen) = (world.client(), Copy(old));
    assert_eq!(code(refresh(&frozen, &client, 24)), "accepted");
    assert_eq!(code(refresh(&frozen, &client, 8 * 24)), "metadata.expired");
}

#[test]
fn expired_metadata_is_refused_role_by_role() {
    // What expires first decides; the others are made to last.
    for (kind, days) in [
        (RoleKind::Root, [1, 9, 9, 9]),
        (RoleKind::Targets, [9, 1, 9, 9]),
        (RoleKind::Snapshot, [9, 9, 1, 9]),
        (RoleKind::Timestamp, [9, 9, 9, 1]),
    ] {
        let world = World { dir: tempfile::tempdir().unwrap(), keys: four_keys(), grace_s: 0 };
        let [root_days, targets_days, snapshot_days, timestamp_days] = days;
        let settings = RepositorySettings {
            root_days,
            targets_days,
            snapshot_days,
            timestamp_days,
            ..RepositorySettings::default()
        };
        let storage = world.storage();
        drop(Publisher::create(&storage, &role_keys(&world.keys), settings, &world.keys, at(0)).unwrap());
        assert_eq!(code(refresh(&storage, &world.client(), 23)), "accepted", "{kind}");
        let refused = refresh(&storage, &world.client(), 24).err().unwrap();
        assert_eq!(refused.code(), "metadata.expired", "{kind}");
        assert!(refused.to_string().starts_with(&format!("`{kind}` expired")), "{refused}");
    }
}

#[test]
fn parts_of_two_states_are_not_mixed() {
    let (world, old) = two_states();
    let new = copy(&world);
    for role in ["snapshot", "targets"] {
        // Each old file under the name of the new one.
        let newest = |files: &BTreeMap<String, Vec<u8>>| {
            let names = files.keys().filter(|name| name.ends_with(&format!(".{role}.json")));
            names.max_by_key(|name| number(name)).expect("there is one").clone()
        };
        let mut mixed = new.clone();
        mixed.insert(newest(&new), old[&newest(&old)].clone());
        // The old file may be longer than the new one was announced.
        let refused = code(refresh(&Copy(mixed), &world.client(), 2));
        assert!(matches!(refused, "metadata.content" | "metadata.too-large"), "{role}: {refused}");
    }
}

fn number(path: &str) -> u64 {
    path.trim_start_matches("metadata/").split('.').next().expect("as prepared").parse().expect("as prepared")
}

#[test]
fn metadata_of_another_repository_is_refused() {
    let (one, other) = (World::new(0), World::new(0));
    assert_eq!(code(refresh(&other.storage(), &one.client(), 1)), "metadata.threshold");
}

#[test]
fn every_altered_byte_of_metadata_is_refused_or_changes_nothing() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    let storage = world.storage();
    let timestamp = read(&storage, "metadata/timestamp.json");
    let good: serde_json::Value = serde_json::from_slice(&timestamp).unwrap();
    for place in 0..timestamp.len() {
        let mut altered = timestamp.clone();
        altered[place] ^= 0x01;
        let meddled = Meddled::new(&storage).with("metadata/timestamp.json", altered.clone());
        if code(refresh(&meddled, &world.client(), 1)) == "accepted" {
            // White space, and nothing else.
            let read: serde_json::Value = serde_json::from_slice(&altered).unwrap();
            assert_eq!(read, good, "byte {place}");
        }
    }
}

/// A repository whose timestamp takes two signatures of three keys.
fn with_threshold() -> World {
    let mut keys = four_keys();
    keys.extend((0..2).map(|_| MetadataKey::generate().expect("as prepared").0));
    let world = World { dir: tempfile::tempdir().expect("as prepared"), keys, grace_s: 0 };
    let mut roles = role_keys(&world.keys);
    let publics = world.keys[3..].iter().map(|key| key.public().clone()).collect();
    roles.insert(RoleKind::Timestamp, (publics, 2));
    let storage = world.storage();
    drop(
        Publisher::create(&storage, &roles, RepositorySettings::default(), &world.keys, at(0))
            .expect("as prepared"),
    );
    world
}

#[test]
fn one_key_counts_once_however_often_it_signed() {
    let world = with_threshold();
    let storage = world.storage();
    let timestamp: serde_json::Value =
        serde_json::from_slice(&read(&storage, "metadata/timestamp.json")).unwrap();
    let with = |signatures: Vec<serde_json::Value>| {
        let mut altered = timestamp.clone();
        altered["signatures"] = signatures.into();
        let bytes = serde_json::to_vec(&altered).unwrap();
        let meddled = Meddled::new(&storage).with("metadata/timestamp.json", bytes);
        code(refresh(&meddled, &world.client(), 1))
    };
    let all = timestamp["signatures"].as_array().unwrap().clone();
    assert_eq!(all.len(), 3);
    assert_eq!(with(vec![all[0].clone(), all[2].clone()]), "accepted");
    assert_eq!(with(vec![all[0].clone()]), "metadata.threshold");
    assert_eq!(with(Vec::new()), "metadata.threshold");
    assert_eq!(with(vec![all[0].clone(), all[0].clone()]), "metadata.malformed");
    // The same signature under the id of another key, and under one nobody knows.
    let under = |id: &str| {
        let mut signature = all[0].clone();
        signature["keyid"] = id.into();
        signature
    };
    assert_eq!(with(vec![all[0].clone(), under(all[1]["keyid"].as_str().unwrap())]), "metadata.threshold");
    assert_eq!(with(vec![all[0].clone(), under("0")]), "metadata.threshold");
}

#[test]
fn a_key_that_is_listed_under_two_ids_counts_once() {
    let world = World::new(0);
    let storage = world.storage();
    let root: serde_json::Value = serde_json::from_slice(&world.root()).unwrap();
    let mut doubled = root.clone();
    let id = root["signed"]["roles"]["timestamp"]["keyids"][0].as_str().unwrap();
    let key = root["signed"]["keys"][id].clone();
    doubled["signed"]["keys"]["again"] = key;
    doubled["signed"]["roles"]["timestamp"] = serde_json::json!({ "keyids": [id, "again"], "threshold": 2 });
    let role = |name: &str| &doubled["signed"]["roles"][name];
    let keys: BTreeMap<String, cutover_repo::tuf::PublicKey> =
        serde_json::from_value(doubled["signed"]["keys"].clone()).unwrap();
    let mut timestamp: cutover_repo::tuf::Envelope =
        serde_json::from_slice(&read(&storage, "metadata/timestamp.json")).unwrap();
    let mut again = timestamp.signatures[0].clone();
    again.keyid = "again".to_owned();
    timestamp.signatures.push(again);
    let role = serde_json::from_value(role("timestamp").clone()).unwrap();
    assert_eq!(timestamp.count_signatures(&role, &keys), Ok(1));
}

#[test]
fn endless_metadata_is_cut_off_at_its_bound() {
    struct Endless<'a> {
        inner: &'a dyn Fetch,
        path: &'a str,
    }

    impl Fetch for Endless<'_> {
        fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
            if path == self.path {
                return cutover_repo::read_bounded(std::io::repeat(b' '), bytes_max);
            }
            self.inner.fetch(path, bytes_max)
        }
    }

    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    let storage = world.storage();
    let newest = |role: &str| {
        let names = world.files().into_iter().filter(|name| name.ends_with(&format!(".{role}.json")));
        names.max_by_key(|name| number(name)).unwrap()
    };
    for path in ["metadata/2.root.json", "metadata/timestamp.json", &newest("snapshot"), &newest("targets")] {
        let endless = Endless { inner: &storage, path };
        assert_eq!(code(refresh(&endless, &world.client(), 1)), "metadata.too-large", "{path}");
    }
}

#[test]
fn kept_metadata_that_nobody_signed_is_not_believed() {
    let (world, _) = two_states();
    let client = world.client();
    refresh(&world.storage(), &client, 2).unwrap();
    // Somebody wound the kept timestamp forward so that updates would look like steps back.
    let mut kept: serde_json::Value =
        serde_json::from_slice(&client.load("timestamp").unwrap().unwrap()).unwrap();
    kept["signed"]["version"] = 4_000_000_000u64.into();
    client.keep("timestamp", &serde_json::to_vec(&kept).unwrap()).unwrap();
    assert_eq!(code(refresh(&world.storage(), &client, 2)), "accepted");
}

#[test]
fn a_root_that_skips_a_version_or_lacks_the_old_keys_is_refused() {
    let (world, foreign) = (World::new(0), World::new(0));
    let storage = world.storage();
    // Its own first root again, as the second one.
    let meddled = Meddled::new(&storage).with("metadata/2.root.json", world.root());
    assert_eq!(code(refresh(&meddled, &world.client(), 1)), "metadata.version");
    // A root that signs itself.
    let meddled = Meddled::new(&storage).with("metadata/2.root.json", foreign.root());
    assert_eq!(code(refresh(&meddled, &world.client(), 1)), "metadata.threshold");
}
