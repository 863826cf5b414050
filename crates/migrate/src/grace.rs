//! Grace periods: how much time has certainly passed, and whether the fleet still needs the old shape.
//!
//! A step of one clock must not end a grace period early, so elapsed time is the sum of lower bounds between observations:
//! within one boot the clock that only counts (CLOCK_BOOTTIME); across a restart of the machine what two wall clocks agree on,
//! or else only the time since that restart.

use std::fs;

use serde::{Deserialize, Serialize};

/// What the clocks said at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Which machine and boot the counting clock belongs to.
    pub boot: String,
    /// Milliseconds since that boot, sleep included.
    pub since_boot_ms: u64,
    /// The wall clock here, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The database's wall clock; the same clock as `wall_ms` when the database is a file here.
    pub database_ms: i64,
}

/// How much of a grace period has passed, and when that was last observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticks {
    /// Milliseconds that have certainly passed.
    pub passed_ms: u64,
    /// The clocks at the last observation.
    pub seen: Option<Clocks>,
}

/// Two wall clocks agree when they differ by at most this.
const AGREE_MS: u64 = 60_000;

impl Ticks {
    /// Counts the time since the last observation.
    #[must_use]
    pub fn observed(&self, now: Clocks, two_machines: bool) -> Self {
        let elapsed = match &self.seen {
            None => 0,
            // A boot without an id may be anybody's.
            Some(seen) if seen.boot == now.boot && !now.boot.is_empty() => {
                now.since_boot_ms.saturating_sub(seen.since_boot_ms)
            }
            Some(seen) => {
                let wall = u64::try_from(now.wall_ms - seen.wall_ms).unwrap_or(0);
                let database = u64::try_from(now.database_ms - seen.database_ms).unwrap_or(0);
                if two_machines && wall.abs_diff(database) <= AGREE_MS {
                    wall.min(database)
                } else {
                    // Another boot of this machine, or another machine: only what this boot has counted, and no more than
                    // the wall clocks allow.
                    now.since_boot_ms.min(wall).min(database)
                }
            }
        };
        Self { passed_ms: self.passed_ms + elapsed, seen: Some(now) }
    }
}

/// The clocks of this machine. `database_ms` is filled in by the caller.
pub fn read_clocks(wall_ms: i64, database_ms: i64) -> Clocks {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot_ms =
        u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    Clocks { boot: id.trim().to_owned(), since_boot_ms, wall_ms, database_ms }
}

/// What is known of the application versions that run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The lowest version of all known nodes.
    pub lowest: cutover_core::model::Version,
    /// Whether any node may still go back to a version below it.
    pub rollback_open: bool,
}

/// Nobody knows which versions run: contract stays locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FloorUnknown(pub String);

/// Says which application versions run. A missing or stale answer is [`FloorUnknown`].
pub trait FleetFloor {
    /// The floor of the fleet.
    ///
    /// # Errors
    /// [`FloorUnknown`] with the reason.
    fn floor(&self) -> Result<Floor, FloorUnknown>;
}

/// A floor that somebody vouches for.
impl FleetFloor for Floor {
    fn floor(&self) -> Result<Floor, FloorUnknown> {
        Ok(self.clone())
    }
}

/// Nobody to ask.
impl FleetFloor for FloorUnknown {
    fn floor(&self) -> Result<Floor, FloorUnknown> {
        Err(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: &str, since_boot_ms: u64, wall_ms: i64, database_ms: i64) -> Clocks {
        Clocks { boot: boot.to_owned(), since_boot_ms, wall_ms, database_ms }
    }

    // X11.
    #[test]
    fn step_of_a_clock_does_not_end_a_grace_period() {
        let day = 86_400_000;
        let ticks = Ticks::default().observed(at("a", 1000, 0, 0), true);
        // The wall clock is set a year ahead; the counting clock knows that one second passed.
        let ticks = ticks.observed(at("a", 2000, 365 * day, 365 * day), true);
        assert_eq!(ticks.passed_ms, 1000);
        // And set back: time does not run backwards.
        let ticks = ticks.observed(at("a", 3000, -day, -day), true);
        assert_eq!(ticks.passed_ms, 2000);
    }

    #[test]
    fn downtime_counts_when_two_clocks_agree() {
        let hour = 3_600_000;
        let ticks = Ticks::default().observed(at("a", 1000, 0, 5), true);
        assert_eq!(ticks.observed(at("b", 10, 5 * hour, 5 * hour), true).passed_ms, 5 * hour as u64 - 5);
        // One of them was set: only the time since the restart is certain.
        assert_eq!(ticks.observed(at("b", 10, 5 * hour, hour), true).passed_ms, 10);
        // A file: both are the same clock, which proves nothing.
        assert_eq!(ticks.observed(at("b", 10, 5 * hour, 5 * hour), false).passed_ms, 10);
    }
}
