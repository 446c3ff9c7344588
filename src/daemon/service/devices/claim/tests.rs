//! Claims and releases of eight tenants in random order, at the store: whatever is looked at, taken, given back and
//! repaired when, a function has one owner at a time, and one that was granted it.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::daemon::inventory::{Network, device_samples};
use crate::daemon::record::{LeaseState, samples};
use crate::daemon::service::{Node, Places};
use crate::daemon::store::Store;
use crate::model::MacAddr;
use crate::sys::program::Program;

const TENANTS: usize = 8;
const FUNCTIONS: u16 = 6;
/// Together 10,000 requests.
const CASES: u32 = 20;
const REQUESTS: usize = 500;

#[derive(Debug, Clone, Copy)]
enum Request {
    /// A tenant's VM is offered what is free now.
    Look(usize),
    /// It takes the first of that which it was granted, however long ago it looked.
    Take(usize),
    /// All that have looked take at once.
    Rush,
    /// A function that it holds is prepared, or goes to its process.
    Advance(usize),
    /// It gives one back, which is clean then, or is not.
    GiveBack(usize, bool),
    /// An operator has what is in quarantine released.
    Repair,
}

fn any_request() -> impl Strategy<Value = Request> {
    let tenant = || 0..TENANTS;
    prop_oneof![
        6 => tenant().prop_map(Request::Look),
        4 => tenant().prop_map(Request::Take),
        1 => Just(Request::Rush),
        3 => tenant().prop_map(Request::Advance),
        4 => (tenant(), prop::bool::weighted(0.9)).prop_map(|(tenant, is_clean)| Request::GiveBack(tenant, is_clean)),
        1 => Just(Request::Repair),
    ]
}

/// The real leases beside what they should say.
struct World {
    host: Arc<HostDevices>,
    devices: Devices,
    vms: Vec<VmRecord>,
    /// By tenant, a bit for each function.
    grants: [u8; TENANTS],
    seen: Vec<Vec<Candidate>>,
    /// Who has what; what is in quarantine is still its last owner's.
    owners: BTreeMap<VfKey, usize>,
    /// Addresses given so far.
    count: u16,
}

/// Takes the first of `candidates` that is still to be had; what that was.
async fn take_first(
    host: Arc<HostDevices>,
    devices: Devices,
    candidates: Vec<Candidate>,
    holder: Holder,
) -> Option<VfKey> {
    for candidate in candidates {
        if let Some(lease) = host.take(&candidate, holder.clone(), &devices).await.unwrap() {
            assert_eq!(lease.state, LeaseState::Claimed(holder));
            return Some(lease.key);
        }
    }
    None
}

impl World {
    fn new(host: Arc<HostDevices>, grants: [u8; TENANTS]) -> Self {
        let vms = (0..TENANTS).map(|number| samples::running(&format!("tenant{number}"), "web")).collect();
        let seen = vec![Vec::new(); TENANTS];
        let devices = device_samples::card(FUNCTIONS);
        Self { host, devices, vms, grants, seen, owners: BTreeMap::new(), count: 0 }
    }

    async fn perform(&mut self, request: Request) {
        match request {
            Request::Look(tenant) => self.look(tenant),
            Request::Take(tenant) => self.take([tenant]).await,
            Request::Rush => self.take(0..TENANTS).await,
            Request::Advance(tenant) => {
                let held = self.host.held_by(self.vms[tenant].uid);
                let event = |lease: &VfLease| match lease.state {
                    LeaseState::Claimed(_) => LeaseEvent::Prepared,
                    _ => LeaseEvent::Attached,
                };
                if let Some(lease) = held.first() {
                    self.host.advance(lease, event(lease)).await.unwrap();
                }
            }
            Request::GiveBack(tenant, is_clean) => {
                let Some(lease) = self.host.held_by(self.vms[tenant].uid).pop() else { return };
                let releasing = self.host.advance(&lease, LeaseEvent::Release).await.unwrap();
                // Two that release one lease: the second comes too late.
                assert!(self.host.advance(&lease, LeaseEvent::Release).await.is_err());
                if is_clean {
                    self.host.advance(&releasing, LeaseEvent::Cleaned).await.unwrap();
                    assert_eq!(self.owners.remove(&lease.key), Some(tenant));
                } else {
                    self.host.advance(&releasing, LeaseEvent::Unclean("it cannot be reset".into())).await.unwrap();
                }
            }
            Request::Repair => {
                for lease in self.host.store.snapshot().leases.values() {
                    if matches!(lease.state, LeaseState::Quarantined { .. }) {
                        let releasing = self.host.advance(lease, LeaseEvent::Release).await.unwrap();
                        self.host.advance(&releasing, LeaseEvent::Cleaned).await.unwrap();
                        self.owners.remove(&lease.key);
                    }
                }
            }
        }
    }

