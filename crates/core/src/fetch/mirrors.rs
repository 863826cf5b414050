//! Which of several places is asked next: the fastest that works.
//!
//! The content is trusted by its digest, never by the place it came from, so a place is judged by its speed and its
//! failures only.

use std::{collections::BTreeSet, time::Duration};

/// One place, by its number in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub usize);

/// What is known about the places.
#[derive(Clone, Debug)]
pub struct Mirrors {
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Bytes per second, smoothed; `None` before the first transfer, unless an earlier run measured it.
    speed: Option<f64>,
    /// Whether this run measured it.
    measured: bool,
    /// Transfers under way that will measure it.
    trials: u32,
    /// Failures in a row.
    failures: u32,
    /// Not to be asked before, since the start.
    not_before: Duration,
}

/// Which place to ask, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub mirror: MirrorId,
    /// How long to wait first.
    pub wait: Duration,
}

/// How much the newest measurement counts.
const NEWEST: f64 = 0.3;
/// A transfer of fewer bytes measures latency, which is what matters for small objects: they count as this many.
const BYTES_MIN: u64 = 64 << 10;

impl Mirrors {
    /// `count` places in the order of the settings.
    pub fn new(count: usize) -> Self {
        Self::knowing(std::iter::repeat_n(None, count))
    }

    /// Places in the order of the settings, each with its speed where that is known from earlier runs.
    pub fn knowing(speeds: impl IntoIterator<Item = Option<f64>>) -> Self {
        let state = |speed| State { speed, ..State::default() };
        Self { states: speeds.into_iter().map(state).collect() }
    }

    /// The place to ask next for an object that the `excluded` do not have; `None` when none is left.
    ///
    /// A place that may be asked now goes before one that asked us to wait, one that works before one that fails, then each
    /// unmeasured one gets one transfer, then the fastest goes first. Equals: in the order of the settings.
    pub fn choose(&mut self, now: Duration, excluded: &BTreeSet<MirrorId>) -> Option<Choice> {
        let candidates = (0..self.states.len()).filter(|index| !excluded.contains(&MirrorId(*index)));
        let index = candidates.min_by(|a, b| self.rank(*a, now).total_cmp(&self.rank(*b, now)))?;
        let state = &mut self.states[index];
        if state.speed.is_none() {
            state.trials += 1;
        }
        Some(Choice { mirror: MirrorId(index), wait: state.not_before.saturating_sub(now) })
    }

    /// Smaller is better.
    fn rank(&self, index: usize, now: Duration) -> Rank {
        let state = &self.states[index];
        let slowness = match state.speed {
            Some(speed) => 1.0 / speed.max(1.0),
            None if state.trials == 0 => 0.0,
            // Being measured: not again before the others, unless nothing is known about those either.
            None => f64::MAX,
        };
        Rank { wait: state.not_before.saturating_sub(now), failures: state.failures, slowness, index }
    }

    /// A transfer of `bytes` took `took`.
    pub fn succeeded(&mut self, mirror: MirrorId, bytes: u64, took: Duration) {
        let state = &mut self.states[mirror.0];
        let speed = bytes.max(BYTES_MIN) as f64 / took.as_secs_f64().max(1e-6);
        state.speed = Some(state.speed.map_or(speed, |before| before + NEWEST * (speed - before)));
        state.measured = true;
        state.failures = 0;
    }

    /// A transfer failed at `now`, and the place is to be left alone for `wait`.
    pub fn failed(&mut self, mirror: MirrorId, now: Duration, wait: Duration) {
        let state = &mut self.states[mirror.0];
        state.failures = state.failures.saturating_add(1);
        state.trials = state.trials.saturating_sub(1);
        state.not_before = state.not_before.max(now.saturating_add(wait));
    }

    /// The speed in bytes per second, if this run has measured it.
    pub fn measured(&self, mirror: MirrorId) -> Option<f64> {
        let state = &self.states[mirror.0];
        state.speed.filter(|_| state.measured)
    }
}

