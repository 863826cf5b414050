//! When to try again: exponential waits with jitter, and a count that only progress resets.

use std::time::Duration;

/// How often and how slowly a failed request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Further tries after the first one that brought nothing.
    pub retries_max: u32,
    /// The longest wait before the first retry; it doubles with each further one.
    pub first: Duration,
    /// The longest wait of all. A server that asks for a longer one (`Retry-After`) is not waited for.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    /// Five retries, 0.5 s at first, at most 60 s.
    fn default() -> Self {
        Self { retries_max: 5, first: Duration::from_millis(500), longest: Duration::from_secs(60) }
    }
}

impl RetryPolicy {
    /// The wait before retry number `retry` (1 for the first): between half of the exponential wait and all of it, so that
    /// many nodes that failed together do not come back together. `seed` is the node's; the same seed waits the same.
    pub fn wait(&self, retry: u32, seed: u64) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        let half = whole / 2;
        half + half.mul_f64(share(seed, retry))
    }
}

/// A number of `[0, 1)` that looks random: the output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable
/// Pseudorandom Number Generators, 2014).
fn share(seed: u64, step: u32) -> f64 {
    let mut mixed = seed.wrapping_add(u64::from(step).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    // 53 bits: as many as a float can tell apart.
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

/// What counts as progress: this many bytes further than ever before, or the end. Less would let a server that sends a byte
/// at a time keep us for ever.
const PROGRESS_BYTES: u64 = 64 << 10;

/// The tries of one object at one place.
///
/// At most `retries_max` retries in a row without progress; bytes further than ever before start the count anew. So the
/// number of requests is bounded by `(size / 64 KiB + 1) * (retries_max + 1)`, whatever the server does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    in_vain: u32,
    furthest: u64,
    retries: u32,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this wait.
    After(Duration),
    /// It failed too often.
    GiveUp,
    /// The server wants us to wait longer than the policy allows.
    TooLong,
}

impl Tries {
    /// Takes note of a try that failed when `reached` bytes were there, and says what follows. `asked` is the wait the
    /// server asked for.
    pub fn failed(&mut self, reached: u64, asked: Option<Duration>, policy: &RetryPolicy, seed: u64) -> Next {
        if reached >= self.furthest.saturating_add(PROGRESS_BYTES) {
            self.in_vain = 0;
            self.furthest = reached;
        }
        if asked.is_some_and(|asked| asked > policy.longest) {
            return Next::TooLong;
        }
        if self.in_vain >= policy.retries_max {
            return Next::GiveUp;
        }
        self.in_vain += 1;
        self.retries += 1;
        let own = policy.wait(self.in_vain, seed);
        Next::After(asked.map_or(own, |asked| asked.max(own)))
    }

    /// Says that bytes up to `reached` were there before the first try, so that they are no progress.
    pub fn starting_at(reached: u64) -> Self {
        Self { furthest: reached, ..Self::default() }
    }

    /// How often it was tried again.
    pub fn retries(&self) -> u32 {
        self.retries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy =
        RetryPolicy { retries_max: 2, first: Duration::from_secs(1), longest: Duration::from_secs(10) };

    // W15
    #[test]
    fn two_retries_are_three_tries() {
        let mut tries = Tries::default();
        assert!(matches!(tries.failed(0, None, &POLICY, 1), Next::After(_)));
        assert!(matches!(tries.failed(0, None, &POLICY, 1), Next::After(_)));
        assert_eq!(tries.failed(0, None, &POLICY, 1), Next::GiveUp);
        assert_eq!(tries.retries(), 2);
    }

    #[test]
    fn progress_starts_the_count_anew_and_a_trickle_does_not() {
        let mut tries = Tries::default();
        for step in 1..=20 {
            let next = tries.failed(step * PROGRESS_BYTES, None, &POLICY, 1);
            assert!(matches!(next, Next::After(wait) if wait <= POLICY.first), "{step}: {next:?}");
        }
        let mut tries = Tries::starting_at(1000);
        let trickle = (1..=3).map(|step| tries.failed(1000 + step, None, &POLICY, 1));
        assert_eq!(trickle.last(), Some(Next::GiveUp));
    }

    // W16
    #[test]
    fn the_servers_wait_is_honoured_unless_it_is_absurd() {
        let mut tries = Tries::default();
        let asked = Duration::from_secs(7);
        assert_eq!(tries.failed(0, Some(asked), &POLICY, 1), Next::After(asked));
        assert_eq!(tries.failed(0, Some(Duration::from_secs(86_400)), &POLICY, 1), Next::TooLong);
        let Next::After(wait) = Tries::default().failed(0, Some(Duration::ZERO), &POLICY, 1) else {
            panic!()
        };
        assert!(wait >= POLICY.first / 2, "a server cannot make us ask without a pause");
    }

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds_and_repeat_for_a_seed(retry in 1u32..200, seed: u64) {
            let wait = POLICY.wait(retry, seed);
            let whole = POLICY.first.saturating_mul(1 << (retry - 1).min(31)).min(POLICY.longest);
            prop_assert!(wait >= whole / 2 && wait <= whole);
            prop_assert_eq!(wait, POLICY.wait(retry, seed));
        }

        #[test]
        fn requests_are_bounded_whatever_the_server_does(cuts in prop::collection::vec(0u64..4 << 20, 1..400)) {
            let size = 4u64 << 20;
            let mut tries = Tries::default();
            let made = cuts.iter().take_while(|cut| tries.failed(**cut, None, &POLICY, 7) != Next::GiveUp).count();
            let bound = (size / PROGRESS_BYTES + 1) * u64::from(POLICY.retries_max + 1);
            prop_assert!((made as u64) < bound);
        }
    }

    #[test]
    fn seeds_spread_the_waits() {
        let waits: std::collections::BTreeSet<_> = (0..100).map(|seed| POLICY.wait(3, seed)).collect();
        assert!(waits.len() > 90, "{}", waits.len());
    }
}
