//! `cargo xtask tidy`: the rules of ARCHITECTURE.md and STYLE.md that a machine can check, as a test.
//!
//! Owns the list of checks and how findings are printed. Each check is a pure function from what it read to
//! [`Finding`]s, so it can be tested with a tree that breaks the rule. It changes no file; `cargo xtask reference`
//! writes what can be generated. Read [`Tree`] first.

mod contract;
mod exit_codes;
mod layers;
mod sources;
mod tokens;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use contract::fill_in as fill_in_contract;

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// The file, relative to the workspace.
    pub(crate) file: PathBuf,
    /// The line, from 1; 0 when the whole file is meant.
    pub(crate) line: usize,
    /// What is wrong and what to do about it.
    pub(crate) says: String,
}

impl Finding {
    fn new(file: impl Into<PathBuf>, line: usize, says: impl Into<String>) -> Self {
        Finding { file: file.into(), line, says: says.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.says)
    }
}

/// The text files of the repository, by path relative to the workspace.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<PathBuf, String>,
}

impl Tree {
    /// Reads every tracked or new (not ignored) text file below `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("failed to run git ls-files")?;
        ensure!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
        let mut files = BTreeMap::new();
        for name in listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = std::str::from_utf8(name).context("a file name that is not UTF-8")?;
            // A file deleted in the work tree is still listed; one that is not text has no rules.
            if let Ok(text) = std::fs::read_to_string(root.join(name)) {
                files.insert(PathBuf::from(name), text);
            }
        }
        Ok(Tree { files })
    }

    /// The Rust files.
    fn rust(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.all().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"))
    }

    fn all(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files.iter().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.files.get(Path::new(path)).map(String::as_str)
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        Tree { files }
    }
}

/// Runs every check on the workspace at `root` and prints the findings.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let mut findings = layers::check(root)?;
    findings.extend(sources::check(&tree)?);
    findings.extend(exit_codes::check(&tree)?);
    findings.extend(contract::check(&tree)?);
    findings.extend(crate::reference::check(root)?);
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} finding(s)", findings.len());
    }
    eprintln!("tidy: {} files, no findings", tree.files.len());
    Ok(())
}
