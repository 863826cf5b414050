//! Tables for what must happen, and random histories for what must never happen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::Digest;

const POLICY: RestartPolicy =
    RestartPolicy { delay_ms: 100, delay_max_ms: 1000, stable_after_ms: 10_000, crash_loop_after: 3 };

fn job(minor: u64) -> Job {
    Job {
        release: ReleaseRef {
            package: "db".parse().expect("a name"),
            version: crate::model::Version::new(1, minor, 0),
            manifest: Digest::of(&minor.to_be_bytes()),
        },
        ready: Ready::Notify,
        ready_timeout_ms: 5000,
        drain_timeout_ms: 3000,
        overlap: Overlap::Allowed,
    }
}

fn exclusive(minor: u64) -> Job {
    Job { overlap: Overlap::Never, ..job(minor) }
}

fn activate(request: u64, job: Job) -> Event {
    Event::Activate { request: Request(request), job, earlier: Earlier::Good }
}

fn activate_anew(request: u64, job: Job) -> Event {
    Event::Activate { request: Request(request), job, earlier: Earlier::Doubtful }
}

fn exited(generation: u64) -> Event {
    Event::Exited { generation: Generation(generation), how: "exited with 1".to_owned() }
}

fn answer(request: u64, answer: Answer) -> Action {
    Action::Answer { request: Request(request), answer }
}

fn start(generation: u64, job: Job) -> Action {
    Action::Start { generation: Generation(generation), job }
}

fn ready(generation: u64, replaced: Option<u64>, ready_ms: u64) -> Answer {
    Answer::Ready { generation: Generation(generation), replaced: replaced.map(Generation), ready_ms }
}

/// A supervisor at time 1000 whose generation 1 serves `job`.
fn serving(job: Job) -> Supervisor {
    let mut supervisor = Supervisor::new(POLICY);
    assert_eq!(supervisor.handle(1000, Event::Boot(job.clone())), [start(1, job)]);
    assert_eq!(supervisor.handle(1000, Event::Ready(Generation(1))), []);
    assert_eq!(supervisor.phase(), Phase::Ready);
    supervisor
}

#[test]
fn new_release_is_ready_before_the_old_one_drains() {
    let mut supervisor = serving(job(1));
    assert_eq!(supervisor.handle(2000, activate(7, job(2))), [start(2, job(2))]);
    assert_eq!(supervisor.phase(), Phase::HandingOver);
    assert_eq!(
        supervisor.handle(2250, Event::Ready(Generation(2))),
        [Action::Terminate(Generation(1)), answer(7, ready(2, Some(1), 250))]
    );
    assert_eq!(supervisor.next_tick_ms(), Some(5250));
    assert_eq!(supervisor.handle(5249, Event::Tick), []);
    assert_eq!(supervisor.handle(5250, Event::Tick), [Action::Kill(Generation(1))]);
    assert_eq!(supervisor.draining(), 1);
    assert_eq!(supervisor.handle(5260, exited(1)), []);
    assert_eq!((supervisor.draining(), supervisor.next_tick_ms(), supervisor.restarts()), (0, None, 0));
}

#[test]
fn release_that_runs_already_is_success_without_any_effect() {
    let mut supervisor = serving(job(1));
    assert_eq!(supervisor.handle(2000, activate(7, job(1))), [answer(7, Answer::Already(Generation(1)))]);
}

#[test]
fn process_that_may_run_from_other_files_is_replaced_by_a_new_one_of_its_release() {
    let mut supervisor = serving(job(1));
    // While the files of another release lay in its place, it crashed and was started again.
    supervisor.handle(2000, exited(1));
    assert_eq!(supervisor.handle(2100, Event::Tick), [start(2, job(1))]);
    supervisor.handle(2200, Event::Ready(Generation(2)));
    assert_eq!(supervisor.handle(2300, activate_anew(7, job(1))), [start(3, job(1))]);
    assert_eq!(
        supervisor.handle(2400, Event::Ready(Generation(3))),
        [Action::Terminate(Generation(2)), answer(7, ready(3, Some(2), 100))]
    );
    // The same if it was only just starting.
    supervisor.handle(2500, exited(3));
    assert_eq!(supervisor.handle(2700, Event::Tick), [start(4, job(1))]);
    assert_eq!(
        supervisor.handle(2800, activate_anew(8, job(1))),
        [Action::Kill(Generation(4)), start(5, job(1))]
    );
}

