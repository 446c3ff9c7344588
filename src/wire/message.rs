//! The packets, typed. Key types: [`ToVmm`], [`FromVmm`], [`Role`].

use prost::Message;

use super::launch::{decode_balloon, decode_device, decode_limits, encode_balloon, encode_device, encode_limits};
use super::{MAX_DESCRIPTORS, MAX_PACKET_LEN, VERSION, proto};
use crate::model::{DeviceChange, DeviceId, DeviceLaunch, IdError, InstanceId, VmExit, VmId, WindowSize};

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
    /// Where the vmm counts what the VM does (`wire::counters`).
    Counters,
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
    /// Change a device that runs; answered by [`FromVmm::DeviceChanged`], in the order of the questions.
    DeviceChange {
        /// Which.
        device: DeviceId,
        /// How.
        change: DeviceChange,
    },
    /// Make vCPUs and devices stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Interrupt every vCPU, whatever it masks.
    Nmi,
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
        /// It stands still.
        is_paused: bool,
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
    /// What became of a change.
    DeviceChanged {
        /// Of which device.
        device: DeviceId,
        /// Why it was refused, if it was.
        error: Option<String>,
    },
    /// Nothing of the guest moves any more.
    Paused,
    /// The guest goes on.
    Resumed,
    /// It could not be made to stand still, and goes on.
    NotPaused {
        /// Why.
        cause: String,
    },
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
    /// The host waits for the device to be given up.
    DeviceWanted(DeviceId),
}

impl ToVmm {
    /// The packet's bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_for(String::new())
    }

    /// The same on behalf of the call with this id.
    pub fn encode_for(&self, request_id: String) -> Vec<u8> {
        use proto::to_vmm::Body;
        let body = match self {
            Self::Launch { roles } => Body::Launch(proto::LaunchHeader {
                version: VERSION,
                descriptors: roles.iter().map(encode_role).collect(),
            }),
            Self::PowerButton => Body::PowerButton(proto::PowerButton {}),
            Self::Kill => Body::Kill(proto::Kill {}),
            Self::DeviceChange { device, change } => Body::DeviceChange(encode_change(device, change)),
            Self::Pause => Body::Pause(proto::Pause {}),
            Self::Resume => Body::Resume(proto::Resume {}),
            Self::Nmi => Body::Nmi(proto::Nmi {}),
            Self::Attach(device) => Body::Attach(proto::Attach { device: Some(encode_device(device)) }),
            Self::Detach { id, is_forced } => Body::Detach(proto::Detach { id: id.to_string(), forced: *is_forced }),
        };
        proto::ToVmm { body: Some(body), request_id }.encode_to_vec()
    }

    /// Reads a packet, and on behalf of which call it was sent; of none: an empty text.
    pub fn decode_asked(packet: &[u8]) -> Result<(Self, String), WireError> {
        check_len(packet)?;
        let proto::ToVmm { body, request_id } = proto::ToVmm::decode(packet)?;
        Ok((Self::of_body(body.ok_or(WireError::Malformed("empty"))?)?, request_id))
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        Self::decode_asked(packet).map(|(message, _)| message)
    }

    fn of_body(body: proto::to_vmm::Body) -> Result<Self, WireError> {
        use proto::to_vmm::Body;
        match body {
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
            Body::DeviceChange(change) => decode_change(change),
            Body::Pause(_) => Ok(Self::Pause),
            Body::Resume(_) => Ok(Self::Resume),
            Body::Nmi(_) => Ok(Self::Nmi),
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
            Self::Hello { vm, instance, is_paused, devices } => Body::Hello(proto::Hello {
                version: VERSION,
                vm: vm.to_string(),
                instance: instance.to_string(),
                paused: *is_paused,
                devices: devices.iter().map(DeviceId::to_string).collect(),
            }),
            Self::Ready { build_ns } => Body::Ready(proto::Ready { build_ns: *build_ns }),
            Self::Ended(exit) => Body::Ended(ended_to_proto(exit)),
            Self::DeviceChanged { device, error } => Body::DeviceChanged(proto::DeviceChanged {
                device: device.to_string(),
                error: error.clone().unwrap_or_default(),
            }),
            Self::Paused => Body::Paused(proto::Paused {}),
            Self::Resumed => Body::Resumed(proto::Resumed {}),
            Self::NotPaused { cause } => Body::NotPaused(proto::NotPaused { cause: cause.clone() }),
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
            Self::DeviceWanted(id) => Body::DeviceWanted(proto::DeviceWanted { id: id.to_string() }),
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
                let (vm, instance) = (hello.vm.parse()?, hello.instance.parse()?);
                let devices = hello.devices.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
                Ok(Self::Hello { vm, instance, is_paused: hello.paused, devices })
            }
            Body::Ready(ready) => Ok(Self::Ready { build_ns: ready.build_ns }),
            Body::Ended(ended) => Ok(Self::Ended(ended_from_proto(ended)?)),
            Body::DeviceChanged(proto::DeviceChanged { device, error }) => Ok(Self::DeviceChanged {
                device: device.parse()?,
                error: Some(error).filter(|error| !error.is_empty()),
            }),
            Body::Paused(_) => Ok(Self::Paused),
            Body::Resumed(_) => Ok(Self::Resumed),
            Body::NotPaused(refusal) => Ok(Self::NotPaused { cause: refusal.cause }),
            Body::Attached(attached) => Ok(Self::Attached(attached.id.parse()?)),
            Body::AttachFailed(failed) => {
                Ok(Self::AttachFailed { id: failed.id.parse()?, cause: failed.cause, is_exhausted: failed.exhausted })
            }
            Body::DetachAsked(asked) => Ok(Self::DetachAsked(asked.id.parse()?)),
            Body::Detached(detached) => Ok(Self::Detached(detached.id.parse()?)),
            Body::DetachFailed(failed) => Ok(Self::DetachFailed { id: failed.id.parse()?, cause: failed.cause }),
            Body::DeviceWanted(wanted) => Ok(Self::DeviceWanted(wanted.id.parse()?)),
        }
    }
}

