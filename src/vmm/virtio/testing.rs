//! A driver for tests: finds everything through capabilities and works on real guest memory, as a guest would.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Balloon, Block, Console, Device, Keyboard, Net, Rng, Stock, TapControl, VirtioFunction, Vsock, Workers};
use crate::model::{MacAddr, RateLimits};
use crate::sys::reclaim::Reclaim;
use crate::sys::tap::Offloads;
use crate::vmm::ports::{BalloonCounters, Effect, GuestMemory, PciFunction};

pub(in crate::vmm::virtio) const BAR_BASE: u32 = 0xe000_0000;
pub(in crate::vmm::virtio) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(in crate::vmm::virtio) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// More queues than any device has.
const MOST_QUEUES: usize = 16;
/// Entries of each queue.
pub(in crate::vmm::virtio) const SIZE: u16 = 16;
/// Two regions that touch, and one behind a hole.
pub(in crate::vmm::virtio) const REGIONS: [(GuestAddress, usize); 3] =
    [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20), (GuestAddress(4 << 20), 1 << 20)];
pub(in crate::vmm::virtio) const TIMEOUT: Duration = Duration::from_secs(10);
/// Where tests keep their data; rings lie below.
pub(in crate::vmm::virtio) const DATA: u64 = 0x8_0000;

pub(in crate::vmm::virtio) const ALL_FEATURES: u64 = !0;

pub(in crate::vmm::virtio) fn memory() -> GuestMemory {
    GuestMemory::new(GuestMemoryMmap::from_ranges(&REGIONS).unwrap())
}

pub(in crate::vmm::virtio) fn block(sectors: u64, is_read_only: bool) -> (Block, std::fs::File) {
    block_with(sectors, is_read_only, 1)
}

pub(in crate::vmm::virtio) fn block_with(sectors: u64, is_read_only: bool, queues: u16) -> (Block, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors * 512).unwrap();
    (
        Block::new("disk-0".parse().unwrap(), file.try_clone().unwrap(), is_read_only, queues, RateLimits::default())
            .unwrap(),
        file,
    )
}

/// A NIC on one end of a packet socket pair, which keeps frames apart as a tap does; the other end is the network.
pub(in crate::vmm::virtio) fn net() -> (Net, OwnedFd) {
    let (net, mut networks) = net_with(1, Offloads::NONE);
    (net, networks.remove(0))
}

/// The same with several pairs of queues, each with a network of its own, on a tap that can do `known`.
pub(in crate::vmm::virtio) fn net_with(pairs: usize, known: Offloads) -> (Net, Vec<OwnedFd>) {
    net_of("net-0", pairs, known)
}

/// The same of this name, which its thread has too.
pub(in crate::vmm::virtio) fn net_of(id: &str, pairs: usize, known: Offloads) -> (Net, Vec<OwnedFd>) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let pair = |_| rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    let (taps, networks) = (0..pairs).map(pair).unzip();
    // A socket knows no offloads, and is always attached: the device itself moves no frames on what it detached.
    let control = TapControl { set_offloads: |_, _| Ok(()), set_queue: |_, _| Ok(()) };
    let (id, mac) = (id.parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 9]));
    (Net::new(id, taps, mac, known, RateLimits::default(), control).unwrap(), networks)
}

pub(in crate::vmm::virtio) fn rng() -> Rng {
    Rng::new("rng".parse().unwrap()).unwrap()
}

/// A socket device, with the socket's path and the directory that it lies in.
pub(in crate::vmm::virtio) fn vsock() -> (Vsock, std::path::PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    (Vsock::new("vsock".parse().unwrap(), 3, listener).unwrap(), path, directory)
}

/// A console on whose keyboard one can type, and whose output goes nowhere.
pub(in crate::vmm::virtio) fn console() -> (Console<std::io::Sink>, Keyboard) {
    let taken = vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    let keyboard = Keyboard::new(Arc::new(taken)).unwrap();
    (Console::new("console".parse().unwrap(), keyboard.clone(), std::io::sink()), keyboard)
}

/// A balloon in memory like that of [`memory`], of which the guest keeps all.
pub(in crate::vmm::virtio) fn balloon(reclaim: &Reclaim, counters: BalloonCounters) -> Balloon {
    let id = "balloon".parse().unwrap();
    Balloon::new(id, &memory(), None, reclaim.clone(), counters, &Stock::default()).unwrap()
}

