//! virtio-rng, fed by getrandom(2) (VIRTIO 1.2 §5.4). Key type: [`Rng`].

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::chain::{self, Chain};
use super::device::{Active, Device, Fault, Identity, Next, Wake};
use super::queue::{Ring, RingFault};
use crate::model::DeviceId;
use crate::sys::guest_buffers::GuestBuffers;

const QUEUE_SIZE: u16 = 64;
/// No class of its own: "does not fit any defined class".
const CLASS: u32 = 0x00_ff_00;
/// Bytes that one request gets at most; the driver learns the number and asks again.
const MAX_FILL: u64 = 4096;

/// A source of entropy.
#[derive(Debug)]
pub struct Rng {
    id: DeviceId,
}

impl Rng {
    /// An entropy device; needs nothing of the host but getrandom(2).
    pub fn new(id: DeviceId) -> io::Result<Self> {
        Ok(Self { id })
    }

    fn fill(&self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<(), Fault> {
        let want = chain::len(&chain.writable).min(MAX_FILL);
        let Some((piece, _)) = chain::split(&chain.writable, want).filter(|_| want > 0 && chain.readable.is_empty())
        else {
            let count = ring.count_offence();
            if count.is_power_of_two() {
                tracing::warn!(device = %self.id, count, "entropy request without a buffer to fill");
            }
            return Ok(ring.complete(&**memory, chain.head, 0)?);
        };
        let mut buffers = GuestBuffers::new(memory, chain::ranges(&piece)).map_err(|_| RingFault::NotMemory)?;
        let filled = buffers.fill_random()?;
        // At most MAX_FILL.
        Ok(ring.complete(&**memory, chain.head, filled as u32)?)
    }
}

impl Device for Rng {
    fn identity(&self) -> Identity {
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_RNG as u16,
            class: CLASS,
            features: 0,
            config: Vec::new(),
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn run(&mut self, active: &mut Active, _wake: Wake) -> Result<Next, Fault> {
        let Some(ring) = active.rings.first_mut().and_then(Option::as_mut) else { return Ok(Next::Wait) };
        let memory = active.memory.memory().into_inner();
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            match ring.pop(&*memory)? {
                Some(chain) => self.fill(ring, &memory, &chain)?,
                None if ring.listen(&*memory)? => {}
                None => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        ring.signal(&*memory)?;
        Ok(next)
    }

    fn stop(&mut self) {}
}

#[cfg(test)]
mod tests;
