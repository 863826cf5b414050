//! The shadow protocol from one end to the other.

use super::{
    harness::{apply, chain, complete, rollback, schema_only},
    server::{Database, have_server},
};

const ORDERS: &str = "CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL, amount bigint, note text DEFAULT 'none'); \
     INSERT INTO orders (customer, amount, note) SELECT g % 100, CASE WHEN g % 7 = 0 THEN NULL ELSE g * 10 END, 'n' || g FROM generate_series(1, 5000) g; \
     CREATE INDEX orders_customer ON orders (customer); ANALYZE orders;";

const MONEY: &str = r#"
format = 1
id = "0001_money"
app_version = "1.1.0"
[[step]]
op = "alter_column"
table = "orders"
column = "amount"
type = "decimal(18,2)"
nullable = false
up = "coalesce(amount, 0) / 100.0"
down = "cast(amount * 100 as bigint)"
"#;

#[test]
fn a_column_gets_another_type_and_both_versions_write() {
    if !have_server() {
        return;
    }
    let database = Database::with(ORDERS);
    let report = apply(&database, MONEY);
    assert_eq!(report.version, 1);
    let copied = report.ledger.iter().find(|line| line.kind == "copy").expect("a ledger");
    assert_eq!((copied.seen, copied.copied), (5000, 5000));
    let verified = report.ledger.iter().find(|line| line.kind == "verify").expect("verified");
    assert_eq!(verified.seen, 5000);
    let expected = database.value("SELECT (sum(g * 10) FILTER (WHERE g % 7 <> 0) / 100.0)::numeric(18,2) FROM generate_series(1, 5000) g");
    assert_eq!(database.value("SELECT sum(amount) FROM orders"), expected);
    assert_eq!(database.value("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'amount'"), "numeric(18,2)");
    // The old version writes cents through its view, the new one money.
    database.run("SET search_path = app_v0, public; INSERT INTO orders (id, customer, amount) VALUES (9001, 1, 250); UPDATE orders SET amount = 1000 WHERE id = 1");
    database.run("SET search_path = app_v1_1_0, public; INSERT INTO orders (id, customer, amount) VALUES (9002, 1, 2.50); UPDATE orders SET amount = 7.77 WHERE id = 2; DELETE FROM orders WHERE id = 3");
    assert_eq!(
        database.value(
            "SELECT string_agg(amount::text, ' ' ORDER BY id) FROM orders WHERE id IN (1, 2, 3, 9001, 9002)"
        ),
        "10.00 7.77 2.50 2.50"
    );
    assert_eq!(database.value("SELECT string_agg(amount::text, ' ' ORDER BY id) FROM app_v0.orders WHERE id IN (1, 2, 3, 9001, 9002)"), "1000 777 250 250");
    let early = complete(&database, "0001_money").map(drop).expect_err("the old version wrote");
    assert!(chain(&early).contains("were written in the old shape"), "{}", chain(&early));
    complete(&database, "0001_money").expect("completed");
    assert_eq!(
        database.value(
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '\\_cutover%' OR nspname = 'app_v0'"
        ),
        "0"
    );
    assert_eq!(database.value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0 AND NOT attisdropped"), "4");
}

#[test]
fn a_rollback_after_the_swap_keeps_what_both_versions_wrote() {
    if !have_server() {
        return;
    }
    let database = Database::with(ORDERS);
    let before = schema_only(&database);
    apply(&database, MONEY);
    database.run("INSERT INTO app_v0.orders (id, customer, amount) VALUES (9001, 1, 250); DELETE FROM orders WHERE id = 4; UPDATE orders SET id = 9100 WHERE id = 5");
    database.run("INSERT INTO orders (id, customer, amount) VALUES (9002, 1, 2.50)");
    rollback(&database, "0001_money").expect("rolled back");
    assert_eq!(database.value("SELECT string_agg(id || '=' || coalesce(amount::text, 'NULL'), ' ' ORDER BY id) FROM orders WHERE id IN (4, 5, 7) OR id > 9000"), "7=NULL 9001=250 9002=250 9100=50");
    assert_eq!(schema_only(&database), before);
}
