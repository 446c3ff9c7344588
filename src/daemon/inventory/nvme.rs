//! NVMe controllers as kernel and controllers show them now. Key types: [`NvmeControllers`], [`NvmeController`],
//! [`Namespace`].
//!
//! Read anew for each use, as network cards are. What sysfs does not know is asked of the controller itself, which takes
//! some commands on its admin queue; one that vfio-pci has cannot be asked.
//!
//! ```text
//!   /sys/bus/pci/devices/<controller>  class 0x010802  virtfn<N> ──▶ function of a secondary controller
//!                                      nvme/nvme0 ── /dev/nvme0 ── Identify: who, secondaries, namespaces
//!                                             └── nvme0n1 (or nvme0c0n1): partitions, holders, mounts
//! ```

use std::fs;
use std::io;
use std::path::Path;

use super::devices::{Bridge, Place, VirtualFunction, names, number, target_name, text};
use crate::model::Bdf;
use crate::sys::nvme::identify::{ControllerIdentity, NamespaceIdentity, PrimaryCapabilities};
use crate::sys::nvme::{Admin, CommandError, block};

/// Where sysfs is mounted.
const SYSFS: &str = "/sys";
/// PCI class of an NVMe I/O controller (PCI Code and ID Assignment 1.11, §1.2).
const CLASS_NVME: &str = "0x010802";

/// All NVMe controllers of the host that are no virtual functions, by address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NvmeControllers {
    /// The controllers.
    pub controllers: Vec<NvmeController>,
}

/// A controller that is not a virtual function: the primary of its secondaries, if it has any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeController {
    /// As a PCI function: address, driver, IOMMU group, resets.
    pub function: VirtualFunction,
    /// The kernel's name, such as `nvme0`; `None` without the host's driver.
    pub device: Option<String>,
    /// Vendor and device id, as in `1b36:0010`.
    pub pci_id: String,
    /// NUMA node, where the host has any.
    pub numa_node: Option<u32>,
    /// The root complex, as sysfs names it: `pci0000:00`.
    pub root_complex: String,
    /// The root port above it; `None` on the root bus.
    pub root_port: Option<Bdf>,
    /// All bridges above it, the root port first.
    pub bridges: Vec<Bridge>,
    /// Virtual functions that it can have.
    pub total_vfs: u32,
    /// Virtual functions that exist.
    pub num_vfs: u32,
    /// What it says of itself; or why it says nothing.
    pub facts: Result<NvmeFacts, String>,
}

/// What a controller answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeFacts {
    /// Who it is and what it supports.
    pub identity: ControllerIdentity,
    /// Percent of the medium's life that is over, as far as the controller tells.
    pub wear_percent: Option<u8>,
    /// What it can deal out to secondary controllers; `None` if it is no primary.
    pub resources: Option<PrimaryCapabilities>,
    /// Its secondary controllers, by id.
    pub secondaries: Vec<Secondary>,
    /// Namespaces of its subsystem, attached or not, by id.
    pub namespaces: Vec<Namespace>,
}

/// A secondary controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secondary {
    /// Its id in the subsystem.
    pub id: u16,
    /// It works.
    pub is_online: bool,
    /// Queue pairs that it has, the admin queue included.
    pub queues: u16,
    /// Interrupt vectors that it has.
    pub interrupts: u16,
    /// Its virtual function, while that exists.
    pub function: Option<VirtualFunction>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its id in the subsystem.
    pub nsid: u32,
    /// Which one it is, whatever its id ([`NamespaceIdentity::unique_id`]); `None` if that is not known.
    pub unique_id: Option<String>,
    /// Bytes that it holds; 0 if its format is not known.
    pub size_bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Bytes of metadata beside each block.
    pub metadata_bytes: u16,
    /// All formats that it can have, this one among them: bytes of a block, and of the metadata beside it.
    pub formats: Vec<(u32, u16)>,
    /// Ids of the controllers that it is attached to.
    pub controllers: Vec<u16>,
    /// The host's block device for it, such as `nvme0n1`.
    pub block_device: Option<String>,
    /// How the host uses it: `mounted at /srv`, `held by dm-0`.
    pub uses: Vec<String>,
}

