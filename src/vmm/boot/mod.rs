//! Puts a kernel, its initrd, its command line and the machine's description into guest memory.
//!
//! Key functions: [`load`] and [`acpi::write`]. Knows no KVM; `vmm/machine` calls it and starts the boot vCPU where
//! [`Boot`] says. Two protocols: PVH for ELF (`Documentation/arch/x86/booting`, Xen's `start_info.h`) and the 32-bit
//! Linux boot protocol for bzImage (`Documentation/arch/x86/boot.rst`).

pub mod acpi;
mod kernel;
mod linux;
mod pvh;

use std::fs::File;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::sys::image::Image;

pub use kernel::BootError;
use kernel::Format;

/// What is booted.
#[derive(Debug)]
pub struct Images<'a> {
    /// ELF `vmlinux` or bzImage.
    pub kernel: &'a File,
    /// Initial RAM disk.
    pub initrd: Option<&'a File>,
    /// Command line without the final NUL.
    pub cmdline: &'a str,
}

/// Addresses that the loader may use, chosen by the machine.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Start info or zero page (4 KiB).
    pub boot_info: GuestAddress,
    /// PVH memory map.
    pub memory_map: GuestAddress,
    /// PVH module list.
    pub modules: GuestAddress,
    /// Command line (2 KiB).
    pub cmdline: GuestAddress,
    /// ACPI root pointer.
    pub rsdp: GuestAddress,
    /// Kernels load here or higher.
    pub himem: GuestAddress,
    /// End of low RAM: the initrd ends here at the latest.
    pub low_ram_end: u64,
}

/// A range of the firmware memory map: base, length, ACPI type.
pub type MapEntry = (u64, u64, u32);

/// The registers that the boot vCPU starts with (32-bit protected mode, flat, no paging).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Entry point.
    pub rip: u64,
    /// Start info (PVH), else 0.
    pub rbx: u64,
    /// Zero page (Linux), else 0.
    pub rsi: u64,
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    base: u64,
    len: u64,
}

/// Loads everything. The files are untrusted: a malformed one is an error that says what is wrong with it.
pub fn load(
    memory: &GuestMemoryMmap,
    images: Images<'_>,
    placement: &Placement,
    map: &[MapEntry],
) -> Result<Boot, BootError> {
    let mut cmdline = images.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    memory.write_slice(&cmdline, placement.cmdline).map_err(|_| BootError::DoesNotFit("command line"))?;

    let open = |file, what| Image::open(file).map_err(|source| BootError::Unreadable { what, source });
    let kernel = kernel::load(memory, &mut open(images.kernel, "kernel")?, placement)?;
    let initrd_limit = match &kernel.format {
        Format::Pvh => placement.low_ram_end,
        // The highest address that the initrd may occupy is inclusive.
        Format::BzImage(header) => placement.low_ram_end.min(u64::from(header.initrd_addr_max) + 1),
    };
    let initrd = match images.initrd {
        Some(file) => Some(load_initrd(memory, &mut open(file, "initrd")?, kernel.end, initrd_limit)?),
        None => None,
    };
    match kernel.format {
        Format::Pvh => pvh::describe(memory, placement, map, initrd).map(|()| Boot {
            rip: kernel.entry,
            rbx: placement.boot_info.0,
            rsi: 0,
        }),
        Format::BzImage(header) => linux::describe(memory, placement, map, initrd, cmdline.len(), *header)
            .map(|()| Boot { rip: kernel.entry, rbx: 0, rsi: placement.boot_info.0 }),
    }
}

/// Reads the initrd to the highest page-aligned place below `limit`, and refuses it when that is below `kernel_end`.
fn load_initrd(
    memory: &GuestMemoryMmap,
    image: &mut Image<'_>,
    kernel_end: u64,
    limit: u64,
) -> Result<Initrd, BootError> {
    let len = image.len();
    if len == 0 {
        return Err(BootError::Empty("initrd"));
    }
    let base = limit.checked_sub(len).map(|base| base & !0xfff).filter(|&base| base >= kernel_end);
    let base = base.ok_or(BootError::DoesNotFit("initrd"))?;
    let count = usize::try_from(len).map_err(|_| BootError::DoesNotFit("initrd"))?;
    memory.read_exact_volatile_from(GuestAddress(base), image, count).map_err(|_| BootError::DoesNotFit("initrd"))?;
    Ok(Initrd { base, len })
}
