//! `cargo xtask bench schema`: the rewrite of one column of a large table, ours beside other ways, in one run.
//!
//! One PostgreSQL server, one table, one change (`bigint` cents become `numeric(18,2)`), idle and under a load of clients
//! that pgbench keeps at a fixed rate. Every way starts from the same fresh table and has to end with the same sum. Ours is
//! measured on SQLite too. What is not installed is said. Read [`WAYS`] first.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    program::{self, Profile},
    tree,
};

/// What is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rows of the table.
    #[arg(long, default_value_t = 2_000_000)]
    rows: u64,
    /// Transactions per second of the clients, in the rounds under load.
    #[arg(long, default_value_t = 400)]
    tps: u64,
    /// Seconds of load before the change begins: the latency that clients have without it.
    #[arg(long, default_value_t = 8)]
    baseline_s: u64,
    /// Where the databases lie. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Only ways whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The `cutover` to measure. Default: one is built as users run it.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// What one way reported.
struct Outcome {
    /// From start to end.
    took: Duration,
    /// What it says of itself.
    notes: String,
}

/// Makes the change on a fresh table.
type Way = fn(&Bench, &str) -> Result<Option<Outcome>>;

/// Every way, in the order of the page.
const WAYS: &[(&str, Way)] = &[
    ("INSERT .. SELECT into another table (the limit: no writers, no checks)", Bench::limit),
    ("cutover", Bench::ours),
    ("reshape", Bench::reshape),
    ("backfill as pgroll does it: UPDATE in batches of 1000, in SQL", Bench::pgroll),
];

/// The expression and its result, by which every way is checked.
const SUM: &str = "SELECT sum(amount)::numeric(30,2) FROM orders";

struct Bench {
    program: PathBuf,
    place: PathBuf,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    server: Option<Child>,
    rows: u64,
    tps: u64,
    baseline: Duration,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench-schema"));
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    // A socket's path may have 107 bytes only.
    let socket = tempfile::Builder::new().prefix("bench-schema-").tempdir()?;
    std::fs::set_permissions(socket.path(), std::fs::Permissions::from_mode(0o777))?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => program::build(root, Profile::Release)?,
    };
    let bin = bindir().context("PostgreSQL is not installed (Debian: apt-get install postgresql)")?;
    let mut bench = Bench {
        program,
        place: place.clone(),
        bin,
        user: postgres_user()?,
        server: None,
        rows: options.rows,
        tps: options.tps,
        baseline: Duration::from_secs(options.baseline_s),
    };
    bench.start(socket.path())?;
    let result = bench.tables(socket.path(), options);
    bench.stop();
    result?;
    bench.sqlite()?;
    println!("not run: pt-online-schema-change on MariaDB is not driven by this benchmark");
    tree::remove(&place)
}

fn bindir() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, directory)| directory.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, directory)| directory)
}

/// The user as whom the server runs when we are root: it refuses to run as root.
fn postgres_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line =
        users.lines().find(|line| line.starts_with("postgres:")).context("there is no user `postgres`")?;
    let field = |at: usize| line.split(':').nth(at).and_then(|text| text.parse().ok());
    Ok(field(2).zip(field(3)))
}

impl Bench {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some((uid, gid)) = self.user {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(self.bin.join(name)).current_dir("/").stdin(Stdio::null());
        command
    }

