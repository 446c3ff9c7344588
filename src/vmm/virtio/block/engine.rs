//! Requests in flight on the disk. Key types: [`Engine`], [`Task`], [`Finished`].
//!
//! A layer over `sys::disk_ring`: it makes operations of a task, goes on with transfers that the kernel cut short, and
//! judges results.
//!
//! ```text
//!   Task ─▶ Step::Straight  the guest's own buffers                                     ─┐
//!           Step::Bounced   piece by piece through memory of our own (unaligned buffers) ├─▶ DiskRing ─▶ next Step, or
//!           Step::Zeroing   hole, else zeroed range, else zeros written                  │              Finished
//!           Step::Once      flush, discard                                              ─┘
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::image::{Alignment, Image};
use crate::sys::disk_ring::{Completion, DiskOp, DiskRing, DiskRings};
use crate::sys::guest_buffers::GuestBuffers;
use crate::vmm::virtio::chain::{self, Segment};

/// Requests in flight at most; the others wait in their ring.
pub(in crate::vmm::virtio) const DEPTH: u16 = 128;
/// Most bytes of one bounced piece, so that all requests in flight together cost at most 4 MiB.
const BOUNCE_LEN: usize = 32 << 10;
/// Bytes of zeros that are kept to be written, and how often one operation writes them.
const ZEROS_LEN: usize = 64 << 10;
const ZEROS_REPEATED: u64 = 128;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// From the image to the guest.
    Read { offset: u64, data: Vec<Segment> },
    /// From the guest to the image; on stable storage at completion if `is_durable`.
    Write { offset: u64, data: Vec<Segment>, is_durable: bool },
    /// Everything written so far to stable storage.
    Flush,
    /// The range's blocks are not needed any more.
    Discard { offset: u64, len: u64 },
    /// The range reads as zeros.
    Zero { offset: u64, len: u64, may_unmap: bool, is_durable: bool },
}

/// Why a task was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Buffers that are not guest memory.
    #[error("buffers are not guest memory")]
    NotMemory,
    /// The host.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Job<T> {
    step: Step,
    token: T,
}

/// A request that is done.
#[derive(Debug)]
pub(super) struct Finished<T> {
    pub(super) token: T,
    pub(super) result: io::Result<()>,
}

/// Where a job is.
#[derive(Debug)]
enum Step {
    /// The kernel works on the guest's buffers.
    Straight(DiskOp),
    /// It works on a copy of one piece.
    Bounced(Bounce),
    /// A range becomes zeros.
    Zeroing(Zeroing),
    /// One call without data.
    Once(DiskOp),
}

#[derive(Debug)]
struct Bounce {
    op: DiskOp,
    /// Where the piece is.
    own: Arc<GuestMemoryMmap>,
    guest: Arc<GuestMemoryMmap>,
    /// From the piece on.
    rest: Vec<Segment>,
}

#[derive(Debug, Clone, Copy)]
struct Zeroing {
    offset: u64,
    len: u64,
    method: Method,
    is_durable: bool,
}

/// Ways to zeros, each tried when the file system lacks the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Punch,
    Range,
    Write,
}

/// The disk.
#[derive(Debug)]
pub(super) struct Engine<T> {
    ring: DiskRing<Job<T>>,
    alignment: Option<Alignment>,
    /// The first way to zeros, for ranges that keep their blocks.
    keeping: Method,
    /// Made when it is first needed.
    zeros: Option<Arc<GuestMemoryMmap>>,
}

impl<T> Engine<T> {
    /// Gets a ring for the image.
    pub(super) fn new(image: &Image, rings: &DiskRings) -> io::Result<Self> {
        let ring = rings.open(image.file.try_clone()?, DEPTH)?;
        Ok(Self { ring, alignment: image.alignment, keeping: Method::Range, zeros: None })
    }

    /// Whether another request may be started.
    pub(super) fn has_room(&self) -> bool {
        self.ring.has_room()
    }

