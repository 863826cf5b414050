//! The cases of the contract (X) and the regressions that other tools' histories teach, on PostgreSQL.

use std::{sync::Mutex, time::Duration};

use cutover_migrate::{
    Error,
    engine::{Engine, Loss, RowChunk, RowFunction, Unwatched, Watch},
    grace::{Floor, Ticks},
    postgres::PostgresEngine,
    run::{Applied, Migrator, no_functions},
    state::{Phase, sql::Value},
};

use super::{
    harness::{chain, complete, rollback, schema_only, settings, with_migrator},
    server::{Database, have_server},
};
use crate::{
    oracle,
    support::{Recorder, done, migration, orders_at_the_swap},
};

const USERS: &str = "CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL, name text, age int); \
     INSERT INTO users SELECT g, 'u' || g || '@example.org', 'n' || g, g % 90 FROM generate_series(1, 2000) g; ANALYZE users;";

fn apply(database: &Database<'_>, id: &str, after: Option<&str>, steps: &str) -> Result<Applied, Error> {
    let migration = migration(id, after, steps);
    with_migrator(database, &Unwatched, |migrator| migrator.apply(&migration, None))
}

const ADD_PHONE: &str = r#"
[[step]]
op = "add_column"
table = "users"
column = { name = "phone", type = "varchar(20)", nullable = false, default = { value = "" } }
"#;

// X2, X3, X12.
#[test]
fn a_second_step_that_fails_undoes_the_first_or_leaves_it_to_the_operator() {
    if !have_server() {
        return;
    }
    let steps = r#"
[[step]]
op = "add_column"
table = "users"
column = { name = "score", type = "integer", nullable = false }
up = "coalesce(age, 0) * 2"
[[step]]
op = "add_unique"
table = "users"
name = "users_name"
columns = ["name"]
"#;
    let _keeps_the_server = Database::new();
    for (rollback_mode, stays) in [("automatic", false), ("manual", true)] {
        let database = Database::with(USERS);
        let before = schema_only(&database);
        // Duplicates appear after the scan that comes first: as if a client had written them meanwhile.
        struct Spoil<'d>(&'d Database<'static>, Mutex<bool>);
        impl Watch for Spoil<'_> {
            fn phase(&self, phase: Phase) {
                if phase == Phase::Backfill && !std::mem::replace(&mut self.1.lock().expect("lock"), true) {
                    self.0.run("UPDATE users SET name = 'n1' WHERE id = 2");
                }
            }
        }
        let watch = Spoil(&database, Mutex::new(false));
        let plan = migration("0001_score", None, &format!("rollback = \"{rollback_mode}\"\n{steps}"));
        let error = with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None))
            .map(drop)
            .expect_err("duplicates");
        assert!(
            chain(&error).contains("users_name") || chain(&error).contains("duplicated"),
            "{}",
            chain(&error)
        );
        assert_eq!(database.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid"), "0");
        assert_eq!(database.value("SELECT count(*) FROM users"), "2000");
        if stays {
            assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
            assert_eq!(database.value("SELECT count(*) FROM users WHERE score IS NULL"), "0");
            rollback(&database, "0001_score").expect("rolled back");
        } else {
            assert!(matches!(error, Error::RolledBack { .. }), "{error:?}");
        }
        assert_eq!(schema_only(&database), before);
        assert_eq!(database.value("SELECT phase FROM cutover.migration"), "ROLLED_BACK");
    }
}

// X4, X6, X16, X17.
#[test]
fn additive_migrations_in_turn_are_instant_and_recorded() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let oid = database.value("SELECT pg_relation_filenode('users')");
    let recorder = Recorder::default();
    let first = migration("0001_phone", None, ADD_PHONE);
    let report = done(with_migrator(&database, &recorder, |migrator| migrator.apply(&first, None)));
    assert_eq!(report.version, 1);
    assert_eq!(*recorder.phases.lock().expect("lock"), [Phase::AtomicSwap, Phase::Cleanup]);
    let second = r#"
[[step]]
op = "add_column"
table = "users"
column = { name = "city", type = "text" }
"#;
    assert_eq!(done(apply(&database, "0002_city", Some("0001_phone"), second)).version, 2);
    assert_eq!(database.value("SELECT count(*) FROM users WHERE phone = '' AND city IS NULL"), "2000");
    assert_eq!(database.value("SELECT pg_relation_filenode('users')"), oid, "nothing was rewritten");
    let again =
        with_migrator(&database, &Unwatched, |migrator| migrator.apply(&first, None)).expect("a no-op");
    assert!(matches!(again, Applied::Already));
    let (status, history) = with_migrator(&database, &Unwatched, |migrator| {
        (migrator.status().expect("status"), migrator.history().expect("history"))
    });
    assert_eq!(status.version, 2);
    assert!(status.migrations.iter().all(|one| one.phase == Phase::Cleanup && one.author == "tester"));
    assert!(history.len() >= 4);
    assert_eq!(
        database.value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE '\\_cutover%'"),
        "0",
        "nothing is left behind"
    );
}

