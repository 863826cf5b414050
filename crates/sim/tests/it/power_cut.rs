//! The model of the page cache is right: what was synced survives, what was not may not, and nothing else happens.

use std::{collections::BTreeSet, io::Write as _, path::Path};

use cutover_host::disk::Disk as _;
use cutover_sim::{
    BLOCK, Crashed, Death, Errno, Fault, FaultDisk, Faults, FileSystem, Lasting, Moment, Op, Options,
    Reflinks,
};

const SEEDS: std::ops::Range<u64> = 0..400;

fn disk() -> FaultDisk {
    FaultDisk::new(FileSystem::new(Options::default()), Faults::none())
}

fn write(disk: &FaultDisk, path: &str, bytes: &[u8]) {
    disk.create(Path::new(path), 0o644).expect("create").write_all(bytes).expect("write");
}

fn write_synced(disk: &FaultDisk, path: &str, bytes: &[u8]) {
    let mut file = disk.create(Path::new(path), 0o644).expect("create");
    file.write_all(bytes).expect("write");
    file.sync().expect("sync");
}

/// Every state in which a power cut can leave a file: its bytes, or `None` when it is gone.
fn outcomes(disk: &FaultDisk, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    SEEDS.map(|seed| disk.image().after_power_cut(seed).read_file(path)).collect()
}

fn some(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(bytes.to_vec())
}

#[test]
fn file_and_directory_that_were_synced_survive_every_power_cut() {
    let disk = disk();
    write_synced(&disk, "a", b"bytes");
    disk.sync_dir(Path::new("")).expect("sync");
    assert_eq!(outcomes(&disk, "a"), [some(b"bytes")].into());
}

#[test]
fn file_whose_directory_was_not_synced_may_be_gone_but_is_never_torn() {
    let disk = disk();
    write_synced(&disk, "a", b"bytes");
    assert_eq!(outcomes(&disk, "a"), [None, some(b"bytes")].into());
}

#[test]
fn name_without_synced_bytes_gives_a_file_that_is_empty_torn_zeroed_or_whole() {
    let disk = disk();
    write(&disk, "a", &[7; BLOCK + 10]);
    disk.sync_dir(Path::new("")).expect("sync");
    let outcomes = outcomes(&disk, "a");
    assert!(!outcomes.contains(&None), "the name is durable");
    assert!(outcomes.contains(&some(b"")), "empty");
    assert!(outcomes.contains(&some(&[7; BLOCK + 10])), "whole");
    let kept = |test: fn(&[u8]) -> bool| outcomes.iter().flatten().any(|bytes| test(bytes));
    assert!(kept(|bytes| !bytes.is_empty() && bytes.len() < BLOCK + 10), "torn");
    assert!(
        kept(|bytes| bytes.len() == BLOCK + 10 && bytes[..BLOCK] == [0; BLOCK] && bytes[BLOCK] == 7),
        "zeroed"
    );
    assert!(
        kept(|bytes| bytes.len() == BLOCK + 10 && bytes[0] == 7 && bytes[BLOCK..] == [0xa5; 10]),
        "stale"
    );
}

#[test]
fn replacing_rename_without_sync_of_the_new_file_may_leave_an_empty_file() {
    let disk = disk();
    write_synced(&disk, "a", b"old");
    disk.sync_dir(Path::new("")).expect("sync");
    write(&disk, "a.new", b"new");
    disk.rename(Path::new("a.new"), Path::new("a")).expect("rename");
    assert!(outcomes(&disk, "a").is_superset(&[some(b"old"), some(b""), some(b"new")].into()));
    assert_eq!(disk.image().after_power_cut(1).read_file("a"), some(b""), "seed 1 is the classic");
}

