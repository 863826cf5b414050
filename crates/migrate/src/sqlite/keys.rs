//! Keys of rows: as values, in the ledger and in messages.

use rusqlite::types::Value as Cell;

use crate::error::Error;

/// A key as the ledger keeps it.
pub(super) fn print_key(key: &[Cell]) -> String {
    let parts = key.iter().map(|cell| match cell {
        Cell::Null => serde_json::Value::Null,
        Cell::Integer(value) => (*value).into(),
        Cell::Real(value) => serde_json::json!({ "real": value.to_bits() }),
        Cell::Text(text) => text.as_str().into(),
        Cell::Blob(bytes) => serde_json::json!({ "blob": bytes }),
    });
    serde_json::Value::Array(parts.collect()).to_string()
}

pub(super) fn parse_key(text: &str) -> Result<Vec<Cell>, Error> {
    let damaged = || Error::Damaged(format!("the ledger has the key `{text}`"));
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| damaged())?;
    let one = |value: &serde_json::Value| {
        Some(match value {
            serde_json::Value::Null => Cell::Null,
            serde_json::Value::Number(number) => Cell::Integer(number.as_i64()?),
            serde_json::Value::String(text) => Cell::Text(text.clone()),
            other => match (other.get("real"), other.get("blob")) {
                (Some(bits), _) => Cell::Real(f64::from_bits(bits.as_u64()?)),
                (_, Some(bytes)) => Cell::Blob(
                    bytes
                        .as_array()?
                        .iter()
                        .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                        .collect::<Option<_>>()?,
                ),
                _ => return None,
            },
        })
    };
    value.as_array().ok_or_else(damaged)?.iter().map(|value| one(value).ok_or_else(damaged)).collect()
}

pub(super) fn placeholders(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("?{at}")).collect()
}

pub(super) fn shown(key: &[Cell]) -> String {
    let one = |cell: &Cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Integer(value) => value.to_string(),
        Cell::Real(value) => value.to_string(),
        Cell::Text(text) => text.clone(),
        Cell::Blob(bytes) => format!("{} bytes", bytes.len()),
    };
    key.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_ledger() {
        let key = vec![
            Cell::Integer(-5),
            Cell::Text("a\"b".into()),
            Cell::Real(0.1),
            Cell::Blob(vec![0, 255]),
            Cell::Null,
        ];
        assert_eq!(parse_key(&print_key(&key)).unwrap(), key);
    }
}
