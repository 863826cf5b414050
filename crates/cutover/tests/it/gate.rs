//! `gate serve` as a process: killed at random, reloaded, asked by hand.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cutover::core::model::Digest;
use serde_json::Value;

use crate::{
    not_run::not_run,
    repo::Repository,
    world::{PLAIN, Release, World, command, run, sweep_time, text},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A clone with one commit, and that commit.
pub(crate) fn clone_at(path: &Path) -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").arg("-C").arg(path);
        git.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(arguments);
        let output = git.output().expect("git runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    std::fs::create_dir_all(path).expect("a directory");
    git(&["init", "--quiet"]);
    git(&["commit", "--quiet", "--allow-empty", "-m", "a"]);
    git(&["rev-parse", "HEAD"])
}

pub(crate) struct Receiver {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Receiver {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    pub(crate) fn start_with(arguments: &[&str], variables: &[(&str, String)]) -> Self {
        Self::start_program(Path::new(PLAIN), arguments, variables)
    }

    pub(crate) fn start_program(program: &Path, arguments: &[&str], variables: &[(&str, String)]) -> Self {
        Self::start_logging(program, arguments, variables, Stdio::null())
    }

    fn start_logging(
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, String)],
        log: impl Into<Stdio>,
    ) -> Self {
        let mut serve = command(program, &[&["gate", "serve"], arguments].concat());
        serve
            .stdout(Stdio::piped())
            .stderr(log)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("CUTOVER_GATE__LISTEN", "[\"tcp:127.0.0.1:0\"]");
        let mut child = serve.spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("captured");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on tcp:").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("said `{line}`"));
        Self { child, address }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let process = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(process.expect("a process"), signal).expect("a signal");
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One upload on a connection of its own; `None` when there was no answer.
pub(crate) fn put(address: SocketAddr, key: &str, commit: &str, body: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "PUT /v1/episodes/{key} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nX-Code-Commit: {commit}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer))
}

pub(crate) fn rows(root: &Path) -> BTreeMap<String, Vec<Value>> {
    let mut rows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let index = std::fs::read_to_string(root.join("index.jsonl")).expect("an index");
    for row in index.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let key = format!(
            "{}/{}",
            row["host_id"].as_str().expect("text"),
            row["episode_id"].as_str().expect("text")
        );
        rows.entry(key).or_default().push(row);
    }
    rows
}

fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    for host in std::fs::read_dir(root.join("episodes")).expect("a directory") {
        let host = host.expect("an entry");
        for file in std::fs::read_dir(host.path()).expect("a directory") {
            let file = file.expect("an entry");
            let key =
                format!("{}/{}", text(Path::new(&host.file_name())), text(Path::new(&file.file_name())));
            files.insert(key, file.path());
        }
    }
    files
}