// X5.
#[test]
fn an_empty_migration_succeeds() {
    if !have_server() {
        return;
    }
    let database = Database::new();
    assert_eq!(done(apply(&database, "0001_nothing", None, "step = []\n")).version, 1);
}

// X7.
#[test]
fn a_not_null_column_with_a_volatile_default_is_filled_under_writers() {
    if !have_server() {
        return;
    }
    let database = Database::new();
    let connect = || {
        let engine = PostgresEngine::connect(&database.url()).expect("connected");
        let mut sql = engine.another().expect("connected");
        sql.execute("SET search_path = public; SET lock_timeout = '30s'", &[]).expect("set");
        sql
    };
    let mut sql = connect();
    oracle::create_table(&mut *sql, "users");
    let start = oracle::fill(&mut *sql, "users", 3000);
    database.run("ANALYZE users");
    let steps = r#"
[[step]]
op = "add_column"
table = "users"
column = { name = "token", type = "uuid", nullable = false, default = { postgres = "gen_random_uuid()" } }
"#;
    let writers =
        oracle::Writers::start(vec![connect(), connect()], "users", &start, 7, Duration::from_micros(300));
    writers.wait_for(50);
    let plan = migration("0001_token", None, steps);
    let report = done(with_migrator(&database, &Unwatched, |migrator| migrator.apply(&plan, None)));
    writers.wait_for(50);
    oracle::agree(&writers.stop(), &oracle::read(&mut *sql, "users"), "X7");
    // A hundred times what is planned for: a swap that scans or rewrites would be slower still on a table that is large.
    assert!(report.swap_hold_us < 5_000_000, "{report:?}");
    assert_eq!(
        database.value("SELECT count(*) = count(DISTINCT token) AND count(*) = count(token) FROM users"),
        "t"
    );
    assert_eq!(
        database.value(
            "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'token'"
        ),
        "t"
    );
    let error = rollback(&database, "0001_token").expect_err("somebody may know these tokens");
    assert!(chain(&error).contains("users.token"), "{}", chain(&error));
    with_migrator(&database, &Unwatched, |migrator| migrator.rollback("0001_token", Loss::Accept))
        .expect("rolled back");
    assert_eq!(
        database.value(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'token' AND NOT attisdropped"
        ),
        "0"
    );
}

// X8.
#[test]
fn each_version_sees_its_own_name_until_contract() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let steps = "app_version = \"2.0.0\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"email\"\nto = \"email_address\"\n\
        [[step]]\nop = \"rename_table\"\ntable = \"users\"\nto = \"people\"\n";
    done(apply(&database, "0001_names", None, steps));
    database.run("SET search_path = app_v0, public; INSERT INTO users (id, email) VALUES (5001, 'old') ON CONFLICT (id) DO UPDATE SET email = excluded.email; UPDATE users SET email = 'older' WHERE id = 1");
    database.run(
        "SET search_path = app_v2_0_0, public; INSERT INTO people (id, email_address) VALUES (5002, 'new')",
    );
    assert_eq!(
        database.value(
            "SELECT string_agg(email_address, ' ' ORDER BY id) FROM people WHERE id IN (1, 5001, 5002)"
        ),
        "older old new"
    );
    assert_eq!(
        database
            .value("SELECT string_agg(email, ' ' ORDER BY id) FROM app_v0.users WHERE id IN (1, 5001, 5002)"),
        "older old new"
    );
    complete(&database, "0001_names").expect("completed");
    assert_eq!(
        database.value("SELECT to_regclass('app_v0.users') IS NULL AND to_regclass('public.users') IS NULL"),
        "t"
    );
}

