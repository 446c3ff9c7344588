//! A guest's memory and its driver of one virtio device. Key type: [`Guest`].
//!
//! ```text
//!   0x0_0000 rings of queue 0 │ … │ 0x4_0000 of queue 4 │ 0x8_0000 data │ 0x9_0000 indirect tables │ 0xc_0000 end
//!   0x10_0000 a region behind a hole, 64 KiB
//! ```

use std::time::{Duration, Instant};

use ostler::vmm::ports::{Effect, GuestMemory, PciFunction};
use ostler::vmm::virtio::{Device, VirtioFunction, Workers};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::Bytes;

/// Room for one piece of a request.
pub const PAGE: u64 = 4096;

const REGIONS: [(GuestAddress, usize); 2] = [(GuestAddress(0), 0xc_0000), (GuestAddress(0x10_0000), 0x1_0000)];
const RINGS: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const DATA: u64 = 0x8_0000;
const TABLE: u64 = 0x9_0000;
/// Queues that are laid out.
const MAX_QUEUES: u16 = 5;
/// Entries of each queue, and of the indirect table.
const ENTRIES: u16 = 16;
/// Registers of the common configuration (VIRTIO 1.2 §4.1.4.3), which lies at the start of BAR 0.
const OFFER_SELECT: u64 = 0x00;
const OFFER: u64 = 0x04;
const FEATURE_SELECT: u64 = 0x08;
const FEATURES: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
/// ACKNOWLEDGE, DRIVER and FEATURES_OK; the last is DRIVER_OK.
const NEGOTIATED: u8 = 11;
const DRIVER_OK: u8 = 15;
/// Indirect descriptors and event indices: what the rings' code distinguishes.
const RING_FEATURES: u64 = 1 << 28 | 1 << 29;
/// Lengths that devices tell apart: of headers, status, sectors, frames, an id.
const LENGTHS: [u32; 12] = [0, 1, 10, 12, 16, 20, 60, 512, 528, 1024, 1514, 4096];
/// A device that does not come back within this is stuck.
const RESET_LIMIT: Duration = Duration::from_secs(10);

/// A guest with one device.
pub struct Guest {
    function: VirtioFunction,
    memory: GuestMemory,
    queues: u16,
}

/// Memory for a guest, anonymous and private as that of a real one: a page that is given back reads as zeroes.
pub fn memory() -> GuestMemory {
    GuestMemory::new(GuestMemoryMmap::from_ranges(&REGIONS).expect("memory for a guest"))
}

impl Guest {
    /// A guest with memory, and `device` on its bus.
    pub fn new(device: impl Device) -> Self {
        let queues = u16::try_from(device.identity().queue_sizes.len()).expect("a device has few queues");
        let memory = memory();
        let mut function =
            VirtioFunction::new(device, memory.clone(), 0xe000_0000, &Workers::new(|| Ok(()))).expect("a device");
        // Memory space and bus mastering (PCI Local Bus 3.0 §6.2.2).
        function.config_write(4, &[6, 0]);
        Self { function, memory, queues }
    }

