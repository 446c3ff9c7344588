//! Asynchronous reads, writes, flushes and holes of one file from and to guest memory (io_uring(7)). Key type: [`DiskRing`].
//!
//! ```text
//!   push(op, buffers, token) ──▶ slot ──submit()──▶ kernel ──next()──▶ (token, buffers, result)
//! ```
//! The ring owns file and buffers until the kernel is done with them: neither a forgotten completion nor a drop with
//! operations in flight leaves the kernel with a pointer to freed memory. It is set up once, restricted to four
//! operations on that one file, and needs only io_uring_enter(2) later.
#![allow(unsafe_code, reason = "queues operations on guest memory; see each block")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, register, squeue, types};

use super::guest_buffers::GuestBuffers;

/// The file's index in the ring's table of registered files.
const FILE: types::Fixed = types::Fixed(0);
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

/// An io_uring bound to one file.
pub struct DiskRing<T> {
    ring: IoUring,
    /// What the kernel works on, by user data. An entry is taken only when its completion has arrived.
    slots: Vec<Option<(T, GuestBuffers)>>,
    free: Vec<usize>,
    _file: File,
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
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_restrictions(&mut [
            register::Restriction::sqe_op(opcode::Readv::CODE),
            register::Restriction::sqe_op(opcode::Writev::CODE),
            register::Restriction::sqe_op(opcode::Fsync::CODE),
            register::Restriction::sqe_op(opcode::Fallocate::CODE),
            register::Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        let slots = (0..depth).map(|_| None).collect();
        Ok(Self { ring, slots, free: (0..usize::from(depth)).collect(), _file: file })
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
        let entry = match op {
            DiskOp::Read { offset } => opcode::Readv::new(FILE, list, count).offset(offset).build(),
            DiskOp::Write { offset, is_durable } => {
                let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(FILE, list, count).offset(offset).rw_flags(flags).build()
            }
            DiskOp::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            DiskOp::Punch { offset, len } => fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE),
            DiskOp::Zero { offset, len } => fallocate(offset, len, libc::FALLOC_FL_ZERO_RANGE),
        };
        // SAFETY: the list and the guest memory that it points to stay in `slots` until the completion has been taken,
        // also when `self` is dropped (see `Drop`).
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
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
fn fallocate(offset: u64, len: u64, mode: i32) -> squeue::Entry {
    opcode::Fallocate::new(FILE, len).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
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
                // The kernel may still use them: better lost than freed.
                std::mem::forget(std::mem::take(&mut self.slots));
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
