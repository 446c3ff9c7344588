//! All connections of a device. Key type: [`Table`].
//!
//! Those that have something to say take turns, one packet each.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::connection::{Connection, Heard, Phase};
use super::greeting::{Line, Wish};
use super::packet::{HOST_CID, Header, Op, Ports, STREAM};
use crate::model::MAX_VSOCK_CONNECTIONS;
use crate::vmm::virtio::chain::Segment;
use crate::vmm::virtio::queue::RingFault;

/// Refusals that wait for a buffer of the guest's; then no more packets of it are looked at.
const MAX_REFUSALS: usize = 256;
/// What a program is told that says nothing of use.
const MISUNDERSTOOD: &str = "ERROR say CONNECT <port> or ACCEPT <port>, and end the line\n";
/// Ports of the host from which connections to the guest come.
const FIRST_PORT: u32 = 1 << 30;
const PORTS: u32 = 1 << 30;

/// Names a connection for as long as it is there; never used again.
pub(super) type Number = u64;

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Table {
    connections: BTreeMap<Number, Connection>,
    by_ports: BTreeMap<Ports, Number>,
    /// By port, in the order of their coming.
    waiting: BTreeMap<u32, VecDeque<Number>>,
    turns: VecDeque<Number>,
    refusals: VecDeque<Header>,
    last: Number,
    last_port: u32,
}

impl Table {
    /// Whether there is room for another connection.
    pub(super) fn has_room(&self) -> bool {
        self.connections.len() < MAX_VSOCK_CONNECTIONS as usize
    }

    /// Takes a program's connection.
    pub(super) fn add(&mut self, number: Number, socket: OwnedFd) {
        self.connections.insert(number, Connection::new(socket));
    }

    /// A number that no connection had.
    pub(super) fn next_number(&mut self) -> Number {
        self.last += 1;
        self.last
    }

    /// Whether a packet of the guest's may be looked at: it may need an answer.
    pub(super) fn can_answer(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// The socket of a connection has news; one that is gone has none.
    pub(super) fn wake(&mut self, number: Number, is_readable: bool, is_writable: bool, is_hung_up: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.wake(is_readable, is_writable, is_hung_up);
        if matches!(connection.phase(), Phase::Greeting(_)) {
            match connection.greet() {
                Line::Open => {}
                Line::Whole(wish) => return self.grant(number, wish),
                Line::Wrong => {
                    // Nobody may be there to read it.
                    let _ = connection.tell(MISUNDERSTOOD);
                    return self.remove(number);
                }
            }
        }
        self.settle(number);
    }

    /// Drops what belongs to the guest's side: the driver starts anew. Programs that wait go on waiting.
    pub(super) fn forget_guest(&mut self) {
        self.connections.retain(|_, connection| {
            connection.is_scheduled = false;
            !matches!(connection.phase(), Phase::Requested(_) | Phase::Open(_))
        });
        self.by_ports.clear();
        self.turns.clear();
        self.refusals.clear();
    }

    /// A packet of the guest's, which is for the host. False if it is against the rules.
    pub(super) fn hear(
        &mut self,
        header: &Header,
        data: &[Segment],
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<bool, RingFault> {
        let op = Op::from_number(header.op).filter(|_| header.kind == STREAM && header.dst_cid == HOST_CID);
        let number = self.by_ports.get(&header.ports()).copied().filter(|_| op.is_some());
        let Some((number, connection)) = number.and_then(|number| Some((number, self.connections.get_mut(&number)?)))
        else {
            return Ok(self.hear_stranger(op, header));
        };
        let heard = connection.hear(header, data, memory)?;
        match heard {
            Heard::Fine => self.settle(number),
            Heard::Parted | Heard::Dropped => {
                self.part(header.ports(), number);
                if heard == Heard::Parted {
                    self.refusals.push_back(header.refusal());
                }
            }
            Heard::Wrong => {
                self.part(header.ports(), number);
                self.refusals.push_back(header.refusal());
            }
        }
        Ok(heard != Heard::Wrong)
    }

    /// A packet that belongs to no connection.
    fn hear_stranger(&mut self, op: Option<Op>, header: &Header) -> bool {
        match op {
            Some(Op::Request) => {
                if !self.meet(header) {
                    self.refusals.push_back(header.refusal());
                }
                true
            }
            // No answer: two refusals would answer each other for ever.
            Some(Op::Reset) => true,
            Some(_) => {
                self.refusals.push_back(header.refusal());
                true
            }
            None => {
                let known = Op::from_number(header.op);
                if known != Some(Op::Reset) {
                    self.refusals.push_back(header.refusal());
                }
                // Another host or type of socket is what a program in the guest may try.
                known.is_some()
            }
        }
    }

    /// Gives the guest's request to a program that waits for it, if there is one.
    fn meet(&mut self, request: &Header) -> bool {
        while let Some(number) = self.first_waiting(request.dst_port) {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            if connection.accept(request) {
                self.by_ports.insert(request.ports(), number);
                self.settle(number);
                return true;
            }
            self.remove(number);
        }
        false
    }

    fn first_waiting(&mut self, port: u32) -> Option<Number> {
        let queue = self.waiting.get_mut(&port)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&port);
        }
        first
    }

