//! Between the swap and its end: every version of the code works with whatever a table may have, and a way back gives back all
//! there was.

use std::sync::Mutex;

use cutover_migrate::{
    Error,
    engine::{Loss, RowFunction, Unwatched, Watch},
    ir::Op,
    postgres::PostgresEngine,
    run::{Applied, Migrator, no_functions},
    state::{
        Phase,
        sql::{Sql as _, Value},
    },
};

use super::{
    harness::{complete, rollback, schema_only, settings, with_migrator},
    server::{Database, have_server},
};
use crate::support::{At, ByRow, Idle, chain, done, migration};

fn try_apply(database: &Database<'_>, id: &str, after: Option<&str>, steps: &str) -> Result<Applied, Error> {
    let migration = migration(id, after, steps);
    with_migrator(database, &Unwatched, |migrator| migrator.apply(&migration, None))
}

fn apply(database: &Database<'_>, steps: &str) {
    done(try_apply(database, "0001_change", None, steps));
}

fn roll_back(database: &Database<'_>) {
    rollback(database, "0001_change").unwrap_or_else(|error| panic!("{}", chain(&error)));
}

/// A step that makes the table a copy: `amount` becomes a number with a fraction.
fn cents(table: &str) -> String {
    format!(
        "[[step]]\nop = \"alter_column\"\ntable = \"{table}\"\ncolumn = \"amount\"\ntype = \"decimal(18,2)\"\nup = \"amount / 100.0\"\ndown = \"cast(amount * 100 as bigint)\"\n"
    )
}

#[test]
fn each_version_sees_its_own_shape_while_several_migrations_are_open() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE users (id int PRIMARY KEY, email text); CREATE TABLE orders (id int PRIMARY KEY, amount bigint); \
         INSERT INTO users VALUES (1, 'a'); INSERT INTO orders VALUES (1, 250)",
    );
    let contact = "app_version = \"1.5.0\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"email\"\nto = \"address\"\n";
    let money = format!("app_version = \"1.6.0\"\n{}", cents("orders"));
    done(try_apply(&database, "0001_contact", None, contact));
    done(try_apply(&database, "0002_money", Some("0001_contact"), &money));
    database.run("SET search_path = app_v0, public; UPDATE orders SET amount = amount + 50; UPDATE users SET email = 'b'");
    database.run("SET search_path = app_v1_5_0, public; UPDATE orders SET amount = amount + 5; UPDATE users SET address = address || 'c'");
    assert_eq!(database.value("SELECT amount FROM orders"), "3.05");
    assert_eq!(
        database.value("SET search_path = app_v0, public; SELECT email || ' ' || amount FROM users, orders"),
        "bc 305"
    );
    rollback(&database, "0002_money").expect("rolled back");
    assert_eq!(
        database.value("SET search_path = app_v0, public; SELECT email || ' ' || amount FROM users, orders"),
        "bc 305"
    );
    done(try_apply(&database, "0002_money", Some("0001_contact"), &money));
    complete(&database, "0001_contact").expect("completed");
    complete(&database, "0002_money").expect("completed");
    assert_eq!(
        database.value("SELECT string_agg(schemaname || '.' || viewname, ' ' ORDER BY schemaname, viewname) FROM pg_views WHERE schemaname LIKE 'app\\_v%'"),
        "app_v1_5_0.users app_v1_6_0.orders"
    );
    // What is left of a version that nobody runs is in no later migration's way.
    let again = "app_version = \"1.7.0\"\n[[step]]\nop = \"rename_column\"\ntable = \"users\"\nfrom = \"address\"\nto = \"mail\"\n";
    done(try_apply(&database, "0003_mail", Some("0002_money"), again));
    assert_eq!(
        database.value("SELECT string_agg(schemaname || '.' || viewname, ' ' ORDER BY schemaname, viewname) FROM pg_views WHERE schemaname LIKE 'app\\_v%'"),
        "app_v1_6_0.orders app_v1_6_0.users app_v1_7_0.users"
    );
}

