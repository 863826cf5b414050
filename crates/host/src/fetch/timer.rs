//! The timer port: waits that tests do not sit out.

use std::{
    future::Future,
    pin::Pin,
    sync::Mutex,
    time::{Duration, Instant},
};

use cutover_core::fetch::throttle::Bucket;

/// Waits for retries and for the bandwidth limit.
pub trait Timer: Send + Sync {
    /// The time since any fixed moment.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, wait: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct RealTimer(Instant);

impl RealTimer {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Timer for RealTimer {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, wait: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(wait))
    }
}

/// The bandwidth limit of all connections.
pub(crate) struct Limiter(Option<(u64, Mutex<Bucket>)>);

impl Limiter {
    /// `bytes_per_s` of 0 is no limit.
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self((bytes_per_s > 0).then(|| (bytes_per_s, Mutex::new(Bucket::new(bytes_per_s)))))
    }

    /// The limit, if there is one.
    pub(crate) fn bytes_per_s(&self) -> Option<u64> {
        self.0.as_ref().map(|(rate, _)| *rate)
    }

    /// Takes `bytes` and says how long to wait before using them.
    pub(crate) fn wait(&self, timer: &dyn Timer, bytes: u64) -> Duration {
        let Some((_, bucket)) = &self.0 else { return Duration::ZERO };
        bucket.lock().expect("no holder panics").take(timer.now(), bytes)
    }

    /// Waits until `bytes` may be used, and says how long that was.
    pub(super) async fn take(&self, timer: &dyn Timer, bytes: u64) -> Duration {
        let wait = self.wait(timer, bytes);
        if !wait.is_zero() {
            timer.sleep(wait).await;
        }
        wait
    }
}