// X9.
#[test]
fn rows_that_stay_different_stop_the_swap() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"name\"\ntype = \"varchar(50)\"\nup = \"upper(name)\"\n";
    /// Spoils the shadow table for good: every row that is written to it is altered.
    struct Spoil<'d>(&'d Database<'static>);
    impl Watch for Spoil<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::ConsistencyCheck {
                let shadow = self.0.value("SELECT format('%I.users', nspname) FROM pg_namespace WHERE nspname LIKE '\\_cutover\\_new%'");
                self.0.run(&format!(
                    "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.age := 1000; RETURN NEW; END $$; \
                     CREATE TRIGGER spoil BEFORE INSERT ON {shadow} FOR EACH ROW EXECUTE FUNCTION spoil(); ALTER TABLE {shadow} ENABLE ALWAYS TRIGGER spoil; \
                     UPDATE {shadow} SET age = 1000 WHERE id IN (7, 8)"
                ));
            }
        }
    }
    let plan = migration("0001_age", None, steps);
    let watch = Spoil(&database);
    let error = with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None))
        .map(drop)
        .expect_err("it differs");
    assert!(
        chain(&error).contains("2 difference(s)") && matches!(error, Error::RolledBack { .. }),
        "{}",
        chain(&error)
    );
    database.run("DROP FUNCTION spoil");
    assert_eq!(schema_only(&database), before);
}

// ghost_444_partial_copy_swapped, spirit_156_last_rows.
#[test]
fn rows_that_are_missing_in_the_copy_are_found_and_repaired() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    struct Spoil<'d>(&'d Database<'static>);
    impl Watch for Spoil<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::ConsistencyCheck {
                let shadow = self.0.value("SELECT format('%I.users', nspname) FROM pg_namespace WHERE nspname LIKE '\\_cutover\\_new%'");
                self.0.run(&format!("DELETE FROM {shadow} WHERE id > 1990; INSERT INTO {shadow} VALUES (5555, 'ghost'), (-5, 'ghost'); UPDATE {shadow} SET name = 'x' WHERE id = 1"));
            }
        }
    }
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n";
    let plan = migration("0001_age", None, steps);
    let watch = Spoil(&database);
    let report = done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    assert!(report.resynced >= 13, "{report:?}");
    assert_eq!(
        database.value("SELECT count(*) || ' ' || max(id) || ' ' || min(id) FROM users"),
        "2000 2000 1"
    );
    assert_eq!(database.value("SELECT name FROM users WHERE id = 1"), "n1");
}

// X11.
#[test]
fn a_dropped_column_is_hidden_restorable_and_goes_only_after_its_grace() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE users (id int PRIMARY KEY, email text, old_login text NOT NULL); INSERT INTO users VALUES (1, 'a', 'login')",
    );
    let before = schema_only(&database);
    let steps = "app_version = \"2.0.0\"\n[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"old_login\"\ngrace = \"7d\"\n";
    done(apply(&database, "0001_login", None, steps));
    assert_eq!(database.value("SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'app_v2_0_0.users'::regclass AND attnum > 0"), "id email");
    database.run(
        "INSERT INTO app_v2_0_0.users VALUES (2, 'b'); INSERT INTO app_v0.users VALUES (3, 'c', 'three')",
    );
    assert_eq!(
        database.value("SELECT string_agg(coalesce(old_login, '-'), ' ' ORDER BY id) FROM app_v0.users"),
        "login - three"
    );
    let early = complete(&database, "0001_login").map(drop).expect_err("too early");
    assert!(chain(&early).contains("of 168 h of grace"), "{}", chain(&early));
    // The old column was NOT NULL, and one row has no value: that has to be said.
    let locked = rollback(&database, "0001_login").expect_err("a loss");
    assert!(chain(&locked).contains("have no `old_login`"), "{}", chain(&locked));
    database.run("UPDATE app_v0.users SET old_login = 'two' WHERE id = 2");
    rollback(&database, "0001_login").expect("restored");
    assert_eq!(schema_only(&database), before);
    assert_eq!(database.value("SELECT string_agg(old_login, ' ' ORDER BY id) FROM users"), "login two three");
    // It goes when its time is over, no node needs it, and nothing uses it.
    done(apply(&database, "0001_login", None, steps));
    let hour = 3_600_000;
    let complete = |passed_ms: u64, lowest: &str| {
        let floor = Floor { lowest: lowest.parse().expect("a version"), rollback_open: false };
        with_migrator(&database, &Unwatched, |migrator| {
            migrator.set_ticks("0001_login", &Ticks { passed_ms, seen: None }).expect("set");
            migrator.complete("0001_login", &floor, 0).map(drop).map_err(|error| chain(&error))
        })
    };
    let early = complete(168 * hour - 1, "2.0.0").expect_err("too early");
    assert!(early.contains("167 of 168 h of grace"), "{early}");
    let needed = complete(168 * hour, "1.9.0").expect_err("a node needs it");
    assert!(needed.contains("version 1.9.0 is still running"), "{needed}");
    database.run("CREATE VIEW logins AS SELECT old_login FROM app_v0.users");
    let used = complete(168 * hour, "2.0.0").expect_err("it is in use");
    assert!(used.contains("logins"), "{used}");
    database.run("DROP VIEW logins");
    // The rows that the old version wrote above are a use as well, once.
    if let Err(used) = complete(168 * hour, "2.0.0") {
        assert!(used.contains("in the old shape"), "{used}");
        complete(168 * hour, "2.0.0").expect("completed");
    }
    assert_eq!(
        database.value("SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0 AND NOT attisdropped"),
        "id email"
    );
}

