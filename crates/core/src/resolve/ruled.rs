//! Which versions nothing can help: what they need is not to be had, or is ruled out itself.
//!
//! This finds less than the search does, for it never weighs two packages against each other. But it takes time in proportion to
//! what is offered, and what it finds is a chain that people can follow.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use super::{Candidate, Question, Unresolvable};
use crate::model::{Constraint, Name, Requirement, Version};

/// A chain with more sentences than twice this is told by so many at its start and at its end.
const SENTENCES_EACH_END: usize = 10;

/// A package by its place in [`Ruled::packages`].
type Place = usize;

/// What each package could get that may have a say, and what is ruled out of that.
pub(super) struct Ruled<'a> {
    question: &'a Question<'a>,
    places: BTreeMap<&'a Name, Place>,
    /// Those that are wanted or installed first.
    packages: Vec<Package<'a>>,
    /// How many are wanted or installed.
    starts: usize,
}

struct Package<'a> {
    name: &'a Name,
    /// Those that it could get if nobody else had a say, the lowest first.
    choices: Vec<Choice<'a>>,
    /// Who needs it, in some version.
    needed_by: BTreeSet<Place>,
}

struct Choice<'a> {
    version: &'a Version,
    /// What it needs, whatever else is there.
    needs: Vec<(Place, &'a Constraint)>,
    /// Which of its needs cannot be met.
    unmet: Option<usize>,
}

impl<'a> Ruled<'a> {
    /// Rules out what can be, the shortest chains first.
    pub(super) fn out(question: &'a Question<'a>) -> Self {
        let mut ruled = Self { question, places: BTreeMap::new(), packages: Vec::new(), starts: 0 };
        for start in question.wanted.keys().chain(question.installed.keys()) {
            ruled.place_of(start);
        }
        ruled.starts = ruled.packages.len();
        let mut next = 0;
        while next < ruled.packages.len() {
            ruled.fill(next);
            next += 1;
        }
        let mut due: BTreeSet<Place> = (0..ruled.packages.len()).collect();
        while !due.is_empty() {
            // All of a round are judged by what the rounds before it found, so that each reason is as near as can be.
            let found: Vec<_> = due.iter().flat_map(|place| ruled.newly_unmet(*place)).collect();
            due.clear();
            for (place, choice, unmet) in found {
                let package = &mut ruled.packages[place];
                package.choices[choice].unmet = Some(unmet);
                due.extend(&package.needed_by);
            }
        }
        ruled
    }

