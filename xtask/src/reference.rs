//! `cargo xtask reference`: the pages in `docs/reference/` that come from the program itself.
//!
//! The program prints each page (`cutover __reference PAGE`, hidden); this module writes them, and `tidy` compares them,
//! so a page cannot describe a flag, a setting or an exit code that does not exist.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    program::{self, Profile},
    tidy::{self, Finding},
};

/// The pages the program prints.
const PAGES: &[&str] = &["cli", "exit-codes", "settings"];

/// Writes every generated page.
pub(crate) fn write(root: &Path) -> Result<()> {
    let binary = program::build(root, Profile::Dev)?;
    for page in PAGES {
        std::fs::write(root.join(file_of(page)), program::text(&binary, &["__reference", page])?)?;
        eprintln!("wrote {}", file_of(page).display());
    }
    tidy::fill_in_contract(root)
}

/// Compares every page with what the program prints now.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let binary = program::build(root, Profile::Dev)?;
    let mut findings = Vec::new();
    for page in PAGES {
        let wanted = program::text(&binary, &["__reference", page])?;
        let present = std::fs::read_to_string(root.join(file_of(page))).unwrap_or_default();
        if let Some(line) = first_difference(&present, &wanted) {
            findings.push(Finding {
                file: file_of(page),
                line,
                says: "differs from what the program prints: run `cargo xtask reference`".to_owned(),
            });
        }
    }
    Ok(findings)
}

fn file_of(page: &str) -> PathBuf {
    PathBuf::from(format!("docs/reference/{page}.md"))
}

fn first_difference(present: &str, wanted: &str) -> Option<usize> {
    if present == wanted {
        return None;
    }
    let same = present.lines().zip(wanted.lines()).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_line_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }
}
