//! Bus 0: the host bridge and 31 slots behind enhanced configuration access. Key types: [`PciBus`], [`SharedFunction`].
//!
//! ```text
//!   ECAM offset   27      20 19   15 14  12 11          0      PCIe 6.0 §7.2.2
//!                 │   bus   │  dev  │  fn  │  register   │
//! ```
//! `vmm/machine` owns the bus, calls it from vCPU threads on ECAM exits, and applies the effects that come back. Slots
//! can be filled and emptied while the VM runs; other buses (behind root ports) read as absent.

use std::sync::{Arc, Mutex, PoisonError};

use super::{ConfigSpace, Identity};
use crate::model::PciSlot;
use crate::vmm::ports::{BarMapping, Doorbell, Effect, PciFunction, Vector};

/// A function that vCPU threads and the control thread share. The lock is a leaf: no other lock is taken under it.
pub type SharedFunction = Arc<Mutex<Box<dyn PciFunction>>>;

/// Device numbers on a bus.
const SLOTS: usize = 32;

/// The host bridge: QEMU's generic PCIe host bridge, which no guest has quirks for (`pci.ids`: 1b36:0008).
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The slot holds a function already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PCI slot {slot} is taken")]
pub struct SlotTaken {
    /// Its device number.
    pub slot: u8,
}

/// Bus 0.
pub struct PciBus {
    slots: [Option<SharedFunction>; SLOTS],
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let taken: Vec<_> = self.functions().map(|(slot, _)| slot).collect();
        f.debug_struct("PciBus").field("slots", &taken).finish()
    }
}

impl PciBus {
    /// A bus with nothing but its host bridge.
    pub fn new() -> Self {
        let mut slots = [const { None }; SLOTS];
        if let Some(first) = slots.first_mut() {
            *first = Some(shared(Box::new(HostBridge(ConfigSpace::new(HOST_BRIDGE)))));
        }
        Self { slots }
    }

    /// Puts `function` into a free slot and returns the handle that the machine keeps for it.
    pub fn insert(&mut self, slot: PciSlot, function: Box<dyn PciFunction>) -> Result<SharedFunction, SlotTaken> {
        match self.slots.get_mut(usize::from(slot.number())) {
            Some(place @ None) => Ok(place.insert(shared(function)).clone()),
            _ => Err(SlotTaken { slot: slot.number() }),
        }
    }

    /// Takes the function out of `slot`; from then on the slot reads as absent.
    pub fn remove(&mut self, slot: PciSlot) -> Option<SharedFunction> {
        self.slots.get_mut(usize::from(slot.number()))?.take()
    }

    /// The function with device number `slot` (0 is the host bridge).
    pub fn function(&self, slot: u8) -> Option<&SharedFunction> {
        self.slots.get(usize::from(slot))?.as_ref()
    }

    /// All functions with their device numbers, the host bridge first.
    pub fn functions(&self) -> impl Iterator<Item = (u8, &SharedFunction)> {
        (0..).zip(&self.slots).filter_map(|(slot, function)| Some((slot, function.as_ref()?)))
    }

    /// A read within the ECAM window: `offset` from its start. Absent functions and accesses that are not 1, 2 or 4
    /// aligned bytes read as ones.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, register)) = decode(offset, data.len())
            && let Some(function) = self.function(slot)
        {
            lock(function).config_read(register, data);
        }
    }

    /// A write within the ECAM window; returns the slot with what the write asks of the machine.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) -> Option<(u8, Effect)> {
        let (slot, register) = decode(offset, data.len())?;
        let effect = lock(self.function(slot)?).config_write(register, data)?;
        Some((slot, effect))
    }
}

/// Slot and register of an ECAM access to function 0 of a device on bus 0.
fn decode(offset: u64, len: usize) -> Option<(u8, u16)> {
    let (bus, function) = (offset >> 20, offset >> 12 & 7);
    let is_whole = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64);
    if bus != 0 || function != 0 || !is_whole {
        return None;
    }
    Some(((offset >> 15 & 0x1f) as u8, (offset & 0xfff) as u16))
}

fn shared(function: Box<dyn PciFunction>) -> SharedFunction {
    Arc::new(Mutex::new(function))
}

/// A poisoned lock is taken all the same: registers are plain values, and a panic ends the vmm anyway.
fn lock(function: &SharedFunction) -> std::sync::MutexGuard<'_, Box<dyn PciFunction>> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device 0: a header and nothing else.
struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<Effect> {
        self.0.write(offset, data);
        None
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Option<Effect> {
        None
    }

    fn bars(&self) -> Vec<BarMapping> {
        Vec::new()
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }

    fn vectors(&self) -> Vec<Vector> {
        Vec::new()
    }

    fn apply(&mut self, _effect: Effect) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bus: &PciBus, offset: u64) -> u32 {
        let mut data = [0; 4];
        bus.ecam_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn other() -> Box<dyn PciFunction> {
        Box::new(HostBridge(ConfigSpace::new(Identity { device: 0x1234, ..HOST_BRIDGE })))
    }

    #[test]
    fn finds_functions_by_device_number_and_nothing_else() {
        let mut bus = PciBus::new();
        let slot = PciSlot::new(3).unwrap();
        assert!(bus.insert(slot, other()).is_ok());
        assert_eq!(read(&bus, 0), 0x0008_1b36);
        assert_eq!(read(&bus, 8), 0x0600_0000);
        assert_eq!(read(&bus, 3 << 15), 0x1234_1b36);
        for absent in [4 << 15, 3 << 15 | 1 << 12, 1 << 20, 1 << 20 | 3 << 15, !3] {
            assert_eq!(read(&bus, absent), u32::MAX, "{absent:#x}");
        }
    }

    #[test]
    fn a_slot_is_taken_once_and_free_again_after_removal() {
        let mut bus = PciBus::new();
        let slot = PciSlot::new(31).unwrap();
        bus.insert(slot, other()).unwrap();
        assert_eq!(bus.insert(slot, other()).err(), Some(SlotTaken { slot: 31 }));
        assert!(bus.remove(slot).is_some());
        assert_eq!(read(&bus, 31 << 15), u32::MAX);
        assert!(bus.insert(slot, other()).is_ok());
    }

    proptest! {
        #[test]
        fn takes_any_access(offset in any::<u64>(), data in proptest::collection::vec(any::<u8>(), 0..17)) {
            let bus = PciBus::new();
            let mut buffer = data.clone();
            let _ = bus.ecam_write(offset, &data);
            bus.ecam_read(offset, &mut buffer);
            if !matches!(data.len(), 1 | 2 | 4) {
                prop_assert!(buffer.iter().all(|&byte| byte == 0xff));
            }
        }
    }
}
