//! What a supervisor does next: which process to start, to stop, to kill, and what to answer to whom.
//!
//! [`Supervisor::handle`] takes an event and the time, and gives back actions; `host::service::supervisor` performs them
//! and reports what became of them as further events. Nothing here knows processes, sockets or clocks: a generation is
//! a number that stands for one started process, and time is milliseconds of any clock that never goes back.
//!
//! ```text
//!              Start             Ready                 Terminate (drain)        Kill
//!   (wanted) ---------> starting -------> serving ---------------------> draining ----> (gone)
//!      ^                   | not ready       | exits
//!      |     back-off      v                 v
//!      +-------------------+<----------------+
//! ```
//! During a hand-over the old process is `serving` and the new one `starting`; only when the new one is ready does the old
//! one drain. A new one that fails is killed and the old one never notices.

use serde::{Deserialize, Serialize};

use crate::model::{Ready, ReleaseRef};

/// A process that counts as ready by running ([`Ready::Running`]) must have run for this long, in milliseconds.
pub const RUNNING_IS_READY_MS: u64 = 1000;

/// The shortest wait before a restart, in milliseconds, whatever the settings say: nobody wants a busy loop.
const RESTART_DELAY_FLOOR_MS: u64 = 10;

/// One started process. Numbers grow and are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Somebody who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Request(pub u64);

/// What to run, as far as deciding needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The release; two jobs of one release are the same job.
    pub release: ReleaseRef,
    /// How it says that it is ready.
    pub ready: Ready,
    /// The longest time to become ready, in milliseconds.
    pub ready_timeout_ms: u64,
    /// The longest time to drain, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Whether it may run while another one does.
    pub overlap: Overlap,
}

impl Job {
    /// How long after its start it is decided whether it is ready, in milliseconds.
    pub fn decided_after_ms(&self) -> u64 {
        match self.ready {
            Ready::Notify => self.ready_timeout_ms,
            Ready::Running => RUNNING_IS_READY_MS,
        }
    }
}

/// Whether two processes may run at once during a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// The old one serves until the new one is ready.
    Allowed,
    /// The new one starts when the old one is gone.
    Never,
}

/// When a crashed service is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// The wait before the first restart, in milliseconds; doubles with every crash.
    pub delay_ms: u64,
    /// The longest wait, in milliseconds.
    pub delay_max_ms: u64,
    /// A process that was ready for this long, in milliseconds, is stable: crashes before it are forgotten.
    pub stable_after_ms: u64,
    /// This many crashes in a row are a crash loop.
    pub crash_loop_after: u32,
}

impl RestartPolicy {
    /// The wait after the `crashes`th crash in a row.
    fn delay_ms(&self, crashes: u32) -> u64 {
        let doubled = self.delay_ms.saturating_mul(1 << crashes.saturating_sub(1).min(32));
        doubled.min(self.delay_max_ms).max(RESTART_DELAY_FLOOR_MS)
    }
}

/// What somebody who wants a release to run thinks of a process of it that was started before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// It is as good as a new one.
    Good,
    /// It may run from files of another release that lay under the same name for a while: a new one takes its place.
    Doubtful,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The supervisor started and this is the current release.
    Boot(Job),
    /// Somebody wants `job` to run.
    Activate {
        /// Who.
        request: Request,
        /// What.
        job: Job,
        /// What a process of that release is worth that was started before.
        earlier: Earlier,
    },
    /// Somebody wants nothing to run.
    Deactivate {
        /// Who.
        request: Request,
    },
    /// The supervisor is to end; a second time: at once.
    Stop {
        /// Who wants to know when it is done.
        request: Option<Request>,
    },
    /// The process said that it is ready.
    Ready(Generation),
    /// There is no process: it could not be started.
    NotStarted {
        /// Which.
        generation: Generation,
        /// Why, for people.
        why: String,
    },
    /// The process ended.
    Exited {
        /// Which.
        generation: Generation,
        /// How, for people: `exited with 1`.
        how: String,
    },
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a process; answered by `NotStarted` if that fails.
    Start {
        /// Its number.
        generation: Generation,
        /// What it runs.
        job: Job,
    },
    /// Ask the process to finish its connections and to end.
    Terminate(Generation),
    /// End the process and all it started.
    Kill(Generation),
    /// Answer somebody.
    Answer {
        /// Whom.
        request: Request,
        /// What.
        answer: Answer,
    },
    /// All processes are gone: the supervisor ends.
    Finish,
}

