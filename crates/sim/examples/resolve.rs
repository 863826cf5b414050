//! Times the resolver on 1,000 packages of 50 versions: `cargo run --release -p cutover-sim --example resolve`.
#![allow(clippy::print_stdout, reason = "an example that reports")]

use std::{collections::BTreeMap, time::Instant};

use cutover_core::{
    model::{Name, Requirement, Version},
    resolve::{Candidate, Preference, Question, resolve},
};

const PACKAGES: u64 = 1000;
const VERSIONS: u64 = 50;
const ROUNDS: usize = 21;

fn name(package: u64) -> Name {
    format!("p{package:04}").parse().expect("a name")
}

/// Nobody offers the versions of the last package that this one asks for when there is to be no way.
const UNSATISFIED: u64 = PACKAGES / 2;

/// Every version needs three packages further on, in about half of their versions.
fn candidate(package: u64, minor: u64, solvable: bool) -> Candidate {
    let needs = (1..=3).map(|step| package + step * step).filter(|other| *other < PACKAGES);
    let needs = needs.map(|other| (other, format!(">=1.{}.0", minor / 2)));
    let unsatisfied =
        (package == UNSATISFIED && !solvable).then(|| (PACKAGES - 1, format!(">=1.{VERSIONS}.0")));
    let requires = needs.chain(unsatisfied).map(|(other, constraint)| Requirement {
        package: name(other),
        constraint: constraint.parse().expect("a constraint"),
        optional: false,
    });
    Candidate {
        version: Version::new(1, minor, 0),
        requires: requires.collect(),
        conflicts: Vec::new(),
        min_upgrade_from: None,
        yanked: false,
    }
}

fn main() {
    for solvable in [true, false] {
        let of = |package| (0..VERSIONS).map(|minor| candidate(package, minor, solvable)).collect();
        let offered: BTreeMap<Name, Vec<Candidate>> =
            (0..PACKAGES).map(|package| (name(package), of(package))).collect();
        for preference in [Preference::Lowest, Preference::Newest] {
            time(&offered, preference);
        }
    }
}

fn time(offered: &BTreeMap<Name, Vec<Candidate>>, preference: Preference) {
    let wanted = BTreeMap::from([(name(0), Version::new(1, VERSIONS - 1, 0))]);
    let installed = BTreeMap::new();
    let question = Question { installed: &installed, offered, wanted: &wanted, preference };
    let (mut answer, mut why_not) = (String::new(), String::new());
    let mut took: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let way = resolve(&question);
            let took = start.elapsed();
            answer = match way {
                Ok(way) => format!("{} steps", way.steps().count()),
                Err(why) => {
                    why_not = format!("{why}\n");
                    "no way".to_owned()
                }
            };
            took
        })
        .collect();
    took.sort_unstable();
    let median = took[ROUNDS / 2].as_secs_f64() * 1e3;
    println!(
        "{preference:?}: {PACKAGES} packages x {VERSIONS} versions, {answer}, median {median:.1} ms\n{why_not}"
    );
}
