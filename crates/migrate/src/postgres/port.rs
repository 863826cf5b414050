//! The state's port on a session: parameters by number, values that are whole numbers or text.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::session::Session;
use crate::{
    error::SqlError,
    ir::Dialect,
    state::sql::{Sql, Value},
};

/// A session, as state sees it.
pub(crate) struct Port<'a>(pub(crate) &'a mut Session);

/// A value in text form, whatever type the server infers for its parameter.
#[derive(Debug)]
pub(crate) struct Parameter<'a>(pub(crate) &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::Integer(value) => write!(out, "{value}")?,
            Value::Real(value) => write!(out, "{value}")?,
            Value::Text(text) => out.put_slice(text.as_bytes()),
            Value::Bytes(bytes) => {
                out.put_slice(b"\\x");
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

impl Sql for Port<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn execute(&mut self, sql: &str, parameters: &[Value]) -> Result<u64, SqlError> {
        self.0.execute(sql, parameters)
    }

    fn query(&mut self, sql: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
        self.0.query(sql, parameters)
    }
}
