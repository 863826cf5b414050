//! Checks before anything changes: room, memory, dependencies, writable roots, one file system, a reachable service.
//!
//! Owns the checks and their deadlines; changes nothing. All checks run at once, each on a thread of its own, so one
//! that hangs neither hides the others nor delays the answer. Read [`run_checks`] first.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::probe::bounded;

mod checks;
mod settings;

pub use checks::{
    DependencyCheck, DiskCheck, DiskSpace, MemoryCheck, Need, SameFileSystemCheck, ServiceCheck,
    WritableCheck, available_memory, disk_space,
};
pub use settings::{PreflightSettings, Unknown};

/// The longest time a preflight takes, whatever the settings say.
pub const BUDGET_MAX: Duration = Duration::from_secs(2);

/// Time that is kept back from a budget for collecting the answers.
const COLLECT: Duration = Duration::from_millis(100);

/// One check.
pub trait Check: Send {
    /// What reports call it.
    fn name(&self) -> String;

    /// The time it has.
    fn timeout(&self) -> Duration {
        BUDGET_MAX
    }

    /// Looks; runs on a thread of its own.
    fn run(&self) -> Outcome;
}

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "detail")]
pub enum Outcome {
    /// It holds: with figures.
    Passed(String),
    /// It does not hold: what is needed, what there is, and where.
    Failed(String),
    /// It cannot be told; the policy decides.
    Skipped(String),
}

/// What all checks say, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreflightReport {
    /// One entry for every check.
    pub results: Vec<CheckResult>,
    /// How long all took together, in milliseconds.
    pub took_ms: u64,
}

/// What one check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// The check.
    pub name: String,
    /// What it says.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl PreflightReport {
    /// Why the update is refused: the first check that failed, or that could not tell where `unknown` says so. `None`
    /// when all passed.
    pub fn refusal(&self, unknown: Unknown) -> Option<String> {
        self.results.iter().find_map(|result| match &result.outcome {
            Outcome::Passed(_) => None,
            Outcome::Failed(detail) => Some(format!("{}: {detail}", result.name)),
            Outcome::Skipped(detail) => match unknown {
                Unknown::Pass => None,
                Unknown::Fail => Some(format!("{}: cannot be told: {detail}", result.name)),
            },
        })
    }
}

/// Runs all `checks` at once and returns at the latest after `budget`, itself at most [`BUDGET_MAX`].
pub fn run_checks(checks: Vec<Box<dyn Check>>, budget: Duration) -> PreflightReport {
    let started_at = Instant::now();
    let budget = budget.min(BUDGET_MAX);
    let latest = started_at + budget.saturating_sub(COLLECT.min(budget / 10));
    let started: Vec<_> = checks
        .into_iter()
        .map(|check| {
            let name = check.name();
            let work = bounded::start(&name, check.timeout(), move || check.run());
            (name, work)
        })
        .collect();
    let results = started
        .into_iter()
        .map(|(name, work)| {
            let (answer, took) = match work {
                Ok(work) => work.wait(Some(latest)),
                Err(no_thread) => (Err(no_thread), Duration::ZERO),
            };
            let outcome = answer.unwrap_or_else(|none| Outcome::Failed(none.to_string()));
            tracing::debug!(check = %name, ?outcome, "preflight");
            CheckResult { name, outcome, took_ms: millis(took) }
        })
        .collect();
    PreflightReport { results, took_ms: millis(started_at.elapsed()) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(&'static str, fn() -> Outcome);

    impl Check for Fake {
        fn name(&self) -> String {
            self.0.to_owned()
        }

        fn run(&self) -> Outcome {
            (self.1)()
        }
    }

    fn boxed(checks: impl IntoIterator<Item = Fake>) -> Vec<Box<dyn Check>> {
        checks.into_iter().map(|check| Box::new(check) as Box<dyn Check>).collect()
    }

    fn good() -> Outcome {
        Outcome::Passed(String::new())
    }

    // H4
    #[test]
    fn all_run_order_is_kept_and_the_summary_is_the_first_error() {
        let report = run_checks(
            boxed([
                Fake("one", good),
                Fake("two", || Outcome::Failed("is bad".to_owned())),
                Fake("three", || Outcome::Failed("is worse".to_owned())),
                Fake("four", good),
            ]),
            BUDGET_MAX,
        );
        let names: Vec<_> = report.results.iter().map(|result| result.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three", "four"]);
        assert_eq!(report.refusal(Unknown::Pass).as_deref(), Some("two: is bad"));
        assert!(matches!(report.results[3].outcome, Outcome::Passed(_)));
    }

    // H5
    #[test]
    fn no_checks_pass_with_an_empty_report() {
        let report = run_checks(Vec::new(), BUDGET_MAX);
        assert_eq!((report.results.len(), report.refusal(Unknown::Fail)), (0, None));
    }

    // H8
    #[test]
    fn check_that_hangs_fails_with_timeout_and_the_run_ends_in_time() {
        let started = Instant::now();
        let hang = || {
            std::thread::sleep(Duration::from_secs(3600));
            good()
        };
        let report = run_checks(
            boxed([Fake("hangs", hang), Fake("hangs too", hang), Fake("good", good)]),
            Duration::from_secs(3600),
        );
        assert_eq!(BUDGET_MAX, Duration::from_secs(2), "whoever asks for more gets the promise");
        // The rest is for a machine that has other things to do.
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(report.took_ms < 30_000);
        for result in &report.results[..2] {
            assert!(matches!(&result.outcome, Outcome::Failed(text) if text.contains("timeout")));
        }
        assert_eq!(report.results[2].outcome, good());
    }

    #[test]
    fn check_that_panics_fails() {
        let report = run_checks(boxed([Fake("panics", || panic!("oh"))]), BUDGET_MAX);
        assert!(report.refusal(Unknown::Pass).expect("a refusal").contains("panicked: oh"));
    }
}
