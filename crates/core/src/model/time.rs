//! Points in time as they are written on disk and on the wire: UTC, whole seconds, ending in `Z`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time with whole-second precision, printed as RFC 3339 in UTC (`2026-01-02T03:04:05Z`).
///
/// Python's TUF client refuses fractions and offsets other than `Z`, so there is only this one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(jiff::Timestamp);

/// Why a string is no [`Instant`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is written in UTC with whole seconds, as in 2026-01-02T03:04:05Z")]
pub struct TimeError;

impl Instant {
    /// Seconds since the Unix epoch; `None` outside the years -9999 to 9999.
    pub fn from_unix(seconds: i64) -> Option<Self> {
        jiff::Timestamp::from_second(seconds).ok().map(Self)
    }

    /// Seconds since the Unix epoch.
    pub fn unix(self) -> i64 {
        self.0.as_second()
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Instant {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let time: jiff::Timestamp = text.parse().map_err(|_| TimeError)?;
        if time.to_string() == text { Ok(Self(time)).and_then(whole_seconds) } else { Err(TimeError) }
    }
}

fn whole_seconds(time: Instant) -> Result<Instant, TimeError> {
    if time.0.subsec_nanosecond() == 0 { Ok(time) } else { Err(TimeError) }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_utc_whole_seconds_are_accepted() {
        let time: Instant = "2026-01-02T03:04:05Z".parse().expect("a valid time");
        assert_eq!(time.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(Instant::from_unix(time.unix()), Some(time));
        for text in
            ["2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05+00:00", "2026-01-02 03:04:05Z", "2026-01-02", ""]
        {
            assert_eq!(text.parse::<Instant>(), Err(TimeError), "{text:?}");
        }
    }
}
