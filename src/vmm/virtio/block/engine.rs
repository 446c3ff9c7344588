//! Requests in flight on the disk. Key types: [`Engine`], [`Job`], [`Finished`].
//!
//! A thin layer over `sys::disk_ring`: it goes on with transfers that the kernel cut short and judges results.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::sys::disk_ring::{Completion, DiskOp, DiskRing, DiskRings};
use crate::sys::guest_buffers::GuestBuffers;

/// Requests in flight at most; the others wait in their ring.
pub(super) const DEPTH: u16 = 128;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Job<T> {
    op: DiskOp,
    token: T,
}

/// A request that is done.
#[derive(Debug)]
pub(super) struct Finished<T> {
    pub(super) token: T,
    pub(super) result: io::Result<()>,
}

/// The disk.
#[derive(Debug)]
pub(super) struct Engine<T> {
    ring: DiskRing<Job<T>>,
}

impl<T> Engine<T> {
    /// Gets a ring on `file`.
    pub(super) fn new(file: File, rings: &DiskRings) -> io::Result<Self> {
        Ok(Self { ring: rings.open(file, DEPTH)? })
    }

    /// Whether another request may be started.
    pub(super) fn has_room(&self) -> bool {
        self.ring.has_room()
    }

    /// Queues a request; [`Engine::submit`] shows it to the kernel. The caller has checked [`Engine::has_room`].
    pub(super) fn start(&mut self, op: DiskOp, buffers: GuestBuffers, token: T) -> io::Result<()> {
        let full = |_| io::Error::other("no room for another disk request");
        self.ring.push(op, buffers, Job { op, token }).map_err(full)
    }

    /// Shows the kernel what was started.
    pub(super) fn submit(&self) -> io::Result<()> {
        self.ring.submit()
    }

    /// The next request that is done. The rest of a transfer that was cut short is queued again: submit afterwards.
    pub(super) fn next(&mut self) -> Option<Finished<T>> {
        loop {
            let Completion { token: Job { op, token }, mut buffers, result } = self.ring.next()?;
            let moved = match (op, result) {
                (DiskOp::Flush, result) => return Some(Finished { token, result: result.map(|_| ()) }),
                (_, Err(error)) if error.kind() == io::ErrorKind::Interrupted => 0,
                (_, Err(error)) => return Some(Finished { token, result: Err(error) }),
                // The image has become shorter than it was.
                (_, Ok(0)) if !buffers.is_empty() => {
                    return Some(Finished { token, result: Err(io::ErrorKind::UnexpectedEof.into()) });
                }
                (_, Ok(moved)) => moved,
            };
            buffers.advance(moved);
            if buffers.is_empty() {
                return Some(Finished { token, result: Ok(()) });
            }
            let op = op.later(moved as u64);
            if let Err((Job { token, .. }, _)) = self.ring.push(op, buffers, Job { op, token }) {
                return Some(Finished { token, result: Err(io::Error::other("no room for the rest of a request")) });
            }
        }
    }

    /// Waits until nothing is in flight, and forgets it.
    pub(super) fn drain(&mut self) {
        while self.ring.in_flight() > 0 {
            if self.ring.next().is_none()
                && let Err(error) = self.ring.wait()
            {
                tracing::error!(%error, "cannot wait for disk requests");
                return;
            }
        }
    }
}

impl<T> AsRawFd for Engine<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl DiskOp {
    /// The same operation, `count` bytes on.
    fn later(self, count: u64) -> Self {
        match self {
            Self::Read { offset } => Self::Read { offset: offset + count },
            Self::Write { offset, is_durable } => Self::Write { offset: offset + count, is_durable },
            Self::Flush => Self::Flush,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn wait(engine: &mut Engine<u8>) -> Finished<u8> {
        loop {
            engine.submit().unwrap();
            if let Some(finished) = engine.next() {
                return finished;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_read_past_the_image_s_end_fails_and_a_whole_one_does_not() {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
        let file = tempfile::tempfile().unwrap();
        file.set_len(1024).unwrap();
        let mut engine = Engine::new(file, &DiskRings::default()).unwrap();
        let buffers = || GuestBuffers::new(&memory, [(GuestAddress(0), 512), (GuestAddress(0x800), 512)]).unwrap();
        engine.start(DiskOp::Read { offset: 0 }, buffers(), 1).unwrap();
        let finished = wait(&mut engine);
        assert_eq!((finished.token, finished.result.is_ok()), (1, true));
        // 512 bytes come, then nothing: the second attempt sees the end.
        engine.start(DiskOp::Read { offset: 512 }, buffers(), 2).unwrap();
        let finished = wait(&mut engine);
        assert_eq!((finished.token, finished.result.unwrap_err().kind()), (2, io::ErrorKind::UnexpectedEof));
    }
}
