//! A virtio device as a PCI function (VIRTIO 1.2 §4.1, modern only). Key type: [`VirtioFunction`].
//!
//! ```text
//!   BAR 0 (32 KiB)  0x0000 common │ 0x1000 ISR │ 0x2000 device │ 0x3000 notify │ 0x4000 MSI-X table │ 0x5000 pending
//!
//!             apply(Activate)                 apply(Reset), worker answers
//!   Phase::Idle ─────────────▶ Phase::Live ─────────────────────────────────▶ Phase::Idle, status reads 0
//!                                   └─ worker late ─▶ Phase::Stopping ─ answer seen at a status read ─┘
//!
//!             leave, in any phase               worker answers
//!   Phase::… ────────────────────▶ Phase::Leaving ──────────────▶ the device is dropped, its thread free for another
//! ```
//! Register calls come from vCPU threads; [`PciFunction::apply`] from the control thread, while the vCPU that wrote the
//! status waits: the only wait of a vCPU on another thread. It lasts at most [`RESET_WAIT`]; when the host's I/O takes
//! longer, status keeps reading non-zero and the driver polls, as VIRTIO 1.2 §4.1.4.3.2 has it do.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{COMMON_LEN, CommonConfig};
use super::device::{Active, Device};
use super::queue::{Ring, RingFault};
use super::signals::Signals;
use super::worker::{Seat, Worker};
use super::workers::Workers;
use crate::model::DeviceChange;
use crate::vmm::pci::{BarKind, Bars, Capabilities, ConfigSpace, Identity, Msix, MsixLayout};
use crate::vmm::ports::{BarMapping, ChangeError, DeviceCounters, Doorbell, Effect, GuestMemory, PciFunction, Vector};

/// Longest that the control thread waits for the worker: for a reset, or a change of the device.
const RESET_WAIT: Duration = Duration::from_secs(1);

/// PCI ids (VIRTIO 1.2 §4.1.2.1); the subsystem device id only has to be at least 0x40.
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;
const REVISION: u8 = 1;

/// Vendor-specific capability id, and the types of virtio's (VIRTIO 1.2 §4.1.4).
const CAP_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Offsets within the PCI configuration access capability.
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;
const WINDOW_DATA_LEN: u16 = 4;

/// The one BAR, and a page in it for each region.
const BAR: u8 = 0;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
const REGION_LEN: u64 = 0x1000;
/// Bytes between the doorbells of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// Features of the transport and the rings.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

enum Phase {
    /// The worker holds nothing.
    Idle,
    /// The worker has the rings.
    Live,
    /// The worker has been asked to give up and has not answered yet.
    Stopping(Receiver<()>),
    /// The worker has been asked for the device itself.
    Leaving(Receiver<Box<dyn Device>>),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle => "Idle",
            Self::Live => "Live",
            Self::Stopping(_) => "Stopping",
            Self::Leaving(_) => "Leaving",
        })
    }
}

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct VirtioFunction {
    id: String,
    config: ConfigSpace,
    bars: Bars,
    msix: Msix,
    /// Offset of the PCI configuration access capability.
    window: u16,
    common: CommonConfig,
    device_config: Vec<u8>,
    kicks: Vec<Arc<EventFd>>,
    signals: Arc<Signals>,
    memory: GuestMemory,
    phase: Phase,
    /// `None` once the device has left.
    worker: Option<Worker>,
    workers: Workers,
}

impl VirtioFunction {
    /// Length of BAR 0 in bytes: the machine reserves as much, aligned to it.
    pub const BAR_LEN: u32 = 0x8000;

