//! Canonical JSON: the one spelling of a value that is signed.
//!
//! The OLPC form that TUF implementations use (TUF specification 1.0, section 4.2.1): members sorted by code point, no
//! white space, only `"` and `\` escaped, integers only.

use serde_json::Value;

/// Why a value has no canonical form: a number in it is no integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number in it is no integer, so it has no canonical form")]
pub struct NotCanonical;

/// The canonical form of `value`.
///
/// # Errors
/// [`NotCanonical`].
pub fn canonical(value: &Value) -> Result<Vec<u8>, NotCanonical> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::Number(_) => return Err(NotCanonical),
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // Sorted here, whatever map the parser was built with. UTF-8 sorts as its code points do.
            let mut names: Vec<&String> = members.keys().collect();
            names.sort_unstable();
            out.push(b'{');
            for (at, name) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                string(name, out);
                out.push(b':');
                write(&members[name], out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_sorted_and_only_two_characters_are_escaped() {
        let value: Value = serde_json::from_str(r#"{ "b": [1, true, null], "a": "q\"\\\n\u00e9" }"#).unwrap();
        assert_eq!(
            canonical(&value).unwrap(),
            "{\"a\":\"q\\\"\\\\\n\u{e9}\",\"b\":[1,true,null]}".as_bytes()
        );
    }

    #[test]
    fn a_fraction_has_no_canonical_form() {
        assert_eq!(canonical(&serde_json::json!({ "a": 1.5 })), Err(NotCanonical));
    }
}
