//! What will hurt: findings about a migration alone, without a database.

use serde::Serialize;

use crate::{
    ir::{Migration, Op, Type},
    plan::is_additive,
};

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works, but may surprise.
    Note,
    /// Loses data or a way back, or stalls somebody.
    Warning,
    /// Cannot work.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The step, from 1; 0 for the migration as a whole.
    pub step: usize,
    /// A word for the rule, stable.
    pub rule: &'static str,
    /// What is found.
    pub says: String,
    /// What to do about it.
    pub remedy: String,
}

/// Functions that give another value each time: what they fill in can neither be verified nor copied twice.
const VOLATILE: &[&str] = &[
    "random(",
    "gen_random_uuid(",
    "uuid_generate_v4(",
    "clock_timestamp(",
    "nextval(",
    "randomblob(",
    "timeofday(",
];

/// Looks at every step.
pub fn lint(migration: &Migration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |severity, step, rule, says: String, remedy: &str| {
        findings.push(Finding { severity, step, rule, says, remedy: remedy.to_owned() });
    };
    if !is_additive(migration) && migration.app_version.is_none() && !migration.steps.is_empty() {
        add(
            Severity::Warning,
            0,
            "no-app-version",
            "the migration takes something away and names no `app_version`".to_owned(),
            "Name the version that needs it, so that contract can wait for the fleet.",
        );
    }
    if migration.steps.is_empty() {
        add(
            Severity::Note,
            0,
            "empty",
            "the migration has no steps".to_owned(),
            "Nothing to do; it only counts.",
        );
    }
    for (at, step) in migration.steps.iter().enumerate() {
        let number = at + 1;
        let table = step.table();
        match step {
            Op::DropColumn { grace_s: 0, column, .. } => add(
                Severity::Warning,
                number,
                "no-grace",
                format!("`{table}.{column}` can be dropped for good at the first `complete`"),
                "Give `grace = \"7d\"`.",
            ),
            Op::DropTable { grace_s: 0, .. } => add(
                Severity::Warning,
                number,
                "no-grace",
                format!("`{table}` can be dropped for good at the first `complete`"),
                "Give `grace = \"7d\"`.",
            ),
            Op::AlterColumn { column, kind, down, up, nullable, .. } => {
                if up.is_some() && down.is_none() {
                    add(
                        Severity::Warning,
                        number,
                        "no-down",
                        format!(
                            "`{table}.{column}` has `up` without `down`: there is no rollback after the swap"
                        ),
                        "Give `down`.",
                    );
                }
                if let Some(kind @ (Type::Smallint | Type::Varchar(_) | Type::Real)) = kind
                    && down.is_none()
                {
                    add(
                        Severity::Note,
                        number,
                        "narrow-type",
                        format!(
                            "`{table}.{column}` becomes {kind}: values that do not fit stop the migration"
                        ),
                        "Look at the data first, or give `up` and `down`.",
                    );
                }
                if *nullable == Some(false) && up.is_none() {
                    add(
                        Severity::Note,
                        number,
                        "not-null",
                        format!("rows where `{table}.{column}` is NULL stop the migration"),
                        "Give `up` with a value for them, such as \"coalesce(x, 0)\".",
                    );
                }
            }
            Op::AddIndex { online: false, name, .. } => add(
                Severity::Warning,
                number,
                "blocking-index",
                format!("`{name}` is built while writers wait"),
                "Leave `online = false` out.",
            ),
            Op::Sql { check: None, .. } => add(
                Severity::Note,
                number,
                "no-check",
                format!("nothing checks the new values of `{table}`"),
                "Give `check`.",
            ),
            Op::Transform { check: None, .. } | Op::Plugin { check: None, .. } => add(
                Severity::Warning,
                number,
                "no-check",
                format!("nothing checks what code outside the database makes of `{table}`"),
                "Give `check`.",
            ),
            _ => {}
        }
        let text = serde_json::to_string(step).unwrap_or_default().to_ascii_lowercase();
        let volatile = VOLATILE.iter().find(|word| text.contains(**word));
        let expression = !matches!(step, Op::AddColumn { up: None, .. } | Op::CreateTable { .. });
        if let (Some(word), true) = (volatile, expression) {
            add(
                Severity::Error,
                number,
                "volatile",
                format!("`{word})` gives another value each time: the copy can never be verified"),
                "Use a row-local, repeatable expression, or a default for new rows only.",
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_hurt_is_found() {
        let text = "format = 1\nid = \"a\"\n[[step]]\nop = \"drop_column\"\ntable = \"t\"\ncolumn = \"c\"\n\
                    [[step]]\nop = \"alter_column\"\ntable = \"t\"\ncolumn = \"d\"\ntype = \"smallint\"\nup = \"random()\"\n\
                    [[step]]\nop = \"add_index\"\ntable = \"t\"\nname = \"i\"\ncolumns = [\"d\"]\nonline = false\n";
        let rules: Vec<&str> =
            lint(&crate::file::parse(text).unwrap()).iter().map(|finding| finding.rule).collect();
        assert_eq!(
            rules,
            ["no-app-version", "no-grace", "no-down", "narrow-type", "volatile", "blocking-index"]
        );
    }
}