#[test]
fn columns_of_any_type_may_change_or_go() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE DOMAIN code AS varchar(12) NOT NULL CHECK (value ~ '^[a-z]+$'); \
         CREATE TABLE things (id int PRIMARY KEY, name text, doc json, place point, marks json[], code code); \
         INSERT INTO things VALUES (1, 'one', '{\"a\": 1}', '(1,2)', '{1}', 'x'), (2, 'two', NULL, NULL, NULL, 'y')",
    );
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"things\"\ncolumn = \"doc\"\ntype = \"json\"\nup = \"doc::jsonb\"\ndown = \"doc::json\"\n\
        [[step]]\nop = \"drop_column\"\ntable = \"things\"\ncolumn = \"place\"\ngrace = \"1d\"\ndown = \"point(0, 0)\"\n\
        [[step]]\nop = \"drop_column\"\ntable = \"things\"\ncolumn = \"marks\"\ngrace = \"1d\"\n\
        [[step]]\nop = \"alter_column\"\ntable = \"things\"\ncolumn = \"code\"\ntype = \"varchar(30)\"\nup = \"upper(code)\"\ndown = \"lower(code)\"\n";
    apply(&database, steps);
    database.run(
        "UPDATE things SET name = 'eins' WHERE id = 1; UPDATE things SET doc = '[]', code = 'Z' WHERE id = 2; \
         INSERT INTO things (id, name, doc, code) VALUES (3, 'three', '[3]', 'C'); INSERT INTO things (id) VALUES (4)",
    );
    database.run("SET search_path = app_v0, public; UPDATE things SET place = '(7,8)' WHERE id = 1; INSERT INTO things (id, code) VALUES (5, 'five')");
    assert_eq!(
        database
            .value("SELECT string_agg(concat_ws(' ', id, name, doc, code), ', ' ORDER BY id) FROM things"),
        "1 eins {\"a\": 1} X, 2 two [] Z, 3 three [3] C, 4, 5 FIVE"
    );
    database.run("DELETE FROM things WHERE id = 4");
    roll_back(&database);
    assert_eq!(
        database.value(
            "SELECT string_agg(concat_ws(' ', id, name, doc, place, marks::text, code), ', ' ORDER BY id) FROM things"
        ),
        "1 eins {\"a\": 1} (7,8) {1} x, 2 two [] z, 3 three [3] (0,0) c, 5 (0,0) five"
    );
    assert_eq!(schema_only(&database), before);
}

#[test]
fn a_table_that_is_dropped_keeps_nobody_from_deleting_what_it_points_to() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE parents (id int PRIMARY KEY); \
         CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents, mother int REFERENCES parents ON DELETE CASCADE); \
         INSERT INTO parents VALUES (1), (2), (3); INSERT INTO children VALUES (1, 1, 1), (2, 2, 2), (3, 3, 2)",
    );
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"drop_table\"\ntable = \"children\"\ngrace = \"1d\"\n";
    apply(&database, steps);
    database.run("DELETE FROM parents WHERE id = 3");
    let lost = rollback(&database, "0001_change").expect_err("a row has lost what it points to");
    assert!(chain(&lost).contains("1 row(s) of `children`"), "{}", chain(&lost));
    database.run("DELETE FROM app_v0.children WHERE id = 3; DELETE FROM parents WHERE id = 1");
    database.run("DELETE FROM app_v0.children WHERE id = 1");
    roll_back(&database);
    assert_eq!(schema_only(&database), before);
    assert_eq!(database.value("SELECT string_agg(id::text, ' ') FROM children"), "2");
    // Who accepts the loss has the rows, and a foreign key that says nothing of them.
    database.run("INSERT INTO children VALUES (4, 2, NULL)");
    apply(&database, steps);
    database.run("DELETE FROM parents WHERE id = 2");
    with_migrator(&database, &Unwatched, |migrator| migrator.rollback("0001_change", Loss::Accept))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.value("SELECT string_agg(id::text, ' ') FROM children"), "4");
    assert_eq!(
        database.value("SELECT string_agg(conname, ' ') FROM pg_constraint WHERE conrelid = 'children'::regclass AND NOT convalidated"),
        "children_parent_fkey"
    );
}

#[test]
fn what_is_made_on_the_table_after_the_swap_is_named_by_the_way_back() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int PRIMARY KEY, amount bigint, name text); INSERT INTO orders VALUES (1, 100, 'a'); \
         CREATE VIEW names AS SELECT id, name FROM orders",
    );
    let before = schema_only(&database);
    apply(&database, &cents("orders"));
    database.run("CREATE VIEW sums AS SELECT sum(amount) FROM orders");
    let refused = rollback(&database, "0001_change").expect_err("a view would go stale");
    assert!(chain(&refused).contains("sums"), "{}", chain(&refused));
    assert_eq!(database.value("SELECT amount FROM orders"), "1.00", "nothing was taken back");
    database.run("DROP VIEW sums");
    roll_back(&database);
    database.run("INSERT INTO orders VALUES (2, 200, 'b')");
    assert_eq!(database.value("SELECT count(*) FROM names"), "2");
    assert_eq!(schema_only(&database), before);
}

