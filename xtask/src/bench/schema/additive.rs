//! Columns are added to a large table, one migration each: what a user waits for, and what the engine itself takes.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{
    cutover::Applied,
    measure::{Figure, Latencies, Measured, ms},
    postgres::Server,
    sqlite,
    stage::Stage,
};

/// The columns, in turn: what each round adds.
const COLUMNS: &[(&str, &str)] = &[
    ("nullable", "type = \"text\""),
    ("NOT NULL, constant default", "type = \"integer\", nullable = false, default = { value = 7 }"),
];

/// Runs both engines.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    println!("{} rows\n", stage.options.additive_rows);
    println!(
        "| engine | column | rounds | whole command, ms: median | max | engine with history, ms: median | max |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut figures = postgres(stage)?;
    figures.extend(sqlite(stage)?);
    Ok(figures)
}

fn postgres(stage: &Stage) -> Result<Vec<Measured>> {
    let Some(server) = Server::start(stage)? else { return Ok(Vec::new()) };
    server.clear()?;
    server.table("orders", stage.options.additive_rows)?;
    let mut bare = Vec::new();
    let mut client = server.connect()?;
    for round in 0..stage.options.additive_rounds {
        let started = Instant::now();
        client
            .batch_execute(&format!("ALTER TABLE orders ADD COLUMN bare_{round} int NOT NULL DEFAULT 7"))?;
        bare.push(ms(started.elapsed()));
    }
    let bare = Latencies::new(bare);
    println!(
        "| PostgreSQL | bare ALTER TABLE, no history, connected before | {} | {:.1} | {:.1} | | |",
        stage.options.additive_rounds,
        bare.quantile(0.5),
        bare.max()
    );
    let figures = ours(stage, "PostgreSQL", &server.url(), Figure::AdditivePostgres)?;
    let added = server.sql(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname LIKE 'extra\\_%'",
    )?;
    ensure!(added == (stage.options.additive_rounds + 1).to_string(), "{added} columns were added");
    Ok(figures)
}

fn sqlite(stage: &Stage) -> Result<Vec<Measured>> {
    let path = sqlite::make(&stage.place, stage.options.additive_rows)?;
    let figures = ours(stage, "SQLite", &sqlite::url(&path), Figure::AdditiveSqlite)?;
    let added: i64 = sqlite::connect(&path)?.query_row(
        "SELECT count(*) FROM pragma_table_info('orders') WHERE name LIKE 'extra\\_%' ESCAPE '\\'",
        [],
        |row| row.get(0),
    )?;
    ensure!(u64::try_from(added) == Ok(stage.options.additive_rounds + 1), "{added} columns were added");
    Ok(figures)
}

fn ours(stage: &Stage, engine: &str, url: &str, median: Figure) -> Result<Vec<Measured>> {
    let apply = |round: u64, column: &str| -> Result<Applied> {
        let after = if round == 0 { String::new() } else { format!("after = \"{}\"\n", id(round - 1)) };
        let steps = format!(
            "{after}[[step]]\nop = \"add_column\"\ntable = \"orders\"\ncolumn = {{ name = \"extra_{round}\", {column} }}\n"
        );
        stage.cutover.apply(&stage.place, url, &id(round), &steps)
    };
    // The first migration of a database makes the state tables too.
    let first = apply(0, COLUMNS[0].1)?;
    let row = |column: &str, all: &[Applied]| {
        let whole = Latencies::new(all.iter().map(|one| ms(one.took)));
        let inside = Latencies::new(all.iter().map(Applied::engine_ms));
        println!(
            "| {engine} | {column} | {} | {:.1} | {:.1} | {:.0} | {:.0} |",
            all.len(),
            whole.quantile(0.5),
            whole.max(),
            inside.quantile(0.5),
            inside.max()
        );
        (whole.quantile(0.5), whole.max())
    };
    row("nullable; the first migration of the database (not in the figures)", &[first]);
    let mut worst = Vec::new();
    let mut kinds: Vec<Vec<Applied>> = COLUMNS.iter().map(|_| Vec::new()).collect();
    for round in 1..=stage.options.additive_rounds {
        let kind = (round % COLUMNS.len() as u64) as usize;
        kinds[kind].push(apply(round, COLUMNS[kind].1)?);
    }
    let mut figures = Vec::new();
    for ((name, _), all) in COLUMNS.iter().zip(&kinds).filter(|(_, all)| !all.is_empty()) {
        let (value, max) = row(name, all);
        figures.push(Measured { figure: median, value });
        worst.push(max);
    }
    figures.extend(worst.into_iter().map(|value| Measured { figure: Figure::AdditiveWorst, value }));
    Ok(figures)
}

fn id(round: u64) -> String {
    format!("{round:04}_extra")
}
