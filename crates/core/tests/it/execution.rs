//! Executions folded from journals, cut and continued at every record.

use std::{cell::Cell, sync::Arc};

use cutover_core::{
    execute::{Direction, Execution, FoldError, Next, Outcome, Record, RecordError, StepState},
    model::{Digest, FileKind, Instant},
    plan::{Layout, OnProbeFailure, Plan, Policy, plan_update},
    set::SetId,
};
use proptest::prelude::*;

use crate::fixtures::{manifest, observation, policy, release};

fn plan(on_probe_failure: OnProbeFailure) -> Plan {
    let old = manifest("1.0.0", &[("bin/db", FileKind::Executable, "old")]);
    let new = manifest("1.1.0", &[("bin/db", FileKind::Executable, "new")]);
    let policy = Policy { on_probe_failure, ..policy() };
    plan_update(&observation(Layout::Versioned, Some(&old)), &release(&new), &new, &policy).expect("a plan")
}

/// The way back to an empty root, which has nothing to probe.
fn plan_to_nothing() -> Plan {
    let mut plan = plan(OnProbeFailure::Restore);
    plan.to = None;
    plan.steps.remove(PROBE);
    plan
}

fn set() -> SetId {
    SetId { coordinator: "/srv/query".to_owned(), number: 3 }
}

const STAGE: usize = 0;
const SWITCH: usize = 3;
const ACTIVATE: usize = 4;
const PROBE: usize = 5;
const CONFIRM: usize = 6;

/// A world that performs steps by a script and remembers what is in effect.
struct World {
    journal: Vec<Record>,
    /// Which steps have taken effect and were not undone.
    effects: [bool; 7],
    probes: u32,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self::of(Record::Planned { plan: Arc::new(plan), set: None })
    }

    fn in_set(plan: Plan) -> Self {
        Self::of(Record::Planned { plan: Arc::new(plan), set: Some(set()) })
    }

    fn of(planned: Record) -> Self {
        Self { journal: vec![planned], effects: [false; 7], probes: 0 }
    }

    fn execution(&self) -> Execution {
        Execution::fold(self.journal.iter().cloned()).expect("own journal")
    }

    /// Runs until the end, or until `crash_after` more actions (records and effects) have happened. `fails` says whether
    /// performing this step fails.
    fn run(&mut self, fails: impl Fn(usize) -> bool, crash_after: usize) -> Option<Outcome> {
        let mut actions = 0;
        let mut crashed = || {
            actions += 1;
            actions > crash_after
        };
        loop {
            let execution = self.execution();
            match execution.next() {
                Next::Ended(outcome) => return Some(outcome.clone()),
                Next::Hold => return None,
                Next::Finish(Outcome::Stuck { reason }) => return Some(Outcome::Stuck { reason }),
                Next::Finish(outcome) => {
                    if crashed() {
                        return None;
                    }
                    self.journal.push(Record::Finished { outcome });
                }
                Next::Perform(step, _) => {
                    if crashed() {
                        return None;
                    }
                    self.journal.push(Record::Intent { step });
                    if crashed() {
                        return None;
                    }
                    self.probes += u32::from(step == PROBE);
                    self.effects[step] = true;
                    if crashed() {
                        return None;
                    }
                    self.journal.push(match fails(step) {
                        true => Record::Failed { step, error: "scripted".to_owned() },
                        false => Record::Done { step, evidence: None },
                    });
                }
                Next::Undo(step, _) => {
                    if crashed() {
                        return None;
                    }
                    self.journal.push(Record::UndoIntent { step });
                    if crashed() {
                        return None;
                    }
                    self.effects[step] = false;
                    if crashed() {
                        return None;
                    }
                    self.journal.push(Record::Undone { step });
                }
            }
        }
    }

    fn resume(&mut self) {
        self.journal.push(Record::Resumed);
    }
}

// E9
#[test]
fn good_run_performs_every_step_once_and_confirms() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Confirmed));
    assert_eq!((world.effects, world.probes), ([true; 7], 1));
}

// E10
#[test]
fn failed_probe_undoes_every_started_step_in_reverse() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    let outcome = world.run(|step| step == PROBE, usize::MAX);
    assert_eq!(outcome, Some(Outcome::ProbeFailed { reason: "scripted".to_owned() }));
    let undone: Vec<usize> = world
        .journal
        .iter()
        .filter_map(|record| if let Record::UndoIntent { step } = record { Some(*step) } else { None })
        .collect();
    assert_eq!(undone, [5, 4, 3, 2, 1, 0]);
    assert_eq!(world.effects, [false; 7]);
}

