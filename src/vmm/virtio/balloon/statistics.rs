//! What the guest tells of its memory (VIRTIO 1.3 §5.5.6.3). Key type: [`Statistics`].
//!
//! The driver has one buffer: it fills it and makes it available, the device keeps it, and gives it back when it wants
//! fresh numbers. That is every [`PERIOD`], by a timer that is set anew for each buffer: a guest cannot have it go faster.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::super::stock::Timer;
use crate::sys::counter_page::now_ns;
use crate::vmm::ports::BalloonCounters;

/// How old the numbers become.
pub(super) const PERIOD: Duration = Duration::from_secs(5);
/// Bytes of a statistic: a tag of two, a value of eight.
const ENTRY_LEN: usize = 10;
/// Bytes that are read of a buffer: more statistics than there are tags.
pub(super) const MAX_LEN: u64 = 64 * ENTRY_LEN as u64;

/// The buffer and what was in it.
#[derive(Debug)]
pub(super) struct Statistics {
    /// Made in time: a confined thread makes none.
    timer: Timer,
    /// Head of the chain that is kept, and when it is given back.
    kept: Option<(u16, Instant)>,
    pub(super) period: Duration,
}

impl Statistics {
    /// Fresh numbers every `period`, which is not zero.
    pub(super) fn new(timer: Timer, period: Duration) -> Self {
        Self { timer, kept: None, period }
    }

    /// Takes in what the driver has written and keeps its buffer. Gives back one that was kept already: a driver has one.
    pub(super) fn keep(&mut self, head: u16, bytes: &[u8], counters: &BalloonCounters) -> io::Result<Option<u16>> {
        tell(bytes, counters);
        let before = self.kept.replace((head, Instant::now() + self.period));
        self.timer.fire_after(self.period)?;
        Ok(before.map(|(head, _)| head))
    }

    /// The buffer, if it is time for new numbers.
    pub(super) fn due(&mut self) -> Option<u16> {
        self.kept.take_if(|(_, due)| Instant::now() >= *due).map(|(head, _)| head)
    }

    /// The rings are gone, and the buffer with them.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// The timer's descriptor.
    pub(super) fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// Writes down the values of known tags; of a tag that comes twice, the last.
fn tell(bytes: &[u8], counters: &BalloonCounters) {
    let mut told = 0;
    for entry in bytes.as_chunks::<ENTRY_LEN>().0 {
        let [t0, t1, value @ ..] = *entry;
        let tag = u16::from_le_bytes([t0, t1]);
        if let Some(counter) = counters.statistics.get(usize::from(tag)) {
            counter.set(u64::from_le_bytes(value));
            told |= 1 << tag;
        }
    }
    counters.told.set(told);
    counters.told_at.set(now_ns());
}