    /// Puts `device` behind a PCI function and gives it a thread of `workers`. `bar_base`: guest-physical address that BAR 0 is
    /// assigned to, a multiple of [`VirtioFunction::BAR_LEN`]; it decodes once the driver switches memory space on.
    pub fn new(device: impl Device, memory: GuestMemory, bar_base: u32, workers: &Workers) -> io::Result<Self> {
        let identity = device.identity();
        let queues = identity.queue_sizes.len();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + identity.device_type,
            revision: REVISION,
            class: identity.class,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        });
        let mut bars = Bars::default();
        bars.add(&mut config, BAR, BarKind::Memory32, Self::BAR_LEN.into(), bar_base.into())
            .map_err(io::Error::other)?;
        let mut caps = Capabilities::default();
        let window = add_capabilities(&mut config, &mut caps, queues as u32, identity.config.len() as u32)?;
        // One vector per queue and one for configuration changes.
        let vectors = queues as u16 + 1;
        let layout = MsixLayout { vectors, table_bar: BAR, table: TABLE, pending_bar: BAR, pending: PENDING };
        let msix = Msix::new(&mut config, &mut caps, layout)?;
        let signals = Arc::new(Signals::new(msix.events().to_vec(), queues));
        let kick = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let kicks = (0..queues).map(kick).collect::<io::Result<Vec<_>>>()?;
        let common = CommonConfig::new(identity.features | FEATURES, &identity.queue_sizes, signals.clone());
        let mut worker = workers.take(&identity.id)?;
        let (id, device) = (identity.id.clone(), Box::new(device));
        worker.seat(Seat { id, device, kicks: kicks.clone(), signals: signals.clone() })?;
        Ok(Self {
            id: identity.id,
            config,
            bars,
            msix,
            window,
            common,
            device_config: identity.config,
            kicks,
            signals,
            memory,
            phase: Phase::Idle,
            worker: Some(worker),
            workers: workers.clone(),
        })
    }

    /// Number of its queues.
    pub fn queues(&self) -> usize {
        self.kicks.len()
    }

    /// Counts there what it does, from the next activation on.
    pub fn count_in(&self, counters: DeviceCounters) {
        self.signals.count_in(counters);
    }

    /// Faults of guest and host that this device has met, survived or not.
    pub fn faults(&self) -> u64 {
        self.signals.faults()
    }

    fn activate(&mut self) {
        if !self.common.is_ready() || !matches!(self.phase, Phase::Idle) {
            return;
        }
        let Some(worker) = &self.worker else { return };
        let started = self.rings().map(|rings| {
            let (kicks, memory) = (self.kicks.clone(), self.memory.clone());
            let active = Active { rings, kicks, memory, features: self.common.features() };
            worker.start(active)
        });
        match started {
            Ok(Ok(())) => self.phase = Phase::Live,
            Ok(Err(gone)) => self.fail(&gone),
            Err(fault) => self.fail(&fault),
        }
    }

    /// The enabled queues, checked once and for all.
    fn rings(&self) -> Result<Vec<Option<Ring>>, RingFault> {
        let memory = self.memory.memory();
        let is_event_idx = self.common.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let ring = |(number, queue): (usize, Option<_>)| {
            queue
                .map(|(geometry, max)| Ring::new(geometry, max, is_event_idx, &*memory, number, self.signals.clone()))
                .transpose()
        };
        self.common.queues().enumerate().map(ring).collect()
    }

    fn fail(&self, cause: &dyn std::fmt::Display) {
        let count = self.signals.fail(true);
        if count.is_power_of_two() {
            tracing::warn!(device = %self.id, %cause, count, "device cannot start and needs a reset");
        }
    }

    fn reset(&mut self) {
        if !self.common.is_resetting() {
            return;
        }
        if let (Phase::Live, Some(worker)) = (&self.phase, &self.worker) {
            let done = worker.stop();
            if done.recv_timeout(RESET_WAIT) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(device = %self.id, "reset waits for I/O in flight");
                self.phase = Phase::Stopping(done);
                return;
            }
            self.phase = Phase::Idle;
        }
        if matches!(self.phase, Phase::Idle) {
            self.common.finish_reset();
        }
    }

    /// Completes a reset whose worker has answered late.
    fn poll_reset(&mut self) {
        if let Phase::Stopping(done) = &self.phase
            && done.try_recv() != Err(TryRecvError::Empty)
        {
            self.phase = Phase::Idle;
            self.common.finish_reset();
        }
    }

    /// The access that the window in configuration space asks for: offset and bytes in BAR 0, if it is a proper one.
    fn window_access(&self) -> Option<(u64, usize)> {
        let offset = u64::from(self.config.u32(self.window + WINDOW_OFFSET));
        let len = u64::from(self.config.u32(self.window + WINDOW_LENGTH));
        let is_proper = self.config.u8(self.window + WINDOW_BAR) == BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset + len <= u64::from(Self::BAR_LEN);
        is_proper.then_some((offset, len as usize))
    }

    fn write_through_window(&mut self) -> Option<Effect> {
        let (at, len) = self.window_access()?;
        let value = self.config.u32(self.window + WINDOW_DATA).to_le_bytes();
        self.bar_write(BAR, at, value.get(..len)?)
    }

    fn touches_window(&self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.window + WINDOW_DATA);
        let offset = usize::from(offset);
        offset < data + usize::from(WINDOW_DATA_LEN) && data < offset + len
    }
}

