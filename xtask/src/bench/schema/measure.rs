//! Latencies, and the figures of the closing table. Values in, values out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970: the clock that logs of other programs have too.
pub(super) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Milliseconds with their fraction.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// One statement of a client that sends them at fixed times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// When its answer came, in seconds since 1970.
    pub(super) ended_s: f64,
    /// From sending it to its answer, in milliseconds.
    pub(super) took_ms: f64,
    /// From when it was due to its answer: with what it waited for the client's earlier statements.
    pub(super) due_ms: f64,
}

/// Latencies in milliseconds, sorted.
pub(super) struct Latencies(Vec<f64>);

impl Latencies {
    pub(super) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value below which this share (0 to 1) lies, by the nearest rank; 0 of nothing.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    pub(super) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
}

/// What clients saw: before a moment, and from then on.
pub(super) struct Seen {
    pub(super) before: Latencies,
    pub(super) during: Latencies,
}

/// Splits at `began_s` by when answers came; `of` says which latency is meant. Statements that were due after `ended_s`
/// belong to neither; those that waited beyond it count.
pub(super) fn split(samples: &[Sample], began_s: f64, ended_s: f64, of: fn(&Sample) -> f64) -> Seen {
    let due_s = |sample: &Sample| sample.ended_s - sample.due_ms / 1000.0;
    let (before, since): (Vec<Sample>, Vec<Sample>) =
        samples.iter().copied().filter(|at| due_s(at) < ended_s).partition(|at| at.ended_s < began_s);
    let latencies = |samples: &[Sample]| Latencies::new(samples.iter().map(of));
    Seen { before: latencies(&before), during: latencies(&since) }
}

/// A figure of the closing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    RewriteIdle,
    RewriteRatio,
    RewriteLoaded,
    RewriteP99,
    SqliteRate,
    SqliteP99,
    SqliteMax,
    AdditivePostgres,
    AdditiveSqlite,
    AdditiveWorst,
    Stall,
    Landed,
    Swap,
    Verified,
    Rollback,
    Ledger,
}

/// What was measured of one figure. Of several values the worst counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) figure: Figure,
    pub(super) value: f64,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

struct Wanted {
    figure: Figure,
    what: &'static str,
    bound: Bound,
    unit: &'static str,
}

const fn wanted(figure: Figure, what: &'static str, bound: Bound, unit: &'static str) -> Wanted {
    Wanted { figure, what, bound, unit }
}

/// Every figure, in the order of the table.
const WANTED: &[Wanted] = &[
    wanted(
        Figure::RewriteIdle,
        "PostgreSQL shadow copy, idle, whole command",
        Bound::AtLeast(150e3),
        "rows/s",
    ),
    wanted(Figure::RewriteRatio, "the same, beside reshape", Bound::AtLeast(2.0), "times"),
    wanted(Figure::RewriteLoaded, "PostgreSQL shadow copy under load", Bound::AtLeast(100e3), "rows/s"),
    wanted(Figure::RewriteP99, "client p99 meanwhile, to p99 before", Bound::AtMost(2.0), "times"),
    wanted(Figure::SqliteRate, "SQLite shadow copy with a writer", Bound::AtLeast(300e3), "rows/s"),
    wanted(Figure::SqliteP99, "writer p99 meanwhile", Bound::AtMost(15.0), "ms"),
    wanted(Figure::SqliteMax, "writer max meanwhile", Bound::AtMost(100.0), "ms"),
    wanted(Figure::AdditivePostgres, "additive change, PostgreSQL, median", Bound::AtMost(20.0), "ms"),
    wanted(Figure::AdditiveSqlite, "additive change, SQLite, median", Bound::AtMost(20.0), "ms"),
    wanted(
        Figure::AdditiveWorst,
        "additive change, either engine, max (the limit is wider)",
        Bound::AtMost(100.0),
        "ms",
    ),
    wanted(Figure::Stall, "longest client stall by DDL behind a 5 s transaction", Bound::AtMost(100.0), "ms"),
    wanted(Figure::Landed, "that DDL is done after the transaction's end", Bound::AtMost(1000.0), "ms"),
    wanted(Figure::Swap, "lock held by the swap, p99", Bound::AtMost(25.0), "ms"),
    wanted(Figure::Verified, "verification of every row, PostgreSQL, idle", Bound::AtLeast(1.5e6), "rows/s"),
    wanted(Figure::Rollback, "rollback after the swap", Bound::AtMost(1000.0), "ms"),
    wanted(Figure::Ledger, "rows that differ from the writers' ledger after it", Bound::AtMost(0.0), "rows"),
];

/// Prints the closing table.
pub(super) fn close(measured: &[Measured]) {
    println!("## figures\n\n| what | wanted | measured | reached |\n|---|---|---|---|");
    for wanted in WANTED {
        let values = || measured.iter().filter(|one| one.figure == wanted.figure).map(|one| one.value);
        let (sign, bound, worst, reached) = match wanted.bound {
            Bound::AtLeast(bound) => {
                let worst = values().reduce(f64::min);
                (">=", bound, worst, worst.is_some_and(|worst| worst >= bound))
            }
            Bound::AtMost(bound) => {
                let worst = values().reduce(f64::max);
                ("<=", bound, worst, worst.is_some_and(|worst| worst <= bound))
            }
        };
        let (measured, reached) = match worst {
            Some(worst) => (format!("{} {}", number(worst), wanted.unit), if reached { "yes" } else { "no" }),
            None => ("not measured".to_owned(), ""),
        };
        println!("| {} | {sign} {} {} | {measured} | {reached} |", wanted.what, number(bound), wanted.unit);
    }
    println!(
        "| 0 lost, doubled, resurrected over random runs | 0 | `cargo xtask schema-sweep --full` counts them | |"
    );
}

/// A number as tables show it.
pub(super) fn number(value: f64) -> String {
    if value >= 1000.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let latencies = Latencies::new((1..=200).rev().map(f64::from));
        assert_eq!(latencies.quantile(0.5), 100.0);
        assert_eq!(latencies.quantile(0.99), 198.0);
        assert_eq!(latencies.max(), 200.0);
        assert_eq!(Latencies::new([]).quantile(0.99), 0.0);
    }

    #[test]
    fn answers_are_split_by_when_they_came_and_were_due() {
        let at = |ended_s: f64, due_ms: f64| Sample { ended_s, took_ms: ended_s, due_ms };
        let samples = [at(1.0, 10.0), at(2.0, 10.0), at(4.0, 1500.0), at(5.0, 1500.0)];
        let seen = split(&samples, 2.0, 3.0, |sample| sample.took_ms);
        assert_eq!((seen.before.max(), seen.during.max()), (1.0, 4.0));
    }

    #[test]
    fn every_figure_is_wanted_once() {
        for (at, wanted) in WANTED.iter().enumerate() {
            assert!(WANTED[at + 1..].iter().all(|other| other.figure != wanted.figure), "{}", wanted.what);
        }
    }
}