// X11.
#[test]
fn a_dropped_table_is_a_tombstone_until_contract() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"drop_table\"\ntable = \"users\"\n";
    done(apply(&database, "0001_gone", None, steps));
    assert_eq!(database.value("SELECT to_regclass('public.users') IS NULL"), "t");
    database.run("SET search_path = app_v0, public; UPDATE users SET name = 'still' WHERE id = 1");
    rollback(&database, "0001_gone").expect("restored");
    assert_eq!(schema_only(&database), before);
    assert_eq!(database.value("SELECT name FROM users WHERE id = 1"), "still");
    done(apply(&database, "0001_gone", None, steps));
    complete(&database, "0001_gone").expect("completed");
    assert_eq!(database.value("SELECT count(*) FROM pg_class WHERE relname = 'users'"), "0");
}

// X12.
#[test]
fn indexes_are_built_online_or_blocking_as_asked() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let steps = "[[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"by_name\"\ncolumns = [\"name\"]\n\
        [[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"by_age\"\ncolumns = [\"age\"]\nonline = false\n";
    let plan = with_migrator(&database, &Unwatched, |migrator| {
        migrator.plan(&migration("0001_indexes", None, steps))
    })
    .expect("a plan");
    assert_eq!(plan.online_indexes, ["by_name"]);
    done(apply(&database, "0001_indexes", None, steps));
    assert_eq!(database.value("SELECT string_agg(c.relname, ' ' ORDER BY c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'users'::regclass AND i.indisvalid"), "by_age by_name users_pkey");
    complete(&database, "0001_indexes").expect("completed");
    let duplicates =
        "[[step]]\nop = \"add_unique\"\ntable = \"users\"\nname = \"one_age\"\ncolumns = [\"age\"]\n";
    let error =
        apply(&database, "0002_unique", Some("0001_indexes"), duplicates).map(drop).expect_err("duplicates");
    assert!(chain(&error).contains("one_age"), "{}", chain(&error));
    assert_eq!(database.value("SELECT count(*) FROM pg_class WHERE relname = 'one_age'"), "0");
}

/// Upper case; or refuses.
struct Shout(bool);

impl RowFunction for Shout {
    fn name(&self) -> &str {
        "shout"
    }

    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error> {
        if self.0 && rows.rows.iter().any(|row| row[0] == Value::Integer(1500)) {
            return Err(Error::Custom { name: "shout".to_owned(), says: "it returned false".to_owned() });
        }
        let upper = |value: &Value| match value {
            Value::Text(text) => Value::Text(text.to_uppercase()),
            other => other.clone(),
        };
        Ok(RowChunk {
            columns: vec!["name".to_owned()],
            rows: rows.rows.iter().map(|row| vec![upper(&row[1])]).collect(),
        })
    }
}

// X13.
#[test]
fn a_custom_step_that_fails_leaves_none_of_its_writes() {
    if !have_server() {
        return;
    }
    let steps = "[[step]]\nop = \"transform\"\ntable = \"users\"\ntransform = \"shout\"\nread = [\"id\", \"name\"]\nwrite = [\"name\"]\ncheck = \"name = upper(name)\"\n";
    let _keeps_the_server = Database::new();
    for fails in [true, false] {
        let database = Database::with(USERS);
        let engine = PostgresEngine::connect(&database.url()).expect("connected");
        let make = |_: &cutover_migrate::ir::Op| Ok(Box::new(Shout(fails)) as Box<dyn RowFunction>);
        let mut migrator = Migrator::new(Box::new(engine), settings(), &Unwatched, &make);
        let applied = migrator.apply(&migration("0001_shout", None, steps), None);
        if fails {
            let error = applied.map(drop).expect_err("it says no");
            assert!(chain(&error).contains("returned false"), "{}", chain(&error));
            assert_eq!(
                database.value("SELECT count(*) FROM users WHERE name <> lower(name)"),
                "0",
                "its writes are undone"
            );
        } else {
            done(applied);
            assert_eq!(database.value("SELECT count(*) FROM users WHERE name = upper(name)"), "2000");
            database.run("UPDATE users SET name = 'kept' WHERE id = 3");
            rollback(&database, "0001_shout").expect("rolled back");
            assert_eq!(
                database.value("SELECT string_agg(name, ' ' ORDER BY id) FROM users WHERE id < 5"),
                "n1 n2 kept n4"
            );
        }
    }
}

