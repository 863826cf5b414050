//! Running migrations in tests.

pub(crate) use cutover_core::causes::chain;
use cutover_migrate::{
    Error,
    engine::{Loss, Policy, Unwatched, Watch},
    grace::Floor,
    ir::Migration,
    postgres::PostgresEngine,
    run::{Applied, Migrator, Report, Settings, no_functions},
};

use super::server::Database;

pub(crate) fn settings() -> Settings {
    let policy = Policy { chunk_rows: 500, lock_patience_ms: 60_000, ..Policy::default() };
    Settings { author: "tester".to_owned(), probe: false, policy, ..Settings::default() }
}

/// A lease that ends soon after its owner did.
pub(crate) fn short_lease() -> Settings {
    Settings { lease_ms: 400, ..settings() }
}

/// Cents become numbers with a fraction.
pub(crate) const CENTS: &str = r#"
[[step]]
op = "alter_column"
table = "orders"
column = "amount"
type = "decimal(18,2)"
up = "amount / 100.0"
down = "cast(amount * 100 as bigint)"
"#;

pub(crate) fn migration(text: &str) -> Migration {
    cutover_migrate::file::parse(text).expect("a valid migration")
}

pub(crate) fn with_migrator<T>(
    database: &Database<'_>,
    watch: &dyn Watch,
    work: impl FnOnce(&mut Migrator<'_>) -> T,
) -> T {
    let engine = PostgresEngine::connect(&database.url()).expect("connected");
    let mut migrator = Migrator::new(Box::new(engine), settings(), watch, &no_functions);
    work(&mut migrator)
}

pub(crate) fn try_apply(database: &Database<'_>, text: &str) -> Result<Applied, Error> {
    with_migrator(database, &Unwatched, |migrator| migrator.apply(&migration(text), None))
}

pub(crate) fn apply(database: &Database<'_>, text: &str) -> Report {
    match try_apply(database, text) {
        Ok(Applied::Done(report)) => *report,
        Ok(Applied::Already) => panic!("it was applied before"),
        Err(error) => panic!("{}", chain(&error)),
    }
}

pub(crate) fn rollback(database: &Database<'_>, id: &str) -> Result<(), Error> {
    with_migrator(database, &Unwatched, |migrator| migrator.rollback(id, Loss::Refuse))
}

pub(crate) fn complete(database: &Database<'_>, id: &str) -> Result<Applied, Error> {
    let everywhere = Floor { lowest: "99.0.0".parse().expect("a version"), rollback_open: false };
    with_migrator(database, &Unwatched, |migrator| migrator.complete(id, &everywhere, 1_000_000))
}

/// The dump of a database without our state and without what pg_dump says at random.
pub(crate) fn schema_only(database: &Database<'_>) -> String {
    let dump = database.dump();
    let mut kept = Vec::new();
    let dump = dump.split("\n--\n-- PostgreSQL database dump complete").next().unwrap_or_default();
    for part in dump.split("\n--\n-- Name: ") {
        let ours = part.contains("Schema: cutover;") || part.starts_with("cutover; Type: SCHEMA");
        let noise = part.contains("\\restrict");
        if !ours && !noise {
            kept.push(
                part.trim_end().lines().filter(|line| !line.starts_with("\\")).collect::<Vec<_>>().join("\n"),
            );
        }
    }
    kept.sort();
    kept.join("\n\n")
}
