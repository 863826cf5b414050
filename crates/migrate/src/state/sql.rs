//! The small port through which state is read and written: what both engines' connections have in common.

use crate::{
    error::{Error, SqlError},
    ir::Dialect,
};

/// A value to or from the database. State uses whole numbers and text only.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// A whole number; booleans are 0 and 1.
    Integer(i64),
    /// A number with a fraction.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// The number.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is none.
    pub fn integer(&self) -> Result<i64, Error> {
        match self {
            Self::Integer(value) => Ok(*value),
            other => Err(Error::Damaged(format!("a number was expected, not {other:?}"))),
        }
    }

    /// The text.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is none.
    pub fn text(&self) -> Result<&str, Error> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(Error::Damaged(format!("text was expected, not {other:?}"))),
        }
    }

    /// The text, or `None` for NULL.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is neither.
    pub fn optional_text(&self) -> Result<Option<&str>, Error> {
        if *self == Self::Null { Ok(None) } else { self.text().map(Some) }
    }

    /// The number, or `None` for NULL.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is neither.
    pub fn optional_integer(&self) -> Result<Option<i64>, Error> {
        if *self == Self::Null { Ok(None) } else { self.integer().map(Some) }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u64> for Value {
    /// Numbers above `i64::MAX` do not occur in state; they would be stored as that.
    fn from(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(i64::from(value))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A connection on which statements run one after the other. Parameters are `$1`, `$2`, ... in both dialects; every column
/// of state is `bigint` or `text`, and implementations bind and read accordingly.
pub trait Sql {
    /// Which dialect to speak.
    fn dialect(&self) -> Dialect;

    /// Runs one statement, or several without parameters; returns how many rows the last one changed.
    ///
    /// # Errors
    /// What the database says.
    fn execute(&mut self, sql: &str, parameters: &[Value]) -> Result<u64, SqlError>;

    /// Runs one query and returns all its rows.
    ///
    /// # Errors
    /// What the database says.
    fn query(&mut self, sql: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError>;
}

/// Runs `body` in one transaction: committed when it succeeds, rolled back when it does not. A COMMIT whose outcome is
/// unknown is an error; the caller finds out by reading state.
///
/// # Errors
/// What `body` or the database says.
pub fn in_transaction<S: Sql + ?Sized, T>(
    sql: &mut S,
    body: impl FnOnce(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    let statement = match sql.dialect() {
        Dialect::Postgres => "BEGIN",
        Dialect::Sqlite => "BEGIN IMMEDIATE",
    };
    sql.execute(statement, &[])?;
    match body(sql) {
        Ok(value) => {
            if let Err(error) = sql.execute("COMMIT", &[]) {
                let _ = sql.execute("ROLLBACK", &[]);
                return Err(error.into());
            }
            Ok(value)
        }
        Err(error) => {
            // The first error is the one to tell; a connection that is gone rolls back by itself.
            let _ = sql.execute("ROLLBACK", &[]);
            Err(error)
        }
    }
}
