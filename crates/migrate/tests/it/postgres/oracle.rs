//! The oracle on PostgreSQL: independent writers on several connections, some of them above READ COMMITTED, while the table
//! is copied, verified, swapped, and taken back.

use std::time::Duration;

use cutover_migrate::{
    engine::{Engine as _, Unwatched},
    postgres::PostgresEngine,
    state::sql::Sql,
};

use super::{
    harness::{rollback, with_migrator},
    server::{Database, have_server},
};
use crate::{
    oracle::{Writers, agree, create_table, fill, read},
    support::{done, migration},
};

const STEPS: &str = r#"
[[step]]
op = "alter_column"
table = "accounts"
column = "amount"
type = "decimal(18,2)"
up = "amount / 100.0"
down = "cast(amount * 100 as bigint)"
[[step]]
op = "add_index"
table = "accounts"
name = "accounts_note"
columns = ["note"]
"#;

/// Connections as clients of the old version have them, each with its isolation level.
fn clients(database: &Database<'_>, levels: &[&str]) -> Vec<Box<dyn Sql + Send>> {
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let connections = levels.iter().map(|level| {
        let mut sql = engine.another().expect("connected");
        let settings = format!("SET search_path = app_v0, public; SET default_transaction_isolation = '{level}'; SET lock_timeout = '30s'");
        sql.execute(&settings, &[]).expect("set");
        sql
    });
    connections.collect()
}

#[test]
fn writers_of_all_isolation_levels_lose_nothing() {
    if !have_server() {
        return;
    }
    let keep = Database::new();
    for seed in 0..crate::oracle::seeds(3) {
        let database = Database::new();
        let mut sql = clients(&database, &["read committed"]).pop().expect("one");
        create_table(&mut *sql, "accounts");
        let start = fill(&mut *sql, "accounts", 3000);
        database.run("ANALYZE accounts");
        let levels = ["read committed", "read committed", "repeatable read", "serializable"];
        let writers =
            Writers::start(clients(&database, &levels), "accounts", &start, seed, Duration::from_micros(300));
        writers.wait_for(50);
        let plan = migration("0001_amount", None, STEPS);
        done(with_migrator(&database, &Unwatched, |migrator| migrator.apply(&plan, None)));
        writers.wait_for(200);
        if seed % 2 == 1 {
            rollback(&database, "0001_amount").expect("rolled back");
            writers.wait_for(50);
        }
        let ledger = writers.stop();
        agree(&ledger, &read(&mut *sql, "accounts"), &format!("seed {seed}"));
    }
    drop(keep);
}
