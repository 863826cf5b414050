//! `gate serve` with episodes in a bucket: the real binary, a real storage, killed and cut off where it hurts.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use cutover::core::model::Digest;
use cutover_repo::Storage as _;
use cutover_s3::{S3Objects, S3Options, S3Storage};

use crate::{
    gate::{PATIENCE, Receiver, clone_at, put, rows},
    moto::{Moto, Readers},
    proxy::{self, Act, Moment},
    world::{PLAIN, Ran, command, finish, text},
};

const PLACE: &str = "s3://episodes/gate";

/// What happens on the way to the storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Plan {
    #[default]
    Pass,
    Down,
    /// When the storage has answered a request whose head holds this, the receiver is killed before it hears of it.
    Kill {
        at: &'static str,
        process: i32,
    },
}

struct World {
    directory: tempfile::TempDir,
    moto: Moto,
    endpoint: String,
    plan: Arc<Mutex<Plan>>,
    commit: String,
}

fn kill(process: i32) {
    let process = rustix::process::Pid::from_raw(process).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
}

impl World {
    fn new() -> Option<Self> {
        let moto = Moto::start()?;
        moto.make_bucket("episodes", Readers::Private);
        let plan = Arc::new(Mutex::new(Plan::Pass));
        let theirs = Arc::clone(&plan);
        let endpoint = proxy::start(&moto.endpoint, move |moment, head| {
            let mut plan = theirs.lock().expect("no panic");
            match (&*plan, moment) {
                (Plan::Down, _) => Act::Cut,
                (Plan::Kill { at, process }, Moment::Answer)
                    if at.split('*').all(|part| head.contains(part)) =>
                {
                    kill(*process);
                    *plan = Plan::Pass;
                    Act::Cut
                }
                _ => Act::Pass,
            }
        });
        let directory = tempfile::tempdir().expect("a directory");
        let commit = clone_at(&directory.path().join("clone"));
        Some(Self { directory, moto, endpoint, plan, commit })
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("gate")
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "testing".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "testing".to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("CUTOVER_S3__ALLOW_HTTP", "true".to_owned()),
        ]
    }

    fn serve(&self) -> Receiver {
        let (clone, root) = (self.directory.path().join("clone"), self.root());
        let arguments = ["--root", text(&root), "--repository", text(&clone)];
        let mut variables = self.variables();
        variables.push(("CUTOVER_GATE__STORAGE__URL", PLACE.to_owned()));
        Receiver::start_with(&arguments, &variables)
    }

    fn repair(&self, flags: &[&str]) -> Ran {
        let root = self.root();
        let arguments = [&["index", "repair", "--storage", PLACE, "--root", text(&root)], flags].concat();
        let mut command = command(Path::new(PLAIN), &arguments);
        command.envs(self.variables());
        finish(command)
    }

    fn set(&self, plan: Plan) {
        *self.plan.lock().expect("no panic") = plan;
    }

    /// How the bucket is reached past the proxy.
    fn options(&self) -> (S3Options, impl Fn(&str) -> Option<String> + use<>) {
        let endpoint = Some(self.moto.endpoint.clone());
        let is_key = |name: &str| matches!(name, "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY");
        let variable = move |name: &str| is_key(name).then(|| "testing".to_owned());
        (S3Options { endpoint, allow_http: true, ..S3Options::default() }, variable)
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        let (options, variable) = self.options();
        let objects = S3Objects::open(PLACE.parse().expect("a place"), &options, &variable).expect("opened");
        let mut bytes = Vec::new();
        let mut object = objects.read(&format!("episodes/{key}.tar.zst")).expect("read")?;
        object.read_to_end(&mut bytes).expect("read");
        Some(bytes)
    }

    /// Changes the storage by hand; `None` removes the object.
    fn tamper(&self, key: &str, bytes: Option<&[u8]>) {
        let (options, variable) = self.options();
        let storage = S3Storage::open(PLACE.parse().expect("a place"), &options, &variable).expect("opened");
        let path = format!("episodes/{key}.tar.zst");
        match bytes {
            Some(bytes) => storage.replace(&path, bytes).expect("written"),
            None => storage.remove(&[path]).expect("removed"),
        }
    }

    fn put(&self, receiver: &Receiver, key: &str, body: &[u8]) -> Option<(u16, String)> {
        put(receiver.address, key, &self.commit, body)
    }

    fn must(&self, receiver: &Receiver, key: &str, body: &[u8], status: u16) -> String {
        let (found, answer) = self.put(receiver, key, body).expect("an answer");
        assert_eq!(found, status, "{answer}");
        answer
    }

    fn spooled(&self) -> usize {
        std::fs::read_dir(self.root().join("incoming")).expect("a directory").count()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn archive(commit: &str, padding: usize) -> Vec<u8> {
    let meta = format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#);
    // What cannot be compressed: the archive is as large.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    })
    .take(padding)
    .collect();
    let mut writer = cutover::bundle::episode::ArchiveWriter::new(Vec::new(), 1).expect("a writer");
    writer.file(b"e/noise", false, noise.len() as u64, &mut &noise[..]).expect("written");
    writer.file(b"e/meta.json", false, meta.len() as u64, &mut meta.as_bytes()).expect("written");
    writer.finish().expect("written")
}

// I11 I32
#[test]
fn receiver_killed_between_object_and_row_has_both_after_its_next_start() {
    let Some(world) = World::new() else { return };
    let (small, large) = (archive(&world.commit, 100), archive(&world.commit, 20 << 20));
    // Killed once the storage has: an object; one made of parts; a part, and nothing that is an object.
    let cases = [
        ("h/small", &small, "put /*h/small", true),
        ("h/large", &large, "post /*h/large*uploadid=", true),
        ("h/parts", &large, "put /*h/parts*partnumber=2", false),
    ];
    for (number, (key, body, at, is_stored)) in cases.into_iter().enumerate() {
        let mut receiver = world.serve();
        world.set(Plan::Kill { at, process: i32::try_from(receiver.child.id()).expect("a process") });
        assert_eq!(world.put(&receiver, key, body), None, "{key} is answered");
        receiver.child.wait().expect("ended");
        assert_eq!(world.object(key).is_some(), is_stored, "{key}");
        assert_eq!((rows(&world.root()).len(), world.spooled()), (number, 1), "{key}");
        let receiver = world.serve();
        assert_eq!(world.spooled(), 0);
        if is_stored {
            until("it has its row", || rows(&world.root()).contains_key(key));
            let row = rows(&world.root()).remove(key).expect("a row").remove(0);
            assert_eq!((row["commit"].as_str(), &row["backfilled"]), (Some(&*world.commit), &true.into()));
            assert_eq!(row["sha256"], Digest::of(body).to_string());
        }
        world.must(&receiver, key, body, if is_stored { 200 } else { 201 });
        assert!(world.object(key).as_deref() == Some(body), "{key}");
        assert_eq!(rows(&world.root())[key].len(), 1);
    }
}

// I9 I10
#[test]
fn storage_that_is_down_or_has_other_bytes_loses_nothing() {
    let Some(world) = World::new() else { return };
    let receiver = world.serve();
    world.must(&receiver, "h/a", b"one", 201);
    world.must(&receiver, "h/a", b"one", 200);
    let answer = world.must(&receiver, "h/a", b"two", 409);
    assert!(answer.contains(&Digest::of(b"one").to_string()), "{answer}");
    world.tamper("h/foreign", Some(b"theirs"));
    let answer = world.must(&receiver, "h/foreign", b"mine!!", 409);
    assert!(answer.contains(&Digest::of(b"theirs").to_string()), "{answer}");
    world.set(Plan::Down);
    let answer = world.must(&receiver, "h/b", b"b", 503);
    assert!(answer.to_ascii_lowercase().contains("retry-after: "), "{answer}");
    assert_eq!((rows(&world.root()).len(), world.spooled()), (1, 0));
    // One that starts meanwhile answers as well.
    drop(receiver);
    let receiver = world.serve();
    world.must(&receiver, "h/b", b"b", 503);
    world.set(Plan::Pass);
    until("it is taken", || world.put(&receiver, "h/b", b"b").is_some_and(|(status, _)| status == 201));
    assert_eq!(world.object("h/b").as_deref(), Some(&b"b"[..]));
    assert_eq!(world.object("h/foreign").as_deref(), Some(&b"theirs"[..]));
}

// I15
#[test]
fn rows_of_a_bucket_are_repaired_and_its_objects_verified() {
    let Some(world) = World::new() else { return };
    let receiver = world.serve();
    let bodies = ["a", "b", "c"].map(|name| (format!("h/{name}"), archive(&world.commit, name.len())));
    for (key, body) in &bodies {
        world.must(&receiver, key, body, 201);
    }
    let index = world.root().join("index.jsonl");
    let first =
        std::fs::read_to_string(&index).expect("read").lines().next().expect("a row").to_owned() + "\n";
    drop(receiver);
    std::fs::write(&index, &first).expect("written");
    let dry = world.repair(&["--dry-run"]).must(0);
    assert!(dry.stdout.starts_with("scanned: 3 already-indexed: 1 to-backfill: 2\n"), "{}", dry.stdout);
    assert_eq!(std::fs::read_to_string(&index).expect("read"), first);
    let repaired = world.repair(&[]).must(0);
    assert!(repaired.stdout.contains("backfilled 2 rows into "), "{}", repaired.stdout);
    let found = rows(&world.root());
    for (key, body) in &bodies {
        assert_eq!((&found[key][0]["commit"], found[key].len()), (&world.commit.as_str().into(), 1));
        assert_eq!(found[key][0]["sha256"], Digest::of(body).to_string());
    }
    world.repair(&["--verify"]).must(0);
    world.tamper("h/a", Some(b"rot"));
    world.tamper("h/b", None);
    let verified = world.repair(&["--verify"]).must(17);
    assert!(verified.stdout.contains("rot: h/a"), "{}", verified.stdout);
    assert!(verified.stdout.contains("missing: h/b"), "{}", verified.stdout);
    world.set(Plan::Down);
    let down = world.repair(&[]).must(1);
    assert!(down.stderr.contains(PLACE), "{}", down.stderr);
}

#[test]
fn place_that_can_keep_nothing_is_refused_at_the_start() {
    let Some(world) = World::new() else { return };
    let clone = world.directory.path().join("clone");
    for (place, code, said) in [
        ("s3://nowhere/gate", 1, "has no bucket `nowhere`"),
        ("s3://episodes//gate", 2, "is no place in a bucket"),
        ("file:///srv", 2, "is no place in a bucket"),
    ] {
        let mut serve = command(
            Path::new(PLAIN),
            &["gate", "serve", "--root", text(&world.root()), "--repository", text(&clone)],
        );
        serve.envs(world.variables()).env("CUTOVER_GATE__STORAGE__URL", place);
        let refused = finish(serve).must(code);
        assert!(refused.stderr.contains(said), "{place}: {}", refused.stderr);
    }
}
