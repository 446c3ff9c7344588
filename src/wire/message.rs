//! The packets, typed. Key types: [`ToVmm`], [`FromVmm`], [`Role`].

use prost::Message;

use super::launch::{decode_device, encode_device};
use super::{MAX_DESCRIPTORS, MAX_PACKET_LEN, VERSION, proto};
use crate::model::{DeviceId, DeviceLaunch, IdError, InstanceId, VmExit, VmId};

/// Why a packet was refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not a message of this contract.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// Not protobuf at all.
    #[error("undecodable packet")]
    Undecodable(#[from] prost::DecodeError),
    /// An id in it is not one.
    #[error("bad id in packet")]
    BadId(#[from] IdError),
    /// The other end is of another version.
    #[error("the other end speaks version {theirs} of the control protocol, this one version {VERSION}")]
    Version {
        /// What the other end speaks.
        theirs: u32,
    },
    /// The packet exceeds a bound of this contract.
    #[error("packet too large: {0}")]
    TooLarge(&'static str),
}

/// What a descriptor is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sealed memfd with the encoded launch.
    Config,
    /// `/dev/kvm`.
    Kvm,
    /// Kernel image.
    Kernel,
    /// Initial RAM disk.
    Initrd,
    /// Disk image or tap of this device.
    Device(DeviceId),
    /// Listening stream socket of the console.
    ConsoleListener,
    /// The console's past, shared with the host.
    ConsoleRing,
    /// Where the vmm writes how it ended.
    ExitRecord,
}

/// Daemon to vmm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToVmm {
    /// Build and run; the descriptors come in this order.
    Launch {
        /// What each descriptor of the packet is for.
        roles: Vec<Role>,
    },
    /// Press the ACPI power button.
    PowerButton,
    /// End at once.
    Kill,
    /// Take this device; all descriptors of the packet are its own.
    Attach(DeviceLaunch),
    /// Give a device up.
    Detach {
        /// Which.
        id: DeviceId,
        /// Without asking the guest.
        is_forced: bool,
    },
}

/// Vmm to daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromVmm {
    /// Who answers on this socket.
    Hello {
        /// The VM.
        vm: VmId,
        /// The run.
        instance: InstanceId,
        /// The devices that it has.
        devices: Vec<DeviceId>,
    },
    /// vCPUs run.
    Ready {
        /// From the start of `main` to the first vCPU run, in nanoseconds.
        build_ns: u64,
    },
    /// The run is over; the process exits next.
    Ended(VmExit),
    /// The device is on the bus, and the guest has been told.
    Attached(DeviceId),
    /// The device could not be attached; nothing of it is left.
    AttachFailed {
        /// Which.
        id: DeviceId,
        /// Why.
        cause: String,
        /// No thread, ring or slot is left for it.
        is_exhausted: bool,
    },
    /// The guest has been asked for the device.
    DetachAsked(DeviceId),
    /// The device is gone, and everything that the vmm had of it.
    Detached(DeviceId),
    /// There is nothing to detach.
    DetachFailed {
        /// Which.
        id: DeviceId,
        /// Why.
        cause: String,
    },
}

impl ToVmm {
    /// The packet's bytes.
    pub fn encode(&self) -> Vec<u8> {
        use proto::to_vmm::Body;
        let body = match self {
            Self::Launch { roles } => Body::Launch(proto::LaunchHeader {
                version: VERSION,
                descriptors: roles.iter().map(encode_role).collect(),
            }),
            Self::PowerButton => Body::PowerButton(proto::PowerButton {}),
            Self::Kill => Body::Kill(proto::Kill {}),
            Self::Attach(device) => Body::Attach(proto::Attach { device: Some(encode_device(device)) }),
            Self::Detach { id, is_forced } => Body::Detach(proto::Detach { id: id.to_string(), forced: *is_forced }),
        };
        proto::ToVmm { body: Some(body) }.encode_to_vec()
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        use proto::to_vmm::Body;
        check_len(packet)?;
        match proto::ToVmm::decode(packet)?.body.ok_or(WireError::Malformed("empty"))? {
            Body::Launch(header) => {
                check_version(header.version)?;
                if header.descriptors.len() > MAX_DESCRIPTORS {
                    return Err(WireError::TooLarge("descriptors"));
                }
                let roles = header.descriptors.into_iter().map(decode_role).collect::<Result<_, _>>()?;
                Ok(Self::Launch { roles })
            }
            Body::PowerButton(_) => Ok(Self::PowerButton),
            Body::Kill(_) => Ok(Self::Kill),
            Body::Attach(attach) => {
                let device = attach.device.ok_or(WireError::Malformed("attach without a device"))?;
                Ok(Self::Attach(decode_device(device)?))
            }
            Body::Detach(detach) => Ok(Self::Detach { id: detach.id.parse()?, is_forced: detach.forced }),
        }
    }
}

