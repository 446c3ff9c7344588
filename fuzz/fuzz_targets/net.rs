//! virtio-net: both queues, with a frame from outside waiting.
#![no_main]

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use ostler::model::MacAddr;
use ostler::vmm::virtio::Net;
use ostler_fuzz::Guest;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

struct Nic {
    guest: Guest,
    network: OwnedFd,
}

thread_local! {
    static NIC: RefCell<Nic> = RefCell::new(nic());
}

/// A NIC on one end of a packet socket pair, which keeps frames apart as a tap does.
fn nic() -> Nic {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, network) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("a socket pair");
    let net = Net::new("net".parse().expect("a name"), tap, MacAddr([2, 0, 0, 0, 0, 9])).expect("a NIC");
    Nic { guest: Guest::new(net), network }
}

fuzz_target!(|input: &[u8]| {
    NIC.with_borrow_mut(|nic| {
        // Full is fine: earlier inputs left frames.
        let _ = rustix::io::write(&nic.network, &[7; 12 + 60]);
        nic.guest.live(!0, input, |bytes| bytes.rest().to_vec());
        while rustix::io::read(&nic.network, &mut [0; 64]).is_ok() {}
    });
});
