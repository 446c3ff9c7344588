//! Functions that several tenants want and give back in random order, one by one and all at once.

use std::collections::BTreeMap;
use std::thread;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::running::{devices, with_mac};
use super::*;
use crate::support::guest::linux;
use crate::support::holdings::holdings;

/// Requests that are made; several of them are of all VMs at once.
const REQUESTS: usize = 40;
const FUNCTIONS: usize = 2;
/// Whose they are, what they are called, and beginnings of addresses that their tenants' own plugins allow.
const VMS: [(&str, &str, &str); 3] = [("acme", "one", "02:aa"), ("acme", "two", "02:aa"), ("globex", "web", "02:bb")];

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Request {
    /// A function for this VM, with an address of the tenant's; two VMs may ask for one address.
    Attach(usize, u8),
    /// One outside of what its tenant is granted: an address, or a VLAN.
    Reach(usize, bool),
    Detach(usize),
    /// By all that have none, at once.
    Rush,
    /// By all that have one, at once.
    Leave,
    /// The daemon dies and comes back.
    Restart,
}

fn any_request() -> impl Strategy<Value = Request> {
    let vm = || 0..VMS.len();
    prop_oneof![
        6 => (vm(), 0u8..2).prop_map(|(vm, number)| Request::Attach(vm, number)),
        2 => (vm(), any::<bool>()).prop_map(|(vm, is_vlan)| Request::Reach(vm, is_vlan)),
        5 => vm().prop_map(Request::Detach),
        2 => Just(Request::Rush),
        1 => Just(Request::Leave),
        1 => Just(Request::Restart),
    ]
}

/// What the VMs should have: addresses, by their place in [`VMS`].
struct World {
    host: Host,
    card: Card,
    before: Vec<serde_json::Value>,
    pids: [u32; VMS.len()],
    has: BTreeMap<usize, String>,
}

/// The VLAN that globex' functions are in.
fn vlan_of(vm: usize) -> u32 {
    if VMS[vm].0 == "globex" { 100 } else { 0 }
}

fn mac_of(vm: usize, number: u8) -> String {
    format!("{}:00:00:00:{number:02x}", VMS[vm].2)
}

fn attach(caller: &Caller, vm: usize, mac: &str, vlan: u32) -> Result<(), String> {
    let attached = caller.attach(VMS[vm].1, with_mac(mac, vlan));
    attached.map(drop).map_err(|error| facts(&error).message)
}

fn detach(caller: &Caller, vm: usize) {
    // By force: these guests are not waited for.
    caller.detach(VMS[vm].1, "net1", None, true).unwrap();
}

impl World {
    fn caller(&self, vm: usize) -> Caller {
        self.host.tenant(VMS[vm].0)
    }

    fn perform(&mut self, request: Request) {
        match request {
            Request::Attach(vm, number) if !self.has.contains_key(&vm) => {
                let mac = mac_of(vm, number);
                let is_due = self.has.len() < FUNCTIONS && self.has.values().all(|taken| *taken != mac);
                let told = attach(&self.caller(vm), vm, &mac, vlan_of(vm));
                assert_eq!(told.is_ok(), is_due, "{told:?}");
                if told.is_ok() {
                    self.has.insert(vm, mac);
                }
            }
            Request::Reach(vm, is_vlan) if !self.has.contains_key(&vm) => {
                let foreign = mac_of(if vm == 2 { 0 } else { 2 }, 9);
                let other = if vm == 2 { 7 } else { 100 };
                let (mac, vlan) = if is_vlan { (mac_of(vm, 9), other) } else { (foreign, vlan_of(vm)) };
                let told = attach(&self.caller(vm), vm, &mac, vlan);
                let expected = if self.has.len() < FUNCTIONS { "not-allowed" } else { "is free" };
                assert!(told.clone().unwrap_err().contains(expected), "{told:?}");
            }
            Request::Detach(vm) if self.has.remove(&vm).is_some() => detach(&self.caller(vm), vm),
            Request::Rush => self.rush(),
            Request::Leave => {
                let leaving: Vec<_> = std::mem::take(&mut self.has).into_keys().collect();
                let world = &*self;
                thread::scope(|scope| {
                    leaving.iter().for_each(|vm| drop(scope.spawn(|| detach(&world.caller(*vm), *vm))))
                });
            }
            Request::Restart => {
                self.host.kill_daemon();
                self.host.start_daemon();
            }
            Request::Attach(..) | Request::Reach(..) | Request::Detach(_) => {}
        }
    }

