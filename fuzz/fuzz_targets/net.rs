//! virtio-net: two pairs of queues and the control queue, every offload, with a frame from outside waiting.
#![no_main]

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use ostler::model::{MacAddr, RateLimits};
use ostler::sys::tap::Offloads;
use ostler::vmm::virtio::{Net, TapControl};
use ostler_fuzz::Guest;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

struct Nic {
    guest: Guest,
    networks: Vec<OwnedFd>,
}

thread_local! {
    static NIC: RefCell<Nic> = RefCell::new(nic());
}

/// A NIC on ends of packet socket pairs, which keep frames apart as a tap does, and know nothing of what a tap is told.
fn nic() -> Nic {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let pair = |_| rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("a socket pair");
    let (taps, networks) = (0..2).map(pair).unzip();
    let control = TapControl { set_offloads: |_, _| Ok(()), set_queue: |_, _| Ok(()) };
    let (id, mac) = ("net".parse().expect("a name"), MacAddr([2, 0, 0, 0, 0, 9]));
    let net = Net::new(id, taps, mac, Offloads::ALL, RateLimits::default(), control).expect("a NIC");
    Nic { guest: Guest::new(net), networks }
}

fuzz_target!(|input: &[u8]| {
    NIC.with_borrow_mut(|nic| {
        for network in &nic.networks {
            // Full is fine: earlier inputs left frames.
            let _ = rustix::io::write(network, &[7; 12 + 60]);
        }
        nic.guest.live(!0, input, |bytes| bytes.rest().to_vec());
        for network in &nic.networks {
            while rustix::io::read(network, &mut [0; 64]).is_ok() {}
        }
    });
});
