//! What clients fetch, keep and find.

use cutover_repo::{State as _, StateDirectory, Storage as _};

use crate::world::{Meddled, Memory, World, bundle, refresh, resolve};

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
    let again = refresh(&counted, &client, 2).unwrap();
    assert!(again.is_unchanged());
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
