//! virtio-net on a tap, one queue pair (VIRTIO 1.2 §5.1). Key type: [`Net`].
//!
//! ```text
//!   tap ──readv──▶ [header, dropped][frame ─▶ receive chain]      transmit chain ─▶ [zero header][frame] ──writev──▶ tap
//! ```
//! No offload is negotiated, so both headers are constant and the host never looks at one that a guest wrote, nor the
//! guest at one that the kernel wrote. The tap is watched edge-triggered: an empty receive ring or a full tap costs
//! nothing until a buffer, a frame or room appears.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::chain::{self, Chain};
use super::device::{Active, Device, Fault, Identity, Next, Wake};
use super::limiter::Limiter;
use super::queue::{Ring, RingFault};
use crate::model::{DeviceChange, DeviceId, MacAddr, RateLimits};
use crate::sys::guest_buffers::GuestBuffers;
use crate::vmm::ports::ChangeError;

const QUEUE_SIZE: u16 = 256;
/// Queue numbers (VIRTIO 1.2 §5.1.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Number of the transmit limiter's timer among the descriptors that are watched.
const TRANSMIT_TIMER: usize = 2;
/// Ethernet controller.
const CLASS: u32 = 0x02_00_00;
/// Bytes of struct virtio_net_hdr_v1 (VIRTIO 1.2 §5.1.6).
const HEADER_LEN: usize = 12;
/// What the guest gets: no flags, no segmentation, one buffer.
const RECEIVE_HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Longest frame that a guest may send: what fits into an IP packet, with Ethernet and VLAN headers.
const MAX_FRAME_LEN: u64 = 65_535 + 18;

/// Limits whose burst holds the longest frame: none has to wait until there is room for one.
fn roomy(limits: RateLimits) -> RateLimits {
    RateLimits { bandwidth: limits.bandwidth.map(|rate| rate.with_burst_of(MAX_FRAME_LEN)), ..limits }
}

/// virtio-net on a tap.
#[derive(Debug)]
pub struct Net {
    id: DeviceId,
    mac: MacAddr,
    tap: OwnedFd,
    /// The tap took no more: wait until it is writable.
    is_tap_full: bool,
    receives: Limiter,
    transmits: Limiter,
}

/// What became of one frame.
enum Moved {
    Yes,
    /// The tap has none, or no room, or the limits say no.
    NotNow,
}