    /// As many get one as there are.
    fn rush(&mut self) {
        let lacking: Vec<_> = (0..VMS.len()).filter(|vm| !self.has.contains_key(vm)).collect();
        let mac = |vm: usize| mac_of(vm, 16 + u8::try_from(vm).unwrap());
        let world = &*self;
        let told: Vec<_> = thread::scope(|scope| {
            let rush = |vm: usize| scope.spawn(move || attach(&world.caller(vm), vm, &mac(vm), vlan_of(vm)));
            let rushing: Vec<_> = lacking.iter().map(|vm| (*vm, rush(*vm))).collect();
            rushing.into_iter().map(|(vm, rush)| (vm, rush.join().unwrap())).collect()
        });
        let due = lacking.len().min(FUNCTIONS - self.has.len());
        assert_eq!(told.iter().filter(|(_, told)| told.is_ok()).count(), due, "{told:?}");
        self.has.extend(told.into_iter().filter(|(_, told)| told.is_ok()).map(|(vm, _)| (vm, mac(vm))));
    }

    /// Host, records and processes all say the same.
    fn check(&self) {
        let (leases, shown) = (leases(&self.host), self.card.shown());
        let mut owners = BTreeMap::new();
        for (index, lease) in leases.iter().enumerate() {
            let vf = self.card.vf(index as u64);
            if lease.state() != Lease::Attached {
                assert!(matches!(lease.state(), Lease::Free | Lease::Unspecified), "{lease:?}");
                assert_eq!((&shown[index], vf.join("driver").exists()), (&self.before[index], false));
                continue;
            }
            assert!(fs::read_link(vf.join("driver")).unwrap().ends_with("vfio-pci"));
            let address = vf.file_name().unwrap().to_str().unwrap();
            let has_it = |vm: &usize| {
                let found = self.caller(*vm).get(VMS[*vm].1).unwrap();
                found.uid == lease.vm_uid && found.nics.iter().any(|nic| nic.vf_address == address)
            };
            let vm = (0..VMS.len()).find(has_it).unwrap_or_else(|| panic!("nobody's: {lease:?}"));
            assert_eq!(lease.tenant, VMS[vm].0);
            assert_eq!(shown[index]["address"], self.has[&vm].as_str());
            let vlan = shown[index]["vlan_list"][0]["vlan"].as_u64().unwrap_or(0);
            assert_eq!(vlan, u64::from(vlan_of(vm)), "{}", shown[index]);
            assert_eq!(owners.insert(vm, index), None, "one NIC has two functions");
        }
        assert!(owners.keys().eq(self.has.keys()), "{owners:?} {:?}", self.has);
        for (vm, pid) in self.pids.iter().enumerate() {
            let found = self.caller(vm).get(VMS[vm].1).unwrap();
            assert_eq!(
                (found.state(), found.vmm_pid, devices(&found).len()),
                (State::Running, *pid, usize::from(self.has.contains_key(&vm)))
            );
            let open = holdings(*pid).descriptors.iter().filter(|name| name.contains("vfio-device")).count();
            assert_eq!(open, usize::from(self.has.contains_key(&vm)), "VM {}", VMS[vm].1);
        }
    }
}

#[test]
fn of_random_requests_no_function_has_two_owners_or_leaves_what_its_owner_is_granted() {
    const NAME: &str = "of_random_requests_no_function_has_two_owners_or_leaves_what_its_owner_is_granted";
    let Some(card) = Card::with_vfs(FUNCTIONS as u32) else { return assets::skip(NAME, "an SR-IOV network card") };
    let host = host();
    let sriov_net = assets::plugin("sriov-net");
    let own = |tenant: &str, settings: &[(&str, &str)]| {
        host.tenant(tenant).load(&format!("tenants/{tenant}/plugins/own"), &sriov_net, settings).unwrap();
    };
    own("acme", &[("macs", "02:aa")]);
    own("globex", &[("macs", "02:bb"), ("vlans", "100")]);
    let pids = VMS.map(|(tenant, vm, _)| {
        host.tenant(tenant).register(vm, linux()).unwrap();
        host.tenant(tenant).start(vm).unwrap().vmm_pid
    });
    let requests = proptest::collection::vec(any_request(), REQUESTS);
    let requests = requests.new_tree(&mut TestRunner::default()).unwrap().current();
    println!("{requests:?}");
    let mut world = World { before: card.shown(), host, card, pids, has: BTreeMap::new() };
    for (at, request) in requests.into_iter().enumerate() {
        println!("{at}: {request:?}, {:?} have one", world.has);
        world.perform(request);
        world.check();
    }
    world.perform(Request::Leave);
    world.check();
    assert_eq!(world.card.shown(), world.before);
    world.card.assert_unbound(FUNCTIONS as u64);
}
