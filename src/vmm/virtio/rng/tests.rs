//! The entropy device through its registers and its worker.

use super::*;
use crate::vmm::virtio::testing::*;

#[test]
fn fills_buffers_with_a_bound() {
    let mut driver = Driver::probe(rng());
    assert_eq!((driver.config(0, 4), driver.config(8, 4)), (0x1044_1af4, 0x00ff_0001));
    assert_eq!(driver.regions[4].len, 0, "no device configuration");
    driver.bring_up(ALL_FEATURES);
    driver.send(0, &[piece(DATA, 40, WRITE), piece(DATA + 0x4000, 24, WRITE)]);
    assert_eq!(driver.wait_used(0), (0, 64));
    assert_ne!(driver.read(DATA, 40), [0; 40]);
    assert_ne!(driver.read(DATA + 0x4000, 24), [0; 24]);
    driver.send(0, &[piece(DATA, 0x8000, WRITE)]);
    assert_eq!(driver.wait_used(0), (2, MAX_FILL as u32));
    assert_eq!(driver.read(DATA + MAX_FILL, 64), [0; 64], "beyond the bound nothing is written");
}

#[test]
fn answers_a_request_without_a_buffer() {
    let mut driver = Driver::probe(rng());
    driver.bring_up(ALL_FEATURES);
    driver.send(0, &[piece(DATA, 64, 0)]);
    assert_eq!(driver.wait_used(0), (0, 0));
    driver.send(0, &[piece(DATA, 0, WRITE)]);
    assert_eq!(driver.wait_used(0), (1, 0));
    assert_eq!((driver.status(), driver.function.faults()), (15, 2));
}
