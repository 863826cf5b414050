//! Reading values that are text in every format, without a copy of the text.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::de::{Error, Visitor};

/// Parses what a deserializer shows it. A manifest has a hundred thousand digests and paths, so none becomes a `String` first.
pub(super) struct Parsed<T> {
    expected: &'static str,
    of: PhantomData<T>,
}

impl<T> Parsed<T> {
    /// `expected` is what to say was expected where there is no text at all.
    pub(super) fn new(expected: &'static str) -> Self {
        Self { expected, of: PhantomData }
    }
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}
