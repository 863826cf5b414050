//! Publishing, promoting, yanking, removing.

use cutover_core::model::Digest;
use cutover_repo::{MetadataKey, PublishError, Publisher, SigningError, delta_path, list, tuf::RoleKind};

use crate::world::{
    World, at, bundle, bundle_of, four_keys, name, publish, publish_delta, role_keys, version,
};

const COMMON: (&str, &[u8]) = ("lib/same", b"the same in every release");

#[test]
fn a_published_release_is_listed_verified_and_found_by_clients() {
    let world = World::new(0);
    let published = world.publish(1, &[&bundle("1.0.0", &[COMMON, ("bin/a", b"one")])]);
    assert_eq!((published.releases, published.objects_new, published.objects_shared), (1, 2, 0));
    let report = world.must_be_clean(1);
    assert_eq!((report.releases, report.objects), (1, 2));
    assert_eq!(world.resolve(&world.client(), 1, None), Ok("1.0.0".to_owned()));
}

#[test]
fn releases_share_objects() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON, ("bin/a", b"one")])]);
    let published = world.publish(2, &[&bundle("1.1.0", &[COMMON, ("bin/a", b"two")])]);
    assert_eq!((published.objects_new, published.objects_shared), (1, 1));
    assert_eq!(world.must_be_clean(2).objects, 3);
}

#[test]
fn publishing_the_same_bundle_again_changes_nothing() {
    let world = World::new(0);
    let one = bundle("1.0.0", &[COMMON]);
    let version = world.publish(1, &[&one]).version;
    let files = world.files();
    let again = world.publish(2, &[&one]);
    assert_eq!((again.releases, again.bytes, again.version), (0, 0, version));
    assert_eq!(world.files(), files);
}

#[test]
fn publishing_again_mends_what_was_lost() {
    let world = World::new(0);
    let one = bundle("1.0.0", &[COMMON, ("bin/a", b"one")]);
    world.publish(1, &[&one]);
    let lost: Vec<String> = world
        .files()
        .into_iter()
        .filter(|file| file.starts_with("objects/") || file.starts_with("manifests/"))
        .collect();
    for file in &lost {
        std::fs::remove_file(world.dir.path().join(file)).unwrap();
    }
    assert_eq!(world.report(1).problems.len(), 3, "manifest, signature, list of objects");
    world.publish(2, &[&one]);
    world.must_be_clean(2);
}

// D16
#[test]
fn second_delta_of_a_pair_replaces_the_first() {
    let world = World::new(3600);
    let releases = ["1.0.0", "1.1.0", "1.2.0"].map(|version| bundle(version, &[COMMON]));
    let [one, two, three] = &releases;
    let publish = |hours: i64, from, delta: &[u8]| {
        world.with_publisher(hours, |publisher| publish_delta(publisher, three, from, delta)).unwrap()
    };
    // By version, the deltas that lead to 1.2.0, and which of their files are there.
    let listed = || {
        let listed = list(&world.storage()).unwrap();
        let entry = listed.into_iter().map(|one| one.entry).find(|entry| entry.version == version("1.2.0"));
        let deltas = entry.expect("listed").deltas;
        deltas
            .into_iter()
            .map(|delta| (delta.from.version.to_string(), delta.bundle.sha256))
            .collect::<Vec<_>>()
    };
    let is_there = |delta: &[u8]| world.dir.path().join(delta_path(Digest::of(delta))).exists();
    let named = |from: &str, delta: &[u8]| (from.to_owned(), Digest::of(delta));
    world.publish(0, &[one, two]);
    publish(1, one, b"the first");
    publish(1, two, b"of another pair");
    assert_eq!(listed(), [named("1.0.0", b"the first"), named("1.1.0", b"of another pair")]);

    let published = publish(1, one, b"the second");
    assert_eq!((published.releases, published.deltas), (0, 1));
    assert_eq!(listed(), [named("1.0.0", b"the second"), named("1.1.0", b"of another pair")]);
    // Whoever read the older index still finds the first, until the grace is over.
    assert!(is_there(b"the first") && is_there(b"the second"));
    world.must_be_clean(1);
    world.with_publisher(9, |publisher| publisher.refresh()).unwrap();
    assert!(!is_there(b"the first") && is_there(b"the second") && is_there(b"of another pair"));
    assert_eq!(world.must_be_clean(9).deltas, 2);

    let files = world.files();
    let again = publish(9, one, b"the second");
    assert_eq!((again.deltas, again.bytes), (0, 0));
    assert_eq!(world.files(), files);
}

