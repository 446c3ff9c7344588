//! Which virtual functions a NIC could get, before policy is asked and after; pure. Key functions: [`offer`], [`unfit`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::DevicesError;
use crate::daemon::inventory::{Devices, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
use crate::daemon::record::{LeaseState, VfKey, VfLease, VmRecord};
use crate::model::{DeviceId, LastTenant, MacAddr, PfView, SelectVfRequest, VfCandidate, VfSettings, VfWish};
use crate::sys::devlink::EswitchMode;
use crate::sys::rtnl::{LinkState, VfConfig, VfVlanConfig};

/// All leases, by virtual function.
pub(super) type Leases = BTreeMap<VfKey, Arc<VfLease>>;

/// What policy is asked, and what stands behind each candidate.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) request: SelectVfRequest,
    /// In the order of the request's candidates.
    pub(super) candidates: Vec<Candidate>,
}

/// A virtual function that is free and can be lent.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// Free, as of now.
    pub(super) lease: VfLease,
    pub(super) pf_interface: String,
    /// Its settings now, which it gets back.
    pub(super) original: VfConfig,
}

/// The key of a virtual function; `None` if its card's link cannot be asked.
pub(in crate::daemon::service) fn key_of(pf: &PhysicalFunction, vf: &VirtualFunction) -> Option<VfKey> {
    Some(VfKey { pf: pf.address, pf_mac: pf.link?.mac, index: vf.index })
}

/// Why a virtual function cannot be lent, whoever asks; `None` if it can.
pub(super) fn unfit(pf: &PhysicalFunction, vf: &VirtualFunction) -> Option<&'static str> {
    if pf.interface.is_none() || pf.link.is_none() || vf.config.is_none() {
        return Some("its card has no driver that shows its settings");
    }
    if vf.iommu_group.is_none() {
        return Some("it has no IOMMU group: switch the IOMMU on");
    }
    if vf.obstacles().next().is_some() {
        return Some("its IOMMU group has another function that a host driver uses");
    }
    if vf.is_used_by_host {
        return Some("the host uses its network interface");
    }
    if vf.interface.is_none() && vf.driver.as_deref().is_some_and(|driver| driver != VFIO_DRIVER) {
        return Some("a host driver has it, and shows no network interface here: a container may use it");
    }
    if vf.reset_methods.is_empty() {
        return Some("it cannot be reset");
    }
    if vf.msix_vectors == Some(0) {
        return Some("it has no MSI-X, the only kind of interrupt that a guest is given");
    }
    if pf.eswitch.is_some_and(|mode| mode != EswitchMode::Legacy) {
        return Some("its card is not in legacy mode: set it with `devlink dev eswitch set … mode legacy`");
    }
    None
}

/// The question for policy about NIC `nic` of `vm`, with all virtual functions that are free and can be lent.
pub(super) fn offer(
    devices: &Devices,
    leases: &Leases,
    vm: &VmRecord,
    nic: &DeviceId,
    wish: VfWish,
) -> Result<Offer, DevicesError> {
    let mut pfs = Vec::new();
    let mut candidates = Vec::new();
    let mut shown = Vec::new();
    for pf in &devices.pfs {
        let free: Vec<_> = pf.vfs.iter().filter_map(|vf| candidate(pf, vf, leases)).collect();
        if free.is_empty() {
            continue;
        }
        let index = pfs.len();
        pfs.push(view(pf, free.len(), leases, vm));
        for candidate in free {
            let last_tenant = match &candidate.lease.last_tenant {
                None => LastTenant::Nobody,
                Some(tenant) if *tenant == vm.tenant => LastTenant::Same,
                Some(_) => LastTenant::Other,
            };
            let VfLease { key, address, .. } = candidate.lease;
            shown.push(VfCandidate { address, pf: index, index: key.index, last_tenant });
            candidates.push(candidate);
        }
    }
    if candidates.is_empty() {
        return Err(none_free(devices, leases));
    }
    shown.truncate(SelectVfRequest::MAX_CANDIDATES);
    candidates.truncate(SelectVfRequest::MAX_CANDIDATES);
    // Bounded by the number of PCI slots.
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let request = SelectVfRequest {
        tenant: vm.tenant.clone(),
        vm: vm.name.clone(),
        vcpus: vm.spec.vcpus(),
        memory_mib: vm.spec.memory_mib(),
        disks: count(vm.spec.disks().len()),
        nics: count(vm.spec.nics().len()),
        nic: nic.clone(),
        wish,
        pfs,
        candidates: shown,
    };
    Ok(Offer { request, candidates })
}

fn candidate(pf: &PhysicalFunction, vf: &VirtualFunction, leases: &Leases) -> Option<Candidate> {
    let key = key_of(pf, vf)?;
    let lease = leases.get(&key).map_or_else(|| VfLease::unheld(key, vf.address), |lease| VfLease::clone(lease));
    if lease.state != LeaseState::Free || unfit(pf, vf).is_some() {
        return None;
    }
    // The address may be another since the last claim: VFs were made anew, or the bus was numbered again.
    let lease = VfLease { address: vf.address, ..lease };
    Some(Candidate { lease, pf_interface: pf.interface.clone()?, original: vf.config? })
}

