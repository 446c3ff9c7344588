//! The console's last 64 KiB in a shared file mapping (`wire::console_ring`). Key types: [`Ring`], [`Writer`].
//!
//! One writer at a time (the UART's lock sees to that; of a virtio console, its thread is the one), any number of readers. Positions count bytes since the start
//! and never go back, so a reader that was overtaken notices.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{Bytes, FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::sys::counter_page::Counter;
use crate::wire::console_ring::{DATA_LEN, DATA_OFFSET, FILE_LEN};

/// The mapped file.
pub struct Ring {
    /// Gets the moment of the first byte.
    first: OnceLock<Counter>,
    map: MmapRegion,
    /// Bytes ever written. SeqCst, as [`Readers`]' flag is: the writer stores this and then looks at the flag, a reader the
    /// other way round, and one of them must see the other.
    written: AtomicU64,
}

/// What a reader got.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes that were overwritten before they could be read.
    pub skipped: u64,
    /// The next bytes.
    pub bytes: Vec<u8>,
}

impl Ring {
    /// Maps `file`, which must have the ring's length. A new run starts with an empty ring.
    pub fn map(file: File) -> io::Result<Self> {
        if file.metadata()?.len() != FILE_LEN as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "console ring file has a wrong length"));
        }
        let map = MmapRegion::from_file(FileOffset::new(file, 0), FILE_LEN).map_err(io::Error::other)?;
        let ring = Self { first: OnceLock::new(), map, written: AtomicU64::new(0) };
        ring.store_header(0)?;
        Ok(ring)
    }

    /// Writes the moment of the first byte there.
    pub fn stamp_first(&self, counter: Counter) {
        let _ = self.first.set(counter);
    }

    /// Bytes ever written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// At most `most` bytes from `position` on; empty when there are none yet.
    pub fn read(&self, position: u64, most: usize) -> Chunk {
        let written = self.written();
        let oldest = written.saturating_sub(DATA_LEN as u64);
        let start = position.max(oldest);
        let count = (written - start).min(most as u64) as usize;
        let mut bytes = vec![0; count];
        let at = (start % DATA_LEN as u64) as usize;
        let until_wrap = count.min(DATA_LEN - at);
        if let Some((first, second)) = bytes.split_at_mut_checked(until_wrap) {
            let _ = self.data().read_slice(first, at);
            let _ = self.data().read_slice(second, 0);
        }
        // What the writer overtook while we copied is not what it was: give it up.
        let overtaken = self.written().saturating_sub(DATA_LEN as u64).saturating_sub(start).min(count as u64);
        bytes.drain(..overtaken as usize);
        Chunk { skipped: start - position + overtaken, bytes }
    }

    /// Only [`Writer`] calls this, so there is one at a time.
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut written = self.written.load(Ordering::Relaxed);
        if written == 0
            && let Some(first) = self.first.get()
        {
            first.stamp();
        }
        for part in bytes.chunks(DATA_LEN) {
            let at = (written % DATA_LEN as u64) as usize;
            let (first, second) = part.split_at(part.len().min(DATA_LEN - at));
            self.data().write_slice(first, at).map_err(io::Error::other)?;
            self.data().write_slice(second, 0).map_err(io::Error::other)?;
            written += part.len() as u64;
        }
        self.written.store(written, Ordering::SeqCst);
        self.store_header(written)
    }

    fn data(&self) -> vm_memory::VolatileSlice<'_> {
        // The length was checked when the file was mapped.
        self.map.get_slice(DATA_OFFSET, DATA_LEN).unwrap_or_else(|_| self.map.as_volatile_slice())
    }

    fn store_header(&self, written: u64) -> io::Result<()> {
        self.map.as_volatile_slice().write_obj(written.to_le(), 0).map_err(io::Error::other)
    }
}

/// Where the guest's output goes. Never blocks.
pub struct Writer {
    ring: Arc<Ring>,
    readers: Arc<Readers>,
}

/// Lets the writer wake the control thread only when somebody reads, and once per wake-up.
pub struct Readers {
    /// Set by the control thread while it wants to be woken; cleared by the writer that wakes it.
    is_waiting: AtomicBool,
    event: EventFd,
}

