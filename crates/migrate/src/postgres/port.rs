//! The state's port on a session: parameters by number, values that are whole numbers or text.

use bytes::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::session::Session;
use crate::{
    error::SqlError,
    ir::Dialect,
    state::sql::{Sql, Value},
};

/// A session, as state sees it.
pub(crate) struct Port<'a>(pub(crate) &'a mut Session);

/// A value as the type that the server infers for its parameter.
#[derive(Debug)]
pub(crate) struct Parameter<'a>(pub(crate) &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self.0, kind) {
            (Value::Null, _) => Ok(IsNull::Yes),
            (Value::Integer(value), &Type::INT4) => i32::try_from(*value)?.to_sql(kind, out),
            (Value::Integer(value), &Type::INT2) => i16::try_from(*value)?.to_sql(kind, out),
            (Value::Integer(value), &Type::BOOL) => (*value != 0).to_sql(kind, out),
            (Value::Integer(value), &Type::INT8) => value.to_sql(kind, out),
            (Value::Integer(value), _) => value.to_string().to_sql(&Type::TEXT, out),
            (Value::Real(value), &Type::FLOAT8) => value.to_sql(kind, out),
            (Value::Real(value), _) => value.to_string().to_sql(&Type::TEXT, out),
            (Value::Text(text), _) => text.to_sql(&Type::TEXT, out),
            (Value::Bytes(bytes), _) => bytes.as_slice().to_sql(&Type::BYTEA, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
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
