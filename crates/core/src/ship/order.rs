//! Which episodes are started next.
//!
//! Every episode belongs to a stream, and within a stream they are started oldest first. One that failed waits, and holds back
//! the newer ones of its stream; after [`PASS_AFTER`] failures it lets them pass and is tried beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::PASS_AFTER;

/// An episode that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the queue; the oldest has the lowest.
    pub number: i64,
    /// Its stream.
    pub stream: usize,
    /// Failures in a row.
    pub failures: u32,
    /// When it may be tried, since any fixed time.
    pub due: Duration,
}

impl Waiting {
    fn lets_pass(&self) -> bool {
        self.failures >= PASS_AFTER
    }
}

/// How many may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all streams together.
    pub in_flight: usize,
    /// Of one stream; with 1 its episodes are also finished in their order.
    pub per_stream: usize,
}

/// The numbers of those to start now, oldest first. `queued` are those that are not under way, in the order of the queue; it is
/// read only as far as needed.
///
/// Those that let others pass do not count within their stream, and never take the last of several places.
pub fn next_to_start(
    in_flight: &[Waiting],
    queued: impl IntoIterator<Item = Waiting>,
    now: Duration,
    limits: Limits,
) -> Vec<i64> {
    let mut free = limits.in_flight.saturating_sub(in_flight.len());
    let passed = in_flight.iter().filter(|one| one.lets_pass()).count();
    let mut free_for_passed = limits.in_flight.saturating_sub(1).max(1).saturating_sub(passed);
    let mut streams: BTreeMap<usize, usize> = BTreeMap::new();
    for one in in_flight.iter().filter(|one| !one.lets_pass()) {
        *streams.entry(one.stream).or_default() += 1;
    }
    let mut held = BTreeSet::new();
    let mut chosen = Vec::new();
    for one in queued {
        if free == 0 {
            break;
        }
        if one.lets_pass() {
            if one.due <= now && free_for_passed > 0 {
                free_for_passed -= 1;
                free -= 1;
                chosen.push(one.number);
            }
            continue;
        }
        let under_way = streams.entry(one.stream).or_default();
        if held.contains(&one.stream) || one.due > now || *under_way >= limits.per_stream.max(1) {
            held.insert(one.stream);
            continue;
        }
        *under_way += 1;
        free -= 1;
        chosen.push(one.number);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const LATER: Duration = Duration::from_secs(101);

    fn one(number: i64, stream: usize) -> Waiting {
        Waiting { number, stream, failures: 0, due: Duration::ZERO }
    }

    fn failed(number: i64, stream: usize, failures: u32, due: Duration) -> Waiting {
        Waiting { failures, due, ..one(number, stream) }
    }

    fn started(waiting: &[Waiting], in_flight: usize, per_stream: usize) -> Vec<i64> {
        beside(&[], waiting, in_flight, per_stream)
    }

    fn beside(flying: &[Waiting], waiting: &[Waiting], in_flight: usize, per_stream: usize) -> Vec<i64> {
        next_to_start(flying, waiting.iter().copied(), NOW, Limits { in_flight, per_stream })
    }

    #[test]
    fn oldest_of_each_stream_is_started() {
        let waiting = [one(1, 0), one(2, 0), one(3, 1), one(4, 2), one(5, 1)];
        assert_eq!(started(&waiting, 4, 1), [1, 3, 4]);
        assert_eq!(started(&waiting, 2, 1), [1, 3]);
        assert_eq!(started(&waiting, 4, 2), [1, 2, 3, 4]);
        assert_eq!(beside(&[one(1, 0)], &[one(2, 0), one(3, 1)], 4, 1), [3]);
        assert_eq!(started(&[], 4, 1), [0i64; 0]);
    }

    // I13
    #[test]
    fn failed_one_holds_newer_ones_back_until_its_fifth_failure() {
        for failures in 1..PASS_AFTER {
            let waiting = [failed(1, 0, failures, LATER), one(2, 0), one(3, 1)];
            assert_eq!(started(&waiting, 4, 2), [3], "{failures}");
        }
        let waiting = [failed(1, 0, PASS_AFTER, LATER), one(2, 0)];
        assert_eq!(started(&waiting, 4, 1), [2]);
        let waiting = [failed(1, 0, PASS_AFTER, NOW), one(2, 0)];
        assert_eq!(started(&waiting, 4, 1), [1, 2], "it is tried beside them");
        assert_eq!(beside(&[failed(1, 0, PASS_AFTER, NOW)], &[one(2, 0)], 4, 1), [2]);
    }

    #[test]
    fn those_that_let_pass_leave_a_place_for_others() {
        let mut waiting: Vec<Waiting> = (1..=9).map(|number| failed(number, 0, 9, NOW)).collect();
        waiting.push(one(10, 0));
        assert_eq!(started(&waiting, 4, 1), [1, 2, 3, 10]);
        assert_eq!(started(&waiting, 1, 1), [1]);
        assert_eq!(beside(&waiting[..3], &waiting[3..], 4, 1), [10]);
    }

    proptest! {
        #[test]
        fn no_order_is_broken_and_no_limit_exceeded(
            items in prop::collection::vec((0usize..4, 0u32..8, 0u64..200, any::<bool>()), 0..40),
            in_flight in 1usize..6, per_stream in 1usize..3,
        ) {
            let all: Vec<Waiting> = items.iter().enumerate().map(|(number, (stream, failures, due, _))| Waiting {
                number: number as i64, stream: *stream, failures: *failures, due: Duration::from_secs(*due),
            }).collect();
            let flies = |one: &&Waiting| items[one.number as usize].3 && (one.number as usize) < in_flight;
            let flying: Vec<Waiting> = all.iter().filter(flies).copied().collect();
            let waiting: Vec<Waiting> = all.iter().filter(|one| !flies(one)).copied().collect();
            let chosen = beside(&flying, &waiting, in_flight, per_stream);
            prop_assert!(chosen.is_sorted());
            prop_assert!(flying.len() + chosen.len() <= in_flight.max(flying.len()));
            for number in &chosen {
                let this = all[*number as usize];
                prop_assert!(this.due <= NOW);
                let held = waiting.iter().take_while(|older| older.number < *number).any(|older| {
                    older.stream == this.stream && !older.lets_pass() && !chosen.contains(&older.number)
                });
                prop_assert!(!held || this.lets_pass(), "{number} overtakes");
            }
            if waiting.iter().any(|one| one.due <= NOW && one.lets_pass()) && flying.is_empty() {
                prop_assert!(!chosen.is_empty());
            }
        }
    }
}
