//! The NIC on a real tap under the host's real vhost-net; skipped where there is none. The driver is a test's own, so that
//! it can do what a stock one never would.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;

use super::*;
use crate::sys::absence::skip;
use crate::sys::tap;
use crate::vmm::ports::PciFunction;
use crate::vmm::virtio::Workers;
use crate::vmm::virtio::testing::*;

const HOST: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 245);
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 246);
const BUFFER: u32 = 2048;

/// The device on a new tap of this name, in memory that its driver shares. `None` on a host that has no such thing.
fn device(name: &str, pairs: u16) -> Option<(KernelNet, GuestMemory)> {
    let opened = tap::open(name, HOST, 30, pairs).and_then(|taps| {
        let servers = (0..pairs).map(|_| vhost_net::open()).collect::<io::Result<Vec<_>>>()?;
        Ok(taps.into_iter().chain(servers).map(OwnedFd::from).collect::<Vec<_>>())
    });
    let descriptors = match opened {
        Ok(descriptors) => descriptors,
        Err(error) => {
            skip(&format!("CAP_NET_ADMIN, /dev/net/tun and /dev/vhost-net ({error})"));
            return None;
        }
    };
    let memory = memory();
    let known = tap::known_offloads(descriptors[0].as_fd());
    let (id, mac) = ("net-0".parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 9]));
    let nic = KernelNet::new(id, descriptors, mac, known, &memory, TapControl::KERNEL).unwrap();
    Some((nic, memory))
}

fn up(name: &str, pairs: u16) -> Option<Driver> {
    let (nic, memory) = device(name, pairs)?;
    let mut driver = Driver::probe_in(memory, nic, &Workers::new(|| Ok(())));
    driver.bring_up(ALL_FEATURES);
    Some(driver)
}

/// A number of the tap's as the host counts it: what the guest sends is received.
fn received(name: &str) -> u64 {
    let path = format!("/sys/class/net/{name}/statistics/rx_packets");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// The host looks for the guest, whose receive queue gets the question.
fn have_host_ask() {
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.send_to(b"x", (GUEST, 9)).unwrap();
}

fn frame() -> [Piece; 1] {
    [piece(DATA + 0x4000, 12 + 60, 0)]
}

#[test]
fn frames_go_both_ways_and_a_driver_may_come_again() {
    let Some(mut driver) = up("osttest2", 1) else { return };
    for _driver in 0..2 {
        let before = received("osttest2");
        driver.write(DATA + 0x4000, &[0; 12]);
        driver.write(DATA + 0x4000 + 12, &[0xff; 60]);
        driver.send(1, &frame());
        assert_eq!(driver.wait_used(1), (0, 0));
        assert_eq!(received("osttest2"), before + 1);
        driver.send(0, &[piece(DATA, BUFFER, WRITE)]);
        have_host_ask();
        let (_, len) = driver.wait_used(0);
        assert!(len > 12 + 14, "{len}");
        assert_eq!(driver.read(DATA, 12)[10..], [1, 0], "one buffer");
        driver.reset();
        driver.bring_up(ALL_FEATURES);
    }
    assert_eq!(driver.function.faults(), 0);
}

#[test]
fn a_broken_ring_is_told_by_the_kernel_and_ends_with_a_reset() {
    let Some(mut driver) = up("osttest3", 1) else { return };
    // More on offer than the queue has entries, then a descriptor that is none, then one outside of memory.
    for (round, breaking) in [
        |driver: &mut Driver| driver.set_available(1, 1000),
        |driver: &mut Driver| driver.offer(1, SIZE + 3),
        |driver: &mut Driver| {
            let head = driver.describe_chain(1, &[piece(1 << 40, 72, 0)]);
            driver.offer(1, head);
        },
    ]
    .into_iter()
    .enumerate()
    {
        breaking(&mut driver);
        driver.kick(1);
        assert!(driver.gives_up(1), "round {round}");
        assert_eq!(driver.function.faults(), round as u64 + 1);
        // What is offered now is nobody's to take.
        driver.kick(1);
        driver.reset();
        driver.bring_up(ALL_FEATURES);
    }
    driver.send(1, &frame());
    assert_eq!(driver.wait_used(1), (0, 0));
}

#[test]
fn it_rests_and_goes_on_where_it_was() {
    let Some(mut driver) = up("osttest4", 1) else { return };
    driver.send(1, &frame());
    driver.wait_used(1);
    driver.function.pause().unwrap().recv_timeout(TIMEOUT).unwrap();
    driver.send(1, &frame());
    assert!(!driver.has_interrupt(2, std::time::Duration::from_millis(300)));
    driver.function.resume();
    driver.wait_used(1);
    assert_eq!(driver.used_index(1), 2);
}

#[test]
fn another_vector_is_signalled_while_it_runs() {
    let Some(mut driver) = up("osttest5", 1) else { return };
    driver.send(1, &frame());
    driver.wait_used(1);
    driver.set_common(0x16, &[1, 0]);
    driver.set_common(0x1a, &[0, 0]);
    // Signalled once because it may have missed something.
    driver.wait_interrupt(0);
    driver.send(1, &frame());
    driver.wait_interrupt(0);
    driver.take_used(1);
    assert!(!driver.has_interrupt(2, std::time::Duration::ZERO), "the vector before");
    driver.set_common(0x1a, &[0xff, 0xff]);
    // Until the device has heard of it, it may signal the one before.
    driver.function.pause().unwrap().recv_timeout(TIMEOUT).unwrap();
    driver.function.resume();
    driver.send(1, &frame());
    assert!(!driver.has_interrupt(0, std::time::Duration::from_millis(300)), "no vector at all");
    assert_eq!(driver.used_index(1), 3);
}

#[test]
fn pairs_are_used_as_the_driver_says() {
    let Some(mut driver) = up("osttest6", 2) else { return };
    // A frame on the second pair, which is not in use yet.
    driver.send(3, &frame());
    assert!(!driver.has_interrupt(4, std::time::Duration::from_millis(300)));
    for (pairs, answer) in [(2_u8, 0), (3, 1), (0, 1)] {
        driver.write(DATA, &[4, 0, pairs, 0, 0xee]);
        driver.send(4, &[piece(DATA, 4, 0), piece(DATA + 4, 1, WRITE)]);
        driver.wait_used(4);
        assert_eq!(driver.read(DATA + 4, 1), [answer], "{pairs} pairs");
    }
    driver.wait_used(3);
    assert_eq!(driver.function.faults(), 2, "what was asked in vain");
}

#[test]
fn descriptors_that_are_no_pairs_are_refused() {
    let refused = KernelNet::new(
        "net-0".parse().unwrap(),
        vec![tempfile::tempfile().unwrap().into()],
        MacAddr([2, 0, 0, 0, 0, 9]),
        Offloads::NONE,
        &memory(),
        TapControl::KERNEL,
    );
    assert!(refused.unwrap_err().to_string().contains("a server for each"));
    let files = (0..2).map(|_| tempfile::tempfile().unwrap().into()).collect();
    let (id, mac) = ("net-0".parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 9]));
    let refused = KernelNet::new(id, files, mac, Offloads::NONE, &memory(), TapControl::KERNEL).unwrap_err();
    assert!(refused.to_string().contains("cannot ask for the features of the host's vhost-net"), "{refused}");
}
