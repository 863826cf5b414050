//! How large the next chunk is, and how long to stay out before it: a pure decision from what was measured.

use std::time::Duration;

/// What is known after a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Rows of the chunk.
    pub rows: u64,
    /// How long it took: as long as it held its locks, or all of several chunks.
    pub held: Duration,
    /// The latency of the probe, as a client sees it; `None` without a probe, or before its first answer.
    pub probe: Option<Duration>,
    /// How long the chunk waited for locks of clients.
    pub waited: Duration,
    /// Whether clients are at work beside us.
    pub company: bool,
}

/// The state of the throttle.
#[derive(Clone, Debug, PartialEq)]
pub struct Throttle {
    rows: u64,
    rows_first: u64,
    rows_max: u64,
    hold: Duration,
    /// Rows per second of the last chunks: a moving average, so that one slow chunk among fast ones changes little.
    speed: Option<f64>,
    baseline: Option<Duration>,
    backing_off: u32,
}

/// The smallest chunk.
const ROWS_MIN: u64 = 64;
/// The weight of the last chunk in the average speed.
const LAST: f64 = 0.125;
/// In company, chunks last this part of what they may. They follow each other without pauses: one process that works on
/// disturbs clients less than one that keeps waking up among them.
const POLITE: u32 = 50;
/// A probe faster than this is never a reason to slow down: below it the difference is noise of the scheduler, or one flush of
/// the log that waits for another.
const PROBE_FLOOR: Duration = Duration::from_millis(5);

impl Throttle {
    /// Begins with chunks of `rows`; grows to 16 times that; aims at holding locks for `hold`.
    pub fn new(rows: u64, hold: Duration) -> Self {
        Self {
            rows: rows.max(ROWS_MIN),
            rows_first: rows.max(ROWS_MIN),
            rows_max: rows.max(ROWS_MIN) * 16,
            hold,
            speed: None,
            baseline: None,
            backing_off: 0,
        }
    }

    /// Says what latency clients see while nothing is copied.
    pub fn set_baseline(&mut self, probe: Duration) {
        self.baseline = Some(probe);
    }

    /// Rows of the next chunk.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes in a measurement; returns how long to stay out before the next chunk. Over twice the baseline, or after waiting
    /// for clients longer than the hold, the chunk is halved and a pause begins that doubles up to one second; else the chunk
    /// becomes what the hold allows at the speed of the last ones, growing by an eighth at most. Clients at work shorten the
    /// hold, though not to chunks below a quarter of the first. Nothing done is nothing learnt.
    pub fn observe(&mut self, measured: Measured) -> Duration {
        if measured.rows == 0 && measured.waited.is_zero() {
            return Duration::ZERO;
        }
        let limit = self.baseline.map(|baseline| (baseline * 2).max(PROBE_FLOOR));
        let slow = matches!((measured.probe, limit), (Some(probe), Some(limit)) if probe > limit);
        if slow || measured.waited > self.hold {
            self.rows = (self.rows / 2).max(ROWS_MIN);
            self.backing_off = (self.backing_off + 1).min(6);
            return Duration::from_millis(16 << self.backing_off).min(Duration::from_secs(1));
        }
        self.backing_off = self.backing_off.saturating_sub(1);
        let (hold, least) =
            if measured.company { (self.hold / POLITE, self.rows_first / 4) } else { (self.hold, ROWS_MIN) };
        let now = measured.rows as f64 / measured.held.as_secs_f64().max(1e-6);
        let speed = self.speed.map_or(now, |speed| speed + (now - speed) * LAST);
        self.speed = Some(speed);
        let fits = (speed * hold.as_secs_f64()) as u64;
        let grown = self.rows + self.rows / 8;
        self.rows = fits.clamp(least.max(ROWS_MIN).min(grown), grown).min(self.rows_max);
        Duration::ZERO
    }
}

/// How long to wait so that `done` rows in `since` stay below `rate` rows per second.
pub fn wait_for_rate(done: u64, since: Duration, rate: Option<u64>) -> Duration {
    match rate {
        Some(rate) => Duration::from_secs_f64(done as f64 / rate.max(1) as f64).saturating_sub(since),
        None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(50);

    fn measured(rows: u64, held_ms: u64, probe_ms: u64) -> Measured {
        Measured {
            rows,
            held: Duration::from_millis(held_ms),
            probe: Some(Duration::from_millis(probe_ms)),
            waited: Duration::ZERO,
            company: false,
        }
    }

    #[test]
    fn slow_clients_halve_the_chunk_within_two_and_it_recovers_step_by_step() {
        let mut throttle = Throttle::new(1600, HOLD);
        throttle.set_baseline(Duration::from_millis(3));
        let before = throttle.rows();
        assert!(throttle.observe(measured(1600, 10, 7)) > Duration::ZERO);
        assert_eq!(throttle.rows(), before / 2);
        let pause = throttle.observe(measured(800, 10, 9));
        assert!(pause >= Duration::from_millis(64), "{pause:?}");
        assert_eq!(throttle.rows(), before / 4);
        assert_eq!(throttle.observe(measured(400, 10, 3)), Duration::ZERO);
        assert_eq!(throttle.rows(), before / 4 + 50);
    }

    #[test]
    fn long_holds_halve_the_chunk_without_a_pause() {
        let mut throttle = Throttle::new(1000, HOLD);
        assert_eq!(
            throttle.observe(Measured { rows: 1000, held: HOLD * 2, ..Measured::default() }),
            Duration::ZERO
        );
        assert_eq!(throttle.rows(), 500);
    }

    #[test]
    fn clients_at_work_get_short_holds() {
        let mut throttle = Throttle::new(1000, HOLD);
        let chunk = Measured { rows: 1000, held: HOLD / 20, company: true, ..Measured::default() };
        assert_eq!(throttle.observe(chunk), Duration::ZERO);
        assert_eq!(throttle.rows(), 400);
        // Slower still, but small enough already.
        for _ in 0..40 {
            throttle.observe(Measured { rows: 400, held: HOLD, ..chunk });
        }
        assert_eq!(throttle.rows(), 250);
    }

    #[test]
    fn one_slow_chunk_among_fast_ones_changes_little() {
        let mut throttle = Throttle::new(1000, HOLD);
        let fast = Measured { rows: 1000, held: HOLD / 10, ..Measured::default() };
        for _ in 0..40 {
            throttle.observe(fast);
        }
        let before = throttle.rows();
        throttle.observe(Measured { held: HOLD * 4, ..fast });
        assert!(throttle.rows() > before * 3 / 4, "{before} to {}", throttle.rows());
    }

    #[test]
    fn rate_is_kept_over_the_whole_run() {
        let second = Duration::from_secs(1);
        assert_eq!(wait_for_rate(1000, second, Some(500)), second);
        assert_eq!(wait_for_rate(1000, second * 3, Some(500)), Duration::ZERO);
        assert_eq!(wait_for_rate(1000, second, None), Duration::ZERO);
    }
}
