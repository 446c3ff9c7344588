//! virtio-rng: the plainest device, hence the rings themselves.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use ostler::vmm::virtio::Rng;
use ostler_fuzz::Guest;

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::new(Guest::new(Rng::new("rng".parse().expect("a name")).expect("a device")));
}

fuzz_target!(|input: &[u8]| {
    GUEST.with_borrow_mut(|guest| guest.live(!0, input, |_| Vec::new()));
});
