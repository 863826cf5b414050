//! What SQLite lets a table declare, on both sides of the swap: unique rules over some rows or over generated columns, keys with
//! collations, row numbers that no column shows, foreign keys.

use cutover_migrate::{
    Error,
    engine::{Loss, Unwatched},
    grace::Floor,
};

use crate::{
    sqlite::Database,
    support::{At, chain, done, migration, migrator},
};

/// Applies steps, has a client write, takes the migration back, and returns what a query then says.
fn there_and_back(setup: &str, steps: &str, writes: &[&str], query: &str) -> Vec<String> {
    let database = Database::new(setup);
    let schema = database.schema();
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, steps), None));
    let client = database.client();
    for write in writes {
        client.execute_batch(write).unwrap_or_else(|error| panic!("{write}: {error}"));
    }
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.schema(), schema);
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"]);
    assert_eq!(database.texts("PRAGMA foreign_key_check"), Vec::<String>::new());
    migrator.tidy().unwrap();
    assert_eq!(database.artefacts(), Vec::<String>::new());
    database.texts(query)
}

fn retype(table: &str, column: &str) -> String {
    format!(
        "[[step]]\nop = \"alter_column\"\ntable = \"{table}\"\ncolumn = \"{column}\"\ntype = \"bigint\"\n"
    )
}

fn hide(table: &str, column: &str) -> String {
    format!(
        "[[step]]\nop = \"drop_column\"\ntable = \"{table}\"\ncolumn = \"{column}\"\ngrace = \"1d\"\ndown = \"NULL\"\n"
    )
}

#[test]
fn rules_over_generated_columns_hold_for_the_old_table_too() {
    let rows = there_and_back(
        "CREATE TABLE u (id INTEGER PRIMARY KEY, email TEXT NOT NULL, n INT,
            twice TEXT AS (low || low) NOT NULL CHECK (length(twice) < 20), low TEXT AS (lower(email)), UNIQUE (low));
         INSERT INTO u (id, email, n) VALUES (1, 'A', 1), (2, 'B', 2), (3, 'C', 3);",
        &retype("u", "n"),
        &[
            "INSERT INTO u (id, email, n) VALUES (4, 'D', 4)",
            "UPDATE u SET email = 'E', n = 5 WHERE id = 1",
            "DELETE FROM u WHERE id = 2",
            "INSERT OR REPLACE INTO u (id, email, n) VALUES (6, 'c', 6)",
        ],
        "SELECT id, email, n, low, twice FROM u ORDER BY id",
    );
    assert_eq!(rows, ["1|E|5|e|ee", "4|D|4|d|dd", "6|c|6|c|cc"]);
}

#[test]
fn unique_rule_over_some_rows_is_none_over_the_others() {
    let rows = there_and_back(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, email TEXT, deleted INT, n INT, name TEXT);
         CREATE UNIQUE INDEX living ON t (email) WHERE deleted = 0;
         INSERT INTO t VALUES (1, 'a', 1, 1, ''), (2, 'a', 0, 2, ''), (3, 'b', 0, 3, '');",
        &retype("t", "n"),
        &[
            "UPDATE t SET name = 'x' WHERE id = 2",
            "INSERT INTO t VALUES (4, 'a', 1, 4, 'y')",
            "INSERT OR REPLACE INTO t VALUES (5, 'b', 0, 5, 'z')",
            "UPDATE t SET deleted = 1 WHERE id = 5; UPDATE t SET deleted = 0, email = 'b' WHERE id = 4",
        ],
        "SELECT * FROM t ORDER BY id",
    );
    assert_eq!(rows, ["1|a|1|1|", "2|a|0|2|x", "4|b|0|4|y", "5|b|1|5|z"]);
}

const HITS: &str = "CREATE TABLE hits (at INT, path TEXT);
     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) INSERT INTO hits SELECT i, 'p' || i FROM n;
     DELETE FROM hits WHERE at % 3 = 0;";

