//! Files that are put into a guest's memory before it runs. Key type: [`Image`].
//!
//! ```text
//!   the file    ├ head ┤ whole page │ whole page │ … ┤ tail ├      head, tail: copied
//!   the guest   ├ RAM  ┤ the file's, until the guest writes ┤ RAM  ├      whole pages: mapped (MAP_PRIVATE, mmap(2))
//! ```
//! A page that is mapped costs no copy, and all guests of the host share it; the first write gives the guest its own. That
//! takes a file that nobody can change or shorten (`F_SEAL_WRITE`, `F_SEAL_SHRINK`); of any other, everything is copied.
//! [`GuestBuffers::remove`](super::guest_buffers::GuestBuffers) makes such pages the guest's RAM again.
#![allow(unsafe_code, reason = "maps and reads a file where guest memory is; see each block")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::SealFlags;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

/// As a copy that is made to be mapped is called in `/proc/<pid>/maps`.
pub const NAME: &str = "guest-image";

const PAGE: usize = 4096;
/// Without these a mapped page could change beneath the guest, or be gone (SIGBUS).
const FIXED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK);

/// A file, read from its start. It has a position of its own: other processes may have the same open file.
#[derive(Debug)]
pub struct Image<'a> {
    file: &'a File,
    len: u64,
    position: u64,
    /// The memory that its pages may be mapped into.
    shares_with: Option<&'a GuestMemoryMmap>,
}