#[test]
fn a_version_never_changes_its_content() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON])]);
    let files = world.files();
    for other in ["1.0.0", "1.0.0+rebuilt"] {
        let refused = world.try_publish(2, &[&bundle(other, &[("bin/a", b"other")])]);
        assert!(matches!(refused, Err(PublishError::Conflict { .. })), "{other}: {refused:?}");
    }
    assert_eq!(world.files(), files);
    world.publish(3, &[&bundle_of("other", "1.0.0", &[COMMON])]);
}

#[test]
fn of_several_bundles_all_or_none_are_published() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON])]);
    let (new, conflicting) = (bundle("1.1.0", &[COMMON]), bundle("1.0.0", &[("x", b"y")]));
    assert!(world.try_publish(2, &[&new, &conflicting]).is_err());
    assert_eq!(world.resolve(&world.client(), 2, None), Ok("1.0.0".to_owned()));
    world.publish(3, &[&new, &bundle("1.2.0", &[COMMON])]);
    assert_eq!(world.resolve(&world.client(), 3, None), Ok("1.2.0".to_owned()));
}

// M14
#[test]
fn removed_release_is_gone_with_its_files_manifest_index_entry_and_tombstone() {
    let world = World::new(0);
    let nothing = world.files();
    world.publish(1, &[&bundle("1.0.0", &[("a", b"one"), ("b", b"two"), ("c", b"three")])]);
    let removed = world
        .with_publisher(2, |publisher| publisher.remove(&name("app"), &version("1.0.0"), None, None))
        .unwrap();
    assert_eq!((removed.places, removed.is_pending), (1, false));
    assert_eq!(list(&world.storage()).unwrap(), Vec::new());
    let left = world.files();
    let beyond_metadata = |files: &[String]| {
        files.iter().filter(|file| !file.starts_with("metadata/")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(beyond_metadata(&left), beyond_metadata(&nothing));
    assert_eq!(left.len(), nothing.len(), "one file of metadata for each role: {left:?}");
    world.must_be_clean(2);
}

// M15
#[test]
fn removing_an_unknown_version_is_not_found_and_changes_nothing() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON])]);
    let before: Vec<(String, Digest)> = world.files().into_iter().map(|file| digest(&world, file)).collect();
    for (package, number) in [("app", "2.0.0"), ("other", "1.0.0")] {
        let removed = world
            .with_publisher(2, |publisher| publisher.remove(&name(package), &version(number), None, None));
        assert!(matches!(removed, Err(PublishError::NotFound(_))), "{removed:?}");
    }
    let after: Vec<(String, Digest)> = world.files().into_iter().map(|file| digest(&world, file)).collect();
    assert_eq!(after, before);
}

#[test]
fn removing_without_the_keys_of_the_targets_is_refused_and_changes_nothing() {
    let mut world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON])]);
    let before = world.files();
    for missing in 1..4 {
        let key = std::mem::replace(&mut world.keys[missing], MetadataKey::generate().unwrap().0);
        let removed = world
            .with_publisher(2, |publisher| publisher.remove(&name("app"), &version("1.0.0"), None, None));
        let is_it = |error: &PublishError| {
            matches!(error, PublishError::Signing(SigningError::TooFewKeys { found: 0, needed: 1, .. }))
        };
        assert!(removed.as_ref().is_err_and(is_it), "{removed:?}");
        assert_eq!(world.files(), before);
        world.keys[missing] = key;
    }
}

