//! Packages, versions and ranges as PubGrub sees them.

use std::{cmp::Ordering, fmt};

use pubgrub::Ranges;

use crate::model::{Name, Version};

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

/// A version ordered by precedence alone, as constraints compare.
#[derive(Clone, Debug)]
pub(super) struct Ranked(pub(super) Version);

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
        self.0.cmp_precedence(&other.0)
    }
}

impl fmt::Display for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) type Range = Ranges<Ranked>;