#[test]
fn longest_waits_are_those_of_what_runs_whatever_is_wanted_next() {
    let slow = |minor| Job { drain_timeout_ms: 90_000, ready_timeout_ms: 70_000, ..job(minor) };
    let mut supervisor = serving(slow(1));
    assert_eq!((supervisor.drained_within_ms(2000), supervisor.decided_within_ms(2000)), (90_000, 0));
    supervisor.handle(2000, activate(7, slow(2)));
    assert_eq!(supervisor.decided_within_ms(3000), 69_000);
    supervisor.handle(4000, Event::Ready(Generation(2)));
    supervisor.handle(5000, activate(8, exclusive(3)));
    assert_eq!((supervisor.drained_within_ms(6000), supervisor.decided_within_ms(6000)), (89_000, 94_000));
}

#[test]
fn second_request_for_the_release_that_starts_waits_for_the_same_process() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    assert_eq!(supervisor.handle(2100, activate(8, job(2))), []);
    let actions = supervisor.handle(2200, Event::Ready(Generation(2)));
    assert_eq!(actions[1..], [7, 8].map(|request| answer(request, ready(2, Some(1), 200))));
}

#[test]
fn release_that_exits_before_it_is_ready_leaves_the_old_one_alone() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    let reason = "it exited with 1 before it was ready".to_owned();
    assert_eq!(
        supervisor.handle(2100, exited(2)),
        [answer(7, Answer::NotReady { release: job(2).release, reason })]
    );
    assert_eq!((supervisor.phase(), supervisor.next_tick_ms()), (Phase::Ready, None));
    assert_eq!(supervisor.serving().map(|(generation, ..)| generation), Some(Generation(1)));
}

#[test]
fn release_that_is_not_ready_in_time_is_killed_and_leaves_the_old_one_alone() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    assert_eq!(supervisor.next_tick_ms(), Some(7000));
    let actions = supervisor.handle(7000, Event::Tick);
    assert_eq!(actions[0], Action::Kill(Generation(2)));
    assert!(matches!(&actions[1], Action::Answer { answer: Answer::NotReady { .. }, .. }));
    assert_eq!(supervisor.handle(7001, Event::Ready(Generation(2))), [], "too late");
    assert_eq!(supervisor.handle(7002, exited(2)), []);
    assert_eq!(supervisor.phase(), Phase::Ready);
}

#[test]
fn service_without_notification_is_ready_when_it_has_run_for_a_second() {
    let mut supervisor = Supervisor::new(POLICY);
    let running = Job { ready: Ready::Running, ready_timeout_ms: 1, ..job(1) };
    supervisor.handle(0, activate(7, running));
    assert_eq!(supervisor.handle(999, Event::Tick), []);
    assert_eq!(supervisor.handle(1000, Event::Tick), [answer(7, ready(1, None, 1000))]);
}

#[test]
fn restarts_wait_twice_as_long_each_time_up_to_the_limit_and_become_a_crash_loop() {
    let mut supervisor = serving(job(1));
    let mut now = 1000;
    for (crash, wait) in [100, 200, 400, 800, 1000, 1000].into_iter().enumerate() {
        let generation = crash as u64 + 1;
        assert_eq!(supervisor.handle(now, exited(generation)), []);
        let until_ms = now + wait;
        let expected = if crash < 2 { Phase::BackOff { until_ms } } else { Phase::CrashLoop { until_ms } };
        assert_eq!(supervisor.phase(), expected);
        assert_eq!(supervisor.handle(until_ms - 1, Event::Tick), []);
        assert_eq!(supervisor.handle(until_ms, Event::Tick), [start(generation + 1, job(1))]);
        now = until_ms;
        supervisor.handle(now, Event::Ready(Generation(generation + 1)));
    }
    assert_eq!(supervisor.restarts(), 6);
    // It stays up for long enough, so its next crash is the first one again.
    now += POLICY.stable_after_ms;
    supervisor.handle(now, exited(7));
    assert_eq!(supervisor.phase(), Phase::BackOff { until_ms: now + 100 });
}

