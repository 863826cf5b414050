//! `schema ...`: online schema migrations.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use cutover_core::{causes::chain, model::Version};
use cutover_migrate::{
    Error,
    engine::{Engine, Loss, RowFunction, Watch},
    file,
    grace::{FleetFloor, Floor, FloorUnknown},
    ir::{Ident, Migration, Op},
    lint::{self, Severity},
    metrics, open,
    plugin::{self, Plugin},
    run::{Applied, Cancelled, Migrator, Settings as RunSettings},
    state::{Phase, history::Head, reject::Reject, sql::Value},
};

use super::{Context, schema_head::KeptHead};
use crate::{
    args::{AtDatabase, ProgressForm, Schema, SchemaApply},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    settings::SchemaSettings,
};

pub(super) fn run(command: Schema, context: &Context) -> Result<Exit, Failure> {
    match command {
        Schema::Plan(command) => {
            let migration = read(&command.file)?;
            with(&command.at, context, |migrator, _| {
                let plan = migrator.plan(&migration)?;
                if context.form == Form::Json {
                    let mut json = serde_json::to_value(&plan).unwrap_or_default();
                    json["plan"] = plan.approval().to_string().into();
                    output::json(&json)?;
                } else {
                    output::line(output::printable(plan.to_text().trim_end()));
                }
                Ok(Exit::Done)
            })
        }
        Schema::Lint { files } => lint(&files, context),
        Schema::Apply(command) => apply(&command, context),
        Schema::Rehearse { file, at, on } => {
            let migration = read(&file)?;
            with(&at, context, |migrator, _| {
                let on = on.as_deref().map(open_database).transpose()?;
                let rehearsal = migrator.rehearse(&migration, on)?;
                said(context, &rehearsal, || {
                    let aside = match rehearsal.set_aside {
                        0 => String::new(),
                        rows => format!(" ({rows} of them do not fit and would have to be approved)"),
                    };
                    format!(
                        "rehearsed {} on {}: {} rows{aside} in {} ms, swap held its lock {} us",
                        migration.id,
                        rehearsal.place,
                        rehearsal.rows,
                        rehearsal.took_ms,
                        rehearsal.swap_hold_us
                    )
                })
            })
        }
        Schema::Status(at) => with(&at, context, |migrator, settings| {
            migrator.tick(context.now.unix() * 1000)?;
            let status = migrator.status()?;
            write_metrics(settings, &metrics::text(&status))?;
            said(context, &status, || status_text(&status))
        }),
        Schema::Pause(command) => with(&command.at, context, |migrator, _| {
            migrator.pause(&command.id, true)?;
            said(context, &serde_json::json!({ "paused": command.id }), || {
                format!("{} is paused", command.id)
            })
        }),
        Schema::Resume(command) => with(&command.at, context, |migrator, _| {
            migrator.pause(&command.id, false)?;
            said(context, &serde_json::json!({ "resumed": command.id }), || format!("{} goes on", command.id))
        }),
        Schema::Rejects { id, at, limit } => with(&at, context, |migrator, _| {
            let rejects = migrator.rejects(&id, limit.into())?;
            said(context, &serde_json::json!({ "rejects": rejects }), || rejects_text(&rejects))
        }),
        Schema::Approve(command) => with(&command.at, context, |migrator, _| {
            let rows = migrator.approve(&command.id)?;
            said(context, &serde_json::json!({ "approved": command.id, "rows": rows }), || match rows {
                0 => format!("no row of {} waits for approval", command.id),
                _ => format!(
                    "{rows} rows of {} stay out of the new schema; run `schema apply` again",
                    command.id
                ),
            })
        }),
        Schema::SetRate { id, rate, at } => {
            let rate = match rate.as_str() {
                "none" => None,
                text => Some(text.parse().ok().filter(|rate| *rate > 0).ok_or_else(|| {
                    Failure::usage(format!("`{text}` is no rate: give rows per second, or `none`"))
                })?),
            };
            with(&at, context, |migrator, _| {
                migrator.set_rate(&id, rate)?;
                said(context, &serde_json::json!({ "id": id, "rate": rate }), || match rate {
                    Some(rate) => format!("{id} copies at most {rate} rows per second"),
                    None => format!("{id} copies as fast as clients allow"),
                })
            })
        }
        Schema::Rollback { id, at, accept_loss } => with(&at, context, |migrator, _| {
            migrator.rollback(&id, if accept_loss { Loss::Accept } else { Loss::Refuse })?;
            // The old shape serves from here on: this is what the operator waits for.
            let exit =
                said(context, &serde_json::json!({ "rolled_back": id }), || format!("{id} is rolled back"))?;
            tidy(migrator);
            Ok(exit)
        }),
        Schema::Complete { id, at, floor } => complete(&id, &at, floor, context),
        Schema::Cancel(command) => with(&command.at, context, |migrator, _| {
            let id = &command.id;
            match migrator.cancel(id)? {
                Cancelled::Asked => said(context, &serde_json::json!({ "cancelling": id }), || {
                    format!("{id} is asked to stop: its run undoes what it did and says so")
                }),
                Cancelled::Undone => {
                    let exit = said(context, &serde_json::json!({ "cancelled": id }), || {
                        format!("{id} is cancelled")
                    })?;
                    tidy(migrator);
                    Ok(exit)
                }
            }
        }),
        Schema::History(at) => with(&at, context, |migrator, _| {
            let entries = migrator.history()?;
            said(context, &serde_json::json!({ "entries": entries }), || {
                let line = |entry: &cutover_migrate::state::history::Entry| {
                    let at = cutover_core::model::Instant::from_unix(entry.at_ms / 1000)
                        .map_or_else(|| entry.at_ms.to_string(), |at| at.to_string());
                    format!(
                        "{:>4}  {at}  {:<12} {}  by {}  {}",
                        entry.number,
                        entry.event,
                        entry.migration,
                        entry.author,
                        entry.hash.get(..8).unwrap_or(&entry.hash)
                    )
                };
                entries.iter().map(line).collect::<Vec<_>>().join("\n")
            })
        }),
        Schema::Rebaseline { file, at, reason } => {
            let migration = read(&file)?;
            with(&at, context, |migrator, _| {
                migrator.rebaseline(&migration, &reason)?;
                let json = serde_json::json!({ "id": migration.id, "hash": migration.hash() });
                said(context, &json, || {
                    format!("{} is known by hash {} now", migration.id, migration.hash().short())
                })
            })
        }
        Schema::Prelude { code, at } => with(&at, context, |migrator, _| {
            let statements = migrator.prelude(&code)?;
            said(context, &serde_json::json!({ "statements": statements }), || {
                statements.iter().map(|statement| format!("{statement};")).collect::<Vec<_>>().join("\n")
            })
        }),
        Schema::CheckPlugin { program, columns, rows } => check_plugin(&program, &columns, &rows, context),
    }
}

