//! Where a vCPU's port or memory access goes. Key type: [`Bus`], shared by all vCPU threads.
//!
//! Called by `vcpu`; calls the UART, the power registers and the PCI functions. What an access *asks for* comes back as
//! a [`Request`] that the vCPU thread hands to the control thread: nothing here calls KVM.

use std::sync::{Mutex, PoisonError, RwLock};

use super::layout;
use crate::vmm::boot::acpi;
use crate::vmm::console::Writer;
use crate::vmm::legacy::power;
use crate::vmm::legacy::serial::Serial;
use crate::vmm::legacy::slots::{self, SlotRegisters};
use crate::vmm::pci::{PciBus, SharedFunction};
use crate::vmm::ports::{BarMapping, Effect, PowerRequest};

/// Behind the last of the slots' registers.
const SLOTS_END: u16 = layout::SLOTS_PORT + slots::LEN;

/// What an access asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// A device's register write has an effect outside the device.
    Device {
        /// Slot of the function.
        slot: u8,
        /// What it asks for.
        effect: Effect,
    },
    /// The guest powers off or resets.
    Power(PowerRequest),
    /// The guest lets these slots go, one bit each.
    Eject(u32),
}

/// A BAR of the function in `slot` that decodes memory accesses.
#[derive(Debug, Clone, Copy)]
struct Window {
    slot: u8,
    mapping: BarMapping,
}

/// Ports, ECAM and BARs.
pub(super) struct Bus {
    /// Rank 1. The UART, unless the console is a PCI function; never held while another lock is taken.
    serial: Option<Mutex<Serial<Writer>>>,
    /// Rank 0. Written only when a function comes or goes; each function has a lock of its own (rank 1).
    pci: RwLock<PciBus>,
    /// Rank 0. Sorted by base; read at each access to a BAR, replaced by the control thread when one moves.
    windows: RwLock<Vec<Window>>,
    /// Rank 1. What the guest is told of slots; never held while another lock is taken.
    slots: Mutex<SlotRegisters>,
}

impl Bus {
    pub(super) fn new(serial: Option<Serial<Writer>>, pci: PciBus) -> Self {
        Self {
            serial: serial.map(Mutex::new),
            pci: RwLock::new(pci),
            windows: RwLock::new(Vec::new()),
            slots: Mutex::default(),
        }
    }

    /// Runs `with` on the UART, if there is one.
    pub(super) fn with_serial<T>(&self, with: impl FnOnce(&mut Serial<Writer>) -> T) -> Option<T> {
        self.serial.as_ref().map(|serial| with(&mut serial.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Runs `with` on the slots' registers.
    pub(super) fn with_slots<T>(&self, with: impl FnOnce(&mut SlotRegisters) -> T) -> T {
        with(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `with` on the PCI bus, to put functions on it or take them off.
    pub(super) fn with_pci<T>(&self, with: impl FnOnce(&mut PciBus) -> T) -> T {
        with(&mut self.pci.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The function in `slot`.
    pub(super) fn function(&self, slot: u8) -> Option<SharedFunction> {
        self.pci.read().unwrap_or_else(PoisonError::into_inner).function(slot).cloned()
    }

    /// Replaces the windows of `slot`.
    pub(super) fn set_windows(&self, slot: u8, mappings: &[BarMapping]) {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.slot != slot);
        windows.extend(mappings.iter().map(|&mapping| Window { slot, mapping }));
        windows.sort_by_key(|window| window.mapping.base);
    }

    pub(super) fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (layout::SLOTS_PORT..SLOTS_END, data @ [_, _, _, _]) => {
                data.copy_from_slice(&self.with_slots(|slots| slots.read(port - layout::SLOTS_PORT)).to_le_bytes());
            }
            (layout::SERIAL_PORT..=0x3ff, [byte]) => {
                let read = self.with_serial(|serial| serial.read((port - layout::SERIAL_PORT) as u8));
                *byte = read.unwrap_or(*byte);
            }
            // No wake-up is ever pending, the keyboard controller is never busy, and no NMI comes from the bus or memory:
            // with other bits a kernel takes every NMI for a fault of those.
            (
                layout::SLEEP_CONTROL_PORT
                | layout::SLEEP_STATUS_PORT
                | layout::RESET_PORT
                | layout::KEYBOARD_CONTROLLER_PORT
                | layout::NMI_STATUS_PORT,
                data,
            ) => data.fill(0),
            (layout::PANIC_PORT, [byte]) => *byte = power::PANIC_EVENTS,
            _ => {}
        }
    }

    pub(super) fn port_write(&self, port: u16, data: &[u8]) -> Option<Request> {
        if let (layout::SLOTS_PORT..SLOTS_END, &[a, b, c, d]) = (port, data) {
            let value = u32::from_le_bytes([a, b, c, d]);
            let gone = self.with_slots(|slots| slots.write(port - layout::SLOTS_PORT, value));
            return (gone != 0).then_some(Request::Eject(gone));
        }
        let &[byte] = data else { return None };
        match port {
            layout::SERIAL_PORT..=0x3ff => {
                self.with_serial(|serial| serial.write((port - layout::SERIAL_PORT) as u8, byte));
                None
            }
            layout::SLEEP_CONTROL_PORT => power::sleep_control(byte, acpi::S5_SLEEP_TYPE).map(Request::Power),
            layout::RESET_PORT => power::reset(byte, acpi::RESET_VALUE).map(Request::Power),
            layout::KEYBOARD_CONTROLLER_PORT => power::keyboard_controller(byte).map(Request::Power),
            layout::PANIC_PORT => power::panicked(byte).map(Request::Power),
            _ => None,
        }
    }

    pub(super) fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = ecam_offset(address) {
            self.pci.read().unwrap_or_else(PoisonError::into_inner).ecam_read(offset, data);
        } else if let Some((window, offset)) = self.find(address, data.len())
            && let Some(function) = self.function(window.slot)
        {
            let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
            function.bar_read(window.mapping.bar, offset, data);
        }
    }

    pub(super) fn memory_write(&self, address: u64, data: &[u8]) -> Option<Request> {
        if let Some(offset) = ecam_offset(address) {
            let (slot, effect) = self.pci.read().unwrap_or_else(PoisonError::into_inner).ecam_write(offset, data)?;
            return Some(Request::Device { slot, effect });
        }
        let (window, offset) = self.find(address, data.len())?;
        let function = self.function(window.slot)?;
        let effect =
            function.lock().unwrap_or_else(PoisonError::into_inner).bar_write(window.mapping.bar, offset, data)?;
        Some(Request::Device { slot: window.slot, effect })
    }

    /// The window that holds all of an access, and where in it.
    fn find(&self, address: u64, len: usize) -> Option<(Window, u64)> {
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let behind = windows.partition_point(|window| window.mapping.base <= address);
        let window = *windows.get(behind.checked_sub(1)?)?;
        let offset = address - window.mapping.base;
        (offset.checked_add(len as u64)? <= window.mapping.len).then_some((window, offset))
    }
}

fn ecam_offset(address: u64) -> Option<u64> {
    address.checked_sub(layout::ECAM).filter(|&offset| offset < layout::ECAM_LEN)
}
