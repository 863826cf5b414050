//! The search for a consistent set of versions: the question of a host as PubGrub wants it asked.

use std::{
    cell::Cell,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use pubgrub::{
    Dependencies, DependencyConstraints, DependencyProvider, PackageResolutionStatistics, PubGrubError,
};

use super::{
    Candidate, Packages, Preference, Question, Unresolvable,
    explain::explain,
    node::{ABSENT, Package, Range, Ranked, range},
    ruled::Ruled,
};
use crate::model::{Name, Requirement, Version};

/// A consistent set of versions. Where several will do, that of `goal` is taken if there is one.
pub(super) fn solve(question: &Question<'_>, goal: &Packages) -> Result<Packages, Unresolvable> {
    let is_beyond_help = || Ruled::out(question).reason().map_or(Ok(()), Err);
    let mut is_weighing = false;
    loop {
        let host = Host { question, goal, is_weighing, is_in_trouble: Cell::new(false) };
        match pubgrub::resolve(&host, Package::Host, ABSENT) {
            Ok(versions) => {
                let candidate = |(package, version)| match (package, version) {
                    (Package::Named(name), Ranked(Some(version))) => {
                        let candidate = host.candidate(&name, &version)?.clone();
                        Some((name, candidate))
                    }
                    (Package::Host, _) | (Package::Named(_), Ranked(None)) => None,
                };
                return Ok(versions.into_iter().filter_map(candidate).collect());
            }
            Err(PubGrubError::ErrorInShouldCancel(Trouble)) => {
                is_beyond_help()?;
                is_weighing = true;
            }
            Err(PubGrubError::NoSolution(tree)) => {
                is_beyond_help()?;
                let contradiction = || Unresolvable::Contradiction(explain(tree));
                return Err(no_lower_bound(question).unwrap_or_else(contradiction));
            }
            Err(error) => return Err(Unresolvable::Contradiction(error.to_string())),
        }
    }
}

/// A requirement of something wanted, or of what that needs, that only an older version would meet.
fn no_lower_bound(question: &Question<'_>) -> Option<Unresolvable> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<(&Name, &Candidate)> = Vec::new();
    for (name, version) in question.wanted {
        let offered = question.offered.get(name).into_iter().flatten();
        open.extend(
            offered.filter(|candidate| candidate.version == *version).map(|candidate| (name, candidate)),
        );
    }
    while let Some((by, candidate)) = open.pop() {
        if !seen.insert((by, &candidate.version)) {
            continue;
        }
        for Requirement { package, constraint, .. } in &candidate.requires {
            let downgrade = question.downgrade(by, package, constraint);
            if downgrade.is_some() {
                return downgrade;
            }
            let present = question.installed.get(package);
            if present.is_none_or(|present| !constraint.allows(&present.version)) {
                let offered = question.offered.get(package).into_iter().flatten();
                let fits = offered.filter(|candidate| constraint.allows(&candidate.version));
                let new = fits.filter(|candidate| !seen.contains(&(package, &candidate.version)));
                open.extend(new.map(|candidate| (package, candidate)));
            }
        }
    }
    None
}

/// The question as PubGrub wants it asked.
struct Host<'a> {
    question: &'a Question<'a>,
    goal: &'a Packages,
    /// Whether the search goes on when packages are in each other's way; else it ends there.
    is_weighing: bool,
    is_in_trouble: Cell<bool>,
}

/// Packages are in each other's way, or one has no version that would do: perhaps nothing can help.
#[derive(Debug, thiserror::Error)]
#[error("packages are in each other's way")]
struct Trouble;

