//! Guest memory: one memfd, mapped once, given to KVM as slots. Key function: [`allocate`].

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout;

/// Maps `memory_bytes` of guest memory from a fresh memfd. Pages are allocated when the guest first touches them.
pub fn allocate(memory_bytes: u64) -> io::Result<GuestMemoryMmap> {
    let memfd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memfd, memory_bytes)?;
    let file = Arc::new(File::from(memfd));
    let mut offset = 0;
    let regions = layout::ram_ranges(memory_bytes)
        .into_iter()
        .map(|(base, len)| {
            let backing = FileOffset::from_arc(Arc::clone(&file), offset);
            offset += len;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            GuestRegionMmap::from_range(GuestAddress(base), len, Some(backing)).map_err(io::Error::other)
        })
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn spans_the_hole_with_one_memfd() {
        let memory = allocate(5 << 30).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7u64, GuestAddress(layout::HIGH_RAM)).unwrap();
        assert!(memory.write_obj(7u64, GuestAddress(layout::MMIO_HOLE)).is_err());
    }
}
