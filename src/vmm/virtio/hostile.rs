//! Drivers that break every rule, against every device: each case ends in `NEEDS_RESET` or an answered request, the
//! worker lives, and a reset brings the device back.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;

use super::Keyboard;
use super::testing::*;
use crate::sys::reclaim::Reclaim;
use crate::sys::tap::Offloads;
use crate::vmm::ports::BalloonCounters;

const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Where indirect tables lie.
const TABLE: u64 = 0x6_0000;
const HOLE: u64 = 2 << 20;
/// Pages that nothing is in.
const SPARE: u64 = 0x10_0000;
/// Room for the request's pieces, a page each.
const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BlockRead,
    BlockWrite,
    BlockDiscard,
    BlockZero,
    NetReceive,
    NetTransmit,
    NetControl,
    Rng,
    VsockReceive,
    VsockTransmit,
    BalloonInflate,
    BalloonDeflate,
    BalloonStatistics,
    BalloonReport,
    ConsoleReceive,
    ConsoleTransmit,
}

const KINDS: [Kind; 16] = [
    Kind::BlockRead,
    Kind::BlockWrite,
    Kind::BlockDiscard,
    Kind::BlockZero,
    Kind::NetReceive,
    Kind::NetTransmit,
    Kind::NetControl,
    Kind::Rng,
    Kind::VsockReceive,
    Kind::VsockTransmit,
    Kind::BalloonInflate,
    Kind::BalloonDeflate,
    Kind::BalloonStatistics,
    Kind::BalloonReport,
    Kind::ConsoleReceive,
    Kind::ConsoleTransmit,
];

/// A device, its driver, and what a good request to it looks like.
struct Target {
    kind: Kind,
    driver: Driver,
    network: Option<OwnedFd>,
    /// Where programs speak with the guest, and those that do.
    socket: Option<(std::path::PathBuf, tempfile::TempDir)>,
    programs: Vec<UnixStream>,
    keyboard: Option<Keyboard>,
}

impl Target {
    fn new(kind: Kind) -> Self {
        let (mut socket, mut keyboard) = (None, None);
        let (driver, network) = match kind {
            Kind::BlockRead | Kind::BlockWrite | Kind::BlockDiscard | Kind::BlockZero => {
                (Driver::probe(block(64, false).0), None)
            }
            Kind::NetControl => (Driver::probe(net_with(2, Offloads::ALL).0), None),
            Kind::NetReceive | Kind::NetTransmit => {
                let (net, network) = net();
                (Driver::probe(net), Some(network))
            }
            Kind::Rng => (Driver::probe(rng()), None),
            Kind::BalloonInflate | Kind::BalloonDeflate | Kind::BalloonStatistics | Kind::BalloonReport => {
                // Statistics are given back when the next ones come, or by time.
                let balloon = balloon(&Reclaim::default(), BalloonCounters::default());
                (Driver::probe(balloon.with_period(std::time::Duration::from_millis(1))), None)
            }
            Kind::VsockReceive | Kind::VsockTransmit => {
                let (vsock, path, directory) = vsock();
                socket = Some((path, directory));
                (Driver::probe(vsock), None)
            }
            Kind::ConsoleReceive | Kind::ConsoleTransmit => {
                let (console, keys) = console();
                keyboard = Some(keys);
                (Driver::probe(console), None)
            }
        };
        Self { kind, driver, network, socket, programs: Vec::new(), keyboard }
    }

    fn queue(&self) -> u16 {
        match self.kind {
            Kind::NetTransmit | Kind::VsockTransmit | Kind::BalloonDeflate | Kind::ConsoleTransmit => 1,
            Kind::BalloonStatistics => 2,
            Kind::BalloonReport => 3,
            Kind::NetControl => 4,
            _ => 0,
        }
    }

