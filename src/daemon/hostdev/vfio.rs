//! Opens a device for a vmm that may open nothing. Key function: [`open`]; key types: [`Opened`], [`OpenError`].
//!
//! ```text
//!   /dev/vfio/vfio ─▶ container ◀─ IOMMU set ── group ◀─ viable, /dev/vfio/<n> ─▶ device
//!        └── kept ────────┘                       └── closed: the kernel holds it for the device ── kept ──┘
//! ```
//! One container per device, so that what is attached at start and later is the same. No KVM device for VFIO is needed,
//! because a device whose DMA would not be coherent is refused.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

use crate::model::Bdf;
use crate::sys::vfio::{Container, copies};

/// Where Linux lists PCI functions.
const DEVICES: &str = "/sys/bus/pci/devices";
/// The driver that a device must have.
const DRIVER: &str = "vfio-pci";

/// A device's descriptors, in the order that a launch has them.
#[derive(Debug)]
pub struct Opened {
    /// A container with its IOMMU set, in which the device is alone.
    pub container: OwnedFd,
    /// The device.
    pub device: OwnedFd,
}

/// Why a device cannot be given to a VM. The text goes to clients.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such function.
    #[error("the host has no PCI device {0}; see `lspci -D`")]
    Absent(Bdf),
    /// No isolation.
    #[error(
        "device {0} is in no IOMMU group; switch the IOMMU on in the firmware and with intel_iommu=on or amd_iommu=on"
    )]
    NoIommu(Bdf),
    /// Another driver has it, or none.
    #[error("device {device} has {}; bind it to vfio-pci first", driver.as_ref().map_or("no driver".into(), |name| format!("driver {name}")))]
    NotBound {
        /// The device.
        device: Bdf,
        /// Its driver.
        driver: Option<String>,
    },
    /// Devices that cannot be isolated from it are in use by the host.
    #[error("device {device} shares IOMMU group {group} with {}; bind these to vfio-pci too, or to no driver", holders.join(", "))]
    NotViable {
        /// The device.
        device: Bdf,
        /// Number of the group.
        group: String,
        /// Members with drivers of the host: `0000:00:1f.3 (snd_hda_intel)`.
        holders: Vec<String>,
    },
    /// Somebody else has the group open.
    #[error("device {0} is in use by another VM or program (its IOMMU group is open)")]
    InUse(Bdf),
    /// The IOMMU does not keep DMA coherent.
    #[error(
        "the IOMMU of device {0} cannot enforce cache-coherent DMA (snoop control); devices behind it cannot be given to VMs"
    )]
    NotCoherent(Bdf),
    /// VFIO refused.
    #[error("VFIO does not give device {device}: {source}; are the modules vfio-pci and vfio_iommu_type1 loaded?")]
    Vfio {
        /// The device.
        device: Bdf,
        /// What it says.
        source: VfioError,
    },
    /// Descriptors.
    #[error("cannot keep the descriptors of device {device}: {source}")]
    Host {
        /// The device.
        device: Bdf,
        /// The I/O error.
        source: io::Error,
    },
}

/// Opens the device at `address`, which vfio-pci must have already. Blocks while the kernel resets it. It is nobody
/// else's for as long as a copy of [`Opened::device`] is open.
pub fn open(address: Bdf) -> Result<Opened, OpenError> {
    open_below(Path::new(DEVICES), address)
}

fn open_below(devices: &Path, address: Bdf) -> Result<Opened, OpenError> {
    let path = devices.join(address.to_string());
    check(&path, address)?;
    let failed = |source| refused(&path, address, source);
    let host = |source| OpenError::Host { device: address, source };
    let container = Arc::new(VfioContainer::new(None).map_err(failed)?);
    let device = VfioDevice::new(&path, container.clone()).map_err(failed)?;
    let [kept_container, kept_device] = copies(&container, &device).map_err(host)?;
    // The crate's own descriptors go here. It also tries to take the group out of its container, which the kernel
    // refuses while the copy of the device is open, and lets the refusal pass: that is what is wanted.
    drop((device, container));
    let container = Container::from_fd(kept_container).map_err(host)?;
    if !container.has_coherent_dma().map_err(host)? {
        return Err(OpenError::NotCoherent(address));
    }
    Ok(Opened { container: container.into_fd(), device: kept_device })
}

