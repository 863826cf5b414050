//! Dependencies between the packages of a host.

use std::collections::BTreeMap;

use cutover_core::{
    model::{Conflict, Name, Requirement, Version},
    resolve::{Broken, Candidate, Preference, Question, Step, Unresolvable, broken, resolve},
};
use proptest::prelude::*;

/// A candidate from `version needs; conflicts`, each a list such as `storage >=1.4.0, cache? >=1.0.0`.
fn candidate(text: &str) -> Candidate {
    let (text, conflicts) = text.split_once('!').unwrap_or((text, ""));
    let (version, requires) = text.split_once(':').unwrap_or((text, ""));
    let parts = |list: &str| -> Vec<(String, String)> {
        let parts = list.split(';').map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let (name, constraint) = part.split_once(' ').unwrap_or((part, ""));
                (name.to_owned(), constraint.to_owned())
            })
            .collect()
    };
    Candidate {
        version: version.trim().parse().expect(version),
        requires: parts(requires)
            .iter()
            .map(|(name, constraint)| Requirement {
                package: name.trim_end_matches('?').parse().expect("a name"),
                constraint: constraint.parse().expect("a constraint"),
                optional: name.ends_with('?'),
            })
            .collect(),
        conflicts: parts(conflicts)
            .iter()
            .map(|(name, constraint)| Conflict {
                package: name.parse().expect("a name"),
                constraint: constraint.parse().expect("a constraint"),
            })
            .collect(),
        min_upgrade_from: None,
        yanked: false,
    }
}

#[derive(Debug, Default)]
struct World {
    installed: BTreeMap<Name, Candidate>,
    offered: BTreeMap<Name, Vec<Candidate>>,
    preference: Preference,
}

fn name(text: &str) -> Name {
    text.parse().expect(text)
}

impl World {
    fn has(mut self, package: &str, text: &str) -> Self {
        self.installed.insert(name(package), candidate(text));
        self
    }

    fn offers(mut self, package: &str, texts: &[&str]) -> Self {
        self.offered.entry(name(package)).or_default().extend(texts.iter().map(|text| candidate(text)));
        self
    }

    fn meddle(mut self, package: &str, version: &str, meddle: impl Fn(&mut Candidate)) -> Self {
        let version: Version = version.parse().expect(version);
        let offered = self.offered.get_mut(&name(package)).expect("offered");
        offered.iter_mut().filter(|candidate| candidate.version == version).for_each(meddle);
        self
    }

    fn try_wanting(&self, wanted: &[(&str, &str)]) -> Result<Vec<String>, Unresolvable> {
        let wanted = wanted.iter().map(|(package, version)| (name(package), version.parse().expect("one")));
        let question = Question {
            installed: &self.installed,
            offered: &self.offered,
            wanted: &wanted.collect(),
            preference: self.preference,
        };
        Ok(resolve(&question)?.steps().map(ToString::to_string).collect())
    }

    /// The legs of the way, each a list of steps.
    fn legs(&self, package: &str, version: &str) -> Vec<String> {
        let wanted = BTreeMap::from([(name(package), version.parse().expect("a version"))]);
        let Self { installed, offered, preference } = self;
        let question = Question { installed, offered, wanted: &wanted, preference: *preference };
        let leg = |leg: &Vec<Step>| leg.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        resolve(&question).expect("an answer").legs.iter().map(leg).collect()
    }

    fn wanting(&self, package: &str, version: &str) -> Vec<String> {
        self.try_wanting(&[(package, version)]).expect("an answer")
    }

    fn refused(&self, package: &str, version: &str) -> Unresolvable {
        self.try_wanting(&[(package, version)]).expect_err("no answer")
    }
}

fn storage() -> World {
    World::default()
        .has("query", "1.4.0: storage >=1.3.0")
        .has("storage", "1.3.0")
        .offers("query", &["1.4.5: storage >=1.4.0"])
        .offers("storage", &["1.3.0", "1.4.0", "1.5.0", "2.0.0-rc.1"])
}

// R3
#[test]
fn nothing_changes_when_everything_is_as_wanted() {
    assert_eq!(storage().wanting("query", "1.4.0"), [""; 0]);
}

// R4, R5
#[test]
fn what_is_needed_comes_first_in_the_lowest_version_that_will_do() {
    assert_eq!(storage().wanting("query", "1.4.5"), ["storage 1.3.0 -> 1.4.0", "query 1.4.0 -> 1.4.5"]);
    let newest = World { preference: Preference::Newest, ..storage() };
    assert_eq!(newest.wanting("query", "1.4.5")[0], "storage 1.3.0 -> 1.5.0", "and no pre-release");
}

