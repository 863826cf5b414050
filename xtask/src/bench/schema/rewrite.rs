//! One column of a large PostgreSQL table gets another type (`bigint` cents become `numeric(18,2)`): ours beside other ways.
//!
//! Every way starts from the same fresh table, idle and under clients that pgbench keeps at a fixed rate, and has to end
//! with the same sum. Read [`WAYS`] first.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    measure::{Figure, Measured, Sample, now_s, number, split},
    postgres::Server,
    stage::{Running, Stage},
};

/// The change, as our migration.
pub(super) const STEPS: &str = "[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\n\
    type = \"decimal(18,2)\"\nnullable = false\nup = \"coalesce(amount, 0) / 100.0\"\n\
    down = \"cast(round(amount * 100) as bigint)\"\n";

/// What one way reported.
struct Outcome {
    /// From start to end.
    took: Duration,
    /// The query by which its result is checked.
    sum: &'static str,
    copied_per_s: Option<f64>,
    verified_per_s: Option<f64>,
    /// What it says of itself.
    notes: String,
}

impl Outcome {
    fn plain(started: Instant, sum: &'static str, notes: &str) -> Self {
        let took = started.elapsed();
        Self { took, sum, copied_per_s: None, verified_per_s: None, notes: notes.to_owned() }
    }
}

/// Makes the change on a fresh table; `None` when it said why it cannot.
type Way = fn(&Stage, &Server) -> Result<Option<Outcome>>;

const OURS: &str = "cutover";
const RESHAPE: &str = "reshape";

/// Every way, in the order of the page.
const WAYS: &[(&str, Way)] = &[
    ("INSERT .. SELECT into another table (the limit: no writers, no checks)", limit),
    (OURS, ours),
    (RESHAPE, reshape),
    ("backfill as pgroll does it: UPDATE in batches of 1000, in SQL", pgroll),
];

/// Runs every way, idle and under load.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    let Some(server) = Server::start(stage)? else { return Ok(Vec::new()) };
    let rows = stage.options.rows;
    println!("PostgreSQL {}, {rows} rows\n", server.sql("SHOW server_version")?);
    println!(
        "| way | load | s | rows/s | copied rows/s | verified rows/s | client p99 before, ms | during, ms | max, ms | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut figures = Vec::new();
    let (mut ours_idle, mut reshape_idle) = (None, None);
    for (name, way) in WAYS {
        if stage.options.way.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        for loaded in [false, true] {
            server.clear()?;
            server.table("orders", rows)?;
            let expected = server.sql("SELECT round(sum(coalesce(amount, 0)) / 100.0, 2) FROM orders")?;
            let load = if loaded { Some(Load::start(stage, &server)?) } else { None };
            if loaded {
                std::thread::sleep(Duration::from_secs(stage.options.baseline_s));
            }
            let began = now_s();
            let outcome = way(stage, &server).with_context(|| format!("`{name}`"))?;
            let ended = now_s();
            let samples = load.map(|load| load.stop(&server)).transpose()?;
            let Some(outcome) = outcome else { break };
            let sum = server.sql(outcome.sum)?;
            ensure!(sum == expected, "`{name}` ends with the sum {sum}, not {expected}");
            let rate = rows as f64 / outcome.took.as_secs_f64();
            let mut clients = "| | ".to_owned();
            if let Some(samples) = samples {
                let seen = split(&samples, began, ended, |sample| sample.due_ms);
                let (before, during) = (seen.before.quantile(0.99), seen.during.quantile(0.99));
                clients = format!("{before:.1} | {during:.1} | {:.1}", seen.during.max());
                if *name == OURS {
                    figures.push(Measured { figure: Figure::RewriteLoaded, value: rate });
                    figures.push(Measured { figure: Figure::RewriteP99, value: during / before });
                }
            } else if *name == OURS {
                ours_idle = Some(rate);
                figures.push(Measured { figure: Figure::RewriteIdle, value: rate });
                figures
                    .extend(outcome.verified_per_s.map(|value| Measured { figure: Figure::Verified, value }));
            } else if *name == RESHAPE {
                reshape_idle = Some(rate);
            }
            let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
            println!(
                "| {name} | {} | {:.1} | {rate:.0} | {} | {} | {clients} | {} |",
                if loaded { format!("{} tps", stage.options.tps) } else { "none".to_owned() },
                outcome.took.as_secs_f64(),
                optional(outcome.copied_per_s),
                optional(outcome.verified_per_s),
                outcome.notes
            );
        }
    }
    if let (Some(ours), Some(reshape)) = (ours_idle, reshape_idle) {
        figures.push(Measured { figure: Figure::RewriteRatio, value: ours / reshape });
    }
    Ok(figures)
}

fn limit(_: &Stage, server: &Server) -> Result<Option<Outcome>> {
    server.sql(
        "CREATE TABLE copy (LIKE orders); ALTER TABLE copy ALTER amount TYPE numeric(18,2); ALTER TABLE copy ADD PRIMARY KEY (id)",
    )?;
    let started = Instant::now();
    server.sql(
        "INSERT INTO copy SELECT id, customer, coalesce(amount, 0) / 100.0, country, note, at FROM orders ORDER BY id",
    )?;
    Ok(Some(Outcome::plain(started, "SELECT sum(amount) FROM copy", "")))
}

