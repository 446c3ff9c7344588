//! Which device of a VM sits where, and what is under way with it. Key types: [`Attachment`], [`AttachState`].
//!
//! A device keeps its slot for as long as it is the VM's: guests name interfaces after it.

use super::{NicLease, VmRecord};
use crate::model::{DeviceId, DeviceSpec, PciSlot, SpecError, VmSpec};

/// The entropy device's, which every VM has and keeps.
const FIRST_SLOT: u8 = 2;
/// Id of that device.
pub const RNG: &str = "rng";

/// A device of the spec in its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The device.
    pub id: DeviceId,
    /// Its device number on the guest's bus 0.
    pub slot: PciSlot,
    /// What is under way with it.
    pub state: AttachState,
}

/// What is under way with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachState {
    /// The vmm is about to get it; if the run ends before, the VM does not have it.
    Attaching,
    /// The VM has it, now if it runs, or at its next start.
    Attached,
    /// The guest is asked for it, or has lost it; when the run ends, the VM does not have it any more.
    Detaching,
}

/// Why a device cannot be added to a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The VM has a device of that name.
    #[error("the VM has a device {0} already; choose another id")]
    IdTaken(DeviceId),
    /// Its bus is full.
    #[error("no slot is free: the VM has {0} devices; detach one first")]
    NoSlot(usize),
    /// Something else is wrong with it.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// The slots of a spec that was never changed: in its order.
pub fn attachments_of(spec: &VmSpec) -> Vec<Attachment> {
    let slots = (FIRST_SLOT..).map_while(PciSlot::new);
    let attachment =
        |(id, slot): (&DeviceId, PciSlot)| Attachment { id: id.clone(), slot, state: AttachState::Attached };
    spec.device_ids().zip(slots).map(attachment).collect()
}

impl VmRecord {
    /// The device of that name; the entropy device is none of them.
    pub fn attachment(&self, id: &DeviceId) -> Option<&Attachment> {
        self.devices.iter().find(|attachment| attachment.id == *id)
    }

    /// The same VM with a device more, in the lowest free slot. `nic`: its addresses, if it is a NIC on a tap.
    pub fn with_device(
        &self,
        device: &DeviceSpec,
        nic: Option<NicLease>,
        state: AttachState,
    ) -> Result<Self, AddError> {
        let id = device.id();
        if id.as_str() == RNG || self.attachment(id).is_some() {
            return Err(AddError::IdTaken(id.clone()));
        }
        let is_free = |slot: &PciSlot| self.devices.iter().all(|attachment| attachment.slot != *slot);
        let slot = (FIRST_SLOT..).map_while(PciSlot::new).find(is_free);
        let slot = slot.filter(|_| self.devices.len() < VmSpec::MAX_DEVICES);
        let slot = slot.ok_or(AddError::NoSlot(self.devices.len()))?;
        let mut vm = Self { spec: self.spec.clone().with_device(device.clone())?, ..self.clone() };
        vm.devices.push(Attachment { id: id.clone(), slot, state });
        vm.nics.extend(nic);
        Ok(vm)
    }

    /// Forgets a device, with its addresses.
    pub fn remove_device(&mut self, id: &DeviceId) {
        self.spec.remove_device(id);
        self.devices.retain(|attachment| attachment.id != *id);
        self.nics.retain(|nic| nic.id != *id);
        self.vfs.retain(|vf| vf.id != *id);
        self.nvmes.retain(|nvme| nvme.id != *id);
    }

    /// Sets what is under way with a device.
    pub fn set_device(&mut self, id: &DeviceId, state: AttachState) {
        for attachment in self.devices.iter_mut().filter(|attachment| attachment.id == *id) {
            attachment.state = state;
        }
    }

    /// The run is over: nothing can come to it any more, and what was to leave it has left.
    pub fn settle_devices(&mut self) {
        for Attachment { id, state, .. } in self.devices.clone() {
            self.settle(&id, state, false);
        }
    }

    /// The run goes on under another daemon, with these devices. One of the host that is not among them stays on record:
    /// it is to be given back first.
    pub fn settle_devices_with(&mut self, present: &[DeviceId]) {
        let of_host = self.devices_of_host();
        for Attachment { id, state, .. } in self.devices.clone() {
            if present.contains(&id) || !of_host.contains(&id) {
                self.settle(&id, state, present.contains(&id));
            }
        }
    }

