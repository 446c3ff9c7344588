//! Asynchronous reads, writes, flushes and holes of one file from and to guest memory (io_uring(7)). Key type: [`DiskRing`].
//!
//! ```text
//!   push(op, buffers, token) ──▶ slot ──submit()──▶ kernel ──next()──▶ (token, buffers, result)
//! ```
//! The ring owns file and buffers until the kernel is done with them: neither a forgotten completion nor a drop with
//! operations in flight leaves the kernel with a pointer to freed memory. It is set up once, restricted to four
//! operations on that one file, and needs only io_uring_enter(2) later. A file that comes when no ring can be set up any
//! more gets one that was made ahead ([`DiskRings`]): restricted to the same operations, but not to one file.
#![allow(unsafe_code, reason = "queues operations on guest memory; see each block")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, opcode, register, squeue, types};

use super::guest_buffers::GuestBuffers;

/// The file's index in the ring's table of registered files.
const FILE: types::Fd = types::Fd(0);
/// Times that a submission is tried again while the kernel is out of memory, and the pause between them.
const SUBMIT_TRIES: u32 = 1000;
const SUBMIT_PAUSE: Duration = Duration::from_millis(1);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// Reads at a byte offset.
    Read {
        /// From the start of the file.
        offset: u64,
    },
    /// Writes at a byte offset.
    Write {
        /// From the start of the file.
        offset: u64,
        /// The data is on stable storage at completion (`RWF_DSYNC`, preadv2(2)).
        is_durable: bool,
    },
    /// Puts everything written so far on stable storage (fdatasync(2)).
    Flush,
    /// Gives a range's blocks back to the file system; it reads as zeros (fallocate(2), `FALLOC_FL_PUNCH_HOLE`).
    Punch {
        /// From the start of the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes a range read as zeros and keeps its blocks (fallocate(2), `FALLOC_FL_ZERO_RANGE`).
    Zero {
        /// From the start of the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion<T> {
    /// As given to [`DiskRing::push`].
    pub token: T,
    /// As given to [`DiskRing::push`].
    pub buffers: GuestBuffers,
    /// Bytes moved, maybe fewer than asked.
    pub result: io::Result<usize>,
}

/// Where rings come from: set up for each file until [`stock`](Self::stock), from a bounded stock afterwards. Clones
/// share it.
#[derive(Debug, Clone, Default)]
pub struct DiskRings(Arc<Mutex<Option<Vec<Spare>>>>);

/// A ring that was made ahead, of this depth.
struct Spare(IoUring, u16);

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Spare").field(&self.1).finish()
    }
}

impl DiskRings {
    /// Makes `count` rings of `depth` ahead. From here on [`open`](Self::open) sets up none.
    pub fn stock(&self, count: usize, depth: u16) -> io::Result<()> {
        let spare = |_| {
            let ring = IoUring::builder().setup_r_disabled().build(u32::from(depth))?;
            restrict(&ring, false)?;
            Ok(Spare(ring, depth))
        };
        let spares = (0..count).map(spare).collect::<io::Result<_>>()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(spares);
        Ok(())
    }

    /// A ring on `file`: with room for `depth` (1 to 4096) operations, or for as many as a spare one has. Without a spare
    /// one it is `StorageFull`. A spare one returns to the stock when it is dropped.
    pub fn open<T>(&self, file: File, depth: u16) -> io::Result<DiskRing<T>> {
        let mut stock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spares) = stock.as_mut() else {
            drop(stock);
            return DiskRing::new(file, depth);
        };
        let none = || io::Error::new(io::ErrorKind::StorageFull, "no disk ring is free: detach another disk first");
        let Spare(ring, depth) = spares.pop().ok_or_else(none)?;
        let ring = Lent { ring: Some(ring), depth, home: Some(self.clone()) };
        Ok(DiskRing { ring, slots: empty(depth), free: (0..usize::from(depth)).collect(), is_registered: false, file })
    }
}

/// A ring that goes home when it is dropped, if it has one.
struct Lent {
    /// `None` only within the drop.
    ring: Option<IoUring>,
    depth: u16,
    home: Option<DiskRings>,
}

impl std::ops::Deref for Lent {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        self.ring.as_ref().unwrap_or_else(|| unreachable!("it is taken in the drop only"))
    }
}

impl std::ops::DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut IoUring {
        self.ring.as_mut().unwrap_or_else(|| unreachable!("it is taken in the drop only"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (ring, home) = (self.ring.take(), self.home.take());
        if let (Some(ring), Some(DiskRings(stock))) = (ring, home)
            && let Some(spares) = stock.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            spares.push(Spare(ring, self.depth));
        }
    }
}

