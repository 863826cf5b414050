//! What is printed: data on stdout, everything else on stderr; JSON that is versioned.

use std::{
    fs::Metadata,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;

use crate::failure::Failure;

/// The version of every JSON document that this program prints.
pub(crate) const FORMAT: u32 = 1;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Why stdout took no more, once it did not.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Whether stdout carries a result, as with `--output /dev/stdout`; then lines go to stderr.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Notes that a result is written to this stream, which may be stdout.
pub(crate) fn takes(stream: &Metadata) {
    let identity = |device, inode| (device, inode) == (stream.dev(), stream.ino());
    if rustix::fs::fstat(io::stdout()).is_ok_and(|stdout| identity(stdout.st_dev, stdout.st_ino)) {
        TAKEN.store(true, Ordering::Relaxed);
    }
}

/// Writes one line of data to stdout. What cannot be written ends nothing: the command goes on, and [`lost`] says so in the end.
pub(crate) fn line(text: impl AsRef<str>) {
    if TAKEN.load(Ordering::Relaxed) {
        return note(text);
    }
    write(|stdout| writeln!(stdout, "{}", text.as_ref()));
}

/// Writes bytes to stdout as they are, as [`line`]; to a terminal, which they could steer, as [`printable`] text.
pub(crate) fn exact(bytes: &[u8]) {
    if io::stdout().is_terminal() {
        return line(printable(String::from_utf8_lossy(bytes).trim_end_matches('\n')));
    }
    write(|stdout| stdout.write_all(bytes));
}

fn write(data: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.is_some() {
        return;
    }
    let mut stdout = io::stdout().lock();
    *lost = data(&mut stdout).and_then(|()| stdout.flush()).err();
}

/// Why some of the output is lost, if it is; told once.
pub(crate) fn lost() -> Option<io::Error> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Writes one line for people to stderr.
pub(crate) fn note(text: impl AsRef<str>) {
    // Nobody can be told that stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Writes `data` as one JSON document with its format number.
///
/// # Errors
/// Never in practice: the types of this program serialise.
pub(crate) fn json(data: &impl Serialize) -> Result<(), Failure> {
    let mut value = serde_json::to_value(data)
        .map_err(|error| Failure::new(crate::exit::Exit::Failed, "failed to write JSON").because(error))?;
    if let serde_json::Value::Object(map) = &mut value {
        let rest = std::mem::take(map);
        map.insert("format".to_owned(), FORMAT.into());
        map.extend(rest);
    }
    line(serde_json::to_string_pretty(&value).expect("values always serialise"));
    Ok(())
}

/// Reports a failure: on stderr for people, and with `--json` as a document on stdout too.
pub(crate) fn failure(failure: &Failure, form: Form) {
    if form == Form::Json {
        failure_document(failure);
    }
    // That something is already so is an answer, not an error.
    let word = if failure.exit() == crate::exit::Exit::NothingToDo { "nothing to do: " } else { "error: " };
    note(format!("{word}{}", printable(&failure.to_string())));
    for cause in failure.causes() {
        note(format!("  because: {}", printable(&cause)));
    }
    for hint in failure.hints() {
        note(format!("hint: {}", printable(hint)));
    }
}

/// The JSON document of a failure, on stdout.
pub(crate) fn failure_document(failure: &Failure) {
    line(serde_json::to_string_pretty(&failure.to_json()).expect("values always serialise"));
}

/// Text without control characters or text-direction overrides: nothing that came from a bundle can steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let hostile = (c.is_control() && c != '\n')
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
            if hostile { c.escape_unicode().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

/// Text whose commands can be pasted: those that work on a root name this one.
pub(crate) fn naming_root(text: &str, root: &Path) -> String {
    let program = <crate::args::Cli as clap::CommandFactory>::command();
    let needs_root = |command: &str| {
        let verb = command.strip_prefix("cutover ").and_then(|rest| rest.split(' ').next());
        let verb = verb.and_then(|verb| program.find_subcommand(verb));
        verb.is_some_and(|verb| {
            verb.get_arguments().any(|one| one.get_id() == "root" && one.is_required_set())
        }) && !command.contains("--root")
    };
    // What stands between backticks is every other part.
    let parts = text.split('`').enumerate().map(|(number, part)| match number % 2 == 1 && needs_root(part) {
        true => format!("{part} --root {}", shell_word(&root.display().to_string())),
        false => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// One word for a shell.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A table without lines, for people.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.to_vec());
    if let Some(width) = terminal_width() {
        table.set_width(width).set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The width of the terminal that stdout is, if it is one.
fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col >= 60).then_some(size.ws_col)
}

/// Bytes in a unit people read: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c"), "a\\u{1b}[2Jb\\u{202e}c");
    }

    #[test]
    fn commands_on_a_root_name_it_as_one_word() {
        let named = |text: &str| naming_root(text, Path::new("/srv/a b's"));
        assert_eq!(
            named("run `cutover recover`; `cutover schema status` or `cutover apply X --root DIR`, in `/x`"),
            "run `cutover recover --root '/srv/a b'\\''s'`; `cutover schema status` or `cutover apply X --root DIR`, in `/x`"
        );
        assert_eq!(
            naming_root("`cutover rollback 3`", Path::new("/srv/tool-1")),
            "`cutover rollback 3 --root /srv/tool-1`"
        );
    }

    #[test]
    fn bytes_are_printed_with_a_unit() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(3 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
        );
    }
}
