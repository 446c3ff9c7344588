//! What operators see and do of the host's NVMe; the blocking work of claims and releases. Key functions: [`clean`],
//! [`Node::provision_nvme`].

use std::sync::Arc;

use super::super::super::Terms;
use super::super::{Released, lease_etag};
use super::choose::{key_of, unfit};
use super::{
    Bdf, DeviceError, HOST_TIMEOUT, LeaseState, Node, NvmeController, NvmeControllers, NvmeDevices, NvmeKey, NvmeLease,
    NvmePart, Principal, ServiceError, controller_of, hostdev, on_host_within, read, require_operator,
};
use crate::daemon::crash::{self, Point};
use crate::daemon::hostdev::nvme::{NvmePlace, Shares};
use crate::daemon::inventory::{Namespace, NvmeFacts};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{Before, NvmeProvision};

/// Queue pairs that a controller needs at least: the admin queue, and one for data (NVM Express Base 2.0, §8.26).
const MIN_QUEUES: u32 = 2;

/// A controller with who has what of it.
#[derive(Debug, Clone)]
pub struct NvmeView {
    /// The controller.
    pub controller: NvmeController,
    /// Leases of its parts.
    pub leases: Vec<Arc<NvmeLease>>,
}

impl NvmeView {
    /// The lease of a part.
    pub fn lease(&self, part: NvmePart) -> Option<&NvmeLease> {
        self.leases.iter().find(|lease| lease.key.part == part).map(AsRef::as_ref)
    }
}

/// Erases what nobody had before. `operation` is told how far it is; it is no erasing that could be called off: what a VM
/// is given is clean, or nobody's.
pub(super) fn erase_before_use(key: &NvmeKey, operation: &Underway) -> Result<(), String> {
    let found = NvmeControllers::read().map_err(|error| error.to_string())?;
    let controller = controller_of(&found, key)?;
    let device = controller.device.as_deref().unwrap_or_default();
    let operation = &operation.for_telling();
    match key.part {
        NvmePart::Namespace(nsid) => hostdev::nvme::clean_namespace(device, nsid, operation),
        NvmePart::Whole => {
            if let Some(reason) = unfit(&controller.function) {
                return Err(format!("NVMe controller {} cannot be lent any more: {reason}", key.controller));
            }
            hostdev::nvme::clean_controller(device, operation)
        }
        NvmePart::Secondary(_) => return Ok(()),
    }
    .map_err(|error| error.to_string())
}

/// Cleans what `lease` is about, which its VM has no more; gives the unique id of a namespace that is clean now. To a
/// secondary controller nothing but `own` may be attached. `operation` is told how far it is, and may be called off.
pub(super) fn clean(lease: &NvmeLease, own: &[u32], operation: &Underway) -> Result<Option<String>, String> {
    let key = &lease.key;
    if key.part == NvmePart::Whole {
        let taken_back = hostdev::nvme::take_controller_back(key.controller, operation);
        return taken_back.map(|()| None).map_err(|error| error.to_string());
    }
    let found = NvmeControllers::read().map_err(|error| error.to_string())?;
    let controller = controller_of(&found, key)?;
    let (Ok(facts), Some(device)) = (&controller.facts, &controller.device) else {
        return Err(format!("NVMe controller {} has no driver of the host", key.controller));
    };
    match key.part {
        NvmePart::Secondary(id) => clean_secondary(facts, device, (id, lease.address), own, operation).map(|()| None),
        NvmePart::Namespace(nsid) => {
            let namespace = facts.namespaces.iter().find(|namespace| namespace.nsid == nsid);
            let Some(namespace) = namespace.filter(|one| !is_another(one, lease)) else {
                // Its data went with it. What has its number now, or is there again later, is erased before anybody gets it.
                tracing::warn!(nvme = %key, "was deleted while it was lent");
                return Ok(None);
            };
            if !is_the_one(namespace, lease) {
                return Err(format!("namespace {nsid} of {device} does not say any more which one it is"));
            }
            let cleaned = hostdev::nvme::clean_namespace(device, nsid, operation);
            cleaned.map(|()| namespace.unique_id.clone()).map_err(|error| error.to_string())
        }
        NvmePart::Whole => unreachable!("done above"),
    }
}

/// Whether a namespace with the number of `lease` is the one that was lent, as far as that can be told.
pub(super) fn is_the_one(namespace: &Namespace, lease: &NvmeLease) -> bool {
    lease.unique_id.is_none() || lease.unique_id == namespace.unique_id
}

