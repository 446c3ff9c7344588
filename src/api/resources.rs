//! Memory and CPUs of a spec to `model` and back; a part of `convert`.

use crate::api::v1;
use crate::model::{BalloonSpec, CpuListError, CpuSpec, MemorySpec, PageSize, SpecError, Topology, VmSpec};

use v1::memory_spec::Hugepages;

/// The same VM with what the request says of its memory and CPUs.
pub(super) fn from_proto(
    spec: VmSpec,
    memory: Option<v1::MemorySpec>,
    cpus: Option<v1::CpuSpec>,
) -> Result<VmSpec, SpecError> {
    let vcpus = spec.vcpus();
    let balloon = memory.and_then(|memory| memory.balloon);
    let balloon = balloon.map(|balloon| balloon_from_proto(balloon, spec.memory_mib())).transpose()?;
    let memory = memory.as_ref().map(memory_from_proto).transpose()?.unwrap_or_default();
    let cpus = cpus.map(|cpus| cpus_from_proto(&cpus, vcpus)).transpose()?.unwrap_or_default();
    spec.with_memory(memory)?.with_cpus(cpus)?.with_balloon(balloon)
}

fn balloon_from_proto(balloon: v1::BalloonSpec, memory_mib: u64) -> Result<BalloonSpec, SpecError> {
    BalloonSpec::new("spec.memory.balloon.keep_mib", kept_from_proto(balloon.keep_mib), memory_mib)
}

/// What a guest keeps, from a request: nothing is no number for it.
pub fn kept_from_proto(keep_mib: u64) -> Option<u64> {
    Some(keep_mib).filter(|&keep| keep != 0)
}

fn memory_from_proto(memory: &v1::MemorySpec) -> Result<MemorySpec, SpecError> {
    let unknown = || {
        let reason = format!("{} is no size of pages: NONE, SIZE_2M or SIZE_1G", memory.hugepages);
        SpecError::new("spec.memory.hugepages", reason)
    };
    let pages = match Hugepages::try_from(memory.hugepages).map_err(|_| unknown())? {
        Hugepages::None => PageSize::Small,
        Hugepages::Size2m => PageSize::Huge2M,
        Hugepages::Size1g => PageSize::Huge1G,
    };
    Ok(MemorySpec { pages, is_prefaulted: memory.prefault, numa_node: memory.numa_node })
}

fn cpus_from_proto(cpus: &v1::CpuSpec, vcpus: u32) -> Result<CpuSpec, SpecError> {
    let host_cpus = match cpus.host_cpus.as_str() {
        "" => None,
        list => Some(list.parse().map_err(|error: CpuListError| {
            let shown: String = list.chars().take(64).collect();
            SpecError::new("spec.cpus.host_cpus", format!("{shown:?}: {error}"))
        })?),
    };
    let topology = cpus.topology.as_ref().map(|t| Topology::new(t.sockets, t.cores, t.threads, vcpus)).transpose()?;
    Ok(CpuSpec { host_cpus, topology })
}

/// `None` for the default.
pub(super) fn memory_to_proto(memory: &MemorySpec, balloon: Option<&BalloonSpec>) -> Option<v1::MemorySpec> {
    let hugepages = match memory.pages {
        PageSize::Small => Hugepages::None,
        PageSize::Huge2M => Hugepages::Size2m,
        PageSize::Huge1G => Hugepages::Size1g,
    };
    let shown = v1::MemorySpec {
        hugepages: hugepages.into(),
        prefault: memory.is_prefaulted,
        numa_node: memory.numa_node,
        balloon: balloon.map(|balloon| v1::BalloonSpec { keep_mib: balloon.keep_mib().unwrap_or(0) }),
    };
    (*memory != MemorySpec::default() || balloon.is_some()).then_some(shown)
}

/// `None` for the default.
pub(super) fn cpus_to_proto(cpus: &CpuSpec) -> Option<v1::CpuSpec> {
    let topology = |t: Topology| v1::CpuTopology { sockets: t.sockets(), cores: t.cores(), threads: t.threads() };
    let shown = v1::CpuSpec {
        host_cpus: cpus.host_cpus.as_ref().map(ToString::to_string).unwrap_or_default(),
        topology: cpus.topology.map(topology),
    };
    (*cpus != CpuSpec::default()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootSpec, ImagePath};

    fn spec() -> VmSpec {
        let boot = BootSpec { kernel: ImagePath::new("k", "k").unwrap(), initrd: None, cmdline: String::new() };
        VmSpec::new(4, 1024, boot, vec![], vec![]).unwrap()
    }

    #[test]
    fn what_was_asked_for_is_what_is_shown() {
        let memory = v1::MemorySpec {
            hugepages: Hugepages::Size1g.into(),
            prefault: true,
            numa_node: Some(0),
            ..Default::default()
        };
        let topology = v1::CpuTopology { sockets: 1, cores: 2, threads: 2 };
        let cpus = v1::CpuSpec { host_cpus: "0-3".into(), topology: Some(topology) };
        let made = from_proto(spec(), Some(memory), Some(cpus.clone())).unwrap();
        assert_eq!(memory_to_proto(made.memory(), made.balloon()), Some(memory));
        assert_eq!(cpus_to_proto(made.cpus()), Some(cpus));
        let plain = from_proto(spec(), None, None).unwrap();
        assert_eq!((memory_to_proto(plain.memory(), None), cpus_to_proto(plain.cpus())), (None, None));
        for keep_mib in [0, 128] {
            let memory = v1::MemorySpec { balloon: Some(v1::BalloonSpec { keep_mib }), ..Default::default() };
            let made = from_proto(spec(), Some(memory), None).unwrap();
            assert_eq!(memory_to_proto(made.memory(), made.balloon()), Some(memory));
        }
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let memory = |memory| from_proto(spec(), Some(memory), None).unwrap_err().field;
        assert_eq!(memory(v1::MemorySpec { hugepages: 7, ..Default::default() }), "spec.memory.hugepages");
        assert_eq!(memory(v1::MemorySpec { numa_node: Some(9999), ..Default::default() }), "spec.memory.numa_node");
        let balloon = |keep_mib| v1::MemorySpec { balloon: Some(v1::BalloonSpec { keep_mib }), ..Default::default() };
        assert_eq!(memory(balloon(63)), "spec.memory.balloon.keep_mib");
        let huge = v1::MemorySpec { hugepages: Hugepages::Size1g.into(), ..balloon(0) };
        assert_eq!(memory(huge), "spec.memory.balloon");
        let cpus = |cpus| from_proto(spec(), None, Some(cpus)).unwrap_err().field;
        assert_eq!(cpus(v1::CpuSpec { host_cpus: "3-1".into(), ..Default::default() }), "spec.cpus.host_cpus");
        let topology = Some(v1::CpuTopology { sockets: 1, cores: 1, threads: 3 });
        assert_eq!(cpus(v1::CpuSpec { topology, ..Default::default() }), "spec.cpus.topology");
    }
}
