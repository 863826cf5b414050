//! The cases of the contract, on SQLite.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use cutover_migrate::{
    Error,
    engine::{Loss, RowFunction, Unwatched, Watch},
    grace::{Floor, FloorUnknown, Ticks},
    ir::Op,
    plan::is_additive,
    run::{Applied, Cancelled, Migrator, Settings, no_functions},
    state::{Phase, sql::Value},
};

use crate::{
    oracle::{self, Writers},
    sqlite::{Database, MONEY, ORDERS},
    support::{ByRow, Operator, chain, done, migration, migrator, settings},
};

const USERS: &str = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, name TEXT, old_login TEXT);
    INSERT INTO users VALUES (1, 'a@x', 'A', 'la'), (2, 'b@x', 'B', 'lb'), (3, 'c@x', 'C', 'lc');";

fn everywhere(version: &str) -> Floor {
    Floor { lowest: version.parse().unwrap(), rollback_open: false }
}

/// Money on `orders`, then a transform on `users` that returns false.
fn failing(rollback: &str) -> String {
    format!(
        "rollback = \"{rollback}\"\n{MONEY}\n[[step]]\nop = \"transform\"\ntable = \"users\"\ntransform = \"t\"\nread = [\"name\"]\nwrite = [\"name\"]\n"
    )
}

fn refuses(_: &Op) -> Result<Box<dyn RowFunction>, Error> {
    Ok(Box::new(ByRow(|_: &[Value]| Err("it returned false".to_owned()))))
}

/// Remembers whether a chunk was committed after rows had been counted.
struct Committed<'a> {
    counted: &'a AtomicI64,
    after: AtomicBool,
}

impl Watch for Committed<'_> {
    fn point(&self, name: &str) {
        if name == "backfill.after" && self.counted.load(Ordering::SeqCst) > 0 {
            self.after.store(true, Ordering::SeqCst);
        }
    }
}

// X2, X13.
#[test]
fn custom_step_that_returns_false_undoes_the_steps_before_it() {
    let more = "WITH RECURSIVE n(i) AS (SELECT 4 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO users SELECT i, 'e', 'n' || i, 'l' FROM n;";
    let database = Database::new(&format!("{ORDERS}{USERS}{more}"));
    let all = || (database.texts("SELECT * FROM orders"), database.texts("SELECT * FROM users"));
    let (schema, rows) = (database.schema(), all());
    let change = migration("0001", None, &failing("automatic"));
    // It returns false when a chunk of its own is committed.
    static SEEN: AtomicI64 = AtomicI64::new(0);
    let refuses_later = |_: &Op| -> Result<Box<dyn RowFunction>, Error> {
        Ok(Box::new(ByRow(|row: &[Value]| match SEEN.fetch_add(1, Ordering::SeqCst) {
            0..900 => Ok(vec![Value::Text(format!("{:?}", row[0]))]),
            _ => Err("it returned false".to_owned()),
        })))
    };
    let watch = Committed { counted: &SEEN, after: AtomicBool::new(false) };
    let mut migrator = Migrator::new(database.engine(), settings(), &watch, &refuses_later);
    match migrator.apply(&change, None) {
        Err(error @ Error::RolledBack { phase: Phase::Backfill, .. }) => {
            assert!(chain(&error).contains("it returned false"), "{}", chain(&error));
        }
        other => panic!("{other:?}"),
    }
    assert!(watch.after.load(Ordering::SeqCst), "it had written rows");
    assert_eq!(database.schema(), schema);
    assert_eq!(all(), rows);
    assert_eq!(database.artefacts(), Vec::<String>::new());
    let status = migrator.status().unwrap();
    assert_eq!((status.version, status.migrations[0].phase), (0, Phase::RolledBack));
}

// X3.
#[test]
fn failed_migration_with_manual_rollback_stays_until_rollback() {
    let database = Database::new(&format!("{ORDERS}{USERS}"));
    let schema = database.schema();
    let change = migration("0001", None, &failing("manual"));
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &refuses);
    assert!(matches!(migrator.apply(&change, None), Err(Error::Stopped { phase: Phase::Backfill, .. })));
    assert!(!database.artefacts().is_empty(), "what was done stays");
    assert_eq!(migrator.status().unwrap().migrations[0].phase, Phase::Backfill);
    migrator.rollback("0001", Loss::Refuse).unwrap();
    assert_eq!(database.artefacts(), Vec::<String>::new());
    assert_eq!(database.schema(), schema);
}

// X5.
#[test]
fn empty_migration_succeeds() {
    let database = Database::new("");
    let report = done(migrator(database.engine(), &Unwatched).apply(&migration("0001", None, ""), None));
    assert_eq!(report.version, 1);
}

