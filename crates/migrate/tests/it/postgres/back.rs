//! Ways back that are cut off, or that would lose something; and row functions beside writers.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use cutover_migrate::{
    Error,
    engine::{Loss, RowChunk, RowFunction, Unwatched, Watch},
    ir::Op,
    postgres::PostgresEngine,
    run::{Applied, Migrator, no_functions},
    state::sql::Value,
};

use super::{
    harness::{CENTS, chain, schema_only, short_lease},
    server::{Database, have_server},
};
use crate::support::{At, Recorder, done, migration};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, amount bigint NOT NULL, name text); \
     INSERT INTO orders SELECT g, g * 100, 'n' || g FROM generate_series(1, 2000) g; ANALYZE orders;";

/// Breaks off at a place, as a process that is killed there does: nothing is rolled back, released or told.
struct CutOff<'a> {
    place: &'a str,
    /// What happens at an earlier place.
    before: (&'static str, &'a (dyn Fn() + Sync)),
    done: AtomicBool,
}

impl Watch for CutOff<'_> {
    fn point(&self, name: &str) {
        if name == self.before.0 && !self.done.swap(true, Ordering::SeqCst) {
            (self.before.1)();
        }
        if name == self.place {
            resume_unwind(Box::new(()));
        }
    }
}

fn migrator<'a>(database: &Database<'_>, watch: &'a dyn Watch) -> Migrator<'a> {
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    Migrator::new(Box::new(engine), short_lease(), watch, &no_functions)
}

/// Does `work` until the watch breaks it off.
fn cut_off(database: &Database<'_>, watch: &CutOff<'_>, work: impl FnOnce(&mut Migrator<'_>)) {
    let mut migrator = migrator(database, watch);
    let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut migrator)));
    assert!(outcome.is_err(), "it was not broken off at {}", watch.place);
}

/// Again and again until the lease of the one that was cut off ends.
fn after_a_death<T>(mut work: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match work() {
            Err(Error::Held { .. }) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("{}", chain(&error)),
            Ok(value) => return value,
        }
    }
}

fn apply_again(database: &Database<'_>) {
    let applied =
        after_a_death(|| migrator(database, &Unwatched).apply(&migration("0001_amount", None, CENTS), None));
    assert!(matches!(applied, Applied::Done(_)));
}

/// What clients write when a way back was cut off, and what is there then.
fn write_meanwhile(database: &Database<'_>) {
    database.run("UPDATE orders SET amount = 7 WHERE id = 1; DELETE FROM orders WHERE id = 2; INSERT INTO orders VALUES (9000, 9, 'late')");
}

fn nothing_is_missing(database: &Database<'_>) {
    assert_eq!(
        database.value("SELECT count(*) || ' ' || sum(amount) FILTER (WHERE id IN (1, 2, 9000)) FROM orders"),
        "2000 0.16"
    );
    assert_eq!(database.value("SELECT sum(amount) FROM orders WHERE id BETWEEN 3 AND 2000"), "2000997.00");
}

#[test]
fn undo_that_was_cut_off_is_finished_before_anything_is_copied_again() {
    if !have_server() {
        return;
    }
    let database = Database::with(SETUP);
    let cancel = || {
        migrator(&database, &Unwatched).cancel("0001_amount").expect("asked");
    };
    let watch =
        CutOff { place: "undo.between", before: ("verify.after", &cancel), done: AtomicBool::new(false) };
    cut_off(&database, &watch, |migrator| {
        let _ = migrator.apply(&migration("0001_amount", None, CENTS), None);
    });
    write_meanwhile(&database);
    apply_again(&database);
    nothing_is_missing(&database);
}

