//! The socket device through its registers, with programs on real sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::packet::{HEADER_LEN, HOST_CID, Header, NEITHER, NO_SEND, Op, STREAM};
use super::*;
use crate::vmm::virtio::testing::*;

const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
const CID: u64 = 3;
/// Room that the guest claims for each connection.
const ROOM: u32 = 1000;
/// Where buffers for packets lie, one after the other.
const BUFFERS: u64 = DATA;
const BUFFER_LEN: u64 = 4096;
/// Where packets of the guest lie.
const PACKET: u64 = DATA + 0x4_0000;

struct Peer {
    driver: Driver,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
    /// Buffers that were offered so far.
    offered: u64,
}

impl Peer {
    fn new() -> Self {
        let (vsock, socket, directory) = vsock();
        let mut driver = Driver::probe(vsock);
        driver.bring_up(ALL_FEATURES);
        Self { driver, socket, _directory: directory, offered: 0 }
    }

    /// A program that says this.
    fn program(&self, line: &str) -> UnixStream {
        let mut program = UnixStream::connect(&self.socket).unwrap();
        program.set_read_timeout(Some(TIMEOUT)).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        program
    }

    /// Gives a buffer and waits for what comes in it.
    fn hear(&mut self) -> (Header, Vec<u8>) {
        let at = BUFFERS + self.offered % 16 * BUFFER_LEN;
        self.offered += 1;
        self.driver.send(TO_GUEST, &[piece(at, BUFFER_LEN as u32, WRITE)]);
        let (_, len) = self.driver.wait_used(TO_GUEST);
        let header = Header::decode(self.driver.read(at, HEADER_LEN).try_into().unwrap());
        assert_eq!(len, HEADER_LEN as u32 + header.len);
        (header, self.driver.read(at + HEADER_LEN as u64, header.len as usize))
    }

    /// Hears that a program has gone: at once, or first that it says no more, if that was seen before its hanging up.
    fn hear_end(&mut self) {
        let mut shutdown = self.hear().0;
        if (shutdown.op, shutdown.flags) == (Op::Shutdown.number(), NO_SEND) {
            shutdown = self.hear().0;
        }
        assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown.number(), NEITHER));
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let bytes = [header.encode(), data.to_vec()].concat();
        self.driver.write(PACKET, &bytes);
        self.driver.send(FROM_GUEST, &[piece(PACKET, bytes.len() as u32, 0)]);
        assert_eq!(self.driver.wait_used(FROM_GUEST).1, 0);
    }

    fn say(&mut self, host: u32, guest: u32, op: Op, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: data.len() as u32,
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc: ROOM,
            fwd_cnt: 0,
        };
        self.send(header, data);
    }

    /// A connection of a program's to the guest's port 52, with the host's port.
    fn connected(&mut self) -> (UnixStream, u32) {
        let mut program = self.program("CONNECT 52\n");
        let (request, _) = self.hear();
        assert_eq!((request.op, request.dst_port, request.src_cid, request.dst_cid), (1, 52, HOST_CID, CID));
        assert_eq!((request.buf_alloc, request.fwd_cnt, request.kind), (WINDOW, 0, STREAM));
        self.say(request.src_port, 52, Op::Response, 0, b"");
        assert_eq!(line(&mut program), format!("OK {}", request.src_port));
        (program, request.src_port)
    }

    fn is_silent(&mut self) -> bool {
        let at = BUFFERS + self.offered % 16 * BUFFER_LEN;
        self.offered += 1;
        self.driver.send(TO_GUEST, &[piece(at, BUFFER_LEN as u32, WRITE)]);
        !self.driver.has_interrupt(1, Duration::from_millis(50))
    }
}

