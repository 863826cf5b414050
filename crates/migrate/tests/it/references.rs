//! Foreign keys of tables that SQLite copies: they mean the same afterwards, and nothing that is ours is in a client's way.

use cutover_migrate::{Error, engine::Loss};

use crate::{
    sqlite::Database,
    support::{At, chain, done, migration, migrator},
};

const SETUP: &str = "CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name TEXT); \
     CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, amount INTEGER NOT NULL, \
       follows INTEGER REFERENCES orders (id), FOREIGN KEY (customer_id) REFERENCES customers (customer_id)); \
     INSERT INTO customers VALUES (1, 'a'), (2, 'b'), (3, 'c'); \
     INSERT INTO orders VALUES (1, 1, 100, NULL), (2, 2, 200, 1);";

const MONEY: &str = "[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\ntype = \"real\"\n\
     up = \"amount / 100.0\"\ndown = \"cast(amount * 100 as integer)\"\n";

fn rename(table: &str, from: &str, to: &str) -> String {
    format!("[[step]]\nop = \"rename_column\"\ntable = \"{table}\"\nfrom = \"{from}\"\nto = \"{to}\"\n")
}

#[test]
fn renamed_columns_of_a_foreign_key_keep_pointing_where_they_pointed() {
    let database = Database::new(SETUP);
    let steps = format!("{MONEY}{}", rename("orders", "customer_id", "client_id"));
    let client = database.client();
    // While the copy is there, and afterwards.
    let at_work = At::new("backfill.after", || {
        let client = database.client();
        client.execute("INSERT INTO customers VALUES (4, 'd')", []).unwrap();
        client.execute("DELETE FROM customers WHERE customer_id = 3", []).unwrap();
        client.execute("INSERT INTO orders VALUES (3, 4, 300, 2)", []).unwrap();
    });
    done(migrator(database.engine(), &at_work).apply(&migration("0001", None, &steps), None));
    client.execute("INSERT INTO orders (id, client_id, amount, follows) VALUES (4, 4, 4.0, 3)", []).unwrap();
    client.execute("DELETE FROM orders WHERE id = 4", []).unwrap();
    let broken = client.execute("INSERT INTO orders (id, client_id, amount) VALUES (5, 99, 4.0)", []);
    assert!(broken.unwrap_err().to_string().contains("FOREIGN KEY constraint failed"));
    let followed = client.execute("DELETE FROM orders WHERE id = 2", []);
    assert!(followed.unwrap_err().to_string().contains("FOREIGN KEY constraint failed"));
    assert!(database.texts("PRAGMA foreign_key_check").is_empty());
}

#[test]
fn table_that_waits_to_be_emptied_keeps_no_client_from_deleting() {
    let everywhere =
        cutover_migrate::grace::Floor { lowest: "99.0.0".parse().unwrap(), rollback_open: false };
    for (point, rolls_back) in [("contract.after", false), ("rollback.after", true)] {
        let database = Database::new(SETUP);
        done(
            migrator(database.engine(), &cutover_migrate::engine::Unwatched)
                .apply(&migration("0001", None, MONEY), None),
        );
        let deletes = At::new(point, || {
            let client = database.client();
            client.execute("DELETE FROM orders WHERE id = 2", []).unwrap();
            client.execute("DELETE FROM customers WHERE customer_id = 2", []).unwrap();
        });
        let mut migrator = migrator(database.engine(), &deletes);
        if rolls_back {
            migrator.rollback("0001", Loss::Refuse).unwrap();
        } else {
            migrator.complete("0001", &everywhere, 1_000_000).unwrap();
        }
        assert!(*deletes.done.lock().unwrap(), "{point} was not passed");
        migrator.tidy().unwrap();
        let left = database.texts("SELECT name FROM sqlite_schema WHERE name GLOB '_cutover_trash_*'");
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"]);
        assert_eq!(database.texts("SELECT id FROM orders"), ["1"]);
    }
}

#[test]
fn copy_that_would_break_a_foreign_key_is_refused_with_the_plan() {
    for (steps, part) in [
        (format!("{}{MONEY}", rename("orders", "id", "number")), "a foreign key of `orders` points to it"),
        (
            format!(
                "{}{}",
                rename("customers", "customer_id", "number"),
                MONEY
                    .replace("orders", "customers")
                    .replace("amount / 100.0", "upper(name)")
                    .replace("cast(amount * 100 as integer)", "lower(name)")
                    .replace("amount", "name")
                    .replace("real", "text")
            ),
            "a foreign key of `orders` points to it",
        ),
    ] {
        let database = Database::new(SETUP);
        let plan = migrator(database.engine(), &cutover_migrate::engine::Unwatched)
            .plan(&migration("0001", None, &steps));
        let error = plan.map(drop).expect_err(part);
        assert!(matches!(error, Error::Refused(_)) && chain(&error).contains(part), "{}", chain(&error));
    }
}
