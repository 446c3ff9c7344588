//! Files that are put into a guest's memory before it runs. Key type: [`Image`].
//!
//! Each guest gets a copy of its own, in huge pages where its memory has them. It could map the file's pages until it
//! writes them, but a page that guests share tells each of them, by the time that reading it takes, what the others
//! use; and mapped pages are small: 20,000 faults for one boot of a distribution's kernel.
//!
//! A file that nobody can change or shorten (`F_SEAL_WRITE`, `F_SEAL_SHRINK`) is copied from a mapping, any other is read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use rustix::fs::SealFlags;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion, ReadVolatile, VolatileMemory, VolatileMemoryError, VolatileSlice};

/// As a sealed copy is called in `/proc/<pid>/maps`.
pub const NAME: &str = "guest-image";

/// Without these a page could change while it is copied, or be gone (SIGBUS).
const FIXED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK);

/// A file, read from its start. It has a position of its own: other processes may have the same open file.
#[derive(Debug)]
pub struct Image<'a> {
    file: &'a File,
    len: u64,
    position: u64,
    /// What a sealed file has.
    content: Option<MmapRegion>,
}

impl<'a> Image<'a> {
    /// Maps the file if it is sealed.
    pub fn open(file: &'a File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let is_fixed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(FIXED));
        let content = (is_fixed && len > 0).then(|| map(file, len)).transpose()?;
        Ok(Self { file, len, position: 0, content })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `slice` from where the image stands, at most to the file's end. Returns the bytes read; 0 at the end.
    fn read_piece<B: BitmapSlice>(&self, slice: &mut VolatileSlice<'_, B>) -> Result<usize, VolatileMemoryError> {
        let Some(content) = &self.content else {
            let mut file = self.file;
            file.seek(SeekFrom::Start(self.position)).map_err(VolatileMemoryError::IOError)?;
            return file.read_volatile(slice);
        };
        let left = usize::try_from(self.len.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let count = left.min(slice.len());
        if count > 0 {
            // It is below the length, which was mapped.
            let from =
                usize::try_from(self.position).map_err(io::Error::other).map_err(VolatileMemoryError::IOError)?;
            content.get_slice(from, count)?.copy_to_volatile_slice(slice.subslice(0, count)?);
        }
        Ok(count)
    }
}

/// All of a file, to be read.
fn map(file: &File, len: u64) -> io::Result<MmapRegion> {
    MmapRegionBuilder::new(usize::try_from(len).map_err(io::Error::other)?)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(FileOffset::new(file.try_clone()?, 0))
        .build()
        .map_err(io::Error::other)
}

impl ReadVolatile for Image<'_> {
    /// All of `slice`, or up to the end of the file: the loader does not ask twice.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < slice.len() {
            match self.read_piece(&mut slice.offset(done)?) {
                Ok(0) => break,
                Ok(count) => {
                    self.position += count as u64;
                    done += count;
                }
                Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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
    use crate::sys::sealed;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const PAGE: usize = 4096;

    /// Two regions that touch.
    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0), 16 * PAGE), (GuestAddress(16 * PAGE as u64), 4 * PAGE)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    /// So many bytes, each page another value.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| 1 + (at / PAGE) as u8).collect()
    }

    fn sealed(bytes: &[u8]) -> File {
        sealed::seal("test", bytes).unwrap().into()
    }

    fn seen(memory: &GuestMemoryMmap, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at as u64)).unwrap();
        bytes
    }

    #[test]
    fn what_is_sealed_and_what_is_not_come_to_the_same_bytes() {
        let whole = bytes(5 * PAGE + 100);
        let (file, plain) = (sealed(&whole), tempfile::tempfile().unwrap());
        std::os::unix::fs::FileExt::write_all_at(&plain, &whole, 0).unwrap();
        assert!(Image::open(&file).unwrap().content.is_some() && Image::open(&plain).unwrap().content.is_none());
        // From and to anywhere, across two regions, and shorter than a page.
        let places = [
            (0, 0, 5 * PAGE + 100),
            (PAGE + 7, 7, 4 * PAGE),
            (PAGE + 9, 8, 4 * PAGE),
            (14 * PAGE, 0, 5 * PAGE),
            (40, 40, 50),
        ];
        for (at, from, count) in places {
            for file in [&file, &plain] {
                let memory = memory();
                let mut image = Image::open(file).unwrap();
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
    fn a_guest_has_pages_of_its_own() {
        let memory = memory();
        let file = sealed(&bytes(4 * PAGE));
        memory.read_exact_volatile_from(GuestAddress(0), &mut Image::open(&file).unwrap(), 4 * PAGE).unwrap();
        memory.write_obj(99_u8, GuestAddress(PAGE as u64)).unwrap();
        let mut read = vec![0; 4 * PAGE];
        Image::open(&file).unwrap().read_exact(&mut read).unwrap();
        assert_eq!(read, bytes(4 * PAGE), "the file is as it was");
    }

    #[test]
    fn a_file_that_ends_early_is_not_read_beyond_its_end() {
        for is_sealed in [true, false] {
            let memory = memory();
            let plain = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&plain, &bytes(2 * PAGE), 0).unwrap();
            let file = if is_sealed { sealed(&bytes(2 * PAGE)) } else { plain };
            let mut image = Image::open(&file).unwrap();
            memory.read_exact_volatile_from(GuestAddress(0), &mut image, 3 * PAGE).unwrap_err();
            assert_eq!(seen(&memory, 2 * PAGE, 1), [0]);
            // Beyond its end there is nothing, and nothing breaks.
            image.seek(SeekFrom::Start(u64::MAX >> 1)).unwrap();
            memory.read_exact_volatile_from(GuestAddress(0), &mut image, 1).unwrap_err();
        }
        assert!(Image::open(&sealed(b"")).unwrap().is_empty());
    }
}
