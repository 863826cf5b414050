//! The known commits, kept fresh beside the requests.
//!
//! One thread reads the source once per TTL; requests only ever look at the set at hand, so none waits for git, and there is
//! never more than one git (gate-3, gate-6). A failure keeps the last good set.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cutover_core::{
    admission::{Claim, Freshness, Known, Refusal, Switch, decide, freshness},
    causes::chain,
};

use super::{Ages, Source, SourceError};

/// After this long, a failure that is still the same is logged again.
const REPEAT: Duration = Duration::from_secs(60);

/// A yes.
pub use cutover_core::admission::Admitted;

/// What is judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What the operator says about the gate as a whole.
    pub switch: Switch,
    /// Where known commits come from; `None` only while nothing is judged.
    pub source: Option<Arc<dyn Source>>,
    /// How old a set may get.
    pub ages: Ages,
}

/// The gate: says yes or no to a claim, from whatever is known at the moment.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    refresher: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    rules: RwLock<Rules>,
    set: RwLock<Option<Set>>,
    wake: (Mutex<Wake>, Condvar),
    /// How many times the source was read, and how many of them failed.
    reads: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone, Debug)]
struct Set {
    known: Arc<Known>,
    read_at: Instant,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Wake {
    /// Read the source now, whatever the age of the set.
    now: bool,
    stop: bool,
}

/// What is known at the moment, for status pages.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the operator says.
    pub switch: Switch,
    /// The set, if there is one.
    pub known: Option<Arc<Known>>,
    /// How long ago it was read.
    pub age: Option<Duration>,
    /// Whether it may be judged by.
    pub freshness: Freshness,
    /// How many times the source was read.
    pub reads: u64,
    /// How many of them failed.
    pub failures: u64,
}

impl Gate {
    /// Starts reading the source. The first set comes when it comes: until then nothing is admitted (I7).
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(rules: Rules) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            rules: RwLock::new(rules),
            set: RwLock::new(None),
            wake: (Mutex::new(Wake::default()), Condvar::new()),
            reads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&shared);
        let refresher =
            std::thread::Builder::new().name("gate".to_owned()).spawn(move || for_thread.keep_fresh())?;
        Ok(Self { shared, refresher: Mutex::new(Some(refresher)) })
    }

    /// Waits until a set is there, but not longer than this. Says whether one is.
    pub fn wait_for_first(&self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        loop {
            let rules = read(&self.shared.rules);
            if rules.source.is_none() || read(&self.shared.set).is_some() {
                return true;
            }
            drop(rules);
            if Instant::now() >= deadline || self.shared.failures.load(Ordering::Relaxed) > 0 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Judges a claim. Never waits for the source.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn decide(&self, claim: Claim) -> Result<Admitted, Refusal> {
        let rules = read(&self.shared.rules);
        let set = read(&self.shared.set);
        let usable = set.as_ref().filter(|set| rules.ages.of(set.read_at.elapsed()) != Freshness::TooOld);
        decide(rules.switch, usable.map(|set| &set.known), claim)
    }

    /// The set at hand, if there is one, however old.
    pub fn known(&self) -> Option<Arc<Known>> {
        read(&self.shared.set).as_ref().map(|set| Arc::clone(&set.known))
    }

    /// Replaces what is judged by. The set at hand stays until the new source has been read, unless the source says that it
    /// is another one.
    pub fn set_rules(&self, rules: Rules) {
        let same = {
            let old = read(&self.shared.rules);
            match (&old.source, &rules.source) {
                (Some(old), Some(new)) => old.describes() == new.describes(),
                (None, None) => true,
                _ => false,
            }
        };
        *self.shared.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        if !same {
            *self.shared.set.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.refresh();
    }

    /// Has the source read at once.
    pub fn refresh(&self) {
        lock(&self.shared.wake.0).now = true;
        self.shared.wake.1.notify_all();
    }

    /// What is known at the moment.
    pub fn status(&self) -> Status {
        let rules = read(&self.shared.rules);
        let set = read(&self.shared.set).clone();
        let age = set.as_ref().map(|set| set.read_at.elapsed());
        Status {
            switch: rules.switch,
            freshness: freshness(age, rules.ages.ttl, rules.ages.max_stale),
            known: set.map(|set| set.known),
            age,
            reads: self.shared.reads.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        lock(&self.shared.wake.0).stop = true;
        self.shared.wake.1.notify_all();
        // It may be waiting for git, which has its own limit; nobody needs to wait for both.
        drop(lock(&self.refresher).take());
    }
}

impl Shared {
    fn keep_fresh(&self) {
        let mut last: Option<(String, Instant)> = None;
        loop {
            let rules = read(&self.rules).clone();
            let started = Instant::now();
            if let Some(source) = &rules.source {
                let answer = source.read();
                self.reads.fetch_add(1, Ordering::Relaxed);
                match answer {
                    Ok(known) => self.take(&rules, known, started, last.take().is_some()),
                    Err(error) => {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        tell(&error, &mut last);
                    }
                }
            }
            // A little earlier than demanded, so that no set in use is ever older than its TTL while git answers.
            if self.rest(rules.ages.ttl.mul_f32(0.9), started) == Next::Stop {
                return;
            }
        }
    }

    /// Takes a new set, unless the source has been replaced meanwhile.
    fn take(&self, rules: &Rules, known: Known, read_at: Instant, failed_before: bool) {
        let now = read(&self.rules);
        let same = matches!((&now.source, &rules.source), (Some(now), Some(then)) if Arc::ptr_eq(now, then));
        if !same {
            return;
        }
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let head_before = set.as_ref().map(|set| set.known.head().clone());
        if failed_before || head_before.as_ref() != Some(known.head()) {
            tracing::info!(head = %known.head(), commits = known.len(), "the accepted commits were read");
        }
        // From when the source was asked, not from when it answered: what landed meanwhile may not be in it.
        *set = Some(Set { known: Arc::new(known), read_at });
    }

    /// Waits until the set is older than the TTL, or somebody asks.
    fn rest(&self, ttl: Duration, since: Instant) -> Next {
        let mut wake = lock(&self.wake.0);
        loop {
            if wake.stop {
                return Next::Stop;
            }
            if std::mem::take(&mut wake.now) {
                return Next::Read;
            }
            let left = ttl.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Next::Read;
            }
            wake = self.wake.1.wait_timeout(wake, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    Read,
    Stop,
}

/// Logs a failure when it is new, and again after a while.
fn tell(error: &SourceError, last: &mut Option<(String, Instant)>) {
    let text = chain(error);
    if last.as_ref().is_none_or(|(told, at)| *told != text || at.elapsed() >= REPEAT) {
        tracing::error!(
            "the accepted commits cannot be read; the last set is kept while it is not too old: {text}"
        );
        *last = Some((text, Instant::now()));
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
