//! `kill -9` of the migrator and of the server, at every place where something becomes durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use cutover_migrate::{
    Error,
    engine::{Unwatched, Watch},
    postgres::PostgresEngine,
    run::{Applied, Migrator, no_functions},
    state::lease,
};

use super::{
    harness::{CENTS, chain, rollback, short_lease},
    server::{Database, Server, have_server},
};
use crate::{
    quarantine::{NUMBERS, apply_approving, listed, to_numbers},
    support::{Recorder, migration},
};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, amount bigint, code text UNIQUE); \
     INSERT INTO orders SELECT g, g * 100, 'c' || g FROM generate_series(1, 2500) g; ANALYZE orders;";

/// Tells of the child's part: the database, the place, and which passing of it.
const CHILD: &str = "CUTOVER_TEST_CRASH";

/// Kills this process the `nth` time a place is passed.
struct Kill {
    place: String,
    left: AtomicU32,
}

impl Watch for Kill {
    fn point(&self, name: &str) {
        if name == self.place && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .expect("killed");
        }
    }
}

/// Applies, waiting for the lease of one who died.
fn apply_after_a_death(url: &str, watch: &dyn Watch) -> Result<Applied, Error> {
    loop {
        let engine = PostgresEngine::connect(url)?;
        let mut migrator = Migrator::new(Box::new(engine), short_lease(), watch, &no_functions);
        match migrator.apply(&migration("0001_amount", None, CENTS), None) {
            Err(Error::Held { .. }) => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
}

/// Sets rows aside and approves that, waiting for the lease of one who died.
fn set_aside_after_a_death(url: &str, watch: &dyn Watch) -> Applied {
    loop {
        let mut sql = PostgresEngine::connect(url).expect("connected");
        let installed = cutover_migrate::state::is_installed(&mut sql).expect("read");
        if installed && lease::holder(&mut sql).expect("read").is_some() {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let mut migrator = Migrator::new(Box::new(sql), short_lease(), watch, &no_functions);
        return apply_approving(&mut migrator, &to_numbers("quarantine"));
    }
}

/// The part of the child process: it does nothing when run as a test of its own.
#[test]
fn child_that_is_killed() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (nth, rest) = order.split_once('|').expect("nth");
    let (place, rest) = rest.split_once('|').expect("place");
    let (what, url) = rest.split_once('|').expect("what");
    let watch = Kill { place: place.to_owned(), left: AtomicU32::new(nth.parse().expect("a number")) };
    if what == "set aside" {
        set_aside_after_a_death(url, &watch);
        return;
    }
    let engine = PostgresEngine::connect(url).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), short_lease(), &watch, &no_functions);
    migrator.apply(&migration("0001_amount", None, CENTS), None).map(drop).expect("applied");
}

fn check(database: &Database<'_>, about: &str) {
    assert_eq!(
        database.value("SELECT count(*) || ' ' || sum(amount) || ' ' || count(DISTINCT code) FROM orders"),
        "2500 3126250.00 2500",
        "{about}"
    );
    assert_eq!(database.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid"), "0", "{about}");
    // The ledger: every row was seen once, but for the one chunk that was in flight.
    assert_eq!(
        database.value("SELECT sum(seen) || ' ' || sum(copied + present + rejected) FROM cutover.chunk WHERE kind = 'copy'"),
        "2500 2500",
        "{about}"
    );
}

// X10.
#[test]
fn a_migrator_killed_anywhere_is_followed_by_one_that_goes_on() {
    if !have_server() {
        return;
    }
    let keep = Database::with(SETUP);
    let recorder = Recorder::default();
    apply_after_a_death(&keep.url(), &recorder).map(drop).expect("applied");
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    for point in recorder.points.lock().expect("points").iter() {
        *places.entry(point.clone()).or_default() += 1;
    }
    assert!(places.len() >= 12, "{places:?}");
    // The first passing of every place, and a middle one of the copy's.
    let mut kills: Vec<(String, u32)> = places.keys().map(|place| (place.clone(), 1)).collect();
    kills.push(("backfill.after".to_owned(), places["backfill.after"] / 2));
    let kills = Mutex::new(kills);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((place, nth)) = { kills.lock().expect("lock").pop() } {
                    kill_and_go_on(&place, nth);
                }
            });
        }
    });
}

