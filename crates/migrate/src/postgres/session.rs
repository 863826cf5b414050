//! One connection: statements in, rows of text out.
//!
//! Everything goes through the simple query protocol: a batch is one round trip, every value is text as the server prints
//! it, and only the server compares keys. Settings that change how values are printed or read are fixed here.

use std::time::Duration;

use postgres::{
    Client, Config, SimpleQueryMessage,
    error::SqlState,
    types::{ToSql, Type},
};

use super::port::Parameter;
use crate::{
    error::{Error, SqlError, SqlErrorKind},
    state::sql::Value,
};

/// A row: each value as the server prints it, `None` for NULL.
pub(crate) type Row = Vec<Option<String>>;

/// SQLSTATE of our own: the lease is no longer ours ([`super::polite::fence`]).
pub(crate) const FENCED: &str = "CUT01";
/// SQLSTATE of our own: what a statement under a lock relies on is no longer so; nothing was done.
pub(crate) const MOVED: &str = "CUT02";

/// Fixed for every connection of the engine. `search_path` is empty, so that the server prints every name qualified and
/// expressions mean the same as in our functions; `row_security = off` makes a policy that would hide rows an error. No query
/// of ours takes more than one processor from clients.
const SETTINGS: &str = "SET search_path = ''; SET row_security = off; SET standard_conforming_strings = on; \
     SET extra_float_digits = 1; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; \
     SET client_min_messages = warning; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
     SET lock_timeout = '5s'; SET max_parallel_workers_per_gather = 0; \
     SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')";

/// How functions that run in clients' sessions print what we compare or read again: as connections of ours do, but for the time
/// zone, which is the database's own there, for the expressions of migrations.
pub(crate) const PRINTED: &str = "SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' \
     SET extra_float_digits = 1 SET bytea_output = 'hex'";

/// A connection of the engine.
pub(crate) struct Session {
    client: Client,
}