#[test]
fn start_that_fails_without_anything_serving_is_tried_again() {
    let mut supervisor = Supervisor::new(POLICY);
    supervisor.handle(0, activate(7, job(1)));
    let actions = supervisor.handle(10, exited(1));
    assert!(matches!(&actions[..], [Action::Answer { answer: Answer::NotReady { .. }, .. }]));
    assert_eq!(supervisor.handle(110, Event::Tick), [start(2, job(1))]);
}

#[test]
fn process_that_cannot_be_started_is_not_ready() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    let why = "no such program".to_owned();
    let event = Event::NotStarted { generation: Generation(2), why: why.clone() };
    let expected = answer(7, Answer::NotReady { release: job(2).release, reason: why });
    assert_eq!(supervisor.handle(2000, event), [expected]);
    assert_eq!(supervisor.phase(), Phase::Ready);
}

#[test]
fn activation_ends_a_back_off_at_once() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, exited(1));
    assert_eq!(supervisor.handle(2001, activate(7, job(2))), [start(2, job(2))]);
    supervisor.handle(2100, Event::Ready(Generation(2)));
    assert_eq!(
        (supervisor.phase(), supervisor.restarts(), supervisor.next_tick_ms()),
        (Phase::Ready, 0, None)
    );
}

#[test]
fn going_back_while_the_new_release_starts_kills_it_and_keeps_the_old_one() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    assert_eq!(
        supervisor.handle(2100, activate(8, job(1))),
        [
            Action::Kill(Generation(2)),
            answer(7, Answer::Superseded { by: Some(job(1).release) }),
            answer(8, Answer::Already(Generation(1))),
        ]
    );
    assert_eq!(supervisor.handle(2200, exited(2)), []);
    assert_eq!(supervisor.phase(), Phase::Ready);
}

#[test]
fn old_process_that_crashes_during_the_hand_over_is_not_restarted() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    assert_eq!(supervisor.handle(2100, exited(1)), []);
    assert_eq!((supervisor.phase(), supervisor.next_tick_ms()), (Phase::Starting, Some(7000)));
    assert_eq!(supervisor.handle(2200, Event::Ready(Generation(2))), [answer(7, ready(2, None, 200))]);
}

#[test]
fn exclusive_release_starts_only_when_the_old_one_is_gone() {
    let mut supervisor = serving(exclusive(1));
    assert_eq!(supervisor.handle(2000, activate(7, exclusive(2))), [Action::Terminate(Generation(1))]);
    assert_eq!(supervisor.handle(5000, Event::Tick), [Action::Kill(Generation(1))]);
    assert_eq!(supervisor.handle(5001, exited(1)), [start(2, exclusive(2))]);
    assert_eq!(supervisor.handle(5100, Event::Ready(Generation(2))), [answer(7, ready(2, None, 3100))]);
}

#[test]
fn exclusive_release_that_waits_is_forgotten_when_nothing_is_wanted_any_more() {
    let mut supervisor = serving(exclusive(1));
    supervisor.handle(2000, activate(7, exclusive(2)));
    let deactivate = Event::Deactivate { request: Request(8) };
    assert_eq!(supervisor.handle(2100, deactivate), [answer(7, Answer::Superseded { by: None })]);
    assert_eq!(supervisor.handle(2200, exited(1)), [answer(8, Answer::Stopped)]);
    assert_eq!(supervisor.phase(), Phase::Idle);
}

#[test]
fn exclusive_release_that_crashes_is_restarted_only_when_its_predecessor_is_gone() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    supervisor.handle(2100, Event::Ready(Generation(2)));
    supervisor.handle(2200, activate(8, exclusive(2)));
    assert_eq!(supervisor.handle(2300, exited(2)), []);
    assert_eq!(supervisor.handle(2400, Event::Tick), [], "generation 1 still drains");
    assert_eq!(supervisor.handle(2500, exited(1)), [start(3, exclusive(2))]);
}

