//! Block devices of NVMe namespaces, as sysfs names them. Key function: [`of_namespace`].

use std::fs;
use std::path::Path;

/// Where the kernel lists NVMe controllers.
const CLASS: &str = "/sys/class/nvme";

/// The namespaces that the host's driver made disks of for the controller `device` (`nvme0`): their ids, with the disks'
/// names under `/dev`. By id.
pub fn of_controller(device: &str) -> Vec<(u32, String)> {
    in_dir(&Path::new(CLASS).join(device))
}

/// The disk of one namespace.
pub fn of_namespace(device: &str, nsid: u32) -> Option<String> {
    of_controller(device).into_iter().find(|(id, _)| *id == nsid).map(|(_, name)| name)
}

fn in_dir(dir: &Path) -> Vec<(u32, String)> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let of = |name: String| {
        let nsid = fs::read_to_string(dir.join(&name).join("nsid")).ok()?;
        Some((nsid.trim().parse().ok()?, disk_name(&name)?))
    };
    let mut found: Vec<_> = names.filter_map(of).collect();
    found.sort();
    found
}

/// The disk that a path of a namespace belongs to: `nvme0c1n2` is a path of `nvme0n2` (native multipath).
fn disk_name(name: &str) -> Option<String> {
    let (path, namespace) = name.strip_prefix("nvme")?.rsplit_once('n')?;
    let subsystem = path.split('c').next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(subsystem) && is_number(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_namespace_is_named_after_its_disk() {
        assert_eq!(disk_name("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk_name("nvme0c3n12").as_deref(), Some("nvme0n12"));
        for name in ["nvme0", "ng0n1", "nvme0n", "nvmexn1", "hwmon0", "nvme0c0"] {
            assert_eq!(disk_name(name), None, "{name}");
        }
    }

    #[test]
    fn lists_disks_by_the_ids_of_their_namespaces() {
        let dir = tempfile::tempdir().unwrap();
        for (name, nsid) in [("nvme0c0n2", "7\n"), ("nvme0n1", "1\n"), ("hwmon0", "3\n"), ("nvme0n3", "x\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nsid"), nsid).unwrap();
        }
        assert_eq!(in_dir(dir.path()), [(1, "nvme0n1".to_owned()), (7, "nvme0n2".to_owned())]);
    }
}