// R6
#[test]
fn independent_packages_go_by_name() {
    let world = World::default().offers("b", &["1.0.0"]).offers("c", &["1.0.0"]).offers("a", &["1.0.0"]);
    let wanted = [("c", "1.0.0"), ("a", "1.0.0"), ("b", "1.0.0")];
    assert_eq!(world.try_wanting(&wanted).expect("an answer"), ["a 1.0.0", "b 1.0.0", "c 1.0.0"]);
}

// R7
#[test]
fn packages_that_need_each_other_are_refused_naming_the_circle() {
    let two = World::default().offers("a", &["1.0.0: b"]).offers("b", &["1.0.0: a"]);
    assert_eq!(two.refused("b", "1.0.0").to_string(), "Circular dependency: a needs b needs a");
    let three = World::default()
        .offers("top", &["1.0.0: c"])
        .offers("a", &["1.0.0: b"])
        .offers("b", &["1.0.0: c"])
        .offers("c", &["1.0.0: a"]);
    let error = three.refused("top", "1.0.0").to_string();
    assert_eq!(error, "Circular dependency: a needs b needs c needs a");
}

// R8
#[test]
fn missing_package_is_added_when_it_is_required_and_left_out_when_it_is_optional() {
    let world = World::default()
        .offers("query", &["1.0.0: storage >=1.0.0; cache? >=1.0.0"])
        .offers("storage", &["1.0.0"])
        .offers("cache", &["0.9.0", "1.0.0"]);
    assert_eq!(world.wanting("query", "1.0.0"), ["storage 1.0.0", "query 1.0.0"]);
    let world = world.has("cache", "0.9.0");
    let steps = world.wanting("query", "1.0.0");
    assert_eq!(
        steps,
        ["cache 0.9.0 -> 1.0.0", "storage 1.0.0", "query 1.0.0"],
        "one that is there has to fit"
    );
}

// R9
#[test]
fn missing_packages_of_missing_packages_come_before_them() {
    let world = World::default()
        .offers("a", &["1.0.0: b >=1.0.0"])
        .offers("b", &["1.0.0: c >=2.0.0"])
        .offers("c", &["1.0.0", "2.0.0"]);
    assert_eq!(world.wanting("a", "1.0.0"), ["c 2.0.0", "b 1.0.0", "a 1.0.0"]);
    let world = World::default().offers("a", &["1.0.0: b >=1.0.0"]);
    let error = world.refused("a", "1.0.0").to_string();
    assert_eq!(error, "a 1.0.0 needs b >=1.0.0. b is not to be had.");
}

// R10
#[test]
fn declared_conflict_counts_only_when_the_other_package_is_there() {
    let world = World::default().offers("query", &["1.0.0 ! legacy <2.0.0"]);
    assert_eq!(world.wanting("query", "1.0.0"), ["query 1.0.0"]);
    let world = world.has("legacy", "1.5.0");
    let error = world.refused("query", "1.0.0").to_string();
    assert!(error.contains("query") && error.contains("legacy"), "{error}");
    let world = world.offers("legacy", &["2.0.0"]);
    assert_eq!(world.wanting("query", "1.0.0"), ["legacy 1.5.0 -> 2.0.0", "query 1.0.0"]);
}

#[test]
fn conflict_with_a_package_that_only_the_answer_brings_is_noticed() {
    let world = World::default()
        .offers("a", &["1.0.0: b >=1.0.0 ! c <2.0.0"])
        .offers("b", &["1.0.0: c >=1.0.0"])
        .offers("c", &["1.0.0", "2.0.0"]);
    assert_eq!(world.wanting("a", "1.0.0"), ["c 2.0.0", "b 1.0.0", "a 1.0.0"]);
}

// R11
#[test]
fn requirement_that_only_a_downgrade_would_meet_is_refused_without_any_step() {
    let world = World::default()
        .has("storage", "3.0.0")
        .offers("storage", &["1.0.0", "2.0.0"])
        .offers("query", &["1.0.0: storage <=2.0.0"]);
    let error = world.refused("query", "1.0.0");
    assert!(matches!(&error, Unresolvable::NoLowerBound { .. }));
    assert!(error.to_string().contains("no lower bound"), "{error}");
}

