//! Talks: the command line, settings, rendering and exit codes; and the library that people embed.
//!
//! Owns what people and scripts see of Cutover. It never decides about an update (`core` does), never judges a signature
//! (`bundle` does) and never touches an installed tree (`host` does). Embedders use the crates re-exported here.
//! Read [`exit::Exit`] first, then [`run`].

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod args;
mod clock;
mod commands;
mod demo;
pub mod exit;
pub mod failure;
mod files;
mod output;
mod progress;
mod reference;
pub mod settings;
pub mod spec;

use std::ffi::OsString;

use clap::Parser as _;
pub use cutover_bundle as bundle;
pub use cutover_core as core;
pub use cutover_host as host;
pub use cutover_migrate as migrate;
pub use cutover_repo as repo;
pub use cutover_server as server;

use crate::{
    args::{Cli, Command, Ship},
    commands::Context,
    exit::Exit,
    failure::Failure,
    output::Form,
};

/// Runs the program with these arguments, prints everything there is to say, and returns how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let form = if cli.global.json { Form::Json } else { Form::Text };
    log_to_stderr(&cli.command);
    let only_prints = cli.command.only_prints();
    let ended = Context::new(&cli, clock::now()).and_then(|context| commands::run(cli, &context));
    let exit = ended.unwrap_or_else(|failure| {
        output::failure(&failure, form);
        failure.exit()
    });
    match output::lost() {
        Some(error) => without_output(exit, &error, only_prints),
        None => exit,
    }
}

/// How a run ends whose output is lost: as it would have, for what it changed is changed; but a command that only prints did
/// nothing.
fn without_output(exit: Exit, error: &std::io::Error, only_prints: bool) -> Exit {
    // Who closes a pipe early, as `head` does, has what they wanted.
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        output::note(format!("warning: not everything could be printed: {error}"));
    }
    if only_prints && exit == Exit::Done { Exit::Failed } else { exit }
}

/// Logs to stderr, as much as `CUTOVER_LOG` says. A supervisor tells what it does; other commands print their results.
fn log_to_stderr(command: &Command) {
    let default = match command {
        Command::Run(_) | Command::Gate(args::Gate::Serve(_)) | Command::Ship(Ship::Run { .. }) => "info",
        _ => "error",
    };
    let filter = std::env::var("CUTOVER_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).unwrap_or_else(|_| default.into());
    // A line that cannot be written is lost: reporting that to the same stderr would end this process with a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody who embeds this library may have a subscriber already; then that one stays.
    let _ = log.log_internal_errors(false).try_init();
}

/// What cannot be parsed: the help that was asked for, or an error.
fn usage(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => Exit::Done,
            Err(error) => without_output(Exit::Done, &error, true),
        };
    }
    let _ = error.print();
    if arguments.iter().any(|argument| argument == "--json") {
        output::failure_document(&wrong_usage(&error.to_string()));
    }
    Exit::Usage
}

/// The parser's text as a failure: what is wrong up to the first empty line; tips and the usage are what to do.
fn wrong_usage(text: &str) -> Failure {
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let message = first.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let lines = paragraphs.flat_map(str::lines).map(str::trim);
    lines.fold(Failure::usage(message), |failure, line| match line.strip_prefix("tip: ") {
        Some(tip) => failure.hint(tip),
        None if line.starts_with("Usage:") => failure.hint(line),
        None => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_told_whole() {
        let told = |arguments: &[&str]| {
            let error = Cli::try_parse_from(arguments).expect_err("wrong").to_string();
            let failure = wrong_usage(&error);
            (failure.to_string(), failure.hints().join(" | "))
        };
        let (message, hints) = told(&["cutover", "apply", "x"]);
        assert_eq!(message, "the following required arguments were not provided: --root <DIR>");
        assert!(hints.starts_with("Usage: cutover apply"), "{hints}");
        let (message, hints) = told(&["cutover", "aply"]);
        assert_eq!(message, "unrecognized subcommand 'aply'");
        assert!(hints.starts_with("a similar subcommand exists: 'apply' | Usage: "), "{hints}");
    }
}
