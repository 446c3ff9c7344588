//! [`Launch`] to bytes and back: the content of the sealed configuration.

use prost::Message;

use super::{WireError, proto};
use crate::model::{
    CpuSpec, DeviceKind, DeviceLaunch, Launch, MAX_DISK_QUEUES, MAX_NIC_QUEUES, MacAddr, MemorySpec, PageSize, PciSlot,
    Rate, RateLimits, ServedBy, Topology, VsockSpec,
};

/// The sealed configuration's bytes.
pub fn encode_launch(launch: &Launch) -> Vec<u8> {
    proto::Launch {
        vm: launch.vm.to_string(),
        instance: launch.instance.to_string(),
        vcpus: launch.vcpus,
        memory_bytes: launch.memory_bytes,
        cmdline: launch.cmdline.clone(),
        devices: launch.devices.iter().map(encode_device).collect(),
        has_initrd: launch.has_initrd,
        request_id: launch.request.clone(),
        hugepage_mib: match launch.memory.pages {
            PageSize::Small => 0,
            PageSize::Huge2M => 2,
            PageSize::Huge1G => 1024,
        },
        prefault: launch.memory.is_prefaulted,
        numa_node: launch.memory.numa_node,
        host_cpus: launch.cpus.host_cpus.as_ref().map(ToString::to_string).unwrap_or_default(),
        sockets: launch.cpus.topology.map_or(0, Topology::sockets),
        cores: launch.cpus.topology.map_or(0, Topology::cores),
        threads: launch.cpus.topology.map_or(0, Topology::threads),
    }
    .encode_to_vec()
}

/// Reads a configuration. Slots are checked to be distinct.
pub fn decode_launch(bytes: &[u8]) -> Result<Launch, WireError> {
    let launch = proto::Launch::decode(bytes)?;
    let (memory, cpus) = (decode_memory(&launch)?, decode_cpus(&launch)?);
    let devices = launch.devices.into_iter().map(decode_device).collect::<Result<Vec<_>, _>>()?;
    let mut slots: Vec<_> = devices.iter().map(|device| device.slot).collect();
    slots.sort();
    slots.dedup();
    if slots.len() != devices.len() {
        return Err(WireError::Malformed("two devices in one slot"));
    }
    if launch.vcpus == 0 || launch.memory_bytes == 0 || launch.memory_bytes % (1 << 20) != 0 {
        return Err(WireError::Malformed("vCPUs or memory out of range"));
    }
    Ok(Launch {
        vm: launch.vm.parse()?,
        instance: launch.instance.parse()?,
        vcpus: launch.vcpus,
        memory_bytes: launch.memory_bytes,
        cmdline: launch.cmdline,
        has_initrd: launch.has_initrd,
        devices,
        request: launch.request_id,
        memory,
        cpus,
    })
}

fn decode_memory(launch: &proto::Launch) -> Result<MemorySpec, WireError> {
    let pages = match launch.hugepage_mib {
        0 => PageSize::Small,
        2 => PageSize::Huge2M,
        1024 => PageSize::Huge1G,
        _ => return Err(WireError::Malformed("page size")),
    };
    if !launch.memory_bytes.is_multiple_of(pages.bytes()) {
        return Err(WireError::Malformed("no whole number of pages"));
    }
    Ok(MemorySpec { pages, is_prefaulted: launch.prefault, numa_node: launch.numa_node })
}

fn decode_cpus(launch: &proto::Launch) -> Result<CpuSpec, WireError> {
    let host_cpus = match launch.host_cpus.as_str() {
        "" => None,
        list => Some(list.parse().map_err(|_| WireError::Malformed("CPU list"))?),
    };
    let topology = match (launch.sockets, launch.cores, launch.threads) {
        (0, 0, 0) => None,
        (sockets, cores, threads) => Some(
            Topology::new(sockets, cores, threads, launch.vcpus).map_err(|_| WireError::Malformed("CPU topology"))?,
        ),
    };
    Ok(CpuSpec { host_cpus, topology })
}

