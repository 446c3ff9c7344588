//! The block device: rings on one side, the engine on the other. Key type: [`Block`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use super::engine::{Engine, StartError, Task};
use super::image::{Holes, Image};
use super::request::{
    self, Geometry, ID_LEN, Kind, MAX_DATA_LEN, MAX_RANGE_SECTORS, Refusal, SECTOR_LEN, SEG_MAX, SIZE_MAX,
};
use crate::model::{DeviceChange, DeviceId, RateLimits};
use crate::vmm::ports::ChangeError;
use crate::vmm::virtio::chain::{self, Chain, Segment};
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::limiter::Limiter;
use crate::vmm::virtio::queue::{Ring, RingFault};
use crate::vmm::virtio::stock::Stock;

const QUEUE_SIZE: u16 = 256;
/// SCSI storage controller, as the transitional devices had it; guests go by the virtio type.
const CLASS: u32 = 0x01_00_00;

/// A request in flight.
#[derive(Debug)]
struct Pending {
    /// Its queue.
    queue: usize,
    head: u16,
    status: GuestAddress,
    /// Bytes that a success writes, without the status.
    written: u32,
}

/// virtio-blk on a raw image.
#[derive(Debug)]
pub struct Block {
    id: DeviceId,
    image: Image,
    is_read_only: bool,
    /// Number of queues.
    queues: u16,
    engine: Engine<Pending>,
    limiter: Limiter,
    /// The queue that is looked at first; moves on, so that none is served last for ever.
    first: usize,
    /// Queues were left with requests that had no room, or must wait by the limits.
    is_behind: bool,
}

impl Block {
    /// A disk with `queues` (at least 1) request queues on `image`, a regular file or a block device, open for reading
    /// and, unless `is_read_only`, for writing; with `O_DIRECT` the page cache is bypassed. Its length is whole blocks.
    /// It moves what `limits` allow. Sets up io_uring: call it before system calls are restricted.
    pub fn new(id: DeviceId, image: File, is_read_only: bool, queues: u16, limits: RateLimits) -> io::Result<Self> {
        Self::with_stock(id, image, is_read_only, queues, limits, &Stock::default())
    }

    /// The same with ring and timer from `stock`.
    pub fn with_stock(
        id: DeviceId,
        image: File,
        is_read_only: bool,
        queues: u16,
        limits: RateLimits,
        stock: &Stock,
    ) -> io::Result<Self> {
        let holes = if stock.is_filled() { Holes::Presumed } else { Holes::Tried };
        let image = Image::examine(image, is_read_only, holes)?;
        let (engine, limiter) = (Engine::new(&image, &stock.rings)?, Limiter::with_timer(limits, stock.timer()?));
        Ok(Self { id, image, is_read_only, queues: queues.max(1), engine, limiter, first: 0, is_behind: false })
    }

    fn geometry(&self, is_write_through: bool) -> Geometry {
        Geometry {
            sectors: self.image.len / SECTOR_LEN,
            block_sectors: u64::from(self.image.block_len) / SECTOR_LEN,
            is_read_only: self.is_read_only,
            can_discard: self.image.can_punch,
            is_write_through,
        }
    }

