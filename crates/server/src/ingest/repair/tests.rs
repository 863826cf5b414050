//! Repairs of real directories.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZeroUsize,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use cutover_bundle::episode::ArchiveWriter;
use cutover_core::{
    admission::{EpisodeKey, IndexRow, received_at_wall},
    model::Digest,
};

use super::{
    Check, Counts, Progress, RepairOptions, RepairWatch, Repaired, Writing,
    episodes::Task,
    hashing::hash_all,
    repair,
    sink::{SHOWN, Sink},
};
use crate::ingest::{index::Index, layout::Layout};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct World {
    directory: tempfile::TempDir,
    options: RepairOptions,
}

/// What was told.
#[derive(Default)]
struct Told {
    counts: Counts,
    failed: Vec<PathBuf>,
    last: Progress,
}

impl RepairWatch for Told {
    fn counted(&mut self, counts: Counts) {
        self.counts = counts;
    }

    fn progress(&mut self, progress: Progress) {
        assert!(progress.files >= self.last.files && progress.bytes >= self.last.bytes);
        self.last = progress;
    }

    fn failed(&mut self, path: &Path, _: &io::Error) {
        self.failed.push(path.to_owned());
    }
}

fn archive(meta: &str) -> Vec<u8> {
    let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
    writer.file(b"e/data", false, 5000, &mut &[7; 5000][..]).unwrap();
    writer.file(b"e/meta.json", false, meta.len() as u64, &mut meta.as_bytes()).unwrap();
    writer.finish().unwrap()
}

fn with_commit() -> Vec<u8> {
    archive(&format!(r#"{{"code_version":{{"commit":"{COMMIT}"}}}}"#))
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_800_000_000).unwrap()
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        fs::create_dir(layout.episodes()).unwrap();
        let options = RepairOptions {
            index: layout.index(),
            layout,
            bucket: None,
            hosts: BTreeSet::new(),
            writing: Writing::Rows,
            check: Check::Missing,
            jobs: NonZeroUsize::new(2).unwrap(),
        };
        Self { directory, options }
    }

    fn store(&self, key: &str, bytes: &[u8]) -> PathBuf {
        let (host, episode) = key.split_once('/').unwrap();
        let key = EpisodeKey::new(host, episode).unwrap();
        fs::create_dir_all(self.options.layout.host(&key.host)).unwrap();
        let path = self.options.layout.episode(&key);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn repair(&self) -> (Repaired, Told) {
        let mut told = Told::default();
        (repair(&self.options, &now, &mut told).unwrap(), told)
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.options.index).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }

    fn keys(&self) -> Vec<String> {
        let row = |line: &String| serde_json::from_str::<IndexRow>(line).unwrap().key().to_string();
        self.lines().iter().map(row).collect()
    }
}

// I15 I26
#[test]
fn missing_rows_are_added_sorted_and_a_second_run_adds_none() {
    let world = World::new();
    let bytes = with_commit();
    for key in ["b/e2", "b/e10", "a/e1", "b/e1"] {
        world.store(key, &bytes);
    }
    let (repaired, told) = world.repair();
    assert_eq!(repaired.counts, Counts { scanned: 4, already_indexed: 0, to_backfill: 4 });
    assert_eq!((repaired.counts, repaired.added), (told.counts, 4));
    assert_eq!(
        (told.last.files, told.last.bytes, told.last.bytes_all),
        (4, repaired.hashed.1, repaired.hashed.1)
    );
    assert_eq!(world.keys(), ["a/e1", "b/e1", "b/e10", "b/e2"], "one id on two hosts has two rows");
    let digest = Digest::of(&bytes);
    let size = bytes.len();
    assert_eq!(
        world.lines()[0],
        format!(
            r#"{{"backfilled":true,"commit":"{COMMIT}","episode_id":"e1","host_id":"a","received_at_wall":"2027-01-15T08:00:00.000000+00:00","schema_version":1,"sha256":"{digest}","size_bytes":{size}}}"#
        )
    );
    let before = fs::read(&world.options.index).unwrap();
    let (again, _) = world.repair();
    assert_eq!((again.counts.already_indexed, again.added, again.hashed.0), (4, 0, 0));
    assert_eq!(fs::read(&world.options.index).unwrap(), before);
}

