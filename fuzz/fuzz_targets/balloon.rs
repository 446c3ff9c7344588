//! virtio-balloon: page numbers, free ranges and statistics, in memory from which pages go.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use ostler::sys::reclaim::Reclaim;
use ostler::vmm::ports::BalloonCounters;
use ostler::vmm::virtio::{Balloon, Stock};
use ostler_fuzz::{Bytes, Guest, memory};

/// Buffers that are made, a page each.
const BUFFERS: usize = 8;
const PAGE: usize = 4096;
/// Entries of a buffer.
const ENTRIES: usize = 16;

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::new(Guest::new(balloon()));
}

fn balloon() -> Balloon {
    let (id, counters) = ("balloon".parse().expect("a name"), BalloonCounters::default());
    Balloon::new(id, &memory(), Some(1), Reclaim::default(), counters, &Stock::default()).expect("a device")
}

/// Page numbers, mostly of pages that are there; or statistics.
fn buffer(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let kind = bytes.u8();
    let mut buffer = Vec::with_capacity(PAGE);
    for _ in 0..ENTRIES {
        if kind & 1 == 0 {
            let number = bytes.u16();
            buffer.extend((u32::from(number) << (kind >> 5)).to_le_bytes());
        } else {
            buffer.extend(u16::from(bytes.u8() % 12).to_le_bytes());
            buffer.extend(bytes.array::<8>());
        }
    }
    buffer.resize(PAGE, kind);
    buffer
}

fuzz_target!(|input: &[u8]| {
    GUEST.with_borrow_mut(|guest| {
        guest.live(!0, input, |bytes| (0..BUFFERS).flat_map(|_| buffer(bytes)).collect());
    });
});
