//! Times as percentiles.

use std::time::Duration;

use serde_json::json;

/// Of one way to decide, in µs.
#[derive(Clone, Copy)]
pub struct Figure {
    pub p10_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Figure {
    /// Of these times.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |percent: usize| {
            let time = times.get(times.len() * percent / 100).copied().unwrap_or_default();
            (time.as_secs_f64() * 1e8).round() / 100.0
        };
        Self { p10_us: at(10), p50_us: at(50), p99_us: at(99) }
    }

    /// As programs read it.
    pub fn to_json(self) -> serde_json::Value {
        json!({ "p10": self.p10_us, "p50": self.p50_us, "p99": self.p99_us })
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>10.2} {:>10.2} {:>10.2}", self.p10_us, self.p50_us, self.p99_us)
    }
}
