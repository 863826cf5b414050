//! Many small tables are rewritten one after the other under load: how long the swap of each held its lock.

use anyhow::Result;
use rand::RngExt as _;

use super::{
    clients::{Client, Clients},
    measure::{Figure, Latencies, Measured, now_s, split},
    postgres::Server,
    rewrite::STEPS,
    stage::Stage,
};

/// Rows of each table.
const ROWS: u64 = 10_000;
/// Clients.
const CLIENTS: usize = 8;

/// Runs the rewrites.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    let Some(server) = Server::start(stage)? else { return Ok(Vec::new()) };
    let tables = stage.options.swaps.max(1);
    server.clear()?;
    for table in 1..=tables {
        server.table(&name(table), ROWS)?;
    }
    let clients = (0..CLIENTS).map(|_| client(&server, tables)).collect::<Result<Vec<Client>>>()?;
    let clients = Clients::start(clients, stage.options.tps);
    std::thread::sleep(std::time::Duration::from_secs(stage.options.baseline_s));
    let began = now_s();
    let mut holds = Vec::new();
    for table in 1..=tables {
        let after = if table == 1 { String::new() } else { format!("after = \"{}\"\n", id(table - 1)) };
        let steps = format!("{after}{}", STEPS.replace("\"orders\"", &format!("\"{}\"", name(table))));
        holds.push(stage.cutover.apply(&stage.place, &server.url(), &id(table), &steps)?.swap_hold_ms());
    }
    let ended = now_s();
    let log = clients.stop()?;
    let holds = Latencies::new(holds);
    let seen = split(&log.samples, began, ended, |sample| sample.due_ms);
    println!("{tables} tables of {ROWS} rows, {CLIENTS} clients, {} writes/s over all\n", stage.options.tps);
    println!("| swap held: p50, ms | p99, ms | max, ms | client p99 before, ms | during, ms | max, ms | |");
    println!("|---|---|---|---|---|---|---|");
    println!(
        "| {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
        holds.quantile(0.5),
        holds.quantile(0.99),
        holds.max(),
        seen.before.quantile(0.99),
        seen.during.quantile(0.99),
        seen.during.max(),
        log.says()
    );
    Ok(vec![Measured { figure: Figure::Swap, value: holds.quantile(0.99) }])
}

fn name(table: u64) -> String {
    format!("orders_{table:03}")
}

fn id(table: u64) -> String {
    format!("{table:04}_money")
}

fn client(server: &Server, tables: u64) -> Result<Client> {
    let mut client = server.connect()?;
    Ok(Box::new(move || {
        let (table, id) = (rand::rng().random_range(1..=tables), rand::rng().random_range(1..=ROWS));
        client.batch_execute(&format!("UPDATE {} SET note = 'changed' WHERE id = {id}", name(table)))?;
        Ok(())
    }))
}
