//! The balloon through its registers and its worker, in memory from which pages can go.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::statistics::PERIOD;
use crate::model::DeviceChange;
use crate::sys::counter_page::CounterPage;
use crate::sys::reclaim::Reclaim;
use crate::vmm::ports::{BalloonCounters, ChangeError, PciFunction};
use crate::vmm::virtio::testing::*;

const PAGE: u64 = 4096;
/// Pages that no ring and no request is in.
const SPARE: u64 = 0x10_0000;
/// All memory of these tests.
const ALL: u64 = 3 << 20;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// By Linux' count, and by the specification's.
const REPORTING: [u16; 2] = [3, 4];

/// Words that a balloon counts in, in the order of [`BalloonCounters`].
#[derive(Clone, Copy)]
enum Word {
    Target,
    Held,
    Removed,
    Reported,
    Kept,
    ToldAt,
    Told,
    FirstStatistic,
}

/// A balloon with its driver, and what it counts.
struct Bench {
    driver: Driver,
    file: std::fs::File,
    reclaim: Reclaim,
}

impl Bench {
    fn new() -> Self {
        Self::with(PERIOD)
    }

    fn with(period: Duration) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        let page = CounterPage::map(file.try_clone().unwrap(), PAGE as usize).unwrap();
        let word = |word: usize| page.counter(Some(8 * word));
        let counters = BalloonCounters {
            target: word(Word::Target as usize),
            held: word(Word::Held as usize),
            removed: word(Word::Removed as usize),
            reported: word(Word::Reported as usize),
            kept: word(Word::Kept as usize),
            told_at: word(Word::ToldAt as usize),
            told: word(Word::Told as usize),
            statistics: (0..10).map(|tag| word(Word::FirstStatistic as usize + tag)).collect(),
        };
        let reclaim = Reclaim::default();
        let driver = Driver::probe(balloon(&reclaim, counters).with_period(period));
        Self { driver, file, reclaim }
    }

    fn word(&self, number: usize) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 8 * number as u64).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn count(&self, word: Word) -> u64 {
        self.word(word as usize)
    }

    /// Writes something into each of these pages.
    fn fill(&self, pages: std::ops::Range<u64>) {
        for page in pages {
            self.driver.write(page * PAGE, &[7; 8]);
        }
    }

    /// First bytes of these pages.
    fn firsts(&self, pages: std::ops::Range<u64>) -> Vec<u8> {
        pages.map(|page| self.driver.read(page * PAGE, 1)[0]).collect()
    }

    /// Sends page numbers and waits for the answer.
    fn name_pages(&mut self, queue: u16, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.driver.write(DATA, &bytes);
        let head = self.driver.send(queue, &[piece(DATA, bytes.len() as u32, 0)]);
        assert_eq!(self.driver.wait_used(queue), (head.into(), 0));
    }

    fn keep(&mut self, keep_mib: Option<u64>) {
        self.driver.function.change(DeviceChange::Balloon { keep_mib }).unwrap();
    }

    /// `num_pages` and `actual`.
    fn config(&mut self) -> [u8; 8] {
        let mut config = [0; 8];
        self.driver.function_config(&mut config);
        config
    }
}

/// Number of a spare page.
fn spare(page: u64) -> u32 {
    u32::try_from(SPARE / PAGE + page).unwrap()
}

#[test]
fn a_driver_finds_a_balloon_and_learns_how_large_it_is_to_be() {
    let mut bench = Bench::new();
    assert_eq!((bench.driver.config(0, 4), bench.driver.config(8, 4)), (0x1045_1af4, 0x00ff_0001));
    assert_eq!(bench.driver.features() & 0xff_ffff, 1 << 1 | 1 << 2 | 1 << 5, "only what there is");
    bench.driver.bring_up(ALL_FEATURES);
    assert_eq!(bench.config(), [0; 8]);
    assert_eq!(bench.count(Word::Target), 0);
    bench.keep(Some(1));
    bench.driver.wait_interrupt(0);
    assert_eq!(bench.config(), [0, 2, 0, 0, 0, 0, 0, 0], "2 MiB are 512 pages");
    assert_eq!(bench.count(Word::Target), 2 << 20);
    bench.keep(Some(1 << 40));
    assert_eq!(bench.config(), [0; 8], "more than there is");
    bench.keep(None);
    assert_eq!(bench.count(Word::Target), 0);
    let refused = bench.driver.function.change(DeviceChange::Resized).unwrap_err();
    assert!(matches!(refused, ChangeError::Unsupported));
}

