//! Between the swap and its end: every version of the code works with whatever a table may have, and a way back gives back all
//! there was.

use cutover_migrate::{Error, engine::Unwatched, run::Applied};

use super::{
    harness::{complete, rollback, with_migrator},
    server::{Database, have_server},
};
use crate::support::{done, migration};

fn try_apply(database: &Database<'_>, id: &str, after: Option<&str>, steps: &str) -> Result<Applied, Error> {
    let migration = migration(id, after, steps);
    with_migrator(database, &Unwatched, |migrator| migrator.apply(&migration, None))
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