/// Allows the four operations, on the registered file only or on any, and enables the ring.
fn restrict(ring: &IoUring, is_registered: bool) -> io::Result<()> {
    let mut restrictions = vec![
        register::Restriction::sqe_op(opcode::Readv::CODE),
        register::Restriction::sqe_op(opcode::Writev::CODE),
        register::Restriction::sqe_op(opcode::Fsync::CODE),
        register::Restriction::sqe_op(opcode::Fallocate::CODE),
    ];
    if is_registered {
        restrictions.push(register::Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    }
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

fn empty<T>(depth: u16) -> Vec<Option<(T, GuestBuffers)>> {
    (0..depth).map(|_| None).collect()
}

/// An io_uring bound to one file.
pub struct DiskRing<T> {
    ring: Lent,
    /// What the kernel works on, by user data. An entry is taken only when its completion has arrived.
    slots: Vec<Option<(T, GuestBuffers)>>,
    free: Vec<usize>,
    /// The kernel knows the file by its index; a spare ring gets its descriptor with each operation.
    is_registered: bool,
    file: File,
}

impl<T> std::fmt::Debug for DiskRing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskRing").field("in_flight", &self.in_flight()).field("depth", &self.slots.len()).finish()
    }
}

impl<T> DiskRing<T> {
    /// Sets up a ring for at most `depth` (1 to 4096) operations in flight on `file`.
    pub fn new(file: File, depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(u32::from(depth))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        restrict(&ring, true)?;
        let ring = Lent { ring: Some(ring), depth, home: None };
        Ok(Self { ring, slots: empty(depth), free: (0..usize::from(depth)).collect(), is_registered: true, file })
    }

