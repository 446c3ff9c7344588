//! NVMe in JSON documents: leases, what specs and VMs have of it, and what is being made. Key functions:
//! [`encode_lease`], [`decode_lease`], [`encode_provision`].

use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, text, to_json};
use crate::daemon::record::{LeaseState, NvmeDevice, NvmeHolder, NvmeKey, NvmeLease, NvmePart, NvmeProvision};
use crate::model::{NvmeSpec, NvmeWish};

#[derive(Serialize, Deserialize)]
struct StoredLease {
    format: u32,
    controller: String,
    serial: String,
    part: StoredPart,
    address: String,
    generation: u64,
    last_tenant: Option<String>,
    #[serde(default)]
    unique_id: Option<String>,
    state: StoredState,
    holder: Option<StoredHolder>,
    #[serde(default)]
    reason: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredPart {
    Whole,
    Secondary(u16),
    Namespace(u32),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredState {
    Free,
    Claimed,
    Prepared,
    Attached,
    Releasing,
    Quarantined,
}

#[derive(Serialize, Deserialize)]
struct StoredHolder {
    vm: String,
    tenant: String,
    device: String,
}

#[derive(Serialize, Deserialize)]
struct StoredProvision {
    format: u32,
    controller: String,
    serial: String,
    vfs: u16,
    queues: u16,
    interrupts: u16,
}

/// A device of a spec.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredSpec {
    id: String,
    /// Unset: a whole controller.
    min_bytes: Option<u64>,
}

/// A device that a VM has.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredDevice {
    id: String,
    function: Option<String>,
    controller: String,
    serial: String,
    nsid: Option<u32>,
    size_bytes: u64,
}

pub(super) fn encode_lease(lease: &NvmeLease) -> Vec<u8> {
    let (state, reason) = match &lease.state {
        LeaseState::Free => (StoredState::Free, ""),
        LeaseState::Claimed(_) => (StoredState::Claimed, ""),
        LeaseState::Prepared(_) => (StoredState::Prepared, ""),
        LeaseState::Attached(_) => (StoredState::Attached, ""),
        LeaseState::Releasing(_) => (StoredState::Releasing, ""),
        LeaseState::Quarantined { reason, .. } => (StoredState::Quarantined, reason.as_str()),
    };
    let holder = lease.state.holder().map(|holder| StoredHolder {
        vm: holder.vm.to_string(),
        tenant: holder.tenant.to_string(),
        device: holder.device.to_string(),
    });
    to_json(&StoredLease {
        format: FORMAT,
        controller: lease.key.controller.to_string(),
        serial: lease.key.serial.clone(),
        part: match lease.key.part {
            NvmePart::Whole => StoredPart::Whole,
            NvmePart::Secondary(id) => StoredPart::Secondary(id),
            NvmePart::Namespace(nsid) => StoredPart::Namespace(nsid),
        },
        address: lease.address.to_string(),
        generation: lease.generation,
        last_tenant: lease.last_tenant.as_ref().map(ToString::to_string),
        unique_id: lease.unique_id.clone(),
        state,
        holder,
        reason: reason.to_owned(),
    })
}

pub(super) fn decode_lease(bytes: &[u8]) -> Result<NvmeLease, Unusable> {
    let lease: StoredLease = from_json(bytes)?;
    let holder = lease.holder.map(load_holder).transpose()?;
    let reason = lease.reason;
    let state = match (lease.state, holder) {
        (StoredState::Free, _) => LeaseState::Free,
        (_, None) => return Err("it is held, and names no holder".to_owned()),
        (StoredState::Claimed, Some(holder)) => LeaseState::Claimed(holder),
        (StoredState::Prepared, Some(holder)) => LeaseState::Prepared(holder),
        (StoredState::Attached, Some(holder)) => LeaseState::Attached(holder),
        (StoredState::Releasing, Some(holder)) => LeaseState::Releasing(holder),
        (StoredState::Quarantined, Some(holder)) => LeaseState::Quarantined { holder, reason },
    };
    Ok(NvmeLease {
        key: NvmeKey {
            controller: lease.controller.parse().map_err(text)?,
            serial: lease.serial,
            part: match lease.part {
                StoredPart::Whole => NvmePart::Whole,
                StoredPart::Secondary(id) => NvmePart::Secondary(id),
                StoredPart::Namespace(nsid) => NvmePart::Namespace(nsid),
            },
        },
        address: lease.address.parse().map_err(text)?,
        generation: lease.generation,
        last_tenant: lease.last_tenant.map(|tenant| tenant.parse()).transpose().map_err(text)?,
        unique_id: lease.unique_id,
        state,
    })
}

fn load_holder(holder: StoredHolder) -> Result<NvmeHolder, Unusable> {
    Ok(NvmeHolder {
        vm: holder.vm.parse().map_err(text)?,
        tenant: holder.tenant.parse().map_err(text)?,
        device: holder.device.parse().map_err(text)?,
    })
}

