//! The way to a solution: in which order packages change, and by which versions between.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{Candidate, Packages, Question, Step, Unresolvable, Way, solve::solve};
use crate::model::{Name, Version};

/// How many stops are tried in all: far more than any host needs, and few enough that an answer comes.
const STOPS_MAX: usize = 500;

impl Candidate {
    /// Whether it can follow `present` directly. (V4)
    pub(super) fn follows(&self, present: &Version) -> bool {
        let least = self.min_upgrade_from.as_ref();
        least.is_none_or(|least| least.cmp_precedence(present) != Ordering::Greater)
    }
}

/// The search for a way. A package that cannot get where it should in one step makes a stop at a version between, the one
/// that is nearest to its end first; the way to the stop is a way like any other, from what is installed now, and the rest is
/// one from what is installed there.
pub(super) struct Search<'a> {
    question: &'a Question<'a>,
    stops_left: usize,
    /// The stops that ways are being looked for to: none of them is a stop on its own way.
    pending: Vec<(Name, Version)>,
}

/// A way, and the packages of the host at its end.
struct Found {
    way: Way,
    host: Packages,
}

impl<'a> Search<'a> {
    pub(super) fn new(question: &'a Question<'a>) -> Self {
        Self { question, stops_left: STOPS_MAX, pending: Vec::new() }
    }

    pub(super) fn way(mut self) -> Result<Way, Unresolvable> {
        let Question { installed, wanted, .. } = self.question;
        Ok(self.find(installed, wanted, &Packages::new())?.way)
    }

    /// The way from `installed` to `wanted`; what else has to change goes to the version of `goal` where it can.
    fn find(
        &mut self,
        installed: &Packages,
        wanted: &BTreeMap<Name, Version>,
        goal: &Packages,
    ) -> Result<Found, Unresolvable> {
        let solution = solve(&Question { installed, wanted, ..*self.question }, goal)?;
        let mut leg = Vec::new();
        for package in order(&solution)? {
            let candidate = &solution[&package];
            let from = installed.get(&package).map(|present| present.version.clone());
            match &from {
                Some(from) if from.cmp_precedence(&candidate.version) == Ordering::Equal => continue,
                Some(from) if !candidate.follows(from) => {
                    return self.by_a_stop(installed, wanted, &solution, (&package, from));
                }
                Some(_) | None => leg.push(Step { package, from, to: candidate.version.clone() }),
            }
        }
        let mut host = installed.clone();
        host.extend(solution);
        let legs = if leg.is_empty() { Vec::new() } else { vec![leg] };
        Ok(Found { way: Way { legs }, host })
    }

    /// The way to `wanted` when `package` needs a version between first.
    fn by_a_stop(
        &mut self,
        installed: &Packages,
        wanted: &BTreeMap<Name, Version>,
        solution: &Packages,
        (package, from): (&Name, &Version),
    ) -> Result<Found, Unresolvable> {
        let target = &solution[package];
        let mut closed = None;
        for stop in self.stops(package, from, &target.version) {
            let stop = (package.clone(), stop.version.clone());
            if self.stops_left == 0 || self.pending.contains(&stop) {
                continue;
            }
            self.stops_left -= 1;
            self.pending.push(stop.clone());
            let there = self.find(installed, &BTreeMap::from([stop.clone()]), solution);
            self.pending.pop();
            let found = there.and_then(|mut there| {
                let rest = self.find(&there.host, wanted, solution)?;
                there.way.legs.extend(rest.way.legs);
                Ok(Found { host: rest.host, ..there })
            });
            match found {
                Ok(found) => return Ok(found),
                // It only led nearer.
                Err(Unresolvable::NoPath { package: other, .. }) if other == *package => {}
                Err(why) => {
                    closed.get_or_insert((stop.1, Box::new(why)));
                }
            }
        }
        let (package, from, to) = (package.clone(), from.clone(), target.version.clone());
        Err(match closed {
            Some((stop, why)) => Unresolvable::Closed { package, from, to, stop, why },
            None => {
                let needs = target.min_upgrade_from.clone().unwrap_or_else(|| to.clone());
                Unresolvable::NoPath { package, from, to, needs }
            }
        })
    }

    /// The versions between that can follow `from` directly, best first: as far as possible, and pre-releases only when
    /// nothing else will do.
    fn stops(&self, package: &Name, from: &Version, to: &Version) -> Vec<&'a Candidate> {
        let is_between = |candidate: &&Candidate| {
            candidate.version.cmp_precedence(from) == Ordering::Greater
                && candidate.version.cmp_precedence(to) == Ordering::Less
                && !candidate.yanked
                && candidate.follows(from)
        };
        let offered = self.question.offered.get(package).into_iter().flatten();
        let mut stops: Vec<&Candidate> = offered.filter(is_between).collect();
        stops.sort_by(|one, other| {
            let is_last_resort = |candidate: &Candidate| candidate.version.is_prerelease();
            let further = other.version.cmp_precedence(&one.version);
            is_last_resort(one).cmp(&is_last_resort(other)).then(further)
        });
        stops.dedup_by(|one, other| one.version.cmp_precedence(&other.version) == Ordering::Equal);
        stops
    }
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
