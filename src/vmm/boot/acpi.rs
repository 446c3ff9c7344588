//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): no PIC, no PIT, no RTC, no i8042 for the kernel to probe.
//!
//! Key types: [`Platform`] in, tables in guest memory out. The DSDT holds the PCI host bridge, COM1 if there is one, a generic event
//! device with two interrupts, the power button and news of slots, and the port by which a kernel tells that it panicked.
//! Slots that devices may come to and leave while the guest runs are ACPI devices of the host bridge ([`slots`]).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Else, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::BootError;

const OEM: [u8; 6] = *b"OSTLER";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
/// Sleep type of S5 that `\_S5` names and the sleep control register gets (any value that both agree on).
pub const S5_SLEEP_TYPE: u8 = 5;
/// Value that the reset register gets.
pub const RESET_VALUE: u8 = 1;
/// `IAPC_BOOT_ARCH`: no VGA, no CMOS RTC; "8042 present" stays clear (ACPI 6.5 §5.2.9.3).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// The vCPUs' APIC ids, in order.
    pub apic_ids: &'a [u8],
    /// Local APIC address.
    pub lapic: u32,
    /// I/O APIC address.
    pub ioapic: u32,
    /// ECAM base; buses 0 to `last_bus`.
    pub ecam: u64,
    /// Last bus.
    pub last_bus: u8,
    /// 32-bit PCI memory window: base and last address.
    pub pci_window: (u32, u32),
    /// First port and GSI of COM1, if there is one.
    pub serial: Option<(u16, u32)>,
    /// GSI of the generic event device: the power button.
    pub ged_gsi: u32,
    /// Its second: news of slots.
    pub slots_gsi: u32,
    /// The slots' registers, 32 bits each: inserted, asked for, eject.
    pub slots_port: u16,
    /// First and last slot that devices may come to and leave while the guest runs.
    pub hotplug_slots: (u8, u8),
    /// Sleep control register.
    pub sleep_control_port: u16,
    /// Sleep status register.
    pub sleep_status_port: u16,
    /// Reset register.
    pub reset_port: u16,
    /// pvpanic's port.
    pub panic_port: u16,
}

/// Writes all tables from `base` on, at most `len` bytes; the RSDP stands at `base`.
pub fn write(memory: &GuestMemoryMmap, base: GuestAddress, len: u64, platform: &Platform<'_>) -> Result<(), BootError> {
    let mut writer = Writer { memory, next: base.0 + 64, end: base.0 + len };
    let dsdt = writer.put(&bytes_of(&dsdt(platform)))?;
    let fadt = writer.put(&bytes_of(&fadt(platform, dsdt)))?;
    let madt = writer.put(&bytes_of(&madt(platform)))?;
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, 1);
    mcfg.add_ecam(platform.ecam, 0, 0, platform.last_bus);
    let mcfg = writer.put(&bytes_of(&mcfg))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = writer.put(&bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    memory.write_slice(&rsdp, base).map_err(|_| BootError::DoesNotFit("ACPI tables"))
}