#[test]
fn replacing_rename_of_a_synced_file_leaves_the_old_or_the_new_one() {
    let disk = disk();
    write_synced(&disk, "a", b"old");
    disk.sync_dir(Path::new("")).expect("sync");
    write_synced(&disk, "a.new", b"new");
    disk.rename(Path::new("a.new"), Path::new("a")).expect("rename");
    assert_eq!(outcomes(&disk, "a"), [some(b"old"), some(b"new")].into());
    disk.sync_dir(Path::new("")).expect("sync");
    assert_eq!(outcomes(&disk, "a"), [some(b"new")].into());
    assert_eq!(outcomes(&disk, "a.new"), [None].into());
}

#[test]
fn appended_bytes_may_be_torn_but_synced_bytes_before_them_stay() {
    let disk = disk();
    write_synced(&disk, "log", b"first\n");
    disk.sync_dir(Path::new("")).expect("sync");
    disk.append(Path::new("log"), 0o644).expect("append").write_all(b"second\n").expect("write");
    let outcomes = outcomes(&disk, "log");
    assert!(outcomes.iter().all(|bytes| bytes.as_ref().is_some_and(|bytes| bytes.starts_with(b"first\n"))));
    assert!(outcomes.contains(&some(b"first\n")) && outcomes.contains(&some(b"first\nsecond\n")));
    assert!(outcomes.contains(&some(b"first\nsec")), "torn inside the last write");
}

#[test]
fn truncation_is_durable_when_it_returns() {
    let disk = disk();
    write_synced(&disk, "log", b"first\ntorn");
    disk.sync_dir(Path::new("")).expect("sync");
    disk.truncate(Path::new("log"), 6).expect("truncate");
    assert_eq!(outcomes(&disk, "log"), [some(b"first\n")].into());
}

/// What a power cut leaves of a file of twelve blocks whose truncation to a half of one ended as `fault` says.
fn truncated(fault: impl Fn(u64) -> Option<Fault>) -> BTreeSet<Option<usize>> {
    let disk = disk();
    write_synced(&disk, "log", &[7; 12 * BLOCK]);
    disk.sync_dir(Path::new("")).expect("sync");
    let written = disk.reboot();
    let left = |seed| {
        let fault = fault(seed);
        let disk = FaultDisk::new(written.clone(), Faults::script(move |_, _| fault));
        assert!(disk.truncate(Path::new("log"), BLOCK as u64 / 2).is_err());
        let fs = if disk.has_crashed() { disk.reboot() } else { disk.image().after_power_cut(seed) };
        fs.read_file("log").map(|bytes| bytes.len())
    };
    SEEDS.map(left).collect()
}

#[test]
fn truncation_that_loses_power_midway_happened_or_did_not() {
    let midway = |seed| Some(Fault::Crash(Moment::During, Death::PowerCut { seed }));
    assert_eq!(truncated(midway), [Some(BLOCK / 2), Some(12 * BLOCK)].into());
}

#[test]
fn truncation_whose_flush_failed_is_seen_by_readers_and_may_not_be_on_disk() {
    assert_eq!(truncated(|_| Some(Fault::FsyncLie)), [Some(BLOCK / 2), Some(12 * BLOCK)].into());
}

#[test]
fn name_changes_in_one_directory_may_survive_in_any_subset() {
    let disk = disk();
    for name in ["a", "b", "c"] {
        write_synced(&disk, name, b"");
    }
    let survivors: BTreeSet<Vec<String>> = SEEDS
        .map(|seed| disk.image().after_power_cut(seed).tree("").expect("a root").0.into_keys().collect())
        .collect();
    assert_eq!(survivors.len(), 8, "all subsets of three names: {survivors:?}");
}

#[test]
fn file_in_a_directory_without_durable_name_is_lost_with_it() {
    let disk = disk();
    disk.create_dir(Path::new("d"), 0o755).expect("create");
    write_synced(&disk, "d/a", b"bytes");
    disk.sync_dir(Path::new("d")).expect("sync");
    assert_eq!(disk.image().after_power_cut(0).read_file("d/a"), None);
    disk.sync_dir(Path::new("")).expect("sync");
    assert_eq!(outcomes(&disk, "d/a"), [some(b"bytes")].into());
}