/// What somebody who asked is told. Everybody who asks is told exactly one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The release runs and is ready.
    Ready {
        /// The process.
        generation: Generation,
        /// The one that it replaced and that drains now.
        replaced: Option<Generation>,
        /// How long it took to become ready, in milliseconds.
        ready_ms: u64,
    },
    /// The release ran already.
    Already(Generation),
    /// Nothing runs any more.
    Stopped,
    /// The release did not become ready.
    NotReady {
        /// The release.
        release: ReleaseRef,
        /// What happened instead.
        reason: String,
    },
    /// A later request wants something else.
    Superseded {
        /// What it wants; `None`: nothing.
        by: Option<ReleaseRef>,
    },
    /// The supervisor is ending and starts nothing more.
    Ending,
}

/// What a supervisor is doing, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing runs and nothing is meant to.
    Idle,
    /// Nothing serves yet.
    Starting,
    /// The service serves.
    Ready,
    /// The service serves and the next one starts.
    HandingOver,
    /// The service crashed and is restarted at `until_ms`.
    BackOff {
        /// When.
        until_ms: u64,
    },
    /// The same, after many crashes in a row.
    CrashLoop {
        /// When.
        until_ms: u64,
    },
    /// The supervisor waits for the last processes to end.
    Ending,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serving {
    generation: Generation,
    job: Job,
    ready_at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Starting {
    generation: Generation,
    job: Job,
    cause: Cause,
    asked_at_ms: u64,
    started_at_ms: u64,
}

impl Starting {
    /// When it is decided whether it is ready.
    fn deadline_ms(&self) -> u64 {
        self.started_at_ms.saturating_add(self.job.decided_after_ms())
    }
}

/// Why something is being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cause {
    /// Somebody asked for it.
    Asked,
    /// It crashed, or the supervisor has just started.
    Restart,
}

/// What starts as soon as everything else is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queued {
    job: Job,
    cause: Cause,
    asked_at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draining {
    generation: Generation,
    /// When it is killed; `None` once it was.
    kill_at_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Life {
    #[default]
    Working,
    Ending,
    Ended,
}

/// The supervisor's state. It can be written down and read back, so that a newer program can go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supervisor {
    policy: RestartPolicy,
    next_generation: u64,
    life: Life,
    /// What is restarted when nothing serves.
    wanted: Option<Job>,
    serving: Option<Serving>,
    starting: Option<Starting>,
    queued: Option<Queued>,
    draining: Vec<Draining>,
    /// When `wanted` is started again.
    restart_at_ms: Option<u64>,
    /// Crashes in a row.
    crashes: u32,
    /// Restarts since something was asked for.
    restarts: u32,
    /// Who waits for `starting` or `queued`.
    activating: Vec<Request>,
    /// Who waits for nothing to run.
    deactivating: Vec<Request>,
}