impl FromVmm {
    /// The packet's bytes.
    pub fn encode(&self) -> Vec<u8> {
        use proto::from_vmm::Body;
        let body = match self {
            Self::Hello { vm, instance, devices } => Body::Hello(proto::Hello {
                version: VERSION,
                vm: vm.to_string(),
                instance: instance.to_string(),
                devices: devices.iter().map(DeviceId::to_string).collect(),
            }),
            Self::Ready { build_ns } => Body::Ready(proto::Ready { build_ns: *build_ns }),
            Self::Ended(exit) => Body::Ended(ended_to_proto(exit)),
            Self::Attached(id) => Body::Attached(proto::Attached { id: id.to_string() }),
            Self::AttachFailed { id, cause, is_exhausted } => Body::AttachFailed(proto::AttachFailed {
                id: id.to_string(),
                cause: cause.clone(),
                exhausted: *is_exhausted,
            }),
            Self::DetachAsked(id) => Body::DetachAsked(proto::DetachAsked { id: id.to_string() }),
            Self::Detached(id) => Body::Detached(proto::Detached { id: id.to_string() }),
            Self::DetachFailed { id, cause } => {
                Body::DetachFailed(proto::DetachFailed { id: id.to_string(), cause: cause.clone() })
            }
        };
        proto::FromVmm { body: Some(body) }.encode_to_vec()
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        use proto::from_vmm::Body;
        check_len(packet)?;
        match proto::FromVmm::decode(packet)?.body.ok_or(WireError::Malformed("empty"))? {
            Body::Hello(hello) => {
                check_version(hello.version)?;
                let devices = hello.devices.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
                Ok(Self::Hello { vm: hello.vm.parse()?, instance: hello.instance.parse()?, devices })
            }
            Body::Ready(ready) => Ok(Self::Ready { build_ns: ready.build_ns }),
            Body::Ended(ended) => Ok(Self::Ended(ended_from_proto(ended)?)),
            Body::Attached(attached) => Ok(Self::Attached(attached.id.parse()?)),
            Body::AttachFailed(failed) => {
                Ok(Self::AttachFailed { id: failed.id.parse()?, cause: failed.cause, is_exhausted: failed.exhausted })
            }
            Body::DetachAsked(asked) => Ok(Self::DetachAsked(asked.id.parse()?)),
            Body::Detached(detached) => Ok(Self::Detached(detached.id.parse()?)),
            Body::DetachFailed(failed) => Ok(Self::DetachFailed { id: failed.id.parse()?, cause: failed.cause }),
        }
    }
}

/// The exit record's bytes.
pub fn encode_ended(exit: &VmExit) -> Vec<u8> {
    ended_to_proto(exit).encode_to_vec()
}

/// Reads an exit record; an empty one (the vmm never wrote it) is malformed.
pub fn decode_ended(record: &[u8]) -> Result<VmExit, WireError> {
    check_len(record)?;
    ended_from_proto(proto::Ended::decode(record)?)
}

fn check_len(packet: &[u8]) -> Result<(), WireError> {
    if packet.len() > MAX_PACKET_LEN { Err(WireError::TooLarge("bytes")) } else { Ok(()) }
}

fn check_version(theirs: u32) -> Result<(), WireError> {
    if theirs == VERSION { Ok(()) } else { Err(WireError::Version { theirs }) }
}

fn ended_to_proto(exit: &VmExit) -> proto::Ended {
    use proto::ended::Kind;
    let (kind, cause) = match exit {
        VmExit::PowerOff => (Kind::PowerOff, ""),
        VmExit::Reset => (Kind::Reset, ""),
        VmExit::TripleFault => (Kind::TripleFault, ""),
        VmExit::Killed => (Kind::Killed, ""),
        VmExit::LaunchFailed(cause) => (Kind::LaunchFailed, cause.as_str()),
        VmExit::HostError(cause) | VmExit::Vanished(cause) => (Kind::HostError, cause.as_str()),
    };
    proto::Ended { kind: kind.into(), cause: cause.to_owned() }
}