struct Rank {
    wait: Duration,
    failures: u32,
    slowness: f64,
    index: usize,
}

impl Rank {
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.wait.cmp(&other.wait))
            .then(self.failures.cmp(&other.failures))
            .then(self.slowness.total_cmp(&other.slowness))
            .then(self.index.cmp(&other.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const START: Duration = Duration::ZERO;

    fn next(mirrors: &mut Mirrors, excluded: &[usize]) -> Option<usize> {
        let excluded = excluded.iter().map(|index| MirrorId(*index)).collect();
        mirrors.choose(START, &excluded).map(|choice| choice.mirror.0)
    }

    #[test]
    fn each_is_measured_once_then_the_fastest_goes_first() {
        let mut mirrors = Mirrors::new(3);
        assert_eq!(
            [next(&mut mirrors, &[]), next(&mut mirrors, &[]), next(&mut mirrors, &[])],
            [0, 1, 2].map(Some)
        );
        assert_eq!(next(&mut mirrors, &[]), Some(0), "all are being measured: as in the settings");
        for (index, bytes) in [1_000_000, 9_000_000, 3_000_000].into_iter().enumerate() {
            mirrors.succeeded(MirrorId(index), bytes, SECOND);
        }
        assert_eq!(next(&mut mirrors, &[]), Some(1));
        assert_eq!(next(&mut mirrors, &[1]), Some(2));
        assert_eq!(next(&mut mirrors, &[0, 1, 2]), None);
    }

    #[test]
    fn fastest_of_an_earlier_run_goes_first_and_unknown_ones_are_measured_before() {
        let mut mirrors = Mirrors::knowing([Some(1e6), Some(9e6), None]);
        assert_eq!(next(&mut mirrors, &[]), Some(2));
        assert_eq!([next(&mut mirrors, &[]), next(&mut mirrors, &[1])], [Some(1), Some(0)]);
        assert_eq!(mirrors.measured(MirrorId(1)), None);
        mirrors.succeeded(MirrorId(1), 9_000_000, SECOND);
        assert_eq!(mirrors.measured(MirrorId(1)), Some(9e6));
    }

    #[test]
    fn speed_follows_what_is_measured() {
        let mut mirrors = Mirrors::new(2);
        mirrors.succeeded(MirrorId(0), 9_000_000, SECOND);
        mirrors.succeeded(MirrorId(1), 5_000_000, SECOND);
        assert_eq!(next(&mut mirrors, &[]), Some(0));
        for _ in 0..10 {
            mirrors.succeeded(MirrorId(0), 1_000_000, SECOND);
        }
        assert_eq!(next(&mut mirrors, &[]), Some(1), "the first one became slow");
    }

    #[test]
    fn failing_place_is_left_for_others_and_comes_back() {
        let mut mirrors = Mirrors::new(2);
        mirrors.succeeded(MirrorId(0), 9_000_000, SECOND);
        mirrors.succeeded(MirrorId(1), 1_000_000, SECOND);
        mirrors.failed(MirrorId(0), START, Duration::from_secs(30));
        assert_eq!(next(&mut mirrors, &[]), Some(1));
        let choice = mirrors.choose(START, &BTreeSet::from([MirrorId(1)])).unwrap();
        assert_eq!(choice, Choice { mirror: MirrorId(0), wait: Duration::from_secs(30) });
        let later = Duration::from_secs(31);
        assert_eq!(
            mirrors.choose(later, &BTreeSet::new()).unwrap().mirror,
            MirrorId(1),
            "it still has a failure"
        );
        mirrors.succeeded(MirrorId(0), 9_000_000, SECOND);
        assert_eq!(mirrors.choose(later, &BTreeSet::new()).unwrap().mirror, MirrorId(0));
    }

    #[test]
    fn one_place_is_always_chosen() {
        let mut mirrors = Mirrors::new(1);
        for _ in 0..5 {
            assert_eq!(next(&mut mirrors, &[]), Some(0));
            mirrors.failed(MirrorId(0), START, Duration::ZERO);
        }
    }
}