// R12
#[test]
fn offer_that_is_made_twice_changes_nothing() {
    let twice = storage().offers("storage", &["1.4.0", "1.5.0"]).offers("query", &["1.4.5: storage >=1.4.0"]);
    assert_eq!(twice.wanting("query", "1.4.5"), storage().wanting("query", "1.4.5"));
}

// R13
#[test]
fn requirements_that_do_not_hold_between_installed_packages_are_listed() {
    let world = World::default().has("query", "1.4.0: storage >=1.5.1").has("storage", "1.5.0");
    let expected = Broken {
        by: name("query"),
        package: name("storage"),
        found: Some("1.5.0".parse().expect("a version")),
    };
    assert_eq!(broken(&world.installed), [expected]);
    assert_eq!(broken(&storage().installed), []);
}

#[test]
fn installed_packages_are_never_broken_by_an_answer() {
    let world = storage().has("report", "1.0.0: storage <1.4.0");
    let error = world.refused("query", "1.4.5").to_string();
    assert!(error.contains("report") && error.contains("storage"), "{error}");
    let world = world.offers("report", &["1.1.0: storage >=1.0.0"]);
    let steps = world.wanting("query", "1.4.5");
    assert_eq!(steps, ["storage 1.3.0 -> 1.4.0", "query 1.4.0 -> 1.4.5", "report 1.0.0 -> 1.1.0"]);
}

#[test]
fn yanked_version_is_taken_only_when_it_is_asked_for() {
    let yank = |candidate: &mut Candidate| candidate.yanked = true;
    let world = storage().meddle("storage", "1.4.0", yank).meddle("query", "1.4.5", yank);
    assert_eq!(world.wanting("query", "1.4.5")[0], "storage 1.3.0 -> 1.5.0");
}

/// Demands that a version between is installed first.
fn least(version: &str) -> impl Fn(&mut Candidate) {
    let version: Version = version.parse().expect("a version");
    move |candidate| candidate.min_upgrade_from = Some(version.clone())
}

// V4
#[test]
fn upgrade_goes_by_way_of_the_versions_it_demands() {
    let world = World::default()
        .has("query", "1.6.0")
        .offers("query", &["1.6.5", "1.7.0", "1.7.9", "1.8.0"])
        .meddle("query", "1.8.0", least("1.7.0"))
        .meddle("query", "1.7.9", least("1.6.5"));
    let steps = world.wanting("query", "1.8.0");
    assert_eq!(steps, ["query 1.6.0 -> 1.7.0", "query 1.7.0 -> 1.8.0"]);
    let world = world.meddle("query", "1.7.0", |candidate| candidate.yanked = true);
    let steps = world.wanting("query", "1.8.0");
    assert_eq!(steps, ["query 1.6.0 -> 1.6.5", "query 1.6.5 -> 1.7.9", "query 1.7.9 -> 1.8.0"]);
    let world = world.meddle("query", "1.7.9", |candidate| candidate.yanked = true);
    let error = world.refused("query", "1.8.0");
    assert!(matches!(&error, Unresolvable::NoPath { .. }), "{error}");
}

/// `query` 1.6.0 and `storage` 1.4.0 are there; `query` 1.8.0 needs `storage` 2.0.0 and follows 1.7.0.
fn between(stops: &[&str]) -> World {
    World::default()
        .has("query", "1.6.0: storage <2.0.0")
        .has("storage", "1.4.0")
        .offers("storage", &["1.5.0", "2.0.0"])
        .offers("query", &["1.8.0: storage >=2.0.0"])
        .offers("query", stops)
        .meddle("query", "1.8.0", least("1.7.0"))
}

// R5, V4
#[test]
fn version_between_gets_what_it_requires_and_everything_holds_there() {
    let legs = between(&["1.7.0: storage >=1.5.0,<2.0.0"]).legs("query", "1.8.0");
    assert_eq!(
        legs,
        ["storage 1.4.0 -> 1.5.0, query 1.6.0 -> 1.7.0", "storage 1.5.0 -> 2.0.0, query 1.7.0 -> 1.8.0"]
    );
    // Nothing changes twice that need not.
    let legs = between(&["1.7.0: storage >=1.5.0"]).legs("query", "1.8.0");
    assert_eq!(legs, ["storage 1.4.0 -> 2.0.0, query 1.6.0 -> 1.7.0", "query 1.7.0 -> 1.8.0"]);
    let legs = between(&["1.7.0: storage <2.0.0"]).legs("query", "1.8.0");
    assert_eq!(legs, ["query 1.6.0 -> 1.7.0", "storage 1.4.0 -> 2.0.0, query 1.7.0 -> 1.8.0"]);
}