// E11
#[test]
fn failed_probe_is_kept_when_the_plan_says_so() {
    let mut world = World::new(plan(OnProbeFailure::Keep));
    assert_eq!(world.run(|step| step == PROBE, usize::MAX), Some(Outcome::KeptUnconfirmed));
    assert!(world.effects[SWITCH] && !world.effects[CONFIRM]);
    assert!(!world.journal.iter().any(|record| matches!(record, Record::UndoIntent { .. })));
}

#[test]
fn step_that_fails_before_the_switch_ends_as_before() {
    let mut world = World::new(plan(OnProbeFailure::Keep));
    assert_eq!(
        world.run(|step| step == STAGE, usize::MAX),
        Some(Outcome::Undone { reason: "scripted".to_owned() })
    );
    assert_eq!(world.effects, [false; 7]);
}

#[test]
fn interruption_before_the_switch_turns_back_and_after_it_goes_on() {
    for crash_after in 0..40 {
        let mut world = World::new(plan(OnProbeFailure::Restore));
        if world.run(|_| false, crash_after).is_some() {
            assert!(crash_after >= 21);
            return;
        }
        let switched = world.execution().has_started_switch();
        world.resume();
        let outcome = world.run(|_| false, usize::MAX).expect("it ends");
        assert_eq!(outcome == Outcome::Confirmed, switched, "crash after {crash_after}");
        assert_eq!(world.effects, [switched; 7], "crash after {crash_after}");
    }
    panic!("the run never got to its end");
}

#[test]
fn execution_that_is_interrupted_again_and_again_turns_back() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    while !matches!(world.execution().next(), Next::Perform(PROBE, _)) {
        world.run(|_| false, 3);
    }
    for _ in 0..4 {
        assert_eq!(world.execution().direction(), &Direction::Forward);
        world.run(|_| false, 1);
        world.resume();
    }
    let reason = "interrupted 4 times".to_owned();
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Undone { reason }));
}

#[test]
fn what_was_activated_before_an_interruption_is_activated_again_before_it_is_examined() {
    for last in [Record::Done { step: ACTIVATE, evidence: None }, Record::Intent { step: PROBE }] {
        let mut world = World::new(plan(OnProbeFailure::Restore));
        world.run(|_| false, usize::MAX);
        let end = world.journal.iter().position(|record| *record == last).expect("it came by");
        world.journal.truncate(end + 1);
        world.probes = 0;
        world.resume();
        assert!(matches!(world.execution().next(), Next::Perform(ACTIVATE, _)), "after {last:?}");
        assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Confirmed));
        assert_eq!(world.probes, 1);
    }
}

#[test]
fn what_was_examined_is_confirmed_without_another_activation() {
    for last in [Record::Done { step: PROBE, evidence: None }, Record::Intent { step: CONFIRM }] {
        let mut world = World::new(plan(OnProbeFailure::Restore));
        world.run(|_| false, usize::MAX);
        let end = world.journal.iter().position(|record| *record == last).expect("it came by");
        world.journal.truncate(end + 1);
        world.resume();
        assert!(matches!(world.execution().next(), Next::Perform(CONFIRM, _)), "after {last:?}");
    }
}

#[test]
fn what_was_confirmed_without_a_probe_is_not_activated_again_and_cannot_fail() {
    let mut world = World::new(plan_to_nothing());
    world.run(|_| false, usize::MAX);
    assert!(matches!(world.journal.pop(), Some(Record::Finished { .. })));
    world.resume();
    assert_eq!(world.execution().next(), Next::Finish(Outcome::Confirmed));
    world.journal.pop();
    let mut confirmed = world.execution();
    assert!(confirmed.apply(&Record::Failed { step: ACTIVATE, error: String::new() }).is_err());
}

#[test]
fn tree_is_in_between_only_from_the_beginning_of_a_switch_or_its_undo_to_its_end() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    world.run(|step| step == PROBE, usize::MAX);
    let mut amid = Vec::new();
    for end in 1..=world.journal.len() {
        let execution = Execution::fold(world.journal[..end].iter().cloned()).expect("own journal");
        if execution.is_amid_switch() {
            amid.push(world.journal[end - 1].clone());
        }
    }
    assert_eq!(amid, [Record::Intent { step: SWITCH }, Record::UndoIntent { step: SWITCH }]);
    let failing = |records: &[Record]| {
        let planned = Record::Planned { plan: Arc::new(plan(OnProbeFailure::Restore)), set: None };
        let intent = Record::Intent { step: SWITCH };
        let failed = Record::Failed { step: SWITCH, error: String::new() };
        Execution::fold([planned, intent, failed].into_iter().chain(records.iter().cloned()))
            .expect("in order")
            .is_amid_switch()
    };
    let undo = Record::UndoIntent { step: SWITCH };
    assert!(failing(&[]));
    assert!(failing(&[undo.clone(), Record::UndoFailed { step: SWITCH, error: String::new() }]));
    assert!(!failing(&[undo, Record::Undone { step: SWITCH }]));
}

