//! What a VM is to be, as it is in the file. Key type: [`StoredSpec`]; key functions: [`store_spec`], [`load_spec`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::{Unusable, text};
use super::nvme;
use crate::model::{
    BalloonSpec, BootSpec, ConsoleSpec, CpuSpec, DiskSpec, ImagePath, Labels, MemorySpec, NicBackend, NicSpec,
    PageSize, Rate, RateLimits, ServedBy, TapSpec, Topology, VfWish, VlanId, VmSpec, VsockSpec,
};

#[derive(Serialize, Deserialize)]
pub(super) struct StoredSpec {
    vcpus: u32,
    memory_mib: u64,
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    disks: Vec<StoredDisk>,
    nics: Vec<String>,
    /// Those of `nics` that are virtual functions, with what is asked of them.
    #[serde(default)]
    vf_wishes: BTreeMap<String, StoredWish>,
    #[serde(default)]
    nvmes: Vec<nvme::StoredSpec>,
    /// The others, where there is something to say.
    #[serde(default)]
    taps: BTreeMap<String, StoredTap>,
    #[serde(default)]
    resources: StoredResources,
    /// The guest's context id.
    #[serde(default)]
    vsock: Option<u32>,
    #[serde(default)]
    balloon: Option<StoredBalloon>,
    /// A virtio console in place of COM1.
    #[serde(default)]
    hvc: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct StoredBalloon {
    keep_mib: Option<u64>,
}

/// What a record of before this had by default.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredResources {
    /// 0: ordinary pages.
    hugepage_mib: u32,
    prefault: bool,
    numa_node: Option<u32>,
    host_cpus: Option<String>,
    /// Sockets, cores, threads.
    topology: Option<[u32; 3]>,
}

#[derive(Serialize, Deserialize)]
struct StoredWish {
    mac: Option<String>,
    vlan: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct StoredDisk {
    id: String,
    volume: String,
    read_only: bool,
    #[serde(default)]
    direct: bool,
    #[serde(default = "one")]
    queues: u16,
    #[serde(default)]
    limits: StoredLimits,
}

/// What there is to say of a NIC on a tap.
#[derive(Serialize, Deserialize)]
struct StoredTap {
    #[serde(default)]
    limits: StoredLimits,
    #[serde(default = "one")]
    queues: u16,
    /// The kernel moves its frames.
    #[serde(default)]
    vhost: bool,
}

/// Per second and at once; a rate of 0: no limit.
#[derive(Default, Serialize, Deserialize)]
struct StoredLimits {
    bytes: (u64, u64),
    operations: (u64, u64),
}

/// Queues of a device from before it could have several.
fn one() -> u16 {
    1
}

pub(super) fn store_spec(spec: &VmSpec) -> StoredSpec {
    let boot = spec.boot();
    StoredSpec {
        vcpus: spec.vcpus(),
        memory_mib: spec.memory_mib(),
        kernel: boot.kernel.to_string(),
        initrd: boot.initrd.as_ref().map(ImagePath::to_string),
        cmdline: boot.cmdline.clone(),
        disks: spec
            .disks()
            .iter()
            .map(|disk| StoredDisk {
                id: disk.id.to_string(),
                volume: disk.volume.to_string(),
                read_only: disk.is_read_only,
                direct: disk.is_direct,
                queues: disk.queues,
                limits: store_limits(disk.limits),
            })
            .collect(),
        nics: spec.nics().iter().map(|nic| nic.id.to_string()).collect(),
        vf_wishes: spec
            .nics()
            .iter()
            .filter_map(|nic| Some((nic.id.to_string(), store_wish(nic.vf_wish()?))))
            .collect(),
        taps: spec.nics().iter().filter_map(|nic| Some((nic.id.to_string(), store_tap(nic.tap()?)))).collect(),
        resources: store_resources(spec),
        nvmes: spec.nvmes().iter().map(nvme::store_spec).collect(),
        vsock: spec.vsock().map(VsockSpec::cid),
        balloon: spec.balloon().map(|balloon| StoredBalloon { keep_mib: balloon.keep_mib() }),
        hvc: spec.console() != ConsoleSpec::Serial,
        labels: spec.labels().as_map().clone(),
    }
}

fn store_tap(tap: TapSpec) -> StoredTap {
    let vhost = tap.served_by == ServedBy::Kernel;
    StoredTap { limits: store_limits(tap.limits), queues: tap.queues, vhost }
}

fn load_tap(tap: &StoredTap) -> Result<TapSpec, Unusable> {
    let served_by = if tap.vhost { ServedBy::Kernel } else { ServedBy::Vmm };
    Ok(TapSpec { limits: load_limits(&tap.limits)?, queues: tap.queues, served_by })
}

fn store_limits(limits: RateLimits) -> StoredLimits {
    let parts = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.per_second(), rate.burst()));
    StoredLimits { bytes: parts(limits.bandwidth), operations: parts(limits.operations) }
}