    /// A refusal that waits, if there is one.
    pub(super) fn next_refusal(&mut self) -> Option<Header> {
        self.refusals.pop_front()
    }

    /// Whether somebody has something to say.
    pub(super) fn has_news(&self) -> bool {
        !self.refusals.is_empty() || !self.turns.is_empty()
    }

    /// What the next connection in turn says to the guest, with its data in `place`. `None` if it has nothing after all;
    /// others may.
    pub(super) fn speak(
        &mut self,
        guest_cid: u64,
        place: &[Segment],
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Option<Header>, RingFault> {
        let Some(number) = self.turns.pop_front() else { return Ok(None) };
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(None) };
        connection.is_scheduled = false;
        let (Phase::Requested(ports) | Phase::Open(ports)) = connection.phase() else { return Ok(None) };
        let ports = *ports;
        let Some(said) = connection.speak(place, memory)? else {
            self.settle(number);
            return Ok(None);
        };
        let (buf_alloc, fwd_cnt) = connection.credit();
        if said.is_last {
            self.part(ports, number);
        } else {
            self.settle(number);
        }
        Ok(Some(Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: said.len,
            kind: STREAM,
            op: said.op.number(),
            flags: said.flags,
            buf_alloc,
            fwd_cnt,
        }))
    }

    /// Does what a program asks for.
    fn grant(&mut self, number: Number, wish: Wish) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        match wish {
            Wish::Connect(guest) => {
                let ports = Ports { host: free_port(&self.by_ports, &mut self.last_port, guest), guest };
                connection.request(ports);
                self.by_ports.insert(ports, number);
            }
            Wish::Accept(port) if connection.tell(&format!("OK {port}\n")) => {
                connection.wait(port);
                self.waiting.entry(port).or_default().push_back(number);
            }
            Wish::Accept(_) => return self.remove(number),
        }
        self.settle(number);
    }

    /// The guest is done with a connection; it stays until the program has taken what is left.
    fn part(&mut self, ports: Ports, number: Number) {
        self.by_ports.remove(&ports);
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.drain();
            self.settle(number);
        }
    }

    /// Gives a connection a turn if it has something to say, and removes it if nobody wants it.
    fn settle(&mut self, number: Number) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.is_abandoned() {
            return self.remove(number);
        }
        if connection.has_news() && !connection.is_scheduled {
            connection.is_scheduled = true;
            self.turns.push_back(number);
        }
    }

    /// Closes a connection that the guest does not know, or no longer.
    fn remove(&mut self, number: Number) {
        let Some(connection) = self.connections.remove(&number) else { return };
        if let Phase::Waiting(port) = connection.phase()
            && let Some(queue) = self.waiting.get_mut(port)
        {
            queue.retain(|other| *other != number);
            if queue.is_empty() {
                self.waiting.remove(port);
            }
        }
    }
}

/// A port of the host's from which nothing goes to this one of the guest, after `last`.
fn free_port(taken: &BTreeMap<Ports, Number>, last: &mut u32, guest: u32) -> u32 {
    loop {
        *last = (*last + 1) % PORTS;
        let host = FIRST_PORT + *last;
        // There are far fewer connections than ports.
        if !taken.contains_key(&Ports { host, guest }) {
            return host;
        }
    }
}
