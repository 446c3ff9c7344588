//! Leases of devices, and functions that vfio-pci has.

use std::sync::Arc;

use super::super::super::devices::key_of;
use super::super::look::Look;
use super::{Finding, FindingKind as Kind, Remedy, Vms, named};
use crate::daemon::inventory::{Devices, NvmeControllers, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
use crate::daemon::record::{HeldFor, Holder, LeaseState, NvmeKey, NvmeLease, NvmePart, VfLease};
use crate::model::{DeviceId, MacAddr, VmId};

pub(super) fn compare(look: &Look, vms: &Vms<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for lease in look.after.leases.values().filter(|lease| look.before.leases.get(&lease.key) == Some(lease)) {
        found.extend(vf_lease(lease, vms));
        if let Ok(devices) = &look.devices {
            found.extend(vf_as_leased(lease, devices, vms));
        }
    }
    for lease in look.after.nvme_leases.values().filter(|lease| look.before.nvme_leases.get(&lease.key) == Some(lease))
    {
        found.extend(nvme_lease(lease, vms));
    }
    if let Ok(devices) = &look.devices {
        found.extend(devices.vfs().filter_map(|(pf, vf)| unexplained_vf(pf, vf, look)));
    }
    if let Ok(controllers) = &look.nvme {
        found.extend(unexplained_nvme(controllers, look));
    }
    found
}

/// What a VM has to do with a device that is leased for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It may be coming or going.
    Unclear,
    /// It runs with it.
    Runs,
    /// It is off and has it.
    Rests,
    /// It does not have it, or does not exist.
    None,
}

fn use_of(vm: VmId, device: &DeviceId, vms: &Vms<'_>) -> Use {
    if !vms.is_known(vm) {
        return Use::None;
    }
    match vms.steady.get(&vm) {
        None => Use::Unclear,
        Some((record, _)) if record.attachment(device).is_none() => Use::None,
        Some((record, _)) if record.state.has_process() => Use::Runs,
        Some(_) => Use::Rests,
    }
}

/// For whom, as findings name it.
fn holder_of(vm: VmId, device: &DeviceId, vms: &Vms<'_>) -> String {
    match vms.steady.get(&vm) {
        Some((record, _)) => format!("{} ({}), device {device}", named(record), record.state.name()),
        None if vms.is_known(vm) => format!("VM {vm}, device {device}"),
        None => format!("VM {vm}, which does not exist, device {device}"),
    }
}

fn vf_lease(lease: &VfLease, vms: &Vms<'_>) -> Option<Finding> {
    let holder = lease.state.holder()?;
    let object = format!("virtual function {}", lease.address);
    let clean = Remedy::CleanVf(lease.key, lease.generation);
    if let LeaseState::Quarantined { reason, .. } = &lease.state {
        return Some(Finding::new(Kind::DeviceQuarantined, object, reason.clone(), clean));
    }
    // A function is lent for a run.
    if matches!(use_of(holder.vm, &holder.nic, vms), Use::Unclear | Use::Runs) {
        return None;
    }
    let detail = format!("it is {} for {}", lease.state.name(), holder_of(holder.vm, &holder.nic, vms));
    if matches!(lease.state, LeaseState::Releasing(_)) {
        let advice = format!("if nobody is releasing it just now: ostler host release {}", lease.address);
        return Some(Finding::for_person(Kind::LeaseStranded, object, detail, &advice));
    }
    Some(Finding::new(Kind::LeaseStranded, object, detail, clean))
}

/// Whether a function that a VM runs with is what its lease says.
fn vf_as_leased(lease: &VfLease, devices: &Devices, vms: &Vms<'_>) -> Option<Finding> {
    let LeaseState::Attached(holder) = &lease.state else { return None };
    let (vm, _) = vms.running(holder.vm)?;
    vm.attachment(&holder.nic)?;
    let pf = devices.pfs.iter().find(|pf| pf.address == lease.key.pf);
    // Its card cannot be asked: that is told for itself.
    if pf.is_some_and(|pf| pf.link.is_none()) {
        return None;
    }
    let shown = devices.vfs().find(|(pf, vf)| key_of(pf, vf) == Some(lease.key)).map(|(_, vf)| vf);
    let detail = unlike(holder, lease, shown)?;
    let object = format!("virtual function {}", lease.address);
    let advice = "detach the device, or stop the VM, and attach or start it again";
    Some(Finding::for_person(Kind::DeviceChanged, object, format!("{}: {detail}", named(vm)), advice))
}

fn unlike(holder: &Holder, lease: &VfLease, shown: Option<&VirtualFunction>) -> Option<String> {
    let Some(vf) = shown else { return Some("it is not there any more".to_owned()) };
    if vf.address != lease.address {
        return Some(format!("it is at {} now", vf.address));
    }
    if vf.driver.as_deref() != Some(VFIO_DRIVER) {
        return Some(format!(
            "it has {}",
            vf.driver.as_ref().map_or("no driver".into(), |name| format!("driver {name}"))
        ));
    }
    let mac = MacAddr(vf.config?.mac);
    (mac != holder.mac).then(|| format!("it has the address {mac}, not {}", holder.mac))
}

