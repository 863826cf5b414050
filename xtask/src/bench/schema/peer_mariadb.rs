//! pt-online-schema-change on MariaDB, for orientation: another server, the same table and the same change of type.
//!
//! It copies in chunks while triggers carry what clients write, then renames. It has no expression for the new value, so
//! cents stay cents. Its clients are a Perl script, as the tool itself is one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    mariadb::{Server, installed},
    measure::{Measured, Sample, now_s, split},
    stage::{Running, Stage},
};

const CLIENTS: u64 = 8;

/// Runs it idle and under load. There is no figure to reach.
pub(super) fn run(stage: &Stage) -> Result<Vec<Measured>> {
    if !installed("pt-online-schema-change") {
        println!(
            "not run: pt-online-schema-change is not installed (Debian: apt-get install percona-toolkit)"
        );
        return Ok(Vec::new());
    }
    let Some(server) = Server::start(stage)? else { return Ok(Vec::new()) };
    let rows = stage.options.rows;
    println!("MariaDB {}, {rows} rows\n", server.sql("SELECT version()")?);
    println!("| way | load | s | rows/s | client p99 before, ms | during, ms | max, ms | |");
    println!("|---|---|---|---|---|---|---|---|");
    server.table(rows)?;
    server.sql(
        "USE bench; CREATE TABLE copy LIKE orders; ALTER TABLE copy MODIFY amount decimal(18,2) NOT NULL",
    )?;
    let started = Instant::now();
    server.sql("USE bench; INSERT INTO copy SELECT * FROM orders ORDER BY id")?;
    let s = started.elapsed().as_secs_f64();
    println!(
        "| INSERT .. SELECT into another table (the limit) | none | {s:.1} | {:.0} | | | | |",
        rows as f64 / s
    );
    for loaded in [false, true] {
        server.table(rows)?;
        let expected = server.sql("SELECT sum(amount) FROM bench.orders")?;
        let load = if loaded { Some(Load::start(stage, &server)?) } else { None };
        if loaded {
            std::thread::sleep(Duration::from_secs(stage.options.baseline_s));
        }
        let began = now_s();
        let took = change(&server)?;
        let ended = now_s();
        let logged = load.map(Load::stop).transpose()?;
        let sum = server.sql("SELECT sum(amount) FROM bench.orders")?;
        ensure!(sum.trim_end_matches(".00") == expected, "the sum is {sum}, not {expected}");
        let (mut clients, mut notes) = ("| | ".to_owned(), "no verification".to_owned());
        if let Some((samples, failures)) = logged {
            let seen = split(&samples, began, ended, |sample| sample.due_ms);
            clients = format!(
                "{:.1} | {:.1} | {:.1}",
                seen.before.quantile(0.99),
                seen.during.quantile(0.99),
                seen.during.max()
            );
            if let Some(first) = failures.first() {
                notes = format!("{notes}; {} statements of clients failed: {first}", failures.len());
            }
        }
        println!(
            "| pt-online-schema-change | {} | {:.1} | {:.0} | {clients} | {notes} |",
            if loaded { format!("{} tps", stage.options.tps) } else { "none".to_owned() },
            took.as_secs_f64(),
            rows as f64 / took.as_secs_f64()
        );
    }
    Ok(Vec::new())
}

fn change(server: &Server) -> Result<Duration> {
    let started = Instant::now();
    let out = Command::new("pt-online-schema-change")
        .args(["--alter", "MODIFY amount decimal(18,2) NOT NULL", "--execute", "--no-version-check"])
        .args(["--recursion-method=none", "--null-to-not-null"])
        .arg(format!("S={},u=root,D=bench,t=orders", server.socket().display()))
        .stdin(Stdio::null())
        .output()?;
    let took = started.elapsed();
    ensure!(
        out.status.success(),
        "pt-online-schema-change: {} {}",
        String::from_utf8_lossy(&out.stdout).trim(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(took)
}

/// Clients under way.
struct Load {
    process: Running,
    place: PathBuf,
}

impl Load {
    fn start(stage: &Stage, server: &Server) -> Result<Self> {
        let script = stage.place.join("clients.pl");
        std::fs::write(&script, include_str!("mariadb_clients.pl"))?;
        let arguments = [
            script.display().to_string(),
            server.socket().display().to_string(),
            stage.place.display().to_string(),
            CLIENTS.to_string(),
            stage.options.tps.to_string(),
            stage.options.rows.to_string(),
        ];
        let process = Running::start(Path::new("/usr/bin/perl"), &arguments, None)?;
        Ok(Self { process, place: stage.place.clone() })
    }

    /// Ends them: what they logged, and what failed.
    fn stop(mut self) -> Result<(Vec<Sample>, Vec<String>)> {
        self.process.terminate()?;
        let (mut samples, mut failures) = (Vec::new(), Vec::new());
        for number in 1..=CLIENTS {
            let log = self.place.join(format!("latency.{number}"));
            let text = std::fs::read_to_string(&log).context("a client wrote no log")?;
            for line in text.lines() {
                match line.strip_prefix("failed ") {
                    Some(why) => failures.push(why.to_owned()),
                    None => samples.extend(sample(line)),
                }
            }
        }
        ensure!(!samples.is_empty(), "the clients logged nothing");
        Ok((samples, failures))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let mut fields = line.split(' ').map(|text| text.parse().ok());
    Some(Sample { ended_s: fields.next()??, took_ms: fields.next()??, due_ms: fields.next()?? })
}
