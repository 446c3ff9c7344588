//! Describes the machine to a PVH kernel: start info, memory map, modules (Xen `start_info.h`).

use vm_memory::{Bytes, GuestMemoryMmap};

use super::{BootError, Initrd, MapEntry, Placement};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// First version with a memory map.
const VERSION: u32 = 1;

/// Writes start info, module list and memory map.
pub(super) fn describe(
    memory: &GuestMemoryMmap,
    placement: &Placement,
    map: &[MapEntry],
    initrd: Option<Initrd>,
) -> Result<(), BootError> {
    let entries = u32::try_from(map.len()).map_err(|_| BootError::DoesNotFit("memory map"))?;
    let [modules, module_count] = if initrd.is_some() { [placement.modules.0, 1] } else { [0, 0] };

    let mut info = Vec::with_capacity(56);
    info.extend(MAGIC.to_le_bytes());
    info.extend(VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // flags
    info.extend((module_count as u32).to_le_bytes());
    info.extend(modules.to_le_bytes());
    info.extend(placement.cmdline.0.to_le_bytes());
    info.extend(placement.rsdp.0.to_le_bytes());
    info.extend(placement.memory_map.0.to_le_bytes());
    info.extend(entries.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // reserved

    let mut module = Vec::with_capacity(32);
    if let Some(initrd) = initrd {
        for field in [initrd.base, initrd.len, 0, 0] {
            module.extend(field.to_le_bytes());
        }
    }
    let mut table = Vec::with_capacity(map.len() * 24);
    for (base, len, kind) in map {
        table.extend(base.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(kind.to_le_bytes());
        table.extend(0u32.to_le_bytes()); // reserved
    }
    let parts = [(info, placement.boot_info), (module, placement.modules), (table, placement.memory_map)];
    parts.into_iter().try_for_each(|(bytes, address)| {
        memory.write_slice(&bytes, address).map_err(|_| BootError::DoesNotFit("start info"))
    })
}
