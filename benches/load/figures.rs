//! What one kind of call came to. Key type: [`Figures`].

use std::fmt;
use std::time::Duration;

use serde_json::json;

/// Throughput and latencies.
pub struct Figures {
    call: &'static str,
    clients: usize,
    count: usize,
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

impl Figures {
    /// From how long each call took, and how long they took together.
    pub fn new(call: &'static str, clients: usize, mut took: Vec<Duration>, all: Duration) -> Self {
        took.sort();
        let at = |percent: usize| took.get(took.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default();
        let per_second = took.len() as f64 / all.as_secs_f64();
        Self { call, clients, count: took.len(), per_second, p50: at(50), p99: at(99) }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, clients, count, per_second, p50, p99 } = self;
        let (p50, p99) = (p50.as_micros(), p99.as_micros());
        write!(
            f,
            "{call:<36} {clients:>3} clients {count:>7} calls {per_second:>9.0}/s  p50 {p50:>6} µs  p99 {p99:>6} µs"
        )
    }
}

/// All of them, and resident KiB and descriptors of the daemon before and after the test for growth.
pub fn json(all: &[Figures], before: (u64, usize), after: (u64, usize)) -> String {
    let calls: Vec<_> = all
        .iter()
        .map(|figures| {
            json!({
                "call": figures.call,
                "clients": figures.clients,
                "calls": figures.count,
                "per_second": figures.per_second.round(),
                "p50_us": figures.p50.as_micros() as u64,
                "p99_us": figures.p99.as_micros() as u64,
            })
        })
        .collect();
    let holds = |(resident, descriptors): (u64, usize)| json!({ "resident_kib": resident, "descriptors": descriptors });
    format!("{:#}\n", json!({ "calls": calls, "growth": { "before": holds(before), "after": holds(after) } }))
}