/// A descriptor in a test's words.
#[derive(Debug, Clone, Copy)]
pub(in crate::vmm::virtio) struct Piece {
    pub(in crate::vmm::virtio) address: u64,
    pub(in crate::vmm::virtio) len: u32,
    pub(in crate::vmm::virtio) flags: u16,
}

pub(in crate::vmm::virtio) fn piece(address: u64, len: u32, flags: u16) -> Piece {
    Piece { address, len, flags }
}

/// Where virtio's capabilities say that a region is.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::vmm::virtio) struct Region {
    pub(in crate::vmm::virtio) capability: u16,
    pub(in crate::vmm::virtio) offset: u64,
    pub(in crate::vmm::virtio) len: u64,
}

pub(in crate::vmm::virtio) struct Driver {
    pub(in crate::vmm::virtio) function: VirtioFunction,
    pub(in crate::vmm::virtio) memory: GuestMemory,
    /// By cfg_type, 1 to 5.
    pub(in crate::vmm::virtio) regions: [Region; 6],
    pub(in crate::vmm::virtio) notify_multiplier: u32,
    pub(in crate::vmm::virtio) msix: u16,
    /// Indices that the driver has offered, by queue.
    pub(in crate::vmm::virtio) offered: Vec<u16>,
    seen: Vec<u16>,
    free: u16,
}

impl Driver {
    pub(in crate::vmm::virtio) fn probe(device: impl Device) -> Self {
        Self::probe_with(device, &Workers::new(|| Ok(())))
    }

    /// The same on a thread of `workers`.
    pub(in crate::vmm::virtio) fn probe_with(device: impl Device, workers: &Workers) -> Self {
        Self::probe_in(memory(), device, workers)
    }

    /// The same in memory that the device knows already.
    pub(in crate::vmm::virtio) fn probe_in(memory: GuestMemory, device: impl Device, workers: &Workers) -> Self {
        let function = VirtioFunction::new(device, memory.clone(), BAR_BASE, workers).unwrap();
        let mut driver = Self {
            function,
            memory,
            regions: [Region::default(); 6],
            notify_multiplier: 0,
            msix: 0,
            offered: vec![0; MOST_QUEUES],
            seen: vec![0; MOST_QUEUES],
            free: 0,
        };
        let mut at = driver.config(0x34, 1) as u16;
        while at != 0 {
            match driver.config(at, 1) {
                9 => {
                    let kind = driver.config(at + 3, 1) as usize;
                    let (offset, len) = (driver.config(at + 8, 4).into(), driver.config(at + 12, 4).into());
                    driver.regions[kind] = Region { capability: at, offset, len };
                    if kind == 2 {
                        driver.notify_multiplier = driver.config(at + 16, 4);
                    }
                }
                0x11 => driver.msix = at,
                other => panic!("unknown capability {other:#x}"),
            }
            at = driver.config(at + 1, 1) as u16;
        }
        driver.function.config_write(4, &[6, 0]);
        driver
    }