#[test]
fn file_that_moves_between_directories_may_be_doubled_but_never_lost() {
    for synced in [None, Some("from"), Some("to")] {
        let disk = disk();
        disk.create_dir(Path::new("from"), 0o755).expect("create");
        disk.create_dir(Path::new("to"), 0o755).expect("create");
        write_synced(&disk, "from/a", b"bytes");
        disk.sync_all().expect("sync");
        disk.rename(Path::new("from/a"), Path::new("to/a")).expect("rename");
        synced.inspect(|directory| disk.sync_dir(Path::new(directory)).expect("sync"));
        let found: BTreeSet<(bool, bool)> = SEEDS
            .map(|seed| disk.image().after_power_cut(seed))
            .map(|fs| (fs.read_file("from/a").is_some(), fs.read_file("to/a").is_some()))
            .collect();
        let expected: BTreeSet<(bool, bool)> = match synced {
            None => [(true, false), (true, true), (false, true)].into(),
            Some("to") => [(true, true), (false, true)].into(),
            Some(_) => [(false, true)].into(),
        };
        assert_eq!(found, expected, "synced {synced:?}");
    }
}

#[test]
fn directory_that_moves_is_in_exactly_one_place() {
    let disk = disk();
    disk.create_dir(Path::new("from"), 0o755).expect("create");
    disk.create_dir(Path::new("to"), 0o755).expect("create");
    disk.create_dir(Path::new("from/d"), 0o755).expect("create");
    write_synced(&disk, "from/d/a", b"bytes");
    disk.sync_all().expect("sync");
    disk.rename(Path::new("from/d"), Path::new("to/d")).expect("rename");
    for seed in SEEDS {
        let fs = disk.image().after_power_cut(seed);
        let places = [fs.read_file("from/d/a"), fs.read_file("to/d/a")];
        assert_eq!(places.iter().flatten().count(), 1, "seed={seed}");
    }
    disk.sync_dir(Path::new("to")).expect("sync");
    assert_eq!(outcomes(&disk, "to/d/a"), [some(b"bytes")].into());
}

#[test]
fn nothing_is_lost_when_it_moves_into_a_directory_without_durable_name() {
    let disk = disk();
    write_synced(&disk, "a", b"bytes");
    disk.sync_all().expect("sync");
    disk.create_dir(Path::new("d"), 0o755).expect("create");
    disk.rename(Path::new("a"), Path::new("d/a")).expect("rename");
    disk.sync_dir(Path::new("")).expect("sync");
    for seed in SEEDS {
        let fs = disk.image().after_power_cut(seed);
        assert!(fs.read_file("a").is_some() || fs.read_file("d/a").is_some(), "seed={seed}");
    }
}

#[test]
fn exchange_is_atomic_and_durable_once_its_directory_is_synced() {
    let disk = disk();
    write_synced(&disk, "a", b"first");
    write_synced(&disk, "b", b"second");
    disk.sync_dir(Path::new("")).expect("sync");
    disk.exchange(Path::new("a"), Path::new("b")).expect("exchange");
    for seed in SEEDS {
        let fs = disk.image().after_power_cut(seed);
        let pair = (fs.read_file("a"), fs.read_file("b"));
        assert!(
            pair == (some(b"first"), some(b"second")) || pair == (some(b"second"), some(b"first")),
            "seed={seed}"
        );
    }
    disk.sync_dir(Path::new("")).expect("sync");
    assert_eq!(outcomes(&disk, "a"), [some(b"second")].into());
}

#[test]
fn removal_and_symlink_need_a_sync_of_their_directory() {
    let disk = disk();
    write_synced(&disk, "a", b"bytes");
    disk.symlink("a", Path::new("link")).expect("symlink");
    assert_eq!(disk.image().after_power_cut(0).read_symlink("link"), None);
    disk.sync_dir(Path::new("")).expect("sync");
    disk.remove_file(Path::new("a")).expect("remove");
    assert_eq!(outcomes(&disk, "a"), [None, some(b"bytes")].into());
    assert_eq!(disk.image().after_power_cut(0).read_symlink("link").as_deref(), Some("a"));
}