/// Clients hand in episodes without a pause while the receiver is killed; in the end there is one file and one row of each.
/// `cargo xtask gate-sweep` lets a thousand do so for a time.
// I11 I32 index-1
#[test]
fn receiver_killed_again_and_again_keeps_each_upload_exactly_once() {
    const KILLS: usize = 10;
    let sweep = sweep_time();
    let (clients, each) = if sweep.is_some() { (1000, usize::MAX) } else { (8, 60) };
    let directory = tempfile::tempdir().expect("a directory");
    let (clone, root) = (directory.path().join("clone"), directory.path().join("gate"));
    let commit = clone_at(&clone);
    let arguments = ["--root", text(&root), "--repository", text(&clone)];
    let receiver = Receiver::start(&arguments);
    let address = Mutex::new(receiver.address);
    let acknowledged = AtomicUsize::new(0);
    let body = |key: &str| key.repeat(if key.ends_with("77") { 50_000 } else { 500 }).into_bytes();
    let started = Instant::now();
    let is_over = || sweep.is_some_and(|time| started.elapsed() > time);
    std::thread::scope(|scope| {
        let client = |client: usize| {
            let (address, acknowledged, commit, is_over) = (&address, &acknowledged, &commit, &is_over);
            scope.spawn(move || {
                for number in (0..each).take_while(|_| !is_over()) {
                    let key = format!("h{}/e{client}-{number}", client % 3);
                    let deadline = Instant::now() + PATIENCE + sweep.unwrap_or_default() / 5;
                    loop {
                        let at = *address.lock().expect("no panic");
                        match put(at, &key, commit, &body(&key)) {
                            Some((200 | 201, _)) => break,
                            Some((503, _)) | None => {
                                assert!(Instant::now() < deadline, "{key} is never taken");
                                // As many as these would leave the receiver no processor to start on.
                                std::thread::sleep(Duration::from_millis(clients as u64));
                            }
                            Some((status, answer)) => panic!("{key}: {status} {answer}"),
                        }
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    if sweep.is_some() {
                        // What is written stays within a few gigabytes.
                        std::thread::sleep(Duration::from_secs(5));
                    }
                }
            })
        };
        let handles: Vec<_> = (0..clients).map(client).collect();
        let mut receiver = receiver;
        let mut kills = 0;
        while if sweep.is_some() { !is_over() } else { kills < KILLS } {
            kills += 1;
            // Each upload takes many steps, and many are under way: at any moment the kill strikes them at different ones.
            if sweep.is_some() {
                std::thread::sleep(Duration::from_millis(rand::random_range(50..4000)));
            } else {
                while acknowledged.load(Ordering::SeqCst) < kills * clients * each / (KILLS + 1) {
                    assert!(handles.iter().any(|client| !client.is_finished()), "the clients gave up");
                    std::thread::yield_now();
                }
            }
            receiver.signal(rustix::process::Signal::KILL);
            drop(receiver);
            receiver = Receiver::start(&arguments);
            *address.lock().expect("no panic") = receiver.address;
        }
        for client in handles {
            client.join().expect("every upload is taken");
        }
        eprintln!("{kills} kills, {} uploads acknowledged", acknowledged.load(Ordering::SeqCst));
        receiver.signal(rustix::process::Signal::TERM);
        assert!(receiver.child.wait().expect("it ends").success());
    });
    // What the last kill left is mended by a start.
    drop(Receiver::start(&arguments));
    let (rows, files) = (rows(&root), files(&root));
    let acknowledged = acknowledged.into_inner();
    assert_eq!((rows.len(), files.len()), (acknowledged, acknowledged));
    for (key, rows) in rows {
        let [row] = &rows[..] else { panic!("{key} has {} rows", rows.len()) };
        let bytes = std::fs::read(&files[&format!("{key}.tar.zst")]).expect("a file");
        assert!(bytes == body(&key), "{key} has other bytes");
        assert_eq!(row["sha256"], Digest::of(&bytes).to_string());
    }
}

// I22
#[test]
fn receiver_without_a_window_or_a_clone_does_not_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("gate");
    for window in ["0", "-1"] {
        let arguments = ["gate", "serve", "--root", text(&root), "--repository", ".", "--window", window];
        let ran = run(Path::new(PLAIN), &arguments).must(2);
        assert!(ran.stderr.contains("gate.git.window"), "{}", ran.stderr);
    }
    let ran = run(Path::new(PLAIN), &["gate", "serve", "--root", text(&root)]).must(2);
    assert!(ran.stderr.contains("gate.git.repository"), "{}", ran.stderr);
    assert!(!root.exists());
}

#[test]
fn receiver_whose_log_cannot_be_written_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let (clone, root) = (directory.path().join("clone"), directory.path().join("gate"));
    let commit = clone_at(&clone);
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
    let arguments = ["--root", text(&root), "--repository", text(&clone)];
    let mut receiver = Receiver::start_logging(Path::new(PLAIN), &arguments, &[], full);
    assert_eq!(put(receiver.address, "h/1", &commit, b"x").map_or(0, |(status, _)| status), 201);
    receiver.signal(rustix::process::Signal::TERM);
    assert!(receiver.child.wait().expect("it ends").success());
}

