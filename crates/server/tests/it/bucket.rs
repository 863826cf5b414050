//! Episodes in a bucket: the same answers as from a directory, whatever the bucket does meanwhile. The bucket of these tests is
//! in memory; `crates/cutover/tests/it/gate_s3.rs` uses a real one.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write as _},
    sync::{Arc, Condvar, Mutex},
};

use cutover_server::{
    ingest::{Bucket, Created},
    settings::AttestPolicy,
};

use crate::{
    attestation::{ed25519, header, put_signed},
    world::{Answer, World, archive, request, sha256},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Works,
    /// Nothing gets through.
    Away,
    /// Nothing more can be stored.
    Full,
    /// Writing waits until the mode changes.
    Holds,
}

#[derive(Debug, Default)]
struct Inside {
    objects: BTreeMap<String, Vec<u8>>,
    mode: Mode,
    /// How many wait.
    held: usize,
    /// How often an object was written or found to be there.
    creations: usize,
}

#[derive(Debug, Default)]
struct Memory {
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Memory {
    fn set(&self, mode: Mode) {
        self.inside.lock().unwrap().mode = mode;
        self.changed.notify_all();
    }

    fn add(&self, key: &str, bytes: &[u8]) {
        self.inside.lock().unwrap().objects.insert(path(key), bytes.to_vec());
    }

    fn remove(&self, key: &str) {
        self.inside.lock().unwrap().objects.remove(&path(key)).unwrap();
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.inside.lock().unwrap().objects.get(&path(key)).cloned()
    }

    fn looked(&self) -> (usize, usize) {
        let inside = self.inside.lock().unwrap();
        (inside.held, inside.creations)
    }

    fn ask(&self) -> io::Result<std::sync::MutexGuard<'_, Inside>> {
        let inside = self.inside.lock().unwrap();
        match inside.mode {
            Mode::Away => Err(io::Error::other("nobody answers")),
            _ => Ok(inside),
        }
    }
}

fn path(key: &str) -> String {
    format!("episodes/{key}.tar.zst")
}

impl Bucket for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn create(&self, path: &str, content: &mut dyn Read, size: u64) -> io::Result<Created> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, size);
        let mut inside = self.ask()?;
        inside.held += 1;
        while inside.mode == Mode::Holds {
            inside = self.changed.wait(inside).unwrap();
        }
        inside.held -= 1;
        if inside.mode == Mode::Full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inside.creations += 1;
        if inside.objects.contains_key(path) {
            return Ok(Created::Taken);
        }
        inside.objects.insert(path.to_owned(), bytes);
        Ok(Created::New)
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.ask()?.objects.get(path).map(|bytes| bytes.len() as u64))
    }

    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let found = self.ask()?.objects.get(path).cloned();
        Ok(found.map(|bytes| -> Box<dyn Read + Send> { Box::new(io::Cursor::new(bytes)) }))
    }

    fn list(
        &self,
        directory: &str,
        after: Option<&str>,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let objects = self.ask()?.objects.clone();
        let below = format!("{directory}/");
        let wanted = |path: &str| path.starts_with(&below) && after.is_none_or(|after| path > after);
        for (path, bytes) in objects.iter().filter(|(path, _)| wanted(path)) {
            visit(path, bytes.len() as u64)?;
        }
        Ok(())
    }
}

fn started() -> (Arc<Memory>, World) {
    let memory = Arc::new(Memory::default());
    let world = World::in_bucket(Arc::clone(&memory) as Arc<dyn Bucket>, |_| {});
    (memory, world)
}

/// What lies in the spool.
fn spooled(world: &World) -> usize {
    std::fs::read_dir(world.root().join("incoming")).unwrap().count()
}

// I1 I9 I10
#[test]
fn bucket_gets_what_a_directory_would_and_hosts_the_same_answers() {
    let (memory, world) = started();
    let large = vec![7; 300 << 10];
    for (key, body) in [("h/a", &b"one"[..]), ("h/large", &large), ("i/a", b"")] {
        let stored = world.put(key, body).must(201).json();
        assert_eq!(
            (stored["sha256"].as_str(), stored["status"].as_str()),
            (Some(&*sha256(body)), Some("stored"))
        );
        assert_eq!(memory.get(key).as_deref(), Some(body));
        assert_eq!(world.put(key, body).must(200).json()["status"], "already-present");
    }
    assert_eq!(world.put("h/a", b"two").must(409).json()["sha256"], sha256(b"one"));
    assert_eq!(memory.get("h/a").as_deref(), Some(&b"one"[..]));
    world.put_of("h/b", b"x", &"0".repeat(40)).must(412);
    let rows = world.rows();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["commit"] == world.head() && row.get("backfilled").is_none()));
    assert_eq!(spooled(&world), 0);
    assert!(!world.root().join("episodes").exists());
    assert_eq!(world.get("/v1/episodes/h/large").must(200).json()["size_bytes"], large.len());
}

// I11
#[test]
fn object_without_a_row_gets_it_from_the_next_upload_if_it_is_the_same() {
    let (memory, world) = started();
    memory.add("h/same", b"same");
    memory.add("h/other", b"theirs");
    world.put("h/same", b"same").must(200);
    assert_eq!(world.put("h/other", b"mine!!").must(409).json()["sha256"], sha256(b"theirs"));
    let rows = world.rows();
    assert_eq!((rows.len(), rows[0]["episode_id"].as_str()), (1, Some("same")));
    // And a row without an object gets that.
    memory.remove("h/same");
    world.put("h/same", b"same").must(200);
    assert_eq!((memory.get("h/same").as_deref(), world.rows().len()), (Some(&b"same"[..]), 1));
}

