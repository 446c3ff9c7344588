//! The console through its registers and its worker.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::keyboard::MAX_TYPED;
use super::*;
use crate::model::{DeviceChange, WindowSize};
use crate::vmm::ports::PciFunction;
use crate::vmm::virtio::testing::*;

/// Queues.
const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
/// What the guest sends may be so long (`MAX_OUTPUT`).
const LONGEST: usize = 64 << 10;
/// How long nothing must happen.
const QUIET: Duration = Duration::from_millis(50);

/// Keeps what is written.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    driver: Driver,
    keyboard: Keyboard,
    taken: Arc<EventFd>,
    paper: Paper,
}

impl Bench {
    fn new() -> Self {
        let taken = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (keyboard, paper) = (Keyboard::new(Arc::clone(&taken)).unwrap(), Paper::default());
        let console = Console::new("console".parse().unwrap(), keyboard.clone(), paper.clone());
        Self { driver: Driver::probe(console), keyboard, taken, paper }
    }

    /// Offers a buffer of `len` bytes, and gives what comes.
    fn receive(&mut self, len: u32) -> Vec<u8> {
        self.driver.send(TO_GUEST, &[piece(DATA, len, WRITE)]);
        let (_, got) = self.driver.wait_used(TO_GUEST);
        self.driver.read(DATA, got as usize)
    }
}

#[test]
fn is_a_console_of_one_port_that_tells_the_size_of_its_window() {
    let mut bench = Bench::new();
    assert_eq!((bench.driver.config(0, 4), bench.driver.config(8, 4)), (0x1043_1af4, 0x0780_0001));
    assert_eq!(bench.driver.features() & 0xff_ffff, 1, "the size; no further ports, no early output");
    assert_eq!(bench.driver.function.vectors().len(), 3);
}

#[test]
fn prints_what_the_guest_sends_in_its_order() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.driver.write(DATA, b"hello world");
    bench.driver.send(FROM_GUEST, &[piece(DATA, 6, 0), piece(DATA + 6, 2, 0)]);
    assert_eq!(bench.driver.wait_used(FROM_GUEST), (0, 0));
    bench.driver.send(FROM_GUEST, &[piece(DATA + 8, 3, 0)]);
    assert_eq!(bench.driver.wait_used(FROM_GUEST), (2, 0));
    assert_eq!(bench.paper.take(), b"hello world");
    assert_eq!(bench.driver.function.faults(), 0);
}

#[test]
fn types_into_the_buffers_that_there_are_and_says_when_all_was_taken() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    // A buffer waits for input.
    bench.driver.send(TO_GUEST, &[piece(DATA, 64, WRITE)]);
    assert!(!bench.driver.has_interrupt(1, QUIET), "nothing was typed");
    assert_eq!(bench.keyboard.type_in(b"ls\n"), 3);
    assert_eq!(bench.driver.wait_used(TO_GUEST), (0, 3));
    assert_eq!(bench.driver.read(DATA, 4), b"ls\n\0");
    assert_eq!(bench.taken.read().unwrap(), 1);
    // Input waits for buffers, and is cut as they are.
    assert_eq!(bench.keyboard.type_in(b"abcdef"), 6);
    assert_eq!((bench.receive(4), bench.taken.read().is_err()), (b"abcd".to_vec(), true));
    assert_eq!((bench.receive(4), bench.taken.read().unwrap()), (b"ef".to_vec(), 1));
}

#[test]
fn input_that_the_guest_does_not_take_is_bounded_and_output_goes_on() {
    let mut bench = Bench::new();
    assert_eq!(bench.keyboard.type_in(&[b'k'; MAX_TYPED + 10]), MAX_TYPED, "before there is a driver, too");
    bench.driver.bring_up(ALL_FEATURES);
    assert_eq!(bench.keyboard.type_in(b"more"), 0);
    bench.driver.send(FROM_GUEST, &[piece(DATA, 5, 0)]);
    bench.driver.wait_used(FROM_GUEST);
    assert_eq!(bench.paper.take().len(), 5);
    assert_eq!(bench.receive(0x8000).len(), MAX_TYPED);
    assert_eq!(bench.keyboard.type_in(b"more"), 4);
    assert_eq!(bench.receive(64), b"more");
}

#[test]
fn input_waits_for_the_driver_that_comes_after_a_reset() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.driver.send(TO_GUEST, &[piece(DATA, 64, WRITE)]);
    bench.driver.reset();
    bench.keyboard.type_in(b"late");
    // Without event indices.
    bench.driver.bring_up(1 << 32);
    assert_eq!(bench.receive(64), b"late");
}

#[test]
fn a_pause_holds_both_ways_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.driver.function.pause().unwrap().recv().unwrap();
    bench.keyboard.type_in(b"typed");
    bench.driver.write(DATA + 0x1000, b"sent");
    bench.driver.send(TO_GUEST, &[piece(DATA, 64, WRITE)]);
    bench.driver.send(FROM_GUEST, &[piece(DATA + 0x1000, 4, 0)]);
    assert!(!bench.driver.has_interrupt(1, QUIET) && bench.paper.take().is_empty());
    bench.driver.function.resume();
    assert_eq!((bench.driver.wait_used(TO_GUEST).1, bench.driver.wait_used(FROM_GUEST).1), (5, 0));
    assert_eq!((bench.driver.read(DATA, 5), bench.paper.take()), (b"typed".to_vec(), b"sent".to_vec()));
}

#[test]
fn answers_requests_of_no_use_and_prints_no_more_than_is_kept() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.keyboard.type_in(b"x");
    for bad in [piece(DATA, 64, 0), piece(DATA, 0, WRITE)] {
        bench.driver.send(TO_GUEST, &[bad]);
        assert_eq!(bench.driver.wait_used(TO_GUEST).1, 0);
    }
    assert_eq!(bench.receive(64), b"x", "it was for a buffer that is one");
    bench.driver.send(FROM_GUEST, &[piece(DATA, LONGEST as u32 + 1, 0)]);
    assert_eq!(bench.driver.wait_used(FROM_GUEST).1, 0);
    assert_eq!(bench.paper.take().len(), LONGEST);
    bench.driver.send(FROM_GUEST, &[piece(DATA, 3, 0), piece(DATA, 3, WRITE)]);
    assert_eq!(bench.driver.wait_used(FROM_GUEST).1, 0);
    assert_eq!((bench.driver.status(), bench.driver.function.faults()), (15, 4));
}

#[test]
fn a_window_of_another_size_is_told_with_an_interrupt() {
    let mut bench = Bench::new();
    let size = |bench: &mut Bench| {
        let mut config = [0; 4];
        bench.driver.function_config(&mut config);
        config
    };
    let window = |columns, rows| DeviceChange::Window(WindowSize { columns, rows });
    assert_eq!(size(&mut bench), [0; 4], "not known");
    bench.driver.bring_up(ALL_FEATURES);
    while bench.driver.has_interrupt(0, Duration::ZERO) {}
    bench.driver.function.change(window(132, 43)).unwrap();
    bench.driver.wait_interrupt(0);
    assert_eq!(size(&mut bench), [132, 0, 43, 0]);
    bench.driver.reset();
    assert_eq!(size(&mut bench), [132, 0, 43, 0], "the next driver reads it");
    assert!(bench.driver.function.change(DeviceChange::Resized).is_err());
}
