//! Between chunks: wishes of operators, the rate, the throttle, and the probe that measures what clients feel.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    engine::{ChunkDone, Go, Pace, Task, Watch},
    error::Error,
    ir::{Dialect, Ident, Migration},
    plan::Plan,
    postgres::has_company,
    state::{self, Phase, record, sql::Sql},
    throttle::{Measured, Throttle, wait_for_rate},
};

/// How often wishes are read.
const WISHES_EVERY: Duration = Duration::from_millis(50);
/// How often we look for clients at work.
const COMPANY_EVERY: Duration = Duration::from_millis(500);
/// How often the probe writes.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// How many measurements of the probe are kept.
const KEPT: usize = 4096;
/// How much longer a copier stays out of SQLite than it was in: waiting writers poll, and find the lock free only then.
const STAY_OUT: u32 = 2;

/// What the probe measured.
#[derive(Debug, Default)]
pub(super) struct Probed {
    latencies: Mutex<Vec<Duration>>,
}

impl Probed {
    fn add(&self, latency: Duration) {
        if let Ok(mut latencies) = self.latencies.lock() {
            if latencies.len() == KEPT {
                latencies.remove(0);
            }
            latencies.push(latency);
        }
    }

    fn last(&self) -> Option<Duration> {
        // A median, as the baseline is: one slow answer in five is what a busy disk gives without us too.
        let mut last: Vec<Duration> = self.latencies.lock().ok()?.iter().rev().take(5).copied().collect();
        last.sort_unstable();
        last.get(last.len() / 2).copied()
    }

