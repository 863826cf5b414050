//! `ship` and `index`: the shipper against a receiver on a real socket, killed at every step; the index on real files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    receiver::{Act, Receiver},
    world::{PLAIN, Ran, command, finish, has_tool, text},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLD: &str = "ffffffffffffffffffffffffffffffffffffffff";
const REMEDIATION: &str = "Your recorder is out of date.\n    sudo recorder-update\nThen record again.";

/// A spool and a receiver.
struct Host {
    spool: tempfile::TempDir,
    url: String,
    name: String,
}

impl Host {
    fn new(receiver: &Receiver, name: &str) -> Self {
        Self { spool: tempfile::tempdir().unwrap(), url: receiver.url.clone(), name: name.to_owned() }
    }

    fn folder(&self, name: &str, commit: &str) {
        let path = self.spool.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("meta.json"), format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#)).unwrap();
        fs::write(path.join("data"), vec![7; 100_000]).unwrap();
    }

    fn arguments(&self, verb: &[&str]) -> Vec<String> {
        let mut arguments = vec!["ship".to_owned()];
        arguments.extend(verb.iter().map(|&text| text.to_owned()));
        let place = ["--spool", text(self.spool.path()), "--url", &self.url, "--host", &self.name];
        let quick = ["--set", "ship.settle_s=0", "--set", "ship.retry_wait_ms=10"];
        arguments.extend(place.iter().chain(&quick).map(|&text| text.to_owned()));
        arguments
    }

    fn ship(&self, verb: &[&str]) -> Ran {
        let arguments = self.arguments(verb);
        finish(command(Path::new(PLAIN), &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.spool.path()).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".cutover-ship")
            .collect()
    }
}

// I12
#[test]
fn refused_episode_is_in_the_log_with_its_whole_remediation_and_newer_ones_ship() {
    let receiver = Receiver::start(|seen| match seen.headers["x-code-commit"].as_str() {
        OLD => {
            let problem = serde_json::json!({
                "error": "commit-not-in-window", "remediation": REMEDIATION, "your_commit": OLD, "head_commit": COMMIT,
            });
            Act::Refuse(412, Vec::new(), problem.to_string())
        }
        _ => Act::Store,
    });
    let host = Host::new(&receiver, "h");
    host.folder("e1", OLD);
    let ran = host.ship(&["run", "--once"]).must(1);
    assert_eq!(ran.stdout, "0 shipped, 1 parked, 0 queued\n");
    let block: Vec<&str> = ran.stderr.lines().skip_while(|line| !line.contains("ERROR")).collect();
    for (line, wanted) in block.iter().skip(1).zip([
        format!("  its commit:  {OLD}"),
        format!("  the newest:  {COMMIT}"),
        "  Your recorder is out of date.".to_owned(),
        "      sudo recorder-update".to_owned(),
        "  Then record again.".to_owned(),
    ]) {
        assert_eq!(*line, wanted, "{}", ran.stderr);
    }
    host.folder("e2", COMMIT);
    host.ship(&["run", "--once"]).must(1);
    assert_eq!(receiver.keys(), ["h/e1", "h/e2"], "one attempt each");

    let shown = host.ship(&["status"]).must(0).stdout;
    for wanted in ["1 parked, 1 shipped", "h/e1", "    sudo recorder-update", "cutover ship retry h/e1"] {
        assert!(shown.contains(wanted), "{shown}");
    }
    let status = host.ship(&["status", "--json"]).must(0).json();
    assert_eq!(status["episodes"][0]["state"], "parked");
    assert_eq!(status["episodes"][0]["remediation"], REMEDIATION);
    assert_eq!(host.ship(&["retry", "h/e1"]).must(0).stdout, "queued h/e1\n");
    host.ship(&["run", "--once"]).must(1);
    assert_eq!(receiver.seen().len(), 3);
    host.ship(&["drop"]).must(2);
    let ran = host.ship(&["drop", "e9"]).must(2);
    assert!(ran.stderr.contains("there is no episode `e9`"), "{}", ran.stderr);
    assert_eq!(host.ship(&["drop", "e1"]).must(0).stdout, "dropped h/e1\n");
    assert!(host.left().is_empty());
    host.ship(&["run", "--once"]).must(0);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let receiver = Receiver::start(|_| Act::Store);
    let host = Host::new(&receiver, "h");
    let with = |set: &str| {
        let mut arguments = host.arguments(&["run", "--once", "--set"]);
        arguments.insert(4, set.to_owned());
        finish(command(Path::new(PLAIN), &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
            .must(2)
            .stderr
    };
    for (set, wanted) in [
        ("ship.zstd_level=40", "`ship.zstd_level`"),
        ("ship.on_refused=update", "`ship.update_command`"),
        ("ship.commit_header=a b", "`ship.commit_header`"),
        ("ship.tries=3", "unknown key `ship.tries`"),
    ] {
        let said = with(set);
        assert!(said.contains(wanted), "{set}: {said}");
    }
    let ran = finish(command(Path::new(PLAIN), &["ship", "run"])).must(2);
    assert!(ran.stderr.contains("`ship.spool`"), "{}", ran.stderr);
}

/// Runs the shipper under strace, which kills it at the `number`th of these calls of any of its threads. True when it was.
fn killed_at(host: &Host, calls: &str, number: usize) -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={number}")]);
    strace.arg(PLAIN).args(host.arguments(&["run", "--once"])).env("CUTOVER_LOG", "off");
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = strace.status().expect("started");
    let killed =
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) || status.code() == Some(137);
    assert!(killed || status.success(), "{status}");
    killed
}