fn view(pf: &PhysicalFunction, free: usize, leases: &Leases, vm: &VmRecord) -> PfView {
    let holders = pf.vfs.iter().filter_map(|vf| leases.get(&key_of(pf, vf)?)?.state.holder());
    let tenants: Vec<_> = holders.map(|holder| &holder.tenant).collect();
    let others: HashSet<_> = tenants.iter().filter(|tenant| **tenant != &vm.tenant).collect();
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    PfView {
        address: pf.address,
        name: pf.interface.clone().unwrap_or_default(),
        numa_node: pf.numa_node,
        root: pf.root_port,
        link_mbps: pf.link.filter(|link| link.has_carrier).map(|link| link.speed_mbps.unwrap_or(0)),
        total_vfs: count(pf.vfs.len()),
        free_vfs: count(free),
        own_vfs: count(tenants.iter().filter(|tenant| **tenant == &vm.tenant).count()),
        other_tenants: count(others.len()),
    }
}

/// Says how many there are, not whose: the text goes to a tenant.
fn none_free(devices: &Devices, leases: &Leases) -> DevicesError {
    let total = devices.vfs().count();
    if total == 0 {
        let text = "this node has no SR-IOV virtual functions; an operator makes them by writing a number to \
                    sriov_numvfs of a network card";
        return DevicesError(text.into());
    }
    let reasons: Vec<_> = devices.vfs().filter_map(|(pf, vf)| unfit(pf, vf)).collect();
    let unfit = reasons.len();
    let reasons: Vec<_> = reasons.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    let is_held = |lease: &VfLease| lease.state != LeaseState::Free;
    let held =
        devices.vfs().filter(|(pf, vf)| key_of(pf, vf).and_then(|key| leases.get(&key)).is_some_and(|l| is_held(l)));
    let held = held.count();
    DevicesError(format!(
        "no SR-IOV virtual function is free: of {total}, {held} are taken and {unfit} cannot be lent{why}; an operator \
         sees more with `ostler host devices`"
    ))
}

/// What the virtual function is set to.
pub(super) fn wanted(settings: &VfSettings, mac: MacAddr) -> VfConfig {
    VfConfig {
        mac: mac.0,
        vlan: VfVlanConfig { id: settings.vlan.map_or(0, |vlan| vlan.number()), qos: 0, is_service_tag: false },
        min_tx_mbps: 0,
        max_tx_mbps: settings.max_tx_mbps.unwrap_or(0),
        checks_spoofing: settings.checks_spoofing,
        is_trusted: settings.is_trusted,
        link_state: LinkState::Auto,
    }
}