// X7.
#[test]
fn not_null_column_with_default_reaches_every_row_of_a_million_under_writers() {
    let database = Database::new("");
    let mut setup = database.writer();
    oracle::create_table(&mut *setup, "items");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) \
                INSERT INTO items SELECT i, 'c' || i, i, '' FROM n";
    setup.execute(fill, &[]).unwrap();
    // The writers own what they insert; the million is theirs to leave alone.
    let writers = Writers::start(
        vec![database.writer(), database.writer()],
        "items",
        &oracle::Ledger::new(),
        7,
        Duration::from_millis(1),
    );
    writers.wait_for(10);
    let add = "[[step]]\nop = \"add_column\"\ntable = \"items\"\ncolumn = { name = \"state\", type = \"text\", nullable = false, default = { value = \"new\" } }\n";
    let mut migrator = migrator(database.engine(), &Unwatched);
    let report = done(migrator.apply(&migration("0001", None, add), None));
    writers.wait_for(10);
    let acknowledged = writers.stop();
    assert!(report.ledger.is_empty(), "nothing was copied");
    assert_eq!(database.texts("SELECT count(*) FROM items WHERE state IS NOT 'new'"), ["0"]);
    let mut found = oracle::read(&mut *setup, "items");
    found.retain(|id, _| *id > 1_000_000);
    oracle::agree(&acknowledged, &found, "X7");
    let count: usize = database.texts("SELECT count(*) FROM items")[0].parse().unwrap();
    assert_eq!(count, 1_000_000 + acknowledged.len());
}

// X8.
#[test]
fn renamed_column_has_both_names_until_contract_and_only_the_new_one_after() {
    let database = Database::new(USERS);
    let rename = "app_version = \"2.0.0\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"email\"\nto = \"address\"\n";
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, rename), None));
    let prelude = migrator.engine().prelude("0").unwrap();
    let (old, new) = (database.client(), database.client());
    prelude.iter().for_each(|statement| old.execute_batch(statement).unwrap());
    let read = |connection: &rusqlite::Connection, sql: &str| {
        connection.query_row(sql, [], |row| row.get::<_, String>(0))
    };
    old.execute("INSERT INTO users (id, email, name) VALUES (10, 'old@x', 'O')", []).unwrap();
    new.execute("INSERT INTO users (id, address, name) VALUES (11, 'new@x', 'N')", []).unwrap();
    old.execute("UPDATE users SET email = 'changed@x' WHERE id = 1", []).unwrap();
    old.execute("DELETE FROM users WHERE id = 3", []).unwrap();
    assert_eq!(read(&new, "SELECT address FROM users WHERE id = 10").unwrap(), "old@x");
    assert_eq!(read(&old, "SELECT email FROM users WHERE id = 11").unwrap(), "new@x");
    assert_eq!(
        read(&new, "SELECT group_concat(id || address) FROM users").unwrap(),
        "1changed@x,2b@x,10old@x,11new@x"
    );
    drop(old);
    let locked = migrator.complete("0001", &everywhere("1.9.0"), 0);
    assert!(matches!(locked, Err(Error::Locked(_))), "an old node still runs");
    done(migrator.complete("0001", &everywhere("2.0.0"), 0));
    assert!(read(&new, "SELECT email FROM users").is_err());
    assert_eq!(migrator.engine().prelude("0").unwrap(), Vec::<String>::new());
    assert_eq!(read(&new, "SELECT address FROM users WHERE id = 1").unwrap(), "changed@x");
}

static COUNTER: AtomicI64 = AtomicI64::new(0);

fn unsteady(_: &Op) -> Result<Box<dyn RowFunction>, Error> {
    Ok(Box::new(ByRow(|_: &[Value]| {
        Ok(vec![Value::Text(COUNTER.fetch_add(1, Ordering::SeqCst).to_string())])
    })))
}