/// Kills the shipper at each of the numbered calls in turn, and lets another one finish what it left.
fn sweep(name: &str, calls: &str, numbers: impl Iterator<Item = usize>) {
    if !has_tool("strace", "strace") {
        return;
    }
    let receiver = Receiver::start(|_| Act::Store);
    let mut kills = 0;
    for number in numbers {
        let host = Host::new(&receiver, &format!("{name}-{number}"));
        host.folder("folder", COMMIT);
        let archive = vec![number as u8; 70_000];
        fs::write(host.spool.path().join("archive.tar.zst"), &archive).unwrap();
        let killed = killed_at(&host, calls, number);
        host.ship(&["run", "--once"]).must(0);

        let stored = receiver.stored();
        assert_eq!(stored[&format!("{}/archive", host.name)], archive, "{calls} {number}");
        assert!(stored.contains_key(&format!("{}/folder", host.name)), "{calls} {number}");
        assert!(host.left().is_empty(), "{calls} {number}: {:?}", host.left());
        let status = host.ship(&["status", "--json"]).must(0).json();
        assert_eq!(status["episodes"].as_array().unwrap().len(), 0, "{calls} {number}");
        for place in ["packed", "removing", "trash"] {
            let path = host.spool.path().join(".cutover-ship").join(place);
            assert_eq!(fs::read_dir(path).unwrap().count(), 0, "{calls} {number}: {place}");
        }
        if !killed {
            break;
        }
        kills += 1;
    }
    assert!(kills > 0, "{calls}: nothing was killed");
    // A second PUT of other bytes would have been a conflict, and parked.
    let other = receiver.seen().into_iter().map(|seen| seen.key).collect::<Vec<_>>();
    assert_eq!(
        receiver.stored().len(),
        2 * other.iter().map(|key| key.split('/').next()).collect::<std::collections::BTreeSet<_>>().len()
    );
}

// I32 ship-1
#[test]
fn shipper_killed_at_any_flush_ships_everything_once() {
    sweep("flush", "fsync,fdatasync", 1..30);
}

// I32 ship-1
#[test]
fn shipper_killed_at_any_rename_or_removal_ships_everything_once() {
    sweep("rename", "rename,renameat,renameat2", 1..20);
    sweep("unlink", "unlink,unlinkat", 1..20);
}

// I32 ship-1
#[test]
fn shipper_killed_at_any_network_call_ships_everything_once() {
    sweep("send", "sendto,writev", 1..12);
    sweep("receive", "recvfrom", 1..12);
}

// I32 ship-1
#[test]
fn shipper_killed_at_writes_ships_everything_once() {
    sweep("write", "write,pwrite64", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144].into_iter());
    sweep("open", "openat2,mkdirat", [1, 2, 3, 5, 8, 13, 21, 34].into_iter());
}