impl<'a> Image<'a> {
    /// To be copied, wherever it is read to.
    pub fn copied(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, len: file.metadata()?.len(), position: 0, shares_with: None })
    }

    /// To be mapped where it is read to `memory`, if it is sealed.
    pub fn shared(file: &'a File, memory: &'a GuestMemoryMmap) -> io::Result<Self> {
        let is_fixed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(FIXED));
        Ok(Self { shares_with: is_fixed.then_some(memory), ..Self::copied(file)? })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of `count` bytes can be mapped at `at`, from where the image stands: whole pages that the file has.
    fn mappable(&self, at: usize, count: usize) -> usize {
        let left = usize::try_from(self.len.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let is_aligned = at.is_multiple_of(PAGE) && self.position.is_multiple_of(PAGE as u64);
        let is_ram = || self.shares_with.is_some_and(|memory| is_within(memory, at, count));
        if is_aligned && is_ram() { count.min(left) & !(PAGE - 1) } else { 0 }
    }

    /// Reads into `slice`, at most to the end of a page. Returns the bytes read; 0 at the end of the file.
    fn read_piece<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'_, B>) -> io::Result<usize> {
        let guard = slice.ptr_guard_mut();
        let at = guard.as_ptr().addr();
        let mapped = self.mappable(at, slice.len());
        if mapped > 0 {
            // SAFETY: `mappable` found all of it to be guest memory, which is mapped as long as the slice is, and which
            // this crate reads as bytes that may change at any time.
            unsafe { map_over(guard.as_ptr(), mapped, libc::MAP_PRIVATE, self.file.as_fd(), self.position)? };
            return Ok(mapped);
        }
        // Only up to where a page begins, if that is one of the file's, too. The kernel takes no more at once (read(2)).
        let is_congruent = at as u64 % PAGE as u64 == self.position % PAGE as u64;
        let most = if is_congruent && !at.is_multiple_of(PAGE) { PAGE - at % PAGE } else { 1 << 30 };
        let most = most.min(slice.len());
        let fd = self.file.as_raw_fd();
        // SAFETY: the slice has `most` bytes and is mapped while `guard` lives; no Rust reference points into it.
        let read = unsafe { libc::pread(fd, guard.as_ptr().cast(), most, self.position.cast_signed()) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

/// Whether all `len` bytes at the address `at` of this process are one region of `memory`.
fn is_within(memory: &GuestMemoryMmap, at: usize, len: usize) -> bool {
    memory.iter().any(|region| {
        let inside = at.checked_sub(region.as_ptr().addr());
        inside.and_then(|offset| offset.checked_add(len)).is_some_and(|end| end as u64 <= region.len())
    })
}

/// Puts pages of `file` where other memory of this process is: `len` bytes, from `offset` on. Both begin with a page.
///
/// # Safety
/// `at` and `len` are memory of this process that no Rust reference points into, and whose bytes may change at any time.
pub(super) unsafe fn map_over(
    at: *mut u8,
    len: usize,
    sharing: libc::c_int,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = sharing | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: as the caller promises, what was there may be replaced.
    let mapped = unsafe { libc::mmap(at.cast(), len, protection, flags, file.as_raw_fd(), offset.cast_signed()) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl ReadVolatile for Image<'_> {
    /// All of `slice`, or up to the end of the file: the loader does not ask twice.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < slice.len() {
            match self.read_piece(&slice.offset(done)?) {
                Ok(0) => break,
                Ok(count) => {
                    self.position += count as u64;
                    done += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(VolatileMemoryError::IOError(error)),
            }
        }
        slice.bitmap().mark_dirty(0, done);
        Ok(done)
    }
}

impl Read for Image<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::pread(self.file, bytes, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::reclaim::{Reclaim, shared_memory};
    use crate::sys::sealed;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    /// Two regions that touch.
    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(shared_memory(&[(GuestAddress(0), 16 * PAGE), (GuestAddress(16 * PAGE as u64), 4 * PAGE)]).unwrap())
    }

    /// So many bytes, each page another value.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| 1 + (at / PAGE) as u8).collect()
    }

    fn sealed(bytes: &[u8]) -> File {
        sealed::seal("test", bytes).unwrap().into()
    }

    /// Bytes of the guest's own pages: of RAM that was touched.
    fn own(memory: &GuestMemoryMmap) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let file = memory.iter().next().unwrap().file_offset().unwrap().arc().clone();
        file.metadata().unwrap().blocks() * 512
    }

    fn seen(memory: &GuestMemoryMmap, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at as u64)).unwrap();
        bytes
    }

    #[test]
    fn what_is_mapped_and_what_is_copied_are_the_same_bytes() {
        let whole = bytes(5 * PAGE + 100);
        let (file, plain) = (sealed(&whole), tempfile::tempfile().unwrap());
        std::os::unix::fs::FileExt::write_all_at(&plain, &whole, 0).unwrap();
        // Aligned, alike and differently within a page, across two regions, and shorter than a page.
        let places = [
            (0, 0, 5 * PAGE + 100),
            (PAGE + 7, 7, 4 * PAGE),
            (PAGE + 9, 8, 4 * PAGE),
            (14 * PAGE, 0, 5 * PAGE),
            (40, 40, 50),
        ];
        for (at, from, count) in places {
            for is_sealed in [true, false] {
                let memory = memory();
                let mut image = Image::shared(if is_sealed { &file } else { &plain }, &memory).unwrap();
                image.seek(SeekFrom::Start(from as u64)).unwrap();
                memory.read_exact_volatile_from(GuestAddress(at as u64), &mut image, count).unwrap();
                assert_eq!(seen(&memory, at, count), whole[from..from + count], "{at} {from} {count}");
                assert_eq!(image.position, (from + count) as u64);
                let around = (at.saturating_sub(1), at + count);
                let beside = seen(&memory, around.1, 16.min(20 * PAGE - around.1));
                assert!(beside.iter().all(|&byte| byte == 0), "{at} {from} {count}: {beside:?}");
                assert!(at == 0 || seen(&memory, around.0, 1) == [0]);
            }
        }
    }

    #[test]
    fn whole_pages_of_a_sealed_file_take_nothing_of_the_guest_until_it_writes_them() {
        let memory = memory();
        let (file, before) = (sealed(&bytes(4 * PAGE)), own(&memory));
        let mut image = Image::shared(&file, &memory).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0), &mut image, 4 * PAGE).unwrap();
        assert_eq!(own(&memory), before);
        memory.write_obj(99_u8, GuestAddress(PAGE as u64)).unwrap();
        assert_eq!(seen(&memory, PAGE, 2), [99, 2]);
        let mut again = Image::copied(&file).unwrap();
        let mut read = vec![0; 4 * PAGE];
        again.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes(4 * PAGE), "the file is as it was");
    }

    #[test]
    fn what_is_given_back_is_ram_again() {
        let memory = memory();
        let mut image = sealed(&bytes(4 * PAGE));
        image.rewind().unwrap();
        let mut image = Image::shared(&image, &memory).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0), &mut image, 4 * PAGE).unwrap();
        memory.write_obj(99_u8, GuestAddress(PAGE as u64)).unwrap();
        memory.write_obj(98_u8, GuestAddress(4 * PAGE as u64)).unwrap();
        // Two pages of the image, one written, and one beside it.
        for (at, len) in [(PAGE, 2 * PAGE), (4 * PAGE, PAGE)] {
            let given = Reclaim::default().give_back(&memory, GuestAddress(at as u64), len).unwrap();
            assert_eq!(given, len);
        }
        let firsts: Vec<_> = (0..5).map(|page| seen(&memory, page * PAGE, 1)[0]).collect();
        assert_eq!(firsts, [1, 0, 0, 4, 0]);
        memory.write_obj(7_u8, GuestAddress(PAGE as u64)).unwrap();
        assert_eq!(seen(&memory, PAGE, 1), [7], "it is memory as before");
    }

    #[test]
    fn a_file_that_ends_early_is_not_read_beyond_its_end() {
        let memory = memory();
        let file = sealed(&bytes(2 * PAGE));
        let mut image = Image::shared(&file, &memory).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0), &mut image, 3 * PAGE).unwrap_err();
        assert_eq!(seen(&memory, 2 * PAGE, 1), [0]);
    }

    #[test]
    fn memory_that_is_not_the_guests_is_never_mapped_over() {
        let memory = memory();
        let file = sealed(&bytes(4 * PAGE));
        let mut image = Image::shared(&file, &memory).unwrap();
        let other = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 * PAGE)]).unwrap();
        other.read_exact_volatile_from(GuestAddress(0), &mut image, 4 * PAGE).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", other.iter().next().unwrap().as_ptr().addr());
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        assert!(!line.contains("memfd"), "{line}");
        assert_eq!(seen(&other, 3 * PAGE, 1), [4]);
    }
}