#[test]
fn keys_are_compared_by_the_servers_own_operators_or_the_table_is_refused() {
    if !have_server() {
        return;
    }
    // A type whose order is not the server's: its operators lie in public, as those of extensions do.
    let database = Database::with(
        "CREATE TYPE tag AS (t text); \
         CREATE FUNCTION tag_cmp(tag, tag) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2)'; \
         CREATE FUNCTION tag_eq(tag, tag) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2) = 0'; \
         CREATE FUNCTION tag_lt(tag, tag) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2) < 0'; \
         CREATE FUNCTION tag_le(tag, tag) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2) <= 0'; \
         CREATE FUNCTION tag_gt(tag, tag) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2) > 0'; \
         CREATE FUNCTION tag_ge(tag, tag) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT btrecordcmp($1, $2) >= 0'; \
         CREATE OPERATOR = (LEFTARG = tag, RIGHTARG = tag, FUNCTION = tag_eq, COMMUTATOR = =); \
         CREATE OPERATOR < (LEFTARG = tag, RIGHTARG = tag, FUNCTION = tag_lt, COMMUTATOR = >); \
         CREATE OPERATOR <= (LEFTARG = tag, RIGHTARG = tag, FUNCTION = tag_le, COMMUTATOR = >=); \
         CREATE OPERATOR > (LEFTARG = tag, RIGHTARG = tag, FUNCTION = tag_gt, COMMUTATOR = <); \
         CREATE OPERATOR >= (LEFTARG = tag, RIGHTARG = tag, FUNCTION = tag_ge, COMMUTATOR = <=); \
         CREATE OPERATOR CLASS tag_ops DEFAULT FOR TYPE tag USING btree AS \
           OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 tag_cmp(tag, tag); \
         CREATE TABLE orders (id tag PRIMARY KEY, amount bigint)",
    );
    let refused = try_apply(&database, "0001_change", None, &cents("orders")).map(drop).expect_err("refused");
    assert!(chain(&refused).contains("operators"), "{}", chain(&refused));
    assert_eq!(
        database.value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE '\\_cutover%'"),
        "0",
        "nothing is begun"
    );
}

#[test]
fn a_new_column_made_from_a_generated_one_has_its_value_in_rows_that_clients_insert() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int PRIMARY KEY, net int, gross int GENERATED ALWAYS AS (net * 2) STORED); \
         INSERT INTO orders (id, net) SELECT g, g FROM generate_series(1, 900) g; ANALYZE orders",
    );
    let steps = "[[step]]\nop = \"add_column\"\ntable = \"orders\"\ncolumn = { name = \"total\", type = \"integer\" }\nup = \"gross + 1\"\n";
    let insert = At::new("backfill.after", || {
        database.run(
            "INSERT INTO orders (id, net) VALUES (-1, 50), (9000, 60); UPDATE orders SET net = 70 WHERE id = 1",
        )
    });
    let migration = migration("0001_change", None, steps);
    done(with_migrator(&database, &insert, |migrator| migrator.apply(&migration, None)));
    assert_eq!(
        database
            .value("SELECT string_agg(total::text, ' ' ORDER BY id) FROM orders WHERE id IN (-1, 2, 9000)"),
        "101 5 121"
    );
    assert_eq!(database.value("SELECT count(*) FROM orders WHERE total IS NULL"), "0");
}