#[test]
fn failed_undo_is_stuck_and_taken_up_again_on_resume() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    world.journal.extend([
        Record::Intent { step: STAGE },
        Record::Failed { step: STAGE, error: "disk full".to_owned() },
        Record::UndoIntent { step: STAGE },
        Record::UndoFailed { step: STAGE, error: "still full".to_owned() },
    ]);
    assert!(matches!(world.execution().next(), Next::Finish(Outcome::Stuck { .. })));
    world.resume();
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Undone { reason: "disk full".to_owned() }));
}

#[test]
fn confirmed_execution_never_turns_back() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    for step in 0..7 {
        world.journal.extend([Record::Intent { step }, Record::Done { step, evidence: None }]);
    }
    assert!(world.execution().is_confirmed());
    let mut back = world.execution();
    assert!(back.apply(&Record::TurnedBack { reason: "no".to_owned() }).is_err());
    (0..9).for_each(|_| world.resume());
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Confirmed));
}

#[test]
fn member_of_a_set_waits_before_confirm_until_the_set_is_committed() {
    let mut world = World::in_set(plan(OnProbeFailure::Restore));
    assert_eq!(world.run(|_| false, usize::MAX), None);
    assert!(world.execution().is_held() && world.effects[PROBE] && !world.effects[CONFIRM]);
    world.journal.push(Record::Released);
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Confirmed));
}

#[test]
fn member_that_waits_is_turned_back_by_its_set_and_by_nothing_else() {
    let mut world = World::in_set(plan(OnProbeFailure::Keep));
    world.run(|_| false, usize::MAX);
    (0..9).for_each(|_| world.resume());
    assert!(world.execution().is_held(), "an interruption decides nothing");
    let reason = "another package failed".to_owned();
    world.journal.push(Record::TurnedBack { reason: reason.clone() });
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Undone { reason }));
    assert_eq!(world.effects, [false; 7]);
}

#[test]
fn member_that_was_released_never_turns_back() {
    let mut world = World::in_set(plan(OnProbeFailure::Restore));
    world.run(|_| false, usize::MAX);
    world.journal.push(Record::Released);
    let mut released = world.execution();
    assert!(released.apply(&Record::TurnedBack { reason: "no".to_owned() }).is_err());
    assert!(released.apply(&Record::Released).is_err());
    released.apply(&Record::Intent { step: CONFIRM }).expect("in order");
    assert!(released.apply(&Record::Failed { step: CONFIRM, error: "disk".to_owned() }).is_err());
    (0..9).for_each(|_| world.resume());
    assert_eq!(world.run(|_| false, usize::MAX), Some(Outcome::Confirmed));
}

#[test]
fn member_is_restored_when_its_probe_fails_whatever_its_plan_says() {
    let mut world = World::in_set(plan(OnProbeFailure::Keep));
    let outcome = world.run(|step| step == PROBE, usize::MAX);
    assert_eq!(outcome, Some(Outcome::ProbeFailed { reason: "scripted".to_owned() }));
}

#[test]
fn execution_of_no_set_cannot_be_released() {
    let mut world = World::new(plan(OnProbeFailure::Restore));
    world.run(|_| false, 18);
    assert!(world.execution().apply(&Record::Released).is_err());
}

#[test]
fn journal_that_cannot_have_happened_is_refused() {
    let planned = Record::Planned { plan: Arc::new(plan(OnProbeFailure::Restore)), set: None };
    let fold =
        |records: &[Record]| Execution::fold(std::iter::once(planned.clone()).chain(records.iter().cloned()));
    assert_eq!(Execution::fold([]), Err(FoldError::Empty));
    assert_eq!(Execution::fold([Record::Resumed]), Err(FoldError::Plan(0)));
    assert_eq!(fold(std::slice::from_ref(&planned)), Err(FoldError::Plan(1)));
    for records in [
        vec![Record::Done { step: 0, evidence: None }],
        vec![Record::Intent { step: 7 }],
        vec![Record::UndoIntent { step: 0 }],
        vec![Record::Finished { outcome: Outcome::Confirmed }, Record::Resumed],
        vec![
            Record::Intent { step: 0 },
            Record::Failed { step: 0, error: String::new() },
            Record::Intent { step: 1 },
        ],
    ] {
        assert!(matches!(fold(&records), Err(FoldError::Order { .. })), "{records:?}");
    }
}

