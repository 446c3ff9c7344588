//! The block device: rings on one side, the engine on the other. Key type: [`Block`].

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use super::engine::{DEPTH, Engine};
use super::request::{self, Geometry, ID_LEN, Kind, Refusal, SECTOR_LEN, SEG_MAX, SIZE_MAX};
use crate::model::DeviceId;
use crate::sys::disk_ring::{DiskOp, DiskRings};
use crate::sys::guest_buffers::GuestBuffers;
use crate::vmm::virtio::chain::{self, Chain, Segment};
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::queue::{Ring, RingFault};

const QUEUE_SIZE: u16 = 256;
/// SCSI storage controller, as the transitional devices had it; guests go by the virtio type.
const CLASS: u32 = 0x01_00_00;

/// A request in flight.
#[derive(Debug)]
struct Pending {
    head: u16,
    status: GuestAddress,
    /// Bytes that a success writes, without the status.
    written: u32,
}

/// virtio-blk on a raw image.
#[derive(Debug)]
pub struct Block {
    id: DeviceId,
    disk: Geometry,
    engine: Engine<Pending>,
}

impl Block {
    /// A disk on `image`, a regular file or a block device, open for reading and, unless `is_read_only`, for writing.
    /// Its capacity is its length now, rounded down to 512 bytes. Sets up io_uring: call it before system calls are
    /// restricted.
    pub fn new(id: DeviceId, image: File, is_read_only: bool) -> io::Result<Self> {
        Self::with_rings(id, image, is_read_only, &DiskRings::default())
    }

    /// The same with a ring from `rings`.
    pub fn with_rings(id: DeviceId, mut image: File, is_read_only: bool, rings: &DiskRings) -> io::Result<Self> {
        let bad = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let mode = rustix::fs::fcntl_getfl(&image)? & OFlags::ACCMODE;
        if mode == OFlags::WRONLY || (!is_read_only && mode != OFlags::RDWR) {
            return bad(format!("image of disk {id} is not open for what the disk allows"));
        }
        let len = image.seek(SeekFrom::End(0))?;
        if len < SECTOR_LEN {
            return bad(format!("image of disk {id} has {len} bytes, at least one sector of {SECTOR_LEN} is needed"));
        }
        let disk = Geometry { sectors: len / SECTOR_LEN, is_read_only };
        Ok(Self { id, disk, engine: Engine::new(image, rings)? })
    }

    /// Makes rings for `count` disks that come when no ring can be set up any more.
    pub fn stock(rings: &DiskRings, count: usize) -> io::Result<()> {
        rings.stock(count, DEPTH)
    }

    /// Gives back to the driver what the engine has finished.
    fn reap(&mut self, ring: &mut Ring, memory: &GuestMemoryMmap) -> Result<(), Fault> {
        while let Some(finished) = self.engine.next() {
            let Pending { head, status, written } = finished.token;
            let (code, written) = match finished.result {
                Ok(()) => (VIRTIO_BLK_S_OK, written),
                Err(error) => {
                    let count = ring.count_offence();
                    if count.is_power_of_two() {
                        tracing::warn!(device = %self.id, %error, count, "disk request failed");
                    }
                    (VIRTIO_BLK_S_IOERR, 0)
                }
            };
            answer(ring, memory, head, status, code, written)?;
        }
        Ok(())
    }

    /// Starts or answers one request.
    fn take(
        &mut self,
        chain: Chain,
        ring: &mut Ring,
        memory: &Arc<GuestMemoryMmap>,
        is_durable: bool,
    ) -> Result<(), Fault> {
        let head = chain.head;
        let (data, status) = request::split_status(&chain.writable).ok_or(RingFault::NoAnswer)?;
        match self.start(chain, data, status, memory, is_durable) {
            Ok(Started::InFlight) => Ok(()),
            Ok(Started::Answered { written }) => answer(ring, memory, head, status, VIRTIO_BLK_S_OK, written),
            Ok(Started::HostFailed(error)) => Err(Fault::Host(error)),
            Err(refusal) => {
                ring.count_offence();
                let code = match refusal {
                    Refusal::IoError => VIRTIO_BLK_S_IOERR,
                    Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP,
                };
                answer(ring, memory, head, status, code, 0)
            }
        }
    }

