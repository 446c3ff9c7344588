//! A virtqueue in use: rules that a driver cannot bend, over `virtio-queue`. Key types: [`Ring`], [`RingFault`].
//!
//! Owned by the worker while the device is active: size and addresses were fixed at activation and have no way to
//! change. Every broken rule is a [`RingFault`], after which the ring is not touched again until reset.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Chain};
use super::meter::Meter;
use super::signals::Signals;

/// Layout of the rings in bytes (VIRTIO 1.3 §2.7.6, §2.7.8).
const AVAIL_HEADER_LEN: u64 = 4;
const USED_HEADER_LEN: u64 = 4;
const USED_ELEMENT_LEN: u64 = 8;

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
    /// The host's kernel serves the queue, and cannot follow its ring or a chain in it.
    #[error("the host's kernel cannot follow the ring")]
    Unfollowed,
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
    /// Index of the used ring at the last signal.
    signalled: u16,
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
        Ok(Self { queue, signalled: 0, number, signals, meter })
    }

    /// Where it lies, as the driver programmed it.
    pub(super) fn geometry(&self) -> Geometry {
        let queue = &self.queue;
        let (descriptors, available, used) = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        Geometry { size: queue.size(), descriptors, available, used }
    }

    /// What interrupts the driver for this queue, if it has chosen a vector.
    pub(super) fn interrupt(&self) -> Option<Arc<EventFd>> {
        self.signals.queue_event(self.number)
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
        if let Some(meter) = &mut self.meter {
            meter.give(head, len);
        }
        self.queue.add_used(memory, head, len).map_err(|_| RingFault::NotMemory)
    }

    /// Gives several chains back at once: the driver sees all of them or none (VIRTIO 1.3 §5.1.6.3.2, merged buffers).
    pub(super) fn complete_all(&mut self, memory: &impl GuestMemory, used: &[(u16, u32)]) -> Result<(), RingFault> {
        let Some((&(head, len), before)) = used.split_last() else { return Ok(()) };
        let (first, size) = (self.queue.next_used(), self.queue.size());
        for (index, &(head, len)) in (first..).zip(before) {
            let element = USED_HEADER_LEN + USED_ELEMENT_LEN * u64::from(index % size);
            let address = self.queue.used_ring().checked_add(element).ok_or(RingFault::NotMemory)?;
            let bytes = u64::from(len) << 32 | u64::from(head);
            memory.write_obj(bytes.to_le(), GuestAddress(address)).map_err(|_| RingFault::NotMemory)?;
        }
        // The last one's index makes the others visible with it. No more chains than the queue has entries.
        self.queue.set_next_used(first.wrapping_add(before.len() as u16));
        self.complete(memory, head, len)
    }

    /// Interrupts the driver if it wants to know of what was completed since the last call.
    pub(super) fn signal(&mut self, memory: &impl GuestMemory) -> Result<(), RingFault> {
        if let Some(meter) = &mut self.meter {
            meter.pause();
        }
        let used = self.queue.next_used();
        let news = used.wrapping_sub(std::mem::replace(&mut self.signalled, used));
        if news == 0 {
            return Ok(());
        }
        // What was completed must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let is_wanted = if self.queue.event_idx_enabled() {
            // used_event stands behind the available ring (VIRTIO 1.3 §2.7.7): was it passed?
            let behind = AVAIL_HEADER_LEN + 2 * u64::from(self.queue.size());
            used.wrapping_sub(self.load(memory, behind)?).wrapping_sub(1) < news
        } else {
            u32::from(self.load(memory, 0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if is_wanted {
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

    /// A field of the available ring, `offset` bytes into it.
    fn load(&self, memory: &impl GuestMemory, offset: u64) -> Result<u16, RingFault> {
        let address = self.queue.avail_ring().checked_add(offset).ok_or(RingFault::NotMemory)?;
        let value: u16 = memory.load(GuestAddress(address), Ordering::Relaxed).map_err(|_| RingFault::NotMemory)?;
        Ok(u16::from_le(value))
    }
}