/// Whether it says that it is another one. One that says nothing may be the one that was lent.
fn is_another(namespace: &Namespace, lease: &NvmeLease) -> bool {
    namespace.unique_id.is_some() && !is_the_one(namespace, lease)
}

/// Detaches everything from a secondary controller and resets it: from that of this id, and this function as it was lent.
fn clean_secondary(
    facts: &NvmeFacts,
    device: &str,
    (id, address): (u16, Bdf),
    own: &[u32],
    operation: &Underway,
) -> Result<(), String> {
    let secondary = facts.secondaries.iter().find(|secondary| secondary.id == id);
    let detached = match secondary.and_then(|secondary| secondary.function.as_ref()) {
        Some(function) if function.address == address => {
            let place = NvmePlace { primary: device.to_owned(), controller: id, function: address };
            hostdev::nvme::disconnect(&place, operation)
        }
        // Its function is gone, or another: what a guest left in it went with it.
        _ => hostdev::nvme::detach_all_from(device, id),
    };
    let detached = detached.map_err(|error| error.to_string())?;
    match detached.into_iter().find(|nsid| !own.contains(nsid)) {
        None => Ok(()),
        Some(nsid) => Err(format!(
            "controller {id} of {device} had namespace {nsid} attached, which its guest was not given: it lets guests \
             attach what they want; give it to one tenant only"
        )),
    }
}

/// What each of so many secondary controllers gets, or why there cannot be so many.
fn shares(controller: &NvmeController, facts: &NvmeFacts, vfs: u32) -> Result<Shares, DeviceError> {
    let address = controller.function.address;
    let Some(resources) = facts.resources.filter(|_| facts.identity.supports.virtualization_management) else {
        return Err(DeviceError::NotPrimary(address));
    };
    let secondaries = u32::try_from(facts.secondaries.len()).unwrap_or(u32::MAX);
    let most =
        controller.total_vfs.min(secondaries).min(resources.queues.total / MIN_QUEUES).min(resources.interrupts.total);
    if vfs > most {
        return Err(DeviceError::TooManyVfs { address, vfs, most });
    }
    let share = |total: u32, max_each: u16| {
        let even = total.checked_div(vfs).unwrap_or(0);
        u16::try_from(even).unwrap_or(u16::MAX).min(max_each)
    };
    Ok(Shares {
        vfs: u16::try_from(vfs).unwrap_or(u16::MAX),
        queues: share(resources.queues.total, resources.queues.max_each),
        interrupts: share(resources.interrupts.total, resources.interrupts.max_each),
    })
}

impl NvmeDevices {
    /// Makes what is on record, and forgets it then: also what cannot be made, which is for the operator to see to.
    pub(super) async fn provision(&self, provision: &NvmeProvision) -> Result<(), String> {
        let done = self.make_secondaries(provision).await;
        crash::reach(Point::ProvisionDone);
        if let Err(error) = self.store.forget_provision(provision.controller).await {
            tracing::warn!(controller = %provision.controller, %error, "the next start makes the secondaries again");
        }
        done
    }

    async fn make_secondaries(&self, provision: &NvmeProvision) -> Result<(), String> {
        let NvmeProvision { controller: address, serial, vfs, queues, interrupts } = provision.clone();
        let shares = Shares { vfs, queues, interrupts };
        let found = read().await?;
        let key = NvmeKey { controller: address, serial, part: NvmePart::Whole };
        let device = controller_of(&found, &key)?.device.clone().unwrap_or_default();
        let work = move || hostdev::nvme::provision(&device, address, shares).map_err(|error| error.to_string());
        on_host_within(HOST_TIMEOUT, work).await
    }
}

/// Whether an operator who names a device of the host means this one.
pub(in super::super) fn is_named(lease: &NvmeLease, address: Bdf, nsid: u32) -> bool {
    match lease.key.part {
        NvmePart::Namespace(id) => lease.key.controller == address && id == nsid && nsid != 0,
        NvmePart::Secondary(_) => lease.address == address && nsid == 0 && lease.state != LeaseState::Free,
        NvmePart::Whole => lease.key.controller == address && nsid == 0,
    }
}

