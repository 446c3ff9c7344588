//! SR-IOV network cards as the kernel shows them now. Key types: [`Devices`], [`PhysicalFunction`],
//! [`VirtualFunction`].
//!
//! Read anew for each use (sysfs takes microseconds per file, and what is remembered can be wrong): no events are
//! followed. `service` compares what it finds with the leases; nothing is changed here.
//!
//! ```text
//!   /sys/bus/pci/devices/<PF>  sriov_totalvfs  virtfn<N> ──▶ <VF>  iommu_group ──▶ devices/*  driver  reset_method
//!                              net/<interface> ── rtnetlink: link, and each VF's settings
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::config_space::{Acs, ConfigSpace};
use crate::model::{Bdf, MacAddr};
use crate::sys::devlink::{EswitchMode, eswitch_mode};
use crate::sys::rtnl::{Link, Rtnl, VfConfig};

/// Where sysfs is mounted.
const SYSFS: &str = "/sys";
/// PCI base class of network controllers (PCI Code and ID Assignment 1.11, §1.3): the top byte of `class`.
const CLASS_NETWORK: &str = "0x02";
/// PCI class of bridges to other PCI buses (§1.7): its members of a group have no data of their own.
const CLASS_PCI_BRIDGE: &str = "0x0604";
/// The driver that lends devices to user space.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// All SR-IOV network cards of the host, by address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    /// Those that can have virtual functions, whether or not they have any.
    pub pfs: Vec<PhysicalFunction>,
}

/// A network function with the SR-IOV capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalFunction {
    /// Its address.
    pub address: Bdf,
    /// Its network interface; `None` without a driver.
    pub interface: Option<String>,
    /// Its driver.
    pub driver: Option<String>,
    /// Vendor and device id, as in `8086:10c9`.
    pub pci_id: String,
    /// NUMA node, where the host has any.
    pub numa_node: Option<u32>,
    /// The root complex, as sysfs names it: `pci0000:00`.
    pub root_complex: String,
    /// The root port above it; `None` on the root bus.
    pub root_port: Option<Bdf>,
    /// All bridges above it, the root port first.
    pub bridges: Vec<Bridge>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// All members of the group, itself among them, by address.
    pub group_members: Vec<GroupMember>,
    /// How it switches frames between its functions; `None` if its driver knows one way only.
    pub eswitch: Option<EswitchMode>,
    /// Its network link; `None` if it has none or it could not be asked.
    pub link: Option<LinkFacts>,
    /// Virtual functions that it can have.
    pub total_vfs: u32,
    /// Those that exist, by number.
    pub vfs: Vec<VirtualFunction>,
}

/// A PCI bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its address.
    pub address: Bdf,
    /// Whether functions below it reach each other past the IOMMU.
    pub acs: Acs,
}

/// The link of a physical function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its permanent address: the card's identity.
    pub mac: MacAddr,
    /// It is switched on.
    pub is_up: bool,
    /// It has a peer.
    pub has_carrier: bool,
    /// Mbit/s, if known.
    pub speed_mbps: Option<u32>,
}

/// A virtual function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualFunction {
    /// Its address.
    pub address: Bdf,
    /// Its number on the physical function, from 0.
    pub index: u16,
    /// Its driver.
    pub driver: Option<String>,
    /// Its network interface on the host, if a host driver made one; `None` too if that is in another network namespace.
    pub interface: Option<String>,
    /// That interface is switched on: the host uses it.
    pub is_used_by_host: bool,
    /// Its IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// All members of the group, itself among them, by address.
    pub group_members: Vec<GroupMember>,
    /// How the kernel can reset it, in order of preference: `flr`, …; empty if it cannot.
    pub reset_methods: Vec<String>,
    /// MSI-X vectors, the only kind of interrupt that a guest gets; `None` if that could not be read.
    pub msix_vectors: Option<u16>,
    /// Its settings at the physical function; `None` if they could not be asked.
    pub config: Option<VfConfig>,
}

/// A function that the IOMMU cannot tell from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its address.
    pub address: Bdf,
    /// Its driver.
    pub driver: Option<String>,
    /// It is a bridge to another bus, whose driver moves no data.
    pub is_bridge: bool,
}

impl VirtualFunction {
    /// The members of its group that keep it from being lent: those that a host driver uses.
    pub fn obstacles(&self) -> impl Iterator<Item = &GroupMember> {
        let is_harmless = |member: &GroupMember| {
            member.address == self.address
                || member.is_bridge
                || member.driver.as_deref().is_none_or(|driver| driver == VFIO_DRIVER)
        };
        self.group_members.iter().filter(move |member| !is_harmless(member))
    }
}

