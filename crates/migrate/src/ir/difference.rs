//! What two versions of one migration differ in, field by field.

use std::fmt;

use serde_json::Value;

use super::Migration;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field: `steps[2].column.type`; steps count from 1.
    pub field: String,
    /// Its value as applied; `None` if it was not there.
    pub was: Option<String>,
    /// Its value now; `None` if it is gone.
    pub is: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
        write!(f, "{}: {} -> {}", self.field, shown(&self.was), shown(&self.is))
    }
}

/// The fields of the identity in which two migrations differ, in the order of their names.
pub fn differences(was: &Migration, is: &Migration) -> Vec<Difference> {
    let parse =
        |migration: &Migration| serde_json::from_str(&migration.canonical()).expect("canonical JSON is JSON");
    let mut found = Vec::new();
    walk("", Some(&parse(was)), Some(&parse(is)), &mut found);
    found
}

fn walk(path: &str, was: Option<&Value>, is: Option<&Value>, found: &mut Vec<Difference>) {
    match (was, is) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for at in 0..a.len().max(b.len()) {
                walk(&format!("{path}[{}]", at + 1), a.get(at), b.get(at), found);
            }
        }
        (was, is) if was == is => {}
        (was, is) => found.push(Difference {
            field: path.to_owned(),
            was: was.map(ToString::to_string),
            is: is.map(ToString::to_string),
        }),
    }
}
