//! One program's socket, and what the guest is to be told of it. Key type: [`Connection`].
//!
//! ```text
//!   Greeting ── CONNECT ──▶ Requested ── RESPONSE ──▶ Open ── SHUTDOWN of both ways, or RST ──▶ Draining ── all taken ──▶ closed
//!       └────── ACCEPT ───▶ Waiting ──── REQUEST ──────┘▲
//! ```
//! Each way of a stream ends by itself: the program's end of writing is a SHUTDOWN to the guest once all was read, the
//! guest's SHUTDOWN is an end of file to the program once all was written. What the guest has sent reaches the program
//! even if the guest is done with the connection by then.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::Shutdown;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::credit::{FromGuest, ToGuest};
use super::greeting::{Greeting, Line};
use super::packet::{Header, MAX_DATA_LEN, NEITHER, NO_RECEIVE, NO_SEND, Op, Ports};
use crate::sys::guest_buffers::GuestBuffers;
use crate::vmm::virtio::chain::{self, Segment};
use crate::vmm::virtio::queue::RingFault;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// The program has not said what it wants.
    Greeting(Greeting),
    /// It waits for the guest to connect to this port.
    Waiting(u32),
    /// The guest is asked.
    Requested(Ports),
    /// Bytes flow.
    Open(Ports),
    /// The guest is done with it; what it sent is still to be taken.
    Draining,
}

/// What became of a packet from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The connection goes on.
    Fine,
    /// It is over, and the guest is to hear that.
    Parted,
    /// The guest has dropped it.
    Dropped,
    /// It was against the rules: the connection is to be refused.
    Wrong,
}

/// What the guest is told next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) op: Op,
    pub(super) flags: u32,
    /// Bytes of data that were put into the guest's buffer.
    pub(super) len: u32,
    /// Nothing follows: both sides are done with it.
    pub(super) is_last: bool,
}

/// A program's connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    phase: Phase,
    /// Since the last edge of the socket.
    is_readable: bool,
    is_writable: bool,
    /// The program has closed its end.
    is_hung_up: bool,
    /// What the guest sent and the program has not taken, at most a window.
    held: VecDeque<u8>,
    from_guest: FromGuest,
    to_guest: ToGuest,
    /// What the guest is asked or answered first of all.
    opening: Option<Op>,
    /// The guest wants to know of its credit.
    is_asked: bool,
    /// The guest was asked for credit since it last had some.
    has_asked: bool,
    /// The connection ends with a refusal.
    is_refused: bool,
    /// Ways that the program has ended, those that the guest was told of, and those that the guest has ended.
    program_ended: u32,
    told: u32,
    guest_ended: u32,
    /// It has a place among those that have something to say.
    pub(super) is_scheduled: bool,
}

