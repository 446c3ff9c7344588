//! Who has which NVMe namespace, secondary controller or controller. Key types: [`NvmeLease`], [`NvmeKey`],
//! [`NvmeDevice`].
//!
//! A VM has a secondary controller for a run, as it has a network function. Its namespace, or its whole controller, it
//! has until it is destroyed: there lies its data.

use std::fmt;

use super::lease::{HeldFor, Lease};
use crate::model::{Bdf, DeviceId, TenantId, VmId};

/// What is known of the owner of a part of a controller.
pub type NvmeLease = Lease<NvmeKey, NvmeHolder>;

/// Which part of which controller: by its place and serial number, so that another one in the same slot is another key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NvmeKey {
    /// The controller, primary of its secondaries.
    pub controller: Bdf,
    /// Its serial number.
    pub serial: String,
    /// What of it.
    pub part: NvmePart,
}

/// A part of a controller that somebody can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NvmePart {
    /// All of it.
    Whole,
    /// The secondary controller of this id.
    Secondary(u16),
    /// The namespace of this id.
    Namespace(u32),
}

impl fmt::Display for NvmePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => write!(f, "whole"),
            Self::Secondary(id) => write!(f, "secondary-{id}"),
            Self::Namespace(nsid) => write!(f, "namespace-{nsid}"),
        }
    }
}

impl fmt::Display for NvmeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.controller, self.serial, self.part)
    }
}

/// For whom it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeHolder {
    /// The VM.
    pub vm: VmId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The VM's device.
    pub device: DeviceId,
}

impl HeldFor for NvmeHolder {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

/// A VM's NVMe device, once it has got one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeDevice {
    /// The device.
    pub id: DeviceId,
    /// The function that is passed through; `None` while the VM does not run.
    pub function: Option<Bdf>,
    /// The controller.
    pub controller: Bdf,
    /// Its serial number.
    pub serial: String,
    /// Its namespace; `None`: the whole controller.
    pub nsid: Option<u32>,
    /// Bytes that the guest sees.
    pub size_bytes: u64,
}

/// What an operator wants a controller's secondaries to be: on record while it is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeProvision {
    /// The controller.
    pub controller: Bdf,
    /// Its serial number.
    pub serial: String,
    /// Virtual functions, each with a secondary controller.
    pub vfs: u16,
    /// Queue pairs of each.
    pub queues: u16,
    /// Interrupt vectors of each.
    pub interrupts: u16,
}