pub(super) fn encode_device(device: &DeviceLaunch) -> proto::Device {
    use proto::device::Kind;
    let kind = match &device.kind {
        DeviceKind::Block { is_read_only, queues, limits } => Kind::Block(proto::Block {
            read_only: *is_read_only,
            queues: (*queues).into(),
            limits: Some(encode_limits(*limits)),
        }),
        DeviceKind::Net { mac, limits, queues, served_by } => Kind::Net(proto::Net {
            mac: mac.0.to_vec(),
            limits: Some(encode_limits(*limits)),
            queues: (*queues).into(),
            vhost: *served_by == ServedBy::Kernel,
        }),
        DeviceKind::Rng => Kind::Rng(proto::Rng {}),
        DeviceKind::Vsock { cid } => Kind::Vsock(proto::Vsock { cid: *cid }),
        DeviceKind::Console => Kind::Console(proto::Console {}),
        DeviceKind::Balloon { keep_mib } => Kind::Balloon(encode_balloon(*keep_mib)),
        DeviceKind::Vfio { host } => Kind::Vfio(proto::Vfio { host: host.to_string() }),
    };
    proto::Device { id: device.id.to_string(), slot: device.slot.number().into(), kind: Some(kind) }
}

pub(super) fn decode_device(device: proto::Device) -> Result<DeviceLaunch, WireError> {
    use proto::device::Kind;
    let slot = u8::try_from(device.slot).ok().and_then(PciSlot::new).ok_or(WireError::Malformed("slot"))?;
    let kind = match device.kind.ok_or(WireError::Malformed("device without a kind"))? {
        Kind::Block(block) => {
            let queues = u16::try_from(block.queues).ok().filter(|queues| (1..=MAX_DISK_QUEUES).contains(queues));
            let queues = queues.ok_or(WireError::Malformed("queues of a disk"))?;
            DeviceKind::Block { is_read_only: block.read_only, queues, limits: decode_limits(block.limits)? }
        }
        Kind::Net(net) => {
            let mac = net.mac.try_into().map_err(|_| WireError::Malformed("MAC address"))?;
            let queues = u16::try_from(net.queues).ok().filter(|queues| (1..=MAX_NIC_QUEUES).contains(queues));
            let queues = queues.ok_or(WireError::Malformed("queues of a NIC"))?;
            let limits = decode_limits(net.limits)?;
            let served_by = if net.vhost { ServedBy::Kernel } else { ServedBy::Vmm };
            if net.vhost && limits != RateLimits::default() {
                return Err(WireError::Malformed("limits of a NIC that the kernel serves"));
            }
            DeviceKind::Net { mac: MacAddr(mac), limits, queues, served_by }
        }
        Kind::Rng(_) => DeviceKind::Rng,
        Kind::Vsock(vsock) => {
            let vsock = VsockSpec::new(vsock.cid).map_err(|_| WireError::Malformed("context id"))?;
            DeviceKind::Vsock { cid: vsock.cid() }
        }
        Kind::Console(_) => DeviceKind::Console,
        Kind::Balloon(balloon) => DeviceKind::Balloon { keep_mib: decode_balloon(balloon) },
        Kind::Vfio(vfio) => {
            DeviceKind::Vfio { host: vfio.host.parse().map_err(|_| WireError::Malformed("address on the host"))? }
        }
    };
    Ok(DeviceLaunch { id: device.id.parse()?, slot, kind })
}

/// What a guest keeps, as it travels.
pub(super) fn encode_balloon(keep_mib: Option<u64>) -> proto::Balloon {
    proto::Balloon { keep_mib: keep_mib.unwrap_or(0) }
}

/// Reads what a guest keeps: nothing is no number for it.
pub(super) fn decode_balloon(balloon: proto::Balloon) -> Option<u64> {
    Some(balloon.keep_mib).filter(|&keep| keep != 0)
}

