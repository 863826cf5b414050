//! Version constraints: `>=1.4.0,<2.0.0`. A comma is AND; a constraint without an operator matches nothing.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Version;

/// A conjunction of comparisons. The empty constraint allows every version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraint(Vec<(Operator, Version)>);

/// How a version is compared with a bound, by semver precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `<`
    Below,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

const OPERATORS: [(&str, Operator); 6] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    (">", Operator::Above),
    ("<", Operator::Below),
];

/// Why a string is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a constraint: write an operator (>= <= > < == !=) and a version, separated by commas")]
pub struct ConstraintError(String);

impl Constraint {
    /// Whether `version` satisfies every comparison, by semver precedence.
    pub fn allows(&self, version: &Version) -> bool {
        self.0.iter().all(|(operator, bound)| {
            let order = version.cmp_precedence(bound);
            match operator {
                Operator::AtLeast => order != Ordering::Less,
                Operator::AtMost => order != Ordering::Greater,
                Operator::Above => order == Ordering::Greater,
                Operator::Below => order == Ordering::Less,
                Operator::Equal => order == Ordering::Equal,
                Operator::NotEqual => order != Ordering::Equal,
            }
        })
    }

    /// Its comparisons, all of which a version has to satisfy.
    pub fn comparisons(&self) -> impl Iterator<Item = (Operator, &Version)> {
        self.0.iter().map(|(operator, version)| (*operator, version))
    }

    /// The lowest version that the lower bounds admit; `None` when nothing bounds it from below.
    pub fn lower_bound(&self) -> Option<&Version> {
        self.0
            .iter()
            .filter(|(operator, _)| matches!(operator, Operator::AtLeast | Operator::Above | Operator::Equal))
            .map(|(_, version)| version)
            .max()
    }
}

/// Constraints (and only they) may leave out the minor and patch numbers: `>=1.4` means `>=1.4.0`.
fn loose_version(text: &str) -> Option<Version> {
    let (core, rest) = text.split_at(text.find(['-', '+']).unwrap_or(text.len()));
    let missing = 2usize.checked_sub(core.matches('.').count())?;
    format!("{core}{}{rest}", ".0".repeat(missing)).parse().ok()
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let refuse = || ConstraintError(crate::text::shown(text));
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(|part| {
                let part = part.trim();
                let (sign, operator) =
                    OPERATORS.iter().find(|(sign, _)| part.starts_with(sign)).ok_or_else(refuse)?;
                Ok((*operator, loose_version(part[sign.len()..].trim()).ok_or_else(refuse)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (operator, version)) in self.0.iter().enumerate() {
            let sign = OPERATORS.iter().find(|(_, known)| known == operator).map_or("", |(sign, _)| sign);
            write!(f, "{}{sign}{version}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(constraint: &str, version: &str) -> bool {
        constraint.parse::<Constraint>().expect(constraint).allows(&version.parse().expect(version))
    }

    // R1
    #[test]
    fn comma_is_and() {
        let range = ">=1.4.0,<2.0.0";
        assert_eq!(
            ["1.3.9", "1.4.0", "1.9.9", "2.0.0"].map(|version| allows(range, version)),
            [false, true, true, false]
        );
    }

    // R2
    #[test]
    fn empty_allows_everything_and_a_bare_or_missing_version_is_refused() {
        assert!(allows("", "0.0.1"));
        for text in ["1.4.0", ">=", "=>1.0.0", ">=1.0.0,", ">=x"] {
            assert!(text.parse::<Constraint>().is_err(), "{text}");
        }
    }

    // V5
    #[test]
    fn loose_versions_compare_numerically_in_constraints() {
        assert!(allows("==1.4", "1.4.0") && allows(">1.9", "1.10.0") && !allows(">1.10", "1.9.0"));
    }

    #[test]
    fn constraint_round_trips_through_text() {
        let text = ">=1.4.0,<2.0.0,!=1.5.1";
        assert_eq!(text.parse::<Constraint>().expect(text).to_string(), text);
    }
}
