//! SIGKILL at every place where something durable happens, then another run: it goes on or unwinds, the table is never missing,
//! and nothing is lost. The process that is killed is this very test program.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use cutover_migrate::{
    engine::{Loss, Unwatched, Watch},
    grace::Floor,
    run::Applied,
    sqlite::Sqlite,
    state::Phase,
};

use crate::{
    quarantine::{NUMBERS, apply_approving, listed, to_numbers},
    sqlite::{Database, MONEY, ORDERS},
    support::{Recorder, chain, done, migration, migrator},
};

/// Kills this process at the n-th place.
struct KillAt {
    at: u64,
    passed: AtomicU64,
}

impl Watch for KillAt {
    fn point(&self, _: &str) {
        if self.passed.fetch_add(1, Ordering::SeqCst) == self.at {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}

fn act(path: &Path, action: &str, watch: &dyn Watch) {
    let mut migrator = migrator(Box::new(Sqlite::open(path).unwrap()), watch);
    match action {
        "apply" => drop(done(migrator.apply(&migration("0001", None, MONEY), None))),
        "set aside" => drop(apply_approving(&mut migrator, &to_numbers("quarantine"))),
        "rollback" => {
            migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)))
        }
        _ => drop(done(migrator.complete("0001", &floor(), 0))),
    }
}

fn floor() -> Floor {
    Floor { lowest: "9.0.0".parse().unwrap(), rollback_open: false }
}

/// What the killed process runs; nothing when it is not asked to.
#[test]
fn child() {
    let (Ok(path), Ok(action), Ok(at)) =
        (std::env::var("CRASH_DATABASE"), std::env::var("CRASH_ACTION"), std::env::var("CRASH_AT"))
    else {
        return;
    };
    act(Path::new(&path), &action, &KillAt { at: at.parse().unwrap(), passed: AtomicU64::new(0) });
}

/// Whether the child was killed, rather than finished before.
fn kill_at(path: &Path, action: &str, at: usize) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--quiet"])
        .env("CRASH_DATABASE", path)
        .env("CRASH_ACTION", action)
        .env("CRASH_AT", at.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status:?}");
    status.signal() == Some(9)
}

fn points(prepared: impl Fn() -> Database, action: &str) -> Vec<String> {
    let database = prepared();
    let watch = Recorder::default();
    act(&database.path, action, &watch);
    watch.points.into_inner().unwrap()
}

// X10.
#[test]
fn apply_killed_anywhere_goes_on_and_the_table_is_never_missing() {
    let fresh = || Database::new(ORDERS);
    let points = points(fresh, "apply");
    for phase in ["expand", "dual_write", "backfill", "verify", "swap"] {
        assert!(points.iter().any(|point| point.starts_with(phase)), "{phase}: {points:?}");
    }
    // A slow run makes more chunks of the same rows, so places are counted until a run passes none any more.
    let places: BTreeSet<&String> = points.iter().collect();
    for at in 0.. {
        let database = fresh();
        if !kill_at(&database.path, "apply", at) {
            assert!(at >= places.len(), "killed {at} times only, for {places:?}");
            break;
        }
        let point = format!("killed at place {at}");
        // The application goes on meanwhile, in whichever shape it finds.
        let client = database.client();
        let swapped = database.texts("SELECT typeof(amount) FROM orders WHERE id = 1") == ["real"];
        let amount = if swapped { "9.99" } else { "999" };
        client
            .execute_batch(&format!(
                "UPDATE orders SET amount = {amount} WHERE id = 500; DELETE FROM orders WHERE id = 501"
            ))
            .unwrap();
        let mut migrator = migrator(database.engine(), &Unwatched);
        match migrator.apply(&migration("0001", None, MONEY), None) {
            Ok(Applied::Done(report)) => {
                let copied: u64 =
                    report.ledger.iter().filter(|line| line.kind == "copy").map(|line| line.copied).sum();
                assert!(
                    (999..=1000).contains(&copied),
                    "{point}: {copied} rows in the ledger: no chunk is copied twice"
                );
            }
            Ok(Applied::Already) => assert!(swapped, "{point}"),
            Err(error) => panic!("{point}: {}", chain(&error)),
        }
        assert_eq!(database.texts("SELECT amount FROM orders WHERE id IN (500, 501)"), ["9.99"], "{point}");
        assert_eq!(database.texts("SELECT count(*), sum(region IS NULL) FROM orders"), ["999|0"], "{point}");
        assert_eq!(migrator.status().unwrap().migrations[0].phase, Phase::Cleanup, "{point}");
        assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"], "{point}");
    }
}

