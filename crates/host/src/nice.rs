//! Giving way: threads that fetch, hash and lay down files leave processors and disks to whoever wants them more.
//!
//! On Linux the nice value belongs to a thread (setpriority(2)), so only those threads get it. The thread of the execution
//! keeps what it has: services, probes and commands are started from there and inherit it, and what was once given up cannot
//! be taken back without privilege. Decision: `docs/decisions/0048-threads-give-way-not-the-process.md`.

use rustix::process::{getpriority_process, setpriority_process};
use serde::{Deserialize, Serialize};

/// The highest level there is.
const MAX: u8 = 19;

/// How far threads give way: a nice value, 0 (not at all) to 19. The kernel lets requests to the disk follow it, since no
/// priority of their own is set (ioprio_set(2): best effort, level (nice + 20) / 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Nice(u8);

/// A level that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nice value is a number from 0 to {MAX}, and not {0}")]
pub struct NiceError(u8);

impl TryFrom<u8> for Nice {
    type Error = NiceError;

    fn try_from(level: u8) -> Result<Self, NiceError> {
        if level > MAX { Err(NiceError(level)) } else { Ok(Self(level)) }
    }
}

impl From<Nice> for u8 {
    fn from(nice: Nice) -> Self {
        nice.0
    }
}

impl Nice {
    /// Threads are as they are.
    pub const NONE: Self = Self(0);

    /// Makes this thread give way so far, from now on. One that gives way further already stays so.
    pub(crate) fn take_on(self) {
        let wanted = i32::from(self.0);
        // `None` is the calling thread, and not its process.
        let changed = match getpriority_process(None) {
            Ok(present) if present < wanted => setpriority_process(None, wanted),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            tracing::warn!(%error, nice = wanted, "a thread does not give way");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        getpriority_process(None).expect("a priority")
    }

    #[test]
    fn only_this_thread_gives_way_and_what_it_starts_and_never_less_than_before() {
        let before = own();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                Nice(19).take_on();
                assert_eq!(own(), 19);
                Nice(5).take_on();
                assert_eq!(own(), 19);
                scope.spawn(|| assert_eq!(own(), 19)).join().expect("no panic");
            });
        });
        assert_eq!(own(), before);
    }

    #[test]
    fn levels_are_those_that_need_no_privilege() {
        assert_eq!(Nice::try_from(19).map(u8::from), Ok(19));
        assert_eq!(Nice::try_from(20), Err(NiceError(20)));
    }
}
