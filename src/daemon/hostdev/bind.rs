//! Drivers of PCI functions through sysfs (linux/Documentation/ABI/testing/sysfs-bus-pci). Key type: [`PciBus`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HostdevError;
use crate::model::Bdf;

/// The driver that lends functions to user space.
const VFIO_DRIVER: &str = "vfio-pci";
/// Looks at a driver that is about to appear, and the time between them.
const BIND_LOOKS: u32 = 40;
const BIND_STEP: Duration = Duration::from_millis(50);

/// What is told of it.
pub(super) const BINDING: &str = "binding the device to vfio-pci";
pub(super) const UNBINDING: &str = "unbinding the device from vfio-pci";

/// The PCI functions of the host.
#[derive(Debug)]
pub(super) struct PciBus {
    root: PathBuf,
}

impl PciBus {
    /// This host's.
    pub(super) fn of_host() -> Self {
        Self { root: "/sys/bus/pci".into() }
    }

    /// A function's directory.
    pub(super) fn dir(&self, device: Bdf) -> PathBuf {
        self.root.join("devices").join(device.to_string())
    }

    /// The function's driver.
    pub(super) fn driver(&self, device: Bdf) -> Option<String> {
        let link = fs::read_link(self.dir(device).join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// Gives the function to vfio-pci, taking it from whatever driver has it.
    pub(super) fn bind_to_vfio(&self, device: Bdf) -> Result<(), HostdevError> {
        if !self.root.join("drivers").join(VFIO_DRIVER).exists() {
            return Err(HostdevError::NoVfioDriver);
        }
        let current = self.driver(device);
        if current.as_deref() == Some(VFIO_DRIVER) {
            return Ok(());
        }
        if current.is_some() {
            self.unbind(device)?;
        }
        self.write(device, "set the driver override", &self.dir(device).join("driver_override"), VFIO_DRIVER)?;
        self.probe(device)?;
        for _ in 0..BIND_LOOKS {
            if self.driver(device).as_deref() == Some(VFIO_DRIVER) {
                return Ok(());
            }
            std::thread::sleep(BIND_STEP);
        }
        Err(HostdevError::NotBound { device })
    }

    /// Takes the function from vfio-pci, if that has it, and lets any driver have it again; it stays without one.
    pub(super) fn leave_vfio(&self, device: Bdf) -> Result<(), HostdevError> {
        // First, so that whoever finds the function in vfio-pci after a crash in between finds all that is left to do. A line
        // feed alone clears it; an empty write does nothing.
        self.write(device, "clear the driver override", &self.dir(device).join("driver_override"), "\n")?;
        if self.driver(device).as_deref() == Some(VFIO_DRIVER) {
            self.unbind(device)?;
        }
        Ok(())
    }

    /// Has the kernel look for a driver.
    pub(super) fn probe(&self, device: Bdf) -> Result<(), HostdevError> {
        self.write(device, "find a driver", &self.root.join("drivers_probe"), &device.to_string())
    }

    /// Writes one of the function's own files.
    pub(super) fn set(&self, device: Bdf, what: &'static str, file: &str, text: &str) -> Result<(), HostdevError> {
        self.write(device, what, &self.dir(device).join(file), text)
    }

    fn unbind(&self, device: Bdf) -> Result<(), HostdevError> {
        self.write(device, "unbind the driver", &self.dir(device).join("driver/unbind"), &device.to_string())
    }

    fn write(&self, device: Bdf, what: &'static str, file: &Path, text: &str) -> Result<(), HostdevError> {
        // Not created: a file that is not there is not sysfs's.
        let written = fs::OpenOptions::new().write(true).open(file).and_then(|mut file| {
            use io::Write;
            file.write_all(text.as_bytes())
        });
        written.map_err(|source| HostdevError::Sysfs { what, device, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A directory in place of `/sys/bus/pci`: it takes what is written, and binds nothing.
    fn bus(driver: Option<&str>) -> (tempfile::TempDir, PciBus, Bdf) {
        let root = tempfile::tempdir().unwrap();
        let device = Bdf::new(0, 1, 16, 0).unwrap();
        let bus = PciBus { root: root.path().to_owned() };
        fs::create_dir_all(bus.dir(device)).unwrap();
        fs::create_dir_all(root.path().join("drivers/vfio-pci")).unwrap();
        for file in [root.path().join("drivers_probe"), bus.dir(device).join("driver_override")] {
            fs::write(file, "").unwrap();
        }
        if let Some(driver) = driver {
            let of_driver = root.path().join("drivers").join(driver);
            fs::create_dir_all(&of_driver).unwrap();
            fs::write(of_driver.join("unbind"), "").unwrap();
            symlink(of_driver, bus.dir(device).join("driver")).unwrap();
        }
        (root, bus, device)
    }

    #[test]
    fn unbinds_overrides_probes_and_notices_that_nothing_came_of_it() {
        let (root, bus, device) = bus(Some("igbvf"));
        let error = bus.bind_to_vfio(device).unwrap_err();
        assert!(matches!(error, HostdevError::NotBound { .. }), "{error}");
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("drivers/igbvf/unbind"), "0000:01:10.0");
        assert_eq!(read("devices/0000:01:10.0/driver_override"), "vfio-pci");
        assert_eq!(read("drivers_probe"), "0000:01:10.0");
    }

    #[test]
    fn leaves_alone_what_is_bound_already_and_clears_the_override_at_the_end() {
        let (root, bus, device) = bus(Some("vfio-pci"));
        bus.bind_to_vfio(device).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("drivers_probe"), "");
        bus.leave_vfio(device).unwrap();
        assert_eq!(read("drivers/vfio-pci/unbind"), "0000:01:10.0");
        assert_eq!(read("devices/0000:01:10.0/driver_override"), "\n");
    }

    #[test]
    fn what_is_still_bound_has_no_override_any_more() {
        let (root, bus, device) = bus(Some("vfio-pci"));
        fs::remove_file(root.path().join("drivers/vfio-pci/unbind")).unwrap();
        fs::create_dir(root.path().join("drivers/vfio-pci/unbind")).unwrap();
        bus.leave_vfio(device).unwrap_err();
        assert_eq!(fs::read_to_string(bus.dir(device).join("driver_override")).unwrap(), "\n");
    }

    #[test]
    fn says_what_is_missing() {
        let (root, bus, device) = bus(None);
        fs::remove_dir_all(root.path().join("drivers/vfio-pci")).unwrap();
        assert!(bus.bind_to_vfio(device).unwrap_err().to_string().contains("load the module vfio-pci"));
        let other = Bdf::new(0, 2, 0, 0).unwrap();
        assert!(bus.leave_vfio(other).unwrap_err().to_string().contains("0000:02:00.0"));
    }
}