impl Supervisor {
    /// A supervisor that runs nothing yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            next_generation: 1,
            life: Life::Working,
            wanted: None,
            serving: None,
            starting: None,
            queued: None,
            draining: Vec::new(),
            restart_at_ms: None,
            crashes: 0,
            restarts: 0,
            activating: Vec::new(),
            deactivating: Vec::new(),
        }
    }

    /// Takes note of `event` at `now_ms` and says what to do, in this order.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Boot(job) => self.boot(now_ms, job, &mut actions),
            Event::Activate { request, job, earlier } => {
                self.activate(now_ms, request, job, earlier, &mut actions);
            }
            Event::Deactivate { request } => self.deactivate(now_ms, request, &mut actions),
            Event::Stop { request } => self.stop(now_ms, request, &mut actions),
            Event::Ready(generation) => {
                if self.starting() == Some(generation) {
                    self.became_ready(now_ms, &mut actions);
                }
            }
            Event::NotStarted { generation, why } => {
                if self.starting() == Some(generation) {
                    self.failed_to_start(now_ms, why, &mut actions);
                }
            }
            Event::Exited { generation, how } => self.exited(now_ms, generation, &how, &mut actions),
            Event::Tick => self.tick(now_ms, &mut actions),
        }
        self.when_all_are_gone(now_ms, &mut actions);
        actions
    }

    /// When the next [`Event::Tick`] is due; `None`: not before something else happens.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let ready = self.starting.as_ref().map(Starting::deadline_ms);
        let kill = self.draining.iter().filter_map(|draining| draining.kill_at_ms).min();
        [ready, kill, self.restart_at_ms].into_iter().flatten().min()
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        match (self.life, &self.serving, &self.starting, self.restart_at_ms) {
            (Life::Ending | Life::Ended, ..) => Phase::Ending,
            (Life::Working, Some(_), None, _) => Phase::Ready,
            (Life::Working, Some(_), Some(_), _) => Phase::HandingOver,
            (Life::Working, None, Some(_), _) => Phase::Starting,
            (Life::Working, None, None, Some(until_ms)) if self.crashes >= self.policy.crash_loop_after => {
                Phase::CrashLoop { until_ms }
            }
            (Life::Working, None, None, Some(until_ms)) => Phase::BackOff { until_ms },
            (Life::Working, None, None, None) if self.queued.is_some() => Phase::Starting,
            (Life::Working, None, None, None) => Phase::Idle,
        }
    }

    /// The process that serves, its release, and since when it is ready.
    pub fn serving(&self) -> Option<(Generation, &ReleaseRef, u64)> {
        let serving = self.serving.as_ref()?;
        Some((serving.generation, &serving.job.release, serving.ready_at_ms))
    }

    /// The release that serves, or else the one that will.
    pub fn release(&self) -> Option<&ReleaseRef> {
        let serving = self.serving.as_ref().map(|serving| &serving.job);
        let starting = self.starting.as_ref().map(|starting| &starting.job);
        let queued = self.queued.as_ref().map(|queued| &queued.job);
        serving.or(starting).or(queued).or(self.wanted.as_ref()).map(|job| &job.release)
    }

    /// The process that starts.
    pub fn starting(&self) -> Option<Generation> {
        self.starting.as_ref().map(|starting| starting.generation)
    }

    /// The releases that run, start, or may be started again: whatever they need must be kept.
    pub fn releases_in_use(&self) -> impl Iterator<Item = &ReleaseRef> {
        let serving = self.serving.as_ref().map(|serving| &serving.job);
        let starting = self.starting.as_ref().map(|starting| &starting.job);
        let queued = self.queued.as_ref().map(|queued| &queued.job);
        [serving, starting, queued, self.wanted.as_ref()].into_iter().flatten().map(|job| &job.release)
    }

    /// How many processes drain.
    pub fn draining(&self) -> usize {
        self.draining.len()
    }

    /// The longest time until everything that serves or drains now could be gone, in milliseconds.
    pub fn drained_within_ms(&self, now_ms: u64) -> u64 {
        let draining = self.draining.iter().filter_map(|draining| draining.kill_at_ms);
        let serving = self.serving.as_ref().map(|serving| serving.job.drain_timeout_ms);
        draining.map(|at| at.saturating_sub(now_ms)).chain(serving).max().unwrap_or_default()
    }

    /// The longest time until it is decided whether what starts or waits to be started is ready, in milliseconds.
    pub fn decided_within_ms(&self, now_ms: u64) -> u64 {
        let starting = self.starting.as_ref().map(|starting| starting.deadline_ms().saturating_sub(now_ms));
        let queued = self.queued.as_ref();
        let queued =
            queued.map(|queued| self.drained_within_ms(now_ms).saturating_add(queued.job.decided_after_ms()));
        starting.into_iter().chain(queued).max().unwrap_or_default()
    }

    /// Whether it starts nothing more, because it was told to end.
    pub fn is_ending(&self) -> bool {
        self.life != Life::Working
    }

    /// Restarts since something was last asked for.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether somebody waits for an answer.
    pub fn is_awaited(&self) -> bool {
        !self.activating.is_empty() || !self.deactivating.is_empty()
    }

    /// Takes over other settings; waits that have begun stay.
    pub fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    fn boot(&mut self, now_ms: u64, job: Job, actions: &mut Vec<Action>) {
        if self.life == Life::Working && self.release().is_none() {
            self.wanted = Some(job.clone());
            self.start(now_ms, now_ms, job, Cause::Restart, actions);
        }
    }

    fn activate(
        &mut self,
        now_ms: u64,
        request: Request,
        job: Job,
        earlier: Earlier,
        actions: &mut Vec<Action>,
    ) {
        if self.is_ending() {
            actions.push(Action::Answer { request, answer: Answer::Ending });
            return;
        }
        let superseded = Answer::Superseded { by: Some(job.release.clone()) };
        answer_all(&mut self.deactivating, &superseded, actions);
        let is_good = earlier == Earlier::Good;
        let coming = self.starting.as_ref().map(|starting| &starting.job).filter(|_| is_good);
        let coming = coming.or(self.queued.as_ref().map(|queued| &queued.job));
        if coming.is_some_and(|coming| coming.release == job.release) {
            self.activating.push(request);
            return;
        }
        self.give_up_starting(Some(&job.release), actions);
        let same = |serving: &&mut Serving| is_good && serving.job.release == job.release;
        if let Some(serving) = self.serving.as_mut().filter(same) {
            serving.job = job.clone();
            self.wanted = Some(job);
            actions.push(Action::Answer { request, answer: Answer::Already(serving.generation) });
            return;
        }
        self.restart_at_ms = None;
        self.activating.push(request);
        self.start_or_queue(now_ms, job, Cause::Asked, actions);
    }

    fn deactivate(&mut self, now_ms: u64, request: Request, actions: &mut Vec<Action>) {
        if self.is_ending() {
            actions.push(Action::Answer { request, answer: Answer::Ending });
            return;
        }
        self.deactivating.push(request);
        self.give_up_starting(None, actions);
        self.drain_serving(now_ms, actions);
        self.wanted = None;
        self.restart_at_ms = None;
        self.crashes = 0;
        self.restarts = 0;
    }

    fn stop(&mut self, now_ms: u64, request: Option<Request>, actions: &mut Vec<Action>) {
        self.deactivating.extend(request);
        match self.life {
            Life::Working => {
                self.life = Life::Ending;
                self.give_up_starting(None, actions);
                self.drain_serving(now_ms, actions);
                self.wanted = None;
                self.restart_at_ms = None;
            }
            Life::Ending => {
                for draining in &mut self.draining {
                    if draining.kill_at_ms.take().is_some() {
                        actions.push(Action::Kill(draining.generation));
                    }
                }
            }
            Life::Ended => {}
        }
    }

    fn start_or_queue(&mut self, now_ms: u64, job: Job, cause: Cause, actions: &mut Vec<Action>) {
        match job.overlap {
            Overlap::Allowed => self.start(now_ms, now_ms, job, cause, actions),
            Overlap::Never => {
                self.drain_serving(now_ms, actions);
                self.queued = Some(Queued { job, cause, asked_at_ms: now_ms });
            }
        }
    }

    fn start(&mut self, now_ms: u64, asked_at_ms: u64, job: Job, cause: Cause, actions: &mut Vec<Action>) {
        debug_assert!(self.starting.is_none() && self.queued.is_none(), "one start at a time");
        let generation = Generation(self.next_generation);
        self.next_generation += 1;
        actions.push(Action::Start { generation, job: job.clone() });
        self.starting = Some(Starting { generation, job, cause, asked_at_ms, started_at_ms: now_ms });
    }

    fn became_ready(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(Starting { generation, job, cause, asked_at_ms, started_at_ms: _ }) = self.starting.take()
        else {
            return;
        };
        let replaced = self.serving.as_ref().map(|serving| serving.generation);
        self.drain_serving(now_ms, actions);
        self.wanted = Some(job.clone());
        self.serving = Some(Serving { generation, job, ready_at_ms: now_ms });
        match cause {
            Cause::Asked => (self.crashes, self.restarts) = (0, 0),
            Cause::Restart => {}
        }
        let ready_ms = now_ms.saturating_sub(asked_at_ms);
        let answer = Answer::Ready { generation, replaced, ready_ms };
        answer_all(&mut self.activating, &answer, actions);
    }

    fn exited(&mut self, now_ms: u64, generation: Generation, how: &str, actions: &mut Vec<Action>) {
        self.draining.retain(|draining| draining.generation != generation);
        if self.starting() == Some(generation) {
            self.failed_to_start(now_ms, format!("it {how} before it was ready"), actions);
        } else if let Some(serving) = self.serving.take_if(|serving| serving.generation == generation) {
            if now_ms.saturating_sub(serving.ready_at_ms) >= self.policy.stable_after_ms {
                self.crashes = 0;
            }
            // What is starting will serve in its place; without it, the same is started again.
            if self.starting.is_none() {
                self.back_off(now_ms);
            }
        }
    }

    fn failed_to_start(&mut self, now_ms: u64, reason: String, actions: &mut Vec<Action>) {
        let Some(Starting { job, .. }) = self.starting.take() else { return };
        let answer = Answer::NotReady { release: job.release.clone(), reason };
        answer_all(&mut self.activating, &answer, actions);
        if self.serving.is_none() {
            // Nothing else serves, so what was asked for last is tried again until somebody asks for something else.
            self.wanted = Some(job);
            self.back_off(now_ms);
        }
    }

    fn back_off(&mut self, now_ms: u64) {
        self.crashes = self.crashes.saturating_add(1);
        self.restart_at_ms = Some(now_ms.saturating_add(self.policy.delay_ms(self.crashes)));
    }

    fn tick(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        for draining in &mut self.draining {
            if draining.kill_at_ms.take_if(|at| *at <= now_ms).is_some() {
                actions.push(Action::Kill(draining.generation));
            }
        }
        if let Some(starting) = self.starting.as_ref().filter(|starting| starting.deadline_ms() <= now_ms) {
            match starting.job.ready {
                Ready::Running => self.became_ready(now_ms, actions),
                Ready::Notify => {
                    let reason = format!("it was not ready after {} ms", starting.job.ready_timeout_ms);
                    self.kill_starting(actions);
                    self.failed_to_start(now_ms, reason, actions);
                }
            }
        }
        if self.restart_at_ms.take_if(|at| *at <= now_ms).is_some()
            && let Some(job) = self.wanted.clone()
        {
            self.restarts = self.restarts.saturating_add(1);
            self.start_or_queue(now_ms, job, Cause::Restart, actions);
        }
    }

    /// Ends what is starting or queued, because `by` is wanted instead.
    fn give_up_starting(&mut self, by: Option<&ReleaseRef>, actions: &mut Vec<Action>) {
        self.kill_starting(actions);
        self.starting = None;
        self.queued = None;
        answer_all(&mut self.activating, &Answer::Superseded { by: by.cloned() }, actions);
    }

    /// Kills what is starting; it stays among the draining until it is gone.
    fn kill_starting(&mut self, actions: &mut Vec<Action>) {
        if let Some(starting) = &self.starting {
            actions.push(Action::Kill(starting.generation));
            self.draining.push(Draining { generation: starting.generation, kill_at_ms: None });
        }
    }

    fn drain_serving(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if let Some(serving) = self.serving.take() {
            actions.push(Action::Terminate(serving.generation));
            let kill_at_ms = Some(now_ms.saturating_add(serving.job.drain_timeout_ms));
            self.draining.push(Draining { generation: serving.generation, kill_at_ms });
        }
    }

    /// What had to wait for the last process to end.
    fn when_all_are_gone(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.serving.is_some() || self.starting.is_some() || !self.draining.is_empty() {
            return;
        }
        answer_all(&mut self.deactivating, &Answer::Stopped, actions);
        match self.life {
            Life::Working => {
                if let Some(Queued { job, cause, asked_at_ms }) = self.queued.take() {
                    self.start(now_ms, asked_at_ms, job, cause, actions);
                }
            }
            Life::Ending => {
                self.life = Life::Ended;
                actions.push(Action::Finish);
            }
            Life::Ended => {}
        }
    }
}

fn answer_all(requests: &mut Vec<Request>, answer: &Answer, actions: &mut Vec<Action>) {
    let answer = |request| Action::Answer { request, answer: answer.clone() };
    actions.extend(std::mem::take(requests).into_iter().map(answer));
}

#[cfg(test)]
mod tests;
