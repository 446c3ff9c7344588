//! The block device through its registers, its worker and io_uring, on a real file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use super::Block;
use crate::model::{DeviceChange, Rate, RateLimits};
use crate::vmm::ports::PciFunction;
use crate::vmm::virtio::testing::*;
use crate::vmm::virtio::{Stock, Workers};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const STATUS: u64 = DATA + 0x1_0000;

fn header(driver: &Driver, at: u64, kind: u32, sector: u64) -> Piece {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    driver.write(at, &bytes);
    piece(at, 16, 0)
}

/// Sends one request and returns its status and the length that the device says it wrote.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
    request_on(driver, 0, kind, sector, data)
}

fn request_on(driver: &mut Driver, queue: u16, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
    let mut pieces = vec![header(driver, DATA, kind, sector)];
    pieces.extend(data);
    pieces.push(piece(STATUS, 1, WRITE));
    driver.write(STATUS, &[0xee]);
    let head = driver.send(queue, &pieces);
    let (id, len) = driver.wait_used(queue);
    assert_eq!(id, u32::from(head));
    (driver.read(STATUS, 1)[0], len)
}

/// Sends a request about ranges (sector, sectors, flags) and returns its status.
fn ranges(driver: &mut Driver, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    driver.write(DATA + 0x800, &bytes);
    request(driver, kind, 0, &[piece(DATA + 0x800, bytes.len() as u32, 0)]).0
}

fn up(sectors: u64, is_read_only: bool) -> (Driver, File) {
    let (device, file) = block(sectors, is_read_only);
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    (driver, file)
}

#[test]
fn tells_capacity_limits_and_features() {
    let mut driver = Driver::probe(block(100, true).0);
    let mut config = [0; 60];
    driver.function_config(&mut config);
    assert_eq!(config[..8], 100_u64.to_le_bytes());
    assert_eq!(config[8..12], (1_u32 << 20).to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], [1, 0]);
    let read_only = driver.features();
    assert_eq!(read_only, 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 28 | 1 << 29 | 1 << 32);
    let mut driver = Driver::probe(block_with(100, false, 4).0);
    assert_eq!(driver.features(), read_only & !(1 << 5) | 1 << 12 | 1 << 13 | 1 << 14);
    driver.function_config(&mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[34..36], [4, 0]);
    assert_eq!((word(36), word(40), word(48), word(52), word(56)), (1 << 21, 1, 1 << 21, 1, 1));
    assert!(word(44).is_power_of_two());
    assert_eq!(driver.function.vectors().len(), 5);
}