/// Puts tables one behind the other, 16-byte aligned.
struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
    end: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, BootError> {
        let address = self.next;
        let end = address + table.len() as u64;
        if end > self.end {
            return Err(BootError::DoesNotFit("ACPI tables"));
        }
        self.memory.write_slice(table, GuestAddress(address)).map_err(|_| BootError::DoesNotFit("ACPI tables"))?;
        self.next = end.next_multiple_of(16);
        Ok(address)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(platform: &Platform<'_>, dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.reset_reg = port(platform.reset_port);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(platform.sleep_control_port);
    fadt.sleep_status_reg = port(platform.sleep_status_port);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.finalize()
}

fn madt(platform: &Platform<'_>) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(platform.lapic));
    for (uid, &id) in (0..).zip(platform.apic_ids) {
        madt.add_structure(ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
    }
    // An id that no vCPU has; the broadcast id if they have all others.
    let free = (0..u8::MAX).find(|id| !platform.apic_ids.contains(id)).unwrap_or(u8::MAX);
    madt.add_structure(IoApic::new(free, platform.ioapic, 0));
    madt
}

fn dsdt(platform: &Platform<'_>) -> Sdt {
    let mut aml = Vec::new();
    pci_host_bridge(platform, &mut aml);
    motherboard(platform, &mut aml);
    if let Some((port, gsi)) = platform.serial {
        serial(port, gsi, &mut aml);
    }
    slots(platform, &mut aml);
    events(platform, &mut aml);
    panic_event(platform, &mut aml);
    Name::new("_S5_".into(), &Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
    // At once: a table computes its sum for whatever is appended.
    dsdt.append_slice(&aml);
    dsdt
}

fn pci_host_bridge(platform: &Platform<'_>, aml: &mut Vec<u8>) {
    let (first, last) = platform.pci_window;
    let buses = AddressSpace::new_bus_number(0u16, u16::from(platform.last_bus));
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &ZERO),
                &Name::new("_BBN".into(), &ZERO),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &window])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// Reserves the ECAM as a motherboard resource (PCI Firmware 3.3 §4.1.2): kernels before 6.10 that have no other way into
/// configuration space use none that is not, and then see no device at all.
fn motherboard(platform: &Platform<'_>, aml: &mut Vec<u8>) {
    let len = (u32::from(platform.last_bus) + 1) << 20;
    // Below 4 GiB, as the layout has it.
    let ecam = Memory32Fixed::new(true, platform.ecam as u32, len);
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "MBRD".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

fn serial(port: u16, gsi: u32, aml: &mut Vec<u8>) {
    let ports = IO::new(port, port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// Value of a notification: look at the slot, there may be something new (ACPI 6.5 table 5.182).
const DEVICE_CHECK: u8 = 1;
/// The device in the slot is wanted back.
const EJECT_REQUEST: u8 = 3;
/// The button was pressed (ACPI 6.5 table 5.184).
const BUTTON_PRESSED: u8 = 0x80;

/// Registers, a device per slot, and the methods that tell them apart. No method runs before there is news, and none of
/// it is looked at during boot but the devices themselves: hence only as many as can be needed.
fn slots(platform: &Platform<'_>, aml: &mut Vec<u8>) {
    let (first, last) = platform.hotplug_slots;
    let name = |slot: u8| Path::new(&format!("S{slot:02}_"));
    let mut body: Vec<u8> = Vec::new();
    OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &platform.slots_port, &12u8).to_aml_bytes(&mut body);
    let field = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![field(b"HPIN"), field(b"HPAS"), field(b"HPEJ")],
    )
    .to_aml_bytes(&mut body);
    let eject = Path::new("HPEJ");
    for slot in first..=last {
        let (address, bit) = (u32::from(slot) << 16, 1u32 << slot);
        Device::new(
            name(slot),
            vec![
                &Name::new("_ADR".into(), &address),
                &Name::new("_SUN".into(), &slot),
                &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&eject, &bit)]),
            ],
        )
        .to_aml_bytes(&mut body);
    }
    // HPNT(slots, value): notifies each of the slots.
    let mut notify: Vec<u8> = Vec::new();
    for slot in first..=last {
        let (device, bit) = (name(slot), 1u32 << slot);
        If::new(&And::new(&ZERO, &Arg(0), &bit), vec![&Notify::new(&device, &Arg(1))]).to_aml_bytes(&mut notify);
    }
    Method::new("HPNT".into(), 2, true, vec![&Bytecode(notify)]).to_aml_bytes(&mut body);
    // HPSC(): reads what is new and what is wanted, and passes it on.
    let (inserted, asked) = (Path::new("HPIN"), Path::new("HPAS"));
    let told = MethodCall::new("HPNT".into(), vec![&inserted, &DEVICE_CHECK]);
    let wanted = MethodCall::new("HPNT".into(), vec![&asked, &EJECT_REQUEST]);
    Method::new("HPSC".into(), 0, true, vec![&told, &wanted]).to_aml_bytes(&mut body);
    Scope::new("\\_SB_.PCI0".into(), vec![&Bytecode(body)]).to_aml_bytes(aml);
}

/// AML that was encoded already.
struct Bytecode(Vec<u8>);