    /// One life of a driver that accepts what it is offered of `features`; rings and data as `input` has them. `prepare`
    /// makes the data, from what the rings left of the input.
    pub fn live(&mut self, features: u64, input: &[u8], prepare: impl FnOnce(&mut Bytes<'_>) -> Vec<u8>) {
        let mut bytes = Bytes::new(input);
        let features = features & !(RING_FEATURES & u64::from(bytes.u8() & 3) << 28);
        self.negotiate(features);
        for queue in 0..self.queues.min(MAX_QUEUES) {
            self.lay_rings(queue, &mut bytes);
        }
        self.write_descriptors(TABLE, &mut bytes);
        let data = prepare(&mut bytes);
        self.write(DATA, &data);
        self.set(STATUS, &[DRIVER_OK]);
        self.reset();
    }

    /// Whether the device wants a reset (VIRTIO 1.2 §2.1), or what else its status says.
    pub fn status(&mut self) -> u8 {
        let mut status = [0];
        self.function.bar_read(0, STATUS, &mut status);
        status[0]
    }

    fn reset(&mut self) {
        self.set(STATUS, &[0]);
        let start = Instant::now();
        while self.status() != 0 {
            assert!(start.elapsed() < RESET_LIMIT, "the device does not come back from its reset");
            std::thread::yield_now();
        }
    }

    fn negotiate(&mut self, features: u64) {
        self.set(STATUS, &[1]);
        self.set(STATUS, &[3]);
        for half in 0..2u32 {
            let mut offer = [0; 4];
            self.set(OFFER_SELECT, &half.to_le_bytes());
            self.function.bar_read(0, OFFER, &mut offer);
            let accepted = u32::from_le_bytes(offer) & (features >> (32 * half)) as u32;
            self.set(FEATURE_SELECT, &half.to_le_bytes());
            self.set(FEATURES, &accepted.to_le_bytes());
        }
        self.set(STATUS, &[NEGOTIATED]);
        assert_eq!(self.status(), NEGOTIATED, "the device takes what it offered");
    }

    /// Descriptors, available ring and the queue's registers.
    fn lay_rings(&mut self, queue: u16, bytes: &mut Bytes<'_>) {
        let base = RINGS * u64::from(queue);
        self.write_descriptors(base, bytes);
        // Flags, index, the heads, and where event indices stand.
        let mut avail = [0; 4 + 2 * ENTRIES as usize + 2];
        avail[2..4].copy_from_slice(&index(bytes.u8()).to_le_bytes());
        for head in avail[4..].chunks_exact_mut(2) {
            let number = bytes.u8();
            let number = if number < 0xf0 { u16::from(number % ENTRIES as u8) } else { u16::from(number) << 8 };
            head.copy_from_slice(&number.to_le_bytes());
        }
        self.write(base + AVAIL, &avail);
        self.write(base + USED, &[0; 4 + 8 * ENTRIES as usize + 2]);
        self.set(QUEUE_SELECT, &queue.to_le_bytes());
        self.set(QUEUE_SIZE, &ENTRIES.to_le_bytes());
        // One input in some puts a ring elsewhere.
        let shift = bytes.u8();
        for (number, (register, offset)) in (0..).zip(QUEUE_ADDRESSES.into_iter().zip([0, AVAIL, USED])) {
            let mut address = base + offset;
            if shift & 0x80 != 0 && shift & 3 == number {
                address = address_of(bytes.u8(), bytes.u16());
            }
            self.set(register, &address.to_le_bytes()[..4]);
            self.set(register + 4, &address.to_le_bytes()[4..]);
        }
        self.set(QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    /// A table of descriptors (VIRTIO 1.2 §2.7.5): 7 bytes of input for each.
    fn write_descriptors(&mut self, at: u64, bytes: &mut Bytes<'_>) {
        let mut table = [0; 16 * ENTRIES as usize];
        for entry in table.chunks_exact_mut(16) {
            let (kind, address, len, flags, next) = (bytes.u8(), bytes.u16(), bytes.u16(), bytes.u8(), bytes.u8());
            entry[..8].copy_from_slice(&address_of(kind, address).to_le_bytes());
            let len = match kind >> 5 {
                0..=3 => LENGTHS[usize::from(len) % LENGTHS.len()],
                4 => u32::from(len),
                5 => u32::from(len) << 9,
                6 => 16 * (u32::from(len) % 20),
                _ => 0xffff_0000 | u32::from(len),
            };
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            entry[12..14].copy_from_slice(&u16::from(flags & 7).to_le_bytes());
            let next = if next < 0xf0 { u16::from(next % ENTRIES as u8) } else { u16::from(next) << 8 };
            entry[14..16].copy_from_slice(&next.to_le_bytes());
        }
        self.write(at, &table);
    }

    fn write(&self, address: u64, data: &[u8]) {
        let len = data.len().min(0x8000);
        self.memory.memory().write_slice(&data[..len], GuestAddress(address)).expect("within a region");
    }

    /// Writes a common register and lets the machine do what follows.
    fn set(&mut self, register: u64, data: &[u8]) {
        if let Some(effect @ (Effect::Activate | Effect::Reset)) = self.function.bar_write(0, register, data) {
            self.function.apply(effect);
        }
    }
}

/// An index of the available ring: mostly plausible.
fn index(byte: u8) -> u16 {
    if byte < 0xe0 { u16::from(byte % (ENTRIES as u8 + 1)) } else { u16::from(byte) << 8 }
}

/// An address, mostly within the data.
fn address_of(kind: u8, low: u16) -> u64 {
    let low = u64::from(low);
    match kind & 0x0f {
        0..=5 => DATA + low % 8 * PAGE,
        6 | 7 => DATA + low % (8 * PAGE),
        8 => TABLE,
        9 => low,                // the rings themselves
        10 => 0xb_f000 + low,    // across the end of the first region
        11 => 0xd_0000 + low,    // in the hole
        12 => 0x10_0000 + low,   // the second region, to its end
        13 => u64::MAX - low,    // wraps
        14 => 0xe000_0000 + low, // the device's own registers
        _ => low << 32,
    }
}
