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
    node::{Package, Range, Ranked},
    ruled::Ruled,
};
use crate::model::{Constraint, Name, Operator, Requirement, Version};

/// A consistent set of versions. Where several will do, that of `goal` is taken if there is one.
pub(super) fn solve(question: &Question<'_>, goal: &Packages) -> Result<Packages, Unresolvable> {
    let is_beyond_help = || Ruled::out(question).reason().map_or(Ok(()), Err);
    let mut is_weighing = false;
    // Optional requirements and conflicts only bind packages that are there. Which ones are is known when the search is over,
    // so it is repeated until no more come; there are finitely many.
    let mut present: BTreeSet<Name> =
        question.installed.keys().chain(question.wanted.keys()).cloned().collect();
    loop {
        let host = Host { question, goal, present: &present, is_weighing, is_in_trouble: Cell::new(false) };
        let solution = pubgrub::resolve(&host, Package::Host, Ranked(Version::new(0, 0, 0)));
        let versions = match solution {
            Ok(versions) => versions,
            Err(PubGrubError::ErrorInShouldCancel(Trouble)) => {
                is_beyond_help()?;
                is_weighing = true;
                continue;
            }
            Err(PubGrubError::NoSolution(tree)) => {
                is_beyond_help()?;
                let contradiction = || Unresolvable::Contradiction(explain(tree));
                return Err(no_lower_bound(question).unwrap_or_else(contradiction));
            }
            Err(error) => return Err(Unresolvable::Contradiction(error.to_string())),
        };
        let mut chosen = BTreeMap::new();
        for (package, version) in versions {
            if let Package::Named(name) = package
                && let Some(candidate) = host.candidate(&name, &version.0)
            {
                chosen.insert(name, candidate.clone());
            }
        }
        let more: Vec<Name> = chosen.keys().filter(|name| !present.contains(*name)).cloned().collect();
        if more.is_empty() {
            return Ok(needed(question, chosen));
        }
        present.extend(more);
    }
}

/// What is installed or wanted, and what these need; an earlier round may have brought more.
fn needed(question: &Question<'_>, chosen: Packages) -> Packages {
    let mut needed = BTreeSet::new();
    let mut open: Vec<Name> = question.installed.keys().chain(question.wanted.keys()).cloned().collect();
    while let Some(name) = open.pop() {
        if let Some(candidate) = chosen.get(&name)
            && needed.insert(name)
        {
            let requires = candidate.requires.iter().filter(|requirement| !requirement.optional);
            open.extend(requires.map(|requirement| requirement.package.clone()));
        }
    }
    chosen.into_iter().filter(|(name, _)| needed.contains(name)).collect()
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
            match question.installed.get(package) {
                Some(present) if constraint.allows(&present.version) => {}
                Some(present) if constraint.lower_bound().is_none() => {
                    return Some(Unresolvable::NoLowerBound {
                        by: by.clone(),
                        package: package.clone(),
                        constraint: constraint.clone(),
                        installed: present.version.clone(),
                    });
                }
                Some(_) | None => {
                    let offered = question.offered.get(package).into_iter().flatten();
                    let fits = offered.filter(|candidate| constraint.allows(&candidate.version));
                    let new = fits.filter(|candidate| !seen.contains(&(package, &candidate.version)));
                    open.extend(new.map(|candidate| (package, candidate)));
                }
            }
        }
    }
    None
}

fn range(constraint: &Constraint) -> Range {
    constraint.comparisons().fold(Range::full(), |range, (operator, version)| {
        let version = Ranked(version.clone());
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

/// The question as PubGrub wants it asked.
struct Host<'a> {
    question: &'a Question<'a>,
    goal: &'a Packages,
    /// Packages that optional requirements and conflicts apply to.
    present: &'a BTreeSet<Name>,
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

    /// The version in a range that a package should get, if it can have any.
    fn best(&self, package: &Name, range: &Range) -> Option<&'a Version> {
        let fits = |version: &Version| range.contains(&Ranked(version.clone()));
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
    /// Packages that made trouble first, then by name, so that the answer never depends on chance.
    type Priority = (u32, std::cmp::Reverse<String>);

    fn prioritize(
        &self,
        package: &Package,
        _: &Range,
        statistics: &PackageResolutionStatistics,
    ) -> Self::Priority {
        let conflicts = statistics.conflict_count();
        if conflicts > 0 {
            self.is_in_trouble.set(true);
        }
        (conflicts, std::cmp::Reverse(package.to_string()))
    }

    fn should_cancel(&self) -> Result<(), Trouble> {
        if self.is_in_trouble.get() && !self.is_weighing { Err(Trouble) } else { Ok(()) }
    }

    fn choose_version(&self, package: &Package, range: &Range) -> Result<Option<Ranked>, Self::Err> {
        Ok(match package {
            Package::Host => Some(Ranked(Version::new(0, 0, 0))),
            Package::Named(name) => {
                let best = self.best(name, range);
                if best.is_none() {
                    self.is_in_trouble.set(true);
                }
                best.cloned().map(Ranked)
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
                    add(name, Range::higher_than(Ranked(present.version.clone())));
                }
                for (name, version) in self.question.wanted {
                    add(name, Range::singleton(Ranked(version.clone())));
                }
            }
            Package::Named(name) => {
                let Some(candidate) = self.candidate(name, &version.0) else {
                    return Ok(Dependencies::Unavailable("it cannot be had".to_owned()));
                };
                for requirement in &candidate.requires {
                    if !requirement.optional || self.present.contains(&requirement.package) {
                        add(&requirement.package, range(&requirement.constraint));
                    }
                }
                for conflict in &candidate.conflicts {
                    if self.present.contains(&conflict.package) {
                        add(&conflict.package, range(&conflict.constraint).complement());
                    }
                }
            }
        }
        let needs = needs.into_iter().map(|(name, range)| (Package::Named(name.clone()), range));
        Ok(Dependencies::Available(needs.collect::<DependencyConstraints<_, _>>()))
    }
}
