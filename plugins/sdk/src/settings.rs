//! Reads a policy component's settings: every key known and well-formed, or a list of what is not.
//!
//! A plugin asks a [`Reader`] for each key; [`read`](crate::read) says whether anything was wrong. Tests use a map in the
//! place of the host.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::host::base::ostler::policy::settings as import;

/// A setting that is refused: its key, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The setting.
    pub key: String,
    /// What is wrong with its value, and what is allowed.
    pub message: String,
}

/// Where settings come from: the `settings` interface in `wit/`.
pub trait Source {
    /// Every key that was given.
    fn keys(&self) -> Vec<String>;
    /// The text as it is.
    fn text(&self, key: &str) -> Option<String>;
    /// A decimal number.
    fn number(&self, key: &str) -> Result<Option<u64>, Invalid>;
    /// `true` or `false`.
    fn flag(&self, key: &str) -> Result<Option<bool>, Invalid>;
}

/// For tests: what a map says.
impl Source for BTreeMap<&str, &str> {
    fn keys(&self) -> Vec<String> {
        BTreeMap::keys(self).map(|key| (*key).to_owned()).collect()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(|value| (*value).to_owned())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Invalid> {
        let parsed = self.get(key).map(|value| value.parse()).transpose();
        parsed.map_err(|_| Invalid { key: key.into(), message: "not a number".into() })
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Invalid> {
        let parsed = self.get(key).map(|value| value.parse()).transpose();
        parsed.map_err(|_| Invalid { key: key.into(), message: "neither true nor false".into() })
    }
}

/// What the host gives. Natively there is no host: tests use a map.
pub(crate) struct Host;

impl Source for Host {
    fn keys(&self) -> Vec<String> {
        import::keys()
    }

    fn text(&self, key: &str) -> Option<String> {
        import::get_string(key)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Invalid> {
        import::get_u64(key).map_err(Invalid::from)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Invalid> {
        import::get_bool(key).map_err(Invalid::from)
    }
}

impl From<import::Malformed> for Invalid {
    fn from(malformed: import::Malformed) -> Self {
        Self { key: malformed.key, message: malformed.message }
    }
}

/// Reads settings one by one and keeps what is wrong with them.
pub struct Reader<'a, S> {
    source: &'a S,
    wrong: Vec<Invalid>,
}

impl<'a, S: Source> Reader<'a, S> {
    /// A reader for a plugin that knows these keys.
    pub fn new(source: &'a S, known: &[&str]) -> Self {
        let unknown = source.keys().into_iter().filter(|key| !known.contains(&key.as_str()));
        let wrong = unknown
            .map(|key| Invalid { message: format!("unknown setting, known are {}", known.join(", ")), key })
            .collect();
        Self { source, wrong }
    }

    /// A number within `range`, if it is set.
    pub fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.keep(self.source.number(key))?;
        if range.contains(&value) {
            return Some(value);
        }
        let message = match (value < *range.start(), *range.end()) {
            (true, _) => format!("{value} is too small, at least {} is allowed", range.start()),
            (false, end) => format!("{value} is too large, at most {end} is allowed"),
        };
        self.refuse(key, message);
        None
    }

    /// `true` or `false`, if it is set.
    pub fn flag(&mut self, key: &str) -> Option<bool> {
        self.keep(self.source.flag(key))
    }

    /// The value that goes with the word that is set, or the default.
    pub fn choice<T: Copy + Default>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let Some(text) = self.source.text(key) else { return T::default() };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.refuse(key, format!("{text:?} is none of {}", words.join(", ")));
        T::default()
    }

    /// What `parse` makes of the text, if it is set. Its error says what is wrong.
    pub fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let parsed = parse(&self.source.text(key)?);
        parsed.map_err(|message| self.refuse(key, message)).ok()
    }

    /// `value`, or everything that was wrong.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<Invalid>> {
        if self.wrong.is_empty() { Ok(value) } else { Err(self.wrong) }
    }

    fn keep<T>(&mut self, read: Result<Option<T>, Invalid>) -> Option<T> {
        read.unwrap_or_else(|invalid| {
            self.wrong.push(invalid);
            None
        })
    }

    /// Refuses a value for a reason that only the plugin knows.
    pub fn refuse(&mut self, key: &str, message: String) {
        self.wrong.push(Invalid { key: key.into(), message });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    type Read = (Option<u64>, Option<bool>, u8, Option<usize>);

    fn read(entries: &[(&'static str, &'static str)]) -> Result<Read, Vec<Invalid>> {
        let source: BTreeMap<&str, &str> = entries.iter().copied().collect();
        let mut reader = Reader::new(&source, &["size", "is-on", "mode", "list"]);
        let size = reader.number("size", 1..=10);
        let is_on = reader.flag("is-on");
        let mode = reader.choice("mode", &[("slow", 1), ("fast", 2)]);
        let list = reader.parsed("list", |text| if text.is_empty() { Err("empty".into()) } else { Ok(text.len()) });
        reader.finish((size, is_on, mode, list))
    }

    #[test]
    fn reads_what_is_set_and_defaults_the_rest() {
        assert_eq!(read(&[]), Ok((None, None, 0, None)));
        let all = [("size", "10"), ("is-on", "true"), ("mode", "fast"), ("list", "abc")];
        assert_eq!(read(&all), Ok((Some(10), Some(true), 2, Some(3))));
    }

    #[test]
    fn names_everything_that_is_wrong() {
        let wrong =
            read(&[("sise", "1"), ("size", "0"), ("is-on", "yes"), ("mode", "warp"), ("list", "")]).unwrap_err();
        let keys: Vec<_> = wrong.iter().map(|invalid| invalid.key.as_str()).collect();
        assert_eq!(keys, ["sise", "size", "is-on", "mode", "list"]);
        assert!(wrong[0].message.contains("size, is-on"), "{}", wrong[0].message);
        assert!(wrong[3].message.contains("\"slow\", \"fast\""), "{}", wrong[3].message);
        let wrong = read(&[("size", "11")]).unwrap_err();
        assert!(wrong[0].message.contains("at most 10"), "{}", wrong[0].message);
    }
}
