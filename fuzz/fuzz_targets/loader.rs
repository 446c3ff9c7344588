//! Kernel images, with and without an initrd: an image that loads lies within the guest's memory.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};

use libfuzzer_sys::fuzz_target;
use ostler::sys::sealed;
use ostler::vmm::boot::{self, Images, Placement};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 32 << 20;
const PLACEMENT: Placement = Placement {
    boot_info: GuestAddress(0x6000),
    memory_map: GuestAddress(0x7000),
    modules: GuestAddress(0x7f00),
    cmdline: GuestAddress(0x2_0000),
    rsdp: GuestAddress(0xe_0000),
    himem: GuestAddress(0x10_0000),
    low_ram_end: MEMORY,
};

struct Bench {
    memory: GuestMemoryMmap,
    kernel: File,
    initrd: File,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory for a guest"),
        kernel: file(),
        initrd: file(),
    });
}

fn file() -> File {
    rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for an image").into()
}

fn fill(file: &mut File, bytes: &[u8]) {
    file.set_len(0).expect("memory for an image");
    file.rewind().expect("memory for an image");
    file.write_all(bytes).expect("memory for an image");
}

fuzz_target!(|input: &[u8]| {
    BENCH.with_borrow_mut(|Bench { memory, kernel, initrd }| {
        let (&flags, image) = input.split_first().unwrap_or((&0, &[]));
        fill(kernel, image);
        fill(initrd, &image[..image.len().min(usize::from(flags) * 16)]);
        let initrd = (flags & 1 != 0).then_some(&*initrd);
        // From a sealed file, as it comes to a vmm, and from one that could still change.
        let sealed = (flags & 2 != 0).then(|| File::from(sealed::seal("image", image).expect("memory for an image")));
        let kernel = sealed.as_ref().unwrap_or(kernel);
        let images = Images { kernel, initrd, cmdline: "console=ttyS0" };
        if let Ok(boot) = boot::load(memory, images, &PLACEMENT, &[(0, MEMORY, 1)]) {
            assert!((boot.rbx == 0) != (boot.rsi == 0), "one protocol: {boot:x?}");
        }
    });
});
