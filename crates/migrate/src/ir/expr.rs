//! Constants and SQL expressions.

use serde::{Deserialize, Serialize};

use super::Dialect;

/// A constant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Literal {
    /// `true`, `false`; 1 and 0 in SQLite.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Text; numbers with a fraction are written as text too, so that no binary fraction creeps in.
    Text(String),
}

impl Literal {
    /// The constant as SQL text.
    pub fn print(&self, dialect: Dialect) -> String {
        match (self, dialect) {
            (Self::Boolean(true), Dialect::Postgres) => "true".to_owned(),
            (Self::Boolean(false), Dialect::Postgres) => "false".to_owned(),
            (Self::Boolean(value), Dialect::Sqlite) => u8::from(*value).to_string(),
            (Self::Integer(value), _) => value.to_string(),
            (Self::Text(text), _) => quote_text(text),
        }
    }
}

/// Text as an SQL literal: single quotes doubled. Backslashes mean themselves (standard_conforming_strings).
pub(crate) fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A constant, or an SQL expression of one row, which the engine checks by PREPARE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expr {
    /// A constant: `{ value = 5 }`.
    Value {
        /// The constant.
        value: Literal,
    },
    /// SQL that both engines understand: a plain string, or `{ sql = ".." }`.
    Sql {
        /// The text.
        sql: String,
    },
    /// SQL per engine: `{ postgres = "..", sqlite = ".." }`.
    PerEngine {
        /// The text for PostgreSQL.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        postgres: Option<String>,
        /// The text for SQLite.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sqlite: Option<String>,
    },
}

impl Expr {
    /// An SQL expression for both engines.
    pub fn sql(sql: impl Into<String>) -> Self {
        Self::Sql { sql: sql.into() }
    }

    /// A constant text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Value { value: Literal::Text(text.into()) }
    }

    /// A constant number.
    pub fn integer(value: i64) -> Self {
        Self::Value { value: Literal::Integer(value) }
    }

    /// The SQL text; `None` when the migration gives none for this engine.
    pub fn print(&self, dialect: Dialect) -> Option<String> {
        match (self, dialect) {
            (Self::Value { value }, _) => Some(value.print(dialect)),
            (Self::Sql { sql }, _) => Some(sql.clone()),
            (Self::PerEngine { postgres, .. }, Dialect::Postgres) => postgres.clone(),
            (Self::PerEngine { sqlite, .. }, Dialect::Sqlite) => sqlite.clone(),
        }
    }

    /// Whether it is a constant.
    pub fn is_value(&self) -> bool {
        matches!(self, Self::Value { .. })
    }
}