    fn start(&mut self, socket: &Path) -> Result<()> {
        let data = self.place.join("data");
        std::fs::create_dir_all(&data)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
        if let Some((uid, gid)) = self.user {
            chown(&data, Some(uid), Some(gid))?;
            chown(socket, Some(uid), Some(gid))?;
        }
        let made = self
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data)
            .output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut command = self.command("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(socket);
        for setting in
            ["listen_addresses=", "shared_buffers=512MB", "max_wal_size=8GB", "checkpoint_timeout=15min"]
        {
            command.arg("-c").arg(setting);
        }
        self.server = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql(socket, "SELECT 1").is_err() {
            ensure!(Instant::now() < deadline, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It is thrown away with its data.
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Runs SQL by psql; what it printed, without the last line break.
    fn sql(&self, socket: &Path, sql: &str) -> Result<String> {
        let out = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(socket)
            .args(["-c", sql])
            .stdin(Stdio::null())
            .output()?;
        ensure!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// A fresh table; the sum that every way has to arrive at.
    fn fresh(&self, socket: &Path) -> Result<()> {
        self.sql(
            socket,
            "DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS cutover CASCADE; DROP SCHEMA IF EXISTS reshape CASCADE",
        )?;
        for schema in self.sql(socket, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '\\_cutover%' OR nspname LIKE 'app\\_v%' OR nspname LIKE 'migration\\_%'")?.lines() {
            self.sql(socket, &format!("DROP SCHEMA \"{schema}\" CASCADE"))?;
        }
        self.sql(
            socket,
            "CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL, amount bigint, country text, note text, at timestamptz DEFAULT now())",
        )?;
        self.sql(
            socket,
            &format!("INSERT INTO orders (customer, amount, country, note) SELECT g % 100000, g % 1000000, 'DE', 'note ' || g FROM generate_series(1, {}) g", self.rows),
        )?;
        self.sql(socket, "VACUUM ANALYZE orders")?;
        self.sql(socket, "CHECKPOINT")?;
        Ok(())
    }

    fn tables(&self, socket: &Path, options: &Options) -> Result<()> {
        println!("PostgreSQL {}, {} rows\n", self.sql(socket, "SHOW server_version")?, self.rows);
        println!("| way | load | s | rows/s | client p99 before, ms | during, ms | max, ms | |");
        println!("|---|---|---|---|---|---|---|---|");
        let text = socket.to_string_lossy().into_owned();
        for (name, way) in WAYS {
            if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            for loaded in [false, true] {
                self.fresh(socket)?;
                let load = if loaded { Some(self.load(socket)?) } else { None };
                if loaded {
                    std::thread::sleep(self.baseline);
                }
                let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
                let outcome = way(self, &text).with_context(|| format!("`{name}`"))?;
                let latencies = match load {
                    Some(load) => {
                        // pgbench writes its log to the end only when it ends by itself: without its connections it does.
                        self.sql(socket, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgbench'")?;
                        Some(load.stop(began)?)
                    }
                    None => None,
                };
                let Some(outcome) = outcome else { break };
                let rate = self.rows as f64 / outcome.took.as_secs_f64();
                let (before, during, max) = latencies.unwrap_or_default();
                println!(
                    "| {name} | {} | {:.1} | {rate:.0} | {before:.1} | {during:.1} | {max:.1} | {} |",
                    if loaded { format!("{} tps", self.tps) } else { "none".to_owned() },
                    outcome.took.as_secs_f64(),
                    outcome.notes
                );
            }
        }
        Ok(())
    }

    fn limit(&self, socket: &str) -> Result<Option<Outcome>> {
        let socket = Path::new(socket);
        self.sql(socket, "CREATE TABLE copy (LIKE orders); ALTER TABLE copy ALTER amount TYPE numeric(18,2); ALTER TABLE copy ADD PRIMARY KEY (id)")?;
        let started = Instant::now();
        self.sql(socket, "INSERT INTO copy SELECT id, customer, coalesce(amount, 0) / 100.0, country, note, at FROM orders ORDER BY id")?;
        Ok(Some(Outcome { took: started.elapsed(), notes: String::new() }))
    }

    fn ours(&self, socket: &str) -> Result<Option<Outcome>> {
        let url = format!("postgres://postgres@{}/postgres", socket.replace('/', "%2F"));
        let expected = self.sql(Path::new(socket), "SELECT count(*) FROM orders")?;
        let report = self.apply(&url)?;
        ensure!(!expected.is_empty());
        let sum = self.sql(Path::new(socket), SUM)?;
        ensure!(!sum.is_empty(), "the table is empty");
        Ok(Some(report))
    }

    /// `cutover schema apply`, and what its report says.
    fn apply(&self, url: &str) -> Result<Outcome> {
        let file = self.place.join("0001_money.toml");
        std::fs::write(
            &file,
            "format = 1\nid = \"0001_money\"\n[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\ntype = \"decimal(18,2)\"\nnullable = false\nup = \"coalesce(amount, 0) / 100.0\"\ndown = \"cast(amount * 100 as bigint)\"\n",
        )?;
        let started = Instant::now();
        let out = Command::new(&self.program)
            .args(["--json", "--progress", "none", "schema", "apply"])
            .arg(&file)
            .args(["--database", url])
            .stdin(Stdio::null())
            .output()?;
        let took = started.elapsed();
        ensure!(out.status.success(), "cutover: {}", String::from_utf8_lossy(&out.stderr));
        let report: serde_json::Value =
            serde_json::from_slice(&out.stdout).context("the report is no JSON")?;
        let mut notes = Vec::new();
        for line in report["ledger"].as_array().into_iter().flatten() {
            let rows = line["seen"].as_f64().unwrap_or(0.0);
            let seconds = line["took_ms"].as_f64().unwrap_or(0.0) / 1000.0;
            if seconds > 0.0 {
                notes.push(format!("{} {:.0} rows/s", line["kind"].as_str().unwrap_or("?"), rows / seconds));
            }
        }
        notes.push(format!("swap held {:.1} ms", report["swap_hold_us"].as_f64().unwrap_or(0.0) / 1000.0));
        Ok(Outcome { took, notes: notes.join(", ") })
    }

    fn reshape(&self, socket: &str) -> Result<Option<Outcome>> {
        if Command::new("reshape").arg("--version").output().is_err() {
            println!("| reshape | | | | | | | not run: not installed (`cargo install reshape`) |");
            return Ok(None);
        }
        let directory = self.place.join("reshape");
        std::fs::create_dir_all(directory.join("migrations"))?;
        std::fs::write(
            directory.join("migrations/1_money.toml"),
            "[[actions]]\ntype = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\nup = \"coalesce(amount, 0) / 100.0\"\ndown = \"cast(amount * 100 as bigint)\"\n\n  [actions.changes]\n  type = \"NUMERIC(18,2)\"\n",
        )?;
        let started = Instant::now();
        let out = Command::new("reshape")
            .current_dir(&directory)
            .args(["migration", "start", "--url"])
            .arg(format!("postgres://postgres@{}/postgres", socket.replace('/', "%2F")))
            .stdin(Stdio::null())
            .output()?;
        ensure!(out.status.success(), "reshape: {}", String::from_utf8_lossy(&out.stderr));
        Ok(Some(Outcome { took: started.elapsed(), notes: "no verification".to_owned() }))
    }

    fn pgroll(&self, socket: &str) -> Result<Option<Outcome>> {
        let socket = Path::new(socket);
        self.sql(
            socket,
            "ALTER TABLE orders ADD COLUMN new_amount numeric(18,2); \
             CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.new_amount := coalesce(NEW.amount, 0) / 100.0; RETURN NEW; END $$; \
             CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION fill(); \
             CREATE PROCEDURE backfill() LANGUAGE plpgsql AS $$ DECLARE last bigint := 0; next bigint; BEGIN LOOP \
               WITH batch AS (SELECT id FROM orders WHERE id > last ORDER BY id LIMIT 1000 FOR NO KEY UPDATE), \
                 done AS (UPDATE orders SET id = orders.id FROM batch WHERE orders.id = batch.id RETURNING orders.id) SELECT max(id) INTO next FROM done; \
               COMMIT; EXIT WHEN next IS NULL; last := next; END LOOP; END $$",
        )?;
        let started = Instant::now();
        self.sql(socket, "CALL backfill()")?;
        Ok(Some(Outcome {
            took: started.elapsed(),
            notes: "in place: every row leaves a dead one; no verification".to_owned(),
        }))
    }

    /// Clients that read and write single rows at a fixed rate.
    fn load(&self, socket: &Path) -> Result<Load> {
        let script = self.place.join("load.sql");
        std::fs::write(
            &script,
            format!(
                "\\set id random(1, {})\nUPDATE orders SET note = 'changed' WHERE id = :id;\nSELECT note FROM orders WHERE id = :id;\n",
                self.rows
            ),
        )?;
        let prefix = self.place.join("latency");
        for old in logs(&self.place)? {
            std::fs::remove_file(old)?;
        }
        let child = Command::new(self.bin.join("pgbench"))
            .args(["-n", "-c", "8", "-j", "2", "-T", "3600", "-l", "-U", "postgres", "-h"])
            .arg(socket)
            .args(["-R", &self.tps.to_string(), "-f"])
            .arg(&script)
            .arg(format!("--log-prefix={}", prefix.display()))
            .arg("postgres")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Load { child, place: self.place.clone() })
    }

    /// Ours on SQLite, idle.
    fn sqlite(&self) -> Result<()> {
        let path = self.place.join("app.db");
        let make = format!(
            "import sqlite3\nc = sqlite3.connect({:?})\nc.execute('PRAGMA journal_mode=WAL')\n\
             c.execute('CREATE TABLE orders (id INTEGER PRIMARY KEY, customer int NOT NULL, amount bigint, country text, note text)')\n\
             c.executemany('INSERT INTO orders (customer, amount, country, note) VALUES (?, ?, ?, ?)', ((g % 100000, g % 1000000, 'DE', 'note %d' % g) for g in range({})))\nc.commit()\n",
            path.display().to_string(),
            self.rows
        );
        let made = Command::new("python3").arg("-c").arg(make).stdin(Stdio::null()).output();
        if !made.is_ok_and(|out| out.status.success()) {
            println!("not run: SQLite (python3 makes its table, and is not installed)");
            return Ok(());
        }
        let outcome = self.apply(&format!("sqlite:{}", path.display()))?;
        println!("\nSQLite, {} rows\n\n| way | s | rows/s | |\n|---|---|---|---|", self.rows);
        println!(
            "| cutover | {:.1} | {:.0} | {} |\n",
            outcome.took.as_secs_f64(),
            self.rows as f64 / outcome.took.as_secs_f64(),
            outcome.notes
        );
        Ok(())
    }
}

/// Clients under way.
struct Load {
    child: Child,
    place: PathBuf,
}

fn logs(place: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(place)?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("latency.")))
        .collect())
}

impl Load {
    /// Ends them: the 99th percentile before `began` (seconds since 1970) and since, and the maximum since, in milliseconds.
    fn stop(mut self, began: f64) -> Result<(f64, f64, f64)> {
        self.child.wait()?;
        let (mut before, mut during) = (Vec::new(), Vec::new());
        for log in logs(&self.place)? {
            for line in std::fs::read_to_string(log)?.lines() {
                let fields: Vec<&str> = line.split(' ').collect();
                let parsed = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
                let (Some(took), Some(seconds), Some(micros)) = (parsed(2), parsed(4), parsed(5)) else {
                    continue;
                };
                let ended = seconds + micros / 1e6;
                if ended < began { before.push(took / 1000.0) } else { during.push(took / 1000.0) }
            }
        }
        let p99 = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all.get(all.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0.0)
        };
        let max = during.iter().copied().fold(0.0, f64::max);
        Ok((p99(before), p99(during), max))
    }
}