    /// Queues a request; [`Engine::submit`] shows it to the kernel. The caller has checked [`Engine::has_room`].
    pub(super) fn start(&mut self, task: Task, memory: &Arc<GuestMemoryMmap>, token: T) -> Result<(), StartError> {
        let (op, data) = match task {
            Task::Read { offset, data } => (DiskOp::Read { offset }, data),
            Task::Write { offset, data, is_durable } => (DiskOp::Write { offset, is_durable }, data),
            Task::Flush => return self.begin(Step::Once(DiskOp::Flush), token),
            Task::Discard { offset, len } => return self.begin(Step::Once(DiskOp::Punch { offset, len }), token),
            Task::Zero { offset, len, may_unmap, is_durable } => {
                let method = if may_unmap { Method::Punch } else { self.keeping };
                return self.begin(Step::Zeroing(Zeroing { offset, len, method, is_durable }), token);
            }
        };
        // Also for what is bounced: all of it must be memory before any of it moves.
        let buffers = GuestBuffers::new(memory, chain::ranges(&data)).map_err(|_| StartError::NotMemory)?;
        if self.is_aligned(&data) {
            return Ok(self.push(Step::Straight(op), buffers, token)?);
        }
        let bounce = Bounce { op, own: own_memory(BOUNCE_LEN)?, guest: memory.clone(), rest: data };
        self.begin(Step::Bounced(bounce), token)
    }

    /// Shows the kernel what was started.
    pub(super) fn submit(&self) -> io::Result<()> {
        self.ring.submit()
    }

    /// The next request that is done. One that goes on with a further step is queued again: submit afterwards.
    pub(super) fn next(&mut self) -> Option<Finished<T>> {
        loop {
            let Completion { token: Job { step, token }, buffers, result } = self.ring.next()?;
            match self.after(step, buffers, result) {
                Ok(None) => return Some(Finished { token, result: Ok(()) }),
                Err(error) => return Some(Finished { token, result: Err(error) }),
                Ok(Some((step, buffers))) => {
                    if let Err((token, error)) = self.queue(step, buffers, token) {
                        return Some(Finished { token, result: Err(error) });
                    }
                }
            }
        }
    }

    /// Whether anything is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.ring.in_flight() > 0
    }

    /// Waits until something that is in flight is done.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.ring.wait()
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

    fn is_aligned(&self, data: &[Segment]) -> bool {
        self.alignment.is_none_or(|Alignment { memory, block }| {
            data.iter().all(|one| one.address.0.is_multiple_of(memory.into()) && one.len.is_multiple_of(block))
        })
    }

    fn begin(&mut self, step: Step, token: T) -> Result<(), StartError> {
        let buffers = self.buffers(&step)?;
        Ok(self.push(step, buffers, token)?)
    }

    fn push(&mut self, step: Step, buffers: GuestBuffers, token: T) -> io::Result<()> {
        self.queue(step, buffers, token).map_err(|(_, error)| error)
    }

    fn queue(&mut self, step: Step, buffers: GuestBuffers, token: T) -> Result<(), (T, io::Error)> {
        let full = |(Job { token, .. }, _)| (token, io::Error::other("no room for a disk request"));
        self.ring.push(step.op(), buffers, Job { step, token }).map_err(full)
    }

    /// The buffers of a step that does not use the guest's.
    fn buffers(&mut self, step: &Step) -> io::Result<GuestBuffers> {
        match step {
            Step::Bounced(bounce) => bounce.buffers(),
            Step::Zeroing(zeroing) if zeroing.method == Method::Write => {
                let zeros = match &self.zeros {
                    Some(zeros) => zeros,
                    None => self.zeros.insert(own_memory(ZEROS_LEN)?),
                };
                let pieces = (0..zeroing.written_len()).step_by(ZEROS_LEN);
                let left = |at: u64| (zeroing.written_len() - at).min(ZEROS_LEN as u64) as usize;
                list(zeros, pieces.map(|at| (GuestAddress(0), left(at))))
            }
            Step::Zeroing(_) | Step::Once(_) | Step::Straight(_) => list(&Arc::default(), []),
        }
    }

    /// What follows a step with this result: another one, or (`None`) the end.
    fn after(
        &mut self,
        step: Step,
        mut buffers: GuestBuffers,
        result: io::Result<usize>,
    ) -> io::Result<Option<(Step, GuestBuffers)>> {
        let moved = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Some((step, buffers))),
            Err(error) => return self.instead(step, error).and_then(|step| self.with_buffers(step)),
            // The image has become shorter than it was.
            Ok(0) if !buffers.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
        };
        match step {
            Step::Once(_) => Ok(None),
            Step::Straight(op) => {
                buffers.advance(moved);
                Ok((!buffers.is_empty()).then(|| (Step::Straight(op.later(moved as u64)), buffers)))
            }
            Step::Bounced(bounce) => match bounce.later(moved)? {
                Some(bounce) => self.with_buffers(Step::Bounced(bounce)),
                None => Ok(None),
            },
            Step::Zeroing(zeroing) => match zeroing.later(moved as u64) {
                Some(step) => self.with_buffers(step),
                None => Ok(None),
            },
        }
    }

    fn with_buffers(&mut self, step: Step) -> io::Result<Option<(Step, GuestBuffers)>> {
        let buffers = self.buffers(&step)?;
        Ok(Some((step, buffers)))
    }

    /// Another way to do what failed, if there is one.
    fn instead(&mut self, step: Step, error: io::Error) -> io::Result<Step> {
        let Step::Zeroing(zeroing) = step else { return Err(error) };
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(error);
        }
        let method = match zeroing.method {
            Method::Punch => self.keeping,
            Method::Range => Method::Write,
            Method::Write => return Err(error),
        };
        if zeroing.method == Method::Range {
            // It will not learn it.
            self.keeping = Method::Write;
        }
        Ok(Step::Zeroing(Zeroing { method, ..zeroing }))
    }
}

