//! Guest memory: one file, mapped once, given to KVM as slots. Key function: [`map`].
//!
//! The daemon made the file (`sys/guest_ram`) and keeps no descriptor of it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout;
use crate::model::MemorySpec;
use crate::sys::guest_ram;

/// Maps `memory_bytes` of guest memory, of which `file` has to have as many. Ordinary pages are allocated when they are
/// first touched, or at once if they are to be prefaulted; huge ones are reserved at once either way, so that none can be
/// missing later.
pub fn map(file: File, memory_bytes: u64, spec: &MemorySpec) -> io::Result<GuestMemoryMmap> {
    let len = file.metadata()?.len();
    if len != memory_bytes {
        // Pages behind its end would end the process when they are touched.
        return Err(io::Error::other(format!("the file has {len} bytes, not {memory_bytes}")));
    }
    // Ordinary pages are not reserved: what the guest never touches costs nothing.
    let reserve = if spec.pages.is_huge() { 0 } else { libc::MAP_NORESERVE };
    let populate = if spec.is_prefaulted { libc::MAP_POPULATE } else { 0 };
    let file = Arc::new(file);
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
            let region = GuestRegionMmap::new(region, GuestAddress(base))
                .ok_or_else(|| io::Error::other("region past the end"))?;
            if base == 0 && spec.is_on_demand() {
                guest_ram::split_first(&region, layout::BOOT_DATA_LEN)?;
            }
            Ok(region)
        })
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestMemoryBackend};

    fn ram(memory_bytes: u64) -> File {
        guest_ram::create(memory_bytes).unwrap().into()
    }

    #[test]
    fn spans_the_hole_with_one_file() {
        let memory = map(ram(5 << 30), 5 << 30, &MemorySpec::default()).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7u64, GuestAddress(layout::HIGH_RAM)).unwrap();
        assert!(memory.write_obj(7u64, GuestAddress(layout::MMIO_HOLE)).is_err());
    }

    #[test]
    fn refuses_a_file_that_ends_before_the_memory_does() {
        assert!(map(ram(64 << 20), 128 << 20, &MemorySpec::default()).is_err());
    }

    #[test]
    fn prefaulted_memory_is_there_before_it_is_touched() {
        let blocks = |is_prefaulted| {
            let file = ram(16 << 20);
            let spec = MemorySpec { is_prefaulted, ..MemorySpec::default() };
            let _memory = map(file.try_clone().unwrap(), 16 << 20, &spec).unwrap();
            file.metadata().unwrap().blocks() * 512
        };
        assert_eq!((blocks(false), blocks(true)), (0, 16 << 20));
    }
}
