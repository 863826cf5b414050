//! A publisher that dies, or whose machine loses power or fails a call, at every call that changes its directory: readers find
//! the old or the new state, whole, and the next run goes on. What was answered outlives a power cut.

use std::{cell::RefCell, collections::BTreeMap, io};

use cutover_core::model::{Instant, Name, Version};
use cutover_repo::{
    Catalogue, DirectoryStorage, Fetch as _, MetadataKey, NewRelease, PublishError, Publisher,
    RepositorySettings, State, Wanted,
    tuf::{Client, ClientLimits, RoleKind},
    verify,
};
use cutover_sim::{
    Call, Death, Errno, Fault, FaultDisk, Faults, FileSystem, Lasting, Moment, Options, Random,
    SimulatedDirectory, releases, seed,
};

/// A time, in hours after the releases were signed.
fn at(hours: i64) -> Instant {
    let signed = releases()[0].bundle.manifest().released_at;
    Instant::from_unix(signed.unix() + (1 + hours) * 3600).expect("in range")
}

/// The hour at which every grace is over.
const LATE: i64 = 30;

/// What a client believed last, in memory.
#[derive(Default)]
struct Memory(RefCell<BTreeMap<String, Vec<u8>>>);

impl State for Memory {
    fn load(&self, role: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().get(role).cloned())
    }

    fn keep(&self, role: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().insert(role.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, role: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(role);
        Ok(())
    }
}

/// One run of a publisher.
type Act<'a> = &'a dyn Fn(&mut Publisher<'_>) -> Result<(), PublishError>;

struct Shop {
    keys: Vec<MetadataKey>,
    fs: FileSystem,
}

fn storage(disk: &FaultDisk) -> DirectoryStorage {
    DirectoryStorage::over(SimulatedDirectory::new(disk.clone()))
}

impl Shop {
    /// A repository without releases, whose files stay for an hour once nothing names them.
    fn new() -> Self {
        let keys: Vec<MetadataKey> = (0..4).map(|_| MetadataKey::generate().expect("a key").0).collect();
        let kinds = [RoleKind::Root, RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp];
        let roles = kinds.into_iter().zip(&keys);
        let roles = roles.map(|(kind, key)| (kind, (vec![key.public().clone()], 1))).collect();
        let settings = RepositorySettings { grace_s: 3600, ..RepositorySettings::default() };
        let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::none());
        Publisher::create(&storage(&disk), &roles, settings, &keys, at(0)).expect("set up");
        Self { keys, fs: disk.reboot() }
    }

    fn run(&self, disk: &FaultDisk, hours: i64, act: Act<'_>) -> Result<(), PublishError> {
        act(&mut Publisher::open(&storage(disk), &self.keys, at(hours))?)
    }

    /// Runs an act of a publisher to its end.
    fn then(self, act: Act<'_>) -> Self {
        let disk = FaultDisk::new(self.fs.clone(), Faults::none());
        self.run(&disk, 0, act).expect("done");
        Self { fs: disk.reboot(), ..self }
    }

    /// The version that a new client is offered, and what is wrong with the repository.
    fn seen(&self, fs: &FileSystem, hours: i64) -> (Option<Version>, Vec<String>) {
        let storage = storage(&FaultDisk::new(fs.clone(), Faults::none()));
        let state = Memory::default();
        state.keep("root", &storage.fetch("metadata/1.root.json", 1 << 20).expect("a root")).expect("kept");
        let client = Client::refresh(&storage, &state, at(hours), ClientLimits::default()).expect("trusted");
        let manifest = releases()[0].bundle.manifest();
        let wanted = Wanted {
            package: manifest.package.clone(),
            version: None,
            platform: manifest.platform.clone(),
            channels: vec![manifest.channel.clone()],
        };
        let version = Catalogue::new(client).choose(&wanted).ok().map(|chosen| chosen.entry.version);
        let report = verify(&storage, &|_: &[u8], _: &[u8]| Ok(()), at(hours)).expect("read");
        let unreferenced = report.unreferenced.into_iter().map(|path| format!("unreferenced: {path}"));
        let mut problems = report.problems;
        if hours >= LATE {
            // Earlier, files that nothing names are a later run's to remove.
            problems.extend(unreferenced);
        }
        (version, problems)
    }

    /// Breaks the act at every call that changes something.
    fn sweep(&self, what: &str, act: Act<'_>) {
        let (before, _) = self.seen(&self.fs, 1);
        let disk = FaultDisk::new(self.fs.clone(), Faults::none());
        self.run(&disk, 1, act).expect("without any fault");
        let (after, problems) = self.seen(&disk.reboot(), 1);
        assert_eq!(problems, [""; 0], "{what}");
        let calls: Vec<Call> = disk.trace().into_iter().filter(|call| call.op.is_effect()).collect();
        assert!(calls.len() > 10, "{what}: {}", calls.len());
        let mut random = Random::new(seed());
        for seed in [0, 1, 3 + random.below(1 << 16)] {
            assert_eq!(self.seen(&disk.image().after_power_cut(seed), 1).0, after, "{what}: it was answered");
        }
        for call in &calls {
            let cut = |seed| Death::PowerCut { seed };
            let deaths = [
                (Moment::Before, Death::Kill),
                (Moment::After, Death::Kill),
                (Moment::After, cut(0)),
                (Moment::After, cut(1)),
                (Moment::After, cut(3 + random.below(1 << 16))),
            ];
            for (moment, death) in deaths {
                let fault = Fault::Crash(moment, death);
                if !fault.can_hit(call.op) {
                    continue;
                }
                let point = format!("seed={} {what}: {fault} at {call}", cutover_sim::seed());
                let disk = FaultDisk::new(self.fs.clone(), Faults::at(call.index, fault));
                // Whatever it says, nobody hears it.
                let _ = self.run(&disk, 1, act);
                assert!(disk.has_crashed(), "{point}");
                let left = disk.reboot();
                let (version, problems) = self.seen(&left, 1);
                assert!(version == before || version == after, "{point}: {version:?}");
                assert_eq!(problems, [""; 0], "{point}");
                self.goes_on(left, act, &after, &point, &mut random);
            }
            for fault in failures(call) {
                let point = format!("seed={} {what}: {fault} at {call}", cutover_sim::seed());
                let disk = FaultDisk::new(self.fs.clone(), Faults::at(call.index, fault));
                let answer = self.run(&disk, 1, act);
                let cuts = [0, 1, 3 + random.below(1 << 16)].map(|seed| disk.image().after_power_cut(seed));
                for left in cuts.iter().chain([&disk.reboot()]) {
                    let (version, problems) = self.seen(left, 1);
                    let promised = version == after || (answer.is_err() && version == before);
                    assert!(promised, "{point}: {version:?} after {answer:?}");
                    assert_eq!(problems, [""; 0], "{point}");
                }
                self.goes_on(disk.reboot(), act, &after, &point, &mut random);
            }
        }
    }

    /// The same once more completes it, and a late refresh leaves nothing behind.
    fn goes_on(
        &self,
        left: FileSystem,
        act: Act<'_>,
        after: &Option<Version>,
        point: &str,
        random: &mut Random,
    ) {
        let disk = FaultDisk::new(left, Faults::none());
        match self.run(&disk, 2, act) {
            // Removing again what is removed.
            Ok(()) | Err(PublishError::NotFound(_)) => {}
            Err(error) => panic!("{point}: {error:?}"),
        }
        assert_eq!(self.seen(&disk.reboot(), 2), (after.clone(), Vec::new()), "{point}");
        // Now it was answered, whatever the first run had made and not flushed.
        for seed in [0, 1, 3 + random.below(1 << 16)] {
            let seen = self.seen(&disk.image().after_power_cut(seed), 2);
            assert_eq!(seen, (after.clone(), Vec::new()), "{point}, then a power cut (seed {seed})");
        }
        self.run(&disk, LATE, &|publisher| publisher.refresh()).expect("refreshed");
        assert_eq!(self.seen(&disk.reboot(), LATE), (after.clone(), Vec::new()), "{point}");
    }
}

