//! The device: rings, the listening socket, and who is ready. Key type: [`Vsock`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::packet::{HEADER_LEN, Header};
use super::table::Table;
use crate::model::DeviceId;
use crate::vmm::virtio::chain::{self, Chain, Segment};
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::queue::{Ring, RingFault};

/// Queues (VIRTIO 1.3 §5.10.2): to the guest, from it, and events, of which there are none to tell.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Communication controller, other.
const CLASS: u32 = 0x07_80_00;
/// What a socket holds of the guest's data for its program, in bytes; the kernel counts it twice (socket(7)).
const SOCKET_BUFFER_LEN: usize = 16 << 10;
/// Events taken per wait.
const BATCH: usize = 64;
/// Waits per call: more than all sockets can fill at once.
const MAX_WAITS: usize = 64;
/// Epoll data of the listening socket; connections have their numbers, from 1.
const LISTENER: u64 = 0;

/// A virtio socket device.
#[derive(Debug)]
pub struct Vsock {
    id: DeviceId,
    /// The guest's context id: its own affair, since no other guest is reached through this device.
    cid: u32,
    listener: OwnedFd,
    /// More may wait there.
    has_callers: bool,
    /// Of the listener and all connections; the worker waits for it.
    epoll: Epoll,
    table: Table,
}

impl Vsock {
    /// A device for programs that connect to `listener`.
    pub fn new(id: DeviceId, cid: u32, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(events, LISTENER))?;
        Ok(Self { id, cid, listener: listener.into(), has_callers: true, epoll, table: Table::default() })
    }

    /// Looks at all sockets.
    fn poll(&mut self) -> Result<Next, Fault> {
        let mut events = [EpollEvent::default(); BATCH];
        for _ in 0..MAX_WAITS {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(count) {
                let set = event.event_set();
                let is_hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
                match event.data() {
                    LISTENER => self.has_callers = true,
                    number => self.table.wake(
                        number,
                        is_hung_up || set.contains(EventSet::IN),
                        is_hung_up || set.contains(EventSet::OUT),
                        is_hung_up,
                    ),
                }
            }
            if count < BATCH {
                self.accept()?;
                return Ok(Next::Wait);
            }
        }
        Ok(Next::Again)
    }

    /// Takes connections while there is room; the others wait in the socket's queue.
    fn accept(&mut self) -> Result<(), Fault> {
        while self.has_callers && self.table.has_room() {
            match rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    if let Err(error) = self.add(socket) {
                        tracing::warn!(device = %self.id, %error, "a program's connection is closed");
                    }
                }
                Err(Errno::AGAIN) => self.has_callers = false,
                // Whoever it was has gone.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                // The host is short of something: they are let in with the next one.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => self.has_callers = false,
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<()> {
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_LEN)?;
        let number = self.table.next_number();
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(events, number))?;
        self.table.add(number, socket);
        // It may have spoken before it was watched.
        self.table.wake(number, true, true, false);
        Ok(())
    }

    /// Hears the guest, until it has no more to say or answers have nowhere to go.
    fn hear(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            if !self.table.can_answer() {
                next = Next::Wait;
                break;
            }
            match ring.pop(&**memory)? {
                Some(chain) => self.hear_one(ring, memory, chain)?,
                None if ring.listen(&**memory)? => {}
                None => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        ring.signal(&**memory)?;
        Ok(next)
    }

    fn hear_one(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, mut chain: Chain) -> Result<(), Fault> {
        let is_packet = chain.writable.is_empty() && chain::len(&chain.readable) >= HEADER_LEN as u64;
        if is_packet {
            let header = chain.read_head::<HEADER_LEN>(&**memory).ok_or(RingFault::NotMemory)?;
            let header = Header::decode(header);
            let data = chain::split(&chain.readable, header.len.into()).map(|(data, _)| data);
            let data = data.filter(|_| header.src_cid == u64::from(self.cid));
            let is_fine = match data {
                Some(data) => self.table.hear(&header, &data, memory)?,
                None => false,
            };
            if !is_fine {
                self.note(ring, "packet of the guest's is against the rules");
            }
        } else {
            self.note(ring, "packet of the guest's is too short or writable");
        }
        Ok(ring.complete(&**memory, chain.head, 0)?)
    }

    /// Tells the guest what there is to tell, as far as it has buffers.
    fn speak(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        let mut buffer: Option<Chain> = None;
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            if !self.table.has_news() {
                next = Next::Wait;
                break;
            }
            let chain = match buffer.take() {
                Some(chain) => chain,
                None => match ring.pop(&**memory)? {
                    Some(chain) => chain,
                    None if ring.listen(&**memory)? => continue,
                    None => {
                        next = Next::Wait;
                        break;
                    }
                },
            };
            let Some((place, room)) = place(&chain) else {
                self.note(ring, "buffer for a packet has no room for data or is readable");
                ring.complete(&**memory, chain.head, 0)?;
                continue;
            };
            let header = match self.table.next_refusal() {
                Some(refusal) => Some(refusal),
                None => self.table.speak(self.cid.into(), &room, memory)?,
            };
            let Some(header) = header else {
                buffer = Some(chain);
                continue;
            };
            chain::write(&**memory, &place, &header.encode()).ok_or(RingFault::NotMemory)?;
            // A header and at most MAX_DATA_LEN.
            ring.complete(&**memory, chain.head, HEADER_LEN as u32 + header.len)?;
        }
        if buffer.is_some() {
            ring.put_back();
        }
        ring.signal(&**memory)?;
        Ok(next)
    }

    fn note(&self, ring: &Ring, what: &'static str) {
        let count = ring.count_offence();
        if count.is_power_of_two() {
            tracing::warn!(device = %self.id, count, "{what}");
        }
    }
}

/// Where a packet's header and its data go; `None` if the buffer is of no use.
fn place(chain: &Chain) -> Option<(Vec<Segment>, Vec<Segment>)> {
    let is_of_use = |(_, room): &(Vec<Segment>, Vec<Segment>)| !room.is_empty() && chain.readable.is_empty();
    chain::split(&chain.writable, HEADER_LEN as u64).filter(is_of_use)
}

impl Device for Vsock {
    fn identity(&self) -> Identity {
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_VSOCK as u16,
            class: CLASS,
            features: 0,
            config: u64::from(self.cid).to_le_bytes().to_vec(),
            queue_sizes: QUEUE_SIZES.to_vec(),
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd()]
    }

    fn run(&mut self, active: &mut Active, _wake: Wake) -> Result<Next, Fault> {
        let memory = active.memory.memory().into_inner();
        let mut next = self.poll()?;
        let [to_guest, from_guest, ..] = active.rings.as_mut_slice() else { return Ok(next) };
        if let Some(ring) = from_guest {
            next = next.or(self.hear(ring, &memory)?);
        }
        let was_full = !self.table.can_answer();
        if let Some(ring) = to_guest {
            next = next.or(self.speak(ring, &memory)?);
        }
        // Somebody has left, or the guest has taken answers: go on where there was no room.
        let has_room = self.has_callers && self.table.has_room() || was_full && self.table.can_answer();
        Ok(if has_room { Next::Again } else { next })
    }

    fn stop(&mut self) {
        self.table.forget_guest();
    }
}
