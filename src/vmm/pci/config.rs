//! A function's configuration space with a write mask per byte. Key types: [`ConfigSpace`], [`Identity`].
//!
//! Whatever the guest writes, only bits that the function declared writable change; everything else is constant.
//! `bar`, `caps` and `msix` lay their registers into it; a function answers `config_read` and `config_write` from it.

/// Length of configuration space in bytes (PCIe 6.0 §7.2.2: enhanced configuration access).
pub const CONFIG_LEN: usize = 4096;
/// What of it is kept. Behind it there would be extended capabilities; no function has any, which reads as zeroes (§7.6.1).
const KEPT_LEN: usize = 256;

/// Offsets of the type 0 header (PCI Local Bus 3.0 §6.1).
const VENDOR: u16 = 0x00;
const DEVICE: u16 = 0x02;
const COMMAND: u16 = 0x04;
const REVISION: u16 = 0x08;
const SUBSYSTEM_VENDOR: u16 = 0x2c;
const SUBSYSTEM: u16 = 0x2e;
const INTERRUPT_LINE: u16 = 0x3c;

/// Command bits that a driver may switch: memory space, bus master, INTx disable (PCI Local Bus 3.0 §6.2.2).
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const COMMAND_MEMORY: u16 = 1 << 1;

/// Who a function says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface, from the highest of the low 24 bits.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Configuration space of one function (type 0 header).
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; KEPT_LEN],
    writable: [u8; KEPT_LEN],
}

impl ConfigSpace {
    /// A type 0 header without BARs, capabilities and interrupt pin; memory decoding and bus mastering are off.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self { bytes: [0; KEPT_LEN], writable: [0; KEPT_LEN] };
        config.set(VENDOR, &identity.vendor.to_le_bytes());
        config.set(DEVICE, &identity.device.to_le_bytes());
        config.set(REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        config.set(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        config.set_writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.set_writable(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// A guest's read at `offset`; bytes beyond the end read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(if at < CONFIG_LEN { 0 } else { 0xff });
        }
    }

    /// A guest's write at `offset`: only writable bits change; bytes beyond the end are ignored.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..).zip(data) {
            if let (Some(old), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// Sets bytes from the function's side, regardless of the mask.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (old, &byte) in self.bytes.iter_mut().skip(offset.into()).zip(data) {
            *old = byte;
        }
    }

    /// Declares which bits from `offset` on the guest may change.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        for (old, &byte) in self.writable.iter_mut().skip(offset.into()).zip(mask) {
            *old = byte;
        }
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: u16) -> u8 {
        u8::from_le_bytes(self.array(offset))
    }

    /// The little-endian 16 bits at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    /// The little-endian 32 bits at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// Whether the driver has switched memory decoding on.
    pub fn is_memory_enabled(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MEMORY != 0
    }

    fn array<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.read(offset, &mut data);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    #[test]
    fn header_says_who_it_is() {
        let config = space();
        assert_eq!(config.u32(0), 0x1042_1af4);
        assert_eq!(config.u32(8), 0x0180_0001);
        assert_eq!(config.u32(0x2c), 0x1100_1af4);
        assert_eq!(config.u8(0x0e), 0, "type 0, one function");
        assert!(!config.is_memory_enabled());
    }

    #[test]
    fn command_keeps_only_what_the_function_has() {
        let mut config = space();
        config.write(4, &[0xff, 0xff]);
        assert_eq!(config.u16(4), 0x0406);
        assert!(config.is_memory_enabled());
    }

    #[test]
    fn reads_ones_beyond_the_end() {
        let mut data = [0; 4];
        space().read(4094, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
        // No extended capability.
        space().read(0xfe, &mut data);
        assert_eq!(data, [0; 4]);
    }

    proptest! {
        #[test]
        fn only_writable_bits_ever_change(
            writes in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..17)), 0..64),
        ) {
            let fresh = space();
            let mut config = space();
            for (offset, data) in writes {
                config.write(offset, &data);
            }
            for at in 0..KEPT_LEN {
                prop_assert_eq!((config.bytes[at] ^ fresh.bytes[at]) & !config.writable[at], 0);
            }
        }
    }
}