/// Prints a result in the form that was asked for.
fn said(
    context: &Context,
    json: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> Result<Exit, Failure> {
    match context.form {
        Form::Json => output::json(json)?,
        Form::Text => {
            let text = text();
            if !text.is_empty() {
                output::line(output::printable(&text));
            }
        }
    }
    Ok(Exit::Done)
}

fn read(path: &Path) -> Result<Migration, Failure> {
    let bytes = files::read("migration", path)?;
    parse(&bytes, &path.display().to_string())
}

/// Reads the text of a migration file.
pub(super) fn parse(bytes: &[u8], name: &str) -> Result<Migration, Failure> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Failure::usage(format!("`{name}` is no text")).because(error))?;
    file::parse(text).map_err(|error| {
        Failure::about(Error::File(error), format!("`{name}` is no migration that can be used"))
    })
}

fn settings(at: &AtDatabase, context: &Context) -> Result<SchemaSettings, Failure> {
    let flag = at.database.clone().map(|url| ("schema.url", url, "--database"));
    Ok(context.settings(None, flag)?.settings.schema)
}

fn with(
    at: &AtDatabase,
    context: &Context,
    body: impl FnOnce(&mut Migrator<'_>, &SchemaSettings) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let settings = settings(at, context)?;
    let watch = Progress::new(context.progress);
    let make = |op: &Op| function(op, settings.plugins.as_deref());
    KeptHead::at(settings.head_file.clone())
        .around(|head| migrator(&settings, head, &watch, &make), |migrator| body(migrator, &settings))
}

/// A migrator of the database that the settings name; `head` was kept of its history.
pub(super) fn migrator<'a>(
    settings: &SchemaSettings,
    head: Option<Head>,
    watch: &'a dyn Watch,
    make: &'a cutover_migrate::run::MakeFunction<'a>,
) -> Result<Migrator<'a>, Failure> {
    let url = settings.url.as_deref().ok_or_else(|| {
        Failure::usage("no database is named").hint("give `--database URL`, or set `schema.url`")
    })?;
    let mut run = RunSettings {
        author: settings.author.clone().unwrap_or_else(author),
        lease_ms: settings.lease_s.max(3) * 1000,
        head,
        ..RunSettings::default()
    };
    run.policy.hold_ms = settings.max_hold_ms;
    run.policy.lock_timeout_ms = settings.lock_timeout_ms;
    run.policy.chunk_rows = settings.chunk_rows;
    run.policy.workers = settings.workers.max(1);
    Ok(Migrator::new(open_database(url)?, run, watch, make))
}