impl NvmeControllers {
    /// Reads this host. Blocks. A controller that does not answer is shown without its facts.
    pub fn read() -> io::Result<Self> {
        let uses = HostUses::read();
        Self::read_sysfs(Path::new(SYSFS), |device, address| facts(device, address, &uses))
    }

    /// What sysfs at `root` says; `ask` gives the facts of a controller that the kernel named.
    fn read_sysfs(root: &Path, ask: impl Fn(&str, Bdf) -> Result<NvmeFacts, String>) -> io::Result<Self> {
        let devices = root.join("bus/pci/devices");
        let entries = match fs::read_dir(&devices) {
            // A host without PCI.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        let mut controllers = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let dir = entry.path();
            let is_nvme = text(&dir.join("class")).is_some_and(|class| class == CLASS_NVME);
            if is_nvme && !dir.join("physfn").exists() {
                controllers.push(NvmeController::read(address, &dir, &devices, &ask));
            }
        }
        controllers.sort_by_key(|controller| controller.function.address);
        Ok(Self { controllers })
    }

    /// The controller at `address`.
    pub fn get(&self, address: Bdf) -> Option<&NvmeController> {
        self.controllers.iter().find(|controller| controller.function.address == address)
    }
}

impl NvmeController {
    fn read(address: Bdf, dir: &Path, devices: &Path, ask: impl Fn(&str, Bdf) -> Result<NvmeFacts, String>) -> Self {
        let device = names(&dir.join("nvme")).find(|name| name.starts_with("nvme"));
        let facts = match &device {
            Some(device) => ask(device, address).map(|mut facts| {
                for secondary in &mut facts.secondaries {
                    secondary.function = secondary.function.take().and_then(|function| {
                        // The controller knows its number, sysfs the rest.
                        let link = dir.join(format!("virtfn{}", function.index));
                        let address = target_name(&link)?.parse().ok()?;
                        Some(VirtualFunction::read(address, function.index, devices))
                    });
                }
                facts
            }),
            None => Err("it has no driver of the host that could be asked".to_owned()),
        };
        let Place { root_complex, bridges } = Place::of(dir, address);
        let id = |file: &str| text(&dir.join(file)).unwrap_or_default().trim_start_matches("0x").to_owned();
        Self {
            function: VirtualFunction::read(address, 0, devices),
            device,
            pci_id: format!("{}:{}", id("vendor"), id("device")),
            numa_node: number(&dir.join("numa_node")),
            root_complex,
            root_port: bridges.first().map(|bridge| bridge.address),
            bridges,
            total_vfs: number(&dir.join("sriov_totalvfs")).unwrap_or(0),
            num_vfs: number(&dir.join("sriov_numvfs")).unwrap_or(0),
            facts,
        }
    }
}

/// Asks the controller `device`.
fn facts(device: &str, address: Bdf, uses: &HostUses) -> Result<NvmeFacts, String> {
    let admin = Admin::open(device).map_err(|error| format!("/dev/{device} cannot be opened: {error}"))?;
    ask(&admin, device, address, uses).map_err(|error| error.to_string())
}

fn ask(admin: &Admin, device: &str, address: Bdf, uses: &HostUses) -> Result<NvmeFacts, CommandError> {
    let identity = admin.identify_controller()?;
    let is_primary = identity.supports.virtualization_management;
    let resources = is_primary.then(|| admin.primary_capabilities()).transpose()?;
    let secondaries = if is_primary { admin.secondary_controllers()? } else { Vec::new() };
    let secondaries = secondaries.into_iter().map(|secondary| Secondary {
        id: secondary.id,
        is_online: secondary.is_online,
        queues: secondary.queues,
        interrupts: secondary.interrupts,
        function: secondary.vf_number.checked_sub(1).map(|index| VirtualFunction::numbered(address, index)),
    });
    let mut namespaces = Vec::new();
    // Without Namespace Management (§8.11) there is no list of what is not attached.
    if identity.supports.namespace_management {
        for nsid in admin.allocated_namespaces()? {
            let page = admin.identify_namespace(nsid)?;
            let block_device = block::of_namespace(device, nsid);
            namespaces.push(Namespace {
                nsid,
                unique_id: page.as_ref().and_then(NamespaceIdentity::unique_id),
                size_bytes: page.as_ref().map_or(0, NamespaceIdentity::size_bytes),
                block_bytes: page.as_ref().map_or(0, |page| page.block_bytes),
                metadata_bytes: page.as_ref().map_or(0, |page| page.metadata_bytes),
                formats: page.map(|page| page.formats).unwrap_or_default(),
                // Unknown is somebody's: nothing is free that was not seen to be.
                controllers: admin.controllers_of(nsid).unwrap_or_else(|_refused| vec![identity.id]),
                uses: block_device.as_deref().map(|name| uses.of(Path::new(SYSFS), name)).unwrap_or_default(),
                block_device,
            });
        }
    } else {
        let attached = block::of_controller(device);
        namespaces.extend(attached.into_iter().map(|(nsid, name)| Namespace {
            nsid,
            unique_id: None,
            size_bytes: sectors(Path::new(SYSFS), &name) * 512,
            block_bytes: 0,
            metadata_bytes: 0,
            formats: vec![],
            controllers: vec![identity.id],
            uses: uses.of(Path::new(SYSFS), &name),
            block_device: Some(name),
        }));
    }
    let wear_percent = admin.wear_percent().ok();
    Ok(NvmeFacts { wear_percent, resources, secondaries: secondaries.collect(), namespaces, identity })
}