#[test]
fn settings_without_any_wait_make_no_busy_loop() {
    let mut supervisor = Supervisor::new(RestartPolicy { delay_ms: 0, delay_max_ms: 0, ..POLICY });
    supervisor.handle(0, Event::Boot(Job { ready_timeout_ms: 0, ..job(1) }));
    assert_eq!(supervisor.handle(0, Event::Tick), [Action::Kill(Generation(1))]);
    assert_eq!(supervisor.phase(), Phase::BackOff { until_ms: RESTART_DELAY_FLOOR_MS });
}

#[test]
fn deactivation_drains_and_answers_when_all_are_gone() {
    let mut supervisor = serving(job(1));
    let deactivate = Event::Deactivate { request: Request(7) };
    assert_eq!(supervisor.handle(2000, deactivate.clone()), [Action::Terminate(Generation(1))]);
    assert_eq!(supervisor.handle(2100, exited(1)), [answer(7, Answer::Stopped)]);
    assert_eq!((supervisor.phase(), supervisor.next_tick_ms()), (Phase::Idle, None));
    assert_eq!(supervisor.handle(2200, deactivate), [answer(7, Answer::Stopped)]);
    assert_eq!(supervisor.handle(2300, activate(8, job(2))), [start(2, job(2))]);
}

#[test]
fn deactivation_that_a_later_activation_overtakes_is_answered() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, Event::Deactivate { request: Request(7) });
    assert_eq!(
        supervisor.handle(2100, activate(8, job(2))),
        [answer(7, Answer::Superseded { by: Some(job(2).release) }), start(2, job(2))]
    );
}

#[test]
fn stop_drains_then_finishes_and_a_second_stop_kills() {
    let mut supervisor = serving(job(1));
    let stop = |request| Event::Stop { request };
    assert_eq!(supervisor.handle(2000, stop(Some(Request(7)))), [Action::Terminate(Generation(1))]);
    assert_eq!(supervisor.handle(2001, activate(8, job(2))), [answer(8, Answer::Ending)]);
    let deactivate = Event::Deactivate { request: Request(10) };
    assert_eq!(supervisor.handle(2001, deactivate), [answer(10, Answer::Ending)]);
    assert_eq!(supervisor.handle(2002, stop(None)), [Action::Kill(Generation(1))]);
    assert_eq!(supervisor.handle(2003, stop(None)), [], "it was killed already");
    assert_eq!(supervisor.handle(2010, exited(1)), [answer(7, Answer::Stopped), Action::Finish]);
    assert_eq!(supervisor.handle(2020, stop(Some(Request(9)))), [answer(9, Answer::Stopped)]);
    assert_eq!(Supervisor::new(POLICY).handle(0, stop(None)), [Action::Finish]);
}

#[test]
fn state_survives_being_written_down() {
    let mut supervisor = serving(job(1));
    supervisor.handle(2000, activate(7, job(2)));
    let text = serde_json::to_string(&supervisor).expect("JSON");
    assert_eq!(serde_json::from_str::<Supervisor>(&text).expect("the same state"), supervisor);
}

/// What happens next in a random history. Numbers pick among what is possible then.
#[derive(Clone, Debug)]
enum Happening {
    Activate(u64, bool),
    Deactivate,
    Ready(u8),
    Exit(u8),
    Pass(u16),
    Stop,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..3u64, any::<bool>()).prop_map(|(minor, alone)| Happening::Activate(minor, alone)),
        1 => Just(Happening::Deactivate),
        5 => any::<u8>().prop_map(Happening::Ready),
        4 => any::<u8>().prop_map(Happening::Exit),
        6 => (0..8000u16).prop_map(Happening::Pass),
        1 => Just(Happening::Stop),
    ]
}

