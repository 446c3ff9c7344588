//! How many calls an identity may make: a token bucket each. Key type: [`Rates`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::daemon::service::{Identity, Limits};

/// Identities that are counted; those that have not called for long are forgotten first.
const MAX_BUCKETS: usize = 4096;

/// The calls of every identity.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Rank: leaf. Held for an update only.
    buckets: Mutex<HashMap<Identity, Bucket>>,
}

/// Filled steadily up to the burst; a call takes one.
#[derive(Debug)]
struct Bucket {
    /// Calls that may be made at `at`.
    left: f64,
    at: Instant,
}

impl Rates {
    /// Counts a call, or says after what time there may be one.
    pub(super) fn take(&self, identity: &Identity, limits: Limits, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(identity) {
            if buckets.len() >= MAX_BUCKETS {
                // A bucket that is full again says nothing.
                buckets.retain(|_, bucket| bucket.refilled(limits, now) < f64::from(limits.burst));
            }
            buckets.insert(identity.clone(), Bucket { left: f64::from(limits.burst), at: now });
        }
        let Some(bucket) = buckets.get_mut(identity) else { return Ok(()) };
        *bucket = Bucket { left: bucket.refilled(limits, now), at: now };
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.left) / f64::from(limits.requests_per_second)))
    }
}

impl Bucket {
    fn refilled(&self, limits: Limits, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + passed * f64::from(limits.requests_per_second)).min(f64::from(limits.burst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::service::Principal;

    fn identity(name: &str) -> Identity {
        Identity { principal: Principal::Tenant(name.parse().unwrap()), member: None }
    }

    #[test]
    fn a_burst_then_the_rate_and_nobody_pays_for_another() {
        let (rates, start) = (Rates::default(), Instant::now());
        let limits = Limits { requests_per_second: 10, burst: 3, connections: 1 };
        let take = |name: &str, ms: u64| rates.take(&identity(name), limits, start + Duration::from_millis(ms));
        for _ in 0..3 {
            take("a", 0).unwrap();
        }
        assert_eq!(take("a", 0).unwrap_err().as_millis(), 100);
        assert!(take("a", 99).is_err());
        take("a", 101).unwrap();
        assert!(take("a", 102).is_err());
        take("b", 102).unwrap();
        // However long it waits, no more than a burst.
        for _ in 0..3 {
            take("a", 60_000).unwrap();
        }
        assert!(take("a", 60_000).is_err());
    }
}
