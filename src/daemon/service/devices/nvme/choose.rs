//! Which namespaces and controllers an NVMe device could get, before policy is asked and after; pure. Key functions:
//! [`offer`], [`free_secondaries`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::DevicesError;
use crate::daemon::inventory::{Namespace, NvmeController, NvmeControllers, NvmeFacts, Secondary, VirtualFunction};
use crate::daemon::record::{LeaseState, NvmeKey, NvmeLease, NvmePart, VmRecord};
use crate::model::{
    Bdf, LastTenant, NvmeCandidate, NvmeControllerView, NvmeSpec, NvmeWish, SelectNvmeRequest, TenantId,
};

/// All leases, by what they are about.
pub(super) type Leases = BTreeMap<NvmeKey, Arc<NvmeLease>>;

/// What policy is asked, and what stands behind each candidate.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) request: SelectNvmeRequest,
    /// Free, as of now; in the order of the request's candidates.
    pub(super) candidates: Vec<NvmeLease>,
}

/// The key of a part of a controller.
pub(super) fn key_of(address: Bdf, facts: &NvmeFacts, part: NvmePart) -> NvmeKey {
    NvmeKey { controller: address, serial: facts.identity.serial.clone(), part }
}

/// The lease of that part, whether it was ever held or not; `address` is where it is reached now.
pub(super) fn lease_of(key: NvmeKey, address: Bdf, leases: &Leases) -> NvmeLease {
    let lease = leases.get(&key).map(|lease| NvmeLease::clone(lease));
    NvmeLease { address, ..lease.unwrap_or_else(|| NvmeLease::unheld(key, address)) }
}

/// Why a function cannot be lent, whoever asks; `None` if it can.
pub(super) fn unfit(function: &VirtualFunction) -> Option<&'static str> {
    if function.iommu_group.is_none() {
        return Some("it has no IOMMU group: switch the IOMMU on");
    }
    if function.obstacles().next().is_some() {
        return Some("its IOMMU group has another function that a host driver uses");
    }
    if function.reset_methods.is_empty() {
        return Some("it cannot be reset");
    }
    if function.msix_vectors == Some(0) {
        return Some("it has no MSI-X, the only kind of interrupt that a guest is given");
    }
    None
}

/// Secondary controllers that nobody has, that work, have nothing attached and can be lent; each with its function.
pub(super) fn free_secondaries<'a>(
    controller: &'a NvmeController,
    facts: &'a NvmeFacts,
    leases: &Leases,
) -> Vec<(&'a Secondary, &'a VirtualFunction)> {
    let is_free = |secondary: &Secondary| {
        let key = key_of(controller.function.address, facts, NvmePart::Secondary(secondary.id));
        let is_held = leases.get(&key).is_some_and(|lease| lease.state != LeaseState::Free);
        let has_namespace = facts.namespaces.iter().any(|namespace| namespace.controllers.contains(&secondary.id));
        secondary.is_online && !is_held && !has_namespace
    };
    let free = facts.secondaries.iter().filter(|secondary| is_free(secondary));
    let free = free.filter_map(|secondary| Some((secondary, secondary.function.as_ref()?)));
    free.filter(|(_, function)| function.driver.as_deref().is_none_or(|driver| driver == super::VFIO_DRIVER))
        .filter(|(_, function)| unfit(function).is_none())
        .collect()
}

/// The question for policy about device `nvme` of `vm`.
pub(super) fn offer(
    found: &NvmeControllers,
    leases: &Leases,
    vm: &VmRecord,
    nvme: &NvmeSpec,
) -> Result<Offer, DevicesError> {
    let mut controllers = Vec::new();
    let mut shown = Vec::new();
    let mut candidates = Vec::new();
    for controller in &found.controllers {
        let Ok(facts) = &controller.facts else { continue };
        let of_it = match nvme.wish {
            NvmeWish::Namespace { min_bytes } => namespaces(controller, facts, leases, min_bytes),
            NvmeWish::Controller => whole(controller, facts, leases).into_iter().collect(),
        };
        if of_it.is_empty() {
            continue;
        }
        let index = controllers.len();
        controllers.push(view(controller, facts, leases, &vm.tenant));
        for (lease, namespace) in of_it {
            let total = || facts.namespaces.iter().map(|namespace| namespace.size_bytes).sum::<u64>();
            shown.push(NvmeCandidate {
                controller: index,
                nsid: namespace.map_or(0, |namespace| namespace.nsid),
                size_bytes: namespace.map_or_else(total, |namespace| namespace.size_bytes),
                block_bytes: namespace.map_or(0, |namespace| namespace.block_bytes),
                last_tenant: match &lease.last_tenant {
                    None => LastTenant::Nobody,
                    Some(tenant) if *tenant == vm.tenant => LastTenant::Same,
                    Some(_) => LastTenant::Other,
                },
            });
            candidates.push(lease);
        }
    }
    if candidates.is_empty() {
        return Err(DevicesError(none_free(found, leases, nvme.wish)));
    }
    shown.truncate(SelectNvmeRequest::MAX_CANDIDATES);
    candidates.truncate(SelectNvmeRequest::MAX_CANDIDATES);
    // Bounded by the number of PCI slots.
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let request = SelectNvmeRequest {
        tenant: vm.tenant.clone(),
        vm: vm.name.clone(),
        vcpus: vm.spec.vcpus(),
        memory_mib: vm.spec.memory_mib(),
        disks: count(vm.spec.disks().len()),
        nics: count(vm.spec.nics().len()),
        device: nvme.id.clone(),
        wish: nvme.wish,
        controllers,
        candidates: shown,
    };
    Ok(Offer { request, candidates })
}

