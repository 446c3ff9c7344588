//! What keeps a device at its limits. Key type: [`Limiter`].
//!
//! ```text
//!   admit(bytes) ─ both buckets have enough ─▶ true
//!               └─ not yet ─▶ false, and the timer fires when they have: the device's thread wakes up for it
//! ```
//! While something waits nothing else is admitted: a large request is not overtaken for ever by small ones.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::bucket::TokenBucket;
use super::stock::Timer;
use crate::model::RateLimits;

/// What takes longer is asked for again in between: the kernel's timers have an end.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// A device's limits, with the timer for what has to wait.
pub(super) struct Limiter {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    started: Instant,
    /// Made in time: a confined thread makes none.
    timer: Timer,
    /// When what waits is due.
    due: Option<Duration>,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, operations, due, .. } = self;
        f.debug_struct("Limiter")
            .field("bytes", bytes)
            .field("operations", operations)
            .field("due", due)
            .finish_non_exhaustive()
    }
}

impl Limiter {
    /// With full buckets.
    #[cfg(test)]
    pub(super) fn new(limits: RateLimits) -> io::Result<Self> {
        Ok(Self::with_timer(limits, Timer::new()?))
    }

    /// With full buckets.
    pub(super) fn with_timer(limits: RateLimits, timer: Timer) -> Self {
        let bucket = |rate| TokenBucket::new(rate, Duration::ZERO);
        Self {
            bytes: limits.bandwidth.map(bucket),
            operations: limits.operations.map(bucket),
            started: Instant::now(),
            timer,
            due: None,
        }
    }

    /// Other limits from now on. What waits is asked for again at once.
    pub(super) fn set(&mut self, limits: RateLimits) {
        let now = self.started.elapsed();
        let change = |old: Option<TokenBucket>, rate: Option<_>| match (old, rate) {
            (Some(old), Some(rate)) => Some(old.changed(rate, now)),
            (None, Some(rate)) => Some(TokenBucket::new(rate, now)),
            (_, None) => None,
        };
        self.bytes = change(self.bytes.take(), limits.bandwidth);
        self.operations = change(self.operations.take(), limits.operations);
        self.due = None;
    }

    /// Whether one operation on `bytes` may go now. If not, the timer fires when it may be asked for again.
    pub(super) fn admit(&mut self, bytes: u64) -> io::Result<bool> {
        if self.bytes.is_none() && self.operations.is_none() {
            return Ok(true);
        }
        let now = self.started.elapsed();
        if self.due.is_some_and(|due| now < due) {
            return Ok(false);
        }
        self.due = None;
        let wait = |bucket: &mut Option<TokenBucket>, tokens| {
            bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait_for(tokens, now))
        };
        let wait = wait(&mut self.bytes, bytes).max(wait(&mut self.operations, 1));
        if !wait.is_zero() {
            let wait = wait.min(LONGEST_WAIT);
            self.due = Some(now.saturating_add(wait));
            self.timer.fire_after(wait)?;
            return Ok(false);
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(true)
    }

    /// Gives back what was admitted and not moved: `bytes`, and the operation too if there was none.
    pub(super) fn give_back(&mut self, bytes: u64, is_whole: bool) {
        if let Some(bucket) = &mut self.bytes {
            bucket.give_back(bytes);
        }
        if let Some(bucket) = &mut self.operations
            && is_whole
        {
            bucket.give_back(1);
        }
    }

    /// Whether something waits for the timer.
    pub(super) fn is_holding(&self) -> bool {
        self.due.is_some_and(|due| self.started.elapsed() < due)
    }

    /// Forgets what waits: the device was reset.
    pub(super) fn forget(&mut self) {
        self.due = None;
    }
}

/// Readable when what waits is due: for epoll.
impl AsRawFd for Limiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rate;

    fn limits(bytes: u64, operations: u64) -> RateLimits {
        let rate = |per_second| (per_second > 0).then(|| Rate::new("f", per_second, 0).unwrap());
        RateLimits { bandwidth: rate(bytes), operations: rate(operations) }
    }

    #[test]
    fn what_is_not_limited_is_never_held() {
        let mut limiter = Limiter::new(RateLimits::default()).unwrap();
        assert!((0..1000).all(|_| limiter.admit(u64::MAX).unwrap()));
    }

    #[test]
    fn either_limit_holds_and_the_timer_ends_it() {
        for limits in [limits(1000, 0), limits(0, 10), limits(1000, 10)] {
            let mut limiter = Limiter::new(limits).unwrap();
            assert!(limiter.admit(100).unwrap());
            assert!(!limiter.admit(100).unwrap(), "{limits:?}");
            assert!(limiter.is_holding() && !limiter.admit(0).unwrap(), "nothing overtakes");
            limiter.timer.wait().unwrap();
            assert!(!limiter.is_holding() && limiter.admit(100).unwrap());
        }
    }

    #[test]
    fn other_limits_hold_at_once_and_none_at_all_let_go() {
        let mut limiter = Limiter::new(limits(1, 0)).unwrap();
        assert!(!limiter.admit(1 << 30).unwrap());
        limiter.set(RateLimits::default());
        assert!(!limiter.is_holding() && limiter.admit(1 << 30).unwrap());
        limiter.set(limits(0, 1));
        assert!(limiter.admit(0).unwrap() && !limiter.admit(0).unwrap());
    }

    #[test]
    fn what_was_not_moved_is_given_back() {
        let mut limiter = Limiter::new(limits(1000, 10)).unwrap();
        assert!(limiter.admit(100).unwrap());
        limiter.give_back(100, true);
        assert!(limiter.admit(100).unwrap());
        assert!(!limiter.admit(1).unwrap());
    }
}
