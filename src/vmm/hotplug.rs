//! Devices by their ids, as the daemon speaks of them while the VM runs. Key type: [`Attached`].
//!
//! What is done to them is the machine's; this keeps which device sits where, and what the daemon is told.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::devices::{DeviceError, Devices};
use super::machine::{Machine, MachineError};
use super::pci::SlotTaken;
use super::ports::Alarm;
use crate::model::{DeviceId, DeviceLaunch, PciSlot};
use crate::wire::FromVmm;

/// Why a device is refused.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Two devices of one name.
    #[error("there is a device {0} already")]
    IdTaken(DeviceId),
    /// It cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It cannot be put on the bus.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl AttachError {
    /// Whether the vmm has nothing left for another device.
    fn is_exhausted(&self) -> bool {
        match self {
            Self::Device(error) => error.is_exhausted(),
            Self::Machine(MachineError::SlotIsFixed { .. }) => true,
            Self::IdTaken(_) | Self::Machine(_) => false,
        }
    }
}

/// The devices of a machine.
pub struct Attached {
    devices: Devices,
    slots: BTreeMap<DeviceId, PciSlot>,
}

impl Attached {
    /// None yet; they are made by `devices`.
    pub fn new(devices: Devices) -> Self {
        Self { devices, slots: BTreeMap::new() }
    }

    /// Ends the time in which threads, rings and timers can be made.
    pub fn seal(&self) -> std::io::Result<()> {
        self.devices.seal()
    }

    /// Where a device is.
    pub fn slot(&self, id: &DeviceId) -> Option<PciSlot> {
        self.slots.get(id).copied()
    }

    /// Ids of all devices.
    pub fn ids(&self) -> Vec<DeviceId> {
        self.slots.keys().cloned().collect()
    }

    /// Makes a device and attaches it, before the machine runs or while it does. On an error nothing of it is left.
    pub fn insert(
        &mut self,
        machine: &mut Machine,
        device: &DeviceLaunch,
        descriptors: Vec<OwnedFd>,
        alarms: &mut Vec<Alarm>,
    ) -> Result<(), AttachError> {
        if self.slots.contains_key(&device.id) {
            return Err(AttachError::IdTaken(device.id.clone()));
        }
        if self.slots.values().any(|taken| *taken == device.slot) {
            return Err(MachineError::from(SlotTaken { slot: device.slot.number() }).into());
        }
        let function = self.devices.build(device, descriptors, machine, alarms)?;
        machine.attach(device.slot, function).inspect_err(|_| self.devices.forget(device.slot))?;
        self.slots.insert(device.id.clone(), device.slot);
        Ok(())
    }

    /// Attaches a device to a running machine, and says what came of it.
    pub fn attach(
        &mut self,
        machine: &mut Machine,
        device: &DeviceLaunch,
        descriptors: Vec<OwnedFd>,
        alarms: &mut Vec<Alarm>,
    ) -> FromVmm {
        let id = device.id.clone();
        match self.insert(machine, device, descriptors, alarms) {
            Ok(()) => {
                tracing::info!(device = %id, slot = device.slot.number(), "attached");
                FromVmm::Attached(id)
            }
            Err(error) => {
                tracing::warn!(device = %id, %error, "not attached");
                FromVmm::AttachFailed { id, cause: error.to_string(), is_exhausted: error.is_exhausted() }
            }
        }
    }

    /// Asks the guest for a device, or takes it without asking. What is answered now, if anything: a device that the host
    /// still works for is gone later ([`Attached::departed`]).
    pub fn detach(
        &mut self,
        machine: &mut Machine,
        id: DeviceId,
        is_forced: bool,
    ) -> Result<Option<FromVmm>, MachineError> {
        let Some(&slot) = self.slots.get(&id) else {
            return Ok(Some(FromVmm::DetachFailed { cause: format!("there is no device {id}"), id }));
        };
        if is_forced {
            return self.remove(machine, slot);
        }
        machine.ask_back(slot);
        Ok(Some(FromVmm::DetachAsked(id)))
    }

    /// Takes out what the guest has let go, or what it is not asked for.
    pub fn remove(&mut self, machine: &mut Machine, slot: PciSlot) -> Result<Option<FromVmm>, MachineError> {
        let is_gone = machine.detach(slot)?;
        Ok(if is_gone { self.forget(slot) } else { None })
    }

    /// What has left since [`Attached::remove`] could not say so.
    pub fn departed(&mut self, machine: &mut Machine) -> Vec<FromVmm> {
        machine.departed().into_iter().filter_map(|slot| self.forget(slot)).collect()
    }

    fn forget(&mut self, slot: PciSlot) -> Option<FromVmm> {
        let id = self.slots.iter().find(|(_, taken)| **taken == slot).map(|(id, _)| id.clone())?;
        self.slots.remove(&id);
        self.devices.forget(slot);
        tracing::info!(device = %id, slot = slot.number(), "detached");
        Some(FromVmm::Detached(id))
    }
}
