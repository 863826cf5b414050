//! The transparency log: what clients demand of it, and what somebody who lies cannot do.

use std::{collections::BTreeMap, process::Command};

use cutover_bundle::tlog::{CheckpointPolicy, KeyKind, NoteError, ProofError, VerifierKey};
use cutover_repo::{
    CHECKPOINT_PATH, Fetch, FetchError, FollowedLog, LogError, MetadataKey, PublishError, State as _,
    Storage, add_cosignatures, audit, list,
};

use crate::world::{Memory, Verified, World, at, bundle, ed25519};

fn policy(world: &World) -> CheckpointPolicy {
    CheckpointPolicy::new(world.log_key(), Vec::new(), 0).expect("a policy")
}

fn release(number: usize) -> Verified {
    bundle(&format!("1.{number}.0"), &[("file", format!("content {number}").as_bytes())])
}

/// A log with releases 1.0.0 to 1.`count`.0, published in two runs.
fn logged(count: usize) -> (World, Vec<Verified>) {
    let world = World::new(3600);
    let releases: Vec<Verified> = (0..count).map(release).collect();
    world.publish(0, &[&releases[0]]);
    world.start_log(0);
    world.publish(1, &releases[1..].iter().collect::<Vec<_>>());
    (world, releases)
}

/// A client's proof that a release is in the log.
fn check(world: &World, log: &FollowedLog<'_>, bundle: &Verified) -> Result<(), LogError> {
    let sha256 = bundle.release().manifest;
    let listed = list(&world.storage()).expect("listed");
    let listed = listed.into_iter().find(|listed| listed.entry.manifest.sha256 == sha256);
    log.check(bundle.manifest(), sha256, listed.and_then(|listed| listed.entry.log_index))
}

/// A copy of a repository, in memory.
struct Copy(BTreeMap<String, Vec<u8>>);

impl Copy {
    fn of(world: &World) -> Self {
        let read = |path: String| {
            let bytes = std::fs::read(world.dir.path().join(&path)).expect("read");
            (path, bytes)
        };
        Self(world.files().into_iter().map(read).collect())
    }
}

impl Fetch for Copy {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let bytes = self.0.get(path).cloned().ok_or(FetchError::NotFound)?;
        if bytes.len() as u64 > bytes_max {
            Err(FetchError::TooLarge { limit: bytes_max })
        } else {
            Ok(bytes)
        }
    }
}

#[test]
fn every_published_release_is_proven_and_no_other() {
    let (world, releases) = logged(5);
    let storage = world.storage();
    let log = FollowedLog::follow(&storage, &Memory::default(), &policy(&world)).expect("followed");
    assert_eq!(log.checkpoint().size, 5);
    for release in &releases {
        check(&world, &log, release).expect("in the log");
    }
    let stranger = release(9);
    assert!(matches!(check(&world, &log, &stranger), Err(LogError::NotLogged(_))));
    // Where another release stands.
    let manifest = stranger.manifest();
    let claimed = log.check(manifest, stranger.release().manifest, Some(2));
    assert!(matches!(claimed, Err(LogError::NotThere { source: ProofError::Root, .. })), "{claimed:?}");
    let claimed = log.check(manifest, stranger.release().manifest, Some(5));
    assert!(matches!(claimed, Err(LogError::NotThere { source: ProofError::Outside { .. }, .. })));
    world.must_be_clean(1);
    // Publishing the same again, or promoting it, adds nothing to the log.
    world.publish(2, &[&releases[0]]);
    let promoted = |publisher: &mut cutover_repo::Publisher<'_>| {
        let (package, version, channel) =
            ("app".parse().unwrap(), "1.0.0".parse().unwrap(), "lts".parse().unwrap());
        publisher.promote(&package, &version, None, &channel)
    };
    world.with_publisher(2, promoted).expect("promoted");
    assert_eq!(audit(&storage, &policy(&world)).expect("whole").checkpoint.size, 5);
}

#[test]
fn log_that_was_seen_never_goes_backwards_and_never_becomes_another_one() {
    let (world, releases) = logged(3);
    let (client, policy) = (Memory::default(), policy(&world));
    let old = Copy::of(&world);
    world.publish(2, &[&release(3), &release(4)]);
    let new = Copy::of(&world);
    FollowedLog::follow(&old, &client, &policy).expect("followed");
    FollowedLog::follow(&new, &client, &policy).expect("followed");
    let back = FollowedLog::follow(&old, &client, &policy).map(drop);
    let is_back =
        |error: &LogError| matches!(error, LogError::Forked { source: ProofError::Backwards { .. }, .. });
    assert!(back.as_ref().is_err_and(is_back), "{back:?}");

    // The publisher itself shows somebody another history, with the same key.
    let forked = World::new(3600);
    forked.start_log(0);
    forked.publish(1, &[&releases[0], &release(7)]);
    for count in 10..14 {
        forked.publish(2, &[&release(count)]);
    }
    let other = FollowedLog::follow(&Copy::of(&forked), &client, &policy).map(drop);
    assert!(matches!(other, Err(LogError::Forked { .. })), "{other:?}");
    // A client that never saw anything cannot know; that is what witnesses are for.
    FollowedLog::follow(&Copy::of(&forked), &Memory::default(), &policy).expect("followed");
}

