//! A bandwidth limit: token-bucket arithmetic on a clock that is given.

use std::time::Duration;

/// A bandwidth limit shared by all connections.
///
/// The virtual-scheduling form of the token bucket (ITU-T I.371, annex A): instead of tokens it keeps the time at which all
/// bytes taken so far would have arrived at exactly the limit. Whoever takes bytes waits until that time, less the burst.
/// From the start to any time `t`, at most `rate * (t + burst)` bytes and the last piece are let through.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    bytes_per_s: u64,
    due: Duration,
}

/// How far the flow may run ahead of the limit: a fiftieth of a second, so that 10 s stay within 1 % of the limit and
/// a busy machine's late timers are made up for.
const BURST: Duration = Duration::from_millis(20);

/// How much idle time may be made up for: late wake-ups, not a minute without requests.
const CREDIT: Duration = Duration::from_millis(250);

impl Bucket {
    /// A limit of `bytes_per_s`, which is at least 1.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), due: Duration::ZERO }
    }

    /// Takes `bytes` at `now` (since any fixed time) and says how long to wait before using them.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        self.due = self.due.max(now.saturating_sub(CREDIT)) + self.time_of(bytes);
        self.due.saturating_sub(now + BURST)
    }

    fn time_of(&self, bytes: u64) -> Duration {
        // Rounded up, so that many small pieces add up to no more than the limit.
        let nanoseconds = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_s));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // W19
    #[test]
    fn five_megabytes_over_four_connections_at_one_megabyte_per_second_take_five_seconds() {
        let mut bucket = Bucket::new(1_000_000);
        let mut clocks = [Duration::ZERO; 4];
        for piece in 0..500 {
            let clock = &mut clocks[piece % 4];
            *clock += bucket.take(*clock, 10_000);
        }
        let end = clocks.into_iter().max().unwrap();
        assert!(end >= Duration::from_millis(4900) && end <= Duration::from_millis(5000), "{end:?}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut bucket = Bucket::new(1000);
        bucket.take(Duration::ZERO, 100);
        let late = Duration::from_secs(3600);
        assert!(bucket.take(late, 1000) >= Duration::from_millis(700));
    }

    #[test]
    fn no_rate_divides_by_zero_and_no_size_overflows() {
        let mut bucket = Bucket::new(0);
        assert!(bucket.take(Duration::ZERO, u64::from(u32::MAX)) > Duration::from_secs(1 << 31));
        assert!(Bucket::new(u64::MAX).take(Duration::ZERO, u64::MAX) <= Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_and_never_less_when_busy(
            rate in 10_000u64..100_000_000,
            pieces in prop::collection::vec((1u64..200_000, 0u64..50), 20..300),
        ) {
            let mut bucket = Bucket::new(rate);
            let mut now = Duration::ZERO;
            let mut through = 0u64;
            for (bytes, late_ms) in pieces {
                let wait = bucket.take(now, bytes);
                // Timers fire late, and never early.
                now += wait + if wait.is_zero() { Duration::ZERO } else { Duration::from_millis(late_ms) };
                through += bytes;
                let allowed = (now + BURST).as_secs_f64() * rate as f64;
                prop_assert!(through as f64 <= allowed + 1.0, "{through} > {allowed}");
                // Late timers are made up for: never further behind than one of them and the piece.
                let behind = now.as_secs_f64() - through as f64 / rate as f64;
                prop_assert!(behind <= 0.051, "{behind} s behind");
            }
        }
    }
}
