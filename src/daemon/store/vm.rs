//! VMs, as they are in the file. Key functions: [`encode_vm`], [`decode_vm`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::decision::StoredDecision;
use super::format::{FORMAT, Unusable, from_json, from_ms, text, to_json, to_ms};
use super::nvme;
use super::spec::{StoredSpec, load_spec, store_spec};
use crate::daemon::record::{AttachState, Attachment, NicLease, Run, Subnet, VfNic, VmRecord, attachments_of, mac_of};
use crate::model::{CpuList, DecisionId, FailureCause, PciSlot, Placement, TenantId, VmExit, VmSpec, VmState};
use crate::sys::process::Identity;

#[derive(Serialize, Deserialize)]
struct StoredVm {
    format: u32,
    uid: String,
    tenant: String,
    name: String,
    spec: StoredSpec,
    /// Absent: of a daemon that gave slots in the spec's order.
    #[serde(default)]
    devices: Option<Vec<StoredDevice>>,
    state: StoredState,
    run: Option<StoredRun>,
    nics: Vec<StoredNic>,
    #[serde(default)]
    vfs: Vec<StoredVf>,
    #[serde(default)]
    nvmes: Vec<nvme::StoredDevice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    placement: Option<StoredPlacement>,
    /// 0: of a daemon that gave VMs no user of their own.
    #[serde(default)]
    user: u32,
    created_ms: u64,
    updated_ms: u64,
    admission: StoredDecision,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredState {
    Registered,
    Starting,
    Running,
    Paused,
    Stopping,
    Rebooting,
    Stopped,
    Failed(StoredExit),
    Destroying,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredExit {
    PowerOff,
    Reset,
    TripleFault,
    Panicked,
    Killed,
    LaunchFailed(String),
    HostError(String),
    Vanished(String),
}

#[derive(Serialize, Deserialize)]
struct StoredRun {
    instance: String,
    pid: Option<u32>,
    start_time: Option<u64>,
    kill_at_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredDevice {
    id: String,
    slot: u8,
    state: StoredAttach,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredAttach {
    Attaching,
    Attached,
    Detaching,
}

#[derive(Serialize, Deserialize)]
struct StoredNic {
    id: String,
    network: Ipv4Addr,
}

#[derive(Serialize, Deserialize)]
struct StoredVf {
    id: String,
    address: String,
    pf_interface: String,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct StoredPlacement {
    node: u32,
    cpus: CpuList,
    /// Number of the decision, in the VM's tenant's chain.
    decision: u64,
}

pub(super) fn encode_vm(vm: &VmRecord) -> Vec<u8> {
    to_json(&StoredVm {
        format: FORMAT,
        uid: vm.uid.to_string(),
        tenant: vm.tenant.to_string(),
        name: vm.name.to_string(),
        spec: store_spec(&vm.spec),
        devices: Some(vm.devices.iter().map(store_device).collect()),
        state: store_state(&vm.state),
        run: vm.run.as_ref().map(store_run),
        nics: vm.nics.iter().map(|n| StoredNic { id: n.id.to_string(), network: n.subnet.network() }).collect(),
        vfs: vm.vfs.iter().map(store_vf).collect(),
        nvmes: vm.nvmes.iter().map(nvme::store_device).collect(),
        placement: vm.placement.as_deref().and_then(store_placement),
        user: vm.user,
        created_ms: to_ms(vm.created),
        updated_ms: to_ms(vm.updated),
        admission: StoredDecision::from(&*vm.admission),
    })
}

pub(super) fn decode_vm(bytes: &[u8]) -> Result<VmRecord, Unusable> {
    let vm: StoredVm = from_json(bytes)?;
    let uid = vm.uid.parse().map_err(text)?;
    let nics = vm.nics.into_iter().map(|nic| {
        let id = nic.id.parse().map_err(text)?;
        let subnet = Subnet::new(nic.network).ok_or_else(|| format!("{} names no /30", nic.network))?;
        Ok::<_, Unusable>(NicLease { mac: mac_of(uid, &id), id, subnet })
    });
    let nics = nics.collect::<Result<_, _>>()?;
    let tenant = vm.tenant.parse().map_err(text)?;
    let spec = load_spec(vm.spec)?;
    let devices = match vm.devices {
        Some(devices) => load_devices(devices, &spec)?,
        None => attachments_of(&spec),
    };
    Ok(VmRecord {
        uid,
        name: vm.name.parse().map_err(text)?,
        spec,
        devices,
        state: load_state(vm.state),
        run: vm.run.map(load_run).transpose()?,
        nics,
        vfs: vm.vfs.into_iter().map(load_vf).collect::<Result<_, _>>()?,
        nvmes: vm.nvmes.into_iter().map(nvme::load_device).collect::<Result<_, _>>()?,
        placement: vm.placement.map(|placement| Box::new(load_placement(placement, &tenant))),
        user: vm.user,
        created: from_ms(vm.created_ms)?,
        updated: from_ms(vm.updated_ms)?,
        admission: Box::new(vm.admission.load(&tenant)?),
        tenant,
    })
}

fn store_device(device: &Attachment) -> StoredDevice {
    let state = match device.state {
        AttachState::Attaching => StoredAttach::Attaching,
        AttachState::Attached => StoredAttach::Attached,
        AttachState::Detaching => StoredAttach::Detaching,
    };
    StoredDevice { id: device.id.to_string(), slot: device.slot.number(), state }
}

/// The slots of the devices of `spec`: each has one, and no two the same.
fn load_devices(devices: Vec<StoredDevice>, spec: &VmSpec) -> Result<Vec<Attachment>, Unusable> {
    let devices = devices.into_iter().map(|device| {
        let state = match device.state {
            StoredAttach::Attaching => AttachState::Attaching,
            StoredAttach::Attached => AttachState::Attached,
            StoredAttach::Detaching => AttachState::Detaching,
        };
        let slot = PciSlot::new(device.slot).ok_or_else(|| format!("{} is no slot", device.slot))?;
        Ok::<_, Unusable>(Attachment { id: device.id.parse().map_err(text)?, slot, state })
    });
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    let slots: BTreeSet<_> = devices.iter().map(|device| device.slot).collect();
    let is_whole = spec.device_ids().collect::<BTreeSet<_>>() == devices.iter().map(|device| &device.id).collect();
    match is_whole && slots.len() == devices.len() {
        true => Ok(devices),
        false => Err("its devices and their slots do not go together".to_owned()),
    }
}

fn store_vf(vf: &VfNic) -> StoredVf {
    StoredVf {
        id: vf.id.to_string(),
        address: vf.address.to_string(),
        pf_interface: vf.pf_interface.clone(),
        mac: vf.mac.to_string(),
    }
}

fn load_vf(vf: StoredVf) -> Result<VfNic, Unusable> {
    Ok(VfNic {
        id: vf.id.parse().map_err(text)?,
        address: vf.address.parse().map_err(text)?,
        pf_interface: vf.pf_interface,
        mac: vf.mac.parse().map_err(text)?,
    })
}

/// What was only tried is not the VM's, and in no etag.
fn store_placement(placement: &Placement) -> Option<StoredPlacement> {
    let Placement { node, cpus, decision } = placement;
    Some(StoredPlacement { node: *node, cpus: cpus.clone(), decision: decision.as_ref()?.sequence })
}

fn load_placement(placement: StoredPlacement, tenant: &TenantId) -> Placement {
    let StoredPlacement { node, cpus, decision } = placement;
    Placement { node, cpus, decision: Some(DecisionId { tenant: tenant.clone(), sequence: decision }) }
}

fn store_state(state: &VmState) -> StoredState {
    match state {
        VmState::Registered => StoredState::Registered,
        VmState::Starting => StoredState::Starting,
        VmState::Running => StoredState::Running,
        VmState::Paused => StoredState::Paused,
        VmState::Stopping => StoredState::Stopping,
        VmState::Rebooting => StoredState::Rebooting,
        VmState::Stopped => StoredState::Stopped,
        VmState::Failed(FailureCause(exit)) => StoredState::Failed(match exit.clone() {
            VmExit::PowerOff => StoredExit::PowerOff,
            VmExit::Reset => StoredExit::Reset,
            VmExit::TripleFault => StoredExit::TripleFault,
            VmExit::Panicked => StoredExit::Panicked,
            VmExit::Killed => StoredExit::Killed,
            VmExit::LaunchFailed(cause) => StoredExit::LaunchFailed(cause),
            VmExit::HostError(cause) => StoredExit::HostError(cause),
            VmExit::Vanished(cause) => StoredExit::Vanished(cause),
        }),
        VmState::Destroying => StoredState::Destroying,
    }
}

fn load_state(state: StoredState) -> VmState {
    match state {
        StoredState::Registered => VmState::Registered,
        StoredState::Starting => VmState::Starting,
        StoredState::Running => VmState::Running,
        StoredState::Paused => VmState::Paused,
        StoredState::Stopping => VmState::Stopping,
        StoredState::Rebooting => VmState::Rebooting,
        StoredState::Stopped => VmState::Stopped,
        StoredState::Failed(exit) => VmState::Failed(FailureCause(match exit {
            StoredExit::PowerOff => VmExit::PowerOff,
            StoredExit::Reset => VmExit::Reset,
            StoredExit::TripleFault => VmExit::TripleFault,
            StoredExit::Panicked => VmExit::Panicked,
            StoredExit::Killed => VmExit::Killed,
            StoredExit::LaunchFailed(cause) => VmExit::LaunchFailed(cause),
            StoredExit::HostError(cause) => VmExit::HostError(cause),
            StoredExit::Vanished(cause) => VmExit::Vanished(cause),
        })),
        StoredState::Destroying => VmState::Destroying,
    }
}

fn store_run(run: &Run) -> StoredRun {
    StoredRun {
        instance: run.instance.to_string(),
        pid: run.process.map(|process| process.pid),
        start_time: run.process.map(|process| process.start_time),
        kill_at_ms: run.kill_at.map(to_ms),
    }
}

fn load_run(run: StoredRun) -> Result<Run, Unusable> {
    Ok(Run {
        instance: run.instance.parse().map_err(text)?,
        process: run.pid.zip(run.start_time).map(|(pid, start_time)| Identity { pid, start_time }),
        kill_at: run.kill_at_ms.map(from_ms).transpose()?,
    })
}

#[cfg(test)]
mod tests;