impl Devices {
    /// Reads this host. Blocks. A card whose link cannot be asked is shown without it.
    pub fn read() -> io::Result<Self> {
        let mut devices = Self::read_sysfs(Path::new(SYSFS))?;
        if devices.pfs.is_empty() {
            return Ok(devices);
        }
        let mut rtnl = Rtnl::open()?;
        for pf in &mut devices.pfs {
            pf.eswitch = eswitch_mode("pci", &pf.address.to_string()).unwrap_or_else(|error| {
                tracing::warn!(pf = %pf.address, %error, "cannot ask for its eswitch mode");
                None
            });
            let Some(interface) = &pf.interface else { continue };
            match rtnl.link(interface) {
                Ok(link) => pf.add_link(Path::new(SYSFS), link),
                Err(error) => tracing::warn!(pf = %pf.address, interface, %error, "cannot ask for its link"),
            }
        }
        Ok(devices)
    }

    /// What sysfs at `root` says; links are left out.
    fn read_sysfs(root: &Path) -> io::Result<Self> {
        let devices = root.join("bus/pci/devices");
        let entries = match fs::read_dir(&devices) {
            // A host without PCI.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        let mut pfs = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let dir = entry.path();
            let is_network = text(&dir.join("class")).is_some_and(|class| class.starts_with(CLASS_NETWORK));
            if let Some(total_vfs) = number(&dir.join("sriov_totalvfs")).filter(|_| is_network) {
                pfs.push(PhysicalFunction::read(address, &dir, total_vfs));
            }
        }
        pfs.sort_by_key(|pf| pf.address);
        Ok(Self { pfs })
    }

    /// The virtual function at `address`, with its physical function.
    pub fn vf(&self, address: Bdf) -> Option<(&PhysicalFunction, &VirtualFunction)> {
        self.pfs.iter().find_map(|pf| Some((pf, pf.vfs.iter().find(|vf| vf.address == address)?)))
    }

    /// Every virtual function with its physical function, by address of the latter, then number.
    pub fn vfs(&self) -> impl Iterator<Item = (&PhysicalFunction, &VirtualFunction)> {
        self.pfs.iter().flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)))
    }
}

impl PhysicalFunction {
    fn read(address: Bdf, dir: &Path, total_vfs: u32) -> Self {
        let mut vfs: Vec<_> = (0..u16::try_from(total_vfs).unwrap_or(u16::MAX))
            .filter_map(|index| {
                let address = target_name(&dir.join(format!("virtfn{index}")))?.parse().ok()?;
                Some(VirtualFunction::read(address, index, dir.parent()?))
            })
            .collect();
        vfs.sort_by_key(|vf| vf.index);
        let Place { root_complex, bridges } = Place::of(dir, address);
        let (iommu_group, group_members) = group(dir);
        let id = |file: &str| text(&dir.join(file)).unwrap_or_default().trim_start_matches("0x").to_owned();
        Self {
            address,
            interface: interface(dir),
            driver: target_name(&dir.join("driver")),
            pci_id: format!("{}:{}", id("vendor"), id("device")),
            // -1: the firmware names none.
            numa_node: number(&dir.join("numa_node")),
            root_complex,
            root_port: bridges.first().map(|bridge| bridge.address),
            bridges,
            iommu_group,
            group_members,
            eswitch: None,
            link: None,
            total_vfs,
            vfs,
        }
    }

    fn add_link(&mut self, root: &Path, link: Link) {
        let Some(mac) = link.permanent_mac else { return };
        // Not a number without carrier (linux/Documentation/ABI/testing/sysfs-class-net, `speed`).
        let speed_mbps = number(&root.join("class/net").join(&link.name).join("speed"));
        let (is_up, has_carrier) = (link.is_up, link.has_carrier);
        self.link = Some(LinkFacts { mac: MacAddr(mac), is_up, has_carrier, speed_mbps });
        for vf in &mut self.vfs {
            vf.config = link.vfs.get(usize::from(vf.index)).copied();
        }
    }
}

impl VirtualFunction {
    /// One of which nothing is known but its number on `address`.
    pub(super) fn numbered(address: Bdf, index: u16) -> Self {
        Self {
            address,
            index,
            driver: None,
            interface: None,
            is_used_by_host: false,
            iommu_group: None,
            group_members: Vec::new(),
            reset_methods: Vec::new(),
            msix_vectors: None,
            config: None,
        }
    }

