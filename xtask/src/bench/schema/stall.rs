//! DDL meets a transaction that holds the table for five seconds, while other clients read and write.
//!
//! A request for a strong lock that waits makes everyone queue behind it. Measured is the longest that a statement of a
//! client took, the latencies from when statements were due, and how long after the transaction's end the command was over.
//! The bare ALTER TABLE shows what the clients would see otherwise, and that the measurement sees it.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rand::RngExt as _;

use super::{
    clients::{Client, Clients},
    measure::{Figure, Measured, ms, now_s, split},
    postgres::Server,
    stage::Stage,
};

/// Rows of the table: what is measured does not depend on them, but a rewrite has to end soon after the transaction.
const ROWS: u64 = 20_000;
/// How long the transaction holds the table.
const HELD: Duration = Duration::from_secs(5);
/// Clients.
const CLIENTS: usize = 8;

/// The changes: what they are, and the keys of the step beside its table.
const CHANGES: &[(&str, &str)] = &[
    ("add column", "op = \"add_column\"\ncolumn = { name = \"phone\", type = \"text\" }"),
    ("rename column", "op = \"rename_column\"\nfrom = \"note\"\nto = \"remark\""),
    ("drop column (hidden)", "op = \"drop_column\"\ncolumn = \"note\"\ngrace = \"7d\""),
    ("set NOT NULL", "op = \"alter_column\"\ncolumn = \"amount\"\nnullable = false"),
    ("add check", "op = \"add_check\"\nname = \"positive\"\nexpr = \"amount >= 0\""),
    ("add index", "op = \"add_index\"\nname = \"by_customer\"\ncolumns = [\"customer\"]"),
    (
        "change type (shadow table, 20 000 rows)",
        "op = \"alter_column\"\ncolumn = \"amount\"\ntype = \"decimal(18,2)\"\nup = \"coalesce(amount, 0) / 100.0\"\ndown = \"cast(round(amount * 100) as bigint)\"",
    ),
];

/// Runs every change behind a transaction.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    let Some(server) = Server::start(stage)? else { return Ok(Vec::new()) };
    println!(
        "{ROWS} rows, {CLIENTS} clients, {} statements/s; the transaction has written a row\n",
        stage.options.tps
    );
    println!(
        "| DDL | client p99 before, ms | during, ms | max, ms | longest that one statement took, ms | over after the transaction's end, ms | |"
    );
    println!("|---|---|---|---|---|---|---|");
    let bare =
        |server: &Server| -> Result<()> { server.sql("ALTER TABLE orders ADD COLUMN phone text").map(drop) };
    round(stage, &server, "bare ALTER TABLE ADD COLUMN", &bare)?;
    let mut figures = Vec::new();
    for (name, keys) in CHANGES {
        let steps = format!("app_version = \"2.0.0\"\n[[step]]\ntable = \"orders\"\n{keys}\n");
        let ours = |server: &Server| -> Result<()> {
            stage.cutover.apply(&stage.place, &server.url(), "0001_change", &steps).map(drop)
        };
        let (stall, landed) = round(stage, &server, &format!("cutover: {name}"), &ours)?;
        figures.push(Measured { figure: Figure::Stall, value: stall });
        figures.push(Measured { figure: Figure::Landed, value: landed });
    }
    Ok(figures)
}

/// One change; the longest stall and the time after the transaction's end, in milliseconds.
fn round(
    stage: &Stage,
    server: &Server,
    name: &str,
    change: &dyn Fn(&Server) -> Result<()>,
) -> Result<(f64, f64)> {
    server.clear()?;
    server.table("orders", ROWS + 1)?;
    let clients =
        (0..CLIENTS).map(|number| client(server, STATEMENTS[number % 2])).collect::<Result<Vec<Client>>>()?;
    let clients = Clients::start(clients, stage.options.tps);
    std::thread::sleep(Duration::from_secs(stage.options.baseline_s));
    let blocker = Blocker::start(server)?;
    let began = now_s();
    let result = change(server);
    let (over, ended) = (Instant::now(), now_s());
    let released = blocker.released()?;
    let log = clients.stop()?;
    result.with_context(|| format!("`{name}`"))?;
    let seen = split(&log.samples, began, ended, |sample| sample.due_ms);
    let took = split(&log.samples, began, ended, |sample| sample.took_ms).during.max();
    // Done before the transaction's end is sooner than at it.
    let landed = ms(over.saturating_duration_since(released));
    println!(
        "| {name} | {:.1} | {:.1} | {:.1} | {took:.1} | {landed:.0} | {} |",
        seen.before.quantile(0.99),
        seen.during.quantile(0.99),
        seen.during.max(),
        log.says()
    );
    Ok((took, landed))
}

/// Half of the clients write. Their column stays as it is, whatever the change.
const STATEMENTS: [&str; 2] = ["UPDATE orders SET country = 'FR'", "SELECT country FROM orders"];

fn client(server: &Server, statement: &'static str) -> Result<Client> {
    let mut client = server.connect()?;
    Ok(Box::new(move || {
        let id = rand::rng().random_range(1..=ROWS);
        client.batch_execute(&format!("{statement} WHERE id = {id}"))?;
        Ok(())
    }))
}

/// A transaction that has written a row which no client wants.
struct Blocker {
    thread: std::thread::JoinHandle<Result<Instant>>,
}

impl Blocker {
    /// Returns when the transaction holds the table.
    fn start(server: &Server) -> Result<Self> {
        let mut client = server.connect()?;
        let (holds, held) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let row = ROWS + 1;
            client.batch_execute(&format!("BEGIN; UPDATE orders SET country = 'IT' WHERE id = {row}"))?;
            holds.send(()).map_err(|_| anyhow!("nobody waits for the transaction"))?;
            std::thread::sleep(HELD);
            client.batch_execute("COMMIT")?;
            Ok(Instant::now())
        });
        held.recv().context("the transaction did not begin")?;
        Ok(Self { thread })
    }

    /// When the transaction ended.
    fn released(self) -> Result<Instant> {
        self.thread.join().map_err(|_| anyhow!("the transaction panicked"))?
    }
}
