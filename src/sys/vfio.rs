//! VFIO descriptors (linux/vfio.h): DMA mappings, regions, interrupts. Key types: [`Container`], [`Device`], [`Pages`].
//!
//! ```text
//!   Container ── map ──▶ IOMMU: what the device may reach by DMA
//!   Device ── region ──▶ pread, pwrite │ map ──▶ Pages      ── signal ──▶ eventfds of an interrupt index
//! ```
//! Descriptors come from somebody else: `daemon/hostdev` opens them, the vmm gets them with its launch. Whoever holds
//! the device keeps its IOMMU group and the container alive in the kernel, so that nothing else needs to be passed.
#![allow(unsafe_code, reason = "ioctls and mappings; see each block")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of areas, often of one")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio as bindings;
use vfio_ioctls::{VfioContainer, VfioDevice};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

/// Numbers of the ioctls, from `VFIO_BASE` (linux/vfio.h).
const GET_API_VERSION: u32 = 0;
const CHECK_EXTENSION: u32 = 1;
const DEVICE_GET_INFO: u32 = 7;
const DEVICE_GET_REGION_INFO: u32 = 8;
const DEVICE_GET_IRQ_INFO: u32 = 9;
const DEVICE_SET_IRQS: u32 = 10;
const IOMMU_MAP_DMA: u32 = 13;

/// A page of x86.
pub const PAGE_LEN: u64 = 4096;
/// Longest answer about a region that is taken, in 8-byte words: a sparse list of some thousand areas.
const MAX_INFO_WORDS: usize = 8192;
/// Longest chain of capabilities behind a region's information.
const MAX_CAPABILITIES: usize = 16;
/// `struct vfio_region_info` in 8-byte words, and where its capabilities may start.
const REGION_INFO_WORDS: usize = 4;

/// The configuration region of a PCI function.
pub const CONFIG_REGION: u32 = bindings::VFIO_PCI_CONFIG_REGION_INDEX;

/// Kinds of interrupt of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irq {
    /// MSI-X vectors.
    MsiX,
    /// The host saw an uncorrectable error of the device.
    Error,
    /// The host asks for the device back.
    Request,
}