/// Limits as they travel.
pub(super) fn encode_limits(limits: RateLimits) -> proto::RateLimits {
    let RateLimits { bandwidth, operations } = limits;
    let parts = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.per_second(), rate.burst()));
    let ((bytes_per_second, bytes_burst), (operations_per_second, operations_burst)) =
        (parts(bandwidth), parts(operations));
    proto::RateLimits { bytes_per_second, bytes_burst, operations_per_second, operations_burst }
}

/// Reads limits; none at all is without limit.
pub(super) fn decode_limits(limits: Option<proto::RateLimits>) -> Result<RateLimits, WireError> {
    let limits = limits.unwrap_or_default();
    let rate = |per_second, burst| match per_second {
        0 => Ok(None),
        _ => Rate::new("limits", per_second, burst).map(Some).map_err(|_| WireError::Malformed("rate limit")),
    };
    Ok(RateLimits {
        bandwidth: rate(limits.bytes_per_second, limits.bytes_burst)?,
        operations: rate(limits.operations_per_second, limits.operations_burst)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, VmId};
    use proptest::prelude::*;

    fn limits() -> RateLimits {
        let rate = |per_second, burst| Rate::new("f", per_second, burst).ok();
        RateLimits { bandwidth: rate(10 << 20, 1 << 20), operations: rate(500, 0) }
    }

    fn net(limits: RateLimits, served_by: ServedBy) -> DeviceKind {
        DeviceKind::Net { mac: MacAddr([2, 0, 0, 0, 0, 1]), limits, queues: 2, served_by }
    }

    fn launch() -> Launch {
        let device =
            |id: &str, slot, kind| DeviceLaunch { id: id.parse().unwrap(), slot: PciSlot::new(slot).unwrap(), kind };
        Launch {
            vm: VmId::new(),
            instance: InstanceId::new(),
            vcpus: 2,
            request: "01J".into(),
            memory: MemorySpec { pages: PageSize::Huge1G, is_prefaulted: true, numa_node: Some(0) },
            cpus: CpuSpec { host_cpus: "0-1,4".parse().ok(), topology: Topology::new(1, 1, 2, 2).ok() },
            memory_bytes: 5 << 30,
            cmdline: "console=ttyS0".into(),
            has_initrd: true,
            devices: vec![
                device("rng", 1, DeviceKind::Rng),
                device("root", 2, DeviceKind::Block { is_read_only: true, queues: 4, limits: limits() }),
                device("net", 3, net(limits(), ServedBy::Vmm)),
                device("fast", 7, net(RateLimits::default(), ServedBy::Kernel)),
                device("vsock", 5, DeviceKind::Vsock { cid: 3 }),
                device("balloon", 6, DeviceKind::Balloon { keep_mib: Some(128) }),
                device("console", 8, DeviceKind::Console),
                device("vf", 4, DeviceKind::Vfio { host: "0000:03:10.1".parse().unwrap() }),
            ],
        }
    }

    #[test]
    fn round_trips() {
        let launch = launch();
        assert_eq!(decode_launch(&encode_launch(&launch)).unwrap(), launch);
    }

    #[test]
    fn refuses_two_devices_in_one_slot() {
        let mut launch = launch();
        launch.devices[1].slot = launch.devices[0].slot;
        assert!(decode_launch(&encode_launch(&launch)).is_err());
    }

    #[test]
    fn refuses_a_disk_without_queues_or_with_too_many() {
        for queues in [0, MAX_DISK_QUEUES + 1] {
            let mut launch = launch();
            launch.devices[1].kind = DeviceKind::Block { is_read_only: false, queues, limits: limits() };
            assert!(decode_launch(&encode_launch(&launch)).is_err());
        }
    }

    #[test]
    fn refuses_limits_that_nobody_would_keep() {
        let mut launch = launch();
        launch.devices[2].kind = net(limits(), ServedBy::Kernel);
        assert!(decode_launch(&encode_launch(&launch)).is_err());
    }

    #[test]
    fn refuses_memory_that_is_no_whole_number_of_pages() {
        let launch = Launch { memory_bytes: (5 << 30) + (1 << 20), ..launch() };
        assert!(decode_launch(&encode_launch(&launch)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_launch(&bytes);
        }
    }
}
