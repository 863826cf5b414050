//! When an episode is tried again.

use std::time::Duration;

use crate::fetch::retry::RetryPolicy;

/// After this many failures in a row an episode lets newer ones of its stream pass. (I13)
pub const PASS_AFTER: u32 = 5;
/// This many times the receiver may say that the bytes are not those of the digest; then the episode is parked.
pub const DIGEST_TRIES_MAX: u32 = 3;
/// What a receiver asks for is honoured up to this; a longer one is a mistake.
const ASKED_MAX: Duration = Duration::from_secs(24 * 3600);

/// The waits between tries: there is no limit on their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure; it doubles with each further one.
    pub first: Duration,
    /// The longest wait that is not asked for.
    pub longest: Duration,
}

impl Default for Backoff {
    /// 1 s, doubling to 300 s.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row (1 for the first), when the receiver asked for `asked`: between half of the
    /// exponential wait and all of it, and never less than what was asked for, up to a day. `seed` spreads the hosts and
    /// episodes, those that were told one time too.
    pub fn wait(&self, failures: u32, asked: Option<Duration>, seed: u64) -> Duration {
        let policy = RetryPolicy { retries_max: u32::MAX, first: self.first, longest: self.longest };
        let own = policy.wait(failures.max(1), seed);
        let least = own / 8;
        asked.map_or(own, |asked| own.max(asked.min(ASKED_MAX) + least))
    }
}

/// Whether the receiver can be reached at all. While it cannot, one try at a time is made for everybody: its queue is not
/// run through against a closed door.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    failures: u32,
    until: Duration,
}

impl Reach {
    /// A try got an answer, whatever it was.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// A try did not get through at `now` (since any fixed time).
    pub fn failed(&mut self, now: Duration, backoff: &Backoff, seed: u64) {
        self.failures = self.failures.saturating_add(1);
        self.until = now + backoff.wait(self.failures, None, seed);
    }

    /// How many episodes may be under way now, of `limit`.
    pub fn in_flight_max(&self, now: Duration, limit: usize) -> usize {
        match self.failures {
            0 => limit,
            _ if now < self.until => 0,
            _ => 1,
        }
    }

    /// When the next try is due, if tries are held back.
    pub fn due(&self) -> Option<Duration> {
        (self.failures > 0).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_from_one_second_to_five_minutes() {
        let backoff = Backoff::default();
        for (failures, whole_s) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (11, 300), (u32::MAX, 300)] {
            let wait = backoff.wait(failures, None, 7);
            let whole = Duration::from_secs(whole_s);
            assert!(wait >= whole / 2 && wait <= whole, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn asked_for_wait_is_never_cut_short_and_an_absurd_one_is_a_day() {
        let backoff = Backoff::default();
        for seed in 0..100 {
            let asked = Duration::from_secs(7200);
            let wait = backoff.wait(1, Some(asked), seed);
            assert!(wait >= asked && wait < asked + Duration::from_secs(300));
            assert!(backoff.wait(1, Some(Duration::ZERO), seed) >= Duration::from_millis(500));
            assert!(backoff.wait(1, Some(Duration::MAX), seed) < Duration::from_secs(25 * 3600));
        }
    }

    #[test]
    fn unreachable_receiver_gets_one_try_at_a_time() {
        let backoff = Backoff::default();
        let mut reach = Reach::default();
        let at = Duration::from_secs;
        assert_eq!(reach.in_flight_max(at(0), 4), 4);
        for _ in 0..4 {
            reach.failed(at(10), &backoff, 1);
        }
        assert_eq!(reach.in_flight_max(at(11), 4), 0);
        assert!(reach.due().unwrap() <= at(18));
        assert_eq!(reach.in_flight_max(at(18), 4), 1);
        reach.answered();
        assert_eq!((reach.in_flight_max(at(18), 4), reach.due()), (4, None));
    }

    proptest! {
        #[test]
        fn nothing_asked_for_overflows(failures: u32, asked: Option<u64>, seed: u64) {
            let asked = asked.map(Duration::from_millis);
            let wait = Backoff::default().wait(failures, asked, seed);
            prop_assert!(wait >= asked.unwrap_or_default().min(ASKED_MAX));
        }
    }
}
