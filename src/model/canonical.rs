//! JSON with one spelling for each value, so that equal values have equal hashes. Key function: [`canonical`].
//!
//! As RFC 8785 (JSON Canonicalization Scheme): no white space, keys in order, the shortest escapes. It differs in
//! numbers, which are integers only, written in full: there are no fractions to round.

use serde::Serialize;
use serde_json::Value;

/// A value that has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum NotCanonical {
    /// A number with a fraction or an exponent.
    #[error("the number {0} is not an integer of 64 bits")]
    Fraction(String),
    /// Not a JSON value at all: a key that is no text, say.
    #[error("this is no JSON value: {0}")]
    NoJson(#[from] serde_json::Error),
}

/// The one spelling of `value`.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, NotCanonical> {
    let mut bytes = Vec::with_capacity(512);
    write(&serde_json::to_value(value)?, &mut bytes)?;
    Ok(bytes)
}

/// Whether `bytes` spell a value, and in its one way; the value then.
pub fn read_canonical(bytes: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let mut again = Vec::with_capacity(bytes.len());
    write(&value, &mut again).ok()?;
    (again == bytes).then_some(value)
}

fn write(value: &Value, bytes: &mut Vec<u8>) -> Result<(), NotCanonical> {
    match value {
        Value::Number(number) if !(number.is_u64() || number.is_i64()) => {
            return Err(NotCanonical::Fraction(number.to_string()));
        }
        // serde_json escapes as RFC 8785 §3.2.2.2 asks for.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => serde_json::to_writer(bytes, value)?,
        Value::Array(items) => {
            bytes.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    bytes.push(b',');
                }
                write(item, bytes)?;
            }
            bytes.push(b']');
        }
        Value::Object(entries) => {
            // Not left to the map's own order, which a feature of serde_json changes.
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            bytes.push(b'{');
            for (at, (key, item)) in sorted.into_iter().enumerate() {
                if at > 0 {
                    bytes.push(b',');
                }
                serde_json::to_writer(&mut *bytes, key)?;
                bytes.push(b':');
                write(item, bytes)?;
            }
            bytes.push(b'}');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn writes_keys_in_order_and_escapes_shortly() {
        let value = json!({"b": [1, -2, u64::MAX, null], "a": {"z": "\u{1}\n\"\\/é", "y": true}});
        let text = String::from_utf8(canonical(&value).unwrap()).unwrap();
        assert_eq!(text, r#"{"a":{"y":true,"z":"\u0001\n\"\\/é"},"b":[1,-2,18446744073709551615,null]}"#);
        assert!(matches!(canonical(&json!({"a": 0.5})), Err(NotCanonical::Fraction(_))));
    }

    #[test]
    fn takes_no_other_spelling() {
        assert!(read_canonical(br#"{"a":1,"b":2}"#).is_some());
        for other in [r#"{"b":2,"a":1}"#, r#"{"a":1, "b":2}"#, r#"{"a":1,"a":1}"#, r#"{"\u0061":1}"#, "1e0", "-0", ""] {
            assert!(read_canonical(other.as_bytes()).is_none(), "{other}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC{0,8}|[\\x00-\\x20\"\\\\]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map("\\PC{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_has_one_spelling_that_is_read_back(value in any_value()) {
            let bytes = canonical(&value).unwrap();
            prop_assert_eq!(read_canonical(&bytes), Some(value.clone()));
            // However it was written before.
            let pretty: Value = serde_json::from_str(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
            prop_assert_eq!(canonical(&pretty).unwrap(), bytes);
        }

        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_canonical(&bytes);
        }
    }
}