#[test]
fn what_is_inflated_is_the_host_s_and_what_is_deflated_is_counted_back() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.fill(0x100..0x108);
    bench.name_pages(INFLATE, &[spare(3), spare(1), spare(2), spare(6)]);
    assert_eq!(bench.firsts(0x100..0x108), [7, 0, 0, 0, 7, 7, 0, 7]);
    assert_eq!((bench.count(Word::Held), bench.count(Word::Removed)), (4 * PAGE, 4 * PAGE));
    bench.name_pages(DEFLATE, &[spare(1), spare(6)]);
    assert_eq!((bench.count(Word::Held), bench.count(Word::Kept)), (2 * PAGE, 0));
    bench.fill(0x101..0x102);
    assert_eq!(bench.firsts(0x101..0x102), [7], "it is memory again");
    assert_eq!(bench.driver.function.faults(), 0);
    bench.driver.reset();
    assert_eq!(bench.count(Word::Held), 0, "a driver that comes anew has given up nothing");
}

#[test]
fn pages_that_are_none_cost_an_offence_and_the_others_are_taken() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.fill(0x100..0x103);
    // Behind the first two regions there is a hole, and nothing from 5 MiB on.
    bench.name_pages(INFLATE, &[spare(0), 0x200, 0x500, u32::MAX, spare(2), spare(2)]);
    assert_eq!(bench.firsts(0x100..0x103), [0, 7, 0]);
    assert_eq!((bench.count(Word::Held), bench.driver.function.faults()), (2 * PAGE, 1));
    bench.name_pages(DEFLATE, &[u32::MAX; 4]);
    bench.name_pages(DEFLATE, &[]);
    assert_eq!((bench.count(Word::Held), bench.driver.function.faults()), (2 * PAGE, 3));
    assert_eq!(bench.driver.status(), 15, "alive");
}

#[test]
fn a_guest_cannot_have_given_up_more_than_it_has() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    let half: Vec<u32> = (0..0x80).map(spare).collect();
    for _ in 0..8 {
        bench.name_pages(INFLATE, &half);
    }
    assert_eq!(bench.count(Word::Held), ALL);
    for _ in 0..8 {
        bench.name_pages(DEFLATE, &half);
    }
    assert_eq!(bench.count(Word::Held), 0);
}

#[test]
fn a_request_of_more_pages_than_any_driver_sends_is_cut() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    // Page 0 over and over, then one more in another buffer.
    let most = 4096 * 4;
    bench.driver.write(SPARE, &vec![0; most as usize]);
    bench.driver.write(DATA, &spare(0x10).to_le_bytes());
    bench.fill(0x110..0x111);
    bench.driver.send(INFLATE, &[piece(SPARE, most, 0), piece(DATA, 4, 0)]);
    bench.driver.wait_used(INFLATE);
    assert_eq!((bench.firsts(0x110..0x111), bench.count(Word::Held)), (vec![7], PAGE));
    assert_eq!(bench.driver.function.faults(), 1);
}

#[test]
fn while_pages_are_pinned_the_balloon_is_as_large_and_nothing_is_removed() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.fill(0x100..0x104);
    let pin = bench.reclaim.pin();
    bench.name_pages(INFLATE, &[spare(0)]);
    let head = bench.driver.send(REPORTING[0], &[piece(SPARE + PAGE, 4096, WRITE)]);
    assert_eq!(bench.driver.wait_used(REPORTING[0]), (head.into(), 0));
    assert_eq!(bench.firsts(0x100..0x104), [7; 4]);
    let counted = [Word::Held, Word::Removed, Word::Reported, Word::Kept].map(|word| bench.count(word));
    assert_eq!(counted, [PAGE, 0, 0, 2 * PAGE]);
    drop(pin);
    bench.name_pages(INFLATE, &[spare(2)]);
    assert_eq!(bench.firsts(0x100..0x104), [7, 7, 0, 7]);
}