fn load_limits(limits: &StoredLimits) -> Result<RateLimits, Unusable> {
    let rate = |(per_second, burst)| match per_second {
        0 => Ok(None),
        _ => Rate::new("limits", per_second, burst).map(Some).map_err(text),
    };
    Ok(RateLimits { bandwidth: rate(limits.bytes)?, operations: rate(limits.operations)? })
}

fn store_resources(spec: &VmSpec) -> StoredResources {
    let (memory, cpus) = (spec.memory(), spec.cpus());
    StoredResources {
        hugepage_mib: if memory.pages.is_huge() { (memory.pages.bytes() >> 20) as u32 } else { 0 },
        prefault: memory.is_prefaulted,
        numa_node: memory.numa_node,
        host_cpus: cpus.host_cpus.as_ref().map(ToString::to_string),
        topology: cpus.topology.map(|t| [t.sockets(), t.cores(), t.threads()]),
    }
}

fn load_resources(spec: VmSpec, stored: StoredResources) -> Result<VmSpec, Unusable> {
    let pages = match stored.hugepage_mib {
        0 => PageSize::Small,
        2 => PageSize::Huge2M,
        1024 => PageSize::Huge1G,
        other => return Err(format!("there are no pages of {other} MiB")),
    };
    let memory = MemorySpec { pages, is_prefaulted: stored.prefault, numa_node: stored.numa_node };
    let topology =
        stored.topology.map(|[sockets, cores, threads]| Topology::new(sockets, cores, threads, spec.vcpus()));
    let topology = topology.transpose().map_err(text)?;
    let host_cpus = stored.host_cpus.map(|list| list.parse().map_err(text)).transpose()?;
    spec.with_memory(memory).and_then(|spec| spec.with_cpus(CpuSpec { host_cpus, topology })).map_err(text)
}

fn store_wish(wish: VfWish) -> StoredWish {
    StoredWish { mac: wish.mac.map(|mac| mac.to_string()), vlan: wish.vlan.map(VlanId::number) }
}

fn load_wish(wish: &StoredWish) -> Result<VfWish, Unusable> {
    let vlan = |number| VlanId::new(number).ok_or_else(|| format!("{number} is no VLAN"));
    Ok(VfWish {
        mac: wish.mac.as_ref().map(|mac| mac.parse()).transpose().map_err(text)?,
        vlan: wish.vlan.map(vlan).transpose()?,
    })
}

pub(super) fn load_spec(spec: StoredSpec) -> Result<VmSpec, Unusable> {
    let boot = BootSpec {
        kernel: ImagePath::new("kernel", &spec.kernel).map_err(text)?,
        initrd: spec.initrd.map(|path| ImagePath::new("initrd", &path)).transpose().map_err(text)?,
        cmdline: spec.cmdline,
    };
    let disks = spec.disks.into_iter().map(|disk| {
        Ok::<_, Unusable>(DiskSpec {
            id: disk.id.parse().map_err(text)?,
            volume: ImagePath::new("volume", &disk.volume).map_err(text)?,
            is_read_only: disk.read_only,
            is_direct: disk.direct,
            queues: disk.queues,
            limits: load_limits(&disk.limits)?,
        })
    });
    let disks = disks.collect::<Result<_, _>>()?;
    let nics = spec.nics.iter().map(|id| {
        let wish = spec.vf_wishes.get(id).map(load_wish).transpose()?;
        let tap = spec.taps.get(id).map(load_tap).transpose()?.unwrap_or_default();
        let backend = wish.map_or(NicBackend::Tap(tap), NicBackend::Sriov);
        Ok::<_, Unusable>(NicSpec { id: id.parse().map_err(text)?, backend })
    });
    let nics = nics.collect::<Result<_, _>>()?;
    let nvmes = spec.nvmes.into_iter().map(nvme::load_spec).collect::<Result<_, _>>()?;
    let whole = VmSpec::new(spec.vcpus, spec.memory_mib, boot, disks, nics).map_err(text)?;
    let vsock = spec.vsock.map(VsockSpec::new).transpose().map_err(text)?;
    let whole = whole.with_nvmes(nvmes).and_then(|whole| whole.with_vsock(vsock)).map_err(text)?;
    let balloon = spec.balloon.map(|stored| BalloonSpec::new("balloon", stored.keep_mib, whole.memory_mib()));
    let balloon = balloon.transpose().map_err(text)?;
    let console = if spec.hvc { ConsoleSpec::Virtio } else { ConsoleSpec::Serial };
    let whole = load_resources(whole, spec.resources)?.with_balloon(balloon);
    let labels = Labels::restored(spec.labels).map_err(text)?;
    Ok(whole.and_then(|whole| whole.with_console(console)).map_err(text)?.with_labels(labels))
}