#[test]
fn mode_is_durable_with_the_sync_of_the_file_and_not_before() {
    let disk = disk();
    write_synced(&disk, "a", b"");
    disk.sync_dir(Path::new("")).expect("sync");
    disk.set_mode(Path::new("a"), 0o400).expect("set mode");
    let mode = |seed| disk.image().after_power_cut(seed).tree("").expect("a root").0["a"].mode;
    assert_eq!(SEEDS.map(mode).collect::<BTreeSet<_>>(), [0o644, 0o400].into());
    disk.append(Path::new("a"), 0).expect("open").sync().expect("sync");
    assert_eq!(SEEDS.map(mode).collect::<BTreeSet<_>>(), [0o400].into());
}

#[test]
fn hard_links_share_one_inode_and_survive_one_by_one() {
    let disk = disk();
    write_synced(&disk, "a", b"bytes");
    disk.sync_dir(Path::new("")).expect("sync");
    disk.hard_link(Path::new("a"), Path::new("b")).expect("link");
    disk.remove_file(Path::new("a")).expect("remove");
    let found: BTreeSet<(bool, bool)> = SEEDS
        .map(|seed| disk.image().after_power_cut(seed))
        .map(|fs| (fs.read_file("a").is_some(), fs.read_file("b").is_some()))
        .collect();
    assert!(
        found.contains(&(false, false)),
        "a link without sync does not save a file whose removal is durable"
    );
    assert!(
        found.contains(&(true, true)) && found.contains(&(true, false)) && found.contains(&(false, true))
    );
}

#[test]
fn sync_all_makes_everything_durable() {
    let disk = disk();
    disk.create_dir(Path::new("d"), 0o755).expect("create");
    write(&disk, "d/a", b"bytes");
    disk.symlink("d", Path::new("link")).expect("symlink");
    disk.sync_all().expect("sync");
    for seed in SEEDS {
        assert_eq!(disk.image().after_power_cut(seed).tree(""), disk.image().tree(""), "seed={seed}");
    }
}

#[test]
fn kill_loses_nothing_but_leaves_it_as_volatile_as_it_was() {
    let disk = disk();
    write(&disk, "a", b"bytes");
    let survivor = disk.image().after_kill();
    assert_eq!(survivor.read_file("a"), some(b"bytes"));
    assert_eq!(survivor.after_power_cut(0).read_file("a"), None);
}

// After a failed fsync a file is written anew, never synced again.
#[test]
fn sync_after_a_failed_sync_succeeds_and_saves_nothing() {
    let script = |call: &cutover_sim::Call, _: &mut FileSystem| (call.index == 2).then_some(Fault::FsyncLie);
    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::script(script));
    let mut file = disk.create(Path::new("a"), 0o644).expect("create");
    file.write_all(b"bytes").expect("write");
    assert!(file.sync().is_err());
    file.sync().expect("the second sync lies");
    disk.sync_all().expect("and so does the third");
    drop(file);
    assert_eq!(disk.image().read_file("a"), some(b"bytes"), "the cache still shows them");
    assert_eq!(disk.image().after_kill().read_file("a"), some(b"bytes"));
    assert_eq!(outcomes(&disk, "a"), [some(&[0; 5])].into(), "the disk has the size and zeros");

    disk.remove_file(Path::new("a")).expect("remove");
    write_synced(&disk, "a", b"again");
    disk.sync_dir(Path::new("")).expect("sync");
    assert_eq!(outcomes(&disk, "a"), [some(b"again")].into(), "a new inode is sound");
}

#[test]
fn after_the_crash_nothing_works_until_the_reboot() {
    let fault = Fault::Crash(Moment::After, Death::PowerCut { seed: 0 });
    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::at(0, fault));
    let error = disk.create_dir(Path::new("d"), 0o755).expect_err("dead");
    assert!(Crashed::is(&error) && disk.has_crashed());
    assert!(Crashed::is(&disk.list(Path::new("")).expect_err("still dead")));
    assert_eq!(disk.hit().expect("a call").op, Op::CreateDir);
    assert_eq!(disk.image().tree("").expect("a root").0.len(), 1, "it happened, in the cache");
    assert_eq!(disk.reboot().tree("").expect("a root").0.len(), 0, "and the cache is gone");
}

