//! What an `apply` did, for people and programs.

use cutover_core::model::Digest;
use serde::Serialize;

use crate::state::record::LedgerLine;

/// How an `apply` ended well.
#[derive(Clone, Debug)]
pub enum Applied {
    /// It had been applied before; nothing was done.
    Already,
    /// It is applied.
    Done(Box<Report>),
}

/// What an `apply` did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The migration.
    pub id: String,
    /// The schema version now.
    pub version: u64,
    /// How long this run took, in milliseconds.
    pub took_ms: u64,
    /// Whether it went on from where another run had stopped.
    pub resumed: bool,
    /// The ledger: rows copied and verified, per table.
    pub ledger: Vec<LedgerLine>,
    /// Keys that were synced again because clients wrote them meanwhile.
    pub resynced: u64,
    /// The longest time a lock that clients wait for was held, in microseconds.
    pub longest_hold_us: u64,
    /// How long the swap held its lock, in microseconds.
    pub swap_hold_us: u64,
    /// Latency of the probe before the copy began, in microseconds (99th percentile); `None` without one.
    pub probe_before_p99_us: Option<u64>,
    /// Latency of the probe while rows were copied, in microseconds (99th percentile).
    pub probe_during_p99_us: Option<u64>,
    /// The plan it followed.
    pub plan: Digest,
}

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "{} is applied{}: schema version {}, {} ms",
            self.id,
            if self.resumed { " (gone on with)" } else { "" },
            self.version,
            self.took_ms
        )];
        for line in self.ledger.iter().filter(|line| line.kind != "cookie") {
            let word = if line.kind == "verify" { "verified" } else { "copied" };
            let aside = match line.rejected {
                0 => String::new(),
                rows => format!(", {rows} of them set aside"),
            };
            lines.push(format!(
                "  {}: {} rows {word}{aside} in {} chunks",
                line.table, line.seen, line.chunks
            ));
        }
        if self.resynced > 0 {
            lines.push(format!("  {} keys synced again that clients wrote meanwhile", self.resynced));
        }
        lines.push(format!(
            "  longest lock {:.1} ms, swap {:.1} ms",
            self.longest_hold_us as f64 / 1000.0,
            self.swap_hold_us as f64 / 1000.0
        ));
        if let (Some(before), Some(during)) = (self.probe_before_p99_us, self.probe_during_p99_us) {
            lines.push(format!(
                "  a client's write: {:.1} ms before, p99 {:.1} ms during",
                before as f64 / 1000.0,
                during as f64 / 1000.0
            ));
        }
        lines.join("\n")
    }
}
