//! How a device's BARs lie in its slot, which of their pages the guest gets, and where a trapped access goes. Key types:
//! [`BarLayout`], [`Target`], [`LayoutError`]. Pure.
//!
//! ```text
//!   BAR 3  │ 0x0000 MSI-X table │ 0x1000 …          │ 0x2000 pending bits │ 0x3000 …          │
//!          │ trapped            │ the guest's own   │ trapped             │ the guest's own   │
//! ```
//! Registers that share a page with the table are reached through a trap, at their own offsets.
#![allow(clippy::single_range_in_vec_init, reason = "lists of areas, often of one")]

use std::ops::Range;

use super::config::Facts;
use crate::sys::vfio::{PAGE_LEN, Region};
use crate::vmm::pci::{BarKind, MsixLayout};

/// Length of an MSI-X table entry (PCI Local Bus 3.0 §6.8.2).
const ENTRY_LEN: u64 = 16;

/// Why a device's BARs cannot be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More than a slot's part of the window.
    #[error("its BARs need {} KiB of address space, a PCI slot has {} KiB", needed >> 10, room >> 10)]
    NoRoom {
        /// What they need, in bytes.
        needed: u64,
        /// What there is, in bytes.
        room: u64,
    },
    /// The capability points outside of the BARs.
    #[error("its MSI-X table or pending bits do not lie in a memory BAR, or overlap")]
    Msix,
}

/// One BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BarPlan {
    /// BAR number, 0 to 5.
    pub(super) number: u8,
    /// Its width.
    pub(super) kind: BarKind,
    /// Length in bytes as the guest sees it: a power of two, at least a page.
    pub(super) len: u64,
    /// Guest-physical address that it is assigned to.
    pub(super) base: u64,
    /// Bytes of it that the device has.
    pub(super) device_len: u64,
    /// What the guest reaches without an exit, as page-aligned offsets.
    pub(super) direct: Vec<Range<u64>>,
}

/// Where a trapped access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The emulated vector table, at this offset.
    Table(u64),
    /// The emulated pending bits, at this offset.
    Pending(u64),
    /// The device, at the same offset.
    Device,
    /// Nothing: reads as ones.
    Nowhere,
}

/// The BARs of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BarLayout {
    bars: Vec<BarPlan>,
    table: (u8, Range<u64>),
    pending: (u8, Range<u64>),
}

impl BarLayout {
    /// Lays the BARs out from `base` on, aligned to their lengths, in `room` bytes. `base` is a multiple of `room`, and
    /// that a power of two. `regions`: the device's, by BAR number.
    pub(super) fn new(facts: &Facts, regions: &[Region; 6], base: u64, room: u64) -> Result<Self, LayoutError> {
        let MsixLayout { vectors, table_bar, table, pending_bar, pending } = facts.msix;
        let range = |start: u32, len: u64| u64::from(start)..u64::from(start) + len;
        let table = (table_bar, range(table, u64::from(vectors) * ENTRY_LEN));
        let pending = (pending_bar, range(pending, u64::from(vectors).div_ceil(64) * 8));
        let mut bars: Vec<BarPlan> = Vec::new();
        for &(number, kind) in &facts.bars {
            let Some(region) = regions.get(usize::from(number)).filter(|region| region.len > 0) else { continue };
            let len = region.len.checked_next_power_of_two().unwrap_or(u64::MAX).max(PAGE_LEN);
            let holes = [&table, &pending].into_iter().filter(|(bar, _)| *bar == number).map(|(_, range)| range);
            let direct = without(&region.mappable, holes);
            bars.push(BarPlan { number, kind, len, base: 0, device_len: region.len, direct });
        }
        // Falling lengths: each is aligned when its predecessors are.
        bars.sort_by_key(|bar| std::cmp::Reverse(bar.len));
        let mut needed = 0_u64;
        for bar in &mut bars {
            bar.base = base.saturating_add(needed);
            needed = needed.saturating_add(bar.len);
        }
        if needed > room {
            return Err(LayoutError::NoRoom { needed, room });
        }
        let is_inside = |(number, range): &(u8, Range<u64>)| {
            bars.iter().any(|bar| bar.number == *number && range.end <= bar.device_len)
        };
        let is_shared = table.0 == pending.0 && overlaps(&table.1, &pending.1);
        if !is_inside(&table) || !is_inside(&pending) || is_shared {
            return Err(LayoutError::Msix);
        }
        Ok(Self { bars, table, pending })
    }

    /// All BARs.
    pub(super) fn bars(&self) -> &[BarPlan] {
        &self.bars
    }