// X9.
#[test]
fn copy_that_differs_is_not_swapped_and_is_rolled_back() {
    let database = Database::new(USERS);
    let schema = database.schema();
    let step = "[[step]]\nop = \"transform\"\ntable = \"users\"\ntransform = \"t\"\nread = [\"name\"]\nwrite = [\"name\"]\n";
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &unsteady);
    match migrator.apply(&migration("0001", None, step), None) {
        Err(Error::RolledBack { phase: Phase::ConsistencyCheck, cause, .. }) => {
            assert!(matches!(*cause, Error::Differs { count: 3, .. }), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(database.schema(), schema);
    assert_eq!(database.texts("SELECT name FROM users"), ["A", "B", "C"]);
}

const DROP: &str = "app_version = \"2.0.0\"\n[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"old_login\"\ngrace = \"7d\"\n";

// X11.
#[test]
fn dropped_column_is_hidden_at_once_restorable_and_dropped_only_after_its_grace() {
    let database = Database::new(USERS);
    let mut migrator = migrator(database.engine(), &Unwatched);
    let drop_login = migration("0001", None, DROP);
    done(migrator.apply(&drop_login, None));
    assert!(database.client().prepare("SELECT old_login FROM users").is_err(), "hidden at once");
    assert_eq!(
        database.texts("SELECT old_login FROM users_v0 ORDER BY id"),
        ["la", "lb", "lc"],
        "old code sees it"
    );
    database
        .client()
        .execute("INSERT INTO users_v0 (id, email, old_login) VALUES (4, 'd@x', 'ld')", [])
        .unwrap();
    database.client().execute("INSERT INTO users (id, email) VALUES (5, 'e@x')", []).unwrap();
    // Taken back: every value is there, also of rows written while it was hidden.
    migrator.cancel("0001").unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        database.texts("SELECT id, old_login FROM users ORDER BY id"),
        ["1|la", "2|lb", "3|lc", "4|ld", "5|NULL"]
    );
    done(migrator.apply(&drop_login, None));
    let hour = 3_600_000;
    let passed = |ms| Ticks { passed_ms: ms, seen: None };
    migrator.set_ticks("0001", &passed(168 * hour - 1)).unwrap();
    assert!(
        matches!(migrator.complete("0001", &everywhere("2.0.0"), 0), Err(Error::Locked(_))),
        "167 h are not enough"
    );
    migrator.set_ticks("0001", &passed(168 * hour)).unwrap();
    assert!(
        matches!(migrator.complete("0001", &everywhere("1.0.0"), 0), Err(Error::Locked(_))),
        "a node needs it"
    );
    let unknown = FloorUnknown("nobody".to_owned());
    assert!(matches!(migrator.complete("0001", &unknown, 0), Err(Error::Locked(_))), "no answer locks");
    database.client().execute_batch("CREATE VIEW logins AS SELECT old_login FROM users_v0").unwrap();
    match migrator.complete("0001", &everywhere("2.0.0"), 0) {
        Err(Error::Locked(reasons)) => assert!(reasons[0].what.contains("logins"), "{reasons:?}"),
        other => panic!("{other:?}"),
    }
    database.client().execute_batch("DROP VIEW logins").unwrap();
    done(migrator.complete("0001", &everywhere("2.0.0"), 0));
    assert_eq!(database.artefacts(), Vec::<String>::new());
    assert!(database.client().prepare("SELECT old_login FROM users").is_err());
}

// X12.
#[test]
fn online_indexes_are_listed_and_a_violated_unique_one_is_undone() {
    let database = Database::new(USERS);
    let schema = database.schema();
    let index = |name: &str, rest: &str| {
        format!(
            "[[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"{name}\"\ncolumns = [\"name\"]\n{rest}\n"
        )
    };
    let mut migrator = migrator(database.engine(), &Unwatched);
    let both = migration("0001", None, &(index("a", "") + &index("b", "online = false")));
    assert_eq!(migrator.plan(&both).unwrap().online_indexes, ["a"]);
    database.client().execute("UPDATE users SET name = 'A'", []).unwrap();
    let unique = migration("0001", None, &index("u", "unique = true"));
    match migrator.apply(&unique, None) {
        Err(Error::RolledBack { cause, .. }) => assert!(matches!(*cause, Error::Rejected { .. }), "{cause}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(database.schema(), schema);
    database.client().execute("UPDATE users SET name = 'A' || id", []).unwrap();
    done(migrator.apply(&unique, None));
    assert!(database.client().execute("UPDATE users SET name = 'same'", []).is_err());
}

// X14.
#[test]
fn only_what_adds_is_additive() {
    let additive = |body: &str| is_additive(&migration("a", None, body));
    let step = |rest: &str| format!("[[step]]\ntable = \"users\"\n{rest}\n");
    assert!(additive(&step("op = \"add_column\"\ncolumn = { name = \"c\", type = \"text\" }")));
    for not in [
        "op = \"drop_column\"\ncolumn = \"name\"",
        "op = \"rename_column\"\nfrom = \"name\"\nto = \"n\"",
        "op = \"alter_column\"\ncolumn = \"name\"\ntype = \"integer\"",
        "op = \"alter_column\"\ncolumn = \"name\"\nnullable = false",
    ] {
        assert!(!additive(&step(not)), "{not}");
    }
    assert!(!additive(""));
}

// X15.
#[test]
fn preview_tells_exactly_what_comes_goes_and_changes_and_writes_nothing() {
    let database = Database::new(&format!("{ORDERS}{USERS}"));
    let all = "SELECT name, sql FROM sqlite_schema";
    let schema = database.texts(all);
    // It tells of the writes of others to a connection that stays open.
    let client = database.client();
    let version = || client.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    let body = format!(
        "{MONEY}\n[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"old_login\"\n\
         [[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"email\"\nto = \"address\"\n\
         [[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"by_address\"\ncolumns = [\"address\"]\n"
    );
    let mut migrator = migrator(database.engine(), &Unwatched);
    let plan = migrator.plan(&migration("0001", None, &body)).unwrap();
    assert_eq!(plan.preview.added, ["index by_address on users (\"address\")"]);
    assert_eq!(plan.preview.removed, ["column users.old_login"]);
    assert_eq!(
        plan.preview.modified,
        [
            "column orders.amount: INTEGER -> decimal(18,2) not null",
            "rows orders: \"region\"",
            "column users.email -> address"
        ]
    );
    assert_eq!(database.texts(all), schema);
    assert_eq!(version(), before);
    assert!(plan.to_text().contains("until contract"), "{}", plan.to_text());
}

// X16, X17.
#[test]
fn two_additive_migrations_count_up_by_one_each_and_copy_nothing() {
    let database = Database::new(ORDERS);
    let add = |name: &str| {
        format!(
            "[[step]]\nop = \"add_column\"\ntable = \"orders\"\ncolumn = {{ name = \"{name}\", type = \"text\" }}\n"
        )
    };
    let mut migrator = migrator(database.engine(), &Unwatched);
    let first = done(migrator.apply(&migration("0001", None, &add("one")), None));
    let second = done(migrator.apply(&migration("0002", Some("0001"), &add("two")), None));
    assert_eq!((first.version, second.version, migrator.status().unwrap().version), (1, 2, 2));
    assert!(first.ledger.is_empty() && second.ledger.is_empty());
    assert_eq!(database.texts("SELECT count(*) FROM orders WHERE one IS NULL AND two IS NULL"), ["1000"]);
    let applied = migrator.history().unwrap().into_iter().filter(|entry| entry.event == "applied");
    let authors: Vec<(String, String)> = applied.map(|entry| (entry.migration, entry.author)).collect();
    assert_eq!(authors, [("0001".into(), "tester".into()), ("0002".into(), "tester".to_owned())]);
    assert!(matches!(
        migrator.apply(&migration("0004", Some("0003"), ""), None),
        Err(Error::OutOfOrder { .. })
    ));
}

// X18.
#[test]
fn rehearsal_is_kept_on_failure_dropped_on_success_and_can_be_demanded() {
    let database = Database::new(&format!("{ORDERS}{USERS}"));
    let money = migration("0001", None, MONEY);
    let copy = |id: &str| database.path.with_file_name(format!("app.db.rehearsal-{id}"));
    {
        let bad = migration("0001", None, &failing("automatic"));
        let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &refuses);
        assert!(migrator.rehearse(&bad, None).is_err());
        assert!(copy("0001").exists(), "kept for people to look at");
    }
    let mut migrator = migrator(database.engine(), &Unwatched);
    assert!(matches!(migrator.demand_rehearsal(&money), Err(Error::Refused(_))));
    let rehearsal = migrator.rehearse(&money, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(rehearsal.rows, 1000);
    assert!(!copy("0001").exists(), "dropped");
    assert_eq!(database.texts("SELECT amount FROM orders WHERE id = 1"), ["5"], "the original is untouched");
    migrator.demand_rehearsal(&money).unwrap();
    done(migrator.apply(&money, None));
}

#[test]
fn edited_migration_is_refused_field_by_field_until_it_is_rebaselined() {
    let database = Database::new(ORDERS);
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, MONEY), None));
    let edited = migration("0001", None, &MONEY.replace("decimal(18,2)", "decimal(20,2)"));
    match migrator.apply(&edited, None) {
        Err(Error::Edited { differences, .. }) => assert_eq!(differences[0].field, "steps[1].type"),
        other => panic!("{other:?}"),
    }
    migrator.rebaseline(&edited, "only wider").unwrap();
    assert!(matches!(migrator.apply(&edited, None), Ok(Applied::Already)));
    let last = migrator.history().unwrap().pop().unwrap();
    assert_eq!((last.event.as_str(), last.detail["reason"].as_str()), ("rebaselined", Some("only wider")));
}