/// What can be said before anything is opened.
fn check(path: &Path, address: Bdf) -> Result<(), OpenError> {
    if !path.exists() {
        return Err(OpenError::Absent(address));
    }
    if !path.join("iommu_group").exists() {
        return Err(OpenError::NoIommu(address));
    }
    match driver(path) {
        Some(driver) if driver == DRIVER => Ok(()),
        driver => Err(OpenError::NotBound { device: address, driver }),
    }
}

/// The name of a function's driver.
fn driver(path: &Path) -> Option<String> {
    last_name(&fs::read_link(path.join("driver")).ok()?)
}

fn last_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// Says more than the crate does where sysfs knows more.
fn refused(path: &Path, device: Bdf, source: VfioError) -> OpenError {
    match source {
        VfioError::OpenGroup(error, _) if error.kind() == io::ErrorKind::ResourceBusy => OpenError::InUse(device),
        VfioError::GroupViable => {
            let group = fs::read_link(path.join("iommu_group")).ok().and_then(|link| last_name(&link));
            OpenError::NotViable { device, group: group.unwrap_or_default(), holders: holders(path) }
        }
        source => OpenError::Vfio { device, source },
    }
}

/// Members of the device's IOMMU group that a driver of the host has.
fn holders(path: &Path) -> Vec<String> {
    let members = fs::read_dir(path.join("iommu_group/devices")).into_iter().flatten().flatten();
    let holder = |member: PathBuf| {
        let driver = driver(&member).filter(|driver| driver != DRIVER && driver != "pcieport")?;
        Some(format!("{} ({driver})", last_name(&member)?))
    };
    let mut holders: Vec<_> = members.filter_map(|member| holder(member.path())).collect();
    holders.sort();
    holders
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    /// Functions in one group, each with the name of its driver.
    fn tree(functions: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        for (address, driver) in functions {
            let function = root.path().join(address);
            fs::create_dir(&function).unwrap();
            symlink(&group, function.join("iommu_group")).unwrap();
            symlink(&function, group.join("devices").join(address)).unwrap();
            if !driver.is_empty() {
                symlink(format!("/drivers/{driver}"), function.join("driver")).unwrap();
            }
        }
        root
    }

    #[test]
    fn says_what_is_wrong_before_it_opens_anything() {
        let root = tree(&[("0000:03:10.0", "igbvf"), ("0000:03:10.2", "")]);
        fs::create_dir(root.path().join("0000:00:02.0")).unwrap();
        let error = |address| open_below(root.path(), bdf(address)).unwrap_err().to_string();
        assert_eq!(error("0000:09:00.0"), "the host has no PCI device 0000:09:00.0; see `lspci -D`");
        assert!(error("0000:00:02.0").starts_with("device 0000:00:02.0 is in no IOMMU group; switch the IOMMU on"));
        assert_eq!(error("0000:03:10.0"), "device 0000:03:10.0 has driver igbvf; bind it to vfio-pci first");
        assert_eq!(error("0000:03:10.2"), "device 0000:03:10.2 has no driver; bind it to vfio-pci first");
    }

    #[test]
    fn names_who_holds_a_group_that_is_not_viable() {
        let root = tree(&[("0000:00:1f.0", DRIVER), ("0000:00:1f.3", "snd_hda_intel"), ("0000:00:1f.4", "")]);
        let address = bdf("0000:00:1f.0");
        let error = refused(&root.path().join(address.to_string()), address, VfioError::GroupViable);
        assert_eq!(
            error.to_string(),
            "device 0000:00:1f.0 shares IOMMU group 7 with 0000:00:1f.3 (snd_hda_intel); bind these to vfio-pci too, or to no driver"
        );
    }

    #[test]
    fn a_group_that_is_open_is_in_use() {
        let busy = VfioError::OpenGroup(io::ErrorKind::ResourceBusy.into(), "7".into());
        let error = refused(Path::new("/"), bdf("0000:03:10.0"), busy);
        assert!(matches!(error, OpenError::InUse(_)), "{error}");
    }
}
