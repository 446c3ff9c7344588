//! The store for itself: what only one VM may have, records, images, files; and what could not be looked at.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use super::super::look::Look;
use super::devices::idle_macs;
use super::{Finding, FindingKind as Kind, Remedy, Vms, named};
use crate::daemon::inventory::VFIO_DRIVER;
use crate::daemon::record::{LeaseState, NvmeLease};
use crate::daemon::store::{RecordFault, RecordFaultKind};

pub(super) fn compare(look: &Look, _vms: &Vms<'_>) -> Vec<Finding> {
    let mut found = held_twice(look);
    match &look.records {
        Ok(faults) => found.extend(faults.iter().filter_map(|fault| of_record(fault, look))),
        Err(error) => {
            let advice = "make room on the disk: the next change that can be written opens the file again";
            let detail = format!("its file cannot be read: {error}");
            found.push(Finding::for_person(Kind::RecordUnwritten, "store".to_owned(), detail, advice));
        }
    }
    for (uid, problem) in &look.images {
        if let Some(vm) = look.after.vms.get(uid) {
            let advice = "put the file back, or destroy the VM";
            found.push(Finding::for_person(Kind::ImageUnusable, named(vm), problem.clone(), advice));
        }
    }
    for path in &look.stale {
        let object = format!("file {}", path.display());
        let detail = "it was not finished, or no plugin is bound to it";
        found.push(Finding::new(Kind::FileStale, object, detail, Remedy::RemoveFile(path.clone())));
    }
    found.extend(unseen(look));
    found
}

/// What one VM has that another one has too.
fn held_twice(look: &Look) -> Vec<Finding> {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut add = |what: String, holder: String| holders.entry(what).or_default().push(holder);
    let mac = |mac: &dyn Display| format!("Ethernet address {mac}");
    for vm in look.after.vms.values() {
        // 0: of a daemon that gave VMs no user of their own.
        if vm.user != 0 {
            add(format!("user id {}", vm.user), named(vm));
        }
        for nic in &vm.nics {
            add(format!("network {}", nic.subnet.network()), named(vm));
            add(mac(&nic.mac), named(vm));
        }
    }
    for lease in look.after.leases.values() {
        if let Some(holder) = lease.state.holder() {
            let vm = look.after.vms.get(&holder.vm).map_or_else(|| format!("VM {}", holder.vm), |vm| named(vm));
            add(mac(&holder.mac), format!("{vm} by virtual function {}", lease.address));
        }
    }
    for (address, function) in idle_macs(look) {
        add(mac(&address), function);
    }
    let is_shared = |holders: &[String]| holders.len() > 1 && holders.iter().any(|holder| holder.starts_with("VM "));
    let shared = holders.into_iter().filter(|(_, holders)| is_shared(holders));
    let advice = "destroy one of the VMs, or give the function another address";
    shared
        .map(|(what, holders)| {
            Finding::for_person(Kind::HeldTwice, what, format!("{} have it", holders.join(" and ")), advice)
        })
        .collect()
}

fn of_record(fault: &RecordFault, look: &Look) -> Option<Finding> {
    let RecordFault { table, key, what } = fault;
    // One that has just changed is on its way.
    let is_still = match *table {
        "vms" => key.parse().ok().is_none_or(|uid| look.before.vms.get(&uid) == look.after.vms.get(&uid)),
        "vf_leases" => look.before.leases == look.after.leases,
        "nvme_leases" => look.before.nvme_leases == look.after.nvme_leases,
        _ => true,
    };
    let object = format!("record {key} of {table}");
    let finding = match what {
        RecordFaultKind::Unreadable(reason) => {
            let advice =
                "the daemon of another version may have written it; keep a copy of the store before changing it";
            Finding::for_person(Kind::RecordUnreadable, object, reason.clone(), advice)
        }
        RecordFaultKind::Unwritten => {
            let advice = "make room on the disk: the next change that can be written brings it along";
            Finding::for_person(Kind::RecordUnwritten, object, "the file does not have it as it is", advice)
        }
        RecordFaultKind::Unknown => {
            let detail = "the file has it and the daemon does not know it";
            let advice = "restart the daemon: it finishes what its records say";
            Finding::for_person(Kind::RecordUnwritten, object, detail, advice)
        }
    };
    is_still.then_some(finding)
}

/// What this look could not see. A card or controller of which no VM has anything may keep its secrets.
fn unseen(look: &Look) -> Vec<Finding> {
    let mut unseen = Vec::new();
    match &look.traces {
        Ok(traces) => unseen.extend(traces.unseen.iter().map(|what| ("host".to_owned(), what.clone()))),
        Err(error) => unseen.push(("host".to_owned(), error.clone())),
    }
    match &look.devices {
        Ok(devices) => {
            let leases = || look.after.leases.values().filter(|lease| lease.state != LeaseState::Free);
            let mute = devices.pfs.iter().filter(|pf| pf.link.is_none());
            let mute = mute.filter(|pf| leases().any(|lease| lease.key.pf == pf.address));
            let detail = "it has no driver that shows its virtual functions' settings";
            unseen.extend(mute.map(|pf| (format!("network card {}", pf.address), detail.to_owned())));
        }
        Err(error) => unseen.push(("network cards".to_owned(), error.clone())),
    }
    match &look.nvme {
        Ok(nvme) => unseen.extend(nvme.controllers.iter().filter_map(|controller| {
            let address = controller.function.address;
            // One that vfio-pci has is not to be asked.
            let is_asked = controller.function.driver.as_deref() != Some(VFIO_DRIVER);
            let is_of_it = |lease: &&Arc<NvmeLease>| lease.key.controller == address && lease.state != LeaseState::Free;
            let is_lent = look.after.nvme_leases.values().any(|lease| is_of_it(&lease));
            let problem = controller.facts.as_ref().err().filter(|_| is_asked && is_lent)?;
            Some((format!("NVMe controller {address}"), problem.clone()))
        })),
        Err(error) => unseen.push(("NVMe controllers".to_owned(), error.clone())),
    }
    let advice = "do away with the cause, then ask again";
    unseen.into_iter().map(|(what, why)| Finding::for_person(Kind::NotLookedAt, what, why, advice)).collect()
}
