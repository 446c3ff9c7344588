//! Claims and releases of eight tenants in random order, at the store, beside what should come of them: whatever is looked at,
//! taken, given back and repaired when, a device has one owner at a time, and one that was granted it. Key trait: [`Lent`].

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use proptest::prelude::*;
use tokio::task::JoinSet;

use crate::daemon::inventory::Network;
use crate::daemon::record::{HeldFor, Lease, LeaseEvent, LeaseState, VmRecord, samples};
use crate::daemon::service::{Node, Places};
use crate::daemon::store::{Found, Store};
use crate::sys::program::Program;

pub(super) const TENANTS: usize = 8;
/// Together 10,000 requests.
pub(super) const CASES: u32 = 20;
const REQUESTS: usize = 500;

/// By tenant, a bit for each device.
pub(super) type Grants = [u8; TENANTS];
/// Who has what; what is in quarantine is still its last owner's.
pub(super) type Owners<K> = BTreeMap<K, usize>;

/// Devices that are lent.
pub(super) trait Lent: Sized {
    type Key: Clone + Ord + Debug + Display + Send + 'static;
    type Holder: HeldFor + Clone + PartialEq + Debug + Send + 'static;

    fn of(node: &Node) -> Self;
    /// All leases on record.
    fn leases(&self) -> Vec<Lease<Self::Key, Self::Holder>>;
    /// Those that a store was opened with.
    fn found(found: Found) -> Vec<Lease<Self::Key, Self::Holder>>;
    async fn advance(
        &self,
        lease: &Lease<Self::Key, Self::Holder>,
        event: LeaseEvent<Self::Holder>,
    ) -> Result<Lease<Self::Key, Self::Holder>, String>;
    /// Whether these grants of a tenant are about it.
    fn is_granted(grants: u8, key: &Self::Key) -> bool;
    /// Offers a tenant's VM what is free now, which is just what has no owner, and remembers what of it was granted.
    fn look(&mut self, tenant: usize, vm: &VmRecord, grants: u8, owners: &Owners<Self::Key>);
    /// Takes the first that it was granted when it looked the last time, if that is still to be had.
    fn take(
        &mut self,
        tenant: usize,
        vm: &VmRecord,
    ) -> impl Future<Output = Option<Lease<Self::Key, Self::Holder>>> + Send + 'static;
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    /// A tenant's VM is offered what is free now.
    Look(usize),
    /// It takes something of that, however long ago it looked.
    Take(usize),
    /// All that have looked take at once.
    Rush,
    /// Something that it holds is prepared, or goes to its process.
    Advance(usize),
    /// It gives something back, which is clean then, or is not.
    GiveBack(usize, bool),
    /// An operator has what is in quarantine released.
    Repair,
}

pub(super) fn requests() -> impl Strategy<Value = Vec<Request>> {
    let tenant = || 0..TENANTS;
    let request = prop_oneof![
        6 => tenant().prop_map(Request::Look),
        4 => tenant().prop_map(Request::Take),
        1 => Just(Request::Rush),
        3 => tenant().prop_map(Request::Advance),
        4 => (tenant(), prop::bool::weighted(0.9)).prop_map(|(tenant, is_clean)| Request::GiveBack(tenant, is_clean)),
        1 => Just(Request::Repair),
    ];
    proptest::collection::vec(request, REQUESTS)
}

/// The real leases beside what they should say.
struct World<L: Lent> {
    lent: L,
    vms: Vec<VmRecord>,
    grants: Grants,
    owners: Owners<L::Key>,
}

