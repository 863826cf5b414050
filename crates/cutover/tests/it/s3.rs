//! Repositories in a bucket of S3-compatible storage, through the real binary and a real server.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use cutover_repo::{Lock, Storage as _};
use cutover_s3::{S3Options, S3Storage};

use crate::{
    moto::{Moto, Readers},
    world::{Ran, World, command, finish, stamped, text},
};

const PLACE: &str = "s3://releases/app";

/// A repository of a test in a bucket that everybody may read.
struct Bucket<'a> {
    world: &'a World,
    moto: &'a Moto,
    keys: PathBuf,
}

/// Credentials, and how long a publisher is believed to live.
fn with_s3(mut command: Command, endpoint: &str, lease_s: u64) -> Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
        .env("AWS_ACCESS_KEY_ID", "testing")
        .env("AWS_SECRET_ACCESS_KEY", "testing")
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("CUTOVER_S3__ALLOW_HTTP", "true")
        .env("CUTOVER_S3__LEASE_S", lease_s.to_string());
    command
}

impl<'a> Bucket<'a> {
    fn new(world: &'a World, moto: &'a Moto) -> Self {
        Self::with_readers(world, moto, Readers::Public)
    }

    fn with_readers(world: &'a World, moto: &'a Moto, readers: Readers) -> Self {
        moto.make_bucket("releases", readers);
        let bucket = Self { world, moto, keys: world.path("keys") };
        let pki = &stamped().pki;
        let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
        let signing = ["--grace-s", "0", "--sign-key", text(&key), "--sign-cert", text(&certificate)];
        bucket.run("init", &[], &signing).must(0);
        bucket
    }

    fn command(
        &self,
        verb: &str,
        operands: &[&str],
        flags: &[&str],
        endpoint: &str,
        lease_s: u64,
    ) -> Command {
        let mut all = vec!["repo", verb, PLACE];
        all.extend(operands);
        if !matches!(verb, "list" | "verify") {
            all.extend(["--keys", text(&self.keys)]);
        }
        all.extend(flags);
        with_s3(command(&stamped().program, &all), endpoint, lease_s)
    }

    fn run(&self, verb: &str, operands: &[&str], flags: &[&str]) -> Ran {
        finish(self.command(verb, operands, flags, &self.moto.endpoint, 1))
    }

    /// Where everybody reads it: the bucket is public.
    fn url(&self) -> String {
        format!("{}/releases/app", self.moto.endpoint)
    }

    /// As if the time of whoever holds the lock were over.
    fn forget_lock(&self) {
        let lock = format!("{}/.publish/lock", self.url());
        let answer = reqwest::blocking::Client::new().delete(lock).send().unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    #[track_caller]
    fn must_be_whole(&self) -> serde_json::Value {
        let report = self.run("verify", &[], &["--json"]).must(0).json();
        assert_eq!(
            (&report["problems"], &report["unreferenced"]),
            (&serde_json::json!([]), &serde_json::json!([]))
        );
        report
    }

    /// The newest version that a host is offered.
    #[track_caller]
    fn offered(&self) -> Option<String> {
        let root = self.world.path("nothing-here");
        let ran =
            self.world.run(&["check", "tool", "--source", &self.url(), "--root", text(&root), "--json"]);
        // 3: nothing newer; 1: the repository has nothing of this package.
        assert!([0, 1, 3].contains(&ran.code), "{ran:?}");
        ran.json()["offers"][0]["version"].as_str().map(str::to_owned)
    }
}

// M14, M15
#[test]
fn a_release_is_published_to_a_bucket_installed_from_it_and_removed() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::new(&world, &moto);
    let (one, two) = (world.build_version("1.0.0"), world.build_version("1.1.0"));
    let published = bucket.run("publish", &[text(&one)], &["--json"]).must(0).json();
    assert_eq!((&published["releases"], &published["objects_new"]), (&1.into(), &4.into()));
    let published = bucket.run("publish", &[text(&two)], &["--json"]).must(0).json();
    assert_eq!((&published["objects_new"], &published["objects_shared"]), (&2.into(), &2.into()));
    bucket.run("publish", &[text(&two)], &[]).must(3);
    bucket.must_be_whole();
    bucket.run("init", &[], &[]).must(1);
    let log =
        ["repo", "log", "init", PLACE, "--name", "releases.example.com/tool", "--keys", text(&bucket.keys)];
    finish(with_s3(command(&stamped().program, &log), &moto.endpoint, 1)).must(0);
    bucket.must_be_whole();