// R10
#[test]
fn version_between_that_cannot_live_here_is_passed_by_or_explained() {
    let conflicting = "1.7.9: storage <2.0.0 ! storage <1.6.0";
    let legs = between(&["1.7.0", conflicting]).legs("query", "1.8.0");
    assert_eq!(legs, ["query 1.6.0 -> 1.7.0", "storage 1.4.0 -> 2.0.0, query 1.7.0 -> 1.8.0"]);
    let error = between(&[conflicting]).refused("query", "1.8.0");
    assert!(matches!(&error, Unresolvable::Closed { .. }), "{error}");
    let told = error.to_string();
    assert!(
        told.starts_with("query gets from 1.6.0 to 1.8.0 by way of 1.7.9, and that way is closed: "),
        "{told}"
    );
    assert!(told.contains("storage"), "{told}");
}

#[test]
fn version_between_from_which_nothing_leads_on_is_passed_by() {
    let world = between(&["1.7.0: storage <2.0.0", "1.7.9: storage >=3.0.0"]).offers("storage", &["3.0.0"]);
    let world = world.offers("query", &["1.9.0: storage <3.0.0"]).meddle("query", "1.9.0", least("1.7.0"));
    assert_eq!(world.legs("query", "1.9.0"), ["query 1.6.0 -> 1.7.0", "query 1.7.0 -> 1.9.0"]);
}

#[test]
fn what_is_needed_may_go_by_versions_between_too() {
    let world = between(&["1.7.0: storage >=1.5.0,<2.0.0"]).meddle("storage", "2.0.0", least("1.5.0"));
    let world = world.has("query", "1.6.0: storage <1.5.0").meddle("query", "1.8.0", least("1.0.0"));
    // The stop of one package takes the other along, since everything holds there.
    let legs = world.legs("query", "1.8.0");
    assert_eq!(
        legs,
        ["storage 1.4.0 -> 1.5.0, query 1.6.0 -> 1.7.0", "storage 1.5.0 -> 2.0.0, query 1.7.0 -> 1.8.0"]
    );
}

#[test]
fn stops_that_wait_for_each_other_are_a_closed_way() {
    let world = World::default()
        .has("a", "1.0.0")
        .has("b", "1.0.0")
        .offers("a", &["2.0.0: b >=3.0.0", "3.0.0"])
        .offers("b", &["2.0.0", "3.0.0"])
        .meddle("a", "3.0.0", least("2.0.0"))
        .meddle("b", "3.0.0", least("2.0.0"))
        .meddle("b", "2.0.0", |candidate| {
            candidate.conflicts = self::candidate("0.0.0 ! a <2.0.0").conflicts
        });
    let error = world.refused("a", "3.0.0");
    assert!(matches!(&error, Unresolvable::Closed { .. }), "{error}");
}

/// Versions 1.0.0 to 4.0.0 of three packages, with what each may need of those after it.
fn some_world() -> impl Strategy<Value = World> {
    let version = || (0..3_u64, 1..5_u64, 1..5_u64, 0..4_u64);
    proptest::collection::vec(version(), 12).prop_map(|chosen| {
        let mut world = World::default();
        for (package, label) in ["a", "b", "c"].into_iter().enumerate() {
            for number in 1..5_usize {
                let (other, low, high, least_from) = chosen[package * 4 + number - 1];
                let other = ["b", "c", "none"][usize::try_from(other).expect("small")];
                let needs = if number == 1 || other <= label || other == "none" {
                    String::new()
                } else {
                    format!(": {other} >={low}.0.0,<={}.0.0", low.max(high))
                };
                let text = format!("{number}.0.0{needs}");
                world = world.offers(label, &[&text]);
                if least_from > 0 {
                    let version = format!("{number}.0.0");
                    world = world.meddle(label, &version, least(&format!("{least_from}.0.0")));
                }
            }
            world = world.has(label, "1.0.0");
        }
        world
    })
}

