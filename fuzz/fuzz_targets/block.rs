//! virtio-blk: request headers, data and status of every kind in two queues, on a disk of 32 KiB.
#![no_main]

use std::cell::RefCell;
use std::fs::File;

use libfuzzer_sys::fuzz_target;
use ostler::model::RateLimits;
use ostler::vmm::virtio::Block;
use ostler_fuzz::{Guest, PAGE};

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::new(Guest::new(disk()));
}

fn disk() -> Block {
    let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a disk");
    let image = File::from(memory);
    image.set_len(64 * 512).expect("memory for a disk");
    Block::new("disk".parse().expect("a name"), image, false, 2, RateLimits::default()).expect("a disk")
}

fuzz_target!(|input: &[u8]| {
    GUEST.with_borrow_mut(|guest| {
        guest.live(!0, input, |bytes| {
            // A header in each page (VIRTIO 1.2 §5.2.6): type, reserved, sector.
            let mut data = vec![0; 4 * PAGE as usize];
            for page in data.chunks_exact_mut(PAGE as usize) {
                let (kind, sector) = (bytes.u8(), bytes.u8());
                page[0] = kind % 16;
                page[8] = sector;
                page[15] = if sector == 0xff { 0xff } else { 0 };
            }
            let rest = bytes.rest();
            let len = rest.len().min(PAGE as usize - 16);
            data[16..16 + len].copy_from_slice(&rest[..len]);
            data
        });
    });
});