    fn start(
        &mut self,
        mut chain: Chain,
        writable: Vec<Segment>,
        status: GuestAddress,
        memory: &Arc<GuestMemoryMmap>,
        is_durable: bool,
    ) -> Result<Started, Refusal> {
        let header = chain.read_head(&**memory).ok_or(Refusal::IoError)?;
        let (op, data, written) = match request::parse(header, chain.readable, writable, self.disk)? {
            Kind::Id { data } => {
                chain::write(&**memory, &data, &self.serial()).ok_or(Refusal::IoError)?;
                return Ok(Started::Answered { written: ID_LEN as u32 });
            }
            Kind::Read { offset, data } => {
                let written = chain::len(&data);
                (DiskOp::Read { offset }, data, written)
            }
            Kind::Write { offset, data } => (DiskOp::Write { offset, is_durable }, data, 0),
            Kind::Flush => (DiskOp::Flush, Vec::new(), 0),
        };
        let buffers = GuestBuffers::new(memory, chain::ranges(&data)).map_err(|_| Refusal::IoError)?;
        // Data is bounded well below 32 bits (see `request::MAX_DATA_LEN`).
        let pending = Pending { head: chain.head, status, written: written as u32 };
        Ok(match self.engine.start(op, buffers, pending) {
            Ok(()) => Started::InFlight,
            Err(error) => Started::HostFailed(error),
        })
    }

    /// The device's id, cut or padded with zeros.
    fn serial(&self) -> [u8; ID_LEN] {
        let mut serial = [0; ID_LEN];
        for (place, byte) in serial.iter_mut().zip(self.id.as_str().bytes()) {
            *place = byte;
        }
        serial
    }
}

/// What became of a request that was not refused.
enum Started {
    InFlight,
    Answered { written: u32 },
    HostFailed(io::Error),
}

/// Writes the status byte and gives the chain back. Without a place for the status the ring is broken.
fn answer(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    head: u16,
    status: GuestAddress,
    code: u32,
    written: u32,
) -> Result<(), Fault> {
    memory.write_obj(code as u8, status).map_err(|_| RingFault::NoAnswer)?;
    Ok(ring.complete(memory, head, written + 1)?)
}

impl Device for Block {
    fn identity(&self) -> Identity {
        let mut config = Vec::new();
        // struct virtio_blk_config (VIRTIO 1.2 §5.2.4) up to blk_size.
        config.extend(self.disk.sectors.to_le_bytes());
        config.extend(SIZE_MAX.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]);
        config.extend((SECTOR_LEN as u32).to_le_bytes());
        let bits = [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        let read_only = if self.disk.is_read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_BLOCK as u16,
            class: CLASS,
            features: bits.iter().fold(read_only, |features, bit| features | 1 << bit),
            config,
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.engine.as_raw_fd())
    }

    fn run(&mut self, active: &mut Active, _wake: Wake) -> Result<Next, Fault> {
        // Without a flush command the cache must write through (VIRTIO 1.2 §5.2.5.2).
        let is_durable = active.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        let Some(ring) = active.rings.first_mut().and_then(Option::as_mut) else { return Ok(Next::Wait) };
        let memory = active.memory.memory().into_inner();
        self.reap(ring, &memory)?;
        let mut taken = 0;
        let next = loop {
            if !self.engine.has_room() {
                // The next completion brings us back, unless all arrive below.
                break Next::Wait;
            }
            if taken == ring.size() {
                break Next::Again;
            }
            match ring.pop(&*memory)? {
                Some(chain) => self.take(chain, ring, &memory, is_durable)?,
                None if ring.listen(&*memory)? => {}
                None => break Next::Wait,
            }
            taken += 1;
        };
        let was_full = !self.engine.has_room();
        self.engine.submit()?;
        // Buffered reads complete within the submission: answer them in the same interrupt.
        self.reap(ring, &memory)?;
        self.engine.submit()?;
        ring.signal(&*memory)?;
        Ok(if was_full && self.engine.has_room() { Next::Again } else { next })
    }

    fn stop(&mut self) {
        self.engine.drain();
    }
}