// I11
#[test]
fn start_adds_rows_of_objects_with_the_commit_they_say_and_clears_the_spool() {
    let (memory, mut world) = started();
    world.put("h/a", b"x").must(201);
    world.stop();
    let commit = "c".repeat(40);
    memory.add("h/b", &archive(&commit));
    memory.add("i/c", b"no archive");
    for stray in ["h/.hidden", "h/x/y", "../z"] {
        memory.add(stray, b"x");
    }
    std::fs::write(world.root().join("incoming/.e.1.part"), "x").unwrap();
    // The bucket is away when it starts, which keeps nobody from starting.
    memory.set(Mode::Away);
    world.restart();
    assert_eq!((spooled(&world), world.rows().len()), (0, 1));
    memory.set(Mode::Works);
    world.until("all have rows", || world.rows().len() == 3);
    let rows = world.rows();
    assert_eq!((&rows[1]["commit"], &rows[1]["backfilled"]), (&commit.into(), &true.into()));
    assert_eq!((rows[2].get("commit"), &rows[2]["sha256"]), (None, &sha256(b"no archive").into()));
    world.restart();
    world.put("i/c", b"no archive").must(200);
    assert_eq!(world.rows().len(), 3);
}

// I28
#[test]
fn of_two_that_race_for_an_object_one_writes_it() {
    let (memory, world) = started();
    let head = world.head();
    for (key, bodies, expected) in
        [("h/same", [b"same", b"same"], [200, 201]), ("h/other", [b"one!", b"two!"], [201, 409])]
    {
        memory.set(Mode::Holds);
        let before = memory.looked().1;
        let mut statuses = std::thread::scope(|scope| {
            let (world, head) = (&world, &head);
            let threads = bodies.map(|body| scope.spawn(move || world.put_of(key, body, head).status));
            world.until("one writes and one waits", || memory.looked().0 == 1 && spooled(world) == 2);
            memory.set(Mode::Works);
            threads.map(|thread| thread.join().unwrap())
        });
        statuses.sort_unstable();
        assert_eq!((statuses, memory.looked().1 - before), (expected, 1), "{key}");
    }
    assert_eq!((world.rows().len(), spooled(&world)), (2, 0));
}

#[test]
fn upload_that_was_begun_gets_its_row_when_its_client_is_gone() {
    let (memory, world) = started();
    memory.set(Mode::Holds);
    let head = world.head();
    let headers = [("X-Code-Commit", &*head), ("Content-Length", "1")];
    let mut client = world.connect();
    client.write_all(&request("PUT", "/v1/episodes/h/e", &headers, b"x")).unwrap();
    world.until("it is being written", || memory.looked().0 == 1);
    drop(client);
    memory.set(Mode::Works);
    world.until("it has its row", || world.rows().len() == 1);
}

#[test]
fn bucket_that_is_away_or_full_costs_a_try_later_and_leaves_nothing() {
    let (memory, world) = started();
    memory.set(Mode::Full);
    let full = world.put("h/a", b"x").must(507);
    assert!(full.headers.contains_key("retry-after"));
    memory.set(Mode::Away);
    let away = world.put("h/a", b"x").must(503);
    assert_eq!(away.json()["error"], "storage-away");
    assert!(away.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    // As long as it is away, not even the body is asked for.
    let head = world.head();
    let headers = [("X-Code-Commit", &*head), ("Content-Length", "1000"), ("Expect", "100-continue")];
    let refused: Answer = world.send(&request("PUT", "/v1/episodes/h/b", &headers, b"")).must(503);
    assert_eq!((refused.json()["error"].as_str(), refused.interim.len()), (Some("storage-away"), 0));
    assert_eq!((world.rows().len(), spooled(&world), memory.get("h/a")), (0, 0, None));
    assert_eq!(world.get("/healthz").must(503).json()["status"], "storage-away");
    memory.set(Mode::Works);
    world.until("it is tried again", || world.put("h/a", b"x").status == 201);
    world.get("/healthz").must(200);
}

#[test]
fn replayed_signature_writes_no_object() {
    let (public, sign) = ed25519();
    let memory = Arc::new(Memory::default());
    let world = World::in_bucket(Arc::clone(&memory) as Arc<dyn Bucket>, |settings| {
        settings.attest.policy = AttestPolicy::Require;
        settings.attest.keys.insert("h".to_owned(), public);
    });
    let first = header(&world, &sign, "h/a", b"x", 1);
    put_signed(&world, "h/a", b"x", &first).must(201);
    put_signed(&world, "h/a", b"x", &first).must(200);
    let again = header(&world, &sign, "h/b", b"x", 1);
    assert_eq!(put_signed(&world, "h/b", b"x", &again).must(403).json()["error"], "attestation-replayed");
    assert_eq!((memory.get("h/b"), world.rows().len(), spooled(&world)), (None, 1, 0));
    assert_eq!(world.rows()[0]["commit_verified"], true);
}