#[test]
fn settings_are_read_again_when_asked_and_when_the_file_changes_and_bad_ones_change_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (clone, root) = (directory.path().join("clone"), directory.path().join("gate"));
    let commit = clone_at(&clone);
    let file = directory.path().join("cutover.toml");
    let write = |gate: &str| {
        let text = format!("[gate]\nroot = {root:?}\n{gate}\n[gate.git]\nrepository = {clone:?}\n");
        std::fs::write(&file, text).expect("written");
    };
    write("");
    let receiver = Receiver::start(&["--config", text(&file)]);
    let status = |key: &str| put(receiver.address, key, &commit, b"x").map_or(0, |(status, _)| status);
    let until = |wanted: u16, key: &str| {
        let deadline = Instant::now() + PATIENCE;
        while status(key) != wanted {
            assert!(Instant::now() < deadline, "never answered with {wanted}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    assert_eq!(status("h/1"), 201);
    write("closed = true");
    receiver.signal(rustix::process::Signal::HUP);
    until(503, "h/2");
    write("closed = maybe");
    receiver.signal(rustix::process::Signal::HUP);
    assert_eq!(status("h/3"), 503);
    write("closed = false");
    until(201, "h/3");
    // So is a drop-in that was not there when it started.
    let drop_ins = directory.path().join("cutover.toml.d");
    std::fs::create_dir(&drop_ins).expect("a directory");
    std::fs::write(drop_ins.join("closed.toml"), "gate.closed = true").expect("written");
    until(503, "h/4");
}

#[test]
fn settings_file_that_is_gone_changes_nothing_until_it_is_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (clone, root) = (directory.path().join("clone"), directory.path().join("gate"));
    let commit = clone_at(&clone);
    let file = directory.path().join("cutover.toml");
    let drop_in = directory.path().join("cutover.toml.d/closed.toml");
    std::fs::create_dir(directory.path().join("cutover.toml.d")).expect("a directory");
    let text_of = format!("[gate]\nroot = {root:?}\n[gate.git]\nrepository = {clone:?}\n");
    std::fs::write(&file, text_of).expect("written");
    std::fs::write(&drop_in, "gate.closed = true").expect("written");
    let log = directory.path().join("log");
    let log_file = std::fs::File::create(&log).expect("a file");
    let receiver = Receiver::start_logging(Path::new(PLAIN), &["--config", text(&file)], &[], log_file);
    let status = || put(receiver.address, "h/1", &commit, b"x").map_or(0, |(status, _)| status);
    let until = |is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(&log).expect("a log"));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let is_said = || std::fs::read_to_string(&log).expect("a log").contains("closed.toml` is gone");
    assert_eq!(status(), 503);
    std::fs::remove_file(&drop_in).expect("removed");
    until(&is_said);
    receiver.signal(rustix::process::Signal::HUP);
    assert_eq!(status(), 503);
    std::fs::write(&drop_in, "gate.closed = false").expect("written");
    until(&|| status() == 201);
}

#[test]
fn commit_is_checked_by_hand_with_an_exit_code_for_scripts() {
    let directory = tempfile::tempdir().expect("a directory");
    let clone = directory.path().join("clone");
    let commit = clone_at(&clone);
    let check = |commit: &str| {
        run(Path::new(PLAIN), &["gate", "check", commit, "--repository", text(&clone), "--json"])
    };
    assert_eq!(check(&commit).must(0).json()["accepted"], true);
    let old = check(&"0".repeat(40)).must(13);
    assert_eq!((&old.json()["accepted"], &old.json()["error"]["exit_code"]), (&false.into(), &13.into()));
    assert!(old.stderr.contains(&commit) && old.stderr.contains("hint:"), "{}", old.stderr);
    check("HEAD").must(2);
    run(Path::new(PLAIN), &["gate", "check", &commit, "--repository", "/nonexistent"]).must(1);
}

#[test]
fn token_is_printed_once_and_its_hash_is_masked_in_the_settings() {
    let ran = run(Path::new(PLAIN), &["gate", "token", "h1"]).must(0);
    let token = ran.stdout.trim();
    let digest = Digest::of(token.as_bytes()).to_string();
    assert!(ran.stderr.contains(&format!("\"h1\" = \"{digest}\"")), "{}", ran.stderr);
    let set = format!("gate.tokens.h1={digest}");
    let shown = run(Path::new(PLAIN), &["config", "show", "--set", &set]).must(0);
    assert!(!shown.stdout.contains(&digest), "{}", shown.stdout);
    run(Path::new(PLAIN), &["gate", "token", "../x"]).must(2);
}

