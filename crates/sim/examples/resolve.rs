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

/// Every version needs three packages further on, in about half of their versions.
fn candidate(package: u64, minor: u64) -> Candidate {
    let needs = (1..=3).map(|step| package + step * step).filter(|other| *other < PACKAGES);
    let requires = needs.map(|other| Requirement {
        package: name(other),
        constraint: format!(">=1.{}.0", minor / 2).parse().expect("a constraint"),
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
    let offered: BTreeMap<Name, Vec<Candidate>> = (0..PACKAGES)
        .map(|package| (name(package), (0..VERSIONS).map(|minor| candidate(package, minor)).collect()))
        .collect();
    let wanted = BTreeMap::from([(name(0), Version::new(1, VERSIONS - 1, 0))]);
    let installed = BTreeMap::new();
    for preference in [Preference::Lowest, Preference::Newest] {
        let question = Question { installed: &installed, offered: &offered, wanted: &wanted, preference };
        let mut steps = 0;
        let mut took: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                steps = resolve(&question).expect("an answer").steps().count();
                start.elapsed()
            })
            .collect();
        took.sort_unstable();
        let median = took[ROUNDS / 2].as_secs_f64() * 1e3;
        println!(
            "{preference:?}: {steps} steps of {PACKAGES} packages x {VERSIONS} versions, median {median:.1} ms"
        );
    }
}
