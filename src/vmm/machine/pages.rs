//! Pages of devices in the guest's address space. Key type: [`PageTable`], owned by the control thread.
//!
//! A guest may put a BAR wherever it likes. Pages are mapped only within the PCI window and where no other device's are;
//! anywhere else the BAR stays trapped, which is slow and right, or hidden behind RAM, which is the guest's own doing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layout;
use crate::vmm::kvm::{KvmError, Vm};
use crate::vmm::ports::PageMapping;

/// What is mapped now, by slot.
#[derive(Default)]
pub(super) struct PageTable {
    mapped: BTreeMap<u8, Vec<PageMapping>>,
}

impl PageTable {
    /// Makes KVM agree with what the function in `slot` wants to be mapped, as far as that is possible.
    pub(super) fn sync(&mut self, vm: &mut Vm, slot: u8, wanted: Vec<PageMapping>) -> Result<(), KvmError> {
        let present = self.mapped.remove(&slot).unwrap_or_default();
        let others: Vec<_> = self.mapped.values().flatten().map(range).collect();
        let wanted = possible(&others, wanted, range);
        let is_same = |a: &PageMapping, b: &PageMapping| a.address == b.address && Arc::ptr_eq(&a.pages, &b.pages);
        for old in present.iter().filter(|old| !wanted.iter().any(|new| is_same(old, new))) {
            vm.unmap_pages(old.address)?;
        }
        for new in wanted.iter().filter(|new| !present.iter().any(|old| is_same(old, new))) {
            vm.map_pages(new.address, Arc::clone(&new.pages))?;
        }
        self.mapped.insert(slot, wanted);
        Ok(())
    }
}

/// Base and length in bytes.
type Range = (u64, u64);

fn range(mapping: &PageMapping) -> Range {
    (mapping.address, mapping.pages.len_bytes())
}

/// Those of `wanted`, in their order, that lie in the window and overlap neither `taken` nor one before.
fn possible<T>(taken: &[Range], wanted: Vec<T>, range: impl Fn(&T) -> Range) -> Vec<T> {
    let mut taken = taken.to_vec();
    let mut fitting = Vec::new();
    for item in wanted {
        let (base, len) = range(&item);
        let overlaps = |&(other, other_len): &Range| base < other + other_len && other < base + len;
        if layout::is_in_pci_window(base, len) && !taken.iter().any(overlaps) {
            taken.push((base, len));
            fitting.push(item);
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::{ECAM, HIGH_RAM, PCI_WINDOW};
    use proptest::prelude::*;

    #[test]
    fn a_bar_over_ram_ecam_or_another_device_is_not_mapped() {
        let taken = [(PCI_WINDOW + 0x4000, 0x2000)];
        let wanted = vec![
            (0, 0x1000),
            (PCI_WINDOW - 0x1000, 0x2000),
            (ECAM - 0x1000, 0x2000),
            (ECAM, 0x1000),
            (HIGH_RAM, 0x1000),
            (u64::MAX - 0xfff, 0x1000),
            (PCI_WINDOW + 0x3000, 0x2000),
            (PCI_WINDOW + 0x5000, 0x1000),
            (PCI_WINDOW + 0x6000, 0x2000),
            (PCI_WINDOW + 0x7000, 0x1000),
            (ECAM - 0x1000, 0x1000),
        ];
        let fitting = possible(&taken, wanted, |range| *range);
        assert_eq!(fitting, [(PCI_WINDOW + 0x6000, 0x2000), (ECAM - 0x1000, 0x1000)]);
    }

    proptest! {
        #[test]
        fn never_gives_two_devices_one_page(
            wanted in proptest::collection::vec((0xb_fff0_u64..0xe_0008, 1_u64..16), 0..16),
        ) {
            let wanted = wanted.into_iter().map(|(base, pages)| (base << 12, pages << 12)).collect();
            let mut fitting = possible(&[], wanted, |range| *range);
            fitting.sort_unstable();
            prop_assert!(fitting.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            prop_assert!(fitting.iter().all(|&(base, len)| base >= PCI_WINDOW && base + len <= ECAM));
        }
    }
}
