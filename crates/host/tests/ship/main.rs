//! The shipper against a receiver on a real socket.

#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

mod receiver;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cutover_bundle::episode::HostKey;
use cutover_core::{
    admission::{Attestation, EpisodeKey, Statement},
    model,
};
use cutover_host::{
    clock::Clock,
    fetch::RealTimer,
    ship::{
        EpisodeStatus, OnRefused, ShipError, ShipPorts, ShipSettings, Shipper, SpoolLayout, State, Summary,
        Until, Which, drop_episodes, retry, status,
    },
};
use receiver::{Act, Receiver, Seen};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLD: &str = "ffffffffffffffffffffffffffffffffffffffff";
const REMEDIATION: &str = "Your recorder is out of date.\n  sudo recorder-update\nThen record again.";

struct Noon;

impl Clock for Noon {
    fn now(&self) -> model::Instant {
        model::Instant::from_unix(1_800_000_000).unwrap()
    }
}

struct World {
    directory: tempfile::TempDir,
    settings: ShipSettings,
}

impl World {
    fn new(receiver: &Receiver) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = ShipSettings {
            url: Some(receiver.url.clone()),
            spool: Some(directory.path().to_owned()),
            host: Some("h".parse().unwrap()),
            settle_s: 0,
            retry_wait_ms: 10,
            retry_wait_max_s: 1,
            ..ShipSettings::default()
        };
        Self { directory, settings }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A folder with a `meta.json` and `size` further bytes that do not compress.
    fn folder(&self, name: &str, commit: &str, size: usize) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.join("sub")).unwrap();
        fs::write(path.join("meta.json"), format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#)).unwrap();
        let mut noise = 1u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        })
        .take(size)
        .collect();
        fs::write(path.join("sub/data"), bytes).unwrap();
        path
    }

    fn ports(&self) -> ShipPorts {
        ShipPorts {
            timer: Arc::new(RealTimer::start()),
            clock: Arc::new(Noon),
            seed: 7,
            host_name: "m".to_owned(),
        }
    }

    fn open(&self) -> Result<Shipper, ShipError> {
        Shipper::open(self.settings.clone(), self.ports())
    }

    /// Ships until everything is shipped or parked.
    fn ship(&self) -> Summary {
        self.open().unwrap().run(Until::Empty, &|| false).unwrap()
    }

    /// Ships until `enough` says so.
    fn ship_until(&self, enough: impl Fn() -> bool) -> Summary {
        let started = Instant::now();
        let stopped = || {
            assert!(started.elapsed() < Duration::from_secs(50), "it does not come to an end");
            enough()
        };
        self.open().unwrap().run(Until::Stopped, &stopped).unwrap()
    }

    fn episodes(&self) -> BTreeMap<String, EpisodeStatus> {
        let status = status(&self.settings, "m").unwrap();
        status.episodes.into_iter().map(|episode| (episode.episode_id.clone(), episode)).collect()
    }

    /// The names in the spool that are not the shipper's own.
    fn left(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != ".cutover-ship").collect();
        names.sort();
        names
    }

    fn packed(&self) -> usize {
        fs::read_dir(self.path().join(".cutover-ship/packed")).unwrap().count()
    }
}

fn refusal() -> Act {
    let problem = serde_json::json!({
        "error": "commit-not-in-window", "remediation": REMEDIATION, "your_commit": OLD, "head_commit": COMMIT,
    });
    Act::Refuse(412, Vec::new(), problem.to_string())
}