fn sectors(root: &Path, name: &str) -> u64 {
    text(&root.join("block").join(name).join("size")).and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// What the host does with block devices.
#[derive(Debug, Default)]
struct HostUses {
    /// `/proc/self/mountinfo` (proc(5)).
    mounts: String,
    /// `/proc/swaps`.
    swaps: String,
}

impl HostUses {
    fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { mounts: read("/proc/self/mountinfo"), swaps: read("/proc/swaps") }
    }

    /// How the disk `name` and its partitions are used.
    fn of(&self, root: &Path, name: &str) -> Vec<String> {
        let dir = root.join("block").join(name);
        let partitions = names(&dir).filter(|part| dir.join(part).join("partition").exists());
        let mut parts = vec![(name.to_owned(), dir.clone())];
        parts.extend(partitions.map(|part| (part.clone(), dir.join(part))));
        let mut uses = Vec::new();
        for (part, dir) in parts {
            let number = text(&dir.join("dev")).unwrap_or_default();
            let path = format!("/dev/{part}");
            uses.extend(names(&dir.join("holders")).map(|holder| format!("{part} is held by {holder}")));
            let mounted = self.mounts.lines().filter_map(|line| {
                // Id, parent, major:minor, root, mount point, …, "-", type, source.
                let words: Vec<_> = line.split(' ').collect();
                let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
                let is_it = words.get(2) == Some(&number.as_str()) || source == Some(path.as_str());
                is_it.then(|| words.get(4).copied()).flatten()
            });
            uses.extend(mounted.map(|place| format!("{part} is mounted at {place}")));
            if self.swaps.lines().any(|line| line.split_whitespace().next() == Some(&path)) {
                uses.push(format!("{part} is swap"));
            }
        }
        uses.sort();
        uses.dedup();
        uses
    }
}

/// Controllers for tests.
#[cfg(test)]
pub mod samples {
    use super::*;
    use crate::sys::nvme::identify::{Flexible, Supports};