#[test]
fn rollback_that_was_cut_off_after_its_commit_leaves_nothing_for_the_next_run() {
    if !have_server() {
        return;
    }
    let _keeps_the_server = Database::new();
    for again in [true, false] {
        let database = Database::with(SETUP);
        let before = schema_only(&database);
        done(migrator(&database, &Unwatched).apply(&migration("0001_amount", None, CENTS), None));
        let watch = CutOff { place: "undo.after", before: ("", &|| {}), done: AtomicBool::new(false) };
        cut_off(&database, &watch, |migrator| {
            let _ = migrator.rollback("0001_amount", Loss::Refuse);
        });
        if again {
            after_a_death(|| migrator(&database, &Unwatched).rollback("0001_amount", Loss::Refuse));
            assert_eq!(schema_only(&database), before);
        }
        write_meanwhile(&database);
        apply_again(&database);
        nothing_is_missing(&database);
    }
}

#[test]
fn rollback_that_was_cut_off_anywhere_is_finished_by_the_next_one() {
    if !have_server() {
        return;
    }
    let keep = Database::with(SETUP);
    done(migrator(&keep, &Unwatched).apply(&migration("0001_amount", None, CENTS), None));
    let recorder = Recorder::default();
    migrator(&keep, &recorder).rollback("0001_amount", Loss::Refuse).expect("rolled back");
    let places: BTreeSet<String> = recorder.points.lock().expect("points").iter().cloned().collect();
    assert!(places.len() >= 3, "{places:?}");
    for place in &places {
        let database = Database::with(SETUP);
        let before = schema_only(&database);
        done(migrator(&database, &Unwatched).apply(&migration("0001_amount", None, CENTS), None));
        database.run("INSERT INTO orders VALUES (8000, 80.00, 'since the swap')");
        let watch = CutOff { place, before: ("", &|| {}), done: AtomicBool::new(false) };
        cut_off(&database, &watch, |migrator| {
            let _ = migrator.rollback("0001_amount", Loss::Refuse);
        });
        // In whichever shape the table has now.
        database.run("UPDATE orders SET name = 'meanwhile' WHERE id = 7; DELETE FROM orders WHERE id = 8");
        after_a_death(|| migrator(&database, &Unwatched).rollback("0001_amount", Loss::Refuse));
        assert_eq!(schema_only(&database), before, "{place}");
        assert_eq!(
            database.value("SELECT string_agg(id || ' ' || amount || ' ' || name, ', ' ORDER BY id) FROM orders WHERE id IN (7, 8, 8000)"),
            "7 700 meanwhile, 8000 8000 since the swap",
            "{place}"
        );
        assert_eq!(
            database.value("SELECT count(*) || ' ' || sum(amount) FROM orders"),
            "2000 200107200",
            "{place}"
        );
    }
}

