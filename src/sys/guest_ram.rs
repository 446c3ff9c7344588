//! Files whose pages are a guest's memory. Key functions: [`create`], [`create_huge`].
//!
//! Ordinary pages lie in a tmpfs of the file's own that is mounted nowhere, because a mount can ask for transparent huge
//! pages (`huge=`, linux/Documentation/admin-guide/mm/transhuge.rst) and a memfd gets them only where the host's operator
//! has changed `shmem_enabled`. A guest then costs one fault for 2 MiB instead of 512, on the host and in the second
//! dimension of its page tables.

#![allow(unsafe_code, reason = "advises on mapped guest memory; see the block")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use vm_memory::GuestRegionMmap;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// As it is called in `/proc/<pid>/maps`.
pub const NAME: &str = "guest-ram";

/// A file of `len` bytes in ordinary pages, in huge ones where the kernel finds some. Nothing is allocated yet.
pub fn create(len: u64) -> io::Result<OwnedFd> {
    let file = match tmpfs() {
        Ok(root) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::openat(&root, NAME, flags, Mode::RUSR | Mode::WUSR)?
        }
        // Not root (then there is no jail either), or a kernel without huge pages in tmpfs.
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?,
        Err(error) => return Err(error.into()),
    };
    sized(file, len)
}

/// A file of `len` bytes in pages of 2 MiB (`page_kib` 2048) or 1 GiB from the host's pool. They are reserved when the
/// file is mapped (ENOMEM).
pub fn create_huge(len: u64, page_kib: u64) -> io::Result<OwnedFd> {
    let size = match page_kib {
        2048 => MemfdFlags::HUGE_2MB,
        0x10_0000 => MemfdFlags::HUGE_1GB,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "pages are of 2 MiB or 1 GiB")),
    };
    sized(rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | size)?, len)
}

/// Lets the first `len` bytes of mapped guest memory come in ordinary pages, each when it is touched (`MADV_NOHUGEPAGE`).
pub fn split_first(region: &GuestRegionMmap, len: usize) -> io::Result<()> {
    let len = len.min(region.size());
    // SAFETY: `len` bytes from there on are mapped while the region lives; advice of this kind changes no byte of them.
    let done = unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn sized(file: OwnedFd, len: u64) -> io::Result<OwnedFd> {
    let file = File::from(file);
    file.set_len(len)?;
    Ok(file.into())
}

/// The root of a fresh tmpfs without a limit of its own: a VM's cgroup has one. It lives as long as its files.
fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in [("source", NAME), ("size", "0"), ("mode", "0700"), ("huge", "within_size")] {
        rustix::mount::fsconfig_set_string(&context, option, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let harmless =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, harmless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn costs_nothing_until_it_is_touched() {
        let file = File::from(create(1 << 40).unwrap());
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (1 << 40, 0));
    }

    #[test]
    fn comes_in_huge_pages_where_the_kernel_has_them() {
        if tmpfs().is_err() {
            crate::sys::absence::skip("root, and a kernel with huge pages in tmpfs");
            return;
        }
        let file = File::from(create(16 << 20).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], 5 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 2 << 20);
    }

    #[test]
    fn knows_two_sizes_of_huge_pages() {
        assert_eq!(create_huge(1 << 30, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