impl<L: Lent> World<L> {
    async fn perform(&mut self, request: Request) {
        match request {
            Request::Look(tenant) => self.lent.look(tenant, &self.vms[tenant], self.grants[tenant], &self.owners),
            Request::Take(tenant) => self.take([tenant]).await,
            Request::Rush => self.take(0..TENANTS).await,
            Request::Advance(tenant) => {
                let held = self.held_by(tenant);
                if let Some(lease) = held.iter().find(|lease| !matches!(lease.state, LeaseState::Attached(_))) {
                    let is_new = matches!(lease.state, LeaseState::Claimed(_));
                    let event = if is_new { LeaseEvent::Prepared } else { LeaseEvent::Attached };
                    self.lent.advance(lease, event).await.unwrap();
                }
            }
            Request::GiveBack(tenant, is_clean) => {
                let Some(lease) = self.held_by(tenant).pop() else { return };
                let releasing = self.lent.advance(&lease, LeaseEvent::Release).await.unwrap();
                // Two that release one lease: the second comes too late.
                assert!(self.lent.advance(&lease, LeaseEvent::Release).await.is_err());
                if is_clean {
                    self.lent.advance(&releasing, LeaseEvent::Cleaned).await.unwrap();
                    assert_eq!(self.owners.remove(&lease.key), Some(tenant));
                } else {
                    self.lent.advance(&releasing, LeaseEvent::Unclean("it cannot be reset".into())).await.unwrap();
                }
            }
            Request::Repair => {
                for lease in self.lent.leases() {
                    if matches!(lease.state, LeaseState::Quarantined { .. }) {
                        let releasing = self.lent.advance(&lease, LeaseEvent::Release).await.unwrap();
                        self.lent.advance(&releasing, LeaseEvent::Cleaned).await.unwrap();
                        self.owners.remove(&lease.key);
                    }
                }
            }
        }
    }

    fn held_by(&self, tenant: usize) -> Vec<Lease<L::Key, L::Holder>> {
        let is_held = |lease: &Lease<L::Key, L::Holder>| {
            !matches!(lease.state, LeaseState::Quarantined { .. })
                && lease.state.holder().is_some_and(|holder| holder.vm() == self.vms[tenant].uid)
        };
        self.lent.leases().into_iter().filter(is_held).collect()
    }

    async fn take(&mut self, tenants: impl IntoIterator<Item = usize>) {
        let mut taking = JoinSet::new();
        for tenant in tenants {
            let taken = self.lent.take(tenant, &self.vms[tenant]);
            taking.spawn(async move { (tenant, taken.await) });
        }
        while let Some(taken) = taking.join_next().await {
            if let (tenant, Some(lease)) = taken.unwrap() {
                let is_holder = |holder: &L::Holder| holder.vm() == self.vms[tenant].uid;
                assert!(matches!(&lease.state, LeaseState::Claimed(holder) if is_holder(holder)), "{lease:?}");
                assert_eq!(self.owners.insert(lease.key.clone(), tenant), None, "{} has two owners", lease.key);
            }
        }
    }

    fn check(&self) {
        for lease in self.lent.leases() {
            let owner = self.owners.get(&lease.key).copied();
            assert_eq!(lease.state.holder().map(HeldFor::vm), owner.map(|tenant| self.vms[tenant].uid));
            if let Some(tenant) = owner {
                assert!(L::is_granted(self.grants[tenant], &lease.key), "{} is outside of its grants", lease.key);
            }
        }
    }
}

/// Performs them one after the other, and looks after each.
pub(super) fn run<L: Lent>(grants: Grants, requests: Vec<Request>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run_all::<L>(grants, requests));
}

async fn run_all<L: Lent>(grants: Grants, requests: Vec<Request>) {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let (data, run, images) = (place("data"), place("run"), place("images"));
    for path in [&data, &run, &images] {
        std::fs::create_dir(path).unwrap();
    }
    let vmm = Program::open("/bin/false".as_ref()).unwrap();
    let places = Places { data, run, images, volumes: place("volumes"), vmm };
    let node = Node::open(&places, Network::default(), None).await.unwrap();
    let vms = (0..TENANTS).map(|number| samples::running(&format!("tenant{number}"), "web")).collect();
    let mut world = World { lent: L::of(&node), vms, grants, owners: Owners::new() };
    for request in requests {
        world.perform(request).await;
        world.check();
    }
    // A daemon that comes later finds the same.
    let known = world.lent.leases();
    node.close().await;
    drop((world, node));
    let (_store, found) = Store::open(&places.store()).unwrap();
    let mut found = L::found(found);
    found.sort_by(|one, other| one.key.cmp(&other.key));
    assert_eq!(found, known);
}