#[test]
fn writes_flushes_and_reads_back() {
    for features in [ALL_FEATURES, !(1 << 9), !(1 << 29)] {
        let (device, mut file) = block(16, false);
        let mut driver = Driver::probe(device);
        driver.bring_up(features);
        driver.write(DATA + 0x1000, &[0xab; 700]);
        driver.write(DATA + 0x3000, &[0xcd; 324]);
        let out = [piece(DATA + 0x1000, 700, 0), piece(DATA + 0x3000, 324, 0)];
        assert_eq!(request(&mut driver, OUT, 3, &out), (0, 1));
        if features & 1 << 9 != 0 {
            assert_eq!(request(&mut driver, FLUSH, 0, &[]), (0, 1));
        }
        let mut bytes = [0; 1024];
        file.seek(SeekFrom::Start(3 * 512)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        assert!(bytes[..700].iter().all(|&byte| byte == 0xab) && bytes[700..].iter().all(|&byte| byte == 0xcd));

        let back = [piece(DATA + 0x5000, 100, WRITE), piece((1 << 20) - 200, 924, WRITE)];
        assert_eq!(request(&mut driver, IN, 3, &back), (0, 1025));
        assert_eq!(driver.read(DATA + 0x5000, 100), &bytes[..100]);
        assert_eq!(driver.read((1 << 20) - 200, 924), &bytes[100..], "across two regions of guest memory");
    }
}

#[test]
fn gives_its_id_as_the_serial_number() {
    let (mut driver, _file) = up(8, false);
    assert_eq!(request(&mut driver, GET_ID, 0, &[piece(DATA + 0x1000, 20, WRITE)]), (0, 21));
    assert_eq!(driver.read(DATA + 0x1000, 20), b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn bad_requests_get_a_bad_status_and_the_device_goes_on() {
    let (mut driver, _file) = up(8, false);
    let data = |len, flags| [piece(DATA + 0x1000, len, flags)];
    assert_eq!(request(&mut driver, IN, 8, &data(512, WRITE)), (1, 1), "past the end");
    assert_eq!(request(&mut driver, IN, u64::MAX, &data(512, WRITE)), (1, 1), "overflow");
    assert_eq!(request(&mut driver, IN, 0, &data(511, WRITE)), (1, 1), "not whole sectors");
    assert_eq!(request(&mut driver, IN, 0, &data(512, 0)), (1, 1), "wrong direction");
    assert_eq!(request(&mut driver, 77, 0, &data(512, WRITE)), (2, 1), "unknown");
    assert_eq!(request(&mut driver, IN, 0, &[piece(3 << 20, 512, WRITE)]), (1, 1), "not memory");
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.function.faults(), 6);
    assert_eq!(request(&mut driver, IN, 7, &data(512, WRITE)), (0, 513));
}

#[test]
fn discards_free_blocks_and_zeroes_are_zero() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    for features in [ALL_FEATURES, !(1 << 9)] {
        let (device, file) = block(4096, false);
        file.write_all_at(&vec![5; 2 << 20], 0).unwrap();
        let mut driver = Driver::probe(device);
        driver.bring_up(features);
        let before = file.metadata().unwrap().blocks();
        assert_eq!(ranges(&mut driver, DISCARD, &[(0, 2048, 0)]), 0);
        assert!(file.metadata().unwrap().blocks() + 2048 <= before, "nothing was freed");
        for (sector, flags) in [(2048, 0), (2058, 1)] {
            assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(sector, 3, flags)]), 0);
        }
        let mut bytes = vec![0; 2 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let is_zero = |sector: usize| sector < 2051 || (2058..2061).contains(&sector);
        for (sector, data) in bytes.chunks(512).enumerate() {
            assert!(data.iter().all(|&byte| byte == if is_zero(sector) { 0 } else { 5 }), "{sector}");
        }
        assert_eq!(driver.function.faults(), 0);
    }
}

#[test]
fn bad_ranges_get_a_bad_status_and_change_nothing() {
    use std::os::unix::fs::FileExt;
    let (mut driver, file) = up(64, false);
    file.write_all_at(&[5; 64 * 512], 0).unwrap();
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [(64, 1, 0), (63, 2, 0), (0, 0, 0), (0, u32::MAX, 0), (u64::MAX, 1, 0), (u64::MAX, u32::MAX, 0)] {
            assert_eq!(ranges(&mut driver, kind, &[bad]), 1, "{kind} {bad:?}");
        }
        assert_eq!(ranges(&mut driver, kind, &[(0, 1, 0), (1, 1, 0)]), 1, "two ranges");
        assert_eq!(ranges(&mut driver, kind, &[]), 1, "no range");
        assert_eq!(ranges(&mut driver, kind, &[(0, 1, 2)]), 2, "an unknown flag");
        assert_eq!(request(&mut driver, kind, 0, &[piece(DATA + 0x800, 15, 0)]).0, 1, "part of a range");
        assert_eq!(request(&mut driver, kind, 0, &[piece(DATA + 0x800, 16, WRITE)]).0, 1, "wrong direction");
        assert_eq!(request(&mut driver, kind, 0, &[piece(3 << 20, 16, 0)]).0, 1, "not memory");
    }
    assert_eq!(ranges(&mut driver, DISCARD, &[(0, 1, 1)]), 2, "unmap goes with write zeroes");
    let mut bytes = [0; 64 * 512];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 5));
    assert_eq!(driver.status(), 15);
}

#[test]
fn every_queue_is_served_and_answers_on_its_own_vector() {
    let (device, _file) = block_with(64, false, 4);
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    for round in 0..3 {
        for queue in [3, 0, 2, 1] {
            let sector = u64::from(queue) * 2;
            let filled = 16 * round + queue as u8;
            driver.write(DATA + 0x1000, &[filled; 512]);
            assert_eq!(request_on(&mut driver, queue, OUT, sector, &[piece(DATA + 0x1000, 512, 0)]), (0, 1));
            let back = [piece(DATA + 0x2000, 512, WRITE)];
            assert_eq!(request_on(&mut driver, 3 - queue, IN, sector, &back), (0, 513));
            assert_eq!(driver.read(DATA + 0x2000, 512), vec![filled; 512]);
        }
    }
}