/// A candidate, with its namespace unless it is a whole controller.
type Found<'a> = (NvmeLease, Option<&'a Namespace>);

/// A namespace that is attached to a controller is somebody's: the host's, or a VM's.
fn is_pooled(namespace: &Namespace) -> bool {
    // Metadata beside the blocks is not shown to be erased by reading the blocks.
    namespace.controllers.is_empty() && namespace.uses.is_empty() && namespace.metadata_bytes == 0
}

fn namespaces<'a>(
    controller: &'a NvmeController,
    facts: &'a NvmeFacts,
    leases: &Leases,
    min_bytes: u64,
) -> Vec<Found<'a>> {
    if free_secondaries(controller, facts, leases).is_empty() {
        return Vec::new();
    }
    let address = controller.function.address;
    let fitting = facts.namespaces.iter().filter(|one| is_pooled(one) && one.size_bytes >= min_bytes);
    let fitting = fitting.map(|namespace| {
        let key = key_of(address, facts, NvmePart::Namespace(namespace.nsid));
        (lease_of(key, address, leases).of_device(namespace.unique_id.clone()), Some(namespace))
    });
    fitting.filter(|(lease, _)| lease.state == LeaseState::Free).collect()
}

fn whole<'a>(controller: &'a NvmeController, facts: &'a NvmeFacts, leases: &Leases) -> Option<Found<'a>> {
    let address = controller.function.address;
    let of_it = |lease: &&Arc<NvmeLease>| lease.key.controller == address && lease.state != LeaseState::Free;
    let is_used = facts.namespaces.iter().any(|namespace| !namespace.uses.is_empty());
    let has_vfs = controller.num_vfs > 0;
    if is_used || has_vfs || unfit(&controller.function).is_some() || leases.values().any(|lease| of_it(&lease)) {
        return None;
    }
    Some((lease_of(key_of(address, facts, NvmePart::Whole), address, leases), None))
}

fn view(controller: &NvmeController, facts: &NvmeFacts, leases: &Leases, tenant: &TenantId) -> NvmeControllerView {
    let address = controller.function.address;
    let is_data = |lease: &NvmeLease| {
        lease.key.controller == address && matches!(lease.key.part, NvmePart::Namespace(_) | NvmePart::Whole)
    };
    let of_it = leases.values().filter(|lease| is_data(lease));
    let tenants: Vec<_> = of_it.filter_map(|lease| Some(&lease.state.holder()?.tenant)).collect();
    let others: HashSet<_> = tenants.iter().filter(|other| **other != tenant).collect();
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    NvmeControllerView {
        address,
        serial: facts.identity.serial.clone(),
        model: facts.identity.model.clone(),
        numa_node: controller.numa_node,
        root: controller.root_port,
        wear_percent: facts.wear_percent,
        online: count(facts.secondaries.iter().filter(|secondary| secondary.is_online).count()),
        free: count(free_secondaries(controller, facts, leases).len()),
        own: count(tenants.iter().filter(|one| **one == tenant).count()),
        other_tenants: count(others.len()),
    }
}