/// How a call fails: a flush so that it cannot be made good for, any call in one way of three, by its number.
fn failures(call: &Call) -> Vec<Fault> {
    let ways = [
        Fault::Error(Errno::Eio, Lasting::Once),
        Fault::Error(Errno::Enospc, Lasting::Once),
        Fault::DoneButError(Errno::Eio),
    ];
    let way = ways[usize::try_from(call.index % 3).expect("below 3")];
    [way, Fault::FsyncLie].into_iter().filter(|fault| fault.can_hit(call.op)).collect()
}

fn publish(release: usize) -> impl Fn(&mut Publisher<'_>) -> Result<(), PublishError> {
    move |publisher| {
        let bundle = &releases()[release].bundle;
        publisher.publish(&[NewRelease { bundle, channel: None, deltas: Vec::new() }]).map(drop)
    }
}

// M16
#[test]
fn publication_that_loses_power_or_fails_anywhere_is_seen_whole_or_not_at_all() {
    Shop::new().sweep("the first publication", &publish(0));
    Shop::new().then(&publish(0)).sweep("the next publication", &publish(1));
}

// M14, M16
#[test]
fn removal_that_loses_power_or_fails_anywhere_is_seen_whole_or_not_at_all() {
    let manifest = releases()[1].bundle.manifest();
    let (package, version): (&Name, &Version) = (&manifest.package, &manifest.version);
    let shop = Shop::new().then(&publish(0)).then(&publish(1));
    shop.sweep("removal", &|publisher| publisher.remove(package, version, None, None).map(drop));
    let refreshed: Act<'_> = &|publisher| publisher.refresh();
    shop.sweep("refresh", refreshed);
}