// X10.
#[test]
fn rollback_and_contract_killed_anywhere_are_finished_by_the_next_run() {
    let applied = || {
        let database = Database::new(ORDERS);
        act(&database.path, "apply", &Unwatched);
        database.client().execute_batch("UPDATE orders SET amount = 7.5 WHERE id = 10").unwrap();
        database
    };
    for (action, amount) in [("rollback", "750"), ("complete", "7.5")] {
        let points = points(applied, action);
        assert!(!points.is_empty());
        for (at, point) in points.iter().enumerate() {
            let database = applied();
            assert!(kill_at(&database.path, action, at), "{point}");
            assert_eq!(database.texts("SELECT count(*) FROM orders"), ["1000"], "{point}");
            let mut migrator = migrator(database.engine(), &Unwatched);
            match action {
                "rollback" => migrator
                    .rollback("0001", Loss::Refuse)
                    .unwrap_or_else(|error| panic!("{point}: {}", chain(&error))),
                _ => drop(
                    migrator
                        .complete("0001", &floor(), 0)
                        .unwrap_or_else(|error| panic!("{point}: {}", chain(&error))),
                ),
            }
            migrator.engine().prepare().unwrap();
            assert_eq!(database.texts("SELECT amount FROM orders WHERE id = 10"), [amount], "{point}");
            assert_eq!(database.artefacts(), Vec::<String>::new(), "{point}");
        }
    }
}

#[test]
fn apply_killed_anywhere_sets_the_same_rows_aside() {
    let fresh = || Database::new(NUMBERS);
    let places: BTreeSet<String> = points(fresh, "set aside").into_iter().collect();
    for at in 0.. {
        let database = fresh();
        if !kill_at(&database.path, "set aside", at) {
            assert!(at >= places.len(), "killed {at} times only, for {places:?}");
            break;
        }
        let point = format!("killed at place {at}");
        // One is mended meanwhile, and one that fitted does not any more.
        let client = database.client();
        let swapped = database.texts("SELECT typeof(v) FROM t WHERE id = 1") == ["integer"];
        if !swapped {
            client
                .execute_batch("UPDATE t SET v = '7' WHERE id = 700; UPDATE t SET v = 'y' WHERE id = 5")
                .unwrap();
        }
        let mut migrator = migrator(database.engine(), &Unwatched);
        let applied = apply_approving(&mut migrator, &to_numbers("quarantine"));
        let aside: BTreeSet<i64> = if swapped { [300, 700].into() } else { [5, 300].into() };
        assert_eq!(listed(&mut migrator), aside, "{point}");
        if let Applied::Done(report) = applied {
            let line = report.ledger.iter().find(|line| line.kind == "copy").unwrap();
            assert_eq!((line.seen, line.copied + line.present + line.rejected), (1000, 1000), "{point}");
        }
        assert_eq!(
            database.texts("SELECT id FROM t WHERE id IN (5, 300, 700)").len(),
            3 - aside.len(),
            "{point}"
        );
        assert_eq!(database.texts("SELECT count(*) FROM t"), ["998"], "{point}");
        migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{point}: {}", chain(&error)));
        assert_eq!(database.texts("SELECT count(*) FROM t"), ["1000"], "{point}");
        migrator.tidy().unwrap();
        assert_eq!(database.artefacts(), Vec::<String>::new(), "{point}");
        assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"], "{point}");
    }
}
