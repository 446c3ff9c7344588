//! Functions that vfio-pci has for nobody. Key function: [`unbind_unused`].

use std::fs::File;
use std::io;
use std::path::Path;

use super::HostdevError;
use super::bind::PciBus;
use super::reset::reset;
use crate::model::Bdf;

/// Resets a function, takes it from vfio-pci and leaves it without a driver, if no program has it open. Blocks.
pub fn unbind_unused(device: Bdf) -> Result<(), HostdevError> {
    let bus = PciBus::of_host();
    // A group is opened once: whoever has it, or a device of it, keeps others out, and so do we until it is unbound.
    let _group = open_group(&bus.dir(device), device)?;
    reset(&bus.dir(device), device)?;
    bus.leave_vfio(device)
}

/// Opens the group of the function whose directory is `dir`.
fn open_group(dir: &Path, device: Bdf) -> Result<File, HostdevError> {
    let failed = |source| HostdevError::Sysfs { what: "open the IOMMU group", device, source };
    let link = std::fs::read_link(dir.join("iommu_group")).map_err(failed)?;
    let number = link.file_name().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let opened = File::options().read(true).write(true).open(Path::new("/dev/vfio").join(number));
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => HostdevError::InUse { device },
        _ => failed(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_group_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let device = Bdf::new(0, 1, 16, 0).unwrap();
        let error = open_group(dir.path(), device).unwrap_err().to_string();
        assert!(error.contains("cannot open the IOMMU group of 0000:01:10.0"), "{error}");
    }
}