    /// Operations that have not come back through [`DiskRing::next`].
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another operation may be pushed.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Queues an operation; the kernel sees it at the next [`DiskRing::submit`]. Without room it is handed back.
    pub fn push(&mut self, op: DiskOp, buffers: GuestBuffers, token: T) -> Result<(), (T, GuestBuffers)> {
        let Some(slot) = self.free.pop() else { return Err((token, buffers)) };
        let Some(place) = self.slots.get_mut(slot) else { unreachable!("free slots are within the table") };
        let (_, buffers) = place.insert((token, buffers));
        // At most 1024 pieces; moving the list object into the slot leaves its heap buffer in place.
        let (list, count) = (buffers.guest().as_ptr(), buffers.guest().len() as u32);
        let (file, flags) = match self.is_registered {
            true => (FILE, squeue::Flags::FIXED_FILE),
            false => (types::Fd(self.file.as_raw_fd()), squeue::Flags::empty()),
        };
        let entry = match op {
            DiskOp::Read { offset } => opcode::Readv::new(file, list, count).offset(offset).build(),
            DiskOp::Write { offset, is_durable } => {
                let rw_flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(file, list, count).offset(offset).rw_flags(rw_flags).build()
            }
            DiskOp::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            DiskOp::Punch { offset, len } => fallocate(file, offset, len, libc::FALLOC_FL_PUNCH_HOLE),
            DiskOp::Zero { offset, len } => fallocate(file, offset, len, libc::FALLOC_FL_ZERO_RANGE),
        };
        let entry = entry.flags(flags).user_data(slot as u64);
        // SAFETY: the list and the guest memory that it points to stay in `slots` until the completion has been taken,
        // also when `self` is dropped (see `Drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The queue has at least as many entries as there are slots.
            self.free.push(slot);
            return match self.slots.get_mut(slot).and_then(Option::take) {
                Some(unused) => Err(unused),
                None => unreachable!("the slot was filled above"),
            };
        }
        Ok(())
    }

    /// Shows the kernel what was pushed.
    pub fn submit(&self) -> io::Result<()> {
        self.enter(0)
    }

    /// Waits for a completion; [`DiskRing::next`] then has one.
    pub fn wait(&self) -> io::Result<()> {
        self.enter(1)
    }

    /// The next completion that has arrived.
    #[allow(clippy::should_implement_trait, reason = "more arrive later: not an iterator")]
    pub fn next(&mut self) -> Option<Completion<T>> {
        let entry = self.ring.completion().next()?;
        let slot = usize::try_from(entry.user_data()).ok()?;
        let (token, buffers) = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        let result = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some(Completion { token, buffers, result })
    }

    fn enter(&self, want: usize) -> io::Result<()> {
        for _ in 0..SUBMIT_TRIES {
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::sleep(SUBMIT_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

/// An entry that changes a range and never the file's length.
fn fallocate(file: types::Fd, offset: u64, len: u64, mode: i32) -> squeue::Entry {
    opcode::Fallocate::new(file, len).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
}

/// Readable when a completion has arrived: for epoll.
impl<T> AsRawFd for DiskRing<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl<T> Drop for DiskRing<T> {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.next().is_none() && self.wait().is_err() {
                // The kernel may still use them: better lost than freed, and the ring is of no use to another file.
                std::mem::forget(std::mem::take(&mut self.slots));
                self.ring.home = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
    }

    fn run(ring: &mut DiskRing<u8>, op: DiskOp, buffers: GuestBuffers) -> Completion<u8> {
        ring.push(op, buffers, 7).unwrap();
        ring.wait().unwrap();
        ring.next().unwrap()
    }

    #[test]
    fn writes_flushes_and_reads_back() {
        let memory = memory();
        let mut ring = DiskRing::new(tempfile::tempfile().unwrap(), 4).unwrap();
        memory.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        let list = |address, len| GuestBuffers::new(&memory, [(GuestAddress(address), len)]).unwrap();
        for is_durable in [false, true] {
            let done = run(&mut ring, DiskOp::Write { offset: 512, is_durable }, list(0x100, 5));
            assert_eq!((done.token, done.result.unwrap()), (7, 5));
        }
        assert_eq!(run(&mut ring, DiskOp::Flush, list(0, 0)).result.unwrap(), 0);
        assert_eq!(run(&mut ring, DiskOp::Read { offset: 513 }, list(0x200, 100)).result.unwrap(), 4);
        let mut text = [0; 4];
        memory.read_slice(&mut text, GuestAddress(0x200)).unwrap();
        assert_eq!(&text, b"ello");
    }

    #[test]
    fn punches_holes_and_zeroes_without_changing_the_length() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let mut ring = DiskRing::new(file.try_clone().unwrap(), 4).unwrap();
        let nothing = || GuestBuffers::new(&memory, []).unwrap();
        let before = file.metadata().unwrap().blocks();
        run(&mut ring, DiskOp::Punch { offset: 4096, len: 512 << 10 }, nothing()).result.unwrap();
        assert!(file.metadata().unwrap().blocks() <= before - 1024);
        let mut bytes = [1; 512];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [0; 512]);
        // Not every file system has it (tmpfs lacks it).
        let zeroed = run(&mut ring, DiskOp::Zero { offset: 0, len: 512 }, nothing()).result;
        if zeroed.is_ok() {
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [0; 512]);
        }
        run(&mut ring, DiskOp::Punch { offset: 1 << 20, len: 4096 }, nothing()).result.unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn gives_back_what_has_no_room_and_reports_errors() {
        let memory = memory();
        let read_only = File::open("/proc/self/exe").unwrap();
        let mut ring = DiskRing::new(read_only, 1).unwrap();
        let list = || GuestBuffers::new(&memory, [(GuestAddress(0), 8)]).unwrap();
        let write = DiskOp::Write { offset: 0, is_durable: false };
        ring.push(write, list(), 1).unwrap();
        assert!(!ring.has_room());
        assert_eq!(ring.push(write, list(), 2).unwrap_err().0, 2);
        ring.wait().unwrap();
        assert_eq!(ring.next().unwrap().result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(ring.next().is_none());
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn a_spare_ring_serves_one_file_after_another_and_there_are_no_more_than_were_made() {
        let memory = memory();
        let rings = DiskRings::default();
        let own: DiskRing<u8> = rings.open(tempfile::tempfile().unwrap(), 4).unwrap();
        assert!(own.is_registered, "before the stock, each file gets a ring of its own");
        rings.stock(1, 4).unwrap();
        for text in [b"first", b"again"] {
            let file = tempfile::tempfile().unwrap();
            let mut ring = rings.open(file.try_clone().unwrap(), 99).unwrap();
            assert_eq!(rings.open::<u8>(file.try_clone().unwrap(), 4).unwrap_err().kind(), io::ErrorKind::StorageFull);
            memory.write_slice(text, GuestAddress(0x100)).unwrap();
            let list = GuestBuffers::new(&memory, [(GuestAddress(0x100), 5)]).unwrap();
            let write = DiskOp::Write { offset: 0, is_durable: false };
            assert_eq!(run(&mut ring, write, list).result.unwrap(), 5);
            let list = GuestBuffers::new(&memory, []).unwrap();
            ring.push(DiskOp::Flush, list, 1).unwrap(); // in flight at the drop
            drop(ring);
            assert_eq!(file.metadata().unwrap().len(), 5);
        }
        drop(own);
        assert!(rings.open::<u8>(tempfile::tempfile().unwrap(), 4).is_ok(), "own rings are not kept");
        assert!(rings.0.lock().unwrap().as_ref().unwrap().len() <= 1);
    }

    #[test]
    fn waits_for_the_kernel_when_dropped() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        let mut ring = DiskRing::new(file.try_clone().unwrap(), 64).unwrap();
        for number in 0..64 {
            let list = GuestBuffers::new(&memory, [(GuestAddress(0), 0x10000)]).unwrap();
            ring.push(DiskOp::Write { offset: number << 16, is_durable: true }, list, number).unwrap();
        }
        ring.submit().unwrap();
        drop(ring);
        assert_eq!(Arc::strong_count(&memory), 1, "every list came back");
        assert_eq!(file.metadata().unwrap().len(), 64 << 16, "and not before it was used");
    }
}
