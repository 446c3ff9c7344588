//! Recognises and loads a kernel image. Key types: [`Format`], [`BootError`].

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::GuestMemoryMmap;

use crate::sys::image::Image;

use super::Placement;

/// ELF: `EI_CLASS` 64-bit, `EI_DATA` little-endian.
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
/// ELF: `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
/// Offset of `HdrS` in a bzImage (boot.rst).
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
/// First boot protocol whose header names where an initrd may be and that the kernel can be relocated (2.05).
const OLDEST_PROTOCOL: u16 = 0x0205;

/// Why the images cannot be booted. Each text is the whole explanation: it reaches the client.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The descriptor cannot be read.
    #[error("cannot read the {what} image: {source}")]
    Unreadable {
        /// Which image.
        what: &'static str,
        /// The I/O error.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("the {0} image is empty")]
    Empty(&'static str),
    /// Neither ELF nor bzImage.
    #[error("the kernel image is neither an ELF vmlinux nor a bzImage (it starts with {start:02x?})")]
    UnknownFormat {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// ELF for another processor.
    #[error("the kernel image is an ELF file, but not for 64-bit x86 (class {class}, machine {machine})")]
    WrongMachine {
        /// `EI_CLASS`.
        class: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// An ELF kernel that lacks the PVH entry point.
    #[error("the kernel image has no PVH entry point: build it with CONFIG_PVH=y, or boot its bzImage")]
    NoPvhEntry,
    /// A bzImage of a protocol older than 2.05.
    #[error("the bzImage speaks boot protocol {major}.{minor:02}, at least 2.05 is needed")]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The image ends before what its headers promise.
    #[error("the kernel image is truncated or damaged: {0}")]
    Damaged(String),
    /// Guest memory is too small for it.
    #[error("the {0} does not fit in the VM's memory: give the VM more")]
    DoesNotFit(&'static str),
}

/// How the kernel is entered.
#[derive(Debug)]
pub(super) enum Format {
    /// ELF with a PVH note.
    Pvh,
    /// bzImage with its setup header.
    BzImage(Box<setup_header>),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) format: Format,
    /// First instruction.
    pub(super) entry: u64,
    /// First address behind it.
    pub(super) end: u64,
}

/// Recognises the image by its magic numbers and loads it.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    image: &mut Image<'_>,
    placement: &Placement,
) -> Result<Kernel, BootError> {
    let head = read_head(image)?;
    if head.starts_with(b"\x7fELF") {
        check_elf(&head)?;
        return load_elf(memory, image, placement);
    }
    if head.get(BZIMAGE_MAGIC_OFFSET..BZIMAGE_MAGIC_OFFSET + 4) == Some(b"HdrS") {
        return load_bzimage(memory, image, placement);
    }
    Err(BootError::UnknownFormat { start: head.into_iter().take(4).collect() })
}

/// The first 1 KiB, or less of a shorter file.
fn read_head(image: &mut Image<'_>) -> Result<Vec<u8>, BootError> {
    let unreadable = |source| BootError::Unreadable { what: "kernel", source };
    let mut head = Vec::new();
    image.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    Read::by_ref(image).take(1024).read_to_end(&mut head).map_err(unreadable)?;
    if head.is_empty() { Err(BootError::Empty("kernel")) } else { Ok(head) }
}

fn check_elf(head: &[u8]) -> Result<(), BootError> {
    let (Some(&class), Some(&data), Some(&[low, high])) =
        (head.get(4), head.get(5), head.get(18..20).and_then(|b| b.first_chunk()))
    else {
        return Err(BootError::Damaged("the ELF header is incomplete".into()));
    };
    let machine =
        if data == ELF_LITTLE_ENDIAN { u16::from_le_bytes([low, high]) } else { u16::from_be_bytes([low, high]) };
    if class == ELF_CLASS_64 && data == ELF_LITTLE_ENDIAN && machine == EM_X86_64 {
        return Ok(());
    }
    Err(BootError::WrongMachine { class, machine })
}

fn load_elf(memory: &GuestMemoryMmap, image: &mut Image<'_>, placement: &Placement) -> Result<Kernel, BootError> {
    let loaded = Elf::load(memory, None, image, Some(placement.himem)).map_err(|error| elf_error(image, &error))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(Kernel { format: Format::Pvh, entry: entry.0, end: loaded.kernel_end })
        }
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => Err(BootError::NoPvhEntry),
    }
}

