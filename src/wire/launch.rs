//! [`Launch`] to bytes and back: the content of the sealed configuration.

use prost::Message;

use super::{WireError, proto};
use crate::model::{DeviceKind, DeviceLaunch, Launch, MacAddr, PciSlot};

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
    }
    .encode_to_vec()
}

/// Reads a configuration. Slots are checked to be distinct.
pub fn decode_launch(bytes: &[u8]) -> Result<Launch, WireError> {
    let launch = proto::Launch::decode(bytes)?;
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
    })
}

pub(super) fn encode_device(device: &DeviceLaunch) -> proto::Device {
    use proto::device::Kind;
    let kind = match &device.kind {
        DeviceKind::Block { is_read_only } => Kind::Block(proto::Block { read_only: *is_read_only }),
        DeviceKind::Net { mac } => Kind::Net(proto::Net { mac: mac.0.to_vec() }),
        DeviceKind::Rng => Kind::Rng(proto::Rng {}),
        DeviceKind::Vfio { host } => Kind::Vfio(proto::Vfio { host: host.to_string() }),
    };
    proto::Device { id: device.id.to_string(), slot: device.slot.number().into(), kind: Some(kind) }
}

pub(super) fn decode_device(device: proto::Device) -> Result<DeviceLaunch, WireError> {
    use proto::device::Kind;
    let slot = u8::try_from(device.slot).ok().and_then(PciSlot::new).ok_or(WireError::Malformed("slot"))?;
    let kind = match device.kind.ok_or(WireError::Malformed("device without a kind"))? {
        Kind::Block(block) => DeviceKind::Block { is_read_only: block.read_only },
        Kind::Net(net) => {
            let mac = net.mac.try_into().map_err(|_| WireError::Malformed("MAC address"))?;
            DeviceKind::Net { mac: MacAddr(mac) }
        }
        Kind::Rng(_) => DeviceKind::Rng,
        Kind::Vfio(vfio) => {
            DeviceKind::Vfio { host: vfio.host.parse().map_err(|_| WireError::Malformed("address on the host"))? }
        }
    };
    Ok(DeviceLaunch { id: device.id.parse()?, slot, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, VmId};
    use proptest::prelude::*;

    fn launch() -> Launch {
        let device =
            |id: &str, slot, kind| DeviceLaunch { id: id.parse().unwrap(), slot: PciSlot::new(slot).unwrap(), kind };
        Launch {
            vm: VmId::new(),
            instance: InstanceId::new(),
            vcpus: 2,
            memory_bytes: 5 << 30,
            cmdline: "console=ttyS0".into(),
            has_initrd: true,
            devices: vec![
                device("rng", 1, DeviceKind::Rng),
                device("root", 2, DeviceKind::Block { is_read_only: true }),
                device("net", 3, DeviceKind::Net { mac: MacAddr([2, 0, 0, 0, 0, 1]) }),
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

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_launch(&bytes);
        }
    }
}
