//! A memory for tests, one for each thread. It has the limits of the host's.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::kv::Refusal;

/// As in `wit/kv.wit`.
const MAX_KEYS: usize = 64;
const MAX_KEY_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 4096;
const MAX_BYTES: usize = 16 << 10;

#[derive(Default)]
struct Memory {
    entries: BTreeMap<String, Vec<u8>>,
    moment_s: u64,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Has the plugin remember this, at this moment, and nothing else.
pub fn remember(moment_s: u64, entries: &[(&str, &str)]) {
    let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
    MEMORY.with(|memory| memory.replace(Memory { entries, moment_s }));
}

/// What it remembers now, as texts.
pub fn remembered() -> BTreeMap<String, String> {
    let text = |(key, value): (&String, &Vec<u8>)| (key.clone(), String::from_utf8_lossy(value).into_owned());
    MEMORY.with_borrow(|memory| memory.entries.iter().map(text).collect())
}

pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
    MEMORY.with_borrow(|memory| memory.entries.get(key).cloned())
}

pub(crate) fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control) {
        return Err(Refusal::BadKey);
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(Refusal::TooLarge);
    }
    MEMORY.with_borrow_mut(|memory| {
        let others = memory.entries.iter().filter(|(other, _)| *other != key);
        let (count, bytes) = others.fold((1, key.len() + value.len()), |(count, sum), (key, value)| {
            (count + 1, sum + key.len() + value.len())
        });
        if count > MAX_KEYS || bytes > MAX_BYTES {
            return Err(Refusal::Full);
        }
        memory.entries.insert(key.to_owned(), value.to_vec());
        Ok(())
    })
}

pub(crate) fn delete(key: &str) -> bool {
    MEMORY.with_borrow_mut(|memory| memory.entries.remove(key).is_some())
}

pub(crate) fn keys() -> Vec<String> {
    MEMORY.with_borrow(|memory| memory.entries.keys().cloned().collect())
}

pub(crate) fn moment() -> u64 {
    MEMORY.with_borrow(|memory| memory.moment_s)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::kv;

    #[test]
    fn a_plugin_remembers_within_the_hosts_limits() {
        remember(60, &[("a", "7"), ("b", "x")]);
        assert_eq!((kv::number("a"), kv::number("b"), kv::number("c"), kv::moment()), (Some(7), None, None, 60));
        kv::set_number("c", 8).unwrap();
        assert!(kv::delete("b") && !kv::delete("b"));
        assert_eq!(kv::keys(), ["a", "c"]);
        assert_eq!(kv::set("", b""), Err(Refusal::BadKey));
        assert_eq!(kv::set("d", &[0; 4097]), Err(Refusal::TooLarge));
        for key in ["d", "e", "f"] {
            kv::set(key, &[b'x'; 4096]).unwrap();
        }
        assert_eq!(kv::set("g", &[b'x'; 4096]), Err(Refusal::Full));
        (0..59).for_each(|at| kv::set(&format!("k{at}"), b"").unwrap());
        assert_eq!(kv::set("more", b""), Err(Refusal::Full));
        assert_eq!((remembered().len(), remembered()["c"].as_str()), (64, "8"));
    }
}