// I14
#[test]
fn rows_that_are_there_stay_as_they_are() {
    let world = World::new();
    world.store("a/e1", b"one");
    world.store("a/e2", b"two");
    // A row of the Python tools: no commit, other spacing, a field of their own, and a torn line after it.
    let old = format!(
        r#"{{"host_id": "a", "episode_id": "e1", "sha256": "{}", "size_bytes": 3, "received_at_wall": "2025-01-01T00:00:00+00:00", "schema_version": 1, "note": "x"}}"#,
        Digest::of(b"one")
    );
    fs::write(&world.options.index, format!("{old}\n{{\"host_id\": \"a\", \"epi")).unwrap();
    let (repaired, _) = world.repair();
    assert_eq!(repaired.counts, Counts { scanned: 2, already_indexed: 1, to_backfill: 1 });
    let lines = world.lines();
    assert_eq!((lines.len(), &lines[0]), (3, &old));
    assert!(lines[2].contains("\"e2\"") && !lines[2].contains("commit"), "{}", lines[2]);
}

// I16
#[test]
fn dry_run_writes_no_byte_and_shows_the_first_five_rows() {
    let mut world = World::new();
    for number in 0..8 {
        world.store(&format!("a/e{number}"), &with_commit());
    }
    world.options.writing = Writing::Nothing;
    let tree = || {
        let names = fs::read_dir(world.directory.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let before = tree();
    let (repaired, _) = world.repair();
    assert_eq!((repaired.counts.to_backfill, repaired.added, repaired.hashed.0), (8, 0, SHOWN));
    let shown: Vec<String> = repaired.shown.iter().map(|row| row.key().to_string()).collect();
    assert_eq!(shown, ["a/e0", "a/e1", "a/e2", "a/e3", "a/e4"]);
    assert_eq!(repaired.shown[0].commit.as_ref().unwrap().as_str(), COMMIT);
    assert_eq!(tree(), before, "not even the index file is made");
}

// I35
#[test]
fn hidden_unfinished_linked_and_stray_files_are_skipped() {
    let world = World::new();
    let real = world.store("a/e1", b"one");
    let (host, episodes) = (real.parent().unwrap(), world.options.layout.episodes());
    for name in [".x.tar.zst", "x.tar.zst.tmp", "x.tar", "a b.tar.zst", ".e.1.part"] {
        fs::write(host.join(name), "x").unwrap();
    }
    fs::create_dir(host.join("dir.tar.zst")).unwrap();
    symlink("e1.tar.zst", host.join("link.tar.zst")).unwrap();
    symlink("a", episodes.join("linked-host")).unwrap();
    fs::write(episodes.join("plain.tar.zst"), "x").unwrap();
    fs::create_dir(episodes.join(".hidden")).unwrap();
    fs::write(episodes.join(".hidden/e9.tar.zst"), "x").unwrap();
    let (repaired, told) = world.repair();
    assert_eq!((repaired.counts.scanned, world.keys(), told.failed.len()), (1, vec!["a/e1".to_owned()], 0));
}

// I34
#[test]
fn row_without_a_commit_where_the_archive_says_none() {
    let world = World::new();
    let bomb = {
        let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
        writer.file(b"zeros", false, 1 << 29, &mut io::Read::take(io::repeat(0), 1 << 29)).unwrap();
        writer.finish().unwrap()
    };
    assert!(bomb.len() < 100_000);
    world.store("a/bomb", &bomb);
    world.store("a/empty", b"");
    world.store("a/none", &archive("{}"));
    world.store("a/other", b"no archive at all");
    world.store("a/short", &with_commit()[..50]);
    let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
    let meta = format!(r#"{{"code_version":{{"commit":"{COMMIT}"}}}}"#);
    writer.file(b"e/xmeta.json", false, meta.len() as u64, &mut meta.as_bytes()).unwrap();
    world.store("a/xmeta", &writer.finish().unwrap());
    let (repaired, told) = world.repair();
    assert_eq!((repaired.added, told.failed.len()), (6, 0));
    assert!(world.lines().iter().all(|line| !line.contains("commit")));
}

#[test]
fn only_the_named_hosts_are_looked_at() {
    let mut world = World::new();
    for key in ["a/e1", "b/e1", "c/e1"] {
        world.store(key, b"x");
    }
    world.options.hosts = BTreeSet::from(["b".parse().unwrap()]);
    assert_eq!(world.repair().0.counts.scanned, 1);
    assert_eq!(world.keys(), ["b/e1"]);
}

#[test]
fn nothing_to_look_at_is_said_so_and_nothing_to_add_makes_no_index() {
    let world = World::new();
    assert_eq!(world.repair().0.counts, Counts::default());
    assert!(!world.options.index.exists());
    fs::remove_dir(world.options.layout.episodes()).unwrap();
    let error = repair(&world.options, &now, &mut Told::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no episodes dir at {}", world.options.layout.episodes().display())
    );
}

#[test]
fn file_that_cannot_be_read_is_told_and_the_others_are_indexed() {
    let world = World::new();
    world.store("a/e1", b"x");
    world.store("b/e1", b"x");
    // A host's directory that turns out to be none while it is looked at stands for a failing disk: root reads all else.
    let bad = world.store("a/e2", b"x");
    fs::remove_file(&bad).unwrap();
    fs::create_dir(&bad).unwrap();
    let task = Task { key: EpisodeKey::new("a", "e2").unwrap(), row: None, size: 0 };
    let tasks = [task, Task { key: EpisodeKey::new("b", "e1").unwrap(), row: None, size: 1 }];
    let index = Some(Index::open(&world.options.index).unwrap());
    let mut sink = Sink::new(index, Repaired::default(), Check::Missing);
    let mut told = Told::default();
    hash_all(&world.options, &tasks, &now, &mut told, &mut sink).unwrap();
    assert_eq!((sink.repaired.failures, sink.repaired.added, told.failed), (1, 1, vec![bad]));
    assert_eq!(world.keys(), ["b/e1"]);
}

#[test]
fn check_reports_rot_missing_files_and_duplicates() {
    let mut world = World::new();
    let rotten = world.store("a/rotten", b"before");
    world.store("a/sound", b"sound");
    let gone = world.store("a/gone", b"gone");
    world.repair();
    fs::write(&rotten, b"beforE").unwrap();
    fs::remove_file(&gone).unwrap();
    world.store("b/copy", b"sound");
    let lines = world.lines();
    let other = lines[1]
        .replace("\"size_bytes\":6", "\"size_bytes\":7")
        .replace(&Digest::of(b"before").to_string(), &"0".repeat(64));
    fs::write(&world.options.index, format!("{}\n{}\nnonsense\n{other}\n", lines.join("\n"), lines[2]))
        .unwrap();
    world.options.check = Check::Everything;
    let (repaired, _) = world.repair();
    assert_eq!((repaired.added, repaired.hashed.0), (1, 3), "the new one is indexed as well");
    let said: Vec<String> = repaired.findings.iter().map(ToString::to_string).collect();
    let find = |start: &str| {
        said.iter().find(|text| text.starts_with(start)).unwrap_or_else(|| panic!("{start}: {said:?}"))
    };
    find("rot: a/rotten");
    find("missing: a/gone");
    find("duplicate: b/copy has the same bytes as a/sound");
    find("duplicate: a/sound: a second row says the same");
    find("duplicate: a/rotten: a second row says something else");
    find("index: ");
    assert_eq!(repaired.findings.iter().filter(|finding| finding.is_damage()).count(), 3);
    assert_eq!(said.len(), 6);
}

// I33
#[test]
fn backfill_beside_writers_keeps_all_lines_whole_and_no_key_twice() {
    let world = World::new();
    for number in 0..300 {
        world.store(&format!("a/e{number:03}"), format!("{number}").as_bytes());
    }
    std::thread::scope(|scope| {
        for host in ["a", "b"] {
            let index = &world.options.index;
            scope.spawn(move || {
                let mut index = Index::open(index).unwrap();
                for number in (0..300).rev() {
                    let row = IndexRow {
                        backfilled: false,
                        commit: None,
                        commit_verified: false,
                        episode_id: format!("e{number:03}").parse().unwrap(),
                        host_id: host.parse().unwrap(),
                        received_at_wall: received_at_wall(now()),
                        schema_version: 1,
                        sha256: Digest::of(format!("{number}").as_bytes()),
                        size_bytes: 1,
                    };
                    let mut locked = index.lock().unwrap();
                    locked.append(&row).unwrap();
                    locked.sync().unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| world.repair());
        }
    });
    let mut keys = world.keys();
    assert_eq!(keys.len(), 600);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 600);
}

#[test]
fn owner_and_mode_of_the_index_stay() {
    let world = World::new();
    world.store("a/e1", b"x");
    fs::write(&world.options.index, "").unwrap();
    fs::set_permissions(&world.options.index, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&world.options.index).unwrap();
    world.repair();
    let after = fs::metadata(&world.options.index).unwrap();
    assert_eq!((after.ino(), after.uid(), after.mode()), (before.ino(), before.uid(), before.mode()));
    assert_eq!(world.keys().len(), 1);
}
