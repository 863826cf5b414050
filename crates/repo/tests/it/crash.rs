//! A publisher that dies at every single write, and what readers and the next run find.

use std::{
    cell::Cell,
    io::{self, Read},
};

use cutover_repo::{Batch, DirectoryStorage, Fill, Lock, PublishError, Publisher, Storage};

use crate::world::{Verified, World, at, bundle, name, publish, publish_delta, report, version};

/// A store whose process dies before its write number `left`. A batch dies with half of its files named.
struct Dying {
    inner: DirectoryStorage,
    left: Cell<usize>,
}

fn dead() -> io::Error {
    io::Error::other("the process died here")
}

impl Dying {
    fn step(&self) -> io::Result<()> {
        match self.left.get() {
            0 => Err(dead()),
            left => {
                self.left.set(left - 1);
                Ok(())
            }
        }
    }
}

impl Storage for Dying {
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>> {
        self.inner.open(path)
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
        self.inner.size(path)
    }

    fn batch(&self) -> io::Result<Box<dyn Batch + '_>> {
        self.step()?;
        Ok(Box::new(DyingBatch { store: self, files: Vec::new() }))
    }

    fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        self.inner.replace(path, bytes)
    }

    fn remove(&self, paths: &[String]) -> io::Result<()> {
        for path in paths {
            self.step()?;
            self.inner.remove(std::slice::from_ref(path))?;
        }
        Ok(())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn lock(&self) -> io::Result<Lock> {
        self.inner.lock()
    }
}

struct DyingBatch<'a> {
    store: &'a Dying,
    files: Vec<(String, Vec<u8>)>,
}

impl Batch for DyingBatch<'_> {
    fn add(&mut self, path: &str, fill: Fill<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.files.push((path.to_owned(), bytes));
        Ok(())
    }

    /// File by file, so that a death leaves any number of them.
    fn commit(self: Box<Self>) -> io::Result<()> {
        for (path, bytes) in &self.files {
            self.store.step()?;
            self.store.inner.replace(path, bytes)?;
        }
        Ok(())
    }
}

/// What a publisher does in one run.
type Act<'a> = &'a dyn Fn(&mut Publisher<'_>) -> Result<(), PublishError>;

/// Lets `act` die at every write; after each death clients see `before` or `after` and the repository is whole; the same
/// act once more completes it, and a later refresh leaves nothing behind.
fn sweep(prepare: &dyn Fn(&World), act: Act<'_>, before: Option<&str>, after: Option<&str>) -> usize {
    let seen = |world: &World, hours| world.resolve(&world.client(), hours, None).ok();
    for left in 0.. {
        let world = World::new(3600);
        prepare(&world);
        assert_eq!(seen(&world, 1).as_deref(), before);
        let client = world.client();
        let _ = world.resolve(&client, 1, None);
        let logged = world.follow_log(&client).expect("followed");
        let store = Dying { inner: world.storage(), left: Cell::new(left) };
        let ended = Publisher::open(&store, &world.keys, at(1)).and_then(|mut publisher| act(&mut publisher));
        let died = ended.is_err();
        drop(store);

        let now = seen(&world, 1);
        assert!(now.as_deref() == before || now.as_deref() == after, "write {left}: {now:?}");
        // A client that knew the old state goes on from it, and finds the log it saw, with more entries or not.
        assert!(world.follow_log(&client).expect("the same log") >= logged, "write {left}");
        let known = world.resolve(&client, 1, None).ok();
        assert_eq!(known, now, "write {left}");
        assert_eq!(report(&world.storage(), 1).problems, Vec::<String>::new(), "write {left}");

        match world.with_publisher(2, |publisher| act(publisher)) {
            // Removing again what is removed.
            Ok(()) | Err(PublishError::NotFound(_)) => {}
            Err(error) => panic!("write {left}: {error:?}"),
        }
        assert_eq!(seen(&world, 2).as_deref(), after, "write {left}");
        world.with_publisher(30, |publisher| publisher.refresh()).expect("as prepared");
        let report = world.report(30);
        assert_eq!((&report.problems, &report.unreferenced), (&Vec::new(), &Vec::new()), "write {left}");
        assert_eq!(seen(&world, 30).as_deref(), after, "write {left}");
        world.follow_log(&client).expect("the same log");
        if !died {
            return left;
        }
    }
    unreachable!("some run is long enough")
}

fn releases() -> [Verified; 2] {
    [
        bundle("1.0.0", &[("same", b"in both"), ("a", b"one")]),
        bundle("1.1.0", &[("same", b"in both"), ("a", b"two"), ("b", b"three")]),
    ]
}

#[test]
fn every_crash_leaves_a_log_that_only_grew_and_has_what_is_published() {
    let [one, two] = releases();
    let start = |world: &World| world.start_log(0);
    let publish_one = |world: &World| {
        world.start_log(0);
        world.publish(0, &[&one]);
    };
    let before_the_log = |world: &World| {
        world.publish(0, &[&one, &two]);
    };
    let publish_two: Act<'_> = &|publisher| publish(publisher, &[&two], None).map(drop);
    let first: Act<'_> = &|publisher| publish(publisher, &[&one], None).map(drop);
    assert!(sweep(&start, first, None, Some("1.0.0")) > 10);
    assert!(sweep(&publish_one, publish_two, Some("1.0.0"), Some("1.1.0")) > 10);
    let key = std::cell::RefCell::new(None);
    let remember = |world: &World| {
        before_the_log(world);
        *key.borrow_mut() = Some(world.log_key());
    };
    let begin: Act<'_> = &|publisher| publisher.start_log(key.borrow().as_ref().expect("known")).map(drop);
    assert!(sweep(&remember, begin, Some("1.1.0"), Some("1.1.0")) > 5);
}

// M16
#[test]
fn every_crash_leaves_the_old_or_the_new_state() {
    let [one, two] = releases();
    let publish_one = |world: &World| {
        world.publish(0, &[&one]);
    };
    let publish_both = |world: &World| {
        world.publish(0, &[&one, &two]);
    };
    let publish_two = |publisher: &mut Publisher<'_>| publish(publisher, &[&two], None).map(drop);
    let writes = sweep(&publish_one, &publish_two, Some("1.0.0"), Some("1.1.0"));
    assert!(writes > 10, "{writes}");
    let remove_two = |publisher: &mut Publisher<'_>| {
        publisher.remove(&name("app"), &version("1.1.0"), None, None).map(drop)
    };
    let writes = sweep(&publish_both, &remove_two, Some("1.1.0"), Some("1.0.0"));
    assert!(writes > 6, "{writes}");
    let yank_two = |publisher: &mut Publisher<'_>| {
        publisher.yank(&name("app"), &version("1.1.0"), None, Some("bad")).map(drop)
    };
    sweep(&publish_both, &yank_two, Some("1.1.0"), Some("1.0.0"));
    sweep(&publish_both, &|publisher: &mut Publisher<'_>| publisher.refresh(), Some("1.1.0"), Some("1.1.0"));
}