    /// What is offered is just what nobody has.
    fn look(&mut self, tenant: usize) {
        let leases = &self.host.store.snapshot().leases;
        let nic = "vf".parse().unwrap();
        let offer = choose::offer(&self.devices, leases, &self.vms[tenant], &nic, VfWish::default());
        let candidates = offer.map_or_else(|_none| Vec::new(), |offer| offer.candidates);
        let offered: Vec<_> = candidates.iter().map(|candidate| candidate.lease.key).collect();
        let all = self.devices.vfs().filter_map(|(pf, vf)| key_of(pf, vf));
        assert_eq!(offered, all.filter(|key| !self.owners.contains_key(key)).collect::<Vec<_>>());
        let is_granted = |candidate: &Candidate| self.grants[tenant] & 1 << candidate.lease.key.index != 0;
        self.seen[tenant] = candidates.into_iter().filter(is_granted).collect();
    }

    async fn take(&mut self, tenants: impl IntoIterator<Item = usize>) {
        let mut taking = JoinSet::new();
        for tenant in tenants {
            self.count += 1;
            let [high, low] = self.count.to_be_bytes();
            let vm = &self.vms[tenant];
            let holder = Holder {
                vm: vm.uid,
                tenant: vm.tenant.clone(),
                nic: "vf".parse().unwrap(),
                mac: MacAddr([2, 0xaa, 0, 0, high, low]),
                original: VfConfig::default(),
            };
            let candidates = std::mem::take(&mut self.seen[tenant]);
            let taken = take_first(Arc::clone(&self.host), self.devices.clone(), candidates, holder);
            taking.spawn(async move { (tenant, taken.await) });
        }
        while let Some(taken) = taking.join_next().await {
            if let (tenant, Some(key)) = taken.unwrap() {
                assert_eq!(self.owners.insert(key, tenant), None, "{key} has two owners");
            }
        }
    }

    fn check(&self) {
        for lease in self.host.store.snapshot().leases.values() {
            let owner = self.owners.get(&lease.key).copied();
            assert_eq!(lease.state.holder().map(|holder| holder.vm), owner.map(|tenant| self.vms[tenant].uid));
            if let Some(tenant) = owner {
                assert!(self.grants[tenant] & 1 << lease.key.index != 0, "{} is outside of its grants", lease.key);
            }
        }
    }
}

async fn run(grants: [u8; TENANTS], requests: Vec<Request>) {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let (data, run, images) = (place("data"), place("run"), place("images"));
    for path in [&data, &run, &images] {
        std::fs::create_dir(path).unwrap();
    }
    let vmm = Program::open("/bin/false".as_ref()).unwrap();
    let places = Places { data, run, images, volumes: place("volumes"), vmm };
    let node = Node::open(&places, Network::default(), None).await.unwrap();
    let mut world = World::new(Arc::clone(&node.devices), grants);
    for request in requests {
        world.perform(request).await;
        world.check();
    }
    // A daemon that comes later finds the same.
    let known: Vec<_> = node.store.snapshot().leases.values().map(|lease| VfLease::clone(lease)).collect();
    node.close().await;
    drop((world, node));
    let (_store, mut found) = Store::open(&places.store()).unwrap();
    found.leases.sort_by_key(|lease| lease.key);
    assert_eq!(found.leases, known);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn of_many_requests_none_gets_what_another_has_or_what_it_was_not_granted(
        grants in any::<[u8; TENANTS]>(),
        requests in proptest::collection::vec(any_request(), REQUESTS),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(grants, requests));
    }
}
