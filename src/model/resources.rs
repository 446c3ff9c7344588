//! What a VM is made of on the host: which pages, which node, which CPUs. Key types: [`MemorySpec`], [`CpuSpec`],
//! [`Topology`], [`CpuList`].

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// CPUs of a host are numbered below this (`CONFIG_NR_CPUS` of stock kernels; cpu_set_t holds as many).
const MAX_CPU: u32 = 1023;
/// NUMA nodes of a host are numbered below this (`CONFIG_NODES_SHIFT` of stock kernels: 10).
const MAX_NODE: u32 = 1023;

/// Pages that back guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PageSize {
    /// The host's ordinary pages.
    #[default]
    #[serde(rename = "ordinary")]
    Small,
    /// Reserved pages of 2 MiB (hugetlbfs).
    #[serde(rename = "two_mib")]
    Huge2M,
    /// Reserved pages of 1 GiB.
    #[serde(rename = "one_gib")]
    Huge1G,
}

impl PageSize {
    /// Bytes of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Small => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Whether the host must have reserved them.
    pub fn is_huge(self) -> bool {
        self != Self::Small
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "4K",
            Self::Huge2M => "2M",
            Self::Huge1G => "1G",
        })
    }
}

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemorySpec {
    /// Its pages.
    pub pages: PageSize,
    /// Whether all of it is allocated before the guest runs.
    pub is_prefaulted: bool,
    /// The NUMA node that it comes from, alone.
    pub numa_node: Option<u32>,
}

/// How vCPUs look to the guest, and where they run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSpec {
    /// CPUs of the host that the VM's threads may use; `None`: all. With at least as many as vCPUs, each vCPU has one of
    /// its own, in order.
    pub host_cpus: Option<CpuList>,
    /// `None`: one socket of single-threaded cores.
    pub topology: Option<Topology>,
}

impl CpuSpec {
    /// The CPUs of the host that vCPU `index` of `count` may use; `None`: all.
    pub fn pinned(&self, index: usize, count: usize) -> Option<Vec<u32>> {
        let list = self.host_cpus.as_ref()?;
        match list.0.iter().nth(index) {
            Some(&own) if list.0.len() >= count => Some(vec![own]),
            _ => Some(list.0.iter().copied().collect()),
        }
    }
}

/// Sockets, cores per socket, threads per core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

/// APIC ids that an 8-bit field can say; 255 is broadcast (Intel SDM 3A §11.6.1).
const MAX_APIC_ID: u32 = 254;

impl Topology {
    /// Checks that it has `vcpus` threads, and that each gets an APIC id.
    pub fn new(sockets: u32, cores: u32, threads: u32, vcpus: u32) -> Result<Self, SpecError> {
        let refuse = |reason| Err(SpecError::new("spec.cpus.topology", reason));
        let product = sockets.checked_mul(cores).and_then(|cores| cores.checked_mul(threads));
        if product != Some(vcpus) || vcpus == 0 {
            return refuse(format!("{sockets} sockets of {cores} cores of {threads} threads are not {vcpus} vCPUs"));
        }
        let topology = Self { sockets, cores, threads };
        let last = topology.apic_id(vcpus - 1);
        if last > MAX_APIC_ID {
            return refuse(format!("its last vCPU would have APIC id {last}, at most {MAX_APIC_ID} is possible"));
        }
        Ok(topology)
    }

    /// One socket of `vcpus` cores of one thread.
    pub fn flat(vcpus: u32) -> Self {
        Self { sockets: 1, cores: vcpus, threads: 1 }
    }

    /// Number of sockets.
    pub fn sockets(self) -> u32 {
        self.sockets
    }

    /// Cores per socket.
    pub fn cores(self) -> u32 {
        self.cores
    }

    /// Threads per core.
    pub fn threads(self) -> u32 {
        self.threads
    }

