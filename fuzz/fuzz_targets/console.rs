//! virtio-console: a driver's buffers both ways, with somebody who types.
#![no_main]

use std::cell::RefCell;
use std::io::{Sink, sink};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ostler::vmm::virtio::{Console, Keyboard};
use ostler_fuzz::Guest;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

thread_local! {
    static GUEST: RefCell<(Guest, Keyboard)> = RefCell::new(guest());
}

fn guest() -> (Guest, Keyboard) {
    let taken = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let keyboard = Keyboard::new(taken).expect("an eventfd");
    let console: Console<Sink> = Console::new("console".parse().expect("a name"), keyboard.clone(), sink());
    (Guest::new(console), keyboard)
}

fuzz_target!(|input: &[u8]| {
    GUEST.with_borrow_mut(|(guest, keyboard)| {
        keyboard.type_in(&[7; 100]);
        guest.live(!0, input, |bytes| {
            keyboard.type_in(&bytes.array::<16>());
            bytes.rest().to_vec()
        });
    });
});
