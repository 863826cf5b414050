//! The program that is measured, through its command line, as users run it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::measure::ms;

/// The program.
pub(super) struct Cutover {
    program: PathBuf,
}

/// A migration that was applied.
pub(super) struct Applied {
    /// The whole command: from starting the process to its end.
    pub(super) took: Duration,
    report: Value,
    /// Phases with the time at which each began, in milliseconds.
    trail: Vec<(String, f64)>,
}

impl Cutover {
    pub(super) fn new(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }

    /// `schema apply` of a file with this id; `steps` is what follows the head.
    pub(super) fn apply(&self, place: &Path, url: &str, id: &str, steps: &str) -> Result<Applied> {
        let file = place.join(format!("{id}.toml"));
        std::fs::write(&file, format!("format = 1\nid = \"{id}\"\n{steps}"))?;
        let (took, report) = self.run(&["apply", &file.to_string_lossy(), "--database", url])?;
        ensure!(report["took_ms"].is_number(), "cutover did nothing: {report}");
        Ok(Applied { took, report, trail: Vec::new() })
    }

    /// As [`Self::apply`], and how long each phase took.
    pub(super) fn apply_with_phases(
        &self,
        place: &Path,
        url: &str,
        id: &str,
        steps: &str,
    ) -> Result<Applied> {
        let applied = self.apply(place, url, id, steps)?;
        let (_, status) = self.run(&["status", "--database", url])?;
        let migrations = status["migrations"].as_array().context("the status has no migrations")?;
        let Some(one) = migrations.iter().find(|one| one["id"] == id) else {
            bail!("the status does not name `{id}`")
        };
        let trail = one["trail"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|passed| Some((passed["phase"].as_str()?.to_owned(), passed["at_ms"].as_f64()?)));
        Ok(Applied { trail: trail.collect(), ..applied })
    }

    /// `schema rollback`: until it says that the migration is rolled back, and until the process ends.
    pub(super) fn roll_back(&self, url: &str, id: &str) -> Result<(Duration, Duration)> {
        let mut command = self.command(&["rollback", id, "--database", url]);
        let started = Instant::now();
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| self.failed())?;
        let stdout = child.stdout.take().context("no output")?;
        let said = serde_json::Deserializer::from_reader(stdout).into_iter::<Value>().next();
        let back = started.elapsed();
        let out = child.wait_with_output()?;
        self.check(&["rollback"], &out)?;
        let said = said.context("it said nothing")?.context("the result is no JSON")?;
        ensure!(said["rolled_back"] == id, "it said {said}");
        Ok((back, started.elapsed()))
    }

    fn run(&self, arguments: &[&str]) -> Result<(Duration, Value)> {
        let mut command = self.command(arguments);
        let started = Instant::now();
        let out = command.output().with_context(|| self.failed())?;
        let took = started.elapsed();
        self.check(arguments, &out)?;
        let report = serde_json::from_slice(&out.stdout).context("the result is no JSON")?;
        Ok((took, report))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--json", "--progress", "none", "schema"]).args(arguments).stdin(Stdio::null());
        command
    }

    fn failed(&self) -> String {
        format!("failed to run {}", self.program.display())
    }

    fn check(&self, arguments: &[&str], out: &Output) -> Result<()> {
        ensure!(
            out.status.success(),
            "cutover schema {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(())
    }
}

impl Applied {
    /// What the engine says it took, with the history, in milliseconds.
    pub(super) fn engine_ms(&self) -> f64 {
        self.report["took_ms"].as_f64().unwrap_or(0.0)
    }

    /// How long the swap held its lock, in milliseconds.
    pub(super) fn swap_hold_ms(&self) -> f64 {
        self.report["swap_hold_us"].as_f64().unwrap_or(0.0) / 1000.0
    }

    /// Rows per second while rows were copied, by the whole phase: with building what the copy needs.
    pub(super) fn copied_per_s(&self, rows: u64) -> Option<f64> {
        self.per_s("BACKFILL", rows)
    }

    /// Rows per second while they were compared, by the whole phase: every row, however often.
    pub(super) fn verified_per_s(&self, rows: u64) -> Option<f64> {
        self.per_s("CONSISTENCY_CHECK", rows)
    }

    /// Rows by the time of a phase; `None` when it was over within a millisecond.
    fn per_s(&self, phase: &str, rows: u64) -> Option<f64> {
        let at = self.trail.iter().position(|(passed, _)| passed == phase)?;
        let took_ms = self.trail.get(at + 1)?.1 - self.trail[at].1;
        (took_ms > 0.0).then(|| rows as f64 * 1000.0 / took_ms)
    }

    /// What is left to say: the swap, and keys that were synced again.
    pub(super) fn says(&self) -> String {
        let resynced = self.report["resynced"].as_u64().unwrap_or(0);
        let phases = self
            .trail
            .windows(2)
            .map(|pair| format!("{} {:.1} s", pair[0].0, (pair[1].1 - pair[0].1) / 1000.0))
            .collect::<Vec<_>>();
        format!(
            "swap held {:.1} ms, {resynced} keys synced again; {} (outside phases {:.0} ms)",
            self.swap_hold_ms(),
            phases.join(", "),
            ms(self.took) - self.engine_ms()
        )
    }
}
