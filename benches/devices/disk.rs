//! The guest's end of the comparison of disks: reads past its own cache, each page of which is looked at.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::sys::disk_ring::{DiskOp, DiskRing};
use ostler::sys::guest_buffers::GuestBuffers;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::pattern::{Buffer, DISK_LEN, PAGE, PIECE, is_stamped, places, stamp};

const GENERATION: u8 = 1;
/// Reads under way at once.
const DEPTH: u16 = 32;

pub struct Disk {
    file: File,
    path: String,
}

impl Disk {
    pub fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// So that what is read are no holes: of whatever lies behind it.
    pub fn fill(&self) -> Result<()> {
        let mut piece = Buffer::new(PIECE);
        for at in (0..DISK_LEN).step_by(PIECE) {
            piece.stamp(GENERATION, at / PAGE as u64);
            self.file.write_all_at(piece.bytes(), at)?;
        }
        self.file.sync_all()
    }

    /// How long each of `count` reads of one page took, one after the other.
    pub fn one_by_one(&self, count: usize) -> Result<Vec<Duration>> {
        let mut page = Buffer::new(PAGE);
        let read = |place: u64| {
            let begun = Instant::now();
            self.file.read_exact_at(page.bytes_mut(), place * PAGE as u64)?;
            let took = begun.elapsed();
            self.check(is_stamped(page.bytes(), std::iter::once(stamp(GENERATION, place))))?;
            Ok(took)
        };
        random().take(count).map(read).collect()
    }

    /// How long `count` reads of one page took, of which [`DEPTH`] are under way.
    pub fn many_at_once(&self, count: usize) -> Result<Duration> {
        let len = usize::from(DEPTH) * PAGE;
        let memory: Arc<GuestMemoryMmap> =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).map_err(Error::other)?);
        let mut ring: DiskRing<(u64, GuestAddress)> = DiskRing::new(self.file.try_clone()?, DEPTH)?;
        let mut due = random().take(count);
        let mut push = |ring: &mut DiskRing<_>, at: GuestAddress| -> Result<()> {
            let Some(place) = due.next() else { return Ok(()) };
            let buffers = GuestBuffers::new(&memory, [(at, PAGE)]).map_err(Error::other)?;
            let op = DiskOp::Read { offset: place * PAGE as u64 };
            ring.push(op, buffers, (place, at)).map_err(|_| Error::other("the ring is full"))
        };
        let begun = Instant::now();
        for slot in 0..u64::from(DEPTH) {
            push(&mut ring, GuestAddress(slot * PAGE as u64))?;
        }
        while ring.in_flight() > 0 {
            // Also shows the kernel what was pushed.
            ring.wait()?;
            while let Some(done) = ring.next() {
                let (place, at) = done.token;
                let found: u64 = memory.read_obj(at).map_err(Error::other)?;
                self.check(done.result? == PAGE && u64::from_le(found) == stamp(GENERATION, place))?;
                push(&mut ring, at)?;
            }
        }
        Ok(begun.elapsed())
    }

    /// How long it takes to read all that was filled, from front to back.
    pub fn in_sequence(&self) -> Result<Duration> {
        let mut piece = Buffer::new(PIECE);
        let begun = Instant::now();
        for at in (0..DISK_LEN).step_by(PIECE) {
            self.file.read_exact_at(piece.bytes_mut(), at)?;
            let stamps = (at / PAGE as u64..).map(|page| stamp(GENERATION, page));
            self.check(is_stamped(piece.bytes(), stamps))?;
        }
        Ok(begun.elapsed())
    }

    fn check(&self, is_right: bool) -> Result<()> {
        if is_right { Ok(()) } else { Err(Error::other(format!("{}: not what was written", self.path))) }
    }
}

/// Pages, without an end.
fn random() -> impl Iterator<Item = u64> {
    (0..).flat_map(places)
}