/// A directory as a receiver keeps it.
struct Stored(tempfile::TempDir);

impl Stored {
    fn new(keys: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for key in keys {
            let path = directory.path().join(format!("episodes/{key}.tar.zst"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("bytes of {key}")).unwrap();
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn index(&self) -> PathBuf {
        self.path().join("index.jsonl")
    }

    fn repair(&self, more: &[&str]) -> Ran {
        let mut arguments = vec!["index", "repair", "--root", text(self.path())];
        arguments.extend(more);
        finish(command(Path::new(PLAIN), &arguments))
    }
}

// I15 I16 I26
#[test]
fn index_repair_says_what_it_finds_and_does() {
    let stored = Stored::new(&["a/e1", "a/e2", "b/e1", "b/e2", "b/e3", "b/e4", "b/e5"]);
    let index = stored.index().display().to_string();
    let ran = stored.repair(&["--dry-run"]).must(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (7, "scanned: 7 already-indexed: 0 to-backfill: 7"));
    assert!(
        lines[1].starts_with("{\"backfilled\":true,\"episode_id\":\"e1\",\"host_id\":\"a\","),
        "{}",
        ran.stdout
    );
    assert_eq!(lines[6], "... (2 more)");
    assert!(!stored.index().exists());

    let ran = stored.repair(&["--host", "a"]).must(0);
    assert_eq!(
        ran.stdout,
        format!("scanned: 2 already-indexed: 0 to-backfill: 2\nbackfilled 2 rows into {index}\n")
    );
    let ran = stored.repair(&[]).must(0);
    assert_eq!(
        ran.stdout,
        format!("scanned: 7 already-indexed: 2 to-backfill: 5\nbackfilled 5 rows into {index}\n")
    );
    let before = fs::read(stored.index()).unwrap();
    let ran = stored.repair(&[]).must(0);
    assert_eq!(
        ran.stdout,
        format!("scanned: 7 already-indexed: 7 to-backfill: 0\nbackfilled 0 rows into {index}\n")
    );
    assert_eq!(fs::read(stored.index()).unwrap(), before);
    let ran = stored.repair(&["--dry-run"]).must(0);
    assert_eq!(ran.stdout, "scanned: 7 already-indexed: 7 to-backfill: 0\n");

    let elsewhere = stored.path().join("other.jsonl");
    stored.repair(&["--index", text(&elsewhere)]).must(0);
    assert_eq!(fs::read_to_string(elsewhere).unwrap().lines().count(), 7);
    let json = stored.repair(&["--json"]).must(0).json();
    assert_eq!((&json["scanned"], &json["backfilled"]), (&7.into(), &0.into()));
}

#[test]
fn index_repair_without_episodes_ends_with_2_and_damage_with_17() {
    let stored = Stored::new(&["a/e1", "a/e2"]);
    stored.repair(&[]).must(0);
    let ran = stored.repair(&["--verify"]).must(0);
    assert!(ran.stdout.ends_with("verified: 2 files, 26 B; findings: 0\n"), "{}", ran.stdout);
    fs::write(stored.path().join("episodes/a/e1.tar.zst"), "bytes of a/e0").unwrap();
    let ran = stored.repair(&["--verify"]).must(17);
    assert!(ran.stdout.contains("rot: a/e1: the index says"), "{}", ran.stdout);

    let empty = tempfile::tempdir().unwrap();
    let ran = finish(command(Path::new(PLAIN), &["index", "repair", "--root", text(empty.path())])).must(2);
    let wanted = format!("no episodes dir at {}", empty.path().join("episodes").display());
    assert!(ran.stdout.is_empty() && ran.stderr.contains(&wanted), "{}", ran.stderr);
}

// I33
#[test]
fn several_repairs_at_once_add_each_row_once() {
    let keys: Vec<String> = (0..200).map(|number| format!("h/e{number:03}")).collect();
    let stored = Stored::new(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| stored.repair(&[]).must(0));
        }
    });
    let rows = fs::read_to_string(stored.index()).unwrap();
    let found: BTreeMap<String, serde_json::Value> = rows
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            (row["episode_id"].as_str().unwrap().to_owned(), row)
        })
        .collect();
    assert_eq!((rows.lines().count(), found.len()), (200, 200));
}