#[test]
fn vacuum_after_the_swap_mixes_no_rows_of_a_table_without_a_key() {
    let indexed =
        "[[step]]\nop = \"add_index\"\ntable = \"hits\"\nname = \"by_path\"\ncolumns = [\"path\"]\n";
    for steps in [retype("hits", "at"), retype("hits", "at") + indexed] {
        let rows = there_and_back(
            HITS,
            &steps,
            &[
                "DELETE FROM hits WHERE at = 2; INSERT INTO hits VALUES (100, 'new')",
                "VACUUM",
                "UPDATE hits SET path = 'changed' WHERE at IN (7, 19); DELETE FROM hits WHERE at = 8; INSERT INTO hits VALUES (200, 'newer')",
                "VACUUM",
                "UPDATE hits SET path = path || '!' WHERE at IN (100, 200)",
            ],
            "SELECT at, path FROM hits WHERE at > 4 ORDER BY at",
        );
        let expected =
            "5|p5 7|changed 10|p10 11|p11 13|p13 14|p14 16|p16 17|p17 19|changed 20|p20 100|new! 200|newer!";
        assert_eq!(rows.join(" "), expected);
    }
}

#[test]
fn vacuum_after_the_swap_mixes_no_rows_with_those_set_aside() {
    let database = Database::new(HITS);
    database.client().execute_batch("UPDATE hits SET at = 'x' WHERE at IN (4, 10)").unwrap();
    let steps = retype("hits", "at") + "on_reject = \"quarantine\"\n";
    let mut migrator = migrator(database.engine(), &Unwatched);
    crate::quarantine::apply_approving(&mut migrator, &steps);
    let client = database.client();
    client
        .execute_batch(
            "DELETE FROM hits WHERE at = 1; VACUUM; UPDATE hits SET path = 'changed' WHERE at = 11",
        )
        .unwrap();
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let expected = "2|p2 5|p5 7|p7 8|p8 11|changed 13|p13 14|p14 16|p16 17|p17 19|p19 20|p20 x|p10 x|p4";
    assert_eq!(database.texts("SELECT at, path FROM hits ORDER BY at, path").join(" "), expected);
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn row_that_its_table_would_replace_or_pass_over_is_named() {
    for (declared, set) in [
        ("code TEXT NOT NULL ON CONFLICT IGNORE", "nullif(code, 'b')"),
        ("code TEXT NOT NULL UNIQUE ON CONFLICT REPLACE", "'same'"),
    ] {
        let database = Database::new(&format!(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, {declared}); INSERT INTO t VALUES (1, 'a'), (2, 'b');"
        ));
        let steps = format!("[[step]]\nop = \"sql\"\ntable = \"t\"\nset = {{ code = \"{set}\" }}\n");
        match migrator(database.engine(), &Unwatched).apply(&migration("0001", None, &steps), None) {
            Err(Error::RolledBack { cause, .. }) => {
                assert!(
                    matches!(*cause, Error::Rejected { count: 1, .. }) && cause.to_string().contains("2: "),
                    "{cause}"
                );
            }
            other => panic!("{declared}: {other:?}"),
        }
    }
}

#[test]
fn key_of_several_columns_that_changes_takes_hidden_values_along() {
    let setup =
        "CREATE TABLE m (a TEXT, b INT, n INT CHECK (n > b), note TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
         INSERT INTO m VALUES ('x', 1, 5, 'one'), ('y', 2, 6, 'two'), ('z', 3, 9, 'three');";
    let rows = there_and_back(
        setup,
        &hide("m", "note"),
        &[
            "UPDATE m SET b = b + 10, n = n + 10",
            "UPDATE OR REPLACE m SET a = 'x', b = 11 WHERE a = 'y'",
            "INSERT OR REPLACE INTO m (a, b, n) VALUES ('z', 13, 99)",
        ],
        "SELECT * FROM m ORDER BY a",
    );
    assert_eq!(rows, ["x|11|16|two", "z|13|99|NULL"]);
}

#[test]
fn row_that_takes_the_number_of_another_keeps_its_own_hidden_values() {
    let rows = there_and_back(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INT UNIQUE, note TEXT);
         INSERT INTO t VALUES (1, 1, 'one'), (2, 2, 'two'), (3, 3, 'three'), (4, 4, 'four');",
        &hide("t", "note"),
        &[
            "UPDATE OR REPLACE t SET id = 2 WHERE id = 1",
            "INSERT OR REPLACE INTO t (id, n) VALUES (3, 33)",
            // It is in the way of a row that does not come, and then moves.
            "INSERT OR IGNORE INTO t (id, n) VALUES (9, 4); UPDATE t SET id = 40 WHERE id = 4",
        ],
        "SELECT * FROM t ORDER BY id",
    );
    assert_eq!(rows, ["2|1|one", "3|33|NULL", "40|4|four"]);
}

