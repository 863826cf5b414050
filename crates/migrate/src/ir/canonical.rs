//! Canonical JSON (RFC 8785), for values made of strings, integers, booleans, arrays and objects.

use serde_json::Value;

/// Prints a value: no white space, keys in the order of their UTF-16 code units (section 3.2.3). Numbers are integers in
/// all that is hashed here, for which the ECMAScript form is the decimal one.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    print(value, &mut text);
    text
}

fn print(value: &Value, text: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string())
        }
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                print(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            text.push('{');
            for (at, (key, item)) in fields.into_iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                print(item, text);
            }
            text.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_nothing_else_changes() {
        let value: Value = serde_json::from_str(
            r#"{ "b": [1, true, null], "a": "\u00e9\n\"", "\ud83d\ude00": 1, "\ufb33": 2 }"#,
        )
        .unwrap();
        // A surrogate pair sorts before U+FB33 by UTF-16 code units, after it by bytes.
        assert_eq!(
            canonical_json(&value),
            "{\"a\":\"é\\n\\\"\",\"b\":[1,true,null],\"😀\":1,\"\u{fb33}\":2}"
        );
    }
}
