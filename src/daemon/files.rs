//! Kernels, initrds and disk images, below the directories that the operator chose. Key type: [`Files`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::{DiskSpec, ImagePath, SpecError, TenantId, VmSpec};
use crate::sys::beneath::{self, Access};

/// Opens what a spec names, and nothing outside.
#[derive(Debug, Clone)]
pub struct Files {
    images: PathBuf,
    volumes: PathBuf,
}

impl Files {
    /// `images`: kernels and initrds, for all; `volumes`: one directory of disk images per tenant.
    pub fn new(images: &Path, volumes: &Path) -> Self {
        Self { images: images.to_owned(), volumes: volumes.to_owned() }
    }

    /// The kernel, for reading.
    pub fn kernel(&self, spec: &VmSpec) -> Result<File, SpecError> {
        self.image("spec.boot.kernel", &spec.boot().kernel)
    }

    /// The initrd, for reading, if there is one.
    pub fn initrd(&self, spec: &VmSpec) -> Result<Option<File>, SpecError> {
        spec.boot().initrd.as_ref().map(|path| self.image("spec.boot.initrd", path)).transpose()
    }

    /// The image of `tenant`'s disk number `index`, for writing too unless it is read-only.
    pub fn disk(&self, tenant: &TenantId, index: usize, disk: &DiskSpec) -> Result<File, SpecError> {
        self.disk_of(tenant, format!("spec.disks[{index}].volume"), disk)
    }

    /// The same for a disk that comes alone.
    pub fn single_disk(&self, tenant: &TenantId, disk: &DiskSpec) -> Result<File, SpecError> {
        self.disk_of(tenant, "disk.volume".to_owned(), disk)
    }

    fn disk_of(&self, tenant: &TenantId, field: String, disk: &DiskSpec) -> Result<File, SpecError> {
        let access = if disk.is_read_only { Access::Read } else { Access::ReadWrite };
        let dir = self.volumes.join(tenant.as_str());
        beneath::open(&dir, disk.volume.as_str(), access)
            .map_err(|error| refusal(&field, &disk.volume, &format!("the volumes of tenant {tenant}"), &error))
    }

    /// Whether everything that `spec` names can be opened; the first that cannot is the error.
    pub fn check(&self, tenant: &TenantId, spec: &VmSpec) -> Result<(), SpecError> {
        self.kernel(spec)?;
        self.initrd(spec)?;
        spec.disks().iter().enumerate().try_for_each(|(index, disk)| self.disk(tenant, index, disk).map(drop))
    }

    fn image(&self, field: &str, path: &ImagePath) -> Result<File, SpecError> {
        beneath::open(&self.images, path.as_str(), Access::Read)
            .map_err(|error| refusal(field, path, "the node's images", &error))
    }
}

fn refusal(field: &str, path: &ImagePath, place: &str, error: &io::Error) -> SpecError {
    let reason = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::LOOP) => "is or crosses a symbolic link, which is not followed".to_owned(),
        Some(rustix::io::Errno::XDEV) => "leads out of its directory".to_owned(),
        _ if error.kind() == io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be opened: {error}"),
    };
    SpecError::new(field, format!("{path:?} below {place} {reason}", path = path.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BootSpec;

    #[test]
    fn names_the_field_and_the_path_that_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &dir.path().join("volumes"));
        let tenant: TenantId = "acme".parse().unwrap();
        let boot = BootSpec { kernel: ImagePath::new("k", "vmlinux").unwrap(), initrd: None, cmdline: String::new() };
        let disk = DiskSpec {
            id: "root".parse().unwrap(),
            volume: ImagePath::new("v", "root.img").unwrap(),
            is_read_only: false,
        };
        let spec = VmSpec::new(1, 128, boot, vec![disk], vec![]).unwrap();

        let error = files.check(&tenant, &spec).unwrap_err();
        assert_eq!(error.field, "spec.boot.kernel");
        assert!(error.reason.contains("vmlinux") && error.reason.contains("does not exist"), "{error}");

        std::fs::write(dir.path().join("vmlinux"), b"x").unwrap();
        assert_eq!(files.check(&tenant, &spec).unwrap_err().field, "spec.disks[0].volume");

        std::fs::create_dir_all(dir.path().join("volumes/acme")).unwrap();
        std::fs::write(dir.path().join("volumes/acme/root.img"), b"x").unwrap();
        assert_eq!(files.check(&tenant, &spec), Ok(()));
        assert!(files.check(&"bob".parse().unwrap(), &spec).is_err(), "another tenant's volumes");
    }
}