pub(super) fn encode_provision(provision: &NvmeProvision) -> Vec<u8> {
    let NvmeProvision { controller, serial, vfs, queues, interrupts } = provision.clone();
    to_json(&StoredProvision { format: FORMAT, controller: controller.to_string(), serial, vfs, queues, interrupts })
}

pub(super) fn decode_provision(bytes: &[u8]) -> Result<NvmeProvision, Unusable> {
    let StoredProvision { format: _, controller, serial, vfs, queues, interrupts } = from_json(bytes)?;
    Ok(NvmeProvision { controller: controller.parse().map_err(text)?, serial, vfs, queues, interrupts })
}

pub(super) fn store_spec(nvme: &NvmeSpec) -> StoredSpec {
    let min_bytes = match nvme.wish {
        NvmeWish::Namespace { min_bytes } => Some(min_bytes),
        NvmeWish::Controller => None,
    };
    StoredSpec { id: nvme.id.to_string(), min_bytes }
}

pub(super) fn load_spec(nvme: StoredSpec) -> Result<NvmeSpec, Unusable> {
    let wish = nvme.min_bytes.map_or(NvmeWish::Controller, |min_bytes| NvmeWish::Namespace { min_bytes });
    Ok(NvmeSpec { id: nvme.id.parse().map_err(text)?, wish })
}

pub(super) fn store_device(nvme: &NvmeDevice) -> StoredDevice {
    StoredDevice {
        id: nvme.id.to_string(),
        function: nvme.function.map(|function| function.to_string()),
        controller: nvme.controller.to_string(),
        serial: nvme.serial.clone(),
        nsid: nvme.nsid,
        size_bytes: nvme.size_bytes,
    }
}

pub(super) fn load_device(nvme: StoredDevice) -> Result<NvmeDevice, Unusable> {
    Ok(NvmeDevice {
        id: nvme.id.parse().map_err(text)?,
        function: nvme.function.map(|function| function.parse()).transpose().map_err(text)?,
        controller: nvme.controller.parse().map_err(text)?,
        serial: nvme.serial,
        nsid: nvme.nsid,
        size_bytes: nvme.size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Bdf, VmId};
    use proptest::prelude::*;

    fn lease(part: NvmePart, state: LeaseState<NvmeHolder>) -> NvmeLease {
        let address = Bdf::new(0, 2, 0, 1).unwrap();
        let key = NvmeKey { controller: Bdf::new(0, 2, 0, 0).unwrap(), serial: "S/1 \"x\"".into(), part };
        let (last_tenant, unique_id) = (Some("globex".parse().unwrap()), Some("eui64:01".to_owned()));
        NvmeLease { key, address, generation: 7, last_tenant, unique_id, state }
    }

    #[test]
    fn every_state_of_every_part_round_trips() {
        let holder = NvmeHolder { vm: VmId::new(), tenant: "acme".parse().unwrap(), device: "data".parse().unwrap() };
        let states = [
            LeaseState::Free,
            LeaseState::Claimed(holder.clone()),
            LeaseState::Prepared(holder.clone()),
            LeaseState::Attached(holder.clone()),
            LeaseState::Releasing(holder.clone()),
            LeaseState::Quarantined { holder, reason: "not zero".into() },
        ];
        for state in states {
            for part in [NvmePart::Whole, NvmePart::Secondary(3), NvmePart::Namespace(9)] {
                let lease = lease(part, state.clone());
                assert_eq!(decode_lease(&encode_lease(&lease)), Ok(lease));
            }
        }
    }

    #[test]
    fn reads_a_lease_from_before_namespaces_were_told_apart() {
        let lease = lease(NvmePart::Namespace(9), LeaseState::Free);
        let mut json: serde_json::Value = serde_json::from_slice(&encode_lease(&lease)).unwrap();
        assert!(json.as_object_mut().unwrap().remove("unique_id").is_some());
        assert_eq!(decode_lease(json.to_string().as_bytes()), Ok(NvmeLease { unique_id: None, ..lease }));
    }

    #[test]
    fn what_is_being_made_round_trips() {
        let controller = Bdf::new(0, 2, 0, 0).unwrap();
        let provision = NvmeProvision { controller, serial: "S/1".into(), vfs: 4, queues: 2, interrupts: 1 };
        assert_eq!(decode_provision(&encode_provision(&provision)), Ok(provision));
    }

    #[test]
    fn refuses_a_held_one_without_its_holder() {
        let json = String::from_utf8(encode_lease(&lease(NvmePart::Whole, LeaseState::Free))).unwrap();
        let held = json.replace("\"free\"", "\"attached\"");
        assert!(decode_lease(held.as_bytes()).unwrap_err().contains("names no holder"));
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_lease(&bytes);
            let _ = decode_provision(&bytes);
        }
    }
}