    /// Devices of the spec that are the host's: virtual functions and NVMe.
    pub fn devices_of_host(&self) -> Vec<DeviceId> {
        let vfs = self.spec.nics().iter().filter(|nic| nic.vf_wish().is_some()).map(|nic| &nic.id);
        vfs.chain(self.spec.nvmes().iter().map(|nvme| &nvme.id)).cloned().collect()
    }

    fn settle(&mut self, id: &DeviceId, state: AttachState, is_present: bool) {
        match (state, is_present) {
            (AttachState::Attaching, true) => self.set_device(id, AttachState::Attached),
            (AttachState::Attaching | AttachState::Detaching, false) => self.remove_device(id),
            (AttachState::Attached, _) | (AttachState::Detaching, true) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::model::{DiskSpec, ImagePath, RateLimits};

    fn disk(id: &str) -> DeviceSpec {
        let volume = ImagePath::new("v", "data.img").unwrap();
        DeviceSpec::Disk(DiskSpec {
            id: id.parse().unwrap(),
            volume,
            is_read_only: false,
            is_direct: false,
            queues: 1,
            limits: RateLimits::default(),
        })
    }

    fn shown(vm: &VmRecord) -> Vec<(&str, u8)> {
        vm.devices.iter().map(|attachment| (attachment.id.as_str(), attachment.slot.number())).collect()
    }

    #[test]
    fn a_device_gets_the_lowest_free_slot_and_keeps_it() {
        let mut vm = samples::running("acme", "web");
        assert_eq!(shown(&vm), [("root", 2), ("eth0", 3)]);
        vm = vm.with_device(&disk("data"), None, AttachState::Attached).unwrap();
        vm.remove_device(&"root".parse().unwrap());
        assert_eq!(shown(&vm), [("eth0", 3), ("data", 4)]);
        vm = vm.with_device(&disk("more"), None, AttachState::Attached).unwrap();
        assert_eq!(shown(&vm), [("eth0", 3), ("data", 4), ("more", 2)]);
        assert_eq!(vm.spec.disks().len(), 2);
        vm.remove_device(&"eth0".parse().unwrap());
        assert!(vm.nics.is_empty() && vm.spec.nics().is_empty());
    }

    #[test]
    fn names_are_taken_once_and_the_bus_is_bounded() {
        let mut vm = samples::running("acme", "web");
        for id in ["root", "eth0", "rng"] {
            let refused = vm.with_device(&disk(id), None, AttachState::Attached).unwrap_err();
            assert_eq!(refused, AddError::IdTaken(id.parse().unwrap()));
        }
        for number in vm.devices.len()..VmSpec::MAX_DEVICES {
            vm = vm.with_device(&disk(&format!("d{number}")), None, AttachState::Attached).unwrap();
        }
        let refused = vm.with_device(&disk("one-more"), None, AttachState::Attached).unwrap_err();
        assert_eq!(refused, AddError::NoSlot(VmSpec::MAX_DEVICES));
    }

    #[test]
    fn what_was_under_way_is_finished_or_undone() {
        let vm = samples::running("acme", "web");
        let mut vm = vm.with_device(&disk("new"), None, AttachState::Attaching).unwrap();
        vm.set_device(&"eth0".parse().unwrap(), AttachState::Detaching);
        let ids = |vm: &VmRecord| vm.devices.iter().map(|a| (a.id.to_string(), a.state)).collect::<Vec<_>>();
        let root = ("root".to_owned(), AttachState::Attached);

        let mut over = vm.clone();
        over.settle_devices();
        assert_eq!(ids(&over), std::slice::from_ref(&root));
        assert!(over.nics.is_empty());

        let mut adopted = vm;
        adopted.settle_devices_with(&["rng", "root", "eth0", "new"].map(|id| id.parse().unwrap()));
        let expected = [root, ("eth0".into(), AttachState::Detaching), ("new".into(), AttachState::Attached)];
        assert_eq!(ids(&adopted), expected);
    }
}