// X13.
#[test]
fn a_step_in_sql_is_chunked_checked_and_undone() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let steps = "[[step]]\nop = \"sql\"\ntable = \"users\"\nset = { name = \"'old ' || name\" }\nwhere = \"age >= 65 AND name NOT LIKE 'old %'\"\ncheck = \"age < 65 OR name LIKE 'old %'\"\n";
    done(apply(&database, "0001_old", None, steps));
    assert_eq!(database.value("SELECT count(*) = (SELECT count(*) FROM users WHERE age >= 65) FROM users WHERE name LIKE 'old %'"), "t");
    rollback(&database, "0001_old").expect("rolled back");
    assert_eq!(database.value("SELECT count(*) FROM users WHERE name LIKE 'old %' OR name IS NULL"), "0");
}

// X15.
#[test]
fn a_plan_reads_only() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let before = database.dump();
    let steps = format!(
        "{ADD_PHONE}[[step]]\nop = \"drop_column\"\ntable = \"users\"\ncolumn = \"age\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"name\"\nto = \"full_name\"\n"
    );
    let plan =
        with_migrator(&database, &Unwatched, |migrator| migrator.plan(&migration("0001_many", None, &steps)))
            .expect("a plan");
    assert_eq!(plan.preview.added, ["column users.phone varchar(20)"]);
    assert_eq!(plan.preview.removed, ["column users.age"]);
    assert_eq!(plan.preview.modified.len(), 1);
    let clean =
        |dump: String| dump.lines().filter(|line| !line.starts_with('\\')).collect::<Vec<_>>().join("\n");
    assert_eq!(clean(database.dump()), clean(before));
}

#[test]
fn not_null_checks_and_foreign_keys_are_added_without_a_scan_under_a_lock() {
    if !have_server() {
        return;
    }
    let database = Database::with(&format!(
        "{USERS} CREATE TABLE teams (id int PRIMARY KEY); INSERT INTO teams SELECT generate_series(0, 90);"
    ));
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"name\"\nnullable = false\n\
        [[step]]\nop = \"add_check\"\ntable = \"users\"\nname = \"grown\"\nexpr = \"age >= 0\"\n\
        [[step]]\nop = \"add_foreign_key\"\ntable = \"users\"\nname = \"team\"\ncolumns = [\"age\"]\nreferences = { table = \"teams\", columns = [\"id\"] }\n";
    done(apply(&database, "0001_strict", None, steps));
    assert_eq!(database.value("SELECT string_agg(conname || convalidated, ' ' ORDER BY conname) FROM pg_constraint WHERE conrelid = 'users'::regclass AND contype <> 'p'"), "growntrue teamtrue");
    assert_eq!(
        database.value(
            "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'name'"
        ),
        "t"
    );
    rollback(&database, "0001_strict").expect("rolled back");
    assert_eq!(schema_only(&database), before);
    database.run("UPDATE users SET name = NULL WHERE id = 9");
    let error = apply(&database, "0001_strict", None, steps).map(drop).expect_err("a NULL");
    assert!(matches!(&error, Error::RolledBack { .. } | Error::Rejected { .. }), "{error:?}");
    assert_eq!(schema_only(&database), before);
}