/// More requests on all queues together than the engine takes at once: none is forgotten.
#[test]
fn full_queues_are_all_served_to_the_end() {
    let (device, _file) = block_with(64, false, 8);
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    // The same chain over and over.
    let pieces = [header(&driver, DATA, IN, 0), piece(DATA + 0x1000, 512, WRITE), piece(STATUS, 1, WRITE)];
    let heads: Vec<_> = (0..8).map(|queue| driver.describe_chain(queue, &pieces)).collect();
    for round in 0..40_u16 {
        for (queue, &head) in (0..).zip(&heads) {
            for _ in 0..SIZE {
                driver.offer(queue, head);
            }
            driver.kick(queue);
        }
        let deadline = std::time::Instant::now() + TIMEOUT;
        for queue in 0..8 {
            while driver.used_index(queue) != (round + 1) * SIZE {
                assert!(std::time::Instant::now() < deadline, "queue {queue} stopped in round {round}");
                std::thread::yield_now();
            }
        }
    }
    assert_eq!(driver.function.faults(), 0);
}

#[test]
fn direct_io_takes_unaligned_buffers_too() {
    use rustix::fs::OFlags;
    let (device, file) = block(2048, false);
    drop(device);
    if rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file).unwrap() | OFlags::DIRECT).is_err() {
        return crate::sys::absence::skip("direct I/O in the directory of temporary files");
    }
    let device =
        Block::new("disk-0".parse().unwrap(), file.try_clone().unwrap(), false, 1, RateLimits::default()).unwrap();
    let mut driver = Driver::probe(device);
    driver.bring_up(ALL_FEATURES);
    for (number, address, len) in [(1, 0x1000, 4096), (2, 0x1001, 4096), (3, 0x1010, 0x8000), (4, 0x1200, 512)] {
        let bytes: Vec<u8> = (0..len).map(|at: u32| (at * 31 + number) as u8).collect();
        let at = DATA + 0x2_0000 + address;
        driver.write(at, &bytes);
        // In two pieces whose lengths are no sectors.
        let cut = if number == 2 { 100 } else { len / 2 };
        let pieces = |flags| [piece(at, cut, flags), piece(at + u64::from(cut), len - cut, flags)];
        assert_eq!(request(&mut driver, OUT, 8, &pieces(0)), (0, 1), "{number}");
        driver.write(at, &vec![0; len as usize]);
        assert_eq!(request(&mut driver, IN, 8, &pieces(WRITE)), (0, len + 1), "{number}");
        assert_eq!(driver.read(at, len as usize), bytes, "{number}");
    }
}

#[test]
fn a_disk_that_grew_tells_its_driver_and_one_that_shrank_does_not() {
    let (mut driver, file) = up(8, false);
    while driver.has_interrupt(0, std::time::Duration::ZERO) {}
    let past_the_end = [piece(DATA + 0x1000, 512, WRITE)];
    assert_eq!(request(&mut driver, IN, 8, &past_the_end).0, 1);
    let generation = driver.common::<1>(0x15);
    file.set_len(16 * 512).unwrap();
    driver.function.change(DeviceChange::Resized).unwrap();
    driver.wait_interrupt(0);
    assert_ne!(driver.common::<1>(0x15), generation);
    let mut capacity = [0; 8];
    driver.function_config(&mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 16);
    assert_eq!(request(&mut driver, IN, 8, &past_the_end), (0, 513));
    assert_eq!(request(&mut driver, IN, 16, &past_the_end).0, 1);
    for len in [15 * 512, 16 * 512 + 1, 0] {
        file.set_len(len).unwrap();
        let refused = driver.function.change(DeviceChange::Resized).unwrap_err();
        assert!(refused.to_string().contains(&format!("has {len} bytes")), "{refused}");
    }
    driver.function_config(&mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 16, "what was refused changed nothing");
    assert!(!driver.has_interrupt(0, std::time::Duration::ZERO));
    // Without a driver there is nobody to interrupt, and the next one sees the length.
    driver.reset();
    file.set_len(32 * 512).unwrap();
    driver.function.change(DeviceChange::Resized).unwrap();
    driver.function_config(&mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 32);
    let generation = driver.common::<1>(0x15);
    driver.reset();
    assert_eq!(driver.common::<1>(0x15), generation, "a reset hides no change");
    let mut rng = Driver::probe(rng());
    assert!(rng.function.change(DeviceChange::Resized).is_err());
}

