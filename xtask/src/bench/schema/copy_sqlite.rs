//! The same change on SQLite: the limit, ours idle, and ours beside a writer with a connection of its own.

use std::{path::Path, time::Duration, time::Instant};

use anyhow::{Result, ensure};
use rand::RngExt as _;

use super::{
    clients::{Client, Clients},
    measure::{Figure, Measured, now_s, number, split},
    rewrite::STEPS,
    sqlite,
    stage::Stage,
};

/// Runs every way.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    let rows = stage.options.rows;
    println!("SQLite {}, {rows} rows, WAL\n", rusqlite::version());
    println!(
        "| way | writer | s | rows/s | copied rows/s | verified rows/s | a write: p99 before, ms | during, ms | max, ms | from when it was due: p99 before, ms | during, ms | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    limit(stage)?;
    let mut figures = ours(stage, None)?;
    for synchronous in ["NORMAL", "FULL"] {
        figures.extend(ours(stage, Some(synchronous))?);
    }
    Ok(figures)
}

fn limit(stage: &Stage) -> Result<()> {
    let path = sqlite::make(&stage.place, stage.options.rows)?;
    let connection = sqlite::connect(&path)?;
    connection.execute_batch(
        "CREATE TABLE copy (id INTEGER PRIMARY KEY, customer int NOT NULL, amount decimal(18,2), country text, note text)",
    )?;
    let started = Instant::now();
    connection.execute_batch(
        "INSERT INTO copy SELECT id, customer, coalesce(amount, 0) / 100.0, country, note FROM orders ORDER BY id",
    )?;
    let s = started.elapsed().as_secs_f64();
    println!(
        "| INSERT .. SELECT into another table (the limit: one transaction, no checks) | none | {s:.1} | {:.0} | | | | | | | | |",
        stage.options.rows as f64 / s
    );
    Ok(())
}

/// `synchronous` is the writer's setting: with FULL each of its commits waits for the disk.
fn ours(stage: &Stage, synchronous: Option<&str>) -> Result<Vec<Measured>> {
    let rows = stage.options.rows;
    let path = sqlite::make(&stage.place, rows)?;
    let expected = sum(&path, "sum(coalesce(amount, 0))")?;
    let clients = match synchronous {
        Some(setting) => Some(Clients::start(vec![writer(&path, rows, setting)?], stage.options.writes)),
        None => None,
    };
    if clients.is_some() {
        std::thread::sleep(Duration::from_secs(stage.options.baseline_s));
    }
    let began = now_s();
    let applied = stage.cutover.apply_with_phases(&stage.place, &sqlite::url(&path), "0001_money", STEPS)?;
    let ended = began + applied.took.as_secs_f64();
    let log = clients.map(Clients::stop).transpose()?;
    let found = sum(&path, "CAST(round(sum(amount) * 100) AS INTEGER)")?;
    ensure!(found == expected, "the sum is {found}, not {expected}");
    let rate = rows as f64 / applied.took.as_secs_f64();
    let mut figures = Vec::new();
    let (mut columns, mut notes) = ("| | | | ".to_owned(), applied.says());
    if let Some(log) = log {
        let took = split(&log.samples, began, ended, |sample| sample.took_ms);
        let due = split(&log.samples, began, ended, |sample| sample.due_ms);
        columns = format!(
            "{:.1} | {:.1} | {:.1} | {:.1} | {:.1}",
            took.before.quantile(0.99),
            took.during.quantile(0.99),
            took.during.max(),
            due.before.quantile(0.99),
            due.during.quantile(0.99)
        );
        notes = [notes, log.says()].join(" ");
        figures = vec![
            Measured { figure: Figure::SqliteRate, value: rate },
            Measured { figure: Figure::SqliteP99, value: took.during.quantile(0.99) },
            Measured { figure: Figure::SqliteMax, value: took.during.max() },
        ];
    }
    let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
    let writes = match synchronous {
        Some(setting) => format!("{}/s, synchronous = {setting}", stage.options.writes),
        None => "none".to_owned(),
    };
    println!(
        "| cutover | {writes} | {:.1} | {rate:.0} | {} | {} | {columns} | {} |",
        applied.took.as_secs_f64(),
        optional(applied.copied_per_s(rows)),
        optional(applied.verified_per_s(rows)),
        notes.trim()
    );
    Ok(figures)
}

fn sum(path: &Path, of: &str) -> Result<i64> {
    Ok(sqlite::connect(path)?.query_row(&format!("SELECT {of} FROM orders"), [], |row| row.get(0))?)
}

fn writer(path: &Path, rows: u64, synchronous: &str) -> Result<Client> {
    let connection = sqlite::connect(path)?;
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}"))?;
    Ok(Box::new(move || {
        let id = i64::try_from(rand::rng().random_range(1..=rows))?;
        connection.prepare_cached("UPDATE orders SET note = 'changed' WHERE id = ?1")?.execute([id])?;
        Ok(())
    }))
}