    let root = world.root();
    let url = bucket.url();
    world.run(&["apply", "tool@1.0.0", "--source", &url, "--root", text(&root)]).must(0);
    world.run(&["apply", "tool", "--source", &url, "--root", text(&root)]).must(0);
    assert_eq!(std::fs::read_to_string(root.join("current/share/version")).unwrap(), "1.1.0");

    bucket.run("yank", &["tool@1.1.0"], &["--reason", "loses data"]).must(0);
    bucket.run("remove", &["tool@1.1.0"], &[]).must(0);
    bucket.run("remove", &["tool@1.1.0"], &[]).must(1);
    assert_eq!(bucket.must_be_whole()["objects"], 4);
    assert_eq!(bucket.offered().as_deref(), Some("1.0.0"));
    bucket.run("remove", &["tool@1.0.0"], &[]).must(0);
    assert_eq!(bucket.must_be_whole()["objects"], 0);
    assert_eq!(bucket.offered(), None);
}

#[test]
fn hosts_with_credentials_install_from_a_bucket_that_nobody_else_can_read() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::with_readers(&world, &moto, Readers::Private);
    bucket.run("publish", &[text(&world.build_version("1.0.0"))], &[]).must(0);
    let root = world.root();
    let host = |arguments: &[&str], source: &str| {
        let all = [arguments, &["--source", source, "--root", text(&root)]].concat();
        with_s3(command(&stamped().program, &all), &moto.endpoint, 1)
    };
    finish(host(&["apply", "tool"], &bucket.url())).must(1);
    finish(host(&["plan", "tool"], PLACE)).must(0);
    finish(host(&["apply", "tool"], PLACE)).must(0);
    assert_eq!(std::fs::read_to_string(root.join("current/share/version")).unwrap(), "1.0.0");
    finish(host(&["check", "tool"], PLACE)).must(3);

    bucket.run("publish", &[text(&world.build_version("1.1.0"))], &[]).must(0);
    finish(host(&["check", "tool"], PLACE)).must(0);
    let mut nobody = host(&["check", "tool"], PLACE);
    nobody.env_remove("AWS_SECRET_ACCESS_KEY").env("HOME", text(world.dir.path()));
    let refused = finish(nobody).must(2);
    assert!(
        refused.stderr.contains(PLACE) && refused.stderr.contains(".aws/credentials"),
        "{}",
        refused.stderr
    );
    // A token is for whoever takes one.
    let token = format!("source.token_file={}", text(&world.write("token", "canary\n")));
    let refused = finish(host(&["check", "tool", "--set", &token], PLACE)).must(2);
    assert!(refused.stderr.contains("no token is sent"), "{}", refused.stderr);

    // Addresses count for a while for whoever has them: none of them is told.
    let storage = open(&moto);
    storage.remove(&storage.list("objects").unwrap()).unwrap();
    let mut broken = host(&["apply", "tool"], PLACE);
    broken.env("CUTOVER_LOG", "debug");
    let failed = finish(broken).must(1);
    assert!(failed.stderr.contains("/releases/app/objects/"), "{}", failed.stderr);
    assert!(!failed.stderr.contains("X-Amz-"), "{}", failed.stderr);
}

fn open(moto: &Moto) -> S3Storage {
    let variable =
        |name: &str| ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&name).then(|| "x".to_owned());
    let options = S3Options {
        endpoint: Some(moto.endpoint.clone()),
        allow_http: true,
        // Renewed every five seconds.
        lease: Duration::from_secs(20),
        owner: "anna on build-7".to_owned(),
        ..S3Options::default()
    };
    S3Storage::open(PLACE.parse().unwrap(), &options, &variable).unwrap()
}

#[test]
fn another_publisher_is_named_and_waited_for_by_nobody() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::new(&world, &moto);
    let at_work = open(&moto);
    let Lock::Held(lock) = at_work.lock().unwrap() else { panic!("nobody else is there") };
    let refused = finish(bucket.command("refresh", &[], &[], &moto.endpoint, 20)).must(10);
    assert!(refused.stderr.contains("anna on build-7"), "{}", refused.stderr);
    drop(lock);
    bucket.run("refresh", &[], &[]).must(0);
}

