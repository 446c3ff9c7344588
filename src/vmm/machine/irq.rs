//! Interrupts of devices: GSIs, routes and irqfds. Key type: [`IrqTable`], owned by the control thread.
//!
//! A vector's irqfd exists only while the vector has a route; see `ports::Vector` for what that means for masked ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::layout::IOAPIC_PINS;
use crate::vmm::kvm::{KvmError, MsiRoute, Vm};
use crate::vmm::ports::{MsiMessage, Vector};

struct Entry {
    event: Arc<EventFd>,
    gsi: u32,
    route: Option<MsiMessage>,
}

/// The vectors of all functions, by slot and number.
#[derive(Default)]
pub(super) struct IrqTable {
    entries: BTreeMap<(u8, usize), Entry>,
}

impl IrqTable {
    /// Makes KVM agree with the vectors of the function in `slot`. With no vectors, the slot's are given back.
    pub(super) fn sync(&mut self, vm: &Vm, slot: u8, vectors: &[Vector]) -> Result<(), KvmError> {
        let gone: Vec<_> =
            self.entries.range((slot, vectors.len())..=(slot, usize::MAX)).map(|(key, _)| *key).collect();
        for key in gone {
            if let Some(entry) = self.entries.remove(&key)
                && entry.route.is_some()
            {
                vm.disconnect_irq(&entry.event, entry.gsi)?;
            }
        }
        let mut to_connect = Vec::new();
        let mut is_changed = false;
        for (number, vector) in vectors.iter().enumerate() {
            let key = (slot, number);
            if !self.entries.contains_key(&key) {
                let entry = Entry { event: Arc::clone(&vector.event), gsi: self.free_gsi(), route: None };
                self.entries.insert(key, entry);
            }
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.route == vector.route {
                continue;
            }
            match (entry.route, vector.route) {
                (Some(_), None) => vm.disconnect_irq(&entry.event, entry.gsi)?,
                (None, Some(_)) => to_connect.push(key),
                _ => {}
            }
            is_changed |= vector.route.is_some();
            entry.route = vector.route;
        }
        // Routes first: an irqfd whose counter is set already fires as soon as it is connected.
        if is_changed {
            vm.set_routes(IOAPIC_PINS, &self.routes())?;
        }
        for key in to_connect {
            if let Some(entry) = self.entries.get(&key) {
                vm.connect_irq(&entry.event, entry.gsi)?;
            }
        }
        Ok(())
    }

    /// Vectors that KVM knows of.
    #[cfg(test)]
    pub(super) fn connected(&self) -> usize {
        self.entries.values().filter(|entry| entry.route.is_some()).count()
    }

    fn routes(&self) -> Vec<MsiRoute> {
        self.entries
            .values()
            .filter_map(|entry| {
                entry.route.map(|message| MsiRoute { gsi: entry.gsi, address: message.address, data: message.data })
            })
            .collect()
    }

    /// The lowest GSI behind the I/O APIC's that no vector has.
    fn free_gsi(&self) -> u32 {
        let mut taken: Vec<u32> = self.entries.values().map(|entry| entry.gsi).collect();
        taken.sort_unstable();
        (IOAPIC_PINS..)
            .zip(taken)
            .find(|(free, taken)| free != taken)
            .map_or_else(|| IOAPIC_PINS + self.entries.len() as u32, |(free, _)| free)
    }
}