impl Irq {
    fn index(self) -> u32 {
        match self {
            Self::MsiX => bindings::VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => bindings::VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => bindings::VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// Performs a VFIO ioctl on a structure that begins with its own length.
///
/// # Safety
/// `argument` is the structure of that ioctl, its first four bytes hold a length within it, and every pointer in it may
/// be used as the ioctl uses it.
unsafe fn call(fd: BorrowedFd<'_>, number: u32, argument: &mut [u64]) -> io::Result<()> {
    // SAFETY: `fd` is open; the kernel reads and writes at most the length that the structure states, which the caller
    // keeps within `argument`; the caller answers for pointers in it.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request(number), argument.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`.
fn request(number: u32) -> libc::Ioctl {
    (u32::from(bindings::VFIO_TYPE) << 8 | (bindings::VFIO_BASE + number)) as libc::Ioctl
}

/// Two 32-bit fields as one word of a structure.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// A container with its IOMMU set: an I/O address space of one device.
#[derive(Debug)]
pub struct Container(OwnedFd);

impl Container {
    /// Takes the descriptor of a VFIO container.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let container = Self(fd);
        match container.query(GET_API_VERSION, 0) {
            Ok(version) if u32::try_from(version) == Ok(bindings::VFIO_API_VERSION) => Ok(container),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not a VFIO container")),
        }
    }

    /// Gives the descriptor back.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Whether DMA is coherent with the processor's caches whatever the device asks for (`VFIO_DMA_CC_IOMMU`). Where it
    /// is not, KVM would have to be told of the device, so that it lets the guest flush caches.
    pub fn has_coherent_dma(&self) -> io::Result<bool> {
        Ok(self.query(CHECK_EXTENSION, bindings::VFIO_DMA_CC_IOMMU)? == 1)
    }

    /// Lets the device reach all of `region` at its guest-physical addresses, and pins its memory. It stays mapped until
    /// the last descriptor of the container is closed.
    pub fn map(&self, region: &GuestRegionMmap) -> io::Result<()> {
        let flags = bindings::VFIO_DMA_MAP_FLAG_READ | bindings::VFIO_DMA_MAP_FLAG_WRITE;
        let mut argument = [pair(32, flags), region.as_ptr() as u64, region.start_addr().0, region.len()];
        // SAFETY: `struct vfio_iommu_type1_dma_map` has these 32 bytes. The address is that of a mapping of `len` bytes
        // which exists for the call; the kernel takes references to its pages and does not use the address afterwards.
        // It is guest memory, which is shared and only ever accessed as such.
        unsafe { call(self.0.as_fd(), IOMMU_MAP_DMA, &mut argument) }
    }

    /// An ioctl whose argument is a plain number.
    fn query(&self, number: u32, argument: u32) -> io::Result<i32> {
        // SAFETY: the two ioctls that come here take a number, no pointer.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request(number), libc::c_ulong::from(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}

/// A part of a device's address space: a BAR, or configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// Length in bytes; 0 if the device has none.
    pub len: u64,
    /// What may be mapped, as byte ranges within the region, page-aligned.
    pub mappable: Vec<Range<u64>>,
    /// Where it starts in the device's file.
    offset: u64,
}

/// A PCI function that VFIO holds for us.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Takes the descriptor of a VFIO device, which must be a PCI function.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let device = Self(File::from(fd));
        let mut info = [pair(24, 0), 0, 0];
        // SAFETY: `struct vfio_device_info` has these 24 bytes and holds no pointer.
        unsafe { call(device.0.as_fd(), DEVICE_GET_INFO, &mut info) }
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not a VFIO device"))?;
        let [_, flags] = halves(info[0]);
        if flags & bindings::VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the VFIO device is not a PCI function"));
        }
        Ok(device)
    }

    /// Region `index`: a BAR (0 to 5) or [`CONFIG_REGION`]. A BAR that the device does not have has length 0.
    pub fn region(&self, index: u32) -> io::Result<Region> {
        let mut words = vec![0; REGION_INFO_WORDS];
        loop {
            let len = words.len() * 8;
            words.fill(0);
            // At most MAX_INFO_WORDS * 8.
            words[0] = pair(len as u32, 0);
            words[1] = pair(index, 0);
            // SAFETY: `struct vfio_region_info` with room for capabilities, as long as it says, without pointers.
            unsafe { call(self.0.as_fd(), DEVICE_GET_REGION_INFO, &mut words) }?;
            let [wanted, _] = halves(words[0]);
            let wanted = (wanted as usize).div_ceil(8);
            if wanted <= words.len() {
                return Ok(region(&words));
            }
            if wanted > MAX_INFO_WORDS {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a region with too many mappable areas"));
            }
            words.resize(wanted, 0);
        }
    }

    /// Reads from a region at `at`.
    pub fn read(&self, region: &Region, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(data, place(region, at, data.len())?)
    }

    /// Writes to a region at `at`.
    pub fn write(&self, region: &Region, at: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, place(region, at, data.len())?)
    }