impl Readers {
    /// `event` wakes the control thread.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { is_waiting: AtomicBool::new(false), event: EventFd::new(libc::EFD_NONBLOCK)? }))
    }

    /// The eventfd to wait for.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Asks for one wake-up at the next output.
    pub fn wait(&self) {
        self.is_waiting.store(true, Ordering::SeqCst);
    }

    fn notify(&self) {
        if self.is_waiting.load(Ordering::SeqCst) && self.is_waiting.swap(false, Ordering::SeqCst) {
            let _ = self.event.write(1);
        }
    }
}

impl Writer {
    /// Appends to `ring` and wakes `readers`.
    pub fn new(ring: Arc<Ring>, readers: Arc<Readers>) -> Self {
        Self { ring, readers }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ring.append(bytes)?;
        self.readers.notify();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::console_ring::tail;
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    fn ring() -> (Arc<Ring>, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FILE_LEN as u64).unwrap();
        let copy = file.try_clone().unwrap();
        (Arc::new(Ring::map(file).unwrap()), copy)
    }

    #[test]
    fn readers_follow_the_writer_and_the_file_keeps_the_end() {
        let (ring, mut file) = ring();
        let mut writer = Writer::new(Arc::clone(&ring), Readers::new().unwrap());
        writer.write_all(b"hello ").unwrap();
        writer.write_all(b"world").unwrap();
        assert_eq!(ring.read(0, 5), Chunk { skipped: 0, bytes: b"hello".to_vec() });
        assert_eq!(ring.read(6, 100), Chunk { skipped: 0, bytes: b"world".to_vec() });
        assert_eq!(ring.read(11, 100), Chunk { skipped: 0, bytes: vec![] });
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(tail(&bytes).unwrap(), b"hello world");
    }

    #[test]
    fn a_reader_that_was_overtaken_is_told_how_much_it_missed() {
        let (ring, mut file) = ring();
        let mut writer = Writer::new(Arc::clone(&ring), Readers::new().unwrap());
        writer.write_all(&vec![b'a'; DATA_LEN]).unwrap();
        writer.write_all(b"bcd").unwrap();
        let chunk = ring.read(0, usize::MAX);
        assert_eq!(chunk.skipped, 3);
        assert_eq!(chunk.bytes.len(), DATA_LEN);
        assert!(chunk.bytes.ends_with(b"abcd"));
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(tail(&bytes).unwrap(), chunk.bytes);
    }

    #[test]
    fn no_byte_goes_unnoticed_by_a_reader_that_is_about_to_wait() {
        const ROUNDS: u64 = 300_000;
        // Of many lengths, so that both sides come to meet at every step.
        let spin = |times: u64| (0..times).for_each(|_| std::hint::spin_loop());
        let (ring, _) = ring();
        let readers = Readers::new().unwrap();
        let mut writer = Writer::new(Arc::clone(&ring), Arc::clone(&readers));
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, readers.event().as_raw_fd(), event).unwrap();
        let seen = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    spin(round % 40);
                    writer.write_all(b"x").unwrap();
                    while seen.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                }
            });
            while seen.load(Ordering::Relaxed) < ROUNDS {
                spin(seen.load(Ordering::Relaxed) % 37);
                readers.wait();
                // As `Server::send_all` does.
                if ring.written() == seen.load(Ordering::Relaxed) {
                    if epoll.wait(1_000, &mut [EpollEvent::default()]).unwrap() == 0 {
                        // Lets the writer go.
                        seen.store(u64::MAX, Ordering::Release);
                        break;
                    }
                    readers.event().read().unwrap();
                }
                seen.store(ring.written(), Ordering::Release);
            }
        });
        assert_eq!(seen.into_inner(), ROUNDS, "a byte and no wake-up");
    }

    #[test]
    fn wakes_the_control_thread_only_when_it_waits() {
        let (ring, _) = ring();
        let readers = Readers::new().unwrap();
        let mut writer = Writer::new(ring, Arc::clone(&readers));
        writer.write_all(b"x").unwrap();
        assert!(readers.event().read().is_err());
        readers.wait();
        writer.write_all(b"yz").unwrap();
        writer.write_all(b"z").unwrap();
        assert_eq!(readers.event().read().unwrap(), 1);
    }
}
