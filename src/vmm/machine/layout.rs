//! The guest-physical address map. Constants and pure functions; everything that places something in guest memory or
//! in the address space takes it from here.
//!
//! ```text
//!   0x0000_0000  RAM: boot data (start info, memory map, command line)
//!   0x000e_0000  ACPI tables (reserved)
//!   0x0010_0000  RAM: kernel … initrd at the end of low RAM, at most to 3 GiB
//!   0xc000_0000  32-bit PCI window (512 MiB)
//!   0xe000_0000  ECAM (1 MiB per bus)
//!   0xfec0_0000  I/O APIC, 0xfee0_0000 local APICs, 0xfffb_d000 KVM's own pages
//!   0x1_0000_0000 high RAM
//! ```

/// Start info of the PVH protocol, or the zero page of the Linux protocol.
pub const BOOT_INFO: u64 = 0x6000;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// PVH module list.
pub const PVH_MODULES: u64 = 0x7f00;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the RAM below the legacy hole.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, to [`RESET_VECTOR`].
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Where a processor in real mode starts after a reset (F000:FFF0): 16 bytes.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above the legacy hole; kernels load here or higher.
pub const HIMEM: u64 = 0x10_0000;
/// Low RAM ends here at the latest.
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// 32-bit PCI memory window.
pub const PCI_WINDOW: u64 = MMIO_HOLE;
/// Its length in bytes.
pub const PCI_WINDOW_LEN: u64 = 0x2000_0000;
/// PCI Express enhanced configuration (PCIe 6.0 §7.2.2).
pub const ECAM: u64 = 0xe000_0000;
/// One bus: 32 devices × 8 functions × 4 KiB.
pub const ECAM_LEN: u64 = 1 << 20;
/// I/O APIC as KVM emulates it.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages for KVM on hosts without unrestricted guests (KVM api §4.36).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// High RAM.
pub const HIGH_RAM: u64 = 1 << 32;

/// Space that each PCI slot has in the 32-bit window, in bytes: BARs are assigned here before the first instruction,
/// since no firmware does it.
pub const SLOT_WINDOW_LEN: u64 = 1 << 20;

/// COM1 (8 ports).
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the ACPI generic event device.
pub const GED_GSI: u32 = 5;
/// The same device's second interrupt: something is to be told of a slot.
pub const SLOTS_GSI: u32 = 6;
/// Registers of the slots (`legacy::slots`), 32 bits each.
pub const SLOTS_PORT: u16 = 0x610;
/// ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// Where a guest's kernel tells that it panicked (pvpanic; QEMU's docs/specs/pvpanic.rst).
pub const PANIC_PORT: u16 = 0x505;
/// Status and command port of the keyboard controller: there is none, but kernels try to reset the machine through it.
pub const KEYBOARD_CONTROLLER_PORT: u16 = 0x64;
/// NMI status and control (the PC's system control port B): kernels read there why an NMI came.
pub const NMI_STATUS_PORT: u16 = 0x61;
/// Pins of the I/O APIC; GSIs from here on are MSI routes.
pub const IOAPIC_PINS: u32 = 24;

/// RAM as (base, length) pairs in bytes, lowest first.
pub fn ram_ranges(memory_bytes: u64) -> Vec<(u64, u64)> {
    let low = memory_bytes.min(MMIO_HOLE);
    let high = memory_bytes - low;
    let mut ranges = vec![(0, low)];
    if high > 0 {
        ranges.push((HIGH_RAM, high));
    }
    ranges
}

/// What the firmware memory map says of a range (ACPI 6.5 §15, `AddressRangeType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable RAM (1).
    Ram,
    /// Never to be used as RAM (2).
    Reserved,
}

/// The firmware memory map: (base, length, kind).
pub fn memory_map(memory_bytes: u64) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![
        (0, LOW_RAM_END, RangeKind::Ram),
        (ACPI_TABLES, HIMEM - ACPI_TABLES, RangeKind::Reserved),
        (HIMEM, memory_bytes.min(MMIO_HOLE) - HIMEM, RangeKind::Ram),
        (ECAM, ECAM_LEN, RangeKind::Reserved),
    ];
    if let Some(&(base, len)) = ram_ranges(memory_bytes).get(1) {
        map.push((base, len, RangeKind::Ram));
    }
    map
}

/// Where the BARs of a slot on bus 0 start.
pub fn slot_window(slot: u8) -> u64 {
    PCI_WINDOW + u64::from(slot) * SLOT_WINDOW_LEN
}

/// Whether a range lies in the window where BARs may be mapped: there is no RAM, ECAM or interrupt controller.
pub fn is_in_pci_window(base: u64, len: u64) -> bool {
    base >= PCI_WINDOW && base.checked_add(len).is_some_and(|end| end <= PCI_WINDOW + PCI_WINDOW_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_ram_at_the_hole() {
        assert_eq!(ram_ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram_ranges(MMIO_HOLE), [(0, MMIO_HOLE)]);
        assert_eq!(ram_ranges(5 << 30), [(0, MMIO_HOLE), (HIGH_RAM, 2 << 30)]);
    }

    #[test]
    fn the_memory_map_never_overlaps_and_covers_all_ram_but_the_legacy_hole() {
        for memory in [64 << 20, 1 << 30, 3 << 30, 5 << 30, 64u64 << 30] {
            let mut map = memory_map(memory);
            map.sort_by_key(|range| range.0);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
            let ram: u64 = map.iter().filter(|range| range.2 == RangeKind::Ram).map(|range| range.1).sum();
            assert_eq!(ram, memory - (HIMEM - LOW_RAM_END));
        }
    }

    #[test]
    fn every_slot_fits_the_window() {
        assert!(slot_window(31) + SLOT_WINDOW_LEN <= PCI_WINDOW + PCI_WINDOW_LEN);
    }
}