impl Step {
    fn op(&self) -> DiskOp {
        match self {
            Self::Straight(op) | Self::Once(op) => *op,
            Self::Bounced(bounce) => bounce.op,
            Self::Zeroing(Zeroing { offset, len, method, is_durable }) => match method {
                Method::Punch => DiskOp::Punch { offset: *offset, len: *len },
                Method::Range => DiskOp::Zero { offset: *offset, len: *len },
                Method::Write => DiskOp::Write { offset: *offset, is_durable: *is_durable },
            },
        }
    }
}

impl Bounce {
    /// The piece that is next, in memory of our own; what is to be written has been copied there.
    fn buffers(&self) -> io::Result<GuestBuffers> {
        let piece = self.piece();
        if matches!(self.op, DiskOp::Write { .. }) {
            let mut at = 0;
            self.each(piece, |segment| {
                let mut bytes = vec![0; segment.len as usize];
                self.guest.read_slice(&mut bytes, segment.address).map_err(io::Error::other)?;
                self.own.write_slice(&bytes, GuestAddress(at)).map_err(io::Error::other)?;
                at += u64::from(segment.len);
                Ok(())
            })?;
        }
        list(&self.own, [(GuestAddress(0), piece)])
    }

    /// What is left after `moved` bytes of the piece; those that were read are the guest's now.
    fn later(mut self, moved: usize) -> io::Result<Option<Self>> {
        if matches!(self.op, DiskOp::Read { .. }) {
            let mut at = 0;
            self.each(moved, |segment| {
                let mut bytes = vec![0; segment.len as usize];
                self.own.read_slice(&mut bytes, GuestAddress(at)).map_err(io::Error::other)?;
                self.guest.write_slice(&bytes, segment.address).map_err(io::Error::other)?;
                at += u64::from(segment.len);
                Ok(())
            })?;
        }
        self.rest = chain::split(&self.rest, moved as u64).map(|(_, rest)| rest).unwrap_or_default();
        self.op = self.op.later(moved as u64);
        Ok((!self.rest.is_empty()).then_some(self))
    }

    fn piece(&self) -> usize {
        // At most BOUNCE_LEN.
        chain::len(&self.rest).min(BOUNCE_LEN as u64) as usize
    }

    fn each(&self, len: usize, copy: impl FnMut(Segment) -> io::Result<()>) -> io::Result<()> {
        let head = chain::split(&self.rest, len as u64).map(|(head, _)| head).unwrap_or_default();
        head.into_iter().try_for_each(copy)
    }
}

impl Zeroing {
    /// Bytes that one operation writes.
    fn written_len(&self) -> u64 {
        self.len.min(ZEROS_LEN as u64 * ZEROS_REPEATED)
    }

    /// What follows a success: the rest of what is written, then a flush if nobody else will ask for one.
    fn later(mut self, moved: u64) -> Option<Step> {
        if self.method != Method::Write {
            return self.is_durable.then_some(Step::Once(DiskOp::Flush));
        }
        self.offset += moved;
        self.len = self.len.saturating_sub(moved);
        (self.len > 0).then_some(Step::Zeroing(self))
    }
}

/// Memory of our own, page-aligned, in the shape that operations take.
fn own_memory(len: usize) -> io::Result<Arc<GuestMemoryMmap>> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).map(Arc::new).map_err(io::Error::other)
}

