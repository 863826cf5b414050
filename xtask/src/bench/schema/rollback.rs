//! A change is taken back after its swap, while writers with a ledger go on: how long it takes, and whether what the database
//! acknowledged is there afterwards.
//!
//! Both shapes show the same number in the column whose type changes, so a writer need not know which one it writes. Rows
//! above the first ones belong to the writers alone, each to one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;

use super::{
    clients::{Client, Clients},
    measure::{Figure, Measured, ms, now_s, split},
    postgres::Server,
    sqlite,
    stage::Stage,
};

/// Writers in PostgreSQL; SQLite has one, as it lets one write at a time.
const WRITERS: u64 = 4;
/// How long writers go on between the swap and the rollback.
const AFTER_SWAP: Duration = Duration::from_secs(2);

const ID: &str = "0001_decimal";
const STEPS: &str = "[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\ntype = \"decimal(18,2)\"\n\
    nullable = false\nup = \"coalesce(amount, 0)\"\ndown = \"cast(round(amount) as bigint)\"\n";

/// Runs both engines.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    println!("{} rows\n", stage.options.rows);
    println!(
        "| engine | round | writes/s | until the old shape serves, s | whole command, s | client max during it, ms | writes acknowledged | rows they left | rows that differ | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut figures = Vec::new();
    if let Some(server) = Server::start(stage)? {
        for round in 1..=stage.options.rollbacks {
            figures.extend(postgres(stage, &server, round)?);
        }
    }
    for round in 1..=stage.options.rollbacks {
        figures.extend(sqlite(stage, round)?);
    }
    Ok(figures)
}

fn postgres(stage: &Stage, server: &Server, round: u64) -> Result<Vec<Measured>> {
    let rows = stage.options.rows;
    server.clear()?;
    server.table("orders", rows)?;
    let mut sessions: Vec<Execute> = Vec::new();
    for _ in 0..WRITERS {
        let mut client = server.connect()?;
        sessions.push(Box::new(move |sql| Ok(client.batch_execute(sql)?)));
    }
    let done = there_and_back(stage, &server.url(), sessions, stage.options.tps)?;
    let mut client = server.connect()?;
    let kind: String = client
        .query_one(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'amount'",
            &[],
        )?
        .get(0);
    ensure!(kind == "bigint", "after the rollback the column is {kind}");
    let found = client.query(&format!("SELECT id, amount FROM orders WHERE id > {rows}"), &[])?;
    let found = found.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1)));
    let first = client.query_one(
        &format!("SELECT count(*), cast(sum(amount) as bigint) FROM orders WHERE id <= {rows}"),
        &[],
    )?;
    done.close("PostgreSQL", round, stage.options.tps, found.collect(), (first.get(0), first.get(1)), rows)
}

