//! The wall clock: the one place that reads it. Everything below gets the time as an argument.

use cutover_core::model::Instant;

/// Now, in whole seconds.
#[expect(clippy::disallowed_methods, reason = "this is the one wall clock")]
pub(crate) fn now() -> Instant {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    Instant::from_unix(seconds).or_else(|| Instant::from_unix(0)).expect("the epoch is a time")
}

/// Now, to the nanosecond: for records of when something was received.
#[expect(clippy::disallowed_methods, reason = "this is the one wall clock")]
pub(crate) fn precise() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