#[test]
fn plan_that_is_not_the_approved_one_is_refused() {
    let database = Database::new(ORDERS);
    let mut migrator = migrator(database.engine(), &Unwatched);
    let money = migration("0001", None, MONEY);
    let approved = migrator.plan(&money).unwrap().approval().to_string();
    database.client().execute_batch("ALTER TABLE orders ADD COLUMN surprise").unwrap();
    assert!(matches!(migrator.apply(&money, Some(&approved)), Err(Error::Drift { .. })));
    let approved = migrator.plan(&money).unwrap().approval().to_string();
    done(migrator.apply(&money, Some(&approved[..8])));
}

#[test]
fn history_that_was_edited_cut_or_reordered_stops_everything() {
    for damage in [
        "UPDATE _cutover_history SET entry = replace(entry, 'tester', 'nobody') WHERE number = 1",
        "DELETE FROM _cutover_history WHERE number = 1",
        "UPDATE _cutover_history SET migration = 'other' WHERE number = 2",
    ] {
        let database = Database::new(ORDERS);
        let mut migrator = migrator(database.engine(), &Unwatched);
        done(migrator.apply(&migration("0001", None, ""), None));
        database.client().execute_batch(damage).unwrap();
        assert!(matches!(migrator.history(), Err(Error::History { .. })), "{damage}");
        let next = migration("0002", Some("0001"), "");
        assert!(matches!(migrator.apply(&next, None), Err(Error::History { .. })), "{damage}");
    }
    // A cut-off end is seen by whoever kept the head.
    let database = Database::new(ORDERS);
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, ""), None));
    let head = migrator.head().unwrap();
    let next = migration("0002", Some("0001"), "");
    for cut in ["number = 2", "number > 0"] {
        database.client().execute_batch(&format!("DELETE FROM _cutover_history WHERE {cut}")).unwrap();
        assert!(migrator.history().is_ok());
        let keeper = Settings { head: Some(head.clone()), ..settings() };
        let mut keeper = Migrator::new(database.engine(), keeper, &Unwatched, &no_functions);
        assert!(matches!(keeper.history(), Err(Error::History { .. })));
        assert!(matches!(keeper.apply(&next, None), Err(Error::History { .. })));
        assert!(matches!(keeper.complete("0001", &everywhere("9.0.0"), 0), Err(Error::History { .. })));
    }
    // So is a database that has no state at all any more.
    let other = Database::new(ORDERS);
    let keeper = Settings { head: Some(head), ..settings() };
    let mut keeper = Migrator::new(other.engine(), keeper, &Unwatched, &no_functions);
    assert!(matches!(keeper.history(), Err(Error::History { .. })));
}

