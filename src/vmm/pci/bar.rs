//! Memory BARs: sizing, address, decode enable. Key types: [`Bars`], [`BarKind`].
//!
//! A BAR is nothing but a register in configuration space whose address bits are writable and whose others are not: a
//! write of all ones reads back as the size mask (PCI Local Bus 3.0 §6.2.5.1) with no further state.

use super::ConfigSpace;
use crate::vmm::ports::BarMapping;

/// Offset of BAR 0; each register has 4 bytes, a 64-bit BAR takes two.
const FIRST: u16 = 0x10;
const COUNT: u8 = 6;
/// Type bits (PCI Local Bus 3.0 §6.2.5.1).
const IS_64_BIT: u32 = 0b100;
const IS_PREFETCHABLE: u32 = 0b1000;
const FLAG_BITS: u32 = 0xf;
/// Least BAR: a page, so that no two functions share one.
const MIN_LEN: u64 = 4096;

/// Width of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        is_prefetchable: bool,
    },
}

/// Why a BAR cannot be laid out; a fault of the function's builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// No such register, or it is taken.
    #[error("BAR {0} does not exist or is taken")]
    Register(u8),
    /// Not a power of two of at least 4 KiB, or too large for the width.
    #[error("BAR length {0:#x} is not a power of two from 4 KiB to the BAR's width")]
    Len(u64),
    /// Not aligned to the length, or too high for the width.
    #[error("BAR address {0:#x} is not aligned to its length or exceeds the BAR's width")]
    Base(u64),
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    number: u8,
    kind: BarKind,
    len: u64,
}

/// The BARs of one function.
#[derive(Debug, Clone, Default)]
pub struct Bars(Vec<Bar>);

impl Bars {
    /// Lays BAR `number` (0 to 5) of `len` bytes into `config`, assigned to `base` already.
    pub fn add(
        &mut self,
        config: &mut ConfigSpace,
        number: u8,
        kind: BarKind,
        len: u64,
        base: u64,
    ) -> Result<(), BarError> {
        let (registers, most) = match kind {
            BarKind::Memory32 => (1, 1 << 31),
            BarKind::Memory64 { .. } => (2, 1 << 63),
        };
        let range = number..number.saturating_add(registers);
        let is_taken = self.0.iter().any(|bar| range.contains(&bar.number) || bar.registers().contains(&number));
        if range.end > COUNT || is_taken {
            return Err(BarError::Register(number));
        }
        if !len.is_power_of_two() || !(MIN_LEN..=most).contains(&len) {
            return Err(BarError::Len(len));
        }
        let is_too_high = registers == 1 && base > u64::from(u32::MAX);
        if !base.is_multiple_of(len) || is_too_high {
            return Err(BarError::Base(base));
        }
        let flags = match kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 { is_prefetchable: false } => IS_64_BIT,
            BarKind::Memory64 { is_prefetchable: true } => IS_64_BIT | IS_PREFETCHABLE,
        };
        let bytes = usize::from(registers) * 4;
        let value = (base | u64::from(flags)).to_le_bytes();
        let mask = (!(len - 1)).to_le_bytes();
        config.set(register(number), value.get(..bytes).unwrap_or(&value));
        config.set_writable(register(number), mask.get(..bytes).unwrap_or(&mask));
        self.0.push(Bar { number, kind, len });
        Ok(())
    }

    /// What decodes now: nothing while the driver keeps memory decoding off.
    pub fn mappings(&self, config: &ConfigSpace) -> Vec<BarMapping> {
        if !config.is_memory_enabled() {
            return Vec::new();
        }
        let mapping = |bar: &Bar| BarMapping { bar: bar.number, base: bar.base(config), len: bar.len };
        self.0.iter().map(mapping).collect()
    }
}