impl Connection {
    /// `socket`: does not block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            phase: Phase::Greeting(Greeting::default()),
            is_readable: true,
            is_writable: true,
            is_hung_up: false,
            held: VecDeque::new(),
            from_guest: FromGuest::default(),
            to_guest: ToGuest::default(),
            opening: None,
            is_asked: false,
            has_asked: false,
            is_refused: false,
            program_ended: 0,
            told: 0,
            guest_ended: 0,
            is_scheduled: false,
        }
    }

    pub(super) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The socket's state has changed.
    pub(super) fn wake(&mut self, is_readable: bool, is_writable: bool, is_hung_up: bool) {
        self.is_readable |= is_readable;
        self.is_writable |= is_writable;
        self.is_hung_up |= is_hung_up;
        match self.phase {
            Phase::Requested(_) if self.is_hung_up => self.is_refused = true,
            Phase::Open(_) | Phase::Draining => {
                self.flush();
                self.note_hang_up();
            }
            Phase::Greeting(_) | Phase::Waiting(_) | Phase::Requested(_) => {}
        }
    }

    /// Whether nobody is left who wants it, seen from the program's side.
    pub(super) fn is_abandoned(&self) -> bool {
        match self.phase {
            Phase::Greeting(_) | Phase::Waiting(_) => self.is_hung_up,
            Phase::Draining => self.is_hung_up || self.held.is_empty(),
            // The guest is told first.
            Phase::Requested(_) | Phase::Open(_) => false,
        }
    }

    /// Reads the line in which the program says what it wants, as far as it has come; nothing behind it.
    pub(super) fn greet(&mut self) -> Line {
        let Phase::Greeting(greeting) = &mut self.phase else { return Line::Open };
        loop {
            let mut byte = [0];
            match rustix::io::read(&self.socket, &mut byte) {
                Ok(1..) => match greeting.push(byte[0]) {
                    Line::Open => {}
                    other => return other,
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Line::Open,
                Ok(0) | Err(_) => return Line::Wrong,
            }
        }
    }

    /// Tells the program something about its connection; false if that is of no use any more.
    pub(super) fn tell(&self, line: &str) -> bool {
        // Nothing is before it in the socket but such lines, so there is room.
        rustix::io::write(&self.socket, line.as_bytes()) == Ok(line.len())
    }

    /// The program waits for the guest.
    pub(super) fn wait(&mut self, port: u32) {
        self.phase = Phase::Waiting(port);
    }

    /// Asks the guest for a connection.
    pub(super) fn request(&mut self, ports: Ports) {
        self.phase = Phase::Requested(ports);
        self.opening = Some(Op::Request);
    }

    /// The guest has asked for a connection with this program; false if that has gone.
    pub(super) fn accept(&mut self, request: &Header) -> bool {
        let ports = request.ports();
        if !self.tell(&format!("FROM {}\n", ports.guest)) {
            return false;
        }
        self.phase = Phase::Open(ports);
        self.opening = Some(Op::Response);
        self.to_guest.learn(request.buf_alloc, request.fwd_cnt);
        true
    }

    /// A packet of the guest's, with its data.
    pub(super) fn hear(
        &mut self,
        header: &Header,
        data: &[Segment],
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Heard, RingFault> {
        let Some(op) = Op::from_number(header.op) else { return Ok(Heard::Wrong) };
        self.to_guest.learn(header.buf_alloc, header.fwd_cnt);
        if self.to_guest.left() > 0 {
            self.has_asked = false;
        }
        match (&self.phase, op) {
            (Phase::Requested(ports), Op::Response) => {
                let (ports, line) = (*ports, format!("OK {}\n", ports.host));
                self.phase = Phase::Open(ports);
                // The program may have gone.
                Ok(if self.tell(&line) { Heard::Fine } else { Heard::Parted })
            }
            (Phase::Requested(ports), Op::Reset) => {
                // As above.
                let _ = self.tell(&format!("ERROR the guest refuses port {}\n", ports.guest));
                Ok(Heard::Dropped)
            }
            (Phase::Open(_), Op::Reset) => Ok(Heard::Dropped),
            (Phase::Open(_), Op::Data) => self.receive(header.len, data, memory),
            (Phase::Open(_), Op::Shutdown) => Ok(self.part(header.flags)),
            (Phase::Open(_), Op::CreditUpdate) => Ok(Heard::Fine),
            (Phase::Open(_), Op::CreditRequest) => {
                self.is_asked = true;
                Ok(Heard::Fine)
            }
            _ => Ok(Heard::Wrong),
        }
    }

    /// The guest is done with it: what it has sent is still passed on.
    pub(super) fn drain(&mut self) {
        self.phase = Phase::Draining;
        (self.opening, self.is_refused) = (None, false);
    }

    /// Whether the guest is to be told something.
    pub(super) fn has_news(&self) -> bool {
        let may_speak = matches!(self.phase, Phase::Open(_)) && self.opening.is_none();
        self.is_refused
            || self.opening.is_some()
            || may_speak
                && (self.wants_to_read() && (self.to_guest.left() > 0 || !self.has_asked)
                    || self.untold() != 0
                    || self.is_asked
                    || self.from_guest.is_news())
    }

    /// What the guest is told next, data in `place`. `None`: nothing after all.
    pub(super) fn speak(
        &mut self,
        place: &[Segment],
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Option<Said>, RingFault> {
        let say = |op| Said { op, flags: 0, len: 0, is_last: false };
        if self.is_refused {
            return Ok(Some(Said { is_last: true, ..say(Op::Reset) }));
        }
        if let Some(op) = self.opening.take() {
            return Ok(Some(say(op)));
        }
        if !matches!(self.phase, Phase::Open(_)) {
            return Ok(None);
        }
        if let len @ 1.. = self.read(place, memory)? {
            return Ok(Some(Said { len, ..say(Op::Data) }));
        }
        if self.untold() != 0 {
            self.told |= self.program_ended;
            return Ok(Some(Said { flags: self.told, is_last: self.told == NEITHER, ..say(Op::Shutdown) }));
        }
        if self.is_asked || self.from_guest.is_news() {
            self.is_asked = false;
            return Ok(Some(say(Op::CreditUpdate)));
        }
        if self.wants_to_read() && self.to_guest.left() == 0 && !self.has_asked {
            self.has_asked = true;
            return Ok(Some(say(Op::CreditRequest)));
        }
        Ok(None)
    }

    /// Room and what was taken, as each packet to the guest has it.
    pub(super) fn credit(&mut self) -> (u32, u32) {
        self.from_guest.tell()
    }

    fn untold(&self) -> u32 {
        self.program_ended & !self.told
    }

    fn wants_to_read(&self) -> bool {
        self.is_readable && self.program_ended & NO_SEND == 0 && self.guest_ended & NO_RECEIVE == 0
    }

    /// Reads what the program sends into the guest's buffer, as far as the guest has room. Gives how many bytes.
    fn read(&mut self, place: &[Segment], memory: &Arc<GuestMemoryMmap>) -> Result<u32, RingFault> {
        let most = chain::len(place).min(MAX_DATA_LEN).min(self.to_guest.left().into());
        if most == 0 || !self.wants_to_read() {
            return Ok(0);
        }
        let (room, _) = chain::split(place, most).ok_or(RingFault::NotMemory)?;
        let mut buffers = GuestBuffers::new(memory, chain::ranges(&room)).map_err(|_| RingFault::NotMemory)?;
        loop {
            match buffers.read_from(&self.socket, &mut []) {
                Ok(len @ 1..) => {
                    // At most MAX_DATA_LEN.
                    let len = len as u32;
                    self.to_guest.send(len);
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    return Ok(0);
                }
                // The end, or a reset connection, which is one.
                Ok(_) | Err(_) => {
                    self.is_readable = false;
                    self.program_ended |= NO_SEND;
                    self.note_hang_up();
                    return Ok(0);
                }
            }
        }
    }

    /// Passes data of the guest's on, and keeps what the program does not take at once.
    fn receive(&mut self, len: u32, data: &[Segment], memory: &Arc<GuestMemoryMmap>) -> Result<Heard, RingFault> {
        if self.guest_ended & NO_SEND != 0 || !self.from_guest.receive(len) {
            return Ok(Heard::Wrong);
        }
        let mut buffers = GuestBuffers::new(memory, chain::ranges(data)).map_err(|_| RingFault::NotMemory)?;
        let mut done = 0;
        while self.held.is_empty() && self.can_write() && !buffers.is_empty() {
            match buffers.write_to(&self.socket, &[]) {
                Ok(count) => {
                    done += count;
                    buffers.advance(count);
                    // At most a window.
                    self.from_guest.take(count as u32);
                }
                Err(error) => self.note_write_error(&error),
            }
        }
        let (_, rest) = chain::split(data, done as u64).ok_or(RingFault::NotMemory)?;
        if self.program_ended & NO_RECEIVE != 0 {
            // Nobody wants it; the guest learns that.
            self.from_guest.take(len.saturating_sub(done as u32));
            return Ok(Heard::Fine);
        }
        for segment in rest {
            let mut bytes = vec![0; segment.len as usize];
            memory.read_slice(&mut bytes, segment.address).map_err(|_| RingFault::NotMemory)?;
            // No more room than is used: it is what a connection's memory is counted by.
            self.held.reserve_exact(bytes.len());
            self.held.extend(bytes);
        }
        Ok(Heard::Fine)
    }

    fn can_write(&self) -> bool {
        self.is_writable && self.program_ended & NO_RECEIVE == 0
    }

    fn note_write_error(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.is_writable = false,
            // The program reads no more (EPIPE), or is gone.
            _ => {
                self.program_ended |= NO_RECEIVE;
                self.from_guest.take(self.held.len() as u32);
                self.held = VecDeque::new();
            }
        }
    }

    /// Writes what is held, as far as the program takes it.
    fn flush(&mut self) {
        while !self.held.is_empty() && self.can_write() {
            match rustix::io::write(&self.socket, self.held.as_slices().0) {
                Ok(count) => {
                    self.held.drain(..count);
                    self.from_guest.take(count as u32);
                }
                Err(error) => self.note_write_error(&error.into()),
            }
        }
        if self.held.is_empty() {
            // Its room is not kept for connections that are idle.
            self.held = VecDeque::new();
            self.end_writing();
        }
    }

    /// The end of what the guest sends, once all of it was written.
    fn end_writing(&self) {
        if self.guest_ended & NO_SEND != 0 && self.held.is_empty() {
            // Fails only if the program has closed its end.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// The guest ends one way or both.
    fn part(&mut self, flags: u32) -> Heard {
        self.guest_ended |= flags & NEITHER;
        if self.guest_ended == NEITHER {
            return Heard::Parted;
        }
        self.end_writing();
        if self.guest_ended & NO_RECEIVE != 0 {
            // As above.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
            self.note_hang_up();
        }
        Heard::Fine
    }

    /// A program that has closed its end takes nothing; once all that it sent was read, or is not wanted, it is over.
    fn note_hang_up(&mut self) {
        if self.is_hung_up && (self.program_ended & NO_SEND != 0 || self.guest_ended & NO_RECEIVE != 0) {
            self.program_ended = NEITHER;
        }
    }
}