proptest! {
    #[test]
    fn every_step_follows_the_last_and_everything_holds_after_every_leg(world in some_world()) {
        let wanted = BTreeMap::from([(name("a"), Version::new(4, 0, 0))]);
        let World { installed, offered, preference } = &world;
        let question = Question { installed, offered, wanted: &wanted, preference: *preference };
        let Ok(way) = resolve(&question) else { return Ok(()) };
        let mut host = installed.clone();
        for leg in &way.legs {
            prop_assert!(!leg.is_empty());
            for step in leg {
                let candidate = offered[&step.package].iter().find(|candidate| candidate.version == step.to);
                let candidate = candidate.expect("offered");
                let present = host.insert(step.package.clone(), candidate.clone()).map(|old| old.version);
                prop_assert_eq!(&present, &step.from);
                let least = candidate.min_upgrade_from.clone();
                prop_assert!(present < Some(step.to.clone()) && least.is_none_or(|least| Some(least) <= present));
            }
            prop_assert_eq!(broken(&host), []);
        }
        prop_assert_eq!(&host[&name("a")].version, &wanted[&name("a")]);
    }
}

#[test]
fn a_thousand_packages_of_fifty_versions_are_resolved_the_same_way_every_time() {
    let mut world = World::default();
    for package in 0..1000_u64 {
        let versions: Vec<String> = (0..50)
            .map(|minor| {
                let needs: Vec<String> = (1..=3)
                    .map(|step| package + step * step)
                    .filter(|other| *other < 1000)
                    .map(|other| format!("p{other:04} >=1.{}.0", minor / 2))
                    .collect();
                format!("1.{minor}.0: {}", needs.join("; "))
            })
            .collect();
        let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
        world = world.offers(&format!("p{package:04}"), &versions);
    }
    let steps = world.wanting("p0000", "1.49.0");
    assert_eq!(steps, world.wanting("p0000", "1.49.0"));
    assert_eq!(steps.last().map(String::as_str), Some("p0000 1.49.0"));
    assert!(steps.len() == 1000, "{}", steps.len());
}

#[test]
fn what_nothing_can_help_is_no_reason_where_something_else_will_do() {
    let world = World::default()
        .has("a", "1.0.0")
        .has("b", "1.0.0")
        .offers("a", &["2.0.0 ! b <1.5.0"])
        .offers("b", &["1.5.0", "2.0.0: c"]);
    let world = World { preference: Preference::Newest, ..world };
    assert!(world.wanting("a", "2.0.0").contains(&"b 1.0.0 -> 1.5.0".to_owned()));
}

/// Four packages in three versions each, of which some need or refuse later ones, and some are installed.
fn small_world() -> impl Strategy<Value = World> {
    let part = || (0..4_usize, 1..4_u64, 1..4_u64, any::<bool>());
    let version = move || proptest::collection::vec(part(), 2);
    let versions = proptest::collection::vec(version(), 12);
    (versions, proptest::collection::vec(any::<bool>(), 4)).prop_map(|(versions, installed)| {
        let mut world = World::default();
        let labels = ["a", "b", "c", "d"];
        for (number, label) in labels.into_iter().enumerate() {
            for (parts, version) in versions[number * 3..].iter().zip(1..=3) {
                let text = |is_conflict: bool| -> String {
                    let later = parts.iter().filter(|(other, ..)| *other > number);
                    let ours = later.filter(|(.., refuses)| *refuses == is_conflict);
                    let range = |&(other, low, high, _): &(usize, u64, u64, bool)| {
                        format!("{} >={low}.0.0,<={}.0.0", labels[other], low.max(high))
                    };
                    ours.map(range).collect::<Vec<_>>().join("; ")
                };
                let text = format!("{version}.0.0: {} ! {}", text(false), text(true));
                world = world.offers(label, &[&text]);
            }
            if installed[number] {
                world = world.has(label, "1.0.0");
            }
        }
        world
    })
}

/// Whether packages can be had together, found by trying everything.
fn is_possible(world: &World, wanted: &BTreeMap<Name, Version>) -> bool {
    let mut hosts = vec![BTreeMap::new()];
    for (package, offered) in &world.offered {
        let fits = |candidate: &&Candidate| {
            wanted.get(package).is_none_or(|wanted| *wanted == candidate.version)
                && world.installed.get(package).is_none_or(|present| present.version <= candidate.version)
        };
        let present = world.installed.get(package);
        let newer =
            |candidate: &&Candidate| present.is_none_or(|present| present.version != candidate.version);
        let mut choices: Vec<Option<&Candidate>> =
            present.into_iter().chain(offered.iter().filter(newer)).filter(fits).map(Some).collect();
        if present.is_none() && !wanted.contains_key(package) {
            choices.push(None);
        }
        let with = |host: &BTreeMap<Name, Candidate>, choice: &Option<&Candidate>| {
            let mut host = host.clone();
            host.extend(choice.map(|candidate| (package.clone(), candidate.clone())));
            host
        };
        hosts = hosts.iter().flat_map(|host| choices.iter().map(move |choice| with(host, choice))).collect();
    }
    hosts.iter().any(|host| broken(host).is_empty())
}