fn line(program: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while program.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn rest(program: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn identifies_itself() {
    let mut peer = Peer::new();
    let mut config = [0; 8];
    peer.driver.function_config(&mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(peer.driver.features(), 1 << 28 | 1 << 29 | 1 << 32);
    assert_eq!(peer.driver.config(0, 4), 0x1053_1af4);
}

#[test]
fn a_program_reaches_the_guest_and_bytes_go_both_ways() {
    let mut peer = Peer::new();
    let (mut program, port) = peer.connected();
    program.write_all(b"hello").unwrap();
    let (data, bytes) = peer.hear();
    assert_eq!((data.op, data.src_port, data.dst_port, &bytes[..]), (5, port, 52, &b"hello"[..]));
    peer.say(port, 52, Op::Data, 0, b"and back");
    let mut back = [0; 8];
    program.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    // What was taken is told with the next packet.
    program.write_all(b"!").unwrap();
    assert_eq!(peer.hear().0.fwd_cnt, 8);
}

#[test]
fn the_guest_reaches_a_program_that_waits_and_no_other() {
    let mut peer = Peer::new();
    let (mut first, mut second) = (peer.program("ACCEPT 7\n"), peer.program("ACCEPT 7\n"));
    assert_eq!((line(&mut first), line(&mut second)), ("OK 7".into(), "OK 7".into()));
    // Bytes that come before the guest does wait for it.
    first.write_all(b"banner").unwrap();
    peer.say(7, 1000, Op::Request, 0, b"");
    assert_eq!(line(&mut first), "FROM 1000");
    assert_eq!(peer.hear().0.op, Op::Response.number());
    assert_eq!(peer.hear().1, b"banner");
    drop(first);
    // One that has gone does not get it.
    drop(second);
    let mut third = peer.program("ACCEPT 7\n");
    assert_eq!(line(&mut third), "OK 7");
    peer.hear_end();
    peer.say(7, 1001, Op::Request, 0, b"");
    assert_eq!(line(&mut third), "FROM 1001");
    assert_eq!(peer.hear().0.op, Op::Response.number());
    // Nobody is left.
    peer.say(7, 1002, Op::Request, 0, b"");
    let (refusal, _) = peer.hear();
    assert_eq!((refusal.op, refusal.src_port, refusal.dst_port), (Op::Reset.number(), 7, 1002));
}

#[test]
fn each_way_ends_by_itself() {
    let mut peer = Peer::new();
    let (mut program, port) = peer.connected();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let (shutdown, _) = peer.hear();
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown.number(), NO_SEND));
    peer.say(port, 52, Op::Data, 0, b"late");
    peer.say(port, 52, Op::Shutdown, NEITHER, b"");
    assert_eq!(rest(&mut program), b"late");
    let (refusal, _) = peer.hear();
    assert_eq!((refusal.op, refusal.src_port, refusal.dst_port), (Op::Reset.number(), port, 52));

    // The other way round: the guest has said all, the program goes on.
    let (mut program, port) = peer.connected();
    peer.say(port, 52, Op::Data, 0, b"question");
    peer.say(port, 52, Op::Shutdown, NO_SEND, b"");
    assert_eq!(rest(&mut program), b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(peer.hear().1, b"answer");
    drop(program);
    peer.hear_end();
}

#[test]
fn a_program_hears_that_the_guest_refuses() {
    let mut peer = Peer::new();
    let mut program = peer.program("CONNECT 9\n");
    let (request, _) = peer.hear();
    peer.say(request.src_port, 9, Op::Reset, 0, b"");
    assert_eq!(rest(&mut program), b"ERROR the guest refuses port 9\n");
    let mut program = peer.program("HELLO\n");
    assert!(rest(&mut program).starts_with(b"ERROR say CONNECT <port>"));
}

#[test]
fn no_more_goes_to_the_guest_than_it_has_room_for() {
    let mut peer = Peer::new();
    let (mut program, port) = peer.connected();
    program.write_all(&[7; 3 * ROOM as usize]).unwrap();
    assert_eq!(peer.hear().1.len(), ROOM as usize);
    assert_eq!(peer.hear().0.op, Op::CreditRequest.number());
    assert!(peer.is_silent(), "asked once");
    let update = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 52,
        dst_port: port,
        kind: STREAM,
        op: Op::CreditUpdate.number(),
        buf_alloc: ROOM,
        fwd_cnt: 300,
        ..Header::default()
    };
    peer.send(update, b"");
    let (_, len) = peer.driver.wait_used(TO_GUEST);
    assert_eq!(len as usize, HEADER_LEN + 300);
}

#[test]
fn a_program_that_does_not_read_holds_up_its_own_guest_s_end_and_nobody_else() {
    let mut peer = Peer::new();
    let (mut slow, slow_port) = peer.connected();
    let (mut other, other_port) = peer.connected();
    let chunk = vec![0x55; 1024];
    let mut sent = 0_u32;
    // The socket takes some, the window the rest; what the guest may send is what it was told.
    let mut told = 0;
    while sent - told < WINDOW {
        peer.say(slow_port, 52, Op::Data, 0, &chunk);
        sent += 1024;
        // Asks for credit, as a driver may.
        peer.say(slow_port, 52, Op::CreditRequest, 0, b"");
        told = peer.hear().0.fwd_cnt;
        assert!(sent < 64 * WINDOW, "nothing holds it up");
    }
    peer.say(other_port, 52, Op::Data, 0, b"quick");
    let mut quick = [0; 5];
    other.read_exact(&mut quick).unwrap();
    // The guest is done; all of it arrives.
    peer.say(slow_port, 52, Op::Shutdown, NEITHER, b"");
    assert_eq!(peer.hear().0.op, Op::Reset.number());
    assert_eq!(rest(&mut slow), vec![0x55; sent as usize]);
    assert_eq!(peer.driver.function.faults(), 0);
}

#[test]
fn more_than_the_window_is_an_offence_that_costs_the_connection() {
    let mut peer = Peer::new();
    let (slow, port) = peer.connected();
    let chunk = vec![1; 16 << 10];
    let mut refused = false;
    for _ in 0..64 {
        peer.say(port, 52, Op::Data, 0, &chunk);
        if peer.driver.function.faults() > 0 {
            refused = true;
            break;
        }
    }
    assert!(refused, "the guest may send what it likes");
    // Credit updates may have come first.
    let is_reset = (0..40).any(|_| peer.hear().0.op == Op::Reset.number());
    assert!(is_reset);
    drop(slow);
    assert_eq!(peer.driver.status(), 15, "the device goes on");
}

#[test]
fn what_is_no_packet_or_belongs_to_nobody_is_refused() {
    let mut peer = Peer::new();
    let stray = Header { src_cid: CID, dst_cid: HOST_CID, src_port: 1, dst_port: 2, kind: STREAM, ..Header::default() };
    for op in [Op::Response, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        peer.send(Header { op: op.number(), ..stray }, b"");
        assert_eq!(peer.hear().0.op, Op::Reset.number(), "{op:?}");
    }
    assert_eq!(peer.driver.function.faults(), 0);
    // Another type of socket, an operation that is none, another host.
    for wrong in [
        Header { kind: 2, op: Op::Request.number(), ..stray },
        Header { op: 99, ..stray },
        Header { dst_cid: 7, op: Op::Request.number(), ..stray },
    ] {
        peer.send(wrong, b"");
        let (refusal, _) = peer.hear();
        assert_eq!((refusal.op, refusal.src_cid), (Op::Reset.number(), wrong.dst_cid));
    }
    // No answer to a refusal, nor to one who claims to be somebody else, nor to data that is not there.
    peer.send(Header { op: Op::Reset.number(), ..stray }, b"");
    peer.send(Header { src_cid: 9, op: Op::Request.number(), ..stray }, b"");
    peer.send(Header { len: 10, op: Op::Data.number(), ..stray }, b"");
    assert!(peer.is_silent());
    assert_eq!(peer.driver.function.faults(), 3);
}

#[test]
fn a_guest_that_takes_no_refusals_is_heard_no_more_until_it_does() {
    let mut peer = Peer::new();
    let stray = Header { src_cid: CID, dst_cid: HOST_CID, kind: STREAM, op: Op::Data.number(), ..Header::default() };
    for _ in 0..256 {
        peer.send(stray, b"");
    }
    peer.driver.write(PACKET, &stray.encode());
    peer.driver.send(FROM_GUEST, &[piece(PACKET, HEADER_LEN as u32, 0)]);
    assert!(!peer.driver.has_interrupt(2, Duration::from_millis(50)), "heard without an answer");
    assert_eq!(peer.hear().0.op, Op::Reset.number());
    peer.driver.wait_used(FROM_GUEST);
}

#[test]
fn a_buffer_that_holds_no_data_is_given_back_and_does_not_keep_the_device_busy() {
    let mut peer = Peer::new();
    let (mut program, _) = peer.connected();
    program.write_all(b"data").unwrap();
    peer.driver.send(TO_GUEST, &[piece(BUFFERS, HEADER_LEN as u32, WRITE)]);
    assert_eq!(peer.driver.wait_used(TO_GUEST).1, 0);
    assert_eq!(peer.driver.function.faults(), 1);
    assert_eq!(peer.hear().1, b"data");
}

#[test]
fn a_reset_ends_streams_and_keeps_those_who_wait() {
    let mut peer = Peer::new();
    let (mut open, _) = peer.connected();
    let mut waiting = peer.program("ACCEPT 7\n");
    assert_eq!(line(&mut waiting), "OK 7");
    peer.driver.reset();
    assert_eq!(rest(&mut open), b"");
    // One that comes while no driver is there is served later.
    let mut early = peer.program("CONNECT 52\n");
    peer.driver.bring_up(ALL_FEATURES);
    peer.offered = 0;
    let (request, _) = peer.hear();
    assert_eq!((request.op, request.dst_port), (Op::Request.number(), 52));
    peer.say(request.src_port, 52, Op::Response, 0, b"");
    assert!(line(&mut early).starts_with("OK "));
    peer.say(7, 1000, Op::Request, 0, b"");
    assert_eq!(line(&mut waiting), "FROM 1000");
}

#[test]
fn no_more_connections_are_taken_than_there_is_room_for() {
    let most = crate::model::MAX_VSOCK_CONNECTIONS as usize;
    // Its own limit of descriptors may be the lower one: both ends are here.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = 2 * most as u64 + 400;
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        return;
    }
    let raised = rustix::process::Rlimit { current: Some(wanted), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let peer = Peer::new();
    let mut programs: Vec<_> = (0..most)
        .map(|_| {
            let mut program = peer.program("ACCEPT 1\n");
            assert_eq!(line(&mut program), "OK 1");
            program
        })
        .collect();
    let mut late = peer.program("ACCEPT 1\n");
    late.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(late.read(&mut [0]).is_err(), "there is room after all");
    late.set_read_timeout(Some(TIMEOUT)).unwrap();
    programs.pop();
    assert_eq!(line(&mut late), "OK 1");
}
