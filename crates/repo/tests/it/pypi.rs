//! Programs from PyPI that tests run beside ours, in a virtual environment that is made once for each build directory.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use crate::not_run::not_run;

/// The directory of an environment with `packages`, in which `python -c check` succeeds. `None`, and a line among those
/// that `cargo xtask test` prints at its end, when it cannot be had here.
pub(crate) fn environment(name: &str, packages: &[&str], check: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let python = directory.join("bin/python");
    let run = |program: &Path, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let works = || run(&python, &["-c", check]);
    // Test processes run beside each other: one makes it, the others wait.
    let lock = File::create(directory.with_extension("lock")).expect("a file");
    lock.lock().expect("locked");
    let install = [&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], packages].concat();
    let made = works()
        || run(Path::new("python3"), &["-m", "venv", directory.to_str().expect("UTF-8")])
            && run(&python, &install)
            && works();
    if made {
        return Some(directory);
    }
    not_run(&format!("tests with {}: python3 with venv and PyPI cannot be had", packages[0]));
    None
}