#[test]
fn refusals_name_the_thing_and_the_remedy() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::new(&world, &moto);
    let list =
        |place: &str| with_s3(command(&stamped().program, &["repo", "list", place]), &moto.endpoint, 1);
    let refused = |command: Command, code: i32, words: &[&str]| {
        let ran = finish(command).must(code);
        for word in words {
            assert!(ran.stderr.contains(word), "`{word}` in {}", ran.stderr);
        }
    };
    refused(list("s3://absent/app"), 1, &["bucket `absent`", "make the bucket first"]);
    refused(list("s3://releases//app"), 2, &["s3://releases//app", "s3://BUCKET/PREFIX"]);
    let mut plain = list(PLACE);
    plain.env_remove("CUTOVER_S3__ALLOW_HTTP");
    refused(plain, 2, &["plain http", "s3.allow_http"]);
    let mut nobody = list(PLACE);
    nobody.env_remove("AWS_ACCESS_KEY_ID").env("HOME", text(world.dir.path()));
    refused(nobody, 2, &["AWS_ACCESS_KEY_ID", ".aws/credentials"]);
    let unheard = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut alone = list(PLACE);
    alone.env("AWS_ENDPOINT_URL", format!("http://{unheard}"));
    refused(alone, 1, &["cannot be reached", "s3.endpoint"]);
    bucket.run("list", &[], &[]).must(0);
    // From here on the server looks who asks.
    let strict =
        reqwest::blocking::Client::new().post(format!("{}/moto-api/reset-auth", moto.endpoint)).body("0");
    assert!(strict.send().unwrap().status().is_success());
    refused(list(PLACE), 1, &["refuses to read", "bucket `releases`", "InvalidAccessKeyId", "s3:PutObject"]);
}

/// Passes requests on to a server, and kills who makes them right after a certain write has happened there.
struct Killing {
    endpoint: String,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Default)]
struct Plan {
    child: Option<Child>,
    /// The write that is fatal; none when nobody is to be killed.
    fatal: Option<Write>,
    /// The kinds of the writes that have happened.
    writes: Vec<String>,
    /// Whether the fatal write has happened.
    is_over: bool,
}

