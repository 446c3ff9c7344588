//! What was asked for of a VM and its devices, as the API says it.

use std::collections::BTreeMap;

use crate::api::v1;

use super::super::args::{ConsoleArg, Hugepages, SpecArgs};
use super::super::failure::{Exit, Failure};
use super::super::units::{DiskArg, MemoryMib, NicArg, NvmeArg, Rates, TopologyArg};

pub(super) fn spec(arguments: SpecArgs) -> Result<v1::VirtualMachineSpec, Failure> {
    use v1::memory_spec::Hugepages as Pages;
    use v1::virtual_machine_spec::Console;
    let disks = arguments.disks.into_iter();
    let hugepages = match arguments.hugepages {
        None => Pages::None,
        Some(Hugepages::Size2M) => Pages::Size2m,
        Some(Hugepages::Size1G) => Pages::Size1g,
    };
    let console = match arguments.console {
        ConsoleArg::Serial => Console::Serial,
        ConsoleArg::Virtio => Console::Virtio,
    };
    let (prefault, numa_node) = (arguments.prefault, arguments.numa_node);
    let balloon = arguments.balloon.map(|keep| v1::BalloonSpec { keep_mib: keep.map_or(0, |MemoryMib(keep)| keep) });
    let memory = v1::MemorySpec { hugepages: hugepages.into(), prefault, numa_node, balloon };
    let topology =
        arguments.topology.map(|TopologyArg { sockets, cores, threads }| v1::CpuTopology { sockets, cores, threads });
    Ok(v1::VirtualMachineSpec {
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory.0,
        boot: Some(v1::BootSpec {
            kernel: arguments.kernel,
            initrd: arguments.initrd.unwrap_or_default(),
            cmdline: arguments.cmdline,
        }),
        disks: disks.map(disk).collect(),
        nics: arguments.nics.into_iter().map(nic).collect(),
        memory: Some(memory),
        cpus: Some(v1::CpuSpec { host_cpus: arguments.cpus.unwrap_or_default(), topology }),
        nvme: arguments.nvmes.into_iter().map(nvme).collect(),
        vsock: arguments.vsock.map(|cid| v1::VsockSpec { cid }),
        console: console.into(),
        labels: labels(arguments.labels)?,
    })
}

fn labels(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if labels.insert(key.clone(), value).is_some() {
            return Err(Failure::new(Exit::Usage, format!("label {key:?} is given twice")));
        }
    }
    Ok(labels)
}

pub(super) fn disk(disk: DiskArg) -> v1::DiskSpec {
    let DiskArg { id, volume, is_read_only, is_direct, queues, rates } = disk;
    v1::DiskSpec { id, volume, read_only: is_read_only, direct: is_direct, queues, limits: limits(rates) }
}

pub(super) fn nvme(nvme: NvmeArg) -> v1::NvmeSpec {
    use v1::nvme_spec::Kind;
    let kind = match nvme.min_bytes {
        Some(min_bytes) => Kind::Namespace(v1::NvmeNamespace { min_bytes }),
        None => Kind::Controller(v1::NvmeController {}),
    };
    v1::NvmeSpec { id: nvme.id, kind: Some(kind) }
}

pub(super) fn nic(nic: NicArg) -> v1::NicSpec {
    let sriov = nic.sriov.map(|sriov| v1::SriovNic { mac: sriov.mac, vlan: sriov.vlan });
    v1::NicSpec { id: nic.id, sriov, limits: limits(nic.rates), queues: nic.queues, vhost: nic.has_vhost }
}

fn limits(rates: Rates) -> Option<v1::RateLimits> {
    let Rates { bandwidth: bytes_per_second, iops: operations_per_second } = rates;
    let limits = v1::RateLimits { bytes_per_second, operations_per_second, ..Default::default() };
    (rates != Rates::default()).then_some(limits)
}