// D16
#[test]
fn every_crash_while_a_delta_is_replaced_leaves_the_old_or_the_new_one() {
    let [one, two] = releases();
    let with_first = |world: &World| {
        world.publish(0, &[&one]);
        world.with_publisher(0, |publisher| publish_delta(publisher, &two, &one, b"the first")).unwrap();
    };
    let second =
        |publisher: &mut Publisher<'_>| publish_delta(publisher, &two, &one, b"the second").map(drop);
    assert!(sweep(&with_first, &second, Some("1.1.0"), Some("1.1.0")) > 6);
}

#[test]
fn crashes_in_a_row_leave_nothing_behind_either() {
    let [one, two] = releases();
    for first in [7, 11] {
        for second in 0..12 {
            let world = World::new(0);
            world.publish(0, &[&one]);
            for left in [first, second, second] {
                let store = Dying { inner: world.storage(), left: Cell::new(left) };
                let ended = Publisher::open(&store, &world.keys, at(1))
                    .and_then(|mut publisher| publish(&mut publisher, &[&two], None));
                drop((ended, store));
                let report = report(&world.storage(), 1);
                assert_eq!(
                    (&report.problems, &report.unreferenced),
                    (&Vec::new(), &Vec::new()),
                    "writes {first} and {second}"
                );
            }
            world.publish(2, &[&two]);
            world.with_publisher(3, |publisher| publisher.refresh()).unwrap();
            assert_eq!(world.must_be_clean(3).pending, 0, "writes {first} and {second}");
        }
    }
}

#[test]
fn an_abandoned_publication_leaves_nothing_after_the_grace() {
    let [one, two] = releases();
    let world = World::new(3600);
    world.publish(0, &[&one]);
    let files = world.must_be_clean(0).objects;
    // Dies after its objects have names.
    let store = Dying { inner: world.storage(), left: Cell::new(7) };
    let died = Publisher::open(&store, &world.keys, at(1))
        .and_then(|mut publisher| publish(&mut publisher, &[&two], None));
    assert!(died.is_err());
    drop(store);
    let objects = |world: &World| world.files().iter().filter(|file| file.starts_with("objects/")).count();
    assert!(objects(&world) > files);
    world.with_publisher(2, |publisher| publisher.refresh()).unwrap();
    world.with_publisher(9, |publisher| publisher.refresh()).unwrap();
    assert_eq!(objects(&world), files);
    world.must_be_clean(9);
}

#[test]
fn a_set_up_that_was_cut_off_is_begun_again() {
    for left in 0..20 {
        let world = World { dir: tempfile::tempdir().unwrap(), keys: crate::world::four_keys(), grace_s: 0 };
        let store = Dying { inner: world.storage(), left: Cell::new(left) };
        let created = world.create(&store);
        drop(store);
        if created.is_ok() {
            assert!(left > 4);
            return;
        }
        match world.create(&world.storage()) {
            // It died after the last write that counts.
            Ok(()) | Err(PublishError::Exists) => {}
            Err(error) => panic!("write {left}: {error:?}"),
        }
        world.must_be_clean(0);
    }
    panic!("it takes more writes than that");
}