impl Bar {
    fn registers(&self) -> std::ops::Range<u8> {
        let count = match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 { .. } => 2,
        };
        self.number..self.number + count
    }

    fn base(&self, config: &ConfigSpace) -> u64 {
        let low = u64::from(config.u32(register(self.number)) & !FLAG_BITS);
        match self.kind {
            BarKind::Memory32 => low,
            BarKind::Memory64 { .. } => u64::from(config.u32(register(self.number) + 4)) << 32 | low,
        }
    }
}

fn register(number: u8) -> u16 {
    FIRST + 4 * u16::from(number)
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let (vendor, device, revision, class) = (1, 2, 3, 4);
        ConfigSpace::new(Identity { vendor, device, revision, class, subsystem_vendor: 0, subsystem: 0 })
    }

    #[test]
    fn answers_sizing_and_keeps_its_address() {
        let (mut config, mut bars) = (space(), Bars::default());
        bars.add(&mut config, 0, BarKind::Memory32, 0x8000, 0xe000_0000).unwrap();
        assert_eq!(config.u32(0x10), 0xe000_0000);
        config.write(0x10, &[0xff; 4]);
        assert_eq!(config.u32(0x10), 0xffff_8000);
        config.write(0x10, &0xe100_1234_u32.to_le_bytes());
        assert_eq!(config.u32(0x10), 0xe100_0000);
        assert_eq!(bars.mappings(&config), []);
        config.write(4, &[2]);
        assert_eq!(bars.mappings(&config), [BarMapping { bar: 0, base: 0xe100_0000, len: 0x8000 }]);
    }

    #[test]
    fn a_64_bit_bar_takes_two_registers() {
        let (mut config, mut bars) = (space(), Bars::default());
        let kind = BarKind::Memory64 { is_prefetchable: true };
        bars.add(&mut config, 2, kind, 1 << 33, 1 << 40).unwrap();
        assert_eq!((config.u32(0x18), config.u32(0x1c)), (0xc, 0x100));
        config.write(0x18, &[0xff; 4]);
        config.write(0x1c, &[0xff; 4]);
        assert_eq!((config.u32(0x18), config.u32(0x1c)), (0xc, 0xffff_fffe));
        assert_eq!(bars.add(&mut config, 3, BarKind::Memory32, 4096, 0), Err(BarError::Register(3)));
        assert_eq!(bars.add(&mut config, 1, kind, 4096, 0), Err(BarError::Register(1)));
        assert_eq!(bars.add(&mut config, 5, kind, 4096, 0), Err(BarError::Register(5)));
        assert!(bars.add(&mut config, 4, kind, 4096, 0).is_ok());
    }

    #[test]
    fn refuses_a_layout_that_no_guest_could_read() {
        let (mut config, mut bars) = (space(), Bars::default());
        let mut add = |len, base| bars.add(&mut config, 0, BarKind::Memory32, len, base);
        assert_eq!(add(0, 0), Err(BarError::Len(0)));
        assert_eq!(add(2048, 0), Err(BarError::Len(2048)));
        assert_eq!(add(12288, 0), Err(BarError::Len(12288)));
        assert_eq!(add(1 << 32, 0), Err(BarError::Len(1 << 32)));
        assert_eq!(add(8192, 4096), Err(BarError::Base(4096)));
        assert_eq!(add(4096, 1 << 32), Err(BarError::Base(1 << 32)));
        assert_eq!(add(4096, 0xffff_f000), Ok(()));
    }

    proptest! {
        #[test]
        fn is_always_aligned_to_its_length(shift in 12_u32..32, value in any::<u32>()) {
            let (mut config, mut bars) = (space(), Bars::default());
            bars.add(&mut config, 0, BarKind::Memory32, 1 << shift, 0).unwrap();
            config.write(4, &[2]);
            config.write(0x10, &value.to_le_bytes());
            let mapping = bars.mappings(&config)[0];
            prop_assert_eq!(mapping.base % mapping.len, 0);
            prop_assert!(mapping.base + mapping.len <= 1 << 32);
        }
    }
}
