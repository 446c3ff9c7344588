//! One run of a VM, planned by the daemon down to PCI slots; the vmm obeys. Key types: [`Launch`], [`DeviceLaunch`].
//!
//! `daemon/supervisor` builds it, `wire::launch` carries it, `vmm` builds a machine from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Bdf, CpuSpec, DeviceId, InstanceId, MemorySpec, RateLimits, ServedBy, VmId, WindowSize};

/// Devices that a VM takes while it runs, beyond those that it was launched with: their threads and rings are made ahead,
/// and each costs a few pages of memory.
pub const SPARE_DEVICES: u8 = 4;

/// The words that every kernel is told behind the one that names its console; those of the VM's owner follow, and win where
/// the kernel takes the last.
///
/// `cryptomgr.notests` (Linux's crypto/testmgr.c): a guest need not prove its kernel's ciphers anew at each start. One that
/// is told `fips=1` does so nevertheless, and `cryptomgr.notests=0` has it do so.
pub const FIRST_WORDS: &str = "cryptomgr.notests";

/// Everything that a vmm needs to know; the descriptors travel beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The VM.
    pub vm: VmId,
    /// This run of it.
    pub instance: InstanceId,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// The whole kernel command line.
    pub cmdline: String,
    /// Whether an initrd descriptor comes with it.
    pub has_initrd: bool,
    /// Devices, each with a slot of its own.
    pub devices: Vec<DeviceLaunch>,
    /// Id of the call that it is made for; for logs.
    pub request: String,
    /// Where guest memory comes from.
    pub memory: MemorySpec,
    /// How vCPUs look to the guest, and where they run.
    pub cpus: CpuSpec,
}

/// A device and where it sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLaunch {
    /// Its name within the VM.
    pub id: DeviceId,
    /// Its device number on bus 0.
    pub slot: PciSlot,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a device is, with what it needs besides descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// virtio-blk on a raw image (one descriptor).
    Block {
        /// Writes are refused, and the guest is told so (`VIRTIO_BLK_F_RO`).
        is_read_only: bool,
        /// Request queues, at least 1 (`VIRTIO_BLK_F_MQ`).
        queues: u16,
        /// What it may move.
        limits: RateLimits,
    },
    /// virtio-net on a tap (a descriptor for each of its queues; behind those one of vhost-net for each, if the kernel
    /// serves it).
    Net {
        /// The guest's address.
        mac: MacAddr,
        /// What it may move in each direction.
        limits: RateLimits,
        /// Pairs of queues, at least 1 (`VIRTIO_NET_F_MQ`).
        queues: u16,
        /// Who moves its frames.
        served_by: ServedBy,
    },
    /// virtio-rng, fed by getrandom(2) (no descriptor).
    Rng,
    /// virtio-vsock (one descriptor: the listening socket of the host's programs).
    Vsock {
        /// The guest's context id.
        cid: u32,
    },
    /// virtio-console (no descriptor: every launch brings those of the console). With it the VM has no COM1.
    Console,
    /// virtio-balloon (no descriptor).
    Balloon {
        /// What the guest shall keep, in MiB; `None`: all.
        keep_mib: Option<u64>,
    },
    /// A PCI function of the host, passed through (two descriptors: its VFIO container, then the VFIO device).
    Vfio {
        /// Where it sits on the host; for logs and errors only, the vmm opens nothing.
        host: Bdf,
    },
}

/// A change of a device that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChange {
    /// The image behind a disk was made longer on the host.
    Resized,
    /// Other limits.
    Limits(RateLimits),
    /// Another size of the balloon.
    Balloon {
        /// What the guest shall keep, in MiB; `None`: all.
        keep_mib: Option<u64>,
    },
    /// Another size of the window on the console.
    Window(WindowSize),
}

/// A device number on PCI bus 0: 1 to 31 (0 is the host bridge).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciSlot(u8);

impl PciSlot {
    /// `None` outside 1 to 31.
    pub fn new(number: u8) -> Option<Self> {
        (1..32).contains(&number).then_some(Self(number))
    }

    /// The device number.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether it can be one station's: not a group address (bit 0 of the first byte: IEEE 802, section 8.2), not zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an Ethernet address: six bytes in hexadecimal, such as 02:00:00:00:00:01")]
pub struct MacError;

impl TryFrom<String> for MacAddr {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(value: MacAddr) -> Self {
        value.to_string()
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(MacError)?;
        }
        if parts.next().is_some() { Err(MacError) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_reads_what_it_writes() {
        let mac: MacAddr = "02:ab:00:FF:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:00:ff:00:01");
        for text in ["", "02:ab:00:ff:00", "02:ab:00:ff:00:01:02", "2:ab:00:ff:00:01", "02:ab:00:ff:00:+1", "02-ab"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        assert!(mac.is_station() && !MacAddr([1; 6]).is_station() && !MacAddr([0; 6]).is_station());
    }
}
