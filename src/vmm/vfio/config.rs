//! What the guest sees of a device's configuration space: a header and two capabilities made here from what the device
//! says once. Key types: [`Facts`], [`Unfit`]. Pure.
//!
//! | of the device          | the guest gets                                                      |
//! | ---------------------- | ------------------------------------------------------------------- |
//! | ids, class, revision   | as they are                                                         |
//! | memory BARs            | their width and size, at addresses of ours                          |
//! | I/O BARs, ROM          | none                                                                |
//! | interrupt pin          | none: MSI-X only                                                    |
//! | MSI-X                  | the same place and number of vectors, table and masks emulated      |
//! | PCI Express            | an endpoint of the root complex, without link, errors and resets    |
//! | all other capabilities | none: power states, MSI, VPD, vendor's own, the extended space      |

use crate::vmm::pci::{BarKind, Identity, MsixLayout};

/// Length of what is read of the device: the header and the capabilities behind it (PCI Local Bus 3.0 §6.1).
pub(super) const SNAPSHOT_LEN: usize = 256;

/// Offset of the command register, and the bit that lets the device reach memory.
pub(super) const COMMAND: u16 = 0x04;
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
pub(super) const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// What of a guest's writes reaches the device: register and bits. Everything else ends in this process.
///
/// Memory decoding is not in it: the device's stays on, since a vCPU that touches a mapped BAR of a device that does not
/// decode is a fault of the host. While the guest has it off, the pages are not mapped.
pub(super) const FORWARDED: [(u16, u16); 1] = [(COMMAND, COMMAND_BUS_MASTER)];

/// Offsets of the header.
const STATUS: usize = 0x06;
const STATUS_HAS_CAPABILITIES: u16 = 1 << 4;
const HEADER_TYPE: usize = 0x0e;
const FIRST_BAR: usize = 0x10;
const BAR_COUNT: u8 = 6;
const FIRST_CAPABILITY: usize = 0x34;
/// Where capabilities may lie, and how many 4-byte aligned ones fit there.
const CAPABILITIES_START: usize = 0x40;
const MAX_CAPABILITIES: usize = (SNAPSHOT_LEN - CAPABILITIES_START) / 4;

/// Capability ids.
const CAP_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;

/// The PCI Express capability that a guest gets, and its body after id and link (PCIe 6.0 §7.5.3): version 2, a root
/// complex integrated endpoint (9), since it sits on the root bus, so that link registers need not exist. Of device
/// capabilities only role-based error reporting, which is mandatory: 128-byte payloads and no function level reset.
pub(super) const EXPRESS_ID: u8 = CAP_EXPRESS;
pub(super) const EXPRESS_BODY: [u8; 58] = {
    let mut body = [0; 58];
    body[0] = 0x92;
    body[3] = 0x80;
    body
};

/// Why a device cannot be given to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A bridge.
    #[error("it is a bridge (header type {0}); only endpoints can be passed through")]
    NotAnEndpoint(u8),
    /// No MSI-X, the only kind of interrupt that is offered.
    #[error("it has no MSI-X capability; devices with INTx or MSI only are not supported")]
    NoMsix,
    /// The list of capabilities leads nowhere.
    #[error("its list of capabilities is broken at configuration offset {0:#x}")]
    BrokenList(u8),
}

/// A device's configuration, as far as a guest may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Who it is.
    pub(super) identity: Identity,
    /// Its memory BARs, by number.
    pub(super) bars: Vec<(u8, BarKind)>,
    /// Where its MSI-X table and pending bits are.
    pub(super) msix: MsixLayout,
    /// Whether it is a PCI Express device.
    pub(super) is_express: bool,
}

