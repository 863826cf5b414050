//! Sets folded from journals, cut and continued at every record.

use cutover_core::{
    execute::Outcome,
    model::{Instant, Version},
    set::{Next, Part, PartState, Set, SetFoldError, SetRecord},
};
use proptest::prelude::*;

fn version(text: &str) -> Version {
    text.parse().expect("a version")
}

fn begun(parts: Vec<Part>) -> SetRecord {
    SetRecord::Begun { parts, takes_back: None }
}

fn parts(count: usize) -> Vec<Part> {
    let part = |index: usize| Part {
        package: format!("package{index}").parse().expect("a name"),
        root: format!("/srv/package{index}"),
        from: (index > 0).then(|| version("1.0.0")),
        to: Some(version("1.1.0")),
    };
    (0..count).map(part).collect()
}

fn undone(reason: &str) -> Outcome {
    Outcome::Undone { reason: reason.to_owned() }
}

/// How a part fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    Refused,
    Probe,
    Step,
}

/// What is in effect in one root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Old,
    Held,
    New,
}

/// Roots that do what they are told, and remember it whatever becomes of the process that told them.
struct World {
    journal: Vec<SetRecord>,
    roots: Vec<Root>,
    /// The parts that were taken back, in that order.
    taken_back: Vec<usize>,
}

impl World {
    fn new(count: usize) -> Self {
        let journal = vec![begun(parts(count))];
        Self { journal, roots: vec![Root::Old; count], taken_back: Vec::new() }
    }

    fn set(&self) -> Set {
        Set::fold(self.journal.iter().cloned()).expect("own journal")
    }

    /// Runs until the end, or until `crash_after` more actions (records and effects) have happened.
    fn run(&mut self, fails: Option<(usize, Fails)>, crash_after: usize) -> Option<Outcome> {
        let mut actions = 0;
        let mut is_dead = || {
            actions += 1;
            actions > crash_after
        };
        loop {
            let record = match self.set().next() {
                Next::Ended(outcome) => return Some(outcome),
                Next::Finish(outcome) => SetRecord::Finished { outcome },
                Next::Commit => {
                    assert!(self.roots.iter().all(|root| *root == Root::Held), "{:?}", self.roots);
                    SetRecord::Committed
                }
                Next::Perform(part) => {
                    let how = fails.filter(|(failing, _)| *failing == part).map(|(_, how)| how);
                    if how == Some(Fails::Refused) {
                        if is_dead() {
                            return None;
                        }
                        self.journal.push(SetRecord::Failed { part, outcome: undone("refused") });
                        continue;
                    }
                    if is_dead() {
                        return None;
                    }
                    self.journal.push(SetRecord::Started { part, execution: 7 });
                    if is_dead() {
                        return None;
                    }
                    let reason = "scripted".to_owned();
                    match how {
                        None => {
                            self.roots[part] = Root::Held;
                            SetRecord::Held { part }
                        }
                        // An execution that fails takes itself back.
                        Some(Fails::Probe) => {
                            SetRecord::Failed { part, outcome: Outcome::ProbeFailed { reason } }
                        }
                        Some(_) => SetRecord::Failed { part, outcome: Outcome::Undone { reason } },
                    }
                }
                Next::Confirm(part) => {
                    if is_dead() {
                        return None;
                    }
                    assert_ne!(self.roots[part], Root::Old);
                    self.roots[part] = Root::New;
                    SetRecord::Confirmed { part }
                }
                Next::Undo(part) => {
                    if is_dead() {
                        return None;
                    }
                    assert_ne!(self.roots[part], Root::New, "what is confirmed is never taken back");
                    self.roots[part] = Root::Old;
                    self.taken_back.push(part);
                    SetRecord::Undone { part }
                }
            };
            if is_dead() {
                return None;
            }
            self.journal.push(record);
        }
    }
}

