//! Waiting for conditions, with an end.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);
/// For what the host does by itself. Generous: the lab emulates its CPU.
pub const SOON: Duration = Duration::from_secs(30);
/// For what a guest does after it was started: emulated, a boot takes several seconds.
pub const BOOT: Duration = Duration::from_secs(150);

/// Waits until `look` gives something; panics with `what` after `limit`.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(STEP);
    }
}
