//! What a question says of its VM beyond numbers: labels and images. Key types: [`SubjectVm`], [`VmImage`].
//!
//! A plugin asks for it by the import `subject` (`wit/subject.wit`). Questions that were recorded before it say nothing of it,
//! which is not the same as a VM without labels; in JSON it is left out then, as it was.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize};

use super::{DeviceId, ImagePath, Labels, VmSpec};

/// The VM that a question is about; `None`: the question does not say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubjectVm {
    /// Its labels.
    pub labels: Option<Labels>,
    /// Its images.
    pub images: Option<Vec<VmImage>>,
}

/// A file that a VM boots or has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmImage {
    /// Below the images directory.
    Kernel(ImagePath),
    /// Below the images directory.
    Initrd(ImagePath),
    /// The image of a disk.
    Disk {
        /// The disk.
        id: DeviceId,
        /// Below the tenant's volumes.
        volume: ImagePath,
    },
}

impl VmImage {
    /// The images of a VM: what it boots, then its disks.
    pub fn all_of(spec: &VmSpec) -> Vec<Self> {
        let boot = spec.boot();
        let initrd = boot.initrd.iter().cloned().map(Self::Initrd);
        let disks = spec.disks().iter().map(|disk| Self::Disk { id: disk.id.clone(), volume: disk.volume.clone() });
        [Self::Kernel(boot.kernel.clone())].into_iter().chain(initrd).chain(disks).collect()
    }
}

/// Writes a field of a question that may say nothing. A text leaves it out then; the policy host's messages, which have no
/// names, cannot.
pub(super) fn serialize_said<S: SerializeStruct>(
    fields: &mut S,
    is_text: bool,
    name: &'static str,
    value: Option<&impl Serialize>,
) -> Result<(), S::Error> {
    if is_text && value.is_none() { fields.skip_field(name) } else { fields.serialize_field(name, &value) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{AdmitRequest, BootSpec, DeviceSpec, DiskSpec, RateLimits, VmFacts};

    fn path(text: &str) -> ImagePath {
        ImagePath::new("path", text).unwrap()
    }

    #[test]
    fn images_are_what_is_booted_and_every_disk_in_order() {
        let boot = BootSpec { kernel: path("k"), initrd: Some(path("i")), cmdline: String::new() };
        let disk = |id: &str| DiskSpec {
            id: id.parse().unwrap(),
            volume: path(&format!("{id}.img")),
            is_read_only: false,
            is_direct: false,
            queues: 1,
            limits: RateLimits::default(),
        };
        let spec = VmSpec::new(1, 128, boot, vec![disk("b"), disk("a")], vec![]).unwrap();
        let spec = spec.with_device(DeviceSpec::Disk(disk("c"))).unwrap();
        let shown = serde_json::to_value(VmImage::all_of(&spec)).unwrap();
        let disks = ["b", "a", "c"].map(|id| json!({"disk": {"id": id, "volume": format!("{id}.img")}}));
        assert_eq!(shown, json!([{"kernel": "k"}, {"initrd": "i"}, disks[0], disks[1], disks[2]]));
    }

    #[test]
    fn a_question_from_before_is_read_and_written_as_it_was() {
        let admit = json!({
            "tenant": "acme", "vm": "web", "vcpus": 1, "memory_mib": 64, "disks": 0, "nics": 0,
            "in_use": {"vms": 0, "vcpus": 0, "memory_mib": 0}
        });
        let read: AdmitRequest = serde_json::from_value(admit.clone()).unwrap();
        assert_eq!((&read.labels, &read.images), (&None, &None));
        assert_eq!(serde_json::to_value(read).unwrap(), admit);
        let facts = json!({
            "name": "web", "vcpus": 1, "memory_mib": 64, "disks": 0, "nics": 0, "is_running": true
        });
        let read: VmFacts = serde_json::from_value(facts.clone()).unwrap();
        assert_eq!((&read.labels, &read.images), (&None, &None));
        assert_eq!(serde_json::to_value(read).unwrap(), facts);
    }

    #[test]
    fn a_vm_without_labels_is_said_to_have_none() {
        let mut admit = json!({
            "tenant": "acme", "vm": "web", "vcpus": 1, "memory_mib": 64, "disks": 0, "nics": 0,
            "in_use": {"vms": 0, "vcpus": 0, "memory_mib": 0},
            "labels": {}, "images": [{"kernel": "k"}]
        });
        let read: AdmitRequest = serde_json::from_value(admit.clone()).unwrap();
        assert_eq!(read.labels, Some(Labels::default()));
        assert_eq!(serde_json::to_value(read).unwrap(), admit);
        admit["images"][0]["kernel"] = json!("../k");
        assert!(serde_json::from_value::<AdmitRequest>(admit).is_err());
    }
}
