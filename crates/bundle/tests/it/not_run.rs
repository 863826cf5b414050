//! Tests that cannot be run here say so.

use std::{fs::OpenOptions, io::Write as _};

/// Says, on standard error and in the list that `cargo xtask test` shows at its end, what was not run and why.
pub(crate) fn not_run(line: &str) {
    eprintln!("not run: {line}");
    if let Some(path) = std::env::var_os("XTASK_NOT_RUN") {
        let list = OpenOptions::new().append(true).create(true).open(path);
        writeln!(list.expect("the list of tests that were not run"), "{line}").expect("written");
    }
}
