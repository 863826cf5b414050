//! The SQLite engine, on real files.

use std::{path::PathBuf, time::Duration};

use cutover_migrate::{
    Error,
    engine::{Engine, Loss, Unwatched},
    run::Applied,
    sqlite::Sqlite,
    state::{Phase, sql::Sql},
};
use rusqlite::Connection;

use crate::{
    oracle::{self, Writers},
    support::{At, Recorder, chain, done, migration, migrator},
};

pub(crate) struct Database {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Database {
    pub(crate) fn new(sql: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        let connection = Connection::open(&path).unwrap();
        connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).unwrap();
        connection.execute_batch(sql).unwrap();
        Self { _directory: directory, path }
    }

    pub(crate) fn engine(&self) -> Box<dyn Engine> {
        Box::new(Sqlite::open(&self.path).unwrap())
    }

    /// A connection as an application has it.
    pub(crate) fn client(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection
    }

    pub(crate) fn writer(&self) -> Box<dyn Sql + Send> {
        let mut sqlite = Sqlite::open(&self.path).unwrap();
        sqlite.execute("PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF", &[]).unwrap();
        Box::new(sqlite)
    }

    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        let connection = self.client();
        let mut statement = connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells: Vec<String> = (0..width)
                .map(|at| match row.get_ref(at).unwrap() {
                    rusqlite::types::ValueRef::Null => "NULL".to_owned(),
                    rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                    rusqlite::types::ValueRef::Real(value) => value.to_string(),
                    rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                    rusqlite::types::ValueRef::Blob(bytes) => format!("{bytes:?}"),
                })
                .collect();
            Ok(cells.join("|"))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// What people see in the catalog, without what is ours.
    pub(crate) fn schema(&self) -> Vec<String> {
        // A rename puts the name into quotes.
        self.texts("SELECT name || ': ' || replace(coalesce(sql, ''), '\"', '') FROM sqlite_schema WHERE name NOT LIKE '\\_cutover\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name")
    }

    /// Our artefacts beside the tables of state.
    pub(crate) fn artefacts(&self) -> Vec<String> {
        let all = self.texts(
            "SELECT name FROM sqlite_schema WHERE name LIKE '\\_cutover\\_%\\_%' ESCAPE '\\' ORDER BY name",
        );
        all.into_iter().filter(|name| name.matches('_').count() > 2).collect()
    }
}

pub(crate) const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, country TEXT NOT NULL, amount INTEGER, region TEXT,
        CONSTRAINT known CHECK (length(country) = 2));
    CREATE INDEX by_country ON orders (country);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
    INSERT INTO orders (country, amount) SELECT CASE i % 3 WHEN 0 THEN 'DE' ELSE 'US' END, i * 5 FROM n;";

pub(crate) const MONEY: &str = r#"
app_version = "1.6.0"
[[step]]
op = "alter_column"
table = "orders"
column = "amount"
type = "decimal(18,2)"
nullable = false
up = "coalesce(amount, 0) / 100.0"
down = "cast(round(amount * 100) as bigint)"
[[step]]
op = "sql"
table = "orders"
set = { region = "CASE country WHEN 'DE' THEN 'eu' ELSE 'row' END" }
where = "region IS NULL"
check = "region IS NOT NULL"
down = { region = "NULL" }
"#;

// X4.
#[test]
fn type_change_goes_through_all_phases_and_keeps_everything_on_the_table() {
    let database = Database::new(ORDERS);
    let money = migration("0001_money", None, MONEY);
    let watch = Recorder::default();
    let report = done(migrator(database.engine(), &watch).apply(&money, None));
    assert_eq!(report.version, 1);
    let phases = watch.phases.lock().unwrap().clone();
    assert_eq!(
        phases,
        [
            Phase::ShadowCreate,
            Phase::DualWrite,
            Phase::Backfill,
            Phase::ConsistencyCheck,
            Phase::AtomicSwap,
            Phase::AtomicSwap,
            Phase::Cleanup
        ]
    );
    assert_eq!(
        database.texts("SELECT id, country, amount, region FROM orders WHERE id IN (3, 4)"),
        ["3|DE|0.15|eu", "4|US|0.2|row"]
    );
    let copied: u64 = report.ledger.iter().filter(|line| line.kind == "copy").map(|line| line.copied).sum();
    let compared: u64 = report.ledger.iter().filter(|line| line.kind == "verify").map(|line| line.seen).sum();
    assert_eq!((copied, compared), (1000, 1000));
    let client = database.client();
    assert!(
        client.execute("INSERT INTO orders (country, amount) VALUES ('long', 1)", []).is_err(),
        "the check is kept"
    );
    client.execute("INSERT INTO orders (country, amount) VALUES ('FR', 1.5)", []).unwrap();
    assert_eq!(client.last_insert_rowid(), 1001, "the counter is kept");
    let mut migrator = migrator(database.engine(), &Unwatched);
    let status = migrator.status().unwrap();
    assert_eq!(status.version, 1);
    let trail: Vec<Phase> = status.migrations[0].trail.iter().map(|passed| passed.phase).collect();
    assert_eq!(
        trail,
        [
            Phase::Idle,
            Phase::ShadowCreate,
            Phase::DualWrite,
            Phase::Backfill,
            Phase::ConsistencyCheck,
            Phase::AtomicSwap,
            Phase::Cleanup
        ]
    );
    // X6.
    assert!(matches!(migrator.apply(&money, None), Ok(Applied::Already)));
    assert_eq!(migrator.status().unwrap().version, 1);
}