/// Lays out virtio's capabilities; returns where the configuration access window is.
fn add_capabilities(
    config: &mut ConfigSpace,
    caps: &mut Capabilities,
    queues: u32,
    device_len: u32,
) -> io::Result<u16> {
    let mut add = |kind: u8, offset: u32, len: u32, tail: &[u8]| {
        // cap_len counts id and link; bar, id and padding follow.
        let mut body = vec![16 + tail.len() as u8, kind, BAR, 0, 0, 0];
        body.extend(offset.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(tail);
        caps.add(config, CAP_VENDOR, &body).map_err(io::Error::other)
    };
    add(CFG_COMMON, COMMON, COMMON_LEN, &[])?;
    add(CFG_ISR, ISR, 1, &[])?;
    if device_len > 0 {
        add(CFG_DEVICE, DEVICE, device_len, &[])?;
    }
    add(CFG_NOTIFY, NOTIFY, queues * NOTIFY_MULTIPLIER, &NOTIFY_MULTIPLIER.to_le_bytes())?;
    let window = add(CFG_PCI, 0, 0, &[0; WINDOW_DATA_LEN as usize])?;
    config.set_writable(window + WINDOW_BAR, &[0xff]);
    config.set_writable(window + WINDOW_OFFSET, &[0xff; 12]);
    Ok(window)
}

impl PciFunction for VirtioFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, len)) = self.window_access()
        {
            let mut value = [0; WINDOW_DATA_LEN as usize];
            if let Some(part) = value.get_mut(..len) {
                self.bar_read(BAR, at, part);
                self.config.set(self.window + WINDOW_DATA, part);
            }
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<Effect> {
        let before = self.bars.mappings(&self.config);
        self.config.write(offset, data);
        let is_rerouted = self.msix.sync(&self.config);
        self.signals.set_msix(self.msix.is_enabled());
        if self.touches_window(offset, data.len()) {
            return self.write_through_window();
        }
        // One access reaches either the header or MSI-X control.
        if self.bars.mappings(&self.config) != before {
            Some(Effect::BarsChanged)
        } else {
            is_rerouted.then_some(Effect::VectorsChanged)
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR || offset >= Self::BAR_LEN.into() {
            data.fill(0xff);
            return;
        }
        let within = offset % REGION_LEN;
        match (offset - within) as u32 {
            COMMON => {
                self.poll_reset();
                self.common.read(within, data);
            }
            ISR => {
                if let (0, Some(first)) = (within, data.first_mut()) {
                    *first = self.signals.take_isr();
                }
            }
            DEVICE => {
                for (to, &from) in data.iter_mut().zip(self.device_config.iter().skip(within as usize)) {
                    *to = from;
                }
            }
            TABLE => self.msix.read_table(within, data),
            PENDING => self.msix.read_pending(within, data),
            // Doorbells read as zero, the rest of the BAR too.
            _ => {}
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<Effect> {
        if bar != BAR || offset >= Self::BAR_LEN.into() {
            return None;
        }
        let within = offset % REGION_LEN;
        match (offset - within) as u32 {
            COMMON => {
                let effect = self.common.write(within, data);
                if let (Phase::Live, Some(worker)) = (&self.phase, &self.worker)
                    && self.signals.is_rerouted()
                {
                    worker.reroute();
                }
                effect
            }
            NOTIFY => {
                // Not an ioeventfd yet, or through the configuration window.
                let queue = usize::try_from(within / u64::from(NOTIFY_MULTIPLIER)).ok()?;
                // Fails only when the counter is full of kicks.
                let _ = self.kicks.get(queue)?.write(1);
                None
            }
            TABLE => self.msix.write_table(within, data).then_some(Effect::VectorsChanged),
            // Read-only: no device here has configuration that a driver writes.
            _ => None,
        }
    }

    fn bars(&self) -> Vec<BarMapping> {
        self.bars.mappings(&self.config)
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let Some(mapping) = self.bars().first().copied() else { return Vec::new() };
        let first = mapping.base + u64::from(NOTIFY);
        let addresses = (0..).map(|queue| first + queue * u64::from(NOTIFY_MULTIPLIER));
        addresses.zip(&self.kicks).map(|(address, event)| Doorbell { address, event: event.clone() }).collect()
    }

    fn vectors(&self) -> Vec<Vector> {
        self.msix.vectors()
    }

    fn change(&mut self, change: DeviceChange) -> Result<(), ChangeError> {
        let worker = self.worker.as_ref().ok_or(ChangeError::Silent)?;
        let changed = worker.change(change).recv_timeout(RESET_WAIT).map_err(|_| ChangeError::Silent)?;
        if let Some(config) = changed? {
            // Both under the function's lock: no driver sees one without the other (VIRTIO 1.2 §2.5.1).
            self.device_config = config;
            self.common.count_generation();
            if self.common.is_ready() {
                self.signals.config();
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Option<Receiver<()>> {
        self.worker.as_ref().map(Worker::pause)
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.resume();
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Activate => self.activate(),
            Effect::Reset => self.reset(),
            // The machine's business alone.
            Effect::BarsChanged | Effect::VectorsChanged => {}
        }
    }

    fn leave(&mut self) -> bool {
        let wait = if let Phase::Leaving(_) = self.phase { Duration::ZERO } else { RESET_WAIT };
        let Some(worker) = &mut self.worker else { return true };
        if !matches!(self.phase, Phase::Leaving(_)) {
            self.phase = Phase::Leaving(worker.vacate());
        }
        let Phase::Leaving(device) = &self.phase else { return false };
        match device.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => false,
            // Here it is closed: disk or tap are nobody's from now on.
            Ok(device) => {
                drop(device);
                if let Some(worker) = self.worker.take() {
                    self.workers.put_back(worker);
                }
                true
            }
            Err(RecvTimeoutError::Disconnected) => true,
        }
    }
}

#[cfg(test)]
mod tests;