#[test]
fn crash_in_the_middle_of_a_write_leaves_half_of_it() {
    let fault = Fault::Crash(Moment::During, Death::Kill);
    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::at(1, fault));
    let mut file = disk.create(Path::new("a"), 0o644).expect("create");
    assert!(Crashed::is(&file.write_all(b"12345678").expect_err("dead")));
    drop(file);
    assert_eq!(disk.reboot().read_file("a"), some(b"1234"));
}

#[test]
fn error_comes_once_or_for_ever() {
    for (lasting, later_works) in [(Lasting::Once, true), (Lasting::Forever, false)] {
        let faults = Faults::at(1, Fault::Error(Errno::Erofs, lasting));
        let disk = FaultDisk::new(FileSystem::new(Options::default()), faults);
        disk.create_dir(Path::new("a"), 0o755).expect("before the fault");
        let error = disk.create_dir(Path::new("b"), 0o755).expect_err("the fault");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(disk.create_dir(Path::new("c"), 0o755).is_ok(), later_works);
        assert!(disk.list(Path::new("")).is_ok(), "reading works on a read-only file system");
    }
}

#[test]
fn short_write_takes_half_and_write_all_copes() {
    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::at(1, Fault::ShortWrite));
    let mut file = disk.create(Path::new("a"), 0o644).expect("create");
    assert_eq!(file.write(b"12345678").expect("write"), 4);
    drop(file);
    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::at(1, Fault::ShortWrite));
    write(&disk, "a", b"12345678");
    assert_eq!(disk.image().read_file("a"), some(b"12345678"));
}

#[test]
fn full_disk_refuses_blocks_and_inodes_and_gives_them_back() {
    let options =
        Options { capacity_bytes: Some(4 * BLOCK as u64), capacity_inodes: Some(3), ..Options::default() };
    let disk = FaultDisk::new(FileSystem::new(options), Faults::none());
    let free = disk.space().expect("space");
    assert_eq!((free.free_bytes, free.free_inodes), (3 * BLOCK as u64, Some(2)));
    write(&disk, "a", &[1; BLOCK]);
    let mut file = disk.create(Path::new("b"), 0o644).expect("create");
    let error = file.write_all(&[1; 3 * BLOCK]).expect_err("full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let error = disk.symlink("a", Path::new("c")).expect_err("no inode");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    disk.remove_file(Path::new("b")).expect("remove");
    assert_eq!(disk.space().expect("space").free_bytes, 0, "an open file keeps its space");
    drop(file);
    assert_eq!(disk.space().expect("space").free_bytes, 2 * BLOCK as u64);
    let error = disk.copy(Path::new("a"), Path::new("d"), 0o644).map(|_| ());
    assert!(error.is_ok());
}

#[test]
fn reflinks_share_space_until_one_is_written() {
    let options = Options { reflinks: Reflinks::Supported, ..Options::default() };
    let disk = FaultDisk::new(FileSystem::new(options), Faults::none());
    write(&disk, "a", &[1; BLOCK]);
    let used = disk.image().used_bytes();
    disk.reflink(Path::new("a"), Path::new("b"), 0o600).expect("reflink");
    assert_eq!(disk.image().used_bytes(), used);
    disk.append(Path::new("b"), 0).expect("open").write_all(b"x").expect("write");
    assert_eq!(disk.image().used_bytes(), used + 2 * BLOCK as u64);
    assert_eq!(disk.image().read_file("a").expect("a").len(), BLOCK);
}

#[test]
fn same_seed_gives_the_same_survivor() {
    let disk = disk();
    for name in ["a", "b", "c", "d"] {
        write(&disk, name, &[3; 3 * BLOCK]);
    }
    for seed in SEEDS {
        assert_eq!(disk.image().after_power_cut(seed).tree(""), disk.image().after_power_cut(seed).tree(""));
    }
}
