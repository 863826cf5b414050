//! Packages, versions and ranges as PubGrub sees them.

use std::{cmp::Ordering, fmt};

use pubgrub::Ranges;

use crate::model::{Constraint, Name, Operator, Version};

/// A node of the search: the host itself, or a package on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Package {
    Host,
    Named(Name),
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("this host"),
            Self::Named(name) => name.fmt(f),
        }
    }
}

/// A version ordered by precedence alone, as constraints compare; or none, below all of them, when the package is not there.
#[derive(Clone, Debug)]
pub(super) struct Ranked(pub(super) Option<Version>);

/// That a package is not there.
pub(super) const ABSENT: Ranked = Ranked(None);

impl From<&Version> for Ranked {
    fn from(version: &Version) -> Self {
        Self(Some(version.clone()))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => one.cmp_precedence(other),
            (one, other) => one.is_some().cmp(&other.is_some()),
        }
    }
}

impl fmt::Display for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(version) => version.fmt(f),
            None => f.write_str("absent"),
        }
    }
}

pub(super) type Range = Ranges<Ranked>;

/// The versions that a constraint allows.
pub(super) fn range(constraint: &Constraint) -> Range {
    constraint.comparisons().fold(Range::strictly_higher_than(ABSENT), |range, (operator, version)| {
        let version = Ranked::from(version);
        range.intersection(&match operator {
            Operator::AtLeast => Range::higher_than(version),
            Operator::AtMost => Range::lower_than(version),
            Operator::Above => Range::strictly_higher_than(version),
            Operator::Below => Range::strictly_lower_than(version),
            Operator::Equal => Range::singleton(version),
            Operator::NotEqual => Range::singleton(version).complement(),
        })
    })
}