#[test]
fn deadline_names_the_phase_it_passed_in_and_the_migration_goes_on_later() {
    let database = Database::new(ORDERS);
    let mut migrator = migrator(database.engine(), &Unwatched);
    let money = migration("0001", None, MONEY);
    let mut hurried = money.clone();
    hurried.run.deadline_s = Some(0);
    match migrator.apply(&hurried, None) {
        Err(Error::Stopped { cause, .. }) => {
            assert!(matches!(*cause, Error::Deadline { phase: Phase::ShadowCreate, .. }), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert!(done(migrator.apply(&money, None)).resumed);
}

#[test]
fn a_migration_that_nobody_runs_is_not_asked_to_stop_because_another_is_at_work() {
    use cutover_migrate::state::{lease, sql::in_transaction};
    let database = Database::new(&format!("{ORDERS}{USERS}"));
    let change = migration("0001", None, &failing("manual"));
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &refuses);
    assert!(matches!(migrator.apply(&change, None), Err(Error::Stopped { .. })));
    let mut other = database.engine();
    let epoch = in_transaction(&mut *other, |sql| lease::acquire(sql, &lease::owner(), 60_000)).unwrap();
    assert!(matches!(migrator.cancel("0001"), Err(Error::Held { .. })));
    lease::release(&mut *other, epoch).unwrap();
    assert_eq!(migrator.cancel("0001").unwrap(), Cancelled::Undone);
}

#[test]
fn two_migrators_exclude_each_other_and_the_one_that_was_taken_over_fails() {
    use cutover_migrate::state::{self, lease, sql::in_transaction};
    let database = Database::new(ORDERS);
    done(migrator(database.engine(), &Unwatched).apply(&migration("0001", None, ""), None));
    let (mut one, mut two) = (database.engine(), database.engine());
    let epoch = in_transaction(&mut *one, |sql| lease::acquire(sql, &lease::owner(), 60_000)).unwrap();
    let held = in_transaction(&mut *two, |sql| lease::acquire(sql, &lease::owner(), 60_000));
    assert!(matches!(held, Err(Error::Held { .. })), "{held:?}");
    assert!(matches!(
        migrator(database.engine(), &Unwatched).apply(&migration("0002", Some("0001"), ""), None),
        Err(Error::Held { .. })
    ));
    lease::renew(&mut *one, epoch, 0).unwrap();
    let later = in_transaction(&mut *two, |sql| lease::acquire(sql, &lease::owner(), 60_000)).unwrap();
    assert_eq!(later, epoch + 1);
    assert!(matches!(state::fence(&mut *one, epoch), Err(Error::Fenced { .. })));
    assert!(matches!(lease::renew(&mut *one, epoch, 60_000), Err(Error::Fenced { .. })));
    assert!(state::fence(&mut *two, later).is_ok());
}

#[test]
fn refusals_have_a_way_out() {
    let database = Database::new(&format!(
        "{USERS} CREATE INDEX by_login ON users (old_login); CREATE TABLE child (u INTEGER REFERENCES users (id));"
    ));
    let mut migrator = migrator(database.engine(), &Unwatched);
    for (body, part) in [
        ("[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"old_login\"\n", "by_login"),
        ("[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"id\"\n", "primary key"),
        ("[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"nam\"\n", "no column"),
        ("[[step]]\nop = \"drop_table\"\ntable = \"users\"\n", "foreign keys of `child`"),
        (
            "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"id\"\ntype = \"text\"\n",
            "part of the key",
        ),
        (
            "[[step]]\nop = \"add_column\"\ntable = \"users\"\ncolumn = { name = \"c\", type = \"text\", nullable = false }\n",
            "NOT NULL",
        ),
        ("[[step]]\nop = \"sql\"\ntable = \"users\"\nset = { name = \"no_such(\" }\n", "steps on"),
    ] {
        match migrator.plan(&migration("0001", None, body)) {
            Err(Error::Refused(refusals)) => {
                let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
                assert!(all.iter().any(|text| text.contains(part)), "{part}: {all:?}");
                assert!(refusals.iter().all(|refusal| !refusal.way_out.is_empty()));
            }
            other => panic!("{part}: {other:?}"),
        }
    }
    let narrow =
        "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"name\"\ntype = \"integer\"\n";
    match migrator.apply(&migration("0001", None, narrow), None) {
        Err(Error::RolledBack { cause, .. }) => assert!(matches!(*cause, Error::Rejected { .. }), "{cause}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn paused_migration_waits_obeys_a_rate_and_can_be_cancelled() {
    let database = Database::new(ORDERS);
    let schema = database.schema();
    let operator = Operator::new(
        || database.engine(),
        [
            ("begun", |operator| operator.pause("0001", true).unwrap()),
            ("paused", |operator| {
                operator.set_rate("0001", Some(100_000)).unwrap();
                operator.pause("0001", false).unwrap();
            }),
            ("backfill.after", |operator| operator.pause("0001", true).unwrap()),
            ("paused", |operator| assert_eq!(operator.cancel("0001").unwrap(), Cancelled::Asked)),
        ],
    );
    let ended = migrator(database.engine(), &operator).apply(&migration("0001", None, MONEY), None);
    operator.assert_gave_all();
    assert!(
        matches!(&ended, Err(Error::RolledBack { cause, .. }) if matches!(**cause, Error::Cancelled)),
        "{ended:?}"
    );
    assert_eq!(database.schema(), schema);
    assert_eq!(database.artefacts(), Vec::<String>::new());
}

#[test]
fn order_that_comes_when_the_swap_has_begun_is_obeyed_and_one_after_it_refused() {
    let database = Database::new(ORDERS);
    crate::support::orders_at_the_swap(&|| database.engine(), &migration("0001", None, MONEY));
}

// Regression names of peers: an UPDATE of the key, unique values that change hands, REPLACE, triggers that update again.
#[test]
fn replace_deletes_unseen_nested_trigger_stale_copy_and_key_updates_are_followed() {
    let database = Database::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, code TEXT UNIQUE, n INTEGER NOT NULL);
         CREATE TRIGGER again AFTER UPDATE OF n ON t WHEN NEW.n < 100 BEGIN UPDATE t SET n = n + 100 WHERE id = NEW.id; END;
         INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4);",
    );
    let change = migration(
        "0001",
        None,
        "[[step]]\nop = \"alter_column\"\ntable = \"t\"\ncolumn = \"n\"\ntype = \"decimal(10,0)\"\nup = \"n * 2\"\ndown = \"n / 2\"\n",
    );
    let clients = |when: &str| {
        let client = database.client();
        let statements = match when {
            "during" => {
                "INSERT OR REPLACE INTO t VALUES (10, 'a', 500); UPDATE t SET id = 20 WHERE id = 2; UPDATE t SET n = 5 WHERE id = 3; \
                 UPDATE t SET code = CASE code WHEN 'c' THEN 'x' ELSE code END; UPDATE OR REPLACE t SET code = 'x' WHERE id = 4;"
            }
            _ => {
                "INSERT OR REPLACE INTO t VALUES (30, 'x', 600); UPDATE t SET id = 21 WHERE id = 20; \
                 INSERT INTO t VALUES (40, 'b', 7) ON CONFLICT (code) DO UPDATE SET n = 800;"
            }
        };
        client.execute_batch(statements).unwrap();
    };
    let watch = crate::support::At::new("backfill.after", || clients("during"));
    let mut migrator = migrator(database.engine(), &watch);
    done(migrator.apply(&change, None));
    assert_eq!(database.texts("SELECT * FROM t ORDER BY id"), ["4|x|8", "10|a|1000", "20|b|4"]);
    clients("after");
    assert_eq!(database.texts("SELECT * FROM t ORDER BY id"), ["10|a|1000", "21|b|800", "30|x|600"]);
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.texts("SELECT * FROM t ORDER BY id"), ["10|a|500", "21|b|400", "30|x|300"]);
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn everything_on_a_table_is_preserved() {
    let database = Database::new(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY);
         INSERT INTO parent VALUES (1), (2);
         CREATE TABLE t (a TEXT NOT NULL COLLATE NOCASE, b INTEGER DEFAULT 5 CHECK (b > 0), p INTEGER REFERENCES parent (id) ON DELETE CASCADE,
            upa TEXT, upb INTEGER, twice AS (b * 2) STORED, PRIMARY KEY (a, b), FOREIGN KEY (upa, upb) REFERENCES t (a, b)) WITHOUT ROWID;
         CREATE INDEX part ON t (p) WHERE p > 1;
         CREATE INDEX expr ON t (lower(a));
         CREATE VIEW seen AS SELECT a FROM t;
         CREATE TABLE log (what TEXT);
         CREATE TRIGGER tell AFTER INSERT ON t BEGIN INSERT INTO log VALUES (NEW.a); END;
         INSERT INTO t (a, b, p) VALUES ('x', 1, 1), ('y', 2, 2), ('Y', 3, NULL);
         CREATE TABLE child (a TEXT, b INTEGER, FOREIGN KEY (a, b) REFERENCES t (a, b));
         INSERT INTO child VALUES ('x', 1);",
    );
    let change = migration(
        "0001",
        None,
        "[[step]]\nop = \"add_check\"\ntable = \"t\"\nname = \"small\"\nexpr = \"b < 1000\"\n",
    );
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&change, None));
    let sql = database.texts("SELECT sql FROM sqlite_schema WHERE name = 't'").remove(0);
    for part in [
        "COLLATE NOCASE",
        "DEFAULT 5",
        "CHECK (b > 0)",
        "ON DELETE CASCADE",
        "STORED",
        "WITHOUT ROWID",
        "CHECK (b < 1000)",
    ] {
        assert!(sql.contains(part), "{part}: {sql}");
    }
    assert_eq!(database.texts("SELECT a, b, twice FROM t ORDER BY a, b"), ["x|1|2", "y|2|4", "Y|3|6"]);
    let client = database.client();
    client.execute("INSERT INTO t (a, b) VALUES ('z', 9)", []).unwrap();
    assert_eq!(
        database.texts("SELECT what FROM log"),
        ["x", "y", "Y", "z"],
        "triggers fire, and only for clients"
    );
    assert!(client.execute("DELETE FROM t WHERE a = 'x'", []).is_err(), "a child points to it");
    assert!(client.execute("INSERT INTO t (a, b) VALUES ('big', 5000)", []).is_err());
    client.execute("DELETE FROM parent WHERE id = 2", []).unwrap();
    assert_eq!(
        database.texts("SELECT a FROM seen ORDER BY a"),
        ["x", "Y", "z"],
        "the parent's deletion cascades"
    );
    assert_eq!(database.texts("PRAGMA foreign_key_check"), Vec::<String>::new());
    let plain = "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND tbl_name = 't' AND name LIKE '%\\_\\_c1' ESCAPE '\\'";
    assert_eq!(database.texts(plain), ["2"]);
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.texts("SELECT a, b FROM t ORDER BY a, b"), ["x|1", "Y|3", "z|9"]);
    // By the same names in the next migration.
    let again = migration("0002", None, "[[step]]\nop = \"drop_index\"\ntable = \"t\"\nname = \"part\"\n");
    done(migrator.apply(&again, None));
}

