//! Kernels, initrds and disk images, below the directories that the operator chose. Key type: [`Files`].

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::model::{DiskSpec, ImagePath, SpecError, TenantId, VmSpec};
use crate::sys::beneath::{self, Access};

/// Bytes of a disk's sector (VIRTIO 1.2 §5.2.4).
const SECTOR_LEN: u64 = 512;

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
        let file = beneath::open(&dir, disk.volume.as_str(), access)
            .map_err(|error| refusal(&field, &disk.volume, &format!("the volumes of tenant {tenant}"), &error))?;
        let unusable = |reason: String| SpecError::new(&field, format!("{:?} {reason}", disk.volume.as_str()));
        check_len(&file).map_err(unusable)?;
        if disk.is_direct {
            bypass_cache(&file).map_err(|error| unusable(format!("cannot be used with direct I/O here: {error}")))?;
        }
        Ok(file)
    }

    /// The length of `tenant`'s disk number `index` in bytes, after it was made `wanted` bytes long, if that is not less.
    /// A disk that is read-only stays as it is, and so does a block device. The new length survives a crash.
    pub fn grow(
        &self,
        tenant: &TenantId,
        index: usize,
        disk: &DiskSpec,
        wanted: Option<u64>,
    ) -> Result<u64, SpecError> {
        let (file, len) = self.growable(tenant, index, disk, wanted)?;
        let Some(wanted) = wanted.filter(|&wanted| wanted != len) else { return Ok(len) };
        file.set_len(wanted).and_then(|()| file.sync_all()).map_err(|error| unresizable(&error))?;
        Ok(wanted)
    }

    /// The length that [`grow`](Self::grow) would come to; nothing changes.
    pub fn grown(
        &self,
        tenant: &TenantId,
        index: usize,
        disk: &DiskSpec,
        wanted: Option<u64>,
    ) -> Result<u64, SpecError> {
        self.growable(tenant, index, disk, wanted).map(|(_, len)| wanted.unwrap_or(len))
    }

    /// The disk and its length, if it may be made `wanted` bytes long.
    fn growable(
        &self,
        tenant: &TenantId,
        index: usize,
        disk: &DiskSpec,
        wanted: Option<u64>,
    ) -> Result<(File, u64), SpecError> {
        let mut file = self.disk(tenant, index, disk)?;
        let len = file.seek(SeekFrom::End(0)).map_err(|error| unresizable(&error))?;
        let Some(wanted) = wanted.filter(|&wanted| wanted != len) else { return Ok((file, len)) };
        let refuse = |reason: String| Err(SpecError::new("size_bytes", reason));
        if disk.is_read_only {
            return refuse(format!("disk {} is read-only: grow its volume on the host", disk.id));
        }
        if wanted < len {
            return refuse(format!("{wanted} bytes, the volume has {len}: a disk in use only grows"));
        }
        if !wanted.is_multiple_of(SECTOR_LEN) {
            return refuse(format!("{wanted} bytes are no whole sectors of {SECTOR_LEN}"));
        }
        Ok((file, len))
    }

    /// Whether everything that `spec` names can be opened; the first that cannot is the error.
    pub fn check(&self, tenant: &TenantId, spec: &VmSpec) -> Result<(), SpecError> {
        self.kernel(spec)?;
        self.initrd(spec)?;
        spec.disks().iter().enumerate().try_for_each(|(index, disk)| self.disk(tenant, index, disk).map(drop))
    }

    /// A kernel or an initrd: a regular file, since its length is what its inode says.
    fn image(&self, field: &str, path: &ImagePath) -> Result<File, SpecError> {
        let refused = |error| refusal(field, path, "the node's images", &error);
        let file = beneath::open(&self.images, path.as_str(), Access::Read).map_err(refused)?;
        if file.metadata().map_err(refused)?.is_file() {
            return Ok(file);
        }
        Err(SpecError::new(field, format!("{:?} is a block device: make it a regular file", path.as_str())))
    }
}

fn unresizable(error: &io::Error) -> SpecError {
    SpecError::new("size_bytes", format!("the volume cannot be resized: {error}"))
}

/// Whether the image has whole sectors, and at least one; what is wrong with it if not.
fn check_len(file: &File) -> Result<(), String> {
    let mut file = file;
    let len = file.seek(SeekFrom::End(0)).map_err(|error| format!("has no length: {error}"))?;
    match len {
        0 => Err("is empty: a disk has at least one sector of 512 bytes".to_owned()),
        len if !len.is_multiple_of(SECTOR_LEN) => {
            Err(format!("has {len} bytes, which are no whole sectors of {SECTOR_LEN}: make it longer or shorter"))
        }
        _ => Ok(()),
    }
}

fn bypass_cache(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(file, rustix::fs::fcntl_getfl(file)? | OFlags::DIRECT)?)
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
    use crate::model::{BootSpec, RateLimits};

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
            is_direct: false,
            queues: 1,
            limits: RateLimits::default(),
        };
        let spec = VmSpec::new(1, 128, boot, vec![disk], vec![]).unwrap();

        let error = files.check(&tenant, &spec).unwrap_err();
        assert_eq!(error.field, "spec.boot.kernel");
        assert!(error.reason.contains("vmlinux") && error.reason.contains("does not exist"), "{error}");

        std::fs::write(dir.path().join("vmlinux"), b"x").unwrap();
        assert_eq!(files.check(&tenant, &spec).unwrap_err().field, "spec.disks[0].volume");

        std::fs::create_dir_all(dir.path().join("volumes/acme")).unwrap();
        let image = dir.path().join("volumes/acme/root.img");
        for (len, word) in [(0, "empty"), (1, "1 bytes"), (1000, "1000 bytes")] {
            std::fs::write(&image, vec![0; len]).unwrap();
            let error = files.check(&tenant, &spec).unwrap_err();
            assert!(error.field == "spec.disks[0].volume" && error.reason.contains(word), "{error}");
        }
        std::fs::write(&image, [0; 512]).unwrap();
        assert_eq!(files.check(&tenant, &spec), Ok(()));
        let grown = |wanted| files.grow(&tenant, 0, &spec.disks()[0], wanted);
        assert_eq!((grown(None), grown(Some(512)), grown(Some(4096))), (Ok(512), Ok(512), Ok(4096)));
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 4096);
        for wanted in [0, 512, 4095, 4097, u64::MAX, !511] {
            assert_eq!(grown(Some(wanted)).unwrap_err().field, "size_bytes", "{wanted}");
        }
        let read_only = DiskSpec { is_read_only: true, ..spec.disks()[0].clone() };
        assert!(files.grow(&tenant, 0, &read_only, Some(8192)).is_err());
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 4096);
        assert!(files.check(&"bob".parse().unwrap(), &spec).is_err(), "another tenant's volumes");
    }
}