#[test]
fn tables_that_are_all_published_are_migrated_and_deleted_from() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int PRIMARY KEY, amount bigint NOT NULL, name text); \
         INSERT INTO orders SELECT g, g, 'n' FROM generate_series(1, 2000) g; ANALYZE orders; \
         CREATE TABLE keyed (code text NOT NULL UNIQUE, amount bigint); ALTER TABLE keyed REPLICA IDENTITY FULL; \
         INSERT INTO keyed VALUES ('a', 1), ('b', 2); \
         CREATE PUBLICATION everything FOR ALL TABLES",
    );
    let before = schema_only(&database);
    let write = At::new("backfill.after", || {
        database.run(
            "UPDATE orders SET id = -id WHERE id IN (1, 1999); DELETE FROM orders WHERE id IN (2, 1998)",
        );
        database.run("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE keyed SET amount = 3 WHERE code = 'a'; DELETE FROM keyed WHERE code = 'b'; COMMIT")
    });
    let change = migration("0001_change", None, &(cents("orders") + &cents("keyed")));
    done(with_migrator(&database, &write, |migrator| migrator.apply(&change, None)));
    database.run("BEGIN ISOLATION LEVEL SERIALIZABLE; DELETE FROM orders WHERE id = 3; UPDATE keyed SET amount = 0.04; COMMIT");
    database.run("DELETE FROM orders WHERE id = 4");
    roll_back(&database);
    assert_eq!(database.value("SELECT count(*) || ' ' || min(id) FROM orders"), "1996 -1999");
    assert_eq!(database.value("SELECT string_agg(code || amount, ' ') FROM keyed"), "a4");
    assert_eq!(schema_only(&database), before);
    // Row functions keep a list of their own.
    let steps = "[[step]]\nop = \"transform\"\ntable = \"orders\"\ntransform = \"idle\"\nread = [\"name\"]\nwrite = [\"name\"]\n";
    let make = |_: &Op| Ok(Box::new(Idle) as Box<dyn RowFunction>);
    let write = At::new("backfill.after", || database.run("UPDATE orders SET name = 'mine' WHERE id = 5"));
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), settings(), &write, &make);
    done(migrator.apply(&migration("0001_change", None, steps), None));
    migrator.rollback("0001_change", Loss::Refuse).expect("rolled back");
    assert_eq!(schema_only(&database), before);
}

#[test]
fn many_rows_that_do_not_fit_the_old_shape_are_lost_when_that_is_accepted() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int PRIMARY KEY, amount int NOT NULL); INSERT INTO orders VALUES (1, 1), (2, 2)",
    );
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"id\"\ntype = \"bigint\"\n";
    apply(&database, steps);
    database.run("INSERT INTO orders SELECT 3000000000 + g, 0 FROM generate_series(1, 1001) g; UPDATE orders SET amount = 7 WHERE id = 1");
    let mut quick = settings();
    quick.policy.lock_patience_ms = 5_000;
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), quick, &Unwatched, &no_functions);
    assert!(matches!(migrator.rollback("0001_change", Loss::Refuse), Err(Error::Locked(_))));
    migrator.rollback("0001_change", Loss::Accept).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        database.value("SELECT string_agg(id || ' ' || amount, ', ' ORDER BY id) FROM orders"),
        "1 7, 2 2"
    );
    assert_eq!(schema_only(&database), before);
}

#[test]
fn rows_that_cannot_go_back_are_known_whatever_a_client_prints_its_keys_like() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE events (at timestamptz, x float8, span interval, amount bigint, PRIMARY KEY (at, x, span)); \
         INSERT INTO events VALUES ('2024-01-01 00:00:00Z', 1, '1 day', 1)",
    );
    database.run(&format!("ALTER DATABASE {} SET TimeZone = 'Asia/Kathmandu'", database.name));
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"events\"\ncolumn = \"amount\"\ntype = \"text\"\nup = \"amount::text\"\ndown = \"amount::bigint\"\n";
    apply(&database, steps);
    database.run(
        "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET extra_float_digits = 0; \
         INSERT INTO events VALUES ('2024-06-01 12:00:00Z', 0.1::float8 + 0.2::float8, '1 day 02:00:00', 'many')",
    );
    let lost = rollback(&database, "0001_change").expect_err("`many` is no number");
    assert!(chain(&lost).contains("cannot go back"), "{}", chain(&lost));
}