impl Facts {
    /// Reads them from the start of configuration space, as VFIO shows it (of a virtual function with its real ids).
    pub(super) fn read(config: &[u8; SNAPSHOT_LEN]) -> Result<Self, Unfit> {
        let word = |at: usize| u16::from_le_bytes([byte(config, at), byte(config, at + 1)]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let header = byte(config, HEADER_TYPE) & 0x7f;
        if header != 0 {
            return Err(Unfit::NotAnEndpoint(header));
        }
        let (mut msix, mut is_express) = (None, false);
        for (id, at) in capabilities(config)? {
            match id {
                CAP_EXPRESS => is_express = true,
                CAP_MSIX => {
                    let (table, pending) = (long(at + 4), long(at + 8));
                    msix = Some(MsixLayout {
                        vectors: (word(at + 2) & 0x7ff) + 1,
                        table_bar: (table & 7) as u8,
                        table: table & !7,
                        pending_bar: (pending & 7) as u8,
                        pending: pending & !7,
                    });
                }
                _ => {}
            }
        }
        let identity = Identity {
            vendor: word(0),
            device: word(2),
            revision: byte(config, 8),
            class: long(8) >> 8,
            subsystem_vendor: word(0x2c),
            subsystem: word(0x2e),
        };
        let bars = bars(|number| long(FIRST_BAR + 4 * usize::from(number)));
        Ok(Self { identity, bars, msix: msix.ok_or(Unfit::NoMsix)?, is_express })
    }
}

/// Widths of the memory BARs (PCI Local Bus 3.0 §6.2.5.1). A 64-bit one in the last register is none.
fn bars(register: impl Fn(u8) -> u32) -> Vec<(u8, BarKind)> {
    let mut found = Vec::new();
    let mut number = 0;
    while number < BAR_COUNT {
        let value = register(number);
        let is_64_bit = value & 0b111 == 0b100;
        let is_memory = value & 1 == 0;
        if is_memory && is_64_bit && number + 1 < BAR_COUNT {
            found.push((number, BarKind::Memory64 { is_prefetchable: value & 0b1000 != 0 }));
        } else if is_memory && !is_64_bit {
            found.push((number, BarKind::Memory32));
        }
        number += if is_memory && is_64_bit { 2 } else { 1 };
    }
    found
}

/// Ids and offsets of the capabilities, in their order.
fn capabilities(config: &[u8; SNAPSHOT_LEN]) -> Result<Vec<(u8, usize)>, Unfit> {
    let mut found = Vec::new();
    if u16::from_le_bytes([byte(config, STATUS), byte(config, STATUS + 1)]) & STATUS_HAS_CAPABILITIES == 0 {
        return Ok(found);
    }
    let mut at = byte(config, FIRST_CAPABILITY) & !3;
    while at != 0 {
        if usize::from(at) < CAPABILITIES_START || found.len() == MAX_CAPABILITIES {
            return Err(Unfit::BrokenList(at));
        }
        found.push((byte(config, at.into()), at.into()));
        at = byte(config, usize::from(at) + 1) & !3;
    }
    Ok(found)
}

/// A byte of the snapshot; a capability that would reach beyond it reads as zero there.
fn byte(config: &[u8; SNAPSHOT_LEN], at: usize) -> u8 {
    config.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the lab's igb VF shows: BARs 0 and 3 of 64 bits, MSI-X with 3 vectors in BAR 3.
    fn vf() -> [u8; SNAPSHOT_LEN] {
        let mut config = [0; SNAPSHOT_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &[0x86, 0x80, 0xca, 0x10, 0, 0, 0x10, 0, 1, 0, 0, 2]);
        put(0x10, &0xc_u32.to_le_bytes());
        put(0x1c, &0xc_u32.to_le_bytes());
        put(0x2c, &[0x86, 0x80, 0x34, 0x12]);
        put(0x34, &[0x70]);
        put(0x70, &[0x11, 0xa0, 2, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
        put(0xa0, &[0x10, 0x00, 2, 0]);
        config
    }

    #[test]
    fn reads_a_virtual_function() {
        let facts = Facts::read(&vf()).unwrap();
        assert_eq!((facts.identity.vendor, facts.identity.device), (0x8086, 0x10ca));
        assert_eq!((facts.identity.revision, facts.identity.class), (1, 0x02_00_00));
        let kind = BarKind::Memory64 { is_prefetchable: true };
        assert_eq!(facts.bars, [(0, kind), (2, BarKind::Memory32), (3, kind), (5, BarKind::Memory32)]);
        let msix = MsixLayout { vectors: 3, table_bar: 3, table: 0, pending_bar: 3, pending: 0x2000 };
        assert_eq!((facts.msix, facts.is_express), (msix, true));
    }

    #[test]
    fn refuses_what_no_guest_could_use() {
        let mut bridge = vf();
        bridge[0x0e] = 0x81;
        assert_eq!(Facts::read(&bridge), Err(Unfit::NotAnEndpoint(1)));
        let mut without = vf();
        without[6] = 0;
        assert_eq!(Facts::read(&without), Err(Unfit::NoMsix));
    }

    #[test]
    fn a_list_that_never_ends_is_refused() {
        let mut looping = vf();
        looping[0xa1] = 0x70;
        assert_eq!(Facts::read(&looping), Err(Unfit::BrokenList(0x70)));
        let mut low = vf();
        low[0x34] = 0x10;
        assert_eq!(Facts::read(&low), Err(Unfit::BrokenList(0x10)));
    }

    #[test]
    fn leaves_out_io_bars_and_half_a_wide_one() {
        let registers = [0xe001, 0, 0x4, 0xffff_ffff, 0x8, 0x4];
        let found = bars(|number| registers[usize::from(number)]);
        assert_eq!(
            found,
            [(1, BarKind::Memory32), (2, BarKind::Memory64 { is_prefetchable: false }), (4, BarKind::Memory32)]
        );
    }

    proptest! {
        #[test]
        fn takes_any_device(
            bytes in proptest::collection::vec(any::<u8>(), SNAPSHOT_LEN),
            first in any::<u8>(),
            control in prop_oneof![Just(0), Just(0x7ff), any::<u16>()],
        ) {
            let mut config: [u8; SNAPSHOT_LEN] = bytes.try_into().unwrap();
            config[0x0e] = 0;
            config[6] |= 0x10;
            config[0x34] = first;
            // Often the list begins, and ends, with MSI-X.
            let at = usize::from(first & !3);
            if at < 0xfc {
                config[at..at + 4].copy_from_slice(&[0x11, 0, control as u8, (control >> 8) as u8]);
            }
            if let Ok(facts) = Facts::read(&config) {
                prop_assert!((1..=2048).contains(&facts.msix.vectors));
                prop_assert!(facts.bars.iter().all(|(number, _)| *number < 6));
            }
        }
    }
}
