//! NUMA nodes as the kernel shows them now. Key types: [`Nodes`], [`Node`].
//!
//! Read anew for each use: CPUs and memory come and go, and what is free changes all the time.
//!
//! ```text
//!   /sys/devices/system/node  has_memory  node<N>/ cpulist  meminfo  hugepages/hugepages-<size>kB/free_hugepages
//!   /sys/bus/pci/devices/<function>  numa_node
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::devices::{number, text};
use crate::model::{Bdf, CpuList, PageSize};
use crate::sys::proc_text;

/// Where sysfs is mounted.
const SYSFS: &str = "/sys";

/// A node with memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its CPUs that are online; `None`: it has memory alone.
    pub cpus: Option<CpuList>,
    /// All its memory, in MiB.
    pub memory_mib: u64,
    /// Memory that is free, or would be if the kernel dropped what it keeps of files, in MiB.
    pub available_mib: u64,
    /// Reserved pages of 2 MiB that are free.
    pub two_mib_pages: u64,
    /// Reserved pages of 1 GiB that are free.
    pub one_gib_pages: u64,
}

impl Node {
    /// Counts memory of a VM that is about to come as taken.
    pub fn promise(&mut self, memory_mib: u64, pages: PageSize) {
        let free = match pages {
            PageSize::Small => &mut self.available_mib,
            PageSize::Huge2M => &mut self.two_mib_pages,
            PageSize::Huge1G => &mut self.one_gib_pages,
        };
        *free = free.saturating_sub(memory_mib / (pages.bytes() >> 20).max(1));
    }

    /// Why a VM of `memory_mib` of `pages` cannot be here; `None` if it can.
    pub fn unfit(&self, memory_mib: u64, pages: PageSize) -> Option<&'static str> {
        let free_mib = match pages {
            PageSize::Small => self.available_mib,
            PageSize::Huge2M => self.two_mib_pages.saturating_mul(PageSize::Huge2M.bytes() >> 20),
            PageSize::Huge1G => self.one_gib_pages.saturating_mul(PageSize::Huge1G.bytes() >> 20),
        };
        match self.cpus {
            None => Some("no CPU"),
            Some(_) if memory_mib <= free_mib => None,
            Some(_) if pages.is_huge() => Some("too few reserved pages"),
            Some(_) => Some("too little memory"),
        }
    }
}

/// The host's nodes. Cheap to clone: nothing is kept of them.
#[derive(Debug, Clone)]
pub struct Nodes {
    sysfs: PathBuf,
}

impl Default for Nodes {
    fn default() -> Self {
        Self::at(Path::new(SYSFS))
    }
}

impl Nodes {
    /// What is described by the sysfs at `sysfs`.
    pub fn at(sysfs: &Path) -> Self {
        Self { sysfs: sysfs.to_owned() }
    }

    /// Those with memory, by number; none where the kernel knows of no nodes. Blocks for some microseconds.
    pub fn read(&self) -> Vec<Node> {
        let dir = self.sysfs.join("devices/system/node");
        // Nodes are numbered as CPUs are listed.
        let present = text(&dir.join("has_memory")).and_then(|list| list.parse::<CpuList>().ok());
        let numbers = present.iter().flat_map(CpuList::iter);
        numbers.filter_map(|number| read_node(number, &dir.join(format!("node{number}")))).collect()
    }

    /// The node that a PCI function is near; `None` if the firmware names none.
    pub fn near(&self, function: Bdf) -> Option<u32> {
        // -1: none is named.
        number(&self.sysfs.join("bus/pci/devices").join(function.to_string()).join("numa_node"))
    }
}

