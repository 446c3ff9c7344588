//! Which labels a VM must have. Key type: [`Required`].

use ostler_policy::{Refusal, refuse};

use crate::text::listed;

/// Labels that every VM must have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Required(Vec<Label>);

/// A label, with whatever value if none is named.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    key: String,
    values: Vec<String>,
}

impl Required {
    /// Reads `owner,tier=prod|test`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(Label::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a VM has them; `of` gives the value of one of its labels.
    pub(crate) fn judge(&self, of: impl Fn(&str) -> Option<String>) -> Result<(), Refusal> {
        self.0.iter().try_for_each(|label| label.judge(of(&label.key)))
    }
}

impl Label {
    fn parse(text: &str) -> Result<Self, String> {
        let (key, values) = match text.trim().split_once('=') {
            Some((key, values)) => (key, values.split('|').map(str::to_owned).collect()),
            None => (text.trim(), Vec::new()),
        };
        // What the host takes: anything else is a label that no VM can have.
        let is_end = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let is_inner = |b: &u8| is_end(b) || b"._-/".contains(b);
        let bytes = key.as_bytes();
        let is_key =
            bytes.first().is_some_and(is_end) && bytes.last().is_some_and(is_end) && bytes.iter().all(is_inner);
        let is_value = |value: &String| value.len() <= 253 && !value.chars().any(char::is_control);
        if key.len() > 63 || !is_key || !values.iter().all(is_value) {
            return Err(format!(
                "{text:?} is no label: write keys, and values with | between them, such as owner,tier=prod|test"
            ));
        }
        Ok(Self { key: key.to_owned(), values })
    }

    fn judge(&self, value: Option<String>) -> Result<(), Refusal> {
        let key = &self.key;
        let wanted = || listed(&self.values);
        match value {
            None if self.values.is_empty() => Err(refuse("label.missing", format!("VM has no label {key}"))),
            None => Err(refuse("label.missing", format!("VM has no label {key}; allowed are {}", wanted()))),
            Some(value) if self.values.is_empty() || self.values.contains(&value) => Ok(()),
            Some(value) => {
                let message = format!("the label {key} is {value}; allowed are {}", wanted());
                Err(refuse("label.not-allowed", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(required: &str, labels: &[(&str, &str)]) -> Result<(), (&'static str, String)> {
        let of = |key: &str| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned());
        Required::parse(required).unwrap().judge(of).map_err(|refusal| (refusal.code, refusal.message))
    }

    #[test]
    fn a_label_must_be_there_with_one_of_its_values_if_some_are_named() {
        assert_eq!(judge("owner,tier=prod|test", &[("owner", ""), ("tier", "test"), ("other", "x")]), Ok(()));
        let missing = judge("owner,tier=prod|test", &[("tier", "test")]).unwrap_err();
        assert_eq!(missing, ("label.missing", "VM has no label owner".to_owned()));
        let missing = judge("owner,tier=prod|test", &[("owner", "x")]).unwrap_err();
        assert_eq!(missing, ("label.missing", "VM has no label tier; allowed are prod, test".to_owned()));
        let other = judge("tier=prod|test", &[("tier", "pro")]).unwrap_err();
        assert_eq!(other, ("label.not-allowed", "the label tier is pro; allowed are prod, test".to_owned()));
        assert_eq!(judge("tier=", &[("tier", "")]), Ok(()));
        assert_eq!(judge("tier=", &[("tier", "x")]).unwrap_err().0, "label.not-allowed");
        assert_eq!(Required::default().judge(|_| None), Ok(()));
    }

    #[test]
    fn what_no_vm_can_have_is_refused() {
        for text in ["", ",", "owner,", "Owner", "=x", "a b", "owner=a\nb"] {
            assert!(Required::parse(text).unwrap_err().contains("is no label"), "{text:?}");
        }
        assert!(Required::parse(&"k".repeat(64)).is_err());
        assert!(Required::parse(" example.org/owner , tier=a=b").is_ok());
    }

    #[test]
    fn a_denial_is_never_longer_than_the_host_takes() {
        let (key, value) = ("k".repeat(63), "v".repeat(253));
        let required = format!("{key}={}", vec!["w".repeat(200); 15].join("|"));
        let (_, message) = judge(&required, &[(&key, &value)]).unwrap_err();
        assert!(message.len() <= 512, "{}", message.len());
    }
}