#[test]
fn folder_and_archive_are_shipped_and_then_removed() {
    let receiver = Receiver::start(|_| Act::Store);
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 200_000);
    let bytes = zstd::encode_all(&b"no tar"[..], 1).unwrap();
    fs::write(world.path().join("e2.tar.zst"), &bytes).unwrap();
    assert_eq!(world.ship(), Summary { shipped: 2, parked: 0, queued: 0 });
    assert_eq!((world.left(), world.packed()), (Vec::new(), 0));

    let stored = receiver.stored();
    assert_eq!(stored["h/e2"], bytes);
    let unpacked = tempfile::tempdir().unwrap();
    fs::write(unpacked.path().join("x.tar.zst"), &stored["h/e1"]).unwrap();
    let mut tar = std::process::Command::new("tar");
    assert!(
        tar.args(["--zstd", "-xf", "x.tar.zst"]).current_dir(unpacked.path()).status().unwrap().success()
    );
    assert_eq!(fs::read(unpacked.path().join("e1/sub/data")).unwrap().len(), 200_000);

    let seen = receiver.seen();
    let of = |key: &str| seen.iter().find(|seen| seen.key == key).unwrap();
    assert_eq!(of("h/e1").headers["x-code-commit"], COMMIT);
    assert_eq!(of("h/e1").headers["expect"], "100-continue");
    assert!(!of("h/e2").headers.contains_key("x-code-commit"), "no commit, no header");
    let status = status(&world.settings, "m").unwrap();
    assert_eq!((status.shipped, status.last.len(), status.shipper), (2, 2, None));
    assert_eq!(world.ship(), Summary::default(), "nothing is sent twice");
    assert_eq!(receiver.seen().len(), 2);
}

#[test]
fn same_folder_is_packed_into_the_same_bytes() {
    let receiver = Receiver::start(|_| Act::Store);
    let packed: Vec<Vec<u8>> = (0..2)
        .map(|number| {
            let world = World::new(&receiver);
            let names = if number == 0 { ["a", "b", "c"] } else { ["c", "b", "a"] };
            let folder = world.path().join("e1");
            fs::create_dir(&folder).unwrap();
            for name in names {
                fs::write(folder.join(name), name).unwrap();
            }
            let old = fs::File::open(folder.join("a")).unwrap();
            old.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
            world.ship();
            receiver.stored()["h/e1"].clone()
        })
        .collect();
    assert_eq!(packed[0], packed[1], "the second one was `already-present`");
    assert_eq!(receiver.seen().len(), 2);
}

// I12
#[test]
fn refused_code_is_tried_once_and_parked_and_newer_episodes_ship() {
    let receiver = Receiver::start(|seen| match seen.headers["x-code-commit"].as_str() {
        OLD => refusal(),
        _ => Act::Store,
    });
    let world = World::new(&receiver);
    let old = world.folder("e1", OLD, 300_000);
    assert_eq!(world.ship(), Summary { shipped: 0, parked: 1, queued: 0 });
    world.folder("e2", COMMIT, 10);
    assert_eq!(world.ship(), Summary { shipped: 1, parked: 1, queued: 0 });
    assert_eq!(receiver.keys(), ["h/e1", "h/e2"], "one attempt each");
    assert_eq!(receiver.seen()[0].read, 0, "no byte of the body was sent for");
    assert!(old.join("sub/data").exists(), "a parked episode is kept");

    let parked = &world.episodes()["e1"];
    assert_eq!((parked.state, parked.tries, parked.status), (State::Parked, 1, Some(412)));
    assert_eq!(parked.remediation.as_deref(), Some(REMEDIATION));
    assert_eq!((parked.your_commit.as_deref(), parked.head_commit.as_deref()), (Some(OLD), Some(COMMIT)));
}