#[test]
fn what_exceeds_the_limits_waits_and_is_served_then() {
    let rate = |per_second| Rate::new("f", per_second, 0).ok();
    let cases = [
        RateLimits { bandwidth: rate(100_000), operations: None },
        RateLimits { bandwidth: None, operations: rate(100) },
    ];
    for limits in cases {
        let (device, _file) = block_with(64, false, 2);
        let mut driver = Driver::probe(device);
        driver.bring_up(ALL_FEATURES);
        driver.function.change(DeviceChange::Limits(limits)).unwrap();
        let start = std::time::Instant::now();
        // 40 requests of 512 bytes and 17 of header and status; the burst is a tenth of a second's worth.
        for number in 0..40_u16 {
            assert_eq!(request_on(&mut driver, number % 2, IN, 0, &[piece(DATA + 0x1000, 512, WRITE)]), (0, 513));
        }
        let least = if limits.bandwidth.is_some() { 40 * 529 * 10 - 100_000 } else { 300_000 };
        assert!(start.elapsed().as_micros() >= least, "{limits:?}: {:?}", start.elapsed());
        // One that waits for long is let go when the limit is lifted.
        let slow = RateLimits { bandwidth: rate(1), operations: None };
        driver.function.change(DeviceChange::Limits(slow)).unwrap();
        let pieces = [header(&driver, DATA, IN, 0), piece(DATA + 0x1000, 512, WRITE), piece(STATUS, 1, WRITE)];
        driver.send(0, &pieces);
        assert!(!driver.has_interrupt(1, std::time::Duration::from_millis(20)));
        driver.function.change(DeviceChange::Limits(RateLimits::default())).unwrap();
        driver.wait_used(0);
        // And a reset does not wait for it.
        driver.function.change(DeviceChange::Limits(slow)).unwrap();
        driver.send(0, &pieces);
        driver.send(1, &pieces);
        driver.reset();
    }
}

#[test]
fn a_disk_that_came_later_does_all_that_one_of_before_does_and_leaves_nothing_of_it_to_the_next() {
    let (workers, stock) = (Workers::new(|| Ok(())), Stock::default());
    workers.seal(1).unwrap();
    stock.fill(1).unwrap();
    let rate = Rate::new("f", 1, 0).ok();
    let slow = RateLimits { bandwidth: rate, operations: rate };
    let sector = [piece(DATA + 0x1000, 512, WRITE)];
    for round in 0..3 {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * 512).unwrap();
        let disk = || {
            let (id, image) = ("disk-0".parse().unwrap(), file.try_clone().unwrap());
            Block::with_stock(id, image, false, 2, RateLimits::default(), &stock)
        };
        let mut driver = Driver::probe_with(disk().unwrap(), &workers);
        assert_eq!(disk().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        driver.bring_up(ALL_FEATURES);
        for queue in 0..2 {
            assert_eq!(request_on(&mut driver, queue, IN, 0, &sector), (0, 513), "round {round}");
        }
        assert_eq!(ranges(&mut driver, DISCARD, &[(0, 8, 0)]), 0, "round {round}");
        file.set_len(16 * 512).unwrap();
        driver.function.change(DeviceChange::Resized).unwrap();
        assert_eq!(request(&mut driver, IN, 8, &sector), (0, 513));
        // Left while it stands still, or while a request waits by its limits: neither is the next one's.
        driver.function.change(DeviceChange::Limits(slow)).unwrap();
        let pieces = [header(&driver, DATA, IN, 0), sector[0], piece(STATUS, 1, WRITE)];
        driver.send(0, &pieces);
        if round == 0 {
            driver.function.pause().unwrap().recv().unwrap();
        }
        while !driver.function.leave() {}
        assert!(driver.function.pause().is_none() && driver.function.change(DeviceChange::Resized).is_err());
        driver.function.resume();
    }
}

