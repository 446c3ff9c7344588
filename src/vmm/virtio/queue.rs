//! A virtqueue in use: rules that a driver cannot bend, over `virtio-queue`. Key types: [`Ring`], [`RingFault`].
//!
//! Owned by the worker while the device is active: size and addresses were fixed at activation and have no way to
//! change. Every broken rule is a [`RingFault`], after which the ring is not touched again until reset.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::chain::{self, Chain};
use super::meter::Meter;
use super::signals::Signals;

/// What a driver did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// More chains on offer than the queue has entries.
    #[error("available index runs ahead of the queue")]
    AvailableIndex,
    /// A chain that cannot be followed to its end, or mixes up directions.
    #[error("broken descriptor chain")]
    BrokenChain,
    /// A chain with too many descriptors.
    #[error("descriptor chain too long")]
    ChainTooLong,
    /// A request without room for its answer.
    #[error("request cannot be answered")]
    NoAnswer,
    /// The rings are not, or no longer, guest memory.
    #[error("ring is not guest memory")]
    NotMemory,
    /// Queue size or addresses against the rules.
    #[error("queue has an impossible size or address")]
    Geometry,
}

/// What the driver programmed for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Geometry {
    /// Entries.
    pub(super) size: u16,
    /// Guest addresses.
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// A queue in use.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// Something was completed since the last signal.
    has_news: bool,
    number: usize,
    signals: Arc<Signals>,
    meter: Option<Meter>,
}

impl Ring {
    /// Takes over what the driver programmed, if it obeys VIRTIO 1.2 §2.7 and lies in `memory`.
    pub(super) fn new(
        geometry: Geometry,
        max_size: u16,
        is_event_idx: bool,
        memory: &impl GuestMemory,
        number: usize,
        signals: Arc<Signals>,
    ) -> Result<Self, RingFault> {
        let build = || {
            let mut queue = Queue::new(max_size)?;
            queue.try_set_size(geometry.size)?;
            queue.try_set_desc_table_address(GuestAddress(geometry.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(geometry.available))?;
            queue.try_set_used_ring_address(GuestAddress(geometry.used))?;
            Ok(queue)
        };
        let mut queue: Queue = build().map_err(|_: virtio_queue::Error| RingFault::Geometry)?;
        queue.set_event_idx(is_event_idx);
        queue.set_ready(true);
        // Address 0 counts as unset in `virtio-queue`.
        if geometry.available == 0 || !queue.is_valid(memory) {
            return Err(RingFault::NotMemory);
        }
        let meter = signals.queue_counters(number).map(|counters| Meter::new(counters, queue.size()));
        Ok(Self { queue, has_news: false, number, signals, meter })
    }

    /// Entries of the queue: the bound of one run of a device.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain on offer.
    pub(super) fn pop<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<Chain>, RingFault> {
        let mut available = match self.queue.iter(memory) {
            Ok(available) => available,
            Err(virtio_queue::Error::InvalidAvailRingIndex) => return Err(RingFault::AvailableIndex),
            Err(_) => return Err(RingFault::NotMemory),
        };
        match available.next() {
            Some(descriptors) => {
                let chain = Chain::collect(descriptors)?;
                if let Some(meter) = &mut self.meter {
                    // What is longer is no request that succeeds.
                    meter.take(chain.head, u32::try_from(chain::len(&chain.readable)).unwrap_or(u32::MAX));
                }
                Ok(Some(chain))
            }
            None => Ok(None),
        }
    }

    /// Puts the chain that was popped last back; the next [`Ring::pop`] finds it again.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, `len` bytes of it written.
    pub(super) fn complete(&mut self, memory: &impl GuestMemory, head: u16, len: u32) -> Result<(), RingFault> {
        self.has_news = true;
        if let Some(meter) = &mut self.meter {
            meter.give(head, len);
        }
        self.queue.add_used(memory, head, len).map_err(|_| RingFault::NotMemory)
    }

    /// Interrupts the driver if it wants to know of what was completed since the last call.
    pub(super) fn signal(&mut self, memory: &impl GuestMemory) -> Result<(), RingFault> {
        if let Some(meter) = &mut self.meter {
            meter.pause();
        }
        // Without `EVENT_IDX` the library says yes also when nothing was completed.
        if !std::mem::take(&mut self.has_news) {
            return Ok(());
        }
        let is_wanted = self.queue.needs_notification(memory).map_err(|_| RingFault::NotMemory)?;
        if is_wanted && !self.is_silenced(memory)? {
            self.signals.queue(self.number);
        }
        Ok(())
    }

    /// Counts an offence that cost the driver no more than its request.
    pub(super) fn count_offence(&self) -> u64 {
        if let Some(meter) = &self.meter {
            meter.fail();
        }
        self.signals.count()
    }

    /// Asks for a notification at the next chain; true if one has come meanwhile, so that there will be none.
    pub(super) fn listen(&mut self, memory: &impl GuestMemory) -> Result<bool, RingFault> {
        self.queue.enable_notification(memory).map_err(|_| RingFault::NotMemory)
    }

    /// Without `EVENT_IDX`, drivers suppress interrupts by a flag (VIRTIO 1.2 §2.7.7).
    fn is_silenced(&self, memory: &impl GuestMemory) -> Result<bool, RingFault> {
        if self.queue.event_idx_enabled() {
            return Ok(false);
        }
        let flags: u16 =
            memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed).map_err(|_| RingFault::NotMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }
}