impl Killing {
    fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plan: Arc<Mutex<Plan>> = Arc::default();
        let (kept, server) = (Arc::clone(&plan), server.trim_start_matches("http://").to_owned());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (plan, server) = (Arc::clone(&kept), server.clone());
                // A client that is killed breaks its connections; that is all that can go wrong here.
                thread::spawn(move || drop(pass_on(client, &server, &plan)));
            }
        });
        Self { endpoint, plan }
    }

    /// Runs a command that dies right after a certain write; the kinds of the writes that happened, and whether it did.
    fn run(&self, mut command: Command, fatal: Option<Write>) -> (Vec<String>, bool) {
        *self.plan.lock().unwrap() = Plan { fatal, ..Plan::default() };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.plan.lock().unwrap().child = Some(command.spawn().unwrap());
        loop {
            let mut plan = self.plan.lock().unwrap();
            if let Some(status) = plan.child.as_mut().unwrap().try_wait().unwrap() {
                assert!(plan.is_over || status.success(), "{status:?}");
                return (std::mem::take(&mut plan.writes), plan.is_over);
            }
            drop(plan);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a request does, and where in the repository: what differs by number only is of one kind, and so are files that are named
/// by a digest and lie beside each other, which are written in any order.
fn kind_of_write(request_line: &str) -> String {
    let (method, rest) = request_line.split_once(' ').unwrap();
    let path = rest.split([' ', '?']).next().unwrap();
    let segments = path.split('/').filter(|segment| {
        !segment.split('.').any(|word| word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let words = segments.flat_map(|segment| segment.split(|letter: char| !letter.is_ascii_alphanumeric()));
    let names = words.filter(|word| !word.bytes().all(|byte| byte.is_ascii_hexdigit()));
    format!("{method} {}", names.collect::<Vec<_>>().join("/"))
}

/// A write: its kind, and how many of that kind come before it in its run.
type Write = (String, usize);

/// The writes to die after: the first of every kind, and the very last; all of them where `CUTOVER_S3_SWEEP` is `full`.
fn fatal_writes(kinds: &[String]) -> Vec<Write> {
    let is_full = std::env::var("CUTOVER_S3_SWEEP").is_ok_and(|which| which == "full");
    let before = |at: usize| kinds[..at].iter().filter(|kind| **kind == kinds[at]).count();
    let writes = (0..kinds.len()).map(|at| (at, (kinds[at].clone(), before(at))));
    let is_chosen = |at: usize, write: &Write| is_full || write.1 == 0 || at + 1 == kinds.len();
    writes.filter(|(at, write)| is_chosen(*at, write)).map(|(_, write)| write).collect()
}

/// One request and its answer; the server closes after each.
fn pass_on(mut client: TcpStream, server: &str, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1 << 14];
    let head_ends = loop {
        if let Some(at) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    };
    let head = String::from_utf8_lossy(&request[..head_ends]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    while request.len() < head_ends + length.unwrap_or(0) {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    if plan.lock().unwrap().is_over {
        return Ok(());
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(&request)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let is_write = ["put ", "post ", "delete "].iter().any(|method| head.starts_with(method));
    let is_lock = head.lines().next().is_some_and(|line| line.contains("/.publish/lock"));
    if is_write && !is_lock {
        let mut plan = plan.lock().unwrap();
        let kind = kind_of_write(head.lines().next().unwrap_or_default());
        let write = (kind.clone(), plan.writes.iter().filter(|other| **other == kind).count());
        plan.writes.push(kind);
        if plan.fatal.as_ref() == Some(&write) {
            plan.is_over = true;
            if let Some(child) = &mut plan.child {
                child.kill()?;
            }
            return Ok(());
        }
    }
    client.write_all(&answer)
}

// M16
#[test]
fn a_publisher_killed_after_a_write_of_any_kind_leaves_readers_a_whole_repository_and_the_next_goes_on() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::new(&world, &moto);
    let killing = Killing::before(&moto.endpoint);
    let (old, new) = (world.build_version("1.0.0"), world.build_version("1.1.0"));
    bucket.run("publish", &[text(&old)], &[]).must(0);
    // Published by a run that dies after a certain write and by the next one, and then removed the same way, and again with a
    // later write.
    let act = |verb: &str, operand: &str, fatal: Option<Write>| {
        killing.run(bucket.command(verb, &[operand], &[], &killing.endpoint, 60), fatal)
    };
    let sweep = |verb: &str, operand: &str, fatal: Option<&Write>, outcomes: [i32; 2]| {
        let mut killed = None;
        if let Some(fatal) = fatal {
            let (writes, died) = act(verb, operand, Some(fatal.clone()));
            bucket.must_be_whole();
            let offered = bucket.offered();
            assert!(matches!(offered.as_deref(), Some("1.0.0" | "1.1.0")), "{verb}, {fatal:?}: {offered:?}");
            assert!(died, "{verb}, {fatal:?}: it made {writes:?}");
            killed = Some(fatal.0.clone());
            if writes.len() > 1 {
                // Taking over from the dead costs a second, which the first round has shown.
                bucket.forget_lock();
            }
        }
        let ran = bucket.run(verb, &[operand], &[]);
        assert!(outcomes.contains(&ran.code), "{verb}, {fatal:?}: {ran:?}");
        killed
    };
    // What an earlier run left to be deleted is gone: what the next one writes depends on it. Grace is over within a second.
    let settle = |releases: u64| loop {
        let report = bucket.must_be_whole();
        assert_eq!(report["releases"], releases);
        if report["pending"] == 0 {
            break;
        }
        bucket.run("refresh", &[], &[]).must(0);
    };
    // The first round also writes what later ones find, and leaves what they remove.
    let mut recorded = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        recorded =
            [("publish", text(&new), 2), ("remove", "tool@1.1.0", 1)].map(|(verb, operand, releases)| {
                let (writes, _) = act(verb, operand, None);
                settle(releases);
                writes
            });
    }
    let [publications, removals] = [&recorded[0], &recorded[1]].map(|kinds| fatal_writes(kinds));
    assert!(publications.len() > 7 && removals.len() > 5, "{recorded:?}");
    let mut killed = [BTreeSet::new(), BTreeSet::new()];
    for round in 0..publications.len().max(removals.len()) {
        let (publication, removal) = (publications.get(round), removals.get(round));
        killed[0].extend(sweep("publish", text(&new), publication, [0, 3]));
        settle(2);
        killed[1].extend(sweep("remove", "tool@1.1.0", removal, [0, 1]));
        settle(1);
    }
    let kinds = recorded.map(|writes| writes.into_iter().collect::<BTreeSet<_>>());
    assert_eq!(killed, kinds, "a kind of write after which nobody was killed");
    bucket.run("refresh", &[], &[]).must(0);
    let report = bucket.must_be_whole();
    assert_eq!((&report["pending"], &report["objects"]), (&0.into(), &4.into()));
    assert_eq!(bucket.offered().as_deref(), Some("1.0.0"));
}

#[test]
fn a_file_with_profiles_does_as_well() {
    let Some(moto) = Moto::start() else { return };
    let world = World::new();
    let bucket = Bucket::new(&world, &moto);
    let profiles = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[ci]\naws_access_key_id = c\naws_secret_access_key = d\n";
    let home: &Path = world.dir.path();
    world.write(".aws/credentials", profiles);
    let mut list = bucket.command("list", &[], &[], &moto.endpoint, 1);
    list.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env("HOME", home);
    finish(list).must(0);
    let mut list = bucket.command("list", &[], &["--set", "s3.profile=none"], &moto.endpoint, 1);
    list.env("HOME", home);
    let refused = finish(list).must(2);
    assert!(refused.stderr.contains("`none`"), "{}", refused.stderr);
}