/// Says how many there are, not whose: the text goes to a tenant.
fn none_free(found: &NvmeControllers, leases: &Leases, wish: NvmeWish) -> String {
    const MORE: &str = "an operator sees more with `ostler host devices`";
    let known: Vec<_> = found.controllers.iter().filter_map(|one| Some((one, one.facts.as_ref().ok()?))).collect();
    let NvmeWish::Namespace { min_bytes } = wish else {
        let total = found.controllers.len();
        let why = reasons(found.controllers.iter().map(|one| &one.function));
        return format!(
            "no NVMe controller can be given whole: of {total}, each is taken, used by the host, has virtual functions, \
             or cannot be lent{why}; {MORE}"
        );
    };
    let online: usize =
        known.iter().map(|(_, facts)| facts.secondaries.iter().filter(|one| one.is_online).count()).sum();
    if online == 0 {
        return "this node has no secondary NVMe controller that is online; an operator makes some with `ostler host \
                nvme provision`"
            .to_owned();
    }
    let free: usize = known.iter().map(|(one, facts)| free_secondaries(one, facts, leases).len()).sum();
    if free == 0 {
        let secondaries = known.iter().flat_map(|(_, facts)| &facts.secondaries).filter(|one| one.is_online);
        let why = reasons(secondaries.filter_map(|one| one.function.as_ref()));
        return format!("no secondary NVMe controller is free: all {online} are taken or cannot be lent{why}; {MORE}");
    }
    let all = || known.iter().flat_map(|(_, facts)| &facts.namespaces);
    let largest = all().map(|namespace| namespace.size_bytes).max().unwrap_or(0);
    if largest < min_bytes {
        return format!("no NVMe namespace of this node holds {min_bytes} bytes: the largest holds {largest}");
    }
    let fitting = all().filter(|namespace| namespace.size_bytes >= min_bytes).count();
    format!(
        "no NVMe namespace of at least {min_bytes} bytes is free: all {fitting} are taken, the host's, or on controllers \
         without a free secondary; {MORE}"
    )
}