#[test]
fn memory_of_a_log_that_is_damaged_is_not_taken_for_none() {
    let (world, _) = logged(3);
    let (client, policy) = (Memory::default(), policy(&world));
    FollowedLog::follow(&world.storage(), &client, &policy).expect("followed");
    let kept = client.load("log").expect("in memory").expect("kept");
    let text = String::from_utf8(kept.clone()).expect("JSON");
    for damaged in [
        kept[..kept.len() / 2].to_vec(),
        Vec::new(),
        br#"{"signed": {}, "signatures": []}"#.to_vec(),
        text.replace("\\n3\\n", "\\n2\\n").into_bytes(),
    ] {
        client.keep("log", &damaged).expect("in memory");
        let refused = FollowedLog::follow(&world.storage(), &client, &policy).map(drop);
        assert!(matches!(refused, Err(LogError::State { action: "read", .. })), "{refused:?}");
        assert_eq!(client.load("log").expect("in memory"), Some(damaged), "it stays for whoever looks");
    }
    // Settings that name another log begin anew.
    let key = ed25519(8).verifier_key("log.example/other", KeyKind::Log).expect("a key");
    let another = CheckpointPolicy::new(key.clone(), Vec::new(), 0).expect("a policy");
    client.keep("log", &kept).expect("in memory");
    let fresh = World::new(3600);
    let mut keys = fresh.keys;
    keys[4] = ed25519(8);
    let fresh = World { keys, ..fresh };
    fresh.with_publisher(0, |publisher| publisher.start_log(&key)).expect("started");
    FollowedLog::follow(&fresh.storage(), &client, &another).expect("begun anew");
}