#[test]
fn commits_of_the_newest_releases_are_accepted_and_of_yanked_or_older_ones_not() {
    let world = World::new();
    let repository = Repository::new(&world);
    let commits = ["a", "b", "c"].map(|digit| digit.repeat(40));
    for (version, commit) in ["1.0.0", "1.1.0", "1.2.0"].iter().zip(&commits) {
        let spec = format!("[build]\ncommit = \"{commit}\"");
        repository.publish(&world.build(&Release { spec: &spec, ..Release::new(version) })).must(0);
    }
    let directory = format!("gate.releases.repository={}", text(&repository.dir));
    let accepts = |settings: &[&str]| {
        commits.each_ref().map(|commit| {
            let mut arguments =
                vec!["gate", "check", commit, "--set", "gate.source=releases", "--set", &directory];
            settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
            match world.run(&arguments).code {
                0 => true,
                13 => false,
                other => panic!("ended with {other}"),
            }
        })
    };
    assert_eq!(accepts(&[]), [true, true, true]);
    assert_eq!(accepts(&["gate.releases.last=2"]), [false, true, true]);
    assert_eq!(accepts(&["gate.releases.minimum=1.2.0"]), [false, false, true]);
    repository.run("yank", &["tool@1.2.0"], &["--reason", "loses data"]).must(0);
    assert_eq!(accepts(&["gate.releases.last=2"]), [true, true, false]);
    let clone = world.path("clone");
    let head = clone_at(&clone);
    let check = |commit: &str| {
        let arguments = [
            "gate",
            "check",
            commit,
            "--repository",
            text(&clone),
            "--set",
            "gate.source=both",
            "--set",
            &directory,
        ];
        world.run(&arguments).code
    };
    assert_eq!((check(&head), check(&commits[0]), check(&commits[2])), (0, 0, 13));
}

// index-5
#[test]
fn full_disk_is_said_leaves_nothing_behind_and_is_over_when_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let (clone, disk) = (directory.path().join("clone"), directory.path().join("disk"));
    let commit = clone_at(&clone);
    std::fs::create_dir(&disk).expect("a directory");
    // A mount of its own name space: it is gone with the process.
    let mount = format!(
        "mount -t tmpfs -o size=1m,nr_inodes=12 none '{0}' || exit 99; touch '{0}/mounted'; exec \"$0\" \"$@\"",
        disk.display()
    );
    let mut serve = command(
        Path::new("unshare"),
        &["--mount", "sh", "-c", &mount, PLAIN, "gate", "serve", "--root", text(&disk)],
    );
    serve.args(["--repository", text(&clone), "--set", "gate.limits.free_bytes=0"]);
    serve.env("CUTOVER_GATE__LISTEN", "[\"tcp:127.0.0.1:0\"]").stdout(Stdio::piped());
    let said = directory.path().join("said");
    serve.stderr(std::fs::File::create(&said).expect("made"));
    let Ok(mut child) = serve.spawn() else { return not_run("full disk: no unshare") };
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("captured")).read_line(&mut line).expect("a line");
    let Some(address) =
        line.trim().strip_prefix("listening on tcp:").and_then(|address| address.parse().ok())
    else {
        if !line.is_empty() {
            let _ = child.kill();
        }
        let code = child.wait().expect("waited for").code();
        let said = std::fs::read_to_string(&said).expect("read");
        if line.is_empty() && (code == Some(99) || said.starts_with("unshare:")) {
            return not_run("full disk: no mount of its own: needs root");
        }
        panic!("it printed no address but `{line}` and ended with {code:?}: {said}");
    };
    let receiver = Receiver { child, address };
    let status = |key: &str, size: usize| {
        put(address, key, &commit, &vec![b'x'; size]).map_or(0, |(status, _)| status)
    };
    // Too large for what is left, said before the body; then no inode is left, found on the way.
    assert_eq!(status("h/large", 2 << 20), 507);
    let statuses: Vec<u16> = (0..12).map(|number| status(&format!("h/{number}"), 10)).collect();
    let stored = statuses.iter().filter(|status| **status == 201).count();
    assert!(stored > 0 && statuses[stored..].iter().all(|status| *status == 507), "{statuses:?}");
    // The receiver sees its own mount.
    let seen = PathBuf::from(format!("/proc/{}/root{}", receiver.child.id(), disk.display()));
    assert_eq!((rows(&seen).len(), files(&seen).len()), (stored, stored));
    std::fs::remove_file(seen.join("mounted")).expect("removed");
    assert_eq!(status("h/after", 10), 201);
    assert_eq!(rows(&seen).len(), stored + 1);
}
