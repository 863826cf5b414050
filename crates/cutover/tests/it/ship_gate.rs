//! The shipper and the receiver as two programs: refused and accepted, killed and started again.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cutover::core::model::Digest;

use crate::world::{PLAIN, Ran, command, finish, sweep_time, text};

/// The longest anything is waited for.
const PATIENCE: Duration = Duration::from_secs(50);

/// A receiver with a clone, and a host with a spool.
struct Pair {
    directory: tempfile::TempDir,
    port: u16,
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["clone", "spool"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // Whoever starts again has to find the receiver where it was: a port that is free now.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let pair = Self { directory, port };
        pair.git(&["init", "--quiet", "--initial-branch=main"]);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut git = Command::new("git");
        git.current_dir(self.path("clone")).args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
        git.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output = git.output().unwrap_or_else(|error| panic!("`git` is needed: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self) -> String {
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn serve(&self) -> Running {
        let listen = format!("tcp:127.0.0.1:{}", self.port);
        let (root, clone) = (self.path("gate"), self.path("clone"));
        let arguments =
            ["gate", "serve", "--root", text(&root), "--listen", &listen, "--repository", text(&clone)];
        let more = ["--window", "2", "--set", "gate.git.ttl_s=1"];
        let started = Instant::now();
        loop {
            let mut receiver = command(Path::new(PLAIN), &[&arguments[..], &more].concat());
            receiver.stdout(Stdio::piped()).stderr(Stdio::null());
            let mut receiver = Running(receiver.spawn().unwrap());
            let mut line = String::new();
            BufReader::new(receiver.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if line.starts_with("listening on") {
                return receiver;
            }
            assert!(started.elapsed() < PATIENCE, "the receiver does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn folder(&self, name: &str, commit: &str, size: usize) {
        let path = self.path("spool").join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("meta.json"), format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#)).unwrap();
        fs::write(path.join("data"), vec![name.len() as u8; size]).unwrap();
    }

    fn shipper(&self, verb: &[&str]) -> Command {
        let (url, spool) = (format!("http://127.0.0.1:{}", self.port), self.path("spool"));
        let place = ["--url", &url, "--spool", text(&spool), "--host", "h"];
        let quick = [
            "ship.settle_s=0",
            "ship.retry_wait_ms=20",
            "ship.retry_wait_max_s=1",
            "ship.in_flight_per_stream=4",
        ];
        let quick = quick.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
        command(Path::new(PLAIN), &[&["ship"], verb, &place, &quick].concat())
    }

    fn ship(&self) -> Ran {
        finish(self.shipper(&["run", "--once"]))
    }

    fn start_shipper(&self) -> Running {
        let mut shipper = self.shipper(&["run"]);
        shipper.stdout(Stdio::null()).stderr(Stdio::null());
        Running(shipper.spawn().unwrap())
    }

    /// Digest of each row and of each stored file, by episode.
    fn stored(&self) -> (BTreeMap<String, serde_json::Value>, BTreeMap<String, String>) {
        let index = fs::read_to_string(self.path("gate/index.jsonl")).unwrap_or_default();
        let mut rows = BTreeMap::new();
        for line in index.lines() {
            let row: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("a torn row: {line}"));
            let before = rows.insert(row["episode_id"].as_str().unwrap().to_owned(), row);
            assert_eq!(before, None, "two rows for one episode");
        }
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.path("gate/episodes/h")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if let Some(name) = name.strip_suffix(".tar.zst") {
                files.insert(name.to_owned(), Digest::of(&fs::read(entry.path()).unwrap()).to_string());
            }
        }
        (rows, files)
    }

    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("spool"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".cutover-ship").collect()
    }
}

// I12 I15
#[test]
fn out_of_date_host_is_told_what_to_do_and_its_newer_episodes_are_stored() {
    let pair = Pair::new();
    let old = pair.commit();
    let _receiver = pair.serve();
    pair.folder("e1", &old, 300_000);
    pair.ship().must(0);
    let commits = [pair.commit(), pair.commit()];
    // The receiver may still know the window as it was; it says so by refusing or storing, and both are right.
    let started = Instant::now();
    let mut number = 1;
    let ran = loop {
        number += 1;
        pair.folder(&format!("e{number}"), &old, 300_000);
        let ran = pair.ship();
        if ran.code == 1 {
            break ran;
        }
        assert!(started.elapsed() < PATIENCE, "the window does not move");
        std::thread::sleep(Duration::from_millis(100));
    };
    for wanted in [&old, &commits[1], "Update the code on this host"] {
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    }
    pair.folder("new", &commits[0], 300_000);
    pair.ship().must(1);
    let (rows, files) = pair.stored();
    assert_eq!(
        (rows["new"]["commit"].as_str(), rows["e1"]["commit"].as_str()),
        (Some(&*commits[0]), Some(&*old))
    );
    assert!(rows.keys().eq(files.keys()));
    assert_eq!(pair.left(), [format!("e{number}")]);

    // The index is lost; beside the receiver that runs, its rows come back from what is stored.
    let before = rows.len();
    let gate = pair.path("gate");
    let other = pair.path("other.jsonl");
    let repair = ["index", "repair", "--root", text(&gate), "--index", text(&other)];
    finish(command(Path::new(PLAIN), &repair)).must(0);
    let again =
        finish(command(Path::new(PLAIN), &["index", "repair", "--root", text(&gate), "--verify"])).must(0);
    assert!(
        again.stdout.starts_with(&format!("scanned: {before} already-indexed: {before} to-backfill: 0\n"))
    );
    for line in fs::read_to_string(other).unwrap().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let real = &rows[row["episode_id"].as_str().unwrap()];
        assert_eq!((&row["commit"], &row["sha256"]), (&real["commit"], &real["sha256"]));
        assert_eq!(row["backfilled"], true);
    }
}

// I32 index-1 ship-1
#[test]
fn both_killed_again_and_again_leave_every_episode_once() {
    let pair = Pair::new();
    let commit = pair.commit();
    let mut episodes = 0;
    let mut more = |count: usize| {
        for _ in 0..count {
            pair.folder(&format!("e{episodes:06}"), &commit, 20_000 + 10_000 * (episodes % 40));
            episodes += 1;
        }
        episodes
    };
    more(40);
    let sweep = sweep_time();
    let patience = PATIENCE + sweep.unwrap_or_default();
    let (mut receiver, mut shipper) = (Some(pair.serve()), Some(pair.start_shipper()));
    let started = Instant::now();
    let mut kills = 0;
    while !pair.left().is_empty() {
        assert!(started.elapsed() < patience, "{:?} are left after {kills} kills", pair.left().len());
        // The moment is chosen by how far they have come, and by chance.
        let before = pair.left().len();
        while pair.left().len() + 1 > before && started.elapsed() < patience && !pair.left().is_empty() {
            std::thread::sleep(Duration::from_millis(3));
        }
        if sweep.is_some_and(|time| started.elapsed() < time) {
            more(40_usize.saturating_sub(pair.left().len()));
        }
        kills += 1;
        if kills % 2 == 0 {
            receiver.take().unwrap().kill();
            receiver = Some(pair.serve());
        } else {
            shipper.take().unwrap().kill();
            shipper = Some(pair.start_shipper());
        }
    }
    shipper.take().unwrap().kill();
    pair.ship().must(0);
    receiver.take().unwrap().kill();
    let _receiver = pair.serve();
    let (rows, files) = pair.stored();
    let episodes = more(0);
    eprintln!("{kills} kills, {episodes} episodes");
    assert_eq!((rows.len(), files.len()), (episodes, episodes));
    for (name, row) in &rows {
        assert_eq!(row["sha256"].as_str(), Some(files[name].as_str()), "{name}");
    }
    assert!(kills >= 5, "{kills}");
}

// I33
#[test]
fn repair_beside_a_receiver_adds_no_row_twice() {
    let pair = Pair::new();
    let commit = pair.commit();
    let _receiver = pair.serve();
    for number in 0..30 {
        pair.folder(&format!("e{number:02}"), &commit, 20_000);
    }
    let gate = pair.path("gate");
    let repair = ["index", "repair", "--root", text(&gate)];
    std::thread::scope(|scope| {
        let shipping = scope.spawn(|| pair.ship().must(0));
        while !shipping.is_finished() {
            let ran = finish(command(Path::new(PLAIN), &repair));
            // Before the first episode there is nothing to look at.
            assert!(matches!(ran.code, 0 | 2), "{}", ran.stderr);
        }
    });
    let (rows, files) = pair.stored();
    assert_eq!((rows.len(), files.len(), pair.left().len()), (30, 30, 0));
    assert!(
        rows.iter()
            .all(|(name, row)| row["sha256"].as_str() == Some(&files[name]) && row["commit"] == *commit)
    );
}