#[test]
fn parts_are_confirmed_only_once_every_one_is_switched_and_probed() {
    let mut world = World::new(3);
    assert_eq!(world.run(None, usize::MAX), Some(Outcome::Confirmed));
    assert_eq!(world.roots, [Root::New; 3]);
    let commit = world.journal.iter().position(|record| *record == SetRecord::Committed).expect("a commit");
    let is_held = |record: &SetRecord| matches!(record, SetRecord::Held { .. });
    let is_confirmed = |record: &SetRecord| matches!(record, SetRecord::Confirmed { .. });
    assert!(!world.journal[commit..].iter().any(is_held));
    assert!(!world.journal[..commit].iter().any(is_confirmed));
}

#[test]
fn failing_part_takes_every_started_one_back_the_last_first() {
    let mut world = World::new(4);
    let outcome = world.run(Some((2, Fails::Probe)), usize::MAX);
    assert_eq!(outcome, Some(Outcome::ProbeFailed { reason: "scripted".to_owned() }));
    assert_eq!((world.roots, world.taken_back), (vec![Root::Old; 4], vec![2, 1, 0]));
}

#[test]
fn refused_part_has_nothing_to_take_back_and_ends_the_set() {
    let mut world = World::new(3);
    assert_eq!(world.run(Some((1, Fails::Refused)), usize::MAX), Some(undone("refused")));
    assert_eq!((world.roots, world.taken_back), (vec![Root::Old; 3], vec![0]));
}

#[test]
fn interrupted_set_goes_back_unless_every_part_waits_for_the_commit() {
    let whole = {
        let mut world = World::new(2);
        world.run(None, usize::MAX);
        world.journal
    };
    for length in 1..whole.len() {
        let mut set = Set::fold(whole[..length].iter().cloned()).expect("a journal");
        let all_held =
            set.states().iter().all(|state| matches!(state, PartState::Held | PartState::Confirmed));
        set.apply(&SetRecord::Resumed).expect("at any time");
        assert_eq!(set.back().is_none(), all_held, "after {length} records");
    }
}

#[test]
fn part_that_cannot_be_taken_back_stops_the_set_until_somebody_acts() {
    let reason = "scripted".to_owned();
    let stuck = Outcome::Stuck { reason: reason.clone() };
    let mut set = Set::new(parts(2));
    for record in [
        SetRecord::Started { part: 0, execution: 1 },
        SetRecord::Held { part: 0 },
        SetRecord::Started { part: 1, execution: 1 },
        SetRecord::Failed { part: 1, outcome: Outcome::Undone { reason } },
        SetRecord::UndoFailed { part: 1, error: "disk".to_owned() },
    ] {
        set.apply(&record).expect("in order");
    }
    assert_eq!(set.next(), Next::Finish(stuck));
    assert_eq!(set.states()[0], PartState::Held, "what it needs stays until it is mended");
    set.apply(&SetRecord::Resumed).expect("taken up again");
    assert_eq!(set.next(), Next::Undo(1));
}

#[test]
fn journal_that_cannot_have_been_written_is_refused() {
    assert_eq!(Set::fold([]), Err(SetFoldError::Empty));
    assert_eq!(Set::fold([SetRecord::Resumed]), Err(SetFoldError::Begin));
    assert_eq!(Set::fold([begun(Vec::new())]), Err(SetFoldError::Begin));
    let held = |part| [SetRecord::Started { part, execution: 1 }, SetRecord::Held { part }];
    let bad: Vec<Vec<SetRecord>> = vec![
        vec![begun(parts(2))],
        vec![SetRecord::Committed],
        vec![SetRecord::Held { part: 0 }],
        vec![SetRecord::Started { part: 1, execution: 1 }],
        vec![SetRecord::Started { part: 0, execution: 1 }, SetRecord::Started { part: 0, execution: 2 }],
        [held(0).to_vec(), vec![SetRecord::Committed]].concat(),
        [held(0).to_vec(), vec![SetRecord::Confirmed { part: 0 }]].concat(),
        [held(0).to_vec(), vec![SetRecord::Undone { part: 0 }]].concat(),
        [held(0).to_vec(), held(1).to_vec(), vec![SetRecord::Committed, SetRecord::Undone { part: 1 }]]
            .concat(),
        [held(0).to_vec(), vec![SetRecord::Finished { outcome: Outcome::Confirmed }]].concat(),
        vec![SetRecord::Failed { part: 9, outcome: undone("x") }],
    ];
    for records in bad {
        let whole: Vec<SetRecord> = std::iter::once(begun(parts(2))).chain(records).collect();
        assert!(matches!(Set::fold(whole.clone()), Err(SetFoldError::Order { .. })), "{whole:?}");
    }
}

