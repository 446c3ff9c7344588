//! JSON with one spelling for each value, so that equal values have equal hashes. Key types: [`Json`], [`canonical`].
//!
//! As RFC 8785 (JSON Canonicalization Scheme): no white space, keys in order, the shortest escapes. It differs in
//! numbers, which are integers only, written in full: there are no fractions to round.

mod writer;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::ser::Error;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

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
    writer::write(value)
}

/// Whether `bytes` spell a value, and in its one way; the value then.
pub fn read_canonical(bytes: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    (canonical(&value).ok()? == bytes).then_some(value)
}

/// A value as its one spelling: what goes into a record is spelled once, and read again only by those who look into it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// The spelling of `value`.
    pub fn of(value: &impl Serialize) -> Result<Self, NotCanonical> {
        let text = String::from_utf8(canonical(value)?).map_err(serde_json::Error::custom)?;
        Ok(Self(RawValue::from_string(text)?))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Reads it as a type.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.as_str())
    }

    /// Reads it as a tree.
    pub fn to_value(&self) -> Value {
        // It was a value when it was made.
        self.read().unwrap_or_default()
    }

    /// Whether it is an enum's variant `name` with content, as serde writes it: an object of that one member.
    pub fn is_variant(&self, name: &str) -> bool {
        self.variant().is_some_and(|variant| variant == name)
    }

    /// The name of the variant, if it is one with content.
    pub fn variant(&self) -> Option<String> {
        let members: BTreeMap<String, IgnoredAny> = self.read().ok()?;
        (members.len() == 1).then(|| members.into_keys().next())?
    }
}

#[cfg(test)]
impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self::of(&value).unwrap()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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

    /// What the writer must give, by way of a tree.
    fn by_tree(value: &Value, bytes: &mut Vec<u8>) {
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    bytes.push(if at == 0 { b'[' } else { b',' });
                    by_tree(item, bytes);
                }
                bytes.extend_from_slice(if items.is_empty() { b"[]" } else { b"]" });
            }
            Value::Object(members) => {
                let sorted: BTreeMap<_, _> = members.iter().collect();
                for (at, (key, item)) in sorted.into_iter().enumerate() {
                    bytes.push(if at == 0 { b'{' } else { b',' });
                    serde_json::to_writer(&mut *bytes, key).unwrap();
                    bytes.push(b':');
                    by_tree(item, bytes);
                }
                bytes.extend_from_slice(if members.is_empty() { b"{}" } else { b"}" });
            }
            leaf => serde_json::to_writer(bytes, leaf).unwrap(),
        }
    }

    fn assert_spelled_as_its_tree(value: &impl Serialize) {
        let mut expected = Vec::new();
        by_tree(&serde_json::to_value(value).unwrap(), &mut expected);
        assert_eq!(String::from_utf8(canonical(value).unwrap()), String::from_utf8(expected));
    }

    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Shape {
        Unit,
        Newtype(Option<u8>),
        Tuple(i8, char),
        Struct { z: (), a: [u16; 2] },
    }

    #[derive(Serialize)]
    struct Shapes {
        z: Vec<Shape>,
        a: BTreeMap<u32, (bool, i64)>,
        m: BTreeMap<String, Option<Json>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        gone: Option<u8>,
    }

    #[test]
    fn types_are_spelled_as_their_trees_are() {
        let shapes = [Shape::Unit, Shape::Newtype(None), Shape::Tuple(-1, '"'), Shape::Struct { z: (), a: [1, 2] }];
        let spelled = Json::of(&json!({"b": "\u{7f}", "a": [[], {}]})).unwrap();
        // As texts "\"" comes before "#", and as they are escaped after it.
        let keys = ["#", "\"", "", "\\", "é"].map(str::to_owned);
        assert_spelled_as_its_tree(&Shapes {
            z: shapes.into(),
            a: [(10, (true, i64::MIN)), (9, (false, 0))].into(),
            m: keys.into_iter().map(|key| (key, Some(spelled.clone()))).chain([("n".into(), None)]).collect(),
            gone: None,
        });
        assert!(matches!(canonical(&0.5_f32), Err(NotCanonical::Fraction(_))));
        assert!(matches!(canonical(&BTreeMap::from([(None::<u8>, 1)])), Err(NotCanonical::NoJson(_))));
    }

    #[test]
    fn what_is_spelled_is_taken_as_it_is_and_read_again() {
        let spelled = Json::of(&json!({"b": 1, "a": {"deny": null}})).unwrap();
        assert_eq!(
            canonical(&[&spelled, &spelled]).unwrap(),
            br#"[{"a":{"deny":null},"b":1},{"a":{"deny":null},"b":1}]"#
        );
        let read: Vec<Json> = serde_json::from_slice(&canonical(&[&spelled]).unwrap()).unwrap();
        assert_eq!(read, std::slice::from_ref(&spelled));
        let read: Json = serde_json::from_value(serde_json::to_value(&spelled).unwrap()).unwrap();
        assert_eq!((read, spelled.to_value()["b"].as_u64(), spelled.variant()), (spelled.clone(), Some(1), None));
        assert!(Json::of(&json!({"deny": {}})).unwrap().is_variant("deny"));
        assert!(!Json::of(&json!("deny")).unwrap().is_variant("deny"));
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
            assert_spelled_as_its_tree(&value);
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