    fn good(&self) -> Vec<Piece> {
        let header = piece(DATA, 16, 0);
        let status = piece(DATA + 2 * PAGE, 1, WRITE);
        match self.kind {
            Kind::BlockRead => vec![header, piece(DATA + PAGE, 512, WRITE), status],
            Kind::BlockWrite => vec![header, piece(DATA + PAGE, 512, 0), status],
            Kind::BlockDiscard | Kind::BlockZero => vec![header, piece(DATA + PAGE, 16, 0), status],
            Kind::NetControl => vec![piece(DATA, 4, 0), status],
            Kind::NetReceive => vec![piece(DATA, 12, WRITE), piece(DATA + PAGE, 1514, WRITE)],
            Kind::NetTransmit => vec![piece(DATA, 12, 0), piece(DATA + PAGE, 60, 0)],
            Kind::Rng => vec![piece(DATA, 64, WRITE)],
            Kind::VsockReceive => vec![piece(DATA, 44, WRITE), piece(DATA + PAGE, 1024, WRITE)],
            Kind::VsockTransmit => vec![piece(DATA, 44, 0), piece(DATA + PAGE, 1024, 0)],
            Kind::ConsoleReceive => vec![piece(DATA, 16, WRITE), piece(DATA + PAGE, 64, WRITE)],
            Kind::ConsoleTransmit => vec![piece(DATA, 16, 0), piece(DATA + PAGE, 64, 0)],
            // Page numbers and tags are what `prepare` leaves there.
            Kind::BalloonInflate | Kind::BalloonDeflate => vec![piece(DATA, 4, 0), piece(DATA + PAGE, 64, 0)],
            Kind::BalloonStatistics => vec![piece(DATA + PAGE, 100, 0)],
            Kind::BalloonReport => vec![piece(SPARE, 4096, WRITE), piece(SPARE + 2 * PAGE, 8192, WRITE)],
        }
    }

    /// Puts the request's header into memory, and a frame into the network.
    fn prepare(&mut self) {
        self.driver.write(DATA, &[0; 16]);
        // Two sectors from the first on.
        self.driver.write(DATA + PAGE, &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        match self.kind {
            Kind::BlockWrite => self.driver.write(DATA, &[1]),
            Kind::BlockDiscard => self.driver.write(DATA, &[11]),
            Kind::BlockZero => self.driver.write(DATA, &[13]),
            Kind::NetControl => self.driver.write(DATA, &[4, 0, 2, 0]),
            // A request from port 1 to port 2, from context 3 to context 2; nobody waits for it.
            Kind::VsockTransmit => {
                self.driver.write(DATA, &[0; 44]);
                for (at, value) in [(0, 3), (8, 2), (16, 1), (20, 2), (28, 1), (30, 1)] {
                    self.driver.write(DATA + at, &[value]);
                }
            }
            _ => {}
        }
        if let (Kind::VsockReceive, Some((path, _))) = (self.kind, &self.socket) {
            // Something to tell the guest; earlier ones ended with a reset.
            let mut program = UnixStream::connect(path).unwrap();
            program.write_all(b"CONNECT 5\n").unwrap();
            self.programs = vec![program];
        }
        if let (Kind::ConsoleReceive, Some(keyboard)) = (self.kind, &self.keyboard) {
            // Enough for every buffer of a case, which takes a page at most.
            keyboard.type_in(&[7; PAGE as usize]);
        }
        match (self.kind, &self.network) {
            (Kind::NetReceive, Some(network)) => {
                // Full is fine: then earlier cases left frames.
                let _ = rustix::io::write(network, &[7; 12 + 60]);
            }
            // Room for what is sent.
            (Kind::NetTransmit, Some(network)) => while rustix::io::read(network, &mut [0; 64]).is_ok() {},
            _ => {}
        }
    }

    /// Resets the device and does a good request.
    fn recovers(&mut self, after: &str) {
        let queue = self.queue();
        self.driver.reset();
        self.driver.bring_up(ALL_FEATURES);
        while self.driver.has_interrupt(usize::from(queue) + 1, std::time::Duration::ZERO) {}
        self.prepare();
        let pieces = self.good();
        let head = self.driver.send(queue, &pieces);
        assert!(!self.driver.gives_up(queue), "{:?} after {after}", self.kind);
        let (id, len) = self.driver.take_used(queue);
        let wanted = match self.kind {
            Kind::BlockRead => 513,
            Kind::BlockWrite | Kind::BlockDiscard | Kind::BlockZero | Kind::NetControl => 1,
            // A frame that an earlier case left in the socket is as good.
            Kind::NetReceive => len.max(13),
            Kind::NetTransmit => 0,
            Kind::Rng => 64,
            Kind::VsockReceive => 44,
            Kind::VsockTransmit | Kind::ConsoleTransmit => 0,
            // What an earlier case left typed is as good.
            Kind::ConsoleReceive => 80,
            Kind::BalloonInflate | Kind::BalloonDeflate | Kind::BalloonStatistics | Kind::BalloonReport => 0,
        };
        assert_eq!((id, len), (head.into(), wanted), "{:?} after {after}", self.kind);
        let has_status = matches!(
            self.kind,
            Kind::BlockRead | Kind::BlockWrite | Kind::BlockDiscard | Kind::BlockZero | Kind::NetControl
        );
        if has_status {
            assert_eq!(self.driver.read(DATA + 2 * PAGE, 1), [0]);
        }
    }
}

/// What a case must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NeedsReset,
    /// The request is answered, or the device needs a reset: both are fine, silence is not.
    Either,
}