fn nvme_lease(lease: &NvmeLease, vms: &Vms<'_>) -> Option<Finding> {
    let holder = lease.state.holder()?;
    let (object, release) = match lease.key.part {
        NvmePart::Whole => {
            (format!("NVMe controller {}", lease.address), format!("ostler host release {}", lease.key.controller))
        }
        NvmePart::Secondary(id) => (
            format!("NVMe controller {id} of {}", lease.key.controller),
            format!("ostler host release {}", lease.address),
        ),
        NvmePart::Namespace(nsid) => (
            format!("NVMe namespace {nsid} of {}", lease.key.controller),
            format!("ostler host release {} --namespace {nsid}", lease.key.controller),
        ),
    };
    let used = use_of(holder.vm(), &holder.device, vms);
    let is_stranded = match &lease.state {
        LeaseState::Quarantined { reason, .. } => {
            let advice = format!("do away with the cause, then {release}");
            return Some(Finding::for_person(Kind::DeviceQuarantined, object, reason.clone(), &advice));
        }
        // Erased in the background, for hours.
        LeaseState::Releasing(_) if !matches!(lease.key.part, NvmePart::Secondary(_)) => false,
        // A VM's data is its own across its runs.
        LeaseState::Attached(_) if !matches!(lease.key.part, NvmePart::Secondary(_)) => used == Use::None,
        LeaseState::Free => false,
        _ => matches!(used, Use::None | Use::Rests),
    };
    let detail = format!("it is {} for {}", lease.state.name(), holder_of(holder.vm(), &holder.device, vms));
    is_stranded.then(|| match lease.state {
        LeaseState::Releasing(_) => {
            let advice = format!("if nobody is releasing it just now: {release}");
            Finding::for_person(Kind::LeaseStranded, object, detail, &advice)
        }
        _ => {
            let clean = Remedy::CleanNvme(lease.key.clone(), lease.generation);
            Finding::new(Kind::LeaseStranded, object, detail, clean)
        }
    })
}

/// What to do about a function that may be another program's.
fn unbind(address: impl std::fmt::Display) -> String {
    format!("if no other program needs it: echo {address} > /sys/bus/pci/drivers/vfio-pci/unbind")
}

fn unexplained_vf(pf: &PhysicalFunction, vf: &VirtualFunction, look: &Look) -> Option<Finding> {
    let key = key_of(pf, vf).filter(|_| vf.driver.as_deref() == Some(VFIO_DRIVER))?;
    let leases = [look.before.leases.get(&key), look.after.leases.get(&key)];
    if leases.iter().flatten().any(|lease| lease.state != LeaseState::Free) {
        return None;
    }
    let object = format!("virtual function {}", vf.address);
    match leases {
        // It was ours, and was given back.
        [Some(_), Some(_)] => {
            let (detail, remedy) = ("vfio-pci has it, and by its lease it is free", Remedy::Unbind(key, vf.address));
            Some(Finding::new(Kind::BindingUnexplained, object, detail, remedy))
        }
        _ => {
            let detail = "vfio-pci has it, and no VM ever had it: somebody else has bound it";
            Some(Finding::for_person(Kind::BindingUnexplained, object, detail, &unbind(vf.address)))
        }
    }
}

fn unexplained_nvme(controllers: &NvmeControllers, look: &Look) -> Vec<Finding> {
    let is_free = |key: &NvmeKey| {
        let leases = [look.before.nvme_leases.get(key), look.after.nvme_leases.get(key)];
        leases.into_iter().flatten().all(|lease| lease.state == LeaseState::Free)
    };
    let mut found = Vec::new();
    for controller in &controllers.controllers {
        let Ok(facts) = &controller.facts else { continue };
        for secondary in &facts.secondaries {
            let function = secondary.function.as_ref().filter(|one| one.driver.as_deref() == Some(VFIO_DRIVER));
            let Some(function) = function else { continue };
            let part = NvmePart::Secondary(secondary.id);
            let key = NvmeKey { controller: controller.function.address, serial: facts.identity.serial.clone(), part };
            if is_free(&key) {
                let object = format!("NVMe controller {} of {}", secondary.id, key.controller);
                let detail = format!("vfio-pci has its function {}, and no VM has it", function.address);
                let advice = unbind(function.address);
                found.push(Finding::for_person(Kind::BindingUnexplained, object, detail, &advice));
            }
        }
    }
    found
}

/// Ethernet addresses that functions show which nobody has, with their names.
pub(super) fn idle_macs(look: &Look) -> Vec<(MacAddr, String)> {
    let Ok(devices) = &look.devices else { return Vec::new() };
    let is_idle = |pf: &PhysicalFunction, vf: &VirtualFunction| {
        let lease: Option<&Arc<VfLease>> = key_of(pf, vf).and_then(|key| look.after.leases.get(&key));
        lease.is_none_or(|lease| lease.state == LeaseState::Free)
    };
    let shown = devices.vfs().filter(|(pf, vf)| is_idle(pf, vf));
    let shown = shown.filter_map(|(_, vf)| Some((MacAddr(vf.config?.mac), format!("virtual function {}", vf.address))));
    shown.filter(|(mac, _)| mac.0 != [0; 6]).collect()
}