#[test]
fn a_read_only_disk_is_never_written() {
    let (mut driver, mut file) = up(8, true);
    driver.write(DATA + 0x1000, &[0xff; 512]);
    assert_eq!(request(&mut driver, OUT, 0, &[piece(DATA + 0x1000, 512, 0)]), (1, 1));
    assert_eq!(ranges(&mut driver, DISCARD, &[(0, 1, 0)]), 1);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(0, 1, 0)]), 1);
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 8 * 512]);
}

#[test]
fn an_image_that_shrank_gives_errors_not_zeros() {
    let (mut driver, file) = up(8, false);
    file.set_len(512).unwrap();
    assert_eq!(request(&mut driver, IN, 0, &[piece(DATA + 0x1000, 1024, WRITE)]), (1, 1));
}

#[test]
fn refuses_images_that_cannot_serve() {
    let id = || "disk".parse().unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    assert!(Block::new(id(), file.reopen().unwrap(), false, 1, RateLimits::default()).is_err(), "empty");
    file.write_all(&[0; 1000]).unwrap();
    assert!(Block::new(id(), file.reopen().unwrap(), false, 1, RateLimits::default()).is_err(), "no whole sectors");
    file.write_all(&[0; 24]).unwrap();
    assert!(
        Block::new(id(), File::open(file.path()).unwrap(), false, 1, RateLimits::default()).is_err(),
        "not writable"
    );
    assert!(
        Block::new(id(), File::options().write(true).open(file.path()).unwrap(), true, 1, RateLimits::default())
            .is_err(),
        "not readable"
    );
    assert!(Block::new(id(), File::open(file.path()).unwrap(), true, 1, RateLimits::default()).is_ok());
    assert!(Block::new(id(), file.reopen().unwrap(), false, 1, RateLimits::default()).is_ok());
}

/// More chains than the engine takes at once, all offered before the first is looked at.
#[test]
fn a_full_ring_is_served_to_the_end() {
    let (device, mut file) = block(512, false);
    // In the page cache: reads complete within their submission.
    file.write_all(&[1; 512 * 512]).unwrap();
    let mut driver = Driver::probe(device);
    driver.negotiate(ALL_FEATURES);
    driver.enable_interrupts();
    // 256 entries of indirect requests, in rings of their own.
    let (size, rings) = (256_u16, [0x1_0000_u64, 0x1_4000, 0x1_8000]);
    driver.set_up_queue(0, size, rings);
    for index in 0..size {
        let table = DATA + u64::from(index) * 0x400;
        let data = piece(0x10_0000 + u64::from(index) * 512, 512, WRITE);
        let pieces = [header(&driver, table + 0x100, IN, index.into()), data, piece(table + 0x300, 1, WRITE)];
        for (number, one) in pieces.into_iter().enumerate() {
            let flags = one.flags | if number < 2 { NEXT } else { 0 };
            driver.describe(table, number as u16, Piece { flags, ..one }, number as u16 + 1);
        }
        driver.write(table + 0x300, &[0xee]);
        driver.describe(rings[0], index, piece(table, 48, 4), 0);
        driver.write(rings[1] + 4 + 2 * u64::from(index), &index.to_le_bytes());
    }
    driver.write(rings[1] + 2, &size.to_le_bytes());
    driver.driver_ok();
    let deadline = std::time::Instant::now() + TIMEOUT;
    while driver.read(rings[2] + 2, 2) != size.to_le_bytes() {
        assert!(std::time::Instant::now() < deadline, "stopped at {:?}", driver.read(rings[2] + 2, 2));
        std::thread::yield_now();
    }
    assert!((0..256_u64).all(|index| driver.read(DATA + index * 0x400 + 0x300, 1) == [0]));
}

/// Resets with requests in flight: nothing of an earlier life is answered in a later one.
#[test]
fn survives_resets_with_requests_in_flight() {
    let (mut driver, _file) = up(64, false);
    for round in 0..300 {
        for _ in 0..round % 5 {
            let pieces = [header(&driver, DATA, OUT, 0), piece(DATA + 0x1000, 4096, 0), piece(STATUS, 1, WRITE)];
            driver.send(0, &pieces);
        }
        driver.reset();
        driver.bring_up(ALL_FEATURES);
        assert_eq!(driver.used_index(0), 0);
    }
    while driver.has_interrupt(1, std::time::Duration::ZERO) {}
    assert_eq!(request(&mut driver, IN, 0, &[piece(DATA + 0x1000, 512, WRITE)]), (0, 513));
}
