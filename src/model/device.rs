//! Devices that a VM may be asked for, and that come and go. Key types: [`DeviceSpec`], [`DiskSpec`], [`NicSpec`],
//! [`TapSpec`].

use serde::{Deserialize, Serialize};

use super::{DeviceId, ImagePath, NvmeSpec, RateLimits, VfWish};

/// Request queues that a disk may have: a jail's limit of descriptors counts on it.
pub const MAX_DISK_QUEUES: u16 = 8;
/// Pairs of queues that a NIC may have: the same.
pub const MAX_NIC_QUEUES: u16 = 4;

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Name of the device; also the disk's serial number in the guest (first 20 bytes).
    pub id: DeviceId,
    /// The image, below the tenant's volume directory.
    pub volume: ImagePath,
    /// The guest may only read.
    pub is_read_only: bool,
    /// The host's page cache is bypassed (`O_DIRECT`, open(2)).
    pub is_direct: bool,
    /// Request queues, 1 to [`MAX_DISK_QUEUES`].
    pub queues: u16,
    /// What it may move.
    pub limits: RateLimits,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Name of the device.
    pub id: DeviceId,
    /// What is behind it on the host.
    pub backend: NicBackend,
}

/// What is behind a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicBackend {
    /// virtio-net on a tap, with an address pair of its own.
    Tap(TapSpec),
    /// A virtual function of an SR-IOV network card, passed through; policy chooses which at each start.
    Sriov(VfWish),
}

/// A virtio-net interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapSpec {
    /// What it may move in each direction; without limits if the kernel serves it.
    pub limits: RateLimits,
    /// Pairs of queues, 1 to [`MAX_NIC_QUEUES`].
    pub queues: u16,
    /// Who moves its frames. Questions to policy that were recorded before there was a choice lack it.
    #[serde(default)]
    pub served_by: ServedBy,
}

impl Default for TapSpec {
    /// Without limits, one pair, served by the vmm.
    fn default() -> Self {
        Self { limits: RateLimits::default(), queues: 1, served_by: ServedBy::default() }
    }
}

impl TapSpec {
    /// Descriptors that come with it: a queue of the tap for each pair, and the kernel's server of it.
    pub fn descriptors(self) -> usize {
        usize::from(self.queues) * if self.served_by == ServedBy::Kernel { 2 } else { 1 }
    }
}

/// Who moves frames between a guest's queues and its tap.
///
/// The vmm is the default: it counts what goes through each queue and keeps limits that change while the guest runs, and
/// whatever a hostile ring does to it happens in a jail. The kernel is faster and does neither; a hostile ring then meets
/// the host's kernel itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServedBy {
    /// A thread of the VM's own process.
    #[default]
    Vmm,
    /// The host's kernel (vhost-net), one thread for each pair of queues.
    Kernel,
}

impl NicSpec {
    /// What is asked of the VF, if it is to be one.
    pub fn vf_wish(&self) -> Option<VfWish> {
        match self.backend {
            NicBackend::Tap(_) => None,
            NicBackend::Sriov(wish) => Some(wish),
        }
    }

    /// What there is to say of its tap, if it has one.
    pub fn tap(&self) -> Option<TapSpec> {
        match self.backend {
            NicBackend::Tap(tap) => Some(tap),
            NicBackend::Sriov(_) => None,
        }
    }

    /// Whether the host's kernel serves it.
    pub fn is_kernel_served(&self) -> bool {
        self.tap().is_some_and(|tap| tap.served_by == ServedBy::Kernel)
    }
}

/// A device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSpec {
    /// A disk.
    Disk(DiskSpec),
    /// A network interface.
    Nic(NicSpec),
    /// An NVMe device.
    Nvme(NvmeSpec),
}

impl DeviceSpec {
    /// Its name.
    pub fn id(&self) -> &DeviceId {
        match self {
            Self::Disk(disk) => &disk.id,
            Self::Nic(nic) => &nic.id,
            Self::Nvme(nvme) => &nvme.id,
        }
    }
}