fn digest(world: &World, file: String) -> (String, Digest) {
    let bytes = std::fs::read(world.dir.path().join(&file)).expect("as prepared");
    (file, Digest::of(&bytes))
}

// M16: what a crash leaves between metadata and files is shown by `crash::every_crash_leaves_the_old_or_the_new_state`.
#[test]
fn removal_whose_files_were_left_is_completed_by_the_next_run() {
    let world = World::new(3600);
    world.publish(0, &[&bundle("1.0.0", &[COMMON, ("a", b"gone")])]);
    world.publish(0, &[&bundle("1.1.0", &[COMMON])]);
    let removed = world
        .with_publisher(1, |publisher| publisher.remove(&name("app"), &version("1.0.0"), None, None))
        .unwrap();
    assert!(removed.is_pending);
    let has_objects =
        |world: &World| world.files().iter().filter(|file| file.starts_with("objects/")).count();
    assert_eq!(has_objects(&world), 2, "a reader of the old metadata can finish");
    world.with_publisher(3, |publisher| publisher.refresh()).unwrap();
    assert_eq!(has_objects(&world), 1, "what 1.1.0 shares stays");
    assert_eq!(world.files().iter().filter(|file| file.contains("removed")).count(), 0);
    assert_eq!(world.must_be_clean(3).releases, 1);
}

// M17
#[test]
fn latest_is_by_semver_order_and_removed_releases_are_not_listed() {
    let world = World::new(86_400);
    let bundles = ["1.9.0", "1.10.0", "1.10.0-rc.1"].map(|version| bundle(version, &[COMMON]));
    world.publish(1, &bundles.iter().collect::<Vec<_>>());
    let listed = |world: &World| {
        let listed = list(&world.storage()).unwrap();
        listed.iter().map(|one| one.entry.version.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&world), ["1.10.0", "1.10.0-rc.1", "1.9.0"]);
    assert_eq!(world.resolve(&world.client(), 1, None), Ok("1.10.0".to_owned()));
    world
        .with_publisher(2, |publisher| publisher.remove(&name("app"), &version("1.10.0"), None, None))
        .unwrap();
    assert_eq!(listed(&world), ["1.10.0-rc.1", "1.9.0"]);
    // A pre-release is not what somebody gets who did not ask for it.
    assert_eq!(world.resolve(&world.client(), 2, None), Ok("1.9.0".to_owned()));
}

#[test]
fn a_removed_release_can_be_published_again_within_its_grace() {
    let world = World::new(3600);
    let one = bundle("1.0.0", &[COMMON]);
    world.publish(0, &[&one]);
    world
        .with_publisher(1, |publisher| publisher.remove(&name("app"), &version("1.0.0"), None, None))
        .unwrap();
    world.publish(1, &[&one]);
    world.with_publisher(9, |publisher| publisher.refresh()).unwrap();
    assert_eq!(world.must_be_clean(9).releases, 1);
    assert_eq!(world.resolve(&world.client(), 9, None), Ok("1.0.0".to_owned()));
}

#[test]
fn a_release_is_promoted_to_another_channel_without_new_objects() {
    let world = World::new(0);
    world
        .with_publisher(1, |publisher| publish(publisher, &[&bundle("1.0.0", &[COMMON])], Some("beta")))
        .unwrap();
    assert!(world.resolve(&world.client(), 1, None).is_err(), "`stable` has nothing");
    let objects = world.must_be_clean(1).objects;
    let promote = |world: &World, hours| {
        world.with_publisher(hours, |publisher| {
            publisher.promote(&name("app"), &version("1.0.0"), None, &name("stable"))
        })
    };
    assert_eq!(promote(&world, 2).unwrap(), [name("any")]);
    assert_eq!(promote(&world, 3).unwrap(), Vec::new());
    assert_eq!(world.must_be_clean(3).objects, objects);
    assert_eq!(world.resolve(&world.client(), 3, None), Ok("1.0.0".to_owned()));
    // From one channel only: the other still names its files.
    world
        .with_publisher(4, |publisher| {
            publisher.remove(&name("app"), &version("1.0.0"), None, Some(&name("beta")))
        })
        .unwrap();
    world.must_be_clean(4);
    assert_eq!(world.resolve(&world.client(), 4, None), Ok("1.0.0".to_owned()));
}