fn encode_change(device: &DeviceId, change: &DeviceChange) -> proto::DeviceChange {
    use proto::device_change::Change;
    let change = match change {
        DeviceChange::Resized => Change::Resized(proto::Resized {}),
        DeviceChange::Limits(limits) => Change::Limits(encode_limits(*limits)),
        DeviceChange::Balloon { keep_mib } => Change::Balloon(encode_balloon(*keep_mib)),
        DeviceChange::Window(WindowSize { columns, rows }) => {
            Change::Window(proto::Window { columns: u32::from(*columns), rows: u32::from(*rows) })
        }
    };
    proto::DeviceChange { device: device.to_string(), change: Some(change) }
}

fn decode_change(change: proto::DeviceChange) -> Result<ToVmm, WireError> {
    use proto::device_change::Change;
    let device = change.device.parse()?;
    let change = match change.change.ok_or(WireError::Malformed("change without content"))? {
        Change::Resized(_) => DeviceChange::Resized,
        Change::Limits(limits) => DeviceChange::Limits(decode_limits(Some(limits))?),
        Change::Balloon(balloon) => DeviceChange::Balloon { keep_mib: decode_balloon(balloon) },
        Change::Window(proto::Window { columns, rows }) => {
            let len = |len| u16::try_from(len).map_err(|_| WireError::TooLarge("window"));
            DeviceChange::Window(WindowSize { columns: len(columns)?, rows: len(rows)? })
        }
    };
    Ok(ToVmm::DeviceChange { device, change })
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
        VmExit::Panicked => (Kind::Panicked, ""),
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
        Kind::Panicked => Ok(VmExit::Panicked),
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
        Role::Counters => (Wire::Counters, ""),
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
        Wire::Counters => Role::Counters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceKind, PciSlot, Rate, RateLimits};
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
            Role::Counters,
        ];
        let limits = RateLimits { bandwidth: Rate::new("f", 10 << 20, 0).ok(), operations: None };
        let data: DeviceId = "data".parse().unwrap();
        let balloon = |keep_mib| DeviceChange::Balloon { keep_mib };
        let window = DeviceChange::Window(WindowSize { columns: 132, rows: 43 });
        let changes = [DeviceChange::Resized, DeviceChange::Limits(limits), balloon(Some(128)), balloon(None), window];
        let changes = changes.map(|change| ToVmm::DeviceChange { device: data.clone(), change });
        let kind = DeviceKind::Block { is_read_only: true, queues: 2, limits };
        let plan = DeviceLaunch { id: data.clone(), slot: PciSlot::new(31).unwrap(), kind };
        let hotplug = [ToVmm::Attach(plan), ToVmm::Detach { id: data.clone(), is_forced: true }];
        let messages =
            [ToVmm::Launch { roles }, ToVmm::PowerButton, ToVmm::Kill, ToVmm::Pause, ToVmm::Resume, ToVmm::Nmi];
        for message in messages.into_iter().chain(changes).chain(hotplug) {
            assert_eq!(ToVmm::decode(&message.encode()).unwrap(), message);
            assert_eq!(ToVmm::decode_asked(&message.encode_for("one".into())).unwrap(), (message, "one".into()));
        }
        let exits = [
            VmExit::PowerOff,
            VmExit::Reset,
            VmExit::TripleFault,
            VmExit::Panicked,
            VmExit::Killed,
            VmExit::LaunchFailed("no kernel".into()),
            VmExit::HostError("KVM_RUN: EFAULT".into()),
        ];
        let ends = exits.map(FromVmm::Ended);
        let changed = [None, Some("it became shorter".to_owned())]
            .map(|error| FromVmm::DeviceChanged { device: data.clone(), error });
        let hello = |is_paused, devices| {
            let (vm, instance) = (VmId::new(), InstanceId::new());
            FromVmm::Hello { vm, instance, is_paused, devices }
        };
        let others = [
            hello(false, vec![]),
            hello(true, vec![data.clone()]),
            FromVmm::Ready { build_ns: 7 },
            FromVmm::Paused,
            FromVmm::Resumed,
            FromVmm::NotPaused { cause: "a disk does not answer".into() },
            FromVmm::Attached(data.clone()),
            FromVmm::AttachFailed { id: data.clone(), cause: "no ring".into(), is_exhausted: true },
            FromVmm::DetachAsked(data.clone()),
            FromVmm::Detached(data.clone()),
            FromVmm::DetachFailed { id: data.clone(), cause: "absent".into() },
            FromVmm::DeviceWanted(data),
        ];
        for message in ends.into_iter().chain(others).chain(changed) {
            assert_eq!(FromVmm::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn refuses_another_version() {
        let header = proto::LaunchHeader { version: VERSION + 1, descriptors: vec![] };
        let packet =
            proto::ToVmm { body: Some(proto::to_vmm::Body::Launch(header)), ..proto::ToVmm::default() }.encode_to_vec();
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
