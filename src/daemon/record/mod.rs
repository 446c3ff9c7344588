//! What the daemon remembers of a VM and of its devices. Key types: [`VmRecord`], [`Run`], [`NicLease`],
//! [`Lease`], [`RequestRecord`].
//!
//! The daemon's own vocabulary: `supervisor` changes records, `store` keeps them, `service` and `rpc` show them. A
//! record is the intent; the vmm process is the fact, and `supervisor::reconcile` compares the two after a restart.

mod attachment;
mod happening;
mod lease;
mod nvme;
mod request;
mod vf;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::model::{Decision, DeviceId, InstanceId, MacAddr, Placement, TenantId, VmId, VmName, VmSpec, VmState};
use crate::sys::process::Identity;
pub use attachment::{AddError, AttachState, Attachment, RNG, attachments_of};
pub use happening::happenings;
pub use lease::{HeldFor, Lease, LeaseEvent, LeaseRefused, LeaseState};
pub use nvme::{NvmeDevice, NvmeHolder, NvmeKey, NvmeLease, NvmePart, NvmeProvision};
pub use request::{Before, BegunWork, Progress, RequestKey, RequestRecord};
#[cfg(test)]
pub use vf::samples as lease_samples;
pub use vf::{Holder, VfKey, VfLease, VfNic};

/// A registered VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Given at registration, never reused.
    pub uid: VmId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name within the tenant.
    pub name: VmName,
    /// What was admitted, patches applied.
    pub spec: VmSpec,
    /// One for each disk and NIC of the spec.
    pub devices: Vec<Attachment>,
    /// Where it is in its life.
    pub state: VmState,
    /// The current run; `None` when there is none.
    pub run: Option<Run>,
    /// Addresses that are its own until it is destroyed or the NIC detached, in the order of those of `spec.nics()` that have a tap.
    pub nics: Vec<NicLease>,
    /// Virtual functions that it has, in the order of those of `spec.nics()` that are one; empty while it has none. They
    /// stay its own when its guest resets.
    pub vfs: Vec<VfNic>,
    /// NVMe devices that it has, in the order of `spec.nvmes()`; empty before it got them. Their namespaces stay its own
    /// until it is destroyed.
    pub nvmes: Vec<NvmeDevice>,
    /// Where it runs, if policy has chosen that; as long as it is on. It stays there when its guest resets. Boxed: most have
    /// none, and each task holds several records.
    pub placement: Option<Box<Placement>>,
    /// User and group id of its vmm on the host, its own until it is destroyed.
    pub user: u32,
    /// When it was registered.
    pub created: SystemTime,
    /// Of the last change of state.
    pub updated: SystemTime,
    /// The decision that admitted it. Boxed: it never changes, and each task holds several records.
    pub admission: Box<Decision>,
}

/// One run of a VM: recorded without a process before one is started, and with it right after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// This run.
    pub instance: InstanceId,
    /// Its vmm process.
    pub process: Option<Identity>,
    /// When a stop turns into a kill.
    pub kill_at: Option<SystemTime>,
}

/// A NIC's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicLease {
    /// The NIC.
    pub id: DeviceId,
    /// Its network of four addresses: network, host, guest, broadcast.
    pub subnet: Subnet,
    /// The guest's Ethernet address.
    pub mac: MacAddr,
}

/// What names of taps begin with.
pub const TAP_PREFIX: &str = "ost";

/// A /30: the link between the host and one NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet(Ipv4Addr);

impl Subnet {
    /// Bits of the network part.
    pub const PREFIX_LEN: u8 = 30;

    /// `None` unless `network` is the first of four addresses.
    pub fn new(network: Ipv4Addr) -> Option<Self> {
        (u32::from(network) & 3 == 0).then_some(Self(network))
    }

    /// The first address, which names the network.
    pub fn network(self) -> Ipv4Addr {
        self.0
    }

    /// The host's address.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0) | 1)
    }

    /// The guest's address.
    pub fn guest(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0) | 2)
    }

    /// Name of the tap: `ost` and the network's number in base 36 (9 bytes at most). As unique as the network is.
    pub fn tap_name(self) -> String {
        let mut number = u32::from(self.0) >> 2;
        let mut digits = Vec::new();
        loop {
            digits.push(char::from_digit(number % 36, 36).unwrap_or('0'));
            number /= 36;
            if number == 0 {
                break;
            }
        }
        TAP_PREFIX.chars().chain(digits.into_iter().rev()).collect()
    }

    /// The network that a tap of this name belongs to; `None` if it is no name of ours.
    pub fn of_tap(name: &str) -> Option<Self> {
        let number = u32::from_str_radix(name.strip_prefix(TAP_PREFIX)?, 36).ok()?;
        let subnet = Self(Ipv4Addr::from(number.checked_mul(4)?));
        // Each network has one name: no leading zeroes, no upper case.
        (subnet.tap_name() == name).then_some(subnet)
    }
}