proptest! {
    #[test]
    fn an_answer_is_refused_only_where_there_is_none(world in small_world()) {
        let wanted = BTreeMap::from([(name("a"), Version::new(3, 0, 0))]);
        let World { installed, offered, preference } = &world;
        let question = Question { installed, offered, wanted: &wanted, preference: *preference };
        let answer = resolve(&question);
        prop_assert_eq!(answer.is_ok(), is_possible(&world, &wanted), "{:?}", answer);
    }
}

/// Packages of twenty versions, each of which needs three later packages; `special` adds to what all versions of one need.
fn tangle(packages: u64, special: &[(u64, &str)]) -> World {
    let versions = |package: u64| -> Vec<String> {
        let of_all = special.iter().filter(|(by, _)| *by == package).map(|(_, needs)| (*needs).to_owned());
        let of_all: Vec<String> = of_all.collect();
        let needs = |minor: u64| {
            let later = (1..=3).map(|step| package + step * step).filter(|other| *other < packages);
            later.map(move |other| format!("p{other:03} >=1.{}.0", minor / 2))
        };
        let text = |minor| needs(minor).chain(of_all.iter().cloned()).collect::<Vec<_>>().join("; ");
        (0..20).map(|minor| format!("1.{minor}.0: {}", text(minor))).collect()
    };
    (0..packages).fold(World::default(), |world, package| {
        let versions = versions(package);
        let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
        world.offers(&format!("p{package:03}"), &versions)
    })
}

#[test]
fn requirement_far_away_that_nobody_meets_is_explained_by_the_chain_to_it() {
    let world = tangle(300, &[(150, "p299 >=2.0.0")]);
    let error = world.refused("p000", "1.19.0").to_string();
    let sentences: Vec<&str> = error.lines().collect();
    assert!(sentences.len() <= 21, "{error}");
    assert!(sentences[0].starts_with("p000 1.19.0 needs p0"), "{error}");
    let last = "All 20 versions of p150 that could be taken, 1.0.0 to 1.19.0, need p299 >=2.0.0. Only p299 1.0.0 to \
                1.19.0 are to be had.";
    assert_eq!(*sentences.last().unwrap(), last, "{error}");
}

#[test]
fn packages_that_cannot_be_had_together_are_explained_in_sentences() {
    let world = World::default()
        .offers("a", &["1.0.0: b; c"])
        .offers("b", &["1.0.0: d >=2.0.0"])
        .offers("c", &["1.0.0: d <2.0.0"])
        .offers("d", &["1.0.0", "2.0.0"]);
    assert_eq!(
        world.refused("a", "1.0.0").to_string(),
        "Because b depends on d >=2.0.0 and c 1.0.0 depends on d <2.0.0, b, c 1.0.0 are incompatible.\n\
         And because a 1.0.0 depends on b, c, a 1.0.0 are incompatible.\n\
         And because a 1.0.0 depends on c and this host depends on a 1.0.0, this host is forbidden."
    );
}

#[test]
fn requirement_of_what_another_wish_rules_out_is_no_downgrade() {
    let world = World::default().has("b", "1.0.0").offers("a", &["1.0.0: b <2.0.0"]).offers("b", &["2.0.0"]);
    let refused = world.try_wanting(&[("a", "1.0.0"), ("b", "2.0.0")]).expect_err("no answer");
    assert_eq!(refused.to_string(), "a 1.0.0 needs b <2.0.0. b is to be 2.0.0.");
}

#[test]
fn package_is_brought_only_where_nothing_else_will_do() {
    let world = World::default()
        .offers("a", &["1.0.0: b ! c"])
        .offers("b", &["1.0.0: c", "2.0.0"])
        .offers("c", &["1.0.0"]);
    assert_eq!(world.wanting("a", "1.0.0"), ["b 2.0.0", "a 1.0.0"]);
}

#[test]
fn contradiction_among_many_packages_is_explained_on_a_screen() {
    let world = tangle(40, &[(15, "z >=2.0.0"), (16, "z <2.0.0")]).offers("z", &["1.0.0", "2.0.0"]);
    let error = world.refused("p000", "1.19.0").to_string();
    assert!(error.lines().count() <= 21 && error.contains("z "), "{error}");
}