#[test]
fn what_a_change_in_place_takes_off_or_widens_is_there_again_after_a_rollback() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE rooms (id int PRIMARY KEY, during int4range, name varchar(10), CONSTRAINT one_at_a_time EXCLUDE USING gist (during WITH &&)); \
         INSERT INTO rooms VALUES (1, '[1,2)', 'short')",
    );
    let before = schema_only(&database);
    let widen =
        "[[step]]\nop = \"alter_column\"\ntable = \"rooms\"\ncolumn = \"name\"\ntype = \"varchar(20)\"\n";
    apply(&database, widen);
    database.run("INSERT INTO rooms VALUES (2, '[5,6)', 'far too long')");
    let lost = rollback(&database, "0001_change").expect_err("a value is too long");
    assert!(chain(&lost).contains("1 row(s) of `rooms`"), "{}", chain(&lost));
    database.run("UPDATE rooms SET name = 'long' WHERE id = 2");
    // The time for it is the time that clients may wait, which is none of this test's.
    let mut patient = settings();
    patient.policy.hold_ms = 60_000;
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), patient, &Unwatched, &no_functions);
    migrator.rollback("0001_change", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(schema_only(&database), before);
    let free = "[[step]]\nop = \"drop_constraint\"\ntable = \"rooms\"\nname = \"one_at_a_time\"\n";
    let refused = try_apply(&database, "0001_change", None, free).map(drop).expect_err("no way back");
    assert!(chain(&refused).contains("one_at_a_time"), "{}", chain(&refused));
    assert_eq!(schema_only(&database), before);
}

#[test]
fn grants_on_single_columns_hold_for_every_version() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int PRIMARY KEY, amount bigint, name text, secret text); INSERT INTO orders VALUES (1, 100, 'a', 's')",
    );
    let reader = format!("reader_{}", database.name);
    database.run(&format!(
        "CREATE ROLE {reader}; GRANT SELECT (id, amount, name), UPDATE (amount) ON orders TO {reader}"
    ));
    let before = schema_only(&database);
    let steps = cents("orders")
        + "[[step]]\nop = \"rename_column\"\ntable = \"orders\"\nfrom = \"name\"\nto = \"title\"\n";
    apply(&database, &steps);
    for (schema, name) in [("app_v0", "name"), ("app_vp1", "title")] {
        database.run(&format!(
            "SET ROLE {reader}; SET search_path = {schema}, public; SELECT id, amount, {name} FROM orders; UPDATE orders SET amount = amount * 2 WHERE id = 1"
        ));
        let denied = database
            .client()
            .batch_execute(&format!("SET ROLE {reader}; SELECT secret FROM {schema}.orders"));
        assert!(denied.is_err(), "{schema} shows what was not granted");
    }
    assert_eq!(database.value("SELECT amount FROM app_v0.orders"), "400");
    roll_back(&database);
    assert_eq!(schema_only(&database), before);
    // Where the table itself stays, too.
    let steps = "[[step]]\nop = \"rename_column\"\ntable = \"orders\"\nfrom = \"name\"\nto = \"title\"\n";
    apply(&database, steps);
    database.run(&format!(
        "SET ROLE {reader}; SELECT id, name FROM app_v0.orders; SELECT id, title FROM app_vp1.orders"
    ));
    roll_back(&database);
    // A view that minds row level security asks for all columns at once.
    database.run("ALTER TABLE orders ENABLE ROW LEVEL SECURITY");
    let plan = with_migrator(&database, &Unwatched, |migrator| {
        migrator.plan(&migration("0001_change", None, steps))
    });
    let warnings = plan.expect("a plan").warnings;
    assert!(warnings.iter().any(|one| one.contains("grants on columns")), "{warnings:?}");
    database.run(&format!("DROP OWNED BY {reader}; DROP ROLE {reader}"));
}

#[test]
fn names_may_hold_whatever_the_server_allows() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE \"the.tasks\" (task_k1 int GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME \"the.\"\"odd\"\".numbers\"), \
           \"_k1\" int, amount bigint, PRIMARY KEY (task_k1, \"_k1\")); \
         INSERT INTO \"the.tasks\" (\"_k1\", amount) SELECT 5, g FROM generate_series(1, 10) g",
    );
    let before = schema_only(&database);
    let change = migration("0001_change", None, &cents("the.tasks"));
    let write = At::new("backfill.after", || {
        database.run("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE \"the.tasks\" SET amount = 70 WHERE task_k1 = 7; DELETE FROM \"the.tasks\" WHERE task_k1 = 8; COMMIT")
    });
    done(with_migrator(&database, &write, |migrator| migrator.apply(&change, None)));
    database.run("INSERT INTO \"the.tasks\" (\"_k1\", amount) VALUES (5, 0.11)");
    roll_back(&database);
    database.run("INSERT INTO \"the.tasks\" (\"_k1\", amount) VALUES (5, 12)");
    assert_eq!(
        database.value("SELECT string_agg(task_k1 || ' ' || amount, ', ' ORDER BY task_k1) FROM \"the.tasks\" WHERE task_k1 > 6"),
        "7 70, 9 9, 10 10, 11 11, 12 12"
    );
    assert_eq!(schema_only(&database), before);
}

