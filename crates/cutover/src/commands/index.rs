//! `index`: looks after the index of stored episodes.

use std::{
    io,
    num::NonZeroUsize,
    path::Path,
    time::{Duration, Instant},
};

use cutover_server::ingest::{
    Layout,
    repair::{Check, Counts, Progress, RepairOptions, RepairWatch, Repaired, Writing, repair},
};

use super::{Context, place};
use crate::{
    args::{Index, IndexRepair, ProgressForm},
    clock,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
};

/// A run that takes longer says how far it has come this often.
const TELL_EVERY: Duration = Duration::from_secs(2);

pub(super) fn run(command: &Index, context: &Context) -> Result<Exit, Failure> {
    match command {
        Index::Repair(command) => repair_index(command, context),
    }
}

/// Prints what happens while it happens.
struct Teller {
    form: Form,
    progress: ProgressForm,
    started: Instant,
    told: Instant,
}

impl RepairWatch for Teller {
    fn counted(&mut self, counts: Counts) {
        let Counts { scanned, already_indexed, to_backfill } = counts;
        if self.form == Form::Text {
            output::line(format!(
                "scanned: {scanned} already-indexed: {already_indexed} to-backfill: {to_backfill}"
            ));
        }
    }

    fn progress(&mut self, progress: Progress) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let Progress { files, files_all, bytes, bytes_all } = progress;
        let per_s = (bytes as f64 / self.started.elapsed().as_secs_f64()) as u64;
        match self.progress {
            ProgressForm::None => {}
            ProgressForm::Json => output::note(
                serde_json::json!({
                    "files": files, "files_all": files_all, "bytes": bytes, "bytes_all": bytes_all, "bytes_per_s": per_s,
                })
                .to_string(),
            ),
            ProgressForm::Auto | ProgressForm::Lines => output::note(format!(
                "hashed {files} of {files_all} files, {} of {}, {}/s",
                output::bytes(bytes),
                output::bytes(bytes_all),
                output::bytes(per_s)
            )),
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        output::note(format!(
            "error: failed to read `{}`: {error}",
            output::printable(&path.display().to_string())
        ));
    }
}

fn repair_index(command: &IndexRepair, context: &Context) -> Result<Exit, Failure> {
    let layout = Layout::new(&command.root);
    let hosts = command.host.iter().map(|host| host.parse()).collect::<Result<_, _>>();
    let bucket = match &command.storage {
        None => None,
        Some(place) => Some(place::kept(place, &context.settings(None, [])?.settings)?),
    };
    let options = RepairOptions {
        bucket,
        index: command.index.clone().unwrap_or_else(|| layout.index()),
        layout,
        hosts: hosts.map_err(|error| Failure::usage("`--host` names a host").because(error))?,
        writing: if command.dry_run { Writing::Nothing } else { Writing::Rows },
        check: if command.verify { Check::Everything } else { Check::Missing },
        jobs: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let started = Instant::now();
    let mut teller = Teller { form: context.form, progress: context.progress, started, told: started };
    let repaired = repair(&options, &clock::precise, &mut teller)?;
    match context.form {
        Form::Json => output::json(&document(command, &options, &repaired))?,
        Form::Text => print(command, &options, &repaired),
    }
    let damaged = repaired.findings.iter().any(cutover_server::ingest::repair::Finding::is_damage);
    Ok(match (repaired.failures, damaged) {
        (0, false) => Exit::Done,
        (0, true) => Exit::Damaged,
        _ => Exit::Failed,
    })
}

fn print(command: &IndexRepair, options: &RepairOptions, repaired: &Repaired) {
    if command.dry_run {
        for row in &repaired.shown {
            output::line(String::from_utf8_lossy(&row.line()).trim_end());
        }
        let more = repaired.counts.to_backfill.saturating_sub(repaired.shown.len());
        if more > 0 {
            output::line(format!("... ({more} more)"));
        }
    } else {
        output::line(format!("backfilled {} rows into {}", repaired.added, options.index.display()));
    }
    if command.verify {
        for finding in &repaired.findings {
            output::line(output::printable(&finding.to_string()));
        }
        let (files, bytes) = repaired.hashed;
        let findings = repaired.findings.len();
        output::line(format!("verified: {files} files, {}; findings: {findings}", output::bytes(bytes)));
    }
}

fn document(command: &IndexRepair, options: &RepairOptions, repaired: &Repaired) -> serde_json::Value {
    let counts = repaired.counts;
    serde_json::json!({
        "index": options.index.display().to_string(),
        "dry_run": command.dry_run,
        "scanned": counts.scanned,
        "already_indexed": counts.already_indexed,
        "to_backfill": counts.to_backfill,
        "backfilled": repaired.added,
        "first_rows": repaired.shown,
        "failures": repaired.failures,
        "verified": command.verify.then_some(repaired.hashed.0),
        "findings": repaired.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