fn ours(stage: &Stage, server: &Server) -> Result<Option<Outcome>> {
    let rows = stage.options.rows;
    let applied = stage.cutover.apply_with_phases(&stage.place, &server.url(), "0001_money", STEPS)?;
    Ok(Some(Outcome {
        took: applied.took,
        sum: "SELECT sum(amount) FROM orders",
        copied_per_s: applied.copied_per_s(rows),
        verified_per_s: applied.verified_per_s(rows),
        notes: applied.says(),
    }))
}

fn reshape(stage: &Stage, server: &Server) -> Result<Option<Outcome>> {
    if Command::new("reshape").arg("--version").output().is_err() {
        println!("| reshape | | | | | | | | | not run: not installed (`cargo install reshape`) |");
        return Ok(None);
    }
    let directory = stage.place.join("reshape");
    std::fs::create_dir_all(directory.join("migrations"))?;
    std::fs::write(
        directory.join("migrations/1_money.toml"),
        "[[actions]]\ntype = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\nup = \"coalesce(amount, 0) / 100.0\"\ndown = \"cast(amount * 100 as bigint)\"\n\n  [actions.changes]\n  type = \"NUMERIC(18,2)\"\n",
    )?;
    let started = Instant::now();
    let out = Command::new("reshape")
        .current_dir(&directory)
        .args(["migration", "start", "--url"])
        .arg(server.url())
        .stdin(std::process::Stdio::null())
        .output()?;
    ensure!(out.status.success(), "reshape: {}", String::from_utf8_lossy(&out.stderr));
    Ok(Some(Outcome::plain(started, "SELECT sum(amount) FROM migration_1_money.orders", "no verification")))
}

fn pgroll(_: &Stage, server: &Server) -> Result<Option<Outcome>> {
    server.sql(
        "ALTER TABLE orders ADD COLUMN new_amount numeric(18,2); \
         CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.new_amount := coalesce(NEW.amount, 0) / 100.0; RETURN NEW; END $$; \
         CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION fill(); \
         CREATE PROCEDURE backfill() LANGUAGE plpgsql AS $$ DECLARE last bigint := 0; next bigint; BEGIN LOOP \
           WITH batch AS (SELECT id FROM orders WHERE id > last ORDER BY id LIMIT 1000 FOR NO KEY UPDATE), \
             done AS (UPDATE orders SET id = orders.id FROM batch WHERE orders.id = batch.id RETURNING orders.id) SELECT max(id) INTO next FROM done; \
           COMMIT; EXIT WHEN next IS NULL; last := next; END LOOP; END $$",
    )?;
    let started = Instant::now();
    server.sql("CALL backfill()")?;
    let notes = "in place: every row leaves a dead one; no verification";
    Ok(Some(Outcome::plain(started, "SELECT sum(new_amount) FROM orders", notes)))
}

/// Clients under way: pgbench, which reads and writes single rows at a fixed rate.
struct Load {
    process: Running,
    place: PathBuf,
}

impl Load {
    fn start(stage: &Stage, server: &Server) -> Result<Self> {
        let script = stage.place.join("load.sql");
        std::fs::write(
            &script,
            format!(
                "\\set id random(1, {})\nUPDATE orders SET note = 'changed' WHERE id = :id;\nSELECT note FROM orders WHERE id = :id;\n",
                stage.options.rows
            ),
        )?;
        for old in logs(&stage.place)? {
            std::fs::remove_file(old)?;
        }
        let mut arguments: Vec<String> =
            ["-n", "-c", "8", "-j", "2", "-T", "36000", "-l", "-U", "postgres", "-h"]
                .map(str::to_owned)
                .into();
        arguments.extend([
            server.socket().display().to_string(),
            "-R".to_owned(),
            stage.options.tps.to_string(),
            "-f".to_owned(),
            script.display().to_string(),
            format!("--log-prefix={}", stage.place.join("latency").display()),
            "postgres".to_owned(),
        ]);
        let process = Running::start(&server.tool("pgbench"), &arguments, None)?;
        Ok(Self { process, place: stage.place.clone() })
    }

    /// Ends them; what they logged.
    fn stop(mut self, server: &Server) -> Result<Vec<Sample>> {
        // Time for what was due meanwhile.
        std::thread::sleep(Duration::from_millis(500));
        // pgbench writes its log to the end only when it ends by itself: without its connections it does.
        server.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgbench'",
        )?;
        self.process.wait()?;
        let mut samples = Vec::new();
        for log in logs(&self.place)? {
            samples.extend(std::fs::read_to_string(log)?.lines().filter_map(sample));
        }
        ensure!(!samples.is_empty(), "pgbench logged nothing");
        Ok(samples)
    }
}

fn logs(place: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(place)?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("latency.")))
        .collect())
}

/// A line of pgbench's log (pgbench(1), "Per-Transaction Logging"): with a rate, the third field counts from when the
/// transaction was due and the last is its lag, both in microseconds.
fn sample(line: &str) -> Option<Sample> {
    let fields: Vec<f64> = line.split(' ').map(|text| text.parse().unwrap_or(f64::NAN)).collect();
    let [_, _, due_us, _, seconds, micros, lag_us] = fields[..] else { return None };
    let sample = Sample {
        ended_s: seconds + micros / 1e6,
        took_ms: (due_us - lag_us) / 1000.0,
        due_ms: due_us / 1000.0,
    };
    (sample.ended_s.is_finite() && sample.took_ms.is_finite()).then_some(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_counts_from_when_it_was_due() {
        let parsed = sample("0 199 2241 0 1175850568 995598 241").unwrap();
        assert_eq!((parsed.due_ms, parsed.took_ms), (2.241, 2.0));
        assert!(sample("0 199 skipped 0 1175850568 995598 241").is_none());
    }
}
