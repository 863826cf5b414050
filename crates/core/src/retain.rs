//! Retention: which restore points are kept, made cold or removed, and which trees and objects nobody needs any more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::{Instant, ReleaseName, RestorePointId};

/// How many restore points to keep, for how long, and in how much space. The newest is always kept, whatever the rest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Most restore points kept.
    pub keep: usize,
    /// Oldest age kept, in days; none by default.
    pub days: Option<u32>,
    /// Most bytes that restore points may take beyond the current release; none by default.
    pub bytes: Option<u64>,
    /// How many of the newest keep their tree as it is; the trees of older ones go compressed to the store.
    pub warm: usize,
}

impl Default for Retention {
    /// Three restore points, the newest of them warm.
    fn default() -> Self {
        Self { keep: 3, days: None, bytes: None, warm: 1 }
    }
}

impl Retention {
    /// Whether the trees that as many processes may still read are among those that stay: processes which finish their
    /// connections are of the releases that were current last.
    pub fn keeps_trees_of(&self, draining: usize) -> bool {
        draining <= self.warm.min(self.keep)
    }
}

/// What retention needs to know about one restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointFacts {
    /// Which.
    pub id: RestorePointId,
    /// When it was made.
    pub created_at: Instant,
    /// Bytes only it needs.
    pub bytes: u64,
    /// The tree it leads back to, if that still lies in `releases/`.
    pub tree: Option<ReleaseName>,
}

/// What retention decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Restore points to remove, oldest first.
    pub remove: Vec<RestorePointId>,
    /// Restore points whose tree goes compressed to the store, oldest first.
    pub cool: Vec<RestorePointId>,
}

const SECONDS_PER_DAY: i64 = 86_400;

/// Decides about `points`, given in the order they were made.
pub fn retain(points: &[PointFacts], retention: &Retention, now: Instant) -> Verdict {
    let mut kept_bytes = 0u64;
    let mut verdict = Verdict::default();
    for (age, point) in points.iter().rev().enumerate() {
        kept_bytes = kept_bytes.saturating_add(point.bytes);
        let too_old = retention.days.is_some_and(|days| {
            now.unix().saturating_sub(point.created_at.unix()) > i64::from(days) * SECONDS_PER_DAY
        });
        let too_big = retention.bytes.is_some_and(|limit| kept_bytes > limit);
        if age > 0 && (age >= retention.keep || too_old || too_big) {
            kept_bytes -= point.bytes;
            verdict.remove.push(point.id.clone());
        } else if age >= retention.warm.max(1) && point.tree.is_some() {
            verdict.cool.push(point.id.clone());
        }
    }
    verdict.remove.reverse();
    verdict.cool.reverse();
    verdict
}

/// The trees that neither the current release nor a warm restore point needs.
pub fn unneeded_trees(
    present: &BTreeSet<ReleaseName>,
    current: Option<&ReleaseName>,
    kept: &[PointFacts],
) -> BTreeSet<ReleaseName> {
    let needed: BTreeSet<&ReleaseName> =
        kept.iter().filter_map(|point| point.tree.as_ref()).chain(current).collect();
    present.iter().filter(|tree| !needed.contains(tree)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = SECONDS_PER_DAY;

    fn time(seconds: i64) -> Instant {
        Instant::from_unix(seconds).expect("a time")
    }

    /// Five points of ten bytes each, made a day apart; the newest is made at day 4.
    fn points() -> Vec<PointFacts> {
        (0..5)
            .map(|n| PointFacts {
                id: RestorePointId::of_execution(n),
                created_at: time(n as i64 * DAY),
                bytes: 10,
                tree: format!("1.{n}.0-00000000").parse().ok(),
            })
            .collect()
    }

    #[test]
    fn trees_that_draining_processes_may_read_are_those_that_stay_warm() {
        let usual = Retention::default();
        assert!(usual.keeps_trees_of(0) && usual.keeps_trees_of(1) && !usual.keeps_trees_of(2));
        assert!(Retention { warm: 3, ..usual.clone() }.keeps_trees_of(3));
        assert!(!Retention { warm: 3, keep: 0, ..usual }.keeps_trees_of(1));
    }

    fn removed(retention: &Retention) -> Vec<u64> {
        let verdict = retain(&points(), retention, time(4 * DAY));
        verdict.remove.iter().map(|id| id.as_str().parse().expect("a number")).collect()
    }

    // E20
    #[test]
    fn three_newest_are_kept_by_default() {
        assert_eq!(removed(&Retention::default()), [0, 1]);
    }

    #[test]
    fn age_and_space_remove_the_oldest_first() {
        let all = Retention { keep: 9, ..Retention::default() };
        assert_eq!(removed(&Retention { days: Some(2), ..all.clone() }), [0, 1]);
        assert_eq!(removed(&Retention { bytes: Some(25), ..all.clone() }), [0, 1, 2]);
        assert_eq!(removed(&all), [0u64; 0]);
    }

    // point-3
    #[test]
    fn newest_restore_point_survives_every_rule() {
        assert_eq!(removed(&Retention { keep: 0, days: Some(0), bytes: Some(0), warm: 0 }), [0, 1, 2, 3]);
    }

    #[test]
    fn clock_that_went_back_removes_nothing_by_age() {
        let retention = Retention { keep: 9, days: Some(1), ..Retention::default() };
        assert!(retain(&points(), &retention, time(0)).remove.is_empty());
    }

    #[test]
    fn older_points_go_cold_and_their_trees_become_unneeded() {
        let verdict =
            retain(&points(), &Retention { keep: 3, warm: 1, ..Retention::default() }, time(4 * DAY));
        assert_eq!(verdict.cool, [RestorePointId::of_execution(2), RestorePointId::of_execution(3)]);
        let trees: BTreeSet<ReleaseName> = points().into_iter().filter_map(|point| point.tree).collect();
        let current: ReleaseName = "1.1.0-00000000".parse().expect("a name");
        let unneeded = unneeded_trees(&trees, Some(&current), &points()[4..]);
        let names: Vec<&str> = unneeded.iter().map(ReleaseName::as_str).collect();
        assert_eq!(names, ["1.0.0-00000000", "1.2.0-00000000", "1.3.0-00000000"]);
    }
}