    /// Maps a part of a region that [`Region::mappable`] covers.
    pub fn map(&self, region: &Region, part: Range<u64>) -> io::Result<Pages> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not a mappable part of the region");
        let is_covered = region.mappable.iter().any(|area| area.start <= part.start && part.end <= area.end);
        let len = part.end.checked_sub(part.start).and_then(|len| usize::try_from(len).ok());
        let len = len.and_then(NonZeroUsize::new).filter(|_| is_covered).ok_or_else(bad)?;
        let offset = region.offset.checked_add(part.start).ok_or_else(bad)?;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing of ours lies there.
        let address = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len.get(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.0,
                offset,
            )
        }?;
        Ok(Pages { address: address.addr(), len })
    }

    /// How many interrupts of a kind the device has.
    pub fn irqs(&self, kind: Irq) -> io::Result<u32> {
        let mut info = [pair(16, 0), pair(kind.index(), 0)];
        // SAFETY: `struct vfio_irq_info` has these 16 bytes and holds no pointer.
        unsafe { call(self.0.as_fd(), DEVICE_GET_IRQ_INFO, &mut info) }?;
        let [_, count] = halves(info[1]);
        Ok(count)
    }

    /// From now on each interrupt of a kind, from the first on, writes its event.
    pub fn signal<'a>(&self, kind: Irq, events: impl IntoIterator<Item = &'a EventFd>) -> io::Result<()> {
        let flags = bindings::VFIO_IRQ_SET_DATA_EVENTFD | bindings::VFIO_IRQ_SET_ACTION_TRIGGER;
        // `struct vfio_irq_set`: length, flags, index, start, count, then one descriptor each.
        let mut fields = vec![0, flags, kind.index(), 0, 0];
        let header_len = fields.len();
        fields.extend(events.into_iter().map(|event| event.as_raw_fd().cast_unsigned()));
        let too_many = |_| io::Error::new(io::ErrorKind::InvalidInput, "too many events");
        fields[0] = u32::try_from(fields.len() * 4).map_err(too_many)?;
        fields[4] = u32::try_from(fields.len() - header_len).map_err(too_many)?;
        let mut argument: Vec<u64> =
            fields.chunks(2).map(|two| pair(two[0], two.get(1).copied().unwrap_or_default())).collect();
        // SAFETY: the structure is as long as it says, and descriptors are no pointers.
        unsafe { call(self.0.as_fd(), DEVICE_SET_IRQS, &mut argument) }
    }
}

/// Copies of the descriptors of a container and a device that are open: they stay when the others are closed.
pub fn copies(container: &VfioContainer, device: &VfioDevice) -> io::Result<[OwnedFd; 2]> {
    let copy = |fd: RawFd| {
        // SAFETY: the descriptor is open for as long as its owner exists, which is borrowed for this call.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    };
    Ok([copy(container.as_raw_fd())?, copy(device.as_raw_fd())?])
}

/// Where an access lies in the device's file.
fn place(region: &Region, at: u64, len: usize) -> io::Result<u64> {
    let end = at.checked_add(len as u64).filter(|&end| end <= region.len);
    end.and_then(|_| region.offset.checked_add(at))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "beyond the region"))
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// Reads `struct vfio_region_info` with its capabilities. Without a list of areas, a mappable region is so as a whole.
fn region(words: &[u64]) -> Region {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let long = |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes);
    let word = |at: usize| bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes);
    let (flags, len, offset) = (word(4), long(16), long(24));
    let mut areas = None;
    if flags & bindings::VFIO_REGION_INFO_FLAG_CAPS != 0 {
        let mut at = word(12) as usize;
        for _ in 0..MAX_CAPABILITIES {
            if at < REGION_INFO_WORDS * 8 || at >= bytes.len() {
                break;
            }
            // `struct vfio_info_cap_header`: id (16 bits), version, offset of the next.
            if word(at) & 0xffff == bindings::VFIO_REGION_INFO_CAP_SPARSE_MMAP {
                let count = (word(at + 8) as usize).min(bytes.len() / 16);
                let area = |number: usize| long(at + 16 + number * 16)..long(at + 24 + number * 16);
                areas = Some((0..count).map(area).map(|a| a.start..a.start.saturating_add(a.end)).collect::<Vec<_>>());
            }
            at = word(at + 4) as usize;
        }
    }
    let is_mappable = flags & bindings::VFIO_REGION_INFO_FLAG_MMAP != 0;
    let mut mappable = match areas {
        Some(areas) if is_mappable => areas,
        None if is_mappable => vec![0..len],
        _ => Vec::new(),
    };
    let is_page = |at: u64| at.is_multiple_of(PAGE_LEN);
    mappable.retain(|area| area.start < area.end && area.end <= len && is_page(area.start) && is_page(area.end));
    Region { len, mappable, offset }
}

/// Pages of a device in this process; unmapped when dropped. Nothing here reads or writes them: they are for the guest.
#[derive(Debug)]
pub struct Pages {
    address: usize,
    len: NonZeroUsize,
}

