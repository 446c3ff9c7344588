//! The token bucket. Pure: time comes as an argument. Key type: [`TokenBucket`].
//!
//! Tokens come back continuously, to the nanosecond, not in slices; what is spent in any time `t` is at most `rate · t`
//! and the burst (or the largest single request, if that is larger: the bucket grows for one that waits, so that it
//! passes after `its size / rate` and not never).

use std::time::Duration;

use crate::model::Rate;

const NANOS: u128 = 1_000_000_000;

/// A bucket.
#[derive(Debug, Clone)]
pub(super) struct TokenBucket {
    rate: Rate,
    /// In tokens times 10⁹, so that no part of a token is lost to rounding.
    level: u128,
    /// When it was filled last.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket at the time `now`.
    pub(super) fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, level: u128::from(rate.burst()) * NANOS, at: now }
    }

    /// The bucket of another rate that takes this one's place: what is in it stays, as far as there is room.
    pub(super) fn changed(mut self, rate: Rate, now: Duration) -> Self {
        self.fill(0, now);
        self.rate = rate;
        self.fill(0, now);
        self
    }

    /// How long until `tokens` can be taken; zero if they can be now. Whoever has to wait asks again then, and for
    /// nothing smaller in between.
    pub(super) fn wait_for(&mut self, tokens: u64, now: Duration) -> Duration {
        self.fill(tokens, now);
        let lacking = (u128::from(tokens) * NANOS).saturating_sub(self.level);
        // Rounded up: asked again then, it is enough.
        let nanos = lacking.div_ceil(self.rate.per_second().into());
        let seconds = u64::try_from(nanos / NANOS).unwrap_or(u64::MAX);
        // Less than 10⁹.
        Duration::new(seconds, (nanos % NANOS) as u32)
    }

    /// Takes `tokens`, for which [`TokenBucket::wait_for`] was zero.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(u128::from(tokens) * NANOS);
    }

    /// Puts back what was taken and not spent.
    pub(super) fn give_back(&mut self, tokens: u64) {
        self.level = self.level.saturating_add(u128::from(tokens) * NANOS);
    }

    fn fill(&mut self, tokens: u64, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at += passed;
        let most = u128::from(self.rate.burst().max(tokens)) * NANOS;
        let earned = passed.as_nanos().saturating_mul(self.rate.per_second().into());
        self.level = self.level.saturating_add(earned).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate::new("f", per_second, burst).unwrap()
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        (prop_oneof![1_u64..2000, 1_u64..1 << 50], prop_oneof![0_u64..2000, 0_u64..1 << 50])
            .prop_map(|(per_second, burst)| rate(per_second, burst))
    }

    /// What `rate` gives in `time`, rounded up.
    fn earned(rate: Rate, time: Duration) -> u128 {
        (time.as_nanos() * u128::from(rate.per_second())).div_ceil(NANOS)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Whatever is asked for and whenever: in no window is more spent than was saved up and came in.
        #[test]
        fn never_exceeds_rate_times_time_and_burst(
            rate in any_rate(),
            asked in proptest::collection::vec((0_u64..3_000_000_000, prop_oneof![0_u64..3000, any::<u64>()]), 1..60),
        ) {
            let mut now = Duration::from_secs(5);
            let mut bucket = TokenBucket::new(rate, now);
            let mut spent: Vec<(Duration, u64)> = Vec::new();
            for (pause, tokens) in asked {
                now += Duration::from_nanos(pause);
                if bucket.wait_for(tokens, now).is_zero() {
                    bucket.take(tokens);
                    spent.push((now, tokens));
                }
            }
            for from in 0..spent.len() {
                let mut sum = 0;
                let mut largest = 0;
                for &(at, tokens) in &spent[from..] {
                    sum += u128::from(tokens);
                    largest = largest.max(tokens);
                    let most = u128::from(rate.burst().max(largest)) + earned(rate, at - spent[from].0);
                    prop_assert!(sum <= most, "{} of {}", sum, most);
                }
            }
            // From the start the burst is all that was saved up, however large a request was.
            let sum: u128 = spent.iter().map(|&(_, tokens)| u128::from(tokens)).sum();
            prop_assert!(sum <= u128::from(rate.burst()) + earned(rate, now - Duration::from_secs(5)));
        }

        /// Who waits as long as it was told passes, and was not told to wait longer than its tokens take.
        #[test]
        fn never_starves(rate in any_rate(), asked in proptest::collection::vec(0_u64..1 << 50, 1..60)) {
            let mut now = Duration::ZERO;
            let mut bucket = TokenBucket::new(rate, now);
            for tokens in asked {
                let wait = bucket.wait_for(tokens, now);
                let longest = (u128::from(tokens) * NANOS).div_ceil(rate.per_second().into());
                prop_assert!(wait.as_nanos() <= longest);
                now += wait;
                prop_assert!(bucket.wait_for(tokens, now).is_zero());
                bucket.take(tokens);
            }
        }

        /// A steady stream gets the whole rate: nothing is lost between two looks, however often they are.
        #[test]
        fn loses_nothing_to_rounding(per_second in 1_u64..1 << 40, looks in 1_u32..1000) {
            let rate = rate(per_second, 1 << 50);
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            bucket.take(1 << 50);
            for look in 1..=looks {
                bucket.wait_for(0, Duration::from_nanos(u64::from(look) * 1_000_003));
            }
            let passed = Duration::from_nanos(u64::from(looks) * 1_000_003);
            prop_assert_eq!(bucket.level, passed.as_nanos() * u128::from(per_second));
        }

        #[test]
        fn a_change_gives_nothing_away(from in any_rate(), to in any_rate(), spent in any::<u64>()) {
            let mut bucket = TokenBucket::new(from, Duration::ZERO);
            bucket.take(spent);
            let before = bucket.level;
            let after = bucket.changed(to, Duration::ZERO);
            prop_assert!(after.level <= before && after.level <= u128::from(to.burst()) * NANOS);
        }
    }

    #[test]
    fn waits_to_the_nanosecond() {
        let mut bucket = TokenBucket::new(rate(1000, 10), Duration::ZERO);
        assert_eq!(bucket.wait_for(10, Duration::ZERO), Duration::ZERO);
        bucket.take(10);
        assert_eq!(bucket.wait_for(1, Duration::ZERO), Duration::from_millis(1));
        assert_eq!(bucket.wait_for(1, Duration::from_nanos(400_000)), Duration::from_nanos(600_000));
        // Larger than the burst: it takes its time, and passes.
        assert_eq!(bucket.wait_for(50, Duration::from_millis(1)), Duration::from_millis(49));
        assert_eq!(bucket.wait_for(50, Duration::from_millis(50)), Duration::ZERO);
        bucket.take(50);
        bucket.give_back(20);
        assert_eq!(bucket.wait_for(20, Duration::from_millis(50)), Duration::ZERO);
    }
}
