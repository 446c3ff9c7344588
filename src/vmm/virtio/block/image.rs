//! What an image lets a disk do: its length, its block size, its alignment, whether it can have holes. Key type: [`Image`].
//!
//! Looked at once; only the length is looked at again, when the host has changed it. Whether holes work is tried before
//! system calls are restricted, and presumed afterwards.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use rustix::fs::{AtFlags, FallocateFlags, FileType, OFlags, Statx, StatxFlags};

use super::request::SECTOR_LEN;

/// Bytes that an address and a length must be multiples of, where the kernel does not say (before Linux 6.1).
const USUAL_ALIGNMENT: u32 = 512;
/// Largest block that a guest is told of, in bytes.
const MAX_BLOCK_LEN: u32 = 4096;
/// Largest granularity of discards that a guest is told of, in bytes.
const MAX_GRANULARITY: u32 = 1 << 20;

/// What direct I/O (`O_DIRECT`, open(2)) asks of requests, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Addresses in memory are multiples of it.
    pub(super) memory: u32,
    /// Offsets, and the lengths of all pieces, are.
    pub(super) block: u32,
}

/// How it is known whether ranges of a file can be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holes {
    /// It is tried.
    Tried,
    /// It cannot be tried, and is what usual file systems can: on others requests for it are answered as unsupported.
    Presumed,
}

/// A raw image.
#[derive(Debug)]
pub(super) struct Image {
    /// The file, or block device.
    pub(super) file: File,
    /// Bytes, whole blocks.
    pub(super) len: u64,
    /// Bytes of the smallest transfer: 512 unless the host's disk has larger blocks and nothing lies in between.
    pub(super) block_len: u32,
    /// Set if the page cache is bypassed.
    pub(super) alignment: Option<Alignment>,
    /// Ranges can be given back.
    pub(super) can_punch: bool,
    /// Bytes below which giving back frees nothing.
    pub(super) granularity: u32,
}

impl Image {
    /// Examines `file`, open for reading and, unless `is_read_only`, for writing. The error says what is wrong with "the
    /// image"; the caller knows whose it is.
    pub(super) fn examine(file: File, is_read_only: bool, holes: Holes) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        let mode = flags & OFlags::ACCMODE;
        if mode == OFlags::WRONLY || (!is_read_only && mode != OFlags::RDWR) {
            return refuse("is not open for what the disk allows".to_owned());
        }
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::DIOALIGN)?;
        let is_device = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice;
        let alignment = if flags.contains(OFlags::DIRECT) { Some(alignment(&file, &stat, is_device)?) } else { None };
        let own_block = if is_device { rustix::fs::ioctl_blksszget(&file)? } else { SECTOR_LEN as u32 };
        let block_len = own_block.max(alignment.map_or(0, |alignment| alignment.block));
        if !block_len.is_power_of_two() || !(SECTOR_LEN as u32..=MAX_BLOCK_LEN).contains(&block_len) {
            return refuse(format!("has blocks of {block_len} bytes, 512 to {MAX_BLOCK_LEN} are supported"));
        }
        let mut image = Self { file, len: 0, block_len, alignment, can_punch: false, granularity: block_len };
        image.len = image.read_len()?;
        image.can_punch = !is_read_only && (is_device || holes == Holes::Presumed || image.takes_holes());
        if !is_device {
            let unit = stat.stx_blksize.clamp(block_len, MAX_GRANULARITY);
            image.granularity = if unit.is_power_of_two() { unit } else { block_len };
        }
        Ok(image)
    }

    /// The length as it is now; not one that a disk cannot have.
    pub(super) fn read_len(&mut self) -> io::Result<u64> {
        let len = self.file.seek(SeekFrom::End(0))?;
        let block_len = self.block_len;
        if len == 0 || !len.is_multiple_of(block_len.into()) {
            return refuse(format!("has {len} bytes: a disk has whole blocks of {block_len}, and at least one"));
        }
        Ok(len)
    }

    /// Tries it behind the end, where there is nothing to lose.
    fn takes_holes(&self) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, self.len, self.block_len.into()).is_ok()
    }
}

/// What direct I/O on `file` needs (statx(2), `STATX_DIOALIGN`).
fn alignment(file: &File, stat: &Statx, is_device: bool) -> io::Result<Alignment> {
    let usual = Alignment {
        memory: USUAL_ALIGNMENT,
        block: if is_device { rustix::fs::ioctl_blksszget(file)? } else { USUAL_ALIGNMENT },
    };
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(usual);
    }
    if stat.stx_dio_mem_align == 0 || stat.stx_dio_offset_align == 0 {
        return refuse("is on a file system that has no direct I/O".to_owned());
    }
    Ok(Alignment { memory: stat.stx_dio_mem_align, block: stat.stx_dio_offset_align })
}

fn refuse<T>(what: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the image {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_length_that_no_disk_has() {
        for len in [0, 1, 511, 1000, (1 << 20) + 1] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            let error = Image::examine(file, false, Holes::Tried).unwrap_err();
            assert!(error.to_string().contains(&format!("has {len} bytes")), "{error}");
        }
    }

    #[test]
    fn tries_holes_without_changing_the_image() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let image = Image::examine(file.try_clone().unwrap(), false, Holes::Tried).unwrap();
        assert_eq!((image.len, image.block_len, image.alignment), (4096, 512, None));
        assert!(image.granularity >= 512 && image.granularity.is_power_of_two());
        assert_eq!(file.metadata().unwrap().len(), 4096);
        assert!(!Image::examine(file, true, Holes::Presumed).unwrap().can_punch, "nobody discards a read-only disk");
    }

    #[test]
    fn direct_io_has_an_alignment() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        if rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file).unwrap() | OFlags::DIRECT).is_err() {
            return println!("skipped: the directory of temporary files has no direct I/O");
        }
        let image = Image::examine(file, false, Holes::Tried).unwrap();
        let alignment = image.alignment.unwrap();
        assert!(alignment.block <= image.block_len && alignment.memory.is_power_of_two(), "{alignment:?}");
    }
}