// ghost_519_pk_update, vitess_8390_swap_too_early.
#[test]
fn the_key_becomes_wider_while_keys_change() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE events (id serial PRIMARY KEY, at timestamptz DEFAULT now(), what text); INSERT INTO events (what) SELECT 'e' || g FROM generate_series(1, 3000) g; ANALYZE events",
    );
    struct Keys<'d>(&'d Database<'static>, Mutex<i32>);
    impl Watch for Keys<'_> {
        fn point(&self, name: &str) {
            if name.ends_with(".after") {
                let mut at = self.1.lock().expect("lock");
                *at += 1;
                let (n, m) = (*at, *at + 100);
                // Two rows exchange their keys in one statement that looks at both, and one goes far away.
                self.0.run(&format!("UPDATE events SET id = -id WHERE id IN ({n}, {m}); UPDATE events SET id = CASE id WHEN -{n} THEN {m} ELSE {n} END WHERE id IN (-{n}, -{m}); UPDATE events SET id = id + 100000 WHERE id = {}", n + 500));
            }
        }
    }
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"events\"\ncolumn = \"id\"\ntype = \"bigint\"\n";
    let plan = migration("0001_id", None, steps);
    let watch = Keys(&database, Mutex::new(0));
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    assert_eq!(database.value("SELECT count(*) || ' ' || count(DISTINCT what) FROM events"), "3000 3000");
    assert_eq!(database.value("SELECT what FROM events WHERE id = 1"), "e101");
    database.run("INSERT INTO events (id, what) VALUES (5000000000, 'far')");
    assert_eq!(database.value("INSERT INTO events (what) VALUES ('next') RETURNING id"), "3001");
    let error = rollback(&database, "0001_id").expect_err("it does not fit");
    assert!(chain(&error).contains("5000000000"), "{}", chain(&error));
    with_migrator(&database, &Unwatched, |migrator| migrator.rollback("0001_id", Loss::Accept))
        .expect("accepted");
    assert_eq!(database.value("SELECT count(*) || ' ' || pg_typeof(max(id)) FROM events"), "3001 integer");
}

// copy_resurrects_deleted_row.
#[test]
fn rows_that_a_client_deletes_or_moves_while_they_are_copied_do_not_come_back() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    struct Open<'d>(&'d Database<'static>, Mutex<Option<postgres::Client>>);
    impl Watch for Open<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::Backfill {
                let mut client = self.0.client();
                client
                    .batch_execute("BEGIN; DELETE FROM users WHERE id IN (1, 2); UPDATE users SET id = 9003 WHERE id = 3")
                    .expect("begun");
                *self.1.lock().expect("lock") = Some(client);
            }
        }
        fn point(&self, name: &str) {
            // They were copied and verified as they had been: the client has not ended.
            if name == "swap.before"
                && let Some(mut client) = self.1.lock().expect("lock").take()
            {
                client.batch_execute("COMMIT").expect("committed");
            }
        }
    }
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n";
    let watch = Open(&database, Mutex::new(None));
    let plan = migration("0001_age", None, steps);
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    assert_eq!(database.value("SELECT count(*) FROM users"), "1998");
    assert_eq!(
        database.value(
            "SELECT string_agg(id || name, ' ' ORDER BY id) FROM users WHERE id IN (1, 2, 3, 4, 9003)"
        ),
        "4n4 9003n3"
    );
}

// snapshot_delete_misses_copy, nested_trigger_stale_copy.
#[test]
fn old_snapshots_and_nested_triggers_leave_no_stale_rows() {
    if !have_server() {
        return;
    }
    let database = Database::with(&format!(
        "{USERS} CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF pg_trigger_depth() = 1 THEN UPDATE users SET name = name || '!' WHERE id = NEW.id; END IF; RETURN NULL; END $$; \
         CREATE TRIGGER again AFTER UPDATE OF age ON users FOR EACH ROW EXECUTE FUNCTION again();"
    ));
    struct Old<'d>(&'d Database<'static>, Mutex<Option<postgres::Client>>);
    impl Watch for Old<'_> {
        fn phase(&self, phase: Phase) {
            match phase {
                // A snapshot from after the triggers and before the copy.
                Phase::Backfill => {
                    let mut client = self.0.client();
                    client
                        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM teams")
                        .expect("begun");
                    *self.1.lock().expect("lock") = Some(client);
                }
                Phase::ConsistencyCheck => {
                    self.0.run("UPDATE users SET age = 7 WHERE id = 20");
                }
                _ => {}
            }
        }
        fn point(&self, name: &str) {
            if name == "index.before"
                && let Some(mut client) = self.1.lock().expect("lock").take()
            {
                // The rows were copied meanwhile: this snapshot sees none of that.
                client.batch_execute("DELETE FROM users WHERE id IN (1, 2); UPDATE users SET id = 9003 WHERE id = 3; UPDATE users SET age = 8 WHERE id = 4; COMMIT").expect("done");
            }
        }
    }
    database.run("CREATE TABLE teams (id int)");
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n[[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"by_name\"\ncolumns = [\"name\"]\n";
    let watch = Old(&database, Mutex::new(None));
    let plan = migration("0001_age", None, steps);
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    assert_eq!(database.value("SELECT string_agg(id || name || age, ' ' ORDER BY id) FROM users WHERE id IN (1, 2, 3, 4, 20, 9003)"), "4n4!8 20n20!7 9003n33");
}

// ptosc_467_both_tables_dropped, ghost_653_unsound_swap.
#[test]
fn a_truncated_table_stays_empty_and_there() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    struct Truncate<'d>(&'d Database<'static>);
    impl Watch for Truncate<'_> {
        fn point(&self, name: &str) {
            if name == "index.before" || name == "swap.before" {
                self.0.run("TRUNCATE users; INSERT INTO users VALUES (1, 'a', 'b', 3)");
            }
        }
    }
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n[[step]]\nop = \"add_index\"\ntable = \"users\"\nname = \"by_name\"\ncolumns = [\"name\"]\n";
    let watch = Truncate(&database);
    let plan = migration("0001_age", None, steps);
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    assert_eq!(database.value("SELECT count(*) FROM users"), "1");
    database.run("TRUNCATE users; INSERT INTO users VALUES (2, 'a', 'b', 3), (3, 'a', 'b', 4)");
    rollback(&database, "0001_age").expect("rolled back");
    assert_eq!(database.value("SELECT count(*) FROM users"), "2");
}