/// Whether the secondaries are so already.
fn is_provisioned(facts: &NvmeFacts, shares: Shares) -> bool {
    let online: Vec<_> = facts.secondaries.iter().filter(|secondary| secondary.is_online).collect();
    let as_wanted = |queues, interrupts| queues == shares.queues && interrupts == shares.interrupts;
    online.len() == usize::from(shares.vfs) && online.iter().all(|one| as_wanted(one.queues, one.interrupts))
}

impl Node {
    /// NVMe controllers and who has what of them. For operators.
    pub async fn list_nvme(&self, principal: &Principal) -> Result<Vec<NvmeView>, ServiceError> {
        require_operator(principal)?;
        let found = read().await.map_err(DeviceError::Unreadable)?;
        Ok(found.controllers.into_iter().map(|controller| self.nvme_view(controller)).collect())
    }

    fn nvme_view(&self, controller: NvmeController) -> NvmeView {
        let snapshot = self.store.snapshot();
        let serial = controller.facts.as_ref().ok().map(|facts| facts.identity.serial.clone());
        let is_of_it = |lease: &&Arc<NvmeLease>| {
            // One that does not answer keeps what it had.
            lease.key.controller == controller.function.address
                && serial.as_ref().is_none_or(|serial| lease.key.serial == *serial)
        };
        NvmeView { leases: snapshot.nvme_leases.values().filter(is_of_it).cloned().collect(), controller }
    }

    /// Makes secondary controllers of the NVMe controller at `address`. For operators.
    pub async fn provision_nvme(
        &self,
        principal: &Principal,
        address: Bdf,
        vfs: u32,
        terms: &Terms<NvmeView>,
    ) -> Result<NvmeView, ServiceError> {
        require_operator(principal)?;
        let _provisioning = self.devices.nvme().provisioning.write().await;
        let found = read().await.map_err(DeviceError::Unreadable)?;
        let controller = found.get(address).ok_or(DeviceError::NoSuchDevice(address))?;
        let facts = match &controller.facts {
            Ok(facts) => facts,
            Err(problem) => return Err(DeviceError::Nvme { address, reason: problem.clone() }.into()),
        };
        let shares = shares(controller, facts, vfs)?;
        if vfs > 0 && is_provisioned(facts, shares) {
            return Ok(self.nvme_view(controller.clone()));
        }
        if let Some(by) = facts.namespaces.iter().find_map(|namespace| namespace.uses.first()) {
            return Err(DeviceError::InUseByHost { address, by: by.clone() }.into());
        }
        let snapshot = self.store.snapshot();
        let held = snapshot.nvme_leases.values().find(|lease| {
            let is_held = !matches!(lease.state, LeaseState::Free | LeaseState::Quarantined { .. });
            lease.key == key_of(address, facts, lease.key.part) && is_held
        });
        if let Some((lease, holder)) = held.and_then(|lease| Some((lease, lease.state.holder()?))) {
            let vm = snapshot.vms.get(&holder.vm);
            let vm = vm.map_or_else(|| holder.vm.to_string(), |vm| format!("{}/{}", vm.tenant, vm.name));
            return Err(DeviceError::InUse { address, state: lease.state.name(), vm }.into());
        }
        if terms.validate_only {
            return Ok(self.nvme_view(controller.clone()));
        }
        tracing::info!(controller = %address, vfs, %principal, "secondary controllers asked for");
        self.begin_on_host(terms).tell(Step::new("making the secondary controllers"));
        // A repetition after a crash finds it so already, since the daemon's start has finished it.
        let Shares { vfs, queues, interrupts } = shares;
        let serial = facts.identity.serial.clone();
        let provision = NvmeProvision { controller: address, serial, vfs, queues, interrupts };
        self.store.put_provision(provision.clone()).await?;
        crash::reach(Point::ProvisionRecorded);
        let done = self.devices.nvme().provision(&provision).await;
        done.map_err(|reason| DeviceError::Nvme { address, reason })?;
        let found = read().await.map_err(DeviceError::Unreadable)?;
        let controller = found.get(address).ok_or(DeviceError::NoSuchDevice(address))?;
        Ok(self.nvme_view(controller.clone()))
    }

