//! Waiting for conditions, with an end.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);
/// For what the host does by itself. Generous: the lab emulates its CPU.
pub const SOON: Duration = Duration::from_secs(30);
/// For what a guest does after it was started: emulated, a boot takes several seconds.
pub const BOOT: Duration = Duration::from_secs(150);

/// Waits until `look` gives something; panics with `what` after `limit`.
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    within(limit, look).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// Waits until `look` gives something; `None` if it does not within `limit`.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(STEP);
    }
}
