//! Settings to [`Limits`]: every key known and well-formed, or a list of what is not.
//!
//! [`Source`] is the host's `settings` import as a trait, so that the rules are tested without a host.

use crate::host::ostler::policy::settings as import;
use crate::limits::{Limits, Mode};

const KEYS: [&str; 6] = ["max-memory-mib", "max-vcpus", "max-vms", "mode", "total-memory-mib", "total-vcpus"];

/// A setting that is refused: its key, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub key: String,
    pub message: String,
}

/// Where settings come from.
pub(crate) trait Source {
    fn keys(&self) -> Vec<String>;
    fn text(&self, key: &str) -> Option<String>;
    fn number(&self, key: &str) -> Result<Option<u64>, Invalid>;
}

/// The real one.
pub(crate) struct Host;

impl Source for Host {
    fn keys(&self) -> Vec<String> {
        import::keys()
    }

    fn text(&self, key: &str) -> Option<String> {
        import::get_string(key)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Invalid> {
        import::get_u64(key).map_err(|e| Invalid { key: e.key, message: e.message })
    }
}

/// All settings, or everything that is wrong with them.
pub(crate) fn read(source: &impl Source) -> Result<Limits, Vec<Invalid>> {
    let mut wrong: Vec<Invalid> = source
        .keys()
        .into_iter()
        .filter(|key| !KEYS.contains(&key.as_str()))
        .map(|key| Invalid { message: format!("unknown setting, known are {}", KEYS.join(", ")), key })
        .collect();
    let mut number = |key: &str, least: u64| match source.number(key) {
        Ok(Some(value)) if value < least => {
            wrong.push(Invalid {
                key: key.into(),
                message: format!("{value} is too small, at least {least} is allowed"),
            });
            None
        }
        Ok(value) => value,
        Err(invalid) => {
            wrong.push(invalid);
            None
        }
    };
    let limits = Limits {
        max_vms: number("max-vms", 0),
        // A VM of no size cannot be capped to: such a limit is a mistake in either mode.
        max_vcpus: number("max-vcpus", 1),
        max_memory_mib: number("max-memory-mib", 1),
        total_vcpus: number("total-vcpus", 0),
        total_memory_mib: number("total-memory-mib", 0),
        mode: Mode::default(),
    };
    let mode = match source.text("mode").as_deref() {
        None | Some("deny") => Mode::Deny,
        Some("cap") => Mode::Cap,
        Some(other) => {
            wrong.push(Invalid { key: "mode".into(), message: format!("{other:?} is neither \"deny\" nor \"cap\"") });
            Mode::Deny
        }
    };
    if wrong.is_empty() { Ok(Limits { mode, ..limits }) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Map(BTreeMap<&'static str, &'static str>);

    impl Source for Map {
        fn keys(&self) -> Vec<String> {
            self.0.keys().map(|key| (*key).to_owned()).collect()
        }

        fn text(&self, key: &str) -> Option<String> {
            self.0.get(key).map(|value| (*value).to_owned())
        }

        fn number(&self, key: &str) -> Result<Option<u64>, Invalid> {
            let parsed = self.0.get(key).map(|value| value.parse()).transpose();
            parsed.map_err(|_| Invalid { key: key.into(), message: "not a number".into() })
        }
    }

    fn read_map<const N: usize>(entries: [(&'static str, &'static str); N]) -> Result<Limits, Vec<Invalid>> {
        read(&Map(entries.into()))
    }

    #[test]
    fn reads_every_setting() {
        let limits = read_map([
            ("max-vms", "1"),
            ("max-vcpus", "2"),
            ("max-memory-mib", "3"),
            ("total-vcpus", "4"),
            ("total-memory-mib", "5"),
            ("mode", "cap"),
        ]);
        let expected = Limits {
            max_vms: Some(1),
            max_vcpus: Some(2),
            max_memory_mib: Some(3),
            total_vcpus: Some(4),
            total_memory_mib: Some(5),
            mode: Mode::Cap,
        };
        assert_eq!(limits, Ok(expected));
        assert_eq!(read_map([]), Ok(Limits::default()));
    }

    #[test]
    fn names_every_setting_that_is_wrong() {
        let wrong = read_map([("max-vm", "1"), ("max-vms", "many"), ("max-vcpus", "0"), ("mode", "warn")]).unwrap_err();
        let keys: Vec<_> = wrong.iter().map(|invalid| invalid.key.as_str()).collect();
        assert_eq!(keys, ["max-vm", "max-vms", "max-vcpus", "mode"]);
        assert!(wrong[0].message.contains("max-vms"), "{}", wrong[0].message);
    }
}
