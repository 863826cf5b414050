//! Progress: the events of an execution, for people (a bar or lines) and for machines (JSON lines), on stderr.
//!
//! Nothing here can change an execution, and nothing is an interface but `--progress json`.

use std::{io::IsTerminal as _, sync::Arc};

use cutover_core::event::{Event, Observer, Silent};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{args::ProgressForm, output};

/// The observer for this run.
pub(crate) fn observer(form: ProgressForm) -> Arc<dyn Observer> {
    match form {
        ProgressForm::None => Arc::new(Silent),
        ProgressForm::Json => Arc::new(Json),
        ProgressForm::Lines => Arc::new(Lines),
        ProgressForm::Auto if std::io::stderr().is_terminal() => Arc::new(Bar::new()),
        ProgressForm::Auto => Arc::new(Lines),
    }
}

/// One line for what is worth a line.
fn line_of(event: &Event) -> Option<String> {
    Some(match event {
        Event::Started { number, from, to } => {
            let name = |release: &Option<cutover_core::model::ReleaseRef>| {
                release.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
            };
            format!("execution {number}: {} -> {}", name(from), name(to))
        }
        Event::StepStarted { .. } | Event::Progress { .. } | Event::UndoStarted { .. } => return None,
        Event::StepDone { step, elapsed_ms, note } if note.is_empty() => {
            format!("{step}: done in {elapsed_ms} ms")
        }
        Event::StepDone { step, elapsed_ms, note } => format!("{step}: done in {elapsed_ms} ms, {note}"),
        Event::StepFailed { step, error } => format!("{step}: FAILED: {error}"),
        Event::UndoDone { step } => format!("{step}: undone"),
        Event::UndoFailed { step, error } => format!("{step}: could not be undone: {error}"),
        Event::Warning { message } => format!("warning: {message}"),
        Event::Finished { .. } => return None,
    })
}

struct Lines;

impl Observer for Lines {
    fn observe(&self, event: &Event) {
        if let Some(line) = line_of(event) {
            output::note(output::printable(&line));
        }
    }
}

struct Json;

impl Observer for Json {
    fn observe(&self, event: &Event) {
        let Ok(serde_json::Value::Object(mut map)) = serde_json::to_value(event) else { return };
        map.insert("format".to_owned(), output::FORMAT.into());
        output::note(serde_json::Value::Object(map).to_string());
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(100).with_style(style);
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self(bar)
    }
}

impl Observer for Bar {
    fn observe(&self, event: &Event) {
        match event {
            Event::Progress { percent } => self.0.set_position(u64::from(*percent)),
            Event::StepStarted { step } => self.0.set_message((*step).to_owned()),
            Event::UndoStarted { step } => self.0.set_message(format!("undoing {step}")),
            Event::StepFailed { .. } | Event::UndoFailed { .. } | Event::Warning { .. } => {
                self.0.println(output::printable(&line_of(event).unwrap_or_default()));
            }
            Event::Finished { .. } => self.0.finish_and_clear(),
            Event::Started { .. } | Event::StepDone { .. } | Event::UndoDone { .. } => {}
        }
    }
}