#[test]
fn table_without_a_key_is_copied_again_after_a_vacuum() {
    let database = Database::new(
        "CREATE TABLE t (a TEXT, b TEXT); CREATE TABLE u (a TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO t SELECT i, i * 2 FROM n;
         INSERT INTO u SELECT a FROM t; DELETE FROM t WHERE rowid % 3 = 0;",
    );
    let body = |table: &str| {
        format!("[[step]]\nop = \"alter_column\"\ntable = \"{table}\"\ncolumn = \"a\"\nnullable = false\n")
    };
    let watch =
        crate::support::At::new("backfill.after", || database.client().execute_batch("VACUUM").unwrap());
    let mut migrator = migrator(database.engine(), &watch);
    done(migrator.apply(&migration("0001", None, &(body("t") + &body("u"))), None));
    assert_eq!(database.texts("SELECT count(*), sum(a), sum(b) FROM t"), ["667|333667|667334"]);
    assert_eq!(database.texts("SELECT count(*) FROM u"), ["1000"]);
    assert!(database.client().execute("INSERT INTO t (b) VALUES (1)", []).is_err());
}

// The worked example.
#[test]
fn contact_example_runs_forth_back_and_to_its_contract() {
    let database = Database::new(USERS);
    let contact = "app_version = \"1.5.0\"\nstep = [
 { op = \"add_column\", table = \"users\", column = { name = \"phone\", type = \"varchar(20)\", nullable = false, default = { value = \"\" } } },
 { op = \"rename_column\", table = \"users\", from = \"email\", to = \"email_address\" },
 { op = \"add_index\", table = \"users\", name = \"idx_email\", columns = [\"email_address\"], unique = false, online = true },
 { op = \"drop_column\", table = \"users\", column = \"old_login\", grace = \"7d\" },
]\n";
    let contact = migration("0001_contact", None, contact);
    let mut migrator = migrator(database.engine(), &Unwatched);
    let before = database.schema();
    done(migrator.apply(&contact, None));
    assert_eq!(database.texts("SELECT * FROM users WHERE id = 1"), ["1|a@x|A|"]);
    assert_eq!(
        database.texts("SELECT id, email, name, old_login FROM users_v0 WHERE id = 1"),
        ["1|a@x|A|la"]
    );
    migrator.rollback("0001_contact", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.schema(), before);
    done(migrator.apply(&contact, None));
    migrator.set_ticks("0001_contact", &Ticks { passed_ms: 7 * 86_400_000, seen: None }).unwrap();
    done(migrator.complete("0001_contact", &everywhere("1.5.0"), 0));
    assert_eq!(database.artefacts(), Vec::<String>::new());
    let names = database.texts("SELECT name FROM pragma_table_info('users')");
    assert_eq!(names, ["id", "email_address", "name", "phone"]);
}

#[test]
fn each_version_sees_its_own_shape_while_several_migrations_are_open() {
    let database = Database::new(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT); CREATE TABLE orders (id INTEGER PRIMARY KEY, amount INTEGER); \
         INSERT INTO users VALUES (1, 'a'); INSERT INTO orders VALUES (1, 250)",
    );
    let contact = "app_version = \"1.5.0\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"email\"\nto = \"address\"\n";
    let money = "app_version = \"1.6.0\"\n[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\ntype = \"double\"\nup = \"amount / 100.0\"\ndown = \"CAST(round(amount * 100) AS INTEGER)\"\n";
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, contact), None));
    done(migrator.apply(&migration("0002", Some("0001"), money), None));
    for (version, sql) in [
        ("0", "UPDATE orders SET amount = amount + 50; UPDATE users SET email = 'b'"),
        ("1_5_0", "UPDATE orders SET amount = amount + 5; UPDATE users SET address = address || 'c'"),
    ] {
        let client = database.client();
        for statement in migrator.engine().prelude(version).unwrap() {
            client.execute_batch(&statement).unwrap();
        }
        client.execute_batch(sql).unwrap();
    }
    assert_eq!(database.texts("SELECT amount FROM orders"), ["3.05"]);
    assert_eq!(database.texts("SELECT email, amount FROM users_v0, orders_v0"), ["bc|305"]);
    migrator.rollback("0002", Loss::Refuse).unwrap();
    assert_eq!(database.texts("SELECT email, amount FROM users_v0, orders"), ["bc|305"]);
    done(migrator.apply(&migration("0002", Some("0001"), money), None));
    done(migrator.complete("0001", &everywhere("1.6.0"), 0));
    done(migrator.complete("0002", &everywhere("1.6.0"), 0));
    assert_eq!(database.artefacts(), Vec::<String>::new());
    assert_eq!(database.texts("SELECT name FROM sqlite_schema WHERE type = 'view'"), Vec::<String>::new());
}