#[test]
fn key_that_changes_only_for_the_eye_changes_in_the_old_table() {
    let rows = there_and_back(
        "CREATE TABLE k (k TEXT COLLATE NOCASE PRIMARY KEY, n INT) WITHOUT ROWID; INSERT INTO k VALUES ('abc', 1), ('d', 2);",
        &retype("k", "n"),
        &["UPDATE k SET k = 'ABC' WHERE k = 'abc'", "INSERT OR REPLACE INTO k VALUES ('D', 3)"],
        "SELECT * FROM k ORDER BY k",
    );
    assert_eq!(rows, ["ABC|1", "D|3"]);
}

const FAMILY: &str = "CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3);
     CREATE TABLE child (id INTEGER PRIMARY KEY, p INT REFERENCES parent (id), n INT, note TEXT);
     INSERT INTO child VALUES (1, 1, 1, 'one'), (2, 2, 2, 'two');";

#[test]
fn dropped_table_keeps_nobody_from_deleting_what_it_pointed_to() {
    let database = Database::new(FAMILY);
    let schema = database.schema();
    let mut migrator = migrator(database.engine(), &Unwatched);
    let drop = migration("0001", None, "[[step]]\nop = \"drop_table\"\ntable = \"child\"\ngrace = \"1d\"\n");
    done(migrator.apply(&drop, None));
    database.client().execute_batch("DELETE FROM parent WHERE id = 3").unwrap();
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(database.schema(), schema, "with its foreign keys");
    assert!(database.client().execute_batch("DELETE FROM parent WHERE id = 2").is_err());
    done(migrator.apply(&drop, None));
    database.client().execute_batch("DELETE FROM parent WHERE id = 2").unwrap();
    match migrator.rollback("0001", Loss::Refuse) {
        Err(Error::Locked(reasons)) => {
            assert!(reasons[0].what.contains("1 row(s) of `child`"), "{reasons:?}")
        }
        other => panic!("{other:?}"),
    }
    migrator.rollback("0001", Loss::Accept).unwrap();
    assert_eq!(database.texts("SELECT * FROM child"), ["1|1|1|one"]);
    assert_eq!(database.schema(), schema);
    assert_eq!(database.texts("PRAGMA foreign_key_check"), Vec::<String>::new());
}

#[test]
fn table_that_triggers_or_views_name_is_not_dropped() {
    let drop = migration("0001", None, "[[step]]\nop = \"drop_table\"\ntable = \"child\"\n");
    for (user, name) in [
        (
            "CREATE TRIGGER tell AFTER INSERT ON parent BEGIN INSERT INTO child (p) VALUES (NEW.id); END",
            "trigger `tell`",
        ),
        ("CREATE VIEW seen AS SELECT p FROM child", "view `seen`"),
    ] {
        let database = Database::new(&format!("{FAMILY}{user}"));
        match migrator(database.engine(), &Unwatched).plan(&drop) {
            Err(Error::Refused(refusals)) => assert!(refusals[0].what.contains(name), "{refusals:?}"),
            other => panic!("{other:?}"),
        }
    }
    // Its own go with it.
    let database = Database::new(&format!(
        "{FAMILY}CREATE TRIGGER own AFTER INSERT ON child BEGIN DELETE FROM parent WHERE id = 99; END"
    ));
    done(migrator(database.engine(), &Unwatched).apply(&drop, None));
}

const DROP_KNOWN: &str = "[[step]]\nop = \"drop_constraint\"\ntable = \"child\"\nname = \"known\"\n";

#[test]
fn hidden_columns_and_dropped_constraints_refer_to_nothing() {
    let rows = there_and_back(
        &FAMILY.replace(
            "p INT REFERENCES parent (id), n INT, note TEXT",
            "p INT, n INT, note TEXT, CONSTRAINT known FOREIGN KEY (p) REFERENCES parent (id)",
        ),
        &(DROP_KNOWN.to_owned() + &hide("child", "p")),
        &["DELETE FROM parent WHERE id = 3", "INSERT INTO child (id, n) VALUES (5, 5)"],
        "SELECT * FROM child ORDER BY id",
    );
    assert_eq!(rows, ["1|1|1|one", "2|2|2|two", "5|NULL|5|NULL"]);
    let database = Database::new(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1), (2);
         CREATE TABLE child (id INTEGER PRIMARY KEY, p INT, CONSTRAINT known FOREIGN KEY (p) REFERENCES parent (id));
         INSERT INTO child VALUES (1, 1), (2, 2);",
    );
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, DROP_KNOWN), None));
    database
        .client()
        .execute_batch("INSERT INTO child VALUES (9, 99); DELETE FROM parent WHERE id = 2; DELETE FROM child WHERE id = 9")
        .unwrap();
    assert!(matches!(migrator.rollback("0001", Loss::Refuse), Err(Error::Locked(_))));
    migrator.rollback("0001", Loss::Accept).unwrap();
    assert_eq!(database.texts("SELECT * FROM child"), ["1|1"]);
}

