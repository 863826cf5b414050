//! Speeds of places that earlier runs measured, so that a run begins with the fastest.
//!
//! They decide about time only: what is fetched is trusted by its digest, wherever it came from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Instant;

/// The format that is written and read.
const FORMAT: u32 = 1;
/// How long a measurement counts, in seconds: a week. Then the place is measured again.
const AGE_MAX_S: i64 = 7 * 24 * 3600;
/// How many places are kept; more are not worth a file that only grows.
const PLACES_MAX: usize = 64;

/// Speeds by place. Format: `docs/formats/downloads.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speeds {
    format: u32,
    places: BTreeMap<String, Measured>,
}

/// The speed of one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    bytes_per_s: u64,
    at: Instant,
}

/// Why kept speeds cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpeedsError {
    /// It is not what is written.
    #[error("it is no list of speeds")]
    Malformed(#[source] serde_json::Error),
    /// It is of another format.
    #[error("it has format {0}, and {FORMAT} is known")]
    Format(u32),
}

impl Default for Speeds {
    fn default() -> Self {
        Self { format: FORMAT, places: BTreeMap::new() }
    }
}

impl Measured {
    /// A measurement that is too old does not count, nor does one from the future: the clock was set back since.
    fn counts(&self, now: Instant) -> bool {
        (0..=AGE_MAX_S).contains(&now.unix().saturating_sub(self.at.unix()))
    }
}

impl Speeds {
    /// Reads what [`Speeds::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`SpeedsError`]: then there are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, SpeedsError> {
        let speeds: Self = serde_json::from_slice(bytes).map_err(SpeedsError::Malformed)?;
        if speeds.format == FORMAT { Ok(speeds) } else { Err(SpeedsError::Format(speeds.format)) }
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialise")
    }

    /// The speed of a place in bytes per second, if it was measured lately.
    pub fn of(&self, place: &str, now: Instant) -> Option<f64> {
        let measured = self.places.get(place).filter(|measured| measured.counts(now))?;
        Some(measured.bytes_per_s as f64)
    }

    /// Takes in what was measured at `now`, in bytes per second, and forgets what does not count any more, and the oldest when
    /// there are too many.
    pub fn learn(&mut self, measured: impl IntoIterator<Item = (String, f64)>, now: Instant) {
        // Saturates: no speed is negative or not a number.
        let measured = measured.into_iter().map(|(place, speed)| (place, speed.round() as u64));
        self.places.extend(measured.map(|(place, bytes_per_s)| (place, Measured { bytes_per_s, at: now })));
        self.places.retain(|_, measured| measured.counts(now));
        while self.places.len() > PLACES_MAX {
            let oldest = self.places.iter().min_by_key(|(_, measured)| measured.at.unix());
            let Some(oldest) = oldest.map(|(place, _)| place.clone()) else { break };
            self.places.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Instant {
        Instant::from_unix(1_800_000_000 + seconds).expect("a time")
    }

    fn one(place: &str, speed: f64) -> [(String, f64); 1] {
        [(place.to_owned(), speed)]
    }

    #[test]
    fn first_format_is_read_and_written() {
        let text = r#"{"format":1,"places":{"https://a.example/":{"bytes_per_s":1500000,"at":"2027-01-15T08:00:00Z"}}}"#;
        let speeds = Speeds::parse(text.as_bytes()).expect("readable");
        assert_eq!(speeds.of("https://a.example/", at(60)), Some(1_500_000.0));
        assert_eq!(String::from_utf8(speeds.to_bytes()).expect("UTF-8"), text);
    }

    #[test]
    fn what_is_old_or_from_the_future_does_not_count_and_is_forgotten() {
        let mut speeds = Speeds::default();
        speeds.learn(one("a", 1000.0), at(0));
        assert_eq!(speeds.of("a", at(AGE_MAX_S)), Some(1000.0));
        assert_eq!((speeds.of("a", at(AGE_MAX_S + 1)), speeds.of("a", at(-1))), (None, None));
        speeds.learn(one("b", 2000.0), at(AGE_MAX_S + 1));
        assert_eq!(speeds.places.len(), 1);
    }

    #[test]
    fn there_is_no_end_of_places_but_of_kept_ones() {
        let mut speeds = Speeds::default();
        for place in 0..200 {
            speeds.learn(one(&format!("place-{place}"), 1.0), at(place));
        }
        assert_eq!(speeds.places.len(), PLACES_MAX);
        assert!(speeds.of("place-199", at(200)).is_some() && speeds.of("place-0", at(200)).is_none());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "{}", "null", r#"{"format":1,"places":{"a":{}}}"#, r#"{"format":1,"places":{},"x":1}"#]
        {
            assert!(matches!(Speeds::parse(text.as_bytes()), Err(SpeedsError::Malformed(_))), "{text}");
        }
        let newer = Speeds::parse(br#"{"format":2,"places":{}}"#);
        assert!(matches!(newer, Err(SpeedsError::Format(2))));
    }
}
