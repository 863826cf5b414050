//! Plans for people.

use super::Plan;

impl Plan {
    /// The plan as a table of plain text.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{}  hash {}  plan {}  on schema {}  {} {}\n",
            self.id,
            self.hash.short(),
            self.approval().short(),
            self.on_schema.short(),
            self.dialect,
            self.server_version
        );
        let head =
            ["#", "step", "on", "tactic", "lock (hold)", "rewrite", "est.", "disk", "undo before/after swap"];
        let mut rows: Vec<Vec<String>> = vec![head.iter().map(ToString::to_string).collect()];
        for step in &self.steps {
            rows.push(vec![
                step.number.to_string(),
                step.op.clone(),
                step.target.clone(),
                step.tactic.to_string(),
                format!("{} ({})", step.lock, step.hold),
                if step.rewrite { "yes" } else { "no" }.to_owned(),
                duration(step.estimate_ms),
                bytes(step.disk_bytes),
                format!("{} / {}", if step.undo_before { "yes" } else { "no" }, step.undo_after),
            ]);
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        for step in &self.steps {
            if let Some(lost) = &step.lost {
                text.push_str(&format!("step {}: a rollback after the swap loses {lost}\n", step.number));
            }
        }
        for (name, digest) in &self.plugins {
            text.push_str(&format!("plugin {name}: sha256 {digest}\n"));
        }
        text.push_str(&format!(
            "additive: {}   disk: up to {}   warnings: {}\n",
            if self.additive { "yes" } else { "no" },
            bytes(self.disk_bytes),
            self.warnings.len()
        ));
        for warning in &self.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text
    }
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Milliseconds for people.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1000 => "<1 s".to_owned(),
        1000..120_000 => format!("{} s", ms / 1000),
        _ => format!("{} min", ms / 60_000),
    }
}