/// Why some of them cannot be lent, in brackets; nothing if all can.
fn reasons<'a>(functions: impl Iterator<Item = &'a VirtualFunction>) -> String {
    let reasons: Vec<_> = functions.filter_map(unfit).collect::<BTreeSet<_>>().into_iter().collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::inventory::nvme_samples;
    use crate::daemon::record::{LeaseEvent, NvmeHolder, samples};
    use crate::model::VmId;

    fn spec(wish: NvmeWish) -> NvmeSpec {
        NvmeSpec { id: "data".parse().unwrap(), wish }
    }

    fn of_size(mib: u64) -> NvmeSpec {
        spec(NvmeWish::Namespace { min_bytes: mib << 20 })
    }

    fn held(tenant: &str, part: NvmePart) -> (NvmeKey, Arc<NvmeLease>) {
        let controller = Bdf::new(0, 2, 0, 0).unwrap();
        let key = NvmeKey { controller, serial: "LAB".into(), part };
        let holder = NvmeHolder { vm: VmId::new(), tenant: tenant.parse().unwrap(), device: "data".parse().unwrap() };
        let lease = NvmeLease::unheld(key.clone(), controller).after(LeaseEvent::Claim(holder)).unwrap();
        (key, Arc::new(lease))
    }

    fn offered(found: &NvmeControllers, leases: &Leases, nvme: &NvmeSpec) -> Result<Vec<(u32, u64)>, String> {
        let vm = samples::running("acme", "web");
        let offer = offer(found, leases, &vm, nvme).map_err(|error| error.to_string())?;
        assert_eq!(offer.request.candidates.len(), offer.candidates.len());
        Ok(offer.request.candidates.iter().map(|one| (one.nsid, one.size_bytes >> 20)).collect())
    }

    #[test]
    fn offers_namespaces_that_are_nobodys_and_large_enough() {
        let mut found = nvme_samples::primary(&[16, 64, 64]);
        assert_eq!(offered(&found, &Leases::new(), &of_size(16)), Ok(vec![(2, 16), (3, 64), (4, 64)]));
        assert_eq!(offered(&found, &Leases::new(), &of_size(17)), Ok(vec![(3, 64), (4, 64)]));
        let leases = Leases::from([held("globex", NvmePart::Namespace(3))]);
        assert_eq!(offered(&found, &leases, &of_size(17)), Ok(vec![(4, 64)]));
        let facts = found.controllers[0].facts.as_mut().unwrap();
        facts.namespaces[3].metadata_bytes = 8;
        let error = offered(&found, &leases, &of_size(17)).unwrap_err();
        assert!(error.contains("all 3 are taken, the host's") && !error.contains("globex"), "{error}");
        let error = offered(&found, &leases, &of_size(300)).unwrap_err();
        assert!(error.contains(&format!("holds {} bytes: the largest holds {}", 300 << 20, 256 << 20)), "{error}");
    }

    #[test]
    fn a_namespace_that_was_made_anew_counts_as_one_that_nobody_had() {
        let mut found = nvme_samples::primary(&[64]);
        let (key, lease) = held("acme", NvmePart::Namespace(2));
        let free = lease.after(LeaseEvent::Release).unwrap().after(LeaseEvent::Cleaned).unwrap();
        let known = |unique_id: &str| {
            let lease = NvmeLease { unique_id: Some(unique_id.to_owned()), ..free.clone() };
            Leases::from([(key.clone(), Arc::new(lease))])
        };
        let seen = |found: &NvmeControllers, leases: &Leases| {
            let mut offer = offer(found, leases, &samples::running("acme", "web"), &of_size(1)).unwrap();
            let lease = offer.candidates.pop().unwrap();
            (offer.request.candidates[0].last_tenant, lease.last_tenant.is_some(), lease.unique_id)
        };
        let present = "eui64:0000000000000002";
        assert_eq!(seen(&found, &known(present)), (LastTenant::Same, true, Some(present.into())));
        assert_eq!(seen(&found, &known("eui64:0000000000000009")), (LastTenant::Nobody, false, Some(present.into())));
        // Nobody can tell.
        found.controllers[0].facts.as_mut().unwrap().namespaces[1].unique_id = None;
        assert_eq!(seen(&found, &known(present)), (LastTenant::Nobody, false, None));
    }

    #[test]
    fn a_namespace_needs_a_secondary_that_is_free_empty_and_can_be_lent() {
        let mut found = nvme_samples::primary(&[64]);
        let leases = Leases::from([held("globex", NvmePart::Secondary(1))]);
        assert_eq!(offered(&found, &leases, &of_size(1)), Ok(vec![(2, 64)]));
        let facts = found.controllers[0].facts.as_mut().unwrap();
        // The host's own namespace is attached to it as well: its guest would see it.
        facts.namespaces[0].controllers = vec![0, 2];
        let error = offered(&found, &leases, &of_size(1)).unwrap_err();
        assert!(error.contains("no secondary NVMe controller is free: all 2"), "{error}");
        let facts = found.controllers[0].facts.as_mut().unwrap();
        facts.namespaces[0].controllers = vec![0];
        facts.secondaries[1].function.as_mut().unwrap().reset_methods.clear();
        let error = offered(&found, &leases, &of_size(1)).unwrap_err();
        assert!(error.contains("all 2 are taken or cannot be lent (it cannot be reset); "), "{error}");
        let facts = found.controllers[0].facts.as_mut().unwrap();
        facts.secondaries.iter_mut().for_each(|secondary| secondary.is_online = false);
        assert!(offered(&found, &leases, &of_size(1)).unwrap_err().contains("ostler host nvme provision"));
    }

    #[test]
    fn a_controller_goes_whole_only_if_nobody_has_anything_of_it() {
        let mut found = nvme_samples::primary(&[64]);
        let nvme = spec(NvmeWish::Controller);
        assert!(offered(&found, &Leases::new(), &nvme).unwrap_err().contains("has virtual functions"));
        found.controllers[0].num_vfs = 0;
        assert_eq!(offered(&found, &Leases::new(), &nvme), Ok(vec![(0, 320)]));
        let leases = Leases::from([held("globex", NvmePart::Namespace(2))]);
        assert!(offered(&found, &leases, &nvme).is_err());
        found.controllers[0].facts.as_mut().unwrap().namespaces[0].uses = vec!["nvme0n1 is mounted at /".into()];
        assert!(offered(&found, &Leases::new(), &nvme).is_err());
    }

    #[test]
    fn tells_policy_who_shares_the_controller_without_names() {
        let found = nvme_samples::primary(&[64, 64, 64, 64]);
        let parts = [("acme", 2), ("globex", 3), ("globex", 4)];
        let mut leases = Leases::from(parts.map(|(tenant, nsid)| held(tenant, NvmePart::Namespace(nsid))));
        leases.extend([held("globex", NvmePart::Secondary(1))]);
        let offer = offer(&found, &leases, &samples::running("acme", "web"), &of_size(1)).unwrap();
        let view = &offer.request.controllers[0];
        assert_eq!((view.online, view.free, view.own, view.other_tenants), (2, 1, 1, 1));
        assert_eq!((view.wear_percent, view.serial.as_str()), (Some(3), "LAB"));
    }
}
