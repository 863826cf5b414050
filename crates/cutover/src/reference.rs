//! Reference pages from the code: `cutover __reference PAGE`. `cargo xtask tidy` compares them with `docs/reference/`.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, ReferencePage},
    exit::Exit,
    settings,
};

/// The page as Markdown.
pub(crate) fn page(page: ReferencePage) -> String {
    match page {
        ReferencePage::Cli => cli(),
        ReferencePage::ExitCodes => exit_codes(),
        ReferencePage::Settings => settings::reference(),
    }
}

fn exit_codes() -> String {
    format!(
        "# Exit codes\n\nPrinted by `cutover __reference exit-codes`; do not edit by hand. The numbers never change their \
         meaning. With `--json`, a failure is also printed to stdout as `{{\"format\": 1, \"error\": {{\"exit_code\", \"kind\", \"code\", \"message\", \"causes\", \"hints\"}}}}`.\n\n{}",
        Exit::reference()
    )
}

fn cli() -> String {
    let mut text = String::from(
        "# Command line\n\nPrinted by `cutover __reference cli`; do not edit by hand. Data goes to stdout, everything \
         else to stderr. Exit codes: [exit-codes.md](exit-codes.md).\n",
    );
    let mut root = Cli::command();
    root.build();
    let global: Vec<String> = root
        .get_arguments()
        .filter(|argument| argument.is_global_set() && !argument.is_hide_set())
        .map(|argument| argument.get_id().to_string())
        .collect();
    text.push_str("\n## Flags of every command\n\n");
    for argument in root.get_arguments().filter(|argument| argument.is_global_set()) {
        describe_argument(&mut text, argument);
    }
    describe(&mut text, &root, &[], &global);
    text
}

fn describe(text: &mut String, command: &clap::Command, parents: &[&str], global: &[String]) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let names: Vec<&str> = parents.iter().copied().chain([sub.get_name()]).collect();
        if sub.has_subcommands() {
            describe(text, sub, &names, global);
            continue;
        }
        let about =
            sub.get_long_about().or_else(|| sub.get_about()).map(ToString::to_string).unwrap_or_default();
        let stop = if about.ends_with('.') { "" } else { "." };
        write!(text, "\n## cutover {}\n\n{about}{stop}\n", names.join(" "))
            .expect("writing to a string cannot fail");
        let own: Vec<_> = sub
            .get_arguments()
            .filter(|argument| !argument.is_hide_set() && !global.contains(&argument.get_id().to_string()))
            .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
            .collect();
        if !own.is_empty() {
            text.push('\n');
        }
        for argument in own {
            describe_argument(text, argument);
        }
    }
}

fn describe_argument(text: &mut String, argument: &clap::Arg) {
    let value = argument
        .get_value_names()
        .filter(|_| argument.get_action().takes_values())
        .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let name = match (argument.get_long(), argument.get_short(), value) {
        (Some(long), Some(short), Some(value)) => format!("-{short}, --{long} {value}"),
        (Some(long), None, Some(value)) => format!("--{long} {value}"),
        (Some(long), _, None) => format!("--{long}"),
        (None, _, value) if argument.is_required_set() => value.unwrap_or_default(),
        (None, _, value) => format!("[{}]", value.unwrap_or_default()),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|_| argument.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let possible =
        if possible.is_empty() { String::new() } else { format!(" One of {}.", possible.join(", ")) };
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = if default.is_empty() || !argument.get_action().takes_values() {
        String::new()
    } else {
        format!(" Default: `{}`.", default.join(" "))
    };
    let stop = if help.ends_with('.') { "" } else { "." };
    writeln!(text, "* `{name}`: {help}{stop}{possible}{default}").expect("writing to a string cannot fail");
}