/// Whether somebody else on this host has the address: a card, a virtual function, or one that is about to.
pub(super) fn is_mac_taken(mac: MacAddr, own: VfKey, devices: &Devices, leases: &Leases) -> bool {
    let of_cards = devices.pfs.iter().filter_map(|pf| Some(pf.link?.mac));
    let of_vfs = devices.vfs().filter(|(pf, vf)| key_of(pf, vf) != Some(own));
    let of_vfs = of_vfs.filter_map(|(_, vf)| Some(MacAddr(vf.config?.mac)));
    let of_leases = leases.values().filter(|lease| lease.key != own);
    let of_leases = of_leases.filter_map(|lease| Some(lease.state.holder()?.mac));
    of_cards.chain(of_vfs).chain(of_leases).any(|taken| taken == mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::inventory::{GroupMember, device_samples};
    use crate::daemon::record::{LeaseEvent, lease_samples, samples};

    fn held_by(devices: &Devices, tenant: &str, index: usize) -> (VfKey, Arc<VfLease>) {
        let (pf, vf) = devices.vfs().nth(index).unwrap();
        let lease = VfLease::unheld(key_of(pf, vf).unwrap(), vf.address);
        (lease.key, Arc::new(lease.after(LeaseEvent::Claim(lease_samples::holder(tenant))).unwrap()))
    }

    fn offered(devices: &Devices, leases: &Leases) -> Result<Vec<u16>, String> {
        let vm = samples::running("acme", "web");
        let offer = offer(devices, leases, &vm, &"vf".parse().unwrap(), VfWish::default());
        let offer = offer.map_err(|error| error.to_string())?;
        assert_eq!(offer.request.candidates.len(), offer.candidates.len());
        Ok(offer.request.candidates.iter().map(|candidate| candidate.index).collect())
    }

    #[test]
    fn offers_what_is_free_and_can_be_lent_in_order() {
        let mut devices = device_samples::card(4);
        assert_eq!(offered(&devices, &Leases::new()), Ok(vec![0, 1, 2, 3]));
        let leases = Leases::from([held_by(&devices, "globex", 1)]);
        assert_eq!(offered(&devices, &leases), Ok(vec![0, 2, 3]));
        devices.pfs[0].vfs[0].reset_methods.clear();
        devices.pfs[0].vfs[2].is_used_by_host = true;
        assert_eq!(offered(&devices, &leases), Ok(vec![3]));
        devices.pfs[0].vfs[3].iommu_group = None;
        let error = offered(&devices, &leases).unwrap_err();
        assert!(
            error.contains("of 4, 1 are taken and 3 cannot be lent (it cannot be reset; it has no IOMMU"),
            "{error}"
        );
        assert!(!error.contains("globex"));
        assert!(offered(&device_samples::card(0), &leases).unwrap_err().contains("sriov_numvfs"));
    }

    #[test]
    fn a_quarantined_one_is_not_offered_and_a_replaced_card_starts_anew() {
        let mut devices = device_samples::card(1);
        let (key, lease) = held_by(&devices, "globex", 0);
        let lease = lease.after(LeaseEvent::Release).unwrap().after(LeaseEvent::Unclean("x".into())).unwrap();
        let leases = Leases::from([(key, Arc::new(lease))]);
        assert!(offered(&devices, &leases).is_err());
        devices.pfs[0].link.as_mut().unwrap().mac = MacAddr([0x52, 0x54, 0, 0, 0, 99]);
        assert_eq!(offered(&devices, &leases), Ok(vec![0]));
    }

    /// What a card of one function offers after `change`.
    fn offered_after(change: impl FnOnce(&mut VirtualFunction)) -> Result<Vec<u16>, String> {
        let mut devices = device_samples::card(1);
        change(&mut devices.pfs[0].vfs[0]);
        offered(&devices, &Leases::new())
    }

    /// Why it offers none.
    fn refused(change: impl FnOnce(&mut VirtualFunction)) -> String {
        offered_after(change).unwrap_err()
    }

    #[test]
    fn what_something_else_may_use_is_not_offered() {
        let netns = refused(|vf| vf.driver = Some("igbvf".into()));
        assert!(netns.contains("a container may use it"), "{netns}");
        let idle = offered_after(|vf| {
            vf.driver = Some("igbvf".into());
            vf.interface = Some("eth1".into());
        });
        assert_eq!(idle, Ok(vec![0]), "a host driver that nobody uses makes way");
        assert_eq!(offered_after(|vf| vf.driver = Some(VFIO_DRIVER.into())), Ok(vec![0]));
        // A member of its group, whatever that is: its card, which the host's driver has, too.
        let card = device_samples::card(1).pfs[0].address;
        let member =
            |driver: Option<&str>| GroupMember { address: card, driver: driver.map(str::to_owned), is_bridge: false };
        let shared = refused(|vf| vf.group_members.push(member(Some("igb"))));
        assert!(shared.contains("its IOMMU group has another function"), "{shared}");
        assert_eq!(offered_after(|vf| vf.group_members.push(member(None))), Ok(vec![0]));
        assert!(refused(|vf| vf.msix_vectors = Some(0)).contains("it has no MSI-X"));
        assert_eq!(offered_after(|vf| vf.msix_vectors = None), Ok(vec![0]), "what is not known is the vmm's to say");
        assert_eq!(refused(|vf| vf.config = None).matches("its card has no driver").count(), 1);
    }

    #[test]
    fn a_card_whose_functions_the_host_has_representors_of_is_not_lent() {
        let offered_in = |mode| {
            let mut devices = device_samples::card(1);
            devices.pfs[0].eswitch = mode;
            offered(&devices, &Leases::new())
        };
        assert_eq!([offered_in(None), offered_in(Some(EswitchMode::Legacy))], [Ok(vec![0]), Ok(vec![0])]);
        assert!(offered_in(Some(EswitchMode::Switchdev)).unwrap_err().contains("not in legacy mode"));
    }

    #[test]
    fn tells_policy_who_shares_the_card_without_names() {
        let devices = device_samples::card(5);
        let leases =
            [("acme", 0), ("globex", 1), ("globex", 2)].map(|(tenant, index)| held_by(&devices, tenant, index));
        let vm = samples::running("acme", "web");
        let offer = offer(&devices, &Leases::from(leases), &vm, &"vf".parse().unwrap(), VfWish::default()).unwrap();
        let pf = &offer.request.pfs[0];
        assert_eq!((pf.total_vfs, pf.free_vfs, pf.own_vfs, pf.other_tenants), (5, 2, 1, 1));
        assert_eq!(pf.link_mbps, Some(1000));
    }

    #[test]
    fn an_address_is_given_once() {
        let mut devices = device_samples::card(2);
        let key = |index: usize| devices.vfs().nth(index).and_then(|(pf, vf)| key_of(pf, vf)).unwrap();
        let (first, second) = (key(0), key(1));
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        assert!(!is_mac_taken(mac, first, &devices, &Leases::new()));
        assert!(is_mac_taken(devices.pfs[0].link.unwrap().mac, first, &devices, &Leases::new()));
        devices.pfs[0].vfs[1].config.as_mut().unwrap().mac = mac.0;
        assert!(is_mac_taken(mac, first, &devices, &Leases::new()));
        assert!(!is_mac_taken(mac, second, &devices, &Leases::new()), "its own is no obstacle");
        let leases = Leases::from([held_by(&devices, "globex", 1)]);
        assert!(is_mac_taken(lease_samples::holder("globex").mac, first, &devices, &leases));
    }
}