#[test]
fn confirmed_set_goes_back_in_one_step_for_each_package_what_changed_last_first() {
    let part = |package: &str, from: Option<&str>, to: &str| Part {
        package: package.parse().expect("a name"),
        root: format!("/srv/{package}"),
        from: from.map(version),
        to: Some(version(to)),
    };
    let parts = vec![
        part("storage", Some("1.0.0"), "1.1.0"),
        part("base", None, "2.0.0"),
        part("storage", Some("1.1.0"), "1.5.0"),
    ];
    let count = parts.len();
    let mut set = Set::new(parts);
    for part in 0..count {
        assert_eq!(set.way_back(), None, "it is not confirmed");
        set.apply(&SetRecord::Started { part, execution: 7 + part as u64 }).expect("in order");
        set.apply(&SetRecord::Held { part }).expect("in order");
    }
    set.apply(&SetRecord::Committed).expect("all hold");
    (0..count).for_each(|part| set.apply(&SetRecord::Confirmed { part }).expect("committed"));
    set.apply(&SetRecord::Finished { outcome: Outcome::Confirmed }).expect("the end");
    let back = set.way_back().expect("a way");
    let told: Vec<(String, u64)> = back.iter().map(|back| (back.part.to_string(), back.execution)).collect();
    assert_eq!(
        told,
        [("storage 1.5.0 -> 1.0.0".to_owned(), 7), ("base 2.0.0 -> nothing".to_owned(), 8)],
        "the restore points of the first executions lead there"
    );
}

#[test]
fn records_survive_their_line() {
    let mut world = World::new(2);
    world.run(Some((1, Fails::Probe)), usize::MAX);
    let gone = Part { to: None, ..parts(1).remove(0) };
    world.journal.push(SetRecord::Begun { parts: vec![gone], takes_back: Some(3) });
    let at = Instant::from_unix(1_760_000_000).expect("in range");
    let line = SetRecord::to_line(&world.journal, at);
    let (when, read) = SetRecord::from_line(line.strip_suffix(b"\n").expect("a line")).expect("read");
    assert_eq!((when, read), (at, world.journal));
}

proptest! {
    // Killed at any action, any number of times, whatever fails: entirely old or entirely new, and a commit is for ever.
    #[test]
    fn set_ends_entirely_old_or_entirely_new_however_often_it_is_interrupted(
        count in 1usize..5,
        failing in proptest::option::of((0usize..5, prop_oneof![
            Just(Fails::Refused), Just(Fails::Probe), Just(Fails::Step),
        ])),
        crashes in proptest::collection::vec(0usize..12, 0..6),
    ) {
        let mut world = World::new(count);
        let mut ended = None;
        for crash in crashes {
            ended = world.run(failing, crash);
            if ended.is_some() {
                break;
            }
            let was_committed = world.set().is_committed();
            world.journal.push(SetRecord::Resumed);
            prop_assert_eq!(world.set().is_committed(), was_committed);
            prop_assert!(!(was_committed && world.set().back().is_some()));
        }
        let outcome = match ended {
            Some(outcome) => outcome,
            None => world.run(failing, usize::MAX).expect("an end"),
        };
        let all = if outcome == Outcome::Confirmed { Root::New } else { Root::Old };
        prop_assert_eq!(&world.roots, &vec![all; count]);
        prop_assert!(outcome == Outcome::Confirmed || !world.set().is_committed());
    }
}
