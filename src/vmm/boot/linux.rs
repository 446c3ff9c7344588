//! Describes the machine to a bzImage: the zero page (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{BootError, Initrd, MapEntry, Placement};

/// `type_of_loader`: no number assigned.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the zero page.
pub(super) fn describe(
    memory: &GuestMemoryMmap,
    placement: &Placement,
    map: &[MapEntry],
    initrd: Option<Initrd>,
    cmdline_len: usize,
    header: setup_header,
) -> Result<(), BootError> {
    let low = |value: u64| u32::try_from(value).map_err(|_| BootError::DoesNotFit("boot data"));
    let mut params = boot_params { hdr: header, ..Default::default() };
    // The kernel's own limit does not count the final NUL; 0 stands for 255 (boot.rst, cmdline_size).
    let most = if header.cmdline_size == 0 { 255 } else { header.cmdline_size as usize };
    if cmdline_len > most + 1 {
        return Err(BootError::DoesNotFit("command line"));
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(placement.cmdline.0)?;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.base)?;
        params.hdr.ramdisk_size = low(initrd.len)?;
    }
    params.acpi_rsdp_addr = placement.rsdp.0;
    if map.len() > params.e820_table.len() {
        return Err(BootError::DoesNotFit("memory map"));
    }
    for (slot, &(addr, size, kind)) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr, size, r#type: kind };
    }
    params.e820_entries = u8::try_from(map.len()).map_err(|_| BootError::DoesNotFit("memory map"))?;
    memory.write_obj(params, placement.boot_info).map_err(|_| BootError::DoesNotFit("zero page"))
}