/// The world beside the supervisor: which processes are alive, who waits, and what was promised.
#[derive(Default)]
struct World {
    alive: BTreeMap<Generation, Job>,
    ready: BTreeSet<Generation>,
    told_to_end: BTreeSet<Generation>,
    ever: BTreeSet<Generation>,
    waiting: BTreeSet<Request>,
    finished: u32,
}

impl World {
    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { generation, job } => {
                    assert!(self.ever.insert(generation), "a generation is used twice");
                    assert_eq!(self.finished, 0, "a start after the end");
                    if job.overlap == Overlap::Never {
                        assert!(self.alive.is_empty(), "two run at once that must not");
                    }
                    self.alive.insert(generation, job);
                }
                Action::Terminate(generation) | Action::Kill(generation) => {
                    assert!(self.alive.contains_key(&generation), "a signal to nobody");
                    self.told_to_end.insert(generation);
                }
                Action::Answer { request, answer } => {
                    assert!(self.waiting.remove(&request), "answered twice");
                    if let Answer::Ready { generation, .. } | Answer::Already(generation) = answer {
                        assert!(self.alive.contains_key(&generation) && self.ready.contains(&generation));
                    }
                }
                Action::Finish => {
                    self.finished += 1;
                    assert!(self.alive.is_empty(), "processes are left behind");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_request_is_answered_once_and_nothing_is_left_behind(
        history in proptest::collection::vec(happening(), 0..60),
    ) {
        let mut supervisor = Supervisor::new(POLICY);
        let mut world = World::default();
        let mut now = 0;
        let mut request = 0;
        let mut stops = 0;
        for happening in history {
            request += 1;
            let pick = |number: u8, from: &BTreeMap<Generation, Job>| {
                from.keys().nth(usize::from(number) % from.len().max(1)).copied()
            };
            let event = match happening {
                Happening::Activate(minor, alone) => {
                    world.waiting.insert(Request(request));
                    activate(request, if alone { exclusive(minor) } else { job(minor) })
                }
                Happening::Deactivate => {
                    world.waiting.insert(Request(request));
                    Event::Deactivate { request: Request(request) }
                }
                Happening::Ready(number) => match pick(number, &world.alive) {
                    Some(generation) => {
                        world.ready.insert(generation);
                        Event::Ready(generation)
                    }
                    None => Event::Tick,
                },
                Happening::Exit(number) => match pick(number, &world.alive) {
                    Some(generation) => {
                        world.alive.remove(&generation);
                        exited(generation.0)
                    }
                    None => Event::Tick,
                },
                Happening::Pass(milliseconds) => {
                    now += u64::from(milliseconds);
                    Event::Tick
                }
                Happening::Stop => {
                    stops += 1;
                    Event::Stop { request: None }
                }
            };
            let before = supervisor.serving().map(|(generation, ..)| generation);
            let stays = matches!(event, Event::Ready(_) | Event::Tick);
            world.perform(supervisor.handle(now, event));
            // A hand-over never leaves a gap: who served is told to end only when another one is ready.
            if let (true, Some(before)) = (stays, before) {
                let after = supervisor.serving().map(|(generation, ..)| generation);
                prop_assert!(after.is_some());
                prop_assert!(!world.told_to_end.contains(&before) || after != Some(before));
            }
            // Time that was dealt with is not due again.
            world.perform(supervisor.handle(now, Event::Tick));
            prop_assert!(supervisor.next_tick_ms().is_none_or(|due| due > now));
        }
        // In the end everything that was told to end does, and time passes until nobody waits.
        stops += 1;
        world.perform(supervisor.handle(now, Event::Stop { request: None }));
        for _ in 0..200 {
            now = supervisor.next_tick_ms().unwrap_or(now);
            world.perform(supervisor.handle(now, Event::Tick));
            if let Some(generation) = world.told_to_end.iter().find(|one| world.alive.contains_key(one)).copied() {
                world.alive.remove(&generation);
                world.perform(supervisor.handle(now, exited(generation.0)));
            }
        }
        prop_assert!(stops > 0 && world.finished == 1);
        prop_assert!(world.alive.is_empty() && world.waiting.is_empty());
    }
}