impl Session {
    /// Connects and fixes the settings.
    pub(crate) fn open(config: &Config, tls: &super::tls::Tls) -> Result<Self, Error> {
        let mut config = config.clone();
        if config.get_application_name().is_none() {
            config.application_name("cutover");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(10));
        }
        let client = tls.connect(&config).map_err(|error| failure(&error, "connect"))?;
        let mut session = Self { client };
        session.run(SETTINGS)?;
        Ok(session)
    }

    /// With which another thread ends what this connection is doing.
    pub(crate) fn cancel_token(&self) -> postgres::CancelToken {
        self.client.cancel_token()
    }

    /// Runs a batch in one round trip; the rows of all its statements, in order.
    ///
    /// # Errors
    /// What the server says to the first statement that fails; a transaction which the batch began stays open.
    pub(crate) fn run(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let messages = self.client.simple_query(sql).map_err(|error| failure(&error, sql))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|at| row.get(at).map(ToOwned::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Runs a batch; how many rows its last statement touched.
    pub(crate) fn count(&mut self, sql: &str) -> Result<u64, Error> {
        let messages = self.client.simple_query(sql).map_err(|error| failure(&error, sql))?;
        Ok(messages
            .iter()
            .rev()
            .find_map(|message| match message {
                SimpleQueryMessage::CommandComplete(count) => Some(*count),
                _ => None,
            })
            .unwrap_or(0))
    }

    /// The first row of a batch, if there is one.
    pub(crate) fn row(&mut self, sql: &str) -> Result<Option<Row>, Error> {
        Ok(self.run(sql)?.into_iter().next())
    }

    /// The first value of the first row.
    pub(crate) fn value(&mut self, sql: &str) -> Result<Option<String>, Error> {
        Ok(self.row(sql)?.and_then(|row| row.into_iter().next().flatten()))
    }

    /// Whether a query yields `true` first.
    pub(crate) fn is_true(&mut self, sql: &str) -> Result<bool, Error> {
        Ok(self.value(sql)?.as_deref() == Some("t"))
    }

    /// Runs a batch between BEGIN and COMMIT, in one round trip; rolls back when a statement fails.
    pub(crate) fn transaction(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let result = self.run(&format!("BEGIN; {sql}; COMMIT"));
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    /// Ends whatever transaction is open. A connection that is gone has none.
    pub(crate) fn roll_back(&mut self) {
        // A failure means that the connection is gone, which the next statement will say.
        let _ = self.client.batch_execute("ROLLBACK");
    }

    /// One statement with parameters, or a batch without; how many rows the last one changed.
    pub(crate) fn execute(&mut self, sql: &str, parameters: &[Value]) -> Result<u64, SqlError> {
        if parameters.is_empty() {
            return self.count(sql).map_err(plain);
        }
        let parameters: Vec<Parameter<'_>> = parameters.iter().map(Parameter).collect();
        self.client.execute_typed(sql, &typed(&parameters)).map_err(|error| plain(failure(&error, sql)))
    }

    /// One query with parameters; all its rows.
    pub(crate) fn query(&mut self, sql: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
        let parameters: Vec<Parameter<'_>> = parameters.iter().map(Parameter).collect();
        let rows =
            self.client.query_typed(sql, &typed(&parameters)).map_err(|error| plain(failure(&error, sql)))?;
        rows.iter().map(|row| (0..row.len()).map(|at| value(row, at, sql)).collect()).collect()
    }
}

/// Parameters whose types the server infers: so a statement takes one round trip, not one more to ask for them.
fn typed<'a>(parameters: &'a [Parameter<'_>]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    parameters.iter().map(|one| (one as &(dyn ToSql + Sync), Type::UNKNOWN)).collect()
}

/// A value of a row, as state knows them.
fn value(row: &postgres::Row, at: usize, sql: &str) -> Result<Value, SqlError> {
    let kind = row.columns()[at].type_();
    let found = match *kind {
        Type::INT8 => row.try_get::<_, Option<i64>>(at).map(Value::from),
        Type::INT4 => row.try_get::<_, Option<i32>>(at).map(|value| Value::from(value.map(i64::from))),
        Type::INT2 => row.try_get::<_, Option<i16>>(at).map(|value| Value::from(value.map(i64::from))),
        Type::BOOL => row.try_get::<_, Option<bool>>(at).map(Value::from),
        Type::FLOAT8 => row.try_get::<_, Option<f64>>(at).map(|value| value.map_or(Value::Null, Value::Real)),
        Type::BYTEA => {
            row.try_get::<_, Option<Vec<u8>>>(at).map(|value| value.map_or(Value::Null, Value::Bytes))
        }
        _ => row.try_get::<_, Option<String>>(at).map(Value::from),
    };
    found.map_err(|error| SqlError::new(SqlErrorKind::Other, "", error.to_string(), sql))
}

/// The SQL error that a session's errors always are.
fn plain(error: Error) -> SqlError {
    match error {
        Error::Sql(error) => error,
        other => SqlError::new(SqlErrorKind::Other, "", other.to_string(), ""),
    }
}

/// What the server said, sorted by what the protocol does about it.
fn failure(error: &postgres::Error, statement: &str) -> Error {
    let Some(said) = error.as_db_error() else {
        let words = std::iter::successors(std::error::Error::source(error), |cause| cause.source())
            .fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        return SqlError::new(SqlErrorKind::Connection, "08006", words, statement).into();
    };
    let code = said.code();
    let kind = match code.code() {
        _ if *code == SqlState::LOCK_NOT_AVAILABLE => SqlErrorKind::Busy,
        "40001" | "40P01" => SqlErrorKind::Conflict,
        "23505" => SqlErrorKind::Unique,
        "57P01" | "57P02" | "57P03" => SqlErrorKind::Connection,
        text => match &text[..2] {
            "08" => SqlErrorKind::Connection,
            "22" | "23" => SqlErrorKind::Data,
            _ => SqlErrorKind::Other,
        },
    };
    let words = match (said.detail(), said.where_()) {
        (Some(detail), _) => format!("{}: {detail}", said.message()),
        (None, _) => said.message().to_owned(),
    };
    SqlError::new(kind, code.code(), words, statement).into()
}

/// A name, quoted.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name in a schema, quoted.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Text as a literal, whatever the server's settings are.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// The SQLSTATE of an error, when the server gave one.
pub(crate) fn code(error: &Error) -> Option<&str> {
    match error {
        Error::Sql(error) => Some(&error.code),
        _ => None,
    }
}

/// What kind of error the server gave.
pub(crate) fn kind(error: &Error) -> Option<SqlErrorKind> {
    match error {
        Error::Sql(error) => Some(error.kind),
        _ => None,
    }
}
