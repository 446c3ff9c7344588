//! A guest's memory. Key functions: [`map`], [`map_huge`], [`prefault`].
//!
//! It is the vmm's own, anonymous and private: nobody else maps it, so that it needs no file. In transparent huge pages
//! (linux/Documentation/admin-guide/mm/transhuge.rst) a guest costs one fault for 2 MiB instead of 512, on the host and in
//! the second dimension of its page tables. KVM uses a huge page only where the address in the guest and the one here agree
//! in their last 21 bits, which kernels before 6.7 do not see to.

#![allow(unsafe_code, reason = "makes mapped memory accessible and advises on it; see the blocks")]

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileMemory};

/// Base and length of what KVM maps by one entry.
pub const HUGE_PAGE: usize = 2 << 20;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const ACCESS: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// By this flag of `/proc/<pid>/smaps` guest memory is told from everything else that a vmm has: no child is to inherit
/// it (`MADV_DONTFORK`). A name would be plainer, but distributions build their kernels without names of memory.
pub const MARK: &str = "dc";

/// `len` bytes in ordinary pages, behind the first `small` of them in huge ones where the kernel finds some, for as long as
/// this process lives. Nothing is allocated or reserved: what is never touched costs nothing.
pub fn map(len: usize, small: usize) -> io::Result<MmapRegion> {
    let len_with_room = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = PRIVATE | libc::MAP_NORESERVE;
    let room = MmapRegionBuilder::<()>::new(len_with_room).with_mmap_flags(flags).build().map_err(io::Error::other)?;
    // It stays mapped: nobody else frees it.
    let room = ManuallyDrop::new(room);
    let base = room.as_ptr().map_addr(|address| address.next_multiple_of(HUGE_PAGE));
    // SAFETY: the room has `len` bytes from `base` on, which lies less than HUGE_PAGE behind its start. They were mapped just
    // now, without access, and nobody else knows of them.
    let done = unsafe { libc::mprotect(base.cast(), len, ACCESS) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: they are mapped with these rights, by these flags, and never unmapped.
    let region = unsafe { MmapRegion::build_raw(base, len, ACCESS, flags) }.map_err(io::Error::other)?;
    let small = small.min(len);
    for (range, advice) in [(0..small, libc::MADV_NOHUGEPAGE), (small..len, libc::MADV_HUGEPAGE)] {
        match advise(&region, range, advice) {
            // A kernel without huge pages.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => other?,
        }
    }
    marked(region)
}

/// `len` bytes in pages of 2 MiB (`page_kib` 2048) or 1 GiB from the host's pool, all of them reserved now (ENOMEM).
pub fn map_huge(len: usize, page_kib: u64) -> io::Result<MmapRegion> {
    let size = match page_kib {
        2048 => libc::MAP_HUGE_2MB,
        0x10_0000 => libc::MAP_HUGE_1GB,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "pages are of 2 MiB or 1 GiB")),
    };
    let flags = PRIVATE | libc::MAP_HUGETLB | size;
    let builder = MmapRegionBuilder::new(len).with_mmap_prot(ACCESS).with_mmap_flags(flags);
    marked(builder.build().map_err(io::Error::other)?)
}

/// Allocates every page (`MADV_POPULATE_WRITE`, Linux 5.14).
pub fn prefault(region: &MmapRegion) -> io::Result<()> {
    loop {
        match advise(region, 0..region.size(), libc::MADV_POPULATE_WRITE) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn marked(region: MmapRegion) -> io::Result<MmapRegion> {
    advise(&region, 0..region.size(), libc::MADV_DONTFORK).map(|()| region)
}

/// madvise(2) on whole pages of it, with advice that changes no byte.
fn advise(region: &MmapRegion, range: Range<usize>, advice: i32) -> io::Result<()> {
    let slice = region.get_slice(range.start, range.len()).map_err(io::Error::other)?;
    // SAFETY: these bytes are mapped while the region lives; the advice says how they are allocated, or not inherited.
    let done = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), advice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    /// What `/proc/self/smaps` says of the mapping at `region`'s base, in KiB, and its flags.
    fn seen(region: &MmapRegion, name: &str) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, at) = smaps.split_once(&format!("{:x}-", region.as_ptr().addr())).expect("a mapping of its own");
        let line = at.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").to_owned()
    }

    #[test]
    fn costs_nothing_until_it_is_touched_and_is_marked() {
        let region = map(1 << 40, 0).unwrap();
        assert_eq!((seen(&region, "Size").as_str(), seen(&region, "Rss").as_str()), ("1073741824", "0"));
        assert!(seen(&region, "VmFlags").split(' ').any(|flag| flag == MARK));
        assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
    }

    #[test]
    fn comes_in_huge_pages_where_the_kernel_has_them() {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        if setting.is_empty() || setting.contains("[never]") {
            crate::sys::absence::skip("a kernel with transparent huge pages");
            return;
        }
        let region = map(16 << 20, 0).unwrap();
        region.as_volatile_slice().write_obj(1_u8, 5 << 20).unwrap();
        assert_eq!(seen(&region, "AnonHugePages"), "2048");
        assert_eq!(seen(&region, "Rss"), "2048");
        let region = map(16 << 20, HUGE_PAGE).unwrap();
        region.as_volatile_slice().write_obj(1_u8, 1 << 20).unwrap();
        assert_eq!((seen(&region, "Size").as_str(), seen(&region, "Rss").as_str()), ("2048", "4"));
    }

    #[test]
    fn what_is_prefaulted_is_there_before_it_is_touched() {
        let region = map(4 << 20, 0).unwrap();
        prefault(&region).unwrap();
        assert_eq!(seen(&region, "Rss"), "4096");
    }

    #[test]
    fn knows_two_sizes_of_huge_pages() {
        assert_eq!(map_huge(1 << 30, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