#[test]
fn run_that_was_cut_off_after_its_swap_validates_foreign_keys_the_next_time() {
    if !have_server() {
        return;
    }
    let database = Database::with(&format!(
        "{SETUP} CREATE TABLE lines (id int PRIMARY KEY, of_order int REFERENCES orders); INSERT INTO lines VALUES (1, 5)"
    ));
    let watch = CutOff { place: "swap.after", before: ("", &|| {}), done: AtomicBool::new(false) };
    cut_off(&database, &watch, |migrator| {
        let _ = migrator.apply(&migration("0001_amount", None, CENTS), None);
    });
    let valid = "SELECT bool_and(convalidated) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'lines'::regclass";
    assert_eq!(database.value(valid), "f", "the swap promises only");
    loop {
        let applied = migrator(&database, &Unwatched).apply(&migration("0001_amount", None, CENTS), None);
        assert!(matches!(applied, Ok(Applied::Already)));
        if database.value(valid) == "t" {
            break;
        }
        // The lease of the one that was cut off has not ended.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn orphan_of_a_new_foreign_key_is_found_before_the_swap() {
    if !have_server() {
        return;
    }
    let database = Database::with(&format!(
        "{SETUP} CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names SELECT name FROM orders"
    ));
    let steps = format!(
        "{CENTS}[[step]]\nop = \"add_foreign_key\"\ntable = \"orders\"\nname = \"named\"\ncolumns = [\"name\"]\nreferences = {{ table = \"names\", columns = [\"name\"] }}\n"
    );
    let orphan = || database.run("INSERT INTO orders VALUES (9000, 9, 'nobody')");
    let watch = At::new("backfill.after", orphan);
    let error = migrator(&database, &watch)
        .apply(&migration("0001_amount", None, &steps), None)
        .map(drop)
        .expect_err("an orphan");
    assert!(matches!(&error, Error::RolledBack { .. }), "{error:?}");
    assert_eq!(database.value("SELECT amount FROM orders WHERE id = 9000"), "9", "the old shape serves");
}

/// `shout` writes names in upper case, `more` adds one to the amount.
struct Step(&'static str);

impl RowFunction for Step {
    fn name(&self) -> &str {
        self.0
    }

    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error> {
        let new = |value: &Value| match value {
            Value::Text(text) => Value::Text(text.to_uppercase()),
            Value::Integer(number) => Value::Integer(number + 1),
            other => other.clone(),
        };
        let rows_then = rows.rows.iter().map(|row| vec![new(&row[0])]).collect();
        Ok(RowChunk { columns: rows.columns.clone(), rows: rows_then })
    }
}

fn make(op: &Op) -> Result<Box<dyn RowFunction>, Error> {
    match op {
        Op::Transform { transform, .. } if transform == "more" => Ok(Box::new(Step("more"))),
        _ => Ok(Box::new(Step("shout"))),
    }
}

fn transforms() -> String {
    let step = |name: &str, column: &str| {
        format!(
            "[[step]]\nop = \"transform\"\ntable = \"orders\"\ntransform = \"{name}\"\nread = [\"{column}\"]\nwrite = [\"{column}\"]\n"
        )
    };
    step("shout", "name") + &step("more", "amount")
}

#[test]
fn rows_that_clients_write_behind_row_functions_get_them_too_and_each_once() {
    if !have_server() {
        return;
    }
    let database = Database::with(SETUP);
    let before = schema_only(&database);
    struct Writes<'d>(&'d Database<'static>, AtomicBool);
    impl Watch for Writes<'_> {
        fn point(&self, name: &str) {
            if name == "backfill.after" && !self.1.swap(true, Ordering::SeqCst) {
                // Behind the walk: one comes, one changes, one is only touched, one goes.
                self.0.run("INSERT INTO orders VALUES (-5, 10, 'came'); UPDATE orders SET name = 'changed' WHERE id = 1; \
                     UPDATE orders SET name = name WHERE id = 2; DELETE FROM orders WHERE id = 3");
            }
            if name == "swap.before" {
                self.0.run("INSERT INTO orders VALUES (9000, 20, 'last')");
            }
        }
    }
    let watch = Writes(&database, AtomicBool::new(false));
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), short_lease(), &watch, &make);
    done(migrator.apply(&migration("0001_rows", None, &transforms()), None));
    assert_eq!(
        database.value("SELECT string_agg(id || ' ' || amount || ' ' || name, ', ' ORDER BY id) FROM orders WHERE id < 5 OR id > 1999"),
        "-5 11 CAME, 1 101 CHANGED, 2 201 N2, 4 401 N4, 2000 200001 N2000, 9000 21 LAST"
    );
    assert_eq!(
        database.value("SELECT count(*) FROM orders WHERE name <> upper(name) OR amount % 10 <> 1"),
        "0"
    );
    // Back: each step gives back its own column, of rows that clients wrote what they wrote.
    migrator.rollback("0001_rows", Loss::Refuse).expect("rolled back");
    assert_eq!(
        database.value("SELECT string_agg(id || ' ' || amount || ' ' || name, ', ' ORDER BY id) FROM orders WHERE id < 5 OR id > 1999"),
        "-5 10 came, 1 100 changed, 2 200 n2, 4 400 n4, 2000 200000 n2000, 9000 20 last"
    );
    assert_eq!(schema_only(&database), before);
}

