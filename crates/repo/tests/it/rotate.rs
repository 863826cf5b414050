//! Replacing keys: clients follow, old keys end, and no moment is without metadata that clients accept.

use cutover_repo::{
    MetadataKey, Publisher, Rotation, State as _,
    tuf::{Envelope, RoleKind, Signature, canonical},
};

use crate::world::{Meddled, World, at, bundle, four_keys, refresh, resolve};

const ROLES: [RoleKind; 4] = [RoleKind::Root, RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp];

/// A repository with a release, its four keys and one more key.
fn world() -> World {
    let mut keys = four_keys();
    keys.push(MetadataKey::generate().expect("a key").0);
    let world = World { dir: tempfile::tempdir().expect("a directory"), keys, grace_s: 0 };
    world.create(&world.storage()).expect("set up");
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one")])]);
    world
}

fn rotation(world: &World, role: RoleKind) -> Rotation {
    let position = ROLES.iter().position(|kind| *kind == role).expect("one of them");
    Rotation {
        role,
        add: vec![world.keys[4].public().clone()],
        retire: vec![world.keys[position].id().to_owned()],
        threshold: None,
    }
}

#[test]
fn clients_follow_a_new_key_of_every_role_and_the_old_one_ends() {
    for (position, role) in ROLES.into_iter().enumerate() {
        let world = world();
        let client = world.client();
        world.resolve(&client, 1, None).unwrap();
        world.with_publisher(2, |publisher| publisher.rotate(&rotation(&world, role))).unwrap();
        assert_eq!(world.resolve(&client, 2, None), Ok("1.0.0".to_owned()), "{role}");
        assert_eq!(client.version("root"), 3);
        assert_eq!(world.resolve(&world.client(), 2, None), Ok("1.0.0".to_owned()), "{role}");
        world.must_be_clean(2);

        // Without the old key everything goes on; without the new one nothing does.
        let mut keys = world.keys;
        let new = keys.pop().unwrap();
        let old = std::mem::replace(&mut keys[position], new);
        let world = World { keys, ..world };
        world.publish(3, &[&bundle("1.1.0", &[("a", b"two")])]);
        assert_eq!(world.resolve(&client, 3, None), Ok("1.1.0".to_owned()), "{role}");
        let mut keys = world.keys;
        keys[position] = old;
        let world = World { keys, ..world };
        let mut next = rotation_of_nothing(role);
        next.threshold = Some(1);
        let refused = match role {
            RoleKind::Root => world.with_publisher(4, |publisher| {
                publisher.rotate(&Rotation { add: vec![world.keys[0].public().clone()], ..next.clone() })
            }),
            _ => world.try_publish(4, &[&bundle("1.2.0", &[("a", b"three")])]).map(drop),
        };
        assert!(refused.is_err(), "{role}");
    }
}

fn rotation_of_nothing(role: RoleKind) -> Rotation {
    Rotation { role, add: Vec::new(), retire: Vec::new(), threshold: None }
}

#[test]
fn every_step_of_a_rotation_is_a_state_that_clients_accept() {
    // The roots of the whole rotation beside the metadata before it, as a client may find them in between.
    for role in ROLES {
        let world = world();
        let before: Vec<(String, Vec<u8>)> = world
            .files()
            .into_iter()
            .filter(|file| file.starts_with("metadata/"))
            .map(|file| (file.clone(), std::fs::read(world.dir.path().join(&file)).unwrap()))
            .collect();
        world.with_publisher(2, |publisher| publisher.rotate(&rotation(&world, role))).unwrap();
        let storage = world.storage();
        let mut between = Meddled::new(&storage);
        for (path, bytes) in before {
            between = between.with(&path, bytes);
        }
        between.replaced.insert("metadata/3.root.json".to_owned(), None);
        assert_eq!(resolve(&between, &world.client(), 2, None), Ok("1.0.0".to_owned()), "{role}");
    }
}