/// A segment that cannot be read is either cut off or too large for the guest: the file's length tells which.
fn elf_error(image: &mut Image<'_>, error: &linux_loader::loader::Error) -> BootError {
    use linux_loader::loader::elf::Error as E;
    match error {
        linux_loader::loader::Error::Elf(E::ReadKernelImage) if !is_cut_off(image) => BootError::DoesNotFit("kernel"),
        linux_loader::loader::Error::Elf(E::ReadKernelImage) => {
            BootError::Damaged("a segment reaches beyond the end of the file".into())
        }
        other => BootError::Damaged(other.to_string()),
    }
}

/// Whether a program header promises bytes beyond the end of the file.
fn is_cut_off(image: &mut Image<'_>) -> bool {
    const PHDR_LEN: u64 = 56;
    let field = |image: &mut Image<'_>, offset: u64| -> io::Result<u64> {
        let mut bytes = [0; 8];
        image.seek(SeekFrom::Start(offset))?;
        image.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let check = |image: &mut Image<'_>| -> io::Result<bool> {
        let len = image.seek(SeekFrom::End(0))?;
        let table = field(image, 32)?;
        // e_phnum is the 16-bit field at 56.
        let count = field(image, 56)? & 0xffff;
        for number in 0..count {
            let header = table.saturating_add(number * PHDR_LEN);
            let is_load = field(image, header)? & 0xffff_ffff == 1;
            let [offset, size] = [field(image, header.saturating_add(8))?, field(image, header.saturating_add(32))?];
            if is_load && offset.saturating_add(size) > len {
                return Ok(true);
            }
        }
        Ok(false)
    };
    check(image).unwrap_or(true)
}

fn load_bzimage(memory: &GuestMemoryMmap, image: &mut Image<'_>, placement: &Placement) -> Result<Kernel, BootError> {
    let loaded = BzImage::load(memory, None, image, Some(placement.himem)).map_err(|error| {
        use linux_loader::loader::bzimage::Error as E;
        match error {
            linux_loader::loader::Error::Bzimage(E::ReadBzImageCompressedKernel) => BootError::DoesNotFit("kernel"),
            other => BootError::Damaged(other.to_string()),
        }
    })?;
    let header = loaded.setup_header.ok_or_else(|| BootError::Damaged("no setup header".into()))?;
    let version = header.version;
    if version < OLDEST_PROTOCOL {
        let [major, minor] = version.to_be_bytes();
        return Err(BootError::OldProtocol { major, minor });
    }
    check_bzimage_len(image, &header)?;
    // The kernel unpacks itself in place and needs `init_size` bytes from where it runs (boot.rst, init_size).
    let end = loaded.kernel_load.0.max(header.pref_address).saturating_add(header.init_size.into());
    if end > placement.low_ram_end {
        return Err(BootError::DoesNotFit("kernel"));
    }
    Ok(Kernel { format: Format::BzImage(Box::new(header)), entry: loaded.kernel_load.0, end })
}

/// A bzImage says how long its protected-mode part is (`syssize`, in 16-byte units).
fn check_bzimage_len(image: &mut Image<'_>, header: &setup_header) -> Result<(), BootError> {
    let len = image.seek(SeekFrom::End(0)).map_err(|source| BootError::Unreadable { what: "kernel", source })?;
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let promised = (sectors + 1) * 512 + u64::from(header.syssize) * 16;
    if len < promised {
        return Err(BootError::Damaged(format!("it has {len} bytes, its header promises {promised}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::GuestAddress;

    /// The smallest image that loads: where the fuzzer begins, after a byte that is the fuzzer's own.
    const BZIMAGE: &[u8] = include_bytes!("../../../fuzz/seeds/loader/bzimage");
    const PREF_ADDRESS: usize = 0x258;

    fn load_bytes(bytes: &[u8]) -> Result<Kernel, BootError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let at = GuestAddress;
        let placement = Placement {
            boot_info: at(0x6000),
            memory_map: at(0x7000),
            modules: at(0x7f00),
            cmdline: at(0x2_0000),
            rsdp: at(0xe_0000),
            himem: at(0x10_0000),
            low_ram_end: 32 << 20,
        };
        load(&memory, &mut Image::open(&file).unwrap(), &placement)
    }

    #[test]
    fn refuses_a_bzimage_that_would_unpack_itself_beyond_the_guest() {
        let mut image = BZIMAGE[1..].to_vec();
        assert!(matches!(load_bytes(&image).unwrap().format, Format::BzImage(_)));
        for address in [32 << 20, u64::MAX - 0x1000, u64::MAX] {
            image[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&address.to_le_bytes());
            assert!(matches!(load_bytes(&image), Err(BootError::DoesNotFit("kernel"))), "{address:#x}");
        }
    }
}