    /// Cleans a part of an NVMe controller that no VM has, and frees it; `None` if `address` and `nsid` name none.
    /// For operators; the caller has seen to that.
    pub(in super::super) async fn release_nvme(
        &self,
        address: Bdf,
        nsid: u32,
        terms: &Terms<Released>,
    ) -> Result<Option<NvmeLease>, ServiceError> {
        let snapshot = self.store.snapshot();
        if let Some(Before::Lease { generation, .. }) = terms.left()
            && let Some(lease) = snapshot.nvme_leases.values().find(|lease| match lease.key.part {
                NvmePart::Namespace(id) => lease.key.controller == address && id == nsid,
                NvmePart::Secondary(_) | NvmePart::Whole => lease.address == address && nsid == 0,
            })
            && (lease.state == LeaseState::Free && lease.generation != *generation)
        {
            // An attempt that was cut off had done it, or the daemon's start did.
            return Ok(Some(NvmeLease::clone(lease)));
        }
        let named = snapshot.nvme_leases.values().find(|lease| is_named(lease, address, nsid));
        let Some(lease) = named else {
            let found = read().await.map_err(DeviceError::Unreadable)?;
            let facts = found.controllers.iter().filter_map(|one| one.facts.as_ref().ok());
            let mut functions = facts.flat_map(|facts| &facts.secondaries).filter_map(|one| one.function.as_ref());
            let is_there = found.get(address).is_some() || functions.any(|function| function.address == address);
            return if is_there { Err(DeviceError::NotHeld(address).into()) } else { Ok(None) };
        };
        let Some(holder) = lease.state.holder() else { return Err(DeviceError::NotHeld(address).into()) };
        let vm = snapshot.vms.get(&holder.vm).map(|vm| format!("{}/{}", vm.tenant, vm.name));
        let state = lease.state.name();
        match (&lease.state, vm) {
            (LeaseState::Quarantined { .. }, _) => {}
            (LeaseState::Releasing(_), vm) => {
                return Err(DeviceError::InUse { address, state, vm: vm.unwrap_or_default() }.into());
            }
            (_, Some(vm)) => return Err(DeviceError::Kept { address, nsid, vm }.into()),
            (_, None) => {}
        }
        let what = format!("the lease of {}", lease.key);
        terms.require_etag(&what, || Some(lease_etag(lease)))?;
        if terms.validate_only {
            return Ok(Some(NvmeLease::clone(lease)));
        }
        let operation = self.begin(terms, None, Before::Lease { address, generation: lease.generation }).await?;
        Ok(Some(self.devices.nvme().clean(NvmeLease::clone(lease), &operation).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::inventory::nvme_samples;

    #[test]
    fn deals_resources_out_evenly_within_what_each_may_have() {
        let controller = nvme_samples::primary(&[]).controllers.remove(0);
        let facts = controller.facts.clone().unwrap();
        assert_eq!(shares(&controller, &facts, 2).unwrap(), Shares { vfs: 2, queues: 2, interrupts: 1 });
        let error = shares(&controller, &facts, 3).unwrap_err().to_string();
        assert!(error.contains("3 virtual functions, at most 2"), "{error}");
        assert!(is_provisioned(&facts, Shares { vfs: 2, queues: 2, interrupts: 1 }));
        assert!(!is_provisioned(&facts, Shares { vfs: 1, queues: 2, interrupts: 1 }));
        let mut none = facts;
        none.identity.supports.virtualization_management = false;
        assert!(matches!(shares(&controller, &none, 1), Err(DeviceError::NotPrimary(_))));
    }

    #[test]
    fn a_namespace_is_the_one_that_was_lent_unless_it_says_otherwise() {
        let namespace = nvme_samples::primary(&[64]).controllers.remove(0).facts.unwrap().namespaces.remove(1);
        let key = NvmeKey { controller: "0000:02:00.0".parse().unwrap(), serial: "LAB".into(), part: NvmePart::Whole };
        let lent = |unique_id: Option<&str>| NvmeLease {
            unique_id: unique_id.map(str::to_owned),
            ..NvmeLease::unheld(key.clone(), key.controller)
        };
        assert!(is_the_one(&namespace, &lent(Some("eui64:0000000000000002"))));
        assert!(is_the_one(&namespace, &lent(None)), "on record from before that was asked");
        let another = lent(Some("eui64:0000000000000003"));
        assert!(!is_the_one(&namespace, &another) && is_another(&namespace, &another));
        let silent = Namespace { unique_id: None, ..namespace };
        let lent = lent(Some("eui64:0000000000000002"));
        assert!(!is_the_one(&silent, &lent) && !is_another(&silent, &lent), "neither is shown");
    }
}