#[test]
fn rollback_names_what_it_would_lose_of_new_tables_and_columns() {
    if !have_server() {
        return;
    }
    let database = Database::with(SETUP);
    let steps = "[[step]]\nop = \"add_column\"\ntable = \"orders\"\ncolumn = { name = \"note\", type = \"text\" }\n\
        [[step]]\nop = \"create_table\"\ntable = \"notes\"\ncolumns = [{ name = \"id\", type = \"integer\", nullable = false }]\nprimary_key = [\"id\"]\n";
    let mut migrator = migrator(&database, &Unwatched);
    done(migrator.apply(&migration("0001_notes", None, steps), None));
    database.run("UPDATE orders SET note = 'mine' WHERE id = 8; INSERT INTO notes VALUES (1)");
    let error = migrator.rollback("0001_notes", Loss::Refuse).expect_err("a loss");
    for part in ["values of the new column `orders.note`", "rows of the new table `notes`"] {
        assert!(chain(&error).contains(part), "{}", chain(&error));
    }
    database.run("UPDATE orders SET note = NULL; DELETE FROM notes");
    migrator.rollback("0001_notes", Loss::Refuse).expect("rolled back");
    assert_eq!(database.value("SELECT to_regclass('notes') IS NULL"), "t");
}

#[test]
fn dropped_unique_constraint_comes_back_with_the_old_shape() {
    if !have_server() {
        return;
    }
    let database =
        Database::with(&format!("{SETUP} ALTER TABLE orders ADD CONSTRAINT one_name UNIQUE (name)"));
    let before = schema_only(&database);
    let steps = "[[step]]\nop = \"drop_constraint\"\ntable = \"orders\"\nname = \"one_name\"\n";
    let mut migrator = migrator(&database, &Unwatched);
    done(migrator.apply(&migration("0001_free", None, steps), None));
    assert_ne!(schema_only(&database), before);
    migrator.rollback("0001_free", Loss::Refuse).expect("rolled back");
    assert_eq!(schema_only(&database), before);
}

#[test]
fn sql_step_leaves_values_from_before_it_as_they_were() {
    if !have_server() {
        return;
    }
    let database = Database::with(&format!("{SETUP} UPDATE orders SET name = NULL WHERE id % 2 = 0"));
    let steps = "[[step]]\nop = \"sql\"\ntable = \"orders\"\nset = { name = \"'row ' || id\" }\nwhere = \"name IS NULL\"\ncheck = \"name IS NOT NULL\"\ndown = { name = \"NULL\" }\n";
    let sum = "SELECT count(*) || ' ' || count(name) || ' ' || md5(string_agg(id || coalesce(name, '-'), ',' ORDER BY id)) FROM orders";
    let before = database.value(sum);
    let mut migrator = migrator(&database, &Unwatched);
    done(migrator.apply(&migration("0001_named", None, steps), None));
    assert_eq!(database.value("SELECT count(*) FROM orders WHERE name = 'row ' || id"), "1000");
    assert_eq!(
        database.value("SELECT count(*) FROM app_v0.orders WHERE name IS NULL"),
        "1000",
        "the old version sees its own"
    );
    migrator.rollback("0001_named", Loss::Refuse).expect("rolled back");
    assert_eq!(database.value(sum), before);
}

#[test]
fn column_that_is_dropped_with_down_has_that_value_in_rows_written_without_it() {
    if !have_server() {
        return;
    }
    let database = Database::with(SETUP);
    let steps = "[[step]]\nop = \"drop_column\"\ntable = \"orders\"\ncolumn = \"amount\"\ngrace = \"1d\"\ndown = \"length(name) + 70\"\n";
    let mut migrator = migrator(&database, &Unwatched);
    done(migrator.apply(&migration("0001_gone", None, steps), None));
    database.run("INSERT INTO orders (id, name) VALUES (9000, 'seven77')");
    assert_eq!(database.value("SELECT amount FROM app_v0.orders WHERE id = 9000"), "77");
    migrator.rollback("0001_gone", Loss::Refuse).expect("rolled back");
    assert_eq!(
        database
            .value("SELECT string_agg(amount::text, ' ' ORDER BY id) FROM orders WHERE id IN (1, 2, 9000)"),
        "100 200 77"
    );
}