    fn place_of(&mut self, name: &'a Name) -> Place {
        match self.places.entry(name) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let package = Package { name, choices: Vec::new(), needed_by: BTreeSet::new() };
                self.packages.push(package);
                *new.insert(self.packages.len() - 1)
            }
        }
    }

    /// Adds what a package could get, and makes places for what that needs.
    fn fill(&mut self, place: Place) {
        let candidates = could_be(self.question, self.packages[place].name);
        // Versions of one package mostly need the same packages, in the same order.
        let mut last: Vec<(&Name, Place)> = Vec::new();
        let mut choices = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let required = candidate.requires.iter().filter(|requirement| !requirement.optional);
            let mut needs = Vec::with_capacity(candidate.requires.len());
            for (number, Requirement { package, constraint, .. }) in required.enumerate() {
                let on = match last.get(number) {
                    Some((name, on)) if *name == package => *on,
                    _ => {
                        let on = self.place_of(package);
                        self.packages[on].needed_by.insert(place);
                        last.truncate(number);
                        last.push((package, on));
                        on
                    }
                };
                needs.push((on, constraint));
            }
            choices.push(Choice { version: &candidate.version, needs, unmet: None });
        }
        self.packages[place].choices = choices;
    }

    /// The versions of a package that have a need which cannot be met, with its number.
    fn newly_unmet(&self, place: Place) -> impl Iterator<Item = (Place, usize, usize)> {
        let choices = self.packages[place].choices.iter().enumerate();
        choices.filter(|(_, choice)| choice.unmet.is_none()).filter_map(move |(number, choice)| {
            let unmet = choice.needs.iter().position(|(on, constraint)| !self.can_be_met(*on, constraint))?;
            Some((place, number, unmet))
        })
    }

    fn can_be_met(&self, on: Place, constraint: &Constraint) -> bool {
        let mut newest_first = self.packages[on].choices.iter().rev();
        newest_first.any(|choice| choice.unmet.is_none() && constraint.allows(choice.version))
    }

    /// Why nothing will do, if something that is wanted or installed is ruled out: the chain from there to what is not to be had.
    pub(super) fn reason(&self) -> Option<Unresolvable> {
        let is_lost =
            |place: &Place| self.packages[*place].choices.iter().all(|choice| choice.unmet.is_some());
        let start = (0..self.starts).find(is_lost)?;
        let count = self.packages[start].choices.len();
        if count == 0 {
            return Some(Unresolvable::Contradiction(self.absence_of(start)));
        }
        let mut chain = Chain::default();
        chain.open.push((start, (0..count).collect()));
        while let Some((place, versions)) = chain.open.pop() {
            let new = versions.into_iter().filter(|number| chain.told.insert((place, *number))).collect();
            if let Err(no_lower_bound) = self.tell(place, new, &mut chain) {
                return Some(no_lower_bound);
            }
        }
        Some(Unresolvable::Contradiction(abridged(&chain.sentences)))
    }

    /// Tells why none of these versions of a package will do.
    fn tell(&self, place: Place, versions: Vec<usize>, chain: &mut Chain) -> Result<(), Unresolvable> {
        let by = &self.packages[place];
        let mut by_need: BTreeMap<Place, Vec<(&Version, &Constraint)>> = BTreeMap::new();
        for choice in versions.into_iter().map(|number| &by.choices[number]) {
            if let Some((on, constraint)) = choice.unmet.map(|unmet| choice.needs[unmet]) {
                by_need.entry(on).or_default().push((choice.version, constraint));
            }
        }
        for (on, needs) in by_need {
            let package = &self.packages[on];
            let is_asked_for = |number: &usize| {
                needs.iter().any(|(_, constraint)| constraint.allows(package.choices[*number].version))
            };
            let rest: Vec<usize> = (0..package.choices.len()).filter(is_asked_for).collect();
            let mut sentence = sentence(by.name, &needs, package.name);
            if rest.is_empty() {
                let downgrade = |(_, constraint): &(_, &Constraint)| {
                    self.question.downgrade(by.name, package.name, constraint)
                };
                needs.iter().find_map(downgrade).map_or(Ok(()), Err)?;
                sentence = format!("{sentence} {}", self.absence_of(on));
            }
            chain.sentences.push(sentence);
            chain.open.push((on, rest));
        }
        Ok(())
    }

    /// Says what there is of a package, when that is not enough.
    fn absence_of(&self, place: Place) -> String {
        let Package { name, choices, .. } = &self.packages[place];
        let installed = self.question.installed.get(*name).map(|present| &present.version);
        match (choices.first(), choices.last(), self.question.wanted.get(*name)) {
            (None, _, Some(wanted)) if installed.is_some_and(|present| present > wanted) => {
                format!("{name} cannot become {wanted}: nothing is downgraded.")
            }
            (None, _, Some(wanted)) => format!("{name} {wanted} is not to be had."),
            (Some(_), _, Some(wanted)) => format!("{name} is to be {wanted}."),
            (Some(lowest), Some(highest), None) if lowest.version == highest.version => {
                format!("Only {name} {} is to be had.", lowest.version)
            }
            (Some(lowest), Some(highest), None) => {
                format!("Only {name} {} to {} are to be had.", lowest.version, highest.version)
            }
            (None, _, None) | (Some(_), None, None) => format!("{name} is not to be had."),
        }
    }
}

/// The versions that a package could get if nobody else had a say.
fn could_be<'a>(question: &Question<'a>, package: &Name) -> Vec<&'a Candidate> {
    let installed = question.installed.get(package);
    let wanted = question.wanted.get(package);
    let is_wanted =
        |candidate: &&Candidate| wanted.is_none_or(|wanted| candidate.version.cmp_precedence(wanted).is_eq());
    let is_newer = |candidate: &&Candidate| {
        installed.is_none_or(|present| candidate.version.cmp_precedence(&present.version).is_gt())
    };
    let is_free = |candidate: &&Candidate| !candidate.yanked || wanted == Some(&candidate.version);
    let offered = question.offered.get(package).into_iter().flatten();
    let mut all: Vec<_> =
        installed.into_iter().chain(offered.filter(is_newer).filter(is_free)).filter(is_wanted).collect();
    all.sort_by(|one, other| one.version.cmp_precedence(&other.version));
    all.dedup_by(|one, other| one.version.cmp_precedence(&other.version).is_eq());
    all
}

/// What is being told.
#[derive(Default)]
struct Chain {
    sentences: Vec<String>,
    /// What is still to be explained: versions of a package by their numbers.
    open: Vec<(Place, Vec<usize>)>,
    told: BTreeSet<(Place, usize)>,
}

/// That these versions of a package have these needs.
fn sentence(by: &Name, needs: &[(&Version, &Constraint)], on: &Name) -> String {
    let (Some((lowest, least)), Some((highest, most))) = (needs.first(), needs.last()) else {
        return String::new();
    };
    let subject = match needs.len() {
        1 => format!("{by} {lowest} needs"),
        count => format!("All {count} versions of {by} that could be taken, {lowest} to {highest}, need"),
    };
    if least == most {
        format!("{subject} {on} {least}.")
    } else {
        format!("{subject} {on}, from {least} to {most}.")
    }
}

/// Leaves out the middle of what is too long to read.
pub(super) fn abridged(sentences: &[String]) -> String {
    let left_out = sentences.len().saturating_sub(2 * SENTENCES_EACH_END);
    if left_out == 0 {
        return sentences.join("\n");
    }
    let (start, rest) = sentences.split_at(SENTENCES_EACH_END);
    let end = &rest[left_out..];
    format!("{}\n({left_out} more sentences like these)\n{}", start.join("\n"), end.join("\n"))
}
