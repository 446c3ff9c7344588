//! The NIC on a packet socket pair: frames in and out, and patience with a full or empty other side.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::vmm::ports::PciFunction;
use crate::vmm::virtio::testing::*;

const BUFFER: u32 = 2048;

fn up() -> (Driver, OwnedFd) {
    let (device, network) = net();
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    (driver, network)
}

/// What the tap would give: a header that says something, then the frame.
fn from_network(network: &OwnedFd, frame: &[u8]) {
    let mut bytes = vec![0xff; HEADER_LEN];
    bytes.extend(frame);
    rustix::io::write(network, &bytes).unwrap();
}

fn to_network(network: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; 70_000];
    let len = rustix::io::read(network, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn wait_frame(network: &OwnedFd) -> Vec<u8> {
    let deadline = std::time::Instant::now() + TIMEOUT;
    loop {
        match to_network(network) {
            Ok(frame) => return frame,
            Err(_) => assert!(std::time::Instant::now() < deadline, "no frame"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn tells_its_address_and_that_the_link_is_up() {
    let mut driver = Driver::probe(net().0);
    let mut config = [0; 8];
    driver.function_config(&mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 9, 1, 0]);
    assert_eq!(driver.features(), 1 << 5 | 1 << 16 | 1 << 28 | 1 << 29 | 1 << 32);
    assert_eq!((driver.config(0, 4), driver.config(8, 4)), (0x1041_1af4, 0x0200_0001));
}

#[test]
fn receives_into_the_guest_with_a_header_of_its_own() {
    let (mut driver, network) = up();
    driver.write(DATA, &[0xee; 64]);
    // Frames that come before there is a buffer wait in the tap.
    from_network(&network, &[1; 60]);
    from_network(&network, &[2; 61]);
    driver.send(RECEIVE as u16, &[piece(DATA, 5, WRITE), piece(DATA + 0x1000, BUFFER, WRITE)]);
    assert_eq!(driver.wait_used(0), (0, 72));
    assert_eq!(driver.read(DATA, 6), [0, 0, 0, 0, 0, 0xee]);
    assert_eq!(driver.read(DATA + 0x1000, 8), [0, 0, 0, 0, 0, 1, 0, 1]);
    driver.send(RECEIVE as u16, &[piece(DATA, BUFFER, WRITE)]);
    assert_eq!(driver.wait_used(0), (2, 73));
    assert_eq!(driver.read(DATA + 12, 61), [2; 61]);
    // And buffers that come before a frame wait in the ring.
    driver.send(RECEIVE as u16, &[piece(DATA, BUFFER, WRITE)]);
    assert!(!driver.has_interrupt(1, Duration::from_millis(20)));
    from_network(&network, &[3; 100]);
    assert_eq!(driver.wait_used(0), (3, 112));
}

#[test]
fn sends_frames_with_a_zero_header_whatever_the_guest_s_says() {
    let (mut driver, network) = up();
    driver.write(DATA, &[0xff; 12]);
    driver.write(DATA + 12, &[0xaa; 60]);
    driver.write(DATA + 0x1000, &[0xbb; 40]);
    driver.send(TRANSMIT as u16, &[piece(DATA, 72, 0), piece(DATA + 0x1000, 40, 0)]);
    assert_eq!(driver.wait_used(1), (0, 0));
    let frame = wait_frame(&network);
    assert_eq!(frame[..12], [0; 12]);
    assert_eq!((&frame[12..72], &frame[72..]), (&[0xaa; 60][..], &[0xbb; 40][..]));
}

#[test]
fn waits_for_room_in_a_full_tap_and_loses_nothing() {
    let (mut driver, network) = up();
    let mut sent = 0_u32;
    // The socket takes a bounded number; the next chain stays in the ring.
    let is_full = loop {
        driver.write(DATA + 12, &sent.to_le_bytes());
        driver.send(TRANSMIT as u16, &[piece(DATA, 12 + 60, 0)]);
        sent += 1;
        if !driver.has_interrupt(2, Duration::from_millis(200)) {
            break true;
        }
        driver.take_used(1);
        if sent > 5000 {
            break false;
        }
    };
    assert!(is_full, "the socket never filled up");
    for number in 0..sent {
        let frame = wait_frame(&network);
        assert_eq!(frame[12..16], number.to_le_bytes());
    }
    driver.wait_used(1);
    assert_eq!(driver.function.faults(), 0);
}

#[test]
fn drops_what_is_no_frame_and_goes_on() {
    let (mut driver, network) = up();
    let queue = TRANSMIT as u16;
    driver.send(queue, &[piece(DATA, 12, 0)]);
    assert_eq!(driver.wait_used(1), (0, 0), "empty");
    driver.send(queue, &[piece(DATA, 11, 0)]);
    assert_eq!(driver.wait_used(1), (1, 0), "no header");
    driver.send(queue, &[piece(DATA, 12 + 65_554, 0)]);
    assert_eq!(driver.wait_used(1), (2, 0), "too long");
    driver.send(queue, &[piece(DATA, 100, WRITE)]);
    assert_eq!(driver.wait_used(1), (3, 0), "wrong direction");
    driver.send(RECEIVE as u16, &[piece(DATA, 11, WRITE)]);
    assert_eq!(driver.wait_used(0), (4, 0), "no room for a header");
    assert_eq!((driver.status(), driver.function.faults()), (15, 5));
    assert_eq!(to_network(&network), Err(Errno::AGAIN));
    driver.send(queue, &[piece(DATA, 12 + 60, 0)]);
    assert_eq!(driver.wait_used(1), (5, 0));
    assert_eq!(wait_frame(&network).len(), 72);
}

#[test]
fn limits_hold_each_direction_on_its_own() {
    use crate::model::Rate;
    let (mut driver, network) = up();
    // The burst holds the longest frame, the second one waits.
    let limits = RateLimits { bandwidth: Rate::new("f", 1_000_000, 0).ok(), operations: Rate::new("f", 20, 1).ok() };
    driver.function.change(DeviceChange::Limits(limits)).unwrap();
    let start = std::time::Instant::now();
    for number in 0..5 {
        driver.send(TRANSMIT as u16, &[piece(DATA, 12 + 60, 0)]);
        assert_eq!(driver.wait_used(1), (number * 2, 0));
        from_network(&network, &[1; 60]);
        driver.send(RECEIVE as u16, &[piece(DATA, BUFFER, WRITE)]);
        assert_eq!(driver.wait_used(0), (number * 2 + 1, 72));
    }
    // Both directions side by side: four pauses of 50 ms, not eight.
    assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
    driver.function.change(DeviceChange::Limits(RateLimits::default())).unwrap();
    driver.send(TRANSMIT as u16, &[piece(DATA, 12 + 60, 0)]);
    driver.wait_used(1);
    assert_eq!(driver.function.faults(), 0);
}

#[test]
fn refuses_a_tap_that_would_block_its_thread() {
    let (blocking, _other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::empty(),
        None,
    )
    .unwrap();
    assert!(Net::new("net".parse().unwrap(), blocking, MacAddr([2, 0, 0, 0, 0, 1]), RateLimits::default()).is_err());
}

/// The thread's CPU time stands still while the tap has frames and the guest has no buffers.
#[test]
fn does_not_spin_without_receive_buffers() {
    let (mut driver, network) = up();
    for _ in 0..5 {
        from_network(&network, &[1; 60]);
    }
    driver.kick(RECEIVE as u16);
    let switches = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mine = tasks.filter_map(|task| {
            let path = task.ok()?.path();
            let stat = std::fs::read_to_string(path.join("stat")).ok()?;
            stat.contains("(vio-net-0)").then(|| {
                let fields: Vec<_> =
                    stat.rsplit(')').next().unwrap_or("").split_whitespace().map(String::from).collect();
                fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
            })
        });
        mine.sum::<u64>()
    };
    let before = switches();
    assert!(!driver.has_interrupt(1, Duration::from_millis(300)));
    // Other tests' NICs are in the sum: allow them 10 ticks of 10 ms; a spinning thread takes 30.
    assert!(switches() - before < 10);
}
