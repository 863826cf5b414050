//! Dependencies: which packages of a host have to change, and in which order, so that a release can be installed.
//!
//! The search is PubGrub's (crate `pubgrub`), because it explains in sentences why there is no answer. What is ours are the
//! rules: nothing is downgraded, nothing is removed, what is installed stays as long as it will do, and of several versions
//! that will do the [`Preference`] decides. Values in, values out; who offers what is found elsewhere.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use pubgrub::{
    DefaultStringReporter, Dependencies, DependencyConstraints, DependencyProvider,
    PackageResolutionStatistics, PubGrubError, Ranges, Reporter as _,
};
use serde::{Deserialize, Serialize};

use crate::model::{Conflict, Constraint, Name, Operator, Requirement, Version};

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
        "{package} {to} follows {needs} or newer, {from} is installed, and no version that can be had lies between"
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

/// The steps that make the wanted versions installable, with them: what is needed comes before what needs it, and what does
/// not depend on each other goes by name. Nothing when everything is as wanted.
///
/// # Errors
/// See [`Unresolvable`].
pub fn resolve(question: &Question<'_>) -> Result<Vec<Step>, Unresolvable> {
    let solution = solve(question)?;
    let order = order(&solution)?;
    let mut steps = Vec::new();
    for package in order {
        let candidate = &solution[&package];
        let present = question.installed.get(&package).map(|present| &present.version);
        if present.is_none_or(|present| present.cmp_precedence(&candidate.version) != Ordering::Equal) {
            steps.extend(path(question, &package, present, candidate)?);
        }
    }
    Ok(steps)
}

/// A consistent set of versions.
fn solve(question: &Question<'_>) -> Result<BTreeMap<Name, Candidate>, Unresolvable> {
    // Optional requirements and conflicts only bind packages that are there. Which ones are is known when the search is over,
    // so it is repeated until no more come; there are finitely many.
    let mut present: BTreeSet<Name> =
        question.installed.keys().chain(question.wanted.keys()).cloned().collect();
    loop {
        let host = Host { question, present: &present };
        let solution = pubgrub::resolve(&host, Package::Host, Ranked(Version::new(0, 0, 0)));
        let versions = match solution {
            Ok(versions) => versions,
            Err(PubGrubError::NoSolution(mut tree)) => {
                if let Some(error) = no_lower_bound(question) {
                    return Err(error);
                }
                tree.collapse_no_versions();
                return Err(Unresolvable::Contradiction(DefaultStringReporter::report(&tree)));
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
fn needed(question: &Question<'_>, chosen: BTreeMap<Name, Candidate>) -> BTreeMap<Name, Candidate> {
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
                    open.extend(fits.map(|candidate| (package, candidate)));
                }
            }
        }
    }
    None
}

/// The packages of a solution, each after what it needs, otherwise by name.
fn order(solution: &BTreeMap<Name, Candidate>) -> Result<Vec<Name>, Unresolvable> {
    let mut waiting: BTreeMap<&Name, BTreeSet<&Name>> = solution
        .iter()
        .map(|(name, candidate)| {
            let requires = candidate.requires.iter().map(|requirement| &requirement.package);
            (name, requires.filter(|package| solution.contains_key(*package)).collect())
        })
        .collect();
    let mut ordered = Vec::with_capacity(waiting.len());
    while let Some(next) = waiting.iter().find(|(_, needs)| needs.is_empty()).map(|(name, _)| *name) {
        waiting.remove(next);
        for needs in waiting.values_mut() {
            needs.remove(next);
        }
        ordered.push(next.clone());
    }
    match waiting.keys().next() {
        None => Ok(ordered),
        Some(first) => Err(Unresolvable::Circular(circle(&waiting, first))),
    }
}