#[test]
fn rollback_after_the_swap_keeps_what_was_written_since() {
    let database = Database::new(ORDERS);
    let before = database.schema();
    let money = migration("0001_money", None, MONEY);
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&money, None));
    let client = database.client();
    client
        .execute("INSERT INTO orders (id, country, amount, region) VALUES (5000, 'FR', 12.34, 'x')", [])
        .unwrap();
    client.execute("UPDATE orders SET amount = 7.5 WHERE id = 10", []).unwrap();
    client.execute("DELETE FROM orders WHERE id = 11", []).unwrap();
    migrator.rollback("0001_money", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        database.texts("SELECT id, country, amount, region FROM orders WHERE id IN (9, 10, 11, 5000)"),
        ["9|DE|45|NULL", "10|US|750|NULL", "5000|FR|1234|NULL"]
    );
    assert_eq!(database.texts("SELECT count(*) FROM orders"), ["1000"]);
    assert_eq!(database.schema(), before);
    let left = database.artefacts();
    assert!(
        matches!(&left[..], [only] if only.contains("_cutover_trash_")),
        "removing the table is nothing that a rollback waits for: {left:?}"
    );
    migrator.tidy().unwrap();
    assert_eq!(database.artefacts(), Vec::<String>::new());
    assert_eq!(migrator.status().unwrap().version, 0);
    // And again.
    done(migrator.apply(&money, None));
    assert_eq!(database.texts("SELECT amount FROM orders WHERE id = 10"), ["7.5"]);
}

#[test]
fn contract_leaves_only_the_new_shape() {
    let database = Database::new(ORDERS);
    let money = migration("0001_money", None, MONEY);
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&money, None));
    let floor = cutover_migrate::grace::Floor { lowest: "1.6.0".parse().unwrap(), rollback_open: false };
    done(migrator.complete("0001_money", &floor, 0));
    assert_eq!(database.artefacts(), Vec::<String>::new());
    assert_eq!(database.texts("SELECT count(*), sum(amount > 0) FROM orders"), ["1000|1000"]);
    assert!(matches!(migrator.rollback("0001_money", Loss::Refuse), Err(Error::Phase { .. })));
}

#[test]
fn a_run_that_goes_on_finds_rows_that_came_after_its_last_chunk() {
    let database = Database::new(ORDERS);
    let client = database.client();
    client.execute_batch("INSERT INTO orders (id, country) VALUES (2000, 'XX')").unwrap();
    let steps = "rollback = \"manual\"\n[[step]]\nop = \"sql\"\ntable = \"orders\"\nset = { region = \"country\" }\ncheck = \"region <> 'XX'\"\n";
    // The copy is at its end; the comparison drains this row, and then stops at the other one.
    let insert = At::new("drain.after", || {
        database.client().execute_batch("INSERT INTO orders (id, country) VALUES (5000, 'FR')").unwrap();
    });
    let change = migration("0001", None, steps);
    let stopped = migrator(database.engine(), &insert).apply(&change, None);
    assert!(matches!(stopped, Err(Error::Stopped { phase: Phase::ConsistencyCheck, .. })), "{stopped:?}");
    client.execute_batch("DELETE FROM orders WHERE id = 2000").unwrap();
    done(migrator(database.engine(), &Unwatched).apply(&change, None));
    assert_eq!(database.texts("SELECT count(*), max(id), max(region) FROM orders"), ["1001|5000|US"]);
}

fn sweep(seed: u64) {
    use rand::{RngExt as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let database = Database::new("");
    let mut setup = database.writer();
    oracle::create_table(&mut *setup, "items");
    let start = oracle::fill(&mut *setup, "items", random.random_range(50..1500));
    let change = migration(
        "0001_items",
        None,
        "[[step]]\nop = \"alter_column\"\ntable = \"items\"\ncolumn = \"note\"\nnullable = false\n\
         [[step]]\nop = \"alter_column\"\ntable = \"items\"\ncolumn = \"amount\"\ntype = \"decimal(20,0)\"\n\
         [[step]]\nop = \"add_index\"\ntable = \"items\"\nname = \"by_amount\"\ncolumns = [\"amount\"]\n",
    );
    let writers = random.random_range(1..4);
    let connections = (0..writers).map(|_| database.writer()).collect();
    let pause = Duration::from_micros(random.random_range(0..3000));
    let writers = Writers::start(connections, "items", &start, seed, pause);
    writers.wait_for(20);
    let mut settings = crate::support::settings();
    settings.policy.chunk_rows = random.random_range(50..500);
    let mut migrator = cutover_migrate::run::Migrator::new(
        database.engine(),
        settings,
        &Unwatched,
        &cutover_migrate::run::no_functions,
    );
    done(migrator.apply(&change, None));
    writers.wait_for(20);
    let ending = random.random_range(0..3);
    match ending {
        0 => {}
        1 => {
            migrator.rollback("0001_items", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)))
        }
        _ => {
            let floor =
                cutover_migrate::grace::Floor { lowest: "9.0.0".parse().unwrap(), rollback_open: false };
            done(migrator.complete("0001_items", &floor, 0));
        }
    }
    writers.wait_for(20);
    let acknowledged = writers.stop();
    let about = format!("seed={seed} ending={ending}");
    oracle::agree(&acknowledged, &oracle::read(&mut *setup, "items"), &about);
    if ending == 0 {
        // What old code sees agrees too.
        oracle::agree(&acknowledged, &oracle::read(&mut *setup, "items_v0"), &about);
        migrator.rollback("0001_items", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
        oracle::agree(&acknowledged, &oracle::read(&mut *setup, "items"), &about);
    }
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"], "{about}");
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_resurrected() {
    for seed in 0..oracle::seeds(6) {
        sweep(seed);
    }
}