// ghost_1636_unique_drops_rows, ptosc_116_153_1151_unique_loss.
#[test]
fn a_new_unique_constraint_never_swallows_rows() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n[[step]]\nop = \"add_unique\"\ntable = \"users\"\nname = \"one_email\"\ncolumns = [\"email\"]\n";
    struct Spoil<'d>(&'d Database<'static>);
    impl Watch for Spoil<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::ConsistencyCheck {
                self.0.run("INSERT INTO users VALUES (7001, 'u1@example.org', 'twin', 1)");
            }
        }
    }
    let watch = Spoil(&database);
    let plan = migration("0001_email", None, steps);
    let error = with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None))
        .map(drop)
        .expect_err("a twin");
    assert!(chain(&error).contains("7001"), "{}", chain(&error));
    assert_eq!(database.value("SELECT count(*) FROM users"), "2001");
    database.run("DELETE FROM users WHERE id = 7001");
    done(apply(&database, "0001_email", None, steps));
    assert_eq!(
        database.value("SELECT count(*) FROM pg_constraint WHERE conname = 'one_email' AND contype = 'u'"),
        "1"
    );
}

// schema-2.
#[test]
fn clients_do_not_queue_behind_our_ddl() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let mut blocker = database.client();
    blocker.batch_execute("BEGIN; SELECT count(*) FROM users").expect("a long reader");
    std::thread::scope(|scope| {
        let migrating = scope.spawn(|| done(apply(&database, "0001_phone", None, ADD_PHONE)));
        // While the reader lasts, no statement of any client may wait long for our lock: 1 s is ten times what is allowed, and
        // would fail at once if we queued.
        let mut client = database.client();
        client.batch_execute("SET lock_timeout = '1s'").expect("set");
        for id in 1..=60 {
            client
                .batch_execute(&format!("UPDATE users SET age = age + 1 WHERE id = {id}"))
                .expect("not blocked");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!migrating.is_finished(), "it waits for the reader");
        blocker.batch_execute("COMMIT").expect("ended");
        migrating.join().expect("applied");
    });
}

// schema-3.
#[test]
fn two_migrators_exclude_each_other_and_an_edited_file_is_refused() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\n";
    struct Second<'d>(&'d Database<'static>, Mutex<Option<String>>, String);
    impl Watch for Second<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::Backfill {
                let engine = PostgresEngine::connect(&self.0.url()).expect("connected");
                let mut migrator = Migrator::new(Box::new(engine), settings(), &Unwatched, &no_functions);
                let error =
                    migrator.apply(&migration("0001_age", None, &self.2), None).map(drop).expect_err("two");
                *self.1.lock().expect("lock") = Some(chain(&error));
            }
        }
    }
    let watch = Second(&database, Mutex::new(None), steps.to_owned());
    let plan = migration("0001_age", None, steps);
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    let said = watch.1.lock().expect("lock").clone().expect("it was tried");
    assert!(said.contains("is migrating this database"), "{said}");
    let edited =
        apply(&database, "0001_age", None, &steps.replace("bigint", "text")).map(drop).expect_err("edited");
    assert!(matches!(edited, Error::Edited { .. }), "{edited:?}");
}