// ship-3
#[test]
fn refusals_for_good_are_parked_and_kept() {
    for code in [400, 404, 409, 411, 413] {
        let receiver = Receiver::start(move |seen| match seen.key.as_str() {
            "h/e1" => Act::Say(code, Vec::new(), r#"{"error":"no"}"#.to_owned()),
            _ => Act::Store,
        });
        let world = World::new(&receiver);
        world.folder("e1", COMMIT, 10);
        world.folder("e2", COMMIT, 10);
        assert_eq!(world.ship(), Summary { shipped: 1, parked: 1, queued: 0 }, "{code}");
        assert_eq!(world.left(), ["e1"]);
        assert_eq!(receiver.keys().iter().filter(|key| *key == "h/e1").count(), 1, "{code}");
    }
}

#[test]
fn parked_episode_is_sent_again_only_by_command_and_dropped_only_by_name() {
    let receiver = Receiver::start(|seen| match (seen.key.as_str(), seen.earlier) {
        ("h/e1", 0) | ("h/e2", _) => refusal(),
        _ => Act::Store,
    });
    let world = World::new(&receiver);
    world.folder("e1", OLD, 10);
    world.folder("e2", OLD, 10);
    assert_eq!(world.ship().parked, 2);
    assert_eq!(world.ship().parked, 2);
    assert_eq!(receiver.seen().len(), 2);

    let named = |name: &str| Which::Named(vec![name.to_owned()]);
    assert!(matches!(retry(&world.settings, "m", &named("e9")), Err(ShipError::Unknown(_))));
    assert_eq!(retry(&world.settings, "m", &named("h/e1")).unwrap(), ["h/e1"]);
    assert_eq!(world.ship(), Summary { shipped: 1, parked: 1, queued: 0 });
    assert_eq!(retry(&world.settings, "m", &Which::AllParked).unwrap(), ["h/e2"]);
    let drop = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        drop_episodes(&world.settings, "m", &names)
    };
    assert!(matches!(drop(&["e2"]), Err(ShipError::NotParked(..))));
    assert_eq!(world.ship().parked, 1);
    // Nothing is given up when one of the names means nothing.
    assert!(matches!(drop(&["e2", "e9"]), Err(ShipError::Unknown(_))));
    assert_eq!(world.left(), ["e2"]);
    assert_eq!(drop(&["e2", "h/e2"]).unwrap(), ["h/e2"]);
    assert_eq!((world.left(), world.packed(), world.episodes().len()), (Vec::new(), 0, 0));
    assert_eq!(receiver.keys().iter().filter(|key| *key == "h/e2").count(), 2);
}

// I13
#[test]
fn failures_are_tried_again_in_order_and_the_order_survives_a_restart() {
    let answers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&answers);
    let receiver = Receiver::start(move |seen| {
        counted.fetch_add(1, Ordering::SeqCst);
        match (seen.key.as_str(), seen.earlier) {
            ("h/e1", 0) => Act::Say(500, Vec::new(), String::new()),
            ("h/e1", 1) => Act::Cut,
            ("h/e1", 2) => Act::Say(302, vec![("Location", "http://127.0.0.1:1/".to_owned())], String::new()),
            ("h/e1", 3) => Act::Say(401, Vec::new(), String::new()),
            _ => Act::Store,
        }
    });
    let world = World::new(&receiver);
    for name in ["e1", "e2", "e3"] {
        world.folder(name, COMMIT, 10);
        // The oldest first, by the time of the last change.
        let when = std::time::UNIX_EPOCH + Duration::from_secs(name.as_bytes()[1].into());
        fs::File::open(world.path().join(name)).unwrap().set_modified(when).unwrap();
    }
    let after_two = || answers.load(Ordering::SeqCst) >= 2;
    world.ship_until(after_two);
    assert_eq!(world.ship(), Summary { shipped: 3, parked: 0, queued: 0 });
    let mut first = receiver.keys();
    first.dedup();
    assert_eq!(first, ["h/e1", "h/e2", "h/e3"]);
    assert_eq!(receiver.seen().len(), 4 + 3);
}

