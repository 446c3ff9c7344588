//! Guest memory: one memfd, mapped once, given to KVM as slots. Key function: [`allocate`].
//!
//! The vmm makes it itself, before it is confined: nobody else has a descriptor of it, and its length is sealed. No
//! transparent huge pages are asked for: for a memfd the kernel ignores the advice unless the host's operator has changed
//! `transparent_hugepage/shmem_enabled`, and then it needs none.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout;
use crate::model::{MemorySpec, PageSize};

/// Maps `memory_bytes` of guest memory from a fresh memfd, all of one kind of page. Ordinary pages are allocated when
/// they are first touched, or at once if they are to be prefaulted; huge ones are reserved at once either way, so that
/// none can be missing later.
pub fn allocate(memory_bytes: u64, spec: &MemorySpec) -> io::Result<GuestMemoryMmap> {
    let pages = match spec.pages {
        PageSize::Small => MemfdFlags::empty(),
        PageSize::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        PageSize::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let memfd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages)?;
    rustix::fs::ftruncate(&memfd, memory_bytes)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    // Ordinary pages are not reserved: what the guest never touches costs nothing.
    let reserve = if spec.pages.is_huge() { 0 } else { libc::MAP_NORESERVE };
    let populate = if spec.is_prefaulted { libc::MAP_POPULATE } else { 0 };
    let file = Arc::new(File::from(memfd));
    let mut offset = 0;
    let regions = layout::ram_ranges(memory_bytes)
        .into_iter()
        .map(|(base, len)| {
            let backing = FileOffset::from_arc(Arc::clone(&file), offset);
            offset += len;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let region = MmapRegionBuilder::new(len)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | reserve | populate)
                .with_file_offset(backing)
                .build()
                .map_err(io::Error::other)?;
            GuestRegionMmap::new(region, GuestAddress(base)).ok_or_else(|| io::Error::other("region past the end"))
        })
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn spans_the_hole_with_one_memfd() {
        let memory = allocate(5 << 30, &MemorySpec::default()).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7u64, GuestAddress(layout::HIGH_RAM)).unwrap();
        assert!(memory.write_obj(7u64, GuestAddress(layout::MMIO_HOLE)).is_err());
    }

    #[test]
    fn nobody_can_shorten_it() {
        let memory = allocate(64 << 20, &MemorySpec::default()).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(4096).is_err() && file.set_len(1 << 30).is_err());
    }

    #[test]
    fn prefaulted_memory_is_there_before_it_is_touched() {
        let blocks = |is_prefaulted| {
            let memory = allocate(16 << 20, &MemorySpec { is_prefaulted, ..MemorySpec::default() }).unwrap();
            let region = memory.iter().next().unwrap();
            std::os::unix::fs::MetadataExt::blocks(&region.file_offset().unwrap().file().metadata().unwrap()) * 512
        };
        assert_eq!((blocks(false), blocks(true)), (0, 16 << 20));
    }
}
