//! Guest memory, mapped where the layout has it, for KVM's slots and the devices. Key function: [`map`].

use std::io;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout;
use crate::model::MemorySpec;
use crate::sys::guest_ram;

/// So much from address 0 is in ordinary pages: the tables and the command line that the guest finds there are a few of
/// them, and to clear a huge one takes as long as half of everything else before its first instruction.
const SMALL: usize = guest_ram::HUGE_PAGE;

/// Maps `memory_bytes` of guest memory. Ordinary pages are allocated when they are first touched, or at once if they are to
/// be prefaulted; huge ones of the host's pool are reserved at once either way, so that none can be missing later.
pub fn map(memory_bytes: u64, spec: &MemorySpec) -> io::Result<GuestMemoryMmap> {
    let regions = layout::ram_ranges(memory_bytes)
        .into_iter()
        .map(|(base, len)| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let pages = spec.pages;
            let region = if pages.is_huge() {
                guest_ram::map_huge(len, pages.bytes() >> 10)?
            } else {
                guest_ram::map(len, if base == 0 { SMALL } else { 0 })?
            };
            if spec.is_prefaulted {
                guest_ram::prefault(&region)?;
            }
            GuestRegionMmap::new(region, GuestAddress(base)).ok_or_else(|| io::Error::other("region past the end"))
        })
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn spans_the_hole() {
        let memory = map(5 << 30, &MemorySpec::default()).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7u64, GuestAddress(layout::HIGH_RAM)).unwrap();
        assert!(memory.write_obj(7u64, GuestAddress(layout::MMIO_HOLE)).is_err());
    }
}