fn read_node(number: u32, dir: &Path) -> Option<Node> {
    let meminfo = fs::read_to_string(dir.join("meminfo")).ok()?;
    // Each line begins with "Node 0 ".
    let prefix = format!("Node {number} ");
    let lines: Vec<_> = meminfo.lines().map(|line| line.trim_start_matches(prefix.as_str())).collect();
    let lines = lines.join("\n");
    let bytes = |name: &str| proc_text::bytes(&lines, name);
    let kept = ["Active(file)", "Inactive(file)", "SReclaimable"].iter().filter_map(|name| bytes(name)).sum::<u64>();
    let pages = |size: PageSize| {
        let file = dir.join(format!("hugepages/hugepages-{}kB/free_hugepages", size.bytes() >> 10));
        text(&file).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    Some(Node {
        number,
        cpus: text(&dir.join("cpulist")).and_then(|list| list.parse().ok()),
        memory_mib: bytes("MemTotal")? >> 20,
        available_mib: bytes("MemFree")?.saturating_add(kept) >> 20,
        two_mib_pages: pages(PageSize::Huge2M),
        one_gib_pages: pages(PageSize::Huge1G),
    })
}

/// Nodes for tests.
#[cfg(test)]
pub mod samples {
    use super::*;

    /// A host that is described in a directory: nodes of so many MiB, all free, with these CPUs.
    pub fn described(nodes: &[(u64, &str)]) -> (tempfile::TempDir, Nodes) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("devices/system/node");
        for (number, (mib, cpus)) in nodes.iter().enumerate() {
            let node = root.join(format!("node{number}"));
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("cpulist"), format!("{cpus}\n")).unwrap();
            set_free(&dir, number, *mib, *mib);
        }
        let all = (0..nodes.len()).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        fs::write(root.join("has_memory"), all).unwrap();
        let nodes = Nodes::at(dir.path());
        (dir, nodes)
    }

    /// Says what of a node's memory is free, in MiB.
    pub fn set_free(dir: &tempfile::TempDir, number: usize, mib: u64, free_mib: u64) {
        let line = |name: &str, mib: u64| format!("Node {number} {name}: {} kB\n", mib << 10);
        let text = line("MemTotal", mib) + &line("MemFree", free_mib);
        fs::write(dir.path().join(format!("devices/system/node/node{number}/meminfo")), text).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sysfs_describes() {
        let (dir, nodes) = samples::described(&[(4096, "0-1,4"), (8192, ""), (64, "2")]);
        let root = dir.path().join("devices/system/node");
        let text = "Node 0 MemTotal: 4194304 kB\nNode 0 MemFree: 1048576 kB\nNode 0 Active(file): 1024 kB\n\
                    Node 0 Inactive(file): 2048 kB\nNode 0 SReclaimable: 1024 kB\nNode 0 Active(anon): 4096 kB\n";
        fs::write(root.join("node0/meminfo"), text).unwrap();
        let pool = root.join("node0/hugepages/hugepages-2048kB");
        fs::create_dir_all(&pool).unwrap();
        fs::write(pool.join("free_hugepages"), "7\n").unwrap();
        fs::remove_file(root.join("node2/meminfo")).unwrap();
        let read = nodes.read();
        let first = Node {
            number: 0,
            cpus: "0-1,4".parse().ok(),
            memory_mib: 4096,
            available_mib: 1028,
            two_mib_pages: 7,
            one_gib_pages: 0,
        };
        assert_eq!(read[0], first);
        assert_eq!((read.len(), read[1].number, &read[1].cpus), (2, 1, &None));
        assert!(Nodes::at(&dir.path().join("absent")).read().is_empty());
    }

    #[test]
    fn reads_this_host() {
        let nodes = Nodes::default().read();
        let has_nodes = Path::new("/sys/devices/system/node/node0").exists();
        assert_eq!(nodes.iter().any(|node| node.cpus.is_some() && node.available_mib > 0), has_nodes, "{nodes:?}");
    }

    #[test]
    fn a_node_that_cannot_hold_the_vm_is_unfit() {
        let node = Node {
            number: 0,
            cpus: "0".parse().ok(),
            memory_mib: 1024,
            available_mib: 512,
            two_mib_pages: 4,
            one_gib_pages: 1,
        };
        assert_eq!(node.unfit(512, PageSize::Small), None);
        assert_eq!(node.unfit(513, PageSize::Small), Some("too little memory"));
        assert_eq!((node.unfit(8, PageSize::Huge2M), node.unfit(1024, PageSize::Huge1G)), (None, None));
        assert_eq!(node.unfit(10, PageSize::Huge2M), Some("too few reserved pages"));
        assert_eq!(Node { cpus: None, ..node }.unfit(64, PageSize::Small), Some("no CPU"));
    }

    #[test]
    fn a_function_is_near_the_node_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let (near, far) = (Bdf::new(0, 1, 16, 0).unwrap(), Bdf::new(0, 2, 0, 0).unwrap());
        for (function, node) in [(near, "1\n"), (far, "-1\n")] {
            let place = dir.path().join("bus/pci/devices").join(function.to_string());
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("numa_node"), node).unwrap();
        }
        let nodes = Nodes::at(dir.path());
        assert_eq!((nodes.near(near), nodes.near(far)), (Some(1), None));
    }
}