#[test]
fn a_threshold_can_be_raised_and_then_one_key_is_not_enough() {
    let world = world();
    let client = world.client();
    let rotation = Rotation { retire: Vec::new(), threshold: Some(2), ..rotation(&world, RoleKind::Root) };
    world.with_publisher(2, |publisher| publisher.rotate(&rotation)).unwrap();
    assert_eq!(world.resolve(&client, 2, None), Ok("1.0.0".to_owned()));
    let mut keys = world.keys;
    let other = keys.pop().unwrap();
    let world = World { keys, ..world };
    let again = Rotation { threshold: Some(1), ..rotation_of_nothing(RoleKind::Root) };
    assert!(world.with_publisher(3, |publisher| publisher.rotate(&again)).is_err());
    let mut keys = world.keys;
    keys.push(other);
    let world = World { keys, ..world };
    world.with_publisher(3, |publisher| publisher.rotate(&again)).unwrap();
    assert_eq!(world.resolve(&client, 3, None), Ok("1.0.0".to_owned()));
}

#[test]
fn keys_that_are_not_in_hand_cannot_be_all_that_remains() {
    let world = world();
    let stranger = MetadataKey::generate().expect("a key").0;
    let before = world.files();
    for role in ROLES {
        let to_stranger = Rotation { add: vec![stranger.public().clone()], ..rotation(&world, role) };
        let two = Rotation { threshold: Some(2), retire: Vec::new(), ..to_stranger.clone() };
        let none = Rotation { threshold: Some(0), ..rotation(&world, role) };
        for refused in [to_stranger, two, none] {
            let refused = world.with_publisher(2, |publisher| publisher.rotate(&refused));
            assert!(refused.is_err(), "{role}: {refused:?}");
            assert_eq!(world.files(), before, "{role}");
        }
    }
    // It may be one of several.
    let one_more =
        Rotation { add: vec![stranger.public().clone()], ..rotation_of_nothing(RoleKind::Targets) };
    world.with_publisher(2, |publisher| publisher.rotate(&one_more)).unwrap();
    assert_eq!(world.resolve(&world.client(), 2, None), Ok("1.0.0".to_owned()));
}

#[test]
fn new_timestamp_keys_heal_a_repository_that_was_wound_forward() {
    // Whoever held the timestamp's key signed a huge version; clients that saw it refuse everything smaller.
    let world = world();
    let client = world.client();
    let storage = world.storage();
    refresh(&storage, &client, 1).unwrap();
    let kept: serde_json::Value =
        serde_json::from_slice(&client.load("timestamp").unwrap().unwrap()).unwrap();
    let mut forward = kept["signed"].clone();
    forward["version"] = 2_000_000_000u64.into();
    let key = &world.keys[3];
    let signature = key.sign(&canonical(&forward).unwrap()).unwrap();
    let sig: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let signatures = vec![Signature { keyid: key.id().to_owned(), sig }];
    let bytes = serde_json::to_vec(&Envelope { signed: forward, signatures }).unwrap();
    let meddled = Meddled::new(&storage).with("metadata/timestamp.json", bytes);
    refresh(&meddled, &client, 1).unwrap();
    assert_eq!(refresh(&storage, &client, 1).err().unwrap().code(), "metadata.rollback");
    world.with_publisher(2, |publisher| publisher.rotate(&rotation(&world, RoleKind::Timestamp))).unwrap();
    assert_eq!(world.resolve(&client, 2, None), Ok("1.0.0".to_owned()));
}

#[test]
fn a_root_is_renewed_when_half_of_its_time_is_over() {
    let world = world();
    let client = world.client();
    world.with_publisher(24 * 100, |publisher| publisher.refresh()).unwrap();
    let storage = world.storage();
    assert_eq!(Publisher::open(&storage, &world.keys, at(24 * 100)).unwrap().root().version, 1);
    world.with_publisher(24 * 200, |publisher| publisher.refresh()).unwrap();
    world.with_publisher(24 * 370, |publisher| publisher.refresh()).unwrap();
    assert_eq!(world.resolve(&client, 24 * 370, None), Ok("1.0.0".to_owned()));
    assert_eq!(client.version("root"), 2);
}