fn ended_from_proto(ended: proto::Ended) -> Result<VmExit, WireError> {
    use proto::ended::Kind;
    match ended.kind() {
        Kind::Unspecified => Err(WireError::Malformed("end without a kind")),
        Kind::PowerOff => Ok(VmExit::PowerOff),
        Kind::Reset => Ok(VmExit::Reset),
        Kind::TripleFault => Ok(VmExit::TripleFault),
        Kind::Killed => Ok(VmExit::Killed),
        Kind::LaunchFailed => Ok(VmExit::LaunchFailed(ended.cause)),
        Kind::HostError => Ok(VmExit::HostError(ended.cause)),
    }
}

fn encode_role(role: &Role) -> proto::Descriptor {
    use proto::descriptor::Role as Wire;
    let (wire, device_id) = match role {
        Role::Config => (Wire::Config, ""),
        Role::Kvm => (Wire::Kvm, ""),
        Role::Kernel => (Wire::Kernel, ""),
        Role::Initrd => (Wire::Initrd, ""),
        Role::Device(id) => (Wire::Device, id.as_str()),
        Role::ConsoleListener => (Wire::ConsoleListener, ""),
        Role::ConsoleRing => (Wire::ConsoleRing, ""),
        Role::ExitRecord => (Wire::ExitRecord, ""),
    };
    proto::Descriptor { role: wire.into(), device_id: device_id.to_owned() }
}

fn decode_role(descriptor: proto::Descriptor) -> Result<Role, WireError> {
    use proto::descriptor::Role as Wire;
    Ok(match descriptor.role() {
        Wire::Unspecified => return Err(WireError::Malformed("descriptor without a role")),
        Wire::Config => Role::Config,
        Wire::Kvm => Role::Kvm,
        Wire::Kernel => Role::Kernel,
        Wire::Initrd => Role::Initrd,
        Wire::Device => Role::Device(descriptor.device_id.parse()?),
        Wire::ConsoleListener => Role::ConsoleListener,
        Wire::ConsoleRing => Role::ConsoleRing,
        Wire::ExitRecord => Role::ExitRecord,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceKind, PciSlot};
    use proptest::prelude::*;

    #[test]
    fn every_message_round_trips() {
        let roles = vec![
            Role::Config,
            Role::Kvm,
            Role::Kernel,
            Role::Initrd,
            Role::Device("data".parse().unwrap()),
            Role::ConsoleListener,
            Role::ConsoleRing,
            Role::ExitRecord,
        ];
        let data: DeviceId = "data".parse().unwrap();
        let kind = DeviceKind::Block { is_read_only: true };
        let plan = DeviceLaunch { id: data.clone(), slot: PciSlot::new(31).unwrap(), kind };
        let detach = ToVmm::Detach { id: data.clone(), is_forced: true };
        for message in [ToVmm::Launch { roles }, ToVmm::PowerButton, ToVmm::Kill, ToVmm::Attach(plan), detach] {
            assert_eq!(ToVmm::decode(&message.encode()).unwrap(), message);
        }
        let exits = [
            VmExit::PowerOff,
            VmExit::Reset,
            VmExit::TripleFault,
            VmExit::Killed,
            VmExit::LaunchFailed("no kernel".into()),
            VmExit::HostError("KVM_RUN: EFAULT".into()),
        ];
        let ends = exits.map(FromVmm::Ended);
        let others = [
            FromVmm::Hello { vm: VmId::new(), instance: InstanceId::new(), devices: vec![data.clone()] },
            FromVmm::Ready { build_ns: 7 },
            FromVmm::Attached(data.clone()),
            FromVmm::AttachFailed { id: data.clone(), cause: "no ring".into(), is_exhausted: true },
            FromVmm::DetachAsked(data.clone()),
            FromVmm::Detached(data.clone()),
            FromVmm::DetachFailed { id: data, cause: "absent".into() },
        ];
        for message in ends.into_iter().chain(others) {
            assert_eq!(FromVmm::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn refuses_another_version() {
        let header = proto::LaunchHeader { version: VERSION + 1, descriptors: vec![] };
        let packet = proto::ToVmm { body: Some(proto::to_vmm::Body::Launch(header)) }.encode_to_vec();
        assert!(matches!(ToVmm::decode(&packet), Err(WireError::Version { theirs }) if theirs == VERSION + 1));
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = ToVmm::decode(&bytes);
            let _ = FromVmm::decode(&bytes);
            let _ = decode_ended(&bytes);
        }
    }
}