#[test]
fn reported_pages_go_by_either_number_of_the_queue() {
    for queue in REPORTING {
        let mut bench = Bench::new();
        bench.driver.bring_up(ALL_FEATURES);
        bench.fill(0x100..0x108);
        let ranges = [piece(SPARE, 4096, WRITE), piece(SPARE + 3 * PAGE, 8192, WRITE)];
        let head = bench.driver.send(queue, &ranges);
        assert_eq!(bench.driver.wait_used(queue), (head.into(), 0));
        assert_eq!(bench.firsts(0x100..0x108), [0, 7, 7, 0, 0, 7, 7, 7]);
        let counted = [Word::Held, Word::Removed, Word::Reported].map(|word| bench.count(word));
        assert_eq!(counted, [0, 0, 3 * PAGE]);
        // Half pages are not given back, and a range within a page is none.
        bench.driver.send(queue, &[piece(SPARE + 5 * PAGE + 1, 2 * 4096, WRITE), piece(SPARE + 8, 16, WRITE)]);
        bench.driver.wait_used(queue);
        assert_eq!((bench.firsts(0x105..0x108), bench.driver.function.faults()), (vec![7, 0, 7], 1));
        // Nor are ranges to be read.
        bench.driver.send(queue, &[piece(SPARE + 7 * PAGE, 4096, 0)]);
        bench.driver.wait_used(queue);
        assert_eq!((bench.firsts(0x107..0x108), bench.driver.function.faults()), (vec![7], 2));
    }
}

#[test]
fn without_statistics_their_queue_is_the_one_that_reports() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES & !(1 << 1));
    bench.fill(0x100..0x101);
    let head = bench.driver.send(STATISTICS, &[piece(SPARE, 4096, WRITE)]);
    assert_eq!(bench.driver.wait_used(STATISTICS), (head.into(), 0));
    assert_eq!(bench.firsts(0x100..0x101), [0]);
}

#[test]
fn a_reported_range_that_is_no_memory_stops_the_device() {
    for (address, len) in [(0x20_0000, 4096), (0x1f_f000, 8192), (u64::MAX - 4095, 8192)] {
        let mut bench = Bench::new();
        bench.driver.bring_up(ALL_FEATURES);
        bench.driver.send(REPORTING[0], &[piece(address, len, WRITE)]);
        assert!(bench.driver.gives_up(REPORTING[0]), "{address:#x}");
    }
}

#[test]
fn a_ring_in_a_page_that_is_given_back_is_the_driver_s_own_trouble() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    let [table, available, used] = Driver::rings(INFLATE).map(|ring| u32::try_from(ring / PAGE).unwrap());
    bench.driver.write(DATA, &[table, available, used].map(u32::to_le_bytes).concat());
    bench.driver.send(INFLATE, &[piece(DATA, 12, 0)]);
    bench.driver.gives_up(INFLATE);
    bench.driver.reset();
    bench.driver.bring_up(ALL_FEATURES);
    bench.name_pages(INFLATE, &[spare(0)]);
}

/// Statistics as a driver writes them.
fn told(entries: &[(u16, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn statistics_are_kept_and_asked_for_again_after_a_while() {
    let mut bench = Bench::with(Duration::from_millis(1));
    bench.driver.bring_up(ALL_FEATURES);
    for round in 1..=3 {
        // One that is not known, and one twice.
        let bytes = told(&[(4, 1), (4, round), (6, 20 + round), (99, 5)]);
        bench.driver.write(DATA, &bytes);
        let head = bench.driver.send(STATISTICS, &[piece(DATA, bytes.len() as u32, 0)]);
        // It comes back by time alone.
        assert_eq!(bench.driver.wait_used(STATISTICS), (head.into(), 0));
        let first = Word::FirstStatistic as usize;
        assert_eq!((bench.count(Word::Told), bench.word(first + 4)), (1 << 4 | 1 << 6, round));
        assert_eq!(bench.word(first + 6), 20 + round);
        assert!(bench.count(Word::ToldAt) > 0);
    }
    assert_eq!(bench.driver.function.faults(), 0);
}

#[test]
fn a_second_buffer_of_statistics_sends_the_first_back() {
    let mut bench = Bench::new();
    bench.driver.bring_up(ALL_FEATURES);
    bench.driver.write(DATA, &told(&[(4, 1)]));
    let first = bench.driver.send(STATISTICS, &[piece(DATA, 10, 0)]);
    assert!(!bench.driver.has_interrupt(usize::from(STATISTICS) + 1, Duration::from_millis(50)), "it is kept");
    for _ in 0..100 {
        // Flooded: each costs an offence, and the device has one buffer.
        let second = bench.driver.send(STATISTICS, &[piece(DATA, 10, 0)]);
        let (id, len) = bench.driver.wait_used(STATISTICS);
        assert!(len == 0 && id != u32::from(second), "{id}");
    }
    assert_eq!((bench.driver.function.faults(), first), (100, 0));
    // Other queues are served meanwhile.
    bench.name_pages(INFLATE, &[spare(0)]);
}
