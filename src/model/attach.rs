//! What policy is asked of a device that comes to a VM or leaves it. Key types: [`AttachRequest`], [`DetachRequest`].
//!
//! `daemon/service` asks; the answers are [`Verdict`](super::Verdict)s without patches.

use serde::{Deserialize, Serialize};

use super::{DeviceId, DeviceSpec, LimitUse, TenantId, VmName};

/// A VM as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// Its name.
    pub name: VmName,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Number of its disks.
    pub disks: u32,
    /// Number of its NICs.
    pub nics: u32,
    /// Its guest runs.
    pub is_running: bool,
}

/// The question of the `attach` hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Whose VM.
    pub tenant: TenantId,
    /// The VM as it is, without the device.
    pub vm: VmFacts,
    /// What it shall get.
    pub device: DeviceSpec,
    /// What the tenant has registered, this VM included.
    pub in_use: LimitUse,
}

/// The question of the `detach` hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachRequest {
    /// Whose VM.
    pub tenant: TenantId,
    /// The VM as it is, with the device.
    pub vm: VmFacts,
    /// What shall leave it.
    pub device: DeviceId,
    /// The guest is not asked for it.
    pub is_forced: bool,
}
