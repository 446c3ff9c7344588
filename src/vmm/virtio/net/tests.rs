//! The NIC on packet socket pairs: frames in and out, offloads, pairs, and patience with a full or empty other side.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::offload::HEADER_LEN;
use super::*;
use crate::model::{DeviceChange, MacAddr, RateLimits};
use crate::sys::tap::Offloads;
use crate::vmm::ports::PciFunction;
use crate::vmm::virtio::testing::*;

const BUFFER: u32 = 2048;
/// Queues of the first pair.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

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
    let mut config = [0; 12];
    driver.function_config(&mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0, 0]);
    assert_eq!(driver.features(), 1 << 5 | 1 << 15 | 1 << 16 | 1 << 28 | 1 << 29 | 1 << 32);
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
    let new = |taps| {
        let (mac, limits) = (MacAddr([2, 0, 0, 0, 0, 1]), RateLimits::default());
        Net::new("net".parse().unwrap(), taps, mac, Offloads::NONE, limits, TapControl::KERNEL)
    };
    assert!(new(vec![blocking]).is_err());
    assert!(new(vec![]).is_err());
}

/// The thread's CPU time stands still while the tap has frames and the guest has no buffers.
#[test]
fn does_not_spin_without_receive_buffers() {
    // Of a name that no other test's thread has.
    let (device, networks) = net_of("spins", 1, Offloads::NONE);
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    for _ in 0..5 {
        from_network(&networks[0], &[1; 60]);
    }
    driver.kick(RECEIVE as u16);
    let ticks = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let stat = stats.find(|stat| stat.contains("(vio-spins)"))?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().map(String::from).collect();
        Some(fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
    };
    // It has its name once it has come to run.
    let deadline = std::time::Instant::now() + TIMEOUT;
    let before = loop {
        if let Some(ticks) = ticks() {
            break ticks;
        }
        assert!(std::time::Instant::now() < deadline, "no thread");
        std::thread::yield_now();
    };
    assert!(!driver.has_interrupt(1, Duration::from_millis(300)));
    // Ticks are 10 ms: a spinning thread takes 30 of them, or its share on a busy machine.
    assert!(ticks().expect("its thread has ended") - before < 3);
}