/// A circle among packages each of which needs another one of them, beginning and ending with the same.
fn circle(waiting: &BTreeMap<&Name, BTreeSet<&Name>>, first: &Name) -> Vec<Name> {
    let mut walked: Vec<&Name> = Vec::new();
    let mut at = first;
    loop {
        if let Some(start) = walked.iter().position(|name| *name == at) {
            // The smallest name begins, wherever the walk came in.
            let mut circle: Vec<Name> = walked[start..].iter().map(|name| (*name).clone()).collect();
            let smallest = (0..circle.len()).min_by_key(|index| &circle[*index]).unwrap_or(0);
            circle.rotate_left(smallest);
            circle.extend(circle.first().cloned());
            return circle;
        }
        walked.push(at);
        match waiting.get(at).and_then(|needs| needs.first()) {
            Some(next) => at = next,
            None => return vec![at.clone()],
        }
    }
}

/// The steps from the installed version to `target`, by way of the versions it demands (V: `min_upgrade_from`). Each goes as
/// far as it may.
fn path(
    question: &Question<'_>,
    package: &Name,
    present: Option<&Version>,
    target: &Candidate,
) -> Result<Vec<Step>, Unresolvable> {
    let step = |from: Option<&Version>, to: &Version| Step {
        package: package.clone(),
        from: from.cloned(),
        to: to.clone(),
    };
    let Some(mut at) = present else { return Ok(vec![step(None, &target.version)]) };
    let follows = |candidate: &Candidate, at: &Version| {
        candidate.min_upgrade_from.as_ref().is_none_or(|least| least.cmp_precedence(at) != Ordering::Greater)
    };
    let mut steps = Vec::new();
    while !follows(target, at) {
        let between = |candidate: &&Candidate| {
            candidate.version.cmp_precedence(at) == Ordering::Greater
                && candidate.version.cmp_precedence(&target.version) == Ordering::Less
                && !candidate.yanked
                && follows(candidate, at)
        };
        let offered = question.offered.get(package).into_iter().flatten();
        match offered.filter(between).max_by(|one, other| one.version.cmp_precedence(&other.version)) {
            Some(next) => {
                steps.push(step(Some(at), &next.version));
                at = &next.version;
            }
            None => {
                return Err(Unresolvable::NoPath {
                    package: package.clone(),
                    from: at.clone(),
                    to: target.version.clone(),
                    needs: target.min_upgrade_from.clone().unwrap_or_else(|| target.version.clone()),
                });
            }
        }
    }
    steps.push(step(Some(at), &target.version));
    Ok(steps)
}

/// A node of the search: the host itself, or a package on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Package {
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
struct Ranked(Version);

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

type Range = Ranges<Ranked>;

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
    /// Packages that optional requirements and conflicts apply to.
    present: &'a BTreeSet<Name>,
}

impl<'a> Host<'a> {
    /// What stands for this version: what is installed before what is offered.
    fn candidate(&self, package: &Name, version: &Version) -> Option<&'a Candidate> {
        let is_it = |candidate: &&Candidate| candidate.version.cmp_precedence(version) == Ordering::Equal;
        let offered = || self.question.offered.get(package).into_iter().flatten().find(is_it);
        self.question.installed.get(package).filter(is_it).or_else(offered)
    }

    /// The versions a package may get, best first.
    fn candidates(&self, package: &Name, range: &Range) -> Option<&'a Version> {
        let fits = |version: &Version| range.contains(&Ranked(version.clone()));
        let present = self.question.installed.get(package).map(|present| &present.version);
        if let Some(present) = present.filter(|version| fits(version)) {
            return Some(present);
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
    type Err = std::convert::Infallible;
    /// Packages that made trouble first, then by name, so that the answer never depends on chance.
    type Priority = (u32, std::cmp::Reverse<String>);

    fn prioritize(
        &self,
        package: &Package,
        _: &Range,
        statistics: &PackageResolutionStatistics,
    ) -> Self::Priority {
        (statistics.conflict_count(), std::cmp::Reverse(package.to_string()))
    }

    fn choose_version(&self, package: &Package, range: &Range) -> Result<Option<Ranked>, Self::Err> {
        Ok(match package {
            Package::Host => Some(Ranked(Version::new(0, 0, 0))),
            Package::Named(name) => self.candidates(name, range).cloned().map(Ranked),
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