    /// The 99th percentile of what is kept.
    pub(super) fn p99(&self) -> Option<Duration> {
        let mut sorted = self.latencies.lock().ok()?.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * 99 / 100).copied()
    }

    /// Waits for a few measurements and takes their median as what clients see without us; then forgets them.
    pub(super) fn baseline(&self, patience_ms: u64) -> Option<Duration> {
        let started = Instant::now();
        let patience = Duration::from_millis(patience_ms.max(200));
        loop {
            let mut sorted = self.latencies.lock().ok()?.clone();
            if sorted.len() >= 5 || started.elapsed() > patience {
                self.latencies.lock().ok()?.clear();
                sorted.sort_unstable();
                return sorted.get(sorted.len() / 2).copied();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The probe: a client of its own that writes one small row again and again.
pub(super) fn probe(sql: &mut dyn Sql, stop: &AtomicBool, probed: &Probed) {
    let probe = state::table(sql.dialect(), "probe");
    let update = format!("UPDATE {probe} SET beat = beat + 1 WHERE one = 1");
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        if sql.execute(&update, &[]).is_ok() {
            probed.add(started.elapsed());
        }
        std::thread::park_timeout(PROBE_EVERY);
    }
}

/// What a run obeys between chunks and at the swap: the deadline of its migration, and what operators ask for.
pub(super) struct Orders<'r> {
    task: &'r str,
    watch: &'r dyn Watch,
    deadline: Option<Duration>,
    started: Instant,
}

impl<'r> Orders<'r> {
    pub(super) fn new(task: &Task<'r>, migration: &Migration, started: Instant) -> Self {
        let deadline = migration.run.deadline_s.map(Duration::from_secs);
        Self { task: task.migration, watch: task.watch, deadline, started }
    }

    /// The rate that is asked for; waits while paused, and fails when cancelled or late.
    pub(super) fn obey(&self, sql: &mut dyn Sql, phase: Phase) -> Result<Option<u64>, Error> {
        let mut said = false;
        loop {
            if let Some(deadline) = self.deadline
                && self.started.elapsed() > deadline
            {
                return Err(Error::Deadline { seconds: deadline.as_secs(), phase });
            }
            let wishes = record::wishes_of(sql, self.task)?;
            if wishes.cancelled {
                return Err(Error::Cancelled);
            }
            if !wishes.paused {
                return Ok(wishes.rate);
            }
            if !said {
                self.watch.says("paused");
                self.watch.point("paused");
                said = true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

struct Inner {
    phase: Phase,
    throttle: Throttle,
    /// Whether clients were at work when we looked last; PostgreSQL only.
    company: bool,
    looked: Option<Instant>,
    done: u64,
    since: Instant,
    asked: Option<Instant>,
    rate: Option<u64>,
}

/// The pace of one run.
pub(super) struct Pacer<'r> {
    plan: &'r Plan,
    watch: &'r dyn Watch,
    orders: Orders<'r>,
    hold: Duration,
    probed: &'r Probed,
    inner: Mutex<Inner>,
}

impl<'r> Pacer<'r> {
    pub(super) fn new(
        task: &Task<'r>,
        migration: &Migration,
        plan: &'r Plan,
        probed: &'r Probed,
        baseline: Option<Duration>,
        started: Instant,
    ) -> Self {
        let mut throttle = Throttle::new(task.policy.chunk_rows, Duration::from_millis(task.policy.hold_ms));
        if let Some(baseline) = baseline {
            throttle.set_baseline(baseline);
        }
        Self {
            plan,
            watch: task.watch,
            orders: Orders::new(task, migration, started),
            hold: Duration::from_millis(task.policy.hold_ms),
            probed,
            inner: Mutex::new(Inner {
                phase: Phase::Idle,
                throttle,
                company: plan.dialect == Dialect::Postgres,
                looked: None,
                done: 0,
                since: Instant::now(),
                asked: None,
                rate: migration.run.rate,
            }),
        }
    }

    /// A phase begins: rows are counted anew.
    pub(super) fn enter(&self, phase: Phase) -> Result<(), Error> {
        let mut inner = self.inner.lock().map_err(|_| Error::Cancelled)?;
        (inner.phase, inner.done, inner.since) = (phase, 0, Instant::now());
        Ok(())
    }

    /// Obeys what is asked for now.
    pub(super) fn check(&self, sql: &mut dyn Sql) -> Result<Option<u64>, Error> {
        let phase = self.inner.lock().map_err(|_| Error::Cancelled)?.phase;
        self.orders.obey(sql, phase)
    }
}

impl Pacer<'_> {
    /// Asks now and then whether others are at work. SQLite cannot be asked.
    fn look_for_company(&self, sql: &mut dyn Sql) -> Result<(), Error> {
        if self.plan.dialect != Dialect::Postgres {
            return Ok(());
        }
        {
            let mut inner = self.inner.lock().map_err(|_| Error::Cancelled)?;
            if inner.looked.is_some_and(|looked| looked.elapsed() < COMPANY_EVERY) {
                return Ok(());
            }
            inner.looked = Some(Instant::now());
        }
        let company = has_company(sql)?;
        self.inner.lock().map_err(|_| Error::Cancelled)?.company = company;
        Ok(())
    }
}

impl Pace for Pacer<'_> {
    fn obey(&self, sql: &mut dyn Sql) -> Result<(), Error> {
        self.check(sql).map(drop)
    }

    fn between(&self, sql: &mut dyn Sql, table: &Ident, done: &ChunkDone) -> Result<Go, Error> {
        let due = {
            let inner = self.inner.lock().map_err(|_| Error::Cancelled)?;
            inner.asked.is_none_or(|asked| asked.elapsed() >= WISHES_EVERY)
        };
        if due {
            let rate = self.check(sql)?;
            let mut inner = self.inner.lock().map_err(|_| Error::Cancelled)?;
            inner.asked = Some(Instant::now());
            if rate != inner.rate {
                inner.rate = rate;
                inner.done = 0;
                inner.since = Instant::now();
            }
        }
        self.look_for_company(sql)?;
        let held = Duration::from_micros(done.held_us);
        let (go, pause, total) = {
            let mut inner = self.inner.lock().map_err(|_| Error::Cancelled)?;
            inner.done += done.seen;
            // The rate is one of writing.
            let rate = inner.rate.filter(|_| inner.phase != Phase::ConsistencyCheck);
            let measured = Measured {
                rows: done.seen,
                held: held.max(Duration::from_micros(done.took_us)),
                probe: self.probed.last(),
                waited: Duration::from_micros(done.waited_us),
                company: inner.company,
            };
            let mut pause = inner.throttle.observe(measured);
            if self.plan.dialect == Dialect::Sqlite {
                pause = pause.max(held * STAY_OUT);
            }
            let pause = pause.max(wait_for_rate(inner.done, inner.since.elapsed(), rate));
            let workers = if inner.company { 1 } else { usize::MAX };
            // A rate is kept chunk by chunk.
            let budget = if rate.is_some() { Duration::ZERO } else { self.hold };
            (Go { rows: inner.throttle.rows(), workers, budget }, pause, inner.done)
        };
        self.watch.progress(table, total, self.plan.rows);
        // In slices, so that a wish is obeyed while a low rate makes it wait long.
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::sleep(left.min(Duration::from_millis(100)));
            if left > Duration::from_millis(200) {
                let rate = self.check(sql)?;
                if self.inner.lock().map_err(|_| Error::Cancelled)?.rate != rate {
                    break;
                }
            }
        }
        Ok(go)
    }
}
