//! The seams between devices and the machine that holds them: traits and plain data, no behaviour.
//!
//! Devices (`vmm/pci`, `vmm/virtio`, `vmm/vfio`) import only the trunk and this file; `vmm/machine` implements and drives it.
//!
//! ```text
//!   vCPU thread ──MMIO/ECAM exit──▶ PciFunction::{config,bar}_{read,write} ──▶ Option<Effect>
//!        └── sends (slot, effect) to the control thread and waits for its answer
//!   control thread ──▶ PciFunction::apply(effect) and/or re-reads bars(), doorbells(), vectors() ──▶ KVM
//!   guest kick ──ioeventfd──▶ Doorbell.event ──▶ the device's own worker thread
//!   worker ──write──▶ Vector.event ──irqfd──▶ guest's MSI-X handler
//! ```

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::model::{DeviceChange, DeviceId};
use crate::sys::counter_page::Counter;
use crate::sys::vfio::Pages;

/// Guest memory as devices see it: a snapshot per use, so that slots can grow while the VM runs.
pub type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What a register write asks of the machine. The device has already updated its own registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A BAR moved, or memory decoding was switched: re-read [`PciFunction::bars`], [`PciFunction::doorbells`] and
    /// [`PciFunction::pages`].
    BarsChanged,
    /// An MSI-X vector was programmed, masked or unmasked: re-read [`PciFunction::vectors`].
    VectorsChanged,
    /// The driver is ready (virtio `DRIVER_OK`): call [`PciFunction::apply`] on the control thread.
    Activate,
    /// The driver resets the device: call [`PciFunction::apply`] on the control thread.
    Reset,
}

/// Where it is counted what KVM holds for a VM; by default nowhere.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Memory slots.
    pub memory_slots: Counter,
    /// Eventfds that raise an interrupt.
    pub irqfds: Counter,
    /// Eventfds that a guest's write signals.
    pub ioeventfds: Counter,
}

/// Where a device counts.
#[derive(Debug, Clone, Default)]
pub struct DeviceCounters {
    /// Faults of guest and host that it met.
    pub faults: Counter,
    /// By queue; each is written by the queue's own thread.
    pub queues: Vec<QueueCounters>,
}

/// Where what goes through a queue is counted.
#[derive(Debug, Clone, Default)]
pub struct QueueCounters {
    /// Requests that were given back.
    pub operations: Counter,
    /// Their bytes in both directions.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Sum of their latencies in ns.
    pub latency_sum_ns: Counter,
    /// Requests by latency: number n those of less than 2^n µs that no earlier one counts, the last one the rest.
    pub latency: Vec<Counter>,
}

/// Where a balloon tells what it holds; written by its thread alone.
#[derive(Debug, Clone, Default)]
pub struct BalloonCounters {
    /// Bytes that the guest is to give up.
    pub target: Counter,
    /// Bytes that it has given up and not taken back.
    pub held: Counter,
    /// Bytes that the host got back, of what the guest gave up.
    pub removed: Counter,
    /// The same of what the guest reported as free.
    pub reported: Counter,
    /// Bytes of both that were left where they are.
    pub kept: Counter,
    /// When the guest has last told its statistics (CLOCK_MONOTONIC, ns).
    pub told_at: Counter,
    /// Which of them it told: a bit for each.
    pub told: Counter,
    /// Its statistics, by tag.
    pub statistics: Vec<Counter>,
}

/// A BAR as it is mapped now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarMapping {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// Guest-physical base address.
    pub base: u64,
    /// Length in bytes, a power of two.
    pub len: u64,
}

/// An eventfd that the guest signals by writing at an address: registered as an ioeventfd of any length.
#[derive(Debug, Clone)]
pub struct Doorbell {
    /// Guest-physical address.
    pub address: u64,
    /// Signalled by KVM at each write.
    pub event: Arc<EventFd>,
}

/// Pages of a device of the host that the guest reaches without an exit.
#[derive(Debug, Clone)]
pub struct PageMapping {
    /// Guest-physical address.
    pub address: u64,
    /// What lies there.
    pub pages: Arc<Pages>,
}

/// What a device of the host may have to tell at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmKind {
    /// The host saw an uncorrectable error of the device.
    Error,
    /// The host wants the device back.
    Request,
}

/// An event of the host's about a device: the control thread watches it.
#[derive(Debug)]
pub struct Alarm {
    /// Which device.
    pub device: DeviceId,
    /// What it means.
    pub kind: AlarmKind,
    /// Written by the host.
    pub event: EventFd,
}

/// An MSI message (PCI Local Bus 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// An MSI-X vector. While `route` is `None` (masked, or MSI-X off) its event has no irqfd: a signal stays in the
/// eventfd's counter, which *is* the pending bit, and KVM delivers it when the irqfd is assigned again.
#[derive(Debug, Clone)]
pub struct Vector {
    /// Written by the device to interrupt the guest.
    pub event: Arc<EventFd>,
    /// Where it goes now.
    pub route: Option<MsiMessage>,
}

/// One function on the PCI bus. Register calls come from vCPU threads under the function's lock and must not block;
/// `apply` comes from the control thread.
pub trait PciFunction: Send {
    /// Reads `data.len()` (1, 2 or 4) bytes of configuration space at `offset` (0 to 4095).
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<Effect>;
    /// Reads 1, 2, 4 or 8 bytes within a BAR.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes within a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<Effect>;
    /// BARs that decode now (none while memory decoding is off).
    fn bars(&self) -> Vec<BarMapping>;
    /// Doorbells at their present addresses (none while memory decoding is off).
    fn doorbells(&self) -> Vec<Doorbell>;
    /// Pages of BARs that the guest reaches without an exit, at their present addresses (none while memory decoding is
    /// off). The rest of those BARs, and all of them where the machine cannot map them, is trapped as ever.
    fn pages(&self) -> Vec<PageMapping> {
        Vec::new()
    }
    /// All MSI-X vectors, in order; the number never changes.
    fn vectors(&self) -> Vec<Vector>;
    /// Changes what the host decides of a device, while it runs or not; comes from the control thread.
    fn change(&mut self, _change: DeviceChange) -> Result<(), ChangeError> {
        Err(ChangeError::Unsupported)
    }
    /// Has the device finish what it has begun and begin nothing more, until [`PciFunction::resume`]. The receiver hears
    /// when that is so; `None`: it does nothing by itself, or nothing that can be held back. vCPUs stand still meanwhile.
    fn pause(&mut self) -> Option<Receiver<()>> {
        None
    }
    /// Undoes [`PciFunction::pause`].
    fn resume(&mut self) {}
    /// Performs [`Effect::Activate`] or [`Effect::Reset`]; a device that cannot sets its own `NEEDS_RESET`.
    fn apply(&mut self, effect: Effect);
    /// Ends all work and gives back what the function has of the host, once it is off the bus. Comes from the control
    /// thread, and again now and then until it says `true`: I/O of the host may take its time.
    fn leave(&mut self) -> bool {
        true
    }
}

/// Why a device was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Not one of this kind.
    #[error("a device of this kind cannot be changed so")]
    Unsupported,
    /// It does not fit what is there.
    #[error("{0}")]
    Refused(String),
    /// Its thread is busy, or gone.
    #[error("the device's thread does not answer")]
    Silent,
}

/// How a thread confines itself for good (`vmm/confine`): the first thing that it does.
pub type Confine = fn() -> std::io::Result<()>;

/// What a guest asks of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// ACPI S5.
    PowerOff,
    /// ACPI reset register.
    Reset,
    /// The guest's kernel has panicked, and wants the host to know (pvpanic).
    Panicked,
}
