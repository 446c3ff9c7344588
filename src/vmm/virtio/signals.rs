//! What worker and registers share: interrupts towards the driver, the fault mark. Key type: [`Signals`].
//!
//! Written by the worker without the function's lock, read by vCPU threads in register reads, and the other way round
//! for the vector numbers. Each field stands alone: no order between them is relied upon.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use crate::vmm::ports::{DeviceCounters, QueueCounters};

/// No vector (VIRTIO 1.2 §4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR status bits (VIRTIO 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Interrupts and the fault mark of one device.
#[derive(Debug)]
pub struct Signals {
    vectors: Vec<Arc<EventFd>>,
    /// Stored by register writes, loaded by the worker when it signals.
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    /// Set when a queue gets another vector, taken by the worker: whoever else signals it is to be told.
    is_rerouted: AtomicBool,
    /// Stored at writes of MSI-X control, loaded by the worker: ISR bits are kept only without MSI-X.
    is_msix: AtomicBool,
    /// Set by the worker, taken by reads of the ISR register.
    isr: AtomicU8,
    /// Set by the worker and the control thread, loaded by reads of the status register, cleared by reset.
    needs_reset: AtomicBool,
    /// Counted by the worker and the control thread, loaded by whoever reports.
    faults: AtomicU64,
    /// Where it is counted for others to see; set once, before the driver comes, if anybody wants to.
    counters: OnceLock<DeviceCounters>,
}

impl Signals {
    /// Signals of a device with `queues` queues that owns `vectors`.
    pub(super) fn new(vectors: Vec<Arc<EventFd>>, queues: usize) -> Self {
        let none = || AtomicU16::new(NO_VECTOR);
        Self {
            vectors,
            queue_vectors: (0..queues).map(|_| none()).collect(),
            config_vector: none(),
            is_rerouted: AtomicBool::new(false),
            is_msix: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            counters: OnceLock::new(),
        }
    }

    /// Tells the driver that queue `number` has used buffers.
    pub(super) fn queue(&self, number: usize) {
        self.raise(self.queue_vector(number), ISR_QUEUE);
    }

    /// Tells the driver to look at configuration and status.
    pub(super) fn config(&self) {
        self.raise(self.config_vector(), ISR_CONFIG);
    }

    /// Counts a fault and marks the device; `is_live`: the driver has set `DRIVER_OK` and must be told.
    pub(super) fn fail(&self, is_live: bool) -> u64 {
        // First the number: who sees the mark finds it counted.
        let count = self.count();
        self.needs_reset.store(true, Ordering::Release);
        if is_live {
            self.config();
        }
        count
    }

    /// Counts an offence that the device survived.
    pub(super) fn count(&self) -> u64 {
        let count = self.faults.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(counters) = self.counters.get() {
            // Set, not added to: two threads may be here.
            counters.faults.set(count);
        }
        count
    }

    /// Counts there from now on; the first call counts.
    pub(super) fn count_in(&self, counters: DeviceCounters) {
        let _ = self.counters.set(counters);
    }

    /// Where queue `number` is counted.
    pub(super) fn queue_counters(&self, number: usize) -> Option<QueueCounters> {
        self.counters.get()?.queues.get(number).cloned()
    }

    /// Faults so far.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Back to the state before the driver came; the fault count stays.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }

    /// Reads and clears the ISR register.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn set_msix(&self, is_enabled: bool) {
        self.is_msix.store(is_enabled, Ordering::Release);
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.known(vector), Ordering::Release);
    }

    /// [`NO_VECTOR`] for a queue that does not exist.
    pub(super) fn queue_vector(&self, number: usize) -> u16 {
        self.queue_vectors.get(number).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_queue_vector(&self, number: usize, vector: u16) {
        if let Some(place) = self.queue_vectors.get(number) {
            let vector = self.known(vector);
            if place.swap(vector, Ordering::AcqRel) != vector {
                self.is_rerouted.store(true, Ordering::Release);
            }
        }
    }

    /// Whether a queue has another vector since [`Signals::take_rerouted`].
    pub(super) fn is_rerouted(&self) -> bool {
        self.is_rerouted.load(Ordering::Acquire)
    }

    /// The same, and nothing is new afterwards.
    pub(super) fn take_rerouted(&self) -> bool {
        self.is_rerouted.swap(false, Ordering::AcqRel)
    }

    /// What interrupts the driver for queue `number`, if it has chosen a vector.
    pub(super) fn queue_event(&self, number: usize) -> Option<Arc<EventFd>> {
        self.vectors.get(usize::from(self.queue_vector(number))).cloned()
    }

    /// A vector that does not exist reads back as none (VIRTIO 1.2 §4.1.5.1.2.1).
    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn raise(&self, vector: u16, isr: u8) {
        if !self.is_msix.load(Ordering::Acquire) {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
        if let Some(event) = self.vectors.get(usize::from(vector)) {
            // Fails only when the counter is full, and then the signal is pending anyway.
            let _ = event.write(1);
        }
    }
}
