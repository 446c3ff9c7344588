//! For tests of a policy, which run natively: settings from a list, and requests to change. Not in components.
//!
//! ```text
//! let limits: Limits = testing::read([("max-vcpus", "2")]).unwrap();
//! let request = AdmitRequest { vm: Vm { vcpus: 4, ..testing::vm("web") }, ..testing::admit() };
//! assert_eq!(limits.admit(&request), Ok(refuse("limit.vcpus", "…").into()));
//! ```

use std::collections::BTreeMap;

use crate::admit::AdmitRequest;
use crate::attach::{AttachRequest, Device};
use crate::detach::DetachRequest;
use crate::inventory::{Machine, State};
use crate::observe::{Batch, Event, Happening};
use crate::place::{self, NodeTable, Pages, PlaceRequest};
use crate::select_nvme::{self, Controller, NvmeTable, NvmeWish, SelectNvmeRequest};
use crate::select_vf::{self, Pf, SelectVfRequest, VfTable, VfWish};
use crate::{Invalid, Policy, Usage, Vm};

pub use crate::inventory::import::has;
pub use crate::memory::{remember, remembered};
pub use crate::subject::import::{labelled, with_images};

/// The policy with these settings, or everything that is wrong with them.
pub fn read<P: Policy>(settings: impl IntoIterator<Item = (&'static str, &'static str)>) -> Result<P, Vec<Invalid>> {
    crate::read(&settings.into_iter().collect::<BTreeMap<_, _>>())
}

/// A VM of one vCPU and 256 MiB, without devices.
pub fn vm(name: &str) -> Vm {
    Vm { name: name.into(), vcpus: 1, memory_mib: 256, disks: 0, nics: 0 }
}

/// A VM of one vCPU and 256 MiB, without devices, as an inventory shows it.
pub fn machine(name: &str, state: State) -> Machine {
    let (vcpus, memory_mib) = (1, 256);
    Machine { name: name.into(), state, vcpus, memory_mib, numa_node: None, disks: 0, nics: 0, vfs: 0, nvmes: 0 }
}

/// The tenant `acme` registers its first VM, `web`.
pub fn admit() -> AdmitRequest {
    AdmitRequest { tenant: "acme".into(), vm: vm("web"), in_use: Usage { vms: 0, vcpus: 0, memory_mib: 0 } }
}

/// `acme` attaches `device` to its only VM, `web`, which does not run.
pub fn attach(device: Device) -> AttachRequest {
    let vm = vm("web");
    let in_use = Usage { vms: 1, vcpus: vm.vcpus, memory_mib: vm.memory_mib };
    AttachRequest { tenant: "acme".into(), vm, running: false, device, in_use }
}

/// `acme` detaches `device` from `web`, which does not run.
pub fn detach(device: &str) -> DetachRequest {
    DetachRequest { tenant: "acme".into(), vm: vm("web"), running: false, device: device.into(), force: false }
}

/// Events of `acme` from this place on, one a second.
pub fn batch(first: u64, happenings: Vec<Happening>) -> Batch {
    let events = (first..).zip(happenings).map(|(sequence, what)| Event { sequence, moment: sequence, what });
    Batch { tenant: "acme".into(), missed: 0, events: events.collect() }
}

/// A physical function with a link of 10 Gbit/s and eight VFs, all free.
pub fn pf(name: &str) -> Pf {
    Pf {
        address: "0000:01:00.0".into(),
        name: name.into(),
        numa_node: None,
        root: None,
        link_mbps: Some(10_000),
        total_vfs: 8,
        free_vfs: 8,
        own_vfs: 0,
        other_tenants: 0,
    }
}

/// `acme` starts `web`, whose NIC `eth0` gets one of these: index of the PF, number on it, who had it before.
pub fn select_vf(pfs: Vec<Pf>, candidates: &[(u16, u16, select_vf::LastTenant)]) -> SelectVfRequest {
    SelectVfRequest {
        tenant: "acme".into(),
        vm: vm("web"),
        nic: "eth0".into(),
        wish: VfWish { mac: None, vlan: None },
        pfs,
        candidates: VfTable {
            pf: candidates.iter().map(|(pf, ..)| *pf).collect(),
            index: candidates.iter().map(|(_, index, _)| *index).collect(),
            last_tenant: candidates.iter().map(|(.., last)| *last).collect(),
        },
    }
}

/// A controller with four secondary ones, all free, and a medium that is not worn.
pub fn controller(serial: &str) -> Controller {
    Controller {
        address: "0000:02:00.0".into(),
        serial: serial.into(),
        model: "test".into(),
        numa_node: None,
        root: None,
        wear_percent: Some(0),
        online: 4,
        free: 4,
        own_namespaces: 0,
        other_tenants: 0,
    }
}

/// `acme` starts `web`, whose device `data` gets one of these: index of the controller, namespace, size in bytes. Their
/// blocks have 512 bytes, and nobody had them before.
pub fn select_nvme(wish: NvmeWish, controllers: Vec<Controller>, candidates: &[(u16, u32, u64)]) -> SelectNvmeRequest {
    SelectNvmeRequest {
        tenant: "acme".into(),
        vm: vm("web"),
        device: "data".into(),
        wish,
        controllers,
        candidates: NvmeTable {
            controller: candidates.iter().map(|(controller, ..)| *controller).collect(),
            nsid: candidates.iter().map(|(_, nsid, _)| *nsid).collect(),
            size_bytes: candidates.iter().map(|(.., size)| *size).collect(),
            block_bytes: vec![512; candidates.len()],
            last_tenant: vec![select_nvme::LastTenant::Nobody; candidates.len()],
        },
    }
}

/// A NUMA node of four CPUs and 16 GiB, without VMs and far from every device.
pub fn node(number: u32) -> place::Row {
    place::Row {
        node: number,
        cpus: 4,
        memory_mib: 16 << 10,
        available_mib: 16 << 10,
        two_mib_pages: 0,
        one_gib_pages: 0,
        vms: 0,
        own_vms: 0,
        placed_vcpus: 0,
        placed_mib: 0,
        own_devices: 0,
        free_vfs: 0,
    }
}

/// `acme` starts `web`, which has no devices of the host, on one of these nodes.
pub fn place(rows: &[place::Row]) -> PlaceRequest {
    fn column<T>(rows: &[place::Row], of: impl Fn(&place::Row) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    PlaceRequest {
        tenant: "acme".into(),
        vm: vm("web"),
        pages: Pages::Ordinary,
        devices: 0,
        candidates: NodeTable {
            node: column(rows, |row| row.node),
            cpus: column(rows, |row| row.cpus),
            memory_mib: column(rows, |row| row.memory_mib),
            available_mib: column(rows, |row| row.available_mib),
            two_mib_pages: column(rows, |row| row.two_mib_pages),
            one_gib_pages: column(rows, |row| row.one_gib_pages),
            vms: column(rows, |row| row.vms),
            own_vms: column(rows, |row| row.own_vms),
            placed_vcpus: column(rows, |row| row.placed_vcpus),
            placed_mib: column(rows, |row| row.placed_mib),
            own_devices: column(rows, |row| row.own_devices),
            free_vfs: column(rows, |row| row.free_vfs),
        },
    }
}