#[test]
fn what_a_database_says_of_idle_sessions_ends_none_of_ours() {
    if !have_server() {
        return;
    }
    let database = Database::new();
    database.run(&format!("ALTER DATABASE {} SET idle_session_timeout = '1s'", database.name));
    let mut engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut show = |name: &str| {
        let rows = engine.query(&format!("SELECT current_setting('{name}', true)"), &[]).expect("a setting");
        rows[0][0].text().map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(show("idle_session_timeout"), "0");
    assert!(["0", ""].contains(&show("transaction_timeout").as_str()));
}

#[test]
fn what_row_functions_replaced_comes_back_in_portions_that_clients_can_wait_for() {
    if !have_server() {
        return;
    }
    let database = Database::with(
        "CREATE TABLE orders (id int, part text, name text, PRIMARY KEY (id, part)); \
         INSERT INTO orders SELECT g, 'p', 'n' || g FROM generate_series(1, 3000) g; ANALYZE orders; \
         CREATE TABLE portions (n bigint)",
    );
    let steps = "[[step]]\nop = \"transform\"\ntable = \"orders\"\ntransform = \"upper\"\nread = [\"name\"]\nwrite = [\"name\"]\n";
    let make = |_: &Op| {
        Ok(Box::new(ByRow(|row: &[Value]| Ok(vec![Value::Text(row[0].text().unwrap().to_uppercase())])))
            as Box<dyn RowFunction>)
    };
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), settings(), &Unwatched, &make);
    done(migrator.apply(&migration("0001_change", None, steps), None));
    database.run(
        "UPDATE orders SET name = 'mine' WHERE id = 7; \
         CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.portions SELECT count(*) FROM changed; RETURN NULL; END'; \
         CREATE TRIGGER count_them AFTER UPDATE ON orders REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_them()",
    );
    migrator.rollback("0001_change", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.value("SELECT count(*) FROM orders WHERE name = 'n' || id"), "2999");
    assert_eq!(database.value("SELECT sum(n) || ' ' || (max(n) <= 500) FROM portions"), "2999 true");
}

#[test]
fn an_index_that_waits_for_somebody_is_given_up_when_the_run_is_cancelled_or_late() {
    if !have_server() {
        return;
    }
    let _keeps_the_server = Database::new();
    let index =
        "[[step]]\nop = \"add_index\"\ntable = \"orders\"\nname = \"by_name\"\ncolumns = [\"name\"]\n";
    for (steps, is_late) in
        [(index.to_owned(), false), (cents("orders") + index, false), (index.to_owned(), true)]
    {
        let database = Database::with(
            "CREATE TABLE orders (id int PRIMARY KEY, amount bigint, name text); INSERT INTO orders VALUES (1, 100, 'a')",
        );
        let before = schema_only(&database);
        // A snapshot that stays: the server waits for it before an index is valid.
        struct Snapshot<'d>(&'d Database<'static>, Mutex<Option<postgres::Client>>);
        impl Watch for Snapshot<'_> {
            fn phase(&self, phase: Phase) {
                if phase == Phase::Backfill {
                    let mut client = self.0.client();
                    client
                        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
                        .expect("a snapshot");
                    *self.1.lock().expect("lock") = Some(client);
                }
            }
        }
        let snapshot = Snapshot(&database, Mutex::new(None));
        let head = if is_late { "run = { deadline = \"1s\" }\n" } else { "" };
        let change = migration("0001_change", None, &format!("{head}{steps}"));
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'";
                while database.value(waiting) == "0" {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                if !is_late {
                    with_migrator(&database, &Unwatched, |migrator| migrator.cancel("0001_change").expect("asked"));
                }
            });
            with_migrator(&database, &snapshot, |migrator| migrator.apply(&change, None))
                .map(drop)
                .expect_err("given up")
        });
        match is_late {
            true => assert!(
                matches!(&error, Error::Stopped { cause, .. } if matches!(**cause, Error::Deadline { .. })),
                "{error:?}"
            ),
            false => assert!(
                matches!(&error, Error::RolledBack { cause, .. } if matches!(**cause, Error::Cancelled)),
                "{error:?}"
            ),
        }
        drop(snapshot);
        if is_late {
            roll_back(&database);
        }
        assert_eq!(schema_only(&database), before);
    }
}