    /// `devices`: the directory that has all PCI functions.
    pub(super) fn read(address: Bdf, index: u16, devices: &Path) -> Self {
        let dir = devices.join(address.to_string());
        let interface = interface(&dir);
        let flags = interface.as_ref().and_then(|name| text(&dir.join("net").join(name).join("flags")));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
        let (iommu_group, group_members) = group(&dir);
        let reset_methods = text(&dir.join("reset_method")).unwrap_or_default();
        Self {
            address,
            index,
            driver: target_name(&dir.join("driver")),
            interface,
            is_used_by_host: flags.is_some_and(|flags| flags & libc::IFF_UP as u32 != 0),
            iommu_group,
            group_members,
            reset_methods: reset_methods.split_whitespace().map(str::to_owned).collect(),
            msix_vectors: ConfigSpace::read(&dir).msix_vectors(),
            config: None,
        }
    }
}

/// The IOMMU group of the function whose directory is `dir`, and its members.
fn group(dir: &Path) -> (Option<u32>, Vec<GroupMember>) {
    let group = dir.join("iommu_group");
    let devices = group.join("devices");
    let mut members: Vec<_> = names(&devices).filter_map(|name| name.parse().ok()).collect();
    members.sort();
    let members = members.into_iter().map(|member: Bdf| GroupMember::read(member, &devices)).collect();
    (target_name(&group).and_then(|name| name.parse().ok()), members)
}

impl GroupMember {
    /// `devices`: the directory that has the group's members.
    fn read(address: Bdf, devices: &Path) -> Self {
        let dir = devices.join(address.to_string());
        let is_bridge = text(&dir.join("class")).is_some_and(|class| class.starts_with(CLASS_PCI_BRIDGE));
        Self { address, driver: target_name(&dir.join("driver")), is_bridge }
    }
}

/// Where a function is in the tree of PCI.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// As sysfs names it: `pci0000:00`.
    pub(super) root_complex: String,
    /// What is above the function, the root port first; none on the root bus.
    pub(super) bridges: Vec<Bridge>,
}

impl Place {
    /// From where the function's directory really lies: `…/pci0000:00/0000:00:02.0/0000:01:00.0`.
    pub(super) fn of(dir: &Path, address: Bdf) -> Self {
        let real = fs::canonicalize(dir).unwrap_or_else(|_| PathBuf::from(dir));
        let above = real.ancestors().skip(1).take_while(|above| above.parent().is_some());
        let mut place = Self { root_complex: String::new(), bridges: Vec::new() };
        for above in above {
            let Some(name) = above.file_name().and_then(|name| name.to_str()) else { break };
            match name.parse() {
                Ok(bridge) if bridge != address => {
                    place.bridges.push(Bridge { address: bridge, acs: ConfigSpace::read(above).acs() });
                }
                _ => {
                    name.clone_into(&mut place.root_complex);
                    break;
                }
            }
        }
        place.bridges.reverse();
        place
    }
}

fn interface(dir: &Path) -> Option<String> {
    let mut names: Vec<_> = names(&dir.join("net")).collect();
    names.sort();
    names.into_iter().next()
}

pub(super) fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Last part of what a symbolic link points to.
pub(super) fn target_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

pub(super) fn text(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

pub(super) fn number(file: &Path) -> Option<u32> {
    text(file)?.parse().ok()
}

/// Devices for tests.
#[cfg(test)]
pub mod samples {
    use super::*;

    /// A host with one card of `count` virtual functions, all of which can be lent.
    pub fn card(count: u16) -> Devices {
        let vf = |index: u16| {
            let address = Bdf::new(0, 1, 0x10 + (index / 8) as u8, (index % 8) as u8).unwrap();
            VirtualFunction {
                address,
                index,
                driver: None,
                interface: None,
                is_used_by_host: false,
                iommu_group: Some(10 + u32::from(index)),
                group_members: vec![GroupMember { address, driver: None, is_bridge: false }],
                reset_methods: vec!["flr".into()],
                msix_vectors: Some(3),
                config: Some(VfConfig { checks_spoofing: true, ..VfConfig::default() }),
            }
        };
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        let pf = PhysicalFunction {
            address: Bdf::new(0, 1, 0, 0).unwrap(),
            interface: Some("eth0".into()),
            driver: Some("igb".into()),
            pci_id: "8086:10c9".into(),
            numa_node: None,
            root_complex: "pci0000:00".into(),
            root_port: Bdf::new(0, 0, 2, 0),
            bridges: vec![],
            iommu_group: Some(9),
            group_members: vec![],
            eswitch: None,
            link: Some(LinkFacts { mac, is_up: true, has_carrier: true, speed_mbps: Some(1000) }),
            total_vfs: 7,
            vfs: (0..count).map(vf).collect(),
        };
        Devices { pfs: vec![pf] }
    }
}

#[cfg(test)]
mod tests;
