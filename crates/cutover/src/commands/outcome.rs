//! How an execution ended: printed, and as the exit code of a run.

use cutover_host::node::Report;

use super::Context;
use crate::{
    exit::Exit,
    failure::{self, Failure},
    output::{self, Form},
};

/// What an update by delta spared the network.
#[derive(serde::Serialize)]
pub(super) struct DeltaSaved {
    /// The delta bundle's size.
    pub(super) downloaded_bytes: u64,
    /// What the full bundle's payload has.
    pub(super) full_bytes: u64,
    /// What the release has when it is laid out.
    pub(super) raw_bytes: u64,
    /// `full_bytes` without what was downloaded.
    pub(super) saved_bytes: u64,
    /// `raw_bytes` without what was downloaded.
    pub(super) saved_raw_bytes: u64,
    /// Objects made by a patch, taken from the full bundle, and patches that were of no use.
    pub(super) patched: u64,
    pub(super) from_full: u64,
    pub(super) patches_failed: u64,
}

impl DeltaSaved {
    fn line(&self) -> String {
        format!(
            "delta of {}: {} saved against the full bundle, {} against the files; {} made by patches, {} taken from the \
             full bundle, {} patches failed",
            output::bytes(self.downloaded_bytes),
            output::bytes(self.saved_bytes),
            output::bytes(self.saved_raw_bytes),
            self.patched,
            self.from_full,
            self.patches_failed,
        )
    }
}

/// Prints what an execution did, and says how the run ends.
pub(super) fn finish(
    report: &Report,
    delta: Option<&DeltaSaved>,
    context: &Context,
) -> Result<Exit, Failure> {
    let exit = failure::exit_of_outcome(&report.outcome);
    let failure = (exit != Exit::Done).then(|| failure_of(report).naming_root(context.root.as_deref()));
    match context.form {
        Form::Json => {
            let mut value = with_exit(serde_json::to_value(report), exit, failure.as_ref())?;
            if let (serde_json::Value::Object(map), Some(delta)) = (&mut value, delta) {
                map.insert("delta".to_owned(), serde_json::json!(delta));
            }
            output::json(&value)?;
        }
        Form::Text if exit == Exit::Done => {
            output::line(output::printable(&report.message));
            if let Some(delta) = delta {
                output::line(delta.line());
            }
            if let Some(point) = &report.restore_point {
                let line = format!("restore point {point}: `cutover rollback {point}` goes back");
                output::line(context.naming_root(&line));
            }
        }
        Form::Text => {}
    }
    tell_rest(&report.warnings, failure.as_ref());
    Ok(exit)
}

/// What every run tells in the end: its warnings, and what went wrong if anything did.
pub(super) fn tell_rest(warnings: &[String], failure: Option<&Failure>) {
    for warning in warnings {
        output::note(format!("warning: {}", output::printable(warning)));
    }
    if let Some(failure) = failure {
        output::failure(failure, Form::Text);
    }
}

/// A document with `exit_code` and `ended` in it, and `error` if it is about a failure.
pub(super) fn with_exit(
    value: Result<serde_json::Value, serde_json::Error>,
    exit: Exit,
    failure: Option<&Failure>,
) -> Result<serde_json::Value, Failure> {
    // What cannot be told, such as a path that is no UTF-8, changes nothing about how it ended.
    let mut value = value.unwrap_or_else(|error| serde_json::json!({ "message": error.to_string() }));
    if let serde_json::Value::Object(map) = &mut value {
        map.insert("exit_code".to_owned(), exit.code().into());
        map.insert("ended".to_owned(), exit.word().into());
        if let Some(failure) = failure {
            map.insert("error".to_owned(), failure.to_json()["error"].take());
        }
    }
    Ok(value)
}

/// An execution that did not succeed, as a failure with hints.
pub(super) fn failure_of(report: &Report) -> Failure {
    let exit = failure::exit_of_outcome(&report.outcome);
    let mut failure = Failure::new(exit, report.message.clone());
    if let Some(log) = &report.failed_log {
        failure = failure.hint(format!("the failed release's output is in `{}`", log.display()));
    }
    let next = match exit {
        Exit::RestoreFailed => "act now: mend what the message names, then run `cutover recover`",
        Exit::ProbeFailedKept => "`cutover rollback` brings the old release back",
        _ => "`cutover history` lists what happened; nothing needs to be cleaned up",
    };
    failure.hint(next)
}