// S12
#[test]
fn line_round_trips_and_any_changed_or_missing_byte_is_noticed() {
    let at = Instant::from_unix(0).expect("the epoch");
    let records = vec![
        Record::Failed { step: 3, error: "no \"space\"\nleft".to_owned() },
        Record::UndoIntent { step: 3 },
    ];
    let line = Record::to_line(&records, at);
    let (end, line) = line.split_last().expect("not empty");
    assert_eq!((*end, line.contains(&b'\n')), (b'\n', false));
    assert_eq!(Record::from_line(line), Ok((at, records)));
    for index in 0..line.len() {
        let mut bad = line.to_vec();
        bad[index] ^= 1;
        assert!(Record::from_line(&bad).is_err(), "byte {index}");
        assert_eq!(Record::from_line(&line[..index]), Err(RecordError::Checksum), "cut at {index}");
    }
}

proptest! {
    // The invariants of undo: whatever fails and wherever it crashes, however often, the end is all or nothing.
    #[test]
    fn every_run_ends_entirely_old_or_entirely_new(
        plan in proptest::sample::select(vec![plan(OnProbeFailure::Restore), plan_to_nothing()]),
        // A step, and how often it succeeds before it fails.
        failing in proptest::option::of((0..7usize, 0..3u32)),
        crashes in proptest::collection::vec(0..30usize, 0..6),
    ) {
        let steps = plan.steps.len();
        let mut world = World::new(plan);
        let (left, failed) = (Cell::new(failing.map_or(0, |(_, left)| left)), Cell::new(false));
        let fails = |step| {
            let fails = failing.is_some_and(|(failing, _)| failing == step)
                && left.replace(left.get().saturating_sub(1)) == 0;
            failed.set(failed.get() || fails);
            fails
        };
        let (mut ended, mut confirmed) = (None, false);
        for crash_after in crashes {
            ended = world.run(fails, crash_after);
            confirmed |= world.execution().is_confirmed();
            if ended.is_some() {
                break;
            }
            world.resume();
        }
        let outcome = ended.or_else(|| world.run(fails, usize::MAX)).expect("it ends");
        let new = outcome == Outcome::Confirmed;
        prop_assert!(world.effects[..steps].iter().all(|effect| *effect == new));
        prop_assert!(!(new && failed.get()));
        prop_assert!(new || !confirmed, "what was confirmed was taken back");
        let settled = |state: &StepState| match new {
            true => *state == StepState::Done,
            false => matches!(state, StepState::Undone | StepState::Waiting),
        };
        let all_settled = world.execution().steps().iter().all(settled);
        prop_assert!(all_settled);
    }
}

#[test]
fn every_record_is_read_as_it_was_written() {
    let at = Instant::from_unix(0).expect("the epoch");
    let (step, error, reason) = (3, "no space".to_owned(), "asked".to_owned());
    let records = vec![
        Record::Planned { plan: Arc::new(plan(OnProbeFailure::Keep)), set: None },
        Record::Planned { plan: Arc::new(plan(OnProbeFailure::Keep)), set: Some(set()) },
        Record::Released,
        Record::Intent { step },
        Record::Done { step, evidence: None },
        Record::Done { step, evidence: Some(Digest::of(b"point")) },
        Record::Failed { step, error: error.clone() },
        Record::Resumed,
        Record::TurnedBack { reason: reason.clone() },
        Record::UndoIntent { step },
        Record::Undone { step },
        Record::UndoFailed { step, error },
        Record::Finished { outcome: Outcome::Undone { reason } },
    ];
    let line = Record::to_line(&records, at);
    assert_eq!(Record::from_line(&line[..line.len() - 1]), Ok((at, records)));
}

#[test]
fn record_of_another_program_is_refused_and_the_reason_named() {
    let read = |record: &str| {
        let json = format!(r#"{{"at":"1970-01-01T00:00:00Z","do":[{record}]}}"#);
        let line = format!("{} {json}", &Digest::of(json.as_bytes()).to_string()[..16]);
        match Record::from_line(line.as_bytes()) {
            Err(RecordError::Syntax(problem)) => problem,
            read => panic!("{record}: {read:?}"),
        }
    };
    assert!(read(r#"{"record":"leap","step":1}"#).contains("unknown variant `leap`"));
    assert!(read(r#"{"record":"intent","step":1,"hop":2}"#).contains("unknown field `hop`"));
    assert!(read(r#"{"record":"resumed","step":1}"#).contains("unknown field `step`"));
    assert!(read(r#"{"record":"intent"}"#).contains("missing field `step`"));
    assert!(read(r#"{"step":1,"record":"intent"}"#).contains("must begin with `record`"));
    assert!(read("{}").contains("must begin with `record`"));
}