impl<'a> Host<'a> {
    /// What stands for this version: what is installed before what is offered.
    fn candidate(&self, package: &Name, version: &Version) -> Option<&'a Candidate> {
        let is_it = |candidate: &&Candidate| candidate.version.cmp_precedence(version) == Ordering::Equal;
        let offered = || self.question.offered.get(package).into_iter().flatten().find(is_it);
        self.question.installed.get(package).filter(is_it).or_else(offered)
    }

    /// The version in a range that a package should get, or that it should stay absent; `None` when nothing will do.
    fn best(&self, package: &Name, range: &Range) -> Option<Ranked> {
        // What is installed or wanted has no such range: the host itself needs it.
        if range.contains(&ABSENT) {
            return Some(ABSENT);
        }
        self.best_version(package, range).map(Ranked::from)
    }

    fn best_version(&self, package: &Name, range: &Range) -> Option<&'a Version> {
        let fits = |version: &Version| range.contains(&Ranked::from(version));
        let present = self.question.installed.get(package).map(|present| &present.version);
        if let Some(present) = present.filter(|version| fits(version)) {
            return Some(present);
        }
        // What it gets in the end it may get at once, if nothing lies between.
        let goal = self.goal.get(package).filter(|goal| fits(&goal.version));
        if let Some(goal) = goal.filter(|goal| present.is_none_or(|present| goal.follows(present))) {
            return Some(&goal.version);
        }
        let wanted = self.question.wanted.get(package);
        let mut versions: Vec<&Version> = self
            .question
            .offered
            .get(package)
            .into_iter()
            .flatten()
            .filter(|candidate| fits(&candidate.version))
            .filter(|candidate| !candidate.yanked || wanted == Some(&candidate.version))
            .map(|candidate| &candidate.version)
            .collect();
        versions.sort_by(|one, other| one.cmp_precedence(other));
        // A pre-release is taken when nothing else will do.
        if versions.iter().any(|version| !version.is_prerelease()) {
            versions.retain(|version| !version.is_prerelease());
        }
        match self.question.preference {
            Preference::Lowest => versions.first().copied(),
            Preference::Newest => versions.last().copied(),
        }
    }
}

impl DependencyProvider for Host<'_> {
    type P = Package;
    type V = Ranked;
    type VS = Range;
    type M = String;
    type Err = Trouble;
    /// Packages that have to be there first, so that others stay absent unless somebody needs them; of these, those that made
    /// trouble; then by name, so that the answer never depends on chance.
    type Priority = (bool, u32, std::cmp::Reverse<String>);

    fn prioritize(
        &self,
        package: &Package,
        range: &Range,
        statistics: &PackageResolutionStatistics,
    ) -> Self::Priority {
        let conflicts = statistics.conflict_count();
        if conflicts > 0 {
            self.is_in_trouble.set(true);
        }
        (!range.contains(&ABSENT), conflicts, std::cmp::Reverse(package.to_string()))
    }

    fn should_cancel(&self) -> Result<(), Trouble> {
        if self.is_in_trouble.get() && !self.is_weighing { Err(Trouble) } else { Ok(()) }
    }

    fn choose_version(&self, package: &Package, range: &Range) -> Result<Option<Ranked>, Self::Err> {
        Ok(match package {
            Package::Host => Some(ABSENT),
            Package::Named(name) => {
                let best = self.best(name, range);
                if best.is_none() {
                    self.is_in_trouble.set(true);
                }
                best
            }
        })
    }

    fn get_dependencies(
        &self,
        package: &Package,
        version: &Ranked,
    ) -> Result<Dependencies<Package, Range, String>, Self::Err> {
        let mut needs: BTreeMap<&Name, Range> = BTreeMap::new();
        let mut add = |name, more: Range| {
            let range = needs.entry(name).or_insert_with(Range::full);
            *range = range.intersection(&more);
        };
        match package {
            Package::Host => {
                for (name, present) in self.question.installed {
                    add(name, Range::higher_than(Ranked::from(&present.version)));
                }
                for (name, version) in self.question.wanted {
                    add(name, Range::singleton(Ranked::from(version)));
                }
            }
            Package::Named(name) => {
                let Ranked(Some(version)) = version else {
                    return Ok(Dependencies::Available(DependencyConstraints::default()));
                };
                let Some(candidate) = self.candidate(name, version) else {
                    return Ok(Dependencies::Unavailable("it cannot be had".to_owned()));
                };
                for Requirement { package, constraint, optional } in &candidate.requires {
                    let fits = range(constraint);
                    add(package, if *optional { fits.union(&Range::singleton(ABSENT)) } else { fits });
                }
                for conflict in &candidate.conflicts {
                    add(&conflict.package, range(&conflict.constraint).complement());
                }
            }
        }
        let needs = needs.into_iter().map(|(name, range)| (Package::Named(name.clone()), range));
        Ok(Dependencies::Available(needs.collect::<DependencyConstraints<_, _>>()))
    }
}
