//! Counters in a file that is mapped: whoever has the file reads them without asking. Key types: [`CounterPage`],
//! [`Counter`].

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{Bytes, FileOffset, MmapRegion};

/// The mapped file, or none: then nothing is counted.
#[derive(Debug, Clone, Default)]
pub struct CounterPage(Option<Arc<MmapRegion>>);

/// Now in nanoseconds, as all processes of the host count it (`CLOCK_MONOTONIC`).
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// One number in it. Written by one thread; anybody may read it at any time.
#[derive(Debug, Clone, Default)]
pub struct Counter {
    page: CounterPage,
    offset: usize,
}

impl CounterPage {
    /// Maps `len` bytes of `file`, which must have them.
    pub fn map(file: File, len: usize) -> io::Result<Self> {
        let map = MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(io::Error::other)?;
        Ok(Self(Some(Arc::new(map))))
    }

    /// The number at `offset` bytes, a multiple of 8; one beyond the end counts nothing, as does `None`.
    pub fn counter(&self, offset: Option<usize>) -> Counter {
        match offset {
            Some(offset) => Counter { page: self.clone(), offset },
            None => Counter::default(),
        }
    }

    /// Writes bytes, as far as they fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(map) = &self.0 {
            // Beyond the end is nothing to be counted.
            let _ = map.as_volatile_slice().write_slice(bytes, offset);
        }
    }
}

impl Counter {
    /// Adds to it. Not one operation: only one thread may.
    pub fn add(&self, count: u64) {
        self.update(|value| value.wrapping_add(count));
    }

    /// Takes from it. As [`add`](Self::add).
    pub fn subtract(&self, count: u64) {
        self.update(|value| value.wrapping_sub(count));
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.update(|_| value);
    }

    /// Sets it to now, if it is 0.
    pub fn stamp(&self) {
        self.update(|value| if value == 0 { now_ns() } else { value });
    }

    fn update(&self, change: impl FnOnce(u64) -> u64) {
        let Some(map) = &self.page.0 else { return };
        if let Ok(cell) = map.get_atomic_ref::<AtomicU64>(self.offset) {
            // Relaxed: no number says anything about another.
            cell.store(change(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_counted_stands_in_the_file_and_what_is_beyond_it_is_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let page = CounterPage::map(file.try_clone().unwrap(), 4096).unwrap();
        let counter = page.counter(Some(16));
        counter.add(2);
        counter.add(4);
        counter.subtract(1);
        page.counter(Some(4096)).add(1);
        page.counter(None).add(1);
        page.write(0, b"mark");
        CounterPage::default().counter(Some(0)).add(1);
        drop((page, counter));
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 16).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 5);
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[..4], b"mark");
    }
}