    pub(in crate::vmm::virtio) fn config(&mut self, offset: u16, len: usize) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    pub(in crate::vmm::virtio) fn common<const N: usize>(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, self.regions[1].offset + offset, &mut data[..N]);
        u64::from_le_bytes(data)
    }

    /// Writes a common register and lets the machine do what follows.
    pub(in crate::vmm::virtio) fn set_common(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let effect = self.function.bar_write(0, self.regions[1].offset + offset, data);
        if let Some(effect) = effect {
            self.function.apply(effect);
        }
        effect
    }

    /// Reads device configuration from its start.
    pub(in crate::vmm::virtio) fn function_config(&mut self, data: &mut [u8]) {
        for (at, part) in (0..).step_by(4).zip(data.chunks_mut(4)) {
            self.function.bar_read(0, self.regions[4].offset + at, part);
        }
    }

    pub(in crate::vmm::virtio) fn status(&mut self) -> u8 {
        self.common::<1>(0x14) as u8
    }

    pub(in crate::vmm::virtio) fn features(&mut self) -> u64 {
        let mut half = |select: u32| {
            self.set_common(0, &select.to_le_bytes());
            self.common::<4>(4)
        };
        half(0) | half(1) << 32
    }

    /// Accepts what is offered of `wanted`.
    pub(in crate::vmm::virtio) fn negotiate(&mut self, wanted: u64) {
        self.set_common(0x14, &[1]);
        self.set_common(0x14, &[3]);
        let features = self.features() & wanted;
        for half in 0..2_u32 {
            self.set_common(8, &half.to_le_bytes());
            self.set_common(0xc, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.set_common(0x14, &[11]);
        assert_eq!(self.status(), 11);
    }

    /// Unmasks all vectors and assigns 0 to configuration, 1 and following to queues.
    pub(in crate::vmm::virtio) fn enable_interrupts(&mut self) {
        self.function.config_write(self.msix + 2, &[0, 0x80]);
        let vectors = self.function.vectors().len() as u64;
        for number in 0..vectors {
            let mut entry = [0; 16];
            entry[..4].copy_from_slice(&0xfee0_0000_u32.to_le_bytes());
            entry[8] = number as u8 + 0x30;
            self.function.bar_write(0, 0x4000 + number * 16, &entry[..8]);
            self.function.bar_write(0, 0x4000 + number * 16 + 8, &entry[8..]);
        }
        self.set_common(0x10, &[0, 0]);
        for queue in 0..vectors as u16 - 1 {
            self.set_common(0x16, &queue.to_le_bytes());
            self.set_common(0x1a, &(queue + 1).to_le_bytes());
        }
    }

    /// Descriptor table, available and used ring of a queue.
    pub(in crate::vmm::virtio) fn rings(queue: u16) -> [u64; 3] {
        // The first two have room for the largest size; the others lie behind the tests' data.
        match queue {
            0 | 1 => {
                let base = 0x1_0000 + u64::from(queue) * 0x1_0000;
                [base, base + 0x4000, base + 0x8000]
            }
            queue => {
                let base = 0x18_0000 + u64::from(queue) * 0x4000;
                [base, base + 0x1000, base + 0x2000]
            }
        }
    }

    pub(in crate::vmm::virtio) fn set_up_queue(&mut self, queue: u16, size: u16, rings: [u64; 3]) {
        self.set_common(0x16, &queue.to_le_bytes());
        self.set_common(0x18, &size.to_le_bytes());
        for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.set_common(offset, &(address as u32).to_le_bytes());
            self.set_common(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.set_common(0x1c, &[1, 0]);
    }

    pub(in crate::vmm::virtio) fn driver_ok(&mut self) {
        assert_eq!(self.set_common(0x14, &[15]), Some(Effect::Activate));
    }

    /// Everything from a reset device to a running one.
    pub(in crate::vmm::virtio) fn bring_up(&mut self, wanted: u64) {
        self.negotiate(wanted);
        self.enable_interrupts();
        for queue in 0..self.function.vectors().len() as u16 - 1 {
            self.clear_rings(queue);
            self.set_up_queue(queue, SIZE, Self::rings(queue));
        }
        self.driver_ok();
    }

    pub(in crate::vmm::virtio) fn clear_rings(&mut self, queue: u16) {
        for ring in Self::rings(queue) {
            self.memory_map().write_slice(&[0; 0x1000], GuestAddress(ring)).unwrap();
        }
        // With EVENT_IDX: interrupt at the first completion.
        self.offered[usize::from(queue)] = 0;
        self.seen[usize::from(queue)] = 0;
        self.free = 0;
    }

    pub(in crate::vmm::virtio) fn reset(&mut self) {
        self.set_common(0x14, &[0]);
        let deadline = Instant::now() + TIMEOUT;
        while self.status() != 0 {
            assert!(Instant::now() < deadline, "reset does not end");
            std::thread::yield_now();
        }
    }

    pub(in crate::vmm::virtio) fn memory_map(&self) -> Arc<GuestMemoryMmap> {
        use vm_memory::GuestAddressSpace;
        self.memory.memory().into_inner()
    }

    pub(in crate::vmm::virtio) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory_map().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(in crate::vmm::virtio) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory_map().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes one descriptor at `index` of the table at `table`.
    pub(in crate::vmm::virtio) fn describe(&self, table: u64, index: u16, piece: Piece, next: u16) {
        let mut bytes = piece.address.to_le_bytes().to_vec();
        bytes.extend(piece.len.to_le_bytes());
        bytes.extend(piece.flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Writes a well-formed chain at the next free descriptors; returns its head.
    pub(in crate::vmm::virtio) fn describe_chain(&mut self, queue: u16, pieces: &[Piece]) -> u16 {
        let head = self.free;
        for (number, &one) in pieces.iter().enumerate() {
            let index = (head + number as u16) % SIZE;
            let is_last = number + 1 == pieces.len();
            let flags = one.flags | if is_last { 0 } else { NEXT };
            self.describe(Self::rings(queue)[0], index, Piece { flags, ..one }, (index + 1) % SIZE);
        }
        self.free = (head + pieces.len() as u16) % SIZE;
        head
    }

    /// Makes `head` available, without a notification.
    pub(in crate::vmm::virtio) fn offer(&mut self, queue: u16, head: u16) {
        let available = Self::rings(queue)[1];
        let index = self.offered[usize::from(queue)];
        self.write(available + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.set_available(queue, index.wrapping_add(1));
    }

    pub(in crate::vmm::virtio) fn set_available(&mut self, queue: u16, index: u16) {
        self.offered[usize::from(queue)] = index;
        self.write(Self::rings(queue)[1] + 2, &index.to_le_bytes());
    }

    /// Rings the doorbell, as KVM's ioeventfd does.
    pub(in crate::vmm::virtio) fn kick(&mut self, queue: u16) {
        let doorbell = self.function.doorbells()[usize::from(queue)].clone();
        let offset = self.regions[2].offset + u64::from(queue) * u64::from(self.notify_multiplier);
        assert_eq!(doorbell.address, u64::from(BAR_BASE) + offset);
        doorbell.event.write(1).unwrap();
    }

    /// Offers a chain and rings.
    pub(in crate::vmm::virtio) fn send(&mut self, queue: u16, pieces: &[Piece]) -> u16 {
        let head = self.describe_chain(queue, pieces);
        self.offer(queue, head);
        self.kick(queue);
        head
    }

    pub(in crate::vmm::virtio) fn used_index(&self, queue: u16) -> u16 {
        let bytes = self.read(Self::rings(queue)[2] + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The next used element, once the queue's interrupt has come.
    pub(in crate::vmm::virtio) fn wait_used(&mut self, queue: u16) -> (u32, u32) {
        let seen = self.seen[usize::from(queue)];
        self.wait_interrupt(usize::from(queue) + 1);
        assert_ne!(self.used_index(queue), seen, "interrupt without a used buffer");
        self.take_used(queue)
    }

    /// The next used element, which is known to be there.
    pub(in crate::vmm::virtio) fn take_used(&mut self, queue: u16) -> (u32, u32) {
        let seen = self.seen[usize::from(queue)];
        let bytes = self.read(Self::rings(queue)[2] + 4 + 8 * u64::from(seen % SIZE), 8);
        self.seen[usize::from(queue)] = seen.wrapping_add(1);
        // used_event: interrupt at the next completion after this one.
        self.write(Self::rings(queue)[1] + 4 + 2 * u64::from(SIZE), &seen.wrapping_add(1).to_le_bytes());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    /// Waits until the vector's eventfd has a signal, and takes it, as an irqfd would.
    pub(in crate::vmm::virtio) fn wait_interrupt(&self, vector: usize) {
        assert!(self.has_interrupt(vector, TIMEOUT), "no interrupt on vector {vector}");
    }

    pub(in crate::vmm::virtio) fn has_interrupt(&self, vector: usize, timeout: Duration) -> bool {
        let event = self.function.vectors()[vector].event.clone();
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        loop {
            match epoll.wait(timeout.as_millis() as i32, &mut [EpollEvent::default()]) {
                Ok(ready) => return ready == 1 && event.read().is_ok(),
                // The end of another test's io_uring interrupts the thread that set it up.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Interrupted),
            }
        }
    }

    /// Waits until the device gives up or answers on `queue`; true if it gave up.
    pub(in crate::vmm::virtio) fn gives_up(&mut self, queue: u16) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if self.status() & 0x40 != 0 {
                return true;
            }
            if self.used_index(queue) != self.seen[usize::from(queue)] {
                return false;
            }
            assert!(Instant::now() < deadline, "neither an answer nor NEEDS_RESET");
            std::thread::yield_now();
        }
    }
}
