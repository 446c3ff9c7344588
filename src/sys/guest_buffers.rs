//! Pieces of guest memory that the kernel reads and writes directly. Key type: [`GuestBuffers`].
//!
//! Devices name ranges of guest addresses; this turns them into an `iovec` list that cannot outlive the mapping, so that
//! data moves between a descriptor and the guest without a copy and without a Rust reference to shared memory.
#![allow(unsafe_code, reason = "hands guest memory to system calls; see each block")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Most pieces of one list, with the one that belongs to the host (`UIO_MAXIOV`, linux/uio.h).
const MAX_PIECES: usize = 1024;

/// Why ranges cannot be handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestRangeError {
    /// Part of the range is not guest memory.
    #[error("range at {address:#x} of {len} bytes is not guest memory")]
    NotMemory {
        /// Guest-physical start.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
    /// More pieces than one system call takes.
    #[error("more than {MAX_PIECES} pieces of guest memory")]
    TooMany,
}

/// A list of pieces of guest memory, in order, with the mapping that keeps them alive.
pub struct GuestBuffers {
    /// Entry 0 is room for a buffer of the host and empty between calls; the others point into `_memory`.
    iovecs: Vec<libc::iovec>,
    len: usize,
    _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are addresses in a shared mapping, which no thread owns; `_memory`, itself `Send`, keeps it mapped.
unsafe impl Send for GuestBuffers {}

impl std::fmt::Debug for GuestBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBuffers").field("pieces", &self.guest().len()).field("len", &self.len).finish()
    }
}

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl GuestBuffers {
    /// The `ranges` (address and bytes, empty ones allowed) of `memory`. Every byte must be guest memory.
    pub fn new(
        memory: &Arc<GuestMemoryMmap>,
        ranges: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Result<Self, GuestRangeError> {
        let mut iovecs = vec![NOTHING];
        let mut total: usize = 0;
        for (address, len) in ranges {
            let not_memory = GuestRangeError::NotMemory { address: address.0, len };
            let slices = memory.get_slices(address, len, Permissions::ReadWrite).map_err(|_| not_memory)?;
            for slice in slices {
                let slice = slice.map_err(|_| not_memory)?;
                let pointer = slice.ptr_guard_mut();
                iovecs.push(libc::iovec { iov_base: pointer.as_ptr().cast(), iov_len: slice.len() });
                total = total.checked_add(slice.len()).ok_or(GuestRangeError::TooMany)?;
            }
            if iovecs.len() > MAX_PIECES {
                return Err(GuestRangeError::TooMany);
            }
        }
        Ok(Self { iovecs, len: total, _memory: memory.clone() })
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `count` bytes, after a transfer that was shorter than asked.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut done = 0;
        for piece in self.iovecs.iter_mut().skip(1) {
            let step = left.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(step);
            piece.iov_len -= step;
            left -= step;
            if piece.iov_len > 0 {
                break;
            }
            done += 1;
        }
        self.iovecs.drain(1..=done);
    }

    /// readv(2): first into `head`, then into guest memory. Returns the bytes read, `head` included.
    pub fn read_from(&mut self, fd: impl AsFd, head: &mut [u8]) -> io::Result<usize> {
        let host = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
        // SAFETY: `host` is exclusively borrowed, writable memory; see `vectored` for the rest.
        self.vectored(host, |list, count| unsafe { libc::readv(fd.as_fd().as_raw_fd(), list, count) })
    }

    /// writev(2): first `head`, then guest memory. Returns the bytes written, `head` included.
    pub fn write_to(&mut self, fd: impl AsFd, head: &[u8]) -> io::Result<usize> {
        let host = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        // SAFETY: writev only reads `host`, which is borrowed; see `vectored` for the rest.
        self.vectored(host, |list, count| unsafe { libc::writev(fd.as_fd().as_raw_fd(), list, count) })
    }

    /// Fills all pieces from getrandom(2). Returns the bytes filled: all of them, unless the kernel stops early.
    pub fn fill_random(&mut self) -> io::Result<usize> {
        let mut filled = 0;
        for piece in self.guest() {
            // SAFETY: the piece is mapped and writable while `_memory` lives; no Rust reference points into it.
            let count = unsafe { libc::getrandom(piece.iov_base, piece.iov_len, 0) };
            match usize::try_from(count) {
                Ok(count) => filled += count,
                Err(_) => return Err(io::Error::last_os_error()),
            }
            if count as usize != piece.iov_len {
                break;
            }
        }
        Ok(filled)
    }

    /// Frees the pages of all pieces, which begin and end with one (`MADV_DONTNEED`): they read as zeroes then, and take
    /// nothing of the host until they are written. Fails on locked memory.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.guest().iter().try_for_each(|piece| {
            // SAFETY: the piece is mapped while `_memory` lives; no Rust reference points into it, and what lies there is a
            // guest's, which this crate reads as bytes that may change at any time.
            let done = unsafe { libc::madvise(piece.iov_base, piece.iov_len, libc::MADV_DONTNEED) };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    }

    /// The pieces of guest memory. Valid only while `self` lives.
    pub(super) fn guest(&self) -> &[libc::iovec] {
        self.iovecs.get(1..).unwrap_or(&[])
    }

    /// Runs `call` on the list with `host` in front. The pieces are mapped, readable and writable while `_memory` lives,
    /// no Rust reference points into them, and the kernel keeps no pointer after the call.
    fn vectored(
        &mut self,
        host: libc::iovec,
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        if let Some(first) = self.iovecs.first_mut() {
            *first = host;
        }
        // At most MAX_PIECES, by construction.
        let count = call(self.iovecs.as_ptr(), self.iovecs.len() as libc::c_int);
        let result = usize::try_from(count).map_err(|_| io::Error::last_os_error());
        if let Some(first) = self.iovecs.first_mut() {
            *first = NOTHING;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use vm_memory::Bytes;

    /// Two regions that touch, then a hole.
    fn memory() -> Arc<GuestMemoryMmap> {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000), (GuestAddress(0x4000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn buffers(memory: &Arc<GuestMemoryMmap>, ranges: &[(u64, usize)]) -> GuestBuffers {
        GuestBuffers::new(memory, ranges.iter().map(|&(address, len)| (GuestAddress(address), len))).unwrap()
    }

    #[test]
    fn moves_bytes_in_order_across_regions() {
        let memory = memory();
        let mut file = tempfile::tempfile().unwrap();
        memory.write_slice(b"abcdef", GuestAddress(0xffd)).unwrap();
        memory.write_slice(b"gh", GuestAddress(0x4000)).unwrap();
        let mut list = buffers(&memory, &[(0xffd, 6), (0x4000, 2)]);
        assert_eq!(list.len(), 8);
        assert_eq!(list.write_to(&file, b"<>").unwrap(), 10);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "<>abcdefgh");

        file.rewind().unwrap();
        let mut head = [0; 3];
        assert_eq!(buffers(&memory, &[(0x4ffe, 2)]).read_from(&file, &mut head).unwrap(), 5);
        let mut tail = [0; 2];
        memory.read_slice(&mut tail, GuestAddress(0x4ffe)).unwrap();
        assert_eq!((&head, &tail), (b"<>a", b"bc"));
    }

    #[test]
    fn refuses_what_is_not_guest_memory() {
        let memory = memory();
        for (address, len) in [(0x1fff, 2), (0x2000, 1), (0x4fff, 2), (u64::MAX, 1), (u64::MAX - 1, 4), (0, 1 << 40)] {
            let error = GuestBuffers::new(&memory, [(GuestAddress(address), len)]).unwrap_err();
            assert_eq!(error, GuestRangeError::NotMemory { address, len });
        }
        assert!(buffers(&memory, &[]).is_empty());
        let many = (0..1024).map(|at| (GuestAddress(at), 1));
        assert_eq!(GuestBuffers::new(&memory, many).unwrap_err(), GuestRangeError::TooMany);
    }

    #[test]
    fn advances_over_pieces() {
        let memory = memory();
        memory.write_slice(b"0123456789", GuestAddress(0x100)).unwrap();
        for count in 0..=11 {
            let mut list = buffers(&memory, &[(0x100, 4), (0x104, 0), (0x104, 3), (0x107, 3)]);
            list.advance(count);
            assert_eq!(list.len(), 10_usize.saturating_sub(count));
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"").unwrap();
            list.write_to(&file, &[]).unwrap();
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "0123456789"[count.min(10)..], "{count}");
        }
    }

    #[test]
    fn fills_with_randomness() {
        let memory = memory();
        let mut list = buffers(&memory, &[(0xf00, 0x200), (0x4000, 64)]);
        assert_eq!(list.fill_random().unwrap(), 0x240);
        let mut tail = [0_u8; 64];
        memory.read_slice(&mut tail, GuestAddress(0x4000)).unwrap();
        assert_ne!(tail, [0; 64]);
    }
}
