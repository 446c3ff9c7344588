//! How much a device may move. Key types: [`RateLimits`], [`Rate`].
//!
//! A token bucket each for bytes and operations; `vmm/virtio` counts, this only says how much.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Most that a rate may be, per second: 2⁵⁰, a petabyte.
const MAX_PER_SECOND: u64 = 1 << 50;
/// The burst that nobody named, as a part of what a second gives.
const DEFAULT_BURST_PARTS: u64 = 10;

/// Tokens per second, and how many may be saved up and spent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

/// Recorded as tokens per second, and the burst.
impl TryFrom<(u64, u64)> for Rate {
    type Error = SpecError;

    fn try_from((per_second, burst): (u64, u64)) -> Result<Self, SpecError> {
        Self::new("rate", per_second, burst)
    }
}

impl From<Rate> for (u64, u64) {
    fn from(rate: Rate) -> Self {
        (rate.per_second, rate.burst)
    }
}

impl Rate {
    /// A rate of `per_second`, 1 to 2⁵⁰, with a burst as large or (0) of a tenth of a second. `field` names it in errors.
    pub fn new(field: &str, per_second: u64, burst: u64) -> Result<Self, SpecError> {
        if !(1..=MAX_PER_SECOND).contains(&per_second) {
            return Err(SpecError::new(field, format!("{per_second} per second, 1 to {MAX_PER_SECOND} are allowed")));
        }
        if burst > MAX_PER_SECOND {
            return Err(SpecError::new(field, format!("a burst of {burst}, at most {MAX_PER_SECOND} are allowed")));
        }
        let burst = if burst == 0 { (per_second / DEFAULT_BURST_PARTS).max(1) } else { burst };
        Ok(Self { per_second, burst })
    }

    /// Tokens that come back each second, at least 1.
    pub fn per_second(self) -> u64 {
        self.per_second
    }

    /// The same rate with room for at least `tokens` at once.
    pub fn with_burst_of(self, tokens: u64) -> Self {
        Self { burst: self.burst.max(tokens), ..self }
    }

    /// Tokens that may be there at once, at least 1.
    pub fn burst(self) -> u64 {
        self.burst
    }
}

/// What a device may move; `None` is without limit. A NIC has as much in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes.
    pub bandwidth: Option<Rate>,
    /// Requests of a disk, frames of a NIC.
    pub operations: Option<Rate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_nobody_named_is_a_tenth_of_a_second() {
        assert_eq!(Rate::new("f", 1000, 0).unwrap().burst(), 100);
        assert_eq!(Rate::new("f", 3, 0).unwrap().burst(), 1);
        assert_eq!(Rate::new("f", 3, 7).unwrap().burst(), 7);
        for (per_second, burst) in [(0, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(Rate::new("f", per_second, burst).unwrap_err().field, "f");
        }
    }
}