    /// Bits of an APIC id that number a thread within its core.
    pub fn thread_bits(self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC id that number a thread within its socket.
    pub fn package_bits(self) -> u32 {
        bits(self.cores) + bits(self.threads)
    }

    /// The APIC id of vCPU `index`: fields of whole bits, so that software can take it apart (Intel SDM 3A §9.9.1).
    pub fn apic_id(self, index: u32) -> u32 {
        let thread = index % self.threads;
        let core = index / self.threads % self.cores;
        let socket = index / self.threads / self.cores;
        socket << self.package_bits() | core << self.thread_bits() | thread
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// A set of the host's CPUs, written as the kernel does: `0-1,4`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuList(BTreeSet<u32>);

impl CpuList {
    /// How many there are, at least 1.
    pub fn count(&self) -> u32 {
        // Bounded by the highest number.
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// The CPUs, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

/// A text that is no list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected CPUs of the host as numbers and ranges, such as 0-1,4; the highest possible is 1023")]
pub struct CpuListError;

impl TryFrom<String> for CpuList {
    type Error = CpuListError;

    fn try_from(text: String) -> Result<Self, CpuListError> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if number <= MAX_CPU && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(CpuListError),
        };
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(CpuListError);
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut is_first = true;
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|&next| next == last + 1) {
                last = next;
            }
            let comma = if is_first { "" } else { "," };
            is_first = false;
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// Checks what does not depend on the host.
pub(super) fn check_memory(memory: &MemorySpec, memory_bytes: u64) -> Result<(), SpecError> {
    let page = memory.pages.bytes();
    if !memory_bytes.is_multiple_of(page) {
        let pages = memory.pages;
        let reason = format!("{} MiB of memory are no whole number of {pages} pages", memory_bytes >> 20);
        return Err(SpecError::new("spec.memory.hugepages", reason));
    }
    match memory.numa_node {
        Some(node) if node > MAX_NODE => {
            Err(SpecError::new("spec.memory.numa_node", format!("{node} is no NUMA node: 0 to {MAX_NODE}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_topology_must_have_as_many_threads_as_there_are_vcpus() {
        assert!(Topology::new(2, 2, 2, 8).is_ok());
        assert!(Topology::new(2, 2, 2, 7).is_err() && Topology::new(0, 2, 2, 0).is_err());
        assert!(Topology::new(u32::MAX, u32::MAX, 2, 8).is_err());
        assert!(Topology::new(64, 1, 2, 128).is_ok() && Topology::new(42, 3, 1, 126).is_ok());
        // Fields of 3 bits for 5 things: the ids run out before the vCPUs do.
        let error = Topology::new(5, 5, 5, 125).unwrap_err();
        assert!(error.field == "spec.cpus.topology" && error.reason.contains("APIC id 292"), "{error}");
    }

    #[test]
    fn apic_ids_have_a_field_for_each_level() {
        let topology = Topology::new(2, 3, 2, 12).unwrap();
        let ids: Vec<_> = (0..12).map(|index| topology.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!((0..4).map(|index| Topology::flat(4).apic_id(index)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn vcpus_get_a_cpu_each_where_there_are_enough() {
        let cpus = CpuSpec { host_cpus: "2,5-6".parse().ok(), topology: None };
        assert_eq!(cpus.pinned(1, 3), Some(vec![5]));
        assert_eq!(cpus.pinned(1, 4), Some(vec![2, 5, 6]));
        assert_eq!(CpuSpec::default().pinned(0, 1), None);
    }

    #[test]
    fn huge_pages_need_whole_memory() {
        let huge = |pages| MemorySpec { pages, ..MemorySpec::default() };
        assert!(check_memory(&huge(PageSize::Huge2M), 256 << 20).is_ok());
        assert_eq!(check_memory(&huge(PageSize::Huge1G), 1536 << 20).unwrap_err().field, "spec.memory.hugepages");
        let node = MemorySpec { numa_node: Some(1 << 20), ..MemorySpec::default() };
        assert_eq!(check_memory(&node, 256 << 20).unwrap_err().field, "spec.memory.numa_node");
    }

    #[test]
    fn a_cpu_list_is_written_as_the_kernel_writes_it() {
        let list: CpuList = "4,0-1,2,7-7".parse().unwrap();
        assert_eq!(list.to_string(), "0-2,4,7");
        for text in ["", "a", "1-", "-1", "2-1", "1024", "0-4294967295", "+1", "1,,2", " 1"] {
            assert!(text.parse::<CpuList>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_cpu_list_reads_what_it_writes(cpus in proptest::collection::btree_set(0u32..=MAX_CPU, 1..40), text in "\\PC{0,12}") {
            let list = CpuList(cpus);
            prop_assert_eq!(&list.to_string().parse::<CpuList>().unwrap(), &list);
            let _ = text.parse::<CpuList>();
        }

        #[test]
        fn no_two_vcpus_share_an_apic_id(sockets in 1u32..5, cores in 1u32..9, threads in 1u32..4) {
            let topology = Topology::new(sockets, cores, threads, sockets * cores * threads);
            if let Ok(topology) = topology {
                let count = sockets * cores * threads;
                let ids: BTreeSet<_> = (0..count).map(|index| topology.apic_id(index)).collect();
                prop_assert_eq!(ids.len() as u32, count);
                prop_assert!(ids.into_iter().all(|id| id <= MAX_APIC_ID));
            }
        }
    }
}
