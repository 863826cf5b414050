//! Shipping: what a receiver's answer means for an episode, when it is tried again, and which one is next.
//!
//! Nothing here knows a socket, a file or a clock. `host::ship` observes (an answer's head and body, the time since the start,
//! what waits) and does what is decided here. Read [`judge`] first, then [`Backoff`] and [`next_to_start`].

mod backoff;
mod order;
mod update;
mod verdict;

pub use backoff::{Backoff, DIGEST_TRIES_MAX, PASS_AFTER, Reach};
pub use order::{Limits, Waiting, next_to_start};
pub use update::UpdateGate;
pub use verdict::{Answer, Problem, Severity, Verdict, judge};
