//! The state of migrations as Prometheus text (exposition format 0.0.4), for a textfile collector.

use std::fmt::Write as _;

use crate::{run::Status, state::Phase};

/// Every metric with its help; names are stable.
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, help: &str, kind: &str, samples: Vec<(String, u64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    metric(
        "cutover_schema_version",
        "Position of the last migration applied.",
        "gauge",
        vec![(String::new(), status.version)],
    );
    metric(
        "cutover_schema_migrating",
        "Whether a migrator holds the lease.",
        "gauge",
        vec![(String::new(), u64::from(status.holder.is_some()))],
    );
    let label = |id: &str, rest: &str| {
        format!("{{migration=\"{}\"{rest}}}", id.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let phases = status.migrations.iter().flat_map(|migration| {
        Phase::ALL.into_iter().map(move |phase| {
            (label(&migration.id, &format!(",phase=\"{phase}\"")), u64::from(migration.phase == phase))
        })
    });
    metric("cutover_schema_phase", "1 for the phase a migration is in.", "gauge", phases.collect());
    let of = |value: fn(&crate::run::Progress) -> u64| {
        status
            .migrations
            .iter()
            .map(|migration| (label(&migration.id, ""), value(migration)))
            .collect::<Vec<_>>()
    };
    metric(
        "cutover_schema_failed",
        "Whether a migration failed and waits.",
        "gauge",
        of(|migration| u64::from(migration.failed.is_some() && migration.phase != Phase::RolledBack)),
    );
    metric(
        "cutover_schema_paused",
        "Whether a migration is paused.",
        "gauge",
        of(|migration| u64::from(migration.paused)),
    );
    metric(
        "cutover_schema_rows_waiting",
        "Rows that do not fit, were set aside, and wait for approval.",
        "gauge",
        of(|migration| migration.set_aside.waiting),
    );
    metric(
        "cutover_schema_grace_passed_ms",
        "Milliseconds of grace that have passed.",
        "gauge",
        of(|migration| migration.grace_passed_ms),
    );
    metric(
        "cutover_schema_grace_ms",
        "Milliseconds of grace asked for.",
        "gauge",
        of(|migration| migration.grace_ms),
    );
    let rows = status.migrations.iter().flat_map(|migration| {
        migration.ledger.iter().filter(|line| line.kind != "cookie").map(|line| {
            let rest = format!(
                ",table=\"{}\",kind=\"{}\"",
                line.table.replace('\\', "\\\\").replace('"', "\\\""),
                line.kind
            );
            (label(&migration.id, &rest), line.seen)
        })
    });
    metric("cutover_schema_rows_total", "Rows copied or compared.", "counter", rows.collect());
    text
}