fn list(
    memory: &Arc<GuestMemoryMmap>,
    ranges: impl IntoIterator<Item = (GuestAddress, usize)>,
) -> io::Result<GuestBuffers> {
    GuestBuffers::new(memory, ranges).map_err(io::Error::other)
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
            Self::Flush | Self::Punch { .. } | Self::Zero { .. } => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
    }

    fn engine(file: &File) -> Engine<u8> {
        Engine::new(
            &Image::examine(file.try_clone().unwrap(), false, super::super::image::Holes::Tried).unwrap(),
            &DiskRings::default(),
        )
        .unwrap()
    }

    fn wait(engine: &mut Engine<u8>) -> Finished<u8> {
        loop {
            engine.submit().unwrap();
            if let Some(finished) = engine.next() {
                return finished;
            }
            std::thread::yield_now();
        }
    }

    fn done(engine: &mut Engine<u8>, task: Task, memory: &Arc<GuestMemoryMmap>) {
        engine.start(task, memory, 7).unwrap();
        let finished = wait(engine);
        finished.result.unwrap();
        assert_eq!((finished.token, engine.ring.in_flight()), (7, 0));
    }

    fn segment(address: u64, len: u32) -> Segment {
        Segment { address: GuestAddress(address), len }
    }

    #[test]
    fn a_read_past_the_image_s_end_fails_and_a_whole_one_does_not() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1024).unwrap();
        let mut engine = engine(&file);
        let data = || vec![segment(0, 512), segment(0x800, 512)];
        done(&mut engine, Task::Read { offset: 0, data: data() }, &memory);
        // 512 bytes come, then nothing: the second attempt sees the end.
        engine.start(Task::Read { offset: 512, data: data() }, &memory, 2).unwrap();
        let finished = wait(&mut engine);
        assert_eq!((finished.token, finished.result.unwrap_err().kind()), (2, io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn unaligned_buffers_are_bounced_piece_by_piece_and_nothing_is_lost() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut engine = engine(&file);
        // As if the file were open for direct I/O: the bounce is the same, whatever the kernel asks for.
        engine.alignment = Some(Alignment { memory: 512, block: 512 });
        let bytes: Vec<u8> = (0..200_u32 << 10).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(0x1001)).unwrap();
        let data = vec![segment(0x1001, 100), segment(0x1001 + 100, (200 << 10) - 100)];
        assert!(!engine.is_aligned(&data) && engine.is_aligned(&[segment(0x1000, 512)]));
        done(&mut engine, Task::Write { offset: 512, data: data.clone(), is_durable: false }, &memory);
        let mut written = vec![0; bytes.len()];
        file.read_exact_at(&mut written, 512).unwrap();
        assert!(written == bytes);
        memory.write_slice(&vec![0; bytes.len()], GuestAddress(0x1001)).unwrap();
        done(&mut engine, Task::Read { offset: 512, data }, &memory);
        let mut read = vec![0; bytes.len()];
        memory.read_slice(&mut read, GuestAddress(0x1001)).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn every_way_to_zeros_leaves_zeros_and_nothing_else() {
        let memory = memory();
        for method in [Method::Punch, Method::Range, Method::Write] {
            for is_durable in [false, true] {
                let file = tempfile::tempfile().unwrap();
                let len = 20 << 20;
                file.write_all_at(&vec![7; len], 0).unwrap();
                let mut engine = engine(&file);
                engine.keeping = if method == Method::Punch { Method::Range } else { method };
                // More than one operation writes.
                let zeroed = (1024, (18 << 20) + 512);
                let may_unmap = method == Method::Punch;
                let task = Task::Zero { offset: zeroed.0, len: zeroed.1, may_unmap, is_durable };
                done(&mut engine, task, &memory);
                let mut bytes = vec![1; len];
                file.read_exact_at(&mut bytes, 0).unwrap();
                let end = (zeroed.0 + zeroed.1) as usize;
                assert!(bytes[..1024].iter().chain(&bytes[end..]).all(|&byte| byte == 7), "{method:?}");
                assert!(bytes[1024..end].iter().all(|&byte| byte == 0), "{method:?}");
                assert_eq!(file.metadata().unwrap().len(), len as u64);
            }
        }
    }

    #[test]
    fn what_is_not_guest_memory_moves_nothing() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut engine = engine(&file);
        engine.alignment = Some(Alignment { memory: 512, block: 512 });
        let data = vec![segment(1, 511), segment(1 << 20, 1)];
        let refused = engine.start(Task::Read { offset: 0, data }, &memory, 1).unwrap_err();
        assert!(matches!(refused, StartError::NotMemory));
        assert_eq!(engine.ring.in_flight(), 0);
    }
}