impl Net {
    /// An interface with address `mac` on `tap`: opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` and one queue, set to a
    /// header of 12 bytes (`TUNSETVNETHDRSZ`), without offloads (`TUNSETOFFLOAD` 0, as a fresh tap is), non-blocking.
    /// Each direction moves what `limits` allow.
    pub fn new(id: DeviceId, tap: OwnedFd, mac: MacAddr, limits: RateLimits) -> io::Result<Self> {
        if !rustix::fs::fcntl_getfl(&tap)?.contains(OFlags::NONBLOCK) {
            let text = format!("tap of interface {id} is blocking, it must be opened with O_NONBLOCK");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let limits = roomy(limits);
        let (receives, transmits) = (Limiter::new(limits)?, Limiter::new(limits)?);
        Ok(Self { id, mac, tap, is_tap_full: false, receives, transmits })
    }

    /// Fills receive buffers until the tap is empty or the driver has none left.
    fn receive(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        let next = self.each(ring, memory, |net, ring, chain| net.receive_one(ring, memory, chain))?;
        ring.signal(&**memory)?;
        Ok(next)
    }

    /// Sends frames until the driver has no more or the tap is full.
    fn transmit(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        self.is_tap_full = false;
        let next = self.each(ring, memory, |net, ring, chain| net.transmit_one(ring, memory, chain))?;
        ring.signal(&**memory)?;
        Ok(next)
    }

    /// Moves one frame per chain, at most a queue's worth, so that neither direction starves the other.
    fn each(
        &mut self,
        ring: &mut Ring,
        memory: &Arc<GuestMemoryMmap>,
        mut one: impl FnMut(&mut Self, &mut Ring, Chain) -> Result<Moved, Fault>,
    ) -> Result<Next, Fault> {
        for _ in 0..ring.size() {
            match ring.pop(&**memory)? {
                Some(chain) => {
                    if let Moved::NotNow = one(self, ring, chain)? {
                        ring.put_back();
                        return Ok(Next::Wait);
                    }
                }
                None if ring.listen(&**memory)? => {}
                None => return Ok(Next::Wait),
            }
        }
        Ok(Next::Again)
    }

    fn receive_one(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: Chain) -> Result<Moved, Fault> {
        let parts = chain::split(&chain.writable, HEADER_LEN as u64).filter(|_| chain.readable.is_empty());
        let Some((header, frame)) = parts else {
            return self.refuse(ring, memory, &chain, "receive buffer has no room for a header or is readable");
        };
        // Written before the read, so that a buffer that is not memory costs no frame.
        chain::write(&**memory, &header, &RECEIVE_HEADER).ok_or(RingFault::NotMemory)?;
        let mut buffers = GuestBuffers::new(memory, chain::ranges(&frame)).map_err(|_| RingFault::NotMemory)?;
        let mut ignored = [0; HEADER_LEN];
        // How long the frame is shows when it has come: what it did not need is given back.
        if !self.receives.admit(MAX_FRAME_LEN)? {
            return Ok(Moved::NotNow);
        }
        loop {
            match buffers.read_from(&self.tap, &mut ignored) {
                // Shorter than a header: nothing that a tap would send.
                Ok(0) => return Ok(self.received_none()),
                Ok(len) if len <= HEADER_LEN => {}
                // At most the chain's length, which fits into 32 bits.
                Ok(len) => {
                    self.receives.give_back(MAX_FRAME_LEN.saturating_sub((len - HEADER_LEN) as u64), false);
                    ring.complete(&**memory, chain.head, len as u32)?;
                    return Ok(Moved::Yes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(self.received_none()),
                Err(error) => {
                    self.note(ring, "cannot read from tap", &error);
                    return Ok(self.received_none());
                }
            }
        }
    }

    fn received_none(&mut self) -> Moved {
        self.receives.give_back(MAX_FRAME_LEN, true);
        Moved::NotNow
    }

    fn transmit_one(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: Chain) -> Result<Moved, Fault> {
        let parts = chain::split(&chain.readable, HEADER_LEN as u64).filter(|_| chain.writable.is_empty());
        let frame = parts.map(|(_, frame)| frame).filter(|frame| (1..=MAX_FRAME_LEN).contains(&chain::len(frame)));
        let Some(frame) = frame else {
            return self.refuse(ring, memory, &chain, "frame to send is empty, too long or writable");
        };
        let mut buffers = GuestBuffers::new(memory, chain::ranges(&frame)).map_err(|_| RingFault::NotMemory)?;
        let len = chain::len(&frame);
        if !self.transmits.admit(len)? {
            return Ok(Moved::NotNow);
        }
        loop {
            match buffers.write_to(&self.tap, &[0; HEADER_LEN]) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_tap_full = true;
                    self.transmits.give_back(len, true);
                    return Ok(Moved::NotNow);
                }
                // Too short for Ethernet, or the interface is down: lost, as on a wire.
                Err(error) => {
                    self.note(ring, "frame dropped", &error);
                    break;
                }
            }
        }
        ring.complete(&**memory, chain.head, 0)?;
        Ok(Moved::Yes)
    }

    /// Gives a chain back untouched.
    fn refuse(
        &self,
        ring: &mut Ring,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        why: &'static str,
    ) -> Result<Moved, Fault> {
        self.note(ring, "chain refused", &why);
        ring.complete(memory, chain.head, 0)?;
        Ok(Moved::Yes)
    }

    fn note(&self, ring: &Ring, what: &'static str, why: &dyn std::fmt::Display) {
        let count = ring.count_offence();
        if count.is_power_of_two() {
            tracing::warn!(device = %self.id, %why, count, "{what}");
        }
    }
}

impl Device for Net {
    fn identity(&self) -> Identity {
        // struct virtio_net_config (VIRTIO 1.2 §5.1.4) up to status.
        let mut config = self.mac.0.to_vec();
        config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_NET as u16,
            class: CLASS,
            features: 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS,
            config,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE],
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        vec![self.tap.as_raw_fd(), self.receives.as_raw_fd(), self.transmits.as_raw_fd()]
    }

    fn run(&mut self, active: &mut Active, wake: Wake) -> Result<Next, Fault> {
        let memory = active.memory.memory().into_inner();
        let mut next = Next::Wait;
        let does_receive = !matches!(wake, Wake::Queue(TRANSMIT) | Wake::Backend(TRANSMIT_TIMER));
        let does_transmit = match wake {
            Wake::Any | Wake::Backend(TRANSMIT_TIMER) => true,
            Wake::Queue(number) => number == TRANSMIT && !self.is_tap_full,
            Wake::Backend(_) => self.is_tap_full,
        };
        if does_receive
            && let Some(ring) = active.rings.get_mut(RECEIVE).and_then(Option::as_mut)
            && self.receive(ring, &memory)? == Next::Again
        {
            next = Next::Again;
        }
        if does_transmit
            && let Some(ring) = active.rings.get_mut(TRANSMIT).and_then(Option::as_mut)
            && self.transmit(ring, &memory)? == Next::Again
        {
            next = Next::Again;
        }
        Ok(next)
    }

    fn change(&mut self, change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        let DeviceChange::Limits(limits) = change else { return Err(ChangeError::Unsupported) };
        self.receives.set(roomy(limits));
        self.transmits.set(roomy(limits));
        Ok(None)
    }

    fn stop(&mut self) {
        self.is_tap_full = false;
        self.receives.forget();
        self.transmits.forget();
    }
}

#[cfg(test)]
mod tests;
