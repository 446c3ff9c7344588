//! A function's registers in any order and size: configuration space with its BARs and capabilities, virtio's common
//! configuration, the MSI-X table, and the window through which configuration space reaches the BAR.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::model::PciSlot;
use ostler::vmm::pci::PciBus;
use ostler::vmm::ports::{Effect, GuestMemory, PciFunction};
use ostler::vmm::virtio::{Rng, VirtioFunction, Workers};
use ostler_fuzz::Bytes;
use std::cell::RefCell;
use std::sync::PoisonError;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SLOT: u8 = 3;
/// Accesses in one input.
const MAX_ACCESSES: usize = 256;

thread_local! {
    static BUS: RefCell<PciBus> = RefCell::new(bus());
}

fn bus() -> PciBus {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory for a guest");
    let rng = Rng::new("rng".parse().expect("a name")).expect("a device");
    let function =
        VirtioFunction::new(rng, GuestMemory::new(memory), 0xe000_0000, &Workers::new(|| Ok(()))).expect("a function");
    let mut bus = PciBus::new();
    bus.insert(PciSlot::new(SLOT).expect("a slot"), Box::new(function)).expect("it is free");
    bus
}

/// Does what the machine would do, and checks what it relies on.
fn settle(function: &mut dyn PciFunction, effect: Option<Effect>) {
    if let Some(effect @ (Effect::Activate | Effect::Reset)) = effect {
        function.apply(effect);
    }
    assert_eq!(function.vectors().len(), 2, "the number of vectors never changes");
    for bar in function.bars() {
        assert!(bar.len.is_power_of_two() && bar.base.is_multiple_of(bar.len) && bar.bar < 6, "{bar:?}");
    }
}

fuzz_target!(|input: &[u8]| {
    BUS.with_borrow_mut(|bus| {
        let mut bytes = Bytes::new(input);
        for _ in 0..MAX_ACCESSES {
            if bytes.is_empty() {
                break;
            }
            let (kind, offset, mut data) = (bytes.u8(), bytes.u16(), bytes.array::<8>());
            let len = [1, 2, 4, 8, 3, 5, 7, 0][usize::from(kind >> 4 & 7)];
            let data = &mut data[..len];
            let at = u64::from(SLOT) << 15 | u64::from(offset & 0xfff);
            let function = std::sync::Arc::clone(bus.function(SLOT).expect("it is there"));
            match kind & 3 {
                0 => bus.ecam_read(at, data),
                1 => {
                    let effect = bus.ecam_write(at, data).map(|(_, effect)| effect);
                    settle(function.lock().unwrap_or_else(PoisonError::into_inner).as_mut(), effect);
                }
                access => {
                    let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
                    let (bar, offset) = (kind >> 2 & 3, u64::from(offset));
                    if access == 2 {
                        function.bar_read(bar, offset, data);
                    } else {
                        let effect = function.bar_write(bar, offset, data);
                        settle(function.as_mut(), effect);
                    }
                }
            }
        }
        let function = bus.function(SLOT).expect("it is there");
        let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
        let effect = function.bar_write(0, 0x14, &[0]);
        settle(function.as_mut(), effect);
    });
});
