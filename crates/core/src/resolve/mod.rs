//! Dependencies: which packages of a host have to change, and in which order, so that a release can be installed.
//!
//! The search is PubGrub's (crate `pubgrub`), because it explains why there is no answer (`solve`, `explain`). When packages get in
//! each other's way, what nothing can help is ruled out before they are weighed (`ruled`): that is quick, and a chain of who needs
//! what is easier to follow. What is ours are the rules: nothing is downgraded, nothing is removed, what is installed stays as long
//! as it will do, and of several versions that will do the [`Preference`] decides; and the [`Way`]: the order of steps, and the
//! versions between that a release demands (`way`). Values in, values out; who offers what is found elsewhere.
//! Decision: `docs/decisions/0053-the-search-knows-absence-and-what-nothing-can-help.md`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use self::way::Search;
use crate::model::{Conflict, Constraint, Name, Requirement, Version};

mod explain;
mod node;
mod ruled;
mod solve;
mod way;

/// Packages of a host, each in one version.
type Packages = BTreeMap<Name, Candidate>;

/// One version of a package, installed or offered, as far as dependencies go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The version.
    pub version: Version,
    /// What it needs.
    pub requires: Vec<Requirement>,
    /// What it cannot live with.
    pub conflicts: Vec<Conflict>,
    /// The oldest version it can follow directly.
    pub min_upgrade_from: Option<Version>,
    /// Whether it is only to be taken when it is asked for by its exact version.
    pub yanked: bool,
}

/// Which of the versions that will do is taken of a package that nobody asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// The lowest: what changes is what has to.
    #[default]
    Lowest,
    /// The newest.
    Newest,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The packages of this host.
    pub installed: &'a BTreeMap<Name, Candidate>,
    /// The versions that can be had, in any order; one that is there twice counts once.
    pub offered: &'a BTreeMap<Name, Vec<Candidate>>,
    /// What is to be installed, by exact version.
    pub wanted: &'a BTreeMap<Name, Version>,
    /// Which versions of other packages are taken.
    pub preference: Preference,
}

impl Question<'_> {
    /// The refusal of a requirement that only an older version than the installed one would meet, if it is such a one.
    fn downgrade(&self, by: &Name, package: &Name, constraint: &Constraint) -> Option<Unresolvable> {
        let installed = &self.installed.get(package)?.version;
        let is_one = !constraint.allows(installed) && constraint.lower_bound().is_none();
        is_one.then(|| Unresolvable::NoLowerBound {
            by: by.clone(),
            package: package.clone(),
            constraint: constraint.clone(),
            installed: installed.clone(),
        })
    }
}

/// One package changes its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The package.
    pub package: Name,
    /// What it has; `None` when it is not installed.
    pub from: Option<Version>,
    /// What it gets.
    pub to: Version,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            Some(from) => write!(f, "{} {from} -> {}", self.package, self.to),
            None => write!(f, "{} {}", self.package, self.to),
        }
    }
}

/// How a host gets from what it has to what is wanted. A release may demand versions between (`min_upgrade_from`); then the way
/// has several legs, and after each of them every requirement and conflict between the packages of the host holds. Decision:
/// `docs/decisions/0049-a-stop-is-a-state-in-which-everything-holds.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The legs, in order, each with at least one step: what is needed comes before what needs it, and what does not depend on
    /// each other goes by name.
    pub legs: Vec<Vec<Step>>,
}

impl Way {
    /// All steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.legs.iter().flatten()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolvable {
    /// Packages need each other, so none can come first.
    #[error("Circular dependency: {}", join(.0, " needs "))]
    Circular(Vec<Name>),
    /// A requirement can only be met by an older version than the installed one.
    #[error(
        "{by} needs {package} {constraint}, which has no lower bound, and {installed} is installed: nothing is downgraded"
    )]
    NoLowerBound {
        /// Who requires it.
        by: Name,
        /// What is required.
        package: Name,
        /// The versions that would do.
        constraint: Constraint,
        /// The version that is installed.
        installed: Version,
    },
    /// No set of versions satisfies everybody; why, in sentences.
    #[error("{0}")]
    Contradiction(String),
    /// The version can be had, and there is no way there from the installed one.
    #[error(
        "{package} {to} follows {needs} or newer, {from} is installed, and no version that can be had leads there"
    )]
    NoPath {
        /// The package.
        package: Name,
        /// What is installed, or would be by then.
        from: Version,
        /// Where it should go.
        to: Version,
        /// The oldest version that `to` follows.
        needs: Version,
    },
    /// There are versions between, and none of them can be part of a way.
    #[error("{package} gets from {from} to {to} by way of {stop}, and that way is closed: {why}")]
    Closed {
        /// The package.
        package: Name,
        /// What is installed, or would be by then.
        from: Version,
        /// Where it should go.
        to: Version,
        /// The version between that is nearest to `to`.
        stop: Version,
        /// Why not by it: it cannot be installed, or nothing leads on from there.
        why: Box<Unresolvable>,
    },
}

fn join(names: &[Name], between: &str) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(between)
}

/// A requirement or conflict of the installed packages that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Who states it.
    pub by: Name,
    /// About whom.
    pub package: Name,
    /// The version that is installed.
    pub found: Option<Version>,
}

/// What does not hold between installed packages, in the order of their names.
pub fn broken(installed: &BTreeMap<Name, Candidate>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (by, candidate) in installed {
        let found = |package: &Name| installed.get(package).map(|other| other.version.clone());
        let mut report = |package: &Name, found: Option<Version>| {
            broken.push(Broken { by: by.clone(), package: package.clone(), found });
        };
        for requirement in &candidate.requires {
            let found = found(&requirement.package);
            if !found.as_ref().map_or(requirement.optional, |version| requirement.constraint.allows(version))
            {
                report(&requirement.package, found);
            }
        }
        for conflict in &candidate.conflicts {
            let found = found(&conflict.package);
            if found.as_ref().is_some_and(|version| conflict.constraint.allows(version)) {
                report(&conflict.package, found);
            }
        }
    }
    broken
}

/// The way to the wanted versions. No legs when everything is as wanted.
///
/// # Errors
/// See [`Unresolvable`].
pub fn resolve(question: &Question<'_>) -> Result<Way, Unresolvable> {
    Search::new(question).way()
}