#[test]
fn a_yanked_release_is_not_chosen_but_can_be_asked_for() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON]), &bundle("1.1.0", &[COMMON])]);
    let yank = |hours, reason: Option<&str>| {
        let yanked = world
            .with_publisher(hours, |publisher| publisher.yank(&name("app"), &version("1.1.0"), None, reason));
        yanked.unwrap()
    };
    assert_eq!(yank(2, Some("loses data")), 1);
    assert_eq!(yank(3, Some("loses data")), 0);
    assert_eq!(world.resolve(&world.client(), 3, None), Ok("1.0.0".to_owned()));
    assert_eq!(world.resolve(&world.client(), 3, Some("1.1.0")), Ok("1.1.0".to_owned()));
    assert_eq!(yank(4, None), 1);
    assert_eq!(world.resolve(&world.client(), 4, None), Ok("1.1.0".to_owned()));
}

#[test]
fn only_one_publisher_works_at_a_time() {
    let world = World::new(0);
    let (one, other) = (world.storage(), world.storage());
    let first = Publisher::open(&one, &world.keys, at(1)).unwrap();
    let second = Publisher::open(&other, &world.keys, at(1));
    assert!(matches!(second.err(), Some(PublishError::InUse { .. })));
    drop(first);
    Publisher::open(&other, &world.keys, at(1)).unwrap();
}

#[test]
fn a_repository_is_set_up_once() {
    let world = World::new(0);
    let again = world.create(&world.storage());
    assert!(matches!(again, Err(PublishError::Exists)), "{again:?}");
}

#[test]
fn a_repository_that_somebody_replaced_whole_is_not_signed() {
    let world = World::new(0);
    world.publish(1, &[&bundle("1.0.0", &[COMMON])]);
    // Another repository with its own keys, whose root also lists the real targets key.
    let foreign = World { dir: tempfile::tempdir().unwrap(), keys: four_keys(), grace_s: 0 };
    let mut roles = role_keys(&foreign.keys);
    roles.insert(
        RoleKind::Targets,
        (vec![foreign.keys[1].public().clone(), world.keys[1].public().clone()], 1),
    );
    let storage = foreign.storage();
    Publisher::create(&storage, &roles, Default::default(), &foreign.keys, at(0)).unwrap();
    let refused = Publisher::open(&storage, &world.keys, at(1)).err();
    assert!(matches!(refused, Some(PublishError::ForeignMetadata(RoleKind::Targets))), "{refused:?}");
}

#[test]
fn refresh_needs_only_the_online_keys_and_keeps_the_targets() {
    let (snapshot, snapshot_pem) = MetadataKey::generate().unwrap();
    let (timestamp, timestamp_pem) = MetadataKey::generate().unwrap();
    let mut all = four_keys();
    all.splice(2.., [snapshot, timestamp]);
    let world = World { dir: tempfile::tempdir().unwrap(), keys: all, grace_s: 0 };
    world.create(&world.storage()).unwrap();
    world.publish(0, &[&bundle("1.0.0", &[COMMON])]);
    let online = [snapshot_pem, timestamp_pem].map(|pem| MetadataKey::from_pem(pem.as_bytes()).unwrap());
    let storage = world.storage();
    let client = world.client();
    assert!(world.resolve(&client, 8 * 24, None).is_err(), "the timestamp expired");
    let mut publisher = Publisher::open(&storage, &online, at(20 * 24)).unwrap();
    publisher.refresh().unwrap();
    drop(publisher);
    assert_eq!(world.resolve(&client, 20 * 24, None), Ok("1.0.0".to_owned()));
    let refused = Publisher::open(&storage, &online, at(21 * 24)).unwrap().yank(
        &name("app"),
        &version("1.0.0"),
        None,
        Some("because"),
    );
    assert!(matches!(refused, Err(PublishError::Signing(_))), "{refused:?}");
}