/// Lets a child do `what` until it is killed at the `nth` passing of a place.
fn killed(database: &Database<'_>, what: &str, place: &str, nth: u32) {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "postgres::crashes::child_that_is_killed", "--nocapture"])
        .env(CHILD, format!("{nth}|{place}|{what}|{}", database.url()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("a child");
    assert!(!child.success(), "killed at {place}, time {nth}: it lived");
}

fn kill_and_go_on(place: &str, nth: u32) {
    let database = Database::with(SETUP);
    let about = format!("killed at {place}, time {nth}");
    killed(&database, "apply", place, nth);
    assert_eq!(database.value("SELECT count(*) FROM orders"), "2500", "{about}: the table is there at once");
    if let Err(error) = apply_after_a_death(&database.url(), &Recorder::default()) {
        panic!("{about}: {}", chain(&error));
    }
    check(&database, &about);
}

// X10.
#[test]
fn a_migrator_killed_anywhere_sets_the_same_rows_aside() {
    if !have_server() {
        return;
    }
    let keep = Database::with(NUMBERS);
    let recorder = Recorder::default();
    set_aside_after_a_death(&keep.url(), &recorder);
    let places: BTreeSet<String> = recorder.points.lock().expect("points").iter().cloned().collect();
    assert!(places.len() >= 12, "{places:?}");
    let places = Mutex::new(places.into_iter().collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(place) = { places.lock().expect("lock").pop() } {
                    kill_and_set_aside(&place);
                }
            });
        }
    });
}

fn kill_and_set_aside(place: &str) {
    let database = Database::with(NUMBERS);
    let about = format!("killed at {place}");
    killed(&database, "set aside", place, 1);
    // One is mended meanwhile, and one that fitted does not any more.
    let swapped = database.value("SELECT pg_typeof(v) FROM t LIMIT 1") == "integer";
    if !swapped {
        database.run("UPDATE t SET v = '7' WHERE id = 700; UPDATE t SET v = 'y' WHERE id = 5");
    }
    set_aside_after_a_death(&database.url(), &Recorder::default());
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), short_lease(), &Unwatched, &no_functions);
    let aside: BTreeSet<i64> = if swapped { [300, 700].into() } else { [5, 300].into() };
    assert_eq!(listed(&mut migrator), aside, "{about}");
    assert_eq!(
        database.value("SELECT sum(seen) || ' ' || sum(copied + present + rejected) FROM cutover.chunk WHERE kind = 'copy'"),
        "1000 1000",
        "{about}"
    );
    assert_eq!(database.value("SELECT count(*) FROM t"), "998", "{about}");
    rollback(&database, "0001").unwrap_or_else(|error| panic!("{about}: {}", chain(&error)));
    assert_eq!(database.value("SELECT count(*) FROM t"), "1000", "{about}");
}

/// Kills the server at a place, once.
struct KillServer<'s> {
    server: &'s Server,
    place: &'static str,
    done: AtomicBool,
    at: Mutex<Option<String>>,
}

impl Watch for KillServer<'_> {
    fn point(&self, name: &str) {
        if name == self.place && !self.done.swap(true, Ordering::SeqCst) {
            *self.at.lock().expect("lock") = Some(name.to_owned());
            self.server.kill();
        }
    }
}

// X10.
#[test]
fn a_server_killed_anywhere_comes_back_and_the_migration_goes_on() {
    if !have_server() {
        return;
    }
    let server = Server::start();
    for place in [
        "expand.after",
        "dual_write.after",
        "backfill.after",
        "index.after",
        "verify.after",
        "swap.before",
        "swap.after",
    ] {
        let database = server.database();
        database.run(SETUP);
        let watch = KillServer { server: &server, place, done: AtomicBool::new(false), at: Mutex::new(None) };
        let broken = apply_after_a_death(&database.url(), &watch);
        assert!(broken.is_err() && watch.done.load(Ordering::SeqCst), "{place}: the server died unnoticed");
        server.launch();
        assert_eq!(
            database.value("SELECT count(*) FROM orders"),
            "2500",
            "{place}: the table is there at once"
        );
        if let Err(error) = apply_after_a_death(&database.url(), &Recorder::default()) {
            panic!("{place}: {}", chain(&error));
        }
        check(&database, place);
    }
}