    /// A host with one primary controller of two secondaries that are online; namespace 1 is the host's, and those of
    /// `sizes_mib` are attached to nothing.
    pub fn primary(sizes_mib: &[u64]) -> NvmeControllers {
        let address = Bdf::new(0, 2, 0, 0).unwrap();
        let function = |address: Bdf, index| VirtualFunction {
            iommu_group: Some(20 + u32::from(address.function())),
            reset_methods: vec!["flr".into()],
            msix_vectors: Some(1),
            ..VirtualFunction::numbered(address, index)
        };
        let secondary = |number: u8| Secondary {
            id: number.into(),
            is_online: true,
            queues: 2,
            interrupts: 1,
            function: Some(function(Bdf::new(0, 2, 0, number).unwrap(), u16::from(number) - 1)),
        };
        let namespace = |nsid, mib: u64, controllers| Namespace {
            nsid,
            unique_id: Some(format!("eui64:{nsid:016x}")),
            size_bytes: mib << 20,
            block_bytes: 512,
            metadata_bytes: 0,
            formats: vec![(512, 0)],
            controllers,
            block_device: None,
            uses: vec![],
        };
        let free = (2..).zip(sizes_mib).map(|(nsid, mib)| namespace(nsid, *mib, vec![]));
        let supports = Supports {
            namespace_management: true,
            virtualization_management: true,
            format: true,
            write_zeroes: true,
            ..Supports::default()
        };
        let facts = NvmeFacts {
            identity: ControllerIdentity {
                serial: "LAB".into(),
                model: "M".into(),
                firmware: "1".into(),
                id: 0,
                supports,
            },
            wear_percent: Some(3),
            resources: Some(PrimaryCapabilities {
                queues: Flexible { total: 8, assigned: 4, of_primary: 0, max_each: 2 },
                interrupts: Flexible { total: 4, assigned: 2, of_primary: 0, max_each: 1 },
            }),
            secondaries: vec![secondary(1), secondary(2)],
            namespaces: std::iter::once(namespace(1, 256, vec![0])).chain(free).collect(),
        };
        let controller = NvmeController {
            function: function(address, 0),
            device: Some("nvme0".into()),
            pci_id: "1b36:0010".into(),
            numa_node: None,
            root_complex: "pci0000:00".into(),
            root_port: Bdf::new(0, 0, 3, 0),
            bridges: vec![],
            total_vfs: 4,
            num_vfs: 2,
            facts: Ok(facts),
        };
        NvmeControllers { controllers: vec![controller] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn finds_controllers_and_the_functions_of_their_secondaries() {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("bus/pci/devices");
        let function = |address: &str, class: &str| {
            let dir = devices.join(address);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("class"), class).unwrap();
            dir
        };
        let primary = function("0000:02:00.0", "0x010802\n");
        let virtual_function = function("0000:02:00.1", "0x010802\n");
        function("0000:01:00.0", "0x020000\n");
        let lent = function("0000:03:00.0", "0x010802\n");
        symlink(&primary, virtual_function.join("physfn")).unwrap();
        symlink(&virtual_function, primary.join("virtfn0")).unwrap();
        symlink("/drivers/vfio-pci", lent.join("driver")).unwrap();
        fs::create_dir_all(primary.join("nvme/nvme0")).unwrap();
        let found = NvmeControllers::read_sysfs(root.path(), |device, address| {
            assert_eq!((device, address.to_string().as_str()), ("nvme0", "0000:02:00.0"));
            let mut facts = samples::primary(&[64]).controllers.remove(0).facts?;
            facts.secondaries[1].function.as_mut().unwrap().index = 7;
            Ok(facts)
        });
        let controllers = found.unwrap().controllers;
        let addresses: Vec<_> = controllers.iter().map(|c| c.function.address.to_string()).collect();
        assert_eq!(addresses, ["0000:02:00.0", "0000:03:00.0"]);
        let secondaries = &controllers[0].facts.as_ref().unwrap().secondaries;
        let function = secondaries[0].function.as_ref().unwrap();
        assert_eq!(function.address.to_string(), "0000:02:00.1");
        assert_eq!(secondaries[1].function, None, "its virtual function does not exist");
        assert!(controllers[1].facts.is_err());
    }

    #[test]
    fn knows_what_the_host_uses() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("block/nvme0n1");
        for below in ["holders", "nvme0n1p1/holders/dm-0", "nvme0n1p2/holders", "nvme0n1p3/holders"] {
            fs::create_dir_all(disk.join(below)).unwrap();
        }
        for (part, number) in [("nvme0n1p1", "259:1"), ("nvme0n1p2", "259:2"), ("nvme0n1p3", "259:3")] {
            fs::write(disk.join(part).join("partition"), "1").unwrap();
            fs::write(disk.join(part).join("dev"), number).unwrap();
        }
        let uses = HostUses {
            mounts: "22 1 259:2 / /srv rw,noatime shared:1 - ext4 /dev/nvme0n1p2 rw\n23 1 0:50 / /b rw - btrfs /dev/nvme0n1 rw\n".into(),
            swaps: "Filename Type\n/dev/nvme0n1p3 partition 1 0 -2\n".into(),
        };
        let expected = [
            "nvme0n1 is mounted at /b",
            "nvme0n1p1 is held by dm-0",
            "nvme0n1p2 is mounted at /srv",
            "nvme0n1p3 is swap",
        ];
        assert_eq!(uses.of(root.path(), "nvme0n1"), expected);
        assert_eq!(uses.of(root.path(), "nvme9n9"), Vec::<String>::new());
    }
}
