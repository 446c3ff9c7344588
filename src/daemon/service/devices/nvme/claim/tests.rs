//! Many claims of namespaces and secondary controllers: see `lending_model`.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::daemon::inventory::{NvmeControllers, nvme_samples};
use crate::daemon::record::NvmeKey;
use crate::daemon::service::Node;
use crate::daemon::service::devices::lending_model::{self, CASES, Grants, Lent, Owners, TENANTS};
use crate::daemon::store::Found;
use crate::model::NvmeWish;

/// In MiB, from number 2 on. There are two secondary controllers.
const NAMESPACES: [u64; 4] = [16; 4];
const FIRST: u32 = 2;

/// What a tenant's VM was offered, and it was granted.
#[derive(Clone, Default)]
struct Seen {
    data: Vec<NvmeLease>,
    secondaries: Vec<NvmeLease>,
}

struct Parts {
    devices: Arc<NvmeDevices>,
    host: NvmeControllers,
    nvme: NvmeSpec,
    /// By tenant.
    seen: Vec<Seen>,
}

impl Lent for Parts {
    type Key = NvmeKey;
    type Holder = NvmeHolder;

    fn of(node: &Node) -> Self {
        let nvme = NvmeSpec { id: "data".parse().unwrap(), wish: NvmeWish::Namespace { min_bytes: 1 } };
        let (devices, host) = (Arc::clone(node.devices.nvme()), nvme_samples::primary(&NAMESPACES));
        Self { devices, host, nvme, seen: vec![Seen::default(); TENANTS] }
    }

    fn leases(&self) -> Vec<NvmeLease> {
        self.devices.store.snapshot().nvme_leases.values().map(|lease| NvmeLease::clone(lease)).collect()
    }

    fn found(found: Found) -> Vec<NvmeLease> {
        found.nvme_leases
    }

    async fn advance(&self, lease: &NvmeLease, event: LeaseEvent<NvmeHolder>) -> Result<NvmeLease, String> {
        self.devices.advance(lease, event).await
    }

    /// Controllers to reach namespaces by are everybody's.
    fn is_granted(grants: u8, key: &NvmeKey) -> bool {
        match key.part {
            NvmePart::Namespace(nsid) => grants & 1 << (nsid - FIRST) != 0,
            NvmePart::Secondary(_) => true,
            NvmePart::Whole => false,
        }
    }

    /// No namespace is offered without a controller to reach it by.
    fn look(&mut self, tenant: usize, vm: &VmRecord, grants: u8, owners: &Owners<NvmeKey>) {
        let leases = &self.devices.store.snapshot().nvme_leases;
        let controller = &self.host.controllers[0];
        let facts = controller.facts.as_ref().unwrap();
        let key = |part| key_of(controller.function.address, facts, part);
        let is_free = |key: &NvmeKey| !owners.contains_key(key);
        let keys = |leases: &[NvmeLease]| leases.iter().map(|lease| lease.key.clone()).collect::<Vec<_>>();

        let secondary = |id| key(NvmePart::Secondary(id));
        let free = choose::free_secondaries(controller, facts, leases);
        let secondaries = free.iter().map(|(one, function)| lease_of(secondary(one.id), function.address, leases));
        let secondaries: Vec<_> = secondaries.collect();
        assert_eq!(keys(&secondaries), [1, 2].map(secondary).into_iter().filter(is_free).collect::<Vec<_>>());

        let offer = choose::offer(&self.host, leases, vm, &self.nvme);
        let candidates = offer.map_or_else(|_none| Vec::new(), |offer| offer.candidates);
        let namespaces = (FIRST..).take(NAMESPACES.len()).map(|nsid| key(NvmePart::Namespace(nsid)));
        let reachable = namespaces.filter(|key| is_free(key) && !secondaries.is_empty());
        assert_eq!(keys(&candidates), reachable.collect::<Vec<_>>());
        let data = candidates.into_iter().filter(|candidate| Self::is_granted(grants, &candidate.key)).collect();
        self.seen[tenant] = Seen { data, secondaries };
    }

    /// A namespace first, and then a controller.
    fn take(&mut self, tenant: usize, vm: &VmRecord) -> impl Future<Output = Option<NvmeLease>> + Send + 'static {
        let has_data = self.devices.own(vm, &self.nvme).is_ok_and(|own| own.is_some());
        let Seen { data, secondaries } = std::mem::take(&mut self.seen[tenant]);
        let chosen = if has_data { secondaries } else { data };
        let (devices, vm, nvme) = (Arc::clone(&self.devices), vm.clone(), self.nvme.clone());
        async move { devices.take_first(chosen.iter(), &vm, &nvme).await.unwrap() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn of_many_requests_none_gets_what_another_has_or_what_it_was_not_granted(
        grants in any::<Grants>(),
        requests in lending_model::requests(),
    ) {
        lending_model::run::<Parts>(grants, requests);
    }
}
