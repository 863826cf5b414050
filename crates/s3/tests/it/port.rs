//! What the port promises, over a bucket.

use std::{io::Read as _, time::Duration};

use cutover_repo::{Lock, Locked, Storage};
use cutover_s3::{S3Error, S3Options, S3Storage};

use crate::{
    moto::{Moto, Readers},
    proxy::{self, Act, Moment},
};

/// Long enough that no holder misses it on a busy machine.
const LONG: Duration = Duration::from_secs(4000);
const SHORT: Duration = Duration::from_secs(1);

fn variable(name: &str) -> Option<String> {
    match name {
        "AWS_ACCESS_KEY_ID" => Some("testing".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("testing".to_owned()),
        _ => None,
    }
}

fn options(endpoint: &str, owner: &str, lease: Duration) -> S3Options {
    S3Options {
        endpoint: Some(endpoint.to_owned()),
        allow_http: true,
        owner: owner.to_owned(),
        lease,
        ..S3Options::default()
    }
}

fn open(endpoint: &str, address: &str, owner: &str, lease: Duration) -> S3Storage {
    S3Storage::open(address.parse().unwrap(), &options(endpoint, owner, lease), &variable).unwrap()
}

fn started() -> Option<Moto> {
    let moto = Moto::start()?;
    moto.make_bucket("bucket", Readers::Private);
    Some(moto)
}

fn read(storage: &S3Storage, path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    storage.open(path).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[track_caller]
fn locked(storage: &S3Storage) -> Box<dyn Locked> {
    match storage.lock().unwrap() {
        Lock::Held(lock) => lock,
        Lock::InUse { by } => panic!("in use by {by:?}"),
    }
}

fn s3(error: &std::io::Error) -> &S3Error {
    S3Error::of(error).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn files_are_written_read_replaced_listed_and_removed_below_the_prefix_only() {
    let Some(moto) = started() else { return };
    let beside = open(&moto.endpoint, "s3://bucket/app2", "a", LONG);
    beside.replace("theirs", b"theirs").unwrap();
    let storage = open(&moto.endpoint, "s3://bucket/app", "a", LONG);
    assert_eq!((storage.list("").unwrap(), storage.size("x").unwrap()), (Vec::new(), None));
    assert!(storage.open("x").unwrap().is_none());
    let contents: Vec<(String, Vec<u8>)> =
        (0..40).map(|number| (format!("objects/{number:02}"), vec![number; usize::from(number)])).collect();
    let mut batch = storage.batch().unwrap();
    for (path, content) in &contents {
        batch.add(path, &mut |out| out.write_all(content)).unwrap();
    }
    batch.commit().unwrap();
    storage.replace("metadata/timestamp.json", b"one").unwrap();
    storage.replace("metadata/timestamp.json", b"two").unwrap();
    for (path, content) in &contents {
        assert_eq!(read(&storage, path).as_ref(), Some(content));
    }
    assert_eq!(read(&storage, "metadata/timestamp.json").as_deref(), Some(&b"two"[..]));
    let paths: Vec<&str> = contents.iter().map(|(path, _)| path.as_str()).chain(["objects/none"]).collect();
    let sizes = storage.sizes(&paths).unwrap();
    assert_eq!(sizes, (0..40).map(Some).chain([None]).collect::<Vec<_>>());
    assert_eq!(storage.list("").unwrap().len(), 41);
    assert_eq!(storage.list("metadata").unwrap(), ["metadata/timestamp.json"]);
    let removed: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    storage.remove(&removed).unwrap();
    assert_eq!(storage.list("").unwrap(), ["metadata/timestamp.json"]);
    assert_eq!(beside.list("").unwrap(), ["theirs"]);
}

#[test]
fn large_files_go_in_parts_and_one_that_fails_leaves_no_name() {
    let Some(moto) = started() else { return };
    let storage = open(&moto.endpoint, "s3://bucket", "a", LONG);
    // More than one request may carry.
    let piece: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    let mut batch = storage.batch().unwrap();
    batch.add("deltas/large", &mut |out| (0..70).try_for_each(|_| out.write_all(&piece))).unwrap();
    let failed = batch.add("deltas/damaged", &mut |out| {
        (0..70).try_for_each(|_| out.write_all(&piece))?;
        Err(std::io::Error::other("its digest is another one"))
    });
    assert!(failed.is_err());
    assert!(batch.add("small", &mut |_| Err(std::io::Error::other("as well"))).is_err());
    batch.commit().unwrap();
    assert_eq!(storage.list("").unwrap(), ["deltas/large"]);
    let content = read(&storage, "deltas/large").unwrap();
    assert_eq!(content.len(), 70 << 20);
    assert!(content.chunks(1 << 20).all(|chunk| chunk == piece));
}

#[test]
fn one_publisher_at_a_time_and_the_next_learns_who_it_is() {
    let Some(moto) = started() else { return };
    // Renewed every five seconds.
    let lease = Duration::from_secs(20);
    let first = open(&moto.endpoint, "s3://bucket", "anna on a", lease);
    let second = open(&moto.endpoint, "s3://bucket", "bob on b", lease);
    let lock = locked(&first);
    match second.lock().unwrap() {
        Lock::InUse { by } => assert_eq!(by.as_deref(), Some("anna on a")),
        Lock::Held(_) => panic!("two have it"),
    }
    drop(lock);
    drop(locked(&second));
    drop(locked(&first));
}

#[test]
fn a_dead_publisher_is_taken_over_from_and_cannot_write_what_others_rely_on() {
    let Some(moto) = started() else { return };
    let dead = open(&moto.endpoint, "s3://bucket", "anna on a", LONG);
    let lock = locked(&dead);
    dead.replace("metadata/timestamp.json", b"of anna").unwrap();
    // It does not renew within the time that the other one gives it: it might as well be dead, or asleep.
    let other = open(&moto.endpoint, "s3://bucket", "bob on b", SHORT);
    let others = locked(&other);
    assert_eq!(read(&other, "metadata/timestamp.json").as_deref(), Some(&b"of anna"[..]));
    for refused in [
        dead.replace("metadata/timestamp.json", b"of anna again").unwrap_err(),
        dead.remove(&["metadata/timestamp.json".to_owned()]).unwrap_err(),
        dead.batch().err().unwrap(),
    ] {
        assert!(matches!(s3(&refused), S3Error::LockLost { by } if by == "bob on b"), "{refused:?}");
    }
    other.replace("metadata/timestamp.json", b"of bob").unwrap();
    drop(lock);
    assert_eq!(read(&other, "metadata/timestamp.json").as_deref(), Some(&b"of bob"[..]));
    other.replace("metadata/timestamp.json", b"still of bob").unwrap();
    drop(others);
}

#[test]
fn what_was_changed_since_it_was_read_is_not_overwritten() {
    let Some(moto) = started() else { return };
    // Without the lock: what is left of its protection when it was lost in the very last moment.
    let one = open(&moto.endpoint, "s3://bucket", "a", LONG);
    one.replace("metadata/timestamp.json", b"1").unwrap();
    let two = open(&moto.endpoint, "s3://bucket", "b", LONG);
    assert!(read(&two, "metadata/timestamp.json").is_some());
    one.replace("metadata/timestamp.json", b"2 of one").unwrap();
    let refused = two.replace("metadata/timestamp.json", b"2 of two").unwrap_err();
    assert!(matches!(s3(&refused), S3Error::Changed(path) if path == "metadata/timestamp.json"));
    assert_eq!(read(&one, "metadata/timestamp.json").as_deref(), Some(&b"2 of one"[..]));
    // What is there with just these bytes was written by an earlier try.
    let three = open(&moto.endpoint, "s3://bucket", "c", LONG);
    three.replace("metadata/timestamp.json", b"2 of one").unwrap();
}

#[test]
fn storage_that_compares_bare_entity_tags_is_understood() {
    let Some(moto) = started() else { return };
    // As Ceph's gateway, version 16: the quotes belong to no tag it knows.
    let endpoint = proxy::start(&moto.endpoint, |moment, head| {
        let is_quoted = head.lines().any(|line| line.starts_with("if-match: \""));
        if moment == Moment::Request && is_quoted { Act::Fail } else { Act::Pass }
    });
    for content in [b"1", b"2"] {
        let storage = open(&endpoint, "s3://bucket", "a", LONG);
        let lock = locked(&storage);
        storage.replace("metadata/timestamp.json", content).unwrap();
        assert_eq!(read(&storage, "metadata/timestamp.json").as_deref(), Some(&content[..]));
        drop(lock);
    }
    let two = open(&endpoint, "s3://bucket", "b", LONG);
    assert!(read(&two, "metadata/timestamp.json").is_some());
    open(&endpoint, "s3://bucket", "a", LONG).replace("metadata/timestamp.json", b"3").unwrap();
    let refused = two.replace("metadata/timestamp.json", b"of two").unwrap_err();
    assert!(matches!(s3(&refused), S3Error::Changed(_)), "{refused:?}");
}

#[test]
fn storage_that_never_matches_a_version_is_refused() {
    let Some(moto) = started() else { return };
    let endpoint = proxy::start(&moto.endpoint, |moment, head| {
        let is_asked = moment == Moment::Request && head.contains("\nif-match: ");
        if is_asked { Act::Fail } else { Act::Pass }
    });
    // The first run makes the lock, the second finds it.
    for lease in [LONG, SHORT] {
        let refused = open(&endpoint, "s3://bucket", "a", lease).lock().err().unwrap();
        assert!(matches!(s3(&refused), S3Error::Unmatched { .. }), "{refused:?}");
    }
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_with_a_remedy() {
    let Some(moto) = started() else { return };
    let absent = open(&moto.endpoint, "s3://no-such-bucket/app", "a", LONG);
    let with_path = absent.open("metadata/timestamp.json").err().unwrap();
    for refused in [with_path, absent.lock().err().unwrap(), absent.list("").unwrap_err()] {
        assert!(
            matches!(s3(&refused), S3Error::NoBucket { bucket, .. } if bucket == "no-such-bucket"),
            "{refused:?}"
        );
        assert!(s3(&refused).hint().contains("make the bucket"));
    }
    // A port that nobody listens on, given back by the system.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = open(&format!("http://{free}"), "s3://bucket", "a", LONG);
    let refused = nobody.size("x").unwrap_err();
    assert!(matches!(s3(&refused), S3Error::Unreachable { .. }), "{refused:?}");
}
