//! The behavioural contract: every case is proven by a test that cites it, or says why it is not.
//!
//! `docs/reference/contract.md` holds the cases in numbered rows; its last column is generated from the comments
//! (`// E16`) that stand in or above test functions. A case without a test needs a line `- E16: reason` in the section
//! *Without a test of their own*. A test that cites a case which does not exist is a finding too.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};

use super::{Finding, Tree, tokens};

const PAGE: &str = "docs/reference/contract.md";
/// Groups of cases that are in scope.
const GROUPS: &[char] = &['M', 'V', 'P', 'E', 'S', 'H', 'R', 'D', 'W', 'X'];
const REASONS: &str = "## Without a test of their own";

/// Compares the page with the tests.
pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let Some(page) = tree.text(PAGE) else {
        return Ok(vec![Finding::new(PAGE, 0, "is missing")]);
    };
    let proofs = proofs(tree)?;
    let reasons = reasons(page);
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for (number, line) in page.lines().enumerate() {
        let Some(row) = Row::parse(line) else { continue };
        listed.insert(row.case.to_owned());
        let proven = proofs.get(row.case);
        if proven.is_none() && !reasons.contains(row.case) {
            let says = format!("case {} has no test that cites it and no stated reason", row.case);
            findings.push(Finding::new(PAGE, number + 1, says));
        }
        if proven.is_some() && reasons.contains(row.case) {
            let says = format!("case {} has a test: remove the reason for not having one", row.case);
            findings.push(Finding::new(PAGE, number + 1, says));
        }
        if row.with_proof(proven) != line {
            let says = format!("case {}: the tests changed: run `cargo xtask reference`", row.case);
            findings.push(Finding::new(PAGE, number + 1, says));
        }
    }
    for (case, tests) in &proofs {
        if !listed.contains(case) {
            let says = format!("`{}` cites {case}, which is no case of {PAGE}", tests[0].1);
            findings.push(Finding::new(&tests[0].0, 0, says));
        }
    }
    Ok(findings)
}

/// Writes the last column anew.
pub(crate) fn fill_in(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let page = tree.text(PAGE).with_context(|| format!("`{PAGE}` is missing"))?;
    let proofs = proofs(&tree)?;
    let mut filled = String::new();
    for line in page.lines() {
        match Row::parse(line) {
            Some(row) => filled.push_str(&row.with_proof(proofs.get(row.case))),
            None => filled.push_str(line),
        }
        filled.push('\n');
    }
    std::fs::write(root.join(PAGE), filled)?;
    eprintln!("wrote {PAGE}");
    Ok(())
}

struct Row<'a> {
    case: &'a str,
    /// Everything before the last column.
    head: &'a str,
}

impl<'a> Row<'a> {
    /// `E5 | given | expected | proof`.
    fn parse(line: &'a str) -> Option<Self> {
        let (case, _) = line.split_once(" | ")?;
        is_case(case).then_some(())?;
        let (head, _proof) = line.rsplit_once(" |")?;
        Some(Row { case, head })
    }

    fn with_proof(&self, tests: Option<&Vec<(String, String)>>) -> String {
        let Some(tests) = tests else { return format!("{} | see below", self.head) };
        // A case may be proven in many places; three names are enough to find the way.
        let shown: Vec<String> = tests.iter().take(3).map(|(_, test)| format!("`{test}`")).collect();
        let more = if tests.len() > 3 { format!(", {} more", tests.len() - 3) } else { String::new() };
        format!("{} | {}{more}", self.head, shown.join(", "))
    }
}

fn is_case(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|group| GROUPS.contains(&group))
        && (1..=2).contains(&letters.as_str().len())
        && letters.all(|digit| digit.is_ascii_digit())
}

/// For each cited case, the file and the name of each test that cites it, in the order of files.
fn proofs(tree: &Tree) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let mut proofs: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for (path, text) in tree.rust().filter(|(path, _)| !path.starts_with("xtask/src/tidy")) {
        let lines: Vec<&str> = text.lines().collect();
        for test in tokens::tests_in(text).with_context(|| format!("failed to read `{}`", path.display()))? {
            let above =
                lines[..test.first_line - 1].iter().rev().take_while(|line| is_annotation(line)).count();
            let first = test.first_line - 1 - above;
            let cited: BTreeSet<&str> =
                lines[first..test.last_line].iter().flat_map(|line| cases_in_comment(line)).collect();
            for case in cited {
                let proof = (path.display().to_string(), test.name.clone());
                proofs.entry(case.to_owned()).or_default().push(proof);
            }
        }
    }
    Ok(proofs)
}

fn is_annotation(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("//") || line.starts_with("#[")
}

fn cases_in_comment(line: &str) -> Vec<&str> {
    let Some((_, comment)) = line.split_once("//") else { return Vec::new() };
    comment.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_case(word)).collect()
}

fn reasons(page: &str) -> BTreeSet<&str> {
    let Some((_, section)) = page.split_once(REASONS) else { return BTreeSet::new() };
    let lines = section.lines().filter_map(|line| line.strip_prefix("- ")?.split_once(": "));
    lines.flat_map(|(cases, _)| cases.split(", ")).filter(|case| is_case(case)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = "//! Head.\n// E1, E2\n#[test]\nfn defaults_are_safe() {\n  // see E3\n}\n";

    fn says(page: &str) -> Vec<String> {
        let tree = Tree::of(&[(PAGE, page), ("crates/host/src/x.rs", TEST)]);
        check(&tree).unwrap().into_iter().map(|finding| finding.says).collect()
    }

    #[test]
    fn a_case_is_proven_by_a_comment_above_or_inside_a_test() {
        let row = |case| format!("{case} | given | expected | `defaults_are_safe`\n");
        assert_eq!(says(&["E1", "E2", "E3"].map(row).concat()), Vec::<String>::new());
    }

    #[test]
    fn an_unproven_case_needs_a_reason_and_a_cited_one_must_exist() {
        let rows =
            "E1 | a | b | `defaults_are_safe`\nE2 | a | b | `defaults_are_safe`\nM7 | a | b | see below\n";
        let found = says(rows);
        assert!(found.iter().any(|says| says.contains("case M7 has no test")), "{found:?}");
        assert!(found.iter().any(|says| says.contains("cites E3")), "{found:?}");
        let reason = format!("{rows}\n{REASONS}\n- M7: there is no way to write it\n");
        assert!(!says(&reason).iter().any(|says| says.contains("M7")));
    }

    #[test]
    fn a_stale_proof_column_is_a_finding() {
        let found =
            says("E1 | a | b | `gone`\nE2 | a | b | `defaults_are_safe`\nE3 | a | b | `defaults_are_safe`\n");
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