#[test]
fn foreign_keys_come_back_where_tables_are_renamed_beside_the_copy() {
    let rename = |table: &str, to: &str| {
        format!("[[step]]\nop = \"rename_table\"\ntable = \"{table}\"\nto = \"{to}\"\n")
    };
    let setup = FAMILY
        .replace("note TEXT)", "note TEXT, next INT REFERENCES child (id))")
        .replace("'one')", "'one', NULL)")
        .replace("'two')", "'two', 1)");
    for steps in [
        rename("parent", "elder") + &retype("child", "n"),
        retype("child", "n") + &rename("parent", "elder"),
        retype("child", "n") + &rename("child", "kid"),
        rename("parent", "elder") + &retype("child", "n") + &rename("child", "kid"),
    ] {
        let child = if steps.contains("kid") { "kid" } else { "child" };
        let parent = if steps.contains("elder") { "elder" } else { "parent" };
        let rows = there_and_back(
            &setup,
            &steps,
            &[
                &format!("INSERT INTO {child} (id, p, n, next) VALUES (3, 3, 3, 2)"),
                &format!("DELETE FROM {child} WHERE id = 3; DELETE FROM {parent} WHERE id = 3"),
            ],
            "SELECT * FROM child",
        );
        assert_eq!(rows, ["1|1|1|one|NULL", "2|2|2|two|1"]);
    }
    for drops in [["parent", "child"], ["child", "parent"]] {
        let steps: Vec<String> = drops
            .iter()
            .map(|table| format!("[[step]]\nop = \"drop_table\"\ntable = \"{table}\"\n"))
            .collect();
        let database = Database::new(&setup);
        let mut migrator = migrator(database.engine(), &Unwatched);
        let plan = migrator.plan(&migration("0001", None, &steps.concat()));
        assert!(matches!(plan, Err(Error::Refused(_))), "a table that another points to goes after it");
    }
}

#[test]
fn old_table_without_a_way_back_keeps_nobody_from_deleting() {
    let database = Database::new(FAMILY);
    let mut migrator = migrator(database.engine(), &Unwatched);
    let steps = retype("child", "n") + "up = \"n * 2\"\n";
    done(migrator.apply(&migration("0001", None, &steps), None));
    let client = database.client();
    client.execute_batch("DELETE FROM child WHERE id = 2; DELETE FROM parent WHERE id = 2").unwrap();
    assert!(matches!(migrator.rollback("0001", Loss::Refuse), Err(Error::Locked(_))));
    migrator.rollback("0001", Loss::Accept).unwrap();
    assert_eq!(database.texts("SELECT * FROM child"), ["1|1|1|one"]);
    assert_eq!(database.texts("PRAGMA foreign_key_check"), Vec::<String>::new());
}

fn refer(from: &str) -> String {
    format!(
        "[[step]]\nop = \"add_foreign_key\"\ntable = \"child\"\nname = \"known\"\ncolumns = [\"{from}\"]\nreferences = {{ table = \"parent\", columns = [\"id\"] }}\n"
    )
}

#[test]
fn new_foreign_key_keeps_nobody_from_deleting_before_the_swap() {
    let setup = FAMILY.replace(" REFERENCES parent (id)", "");
    let database = Database::new(&setup);
    let delete = At::new("verify.after", || {
        let client = database.client();
        client.execute_batch("DELETE FROM parent WHERE id = 2; DELETE FROM child WHERE id = 2").unwrap();
    });
    done(migrator(database.engine(), &delete).apply(&migration("0001", None, &refer("p")), None));
    assert!(*delete.done.lock().unwrap());
    assert!(database.client().execute_batch("DELETE FROM parent WHERE id = 1").is_err(), "it holds now");
    assert!(database.client().execute_batch("INSERT INTO child (p) VALUES (77)").is_err());
    assert_eq!(database.texts("SELECT id, p FROM child"), ["1|1"]);
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"]);
    let floor = Floor { lowest: "9.0.0".parse().unwrap(), rollback_open: false };
    let mut after = migrator(database.engine(), &Unwatched);
    done(after.complete("0001", &floor, 1_000_000));
    assert_eq!(database.artefacts(), Vec::<String>::new());
}