// X18.
#[test]
fn rehearsal_copies_the_database_beside_it_keeps_the_copy_on_failure_and_drops_it_on_success() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    let copies = "SELECT count(*) FROM pg_database WHERE datname = 'cutover_rehearsal_0001'";
    let unique = |columns: &str| {
        format!(
            "[[step]]\nop = \"add_unique\"\ntable = \"users\"\nname = \"one\"\ncolumns = [\"{columns}\"]\n"
        )
    };
    let rehearse = |steps: &str| {
        with_migrator(&database, &Unwatched, |migrator| {
            migrator.rehearse(&migration("0001", None, steps), None)
        })
    };
    assert!(rehearse(&unique("age")).is_err(), "ages are not unique");
    assert_eq!(database.value(copies), "1", "kept for people to look at");
    let steps = unique("email") + ADD_PHONE;
    with_migrator(&database, &Unwatched, |migrator| {
        assert!(matches!(
            migrator.demand_rehearsal(&migration("0001", None, &steps)),
            Err(Error::Refused(_))
        ));
    });
    rehearse(&steps).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.value(copies), "0", "dropped");
    assert_eq!(database.value("SELECT count(*) FROM pg_attribute WHERE attname = 'phone'"), "0", "untouched");
    with_migrator(&database, &Unwatched, |migrator| {
        let migration = migration("0001", None, &steps);
        migrator.demand_rehearsal(&migration).expect("rehearsed");
        done(migrator.apply(&migration, None));
    });
}

#[test]
fn writers_with_a_snapshot_from_before_an_exchange_fail_as_conflicts_instead_of_passing_rows_by() {
    if !have_server() {
        return;
    }
    let database = Database::with(USERS);
    database.run("CREATE TABLE teams (id int)");
    // Each time a row is written that only remembers its key, then a snapshot is taken that sees it where it is now.
    struct Old<'d>(&'d Database<'static>, Mutex<Option<postgres::Client>>, Mutex<Vec<String>>);
    impl Old<'_> {
        fn begin(&self, id: u32) {
            let repeatable = "BEGIN ISOLATION LEVEL REPEATABLE READ";
            self.0.run(&format!("{repeatable}; INSERT INTO users VALUES ({id}, 'e', 'old', 1); COMMIT"));
            let mut client = self.0.client();
            client.batch_execute(&format!("{repeatable}; SELECT count(*) FROM teams")).expect("begun");
            *self.1.lock().expect("lock") = Some(client);
        }
        fn update(&self, id: u32) {
            let mut client = self.1.lock().expect("lock").take().expect("begun");
            let outcome = client.execute(&format!("UPDATE users SET name = 'new' WHERE id = {id}"), &[]);
            let said = match outcome {
                Ok(rows) => format!("{rows} rows"),
                Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
            };
            self.2.lock().expect("lock").push(said);
        }
    }
    impl Watch for Old<'_> {
        fn phase(&self, phase: Phase) {
            if phase == Phase::AtomicSwap && self.1.lock().expect("lock").is_none() {
                self.begin(5001);
            }
        }
        fn point(&self, name: &str) {
            match name {
                "swap.after" => self.update(5001),
                "undo.before" => self.begin(5002),
                "undo.after" => self.update(5002),
                _ => {}
            }
        }
    }
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"users\"\ncolumn = \"age\"\ntype = \"bigint\"\ndown = \"age::int\"\n";
    let watch = Old(&database, Mutex::default(), Mutex::default());
    let plan = migration("0001_age", None, steps);
    done(with_migrator(&database, &watch, |migrator| migrator.apply(&plan, None)));
    with_migrator(&database, &watch, |migrator| migrator.rollback("0001_age", Loss::Refuse))
        .expect("rolled back");
    assert_eq!(*watch.2.lock().expect("lock"), ["40001", "40001"]);
    // Nobody else is refused, and nothing of it is left.
    database.run(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE users SET name = 'new' WHERE id IN (5001, 5002); COMMIT",
    );
    assert_eq!(database.value("SELECT count(*) FROM users WHERE name = 'new'"), "2");
    assert_eq!(database.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '~cutover%'"), "0");
}

#[test]
fn order_that_comes_when_the_swap_has_begun_is_obeyed_and_one_after_it_refused() {
    if !have_server() {
        return;
    }
    let score = r#"
[[step]]
op = "add_column"
table = "users"
column = { name = "score", type = "integer", nullable = false }
up = "coalesce(age, 0) * 2"
"#;
    let _keeps_the_server = Database::new();
    // The second is one transaction without phases: an order has only the swap to meet.
    for steps in [score, ADD_PHONE] {
        let database = Database::with(USERS);
        let url = database.url();
        let engine = || Box::new(PostgresEngine::connect(&url).expect("connected")) as Box<dyn Engine>;
        orders_at_the_swap(&engine, &migration("0001", None, steps));
    }
}