impl Aml for Bytecode {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// A generic event device (ACPI 6.5 §5.6.9): the power button, and news of slots.
fn events(platform: &Platform<'_>, aml: &mut Vec<u8>) {
    let interrupts = [platform.ged_gsi, platform.slots_gsi].map(|gsi| Interrupt::new(true, true, false, false, gsi));
    let [button_interrupt, slots_interrupt] = &interrupts;
    let button = Path::new("\\_SB_.PWRB");
    let is_slots = Equal::new(&Arg(0), &platform.slots_gsi);
    let scan = MethodCall::new("\\_SB_.PCI0.HPSC".into(), vec![]);
    Scope::new(
        "\\_SB_".into(),
        vec![
            &Device::new("PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))]),
            &Device::new(
                "GED_".into(),
                vec![
                    &Name::new("_HID".into(), &"ACPI0013"),
                    &Name::new("_UID".into(), &ZERO),
                    &Name::new("_CRS".into(), &ResourceTemplate::new(vec![button_interrupt, slots_interrupt])),
                    &Method::new(
                        "_EVT".into(),
                        1,
                        true,
                        vec![
                            &If::new(&is_slots, vec![&scan]),
                            &Else::new(vec![&Notify::new(&button, &BUTTON_PRESSED)]),
                        ],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// pvpanic as the drivers of stock kernels know it: `QEMU0001` with one port (QEMU's docs/specs/pvpanic.rst).
fn panic_event(platform: &Platform<'_>, aml: &mut Vec<u8>) {
    let port = IO::new(platform.panic_port, platform.panic_port, 1, 1);
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero_and_is_reachable_from_the_root() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let base = 0xe_0000;
        let platform = Platform {
            apic_ids: &[0, 1, 2, 3],
            lapic: 0xfee0_0000,
            ioapic: 0xfec0_0000,
            ecam: 0xe000_0000,
            last_bus: 0,
            pci_window: (0xc000_0000, 0xdfff_ffff),
            serial: Some((0x3f8, 4)),
            ged_gsi: 5,
            slots_gsi: 6,
            slots_port: 0x610,
            hotplug_slots: (2, 31),
            sleep_control_port: 0x600,
            sleep_status_port: 0x601,
            reset_port: 0x602,
            panic_port: 0x505,
        };
        write(&memory, GuestAddress(base), 0x2_0000, &platform).unwrap();
        let read = |address: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        };
        let long = |address: u64| u64::from_le_bytes(read(address, 8).try_into().unwrap());
        let len_of = |table: u64| u32::from_le_bytes(read(table + 4, 4).try_into().unwrap()) as usize;
        let sums_to_zero = |bytes: Vec<u8>| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0;

        assert_eq!(read(base, 8), b"RSD PTR ");
        assert!(sums_to_zero(read(base, 20)) && sums_to_zero(read(base, 36)));
        let xsdt = long(base + 24);
        assert!(sums_to_zero(read(xsdt, len_of(xsdt))));
        let tables: Vec<u64> = (0..(len_of(xsdt) as u64 - 36) / 8).map(|n| long(xsdt + 36 + n * 8)).collect();
        let names: Vec<_> = tables.iter().map(|&table| read(table, 4)).collect();
        assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec()]);
        for &table in &tables {
            assert!(sums_to_zero(read(table, len_of(table))));
        }
        let dsdt = long(tables[0] + 140);
        assert_eq!(read(dsdt, 4), b"DSDT");
        assert!(sums_to_zero(read(dsdt, len_of(dsdt))));
    }

    #[test]
    fn says_when_the_tables_have_no_room() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let platform = Platform {
            apic_ids: &[0; 128],
            lapic: 0,
            ioapic: 0,
            ecam: 0,
            last_bus: 0,
            pci_window: (0, 0),
            serial: None,
            ged_gsi: 0,
            slots_gsi: 0,
            slots_port: 0,
            hotplug_slots: (2, 2),
            sleep_control_port: 0,
            sleep_status_port: 0,
            reset_port: 0,
            panic_port: 0,
        };
        assert!(matches!(write(&memory, GuestAddress(0), 512, &platform), Err(BootError::DoesNotFit(_))));
    }
}
