//! Settings to [`Admission`].

use crate::Admission;
use crate::files::{Files, Paths};
use crate::labels::Required;
use crate::limits::{Limits, Mode};
use ostler_policy::{Reader, Source};

/// Every key.
pub(crate) const KEYS: [&str; 11] = [
    "allowed-images",
    "allowed-volumes",
    "max-disks",
    "max-memory-mib",
    "max-nics",
    "max-vcpus",
    "max-vms",
    "mode",
    "required-labels",
    "total-memory-mib",
    "total-vcpus",
];

pub(crate) fn read(reader: &mut Reader<'_, impl Source>) -> Admission {
    let limits = Limits {
        max_vms: reader.number("max-vms", 0..=u64::MAX),
        // A VM of no size cannot be capped to: such a limit is a mistake in either mode.
        max_vcpus: reader.number("max-vcpus", 1..=u64::MAX),
        max_memory_mib: reader.number("max-memory-mib", 1..=u64::MAX),
        max_disks: reader.number("max-disks", 0..=u64::MAX),
        max_nics: reader.number("max-nics", 0..=u64::MAX),
        total_vcpus: reader.number("total-vcpus", 0..=u64::MAX),
        total_memory_mib: reader.number("total-memory-mib", 0..=u64::MAX),
        mode: reader.choice("mode", &[("deny", Mode::Deny), ("cap", Mode::Cap)]),
    };
    let files = Files {
        images: reader.parsed("allowed-images", Paths::parse),
        volumes: reader.parsed("allowed-volumes", Paths::parse),
    };
    let labels = reader.parsed("required-labels", Required::parse).unwrap_or_default();
    Admission { limits, files, labels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::testing::read;

    #[test]
    fn reads_every_setting() {
        let all = read([
            ("max-vms", "1"),
            ("max-vcpus", "2"),
            ("max-memory-mib", "3"),
            ("max-disks", "6"),
            ("max-nics", "7"),
            ("total-vcpus", "4"),
            ("total-memory-mib", "5"),
            ("mode", "cap"),
            ("allowed-images", "linux/"),
            ("allowed-volumes", "a.img,b/"),
            ("required-labels", "owner"),
        ]);
        let limits = Limits {
            max_vms: Some(1),
            max_vcpus: Some(2),
            max_memory_mib: Some(3),
            max_disks: Some(6),
            max_nics: Some(7),
            total_vcpus: Some(4),
            total_memory_mib: Some(5),
            mode: Mode::Cap,
        };
        let files = Files { images: Paths::parse("linux/").ok(), volumes: Paths::parse("a.img,b/").ok() };
        let labels = Required::parse("owner").unwrap();
        assert_eq!(all, Ok(Admission { limits, files, labels }));
        assert_eq!(read([]), Ok(Admission::default()));
    }

    #[test]
    fn names_every_setting_that_is_wrong() {
        let wrong = read::<Admission>([
            ("max-vm", "1"),
            ("max-vms", "many"),
            ("max-vcpus", "0"),
            ("mode", "warn"),
            ("allowed-images", "/boot/"),
            ("allowed-volumes", ""),
            ("required-labels", "Owner"),
        ])
        .unwrap_err();
        let keys: Vec<_> = wrong.iter().map(|invalid| invalid.key.as_str()).collect();
        let expected =
            ["max-vm", "max-vms", "max-vcpus", "mode", "allowed-images", "allowed-volumes", "required-labels"];
        assert_eq!(keys, expected);
        assert!(wrong[0].message.contains("max-vms"), "{}", wrong[0].message);
    }
}