    /// Where an access of `len` bytes at `offset` of a BAR goes. One that is not 1, 2, 4 or 8 aligned bytes, or that
    /// reaches beyond the device, goes nowhere; so does one that is only partly in the table.
    pub(super) fn target(&self, bar: u8, offset: u64, len: usize) -> Target {
        let len = len as u64;
        let Some(plan) = self.bars.iter().find(|plan| plan.number == bar) else { return Target::Nowhere };
        let Some(end) = offset.checked_add(len).filter(|&end| end <= plan.device_len) else { return Target::Nowhere };
        if !matches!(len, 1 | 2 | 4 | 8) || !offset.is_multiple_of(len) {
            return Target::Nowhere;
        }
        let access = offset..end;
        let within = |(number, range): &(u8, Range<u64>)| {
            (*number == bar && range.start <= access.start && access.end <= range.end).then(|| offset - range.start)
        };
        let touches = |(number, range): &(u8, Range<u64>)| *number == bar && overlaps(range, &access);
        match (within(&self.table), within(&self.pending)) {
            (Some(at), _) => Target::Table(at),
            (_, Some(at)) => Target::Pending(at),
            _ if touches(&self.table) || touches(&self.pending) => Target::Nowhere,
            _ => Target::Device,
        }
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The areas without the pages that the holes touch.
fn without<'a>(areas: &[Range<u64>], holes: impl Iterator<Item = &'a Range<u64>>) -> Vec<Range<u64>> {
    let mut left = areas.to_vec();
    for hole in holes {
        let hole = hole.start / PAGE_LEN * PAGE_LEN..hole.end.next_multiple_of(PAGE_LEN);
        let parts = left
            .into_iter()
            .flat_map(|area| [area.start..area.end.min(hole.start), area.start.max(hole.end)..area.end]);
        left = parts.filter(|part| part.start < part.end).collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::pci::Identity;
    use proptest::prelude::*;

    const ROOM: u64 = 1 << 20;
    const BASE: u64 = 0xc030_0000;
    const WIDE: BarKind = BarKind::Memory64 { is_prefetchable: true };

    fn facts(bars: &[(u8, BarKind)], msix: MsixLayout) -> Facts {
        let (vendor, device, revision, class) = (1, 2, 3, 4);
        let identity = Identity { vendor, device, revision, class, subsystem_vendor: 0, subsystem: 0 };
        Facts { identity, bars: bars.to_vec(), msix, is_express: true }
    }

    fn regions(lens: [u64; 6]) -> [Region; 6] {
        lens.map(|len| {
            let mut region = Region::default();
            region.len = len;
            if len >= PAGE_LEN {
                region.mappable = vec![0..len / PAGE_LEN * PAGE_LEN];
            }
            region
        })
    }

    /// As the lab's igb VF: 16 KiB in BAR 0; 16 KiB in BAR 3 with the table first and pending bits at 0x2000.
    fn vf() -> BarLayout {
        let msix = MsixLayout { vectors: 3, table_bar: 3, table: 0, pending_bar: 3, pending: 0x2000 };
        let facts = facts(&[(0, WIDE), (3, WIDE)], msix);
        BarLayout::new(&facts, &regions([0x4000, 0, 0, 0x4000, 0, 0]), BASE, ROOM).unwrap()
    }

    #[test]
    fn gives_the_guest_all_pages_but_those_of_the_table_and_the_pending_bits() {
        let layout = vf();
        let [zero, three] = layout.bars() else { panic!("{layout:?}") };
        assert_eq!((zero.number, zero.base, zero.len), (0, BASE, 0x4000));
        assert_eq!(zero.direct, [0..0x4000]);
        assert_eq!((three.number, three.base, three.len), (3, BASE + 0x4000, 0x4000));
        assert_eq!(three.direct, [0x1000..0x2000, 0x3000..0x4000]);
    }

    #[test]
    fn trapped_accesses_go_to_the_table_the_pending_bits_or_the_device() {
        let layout = vf();
        for (offset, len, target) in [
            (0x00, 4, Target::Table(0)),
            (0x2c, 4, Target::Table(0x2c)),
            (0x28, 8, Target::Table(0x28)),
            (0x30, 4, Target::Device),
            (0x2000, 8, Target::Pending(0)),
            (0x2004, 4, Target::Pending(4)),
            (0x2008, 4, Target::Device),
            (0x3ffc, 4, Target::Device),
        ] {
            assert_eq!(layout.target(3, offset, len), target, "{offset:#x} {len}");
        }
        assert_eq!(layout.target(0, 0x10, 4), Target::Device);
    }

    #[test]
    fn hostile_accesses_go_nowhere() {
        let layout = vf();
        for (bar, offset, len) in [
            (3, 0x2c, 8),         // unaligned, out of the table
            (3, 0x01, 4),         // unaligned
            (3, 0x00, 3),         // no such size
            (3, 0x00, 0),         // nothing
            (3, 0x00, 16),        // a whole entry
            (3, 0x3ffe, 4),       // over the end
            (3, 0x4000, 4),       // beyond
            (3, u64::MAX - 3, 4), // overflows
            (1, 0, 4),            // no such BAR
            (9, 0, 4),
        ] {
            assert_eq!(layout.target(bar, offset, len), Target::Nowhere, "{bar} {offset:#x} {len}");
        }
        // A table of odd length: the last aligned 8 bytes of the pending bits' neighbour.
        let msix = MsixLayout { vectors: 1, table_bar: 0, table: 8, pending_bar: 0, pending: 0x20 };
        let layout = BarLayout::new(&facts(&[(0, WIDE)], msix), &regions([0x1000, 0, 0, 0, 0, 0]), BASE, ROOM).unwrap();
        assert_eq!(layout.target(0, 0x00, 8), Target::Device);
        assert_eq!(layout.target(0, 0x10, 8), Target::Table(8));
        assert_eq!(layout.target(0, 0x18, 8), Target::Device);
        assert!(layout.bars()[0].direct.is_empty());
    }

    #[test]
    fn a_bar_smaller_than_a_page_is_trapped_and_ends_where_the_device_ends() {
        let msix = MsixLayout { vectors: 1, table_bar: 0, table: 0, pending_bar: 0, pending: 0x80 };
        let facts = facts(&[(0, BarKind::Memory32), (2, BarKind::Memory32)], msix);
        let layout = BarLayout::new(&facts, &regions([0x100, 0, 0x200, 0, 0, 0]), BASE, ROOM).unwrap();
        assert_eq!(layout.bars()[1].len, PAGE_LEN);
        assert_eq!(layout.target(2, 0x1fc, 4), Target::Device);
        assert_eq!(layout.target(2, 0x200, 4), Target::Nowhere);
    }

    #[test]
    fn refuses_what_does_not_fit_or_points_outside() {
        let msix = MsixLayout { vectors: 1, table_bar: 0, table: 0, pending_bar: 0, pending: 0x800 };
        let new = |msix, lens| BarLayout::new(&facts(&[(0, WIDE), (2, WIDE)], msix), &regions(lens), BASE, ROOM);
        assert_eq!(
            new(msix, [0x8_0000, 0, 0x10_0000, 0, 0, 0]).unwrap_err().to_string(),
            "its BARs need 1536 KiB of address space, a PCI slot has 1024 KiB"
        );
        assert_eq!(new(msix, [1 << 63 | 1, 0, 0, 0, 0, 0]), Err(LayoutError::NoRoom { needed: u64::MAX, room: ROOM }));
        for bad in [
            MsixLayout { table_bar: 1, ..msix },
            MsixLayout { pending_bar: 7, ..msix },
            MsixLayout { table: 0xff8, ..msix },
            MsixLayout { pending: 0x8, ..msix },
            MsixLayout { pending: !7, ..msix },
        ] {
            assert_eq!(new(bad, [0x1000, 0, 0, 0, 0, 0]), Err(LayoutError::Msix), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn neither_table_nor_pending_bits_are_ever_direct(
            vectors in 1_u16..=2048, table in 0_u32..0x1_0000, pending in 0_u32..0x1_0000, len in 0_u64..0x2_0000,
            offset in 0_u64..0x2_0000, access in 0_usize..17,
        ) {
            let (table, pending) = (table & !7, pending & !7);
            let msix = MsixLayout { vectors, table_bar: 0, table, pending_bar: 0, pending };
            if let Ok(layout) = BarLayout::new(&facts(&[(0, WIDE)], msix), &regions([len, 0, 0, 0, 0, 0]), BASE, ROOM) {
                let bar = &layout.bars()[0];
                for direct in &bar.direct {
                    prop_assert!(direct.start.is_multiple_of(PAGE_LEN) && direct.end.is_multiple_of(PAGE_LEN));
                    prop_assert!(direct.end <= len);
                    prop_assert!(!overlaps(direct, &layout.table.1) && !overlaps(direct, &layout.pending.1));
                }
                if layout.target(0, offset, access) == Target::Device {
                    let touched = offset..offset + access as u64;
                    prop_assert!(touched.end <= len);
                    prop_assert!(!overlaps(&touched, &layout.table.1) && !overlaps(&touched, &layout.pending.1));
                }
            }
        }
    }
}