fn sqlite(stage: &Stage, round: u64) -> Result<Vec<Measured>> {
    let rows = stage.options.rows;
    let path = sqlite::make(&stage.place, rows)?;
    let connection = sqlite::connect(&path)?;
    let session: Execute = Box::new(move |sql| Ok(connection.execute_batch(sql)?));
    let done = there_and_back(stage, &sqlite::url(&path), vec![session], stage.options.writes)?;
    let connection = sqlite::connect(&path)?;
    let kind: String = connection.query_row(
        "SELECT type FROM pragma_table_info('orders') WHERE name = 'amount'",
        [],
        |row| row.get(0),
    )?;
    ensure!(kind == "bigint", "after the rollback the column is {kind}");
    let mut statement = connection.prepare(&format!("SELECT id, amount FROM orders WHERE id > {rows}"))?;
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let first = connection.query_row(
        &format!("SELECT count(*), sum(amount) FROM orders WHERE id <= {rows}"),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    done.close("SQLite", round, stage.options.writes, found, first, rows)
}

/// What writers were told: amounts by id.
type Ledger = BTreeMap<i64, i64>;
/// Runs one statement in a transaction of its own.
type Execute = Box<dyn FnMut(&str) -> Result<()> + Send>;

/// What happened until the writers stopped.
struct Done {
    /// Until the command said that the change is rolled back.
    back: Duration,
    /// Until it had removed what it took out of use.
    took: Duration,
    stall_ms: f64,
    acknowledged: usize,
    ledger: Ledger,
    says: String,
}

fn there_and_back(stage: &Stage, url: &str, sessions: Vec<Execute>, per_second: u64) -> Result<Done> {
    let mut ledgers = Vec::new();
    let mut clients = Vec::new();
    let count = sessions.len() as u64;
    for (number, session) in sessions.into_iter().enumerate() {
        let ledger = Arc::new(Mutex::new(Ledger::new()));
        ledgers.push(ledger.clone());
        clients.push(writer(session, ledger, stage.options.rows + 1 + number as u64, count));
    }
    let clients = Clients::start(clients, per_second);
    stage.cutover.apply(&stage.place, url, ID, STEPS)?;
    std::thread::sleep(AFTER_SWAP);
    let began = now_s();
    let (back, took) = stage.cutover.roll_back(url, ID).context("the rollback")?;
    let ended = now_s();
    let log = clients.stop()?;
    let seen = split(&log.samples, began, ended, |sample| sample.due_ms);
    let mut ledger = Ledger::new();
    for one in ledgers {
        ledger.append(&mut one.lock().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(Done {
        back,
        took,
        stall_ms: seen.during.max(),
        acknowledged: log.samples.len(),
        ledger,
        says: log.says(),
    })
}

/// Inserts, updates and deletes rows of its own: `first`, and every `step`th after it. The ledger has what was acknowledged.
fn writer(mut session: Execute, ledger: Arc<Mutex<Ledger>>, first: u64, step: u64) -> Client {
    let mut next = first as i64;
    Box::new(move || {
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut random = rand::rng();
        let amount = random.random_range(0..1_000_000_i64);
        let known = match ledger.len() {
            0 => None,
            len => ledger.keys().nth(random.random_range(0..len.min(1000))).copied(),
        };
        match (random.random_range(0..10), known) {
            (0..3, Some(id)) => {
                session(&format!("UPDATE orders SET amount = {amount} WHERE id = {id}"))?;
                ledger.insert(id, amount);
            }
            (3..5, Some(id)) => {
                session(&format!("DELETE FROM orders WHERE id = {id}"))?;
                ledger.remove(&id);
            }
            _ => {
                let id = next;
                session(&format!("INSERT INTO orders (id, customer, amount) VALUES ({id}, 1, {amount})"))?;
                next += step as i64;
                ledger.insert(id, amount);
            }
        }
        Ok(())
    })
}

impl Done {
    /// Compares with the table: what is above `rows`, and count and sum of what no writer touched. `found` keeps rows
    /// that come twice.
    fn close(
        self,
        engine: &str,
        round: u64,
        per_second: u64,
        found: Vec<(i64, i64)>,
        first: (i64, i64),
        rows: u64,
    ) -> Result<Vec<Measured>> {
        let differ = differences(&self.ledger, &found);
        println!(
            "| {engine} | {round} | {per_second} | {:.3} | {:.3} | {:.1} | {} | {} | {differ} | {} |",
            self.back.as_secs_f64(),
            self.took.as_secs_f64(),
            self.stall_ms,
            self.acknowledged,
            self.ledger.len(),
            self.says
        );
        let expected = (rows as i64, (1..=rows as i64).map(|id| id % 1_000_000).sum());
        ensure!(first == expected, "rows that nobody wrote: count and sum are {first:?}, not {expected:?}");
        ensure!(differ == 0, "{differ} rows differ from what the writers were told");
        Ok(vec![
            Measured { figure: Figure::Rollback, value: ms(self.back) },
            Measured { figure: Figure::Ledger, value: differ as f64 },
        ])
    }
}

/// Rows that are lost, wrong, there twice, or risen from the dead.
fn differences(ledger: &Ledger, found: &[(i64, i64)]) -> usize {
    let mut left = ledger.clone();
    let wrong = found.iter().filter(|(id, amount)| left.remove(id) != Some(*amount)).count();
    wrong + left.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_wrong_doubled_and_risen_rows_are_differences() {
        let ledger = Ledger::from([(1, 10), (2, 20)]);
        assert_eq!(differences(&ledger, &[(1, 10), (2, 20)]), 0);
        assert_eq!(differences(&ledger, &[(1, 10)]), 1);
        assert_eq!(differences(&ledger, &[(1, 10), (2, 21)]), 1);
        assert_eq!(differences(&ledger, &[(1, 10), (2, 20), (2, 20)]), 1);
        assert_eq!(differences(&ledger, &[(1, 10), (2, 20), (3, 30)]), 1);
    }
}