impl Pages {
    /// Where they are mapped.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    /// Length in bytes, a multiple of a page.
    pub fn len_bytes(&self) -> u64 {
        self.len.get() as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Device::map`, belongs to this value alone, and no reference into it exists.
        let _ = unsafe { rustix::mm::munmap(ptr::with_exposed_provenance_mut(self.address), self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MMAP: u32 = bindings::VFIO_REGION_INFO_FLAG_MMAP;
    const CAPS: u32 = bindings::VFIO_REGION_INFO_FLAG_CAPS;

    /// A region of 16 KiB at file offset 1 << 40 with a sparse list.
    fn sparse(areas: &[(u64, u64)]) -> Vec<u64> {
        let mut words = vec![pair(0, MMAP | CAPS), pair(1, 32), 0x4000, 1 << 40];
        // An unknown capability first, then the list.
        words.extend([pair(0x1_0003, 40), pair(1 | 1 << 16, 0), pair(areas.len() as u32, 0)]);
        words.extend(areas.iter().flat_map(|&(start, len)| [start, len]));
        words
    }

    #[test]
    fn a_region_is_mappable_as_a_whole_or_in_the_areas_it_lists() {
        let whole = region(&[pair(32, MMAP), pair(0, 0), 0x4000, 0]);
        assert_eq!(whole.mappable, [0..0x4000]);
        let parts = region(&sparse(&[(0x1000, 0x1000), (0x3000, 0x1000)]));
        assert_eq!(parts, Region { len: 0x4000, mappable: vec![0x1000..0x2000, 0x3000..0x4000], offset: 1 << 40 });
        assert_eq!(region(&sparse(&[])).mappable, [], "an empty list: nothing may be mapped");
        assert_eq!(region(&[pair(32, 3), pair(0, 0), 0x4000, 0]).mappable, [], "not mappable");
    }

    #[test]
    fn areas_that_are_no_pages_of_the_region_are_left_out() {
        let areas = [(0x800, 0x1000), (0x1000, 0x800), (0x3000, 0x2000), (0x1000, 0), (u64::MAX - 0xfff, 0x1000)];
        assert_eq!(region(&sparse(&areas)).mappable, []);
        assert_eq!(region(&[pair(32, MMAP), 0, 0x800, 0]).mappable, [], "smaller than a page");
    }

    #[test]
    fn an_access_stays_within_its_region() {
        let region = Region { len: 0x100, mappable: vec![], offset: 0x7000 };
        assert_eq!(place(&region, 0xfc, 4).unwrap(), 0x70fc);
        for (at, len) in [(0xfd, 4), (0x100, 1), (u64::MAX, 1), (0, 0x101)] {
            assert!(place(&region, at, len).is_err(), "{at:#x} {len}");
        }
    }

    #[test]
    fn refuses_descriptors_that_are_no_vfio() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let container = Container::from_fd(file()).unwrap_err();
        assert_eq!(container.to_string(), "the descriptor is not a VFIO container");
        assert_eq!(Device::from_fd(file()).unwrap_err().to_string(), "the descriptor is not a VFIO device");
    }

    proptest! {
        #[test]
        fn never_maps_beyond_a_region(
            mut words in proptest::collection::vec(any::<u64>(), 4..24),
            capability in 0_u32..24,
            len in 0_u64..0x10000,
            area in any::<u64>(),
        ) {
            words[0] |= pair(0, MMAP | CAPS);
            words[1] = pair(0, 8 * capability);
            words[2] = len;
            // Often the list of areas is one, with an area of few pages.
            let at = capability as usize;
            if at >= REGION_INFO_WORDS && at + 4 <= words.len() {
                words[at] = pair(bindings::VFIO_REGION_INFO_CAP_SPARSE_MMAP, 0);
                words[at + 1] = pair(1, 0);
                words[at + 2..at + 4].copy_from_slice(&[area & 0x1f000, area >> 44 << 12]);
            }
            let region = region(&words);
            prop_assert!(region.mappable.iter().all(|area| area.start < area.end && area.end <= region.len));
        }
    }
}