fn change(pieces: &[Piece], with: impl Fn(Piece) -> Piece) -> Vec<Piece> {
    pieces.iter().map(|&one| with(one)).collect()
}

/// An indirect table of `count` entries that holds `pieces` over and over, and a head that points to it.
fn indirect(target: &mut Target, len: u32, nested: bool) {
    let queue = target.queue();
    let pieces = target.good();
    for (index, &one) in (0..).zip(&pieces) {
        let flags = one.flags | if index as usize + 1 < pieces.len() { NEXT } else { 0 };
        let flags = if nested { INDIRECT } else { flags };
        target.driver.describe(TABLE, index, Piece { flags, ..one }, index + 1);
    }
    target.driver.describe(Driver::rings(queue)[0], 0, piece(TABLE, len, INDIRECT), 0);
    target.driver.offer(queue, 0);
}

type Case = (&'static str, End, fn(&mut Target));

/// Offers the good request with every piece changed.
fn offer_changed(target: &mut Target, with: impl Fn(Piece) -> Piece) {
    let (queue, pieces) = (target.queue(), change(&target.good(), with));
    let head = target.driver.describe_chain(queue, &pieces);
    target.driver.offer(queue, head);
}

fn offer_head(target: &mut Target, head: u16) {
    let queue = target.queue();
    target.driver.offer(queue, head);
}

const CASES: &[Case] = &[
    ("a descriptor that follows itself", End::NeedsReset, |target| {
        let (table, one) = (Driver::rings(target.queue())[0], target.good()[0]);
        target.driver.describe(table, 0, Piece { flags: one.flags | NEXT, ..one }, 0);
        offer_head(target, 0);
    }),
    ("two descriptors in a circle", End::NeedsReset, |target| {
        let (table, one) = (Driver::rings(target.queue())[0], target.good()[0]);
        target.driver.describe(table, 3, Piece { flags: one.flags | NEXT, ..one }, 4);
        target.driver.describe(table, 4, Piece { flags: one.flags | NEXT, ..one }, 3);
        offer_head(target, 3);
    }),
    ("a head out of range", End::NeedsReset, |target| offer_head(target, SIZE)),
    ("a head far out of range", End::NeedsReset, |target| offer_head(target, 0xffff)),
    ("a next out of range", End::NeedsReset, |target| {
        let (table, one) = (Driver::rings(target.queue())[0], target.good()[0]);
        target.driver.describe(table, 0, Piece { flags: one.flags | NEXT, ..one }, SIZE);
        offer_head(target, 0);
    }),
    ("buffers in a hole", End::NeedsReset, |target| offer_changed(target, |one| Piece { address: HOLE, ..one })),
    ("data in a hole", End::Either, |target| {
        offer_changed(target, |one| if one.address == DATA + PAGE { Piece { address: HOLE, ..one } } else { one });
    }),
    ("data across the end of memory", End::Either, |target| {
        offer_changed(target, |one| if one.len > 16 { Piece { address: (5 << 20) - 16, ..one } } else { one });
    }),
    ("data across two regions that touch", End::Either, |target| {
        offer_changed(target, |one| if one.len > 16 { Piece { address: (1 << 20) - 16, ..one } } else { one });
    }),
    ("addresses that overflow", End::NeedsReset, |target| {
        offer_changed(target, |one| Piece { address: u64::MAX, ..one });
    }),
    ("buffers without length", End::Either, |target| offer_changed(target, |one| Piece { len: 0, ..one })),
    ("huge lengths", End::Either, |target| offer_changed(target, |one| Piece { len: u32::MAX, ..one })),
    ("large lengths", End::Either, |target| offer_changed(target, |one| Piece { len: 0x3000_0000, ..one })),
    ("directions swapped", End::Either, |target| {
        offer_changed(target, |one| Piece { flags: one.flags ^ WRITE, ..one });
    }),
    ("a writable buffer before a readable one", End::NeedsReset, |target| {
        let queue = target.queue();
        let head = target.driver.describe_chain(queue, &[piece(DATA, 64, WRITE), piece(DATA, 64, 0)]);
        target.driver.offer(queue, head);
    }),
    ("an indirect table within one", End::NeedsReset, |target| indirect(target, 48, true)),
    ("an empty indirect table", End::NeedsReset, |target| indirect(target, 0, false)),
    ("an indirect table of 17 bytes", End::NeedsReset, |target| indirect(target, 17, false)),
    ("an indirect table of 4 GiB", End::NeedsReset, |target| indirect(target, 0xffff_fff0, false)),
    ("an indirect table in a hole", End::NeedsReset, |target| {
        let queue = target.queue();
        target.driver.describe(Driver::rings(queue)[0], 0, piece(HOLE, 48, INDIRECT), 0);
        target.driver.offer(queue, 0);
    }),
    ("an indirect chain longer than any request", End::NeedsReset, |target| {
        let (queue, one) = (target.queue(), target.good()[0]);
        for index in 0..300 {
            target.driver.describe(TABLE, index, Piece { flags: one.flags | NEXT, len: 1, ..one }, index + 1);
        }
        target.driver.describe(TABLE, 300, Piece { len: 1, ..one }, 0);
        target.driver.describe(Driver::rings(queue)[0], 0, piece(TABLE, 301 * 16, INDIRECT), 0);
        target.driver.offer(queue, 0);
    }),
    ("an available index one beyond the queue", End::NeedsReset, |target| {
        let queue = target.queue();
        target.driver.set_available(queue, SIZE + 1);
    }),
    ("an available index that goes back", End::NeedsReset, |target| {
        let queue = target.queue();
        target.driver.set_available(queue, 0xffff);
    }),
    ("the same head in every entry", End::Either, |target| {
        let (queue, pieces) = (target.queue(), target.good());
        let head = target.driver.describe_chain(queue, &pieces);
        for _ in 0..SIZE {
            target.driver.offer(queue, head);
        }
    }),
    ("data on top of the rings", End::Either, |target| {
        let rings = Driver::rings(target.queue());
        offer_changed(target, move |one| if one.len > 16 { Piece { address: rings[1], ..one } } else { one });
    }),
    ("data on top of the descriptor table", End::Either, |target| {
        let rings = Driver::rings(target.queue());
        offer_changed(target, move |one| if one.len > 16 { Piece { address: rings[0], ..one } } else { one });
    }),
];

#[test]
fn every_hostile_ring_meets_every_device_and_a_reset_recovers_it() {
    for kind in KINDS {
        let mut target = Target::new(kind);
        for &(name, end, act) in CASES {
            target.driver.bring_up(ALL_FEATURES);
            target.prepare();
            act(&mut target);
            let queue = target.queue();
            target.driver.kick(queue);
            let gave_up = target.driver.gives_up(queue);
            assert!(gave_up || end == End::Either, "{kind:?}: {name}: answered");
            if gave_up {
                target.driver.wait_interrupt(0);
                // Dead until reset: further kicks are no use and do no harm.
                target.driver.kick(queue);
            }
            target.recovers(name);
            target.driver.reset();
        }
        assert!(target.driver.function.faults() >= 15, "{kind:?}");
    }
}

#[test]
fn rings_on_top_of_each_other_are_the_driver_s_own_trouble() {
    for kind in KINDS {
        let mut target = Target::new(kind);
        let [table, available, used] = Driver::rings(target.queue());
        for rings in
            [[table, available, available], [table, table, used], [table, table, table], [used, available, used]]
        {
            target.driver.negotiate(ALL_FEATURES);
            target.driver.enable_interrupts();
            let queue = target.queue();
            target.driver.clear_rings(queue);
            target.driver.set_up_queue(queue, SIZE, rings);
            target.driver.driver_ok();
            target.prepare();
            let pieces = target.good();
            target.driver.send(queue, &pieces);
            target.recovers("overlapping rings");
            target.driver.reset();
        }
    }
}

#[test]
fn a_guest_that_rewrites_its_descriptors_meanwhile_ends_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for kind in KINDS {
        let mut target = Target::new(kind);
        let (queue, memory) = (target.queue(), target.driver.memory_map());
        let [table, available, _] = Driver::rings(queue);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use vm_memory::{Bytes, GuestAddress};
                let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
                let deadline = std::time::Instant::now() + TIMEOUT;
                // Pairs with the store at the end of the scope; the deadline is for a test that fails.
                while !is_over.load(Ordering::Acquire) && std::time::Instant::now() < deadline {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = noise >> 33;
                    memory.write_obj(noise as u32, GuestAddress(table + at % 256 / 4 * 4)).unwrap();
                    memory.write_obj((noise >> 20) as u8 % 16, GuestAddress(available + 4 + at % 32)).unwrap();
                    memory.write_obj((noise >> 8) as u8, GuestAddress(DATA + at % 16)).unwrap();
                }
            });
            for round in 0..200 {
                target.driver.bring_up(ALL_FEATURES);
                target.prepare();
                let pieces = target.good();
                for _ in 0..round % 8 {
                    target.driver.send(queue, &pieces);
                }
                target.driver.reset();
            }
            is_over.store(true, Ordering::Release);
        });
        target.recovers("a race");
    }
}