/// A header as struct virtio_net_hdr_v1, without its number of buffers.
fn header(flags: u8, gso: u8, fields: [u16; 4]) -> Vec<u8> {
    let mut bytes = vec![flags, gso];
    bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn offloads_pass_as_they_were_negotiated_and_no_other_header_does() {
    let (device, networks) = net_with(1, Offloads::ALL);
    let mut driver = Driver::probe(device);
    let offered = driver.features();
    for bit in [0, 1, 7, 8, 11, 12, 15, 54, 55, 56] {
        assert!(offered & 1 << bit != 0, "{bit}");
    }
    driver.bring_up(ALL_FEATURES);
    let tso = header(1, 1, [54, 1448, 34, 16]);
    driver.write(DATA, &tso);
    driver.write(DATA + 12, &[0xaa; 3000]);
    driver.send(TRANSMIT as u16, &[piece(DATA, 3012, 0)]);
    driver.wait_used(1);
    let sent = wait_frame(&networks[0]);
    assert_eq!((&sent[..12], sent.len()), (&tso[..], 3012));
    for lie in [header(1, 1, [54, 0, 34, 16]), header(1, 0x81, [54, 1448, 34, 16]), header(1, 0, [0, 0, 60, 16])] {
        let before = driver.function.faults();
        driver.write(DATA, &lie);
        driver.send(TRANSMIT as u16, &[piece(DATA, 72, 0)]);
        driver.wait_used(1);
        assert_eq!(driver.function.faults(), before + 1);
        assert_eq!(to_network(&networks[0]), Err(Errno::AGAIN));
    }
    // A driver that took nothing sends what it likes in a header: nobody looks.
    driver.reset();
    driver.bring_up(1 << 32);
    driver.write(DATA, &tso);
    driver.send(TRANSMIT as u16, &[piece(DATA, 72, 0)]);
    driver.wait_used(1);
    assert_eq!(wait_frame(&networks[0])[..12], [0; 12]);
}

#[test]
fn a_long_frame_is_spread_over_buffers_that_appear_together() {
    let (device, networks) = net_with(1, Offloads::ALL);
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    for index in 0..u64::from(SIZE) {
        let head = driver.describe_chain(0, &[piece(DATA + index * u64::from(BUFFER), BUFFER, WRITE)]);
        driver.offer(0, head);
    }
    driver.kick(0);
    let frame: Vec<u8> = (0..5000_u32).map(|at| (at * 7) as u8).collect();
    let from_host = header(1, 1, [54, 1448, 34, 16]);
    rustix::io::write(&networks[0], &[&from_host[..], &frame[..]].concat()).unwrap();
    driver.wait_interrupt(1);
    assert_eq!(driver.used_index(0), 3);
    let used: Vec<_> = (0..3).map(|_| driver.take_used(0)).collect();
    assert_eq!(used, [(0, BUFFER), (1, BUFFER), (2, 12 + 5000 - 2 * BUFFER)]);
    let seen = driver.read(DATA, 12 + 5000);
    assert_eq!((&seen[..10], &seen[10..12]), (&from_host[..10], &[3, 0][..]));
    assert!(seen[12..] == frame);
    // With fewer buffers than the longest frame needs it waits for more, and a short one then takes one.
    rustix::io::write(&networks[0], &[&from_host[..], &[1; 60][..]].concat()).unwrap();
    assert!(!driver.has_interrupt(1, Duration::from_millis(50)));
    for index in 0..3 {
        let head = driver.describe_chain(0, &[piece(DATA + index * u64::from(BUFFER), BUFFER, WRITE)]);
        driver.offer(0, head);
    }
    driver.kick(0);
    driver.wait_interrupt(1);
    assert_eq!(driver.take_used(0), (3, 72));
    assert_eq!(driver.read(DATA + 3 * u64::from(BUFFER) + 10, 3), [1, 0, 1]);
    // What was taken and not used is the driver's again after a reset.
    driver.reset();
    driver.bring_up(ALL_FEATURES & !(1 << 15));
    driver.send(0, &[piece(DATA, BUFFER, WRITE)]);
    from_network(&networks[0], &[2; 60]);
    assert_eq!(driver.wait_used(0), (0, 72));
}

/// Sends a command and gives the answer.
fn command(driver: &mut Driver, queue: u16, bytes: &[u8]) -> u8 {
    driver.write(DATA + 0x4000, bytes);
    driver.write(DATA + 0x5000, &[0xee]);
    driver.send(queue, &[piece(DATA + 0x4000, bytes.len() as u32, 0), piece(DATA + 0x5000, 1, WRITE)]);
    assert_eq!(driver.wait_used(queue).1, 1);
    driver.read(DATA + 0x5000, 1)[0]
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let (device, networks) = net_with(3, Offloads::NONE);
    let mut driver = Driver::probe(device);
    assert_eq!(driver.features() & (1 << 17 | 1 << 22), 1 << 17 | 1 << 22);
    let mut config = [0; 12];
    driver.function_config(&mut config);
    assert_eq!(config[8..10], [3, 0]);
    driver.bring_up(ALL_FEATURES);
    assert_eq!(driver.function.vectors().len(), 8);
    let control = 6;
    // Frames that come by the third pair wait until it is used.
    from_network(&networks[2], &[3; 60]);
    driver.send(4, &[piece(DATA, BUFFER, WRITE)]);
    assert!(!driver.has_interrupt(5, Duration::from_millis(50)));
    for bad in [
        &[4, 0, 0, 0][..],
        &[4, 0, 4, 0],
        &[4, 0, 0xff, 0xff],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
    ] {
        assert_eq!(command(&mut driver, control, bad), 1, "{bad:?}");
    }
    assert_eq!(command(&mut driver, control, &[4, 0, 3, 0]), 0);
    driver.wait_interrupt(5);
    assert_eq!(driver.take_used(4).1, 72);
    driver.write(DATA, &[0; 12]);
    driver.send(5, &[piece(DATA, 72, 0)]);
    driver.wait_used(5);
    assert_eq!(wait_frame(&networks[2]).len(), 72, "its own network");
    // And not any more after a reset, nor for a driver that knows of one pair only.
    driver.reset();
    driver.bring_up(ALL_FEATURES & !(1 << 22));
    from_network(&networks[2], &[3; 60]);
    driver.send(4, &[piece(DATA, BUFFER, WRITE)]);
    assert!(!driver.has_interrupt(5, Duration::from_millis(50)));
    // Its control queue is the third.
    assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 0);
    from_network(&networks[0], &[1; 60]);
    driver.send(0, &[piece(DATA, BUFFER, WRITE)]);
    assert_eq!(driver.wait_used(0).1, 72);
}
