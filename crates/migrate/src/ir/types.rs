//! Portable column types, and how each engine writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Dialect;

/// A column type. Portable ones have a fixed spelling per engine; `native:TEXT` is passed on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `smallint`: 16 bits.
    Smallint,
    /// `integer`: 32 bits (64 in SQLite).
    Integer,
    /// `bigint`: 64 bits.
    Bigint,
    /// `boolean`.
    Boolean,
    /// `text`.
    Text,
    /// `varchar(n)`: at most n characters. SQLite does not enforce it.
    Varchar(u32),
    /// `decimal(precision,scale)`.
    Decimal(u32, u32),
    /// `real`: 32 bits (64 in SQLite).
    Real,
    /// `double`: 64 bits.
    Double,
    /// `bytes`.
    Bytes,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `timestamp` without zone.
    Timestamp,
    /// `timestamptz`.
    Timestamptz,
    /// `uuid`.
    Uuid,
    /// `json`: `jsonb` in PostgreSQL.
    Json,
    /// `native:..`: the engine's own spelling.
    Native(String),
}

/// Why a string is no [`Type`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no portable type{suggestion}; write `native:{found}` to pass it to the engine as it is"
)]
pub struct TypeError {
    found: String,
    suggestion: String,
}

const PLAIN: &[(&str, Type)] = &[
    ("smallint", Type::Smallint),
    ("integer", Type::Integer),
    ("int", Type::Integer),
    ("bigint", Type::Bigint),
    ("boolean", Type::Boolean),
    ("bool", Type::Boolean),
    ("text", Type::Text),
    ("real", Type::Real),
    ("double", Type::Double),
    ("bytes", Type::Bytes),
    ("date", Type::Date),
    ("time", Type::Time),
    ("timestamp", Type::Timestamp),
    ("timestamptz", Type::Timestamptz),
    ("uuid", Type::Uuid),
    ("json", Type::Json),
];

impl Type {
    /// The type as SQL text.
    pub fn print(&self, dialect: Dialect) -> String {
        let text = match (self, dialect) {
            (Self::Double, Dialect::Postgres) => "double precision",
            (Self::Double, Dialect::Sqlite) => "double",
            (Self::Bytes, Dialect::Postgres) => "bytea",
            (Self::Bytes, Dialect::Sqlite) => "blob",
            (Self::Json, Dialect::Postgres) => "jsonb",
            (Self::Decimal(precision, scale), Dialect::Postgres) => {
                return format!("numeric({precision},{scale})");
            }
            (Self::Native(text), _) => text,
            _ => return self.to_string(),
        };
        text.to_owned()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Varchar(length) => write!(f, "varchar({length})"),
            Self::Decimal(precision, scale) => write!(f, "decimal({precision},{scale})"),
            Self::Native(text) => write!(f, "native:{text}"),
            plain => {
                let name = PLAIN.iter().find(|(_, kind)| kind == plain).map_or("text", |(name, _)| name);
                f.write_str(name)
            }
        }
    }
}

impl FromStr for Type {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        if let Some(native) = text.strip_prefix("native:").map(str::trim).filter(|native| !native.is_empty())
        {
            return Ok(Self::Native(native.to_owned()));
        }
        let lower = text.trim().to_ascii_lowercase();
        if let Some((_, plain)) = PLAIN.iter().find(|(name, _)| *name == lower) {
            return Ok(plain.clone());
        }
        let parts = lower.strip_suffix(')').and_then(|text| text.split_once('('));
        let numbers =
            |text: &str| text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<u32>>>();
        match parts.and_then(|(name, rest)| Some((name.trim(), numbers(rest)?))) {
            Some(("varchar", numbers)) if numbers.len() == 1 && numbers[0] > 0 => {
                Ok(Self::Varchar(numbers[0]))
            }
            Some(("decimal" | "numeric", numbers)) if numbers.len() == 2 && numbers[1] <= numbers[0] => {
                Ok(Self::Decimal(numbers[0], numbers[1]))
            }
            _ => {
                let names = PLAIN.iter().map(|(name, _)| *name).chain(["varchar(20)", "decimal(18,2)"]);
                let near = names.map(|name| (strsim::damerau_levenshtein(name, &lower), name)).min();
                let suggestion = match near {
                    Some((distance, name)) if distance <= 3 => format!(" (did you mean `{name}`?)"),
                    _ => String::new(),
                };
                Err(TypeError { found: text.to_owned(), suggestion })
            }
        }
    }
}

impl Serialize for Type {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Type {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_printed_and_guessed_when_misspelt() {
        for text in ["integer", "varchar(20)", "decimal(18,2)", "timestamptz", "native:tsvector"] {
            assert_eq!(text.parse::<Type>().unwrap().to_string(), text);
        }
        assert_eq!("INT".parse::<Type>().unwrap(), Type::Integer);
        assert_eq!("numeric(5, 0)".parse::<Type>().unwrap(), Type::Decimal(5, 0));
        let error = "interger".parse::<Type>().unwrap_err().to_string();
        assert!(error.contains("did you mean `integer`"), "{error}");
        assert!("decimal(2,5)".parse::<Type>().is_err());
    }
}