    /// struct virtio_blk_config (VIRTIO 1.2 §5.2.4) up to the limits of write zeroes.
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::new();
        config.extend((self.image.len / SECTOR_LEN).to_le_bytes());
        config.extend(SIZE_MAX.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]); // geometry
        config.extend(self.image.block_len.to_le_bytes());
        config.extend([0; 10]); // topology, writeback, unused
        config.extend(self.queues.to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes()); // ranges of a discard
        config.extend((self.image.granularity / SECTOR_LEN as u32).to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes()); // ranges of write zeroes
        config.extend([self.image.can_punch.into(), 0, 0, 0]);
        config
    }

    /// Gives back to the driver what the engine has finished.
    fn reap(&mut self, rings: &mut [Option<Ring>], memory: &GuestMemoryMmap) -> Result<(), Fault> {
        while let Some(finished) = self.engine.next() {
            let Pending { queue, head, status, written } = finished.token;
            // It came from there, and the rings are the same until the device is stopped.
            let Some(ring) = rings.get_mut(queue).and_then(Option::as_mut) else { continue };
            let (code, written) = match finished.result {
                Ok(()) => (VIRTIO_BLK_S_OK, written),
                // A block device that cannot give ranges back: not a failure of what it holds.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => (VIRTIO_BLK_S_UNSUPP, 0),
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

    /// Takes requests of queue `number`, at most as many as it has entries.
    fn serve(
        &mut self,
        number: usize,
        ring: &mut Ring,
        memory: &Arc<GuestMemoryMmap>,
        is_write_through: bool,
    ) -> Result<Next, Fault> {
        for _ in 0..ring.size() {
            if !self.engine.has_room() || self.limiter.is_holding() {
                // The next completion, or the limiter's timer, brings us back.
                self.is_behind = true;
                return Ok(Next::Wait);
            }
            match ring.pop(&**memory)? {
                Some(chain) => {
                    if !self.limiter.admit(cost(&chain))? {
                        ring.put_back();
                        // It is asked for first when the timer fires.
                        (self.first, self.is_behind) = (number, true);
                        return Ok(Next::Wait);
                    }
                    self.take(number, chain, ring, memory, is_write_through)?;
                }
                None if ring.listen(&**memory)? => {}
                None => return Ok(Next::Wait),
            }
        }
        Ok(Next::Again)
    }

    /// Starts or answers one request.
    fn take(
        &mut self,
        number: usize,
        chain: Chain,
        ring: &mut Ring,
        memory: &Arc<GuestMemoryMmap>,
        is_write_through: bool,
    ) -> Result<(), Fault> {
        let head = chain.head;
        let (data, status) = request::split_status(&chain.writable).ok_or(RingFault::NoAnswer)?;
        let pending = Pending { queue: number, head, status, written: 0 };
        match self.start(chain, data, pending, memory, is_write_through) {
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
        mut pending: Pending,
        memory: &Arc<GuestMemoryMmap>,
        is_write_through: bool,
    ) -> Result<Started, Refusal> {
        let header = chain.read_head(&**memory).ok_or(Refusal::IoError)?;
        let range = if request::has_range(header) { chain.read_head(&**memory) } else { None };
        let task = match request::parse(header, range, chain.readable, writable, self.geometry(is_write_through))? {
            Kind::Id { data } => {
                chain::write(&**memory, &data, &self.serial()).ok_or(Refusal::IoError)?;
                return Ok(Started::Answered { written: ID_LEN as u32 });
            }
            Kind::Io(task) => task,
        };
        if let Task::Read { data, .. } = &task {
            // Bounded well below 32 bits (see `request::MAX_DATA_LEN`).
            pending.written = chain::len(data) as u32;
        }
        match self.engine.start(task, memory, pending) {
            Ok(()) => Ok(Started::InFlight),
            Err(StartError::NotMemory) => Err(Refusal::IoError),
            Err(StartError::Host(error)) => Ok(Started::HostFailed(error)),
        }
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

/// Bytes that a request may move: its data, its header and status included. One that asks for more than a disk
/// offers is refused, and pays no more for it.
fn cost(chain: &Chain) -> u64 {
    let len = chain::len(&chain.readable).saturating_add(chain::len(&chain.writable));
    len.min(MAX_DATA_LEN)
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
        let mut bits = vec![VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        bits.push(if self.is_read_only { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_WRITE_ZEROES });
        if self.image.can_punch {
            bits.push(VIRTIO_BLK_F_DISCARD);
        }
        if self.queues > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_BLOCK as u16,
            class: CLASS,
            features: bits.iter().fold(0, |features, bit| features | 1 << bit),
            config: self.config(),
            queue_sizes: vec![QUEUE_SIZE; self.queues.into()],
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        vec![self.engine.as_raw_fd(), self.limiter.as_raw_fd()]
    }

    fn run(&mut self, active: &mut Active, wake: Wake) -> Result<Next, Fault> {
        let is_write_through = active.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        let memory = active.memory.memory().into_inner();
        let rings = &mut active.rings;
        self.reap(rings, &memory)?;
        let was_behind = std::mem::take(&mut self.is_behind);
        let mut next = Next::Wait;
        let count = rings.len();
        let first = self.first;
        self.first = (first + 1) % count.max(1);
        for number in (0..count).map(|number| (number + first) % count) {
            let has_work = match wake {
                Wake::Any => true,
                Wake::Queue(kicked) => was_behind || kicked == number,
                Wake::Backend(_) => was_behind,
            };
            if has_work
                && let Some(ring) = rings.get_mut(number).and_then(Option::as_mut)
                && self.serve(number, ring, &memory, is_write_through)? == Next::Again
            {
                next = Next::Again;
            }
        }
        self.engine.submit()?;
        // Buffered reads complete within the submission: answer them in the same interrupt.
        self.reap(rings, &memory)?;
        self.engine.submit()?;
        for ring in rings.iter_mut().flatten() {
            ring.signal(&*memory)?;
        }
        // All that was in flight may have arrived above, and then nothing else brings us back.
        let can_go_on = self.is_behind && self.engine.has_room() && !self.limiter.is_holding();
        Ok(if can_go_on { Next::Again } else { next })
    }

    fn change(&mut self, change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        match change {
            DeviceChange::Resized => {
                let len = self.image.read_len().map_err(|error| ChangeError::Refused(error.to_string()))?;
                if len < self.image.len {
                    let was = self.image.len;
                    let text = format!("the image has {len} bytes, the guest knows {was}: a disk in use only grows");
                    return Err(ChangeError::Refused(text));
                }
                self.image.len = len;
                Ok(Some(self.config()))
            }
            DeviceChange::Limits(limits) => {
                self.limiter.set(limits);
                Ok(None)
            }
            DeviceChange::Balloon { .. } | DeviceChange::Window(_) => Err(ChangeError::Unsupported),
        }
    }

    fn rest(&mut self, active: &mut Active) -> Result<(), Fault> {
        let memory = active.memory.memory().into_inner();
        let rings = &mut active.rings;
        self.engine.submit()?;
        while self.engine.is_busy() {
            self.reap(rings, &memory)?;
            // The rest of a transfer that was cut short goes out again.
            self.engine.submit()?;
            if self.engine.is_busy() {
                self.engine.wait()?;
            }
        }
        for ring in rings.iter_mut().flatten() {
            ring.signal(&*memory)?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.engine.drain();
        self.limiter.forget();
        self.is_behind = false;
    }
}
