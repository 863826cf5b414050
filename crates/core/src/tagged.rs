//! Reading enums whose variant is named by a field, without holding them twice.
//!
//! serde reads such an enum into a tree of its own before it knows the variant, which for the plan of a large release
//! takes several times the memory of the plan. Everything that reads here was written by this program, which writes the
//! naming field first; so that is demanded, and what follows is read straight into the variant.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// An enum of which the field [`Tagged::TAG`], always the first, names the variant.
pub(crate) trait Tagged: Sized {
    /// The name of the field.
    const TAG: &'static str;
    /// The names of the variants.
    const VARIANTS: &'static [&'static str];

    /// Reads the other fields of the variant `name`; `None` when there is no such variant.
    fn variant<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Option<Result<Self, D::Error>>;
}

/// Reads a [`Tagged`] enum.
pub(crate) fn deserialize<'de, T: Tagged, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(TagFirst(PhantomData))
}

/// The fields of a variant that has none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoFields {}

struct TagFirst<T>(PhantomData<T>);

impl<'de, T: Tagged> Visitor<'de> for TagFirst<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object that begins with `{}`", T::TAG)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let first: Option<String> = map.next_key()?;
        if first.as_deref() != Some(T::TAG) {
            return Err(A::Error::custom(format_args!("an object must begin with `{}`", T::TAG)));
        }
        let name: String = map.next_value()?;
        T::variant(&name, MapAccessDeserializer::new(map))
            .unwrap_or_else(|| Err(A::Error::unknown_variant(&name, T::VARIANTS)))
    }
}