// I13
#[test]
fn after_five_failures_newer_episodes_pass() {
    let receiver = Receiver::start(|seen| match seen.key.as_str() {
        "h/e1" => Act::Say(500, Vec::new(), String::new()),
        _ => Act::Store,
    });
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    let first = || receiver.seen().len() == 1;
    world.ship_until(first);
    world.folder("e2", COMMIT, 10);
    world.ship_until(|| receiver.stored().contains_key("h/e2"));
    let before = receiver.keys().iter().position(|key| key == "h/e2").unwrap();
    assert!(before >= 5, "{:?}", receiver.keys());
    let waiting = &world.episodes()["e1"];
    assert!(
        waiting.failures >= 5 && waiting.state == State::Queued && waiting.reason.contains("500"),
        "{waiting:?}"
    );
}

// ship-1
#[test]
fn lost_answer_leads_to_a_second_put_and_one_episode() {
    let receiver = Receiver::start(|seen| if seen.earlier == 0 { Act::StoreAndCut } else { Act::Store });
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 500_000);
    assert_eq!(world.ship().shipped, 1);
    assert_eq!((receiver.seen().len(), receiver.stored().len(), world.left().len()), (2, 1, 0));
}

// ship-2
#[test]
fn page_or_another_digest_as_200_removes_nothing() {
    let receiver = Receiver::start(|seen| match seen.earlier {
        0 => Act::Say(200, Vec::new(), "<html>Please log in</html>".to_owned()),
        1 => Act::Say(200, Vec::new(), format!(r#"{{"sha256":"{}"}}"#, model::Digest::of(b"other"))),
        2 => Act::Say(204, Vec::new(), String::new()),
        _ => Act::Store,
    });
    let world = World::new(&receiver);
    let folder = world.folder("e1", COMMIT, 10);
    world.ship_until(|| receiver.seen().len() >= 3);
    assert!(folder.join("meta.json").exists());
    assert_eq!(world.ship().shipped, 1);
    assert_eq!((receiver.seen().len(), world.left().len()), (4, 0));
}

#[test]
fn early_refusal_is_read_whenever_it_comes_and_whoever_closes() {
    for act in [refusal(), Act::RefuseAmidst(413, r#"{"error":"too-large","max_bytes":7}"#.to_owned())] {
        let script = act.clone();
        let receiver = Receiver::start(move |_| script.clone());
        let world = World::new(&receiver);
        world.folder("e1", OLD, 8 << 20);
        world.folder("e2", OLD, 30_000);
        if matches!(act, Act::RefuseAmidst(..)) {
            fs::remove_dir_all(world.path().join("e2")).unwrap();
        }
        let parked = world.ship().parked;
        assert_eq!((parked, receiver.seen().len()), (parked, parked), "one attempt each");
        assert!(parked >= 1);
    }
}

#[test]
fn retry_after_is_waited_for() {
    let receiver = Receiver::start(|seen| match seen.earlier {
        0 => Act::Refuse(503, vec![("Retry-After", "1".to_owned())], String::new()),
        _ => Act::Store,
    });
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    let started = Instant::now();
    assert_eq!(world.ship().shipped, 1);
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn wait_outlives_a_restart() {
    let receiver =
        Receiver::start(|_| Act::Refuse(429, vec![("Retry-After", "3600".to_owned())], String::new()));
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    world.ship_until(|| world.episodes().get("e1").is_some_and(|episode| episode.tries == 1));
    let mut asked = 0;
    let looks = std::cell::Cell::new(0);
    world.ship_until(|| {
        looks.set(looks.get() + 1);
        looks.get() > 10
    });
    asked += receiver.seen().len();
    assert_eq!(asked, 1);
    assert!(world.episodes()["e1"].next_try_in_s.is_some_and(|seconds| seconds > 3500));
    // An operator who knows better says so.
    retry(&world.settings, "m", &Which::Named(vec!["e1".to_owned()])).unwrap();
    world.ship_until(|| receiver.seen().len() == 2);
}

#[test]
fn stalling_receiver_is_left_and_tried_again() {
    let receiver = Receiver::start(|seen| if seen.earlier == 0 { Act::Stall } else { Act::Store });
    let mut world = World::new(&receiver);
    world.settings.stall_timeout_s = 1;
    world.settings.answer_timeout_s = 1;
    world.folder("e1", COMMIT, 4 << 20);
    assert_eq!(world.ship().shipped, 1);
    assert_eq!(receiver.seen().len(), 2);
}

#[test]
fn receiver_that_is_not_there_is_waited_for() {
    let gone = Receiver::start(|_| Act::Store);
    let mut world = World::new(&gone);
    drop(gone);
    world.settings.url = Some("http://127.0.0.1:1".to_owned());
    for number in 0..20 {
        world.folder(&format!("e{number}"), COMMIT, 10);
    }
    world.ship_until(|| world.episodes().values().any(|episode| episode.failures >= 3));
    let tries: u32 = world.episodes().values().map(|episode| episode.tries).sum();
    assert!(tries <= 6, "a queue is not run through against a closed door: {tries}");
    let receiver = Receiver::start(|_| Act::Store);
    world.settings.url = Some(receiver.url.clone());
    assert_eq!(world.ship().shipped, 20);
}

// I18
#[test]
fn archive_that_changes_under_way_is_hashed_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e1.tar.zst");
    let victim = path.clone();
    let receiver = Receiver::start(move |seen: &Seen| {
        match seen.earlier {
            0 => fs::write(&victim, vec![1; 100_000]).unwrap(),
            1 => fs::write(&victim, vec![2; 300_000]).unwrap(),
            _ => {}
        }
        Act::Store
    });
    let mut world = World::new(&receiver);
    world.settings.spool = Some(directory.path().to_owned());
    fs::write(&path, vec![0; 200_000]).unwrap();
    let enough = || receiver.seen().len() >= 3 && !path.exists();
    world.ship_until(enough);
    assert_eq!(receiver.stored()["h/e1"], vec![2; 300_000], "never a mixture");
}

#[test]
fn other_bytes_than_hashed_are_parked_after_the_third_time() {
    let receiver = Receiver::start(|_| Act::Say(422, Vec::new(), "{}".to_owned()));
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    assert_eq!(world.ship().parked, 1);
    assert_eq!(receiver.seen().len(), 3);
}

#[test]
fn what_was_changed_after_it_was_sent_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("e1/sub/data");
    let victim = inside.clone();
    let receiver = Receiver::start(move |seen| {
        if seen.earlier == 0 {
            fs::write(&victim, "recorded later").unwrap();
        }
        Act::Store
    });
    let mut world = World::new(&receiver);
    world.settings.spool = Some(directory.path().to_owned());
    let made = World { directory: tempfile::tempdir().unwrap(), settings: world.settings.clone() };
    let folder = made.folder("e1", COMMIT, 10);
    fs::rename(folder, directory.path().join("e1")).unwrap();
    world.ship();
    assert_eq!(fs::read(&inside).unwrap(), b"recorded later");
    let episodes = world.episodes();
    assert_eq!((episodes["e1"].state, episodes["e1"].status), (State::Parked, Some(409)));
}

#[test]
fn half_written_entries_are_not_taken() {
    let receiver = Receiver::start(|_| Act::Store);
    let mut world = World::new(&receiver);
    world.settings.settle_s = 3600;
    world.folder("e1", COMMIT, 10);
    fs::write(world.path().join("e2.tar.zst.part"), "x").unwrap();
    let looks = std::cell::Cell::new(0);
    world.ship_until(|| {
        looks.set(looks.get() + 1);
        looks.get() > 20
    });
    assert_eq!(receiver.seen().len(), 0);
    assert_eq!(status(&world.settings, "m").unwrap().settling, ["e1"]);
    world.settings.settle_s = 1;
    assert_eq!(world.ship().shipped, 1);
    assert_eq!(world.left(), ["e2.tar.zst.part"]);
}

#[test]
fn spool_that_cannot_be_listed_ends_a_run_that_ships_once() {
    let receiver = Receiver::start(|_| Act::Store);
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    let shipper = world.open().unwrap();
    let aside = world.path().with_extension("aside");
    fs::rename(world.path(), &aside).unwrap();
    let refused = shipper.run(Until::Empty, &|| false);
    fs::rename(&aside, world.path()).unwrap();
    assert!(matches!(refused, Err(ShipError::Io { attempt: "list the spool", .. })), "{refused:?}");
    assert_eq!(world.ship().shipped, 1);
}

#[test]
fn what_cannot_be_packed_is_parked_or_waits_and_the_others_flow() {
    let receiver = Receiver::start(|_| Act::Store);
    let world = World::new(&receiver);
    let poison = world.folder("e1", COMMIT, 10);
    let _socket = std::os::unix::net::UnixListener::bind(poison.join("socket")).unwrap();
    world.folder("e2", COMMIT, 10);
    assert_eq!(world.ship(), Summary { shipped: 1, parked: 1, queued: 0 });
    assert!(world.episodes()["e1"].reason.contains("socket"));

    // Nothing can be packed now; an archive needs no packing.
    let packed = world.path().join(".cutover-ship/packed");
    fs::remove_dir(&packed).unwrap();
    fs::write(&packed, "in the way").unwrap();
    world.folder("e3", COMMIT, 10);
    fs::write(world.path().join("e4.tar.zst"), "x").unwrap();
    world.ship_until(|| receiver.stored().contains_key("h/e4"));
    let waiting = &world.episodes()["e3"];
    assert!(waiting.state == State::Queued && waiting.reason.contains("packed"), "{waiting:?}");
    fs::remove_file(&packed).unwrap();
    world.ship();
    assert_eq!(world.left(), ["e1"]);
}

#[test]
fn refusal_runs_the_update_once_and_new_episodes_ship() {
    let receiver = Receiver::start(|seen| match seen.headers["x-code-commit"].as_str() {
        OLD => refusal(),
        _ => Act::Store,
    });
    let mut world = World::new(&receiver);
    let place = tempfile::tempdir().unwrap();
    let count = place.path().join("count");
    world.settings.on_refused = OnRefused::Update;
    assert!(matches!(world.open(), Err(ShipError::Setting { key: "update_command", .. })));
    world.settings.update_command =
        ["sh", "-c", &format!("echo run >> {}", count.display())].map(str::to_owned).to_vec();
    for name in ["e1", "e2", "e3"] {
        world.folder(name, OLD, 10);
    }
    world.ship_until(|| {
        count.exists() && world.episodes().values().filter(|one| one.state == State::Parked).count() == 3
    });
    world.folder("e4", COMMIT, 10);
    assert_eq!(world.ship(), Summary { shipped: 1, parked: 3, queued: 0 });
    assert_eq!(fs::read_to_string(&count).unwrap(), "run\n");
}

#[test]
fn one_run_ends_when_the_update_it_started_has_ended() {
    let receiver = Receiver::start(|_| refusal());
    let mut world = World::new(&receiver);
    let place = tempfile::tempdir().unwrap();
    let ran = place.path().join("ran");
    world.settings.on_refused = OnRefused::Update;
    world.settings.update_command =
        ["sh", "-c", &format!("sleep 1; echo done > {}", ran.display())].map(str::to_owned).to_vec();
    world.folder("e1", OLD, 10);
    assert_eq!(world.ship().parked, 1);
    assert_eq!(fs::read_to_string(&ran).unwrap(), "done\n");
}

// I26
#[test]
fn machine_that_ships_for_others_keeps_an_order_for_each_host() {
    let receiver = Receiver::start(|seen| match (seen.key.as_str(), seen.earlier) {
        ("a/e1", 0..3) => Act::Say(500, Vec::new(), String::new()),
        _ => Act::Store,
    });
    let mut world = World::new(&receiver);
    world.settings.layout = SpoolLayout::Hosts;
    for name in ["a/e1", "a/e2", "b/e1", "b/e2"] {
        world.folder(name, COMMIT, 10);
    }
    assert_eq!(world.ship().shipped, 4);
    let keys = receiver.keys();
    let last = |key: &str| keys.iter().rposition(|seen| seen == key).unwrap();
    assert!(last("a/e1") < last("a/e2"), "{keys:?}");
    assert_eq!(receiver.stored().keys().collect::<Vec<_>>(), ["a/e1", "a/e2", "b/e1", "b/e2"]);
}

#[test]
fn bandwidth_limit_holds_over_all_uploads() {
    let receiver = Receiver::start(|_| Act::Store);
    let mut world = World::new(&receiver);
    world.settings.bytes_per_s = 400_000;
    world.settings.in_flight_per_stream = 4;
    for name in ["e1", "e2", "e3", "e4"] {
        world.folder(name, COMMIT, 150_000);
    }
    let started = Instant::now();
    assert_eq!(world.ship().shipped, 4);
    assert!(started.elapsed() >= Duration::from_millis(1400), "{:?}", started.elapsed());
}

#[test]
fn only_one_process_ships_from_a_spool() {
    let receiver = Receiver::start(|_| Act::Store);
    let world = World::new(&receiver);
    let first = world.open().unwrap();
    assert!(matches!(world.open(), Err(ShipError::Busy(note)) if note.contains("process")));
    assert!(status(&world.settings, "m").unwrap().shipper.is_some());
    drop(first);
    world.open().unwrap();
}

#[test]
fn lost_queue_is_filled_from_the_spool() {
    let receiver = Receiver::start(|seen| if seen.earlier == 0 { Act::StoreAndCut } else { Act::Store });
    let world = World::new(&receiver);
    world.folder("e1", COMMIT, 10);
    world.ship_until(|| receiver.stored().len() == 1);
    for name in ["queue.db", "queue.db-wal", "queue.db-shm"] {
        let _ = fs::remove_file(world.path().join(".cutover-ship").join(name));
    }
    assert_eq!(world.ship().shipped, 1);
    assert_eq!(receiver.stored().len(), 1);
}

// gate-1
#[test]
fn host_with_a_key_signs_each_attempt_with_a_number_of_its_own() {
    let receiver = Receiver::start(|seen| if seen.earlier == 0 { Act::Cut } else { Act::Store });
    let mut world = World::new(&receiver);
    let place = tempfile::tempdir().unwrap();
    let (key, pem) = HostKey::generate().unwrap();
    let file = place.path().join("host.key");
    fs::write(&file, "no key").unwrap();
    world.settings.attest_key = Some(file.clone());
    assert!(matches!(world.open(), Err(ShipError::Setting { key: "attest_key", .. })));
    fs::write(&file, pem.as_bytes()).unwrap();
    world.folder("e1", COMMIT, 10);
    fs::write(world.path().join("e2.tar.zst"), "says no commit").unwrap();
    world.ship_until(|| receiver.seen().iter().any(|seen| seen.key == "h/e1"));
    world.ship();
    let mut sequences = Vec::new();
    for seen in receiver.seen() {
        let header = seen.headers.get("x-code-attestation");
        if seen.key == "h/e2" {
            assert_eq!(header, None, "without a commit there is nothing to vouch for");
            continue;
        }
        let header = header.unwrap();
        let sequence = Attestation::parse(header.as_bytes()).unwrap().sequence;
        let (commit, episode) = (COMMIT.parse().unwrap(), EpisodeKey::new("h", "e1").unwrap());
        let sha256 = model::Digest::of(&receiver.stored()["h/e1"]);
        // Ed25519 signs the same in the same way.
        let said = Statement { commit: &commit, key: &episode, sha256, sequence, release: None };
        assert_eq!(*header, key.attest(&said));
        sequences.push(sequence);
    }
    assert!(sequences.len() >= 2 && sequences.is_sorted_by(|one, other| one < other), "{sequences:?}");
}