/// Opens the database at a URL.
///
/// # Errors
/// It is none; or the file is not there, which is never made.
fn open_database(url: &str) -> Result<Box<dyn Engine>, Failure> {
    let file = url.strip_prefix("sqlite:").map(|path| Path::new(path.strip_prefix("//").unwrap_or(path)));
    if let Some(file) = file.filter(|file| !file.as_os_str().is_empty() && !file.exists()) {
        return Err(Failure::usage(format!("there is no database file `{}`", file.display())).hint(format!(
            "make it with `sqlite3 {} 'PRAGMA journal_mode=WAL'`, or name another with --database",
            output::shell_word(&file.display().to_string())
        )));
    }
    Ok(open(url)?)
}

/// Who runs this program, for the history.
fn author() -> String {
    let name = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The row function of a step: this program has plugins only.
pub(super) fn function(op: &Op, plugins: Option<&Path>) -> Result<Box<dyn RowFunction>, Error> {
    match (op, plugins) {
        (Op::Plugin { .. }, Some(directory)) => Ok(Box::new(Plugin::of_step(op, directory)?)),
        (Op::Plugin { plugin, .. }, None) => Err(Error::Custom {
            name: plugin.clone(),
            says: "no directory of plugins is set (`schema.plugins`)".to_owned(),
        }),
        _ => cutover_migrate::run::no_functions(op),
    }
}

fn apply(command: &SchemaApply, context: &Context) -> Result<Exit, Failure> {
    let mut migration = read(&command.file)?;
    if command.rate.is_some() {
        migration.run.rate = command.rate;
    }
    with(&command.at, context, |migrator, settings| {
        if command.rehearsed {
            migrator.demand_rehearsal(&migration)?;
        }
        let applied = migrator.apply(&migration, command.plan.as_deref());
        if settings.metrics_file.is_some()
            && let Ok(status) = migrator.status()
        {
            // What became of the migration is told whatever becomes of the file.
            if let Err(failure) = write_metrics(settings, &metrics::text(&status)) {
                output::note(format!("warning: {}", output::printable(&chain(&failure))));
            }
        }
        match applied? {
            Applied::Already => {
                let json = serde_json::json!({ "id": migration.id, "already": true });
                said(context, &json, || format!("{} was applied before; nothing to do", migration.id))
            }
            Applied::Done(report) => said(context, &report, || report.to_text()),
        }
    })
}

/// Removes what a rollback took out of use, after it was told to be over.
fn tidy(migrator: &mut Migrator<'_>) {
    if let Err(error) = migrator.tidy() {
        let error = output::printable(&error.to_string());
        output::note(format!("warning: a table out of use stays until the next `schema apply`: {error}"));
    }
}

fn complete(id: &str, at: &AtDatabase, floor: Option<Version>, context: &Context) -> Result<Exit, Failure> {
    let floor: Box<dyn FleetFloor> = match floor {
        Some(lowest) => Box::new(Floor { lowest, rollback_open: false }),
        None => Box::new(FloorUnknown("no fleet is configured".to_owned())),
    };
    with(at, context, |migrator, _| match migrator.complete(id, &*floor, context.now.unix() * 1000)? {
        Applied::Already => {
            let json = serde_json::json!({ "id": id, "already": true });
            said(context, &json, || format!("{id} was completed before; nothing to do"))
        }
        Applied::Done(_) => said(context, &serde_json::json!({ "completed": id }), || {
            format!("{id} is complete: the old schema is gone")
        }),
    })
}

fn lint(files: &[PathBuf], context: &Context) -> Result<Exit, Failure> {
    let mut all = Vec::new();
    for path in files {
        for finding in lint::lint(&read(path)?) {
            all.push((path.display().to_string(), finding));
        }
    }
    let worst = all.iter().map(|(_, finding)| finding.severity).max();
    let json: Vec<_> =
        all.iter().map(|(file, finding)| serde_json::json!({ "file": file, "finding": finding })).collect();
    said(context, &serde_json::json!({ "findings": json }), || {
        let line = |(file, finding): &(String, lint::Finding)| {
            let severity = format!("{:?}", finding.severity).to_ascii_lowercase();
            let step = if finding.step == 0 { String::new() } else { format!(" step {}", finding.step) };
            format!("{file}:{step} {severity} {}: {}. {}", finding.rule, finding.says, finding.remedy)
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if worst == Some(Severity::Error) { Exit::Failed } else { Exit::Done })
}

fn check_plugin(
    program: &Path,
    columns: &[String],
    rows: &[String],
    context: &Context,
) -> Result<Exit, Failure> {
    let parsed = |text: &String| -> Result<Vec<Value>, Failure> {
        let wrong = || Failure::usage(format!("`{text}` is no JSON row of {} values", columns.len()));
        let row: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(|error| wrong().because(error))?;
        let cells: Option<Vec<Value>> = row
            .iter()
            .map(|cell| match cell {
                serde_json::Value::Null => Some(Value::Null),
                serde_json::Value::String(text) => Some(Value::Text(text.clone())),
                serde_json::Value::Number(number) => number.as_i64().map(Value::Integer),
                _ => None,
            })
            .collect();
        cells.filter(|cells| cells.len() == columns.len()).ok_or_else(wrong)
    };
    let rows = rows.iter().map(parsed).collect::<Result<Vec<_>, _>>()?;
    let checks = plugin::conformance(program, columns, &rows)?;
    let failed = checks.iter().any(|check| check.wrong.is_some());
    said(context, &serde_json::json!({ "checks": checks }), || {
        let line = |check: &plugin::Check| match &check.wrong {
            None => format!("ok      {}", check.rule),
            Some(wrong) => format!("FAILED  {}: {wrong}", check.rule),
        };
        checks.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn write_metrics(settings: &SchemaSettings, text: &str) -> Result<(), Failure> {
    let Some(path) = &settings.metrics_file else { return Ok(()) };
    files::write(path, 0o644, Existing::Replace, |out| {
        out.write_all(text.as_bytes()).map_err(|source| Failure::io("write", path, source))
    })
}

fn status_text(status: &cutover_migrate::run::Status) -> String {
    let mut lines = vec![format!("schema version {}", status.version)];
    if let Some(holder) = &status.holder {
        lines.push(format!("migrating now: {holder}"));
    }
    for migration in &status.migrations {
        let mut line = format!("{:>4}  {}  {}", migration.position, migration.id, migration.phase);
        if migration.phase == Phase::Cleanup {
            line.push_str(match (migration.contracted, migration.grace_ms) {
                (true, _) => "  complete",
                (false, 0) => "  waits for `schema complete`",
                (false, _) => "  in its grace period",
            });
            if !migration.contracted && migration.grace_ms > 0 {
                let hours = |ms: u64| ms / 3_600_000;
                line.push_str(&format!(
                    " ({} of {} h)",
                    hours(migration.grace_passed_ms),
                    hours(migration.grace_ms)
                ));
            }
        }
        if migration.paused {
            line.push_str("  paused");
        }
        for part in migration.ledger.iter().filter(|part| part.kind == "copy") {
            line.push_str(&format!(
                "  {}: {} of about {} rows",
                part.table, part.seen, migration.rows_expected
            ));
        }
        if let Some(eta) = migration.eta_ms {
            line.push_str(&format!(", {} rows/s, {} s left", migration.rows_per_s.unwrap_or(0), eta / 1000));
        }
        lines.push(line);
        if let Some(failed) = &migration.failed {
            lines.push(format!("      because: {failed}"));
        }
        let aside = migration.set_aside;
        if aside.rows > 0 {
            lines.push(format!(
                "      {} rows that do not fit are set aside (`schema rejects`); {} wait for `schema approve`",
                aside.rows, aside.waiting
            ));
        }
    }
    lines.join("\n")
}

fn rejects_text(rejects: &[Reject]) -> String {
    let line = |reject: &Reject| {
        format!(
            "{} {}  {}: {}  {}",
            reject.table,
            reject.key,
            if reject.approved { "approved" } else { "waits" },
            reject.reason,
            reject.row.as_deref().unwrap_or_default()
        )
    };
    rejects.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Progress of a migration on stderr: a line per phase, and at most one per second for rows.
pub(super) struct Progress {
    form: ProgressForm,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub(super) fn new(form: ProgressForm) -> Self {
        Self { form, last: Mutex::new(None) }
    }

    fn tell(&self, text: &str, json: &serde_json::Value) {
        match self.form {
            ProgressForm::None => {}
            ProgressForm::Json => output::note(json.to_string()),
            ProgressForm::Auto | ProgressForm::Lines => output::note(output::printable(text)),
        }
    }
}

impl Watch for Progress {
    fn phase(&self, phase: Phase) {
        self.tell(
            phase.word(),
            &serde_json::json!({ "format": output::FORMAT, "event": "phase", "phase": phase }),
        );
    }

    fn says(&self, message: &str) {
        self.tell(
            message,
            &serde_json::json!({ "format": output::FORMAT, "event": "note", "message": message }),
        );
    }

    fn progress(&self, table: &Ident, done: u64, of: u64) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            return;
        }
        *last = Some(Instant::now());
        let json = serde_json::json!({
            "format": output::FORMAT, "event": "progress", "table": table, "rows": done, "of": of,
        });
        self.tell(&format!("{table}: {done} of about {of} rows"), &json);
    }
}
