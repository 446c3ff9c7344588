//! One pair of queues on its queue of the tap. Key type: [`Pair`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;

use super::offload::{self, HEADER_LEN, MAX_FRAME_LEN};
use crate::model::DeviceId;
use crate::sys::guest_buffers::GuestBuffers;
use crate::vmm::virtio::chain::{self, Chain, Segment};
use crate::vmm::virtio::device::{Fault, Next};
use crate::vmm::virtio::limiter::Limiter;
use crate::vmm::virtio::queue::{Ring, RingFault};

/// What the pairs of a device share.
pub(super) struct Shared<'a> {
    pub(super) id: &'a DeviceId,
    pub(super) memory: &'a Arc<GuestMemoryMmap>,
    /// As negotiated.
    pub(super) features: u64,
    /// Longest frame that the tap gives, in bytes.
    pub(super) longest: u64,
    pub(super) receives: &'a mut Limiter,
    pub(super) transmits: &'a mut Limiter,
}

/// A pair of queues.
#[derive(Debug)]
pub(super) struct Pair {
    tap: OwnedFd,
    /// The tap took no more: wait until it is writable.
    pub(super) is_tap_full: bool,
    /// The host gives and takes frames here.
    pub(super) is_attached: bool,
    /// Receive chains that were taken from the ring and wait for frames, in the order of the ring.
    held: VecDeque<Chain>,
}

/// What became of one frame.
enum Moved {
    Yes,
    /// The tap has none, or no room, or the limits say no.
    NotNow,
}

impl Pair {
    pub(super) fn new(tap: OwnedFd) -> Self {
        Self { tap, is_tap_full: false, is_attached: true, held: VecDeque::new() }
    }

    pub(super) fn tap(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// Lets go of everything of the guest's.
    pub(super) fn forget(&mut self) {
        self.is_tap_full = false;
        self.held.clear();
    }

    /// Fills receive buffers until the tap is empty or the driver has none left; at most a queue's worth, so that
    /// nothing starves the rest.
    pub(super) fn receive(&mut self, ring: &mut Ring, shared: &mut Shared<'_>) -> Result<Next, Fault> {
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            if !self.take_buffers(ring, shared)? {
                next = Next::Wait;
                break;
            }
            if let Moved::NotNow = self.receive_one(ring, shared)? {
                next = Next::Wait;
                break;
            }
        }
        ring.signal(&**shared.memory)?;
        Ok(next)
    }

    /// Sends frames until the driver has no more or the tap is full.
    pub(super) fn transmit(&mut self, ring: &mut Ring, shared: &mut Shared<'_>) -> Result<Next, Fault> {
        self.is_tap_full = false;
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            match ring.pop(&**shared.memory)? {
                Some(chain) => {
                    if let Moved::NotNow = self.transmit_one(ring, shared, chain)? {
                        ring.put_back();
                        next = Next::Wait;
                        break;
                    }
                }
                None if ring.listen(&**shared.memory)? => {}
                None => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        ring.signal(&**shared.memory)?;
        Ok(next)
    }

    /// Takes chains until they hold the longest frame (one chain, unless buffers are merged). False if the driver has
    /// to give more first.
    fn take_buffers(&mut self, ring: &mut Ring, shared: &Shared<'_>) -> Result<bool, Fault> {
        let is_merging = offload::has(shared.features, VIRTIO_NET_F_MRG_RXBUF);
        let mut room: u64 = self.held.iter().map(|chain| chain::len(&chain.writable)).sum();
        loop {
            let is_enough = room >= shared.longest + HEADER_LEN as u64;
            // A driver that has given all that its queue holds has no more to give.
            if !self.held.is_empty() && (!is_merging || is_enough || self.held.len() >= ring.size().into()) {
                return Ok(true);
            }
            match ring.pop(&**shared.memory)? {
                Some(chain) => {
                    let len = chain::len(&chain.writable);
                    if len < HEADER_LEN as u64 || !chain.readable.is_empty() {
                        let why = "receive buffer has no room for a header or is readable";
                        refuse(ring, shared, &chain, why)?;
                        continue;
                    }
                    room = room.saturating_add(len);
                    self.held.push_back(chain);
                }
                None if ring.listen(&**shared.memory)? => {}
                None => return Ok(false),
            }
        }
    }

    fn receive_one(&mut self, ring: &mut Ring, shared: &mut Shared<'_>) -> Result<Moved, Fault> {
        let all: Vec<Segment> = self.held.iter().flat_map(|chain| chain.writable.iter().copied()).collect();
        let (place, frame) = chain::split(&all, HEADER_LEN as u64).ok_or(RingFault::NotMemory)?;
        // Written before the read, so that a buffer that is not memory costs no frame.
        chain::write(&**shared.memory, &place, &offload::NO_HEADER).ok_or(RingFault::NotMemory)?;
        let mut buffers = GuestBuffers::new(shared.memory, chain::ranges(&frame)).map_err(|_| RingFault::NotMemory)?;
        // How long the frame is shows when it has come: what it did not need is given back.
        if !shared.receives.admit(MAX_FRAME_LEN)? {
            return Ok(Moved::NotNow);
        }
        let mut header = offload::NO_HEADER;
        let len = loop {
            match buffers.read_from(&self.tap, &mut header) {
                // Shorter than a header: nothing that a tap would send.
                Ok(len) if len != 0 && len <= HEADER_LEN => {}
                Ok(len) if len > HEADER_LEN => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    shared.receives.give_back(MAX_FRAME_LEN, true);
                    if let Err(error) = other
                        && error.kind() != io::ErrorKind::WouldBlock
                    {
                        note(ring, shared.id, "cannot read from tap", &error);
                    }
                    return Ok(Moved::NotNow);
                }
            }
        };
        shared.receives.give_back(MAX_FRAME_LEN.saturating_sub((len - HEADER_LEN) as u64), false);
        let used = self.fill(len as u64);
        // No more buffers than a queue has entries.
        let header = offload::receive_header(header, shared.features, used.len() as u16);
        chain::write(&**shared.memory, &place, &header).ok_or(RingFault::NotMemory)?;
        ring.complete_all(&**shared.memory, &used)?;
        Ok(Moved::Yes)
    }