/// The guest's address on NIC `nic` of VM `uid`: locally administered (02:…), the rest from a hash, so that it stays
/// the same over restarts and moves.
pub fn mac_of(uid: VmId, nic: &DeviceId) -> MacAddr {
    let hash = Sha256::new().chain_update(uid.to_string()).chain_update("/").chain_update(nic.as_str()).finalize();
    MacAddr([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

/// Records for tests.
#[cfg(test)]
pub mod samples {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        BootSpec, DecisionId, DiskSpec, ImagePath, NicBackend, NicSpec, Opinion, Outcome, Patch, PluginDigest,
        PolicyFault, PolicyScope, Rate, RateLimits, TapSpec, Verdict,
    };

    /// A running VM with a disk and a NIC.
    pub fn running(tenant: &str, name: &str) -> VmRecord {
        let uid = VmId::new();
        let nic = NicSpec { id: "eth0".parse().unwrap(), backend: NicBackend::Tap(TapSpec::default()) };
        let disk = DiskSpec {
            id: "root".parse().unwrap(),
            volume: ImagePath::new("v", "root.img").unwrap(),
            is_read_only: true,
            is_direct: true,
            queues: 2,
            limits: RateLimits { bandwidth: Rate::new("b", 10 << 20, 1 << 20).ok(), operations: None },
        };
        let boot = BootSpec {
            kernel: ImagePath::new("k", "linux/vmlinux").unwrap(),
            initrd: Some(ImagePath::new("i", "linux/initrd").unwrap()),
            cmdline: "quiet".into(),
        };
        let spec = VmSpec::new(2, 256, boot, vec![disk], vec![nic.clone()]).unwrap();
        VmRecord {
            uid,
            tenant: tenant.parse().unwrap(),
            name: name.parse().unwrap(),
            devices: attachments_of(&spec),
            spec,
            state: VmState::Running,
            run: Some(Run {
                instance: InstanceId::new(),
                process: Some(Identity { pid: 42, start_time: 4242 }),
                kill_at: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567)),
            }),
            nics: vec![NicLease {
                mac: mac_of(uid, &nic.id),
                id: nic.id,
                subnet: Subnet::new(Ipv4Addr::new(172, 30, 0, 4)).unwrap(),
            }],
            vfs: vec![],
            nvmes: vec![],
            placement: None,
            user: 0x4f00_0004,
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            updated: SystemTime::UNIX_EPOCH + Duration::from_secs(2),
            admission: Box::new(Decision {
                outcome: Outcome::Allow(vec![Patch::CapVcpus(2)]),
                opinions: vec![
                    Opinion {
                        plugin: "limits".into(),
                        digest: PluginDigest([9; 32]),
                        scope: PolicyScope::Operator,
                        weight: Default::default(),
                        verdict: Ok(Verdict::Allow(vec![Patch::CapVcpus(2), Patch::CapMemoryMib(256)])),
                        fuel: 1500,
                        took: Duration::from_micros(15),
                    },
                    Opinion {
                        plugin: "own".into(),
                        digest: PluginDigest([8; 32]),
                        scope: PolicyScope::Tenant(tenant.parse().unwrap()),
                        weight: Default::default(),
                        verdict: Err(PolicyFault::Memory { limit_bytes: 8 << 20 }),
                        fuel: 1600,
                        took: Duration::from_micros(16),
                    },
                ],
                took: Duration::from_micros(40),
                id: Some(DecisionId { tenant: tenant.parse().unwrap(), sequence: 7 }),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_taps_within_the_limit_of_the_kernel() {
        let subnet = |text: &str| Subnet::new(text.parse().unwrap()).unwrap();
        assert_eq!(subnet("0.0.0.0").tap_name(), "ost0");
        assert_eq!(subnet("0.0.0.144").tap_name(), "ost10");
        assert!(subnet("255.255.255.252").tap_name().len() <= crate::sys::tap::MAX_NAME_LEN);
        assert_ne!(subnet("172.30.0.0").tap_name(), subnet("172.30.0.4").tap_name());
        assert_eq!(Subnet::new(Ipv4Addr::new(172, 30, 0, 2)), None);
        for own in ["0.0.0.0", "172.30.0.4", "255.255.255.252"].map(subnet) {
            assert_eq!(Subnet::of_tap(&own.tap_name()), Some(own));
        }
        for name in ["ost", "ost-1", "ost01", "ostA", "tap1", "ostzzzzzz", "osttest0x"] {
            assert_eq!(Subnet::of_tap(name), None, "{name}");
        }
    }

    #[test]
    fn macs_are_stable_local_unicast_and_differ_by_nic() {
        let uid = VmId::new();
        let mac = |id: &str| mac_of(uid, &id.parse().unwrap());
        assert_eq!(mac("eth0"), mac("eth0"));
        assert_ne!(mac("eth0"), mac("eth1"));
        assert_eq!(mac("eth0").0[0] & 3, 2);
    }
}
