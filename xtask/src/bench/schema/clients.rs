//! Clients of ours: threads that send statements at fixed times and log how long each took.
//!
//! Times are fixed in advance, so that a stall is not hidden by the statements that it kept from being sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::measure::{Sample, ms, now_s};

/// One client: sends one statement.
pub(super) type Client = Box<dyn FnMut() -> Result<()> + Send>;

/// What clients logged.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) samples: Vec<Sample>,
    /// Statements that the database refused. A migration may not fail the application: there should be none.
    pub(super) failures: u64,
    /// What it said to the first of them.
    pub(super) first_failure: Option<String>,
}

impl Log {
    /// Failures in words, for a table; empty when there were none.
    pub(super) fn says(&self) -> String {
        match &self.first_failure {
            Some(first) => format!("{} statements of clients failed: {first}", self.failures),
            None => String::new(),
        }
    }

    fn add(&mut self, other: Log) {
        self.samples.extend(other.samples);
        self.failures += other.failures;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }
}

/// Clients under way. They stop when this is dropped.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Log>>,
}

impl Clients {
    /// Starts one thread for each client; together they send so many statements per second.
    pub(super) fn start(clients: Vec<Client>, per_second: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = clients.len() as u32;
        let step = Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX);
        let first = Instant::now();
        let threads = clients.into_iter().enumerate().map(|(number, client)| {
            let stop = stop.clone();
            let first = first + step * number as u32;
            std::thread::spawn(move || paced(client, first, step * count, &stop))
        });
        Self { threads: threads.collect(), stop }
    }

    /// Gives them time for what was due meanwhile, and lets each finish its statement.
    pub(super) fn stop(mut self) -> Result<Log> {
        std::thread::sleep(Duration::from_millis(500));
        self.stop.store(true, Ordering::SeqCst);
        let mut log = Log::default();
        for thread in self.threads.drain(..) {
            log.add(thread.join().map_err(|_| anyhow!("a client panicked"))?);
        }
        Ok(log)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn paced(mut client: Client, first: Instant, step: Duration, stop: &AtomicBool) -> Log {
    let mut log = Log::default();
    let mut due = first;
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let started = Instant::now();
        let result = client();
        let ended = Instant::now();
        match result {
            Ok(()) => log.samples.push(Sample {
                ended_s: now_s(),
                took_ms: ms(ended - started),
                due_ms: ms(ended - due),
            }),
            Err(error) => {
                log.failures += 1;
                log.first_failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        due += step;
    }
    log
}