    /// Takes the chains that the first `len` bytes of them are in; each with how many.
    fn fill(&mut self, len: u64) -> Vec<(u16, u32)> {
        let mut left = len;
        let mut used = Vec::new();
        while left > 0
            && let Some(chain) = self.held.pop_front()
        {
            // Frames are shorter than 32 bits count.
            let part = chain::len(&chain.writable).min(left) as u32;
            left -= u64::from(part);
            used.push((chain.head, part));
        }
        used
    }

    fn transmit_one(&mut self, ring: &mut Ring, shared: &mut Shared<'_>, mut chain: Chain) -> Result<Moved, Fault> {
        let is_whole = chain.writable.is_empty() && chain::len(&chain.readable) > HEADER_LEN as u64;
        let whole = chain.clone();
        let header = if is_whole { chain.read_head::<HEADER_LEN>(&**shared.memory) } else { None };
        let Some(header) = header else {
            if is_whole {
                return Err(RingFault::NotMemory.into());
            }
            return refuse(ring, shared, &whole, "frame to send is empty or writable");
        };
        let frame = chain.readable;
        let len = chain::len(&frame);
        let header = if len > MAX_FRAME_LEN { None } else { offload::transmit_header(header, shared.features, len) };
        let Some(header) = header else {
            return refuse(ring, shared, &whole, "frame to send is too long, or its header is not as agreed");
        };
        let mut buffers = GuestBuffers::new(shared.memory, chain::ranges(&frame)).map_err(|_| RingFault::NotMemory)?;
        if !shared.transmits.admit(len)? {
            return Ok(Moved::NotNow);
        }
        loop {
            match buffers.write_to(&self.tap, &header) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_tap_full = true;
                    shared.transmits.give_back(len, true);
                    return Ok(Moved::NotNow);
                }
                // Too short for Ethernet, or the interface is down: lost, as on a wire.
                Err(error) => {
                    note(ring, shared.id, "frame dropped", &error);
                    break;
                }
            }
        }
        ring.complete(&**shared.memory, whole.head, 0)?;
        Ok(Moved::Yes)
    }
}

/// Gives a chain back untouched.
fn refuse(ring: &mut Ring, shared: &Shared<'_>, chain: &Chain, why: &'static str) -> Result<Moved, Fault> {
    note(ring, shared.id, "chain refused", &why);
    ring.complete(&**shared.memory, chain.head, 0)?;
    Ok(Moved::Yes)
}

fn note(ring: &Ring, device: &DeviceId, what: &'static str, why: &dyn std::fmt::Display) {
    let count = ring.count_offence();
    if count.is_power_of_two() {
        tracing::warn!(%device, %why, count, "{what}");
    }
}