#[test]
fn a_checkpoint_counts_once_enough_witnesses_have_followed_the_log() {
    let (world, releases) = logged(3);
    let (storage, by_log) = (world.storage(), policy(&world));
    let witnesses: Vec<(MetadataKey, String, Memory)> =
        (1..=3).map(|seed| (ed25519(seed), format!("witness-{seed}.example"), Memory::default())).collect();
    let key = |(key, name, _): &(MetadataKey, String, Memory)| {
        key.verifier_key(name, KeyKind::Witness).expect("a key")
    };
    let keys: Vec<VerifierKey> = witnesses.iter().map(key).collect();
    let strict = CheckpointPolicy::new(world.log_key(), keys, 2).expect("a policy");
    let client = Memory::default();
    let refused = |storage: &dyn Fetch| match FollowedLog::follow(storage, &client, &strict).map(drop) {
        Err(LogError::Checkpoint(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(&storage).starts_with("0 of the 2 witnesses"));
    let cosign = |(key, name, seen): &(MetadataKey, String, Memory)| {
        FollowedLog::follow(&storage, seen, &by_log)?.cosigned(key, name, at(2))
    };
    let notes: Vec<Vec<u8>> = witnesses.iter().take(2).map(|one| cosign(one).expect("cosigned")).collect();
    assert_eq!(add_cosignatures(&storage, &notes[..1]).expect("added"), 1);
    assert_eq!(add_cosignatures(&storage, &notes[..1]).expect("nothing new"), 0);
    assert!(refused(&storage).starts_with("1 of the 2 witnesses"));
    assert_eq!(add_cosignatures(&storage, &notes).expect("added"), 1);
    let log = FollowedLog::follow(&storage, &client, &strict).expect("enough have");
    check(&world, &log, &releases[2]).expect("in the log");
    world.must_be_clean(2);

    // The next checkpoint has to be witnessed anew, and cosignatures of an earlier one do not count for it.
    world.publish(3, &[&release(3)]);
    assert!(refused(&storage).starts_with("0 of the 2 witnesses"));
    assert!(matches!(add_cosignatures(&storage, &notes), Err(PublishError::Note(NoteError::Syntax(_)))));
    // A witness that saw the log does not cosign another history of it.
    let forked = World::new(3600);
    forked.start_log(0);
    forked.publish(1, &[&release(7), &release(8), &release(9), &release(10), &release(11)]);
    let (_, _, seen) = &witnesses[0];
    assert!(matches!(
        FollowedLog::follow(&forked.storage(), seen, &by_log).map(drop),
        Err(LogError::Forked { .. })
    ));
}

#[test]
fn every_altered_file_of_the_log_is_noticed() {
    let (world, releases) = logged(4);
    let (good, policy) = (Copy::of(&world), policy(&world));
    let files: Vec<&String> = good.0.keys().filter(|path| path.starts_with("log/")).collect();
    // Those of the first run are superseded; they go after the grace.
    let files: Vec<&String> = files.into_iter().filter(|path| !path.ends_with(".p/1")).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for path in files.into_iter().filter(|path| path.as_str() != "log/key") {
        for at in 0..good.0[path].len() {
            let mut altered = Copy(good.0.clone());
            altered.0.get_mut(path).expect("there")[at] ^= 1;
            assert!(audit(&altered, &policy).is_err(), "{path}, byte {at}");
            if path.starts_with("log/tile/0") {
                let log = FollowedLog::follow(&altered, &Memory::default(), &policy).expect("signed");
                // Nobody asks the log for the hash of the entry that is looked up, but all others lead through it.
                let refused = releases.iter().any(|release| check(&world, &log, release).is_err());
                assert!(refused, "{path}, byte {at}");
            }
        }
    }
    std::fs::write(world.dir.path().join("log/tile/0/000.p/4"), [0; 128]).expect("written");
    assert!(world.report(1).problems.iter().any(|problem| problem.starts_with("log: ")));
}

#[test]
fn a_log_is_not_extended_without_its_key() {
    let (world, _) = logged(1);
    let storage = world.storage();
    let mut publisher = cutover_repo::Publisher::open(&storage, &world.keys[..4], at(2)).expect("opened");
    let refused = crate::world::publish(&mut publisher, &[&release(1)], None);
    assert!(matches!(refused, Err(PublishError::NoLogKey(name)) if name == "log.example/app"));
    drop(publisher);
    let other = ed25519(8).verifier_key("log.example/app", KeyKind::Log).expect("a key");
    let another = world.with_publisher(2, |publisher| publisher.start_log(&other));
    assert!(matches!(another, Err(PublishError::Exists)), "{another:?}");
    world.publish(2, &[&release(1)]);
    world.must_be_clean(2);
    assert!(Storage::size(&storage, CHECKPOINT_PATH).expect("looked at").is_some());
}

/// Reads the static files of a log with nothing but Python's standard library, as the specifications say, and computes the
/// root by the definition of RFC 6962.
const ORACLE: &str = r#"
import base64, hashlib, pathlib, sys
log = pathlib.Path(sys.argv[1])
text = (log / "checkpoint").read_text().split("\n\n")[0].split("\n")
size, root = int(text[1]), base64.b64decode(text[2])
def mth(d):
    if len(d) == 1: return hashlib.sha256(b"\x00" + d[0]).digest()
    k = 1
    while 2 * k < len(d): k *= 2
    return hashlib.sha256(b"\x01" + mth(d[:k]) + mth(d[k:])).digest()
def path(index, width):
    parts = ["%03d" % (index % 1000)]
    while index >= 1000:
        index //= 1000
        parts.insert(0, "x%03d" % (index % 1000))
    return "/".join(parts) + ("" if width == 256 else ".p/%d" % width)
entries = []
for index in range((size + 255) // 256):
    width = min(256, size - 256 * index)
    data = (log / "tile/entries" / path(index, width)).read_bytes()
    tile = (log / "tile/0" / path(index, width)).read_bytes()
    for number in range(width):
        length = int.from_bytes(data[:2], "big")
        entry, data = data[2:2 + length], data[2 + length:]
        assert hashlib.sha256(b"\x00" + entry).digest() == tile[32 * number:32 * number + 32]
        entries.append(entry)
    assert not data
for index in range(size // 256):
    above = (log / "tile/1" / path(0, size // 256)).read_bytes()
    assert mth(entries[256 * index:256 * index + 256]) == above[32 * index:32 * index + 32]
assert mth(entries) == root, "root"
print(size)
"#;

#[test]
fn another_implementation_reads_the_same_log() {
    let world = World::new(3600);
    world.start_log(0);
    let releases: Vec<Verified> = (0..300).map(release).collect();
    world.publish(1, &releases[..7].iter().collect::<Vec<_>>());
    world.publish(2, &releases[7..].iter().collect::<Vec<_>>());
    let log = world.dir.path().join("log");
    let run =
        Command::new("python3").args(["-c", ORACLE, log.to_str().expect("UTF-8")]).output().expect("run");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "300");
    world.must_be_clean(2);
}