#[test]
fn row_that_loses_its_parent_just_before_the_swap_stops_it() {
    for write in ["DELETE FROM parent WHERE id = 2", "INSERT INTO child (p) VALUES (77)"] {
        let database = Database::new(&FAMILY.replace(" REFERENCES parent (id)", ""));
        let delete = At::new("swap.before", || database.client().execute_batch(write).unwrap());
        match migrator(database.engine(), &delete).apply(&migration("0001", None, &refer("p")), None) {
            Err(Error::RolledBack { cause, .. }) => {
                assert!(matches!(*cause, Error::Rejected { count: 1, .. }), "{cause}")
            }
            other => panic!("{other:?}"),
        }
    }
    // What is not unique cannot be pointed to.
    let database = Database::new(
        &FAMILY
            .replace(" REFERENCES parent (id)", "")
            .replace("parent (id INTEGER PRIMARY KEY)", "parent (id INT)"),
    );
    match migrator(database.engine(), &Unwatched).apply(&migration("0001", None, &refer("p")), None) {
        Err(error) => assert!(chain(&error).contains("foreign key mismatch"), "{}", chain(&error)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn row_that_is_set_aside_keeps_nobody_from_deleting_its_parent() {
    let database = Database::new(FAMILY);
    database.client().execute_batch("UPDATE child SET n = 'x' WHERE id = 2").unwrap();
    let schema = database.schema();
    let steps = retype("child", "n") + "on_reject = \"quarantine\"\n";
    let mut migrator = migrator(database.engine(), &Unwatched);
    crate::quarantine::apply_approving(&mut migrator, &steps);
    database.client().execute_batch("DELETE FROM parent WHERE id = 2").unwrap();
    assert!(
        database.client().execute_batch("DELETE FROM parent WHERE id = 1").is_err(),
        "the rest is as it was"
    );
    match migrator.rollback("0001", Loss::Refuse) {
        Err(Error::Locked(reasons)) => assert!(reasons[0].what.contains("`parent`"), "{reasons:?}"),
        other => panic!("{other:?}"),
    }
    migrator.rollback("0001", Loss::Accept).unwrap();
    assert_eq!(database.texts("SELECT * FROM child"), ["1|1|1|one"]);
    assert_eq!(database.schema(), schema);
}

#[test]
fn plan_says_that_taking_a_new_column_back_rewrites_the_table() {
    let database = Database::new(FAMILY);
    let add =
        "[[step]]\nop = \"add_column\"\ntable = \"child\"\ncolumn = { name = \"c\", type = \"text\" }\n";
    let plan = migrator(database.engine(), &Unwatched).plan(&migration("0001", None, add)).unwrap();
    assert!(
        plan.warnings.iter().any(|text| text.contains("`child.c`") && text.contains("write lock")),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn index_with_a_long_name_is_copied_and_known_by_it() {
    let name = "i".repeat(62);
    let database = Database::new(&format!("{FAMILY}CREATE INDEX {name} ON child (n);"));
    let mut migrator = migrator(database.engine(), &Unwatched);
    done(migrator.apply(&migration("0001", None, &retype("child", "n")), None));
    let floor = Floor { lowest: "9.0.0".parse().unwrap(), rollback_open: false };
    done(migrator.complete("0001", &floor, 1_000_000));
    done(migrator.apply(&migration("0002", Some("0001"), &retype("child", "p")), None));
    done(migrator.complete("0002", &floor, 1_000_000));
    let drop = format!("[[step]]\nop = \"drop_index\"\ntable = \"child\"\nname = \"{name}\"\n");
    done(migrator.apply(&migration("0003", Some("0002"), &drop), None));
    assert_eq!(database.texts("SELECT count(*) FROM sqlite_schema WHERE name GLOB 'ii*'"), ["0"]);
}
