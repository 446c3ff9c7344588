//! How long requests take: from a device's taking a chain off its ring to its giving it back. Key type: [`Meter`].
//!
//! The clock is read at most once per call of the device for what it takes, and once per request for what it gives back.

use std::time::{Duration, Instant};

use crate::vmm::ports::QueueCounters;

/// Measures one queue.
#[derive(Debug)]
pub(super) struct Meter {
    counters: QueueCounters,
    /// By head: when the chain was taken, and how many bytes the driver has put into it.
    taken: Vec<Option<(Instant, u32)>>,
    /// What counts as now for chains that are taken; forgotten when the device has done what it could.
    now: Option<Instant>,
}

impl Meter {
    pub(super) fn new(counters: QueueCounters, size: u16) -> Self {
        Self { counters, taken: vec![None; size.into()], now: None }
    }

    /// The chain at `head` was taken, with `len` bytes to read.
    pub(super) fn take(&mut self, head: u16, len: u32) {
        let now = *self.now.get_or_insert_with(Instant::now);
        if let Some(place) = self.taken.get_mut(usize::from(head)) {
            *place = Some((now, len));
        }
    }

    /// It was given back, with `len` bytes written.
    pub(super) fn give(&mut self, head: u16, len: u32) {
        let Some((taken, read)) = self.taken.get_mut(usize::from(head)).and_then(Option::take) else { return };
        self.counters.operations.add(1);
        self.counters.bytes.add(u64::from(read) + u64::from(len));
        let latency = Instant::now().saturating_duration_since(taken);
        self.counters.latency_sum_ns.add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        if let Some(bucket) = self.counters.latency.get(self.bucket(latency)) {
            bucket.add(1);
        }
    }

    /// The device has done what it could for now.
    pub(super) fn pause(&mut self) {
        self.now = None;
    }

    /// A request failed.
    pub(super) fn fail(&self) {
        self.counters.errors.add(1);
    }

    /// Bucket n is for less than 2^n µs, the last one for the rest.
    fn bucket(&self, latency: Duration) -> usize {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let last = self.counters.latency.len().saturating_sub(1);
        ((u64::BITS - us.leading_zeros()) as usize).min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_named_by_what_it_is_below() {
        let counters = QueueCounters { latency: vec![Default::default(); 26], ..QueueCounters::default() };
        let meter = Meter::new(counters, 4);
        let of = |us| meter.bucket(Duration::from_micros(us));
        assert_eq!([of(0), of(1), of(2), of(3), of(4), of(1023), of(1024)], [0, 1, 2, 2, 3, 10, 11]);
        assert_eq!(of(u64::MAX), 25);
    }
}
