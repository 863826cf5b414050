//! What goes on beside a run: the sign of life of whoever holds the lease, and other threads that end with it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::Thread,
    time::{Duration, Instant},
};

use crate::state::{
    lease,
    sql::{Sql, in_transaction},
};

/// Runs `work` while `heart`, a connection of its own, renews the lease.
pub(super) fn beating<T>(
    mut heart: Box<dyn Sql + Send>,
    epoch: u64,
    lease_ms: u64,
    work: impl FnOnce() -> T,
) -> T {
    beside(|stop| beat(&mut *heart, epoch, lease_ms, stop), work)
}

/// Runs `work` while `other` runs on a thread of its own, until it is told to stop; it may park.
pub(super) fn beside<T>(other: impl FnOnce(&AtomicBool) + Send, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| other(&stop)).thread().clone();
        // Also when `work` panics: the scope waits for the other thread.
        let _stops = Stops { stop: &stop, thread };
        work()
    })
}

/// Stops the other thread when it is dropped.
struct Stops<'s> {
    stop: &'s AtomicBool,
    thread: Thread,
}

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

fn beat(heart: &mut dyn Sql, epoch: u64, lease_ms: u64, stop: &AtomicBool) {
    let every = Duration::from_millis(lease_ms / 3);
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(every.saturating_sub(last.elapsed()));
        if last.elapsed() >= every {
            // What this cannot renew, the next transaction's fence will tell.
            let _ = in_transaction(heart, |sql| lease::renew(sql, epoch, lease_ms));
            last = Instant::now();
        }
    }
}
