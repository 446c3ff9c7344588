//! Labels of a VM: its owner's words about it, which the core keeps and shows, and which policy may go by. Key type:
//! [`Labels`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{SpecError, is_control};

/// Labels of one VM.
const MAX_LABELS: usize = 32;
/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = 63;
/// Longest value, in bytes.
const MAX_VALUE_BYTES: usize = 253;
/// Keys and values of one VM together, in bytes: they stand in the record of each decision about it.
const MAX_BYTES: usize = 4096;
/// Where the API has them.
const FIELD: &str = "spec.labels";
/// How much of a key an error shows.
const SHOWN_CHARS: usize = 64;

/// Key to value, within every bound.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks every bound.
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, SpecError> {
        Self::checked(labels, is_control)
    }

    /// Those of a record: what was allowed when it was written is not refused later.
    pub fn restored(labels: BTreeMap<String, String>) -> Result<Self, SpecError> {
        Self::checked(labels, char::is_control)
    }

    fn checked(labels: BTreeMap<String, String>, is_control: fn(char) -> bool) -> Result<Self, SpecError> {
        let refuse = |reason: String| Err(SpecError::new(FIELD, reason));
        if labels.len() > MAX_LABELS {
            return refuse(format!("{} labels, at most {MAX_LABELS} are allowed", labels.len()));
        }
        for (key, value) in &labels {
            let shown: String = key.chars().take(SHOWN_CHARS).collect();
            if !is_key(key) {
                return refuse(format!(
                    "{shown:?} is no key: 1 to {MAX_KEY_BYTES} bytes of a-z, 0-9, '.', '_', '-' and '/', first and last \
                     a letter or a digit"
                ));
            }
            if value.len() > MAX_VALUE_BYTES {
                let len = value.len();
                return refuse(format!(
                    "the value of {shown:?} has {len} bytes, at most {MAX_VALUE_BYTES} are allowed"
                ));
            }
            if value.chars().any(is_control) {
                return refuse(format!(
                    "the value of {shown:?} holds a control character: only one line of plain text is allowed"
                ));
            }
        }
        let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_BYTES {
            return refuse(format!("keys and values have {bytes} bytes together, at most {MAX_BYTES} are allowed"));
        }
        Ok(Self(labels))
    }

    /// The value of `key`, if it is there; it may be empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them, by key.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = SpecError;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, SpecError> {
        Self::restored(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

fn is_key(key: &str) -> bool {
    let is_end = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_inner = |byte: &u8| is_end(byte) || b"._-/".contains(byte);
    let bytes = key.as_bytes();
    (1..=MAX_KEY_BYTES).contains(&bytes.len())
        && bytes.iter().all(is_inner)
        && [bytes.first(), bytes.last()].into_iter().flatten().all(is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, String> {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Labels::new(pairs.collect()).map_err(|error| {
            assert_eq!(error.field, "spec.labels");
            error.reason
        })
    }

    #[test]
    fn takes_keys_like_names_and_values_of_one_line() {
        let taken = labels(&[("team", "web"), ("example.org/cost-centre_2", "a b = \"ü\""), ("0", "")]).unwrap();
        assert_eq!((taken.get("team"), taken.get("0"), taken.get("other")), (Some("web"), Some(""), None));
        for key in ["", "Team", "-a", "a-", "a/", ".a", "a b", "ü", "a=b", &"k".repeat(64)] {
            assert!(labels(&[(key, "v")]).unwrap_err().contains("is no key"), "{key:?}");
        }
        assert!(labels(&[(&"k".repeat(63), "v")]).is_ok());
        for value in ["a\nb", "a\u{202e}b"] {
            assert!(labels(&[("k", value)]).unwrap_err().contains("control character"), "{value:?}");
        }
        assert!(labels(&[("k", &"v".repeat(253))]).is_ok());
        assert!(labels(&[("k", &"v".repeat(254))]).unwrap_err().contains("254 bytes"));
    }

    #[test]
    fn there_is_an_end_to_their_number_and_to_their_bytes() {
        let many = |count: usize, len: usize| {
            Labels::new((0..count).map(|at| (format!("k{at:03}"), "v".repeat(len))).collect()).map_err(|e| e.reason)
        };
        assert!(many(32, 124).is_ok());
        assert!(many(33, 1).unwrap_err().contains("33 labels"));
        assert!(many(32, 125).unwrap_err().contains("4128 bytes together"));
    }

    #[test]
    fn are_read_as_strictly_as_they_are_made_but_for_what_was_allowed_once() {
        let read = |text: &str| serde_json::from_str::<Labels>(text);
        assert!(read(r#"{"team":"\u05d0\u200f"}"#).is_ok() && read(r#"{"team":"a\nb"}"#).is_err());
        assert_eq!(read(r#"{"team":"web"}"#).unwrap(), labels(&[("team", "web")]).unwrap());
        assert!(read(r#"{"Team":"web"}"#).is_err());
    }
}
