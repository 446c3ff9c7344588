//! What the plugin remembers from one decision to the next about the tenant: `wit/kv.wit`, with every limit. To be granted
//! when it is loaded.
//!
//! A test has a memory of its own: [`testing::remember`](crate::testing::remember) begins one, and
//! [`testing::remembered`](crate::testing::remembered) shows it.

#[cfg(not(target_arch = "wasm32"))]
use crate::memory as import;

#[cfg(target_arch = "wasm32")]
use crate::host::kv::ostler::policy::kv as import;

pub use crate::host::kv::ostler::policy::kv::Refusal;

/// The value of `key`, if it is there.
pub fn get(key: &str) -> Option<Vec<u8>> {
    import::get(key)
}

/// Writes `value` under `key`. What is refused changes nothing.
pub fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
    import::set(key, value)
}

/// Removes `key`; whether it was there.
pub fn delete(key: &str) -> bool {
    import::delete(key)
}

/// All keys, sorted. Puts the whole store on record.
pub fn keys() -> Vec<String> {
    import::keys()
}

/// The decision's moment, in seconds since 1970.
pub fn moment() -> u64 {
    import::moment()
}

/// The value of `key` as text, if it is there and is one.
pub fn text(key: &str) -> Option<String> {
    String::from_utf8(get(key)?).ok()
}

/// The decimal number that `key` has; none if it is not there, or something else.
pub fn number(key: &str) -> Option<u64> {
    text(key)?.parse().ok()
}

/// Writes a number as people read it.
pub fn set_number(key: &str, value: u64) -> Result<(), Refusal> {
    set(key, value.to_string().as_bytes())
}
