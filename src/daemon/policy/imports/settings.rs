//! The import `settings`: the plugin's own settings, typed, read-only.

use super::super::text::to_line;
use super::Call;
use super::bindings::ostler::policy::settings::{Host, Malformed};
use super::bindings::ostler::policy::types;

/// Longest part of a refused value that an error shows, in bytes.
const SHOWN_BYTES: usize = 64;

impl Call {
    /// The value of `key` as `parse` reads it, or an error that names the value and what was `expected`.
    fn read<T>(
        &self,
        key: String,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Malformed> {
        let Some(value) = self.settings.get(&key) else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| {
            let message = format!("{:?} is not {expected}", to_line(value, SHOWN_BYTES));
            Malformed { key, message }
        })
    }
}

impl Host for Call {
    fn keys(&mut self) -> wasmtime::Result<Vec<String>> {
        self.count()?;
        Ok(self.settings.keys().cloned().collect())
    }

    fn get_string(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        self.count()?;
        Ok(self.settings.get(&key).cloned())
    }

    fn get_u64(&mut self, key: String) -> wasmtime::Result<Result<Option<u64>, Malformed>> {
        self.count()?;
        // `str::parse` would take a leading `+` too.
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Ok(self.read(key, "a number from 0 to 18446744073709551615", digits))
    }

    fn get_bool(&mut self, key: String) -> wasmtime::Result<Result<Option<bool>, Malformed>> {
        self.count()?;
        Ok(self.read(key, "true or false", |text| text.parse().ok()))
    }
}

// Types only.
impl types::Host for Call {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn call(value: &str) -> Call {
        Call::new(Arc::new([("k".to_owned(), value.to_owned())].into()), 0)
    }

    #[test]
    fn reads_numbers_strictly() {
        assert_eq!(call("18446744073709551615").get_u64("k".into()).unwrap().unwrap(), Some(u64::MAX));
        assert_eq!(call("7").get_u64("other".into()).unwrap().unwrap(), None);
        for value in ["", "+7", "-7", "7 ", "0x7", "18446744073709551616", "many"] {
            let malformed = call(value).get_u64("k".into()).unwrap().unwrap_err();
            assert_eq!(malformed.key, "k");
            assert!(malformed.message.contains(&format!("{value:?}")), "{}", malformed.message);
        }
    }

    #[test]
    fn reads_booleans_and_texts() {
        assert_eq!(call("true").get_bool("k".into()).unwrap().unwrap(), Some(true));
        assert!(call("yes").get_bool("k".into()).unwrap().is_err());
        assert_eq!(call("yes").get_string("k".into()).unwrap(), Some("yes".into()));
        assert_eq!(call("yes").keys().unwrap(), ["k"]);
    }
}
