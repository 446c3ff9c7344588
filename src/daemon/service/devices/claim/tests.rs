//! Many claims of virtual functions: see `lending_model`.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::daemon::inventory::device_samples;
use crate::daemon::service::Node;
use crate::daemon::service::devices::lending_model::{self, CASES, Grants, Lent, Owners, TENANTS};
use crate::daemon::store::Found;
use crate::model::MacAddr;

const FUNCTIONS: u16 = 6;

struct Functions {
    host: Arc<HostDevices>,
    devices: Devices,
    /// By tenant.
    seen: Vec<Vec<Candidate>>,
    /// Addresses given so far.
    count: u16,
}

impl Lent for Functions {
    type Key = VfKey;
    type Holder = Holder;

    fn of(node: &Node) -> Self {
        let (host, devices) = (Arc::clone(&node.devices), device_samples::card(FUNCTIONS));
        Self { host, devices, seen: vec![Vec::new(); TENANTS], count: 0 }
    }

    fn leases(&self) -> Vec<VfLease> {
        self.host.store.snapshot().leases.values().map(|lease| VfLease::clone(lease)).collect()
    }

    fn found(found: Found) -> Vec<VfLease> {
        found.leases
    }

    async fn advance(&self, lease: &VfLease, event: LeaseEvent) -> Result<VfLease, String> {
        self.host.advance(lease, event).await
    }

    fn is_granted(grants: u8, key: &VfKey) -> bool {
        grants & 1 << key.index != 0
    }

    fn look(&mut self, tenant: usize, vm: &VmRecord, grants: u8, owners: &Owners<VfKey>) {
        let leases = &self.host.store.snapshot().leases;
        let nic = "vf".parse().unwrap();
        let offer = choose::offer(&self.devices, leases, vm, &nic, VfWish::default());
        let candidates = offer.map_or_else(|_none| Vec::new(), |offer| offer.candidates);
        let offered: Vec<_> = candidates.iter().map(|candidate| candidate.lease.key).collect();
        let all = self.devices.vfs().filter_map(|(pf, vf)| key_of(pf, vf));
        assert_eq!(offered, all.filter(|key| !owners.contains_key(key)).collect::<Vec<_>>());
        let is_granted = |candidate: &Candidate| Self::is_granted(grants, &candidate.lease.key);
        self.seen[tenant] = candidates.into_iter().filter(is_granted).collect();
    }

    fn take(&mut self, tenant: usize, vm: &VmRecord) -> impl Future<Output = Option<VfLease>> + Send + 'static {
        self.count += 1;
        let [high, low] = self.count.to_be_bytes();
        let holder = Holder {
            vm: vm.uid,
            tenant: vm.tenant.clone(),
            nic: "vf".parse().unwrap(),
            mac: MacAddr([2, 0xaa, 0, 0, high, low]),
            original: VfConfig::default(),
        };
        let (host, devices) = (Arc::clone(&self.host), self.devices.clone());
        let candidates = std::mem::take(&mut self.seen[tenant]);
        async move {
            for candidate in candidates {
                let taken = host.take(&candidate, holder.clone(), &devices).await.unwrap();
                if taken.is_some() {
                    return taken;
                }
            }
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn of_many_requests_none_gets_what_another_has_or_what_it_was_not_granted(
        grants in any::<Grants>(),
        requests in lending_model::requests(),
    ) {
        lending_model::run::<Functions>(grants, requests);
    }
}
