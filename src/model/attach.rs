//! What policy is asked of a device that comes to a VM or leaves it. Key types: [`AttachRequest`], [`DetachRequest`].
//!
//! `daemon/service` asks; the answers are [`Verdict`](super::Verdict)s without patches.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::subject::serialize_said;
use super::{DeviceId, DeviceSpec, Labels, LimitUse, SubjectVm, TenantId, VmImage, VmName};

/// A VM as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
    /// Its labels. `None`: the question does not say, as those from before there were any.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// What it boots, and what its disks are. `None` as above.
    #[serde(default)]
    pub images: Option<Vec<VmImage>>,
}

impl VmFacts {
    /// Takes labels and images out.
    pub fn take_subject(&mut self) -> SubjectVm {
        SubjectVm { labels: self.labels.take(), images: self.images.take() }
    }
}

impl Serialize for VmFacts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, vcpus, memory_mib, disks, nics, is_running, labels, images } = self;
        let is_text = serializer.is_human_readable();
        // In the order of the struct: the policy host's messages have no names.
        let mut fields = serializer.serialize_struct("VmFacts", 8)?;
        fields.serialize_field("name", name)?;
        fields.serialize_field("vcpus", vcpus)?;
        fields.serialize_field("memory_mib", memory_mib)?;
        fields.serialize_field("disks", disks)?;
        fields.serialize_field("nics", nics)?;
        fields.serialize_field("is_running", is_running)?;
        serialize_said(&mut fields, is_text, "labels", labels.as_ref())?;
        serialize_said(&mut fields, is_text, "images", images.as_ref())?;
        fields.end()
    }
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
